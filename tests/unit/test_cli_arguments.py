"""What `nanogrid` makes of its arguments, without any service."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from nanogrid.cli.exit_codes import explain
from nanogrid.cli.function_source import LocalCode, StoredCode, find_source, guess_runtime, pack
from nanogrid.cli.inputs import input_fields, parse_env, parse_payload
from nanogrid.cli.output import facts, print_result
from nanogrid.cli.target import deployment_variables, find_target
from nanogrid.errors import CodeError, ConfigurationError, InvalidRequestError
from nanogrid.local.environment import process_environment, producer_environment, shell_lines
from nanogrid.local.folder import Ports, StackFolder
from nanogrid.result import ExecutionResult, Outcome
from nanogrid.settings import Settings
from tests.support.command import ENTRY

PYTHON = Settings().runtime_table["python"]
CPP = Settings().runtime_table["cpp"]


@pytest.fixture
def no_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no deployment."""
    for name in deployment_variables():
        monkeypatch.delenv(name)


def result(**fields: object) -> ExecutionResult:
    base = {
        "requestId": "r", "functionId": "f", "exitCode": 0, "stdout": "", "stderr": "",
        "durationMillis": 5, "success": True, "outcome": Outcome.SUCCEEDED,
    }  # fmt: skip
    return ExecutionResult.model_validate({**base, **fields})


def test_env_words_become_a_mapping() -> None:
    """The value may hold further equals signs, or nothing; the last of a name wins."""
    assert parse_env(["A=1", "B=x=y", "C=", "A=2"]) == {"A": "2", "B": "x=y", "C": ""}


def test_env_word_without_equals_sign_is_refused() -> None:
    """The sentence shows the word."""
    with pytest.raises(InvalidRequestError, match="'A' is not NAME=VALUE"):
        parse_env(["A"])


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"hunter2", "hunter2"),
        (b"hunter2\n", "hunter2"),
        (b"hunter2\r\n", "hunter2"),
        (b"two\nlines\n\n", "two\nlines\n"),
        (b" spaced \n", " spaced "),
        (b"\n", ""),
        (b"", ""),
        ("pässwörd".encode(), "pässwörd"),
        (b"@not-a-file", "@not-a-file"),
    ],
)
def test_env_value_from_a_file(tmp_path: Path, content: bytes, value: str) -> None:
    """NAME=@FILE is the file's text without the one line end that editors and `echo` put there."""
    (tmp_path / "token").write_bytes(content)
    assert parse_env([f"TOKEN=@{tmp_path / 'token'}"]) == {"TOKEN": value}


def test_env_value_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME=@- reads standard input, likewise."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hunter2\n")))
    assert parse_env(["TOKEN=@-", "PLAIN=-"]) == {"TOKEN": "hunter2", "PLAIN": "-"}


def test_env_value_from_a_pipe() -> None:
    """What a shell's <(command) gives has no size beforehand, and is read all the same."""
    reader, writer = os.pipe()
    os.write(writer, b"hunter2\n")
    os.close(writer)
    try:
        assert parse_env([f"TOKEN=@/dev/fd/{reader}"]) == {"TOKEN": "hunter2"}
    finally:
        os.close(reader)


def test_env_value_that_begins_with_an_at_sign() -> None:
    """Doubled it stands for itself; elsewhere in a value it needs nothing."""
    assert parse_env(["A=@@home", "B=@@", "C=@@@x", "D=me@home"]) == {
        "A": "@home",
        "B": "@",
        "C": "@@x",
        "D": "me@home",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"token, for 'TOKEN', cannot be read: No such file or directory; give an existing file, or TOKEN=@@",
        ),
        (b"caf\xe9 hunter2", r"token, for 'TOKEN', is not UTF-8 text: give a file with text, such as base64"),
        (b"hunter2" * 20_000, r"token, for 'TOKEN', is too large: a variable with its name has at most 131071 bytes"),
    ],
)
def test_unusable_file_of_an_env_value_is_explained(tmp_path: Path, content: bytes | None, message: str) -> None:
    """One sentence, in which nothing of the value stands."""
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse_env([f"TOKEN=@{tmp_path / 'token'}"])
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_without_end_is_not_read_for_ever() -> None:
    """Reading ends soon after the most that a variable can hold."""
    with pytest.raises(InvalidRequestError, match="/dev/zero, for 'TOKEN', is too large"):
        parse_env(["TOKEN=@/dev/zero"])


def test_the_largest_value_of_a_file_is_one_that_linux_can_hand_to_a_program(tmp_path: Path) -> None:
    """The limit is the kernel's own: a real program gets that much, and not a byte more."""
    (tmp_path / "token").write_bytes(b"x" * (131_071 - len("TOKEN=")))
    env = parse_env([f"TOKEN=@{tmp_path / 'token'}"])
    assert subprocess.run(["/bin/sh", "-c", "test -n $TOKEN"], env=env, check=False).returncode == 0
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["/bin/true"], env={"TOKEN": env["TOKEN"] + "x"}, check=False)
    (tmp_path / "token").write_bytes(b"x" * (131_072 - len("TOKEN=")))
    with pytest.raises(InvalidRequestError, match="too large"):
        parse_env([f"TOKEN=@{tmp_path / 'token'}"])


def test_a_folder_is_no_file_of_an_env_value(tmp_path: Path) -> None:
    """A folder, and no name at all, are told as such."""
    with pytest.raises(InvalidRequestError, match="cannot be read: Is a directory"):
        parse_env([f"TOKEN=@{tmp_path}"])
    with pytest.raises(
        InvalidRequestError, match=r"'TOKEN=@' names no file: give TOKEN=@FILE, or TOKEN=@@ for the text @"
    ):
        parse_env(["TOKEN=@"])


@pytest.mark.parametrize(("env", "payload"), [(["A=@-", "B=@-"], None), (["A=@-"], "-")])
def test_stdin_is_for_one(env: list[str], payload: str | None) -> None:
    """The second would find nothing left, so nothing is read."""
    with pytest.raises(
        InvalidRequestError, match="standard input can be read only for one of --env, --payload and --stdin"
    ):
        input_fields(env, payload)


@pytest.mark.parametrize(
    ("text", "value"), [(None, None), ("3", 3), ('"text"', "text"), ('{"a": [1, null]}', {"a": [1, None]})]
)
def test_payload_is_json(text: str | None, value: object) -> None:
    """Any JSON value is a payload."""
    assert parse_payload(text) == value


def test_payload_from_a_file(tmp_path: Path) -> None:
    """@NAME reads the file, as UTF-8."""
    (tmp_path / "p.json").write_bytes('{"ü": 1}'.encode())
    assert parse_payload(f"@{tmp_path / 'p.json'}") == {"ü": 1}


def test_payload_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dash reads standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[1]")))
    assert parse_payload("-") == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("hello", "is not JSON.*its own quotes"), ("@/no/such", "/no/such cannot be read"), ("", "is not JSON")],
)
def test_unusable_payload_is_explained(text: str, message: str) -> None:
    """The sentence says how a plain text has to be written."""
    with pytest.raises(InvalidRequestError, match=message):
        parse_payload(text)


def test_s3_url_is_taken_apart() -> None:
    """Bucket, key with its slashes, and a name for the function."""
    assert find_source("s3://b/a/thumb.v2.zip") == StoredCode("b", "a/thumb.v2.zip")
    assert StoredCode("b", "a/thumb.v2.zip").stem == "thumb"


@pytest.mark.parametrize("text", ["s3://bucket", "s3://bucket/", "s3:/bucket/key", "s3:///key"])
def test_broken_s3_url_is_refused(text: str) -> None:
    """A typo does not become the name of a local file."""
    with pytest.raises(CodeError, match="not a usable S3 address"):
        find_source(text)


def test_missing_path_is_refused() -> None:
    """The sentence says what is accepted."""
    with pytest.raises(CodeError, match="does not exist: give a folder"):
        find_source("/no/such/function")


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"3 4\r\n", {"stdin": "3 4\r\n"}),
        ("ü, and a good many words after it\n".encode(), {"stdin": "ü, and a good many words after it\n"}),
        (b"", {"stdin": ""}),
        (b"\xff\n", {"stdinBase64": "/wo="}),
        (b"\0" * 9, {"stdinBase64": "AAAAAAAAAAAA"}),
    ],
)
def test_stdin_is_sent_as_text_or_as_bytes(
    raw: bytes, field: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, from this command's own stdin, or as a word: nothing is added or taken away, and the shorter form travels."""
    (tmp_path / "in").write_bytes(raw)
    assert input_fields([], None, str(tmp_path / "in"), None) == {"env": {}, **field}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert input_fields([], None, "-", None) == {"env": {}, **field}
    assert input_fields([], None, None, os.fsdecode(raw)) == {"env": {}, **field}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (([], "1", "in", None), "--payload and --stdin each give the function's input: use only one"),
        (([], None, "in", "text"), "--stdin and --stdin-text each give"),
        (([], "1", None, ""), "--payload and --stdin-text each give"),
        ((["A=@-"], None, "-", None), "can be read only for one of --env, --payload and --stdin"),
        (([], None, "/no/such/file", None), "/no/such/file cannot be read: No such file"),
        (([], None, "", None), "--stdin names no file"),
        (([], None, "/dev/zero", None), "/dev/zero has more than the 1048576 bytes that fit into a message"),
    ],
)
def test_stdin_that_cannot_be_given_is_refused(words: tuple[list[str], str, str, str], says: str) -> None:
    """Before anything is sent, and however much there is to be read."""
    with pytest.raises(InvalidRequestError, match=says):
        input_fields(*words)


def zipped(path: Path, *names: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


@pytest.mark.parametrize(("name", "runtime"), [("main.py", "python"), ("run.sh", "cpp")])
def test_runtime_is_seen_from_the_required_file(tmp_path: Path, name: str, runtime: str) -> None:
    """In a folder and in a zip alike."""
    archive = zipped(tmp_path / "f.zip", name, "data.txt")
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / name).write_text("")
    for source in (find_source(str(folder)), find_source(str(archive))):
        assert guess_runtime(source, Settings()) == runtime


@pytest.mark.parametrize(("name", "runtime"), [("hello.py", "python"), ("job.sh", "cpp")])
def test_runtime_is_seen_from_a_files_ending(tmp_path: Path, name: str, runtime: str) -> None:
    """A file alone says by its ending what it is."""
    (tmp_path / name).write_text("")
    assert guess_runtime(find_source(str(tmp_path / name)), Settings()) == runtime


def test_deployments_own_runtime_is_seen(tmp_path: Path) -> None:
    """A runtime that a deployment adds is guessed by the same rule."""
    settings = Settings.model_validate(
        {"runtimes": {"node": {"image": "node:22", "command": ["node", "main.js"], "requiredFile": "main.js"}}}
    )
    (tmp_path / "main.js").write_text("")
    assert guess_runtime(find_source(str(tmp_path)), settings) == "node"


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "has no main.py or run.sh"), (("main.py", "run.sh"), "the required files of python and cpp")],
)
def test_runtime_is_never_a_coin_toss(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    """Nothing to see, or two things, ask for --runtime."""
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(InvalidRequestError, match=f"{message}.*give --runtime"):
        guess_runtime(find_source(str(tmp_path)), Settings())


def tarred(path: Path, *names: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return path


def filled(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
    return path


MAKERS = {"f.zip": zipped, "f.tar.gz": tarred, "f": filled}


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize(
    ("file", "handler"), [("todos.py", "todos.get"), ("todos/get.py", "todos/get.get"), ("requirements.txt", "lib.f")]
)
def test_a_handler_says_the_runtime_without_main_py(form: str, file: str, handler: str, tmp_path: Path) -> None:
    """Only one runtime has handlers; the same for a folder, a zip, a tar and what is in S3 already."""
    source = find_source(str(MAKERS[form](tmp_path / form, file)))
    assert guess_runtime(source, Settings(), handler=handler) == "python"
    assert isinstance(source, LocalCode)
    assert pack(source, PYTHON, Settings(), handler=handler)
    assert guess_runtime(StoredCode("code", "f.zip"), Settings(), handler=handler) == "python"


def test_a_handler_and_two_runtimes_with_handlers_leave_the_choice_to_the_files(tmp_path: Path) -> None:
    """Where they do not tell, --runtime is asked for."""
    newer = PYTHON.model_copy(update={"required_file": "newer.py", "queue": "newer"})
    settings = Settings(runtimes={"newer": newer})
    assert (
        guess_runtime(find_source(str(filled(tmp_path / "a", "newer.py", "x.py"))), settings, handler="x.f") == "newer"
    )
    with pytest.raises(InvalidRequestError, match=r"python and newer have handlers.*give --runtime"):
        guess_runtime(find_source(str(filled(tmp_path / "b", "x.py"))), settings, handler="x.f")


@pytest.mark.parametrize("form", MAKERS)
def test_a_handler_in_no_module_of_the_code_is_told_before_anything_is_sent(form: str, tmp_path: Path) -> None:
    """As a missing main.py is."""
    source = find_source(str(MAKERS[form](tmp_path / form, "other.py", "data/x.txt")))
    assert isinstance(source, LocalCode)
    with pytest.raises(CodeError, match=r"has no todos\.py \(or a package 'todos'\), which the handler names"):
        pack(source, PYTHON, Settings(), handler="todos.get")


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize(("file", "handler"), [("main.py", None), ("run.sh", None), ("todos/get.py", "todos/get.get")])
def test_code_in_one_folder_is_told_as_such(form: str, file: str, handler: str | None, tmp_path: Path) -> None:
    """Whether the runtime is given or to be seen; a file beside the folder changes nothing."""
    for number, beside in enumerate([(), ("README.md",), ("__MACOSX/x", ".git/config")]):
        source = find_source(
            str(MAKERS[form](tmp_path / str(number) / form, f"./project/{file}", "./project/x", *beside))
        )
        assert isinstance(source, LocalCode)
        with pytest.raises(CodeError, match=r"not at the top of .* but in the folder 'project/': "):
            pack(source, PYTHON if handler or file == "main.py" else CPP, Settings(), handler=handler)
        if handler is None:
            with pytest.raises(CodeError, match=r"not at the top of .* but in the folder 'project/': "):
                guess_runtime(source, Settings(), handler=None)


def test_a_single_file_with_a_handler_keeps_its_name(tmp_path: Path) -> None:
    """Else its module would not be there; one that is called by the name of what the runtime starts gets that."""
    (tmp_path / "hello.py").write_text("")
    source = find_source(str(tmp_path / "hello.py"))
    assert isinstance(source, LocalCode)
    for handler, name in (("hello.f", "hello.py"), ("main.f", "main.py"), (None, "main.py")):
        packed = pack(source, PYTHON, Settings(), handler=handler)
        assert zipfile.ZipFile(io.BytesIO(packed)).namelist() == [name]
    with pytest.raises(CodeError, match=r"has no other\.py"):
        pack(source, PYTHON, Settings(), handler="other.f")


def test_archives_are_uploaded_as_they_are(tmp_path: Path) -> None:
    """Zip and tar keep their bytes."""
    archive = zipped(tmp_path / "f.zip", "main.py")
    tar = tmp_path / "f.tar.gz"
    with tarfile.open(tar, "w:gz") as opened:
        opened.add(archive, "main.py")
    for path in (archive, tar):
        source = find_source(str(path))
        assert isinstance(source, LocalCode)
        assert pack(source, PYTHON, Settings()) == path.read_bytes()


def test_archive_over_the_limit_is_refused(tmp_path: Path) -> None:
    """Before it is read into memory."""
    path = zipped(tmp_path / "f.zip", "main.py")
    with path.open("ab") as file:
        file.truncate(2 * 1024 * 1024)
    source = LocalCode(path, frozenset(), is_archive=True)
    with pytest.raises(CodeError, match="workers accept at most 1048576"):
        pack(source, PYTHON, Settings(archive_limit_mb=1))


def test_folder_needs_what_its_runtime_starts(tmp_path: Path) -> None:
    """Said here, and not by a container that finds no file; a handler needs no main.py."""
    (tmp_path / "app.py").write_text("")
    source = find_source(str(tmp_path))
    assert isinstance(source, LocalCode)
    with pytest.raises(CodeError, match=r"has no main\.py"):
        pack(source, PYTHON, Settings())
    assert pack(source, PYTHON, Settings(), handler="app.run")


def test_cpp_source_alone_gets_a_recipe(tmp_path: Path) -> None:
    """A source file cannot be started; the sentence holds the run.sh that compiles it."""
    (tmp_path / "hello.cpp").write_text("int main() {}")
    source = find_source(str(tmp_path / "hello.cpp"))
    assert isinstance(source, LocalCode)
    with pytest.raises(CodeError, match=r"run\.sh such as: g\+\+ -O2 -o main hello\.cpp && \./main"):
        pack(source, CPP, Settings())


def test_output_is_passed_on_byte_by_byte(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """No line end is translated, none is added, and the streams stay apart."""
    print_result(result(stdout="a\r\nb\x00ü", stderr="e"), as_json=False)
    captured = capfdbinary.readouterr()
    assert captured.out == "a\r\nb\x00ü".encode()
    assert captured.err.startswith(b"e\nSUCCEEDED")


def test_json_is_the_result_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """It reads back as the same ExecutionResult, in any locale, and stderr stays empty."""
    told = result(stdout="ü\n", value={"a": 1})
    print_result(told, as_json=True)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.isascii()
    assert ExecutionResult.from_wire(json.loads(captured.out)) == told


def test_summary_tells_what_was_cut() -> None:
    """Truncated output and further attempts are worth a word."""
    told = result(stdoutTruncated=True, attempt=2, peakMemoryBytes=3 * 2**20, memoryLimitMb=64)
    assert facts(told) == ["exit code 0", "5 ms", "3 of 64 MiB", "attempt 2", "stdout was cut"]


def test_region_alone_names_no_deployment(no_deployment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """People have AWS_REGION set for other reasons; a profile, key or endpoint does name one."""
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("NANOGRID_TIMEOUT_MS", "5")
    assert deployment_variables() == []
    monkeypatch.setenv("AWS_PROFILE", "x")
    monkeypatch.setenv("NANOGRID_RESULT_URL", "redis://x")
    assert deployment_variables() == ["AWS_PROFILE", "NANOGRID_RESULT_URL"]


def test_no_deployment_at_all_says_how_to_get_one(
    no_deployment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither an environment nor a running stack: nothing is sent to AWS by accident."""
    monkeypatch.setenv("NANOGRID_LOCAL_DIR", str(tmp_path))
    with pytest.raises(ConfigurationError, match="nanogrid up --detach"):
        find_target()


def test_environment_wins_over_the_local_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named explicitly is used, and a server on this machine counts as local."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")
    monkeypatch.setenv("NANOGRID_MEMORY_MB", "77")
    target = find_target()
    assert (target.settings.memory_mb, target.is_local) == (77, True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    assert not find_target().is_local


def test_broken_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence holds the variable's own name and its value."""
    monkeypatch.setenv("NANOGRID_TIMEOUT_MS", "soon")
    with pytest.raises(ConfigurationError, match=r"NANOGRID_TIMEOUT_MS: .*got 'soon'"):
        find_target()


def test_bugs_keep_their_traceback() -> None:
    """Only what is understood is made short."""
    assert explain(ValueError("bug")) is None
    assert explain(ConfigurationError("told")) == "told"


def test_shell_lines_survive_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blanks, quotes and dollar signs of a path come out of the shell as they went in."""
    folder = StackFolder(tmp_path / "a b'c $HOME")
    monkeypatch.setenv("AWS_PROFILE", "real")
    lines = shell_lines(producer_environment(folder, Ports(), []))
    assert lines[0].startswith("unset ")
    assert "AWS_PROFILE" in lines[0].split()
    script = "\n".join([*lines, 'printf %s "$NANOGRID_DATA_DIR"'])
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == str(
        folder.worker_data
    )


@pytest.mark.parametrize(
    ("present", "image"),
    [
        ({"python:3.9-slim", "nanogrid/python:3.9"}, None),
        ({"nanogrid/python:3.9"}, "nanogrid/python:3.9"),
        (set(), None),
    ],
)
def test_own_image_only_where_the_official_is_missing(tmp_path: Path, present: set[str], image: str | None) -> None:
    """The official image comes first; where neither is there, it is left to be pulled."""
    environment = producer_environment(StackFolder(tmp_path), Ports(), present)
    assert environment.get("NANOGRID_PYTHON_IMAGE") == image


def test_chosen_image_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the person set wins over what is there."""
    monkeypatch.setenv("NANOGRID_PYTHON_IMAGE", "mine")
    environment = producer_environment(StackFolder(tmp_path), Ports(), {"nanogrid/python:3.9"})
    assert process_environment(environment)["NANOGRID_PYTHON_IMAGE"] == "mine"


def test_builds_of_the_local_stack_have_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """requirements.txt works there without any setting, and what the person set wins."""
    monkeypatch.delenv("NANOGRID_BUILD_NETWORK", raising=False)
    environment = producer_environment(StackFolder(tmp_path), Ports(), [])
    assert process_environment(environment)["NANOGRID_BUILD_NETWORK"] == "bridge"
    monkeypatch.setenv("NANOGRID_BUILD_NETWORK", "mine")
    environment = producer_environment(StackFolder(tmp_path), Ports(), [])
    assert process_environment(environment)["NANOGRID_BUILD_NETWORK"] == "mine"


def test_help_imports_nothing_heavy() -> None:
    """`nanogrid --help` answers at once: no Docker, AWS, Celery, Redis, pydantic or rich is loaded for it."""
    script = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "import atexit; heavy = {'docker', 'boto3', 'botocore', 'celery', 'kombu', 'redis', 'pydantic', 'rich.console'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        "from nanogrid.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout


@pytest.mark.parametrize(
    "command", ["up", "down", "status", "env", "invoke", "result", "results", "cancel", "doctor", "pool"]
)
def test_every_command_has_help(command: str) -> None:
    """Help needs no stack, no Docker and no settings, and goes to stdout."""
    done = subprocess.run([*ENTRY, command, "--help"], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command"),
        (["invoke"], "Missing argument"),
        (["up", "--redis-port", "0"], "Invalid value for '--redis-port'"),
        (["invoke", "x", "--timeout-ms", "soon"], "Invalid value for '--timeout-ms'"),
    ],
)
def test_wrong_use_exits_with_2(words: list[str], message: str) -> None:
    """Wrong words end in one message on stderr and exit code 2."""
    done = subprocess.run([*ENTRY, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
