"""One run in a real container: streams, exit codes, measurements, outcomes."""

from __future__ import annotations

import json
import time

import pytest

from nanogrid.execution.container.report import EndReason
from nanogrid.execution.pool.child.lease import Container, WarmContainer
from tests.support.rig import NEWEST_PYTHON_IMAGE, Rig
from tests.support.services import wait_until


def test_streams_stay_apart_and_byte_exact(rig: Rig) -> None:
    """stdout and stderr come back apart, with every byte as it was written."""
    everything = "bytes(range(256))"
    run = rig.run(f"import sys; sys.stdout.buffer.write({everything}); sys.stderr.buffer.write({everything}[::-1])")
    assert bytes(run.report.stdout.data) == bytes(range(256))
    assert bytes(run.report.stderr.data) == bytes(range(256))[::-1]


def test_a_large_output_arrives_whole(rig: Rig) -> None:
    """Output up to the limit is complete, in both streams at once."""
    size = rig.settings.output_limit_bytes
    run = rig.run(f"import sys; sys.stdout.write('o' * {size}); sys.stderr.write('e' * {size})")
    assert (run.out, run.err) == ("o" * size, "e" * size)
    assert run.report.ended is EndReason.EXITED


def test_the_exit_code_is_the_functions_own(rig: Rig) -> None:
    """Codes pass through; a signal shows as 128 and its number, as in a shell."""
    assert rig.run("import sys; sys.exit(7)").report.exit_code == 7
    assert rig.run("import os; os.kill(os.getpid(), 11)").report.exit_code == 139


def test_the_payload_arrives_on_stdin_and_in_a_file(rig: Rig) -> None:
    """The payload is one JSON text, on stdin and in the file named by NANOGRID_PAYLOAD."""
    payload = {"text": "grüße\u2028\ud800", "numbers": [1, 2.5, None]}
    run = rig.run(
        "import os, sys; text = sys.stdin.read(); print(open(os.environ['NANOGRID_PAYLOAD']).read() == text); print(text)",
        payload=payload,
    )
    same, text = run.out.split("\n", 1)
    assert same == "True"
    assert json.loads(text)["numbers"] == [1, 2.5, None]
    assert json.loads(text)["text"].startswith("grüße\u2028")


def test_without_a_payload_stdin_is_empty(rig: Rig) -> None:
    """A function that gets no payload reads an empty stdin, and does not hang."""
    assert rig.run("import sys; print(repr(sys.stdin.read()))").out == "''\n"


def test_the_value_comes_from_the_result_file(rig: Rig) -> None:
    """What is written to NANOGRID_RESULT is the run's value."""
    run = rig.run("import json, os; json.dump([1, {'a': 2}], open(os.environ['NANOGRID_RESULT'], 'w'))")
    assert json.loads(run.value or b"") == [1, {"a": 2}]


def test_cpp_is_compiled_by_its_own_script(rig: Rig) -> None:
    """run.sh runs by bash in /workspace, where the compiler may write."""
    source = "#include <iostream>\nint main() { std::cout << __GNUC__; }"
    run = rig.run({"run.sh": "g++ main.cpp -o main && ./main", "main.cpp": source}, runtime="cpp", timeoutMs=60_000)
    assert (run.out, run.report.exit_code) == ("11", 0), run.err


def test_a_function_sees_its_files_and_may_write_beside_them(rig: Rig) -> None:
    """The working folder is /workspace, holds the code, and is writable."""
    run = rig.run(
        {
            "main.py": "import other, os; open('new', 'w').write('x'); print(other.X, os.getcwd(), sorted(os.listdir('.')))",
            "other.py": "X = 3",
        }
    )
    assert run.out == "3 /workspace ['__pycache__', 'main.py', 'new', 'other.py']\n"


def test_peak_memory_and_cpu_time_are_this_runs_own(rig: Rig) -> None:
    """The peak is at least what the function touched, and the CPU time what it burnt."""
    run = rig.run(
        "import time; block = b'x' * (80 << 20)\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    )
    assert run.usage.peak_memory_bytes is not None
    assert 80 << 20 <= run.usage.peak_memory_bytes <= 120 << 20
    assert run.usage.cpu_ns is not None
    assert 0.4e9 <= run.usage.cpu_ns <= 1.5e9


def test_a_timeout_ends_everything(rig: Rig) -> None:
    """At the timeout the function and all it started are gone, and what it had written is kept."""
    run = rig.run(
        "import subprocess, time; subprocess.Popen(['sleep', '600']); print('begun', flush=True); time.sleep(600)",
        timeoutMs=600,
    )
    assert (run.report.ended, run.out) == (EndReason.TIMED_OUT, "begun\n")
    assert 600 <= run.report.duration_ms < 3000
    assert run.container.name not in rig.containers()


def test_the_duration_of_what_was_ended_counts_from_where_its_time_does(rig: Rig) -> None:
    """A function that comes to its first step late has had its whole time all the same, and the result says so."""

    def begins_late(container: Container) -> None:
        assert isinstance(container, WarmContainer)
        go_on, cgroup = container._thaw, container._container.cgroup
        assert cgroup.freeze()

        def late() -> None:
            wait_until(lambda: time.monotonic() > begun + 0.4, "most of its time is over")
            go_on()

        begun = time.monotonic()
        container._thaw = late  # type: ignore[method-assign]

    run = rig.run("import time; time.sleep(600)", during=begins_late, timeoutMs=500)
    assert run.report.ended is EndReason.TIMED_OUT
    assert run.report.duration_ms >= 500


def test_a_launched_function_that_was_ended_has_had_its_whole_time(rig: Rig) -> None:
    """The same where a container is started for each run."""
    run = rig.run({"run.sh": "sleep 600"}, runtime="sh", timeoutMs=300)
    assert run.report.ended is EndReason.TIMED_OUT
    assert run.report.duration_ms >= 300


def test_the_accounts_of_a_run_begin_before_it_does(rig: Rig) -> None:
    """However late the host comes to look at a run that is over already, its CPU time and its peak are in the accounts."""

    def looks_late(container: Container) -> None:
        assert isinstance(container, WarmContainer)
        go_on, link = container._thaw, container._container.link

        def late() -> None:
            go_on()
            wait_until(link.has_word, "the runner has said that the run is over")

        container._thaw = late  # type: ignore[method-assign]

    run = rig.run("block = b'x' * (80 << 20); del block", during=looks_late)
    assert run.report.ended is EndReason.EXITED
    assert run.usage.cpu_ns
    assert run.usage.peak_memory_bytes
    assert run.usage.peak_memory_bytes >= 80 << 20


def test_what_ignores_signals_is_ended_too(rig: Rig) -> None:
    """A function that ignores every signal it can does not outlive its timeout."""
    run = rig.run(
        "import signal, time\nfor n in range(1, 32):\n  if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\ntime.sleep(600)",
        timeoutMs=500,
    )
    assert run.report.ended is EndReason.TIMED_OUT


def test_a_background_process_does_not_delay_the_end(rig: Rig) -> None:
    """When the command has ended, what it left behind is ended as well, although it holds stdout open."""
    run = rig.run("import subprocess; subprocess.Popen(['sleep', '600']); print('done')")
    assert (run.report.ended, run.out) == (EndReason.EXITED, "done\n")
    assert run.report.duration_ms < 5000


def test_out_of_memory_is_counted_by_the_kernel(rig: Rig) -> None:
    """A function that passes its memory limit is killed, and the container's own account says so."""
    run = rig.run("x = bytearray(500 << 20)", memoryMb=64)
    assert run.report.exit_code == 137
    assert run.usage.oom_kills == 1


def test_a_flood_of_output_is_cut_at_the_limit(rig: Rig) -> None:
    """A function that writes for ever is ended; exactly the limit is kept, and flagged."""
    run = rig.run("while True: print('x' * 4000)")
    assert run.report.ended is EndReason.OUTPUT_LIMIT
    assert len(run.report.stdout.data) == rig.settings.output_limit_bytes
    assert (run.report.stdout.truncated, run.report.stderr.truncated) == (True, False)


def test_a_missing_command_says_so(rig: Rig) -> None:
    """A command that the image does not have is the function's failure, with the shell's code and words."""
    run = rig.run({"run.sh": "no-such-program"}, runtime="cpp")
    assert run.report.exit_code == 127
    assert "no-such-program" in run.err


@pytest.mark.parametrize("runtime", ["cpp", "sh"])
def test_bytes_are_stdin_and_file_as_they_are(rig: Rig, runtime: str) -> None:
    """In a warm container and in a launched one, without Python."""
    given = b"3 4\r\n\xff\x00no line end"
    looks = 'cat >"$NANOGRID_RESULT"; cmp "$NANOGRID_RESULT" "$NANOGRID_PAYLOAD" && echo same'
    run = rig.run({"run.sh": looks}, runtime=runtime, payload=given)
    assert (run.report.result.data, run.out) == (given, "same\n")


def test_handlers_are_called_with_payload_and_context(rig: Rig) -> None:
    """`call_handler.py` calls the function, gives it Lambda's context names, and stores what it returns."""
    wanted, timeout_s = rig.wanted(
        {
            "app.py": "def run(event, context):\n"
            "    return [event, context.aws_request_id, context.function_name, context.memory_limit_in_mb,\n"
            "            0 < context.get_remaining_time_in_millis() <= 10000]"
        },
        handler="app.run",
    )
    changed = type(wanted)(**{**vars(wanted), "command": ("python", "/nanogrid/runner/call_handler.py", "app.run")})
    with rig.pool.lease(changed, {"a": 1}) as container:
        report = container.run(timeout_s=timeout_s)
        value = json.loads(report.result.data or b"null")
    assert value == [{"a": 1}, wanted.request_id, "f", "512", True], report.stderr.data


def test_the_newest_python_runs_the_same(rig: Rig) -> None:
    """The same function runs in images at both ends of the supported range."""
    wanted, timeout_s = rig.wanted({"main.py": "import sys; print(sys.version_info[:2])"})
    newest = type(wanted)(**{**vars(wanted), "image": NEWEST_PYTHON_IMAGE})
    assert rig.run("import sys; print(sys.version_info[:2])").out == "(3, 9)\n"
    with rig.pool.lease(newest, None) as container:
        assert bytes(container.run(timeout_s=timeout_s).stdout.data) == b"(3, 13)\n"


@pytest.mark.parametrize("runtime", ["python", "cpp"])
def test_localhost_and_the_own_name_are_known(rig: Rig, runtime: str) -> None:
    """Servers and clients of one run find each other by name, over IPv4 and IPv6, and nobody can change what names mean."""
    source = (
        "import os, socket\n"
        "server = socket.create_server(('localhost', 0))\n"
        "socket.create_connection(('localhost', server.getsockname()[1]), timeout=5)\n"
        "found = {address[0] for *_, address in socket.getaddrinfo('localhost', 80)}\n"
        "print(sorted(found), socket.gethostbyname(socket.gethostname()), os.access('/etc/hosts', os.W_OK))\n"
    )
    run = rig.run({"main.py": source, "run.sh": "exec python3 main.py"}, runtime=runtime)
    assert (run.out, run.err) == ("['127.0.0.1', '::1'] 127.0.0.1 False\n", "")


@pytest.mark.parametrize("runtime", ["python", "cpp"])
def test_a_name_that_nobody_can_look_up_fails_at_once(rig: Rig, runtime: str) -> None:
    """Programs that read /etc/resolv.conf themselves find a name server in it, which does not answer; nobody waits for it."""
    source = (
        "import os, socket, time\n"
        "begun = time.monotonic()\n"
        "try: socket.getaddrinfo('example.org', 80)\n"
        "except socket.gaierror as error: print(error.errno == socket.EAI_AGAIN, time.monotonic() - begun < 1)\n"
        "print([line.split() for line in open('/etc/resolv.conf') if not line.startswith('#')])\n"
        "print(open('/etc/hostname').read().split() == [socket.gethostname()], os.access('/etc/resolv.conf', os.W_OK))\n"
    )
    run = rig.run({"main.py": source, "run.sh": "exec python3 main.py"}, runtime=runtime)
    assert (run.out, run.err) == ("True True\n[['nameserver', '127.0.0.1']]\nTrue False\n", "")


@pytest.mark.parametrize("folder", ["/tmp", "/workspace"])
def test_a_program_that_a_run_makes_can_be_run(rig: Rig, folder: str) -> None:
    """Compilers, installers and JITs put programs and libraries in either folder."""
    source = f"g++ -x c++ -o {folder}/app - <<'END' && {folder}/app\n#include <cstdio>\nint main() {{ std::puts(\"made\"); }}\nEND\n"
    assert rig.run({"run.sh": source}, runtime="cpp").out == "made\n"


def test_a_launched_container_knows_localhost_too(rig: Rig) -> None:
    """Also where the image has no Python."""
    assert "localhost" in rig.run({"run.sh": "cat /etc/hosts"}, runtime="sh").out
