"""Queues over a real SQS API: looked up, created, checked, counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from tests.support.faulty_proxy import FaultyProxy
from tests.support.services import Service


@pytest.fixture
def client(aws_url: str) -> Any:
    """A boto3 client."""
    return sqs_client(Settings(sqs_endpoint_url=aws_url))


@pytest.fixture
def local(aws_url: str, unique: str) -> Settings:
    """A local stack's settings: queues are created."""
    return Settings(sqs_endpoint_url=aws_url, create_queues=True, queue_prefix=f"{unique}-", max_receives=7)


@pytest.fixture
def aws(local: Settings) -> Settings:
    """A deployment's settings: queues are not created."""
    return local.model_copy(update={"create_queues": False})


def attributes(client: Any, url: str) -> dict[str, str]:
    """All attributes of a queue."""
    return dict(client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"])


def names(client: Any, settings: Settings) -> list[str]:
    """Queues with the prefix of this test."""
    urls = client.list_queues(QueueNamePrefix=settings.queue_prefix).get("QueueUrls", [])
    return sorted(url.rpartition("/")[2].removeprefix(settings.queue_prefix) for url in urls)


def test_a_created_queue_has_a_dead_letter_queue(client: Any, local: Settings) -> None:
    """The queue is created with visibility timeout and redrive policy, its dead-letter queue with the longest retention."""
    url = queues.resolve("python", local)
    made = attributes(client, url)
    assert made["VisibilityTimeout"] == "30"
    policy = json.loads(made["RedrivePolicy"])
    assert int(policy["maxReceiveCount"]) == 7
    dead_letter_url = queues.dead_letter_url(url, client)
    assert dead_letter_url is not None
    assert attributes(client, dead_letter_url)["MessageRetentionPeriod"] == str(14 * 86_400)
    assert names(client, local) == ["python", "python-dlq"]


def test_creating_again_changes_nothing(local: Settings, moto: Service) -> None:
    """The second resolution finds all attributes right and sets nothing."""
    with FaultyProxy(moto.port) as proxy:
        settings = local.model_copy(update={"sqs_endpoint_url": proxy.url})
        assert queues.resolve("python", settings) == queues.resolve("python", settings)
        assert proxy.count("SetQueueAttributes") == 2


def test_a_local_queue_without_redrive_policy_is_mended(client: Any, local: Settings) -> None:
    """A queue that another program created gets its dead-letter queue and visibility timeout; its messages stay."""
    url = client.create_queue(QueueName=queues.sqs_name("python", local), Attributes={"VisibilityTimeout": "5"})[
        "QueueUrl"
    ]
    client.send_message(QueueUrl=url, MessageBody="kept")
    assert queues.resolve("python", local) == url
    assert "RedrivePolicy" in attributes(client, url)
    assert attributes(client, url)["VisibilityTimeout"] == "30"
    assert client.receive_message(QueueUrl=url)["Messages"][0]["Body"] == "kept"


def test_two_processes_may_create_the_same_queue_at_once(client: Any, local: Settings) -> None:
    """Eight processes that resolve the same missing queue at the same time all get its URL."""
    program = (
        "import sys; from nanogrid.connections.sqs import sqs_client; from nanogrid.settings import Settings;"
        "from nanogrid.sqs import queues;"
        "settings = Settings.model_validate_json(sys.argv[1]); client = sqs_client(settings);"
        "sys.stdin.read(1); print(queues.resolve('python', settings, client))"
    )
    argv = [sys.executable, "-c", program, local.model_dump_json(exclude_unset=True)]
    racers = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    found = {racer.communicate("x", timeout=60)[0].strip() for racer in racers}
    assert found == {queues.resolve("python", local)}
    assert queues.check_queues(["python"], local) == []


def test_a_missing_queue_is_never_created_in_aws(client: Any, aws: Settings) -> None:
    """The error names the queue and the remedy; SQS is unchanged."""
    with pytest.raises(ConfigurationError, match=f"{aws.queue_prefix}python.*NANOGRID_QUEUE_URLS"):
        queues.resolve("python", aws)
    assert names(client, aws) == []


@pytest.mark.parametrize("by_url", [True, False])
@pytest.mark.parametrize("create", [True, False])
def test_a_fifo_queue_is_called_one(client: Any, local: Settings, by_url: bool, create: bool) -> None:
    """By name or by URL: nothing is sent to it, and it is a finding that keeps a worker from starting."""
    url = client.create_queue(QueueName="jobs.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    name = "python" if by_url else "jobs.fifo"
    settings = local.model_copy(update={"create_queues": create, "queue_urls": {"python": url}})
    with pytest.raises(ConfigurationError, match=f"^queue {name}: .* is a FIFO queue, .*: use a standard queue$"):
        queues.resolve(name, settings, client)
    (finding,) = queues.check_queues([name], settings, client)
    assert finding.is_missing
    assert "is a FIFO queue" in finding.problem


def test_a_queue_named_by_url_is_taken_as_it_is(aws: Settings) -> None:
    """No request is made for a queue whose URL is configured."""
    settings = aws.model_copy(
        update={"queue_urls": {"python": "https://sqs/1/p"}, "sqs_endpoint_url": "http://127.0.0.1:1"}
    )
    assert queues.resolve("python", settings) == "https://sqs/1/p"


def test_names_that_sqs_does_not_take_are_changed_as_kombu_does() -> None:
    """A runtime's name may have dots and other punctuation."""
    assert queues.sqs_name("node.js/22", Settings(queue_prefix="p-")) == "p-node-js_22"


def findings(settings: Settings) -> list[str]:
    """The problems of the queue `python`, as one line each."""
    return [str(finding) for finding in queues.check_queues(["python"], settings)]


def test_a_sound_queue_has_no_findings(local: Settings, aws: Settings) -> None:
    """A correct queue has no finding."""
    queues.resolve("python", local)
    assert findings(aws) == []


def test_each_fault_of_a_queue_is_one_finding(client: Any, aws: Settings) -> None:
    """Missing queue, missing policy, missing dead-letter queue, short timeouts: one line each, with the remedy."""
    assert len(findings(aws)) == 1
    assert "does not exist" in findings(aws)[0]
    url = client.create_queue(QueueName=queues.sqs_name("python", aws), Attributes={"VisibilityTimeout": "20"})[
        "QueueUrl"
    ]
    redrive, visibility = findings(aws)
    assert "no redrive policy" in redrive
    assert f"{aws.queue_prefix}python-dlq" in redrive
    assert "visibility timeout is 20 s" in visibility
    assert "at least 30" in visibility
    dead_letter = client.create_queue(QueueName=f"{aws.queue_prefix}x")["QueueUrl"]
    policy = {"deadLetterTargetArn": attributes(client, dead_letter)["QueueArn"], "maxReceiveCount": 3}
    client.set_queue_attributes(
        QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy), "VisibilityTimeout": "30"}
    )
    assert findings(aws) == []
    client.delete_queue(QueueUrl=dead_letter)
    assert [f"{aws.queue_prefix}x, which does not exist" in finding for finding in findings(aws)] == [True]
    assert all("\n" not in finding for finding in findings(aws))


def test_without_heartbeat_the_timeout_must_cover_the_longest_run(local: Settings, aws: Settings) -> None:
    """With renewal switched off the queue's own timeout must be long enough."""
    queues.resolve("python", local)
    (finding,) = findings(aws.model_copy(update={"visibility_heartbeat_s": 0.0}))
    assert "at least 1035" in finding


def test_a_run_longer_than_sqs_can_hide_a_message_is_found(local: Settings) -> None:
    """A largest timeout beyond twelve hours is one finding, whatever the number of queues."""
    settings = local.model_copy(update={"max_timeout_ms": 13 * 3600 * 1000})
    (finding,) = queues.check_queues(["python", "cpp"], settings)
    assert "12 h" in finding.problem


def test_an_unreadable_queue_is_a_finding(aws: Settings, moto: Service) -> None:
    """A refused request is reported, not raised."""
    with FaultyProxy(moto.port) as proxy:
        proxy.fail(status=403, code="AccessDenied")
        (finding,) = findings(aws.model_copy(update={"sqs_endpoint_url": proxy.url}))
    assert "AccessDenied" in finding
    assert "IAM" in finding


def test_depths_are_what_sqs_counts(client: Any, local: Settings) -> None:
    """Visible, in flight, delayed and dead letters of each queue, in the given order."""
    url = queues.resolve("python", local)
    for delay_s in (0, 0, 0, 60):
        client.send_message(QueueUrl=url, MessageBody="x", DelaySeconds=delay_s)
    client.receive_message(QueueUrl=url)
    client.send_message(QueueUrl=queues.dead_letter_url(url, client), MessageBody="x")
    assert queues.depths(["cpp", "python"], local) == [
        queues.QueueDepth("cpp", 0, 0, 0, 0),
        queues.QueueDepth("python", visible=2, in_flight=1, delayed=1, dead_letters=1),
    ]


def test_a_queue_without_dead_letters_says_so(client: Any, aws: Settings) -> None:
    """None is not zero."""
    client.create_queue(QueueName=queues.sqs_name("python", aws))
    assert queues.depths(["python"], aws)[0].dead_letters is None


@pytest.fixture(autouse=True)
def _close(client: Any) -> Iterator[None]:
    yield
    client.close()
