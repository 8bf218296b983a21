"""The local stack as real processes: it comes up, stays, comes back after hard kills, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import psutil
import pytest
import redis

from nanogrid.local.processes import MARK, ProcessRecord, birth_of, of_stack
from tests.support.command import CommandLine
from tests.support.services import wait_until

PARTS = ["sqs", "redis", "flower", "worker"]

SLEEPER = "import time\nprint('started', flush=True)\ntime.sleep(120)\n"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A stack folder of this module. Whatever a test leaves running is ended at the end."""
    line = CommandLine(tmp_path_factory.mktemp("stack"))
    yield line
    line.ok("down", "--timeout-s", "0")
    assert of_stack(line.folder) == []


@pytest.fixture
def pids(command: CommandLine) -> dict[str, int]:
    """Process ids of a stack that is up."""
    return command.up()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with the stack."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def kill(pid: int) -> None:
    """Kill without a chance to tidy up, and wait for the end."""
    birth = birth_of(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: birth_of(pid) != birth, f"process {pid} is gone")


def redis_of(command: CommandLine) -> redis.Redis:
    return redis.Redis(port=command.state["ports"]["redis"])


def test_status_shows_every_part_running(command: CommandLine, pids: dict[str, int]) -> None:
    """After `up`, `status --json` names all parts with their processes, and exits with 0."""
    status = json.loads(command.ok("status", "--json"))
    assert [(part["name"], part["condition"], part["pid"]) for part in status["parts"]] == [
        (name, "running", pids[name]) for name in PARTS
    ]
    assert status["folder"] == str(command.folder)


def test_second_up_keeps_what_runs(command: CommandLine, pids: dict[str, int]) -> None:
    """`up` on a running stack changes no process."""
    assert command.up() == pids


def test_environment_serves_a_shell_and_boto3(command: CommandLine, pids: dict[str, int]) -> None:
    """A shell that evaluates `nanogrid env` reaches the stack's SQS, even where an AWS profile was set before."""
    python = "import boto3; print(sorted(u.rsplit('/')[-1] for u in boto3.client('sqs').list_queues()['QueueUrls']))"
    script = (
        f'eval "$({sys.executable} -c "from nanogrid.cli import main; main()" env)" && {sys.executable} -c "{python}"'
    )
    environment = {
        **command.environment,
        "AWS_PROFILE": "no-such-profile",
        "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:9",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['cpp', 'cpp-dlq', 'python', 'python-dlq']\n", "")


def test_killed_redis_comes_back_with_its_data(command: CommandLine, pids: dict[str, int]) -> None:
    """`status` tells which part died; `up` starts that one only, and what it held is still there."""
    with redis_of(command) as client:
        client.set("kept", "yes")
    kill(pids["redis"])
    done = command.run("status", "--json")
    assert {part["name"]: part["condition"] for part in json.loads(done.stdout)["parts"]}["redis"] == "died"
    assert done.returncode == 1
    after = command.up()
    assert {name for name in PARTS if after[name] != pids[name]} == {"redis"}
    with redis_of(command) as client:
        assert client.get("kept") == b"yes"


def test_killed_sqs_takes_the_worker_with_it(command: CommandLine, pids: dict[str, int]) -> None:
    """The queues were in its memory: the worker starts anew and makes them again."""
    kill(pids["sqs"])
    after = command.up()
    assert {name for name in PARTS if after[name] != pids[name]} == {"sqs", "worker"}
    doctor = json.loads(command.ok("doctor", "--json"))
    assert {line["name"]: line["health"] for line in doctor}["queue python"] == "ok"


def test_up_goes_on_where_a_killed_up_left_off(command: CommandLine, pids: dict[str, int]) -> None:
    """A worker older than the SQS server is started anew, although both run: an `up` was killed between the two."""
    state = command.state
    sqs, worker = state["processes"]["sqs"], state["processes"]["worker"]
    assert ProcessRecord.model_validate(sqs).is_older_than(ProcessRecord.model_validate(worker))
    kill(pids["sqs"])
    broken_up = command.start("up", "--detach")
    wait_until(lambda: command.pids.get("sqs") not in (None, pids["sqs"]), "the new SQS server is written down")
    broken_up.kill()
    broken_up.communicate()
    assert command.up()["worker"] != pids["worker"]


def test_reused_process_id_is_no_obstacle(
    command: CommandLine, pids: dict[str, int], stranger: subprocess.Popen[bytes]
) -> None:
    """A record whose process id is a stranger's by now: the part is started, and the stranger is left alone."""
    kill(pids["redis"])
    state = command.state
    state["processes"]["redis"]["pid"] = stranger.pid
    (command.folder / "stack.json").write_text(json.dumps(state))
    assert command.up()["redis"] not in (stranger.pid, pids["redis"])
    command.ok("down", "--timeout-s", "0")
    assert stranger.poll() is None


def test_two_ups_at_once_start_one_stack(command: CommandLine) -> None:
    """The second waits for the first and keeps what it started."""
    command.ok("down", "--timeout-s", "0")
    both = [command.start("up", "--detach", *command.port_options) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert any("waiting for it" in output for output in outputs)
    leaders = {record.pid for record in of_stack(command.folder) if os.getsid(record.pid) == record.pid}
    assert leaders == set(command.pids.values())


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"processes": {"redis": {"pid": "x"}}}'])
def test_unusable_state_file_is_no_obstacle(command: CommandLine, damage: str) -> None:
    """`down` finds the stack's processes by their mark when the state file says nothing, or nonsense."""
    with subprocess.Popen(["sleep", "300"], env={MARK: str(command.folder)}, start_new_session=True) as process:
        command.ok("down", "--timeout-s", "0")
        assert process.wait(5) == -signal.SIGTERM
        with subprocess.Popen(["sleep", "300"], env={MARK: str(command.folder)}, start_new_session=True) as second:
            (command.folder / "stack.json").write_text(damage)
            command.ok("down", "--timeout-s", "0")
            assert second.wait(5) == -signal.SIGTERM


def test_down_after_a_killed_worker_leaves_no_container(command: CommandLine, tmp_path: Path) -> None:
    """The worker is killed hard in the middle of a run: `down` removes its container and every process."""
    pids = command.up()
    (tmp_path / "main.py").write_text(SLEEPER)
    command.ok("invoke", str(tmp_path), "--timeout-ms", "120000", "--no-wait")
    label = f"nanogrid.data={(command.folder / 'worker' / 'id').read_text()}"
    with closing(docker.from_env()) as engine:
        wait_until(lambda: engine.api.containers(filters={"label": label}), "the function's container runs")
        kill(pids["worker"])
        command.ok("down")
        assert engine.api.containers(all=True, filters={"label": label}) == []
    assert of_stack(command.folder) == []
    assert command.run("status").returncode == 3


def test_down_gives_a_running_function_its_time(command: CommandLine, tmp_path: Path) -> None:
    """Warm shutdown: a run that ends within the time given has its result in Redis, which is kept."""
    command.up()
    (tmp_path / "main.py").write_text("import time\ntime.sleep(3)\nprint('done')\n")
    request_id = command.ok("invoke", str(tmp_path), "--no-wait").strip()
    with redis_of(command) as client:
        key = f"nanogrid:celery-task-meta-{request_id}"
        wait_until(lambda: b"STARTED" in (client.get(key) or b""), "the function runs")
    command.ok("down", "--timeout-s", "60")
    command.ok("up", "--detach", *command.port_options)
    assert command.ok("result", request_id) == "done\n"


def test_down_without_a_stack_is_fine(tmp_path: Path) -> None:
    """There is nothing to end, and no folder is made for it."""
    command = CommandLine(tmp_path / "never")
    command.ok("down")
    assert command.run("status").returncode == 3
    assert not command.folder.exists()


def test_deleted_folder_is_no_obstacle(tmp_path: Path) -> None:
    """Somebody removed the folder under a running stack: `down` ends its processes all the same."""
    command = CommandLine(tmp_path / "stack")
    with subprocess.Popen(["sleep", "300"], env={MARK: str(command.folder)}, start_new_session=True) as process:
        wait_until(lambda: of_stack(command.folder), "the process carries the mark")
        command.ok("down")
        assert process.wait(5) == -signal.SIGTERM


def test_taken_port_is_named_with_its_option(tmp_path: Path) -> None:
    """Somebody else's server is left alone; the message says who it is and which option to change."""
    command = CommandLine(tmp_path / "stack")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", command.ports["redis"]))
        taken.listen()
        done = command.run("up", "--detach", *command.port_options)
        command.ok("down")
    message = done.stderr.decode()
    assert done.returncode == 2
    assert f"port {command.ports['redis']} for redis is taken by" in message
    assert f"(process {os.getpid()}): choose another with --redis-port" in message


def test_other_ports_of_a_running_stack_are_refused(command: CommandLine, pids: dict[str, int]) -> None:
    """Ports change only with `down` in between, so that no producer loses its stack."""
    done = command.run("up", "--detach", "--redis-port", "1")
    assert done.returncode == 2
    assert b"runs on other ports" in done.stderr
    assert command.pids == pids


def test_part_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The last words of its log are in the message, and what runs by then can be ended."""
    command = CommandLine(tmp_path / "stack")
    (command.folder / "redis" / "appendonlydir").mkdir(parents=True)
    (command.folder / "redis" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    done = command.run("up", "--detach", *command.port_options)
    assert done.returncode == 2
    assert b"redis ended during its start" in done.stderr
    command.ok("down")
    assert of_stack(command.folder) == []


def test_foreground_shows_logs_and_ends_all_on_interrupt(tmp_path: Path) -> None:
    """`up` without --detach prefixes each part's lines; Ctrl-C ends everything, the worker first."""
    command = CommandLine(tmp_path / "stack")
    process = command.start("up", *command.port_options)
    assert process.stdout is not None
    lines = [process.stdout.readline().decode()]
    while not (lines[-1].startswith("worker") and " ready." in lines[-1]):
        assert lines[-1], lines
        lines.append(process.stdout.readline().decode())
    assert any(line.startswith("redis  │") for line in lines)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0
    ended = [line.split()[1] for line in rest.splitlines() if line.startswith("✓") and "ended in" in line]
    assert ended == ["worker", "flower", "redis", "sqs"]
    assert of_stack(command.folder) == []


def test_nothing_of_a_real_deployment_reaches_the_stack(command: CommandLine) -> None:
    """Credentials, endpoints and queue addresses of the person's environment stay out of the stack's processes."""
    command.ok("down", "--timeout-s", "0")
    theirs = {
        "AWS_PROFILE": "real",
        "AWS_SESSION_TOKEN": "real",
        "NANOGRID_QUEUE_URLS": '{"python": "https://real"}',
        "NANOGRID_RESULT_URL": "redis://real",
        "NANOGRID_MAX_MEMORY_MB": "777",
    }
    command.ok("up", "--detach", *command.port_options, variables=theirs)
    environment = psutil.Process(command.pids["worker"]).environ()
    assert not [
        name for name, value in environment.items() if "real" in value and name.startswith(("AWS_", "NANOGRID_"))
    ]
    assert environment["NANOGRID_MAX_MEMORY_MB"] == "777"
    command.ok("down", "--timeout-s", "0")


def test_state_file_is_for_its_owner_only(command: CommandLine, pids: dict[str, int]) -> None:
    """Redis' data holds what functions printed: no other account of the machine reads it."""
    assert command.folder.stat().st_mode & 0o077 == 0
    assert time.time() - command.state["processes"]["redis"]["startedAt"] < 600
