"""The private parts of kombu that the SQS transport builds on, behind names of NanoGrid's own.

The rule: no other module uses a private name of kombu. The classes here only translate: kombu calls a private method, and
the method calls one with a public name that the transport implements; or the transport calls a public name, and the method
uses kombu's private one. `nanogrid.worker.private_parts_step` checks at a worker's start that all of them exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu import message
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.asynchronous.http import get_client
from kombu.asynchronous.http.curl import CurlClient
from kombu.transport import SQS, virtual
from vine import promise

from nanogrid.connections.private_parts import PrivateParts

# kombu's type stubs cover only a part of these classes.
_VirtualQoS: Any = virtual.QoS
_SQSChannel: Any = SQS.Channel
_AsyncSQSConnection: Any = AsyncSQSConnection
_CurlClient: Any = CurlClient

KOMBU = PrivateParts(
    "kombu",
    "5.7",
    "SQS transport",
    (
        (virtual.QoS, ("_delivered", "_dirty")),
        (virtual.Transport, ("_callbacks",)),
        (virtual.Message, ("_raw",)),
        (message.Message, ("_reraise_error",)),
        (
            SQS.Channel,
            (
                "_active_queues",
                "_get",
                "_get_bulk_async",
                "_loop1",
                "_messages_to_python",
                "_new_queue",
                "_on_messages_ready",
                "_put",
                "_qos",
                "_queue_cache",
                "_receive_message",
                "_resolve_queue_url",
                "_restore",
                "_schedule_queue",
                "_size",
                "_update_queue_cache",
            ),
        ),
        (AsyncSQSConnection, ("_httpclient", "_on_list_ready")),
        (CurlClient, ("_set_timeout", "_timeout_check")),
        (get_client, ("_current_http_client",)),
    ),
)


def raise_decode_error(received: Any) -> None:
    """Raise the error that kombu met when it decoded a message's body.

    Needed because Celery acknowledges, and so deletes, a message with such an error. Without it garbage would leave its queue.
    """
    received._reraise_error()


def payload_of(received: Any) -> dict[str, Any]:
    """The payload that a message was made from: kombu's envelope with body, headers and properties.

    Needed to send the message to its queue again unchanged. Without it a drain would count as a failed attempt.
    """
    payload: dict[str, Any] = received._raw
    return payload


class MessageTable(_VirtualQoS):
    """kombu's table of unacknowledged messages, read and changed by delivery tag.

    Needed to give single messages back and to keep running ones over a restart of the consumer; kombu's public methods only
    add, acknowledge and restore all. Without it a restart would give back messages that are being run.
    """

    def held(self, delivery_tag: str) -> Any:
        """The message with this tag, acknowledged or not, or None."""
        return self._delivered.get(delivery_tag)

    def is_acknowledged(self, delivery_tag: str) -> bool:
        """Whether the message was acknowledged or rejected. kombu removes it from the table later."""
        return delivery_tag in self._dirty

    def unacknowledged(self) -> dict[str, Any]:
        """Messages by tag that were neither acknowledged nor rejected."""
        return {tag: held for tag, held in self._delivered.items() if tag not in self._dirty}

    def remove(self, delivery_tag: str) -> None:
        """Forget a message without acknowledging it."""
        self._delivered.pop(delivery_tag, None)

    def put_back(self, messages: dict[str, Any]) -> None:
        """Add messages by tag that were removed, without counting them as received again."""
        self._delivered.update(messages)


class ChannelHooks(_SQSChannel):
    """kombu's SQS channel, whose private methods call public ones.

    A subclass implements `queue_url`, `send`, `poll`, `poll_answered`, `poll_ended`, `payloads_of`, `receive_one` and
    `give_back`. If kombu no longer calls one of the private methods, its own version of that step runs: it lists all queues,
    ends the worker at an error of SQS, or deletes messages that it cannot read.
    """

    # -- called by kombu

    def _update_queue_cache(self, queue_name_prefix: str) -> None:
        """kombu lists queues at each connection; which needs its own permission and finds 1000 at most. Do nothing."""

    def _new_queue(self, queue: str, **_: Any) -> str:
        url: str = self.queue_url(queue)
        return url

    _resolve_queue_url = _new_queue

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.send(queue, message)

    def _schedule_queue(self, queue: str) -> None:
        self.poll(queue)

    def _on_messages_ready(self, queue: str, qname: str, messages: Any) -> int:
        """kombu passes the URL as `queue` and the name as `qname`."""
        delivered: int = self.poll_answered(queue, qname, messages)
        return delivered

    def _loop1(self, queue: str, messages_fetched: int | None = None) -> None:
        self.poll_ended(queue, messages_fetched)

    def _messages_to_python(self, messages: list[dict[str, Any]], queue: str) -> list[dict[str, Any]]:
        payloads: list[dict[str, Any]] = self.payloads_of(messages, queue)
        return payloads

    def _get(self, queue: str) -> dict[str, Any]:
        payload: dict[str, Any] = self.receive_one(queue)
        return payload

    def _restore(self, message: Any) -> None:
        """Called for each message when a channel closes. If it raised, kombu would write the messages to a file."""
        self.give_back(message)

    # -- called by the transport

    @property
    def known_urls(self) -> dict[str, str]:
        """URLs by queue name, shared by all channels of a connection. Without it each channel would look up each queue."""
        urls: dict[str, str] = self._queue_cache
        return urls

    def start_poll(self, queue: str) -> None:
        """Ask SQS for messages on the event loop; `poll_answered` and then `poll_ended` follow.

        Needed because kombu offers no public way to poll one queue. Without it the worker receives nothing.
        """
        self._get_bulk_async(queue, callback=promise(self._loop1, (queue,)))

    def send_by_kombu(self, queue: str, message: dict[str, Any]) -> None:
        """Send one message the way kombu does. Without it a producer sends nothing."""
        super()._put(queue, message)

    def receive_blocking(self, queue: str) -> list[dict[str, Any]]:
        """At most one message as SQS describes it, after one long poll. Without it `basic_get` does not work."""
        received: list[dict[str, Any]] = self._receive_message(queue=queue, max_number_of_messages=1).get(
            "Messages", []
        )
        return received

    def size_of(self, queue: str) -> int:
        """About how many messages wait in a queue. Without it `celery purge` does not work."""
        return int(self._size(queue))

    def consumes(self, queue: str) -> bool:
        """Whether this channel has a consumer of the queue. Without it polls of cancelled queues would go on."""
        return queue in self._active_queues

    def delivery_callback(self, queue: str) -> Callable[[dict[str, Any]], Any] | None:
        """What receives the payloads of a queue, or None if no consumer is left. Without it no message reaches Celery."""
        callback: Callable[[dict[str, Any]], Any] | None = self.connection._callbacks.get(queue)
        return callback

    def replace_delivery_callback(self, queue: str, callback: Callable[[dict[str, Any]], Any]) -> None:
        """Deliver the payloads of a queue to `callback`. Without it an error in handling a message ends the worker."""
        self.connection._callbacks[queue] = callback

    def unacknowledged(self) -> dict[str, Any]:
        """Messages by tag that are neither acknowledged nor rejected. Creates no table if the channel has none yet."""
        held: dict[str, Any] = {} if self._qos is None else self._qos.unacknowledged()
        return held


class PollHooks(_AsyncSQSConnection):
    """kombu's asynchronous SQS connection. A subclass implements `poll_response`.

    If kombu no longer calls `_on_list_ready`, its own version runs and raises for every status but 200, which ends the worker.
    """

    @property
    def http_client(self) -> Any:
        """The client that sends this connection's requests. Without it requests could not be given a time limit."""
        return self._httpclient

    def _on_list_ready(self, *context: Any) -> Any:
        return self.poll_response(context[-1])


class CurlTimerHooks(_CurlClient):
    """kombu's curl client. A subclass implements `set_timer`.

    If kombu no longer registers `_set_timeout` with curl, its own timers run: they count curl's milliseconds as seconds.
    """

    def _set_timeout(self, msecs: int) -> None:
        """Called by curl: process transfers in so many milliseconds; -1: remove the timer."""
        self.set_timer(msecs)

    def process_transfers(self) -> None:
        """Let curl continue the transfers that are due. Without it a transfer's time limit is never enforced."""
        self._timeout_check()


def loop_http_client(loop: Any) -> Any:
    """The HTTP client that kombu keeps for an event loop, or None. Without it each channel would open its own sockets."""
    return getattr(loop, "_current_http_client", None)


def set_loop_http_client(loop: Any, client: Any) -> None:
    """Make `client` the one that kombu uses for an event loop."""
    loop._current_http_client = client
