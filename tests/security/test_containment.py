"""What a hostile function tries, in the real container. Each test is named after its threat."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nanogrid.execution.container.report import EndReason
from tests.support.rig import Rig


def attempt(rig: Rig, code: str, **fields: Any) -> str:
    """Run an attack as the body of a `try`; its output is the name of the exception, or what it printed."""
    body = "\n".join(f"    {line}" for line in code.splitlines())
    program = f"import os, socket, ctypes, json\ntry:\n{body}\nexcept BaseException as e: print(type(e).__name__)"
    return rig.run(program, **fields).out.strip()


def test_reaching_the_network(rig: Rig) -> None:
    """There is no interface but loopback, and no route."""
    assert attempt(rig, "print(sorted(os.listdir('/sys/class/net')))") == "['lo']"
    assert attempt(rig, "socket.create_connection(('192.0.2.1', 80), 2)") == "OSError"


def test_reading_the_workers_environment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the worker's environment is to be seen, by any process of the container."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "worker-secret")
    seen = attempt(rig, "print(dict(os.environ), open('/proc/1/environ', 'rb').read())")
    assert "worker-secret" not in seen
    assert "AWS" not in seen


def test_being_or_becoming_root(rig: Rig) -> None:
    """The function is an unprivileged user without any capability, and cannot change that."""
    assert attempt(rig, "print(os.getuid(), os.getgid(), os.getgroups())") == "65534 65534 [65534]"
    assert attempt(rig, "os.setuid(0)") == "PermissionError"
    status = attempt(rig, "print(open('/proc/self/status').read())")
    fields = dict(
        line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs", "Seccomp:"))
    )
    assert {name: int(value, 16) for name, value in fields.items()} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapBnd": 0,
        "CapAmb": 0,
        "NoNewPrivs": 1,
        "Seccomp": 2,
    }


def test_using_a_setuid_program(rig: Rig) -> None:
    """The image's setuid programs give nothing."""
    code = "import subprocess\nprint(subprocess.run(['su', '-c', 'id'], capture_output=True, text=True, stdin=-3).returncode != 0)"
    assert attempt(rig, code) == "True"


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/usr/bin/python3", "/nanogrid/runner/call_handler.py", "/nanogrid/code/main.py"]
)
def test_changing_what_others_share(rig: Rig, path: str) -> None:
    """The root file system, our programs and the cached code cannot be written."""
    assert attempt(rig, f"open({path!r}, 'r+b')") in ("OSError", "PermissionError")


@pytest.mark.parametrize("folder", ["/", "/etc", "/nanogrid", "/nanogrid/code", "/usr", "/var/tmp"])
def test_leaving_files_behind(rig: Rig, folder: str) -> None:
    """Nothing can be created outside of the folders in memory."""
    assert attempt(rig, f"open({folder!r} + '/left', 'w')") in ("OSError", "PermissionError")


def test_filling_the_disk_through_the_workspace(rig: Rig) -> None:
    """/workspace ends at its size, with the usual error."""
    code = "f = open('/workspace/big', 'wb')\nfor _ in range(1 << 20): f.write(bytes(1 << 20))"
    assert attempt(rig, code, memoryMb=1024, timeoutMs=60_000) == "OSError"


def test_filling_the_disk_through_the_result_file(rig: Rig) -> None:
    """The file of its value ends at a size too."""
    code = "f = open(os.environ['NANOGRID_RESULT'], 'wb')\nfor _ in range(1 << 20): f.write(bytes(1 << 20))"
    assert attempt(rig, code, timeoutMs=60_000) == "OSError"


def test_a_launched_functions_result_ends_at_its_size(rig: Rig) -> None:
    """Its result is a file of the host's disk, and so bounded, whatever it does not hold."""
    program = "dd if=/dev/zero of=/nanogrid/run/result.json bs=1M count=1 seek=300 2>&1 || true"
    run = rig.run({"run.sh": program}, runtime="sh")
    assert "File size limit exceeded" in run.out
    assert run.report.result.size < 300 << 20


def test_large_files_that_hold_little_are_as_large_as_anywhere(rig: Rig) -> None:
    """In memory it is what a file holds that counts, not where it ends."""
    code = "with open('sparse', 'wb') as file: file.seek(3 << 30); file.write(b'end')\nprint(os.path.getsize('sparse'))"
    assert attempt(rig, code) == str((3 << 30) + 3)


def test_exhausting_inodes(rig: Rig) -> None:
    """The number of files in /workspace has an end too."""
    code = "for n in range(1 << 20): open(f'/workspace/{n}', 'w').close()"
    assert attempt(rig, code, timeoutMs=60_000) == "OSError"


def test_a_fork_bomb(rig: Rig) -> None:
    """A fork bomb ends at the limit of processes, and then with its run."""
    run = rig.run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", timeoutMs=1500)
    assert run.report.ended is EndReason.TIMED_OUT
    assert run.container.name not in rig.containers()


def test_a_memory_bomb_in_the_workspace(rig: Rig) -> None:
    """Files in memory count: writing past the memory limit ends the function, not the host."""
    run = rig.run("f = open('/workspace/x', 'wb')\nfor _ in range(200): f.write(bytes(1 << 20))", memoryMb=64)
    assert run.report.exit_code == 137
    assert run.usage.oom_kills


def test_memory_that_spills_into_swap(rig: Rig) -> None:
    """The limit counts swap as well, so there is no slow way around it."""
    run = rig.run("x = [bytearray(1 << 20) for _ in range(200)]", memoryMb=64)
    assert run.report.exit_code == 137


def test_opening_too_many_files(rig: Rig) -> None:
    """Open files have a limit that cannot be raised."""
    assert attempt(rig, "x = [open('/dev/null') for _ in range(5000)]") == "OSError"
    assert attempt(rig, "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999))") == "ValueError"


def test_ipc_that_outlives_the_run(rig: Rig) -> None:
    """System V shared memory, semaphores and message queues are off."""
    for call in ("shmget(0x1234, 4096, 0o1666)", "semget(0x1234, 1, 0o1666)", "msgget(0x1234, 0o1666)"):
        assert attempt(rig, f"print(ctypes.CDLL(None).{call})") == "-1"


def test_killing_the_first_process(rig: Rig) -> None:
    """PID 1 belongs to another user: no signal may be sent to it, and the run ends with the function's own code."""
    code = (
        "import os, sys\n"
        "for n in (9, 15, 2, 1, 19):\n"
        "    try: os.kill(1, n)\n"
        "    except PermissionError: continue\n"
        "    sys.exit(6)\n"
        "sys.exit(5)"
    )
    run = rig.run(code)
    assert (run.report.ended, run.report.exit_code) == (EndReason.EXITED, 5)


def test_killing_the_launcher(rig: Rig) -> None:
    """In an image without Python PID 1 is the function's own user, and signals do not reach it."""
    run = rig.run({"run.sh": "for n in 9 15 2 1 19; do kill -$n 1; done; exit 5"}, runtime="sh")
    assert (run.report.ended, run.report.exit_code) == (EndReason.EXITED, 5)


def test_claiming_an_early_end(rig: Rig) -> None:
    """In an image without Python, a function that writes the launcher's words only ends its own run, and nothing lives on."""
    run = rig.run({"run.sh": "echo 'exited 0' >/nanogrid/control; sleep 600"}, runtime="sh", timeoutMs=5000)
    assert (run.report.ended, run.report.exit_code) == (EndReason.EXITED, 0)
    assert run.container.name not in rig.containers()


def test_outliving_the_timeout_by_talking(rig: Rig) -> None:
    """Flooding the launcher's pipe, in lines or without any, neither delays the timeout nor costs the worker memory."""
    for text in ("x\\n", "y"):
        flood = f"while :; do printf '{text}%.0s' 1 2 3 4 5 6 7 8; done >/nanogrid/control"
        run = rig.run({"run.sh": flood}, runtime="sh", timeoutMs=800)
        assert run.report.ended is EndReason.TIMED_OUT
        assert run.report.duration_ms < 3000


def test_mounting_and_devices(rig: Rig) -> None:
    """No mount, no device node, no namespace with more rights."""
    assert attempt(rig, "print(ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None))") == "-1"
    assert attempt(rig, "os.mknod('/tmp/d', 0o60666, os.makedev(8, 0))") == "PermissionError"
    assert attempt(rig, "print(ctypes.CDLL(None).unshare(0x10000000))") == "-1"


def test_replacing_the_result_with_a_link(rig: Rig) -> None:
    """A link in place of the result leads nowhere, whatever it points to: the worker does not follow it."""
    for target in ("/etc/passwd", "/nanogrid/run/payload.json", "/proc/self/environ"):
        run = rig.run(
            f"import os; path = os.environ['NANOGRID_RESULT']; os.unlink(path); os.symlink({target!r}, path)", payload=1
        )
        assert (run.report.exit_code, run.value) == (0, None)


@pytest.mark.parametrize(
    "make", ["os.mkfifo(path)", "os.mkdir(path)", "socket.socket(socket.AF_UNIX).bind(path)", "os.mkfifo(path, 0)"]
)
def test_a_result_that_is_no_file(rig: Rig, make: str) -> None:
    """What is not a regular file is no value, and nobody waits for it."""
    run = rig.run(f"import os, socket; path = os.environ['NANOGRID_RESULT']; os.unlink(path); {make}")
    assert (run.report.exit_code, run.value) == (0, None)


def test_seeing_another_functions_run(rig: Rig) -> None:
    """Two runs at once see neither each other's processes nor files."""
    other, _timeout_s = rig.wanted({"main.py": "import time; time.sleep(2)"})
    with rig.pool.lease(other, "secret-payload"):
        seen = json.loads(
            attempt(
                rig,
                "pids = [p for p in os.listdir('/proc') if p.isdigit()]\n"
                "print(json.dumps([len(pids), os.listdir('/nanogrid'), open('/nanogrid/run/payload.json').read()]))",
            )
        )
    assert seen[0] <= 3
    assert "secret" not in seen[2]
