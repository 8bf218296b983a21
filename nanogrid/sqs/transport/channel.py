"""kombu's SQS channel and transport with NanoGrid's answers to faults.

The one rule: no message and no server's answer may end the worker, and only an acknowledgement deletes a message. What cannot
be delivered is made visible again at once; SQS counts, and moves it to the dead-letter queue.

Differences to kombu 5.7, each with a test in `tests/integration/test_transport_*.py`:
- polls that fail are repeated after 1 to 30 s; a poll that hangs is given up; no error leaves the event loop;
- when no more messages may be fetched, polling rests, and goes on with the first acknowledgement instead of a second later;
- held messages stay invisible (`visibility`), also those of runs that outlive a restart of the consumer;
- bare JSON objects become tasks (`envelopes`); garbage is given back, never deleted, and so is what would steer Celery in ways
  that no message may (`steering`);
- rejected and requeued messages are visible at once;
- what waits for its time waits in SQS, and what a worker never began costs no delivery when it ends (`waiting`);
- a queue is looked up, or created with a dead-letter queue, by `nanogrid.sqs.queues`; nothing is listed.
"""

from __future__ import annotations

import logging
import sys
from functools import cached_property, partial
from queue import Empty
from time import monotonic
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from kombu.asynchronous import set_event_loop
from kombu.transport import SQS, virtual
from kombu.transport.virtual.base import queue_declare_ok_t
from vine import promise

from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.transport import delays, envelopes, size, steering
from nanogrid.sqs.transport.http import client_of
from nanogrid.sqs.transport.options import QUEUES_MAY_BE_MISSING, SETTINGS_OPTION
from nanogrid.sqs.transport.polling import MOST_POLLS, Backoff, PollFailure, PollingConnection
from nanogrid.sqs.transport.readers import reading
from nanogrid.sqs.transport.visibility import HeldMessages, VisibilityHeartbeat, return_delay_s
from nanogrid.telemetry.tracing import CARRIED
from nanogrid.wire.names import RECEIVES_HEADER, SENT_AT

logger = logging.getLogger(__name__)

SQS_ERRORS = (ClientError, BotoCoreError, OSError)
RECHECK_S = 1.0
"""How often a resting poll looks whether it may go on, besides being told."""

PROMPT_S = 0.5
"""An empty answer within this time was no long poll: there are none, or the server knows none. Then a pause follows."""

PAUSE_S = 1.0

# kombu's type stubs know a part of these classes only.
_VirtualQoS: Any = virtual.QoS
_SQSChannel: Any = SQS.Channel
_SQSTransport: Any = SQS.Transport


class QoS(_VirtualQoS):
    """kombu's table of unacknowledged messages; what is in it is also kept invisible."""

    def append(self, message: Any, delivery_tag: str) -> None:
        super().append(message, delivery_tag)
        self.channel.held.add(message.delivery_info["sqs_queue"], delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self.channel.held.discard(delivery_tag)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back, whether or not it is to be requeued: SQS knows no other refusal."""
        message = self._delivered.get(delivery_tag)
        if message is not None and delivery_tag not in self._dirty:
            self.channel.give_back(message)
        super().ack(delivery_tag)


class Channel(_SQSChannel):
    """One kombu channel: polls queues on the event loop, sends, acknowledges and gives back."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.held = HeldMessages()
        self._backoffs: dict[str, Backoff] = {}
        self._retry_in_s: dict[str, float] = {}
        self._resting: dict[str, Any] = {}
        self._polling: PollingConnection | None = None
        self._sqs: Any = None
        self._asked_at: dict[str, float] = {}
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
        if self._sqs is None:
            client = sqs_client(self.settings)
            size.refuse_large_messages(client, self.settings.message_limit_bytes)
            self._sqs = client
        return self._sqs

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

    def _update_queue_cache(self, queue_name_prefix: str) -> None:
        """kombu lists queues here, at each connection; that needs a permission of its own and finds 1000 at most."""

    def _new_queue(self, queue: str, **_: Any) -> str:
        if queue not in self._queue_cache:
            self._queue_cache[queue] = queues.resolve(queue, self.settings, self.sqs())
        return str(self._queue_cache[queue])

    _resolve_queue_url = _new_queue

    def queue_declare(self, queue: str, **_: Any) -> Any:
        """Look the queue up. While SQS does not answer, that is left to the first poll or send; a missing queue raises,
        but not where a worker that runs meets it again."""
        try:
            self._new_queue(queue)
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

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Send. What is for later SQS keeps back; raises InvalidRequestError for a time too far ahead."""
        if delay_s := delays.delay_s(message.get("headers") or {}):
            message = {**message, "properties": {"DelaySeconds": delay_s, **message["properties"]}}
        try:
            super()._put(queue, message, **kwargs)
        except ClientError as error:
            self._forget_if_gone(queue, PollFailure(str(error), error.response.get("Error", {}).get("Code", "")))
            raise

    def _purge(self, queue: str) -> int:
        """Empty a queue: about how many messages that were. kombu looks up to ten times, and adds up."""
        size = int(self._size(queue))
        self.sqs().purge_queue(QueueUrl=self._new_queue(queue))
        return size

    def _forget_if_gone(self, queue: str, failure: PollFailure) -> None:
        """A queue that was deleted is looked up, or created, anew at the next attempt."""
        if failure.queue_is_gone:
            self._queue_cache.pop(queue, None)

    # -- polling -----------------------------------------------------------------------------------------------------

    def attach(self, hub: Any) -> None:
        """Poll on this event loop."""
        self.hub, self._polling = hub, None

    def _schedule_queue(self, queue: str) -> None:
        self._resting.pop(queue, None)
        if self.closed or queue not in self._active_queues:
            return
        if not self.qos.can_consume():
            self._resting[queue] = self.hub.call_later(RECHECK_S, self._schedule_queue, queue)
            return
        self._asked_at[queue] = monotonic()
        reading(queue).poll_began()
        try:
            self._get_bulk_async(queue, callback=promise(self._loop1, (queue,)))
        except Exception as error:  # noqa: BLE001  # no queue, no credentials, ...: the worker goes on trying, and says so
            self._poll_failed(queue, PollFailure(str(error)))
            self._loop1(queue)

    def go_on(self) -> None:
        """Resume resting polls if messages may be fetched again."""
        if self._resting and not self.closed and self.qos.can_consume():
            for queue, entry in list(self._resting.items()):
                entry.cancel()
                self._schedule_queue(queue)

    def _on_messages_ready(self, queue: str, qname: str, messages: dict[str, Any] | PollFailure) -> int:
        """Deliver what a poll brought. kombu passes the URL as `queue` and the name as `qname`."""
        if isinstance(messages, PollFailure):
            if self.closed:
                return 0
            self._forget_if_gone(qname, messages)
            self._poll_failed(qname, messages)
            return 0
        reading(qname).poll_answered()
        if failures := self._backoffs.setdefault(qname, Backoff()).succeeded():
            logger.info("polls of %s work again after %d failure(s)", qname, failures)
        received = messages["Messages"]
        callback = None if self.closed else self.connection._callbacks.get(qname)
        if callback is None:
            self._release(queue, qname, received)
            return 0
        self._deliver_all(callback, received, queue, qname)
        return len(received)

    def _deliver_all(self, callback: Any, received: list[dict[str, Any]], url: str, queue: str) -> None:
        delays = list(received)
        try:
            while delays:
                payload = self._payload(delays.pop(0), url, queue)
                if payload is not None:
                    callback(payload)
        finally:
            if delays:  # an error that ends this connection
                self._release(url, queue, delays)

    def _poll_failed(self, queue: str, failure: PollFailure) -> None:
        reading(queue).poll_failed()
        delay_s = self._retry_in_s[queue] = self._backoffs.setdefault(queue, Backoff()).failed()
        logger.error("poll of %s failed, next in %g s: %s", queue, delay_s, failure.reason)

    def _loop1(self, queue: str, messages_fetched: int | None = None) -> None:
        """Poll again: after the back-off, or after a pause where there was no long poll, or at once."""
        delay_s = self._retry_in_s.pop(queue, 0.0)
        if not delay_s and not messages_fetched and monotonic() - self._asked_at[queue] < PROMPT_S:
            delay_s = PAUSE_S
        if delay_s:
            self.hub.call_later(delay_s, self._schedule_queue, queue)
        else:
            self.hub.call_soon(self._schedule_queue, queue)

    # -- what came ---------------------------------------------------------------------------------------------------

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Consume a queue. A message that cannot be handled is given back, whatever handling it raises."""

        def decoded(message: Any) -> Any:
            # Celery would acknowledge, and so delete, a message whose body it cannot decode. Other types it rejects itself.
            if message.errors:
                message._reraise_error()
            if message.content_type in envelopes.JSON:
                message.accept = {message.content_type}
                problem = self._problem(message.headers, message.decode(), queue)
                if problem is not None:
                    logger.error("message %s of %s is given back: %s", _name(message), queue, problem)
                    reading(queue).refused += 1
                    self.basic_reject(message.delivery_tag)
                    return None
            return callback(message)

        self._heartbeat.start()
        answer = super().basic_consume(queue, no_ack, decoded, consumer_tag, *args, **kwargs)
        callbacks = self.connection._callbacks
        callbacks[queue] = partial(self._handle, callbacks[queue])
        return answer

    def _problem(self, headers: dict[str, Any], payload: Any, queue: str) -> str | None:
        """Why Celery must not see a message, judged by what it would see."""
        return steering.problem_of_parts(payload) or steering.foreign_id(headers, payload, queue, self.settings)

    def _handle(self, deliver: Any, payload: dict[str, Any]) -> None:
        try:
            deliver(payload)
        except (OSError, MemoryError):  # the connection's or the machine's trouble, not this message's
            raise
        except Exception:
            logger.exception("message %s cannot be handled and is given back", payload["headers"].get("id"))
            self._refuse(payload)

    def _refuse(self, payload: dict[str, Any]) -> None:
        """Give back a message that raised, unless it was acknowledged or given back before it did."""
        tag, delivery_info = payload["properties"]["delivery_tag"], payload["properties"]["delivery_info"]
        if tag in self.held:
            self.basic_reject(tag)
        elif tag not in self.qos._delivered:  # it could not even be made a message
            delay_s = return_delay_s(payload["headers"][RECEIVES_HEADER])
            self._make_visible(delivery_info["sqs_queue"], tag, delay_s)

    def _payload(self, message: dict[str, Any], url: str, queue: str) -> dict[str, Any] | None:
        """kombu's payload for a received message, or None for what has come to its end here: garbage is given back, and what
        came before its time is put off."""
        attributes = message.get("Attributes") or {}
        sent_at_ms = _number(attributes.get("SentTimestamp"))
        reading(queue).message(sent_at_ms)
        body = envelopes.read_body(message["Body"])
        if isinstance(body, (envelopes.Garbage, envelopes.CeleryEnvelope)) and body.problem is not None:
            logger.error("message %s of %s is given back: %s", message["MessageId"], queue, body.problem)
            reading(queue).refused += 1
            self._make_visible(url, message["ReceiptHandle"], return_delay_s(_receives(attributes)))
            return None
        if isinstance(body, envelopes.BareRequest):
            payload = envelopes.adopt(body.request, message["MessageId"], sent_at_ms, self.settings, queue=queue)
            payload["headers"].update(_trace_context(message))
        else:
            payload = body.payload
            if sent_at_ms is not None:
                payload["headers"].setdefault(SENT_AT, sent_at_ms)
        delays.keep_as_sent(payload)
        if delays.wait_s(payload["headers"]) >= 1:
            delays.put_off(self.sqs(), url, message["ReceiptHandle"], payload)
            return None
        payload["headers"][RECEIVES_HEADER] = _receives(attributes)
        return _addressed(payload, message, url, queue)

    def _messages_to_python(self, messages: list[dict[str, Any]], queue: str) -> list[dict[str, Any]]:
        """The blocking path (`drain_events`)."""
        url = self._new_queue(queue)
        payloads = [self._payload(message, url, queue) for message in messages]
        return [payload for payload in payloads if payload is not None]

    def _get(self, queue: str) -> dict[str, Any]:
        """The blocking path (`basic_get`)."""
        received = self._receive_message(queue=queue, max_number_of_messages=1).get("Messages", [])
        payloads = self._messages_to_python(received, queue)
        if not payloads:
            raise Empty
        return payloads[0]

    # -- what becomes of it ------------------------------------------------------------------------------------------

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Delete the message. Where that fails it is delivered again; the worker goes on."""
        message = self.qos._delivered.get(delivery_tag)
        if message is not None:
            try:
                self.sqs().delete_message(QueueUrl=message.delivery_info["sqs_queue"], ReceiptHandle=delivery_tag)
            except SQS_ERRORS as error:
                logger.warning("message %s is done but was not deleted, so it comes again: %s", _name(message), error)
        self.qos.ack(delivery_tag)
        self._finished_one()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Make the message visible again; it is never deleted."""
        self.qos.reject(delivery_tag, requeue=requeue)
        self._finished_one()

    def _finished_one(self) -> None:
        if not self.closed:
            self.go_on()
        elif not len(self.held):
            self._heartbeat.stop()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Change how many messages may be held."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.go_on()

    def give_back(self, message: Any) -> None:
        """Make a held message visible again, at once unless it came very often already. Does not raise."""
        self.held.discard(message.delivery_tag)
        delay_s = return_delay_s(int(message.headers.get(RECEIVES_HEADER, 1)))
        self._make_visible(message.delivery_info["sqs_queue"], message.delivery_tag, delay_s)

    _restore = give_back
    """kombu's name for it, when a channel closes. A failure must not reach kombu, which would write the messages to a file."""

    def _make_visible(self, url: str, handle: str, delay_s: int = 0) -> bool:
        try:
            self.sqs().change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=delay_s)
        except SQS_ERRORS as error:
            logger.warning("a message of %s comes again only after its visibility timeout: %s", url, error)
            return False
        return True

    def _release(self, url: str, queue: str, messages: list[dict[str, Any]]) -> None:
        """Give back messages that no consumer took, as if they had not been delivered. Ends at the first failure: the worker
        may be shutting down."""
        if messages:
            logger.info("%d message(s) of %s are given back: no consumer", len(messages), queue)
        for message in messages:
            handle, payload = message["ReceiptHandle"], self._payload(message, url, queue)
            if payload is None or delays.send_anew(self.sqs(), url, handle, payload):
                continue
            if not self._make_visible(url, handle):
                return

    # -- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back what is held, except what is being run while the consumer restarts: that goes on, and is deleted in the end."""
        if self.closed:
            return
        unacknowledged, running_tags = self._unacknowledged(), _running_tags()
        running = {tag: message for tag, message in unacknowledged.items() if tag in running_tags}
        for tag in running:
            self.qos._delivered.pop(tag)
        if _is_draining():
            self._send_anew(unacknowledged)
        super().close()
        for entry in self._resting.values():
            entry.cancel()
        self._resting.clear()
        if running:
            self.qos._delivered.update(running)
        else:
            self._heartbeat.stop()

    def _send_anew(self, never_begun: dict[str, Any]) -> None:
        """What is still held when a drain is over has never been begun: its delivery was no attempt, and is not to count."""
        for tag, message in never_begun.items():
            url = message.delivery_info["sqs_queue"]
            if not delays.send_anew(self.sqs(), url, tag, message._raw):
                return  # SQS may be away, and the worker is to end: the rest is given back
            self.held.discard(tag)
            self.qos._delivered.pop(tag, None)

    def _unacknowledged(self) -> dict[str, Any]:
        if self._qos is None:
            return {}
        return {tag: message for tag, message in self._qos._delivered.items() if tag not in self._qos._dirty}


class Transport(_SQSTransport):
    """Celery's `broker_transport`."""

    Channel = Channel

    can_parse_url = True  # `sqs://` says it all; taken apart, the worker's banner would show an invented host

    @classmethod
    def as_uri(cls, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """What banners show."""
        return uri

    # A refusal by SQS is the connection's trouble: Celery tries again, and a producer gets OperationalError in the end.
    connection_errors = (*_SQSTransport.connection_errors, ClientError)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Poll on this loop from now on.

        When Celery's consumer restarts it has reset its hub, and with it kombu's global event loop: channels made since then
        know no loop and would never poll.
        """
        set_event_loop(loop)
        for channel in self.channels:
            channel.attach(loop)
        super().register_with_event_loop(connection, loop)


def _addressed(payload: dict[str, Any], message: dict[str, Any], url: str, queue: str) -> dict[str, Any]:
    """Put in what kombu needs to acknowledge. The body is left out: it would travel to the child a second time."""
    properties = payload["properties"]
    properties["delivery_info"] = {  # none of it is the sender's to say
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
    """What a sender put beside a bare request about its trace. Asked of SQS only where traces are made."""
    attributes = message.get("MessageAttributes") or {}
    return {name: str(attributes[name].get("StringValue", "")) for name in CARRIED if name in attributes}


def _running_tags() -> set[str]:
    """Delivery tags of the tasks that children of this worker are running. Empty in a producer, and while shutting down."""
    state = sys.modules.get("celery.worker.state")
    if state is None or _is_set(state.should_stop) or _is_set(state.should_terminate):
        return set()
    return {request.message.delivery_tag for request in list(state.active_requests)}


def _is_draining() -> bool:
    """Whether this is a worker that was asked to end when its runs have."""
    state = sys.modules.get("celery.worker.state")
    return state is not None and _is_set(state.should_stop) and not _is_set(state.should_terminate)


def _is_set(stop: Any) -> bool:
    """Celery keeps an exit code there, of which 0 is one."""
    return stop is not None and stop is not False


def _receives(attributes: dict[str, Any]) -> int:
    return _number(attributes.get("ApproximateReceiveCount")) or 1


def _number(text: object) -> int | None:
    return int(text) if isinstance(text, (str, int)) and str(text).isdigit() else None


def _name(message: Any) -> str:
    return str(message.headers.get("id") or message.delivery_tag[:20])
