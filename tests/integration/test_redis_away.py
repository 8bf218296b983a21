"""A producer whose result Redis is away: told in a sentence and in time, and all is well when it is back."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from nanogrid.client import Client
from nanogrid.connections import result_redis
from nanogrid.errors import RedisUnavailableError, ResultUnavailableError
from nanogrid.local import probes
from nanogrid.result import not_run
from nanogrid.settings import Settings
from nanogrid.sqs.queues import depths
from tests.integration.test_result_backend import context
from tests.support.redis_proxy import RedisProxy
from tests.support.services import Service, free_port, redis_service, wait_until
from tests.support.worker import ROOT, environment

REQUEST = {"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"}
QUICKLY_S = 0.5


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A Redis that is not started."""
    here = redis_service(tmp_path)
    yield here
    here.stop()


@pytest.fixture
def settings(service: Service, aws_url: str, unique: str) -> Settings:
    """Settings that lead there, and to queues of this test's own."""
    return Settings(
        result_url=f"redis://127.0.0.1:{service.port}/0",
        monitor_url=f"redis://127.0.0.1:{service.port}/1",
        sqs_endpoint_url=aws_url,
        create_queues=True,
        queue_prefix=f"{unique}-",
    )


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is all that connecting may take, and an answer."""
    monkeypatch.setattr(result_redis, "CONNECT_TIMEOUT_S", QUICKLY_S)
    monkeypatch.setattr(result_redis, "ANSWER_TIMEOUT_S", QUICKLY_S)


@contextmanager
def silence(*, full: bool) -> Iterator[int]:
    """The port of a server that never answers; where it is `full`, not even to who connects."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0 if full else 50)
        for waiting in (first, second) if full else ():
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield int(server.getsockname()[1])


def store(settings: Settings, request_id: str) -> None:
    """Store an end as a worker does."""
    client = Client(settings)
    client.app.backend.mark_as_done(request_id, not_run(request_id, "f", "stored"), request=context())
    client.app.backend.client.close()


def test_the_first_submit_says_what_is_wrong_and_the_next_one_works(settings: Settings, service: Service) -> None:
    """Within the connect timeout; nothing is sent, and nothing has to be restarted."""
    client = Client(settings)
    began = time.monotonic()
    with pytest.raises(RedisUnavailableError) as refused:
        client.submit(REQUEST)
    assert time.monotonic() - began < result_redis.CONNECT_TIMEOUT_S + 1
    assert f"Redis at redis://127.0.0.1:{service.port}/0 does not answer" in str(refused.value)
    assert "NANOGRID_RESULT_URL" in str(refused.value)
    assert "nothing was sent" in str(refused.value)
    service.start()
    request_id = client.submit(REQUEST)
    assert [each.visible for each in depths(["python"], settings)] == [1]
    store(settings, request_id)
    assert client.wait(request_id, 5).stderr == "stored\n"


def _map_reduce(client: Client) -> Any:
    return client.map_reduce(REQUEST, [1], REQUEST)


ASKED: dict[str, Callable[[Client], Any]] = {
    "submit": lambda client: client.submit(REQUEST),
    "map_reduce": _map_reduce,
    "state": lambda client: client.state("a"),
    "result": lambda client: client.result("a"),
    "wait": lambda client: client.wait("a", 60),
    "cancel": lambda client: client.cancel("a"),
    "forget": lambda client: client.app.AsyncResult("a").forget(),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.usefixtures("hurry")
def test_whatever_is_asked_of_a_redis_that_is_away_says_so(asked: str, settings: Settings, service: Service) -> None:
    """Nobody waits in vain, and the same client's next question is answered."""
    client = Client(settings)
    began = time.monotonic()
    with pytest.raises(RedisUnavailableError, match="does not answer"):
        ASKED[asked](client)
    assert time.monotonic() - began < QUICKLY_S + 2
    service.start()
    assert client.state("a") == "PENDING"


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("full", [False, True])
def test_an_address_that_answers_nobody_is_told_in_time(full: bool, settings: Settings) -> None:
    """No refusal comes back, as from behind a firewall; or a connection is accepted, and no more."""
    with silence(full=full) as port:
        client = Client(settings.model_copy(update={"result_url": f"redis://127.0.0.1:{port}/0"}))
        began = time.monotonic()
        with pytest.raises(RedisUnavailableError):
            client.submit(REQUEST)
        assert time.monotonic() - began < QUICKLY_S + 2


@pytest.mark.usefixtures("hurry")
def test_who_waits_rides_out_an_outage(settings: Settings, service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """One line says that Redis is away, one that it is back, and a wait that ends in between ends on time."""
    service.start()
    client = Client(settings)
    with ThreadPoolExecutor() as threads:
        patient = threads.submit(client.wait, "a", 30)
        hasty = threads.submit(client.wait, "b", 2)
        listening = redis.Redis(port=service.port)
        # After it has subscribed, each looks once for a result that is already there.
        wait_until(lambda: listening.info("commandstats").get("cmdstat_get", {}).get("calls") == 2, "both wait")
        assert len(listening.pubsub_channels()) == 2
        began = time.monotonic()
        service.kill()
        with pytest.raises(ResultUnavailableError, match="no result after 2 s"):
            hasty.result(10)
        assert time.monotonic() - began < 2 + QUICKLY_S + 1
        assert not patient.done()
        service.start()
        store(settings, "a")
        assert patient.result(10).stderr == "stored\n"
    said = [record.getMessage() for record in caplog.records if record.name == "nanogrid.results.listener"]
    assert sorted({line.split()[1] for line in said}) == ["answers", "does"]
    assert len(said) <= 3  # two threads were told that it is away, one that it is back


def test_a_result_that_nobody_was_told_of_is_found(
    settings: Settings, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis stores it and tells those who listen at that moment; the one who waits was heard by it a moment later."""
    monkeypatch.setattr("nanogrid.results.listener.POLL_S", 0.2)
    service.start()
    with ThreadPoolExecutor() as threads, closing(redis.Redis(port=service.port)) as direct:
        found = threads.submit(Client(settings).wait, "a", 20)
        wait_until(direct.pubsub_channels, "it listens")
        store(settings, "b")
        stored = direct.get("nanogrid:celery-task-meta-b")
        assert isinstance(stored, bytes)
        direct.set("nanogrid:celery-task-meta-a", stored.replace(b'"task_id": "b"', b'"task_id": "a"'))
        assert found.result(5).stderr == "stored\n"


def test_a_result_that_came_while_the_connection_was_lost_is_found(settings: Settings, service: Service) -> None:
    """It is looked for after listening has begun again."""
    service.start()
    with RedisProxy(service.port) as proxy, ThreadPoolExecutor() as threads:
        found = threads.submit(Client(settings.model_copy(update={"result_url": proxy.url})).wait, "a", 20)
        with closing(redis.Redis(port=service.port)) as direct:
            wait_until(direct.pubsub_channels, "it listens")
            proxy.lead_to(free_port())
            wait_until(lambda: not direct.pubsub_channels(), "it listens no more")
            store(settings, "a")
            proxy.lead_to(service.port)
            assert found.result(10).stderr == "stored\n"


LEFT = {
    "a client's wait": "from nanogrid.client import Client\n"
    "try: Client().wait('a', 0.1)\nexcept Exception as error: print(type(error).__name__)",
    "a handle's wait": "from nanogrid.celery import app\nhandle = app.AsyncResult('a')\n"
    "try: handle.get(timeout=0.1)\nexcept Exception as error: print(type(error).__name__)",
    "a handle of each of two apps": "from nanogrid.celery import app, make_app\nfrom nanogrid.settings import Settings\n"
    "handles = [made.AsyncResult('a') for made in (app, make_app(Settings()))]\n"
    "for handle in handles: handle.backend.add_pending_result(handle)\nprint('ended')",
    "a thread that waits": "import threading\nfrom nanogrid.client import Client\n"
    "threading.Thread(target=Client().wait, args=('a',), daemon=True).start()\n"
    "import redis, os, time\nlooking = redis.Redis.from_url(os.environ['NANOGRID_RESULT_URL'])\n"
    "while not looking.pubsub_channels(): time.sleep(0.01)\nprint('ended')",
}


@pytest.mark.parametrize("left", LEFT)
def test_a_process_that_ends_while_it_waits_says_nothing(left: str, settings: Settings, service: Service) -> None:
    """Neither by the interpreter's end nor before."""
    service.start()
    done = subprocess.run(
        [sys.executable, "-c", LEFT[left]],
        env=environment(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() in ("ResultUnavailableError", "TimeoutError", "ended")


def test_waits_that_ended_in_vain_leave_nothing(settings: Settings, service: Service) -> None:
    """Whoever asks again and again in short turns has no handle of each in memory."""
    service.start()
    client = Client(settings)
    for _ in range(3):
        with pytest.raises(ResultUnavailableError):
            client.wait("a", 0.01)
    assert [dict(waiting) for waiting in client.app.backend._pending_results] == [{}, {}]
    assert client.app.backend.result_consumer.subscribed_to == set()


PROBES: dict[str, Callable[[int], bool]] = {
    "redis": lambda port: probes.redis_answers(port, 1),
    "sqs": probes.sqs_answers,
    "worker": lambda port: probes.worker_answers(f"redis://127.0.0.1:{port}/1"),
    "flower": probes.flower_answers,
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_keeps_its_promise(probe: str, full: bool) -> None:
    """About a second, whatever answers there is none."""
    with silence(full=full) as port:
        began = time.monotonic()
        assert not PROBES[probe](port)
        assert time.monotonic() - began < 2 * probes.PATIENCE_S
