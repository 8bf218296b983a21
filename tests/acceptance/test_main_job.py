"""Message in, result out: what a producer sees of a healthy NanoGrid."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import uuid
from contextlib import closing
from typing import Any

import pytest
import redis

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import InvalidRequestError, ResultUnavailableError
from nanogrid.execution.container.engine import Engine
from nanogrid.result import ExecutionResult, Outcome, StartKind
from nanogrid.results.mapping import PartFailure
from nanogrid.results.stream.append import counter_key
from nanogrid.sqs.queues import resolve
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.pool import containers_of, exists
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker, environment

WAIT_S = 60.0

pytestmark = pytest.mark.usefixtures("worker")


def run(client: Client, request: dict[str, Any]) -> ExecutionResult:
    return client.wait(client.submit(request), WAIT_S)


def test_python_says_hello(client: Client, functions: Functions) -> None:
    """A function's output, exit code and measurements come back under its request id."""
    request = functions.request(programs.HELLO, payload="world", memoryMb=128)
    result = run(client, request)
    assert result.request_id == request["requestId"]
    assert (result.outcome, result.exit_code, result.success) == (Outcome.SUCCEEDED, 0, True)
    assert (result.stdout, result.stderr) == ('hello "world"\n', "")
    assert result.memory_limit_mb == 128
    assert result.start_kind in (StartKind.COLD, StartKind.PREWARMED)
    assert result.duration_millis > 0
    assert result.cpu_millis is not None
    assert result.peak_memory_bytes is not None
    assert 1 << 20 < result.peak_memory_bytes < 128 << 20
    phases = result.phases.model_dump()
    assert all(value is not None and value >= 0 for value in phases.values()), phases


def test_the_second_run_is_a_warm_start(client: Client, functions: Functions) -> None:
    """A function's next run reuses its container, and sees nothing of the run before."""
    request = functions.request("import os; print(os.listdir('.')); open('left', 'w').close()")
    first = run(client, request)
    second = run(client, {**request, "requestId": f"{request['requestId']}-2"})
    assert second.start_kind is StartKind.WARM
    assert (second.container_id, second.stdout) == (first.container_id, first.stdout)


def test_cpp_is_compiled_and_run(client: Client, functions: Functions) -> None:
    """The alias c++ goes to the queue cpp, and run.sh compiles and runs."""
    result = run(client, functions.request(programs.CPP, runtime="c++", payload=21, timeoutMs=60_000))
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, "42\n"), result.stderr


@pytest.mark.parametrize(
    ("program", "fields", "outcome", "exit_code", "words"),
    [
        (programs.FAIL, {}, Outcome.FAILED, 3, "bad"),
        (programs.SLEEP, {"timeoutMs": 700}, Outcome.TIMED_OUT, -1, "timeoutMs = 700"),
        (programs.HUNGRY, {"memoryMb": 64}, Outcome.OUT_OF_MEMORY, 137, "memoryMb = 64"),
        ("while True: print('x' * 9999)", {}, Outcome.OUTPUT_LIMIT, -1, "more than 1048576 bytes"),
    ],
)
def test_a_functions_failure_is_a_result(
    client: Client,
    functions: Functions,
    program: str,
    fields: dict[str, Any],
    outcome: Outcome,
    exit_code: int,
    words: str,
) -> None:
    """Each way to fail has one outcome, is never tried again, and is explained in stderr."""
    result = run(client, functions.request(program, **fields))
    assert (result.outcome, result.exit_code, result.success, result.attempt) == (outcome, exit_code, False, 1)
    assert words in result.stderr


def test_output_that_is_no_utf8_is_replaced(client: Client, functions: Functions) -> None:
    """Bytes that are no UTF-8 become U+FFFD in the JSON result."""
    result = run(client, functions.request("import sys; sys.stdout.buffer.write(b'a\\xffb')"))
    assert result.stdout == "a\ufffdb"


def test_a_value_comes_back(client: Client, functions: Functions) -> None:
    """The JSON in NANOGRID_RESULT is the result's value; what is no JSON is told in stderr."""
    assert run(client, functions.request(programs.SQUARE, payload=7)).value == 49
    broken = run(client, functions.request("import os; open(os.environ['NANOGRID_RESULT'], 'w').write('{')"))
    assert broken.value is None
    assert "not JSON" in broken.stderr


def test_a_handler_is_called(client: Client, functions: Functions) -> None:
    """`handler` calls a function with payload and context; what it returns is the value."""
    code = {"app.py": "def run(event, context):\n    return [event, context.aws_request_id]"}
    request = functions.request(code, handler="app.run", payload={"a": 1})
    assert run(client, request).value == [{"a": 1}, request["requestId"]]


def test_a_handler_of_lambda_runs_unmodified(client: Client, functions: Functions) -> None:
    """Its name, its log, and what it returns: twice, so that the second run is a warm one."""
    source = """
import logging, os
from decimal import Decimal
logging.getLogger().setLevel(logging.INFO)

def get(event, context):
    logging.info("asked for %s", event["id"])
    return {"price": Decimal("1.10"), "rate": float("nan"), "name": os.environ["AWS_LAMBDA_FUNCTION_NAME"]}
"""
    first = functions.request({"to-dos/get-one.py": source}, handler="to-dos/get-one.get")
    for number, kinds in enumerate([(StartKind.COLD, StartKind.PREWARMED), (StartKind.WARM,)]):
        request = {**first, "requestId": f"{first['requestId']}-{number}", "payload": {"id": number}}
        result = run(client, request)
        assert result.success, result.stderr
        assert result.start_kind in kinds
        assert result.value == {"price": 1.1, "rate": None, "name": request["functionId"]}
        assert result.stderr == "nanogrid: the value holds NaN, which JSON does not have; replaced by null\n"
        level, _, request_id, message = result.stdout.split("\t")
        assert (level, request_id, message) == ("[INFO]", request["requestId"], f"asked for {number}\n")


def test_any_json_is_a_payload_and_a_value(grid: Grid, client: Client, functions: Functions) -> None:
    """What looks like an internal mark of Celery's JSON is data like any other, sent by a producer or as a bare message."""
    payload = {"__type__": "datetime", "__value__": "no date", "deep": [{"__type__": "x", "__value__": 1}]}
    echo = "import os, sys; open(os.environ['NANOGRID_RESULT'], 'w').write(sys.stdin.read())"
    assert run(client, functions.request(echo, payload=payload)).value == payload
    bare = functions.request(echo, payload=payload)
    sqs_client(grid.settings).send_message(QueueUrl=resolve("python", grid.settings), MessageBody=json.dumps(bare))
    assert client.wait(bare["requestId"], WAIT_S).value == payload


BYTES = b"3 4\r\n\xff\x00no line end"


@pytest.mark.parametrize("runtime", ["python", "cpp"])
def test_stdin_is_what_was_sent_byte_for_byte(grid: Grid, client: Client, functions: Functions, runtime: str) -> None:
    """Bytes and text, by a client and in a bare message; in the first run of a container and in warm ones."""
    program: str | dict[str, str] = "import sys; print(sys.stdin.buffer.read().hex())"
    if runtime == "cpp":
        program = {"run.sh": 'od -An -v -tx1 | tr -d " \\n"; echo'}
    made = functions.request(program, runtime=runtime, functionId=f"stdin-{runtime}")
    texts: list[tuple[dict[str, Any], bytes]] = [
        ({"stdin": "3 4\r\nü\n"}, "3 4\r\nü\n".encode()),
        ({"stdin": BYTES}, BYTES),
        ({"stdinBase64": base64.b64encode(BYTES).decode()}, BYTES),
        ({"stdin": ""}, b""),
    ]
    for number, (fields, sent) in enumerate(texts):
        request = {**made, **fields, "requestId": f"{made['requestId']}-{number}"}
        assert run(client, request).stdout == sent.hex() + "\n"
    bare = {**made, **texts[2][0], "requestId": f"{made['requestId']}-bare"}
    sqs_client(grid.settings).send_message(QueueUrl=resolve(runtime, grid.settings), MessageBody=json.dumps(bare))
    assert client.wait(bare["requestId"], WAIT_S).stdout == BYTES.hex() + "\n"
    wrong = {**made, "stdinBase64": "secret!", "requestId": f"{made['requestId']}-wrong"}
    sqs_client(grid.settings).send_message(QueueUrl=resolve(runtime, grid.settings), MessageBody=json.dumps(wrong))
    refused = client.wait(wrong["requestId"], WAIT_S)
    assert refused.outcome is Outcome.NOT_RUN
    assert refused.stderr.startswith("stdinBase64: is not base64")
    assert "secret" not in refused.stderr


def test_the_environment_of_a_request_arrives(client: Client, functions: Functions) -> None:
    """`env` is set for the function."""
    result = run(client, functions.request("import os; print(os.environ['GREETING'])", env={"GREETING": "grüß gott"}))
    assert result.stdout == "grüß gott\n"


def test_changed_code_is_noticed_at_the_next_run(client: Client, functions: Functions) -> None:
    """An object that is replaced under its key is run as it is now."""
    key = f"{uuid.uuid4().hex}.zip"
    for word in ("old", "new"):
        functions.put(key, programs.zipped({"main.py": f"print({word!r})"}))
        assert run(client, {**functions.request(programs.HELLO), "s3Key": key}).stdout == f"{word}\n"


@pytest.mark.parametrize(
    ("key", "data", "words"),
    [
        ("missing.zip", None, "404"),
        ("text.zip", b"this is no archive at all", "archive"),
        ("slip.zip", programs.zipped({"../../evil.py": "x", "main.py": "x"}), "evil.py"),
        ("empty.zip", programs.zipped({"other.py": "x"}), "main.py"),
    ],
)
def test_code_that_can_never_run_is_answered_at_once(
    client: Client, functions: Functions, key: str, data: bytes | None, words: str
) -> None:
    """What is wrong with the code is said in a result with exit code -1, at the first attempt."""
    if data is not None:
        functions.put(key, data)
    result = run(client, {**functions.request(programs.HELLO), "s3Key": key})
    assert (result.outcome, result.exit_code, result.attempt) == (Outcome.NOT_RUN, -1, 1)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_bad_request_never_leaves_the_producer(client: Client, functions: Functions) -> None:
    """A producer gets an exception with the field's name, and nothing is sent."""
    with pytest.raises(InvalidRequestError, match="timeoutMs: 0 is too small"):
        client.submit(functions.request(programs.HELLO, timeoutMs=0))
    with pytest.raises(InvalidRequestError, match=r"payload.*S3"):
        client.submit(functions.request(programs.HELLO, payload="x" * 2_000_000))


PRODUCER = """
import json, os, sys
from nanogrid import InvalidRequestError, execute_function
request = json.loads(sys.argv[1])
first = execute_function.delay(request)
second = execute_function.delay(**{**request, "requestId": request["requestId"] + "-2"})
anonymous = {key: value for key, value in request.items() if key != "requestId"}
third = execute_function.delay(anonymous)
assert first.id == request["requestId"], first.id
assert second.id == request["requestId"] + "-2", second.id
print(json.dumps([handle.get(timeout=60)["stdout"] for handle in (first, second, third)]))
assert third.get()["requestId"] == third.id
try:
    execute_function.delay({"runtime": "ruby"})
except InvalidRequestError as error:
    print(error)
assert "docker" not in sys.modules
"""


def test_a_plain_producer_needs_only_the_environment(grid: Grid, functions: Functions, tmp_path: Any) -> None:
    """`delay` takes a dict or keyword fields, in a process without Docker and without this repository's celeryconfig."""
    (tmp_path / "celeryconfig.py").write_text("raise SystemExit('a producer\\'s own celeryconfig must not be read')")
    env = {
        **environment(grid.settings),
        "DOCKER_HOST": "unix:///nonexistent",
        "NANOGRID_DOCKER_URL": "unix:///nonexistent",
    }
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER, json.dumps(functions.request("print('made it')"))],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs, refusal = done.stdout.splitlines()
    assert json.loads(outputs) == ["made it\n"] * 3
    assert refusal == "runtime: 'ruby' is not known; accepted are python, cpp, c++"


def test_a_bare_message_is_executed(grid: Grid, client: Client, functions: Functions) -> None:
    """The original's plain JSON, sent by boto3, gives a result under its request id."""
    request = functions.request("print('bare')", timeoutMs=5000)
    sqs = sqs_client(grid.settings)
    sqs.send_message(QueueUrl=resolve("python", grid.settings), MessageBody=json.dumps(request))
    result = client.wait(request["requestId"], WAIT_S)
    assert (result.stdout, result.outcome) == ("bare\n", Outcome.SUCCEEDED)


def test_a_bad_bare_message_gets_a_result_that_says_why(grid: Grid, client: Client, functions: Functions) -> None:
    """A bare message cannot be refused at the producer; its stored result names the field and what is accepted."""
    request = {**functions.request(programs.HELLO), "runtime": "ruby"}
    sqs_client(grid.settings).send_message(QueueUrl=resolve("python", grid.settings), MessageBody=json.dumps(request))
    result = client.wait(request["requestId"], WAIT_S)
    assert (result.outcome, result.exit_code) == (Outcome.NOT_RUN, -1)
    assert result.stderr == "runtime: 'ruby' is not known; accepted are python, cpp, c++\n"


def test_a_bare_message_without_an_id_is_found_by_its_message_id(
    grid: Grid, client: Client, functions: Functions
) -> None:
    """Where a bare message names no request id, SQS's own message id is it."""
    request = {key: value for key, value in functions.request("print('anon')").items() if key != "requestId"}
    sent = sqs_client(grid.settings).send_message(
        QueueUrl=resolve("python", grid.settings), MessageBody=json.dumps(request)
    )
    assert client.wait(sent["MessageId"], WAIT_S).stdout == "anon\n"


def test_map_reduce(client: Client, functions: Functions) -> None:
    """A function over many payloads, and another one over the list of their results."""
    request_id = client.map_reduce(functions.request(programs.SQUARE), [1, 2, 3, 4], functions.request(programs.SUM))
    result = client.wait(request_id, WAIT_S)
    assert result.value == 30, result.stderr
    assert client.result(f"{request_id}/2").value == 9


@pytest.mark.parametrize(
    ("policy", "outcome", "value"),
    [
        (PartFailure.FAIL, Outcome.NOT_RUN, None),
        (PartFailure.SKIP, Outcome.SUCCEEDED, 5),
        (PartFailure.INCLUDE, Outcome.FAILED, None),
    ],
)
def test_a_failing_part_does_to_the_whole_what_was_chosen(
    client: Client, functions: Functions, policy: PartFailure, outcome: Outcome, value: int | None
) -> None:
    """fail stops the reduction, skip leaves the part out, include shows it (and this reducer cannot add None)."""
    request_id = client.map_reduce(
        functions.request(programs.SQUARE_OR_FAIL), [1, 2, 3], functions.request(programs.SUM), on_failure=policy
    )
    result = client.wait(request_id, WAIT_S)
    assert (result.outcome, result.value) == (outcome, value), result.stderr
    if policy is PartFailure.FAIL:
        assert f"1 of 3 parts failed: {request_id}/2 FAILED" in result.stderr


def test_a_second_request_under_the_same_id_gets_the_first_ones_result(client: Client, functions: Functions) -> None:
    """A request id is run once: a duplicate of a finished request neither runs nor overwrites."""
    request = functions.request("import uuid; print(uuid.uuid4())")
    first = run(client, request)
    client.submit(request)
    marker = functions.request(programs.HELLO)
    run(client, marker)
    wait_until(lambda: client.result(request["requestId"]) == first, "the stored result stays", 5)


def test_duplicates_at_the_same_time_run_once(client: Client, functions: Functions) -> None:
    """Of two deliveries of one request at once, one runs and both end with its result."""
    request = functions.request("import time, uuid; time.sleep(1.5); print(uuid.uuid4())")
    client.submit(request)
    client.submit(request)
    first = client.wait(request["requestId"], WAIT_S)
    run(client, functions.request(programs.HELLO))
    run(client, functions.request(programs.HELLO))
    assert client.result(request["requestId"]) == first


def test_what_waited_too_long_is_answered_not_run(grid: Grid, client: Client, functions: Functions) -> None:
    """A request older than its maxAgeMs ends as NOT_RUN with the reason."""
    request = functions.request(programs.HELLO, maxAgeMs=1)
    body = json.dumps(request)
    sqs_client(grid.settings).send_message(QueueUrl=resolve("python", grid.settings), MessageBody=body, DelaySeconds=1)
    result = client.wait(request["requestId"], WAIT_S)
    assert result.outcome is Outcome.NOT_RUN
    assert "maxAgeMs" in result.stderr


def test_cancel_kills_a_running_function(grid: Grid, client: Client, functions: Functions) -> None:
    """cancel ends the container within two seconds and leaves CANCELLED as the outcome."""
    request_id = client.submit(functions.request(programs.SLEEP, timeoutMs=120_000))
    with closing(Engine(grid.settings)) as engine:
        wait_until(lambda: containers_of(grid.settings.data_dir, request_id), "the container runs")
        (container,) = containers_of(grid.settings.data_dir, request_id)
        asked = time.monotonic()
        assert client.cancel(request_id)
        assert client.wait(request_id, 10).outcome is Outcome.CANCELLED
        wait_until(lambda: not exists(engine, container, grid.settings), "the container is gone", 5)
        assert time.monotonic() - asked < 2
    assert not client.cancel(request_id)


def test_cancel_of_a_waiting_request_is_final(client: Client, functions: Functions, worker: Worker) -> None:
    """A request that is cancelled before its turn has its outcome at once, and is not run when its turn comes."""
    busy = [client.submit(functions.request(programs.SLEEP, payload=4, timeoutMs=30_000)) for _ in range(3)]
    waiting = client.submit(functions.request(programs.HELLO))
    assert client.cancel(waiting)
    result = client.wait(waiting, 5)
    assert (result.outcome, result.exit_code, result.stderr) == (Outcome.CANCELLED, -1, "cancelled before it ran\n")
    for request_id in busy:
        client.wait(request_id, WAIT_S)
    run(client, functions.request(programs.HELLO))
    assert client.result(waiting).outcome is Outcome.CANCELLED
    assert f"{waiting}] succeeded" not in worker.log.read_text()


def test_an_unknown_id_has_no_result(client: Client) -> None:
    """Asking for what is not there is an error that says so."""
    with pytest.raises(ResultUnavailableError, match="unknown"):
        client.result("no-such-request")


def test_the_workers_log_shows_no_payload(client: Client, functions: Functions, worker: Worker) -> None:
    """Payloads and environment values are in no log line."""
    run(client, functions.request("pass", payload="payload-secret", env={"TOKEN": "env-secret"}))
    log = worker.log.read_text()
    assert "payload-secret" not in log
    assert "env-secret" not in log


def test_every_key_of_ours_expires(grid: Grid, client: Client, functions: Functions) -> None:
    """Results, claims and what a map needs in between: all that stays in Redis is the results stream, which is bounded."""
    client.wait(client.map_reduce(functions.request(programs.SQUARE), [1, 2], functions.request(programs.SUM)), WAIT_S)
    with redis.Redis.from_url(grid.settings.result_url, decode_responses=True) as connection:
        keys = list(connection.scan_iter("*nanogrid:*"))
        stream = grid.settings.stream_name
        assert {key for key in keys if connection.ttl(key) == -1} == {stream, counter_key(stream)}
