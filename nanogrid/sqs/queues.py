"""Queues in SQS: their URLs, checks of their attributes, and their depths.

The rule: a queue is created or changed only if `create_queues` is set. In AWS, queues belong to the deployment.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import ConfigurationError
from nanogrid.settings import SQS_LONGEST_VISIBILITY_S, Settings

DEAD_LETTER_SUFFIX = "-dlq"
FIFO_SUFFIX = ".fifo"
DEAD_LETTER_RETENTION_S = 14 * 24 * 3600
"""The longest time that SQS keeps messages: operators need time to read them."""

_SQS_CHARACTERS = {ord(char): "_" for char in string.punctuation if char not in "-_."} | {ord("."): "-"}


def sqs_name(name: str, settings: Settings) -> str:
    """A queue's name in SQS: the prefix, then the name with dots as dashes and other punctuation as underscores."""
    return settings.queue_prefix + name.translate(_SQS_CHARACTERS)


def resolve(name: str, settings: Settings, client: Any = None) -> str:
    """The URL of a queue. With `create_queues` the queue and its dead-letter queue exist afterwards.

    Raises ConfigurationError for a missing queue and for a FIFO queue, and botocore's errors if SQS does not answer.
    """
    if (given := _given(name, settings)) is not None:
        return given
    client = client or sqs_client(settings)
    if settings.create_queues:
        return _ensure(name, settings, client)
    url = _find(client, sqs_name(name, settings))
    if url is None:
        raise ConfigurationError(f"queue {name}: {_missing(name, settings)}")
    return url


def find(name: str, settings: Settings, client: Any) -> str | None:
    """The URL of a queue that exists, or None. Creates and changes nothing. Raises as `resolve` does, except for a missing one."""
    return _given(name, settings) or _find(client, sqs_name(name, settings))


def _given(name: str, settings: Settings) -> str | None:
    """The URL of a queue if the settings have it. Raises ConfigurationError for a FIFO queue."""
    if is_fifo(name, settings):
        raise ConfigurationError(f"queue {name}: {_fifo(name, settings)}")
    return settings.queue_urls.get(name)


def _missing(name: str, settings: Settings) -> str:
    return (
        f"{sqs_name(name, settings)!r} does not exist in SQS ({settings.sqs_endpoint_url or settings.region}): create it "
        "together with a dead-letter queue, or give the URL of another queue in NANOGRID_QUEUE_URLS"
    )


def is_fifo(name: str, settings: Settings) -> bool:
    """Whether a queue is a FIFO queue: in SQS exactly their names end with `.fifo`."""
    return settings.queue_urls.get(name, name).endswith(FIFO_SUFFIX)


def _fifo(name: str, settings: Settings) -> str:
    return (
        f"{settings.queue_urls.get(name, name)} is a FIFO queue, whose messages need a group and wait while another message of "
        "their group runs: use a standard queue"
    )


def _find(client: Any, queue_name: str, account: str = "") -> str | None:
    owner = {"QueueOwnerAWSAccountId": account} if account else {}
    try:
        url: str = client.get_queue_url(QueueName=queue_name, **owner)["QueueUrl"]
    except client.exceptions.QueueDoesNotExist:
        return None
    return url


# -- local queues are created ----------------------------------------------------------------------------------------


def _ensure(name: str, settings: Settings, client: Any) -> str:
    """Create a missing local queue and its dead-letter queue, and correct their attributes. Safe in several processes at once.

    CreateQueue without attributes is idempotent in SQS, whatever attributes the queue has. A second call sets the attributes.
    """
    dead_letter_url = _create(client, sqs_name(name, settings) + DEAD_LETTER_SUFFIX)
    dead_letter = _attributes(client, dead_letter_url)
    _state(client, dead_letter_url, dead_letter, {"MessageRetentionPeriod": str(DEAD_LETTER_RETENTION_S)})
    url = _create(client, sqs_name(name, settings))
    policy = {"deadLetterTargetArn": dead_letter["QueueArn"], "maxReceiveCount": settings.max_receives}
    wanted = {"VisibilityTimeout": str(settings.visibility_timeout_s), "RedrivePolicy": json.dumps(policy)}
    _state(client, url, _attributes(client, url), wanted)
    return url


def _create(client: Any, queue_name: str) -> str:
    url: str = client.create_queue(QueueName=queue_name)["QueueUrl"]
    return url


def _attributes(client: Any, url: str, *names: str) -> dict[str, str]:
    answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=list(names) or ["All"])
    attributes: dict[str, str] = answer.get("Attributes", {})
    return attributes


def _state(client: Any, url: str, present: dict[str, str], wanted: dict[str, str]) -> None:
    """Set the attributes whose values differ."""
    changed = {name: value for name, value in wanted.items() if not _same(name, present.get(name), value)}
    if changed:
        client.set_queue_attributes(QueueUrl=url, Attributes=changed)


def _same(name: str, present: str | None, wanted: str) -> bool:
    if name == "RedrivePolicy" and present is not None:
        return _policy({name: present}) == _policy({name: wanted})
    return present == wanted


# -- checks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redrive:
    """A queue's redrive policy: after this many receives SQS moves a message to the queue with this ARN."""

    dead_letter_arn: str
    max_receives: int


@dataclass(frozen=True)
class Finding:
    """One problem of a queue: a sentence that says how to solve it. `is_missing`: the queue cannot be used at all."""

    queue: str
    problem: str
    is_missing: bool = False

    def __str__(self) -> str:
        return f"queue {self.queue}: {self.problem}"


def _policy(attributes: dict[str, str]) -> Redrive | None:
    try:
        policy = json.loads(attributes["RedrivePolicy"])
        return Redrive(policy["deadLetterTargetArn"], int(policy["maxReceiveCount"]))
    except (KeyError, ValueError, TypeError):
        return None


def dead_letter_url(url: str, client: Any) -> str | None:
    """URL of the queue that a queue's redrive policy names. None without a policy, or if that queue is missing."""
    policy = _policy(_attributes(client, url, "RedrivePolicy"))
    return _url_of_arn(client, policy.dead_letter_arn) if policy else None


def _url_of_arn(client: Any, arn: str) -> str | None:
    _, _, _, _, account, queue_name = arn.split(":", 5)
    return _find(client, queue_name, account)


def check_queues(names: Iterable[str], settings: Settings, client: Any = None) -> list[Finding]:
    """The problems of these queues, one finding each. Does not raise if a queue is missing or cannot be read."""
    client = client or sqs_client(settings)
    findings = _check_longest_run(settings)
    for name in names:
        findings += _check_queue(name, settings, client)
    return findings


def _check_longest_run(settings: Settings) -> list[Finding]:
    if settings.longest_run_s <= SQS_LONGEST_VISIBILITY_S:
        return []
    return [
        Finding(
            "(all)",
            f"the longest allowed run takes {settings.longest_run_s:g} s and SQS keeps a message invisible for 12 h at most: "
            "lower NANOGRID_MAX_TIMEOUT_MS, or such a run may start twice",
        )
    ]


def _check_queue(name: str, settings: Settings, client: Any) -> list[Finding]:
    from botocore.exceptions import BotoCoreError, ClientError

    if is_fifo(name, settings):
        return [Finding(name, _fifo(name, settings), is_missing=True)]
    try:
        url = resolve(name, settings, client)
        attributes = _attributes(client, url)
        problems = [*_check_redrive(name, attributes, settings, client), *_check_visibility(attributes, settings)]
    except (ConfigurationError, client.exceptions.QueueDoesNotExist):
        return [Finding(name, _missing(name, settings), is_missing=True)]
    except (ClientError, BotoCoreError) as error:
        problems = [f"cannot be read ({error}): check the endpoint, the credentials and the IAM policy"]
    return [Finding(name, problem) for problem in problems]


def _check_redrive(name: str, attributes: dict[str, str], settings: Settings, client: Any) -> list[str]:
    policy = _policy(attributes)
    if policy is None:
        own_name = sqs_name(name, settings) + DEAD_LETTER_SUFFIX
        return [
            f"has no redrive policy, so a message that no worker can handle is delivered for ever: give it a dead-letter queue ({own_name}) with maxReceiveCount {settings.max_receives}"
        ]
    if _url_of_arn(client, policy.dead_letter_arn) is None:
        return [f"its redrive policy names {policy.dead_letter_arn}, which does not exist: create that queue"]
    return []


def _check_visibility(attributes: dict[str, str], settings: Settings) -> list[str]:
    timeout_s = int(attributes["VisibilityTimeout"])
    if settings.visibility_heartbeat_s:
        needed_s, reason = settings.visibility_heartbeat_s * 3, "three times NANOGRID_VISIBILITY_HEARTBEAT_S"
    else:
        needed_s, reason = settings.longest_run_s, "the longest allowed run, as NANOGRID_VISIBILITY_HEARTBEAT_S is 0"
    if timeout_s >= needed_s:
        return []
    return [
        f"its visibility timeout is {timeout_s} s, shorter than {reason} ({needed_s:g} s), so a run may start twice: set VisibilityTimeout to at least {needed_s:g}"
    ]


# -- depths ----------------------------------------------------------------------------------------------------------

_DEPTHS = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


@dataclass(frozen=True)
class QueueDepth:
    """Messages in a queue, by SQS's approximate counts. `dead_letters` is None without a dead-letter queue."""

    queue: str
    visible: int
    in_flight: int
    delayed: int
    dead_letters: int | None


def depths(names: Iterable[str], settings: Settings, client: Any = None) -> list[QueueDepth]:
    """The depth of each queue, in the order given.

    Raises ConfigurationError for a missing queue, and botocore's errors if SQS does not answer. The age of the oldest message
    is not included: SQS reports it to CloudWatch only.
    """
    client = client or sqs_client(settings)
    return [depth(name, addresses(name, settings, client), client) for name in names]


@dataclass(frozen=True)
class Addresses:
    """URLs of a queue and of its dead-letter queue, None without one."""

    url: str
    dead_letter_url: str | None


def addresses(name: str, settings: Settings, client: Any) -> Addresses:
    """The addresses of a queue. Raises the same errors as `depths`."""
    url = resolve(name, settings, client)
    return Addresses(url, dead_letter_url(url, client))


def depth(name: str, where: Addresses, client: Any) -> QueueDepth:
    """The depth of one queue. Takes one call to SQS, and one more for its dead-letter queue."""
    attributes = _attributes(client, where.url, *_DEPTHS.values())
    counts = {field: int(attributes[attribute]) for field, attribute in _DEPTHS.items()}
    dead = None
    if where.dead_letter_url is not None:
        dead = int(_attributes(client, where.dead_letter_url, _DEPTHS["visible"])[_DEPTHS["visible"]])
    return QueueDepth(name, **counts, dead_letters=dead)
