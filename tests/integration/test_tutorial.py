"""docs/tutorial.md on a real local stack: what it tells people to type works, and prints what it shows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import CommandLine

TUTORIAL = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text()
MAIN, _, PROGRAM = re.findall(r"^```python\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"\d+ ms · \d+ of \d+ MiB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder, with the function `words` in it."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "words").mkdir()
    (folder / "words" / "main.py").write_text(MAIN)
    return folder


def invocations(step: int) -> list[tuple[list[str], list[str]]]:
    """The words of each `nanogrid invoke` that a step shows, and the lines that it shows below."""
    section = re.split(r"^## \d\. ", TUTORIAL, flags=re.MULTILINE)[step]
    shown = re.findall(r"^    \$ nanogrid (invoke .*)\n((?:    [^$\s].*\n|      .*\n)*)", section, re.MULTILINE)
    return [(shlex.split(words), [line.strip() for line in lines.splitlines()]) for words, lines in shown]


def test_the_function_prints_what_is_shown(command: CommandLine, folder: Path) -> None:
    """Each `nanogrid invoke` of step 3, in turn: output, outcome, kind of start and value, or the traceback."""
    steps = invocations(3)
    assert [len(shown) > 2 for _, shown in steps] == [True] * 3
    for (verb, name, *rest), shown in steps:
        done = command.run(verb, str(folder / name), *rest)
        printed = MEASURED.sub("", (done.stdout + done.stderr).decode())
        lines = [line.strip() for line in printed.splitlines()]
        assert [line for line in shown if MEASURED.sub("", line) not in lines] == [], printed


def test_limits_may_be_named(command: CommandLine, folder: Path) -> None:
    """The `nanogrid invoke` of step 5 succeeds within the limits that it names."""
    (((verb, name, *rest), _),) = invocations(5)
    command.ok(verb, str(folder / name), *rest)


def test_the_function_runs_without_nanogrid(folder: Path) -> None:
    """The line of step 2 that runs it by Python alone, in its folder."""
    (line,) = re.findall(r"`(echo .*)` runs it too", TUTORIAL)
    done = subprocess.run(["bash", "-c", line], cwd=folder / "words", capture_output=True, text=True, check=True)
    assert '{"a": 1, "rose": 1}' in done.stdout
    assert "2 different words\n" in done.stdout


def test_the_program_prints_what_is_shown(command: CommandLine, folder: Path) -> None:
    """The producer of step 6, with the environment that `nanogrid env` prints."""
    command.ok("invoke", str(folder / "words"), "--payload", '{"text": "makes the bucket"}')
    environment = {**command.environment, **json.loads(command.ok("env", "--json"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    (value,) = re.findall(r'\["value"\]\)  # (.*)', PROGRAM)
    assert first.endswith(value)
    assert "SUCCEEDED {'one': 1, 'two': 1}" in second
