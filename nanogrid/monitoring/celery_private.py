"""The private parts of Celery that NanoGrid builds on, behind names of NanoGrid's own.

The rule: `celery_parts` lists every private name of Celery that NanoGrid uses, and no module but this one uses them on an
object of Celery's. `nanogrid.results` uses some by inheritance. `nanogrid.worker.private_parts_step` checks the list at a
worker's start. Importing this module loads nothing of Celery's: a producer needs only a few of these parts.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from kombu import pools

from nanogrid.connections.private_parts import PrivateParts

if TYPE_CHECKING:
    from celery import Celery


def celery_parts() -> PrivateParts:
    """All private names in use. Imports the classes that have them."""
    from celery.app.amqp import AMQP
    from celery.app.base import Celery
    from celery.backends.redis import RedisBackend, ResultConsumer
    from celery.concurrency.asynpool import AsynPool
    from celery.concurrency.base import BasePool
    from celery.events.dispatcher import EventDispatcher
    from celery.worker import WorkController

    return PrivateParts(
        "celery",
        "5.7",
        "worker",
        (
            (Celery, ("_pool",)),
            (AMQP, ("_producer_pool",)),
            (BasePool, ("_pool",)),
            (AsynPool, ("_cache", "_payload", "_pool")),
            (WorkController, ("_process_task",)),
            (EventDispatcher, ("_publish",)),
            (
                RedisBackend,
                (
                    "_add_driver_info",
                    "_chord_claim_extend_script",
                    "_chord_cleanup_script",
                    "_chord_part_return_script",
                    "_create_client",
                    "_ensure_retryable",
                    "_get_result_meta",
                    "_set",
                    "_store_result",
                ),
            ),
            (
                ResultConsumer,
                (
                    "_connection_errors",
                    "_consume_from",
                    "_decode_result",
                    "_get_key_for_task",
                    "_locked",
                    "_pending_results",
                    "_pending_unsubscribe",
                    "_pubsub",
                    "_pubsub_lock",
                ),
            ),
        ),
    )


def forget_broker_connections(app: Celery) -> None:
    """Make an app open new connections to its broker, and leave the present ones to the process that this one was forked from.

    Needed because Celery closes no pool of connections after a plain fork. Without it parent and child would share sockets.
    """
    owner: Any = app
    amqp = vars(owner).get("amqp")
    of_producers = amqp and amqp._producer_pool
    pool: Any = (of_producers and of_producers.connections) or vars(owner).get("_pool")
    if pool is not None:
        for group in (pools.producers, pools.connections):
            with contextlib.suppress(KeyError):
                del group[pool.connection]
    if amqp is not None:
        amqp._producer_pool = None
    owner._pool = None


def jobs_of(pool: Any) -> list[Any]:
    """The requests that a worker's process pool has accepted and not finished.

    Needed to find slots that nothing uses, and a request that failed on its way to a child. Without it a stalled worker
    does not recover.
    """
    return list(pool._pool._cache.values())


def children_of(pool: Any) -> list[Any]:
    """The processes of a worker's pool. Without it children that take no requests could not be replaced."""
    return list(pool._pool._pool)


def is_written(job: Any) -> bool:
    """Whether the pool has pickled a job for a child. Without it a request that fails before that would never leave the pool."""
    return hasattr(job, "_payload")


class WorkerHooks:
    """Goes before Celery's worker class. A subclass implements `hand_over`.

    If Celery no longer calls `_process_task`, its own version runs: an error in it loses the slot that the request had.
    """

    def _process_task(self, request: Any) -> None:
        self.hand_over(request)

    def hand_over(self, request: Any) -> None:
        """Pass a request that has a slot to a child, as Celery does."""
        parent: Any = super()
        parent._process_task(request)


class DispatcherHooks:
    """Goes before Celery's event dispatcher. A subclass implements `send_event`.

    If Celery no longer calls `_publish`, its own version runs: it would send events to SQS, in the event loop.
    """

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        self.send_event(event, producer, routing_key, **options)

    def send_event(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        """Send an event, or a list of them, by a producer, as Celery does."""
        parent: Any = super()
        parent._publish(event, producer, routing_key, **options)
