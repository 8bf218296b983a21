"""The HTTP port of a worker, its health checks and its queue checks, each with real peers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import ConfigurationError
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.pool.identity import OwnerIdentity
from nanogrid.metrics import server as serving
from nanogrid.metrics.address import Address, publish, published
from nanogrid.metrics.background import BackgroundChecks
from nanogrid.metrics.health import Disk, Health, check_engine, check_redis
from nanogrid.metrics.queue_depths import QueueDepths
from nanogrid.metrics.server import MOST_CLIENTS, MetricsServer, Page
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.transport.poll_status import poll_status
from tests.support.services import Service, wait_until

PATIENCE_S = 30.0


def broken() -> Page:
    """A page with a bug."""
    raise RuntimeError("this page is broken")


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    """A server on any free loopback port."""
    made = MetricsServer(Address("127.0.0.1", 0), {"/": lambda: Page(b"here\n"), "/broken": broken})
    made.start()
    yield made
    made.stop()


def get(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(f"{server.address.url}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def connect(server: MetricsServer) -> socket.socket:
    """A client that has sent nothing yet."""
    return socket.create_connection((server.address.host, server.address.port), timeout=PATIENCE_S)


def until_hung_up(client: socket.socket) -> bytes:
    """Return everything that the server sends before it closes the connection."""
    said = b""
    with suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            said += chunk
    return said


# -- the server


def test_pages_are_served(server: MetricsServer, caplog: pytest.LogCaptureFixture) -> None:
    """Pages that exist, that do not, and that fail; a query string is not part of the path."""
    assert get(server, "/") == (200, "here\n")
    assert get(server, "/?debug=1") == (200, "here\n")
    assert get(server, "/", "HEAD") == (200, "")
    assert get(server, "/nothing") == (404, "not found; the pages are /, /broken\n")
    assert get(server, "/", "POST")[0] == 501
    assert get(server, "/broken")[0] == 500
    assert "this page is broken" in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:9747", 200),
        ("127.0.0.1:9747", 200),
        ("[::1]:9747", 200),
        ("evil.example", 403),
        ("", 200),
    ],
)
def test_on_loopback_no_web_page_reads_what_is_there(server: MetricsServer, host: str, status: int) -> None:
    """A page whose name was made to resolve to loopback sends that name."""
    with connect(server) as client:
        client.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        assert until_hung_up(client).startswith(f"HTTP/1.0 {status} ".encode())


def test_what_is_no_http_costs_nobody_anything(server: MetricsServer) -> None:
    """Garbage and endless headers get an answer or a closed connection; the next client is served."""
    for said in (
        b"\0\xff\0\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 1000,
    ):
        with connect(server) as client:
            with suppress(OSError):  # the server may close the connection before everything is sent
                client.sendall(said)
            answer = until_hung_up(client)
        assert b"here" not in answer
    assert get(server, "/") == (200, "here\n")


def test_clients_that_are_too_many_are_turned_away(server: MetricsServer) -> None:
    """At once, so that silent clients do not make others wait; when they are gone, there is room again."""
    silent = [connect(server) for _ in range(MOST_CLIENTS)]
    wait_until(lambda: len(server._clients) == MOST_CLIENTS, "all are served")
    assert get(server, "/")[0] == 503
    for client in silent:
        client.close()
    wait_until(lambda: get(server, "/")[0] == 200, "there is room again")


def test_a_client_that_dawdles_is_hung_up_on(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then holds a thread no longer than CLIENT_S in total."""
    monkeypatch.setattr(serving, "CLIENT_S", 0.5)
    stop = threading.Event()
    with connect(server) as client:

        def dawdle() -> None:
            with suppress(OSError):
                while not stop.wait(0.05):
                    client.sendall(b"G")

        thread = threading.Thread(target=dawdle)
        thread.start()
        try:
            until_hung_up(client)  # raises TimeoutError if the connection is not closed
        finally:
            stop.set()
            thread.join()
    wait_until(lambda: not server._clients, "nothing is left of it")


def test_a_port_that_is_taken_is_an_error_and_one_that_ended_is_free(server: MetricsServer) -> None:
    """A second server cannot bind the port; after the first has stopped it can, at once."""
    with pytest.raises(OSError, match="in use"):
        MetricsServer(server.address, {})
    assert get(server, "/")[0] == 200


def test_loopback_may_be_ipv6() -> None:
    """An address in brackets."""
    made = MetricsServer(Address("::1", 0), {"/": lambda: Page(b"six")})
    made.start()
    try:
        assert get(made, "/") == (200, "six")
    finally:
        made.stop()


def test_a_port_is_found_by_others_while_its_worker_lives(tmp_path: Path) -> None:
    """Its address is in the worker's own folder; the address of a dead worker is ignored."""
    owner = OwnerIdentity(tmp_path)
    publish(Address("127.0.0.1", 1234), owner.runs)
    assert list(published(tmp_path)) == [(owner.id, Address("127.0.0.1", 1234))]
    owner.close()
    assert list(published(tmp_path)) == []


# -- health


class Hung:
    """A check that hangs until it is released."""

    def __init__(self) -> None:
        self.looks = 0
        self.go = threading.Event()

    def __call__(self) -> str:
        self.looks += 1
        assert self.go.wait(PATIENCE_S * 2)
        return "it answers after all"


def test_a_check_that_hangs_does_not_hang_the_answer() -> None:
    """It counts as failed after the deadline, is not started again while it hangs, and recovers when it answers."""
    hung = Hung()
    health = Health({"hung": hung, "well": lambda: "fine"}, deadline_s=0.2, fresh_s=0.0)
    try:
        for _ in range(3):
            began = time.monotonic()
            found = health.report()
            assert time.monotonic() - began < PATIENCE_S
            assert (found["well"].ok, found["well"].text) == (True, "fine")
            assert not found["hung"].ok
            assert found["hung"].text.startswith("no answer for ")
        assert hung.looks == 1
    finally:
        hung.go.set()
    wait_until(lambda: health.last_results()["hung"].ok, "it is well again")
    assert health.last_results()["hung"].text == "it answers after all"


def test_what_was_well_a_moment_ago_is_not_looked_for_again_and_what_was_wrong_is() -> None:
    """Many readers cost one check; a worker that has recovered is reported at once."""
    looks: list[str] = []

    def well() -> str:
        looks.append("well")
        return "fine"

    def failing() -> str:
        looks.append("failing")
        if looks.count("failing") < 3:
            raise OSError("not\nthere   yet")
        return "back"

    health = Health({"well": well, "failing": failing}, fresh_s=PATIENCE_S)
    reports = [health.report() for _ in range(5)]
    assert (looks.count("well"), looks.count("failing")) == (1, 3)
    assert [report["failing"].ok for report in reports] == [False, False, True, True, True]
    assert reports[0]["failing"].text == "not there yet"


def test_nothing_is_known_before_the_first_look() -> None:
    """A gauge of a check that never ran would be wrong."""
    assert Health({"any": lambda: "fine"}).last_results() == {}


def test_the_parts_of_this_machine_are_well(redis_url: str, data_dir: Path) -> None:
    """Engine, Redis and disk, each by its own check."""
    settings = Settings(data_dir=data_dir)
    disk = Disk(settings)
    with closing(Engine(settings)) as engine:
        found = Health(
            {"docker": check_engine(engine), "redis": check_redis(redis_url), "disk": disk.check}, deadline_s=PATIENCE_S
        ).report()
    assert {name for name, one in found.items() if one.ok} == {"docker", "redis", "disk"}, found
    assert disk.free_bytes is not None
    assert disk.total_bytes is not None
    assert 0 < disk.free_bytes < disk.total_bytes


def test_parts_that_are_away_are_named(tmp_path: Path) -> None:
    """No engine, no Redis, no folder: one sentence each, without a password."""
    settings = Settings(data_dir=tmp_path / "missing", docker_url="tcp://127.0.0.1:9")
    with closing(Engine(settings)) as engine:
        looks = {
            "docker": check_engine(engine),
            "redis": check_redis("redis://:secret@127.0.0.1:9/0"),
            "disk": Disk(settings).check,
        }
        found = Health(looks, deadline_s=PATIENCE_S).report()
    assert [name for name, one in found.items() if one.ok] == []
    assert "missing is not writable" in found["disk"].text
    assert "secret" not in json.dumps([one.to_json() for one in found.values()])


def test_a_redis_that_accepts_and_says_nothing_fails_its_check() -> None:
    """Its own timeout ends the check, so that no thread remains."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        health = Health({"redis": check_redis(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")}, deadline_s=0.2)
        assert not health.report()["redis"].ok
        wait_until(lambda: "no answer for" not in health.last_results()["redis"].text, "the look has ended")
        assert not health.last_results()["redis"].ok


def test_a_disk_without_room_for_a_function_is_not_well(data_dir: Path) -> None:
    """The largest archive and its unpacked content must fit."""
    look = Disk(Settings(data_dir=data_dir, archive_limit_mb=10**9)).check
    with pytest.raises(OSError, match="MiB free, but the largest function needs"):
        look()


# -- checks of the queues


@pytest.fixture
def settings(aws_url: str, unique: str) -> Settings:
    """Two queues of this test."""
    made = Settings(sqs_endpoint_url=aws_url, create_queues=True, queue_prefix=f"{unique}-")
    with closing(sqs_client(made)) as client:
        for name in ("python", "cpp"):
            queues.resolve(name, made, client)
    return made


def test_what_waits_is_seen_with_its_age(settings: Settings) -> None:
    """Depths of both queues and of a dead-letter queue; the age starts at the last received message, or the first check."""
    with (
        closing(sqs_client(settings)) as client,
        closing(QueueDepths(settings, lambda: ["python", "cpp"])) as depths,
    ):
        where = queues.addresses("python", settings, client)
        for url in (where.url, where.url, where.dead_letter_url):
            client.send_message(QueueUrl=url, MessageBody="x")
        before = time.time()
        assert depths.check() == "2 queues answer"
        by_name = {name: (seen.depth.visible, seen.depth.dead_letters) for name, seen in depths.observations.items()}
        assert by_name == {"python": (2, 1), "cpp": (0, 0)}
        ages = depths.ages_s()
        assert ages["cpp"] == 0
        assert 0 <= ages["python"] <= time.time() - before


def test_the_age_is_that_since_the_youngest_message_received_was_sent(settings: Settings, unique: str) -> None:
    """The waiting message was sent later, roughly."""
    name = f"aged-{unique}"  # a process remembers by the queue's name what it has read
    with closing(sqs_client(settings)) as client:
        client.send_message(QueueUrl=queues.resolve(name, settings, client), MessageBody="x")
    poll_status(name).message_received((time.time() - 100) * 1000)
    poll_status(name).message_received((time.time() - 500) * 1000)
    with closing(QueueDepths(settings, lambda: [name])) as depths:
        depths.check()
        assert 100 <= depths.ages_s()[name] < 100 + PATIENCE_S


def test_a_look_creates_nothing_and_finds_a_queue_made_anew(settings: Settings) -> None:
    """Even if the settings let workers create queues. An outdated address is looked up again."""
    with closing(sqs_client(settings)) as client, closing(QueueDepths(settings, lambda: ["python"])) as depths:
        depths.check()
        where = queues.addresses("python", settings, client)
        client.delete_queue(QueueUrl=where.url)
        with pytest.raises(Exception, match="does not exist"):
            depths.check()
        with pytest.raises(ConfigurationError, match="does not exist"):
            depths.check()
        queues.resolve("python", settings, client)
        assert depths.check() == "1 queues answer"


def test_a_watch_keeps_health_and_caches_up_to_date(settings: Settings, redis_server: Service) -> None:
    """In the background; a cache that cannot be read does not affect the others."""
    looks: list[int] = []

    def unreadable() -> Any:
        raise OSError("the folder is gone")

    def look() -> str:
        looks.append(1)
        return "fine"

    from nanogrid.execution.code.cache import CacheUsage

    usage = CacheUsage(1, 2, 3)
    watch = BackgroundChecks(
        Health({"one": look}, fresh_s=0.0), {"bad": unreadable, "code": lambda: usage}, every_s=0.02
    )
    watch.start()
    wait_until(lambda: len(looks) >= 3, "it looks again and again")
    watch.stop()
    assert watch.usages == {"code": usage}
