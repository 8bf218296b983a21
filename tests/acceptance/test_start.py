"""What a worker says at start about a deployment that is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogrid.settings import Settings
from tests.support.rig import PYTHON_IMAGE
from tests.support.services import aws_client, wait_until
from tests.support.worker import Grid

POOL_OF_ITS_OWN = "celery.concurrency.base:BasePool"


@pytest.fixture
def grid(tmp_path: Path, aws_url: str, redis_url: str, unique: str) -> Iterator[Grid]:
    """A deployment that owns its queues: the worker must not create any."""
    here = Grid(
        Settings(
            sqs_endpoint_url=aws_url,
            s3_endpoint_url=aws_url,
            result_url=redis_url,
            monitor_url=redis_url.replace("/0", "/1"),
            data_dir=tmp_path / "data",
            queue_prefix=f"{unique}-",
            python_image=PYTHON_IMAGE,
            cpp_image="nanogrid/no-such-image:1",
            pull_images=False,
            receive_wait_s=1,
        ),
        tmp_path,
    )
    yield here
    here.close()


def test_missing_queues(grid: Grid, aws_url: str, unique: str) -> None:
    """A worker without its queues ends with one line for each, and has created none."""
    ended = grid.celery("worker", "-Q", "python,cpp", "-l", "info")
    assert ended.returncode == 1
    for name in ("python", "cpp"):
        (line,) = [line for line in ended.stderr.splitlines() if f"queue {name}: " in line]
        assert f"'{unique}-{name}' does not exist in SQS" in line
        assert "NANOGRID_QUEUE_URLS" in line
    assert "Traceback" not in ended.stderr
    assert "QueueUrls" not in aws_client("sqs", aws_url).list_queues(QueueNamePrefix=unique)


def test_queues_that_would_lose_or_repeat_work(grid: Grid, aws_url: str, unique: str) -> None:
    """A queue without a redrive policy, one with too short a visibility timeout and a missing image: a line for each."""
    sqs = aws_client("sqs", aws_url)
    sqs.create_queue(QueueName=f"{unique}-python", Attributes={"VisibilityTimeout": "5"})
    sqs.create_queue(QueueName=f"{unique}-cpp", Attributes={"VisibilityTimeout": "60"})
    with grid.worker(app="nanogrid") as worker:
        wait_until(lambda: worker.said("runtime cpp: "), "the images were looked at")
        findings = [line.partition("] ")[2] for line in worker.log.read_text().splitlines() if "WARNING" in line]
    beginnings = (
        "queue python: has no redrive policy",
        "queue python: its visibility timeout is 5 s, shorter than",
        "queue cpp: has no redrive policy",
        "runtime cpp: image nanogrid/no-such-image:1 is not on this host",
    )
    for beginning in beginnings:
        assert [line for line in findings if line.startswith(beginning)], findings


def test_a_data_folder_that_cannot_be_used(grid: Grid, tmp_path: Path) -> None:
    """A worker that cannot write its data folder ends with one sentence that names folder and setting."""
    (tmp_path / "data").write_text("a file in the way")
    ended = grid.celery("worker", "-Q", "python,cpp", "-l", "info")
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if "the worker cannot start: " in line]
    assert "NANOGRID_DATA_DIR" in line
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "env", "named"),
    [
        (["-P", "solo"], {}, "solo"),
        (["--pool", "threads"], {}, "threads"),
        (["-P", "custom"], {"CELERY_CUSTOM_WORKER_POOL": POOL_OF_ITS_OWN}, POOL_OF_ITS_OWN),
    ],
)
def test_every_pool_but_prefork_is_refused(grid: Grid, options: list[str], env: dict[str, str], named: str) -> None:
    """One sentence before anything is started: no container owner, no HTTP port, no queue that is looked at."""
    ended = grid.celery("worker", "-Q", "python", "-l", "info", *options, env=env)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("[")]
    assert f"the worker cannot start: its pool is {named}, which cannot end a running function" in line
    assert "Traceback" not in ended.stderr
    assert not (grid.folder / "data" / "owners").exists()
