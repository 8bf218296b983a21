"""kombu's SQS channel and transport, made to survive faults.

The rule: no message and no answer of a server ends the worker, and only an acknowledgement deletes a message. A message that
cannot be delivered becomes visible again at once; SQS counts deliveries and moves it to the dead-letter queue.

Differences from kombu 5.7, each with a test in `tests/integration/test_transport_*.py`:
- A failed poll is repeated after 1 to 30 s, a poll that hangs is ended, and no error leaves the event loop.
- While no more messages may be held, polls pause. They resume at the first acknowledgement instead of a second later.
- Held messages stay invisible (`visibility`), also those of runs that outlive a restart of the consumer.
- Bare JSON objects become tasks (`envelopes`). Garbage is given back, never deleted, and so are messages that would control
  Celery in ways that no message may (`message_checks`).
- Rejected and requeued messages become visible at once.
- Requests for a later time wait in SQS, and a message that a worker never started costs no delivery (`delays`).
- `nanogrid.sqs.queues` looks queues up or creates them with a dead-letter queue. Nothing lists queues.
"""

from __future__ import annotations

import logging
import sys
from functools import cached_property, partial
from itertools import groupby
from operator import attrgetter
from queue import Empty
from time import monotonic
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from kombu.asynchronous import set_event_loop
from kombu.transport import SQS
from kombu.transport.virtual.base import queue_declare_ok_t

from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.transport import delays, envelopes, message_checks, size
from nanogrid.sqs.transport.ahead import LONGEST_S, Ahead, Received
from nanogrid.sqs.transport.deletions import Deletions, Finished
from nanogrid.sqs.transport.http import client_of
from nanogrid.sqs.transport.kombu_private import ChannelHooks, MessageTable, payload_of, raise_decode_error
from nanogrid.sqs.transport.options import QUEUES_MAY_BE_MISSING, SETTINGS_OPTION
from nanogrid.sqs.transport.poll_status import poll_status
from nanogrid.sqs.transport.polling import MOST_POLLS, Backoff, PollFailure, PollingConnection
from nanogrid.sqs.transport.sending import Collector, collected
from nanogrid.sqs.transport.visibility import HeldMessages, VisibilityHeartbeat, return_delay_s
from nanogrid.telemetry.tracing import CARRIED
from nanogrid.wire.names import RECEIVES_HEADER, SENT_AT

logger = logging.getLogger(__name__)

SQS_ERRORS = (ClientError, BotoCoreError, OSError)
RECHECK_S = 1.0
"""How often a paused poll checks whether it may resume, besides being resumed."""

PROMPT_S = 0.5
"""An empty answer within this time was no long poll: long polls are off, or the server does not support them. A pause follows."""

PAUSE_S = 1.0

_SQSTransport: Any = SQS.Transport  # kombu's type stubs cover only a part of this class


class QoS(MessageTable):
    """kombu's table of unacknowledged messages. Messages in it are also kept invisible."""

    def append(self, message: Any, delivery_tag: str) -> None:
        super().append(message, delivery_tag)
        self.channel.ahead.started(delivery_tag)
        self.channel.held.add(message.delivery_info["sqs_queue"], delivery_tag)

    def can_consume_max_estimate(self) -> int | None:
        """How many messages the next poll may ask for: those that children are free for, and those ahead."""
        free: int | None = super().can_consume_max_estimate()
        return None if free is None else max(0, free + self.channel.room_ahead())

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back, whether or not it is to be requeued: SQS has no other way to refuse it."""
        message = self.held(delivery_tag)
        if message is not None and not self.is_acknowledged(delivery_tag):
            self.channel.give_back(message)
        super().ack(delivery_tag)


class Channel(ChannelHooks):
    """One kombu channel: polls queues on the event loop, sends, acknowledges and gives back."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.held = HeldMessages()
        self._backoffs: dict[str, Backoff] = {}
        self._retry_in_s: dict[str, float] = {}
        self._paused: dict[str, Any] = {}
        self._polling: PollingConnection | None = None
        self._client: Any = None
        self._collector: Collector | None = None
        self._polled_at: dict[str, float] = {}
        self.ahead = Ahead()
        self._return_at: Any = None
        self._deletions = Deletions(self.held, self.sqs)
        super().__init__(*args, **kwargs)
        self._heartbeat = VisibilityHeartbeat(
            self.held, self.sqs, self.settings.visibility_heartbeat_s, self.settings.visibility_timeout_s
        )

    @cached_property
    def settings(self) -> Settings:
        """NanoGrid's settings, from the transport options."""
        reference = self.transport_options.get(SETTINGS_OPTION)
        if reference is None:
            raise ConfigurationError(
                "nanogrid.sqs.transport has no settings: set broker_transport_options to nanogrid.sqs.transport.transport_options(settings)"
            )
        settings: Settings = reference.settings
        return settings

    # -- queues and clients ------------------------------------------------------------------------------------------

    def sqs(self, queue: str | None = None) -> Any:  # kombu's signature: a client per queue
        """The blocking client, one for all queues."""
        if self._collector is not None:
            return self._collector
        if self._client is None:
            client = sqs_client(self.settings)
            size.refuse_large_messages(client, self.settings.message_limit_bytes)
            self._client = client
        return self._client

    def asynsqs(self, queue: str | None = None) -> PollingConnection:
        """The connection for polls on the event loop, one for all queues."""
        if self._polling is None:
            self._polling = PollingConnection(
                self.sqs(),
                client_of(self.hub, MOST_POLLS),
                self.wait_time_seconds,
                self.get_message_attributes,
            )
        return self._polling

    def canonical_queue_name(self, queue_name: str) -> str:
        """The queue's own name: `nanogrid.sqs.queues` makes the name in SQS."""
        return queue_name

    def queue_url(self, queue: str) -> str:
        """The URL of a queue, looked up or created at the first call. Raises as `nanogrid.sqs.queues.resolve` does."""
        if queue not in self.known_urls:
            self.known_urls[queue] = queues.resolve(queue, self.settings, self.sqs())
        return str(self.known_urls[queue])

    def queue_declare(self, queue: str, **_: Any) -> Any:
        """Look the queue up. If SQS does not answer, the first poll or send looks it up again.

        Raises ConfigurationError for a missing queue, but only logs it in a worker that is running.
        """
        try:
            self.queue_url(queue)
        except SQS_ERRORS as error:
            logger.warning("queue %s could not be looked up yet: %s", queue, error)
        except ConfigurationError as missing:
            if not self.transport_options.get(QUEUES_MAY_BE_MISSING):
                raise
            logger.warning("%s", missing)
        return queue_declare_ok_t(queue, 0, 0)

    # -- sending -----------------------------------------------------------------------------------------------------

    def encode_body(self, body: Any, encoding: str | None = None) -> Any:
        """Text stays text; only bytes (a compressed body) need base64."""
        return super().encode_body(body, "base64" if isinstance(body, bytes) else encoding)

    def send(self, queue: str, message: dict[str, Any]) -> None:
        """Send, with SQS's delay if the message is for later; in a block of `sending.sent_together` at its end. Raises InvalidRequestError for a time too far ahead."""
        if delay_s := delays.sqs_delay_s(message.get("headers") or {}):
            message = {**message, "properties": {"DelaySeconds": delay_s, **message["properties"]}}
        refused = partial(self._send_refused, queue)
        try:
            self.queue_url(queue)
            if (block := collected()) is not None:
                self._collector = Collector(
                    block, message["headers"]["id"], refused, self.sqs(), self.settings.message_limit_bytes
                )
            self.send_by_kombu(queue, message)
        except ClientError as error:
            refused(error)
            raise
        finally:
            self._collector = None

    def _send_refused(self, queue: str, error: ClientError) -> None:
        self._forget_if_gone(queue, PollFailure(str(error), error.response.get("Error", {}).get("Code", "")))

    def queue_purge(self, queue: str, **_: Any) -> int:
        """Empty a queue and return about how many messages it held. kombu counts up to ten times and adds the counts up."""
        messages = self.size_of(queue)
        self.sqs().purge_queue(QueueUrl=self.queue_url(queue))
        return messages

    def _forget_if_gone(self, queue: str, failure: PollFailure) -> None:
        """Look up, or create, a queue that was deleted at the next attempt."""
        if failure.queue_is_gone:
            self.known_urls.pop(queue, None)

    # -- polling -----------------------------------------------------------------------------------------------------

    def attach(self, hub: Any) -> None:
        """Poll on this event loop."""
        self.hub, self._polling = hub, None

    def poll(self, queue: str) -> None:
        """Start a poll of a queue that has a consumer, or pause while no more messages may be held."""
        self._paused.pop(queue, None)
        if self.closed or not self.consumes(queue):
            return
        if not self._may_poll():
            self._paused[queue] = self.hub.call_later(RECHECK_S, self.poll, queue)
            return
        self._polled_at[queue] = monotonic()
        poll_status(queue).poll_started()
        try:
            self.start_poll(queue)
        except Exception as error:  # noqa: BLE001  # no queue, no credentials, ...: the worker logs it and keeps trying
            self._poll_failed(queue, PollFailure(str(error)))
            self.poll_ended(queue)

    def resume_polls(self) -> None:
        """Resume paused polls if messages may be held again."""
        if self._paused and not self.closed and self._may_poll():
            for queue, entry in list(self._paused.items()):
                entry.cancel()
                self.poll(queue)

    def _may_poll(self) -> bool:
        """Whether more messages may be received now. With those ahead that is before the last of them is delivered."""
        if len(self.ahead):
            return len(self.ahead) <= self._most_ahead() // 3
        return bool(self.qos.can_consume() or self._most_ahead())

    def _most_ahead(self) -> int:
        return self.ahead.most(self.qos.prefetch_count)

    def room_ahead(self) -> int:
        """How many more messages may be received before children are free for them. Negative if too many wait."""
        return self._most_ahead() - len(self.ahead)

    def poll_answered(self, url: str, queue: str, answer: dict[str, Any] | PollFailure) -> int:
        """Deliver the messages of a poll and return how many there were."""
        if isinstance(answer, PollFailure):
            if self.closed:
                return 0
            self._forget_if_gone(queue, answer)
            self._poll_failed(queue, answer)
            return 0
        poll_status(queue).poll_answered()
        if failures := self._backoffs.setdefault(queue, Backoff()).succeeded():
            logger.info("polls of %s work again after %d failure(s)", queue, failures)
        received = answer["Messages"]
        callback = None if self.closed else self.delivery_callback(queue)
        if callback is None:
            self._release(url, queue, received)
            return 0
        now = monotonic()
        for message in received:
            self.ahead.add(Received(queue, url, message, now))
            self.held.add(url, message["ReceiptHandle"])
        self._deliver_waiting()
        return len(received)

    # -- messages that wait for a child ------------------------------------------------------------------------------

    def _deliver_waiting(self) -> None:
        """Deliver messages while children are free for them. The others wait, for a moment only."""
        while len(self.ahead) and not self.closed and self.qos.can_consume():
            self._deliver(self.ahead.first())
        if len(self.ahead) and self._return_at is None:
            self._return_at = self.hub.call_later(LONGEST_S, self._return_overdue)

    def _deliver(self, received: Received) -> None:
        callback = self.delivery_callback(received.queue)
        if callback is None:
            self._return([received])
            return
        payload = self._payload(received.message, received.url, received.queue)
        if payload is None:
            return
        try:
            callback(payload)
        except BaseException:  # an error that ends this connection
            if self.qos.held(received.handle) is None:
                self.held.discard(received.handle)
            self._return(self.ahead.remove(lambda _: True))
            raise

    def _return_overdue(self) -> None:
        """Return messages that have waited too long: children are busy with longer runs than before.

        One that was delivered before stays. It would be a new message, for which earlier attempts do not count.
        """
        self._return_at = None
        if not self.closed:
            overdue_since = monotonic() - LONGEST_S
            self._return(self.ahead.remove(lambda each: each.at <= overdue_since and _receives_of(each.message) == 1))
            self._deliver_waiting()

    def _return(self, waiting: list[Received]) -> None:
        for each in waiting:
            self.held.discard(each.handle)
        for (url, queue), group in groupby(waiting, key=attrgetter("url", "queue")):
            self._release(url, queue, [each.message for each in group])

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop consuming a queue. Its waiting messages return to it."""
        super().basic_cancel(consumer_tag)
        self._return(self.ahead.remove(lambda each: self.delivery_callback(each.queue) is None))

    def _poll_failed(self, queue: str, failure: PollFailure) -> None:
        poll_status(queue).poll_failed()
        delay_s = self._retry_in_s[queue] = self._backoffs.setdefault(queue, Backoff()).failed()
        logger.error("poll of %s failed, next in %g s: %s", queue, delay_s, failure.reason)

    def poll_ended(self, queue: str, messages: int | None = None) -> None:
        """Poll again: after the backoff, after a pause if it was no long poll, or at once."""
        delay_s = self._retry_in_s.pop(queue, 0.0)
        if not delay_s and not messages and monotonic() - self._polled_at[queue] < PROMPT_S:
            delay_s = PAUSE_S
        self.hub.call_later(delay_s, self.poll, queue)  # kombu's call_soon may wait for the next event

    # -- received messages -------------------------------------------------------------------------------------------

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Consume a queue. A message that cannot be handled is given back, whatever its handling raises."""

        def decoded(message: Any) -> Any:
            # Celery would acknowledge, and so delete, a message whose body it cannot decode. It rejects other types itself.
            if message.errors:
                raise_decode_error(message)
            if message.content_type in envelopes.JSON:
                message.accept = {message.content_type}
                problem = self._problem(message.headers, message.decode(), queue)
                if problem is not None:
                    logger.error("message %s of %s is given back: %s", _name(message), queue, problem)
                    poll_status(queue).refused += 1
                    self.basic_reject(message.delivery_tag)
                    return None
            return callback(message)

        self._heartbeat.start()
        answer = super().basic_consume(queue, no_ack, decoded, consumer_tag, *args, **kwargs)
        self.replace_delivery_callback(queue, partial(self._handle, self.delivery_callback(queue)))
        return answer

    def _problem(self, headers: dict[str, Any], payload: Any, queue: str) -> str | None:
        """Why Celery must not receive a message, judged by what it would receive."""
        return message_checks.problem_of_parts(payload) or message_checks.foreign_id(
            headers, payload, queue, self.settings
        )

    def _handle(self, deliver: Any, payload: dict[str, Any]) -> None:
        try:
            deliver(payload)
        except (OSError, MemoryError):  # a fault of the connection or the machine, not of this message
            raise
        except Exception:
            logger.exception("message %s cannot be handled and is given back", payload["headers"].get("id"))
            self._refuse(payload)

    def _refuse(self, payload: dict[str, Any]) -> None:
        """Give back a message whose handling raised, unless it was acknowledged or given back before."""
        tag, delivery_info = payload["properties"]["delivery_tag"], payload["properties"]["delivery_info"]
        if self.qos.held(tag) is None:  # the error came before kombu made a message of it
            delay_s = return_delay_s(payload["headers"][RECEIVES_HEADER])
            self._make_visible(delivery_info["sqs_queue"], tag, delay_s)
        elif not self.qos.is_acknowledged(tag):
            self.basic_reject(tag)

    def _payload(self, message: dict[str, Any], url: str, queue: str) -> dict[str, Any] | None:
        """kombu's payload for a received message, or None if it must not be delivered now.

        Garbage is given back, and a message that arrived before its time is postponed.
        """
        attributes = message.get("Attributes") or {}
        sent_at_ms = _number(attributes.get("SentTimestamp"))
        poll_status(queue).message_received(sent_at_ms)
        body = envelopes.read_body(message["Body"])
        if isinstance(body, (envelopes.Garbage, envelopes.CeleryEnvelope)) and body.problem is not None:
            logger.error("message %s of %s is given back: %s", message["MessageId"], queue, body.problem)
            poll_status(queue).refused += 1
            self._make_visible(url, message["ReceiptHandle"], return_delay_s(_receives_of(message)))
            return None
        if isinstance(body, envelopes.BareRequest):
            payload = envelopes.adopt(body.request, message["MessageId"], sent_at_ms, self.settings, queue=queue)
            payload["headers"].update(_trace_context(message))
        else:
            payload = body.payload
            if sent_at_ms is not None:
                payload["headers"].setdefault(SENT_AT, sent_at_ms)
        delays.keep_original_headers(payload)
        if delays.due_in_s(payload["headers"]) >= 1:
            self.held.discard(message["ReceiptHandle"])
            delays.postpone(self.sqs(), url, message["ReceiptHandle"], payload)
            return None
        payload["headers"][RECEIVES_HEADER] = _receives_of(message)
        return _addressed(payload, message, url, queue)

    def payloads_of(self, messages: list[dict[str, Any]], queue: str) -> list[dict[str, Any]]:
        """kombu's payloads for messages that were received by a blocking call (`drain_events`)."""
        url = self.queue_url(queue)
        payloads = [self._payload(message, url, queue) for message in messages]
        return [payload for payload in payloads if payload is not None]

    def receive_one(self, queue: str) -> dict[str, Any]:
        """Receive one message by a blocking call (`basic_get`). Raises Empty if there is none."""
        payloads = self.payloads_of(self.receive_blocking(queue), queue)
        if not payloads:
            raise Empty
        return payloads[0]

    # -- acknowledging and giving back -------------------------------------------------------------------------------

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Delete the message soon. If that fails, the message is delivered again and the worker continues."""
        message = self.qos.held(delivery_tag)
        self.qos.ack(delivery_tag)
        self.ahead.finished(delivery_tag, done=True)
        if message is not None:
            finished = Finished(message.delivery_info["sqs_queue"], delivery_tag, _name(message))
            self._deletions.add(finished, hurry=self.closed or self._is_idle())
        self._finished_one()

    def _is_idle(self) -> bool:
        """Whether no task is under way, and few have ended lately, whose messages could be deleted together."""
        return not self.ahead.is_load() and not len(self.ahead) and not self.unacknowledged()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Make the message visible again. It is never deleted."""
        self.qos.reject(delivery_tag, requeue=requeue)
        self.ahead.finished(delivery_tag, done=False)
        self._finished_one()

    def _finished_one(self) -> None:
        if not self.closed:
            if len(self.ahead):
                # Not within the acknowledgement, which would hide errors; kombu's call_soon waits for the next event.
                self.hub.call_later(0, self._deliver_waiting)
            self.resume_polls()
            return
        self._deletions.flush()  # the process may end next
        if not len(self.held):
            self._heartbeat.stop()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Change how many messages may be held."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.resume_polls()

    def give_back(self, message: Any) -> None:
        """Make a held message visible again, at once unless it was delivered very often. Does not raise."""
        delay_s = return_delay_s(int(message.headers.get(RECEIVES_HEADER, 1)))
        self._make_visible(message.delivery_info["sqs_queue"], message.delivery_tag, delay_s)

    def _make_visible(self, url: str, handle: str, delay_s: int = 0) -> bool:
        self.held.discard(handle)
        try:
            self.sqs().change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=delay_s)
        except SQS_ERRORS as error:
            logger.warning("a message of %s arrives again only after its visibility timeout: %s", url, error)
            return False
        return True

    def _release(self, url: str, queue: str, messages: list[dict[str, Any]]) -> None:
        """Give back messages that have no consumer, as if they had not been delivered.

        Ends at the first failure: the worker may be shutting down.
        """
        if messages:
            logger.info("%d message(s) of %s are given back: no consumer", len(messages), queue)
        for message in messages:
            handle, payload = message["ReceiptHandle"], self._payload(message, url, queue)
            if payload is None or delays.resend(self.sqs(), url, handle, payload):
                continue
            if not self._make_visible(url, handle):
                return

    # -- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back all held messages, except those that are running while the consumer restarts: they are deleted when done."""
        if self.closed:
            return
        self._return(self.ahead.remove(lambda _: True))
        unacknowledged, running_tags = self.unacknowledged(), _running_tags()
        running = {tag: message for tag, message in unacknowledged.items() if tag in running_tags}
        for tag in running:
            self.qos.remove(tag)
        if _is_draining():
            self._resend(unacknowledged)
        super().close()
        self._deletions.close()
        for entry in (*self._paused.values(), *([self._return_at] if self._return_at else [])):
            entry.cancel()
        self._paused.clear()
        if running:
            self.qos.put_back(running)
        else:
            self._heartbeat.stop()

    def _resend(self, never_started: dict[str, Any]) -> None:
        """Send messages again that are still held when a drain ends: they never started, so their delivery was no attempt."""
        for tag, message in never_started.items():
            url = message.delivery_info["sqs_queue"]
            if not delays.resend(self.sqs(), url, tag, payload_of(message)):
                return  # SQS may be away, and the worker must end: the other messages are given back
            self.held.discard(tag)
            self.qos.remove(tag)


class Transport(_SQSTransport):
    """Celery's `broker_transport`."""

    Channel = Channel

    can_parse_url = (
        True  # `sqs://` is the whole URL; if kombu parsed it, the worker's banner would show an invented host
    )

    @classmethod
    def as_uri(cls, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The URL that banners show."""
        return uri

    # A refusal by SQS counts as a fault of the connection: Celery retries, and a producer gets OperationalError in the end.
    connection_errors = (*_SQSTransport.connection_errors, ClientError)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Poll on this loop from now on.

        When Celery's consumer restarts, it resets its hub and with it kombu's global event loop. Channels created since then
        have no loop and would never poll.
        """
        set_event_loop(loop)
        for channel in self.channels:
            channel.attach(loop)
        super().register_with_event_loop(connection, loop)


def _addressed(payload: dict[str, Any], message: dict[str, Any], url: str, queue: str) -> dict[str, Any]:
    """Add what kombu needs to acknowledge. The body is left out: it would be sent to the child a second time."""
    properties = payload["properties"]
    properties["delivery_info"] = {  # replaces whatever the sender wrote
        "exchange": "",
        "routing_key": queue,
        "sqs_queue": url,
        "sqs_message": {
            "MessageId": message["MessageId"],
            "ReceiptHandle": message["ReceiptHandle"],
            "Attributes": message.get("Attributes") or {},
        },
    }
    properties["delivery_tag"] = message["ReceiptHandle"]
    return payload


def _trace_context(message: dict[str, Any]) -> dict[str, str]:
    """The trace context that a sender attached to a bare request. Requested from SQS only if tracing is on."""
    attributes = message.get("MessageAttributes") or {}
    return {name: str(attributes[name].get("StringValue", "")) for name in CARRIED if name in attributes}


def _running_tags() -> set[str]:
    """Delivery tags of the tasks that run in this worker's children. Empty in a producer, and while shutting down."""
    state = sys.modules.get("celery.worker.state")
    if state is None or _is_set(state.should_stop) or _is_set(state.should_terminate):
        return set()
    return {request.message.delivery_tag for request in list(state.active_requests)}


def _is_draining() -> bool:
    """Whether this is a worker that ends when its runs have ended."""
    state = sys.modules.get("celery.worker.state")
    return state is not None and _is_set(state.should_stop) and not _is_set(state.should_terminate)


def _is_set(stop: Any) -> bool:
    """Celery stores an exit code, which may be 0."""
    return stop is not None and stop is not False


def _receives_of(message: dict[str, Any]) -> int:
    return _number((message.get("Attributes") or {}).get("ApproximateReceiveCount")) or 1


def _number(text: object) -> int | None:
    return int(text) if isinstance(text, (str, int)) and str(text).isdigit() else None


def _name(message: Any) -> str:
    return str(message.headers.get("id") or message.delivery_tag[:20])
