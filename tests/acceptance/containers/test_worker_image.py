"""The worker image does the main job: its own process 1, Redis and SQS by name, functions on the host's engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from pytest_celery import CeleryTestSetup

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.execution.container.engine import Engine
from nanogrid.result import ExecutionResult, Outcome
from nanogrid.settings import Settings
from nanogrid.sqs.queues import resolve
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.pool import containers_of, exists
from tests.support.services import wait_until
from tests.support.worker import environment

WAIT_S = 60.0


def run(client: Client, request: dict[str, Any]) -> ExecutionResult:
    return client.wait(client.submit(request), WAIT_S)


def test_all_parts_are_up(celery_setup: CeleryTestSetup) -> None:
    """Each container is ready, the worker answers over Redis, and nothing but this host's own folders is mounted."""
    assert celery_setup.ready(control=True)
    assert len(celery_setup) == 3
    for cluster in (celery_setup.broker_cluster, celery_setup.backend_cluster, celery_setup.worker_cluster):
        for node in cluster:
            assert {mount["Type"] for mount in node.container.attrs["Mounts"]} <= {"bind"}


def test_a_python_function(celery_setup: CeleryTestSetup, client: Client, functions: Functions) -> None:
    """Output comes back, and what was used is read from the host's cgroups although the worker is confined itself."""
    result = run(client, functions.request(programs.HELLO, payload="world", memoryMb=128))
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.SUCCEEDED, 0, 'hello "world"\n'), result.stderr
    assert result.worker == celery_setup.worker.hostname()
    assert result.peak_memory_bytes is not None
    assert 1 << 20 < result.peak_memory_bytes < 128 << 20
    assert result.cpu_millis is not None  # less than half a millisecond counts as 0


def test_a_cpp_function(celery_setup: CeleryTestSetup, client: Client, functions: Functions) -> None:
    """run.sh compiles and runs; the compiler's use of memory is in the result."""
    result = run(client, functions.request(programs.CPP, runtime="c++", payload=21, timeoutMs=60_000))
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, "42\n"), result.stderr
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes > 16 << 20


PRODUCER = """
import json, sys
from nanogrid import execute_function
print(json.dumps(execute_function.delay(json.loads(sys.argv[1])).get(timeout=60)))
"""


def test_a_plain_producer(celery_setup: CeleryTestSetup, functions: Functions, producer_settings: Settings) -> None:
    """`execute_function.delay` in a process of this host reaches the worker in its container."""
    request = functions.request(programs.HELLO, payload=1)
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER, json.dumps(request)],
        env=environment(producer_settings),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["requestId"], result["stdout"]) == (request["requestId"], "hello 1\n")


def test_a_bare_message(
    celery_setup: CeleryTestSetup, client: Client, functions: Functions, producer_settings: Settings
) -> None:
    """The original's plain JSON on the queue gives a result under its request id."""
    request = functions.request("print('bare')", timeoutMs=5000)
    sqs = sqs_client(producer_settings)
    sqs.send_message(QueueUrl=resolve("python", producer_settings), MessageBody=json.dumps(request))
    assert client.wait(request["requestId"], WAIT_S).stdout == "bare\n"


def test_map_reduce(celery_setup: CeleryTestSetup, client: Client, functions: Functions) -> None:
    """A chord over SQS and Redis: the parts' values arrive at the reducing function."""
    request_id = client.map_reduce(functions.request(programs.SQUARE), [1, 2, 3], functions.request(programs.SUM))
    result = client.wait(request_id, WAIT_S)
    assert result.value == 14, result.stderr


def test_a_timeout_leaves_nothing_on_the_host(
    celery_setup: CeleryTestSetup, client: Client, functions: Functions, engine: Engine, worker_settings: Settings
) -> None:
    """A function that takes too long ends as TIMED_OUT, and its container is gone when the result is there."""
    result = run(client, functions.request(programs.SLEEP, timeoutMs=700))
    assert (result.outcome, result.stdout) == (Outcome.TIMED_OUT, "up\n")
    assert result.container_id is not None
    assert not exists(engine, result.container_id, worker_settings)


def test_revoke_kills_the_container_on_the_host(
    celery_setup: CeleryTestSetup, client: Client, functions: Functions, engine: Engine, worker_settings: Settings
) -> None:
    """revoke with terminate ends the function's container, a sibling of the worker's, within two seconds."""
    request_id = client.submit(functions.request(programs.SLEEP, timeoutMs=120_000))
    wait_until(lambda: containers_of(worker_settings.data_dir, request_id), "the container runs")
    (container,) = containers_of(worker_settings.data_dir, request_id)
    asked = time.monotonic()
    celery_setup.app.control.revoke(request_id, terminate=True)
    wait_until(lambda: not exists(engine, container, worker_settings), "the container is gone", 5)
    assert time.monotonic() - asked < 2
    assert client.wait(request_id, WAIT_S).outcome is Outcome.CANCELLED


PROBE = """
import json, os, socket

def fails(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return type(error).__name__
    return "worked"

def connect(family, address):
    with socket.socket(family) as probe:
        probe.settimeout(2)
        probe.connect(address)

status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(json.dumps({
    "ids": [os.getuid(), os.getgid()],
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": status["NoNewPrivs"],
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "root": fails(open, "/written", "w"),
    "code": fails(open, "/nanogrid/code/main.py", "w"),
    "engine": fails(connect, socket.AF_UNIX, "/var/run/docker.sock"),
    "redis": fails(connect, socket.AF_INET, (os.environ["REDIS"], 6379)),
    "environment": sorted(os.environ),
}))
"""


def test_functions_of_a_containerised_worker_are_confined_the_same(
    celery_setup: CeleryTestSetup, client: Client, functions: Functions
) -> None:
    """No network, nobody's user, no capability, a read-only root: nothing of the worker's own powers is passed on."""
    redis = celery_setup.backend.container.ips.primary
    result = run(client, functions.request(PROBE, env={"REDIS": redis}))
    assert result.outcome is Outcome.SUCCEEDED, result.stderr
    seen = json.loads(result.stdout)
    names = seen.pop("environment")
    assert not [name for name in names if name.startswith("AWS_") or name.endswith("_URL")]
    assert seen == {
        "ids": [65534, 65534],
        "capabilities": 0,
        "no_new_privileges": "1",
        "interfaces": ["lo"],
        "root": "OSError",
        "code": "OSError",
        "engine": "FileNotFoundError",
        "redis": "OSError",
    }


def test_the_engine_confirms_the_confinement(
    celery_setup: CeleryTestSetup, client: Client, functions: Functions, engine: Engine, worker_settings: Settings
) -> None:
    """What the host's engine has on record for a running function are the limits of hardening.py."""
    request_id = client.submit(functions.request(programs.SLEEP, payload=20, memoryMb=96))
    wait_until(lambda: containers_of(worker_settings.data_dir, request_id), "the container runs")
    (found,) = containers_of(worker_settings.data_dir, request_id)
    container = engine.api.inspect_container(found)
    client.cancel(request_id)
    host = container["HostConfig"]
    # The first process is the runner; the function, its child, is nobody (see the test before this one).
    assert container["Config"]["User"] == "0:0"
    assert sorted(host["CapAdd"]) == ["CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"] or sorted(
        host["CapAdd"]
    ) == ["KILL", "SETGID", "SETPCAP", "SETUID"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (
        "none",
        True,
        ["ALL"],
        False,
    )
    assert (host["Memory"], host["MemorySwap"]) == (96 << 20, 96 << 20)
    assert "no-new-privileges" in host["SecurityOpt"]
    assert not [mount for mount in container["Mounts"] if "docker.sock" in mount["Source"]]
    assert client.wait(request_id, WAIT_S).outcome is Outcome.CANCELLED
