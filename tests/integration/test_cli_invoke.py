"""`nanogrid invoke`, `result`, `cancel` and `doctor` against a local stack that really runs functions."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanogrid.cli.upload import ASKED_BYTES
from nanogrid.connections.aws import new_session
from nanogrid.result import ExecutionResult
from tests.support.command import ENTRY, CommandLine
from tests.support.services import wait_until


@pytest.fixture
def function(tmp_path: Path) -> Any:
    """Writes a python function to a file and returns its path."""

    def write(source: str) -> str:
        path = tmp_path / "hello.py"
        path.write_text(source)
        return str(path)

    return write


def state_of(command: CommandLine, request_id: str) -> bytes:
    """What is stored about a request, as text."""
    return command.run("result", request_id).stderr


def test_invoke_behaves_like_the_function(command: CommandLine, function: Any) -> None:
    """Its bytes on both streams, its exit code, its input and variables; one summary line on stderr."""
    source = function(
        "import json, os, sys\n"
        "sys.stdout.write(json.dumps([json.load(sys.stdin), os.environ['NAME']]) + '\\r\\nno end')\n"
        "sys.stderr.write('warned\\n')\n"
        "sys.exit(7)\n"
    )
    done = command.run("invoke", source, "--payload", "-", "--env", "NAME=a=b", stdin=b'{"width": 80}')
    assert done.stdout == b'[{"width": 80}, "a=b"]\r\nno end'
    assert done.returncode == 7
    *notes, warned, summary = done.stderr.decode().splitlines()
    assert notes[:2] == [f"using the local stack in {command.folder}", "runtime: python (detected from the files)"]
    assert notes[2].startswith("request: ")
    assert warned == "warned"
    assert summary.startswith("FAILED · exit code 7 · ")


def test_invoke_passes_on_stdin_as_it_is(command: CommandLine, function: Any, tmp_path: Path) -> None:
    """Bytes of a pipe and of a file, and a text; no JSON is made of any."""
    source = function("import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)")
    text, raw = b"3 4\r\n1 2\n\n", b"3 4\n\x00"
    (tmp_path / "in.txt").write_bytes(raw)
    assert command.run("invoke", source, "--stdin", "-", stdin=text).stdout == text
    assert command.run("invoke", source, "--stdin", str(tmp_path / "in.txt")).stdout == raw
    assert command.run("invoke", source, "--stdin-text", "a b").stdout == b"a b"


def test_invoke_calls_a_handler_without_main_py(command: CommandLine, tmp_path: Path) -> None:
    """The runtime follows from the handler; nobody is asked for it."""
    folder = tmp_path / "api" / "to-dos"
    folder.mkdir(parents=True)
    (folder / "get.py").write_text("def get(event, context): return {'got': event}")
    done = command.run("invoke", str(tmp_path / "api"), "--handler", "to-dos/get.get", "--payload", "1", "--json")
    assert ExecutionResult.from_wire(json.loads(done.stdout)).value == {"got": 1}, done.stderr
    lost = command.run("invoke", str(tmp_path), "--handler", "to-dos/get.get")
    assert lost.returncode == 125
    assert b"in the folder 'api/': give" in lost.stderr


def test_a_secret_from_a_file_is_seen_by_the_function_alone(
    command: CommandLine, function: Any, tmp_path: Path
) -> None:
    """The function gets the file's text as a variable; it stands neither in the command's arguments nor in its output."""
    secret = tmp_path / "token"
    secret.write_text("hunter2\n")
    source = function("import hashlib, os; print(hashlib.sha256(os.environ['TOKEN'].encode()).hexdigest())")
    digest = hashlib.sha256(b"hunter2").hexdigest().encode() + b"\n"
    for word, stdin in ((f"TOKEN=@{secret}", b""), ("TOKEN=@-", b"hunter2\n")):
        done = command.run("invoke", source, "--env", word, stdin=stdin)
        assert (done.stdout, done.returncode) == (digest, 0)
        assert b"hunter2" not in done.stderr


def test_json_is_exactly_the_result(command: CommandLine, function: Any) -> None:
    """stdout holds one ExecutionResult and nothing else; the exit code is still the function's."""
    done = command.run("invoke", function("print('hi')\nraise SystemExit(3)"), "--json", "--function-id", "greet")
    result = ExecutionResult.from_wire(json.loads(done.stdout))
    assert (result.stdout, result.exit_code, result.function_id) == ("hi\n", 3, "greet")
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("source", "options", "exit_code", "outcome"),
    [
        ("import time; time.sleep(60)", ["--timeout-ms", "500"], 124, "TIMED_OUT"),
        (
            "x = bytearray(200 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1",
            ["--memory-mb", "32"],
            137,
            "OUT_OF_MEMORY",
        ),
        ("raise SystemExit(0)", [], 0, "SUCCEEDED"),
    ],
)
def test_exit_code_stands_for_the_outcome(
    command: CommandLine, function: Any, source: str, options: list[str], exit_code: int, outcome: str
) -> None:
    """As with timeout(1) and the shells: 124 timed out, 137 out of memory."""
    done = command.run("invoke", function(source), *options)
    assert done.returncode == exit_code
    assert outcome in done.stderr.decode()


def test_code_that_is_not_there_was_not_run(command: CommandLine) -> None:
    """The worker answers with NOT_RUN: exit code 125 and the reason."""
    done = command.run("invoke", "s3://no-such-bucket/f.zip", "--runtime", "python")
    assert done.returncode == 125
    assert b"NoSuchBucket" in done.stderr
    assert b"NOT_RUN" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/no/such/file"], "does not exist"),
        (["s3://bucket/key"], "give --runtime"),
        (["{file}", "--runtime", "cobol"], "'cobol' is not known; accepted are python"),
        (["{file}", "--timeout-ms", "-5"], "timeoutMs: -5 is too small"),
        (["{file}", "--env", "1A=2"], "'1A' is not a valid name"),
        (["{file}", "--env", "TOKEN=@/no/such/file"], "/no/such/file, for 'TOKEN', cannot be read"),
        (["{file}", "--env", "TOKEN=@-", "--payload", "-"], "can be read only for one of --env, --payload and --stdin"),
        (["{file}", "--payload", "text"], "is not JSON"),
    ],
)
def test_unusable_request_exits_with_125(command: CommandLine, function: Any, words: list[str], message: str) -> None:
    """One sentence, no traceback, and nothing is sent."""
    path = function("print()")
    done = command.run("invoke", *(path if word == "{file}" else word for word in words))
    assert (done.returncode, done.stdout) == (125, b"")
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_folder_zip_and_stored_code_run_alike(command: CommandLine, tmp_path: Path) -> None:
    """A folder is uploaded under its own hash; the same bytes run from a zip and from S3."""
    folder = tmp_path / "thumbs"
    folder.mkdir()
    (folder / "main.py").write_text("import lib; print(lib.NAME)")
    (folder / "lib.py").write_text("NAME = 'thumbs'")
    assert command.ok("invoke", str(folder)) == "thumbs\n"
    from nanogrid.execution.code.packing import pack_folder

    archive = pack_folder(folder)
    (tmp_path / "f.zip").write_bytes(archive)
    assert command.ok("invoke", str(tmp_path / "f.zip")) == "thumbs\n"
    key = hashlib.sha256(archive).hexdigest()
    assert command.ok("invoke", f"s3://nanogrid-functions/{key}.zip", "--runtime", "python") == "thumbs\n"


def test_shell_function_runs(command: CommandLine, tmp_path: Path) -> None:
    """A .sh file runs as run.sh of the cpp runtime, which compiles."""
    script = tmp_path / "job.sh"
    script.write_text("echo 'int main() { return 9; }' > m.cpp && g++ -o m m.cpp && ./m\n")
    assert command.run("invoke", str(script), "--timeout-ms", "60000").returncode == 9


def test_own_bucket_is_made_on_a_local_stack(command: CommandLine, function: Any, unique: str) -> None:
    """Nobody has to prepare S3 to try something; the second time the bucket is there."""
    source = function("print('hi')")
    for _ in range(2):
        assert command.ok("invoke", source, "--bucket", f"bucket-{unique}") == "hi\n"


def test_request_is_fetched_and_cancelled_later(command: CommandLine, function: Any) -> None:
    """--no-wait prints the id alone; without a result `result` exits with 2; `cancel` ends it once."""
    request_id = command.ok(
        "invoke", function("import time; time.sleep(100)"), "--timeout-ms", "100000", "--no-wait"
    ).strip()
    wait_until(lambda: b"state STARTED" in state_of(command, request_id), "the function runs")
    assert command.run("result", request_id).returncode == 2
    command.ok("cancel", request_id)
    done = command.run("result", request_id, "--wait", "20", "--json")
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (130, "CANCELLED")
    again = command.run("cancel", request_id)
    assert again.returncode == 1
    assert b"was not cancelled" in again.stderr


def test_result_that_does_not_come_in_time(command: CommandLine) -> None:
    """An unknown id is no traceback and no endless wait."""
    done = command.run("result", "no-such-request", "--wait", "1")
    assert done.returncode == 2
    assert b"has no result after" in done.stderr


def test_interrupt_leaves_the_request_running(command: CommandLine, function: Any) -> None:
    """Ctrl-C exits with 130 and says how to get the result and how to end the run."""
    source = function("import time; time.sleep(4); print('done')")
    process = command.start("invoke", source)
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith(b"request: "):
        assert line, "the command ended before it had sent the request"
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 130
    request_id = line.decode().split()[1]
    assert f"nanogrid result {request_id}" in told
    assert f"nanogrid cancel {request_id}" in told
    assert command.ok("result", request_id, "--wait", "60") == "done\n"


def test_terminal_shows_the_state(command: CommandLine, function: Any) -> None:
    """On a terminal a spinner says what the request is doing; NO_COLOR takes the colours away."""
    coloured = on_terminal(command, {}, "invoke", function("import time; time.sleep(2)"))
    assert "running for" in coloured
    assert "\x1b[1;32mSUCCEEDED" in coloured
    assert "\x1b[1;32m" not in on_terminal(command, {"NO_COLOR": "1"}, "invoke", function("print()"))


def on_terminal(command: CommandLine, variables: dict[str, str], *words: str) -> str:
    """What the command shows to a person."""
    ours, theirs = pty.openpty()
    environment = {**command.environment, "TERM": "xterm-256color", **variables}
    with subprocess.Popen([*ENTRY, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # how Linux says that the other end of a terminal is closed
            pass
        os.close(ours)
    return shown.decode()


HEAVY = frozenset({"boto3", "botocore", "celery", "docker", "kombu", "moto", "rich.console"})
COUNTED = (
    "import atexit, sys\n"
    f"atexit.register(lambda: print('HEAVY', sorted({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr))\n"
    "from nanogrid.cli import main; main()"
)
"""The command, which then names the heavy packages that it has imported."""


def heavy_of(command: CommandLine, *words: str, variables: dict[str, str] | None = None) -> tuple[bytes, str]:
    """The output of a command, and the heavy packages that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *words],
        env={**command.environment, **(variables or {})},
        capture_output=True,
        timeout=150,
        check=False,
    )
    return done.stdout, done.stderr.decode().splitlines()[-1]


def test_a_command_for_one_request_imports_what_it_needs(command: CommandLine, function: Any) -> None:
    """On the local stack neither Celery nor an SDK for S3 and SQS; elsewhere no Celery; without a terminal no rich."""
    source = function("print('hello')")
    command.ok("invoke", source)  # the bucket exists from now on
    assert heavy_of(command, "invoke", source) == (b"hello\n", "HEAVY []")
    deployment = json.loads(command.ok("env", "--json"))
    assert heavy_of(command, "invoke", source, variables=deployment) == (b"hello\n", "HEAVY ['botocore']")
    request_id = command.ok("invoke", source, "--no-wait").strip()
    assert heavy_of(command, "result", request_id, "--wait", "60") == (b"hello\n", "HEAVY []")
    assert heavy_of(command, "result", request_id) == (b"hello\n", "HEAVY []")
    assert heavy_of(command, "results", "--function", "nothing-of-this-name")[1] == "HEAVY []"


def test_an_archive_that_is_stored_is_not_uploaded_again(command: CommandLine, tmp_path: Path, unique: str) -> None:
    """In a deployment's S3. Other bytes under its key are replaced."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "main.py").write_text("print('large')")
    (folder / "noise").write_bytes(os.urandom(ASKED_BYTES))
    deployment = json.loads(command.ok("env", "--json"))
    words = ("invoke", str(folder), "--bucket", unique)

    def versions() -> list[str]:
        """Every version of every object: one for each upload."""
        found = client.list_object_versions(Bucket=unique)
        return [version["VersionId"] for version in found.get("Versions", ())]

    client: Any = new_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=deployment["AWS_ENDPOINT_URL"],
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )
    client.create_bucket(Bucket=unique)
    client.put_bucket_versioning(Bucket=unique, VersioningConfiguration={"Status": "Enabled"})
    assert command.run(*words, variables=deployment).stdout == b"large\n"
    assert len(versions()) == 1
    assert command.run(*words, variables=deployment).stdout == b"large\n"
    assert len(versions()) == 1
    (key,) = {each["Key"] for each in client.list_objects_v2(Bucket=unique)["Contents"]}
    client.put_object(Bucket=unique, Key=key, Body=b"something else")
    assert command.run(*words, variables=deployment).stdout == b"large\n"
    assert len(versions()) == 3


def test_results_of_all_requests(command: CommandLine, function: Any, unique: str) -> None:
    """One line each, of one function where it is named; a group goes on where it was left."""
    for text in ("one", "two"):
        command.ok("invoke", function(f"print('{text}')"), "--function-id", unique)
    of_one = ("results", "--function", unique)
    told = [json.loads(line) for line in command.ok(*of_one, "--group", unique, "--json").splitlines()]
    assert [ExecutionResult.from_wire(each["result"]).stdout for each in told] == ["one\n", "two\n"]
    assert told[1]["number"] > told[0]["number"] > 0
    assert command.ok("results", "--group", unique) == ""
    (line,) = command.ok(*of_one, "--from", told[0]["id"]).splitlines()
    assert f"SUCCEEDED      {unique}  {told[1]['result']['requestId']} · exit code 0 · " in line


def test_results_are_followed_until_interrupted(command: CommandLine, function: Any, unique: str) -> None:
    """Each comes as soon as it is stored; Ctrl-C is the way to end it."""
    following = command.start("results", "--follow", "--from", "all", "--function", unique)
    command.ok("invoke", function("raise SystemExit(3)"), "--function-id", unique, "--no-wait")
    assert following.stdout is not None
    assert b"using the local stack" in following.stdout.readline()
    assert b"FAILED" in following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=30)[0] == b""
    assert following.returncode == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "yesterday"], "'yesterday' is not a position in the results stream"),
        (["--consumer", "me"], "also give --group"),
    ],
)
def test_results_that_cannot_be_found_are_explained(command: CommandLine, words: list[str], message: str) -> None:
    """One sentence, and exit code 2."""
    done = command.run("results", *words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in " ".join(done.stderr.decode().split())


def test_doctor_is_content_with_a_stack(command: CommandLine) -> None:
    """Every part is looked at, and every line of a running stack is ok."""
    lines = json.loads(command.ok("doctor", "--json"))
    names = [line["name"] for line in lines]
    assert names == [
        "docker", "image python", "image cpp", "build network", "s3", "clock", "queue python", "queue cpp",
        "redis results", "redis monitor", "workers", "health", "disk", "cgroups",
    ]  # fmt: skip
    assert {line["health"] for line in lines} == {"ok"}, lines


def test_doctor_names_every_remedy(command: CommandLine) -> None:
    """With nothing reachable each line says what to do, no check hides another, and the exit code is 1."""
    nowhere = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "NANOGRID_RESULT_URL": "redis://:secret@127.0.0.1:9/0", "NANOGRID_MONITOR_URL": "redis://:secret@127.0.0.1:9",
        "NANOGRID_DOCKER_URL": "unix:///no/such/socket", "NANOGRID_CGROUP_DIR": "/no/such/folder",
    }  # fmt: skip
    done = command.run("doctor", "--json", variables=nowhere)
    assert done.returncode == 1
    lines = {line["name"]: line for line in json.loads(done.stdout)}
    broken = {name for name, line in lines.items() if line["health"] == "broken"}
    assert broken == {
        "docker", "image python", "image cpp", "s3", "queue python", "queue cpp",
        "redis results", "redis monitor", "redis databases", "workers",
    }  # fmt: skip
    assert all(lines[name]["remedy"] for name in broken | {"cgroups"})
    assert b"secret" not in done.stdout


def test_doctor_changes_nothing(command: CommandLine, unique: str) -> None:
    """A missing queue is a finding, even where the settings allow workers to create it."""
    environment: dict[str, str] = json.loads(command.ok("env", "--json"))
    for _ in range(2):
        done = command.run("doctor", "--json", variables={**environment, "NANOGRID_QUEUE_PREFIX": f"{unique}-"})
        lines = {line["name"]: line for line in json.loads(done.stdout)}
        assert lines["queue python"]["health"] == "broken"
        assert f"'{unique}-python' does not exist" in lines["queue python"]["found"]


def test_redis_that_is_away_is_one_sentence(command: CommandLine) -> None:
    """No traceback, no endless wait, and the way to find out more."""
    environment: dict[str, Any] = json.loads(command.ok("env", "--json")) | {
        "NANOGRID_RESULT_URL": "redis://127.0.0.1:9/0"
    }
    done = command.run("result", "x", variables=environment)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("error: Redis at redis://127.0.0.1:9/0 does not answer: ")
    assert b"run `nanogrid doctor` for details" in done.stderr
    assert len(done.stderr.splitlines()) == 1
