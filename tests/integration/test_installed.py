"""`pip install nanogrid` without extras, as production hosts and producers have it: every verb works, or says in one
sentence what it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from nanogrid.cli.application import app
from tests.support.installed import Installed, check
from tests.support.rig import CPP_IMAGE, PYTHON_IMAGE
from tests.support.services import Service, aws_client, free_port
from tests.support.worker import Grid, grid, variables

NEEDS_LOCAL = "pip install 'nanogrid[local]'"

# The words, the exit code, and what is said, where nothing of NanoGrid runs on this machine.
ALONE = (
    ("up --detach", 2, NEEDS_LOCAL),
    ("up", 2, NEEDS_LOCAL),
    ("down", 0, "no local stack runs"),
    ("status", 3, "stopped"),
    ("status --json", 3, '"stopped"'),
    ("env", 2, "no local stack was started"),
    ("invoke hello.py", 125, "no deployment was found"),
    ("tune hello.py", 2, "no deployment was found"),
    ("tune hello.py --chart chart.png", 2, "pip install 'nanogrid[charts]'"),
    ("result some-id", 2, "no deployment was found"),
    ("results", 2, "no deployment was found"),
    ("cancel some-id", 2, "no deployment was found"),
    ("pool", 3, "no worker runs"),
    ("tuner list", 2, "no deployment was found"),
    ("--version", 0, "nanogrid "),
)

# The same beside a worker that was installed in the same way.
DEPLOYED = (
    ("invoke hello.py --payload 7", 0, "hello 7"),
    ("results", 0, "hello"),
    ("result some-id", 2, "has no result"),
    ("cancel some-id", 0, "some-id"),
    ("pool", 0, "hello"),
    ("tuner list", 0, "hello"),
    ("tuner show hello", 0, "hello"),
    ("tuner set hello recommend", 0, ""),
    ("tuner reset hello", 0, ""),
    ("tune hello.py --memory 128,256 --runs 1", 0, "128"),
    ("status", 3, "stopped"),
    ("down", 0, "no local stack runs"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel without extras, in an environment of its own."""
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def deployment(
    installed: Installed, tmp_path_factory: pytest.TempPathFactory, aws_url: str, redis_server: Service
) -> Iterator[Grid]:
    """SQS, S3 and Redis, and a worker of the installed wheel."""
    url = f"redis://127.0.0.1:{redis_server.port}"
    aws_client("s3", aws_url).create_bucket(Bucket="nanogrid-functions")
    with (
        grid(
            tmp_path_factory.mktemp("grid"),
            aws_url=aws_url,
            redis_url=f"{url}/6",
            unique="installed",
            python_image=PYTHON_IMAGE,
            cpp_image=CPP_IMAGE,
            prewarmed={},
        ) as here,
        installed.running(
            "celery -A nanogrid worker -Q python,cpp -l info", variables=variables(here.settings), ready=" ready."
        ),
    ):
        yield here


def test_no_verb_is_left_out() -> None:
    """What is tried below is every verb that there is."""
    commands = typer.main.get_command(app)
    tried = {words.split()[0] for words, _, _ in (*ALONE, *DEPLOYED)} - {"--version"}
    assert tried | {"doctor"} == set(getattr(commands, "commands", {}))


def test_the_environment_holds_no_extra(installed: Installed) -> None:
    """Otherwise the other tests would show nothing; and what is imported is the wheel."""
    for extra in ("psutil", "moto", "flask", "matplotlib", "opentelemetry"):
        done = installed.run("python", "-c", f"import {extra}")
        assert f"No module named '{extra}'" in done.stderr
    where = installed.run("python", "-c", "import nanogrid; print(nanogrid.__file__)").stdout
    assert Path(where).is_relative_to(installed.bin.parent)


@pytest.mark.parametrize(("words", "code", "said"), ALONE, ids=[words for words, _, _ in ALONE])
def test_a_verb_where_nothing_runs(installed: Installed, words: str, code: int, said: str) -> None:
    """It does what can be done, or says in one sentence what is missing."""
    done = installed.run("nanogrid", *words.split())
    check(done, code, said)
    if code not in (0, 3):
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_doctor_where_nothing_answers(installed: Installed) -> None:
    """It says of each part that it is away, with a remedy, and calls nothing a bug."""
    away = f"http://127.0.0.1:{free_port()}"
    redis = f"redis://127.0.0.1:{free_port()}"
    places = {
        "AWS_ENDPOINT_URL": away,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NANOGRID_RESULT_URL": f"{redis}/0",
        "NANOGRID_MONITOR_URL": f"{redis}/1",
    }
    done = installed.run("nanogrid", "doctor", "--json", variables=places)
    check(done, 1, "broken")
    found = json.loads(done.stdout)
    assert [line for line in found if "could not be checked" in line["found"]] == []
    assert {line["name"] for line in found if line["health"] == "broken"} >= {"s3", "queue python", "workers"}


def test_doctor_of_a_deployment(installed: Installed, deployment: Grid) -> None:
    """All that a request needs is in order."""
    done = installed.run("nanogrid", "doctor", "--json", variables=variables(deployment.settings))
    check(done, 0, "workers")
    assert [line for line in json.loads(done.stdout) if line["health"] == "broken"] == []


@pytest.mark.parametrize(("words", "code", "said"), DEPLOYED, ids=[words for words, _, _ in DEPLOYED])
def test_a_verb_with_a_deployment(installed: Installed, deployment: Grid, words: str, code: int, said: str) -> None:
    """It works: one function, run by a worker of the same wheel, and all that is known of it."""
    check(installed.run("nanogrid", *words.split(), variables=variables(deployment.settings)), code, said)


@pytest.mark.parametrize("words", ["inspect ping", "inspect active_queues", "status", "control rate_limit no.task 1/s"])
def test_celery_asks_the_worker(installed: Installed, deployment: Grid, words: str) -> None:
    """`celery -A nanogrid inspect` and its like reach the worker."""
    done = installed.run("celery", "-A", "nanogrid", *words.split(), variables=variables(deployment.settings))
    check(done, 0, "celery@")


def test_flower_starts(installed: Installed, deployment: Grid) -> None:
    """`celery -A nanogrid flower` serves the dashboard."""
    command = f"celery -A nanogrid flower --port={free_port()}"
    with installed.running(command, variables=variables(deployment.settings), ready="Visit me at") as log:
        assert "Traceback" not in log.read_text()
