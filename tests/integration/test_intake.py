"""What a worker accepts: no message and no error on the way to a child costs later requests a child's slot."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanogrid.cli.checks import CheckHealth, run_checks
from nanogrid.connections.sqs import sqs_client
from nanogrid.local.probes import worker_stands_still
from nanogrid.metrics.address import published
from nanogrid.sqs import queues
from nanogrid.sqs.transport.envelopes import adopt
from tests.support.probe import QUICK
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker, grid

WAIT_S = 30.0
REQUEST = {"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, aws_url: str, redis_server: Any) -> Iterator[Grid]:
    """A NanoGrid whose worker reports a stall soon."""
    url = f"redis://127.0.0.1:{redis_server.port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        with grid(
            tmp_path_factory.mktemp("intake"), aws_url=aws_url, redis_url=f"{url}/0",
            unique="intake", receive_wait_s=1, max_receives=3, dead_letter_check_s=0.5, stalled_after_s=3,
            visibility_timeout_s=5, visibility_heartbeat_s=1,
        ) as made:  # fmt: skip
            yield made


@pytest.fixture(scope="module")
def worker(here: Grid) -> Iterator[Worker]:
    """The worker of all tests here, with two children."""
    with here.worker(queues="python") as running:
        yield running


class Sender:
    """Puts bodies on the queue python, as any sender can."""

    def __init__(self, here: Grid) -> None:
        self._client = sqs_client(here.settings)
        self._url = queues.resolve("python", here.settings, self._client)

    def send(self, body: Any) -> str:
        """Send one message and return its id."""
        text = body if isinstance(body, str) else json.dumps(body)
        sent = self._client.send_message(QueueUrl=self._url, MessageBody=text)
        return str(sent["MessageId"])


@pytest.fixture
def sender(here: Grid) -> Sender:
    """A sender with access to the queue."""
    return Sender(here)


def nested(levels: int) -> Any:
    """An array in an array, and so on."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def text_of_nested(request_id: str, levels: int) -> str:
    """A request whose payload no Python JSON encoder would write."""
    head = json.dumps({**REQUEST, "requestId": request_id, "payload": 0})
    return head.replace('"payload": 0', f'"payload": {"[" * levels}1{"]" * levels}')


def in_celery(request_id: str, request: str, here: Grid) -> str:
    """A Celery message whose only argument is this JSON."""
    message = adopt({**REQUEST, "requestId": request_id}, "m", 1, here.settings)
    message["body"] = f"[[{request}], {{}}, null]"
    return json.dumps(message)


def result(here: Grid, request_id: str) -> dict[str, Any]:
    """Wait for the result of a request."""
    found: dict[str, Any] = here.app.AsyncResult(request_id).get(timeout=WAIT_S)
    return found


def works(here: Grid, times: int = 4) -> bool:
    """Whether the worker runs tasks, more of them than it has children."""
    sent = [here.app.send_task(QUICK, args=[number], queue="python") for number in range(times)]
    return [one.get(timeout=WAIT_S) for one in sent] == list(range(times))


def page(here: Grid, path: str, name: str = "w1@test") -> tuple[int, Any]:
    """Status and content of a page of a worker's port."""
    for _, address in published(here.settings.data_dir):
        if json.loads(asked(f"{address.url}/status")[1])["worker"]["name"] == name:
            status, body = asked(address.url + path)
            return status, body if path == "/metrics" else json.loads(body)
    raise AssertionError(f"{name} has no port")


def asked(url: str) -> tuple[int, str]:
    """Status and body of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def number(here: Grid, metric: str, name: str = "w1@test") -> float:
    """The value of a metric without labels."""
    lines = page(here, "/metrics", name)[1].splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{metric} ")))


@pytest.mark.parametrize("levels", [201, 500, 100_000])
def test_deep_nesting_is_answered_and_costs_no_child(here: Grid, worker: Worker, sender: Sender, levels: int) -> None:
    """As a bare message and as a Celery message, more often than there are children.

    Each gets a result with the producer's sentence, and the worker continues.
    """
    for copy in range(3):
        bare, celery = f"bare-{levels}-{copy}", f"celery-{levels}-{copy}"
        sender.send(text_of_nested(bare, levels))
        sender.send(in_celery(celery, text_of_nested(celery, levels), here))
    for copy in range(3):
        for kind in ("bare", "celery"):
            found = result(here, f"{kind}-{levels}-{copy}")
            assert found["outcome"] == "NOT_RUN"
            assert "payload: nested more than 200 levels deep" in found["stderr"]
            assert found["functionId"] == "f"
    assert works(here)


def test_what_is_nested_up_to_the_bound_reaches_its_child(here: Grid, worker: Worker, sender: Sender) -> None:
    """It is refused only because its code does not exist, not for its depth."""
    sender.send(text_of_nested("as-deep-as-may-be", 200))
    assert "nested" not in result(here, "as-deep-as-may-be")["stderr"]


def test_what_python_cannot_carry_costs_no_child(here: Grid, worker: Worker, sender: Sender) -> None:
    """Numbers with thousands of digits, lone surrogates, deep headers: whatever happens to them, the worker continues."""
    for copy in range(3):
        sender.send(text_of_nested(f"digits-{copy}", 0).replace('"payload": 1', f'"payload": {"9" * 5000}'))
        sender.send(
            {**REQUEST, "requestId": f"half-{copy}", "payload": "\ud800", "s3Key": "\udfff", "handler": "\ud800"}
        )
        deep = adopt({**REQUEST, "requestId": f"header-{copy}"}, "m", 1, here.settings)
        deep["headers"]["x-own"] = nested(400)
        deep["headers"]["shadow"] = "\ud800"
        sender.send(deep)
    for copy in range(3):
        for kind in ("digits", "half", "header"):
            assert result(here, f"{kind}-{copy}")["outcome"] == "NOT_RUN", kind
    assert works(here)


def test_what_other_services_of_aws_send_is_taken_or_named(here: Grid, worker: Worker, sender: Sender) -> None:
    """A request inside an SNS notification is answered under its own id; an S3 event under its message's id."""
    request = {**REQUEST, "requestId": "by-sns", "s3Bucket": "not-there"}
    sender.send({"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:1:t", "Message": json.dumps(request)})
    message_id = sender.send({"Records": [{"eventSource": "aws:s3"}]})
    assert "not-there" in result(here, "by-sns")["stderr"]
    assert result(here, message_id)["stderr"].startswith("this is an S3 event notification")


def test_an_error_on_the_way_to_a_child_returns_its_slot_and_the_request(here: Grid, worker: Worker) -> None:
    """Whatever raises there: the message is redelivered and runs, and no child's slot is lost."""
    here.app.control.broadcast("break_handovers", arguments={"times": 2}, reply=True)
    assert works(here)
    assert number(here, "nanogrid_worker_mends_total") == 0
    assert page(here, "/readyz") == (200, {"ready": True, "reason": None})
    wait_until(lambda: page(here, "/status")[1]["worker"]["active"] == 0, "no request is running")


def test_slots_that_were_lost_are_found_and_returned(here: Grid, worker: Worker) -> None:
    """All slots are lost and requests wait: the worker releases the slots and runs the requests."""
    mends = number(here, "nanogrid_worker_mends_total")
    here.app.control.broadcast("lose_slots", arguments={"slots": 2}, reply=True)
    assert works(here)
    assert worker.said("2 of 2 slots were held by no request and are released")
    assert number(here, "nanogrid_worker_mends_total") == mends + 1
    wait_until(lambda: page(here, "/readyz")[0] == 200, "it is ready again")


def test_one_slot_that_was_lost_is_returned_before_anybody_waits(here: Grid, worker: Worker) -> None:
    """A worker does not continue with a part of its children."""
    mends = number(here, "nanogrid_worker_mends_total")
    here.app.control.broadcast("lose_slots", arguments={"slots": 1}, reply=True)
    wait_until(lambda: number(here, "nanogrid_worker_mends_total") == mends + 1, "the slot is returned")
    assert works(here)


def test_a_worker_whose_children_take_nothing_says_so_and_replaces_them(here: Grid, worker: Worker) -> None:
    """Stopped children accept requests into their pipes and run none: the worker is not ready until others have run them."""
    folder = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
    children = [int(pid) for pid in folder.read_text().split()]
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    sent = [here.app.send_task(QUICK, args=[number_], queue="python") for number_ in range(2)]
    wait_until(lambda: page(here, "/readyz")[0] == 503, "it is not ready")
    assert [one.get(timeout=60) for one in sent] == [0, 1]
    assert works(here)
    wait_until(lambda: page(here, "/readyz")[0] == 200, "it is ready again")
    assert number(here, "nanogrid_worker_stalled") == 0


def test_a_worker_that_cannot_mend_itself_ends_and_loses_no_request(here: Grid) -> None:
    """Its event loop hangs, so that no repair can run.

    The worker reports that everywhere and exits with its own exit code, and its successor runs the request.
    """
    name = "hung@test"
    hung = Worker(here, name, "tests.support.probe", "cpp", {"NANOGRID_STALLED_AFTER_S": "4"})
    try:
        wait_until(hung.answers, "it is ready")
        here.app.control.broadcast("hang_with_a_request", destination=[name], reply=True)
        sent = here.app.send_task(QUICK, args=[5], queue="cpp")
        wait_until(lambda: worker_stands_still(here.settings.data_dir), "nanogrid status says so")
        status, told = page(here, "/readyz", name)
        assert (status, told["ready"]) == (503, False)
        assert "1 request(s) have been held for" in told["reason"]
        assert page(here, "/status", name)[1]["worker"]["stalled"] is True
        assert (number(here, "nanogrid_worker_stalled", name), number(here, "nanogrid_ready", name)) == (1, 0)
        found = [check for check in run_checks(here.settings) if check.name == "ready"]
        assert [check.health for check in found] == [CheckHealth.BROKEN]
        assert hung.process.wait(WAIT_S) == 70
    finally:
        hung.process.kill()
    assert "the worker exits so that it can be restarted" in hung.log.read_text()
    with here.worker("next@test", queues="cpp"):
        assert sent.get(timeout=WAIT_S) == 5
