"""Remote control commands that fail: the answer names the problem, and the worker continues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogrid.connections.sqs import sqs_client
from nanogrid.sqs.queues import sqs_name
from tests.support.probe import QUICK
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker, grid


@pytest.fixture
def here(tmp_path: Path, aws_url: str, redis_url: str, unique: str) -> Iterator[Grid]:
    """A NanoGrid whose queues belong to the deployment: workers create none."""
    with grid(
        tmp_path, aws_url=aws_url, redis_url=redis_url, monitor_url=redis_url, unique=unique, receive_wait_s=1
    ) as made:
        made.settings = made.settings.model_copy(update={"create_queues": False})
        for name in ("python", "cpp", "later"):
            create(made, name)
        yield made


@pytest.fixture
def worker(here: Grid) -> Iterator[Worker]:
    """A worker of the queue python."""
    with here.worker(queues="python") as running:
        yield running


def create(here: Grid, name: str) -> None:
    """Create a queue, as the deployment does."""
    sqs_client(here.settings).create_queue(QueueName=sqs_name(name, here.settings))


def delete(here: Grid, name: str) -> None:
    """Delete a queue while workers consume it."""
    client = sqs_client(here.settings)
    client.delete_queue(QueueUrl=client.get_queue_url(QueueName=sqs_name(name, here.settings))["QueueUrl"])


def add(here: Grid, queue: str) -> str:
    """`celery -A nanogrid control add_consumer`: its whole output."""
    done = here.celery("control", "add_consumer", queue)
    return done.stdout + done.stderr


def consumed(here: Grid) -> set[str]:
    """The queues that the worker reports to consume."""
    (queues,) = here.app.control.inspect().active_queues().values()
    return {queue["name"] for queue in queues}


def runs(here: Grid, queue: str) -> bool:
    """Whether the worker runs a task from a queue."""
    return bool(here.app.send_task(QUICK, args=[7], queue=queue).get(timeout=20) == 7)


@pytest.mark.parametrize("queue", ["pyhton", "cpp"])
def test_a_queue_that_is_not_there_is_the_commands_error(here: Grid, worker: Worker, queue: str) -> None:
    """The caller gets the error, the queue is not kept, and the worker continues. Once the queue exists, it is consumed."""
    name = sqs_name(queue, here.settings)
    if queue == "cpp":
        delete(here, queue)
    said = add(here, queue)
    assert worker.alive()
    assert f"queue {queue}: {name!r} does not exist in SQS" in said, said
    assert "Traceback" not in said + worker.log.read_text()
    assert consumed(here) == {"python"}
    assert runs(here, "python")
    create(here, queue)
    assert "OK" in add(here, queue)
    assert consumed(here) == {"python", queue}
    assert runs(here, queue)


def test_a_command_nobody_waits_for_is_as_harmless(here: Grid, worker: Worker) -> None:
    """The log has the reason."""
    here.app.control.add_consumer("pyhton")
    wait_until(lambda: worker.said("does not exist in SQS"), "the log says so")
    assert runs(here, "python")
    assert consumed(here) == {"python"}


def test_a_queue_that_is_there_is_taken_and_given_up(here: Grid, worker: Worker) -> None:
    """`add_consumer` and `cancel_consumer` work as documented."""
    assert "OK" in add(here, "later")
    assert runs(here, "later")
    here.app.control.cancel_consumer("later", reply=True)
    wait_until(lambda: consumed(here) == {"python"}, "the queue is given up")
    assert runs(here, "python")


def test_a_queue_that_went_away_does_not_end_the_worker_at_its_consumers_next_start(here: Grid, worker: Worker) -> None:
    """The worker continues with the other queues, logs the missing one, and consumes it once it exists again."""
    assert "OK" in add(here, "later")
    delete(here, "later")
    here.app.control.broadcast("lose_connection")
    wait_until(lambda: worker.log.read_text().count("Connected to sqs://") == 2, "the consumer was started anew")
    assert runs(here, "python")
    assert worker.said(f"queue later: {sqs_name('later', here.settings)!r} does not exist in SQS")
    create(here, "later")
    assert runs(here, "later")
