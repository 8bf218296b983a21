"""Flower over HTTP, beside a real worker, a real SQS API and a real Redis."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from nanogrid.monitoring.dashboard import is_loopback, listen_address, queue_rows, sqs_address
from nanogrid.request import FunctionRequest, parse_request
from nanogrid.sqs.queues import QueueDepth, resolve
from tests.support.probe import NAP
from tests.support.services import Service, accepts, aws_client, free_port, wait_until
from tests.support.worker import ROOT, Flower, Grid, Worker, grid

Stack = tuple[Grid, Worker, Flower]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, moto: Service, redis_server: Service) -> Iterator[Grid]:
    """Settings and queues of this module's worker and Flower."""
    redis_url = f"redis://127.0.0.1:{redis_server.port}"
    with grid(
        tmp_path_factory.mktemp("flower"),
        aws_url=f"http://127.0.0.1:{moto.port}",
        redis_url=f"{redis_url}/4",
        unique="flower",
    ) as made:
        yield made


@pytest.fixture(scope="module")
def stack(made: Grid) -> Iterator[Stack]:
    """Flower first, then the worker, which Flower must notice."""
    with made.flower() as flower, made.worker() as worker:
        wait_until(lambda: known_queues(flower, worker) == {"python", "cpp"}, "Flower knows the worker")
        yield made, worker, flower


def known_queues(flower: Flower, worker: Worker) -> set[str]:
    return {queue["name"] for queue in flower.api("/api/workers").get(worker.name, {}).get("active_queues", ())}


def request(request_id: str, **fields: Any) -> dict[str, Any]:
    """A request that is answered at once and without a container: its bucket does not exist."""
    return {
        "requestId": request_id,
        "functionId": "hello",
        "runtime": "python",
        "s3Bucket": "no-such-bucket",
        "s3Key": "code.zip",
        **fields,
    }


def seen(flower: Flower, task_id: str) -> dict[str, Any]:
    return dict(flower.api("/api/tasks").get(task_id, {}))


# -- what is seen ----------------------------------------------------------------------------------------------------


def test_task_is_listed_with_state_arguments_and_run_time(stack: Stack, unique: str) -> None:
    """A finished task is listed with its state, worker, run time and arguments."""
    made, worker, flower = stack
    made.app.send_task("nanogrid.execute_function", (request(unique),), task_id=unique)
    wait_until(lambda: seen(flower, unique).get("state") == "SUCCESS", "the task is seen as finished")
    task = seen(flower, unique)
    assert (task["name"], task["worker"]) == ("nanogrid.execute_function", worker.name)
    assert task["runtime"] > 0


def test_payload_and_environment_are_not_shown(stack: Stack, unique: str) -> None:
    """Flower shows a request without the values of its payload and environment, however it was sent."""
    _, _, flower = stack
    secret = request(unique, payload={"card": "hunter-payload"}, env={"TOKEN": "hunter-token"})
    status, body = flower.post("/api/task/async-apply/nanogrid.execute_function", {"args": [secret]})
    assert status == 200, body
    wait_until(lambda: seen(flower, unique).get("state") == "SUCCESS", "the task is seen as finished")
    shown = json.dumps(seen(flower, unique)) + flower.get(f"/task/{unique}")[1]
    assert "no-such-bucket" in shown
    assert "hunter" not in shown


def test_broker_page_tells_the_depth_of_sqs(stack: Stack, aws_url: str) -> None:
    """The broker page and the API show waiting messages and dead letters by SQS's counts."""
    made, _, flower = stack
    client = aws_client("sqs", aws_url)
    dead = resolve("cpp", made.settings) + "-dlq"
    for number in range(3):
        client.send_message(QueueUrl=dead, MessageBody=f"dead {number}", DelaySeconds=0)
    try:
        rows = {row["name"]: row for row in flower.api("/api/queues/length")["active_queues"]}
        assert list(rows) == ["python", "python (dead letters)", "cpp", "cpp (dead letters)"]
        assert rows["cpp (dead letters)"]["messages"] == 3
        assert rows["cpp"]["consumers"] == 1
        page = flower.get("/broker")[1]
        assert "cpp (dead letters)" in page
        assert f"sqs://{aws_url.removeprefix('http://')}" in page
        assert "redis://" not in page
    finally:
        client.purge_queue(QueueUrl=dead)


def test_pages_show_no_credentials(stack: Stack) -> None:
    """Neither the pages nor the API contain the AWS secret of the worker and Flower."""
    _, worker, flower = stack
    for path in ("/", "/broker", f"/worker/{worker.name}", "/api/workers"):
        status, body = flower.get(path)
        assert status == 200
        assert "test-secret" not in body


# -- what is done ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["async-apply", "send-task", "apply"])
def test_sending_goes_to_sqs_and_runs(stack: Stack, unique: str, way: str) -> None:
    """Every way of sending a task by Flower's API reaches the worker through SQS; its result is found by its id."""
    made, _, flower = stack
    status, body = flower.post(f"/api/task/{way}/nanogrid.execute_function", {"args": [request(unique)]})
    assert (status, json.loads(body)["task-id"]) == (200, unique), body
    result = made.app.AsyncResult(unique).get(timeout=20)
    assert (result["outcome"], result["requestId"]) == ("NOT_RUN", unique)
    wait_until(lambda: flower.api(f"/api/task/result/{unique}")["state"] == "SUCCESS", "Flower finds the result")


def test_sending_leaves_nothing_in_redis(stack: Stack, unique: str) -> None:
    """A task that Flower sends creates no list in the monitoring Redis, which nothing would consume."""
    made, _, flower = stack
    flower.post("/api/task/send-task/nanogrid.execute_function", {"args": [request(unique)]})
    with redis.Redis.from_url(made.settings.monitor_url) as client:
        assert [key for key in client.scan_iter() if client.type(key) == b"list"] == []


def test_bad_request_is_refused_with_its_sentence(stack: Stack) -> None:
    """An invalid request is answered with 400 and its sentence, and not sent."""
    _, _, flower = stack
    bad = request("bad-one", runtime="perl")
    status, body = flower.post("/api/task/async-apply/nanogrid.execute_function", {"args": [bad]})
    assert status == 400
    assert "'perl' is not known; accepted are python" in body


def test_unknown_task_is_not_sent(stack: Stack) -> None:
    """send-task refuses a name that no worker knows: its message would become a dead letter."""
    _, _, flower = stack
    assert flower.post("/api/task/send-task/no.such.task") == (404, "Unknown task 'no.such.task'")


def test_abort_is_refused(stack: Stack, unique: str) -> None:
    """Flower's abort, which would overwrite a stored result, is refused, and the answer names the alternative."""
    made, _, flower = stack
    made.app.send_task("nanogrid.execute_function", (request(unique),), task_id=unique).get(timeout=20)
    status, body = flower.post(f"/api/task/abort/{unique}")
    assert (status, "terminate=true" in body) == (403, True)
    assert made.app.AsyncResult(unique).state == "SUCCESS"


def test_revoke_with_terminate_ends_a_task_within_two_seconds(stack: Stack, tmp_path: Path) -> None:
    """Flower's revoke with terminate ends a running task, and Flower shows it as revoked."""
    made, _, flower = stack
    log = tmp_path / "log"
    long = made.app.send_task(NAP, (60, str(log), "long"))
    wait_until(log.exists, "the task runs")
    started = time.monotonic()
    status, body = flower.post(f"/api/task/revoke/{long.id}?terminate=true")
    assert status == 200, body
    wait_until(lambda: long.state == "REVOKED", "the task is ended", timeout_s=2)
    assert time.monotonic() - started < 2
    wait_until(lambda: seen(flower, long.id).get("state") == "REVOKED", "Flower shows it")


def test_pool_grow_from_the_page(stack: Stack) -> None:
    """The button that grows the pool works without a password on loopback."""
    made, worker, flower = stack
    status, body = flower.post(
        f"/api/worker/pool/grow/{worker.name}?n=1", Sec_Fetch_Site="same-origin", Origin=flower.url
    )
    assert status == 200, body

    def children() -> int:
        stats = made.app.control.inspect(timeout=5.0, destination=[worker.name]).stats()
        return len(stats[worker.name]["pool"]["processes"])

    wait_until(lambda: children() == 3, "a child has come")
    flower.post(f"/api/worker/pool/shrink/{worker.name}?n=1")
    wait_until(lambda: children() == 2, "a child has gone")


# -- who may come in -------------------------------------------------------------------------------------------------


def test_dns_rebinding_is_refused(stack: Stack) -> None:
    """A host name that an attacker resolves to loopback gets neither a page nor the API."""
    _, _, flower = stack
    for path in ("/", "/api/workers", "/metrics"):
        status, body = flower.get(path, Host=f"attacker.example:{flower.port}")
        assert status == 403
        assert "only local host names" in body


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_cross_site_request_forgery_is_refused(stack: Stack, headers: dict[str, str]) -> None:
    """A page of another origin, including another port of this machine, cannot use Flower's buttons."""
    _, worker, flower = stack
    status, body = flower.post(f"/api/worker/shutdown/{worker.name}", **headers)
    assert (status, "own pages" in body) == (403, True)
    assert worker.alive()


def test_other_origins_cannot_read(stack: Stack) -> None:
    """No answer allows a page of another origin to read it, although the API needs no password."""
    _, _, flower = stack
    with urllib.request.urlopen(flower.url + "/api/tasks", timeout=10) as response:
        assert response.headers["Access-Control-Allow-Origin"] is None
        assert response.headers["X-Frame-Options"] == "DENY"


def test_listens_on_loopback_only(stack: Stack) -> None:
    """Without authentication and without an address, Flower is unreachable under the machine's other addresses."""
    _, _, flower = stack
    assert listeners(flower.port) == {"0100007F"}


def listeners(port: int) -> set[str]:
    """Local addresses (hexadecimal, as in /proc/net) on which something listens on a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, hex_port = local.partition(":")
            if state == "0A" and int(hex_port, 16) == port:
                found.add(address)
    return found


def test_open_address_without_authentication_is_refused(made: Grid) -> None:
    """An address beyond loopback without authentication ends Flower with one sentence and a remedy."""
    port = free_port()
    ended = made.celery("flower", f"--port={port}", "--address=0.0.0.0")
    assert ended.returncode == 1
    assert "add --basic-auth=USER:PASSWORD" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not accepts(port)


def test_open_address_with_authentication_asks_for_the_password(made: Grid) -> None:
    """With authentication Flower listens on the given address, and answers nothing but a health check without it."""
    with made.flower("--address=0.0.0.0", "--basic-auth=ann:pass word") as flower:
        assert listeners(flower.port) == {"00000000"}
        assert flower.get("/api/workers")[0] == 401
        assert flower.post("/api/task/send-task/nanogrid.execute_function", {"args": [request("x")]})[0] == 401
        assert flower.get("/broker", Authorization="Basic YW5uOnBhc3Mgd29yZA==")[0] == 200


def test_insecure_setting_lifts_the_refusal(made: Grid) -> None:
    """NANOGRID_FLOWER_INSECURE opens the pages to other names; the API stays off until Flower's own switch is set."""
    with made.flower("--address=0.0.0.0", env={"NANOGRID_FLOWER_INSECURE": "true"}) as flower:
        assert flower.get("/broker", Host="grid.example")[0] == 200
        assert flower.get("/api/workers", Host="grid.example")[0] == 401
        assert flower.post("/api/task/send-task/x", Origin="http://attacker.example")[0] == 403


# -- with an environment of its own ----------------------------------------------------------------------------------


def test_it_needs_nothing_but_the_monitoring_redis(stack: Stack, unique: str) -> None:
    """A Flower with the address of Redis and without credentials shows workers and tasks, and controls workers."""
    made, worker, _ = stack
    only = {"NANOGRID_MONITOR_URL": made.settings.monitor_url, **set_by_unit()}
    with made.flower("--address=127.0.0.1", app="nanogrid", only_env=only) as flower:
        wait_until(lambda: known_queues(flower, worker) == {"python", "cpp"}, "Flower knows the worker")
        made.app.send_task("nanogrid.execute_function", (request(unique),), task_id=unique)
        wait_until(lambda: seen(flower, unique).get("state") == "SUCCESS", "the task is seen as finished")
        assert flower.post(f"/api/worker/pool/grow/{worker.name}", {"n": 0})[0] == 200
        assert [flower.get(page)[0] for page in ("/", "/tasks", "/broker", "/metrics")] == [200] * 4


def test_what_needs_credentials_says_so_where_there_are_none(stack: Stack) -> None:
    """Depths and sending need SQS: without credentials each is answered with one sentence, and the log has no traceback."""
    made, _, _ = stack
    urls = {"NANOGRID_MONITOR_URL": made.settings.monitor_url, "NANOGRID_RESULT_URL": made.settings.result_url}
    only = {**urls, **set_by_unit()}
    with made.flower("--address=127.0.0.1", app="nanogrid", only_env=only) as flower:
        before = len(flower.log.read_text())
        answers = [
            flower.get("/api/queues/length"),
            flower.post("/api/task/async-apply/nanogrid.execute_function", {"args": [request("never-sent")]}),
        ]
        assert flower.get("/broker")[0] == 200
        for status, body in answers:
            assert status == 503
            assert body.startswith("Flower has no AWS credentials, so it can neither read queues nor send requests:")
        assert "Traceback" not in flower.log.read_text()[before:]


def set_by_unit() -> dict[str, str]:
    """What the systemd unit sets, no home with credentials, and what these tests need to send requests."""
    unit = (ROOT / "deploy" / "systemd" / "nanogrid-flower.service").read_text()
    pairs = re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE)
    return {**dict(pairs), "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "FLOWER_UNAUTHENTICATED_API": "true"}


# -- rules on plain data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("192.168.1.5", False),
    ],
)
def test_loopback_names(host: str, expected: bool) -> None:
    """Only `localhost` and loopback addresses count as this machine."""
    assert is_loopback(host) is expected


def test_no_address_means_loopback_without_authentication() -> None:
    """The empty address, which means every address to Flower, becomes loopback; even the insecure setting needs an explicit one."""
    assert listen_address("", authenticated=False, insecure=True) == "127.0.0.1"
    assert listen_address("", authenticated=True, insecure=False) == ""


def test_address_of_sqs_without_credentials() -> None:
    """Credentials in an endpoint URL are not shown."""
    assert sqs_address("https://key:secret@sqs.example:4566/x") == "sqs://sqs.example:4566"


def test_rows_of_a_queue_without_dead_letter_queue() -> None:
    """Delayed and held messages count as messages, visible ones as ready; without a dead-letter queue there is one row."""
    (row,) = queue_rows(QueueDepth("python", visible=5, in_flight=2, delayed=1, dead_letters=None), consumers=3)
    assert row == {
        "name": "python",
        "messages": 8,
        "messages_ready": 5,
        "messages_unacknowledged": 2,
        "consumers": 3,
    }


def test_requests_of_this_module_are_valid(made: Grid) -> None:
    """A request that would run if its bucket existed."""
    assert isinstance(parse_request(request("valid"), made.settings), FunctionRequest)
