"""Dead letters are answered and stay in their queue."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from nanogrid.connections.sqs import sqs_client
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.dead_letters import DeadLetterReader, DeadRequest, Scan
from nanogrid.sqs.transport.envelopes import adopt
from tests.support.faulty_proxy import FaultyProxy

REQUEST = {"requestId": "r-1", "functionId": "thumb", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"}


@pytest.fixture
def settings(proxy: FaultyProxy, unique: str) -> Settings:
    """Settings for queues of this test."""
    return Settings(sqs_endpoint_url=proxy.url, create_queues=True, queue_prefix=f"{unique}-")


class DeadLetters:
    """The dead-letter queue of `python`."""

    def __init__(self, settings: Settings) -> None:
        self.client = sqs_client(settings)
        url = queues.dead_letter_url(queues.resolve("python", settings, self.client), self.client)
        assert url is not None
        self.url = url

    def add(self, body: Any) -> str:
        """Send a message to it and return its id."""
        text = body if isinstance(body, str) else json.dumps(body)
        attributes = {"trace": {"DataType": "String", "StringValue": "t-1"}}
        sent = self.client.send_message(QueueUrl=self.url, MessageBody=text, MessageAttributes=attributes)
        return str(sent["MessageId"])

    def bodies(self) -> dict[str, str]:
        """The visible messages, with the attributes of `add`. They are hidden afterwards."""
        found = {}
        while messages := self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                assert message["MessageAttributes"]["trace"]["StringValue"] == "t-1"
                found[message["MessageId"]] = message["Body"]
        return found


@pytest.fixture
def dead_letters(settings: Settings) -> DeadLetters:
    """The dead-letter queue of `python`."""
    return DeadLetters(settings)


class Answers:
    """Collects answers, as the result store would."""

    def __init__(self) -> None:
        self.given: list[tuple[str, str, str]] = []
        self.broken = False

    def __call__(self, dead: DeadRequest) -> bool:
        if self.broken:
            raise ConnectionError("the result store is away")
        self.given.append((dead.request_id, dead.function_id, dead.reason))
        return True

    @property
    def ids(self) -> list[str]:
        """Ids of the answered requests, sorted."""
        return sorted(request_id for request_id, _, _ in self.given)


def test_every_kind_of_request_is_answered(settings: Settings, dead_letters: DeadLetters) -> None:
    """Bare requests and Celery messages, plain or in base64, valid or not, each get a failure as their result."""
    celery = adopt({**REQUEST, "requestId": "r-2"}, "m", 1, settings)
    encoded = adopt({**REQUEST, "requestId": "r-3"}, "m", 1, settings)
    encoded["body"] = base64.b64encode(encoded["body"].encode()).decode()
    encoded["properties"]["body_encoding"] = "base64"
    dead_letters.add(REQUEST)
    dead_letters.add(celery)
    dead_letters.add(base64.b64encode(json.dumps(encoded).encode()).decode())
    nameless = dead_letters.add({"functionId": 5})
    answers = Answers()
    assert DeadLetterReader(settings, answers).scan() == Scan(read=4, answered=4, garbage=0)
    assert answers.ids == sorted(["r-1", "r-2", "r-3", nameless])
    by_id = {request_id: (function_id, reason) for request_id, function_id, reason in answers.given}
    assert by_id["r-2"][0] == "thumb"
    assert by_id[nameless][0] == ""
    assert f"{settings.queue_prefix}python-dlq" in by_id["r-1"][1]


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"body": "{"}, "its body cannot be read"),
    ({"body": "\ufeff{"}, "its body cannot be read"),
    ({"body": '"x"'}, "its body cannot be read"),
    ({"body": "", "content-type": None}, "its body is None, and only JSON is accepted"),
    ({"body": "gARdlC4=", "content-type": "application/x-python-serialize"}, "'application/x-python-serialize', and"),
    ({"body": "- - 1", "content-type": "application/x-yaml"}, "'application/x-yaml', and only JSON is accepted"),
    ({"body": "eJyLjq6OjQUABKcBqA==", "headers": {"compression": "application/x-gzip"}}, "its body is compressed, and"),
    ({"body": "%%%", "properties": {"body_encoding": "base64"}}, "its body is not text in base64"),
    ({"body": "/////w==", "properties": {"body_encoding": "base64"}}, "its body is not text in base64"),
    ({"body": f"[[{'9' * 5000}], {{}}, null]"}, "its body cannot be read"),
    ({"body": f"[[], {{}}, {'[' * 300 + ']' * 300}]"}, "its body is nested more than 200 levels deep"),
]


def test_requests_that_cannot_be_read_are_answered(settings: Settings, dead_letters: DeadLetters) -> None:
    """Their headers name NanoGrid's task and an id with a waiting producer: they get NOT_RUN and the problem of the message."""
    for number, (changes, _) in enumerate(UNREADABLE):
        message = adopt({**REQUEST, "requestId": f"r-{number}"}, "m", 1, settings)
        dead_letters.add({**message, **changes, "headers": {**message["headers"], **changes.get("headers", {})}})
    answers, count = Answers(), len(UNREADABLE)
    assert DeadLetterReader(settings, answers).scan() == Scan(read=count, answered=count, garbage=0)
    reasons = {request_id: reason for request_id, _, reason in answers.given}
    for number, (_, words) in enumerate(UNREADABLE):
        assert words in reasons[f"r-{number}"]


def test_a_bare_request_with_a_number_beyond_measure_is_answered(settings: Settings, dead_letters: DeadLetters) -> None:
    """Python cannot read the numbers; the request id is read all the same."""
    dead_letters.add(json.dumps({**REQUEST, "payload": "huge"}).replace('"huge"', "9" * 5000))
    answers = Answers()
    assert DeadLetterReader(settings, answers).scan() == Scan(read=1, answered=1, garbage=0)
    ((request_id, function_id, reason),) = answers.given
    assert (request_id, function_id) == ("r-1", "thumb")
    assert "more than 4300 digits" in reason


def test_messages_stay_for_the_operator(settings: Settings, dead_letters: DeadLetters) -> None:
    """After a scan all messages are visible, with their content and attributes."""
    sent = {dead_letters.add({**REQUEST, "requestId": f"r-{number}"}): number for number in range(23)}
    answers = Answers()
    assert DeadLetterReader(settings, answers).scan().read == 23
    bodies = dead_letters.bodies()
    assert {message_id: json.loads(body)["requestId"] for message_id, body in bodies.items()} == {
        message_id: f"r-{number}" for message_id, number in sent.items()
    }


def test_an_answered_message_is_not_answered_again(
    settings: Settings, dead_letters: DeadLetters, proxy: FaultyProxy
) -> None:
    """Without changes a scan only reads the count; a new message is answered alone."""
    dead_letters.add(REQUEST)
    answers = Answers()
    reader = DeadLetterReader(settings, answers, ["python"])
    reader.scan()
    seen = proxy.count()
    assert reader.scan() == Scan()
    assert [request.action for request in proxy.requests()[seen:]] == ["GetQueueAttributes"]
    dead_letters.add({**REQUEST, "requestId": "r-2"})
    assert reader.scan() == Scan(read=2, answered=1)
    assert answers.ids == ["r-1", "r-2"]


def test_garbage_is_counted_and_logged_once(
    settings: Settings, dead_letters: DeadLetters, caplog: pytest.LogCaptureFixture
) -> None:
    """A message without a request is not answered; the log names it once."""
    other = adopt(REQUEST, "m", 1, settings)
    other["headers"]["task"] = "another.task"
    nameless = adopt(REQUEST, "m", 1, settings)
    nameless["body"], nameless["headers"]["id"] = "{", "no id"
    for body in ("hello", "[1]", other, nameless):
        dead_letters.add(body)
    answers = Answers()
    reader = DeadLetterReader(settings, answers)
    assert reader.scan() == Scan(read=4, answered=0, garbage=4)
    dead_letters.add(REQUEST)
    assert reader.scan() == Scan(read=5, answered=1, garbage=0)
    assert caplog.text.count("holds no NanoGrid request") == 4
    assert answers.ids == ["r-1"]


def test_an_answer_that_fails_is_tried_again(
    settings: Settings, dead_letters: DeadLetters, caplog: pytest.LogCaptureFixture
) -> None:
    """While results cannot be stored the request stays unanswered; the next scan answers it."""
    dead_letters.add(REQUEST)
    answers = Answers()
    answers.broken = True
    reader = DeadLetterReader(settings, answers)
    assert reader.scan() == Scan(read=1)
    assert "could not be answered" in caplog.text
    answers.broken = False
    assert reader.scan() == Scan(read=1, answered=1)


def test_a_scan_survives_an_sqs_that_is_away(
    settings: Settings, dead_letters: DeadLetters, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Server errors are logged, and the next scan succeeds."""
    dead_letters.add(REQUEST)
    answers = Answers()
    reader = DeadLetterReader(settings, answers, ["python"])
    proxy.fail("ReceiveMessage", status=503)
    assert reader.scan() == Scan()
    assert "could not be read" in caplog.text
    proxy.heal()
    reader.scan()
    assert answers.ids == ["r-1"]


def test_a_queue_without_dead_letter_queue_is_passed_over(aws_url: str, unique: str) -> None:
    """A queue without a dead-letter queue causes no error."""
    settings = Settings(sqs_endpoint_url=aws_url, queue_prefix=f"{unique}-")
    sqs_client(settings).create_queue(QueueName=f"{unique}-python")
    assert DeadLetterReader(settings, Answers(), ["python", "missing"]).scan() == Scan()


def test_an_emptied_dead_letter_queue_is_forgotten(settings: Settings, dead_letters: DeadLetters) -> None:
    """Messages that arrive after an operator has purged the queue are answered as new."""
    answers = Answers()
    reader = DeadLetterReader(settings, answers)
    dead_letters.add(REQUEST)
    reader.scan()
    dead_letters.client.purge_queue(QueueUrl=dead_letters.url)
    reader.scan()
    dead_letters.add(REQUEST)
    assert reader.scan() == Scan(read=1, answered=1)
