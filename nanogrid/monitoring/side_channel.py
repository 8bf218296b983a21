"""A worker's events and remote control over Redis, while its tasks come from SQS.

The rule: Redis cannot delay a task. Two threads do all communication with Redis; the worker's event loop only puts messages in a
queue in memory and takes commands from another. If Redis is slow, hangs, restarts or is missing, the worker's events and
commands are delayed or lost, but not its polls, acknowledgements and heartbeats.

    event loop ── publish ──▶ outbox (bounded) ── sender thread ──▶ Redis
    event loop ◀── call_soon ── inbox ◀────────── receiver thread ◀── Redis
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from celery.events.dispatcher import EventDispatcher
from celery.utils.log import get_logger
from celery.utils.serialization import jsonify
from celery.worker import pidbox
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.control import Control as CeleryControl
from kombu import Connection, Exchange, Producer
from kombu.asynchronous import set_event_loop
from kombu.exceptions import EncodeError, InconsistencyError
from kombu.pidbox import Mailbox, Node
from kombu.utils.encoding import safe_repr

from nanogrid.monitoring.celery_private import DispatcherHooks
from nanogrid.monitoring.connections import monitor_connection, settings_of
from nanogrid.settings import Settings
from nanogrid.sqs.transport.options import QUEUES_MAY_BE_MISSING

logger = get_logger(__name__)

OUTBOX_LIMIT = 10_000
"""Messages kept while Redis does not answer, about 5 MB. Beyond it, the oldest are dropped."""

GATHER_S = 0.1
"""How long events of tasks wait for others, to be sent with them."""

MOST_TOGETHER = 100
"""Most lists of events that are sent as one message."""

FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 2.0
FAREWELL_S = 2.0
"""How long a worker that ends waits until its last events (`worker-offline`) are sent."""

HEARTBEAT = "worker-heartbeat"


class OutgoingMessage(NamedTuple):
    """A message for Redis: an event, a list of events, or the reply to a command."""

    body: Any
    exchange: Exchange
    routing_key: str
    headers: dict[str, Any]

    @property
    def is_list(self) -> bool:
        """Whether the body is a list of events, which others may be added to."""
        return isinstance(self.body, list)

    def goes_with(self, other: OutgoingMessage) -> bool:
        """Whether both are lists of events of the same kind."""
        return self.is_list and other.is_list and self[1:] == other[1:]


class Outbox:
    """A bounded queue between the event loop and the sender. Thread safe; `put` never waits.

    Lists of events wait `gather_s` for others, so that many tasks cost few messages. Everything else goes at once, and takes
    along what waits before it.
    """

    def __init__(self, limit: int = OUTBOX_LIMIT, gather_s: float = GATHER_S) -> None:
        self._waiting: deque[OutgoingMessage] = deque()
        self._changed = threading.Condition()
        self._limit, self._gather_s = limit, gather_s
        self._closed = False
        self._urgent = 0
        self.dropped = 0

    def put(self, message: OutgoingMessage) -> None:
        """Add a message. Drops the oldest one if there are too many."""
        with self._changed:
            if len(self._waiting) >= self._limit:
                self._remove_first()
                self.dropped += 1
            self._waiting.append(message)
            self._urgent += not message.is_list
            if len(self._waiting) == 1 or not message.is_list:  # else the sender knows that there is something to send
                self._changed.notify()

    def next_batch(self) -> list[OutgoingMessage]:
        """Wait for a message and return it with those after it that go with it, without removing them.

        Empty: the outbox is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(lambda: self._urgent or self._closed, self._gather_s)
            return self._first_batch()

    def _first_batch(self) -> list[OutgoingMessage]:
        batch = list(islice(self._waiting, 1))
        for message in islice(self._waiting, 1, MOST_TOGETHER):
            if not batch[0].goes_with(message):
                break
            batch.append(message)
        return batch

    def sent(self, batch: list[OutgoingMessage]) -> None:
        """Remove the messages that `next_batch` returned, except those that were dropped in the meantime."""
        with self._changed:
            for message in batch:
                if self._waiting and self._waiting[0] is message:
                    self._remove_first()

    def _remove_first(self) -> None:
        self._urgent -= not self._waiting.popleft().is_list

    def close(self) -> None:
        """Let `next_batch` return nothing once all messages are sent."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class SideChannel:
    """Both directions of one worker's communication with Redis.

    Threads start at their first use and survive restarts of the consumer; `close` ends them.
    """

    def __init__(self, settings: Settings, mailbox: Mailbox, hostname: str) -> None:
        self._settings = settings
        self._mailbox = mailbox
        self._hostname = hostname
        self._ending = threading.Event()
        self._outbox = Outbox()
        self._sender: threading.Thread | None = None
        self._receiver: threading.Thread | None = None
        self._sending = threading.Event()

    @property
    def sending(self) -> bool:
        """Whether the sender has a working connection now."""
        return self._sending.is_set()

    def connection(self) -> Connection:
        """A placeholder for this channel, for code of Celery's that needs a connection."""
        return PlaceholderConnection(self._settings.monitor_url, side_channel=self)

    def publish(self, message: OutgoingMessage) -> None:
        """Pass a message to the sender. Never waits and never fails."""
        self._outbox.put(message)
        if self._sender is None:
            self._sender = self._start("events", self._send)

    def listen(self, deliver: Callable[[Any, Any], None]) -> None:
        """Call `deliver` with the body and message of each command, in the receiver's thread. A second call is ignored."""
        if self._receiver is None:
            self._receiver = self._start("remote control", lambda connection: self._receive(connection, deliver))

    def close(self) -> None:
        """Send the waiting messages if Redis answers, for `FAREWELL_S` at most, and end."""
        self._ending.set()
        self._outbox.close()
        if self._sender is not None and self._sending.is_set():
            self._sender.join(FAREWELL_S)

    def _start(self, purpose: str, serve: Callable[[Connection], None]) -> threading.Thread:
        thread = threading.Thread(
            target=self._keep_serving, args=(purpose, serve), name=f"monitoring {purpose}", daemon=True
        )
        thread.start()
        return thread

    def _keep_serving(self, purpose: str, serve: Callable[[Connection], None]) -> None:
        """Call `serve` with one connection after the other until the worker ends. Logs one line per outage and per recovery."""
        delay_s, lost = FIRST_RETRY_S, False
        while True:
            connection = monitor_connection(self._settings, max_retries=0)
            try:
                with connection:
                    connection.connect()
                    if lost:
                        logger.info("monitoring: %s reconnected to %s", purpose, connection.as_uri())
                    delay_s, lost = FIRST_RETRY_S, False
                    serve(connection)
                    return
            except Exception as problem:  # if the thread ended, the dashboard would get nothing more
                if self._ending.is_set():
                    return
                if not lost:
                    logger.warning(
                        "monitoring: %s cannot use Redis at %s (%s); tasks continue, retrying",
                        purpose,
                        connection.as_uri(),
                        problem,
                        exc_info=not isinstance(problem, _expected(connection)),
                    )
                lost = True
            self._ending.wait(delay_s)
            delay_s = min(2 * delay_s, LONGEST_RETRY_S)

    def _send(self, connection: Connection) -> None:
        producer = Producer(connection.default_channel, auto_declare=False)
        with self._marked_sending():
            while batch := self._outbox.next_batch():
                self._publish(producer, _joined(batch))
                self._outbox.sent(batch)
                if self._outbox.dropped:
                    logger.warning(
                        "monitoring: %d events were dropped while Redis did not answer", self._outbox.dropped
                    )
                    self._outbox.dropped = 0

    @contextlib.contextmanager
    def _marked_sending(self) -> Iterator[None]:
        self._sending.set()
        try:
            yield
        finally:
            self._sending.clear()

    def _publish(self, producer: Producer, message: OutgoingMessage) -> None:
        try:
            producer.publish(
                message.body,
                exchange=message.exchange.name,
                declare=[message.exchange],
                routing_key=message.routing_key,
                headers=message.headers,
                serializer="json",
                delivery_mode=1,
                retry=False,
            )
        except InconsistencyError:
            logger.debug("monitoring: no client waits for the reply to %s any more", message.routing_key)
        except EncodeError:
            logger.exception("monitoring: a message for %s cannot be written as JSON", message.exchange.name)

    def _receive(self, connection: Connection, deliver: Callable[[Any, Any], None]) -> None:
        node = self._mailbox(connection).Node(self._hostname)
        consumer = node.Consumer(channel=connection.default_channel, callbacks=[deliver])
        consumer.consume()
        while not self._ending.is_set():
            with contextlib.suppress(socket.timeout):
                connection.drain_events(timeout=1)


def _joined(batch: list[OutgoingMessage]) -> OutgoingMessage:
    """One message with the events of all."""
    first = batch[0]
    return first if len(batch) == 1 else first._replace(body=[event for each in batch for event in each.body])


def _expected(connection: Connection) -> tuple[type[BaseException], ...]:
    return (*connection.connection_errors, *connection.channel_errors, OSError)


class PlaceholderConnection(Connection):
    """Gives Celery the URL of the monitoring Redis, and is never opened."""

    def __init__(self, url: str, *, side_channel: SideChannel) -> None:
        super().__init__(url)
        self.side_channel = side_channel

    def get_heartbeat_interval(self) -> int:
        """0: no heartbeat. kombu would open the connection to find out, in the event loop."""
        return 0


class Dispatcher(DispatcherHooks, EventDispatcher):
    """Celery's event dispatcher with the side channel instead of a producer.

    Without a side channel (in a child, or with another producer) it works like Celery's.
    """

    def __init__(self, connection: Any = None, *args: Any, **kwargs: Any) -> None:
        self._side_channel: SideChannel | None = getattr(connection, "side_channel", None)
        super().__init__(connection, *args, **kwargs)

    def send_event(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        """Queue an event for the sender. A heartbeat that Redis cannot receive now is dropped: it would arrive late."""
        if self._side_channel is None or producer is not self.producer:
            super().send_event(event, producer, routing_key, **options)
        elif self._side_channel.sending or not _is_heartbeat(event):
            self._side_channel.publish(OutgoingMessage(event, self.exchange, routing_key, self.headers))


def _is_heartbeat(event: Any) -> bool:
    return isinstance(event, dict) and event.get("type") == HEARTBEAT


class SideChannelNode(Node):
    """A pidbox node that sends its replies through the side channel."""

    def __init__(self, side_channel: SideChannel, node: Node) -> None:
        handlers = {**node.handlers, "add_consumer": add_consumer}
        super().__init__(node.hostname, state=node.state, handlers=handlers, mailbox=node.mailbox)
        self._side_channel = side_channel

    def reply(self, data: Any, exchange: str, routing_key: str, ticket: str, **_: Any) -> None:
        """Put a reply in the outbox."""
        headers = {"ticket": ticket, "clock": self.mailbox.clock.forward()}
        kind = Exchange(exchange, type="direct", delivery_mode="transient", durable=False)
        body = jsonify(data, unknown_type_filter=safe_repr)  # without a reply the worker would look dead
        self._side_channel.publish(OutgoingMessage(body, kind, routing_key, headers))


def add_consumer(
    state: Any,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **options: Any,
) -> dict[str, str]:
    """Consume another queue, and answer whether that succeeded.

    Celery answers first and tries afterwards, when an error ends the worker. A queue that cannot be consumed is removed again, so
    that the consumer's next start does not try it.
    """
    consumer = state.consumer
    known = queue in consumer.app.amqp.queues
    try:
        consumer.add_task_queue(queue, exchange, exchange_type or "direct", routing_key, **options)
    except Exception as error:  # noqa: BLE001  # whatever it is, only this command fails
        logger.warning("add_consumer %s failed: %s", queue, error)
        consumer.cancel_task_queue(queue)
        if not known:
            consumer.app.amqp.queues.pop(queue, None)
        return {"error": str(error)}
    return {"ok": f"add consumer {queue}"}


class Pidbox(pidbox.Pidbox):
    """Commands arrive in the receiver's thread and run, in order, in the worker's event loop."""

    def __init__(self, c: Consumer) -> None:
        super().__init__(c)
        self.node: Node = SideChannelNode(c.side_channel, self.node)
        self._inbox: deque[tuple[Any, Any]] = deque()

    def start(self, c: Consumer) -> None:
        c.side_channel.listen(self._deliver)

    def stop(self, c: Consumer) -> None:
        """Do nothing: a restart of the consumer reconnects to SQS and does not affect remote control."""

    shutdown = stop

    def _deliver(self, body: Any, message: Any) -> None:
        self._inbox.append((body, message))
        self.c.call_soon(self._run_commands)  # keeps no order, hence the inbox

    def _run_commands(self) -> None:
        while self._inbox:
            self.on_message(*self._inbox.popleft())


class ControlStep(CeleryControl):
    """Celery's remote control step with NanoGrid's pidbox."""

    name = "celery.worker.consumer.control.Control"  # replaces Celery's own step

    def __init__(self, c: Consumer, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self.box = Pidbox(c)
        self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown

    def include_if(self, c: Consumer) -> bool:
        """Whether remote control is on. Celery would turn it off because SQS has no fanout; Redis has it."""
        return bool(c.app.conf.worker_enable_remote_control)


class Consumer(CeleryConsumer):
    """The consumer of a worker with SQS as its broker and Redis for events and remote control."""

    class Blueprint(CeleryConsumer.Blueprint):
        default_steps: ClassVar[list[str]] = [
            "nanogrid.monitoring.side_channel:ControlStep" if step.endswith(":Control") else step
            for step in CeleryConsumer.Blueprint.default_steps
        ]

    def __init__(self, *args: Any, app: Any, hostname: str, **kwargs: Any) -> None:
        self.side_channel = SideChannel(settings_of(app), app.control.mailbox, hostname)
        app.events.dispatcher_cls = Dispatcher
        vars(app.events).pop("Dispatcher", None)  # Celery caches the class
        super().__init__(*args, app=app, hostname=hostname, **kwargs)

    def connect(self) -> Any:
        """Connect to SQS. A restart after a lost connection has unset kombu's event loop, without which it would not poll.

        A missing queue ends a worker that starts, while an operator is watching, but not one that runs.
        """
        if self.hub:
            set_event_loop(self.hub)
        connection = super().connect()
        connection.transport_options[QUEUES_MAY_BE_MISSING] = self.restart_count > 0
        return connection

    def connection_for_write(self, url: Any = None, heartbeat: Any = None) -> Connection:
        """The connection for events. Only Celery's step for events calls this."""
        return self.side_channel.connection()

    def shutdown(self) -> None:
        """End the consumer, then the side channel, so that the last events are still sent."""
        super().shutdown()
        self.side_channel.close()
