"""What a requirements.txt may say, held against pip's own parser: what is accepted, pip reads in our copy as we did."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pip._internal.exceptions import PipError

from nanogrid.errors import LayerBuildError
from nanogrid.execution.layers import requirements
from nanogrid.execution.layers.requirements import Requirements
from tests.support.pip_reading import reading
from tests.support.requirements_corpus import ACCEPTED, FILES, HOSTILE, WHEEL_FILE, Written

CODE = "/nanogrid/code"
"""Where the code lies in a build."""


@pytest.fixture(scope="module")
def code() -> Iterator[Path]:
    """Code with files that a requirements.txt can name, and some that are not what their names say."""
    with tempfile.TemporaryDirectory(prefix="code-") as folder:
        path = Path(folder).resolve()
        for name, content in FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        yield path


def ours(code: Path, text: Written, *, wheels_only: bool = True) -> Requirements | None:
    """The requirements of this code with this text."""
    (code / "requirements.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return requirements.read(code, wheels_only=wheels_only)


def of_our_copy(wanted: Requirements, code: Path) -> dict[str, Any]:
    """What pip reads in what it is given, with nothing else around."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("requirements.txt", wanted.text), ("constraints.txt", wanted.constraints_text)):
            assert text.isascii()
            (Path(folder) / name).write_text(text.replace(CODE, str(code)))
        return reading(folder, constraints=True)


def of_the_original(code: Path) -> dict[str, Any] | None:
    """What pip would have read in the function's own file; None where it cannot read it."""
    try:
        return reading(str(code))
    except (PipError, RecursionError, UnicodeDecodeError, LookupError, OSError, ValueError):
        return None


def held_against_pip(code: Path, text: Written, *, wheels_only: bool) -> bool:
    """Whether it is accepted. Then pip must read our copy as we did, and as it would have read the original."""
    try:
        wanted = ours(code, text, wheels_only=wheels_only)
    except LayerBuildError:
        return False
    if wanted is None:
        return True
    seen = of_our_copy(wanted, code)
    named = [line for line in (*wanted.lines, *wanted.constraints) if not line.option]
    assert len(seen["requirements"]) == len(named)
    assert sum(constraint for *_, constraint in seen["requirements"]) == len(wanted.constraints)
    for _, _, _, link, wheel, _, _, settings_of_one, config, editable, _ in seen["requirements"]:
        assert not editable
        if wheels_only:
            assert link is None or wheel
            assert not settings_of_one
            assert not config
    if wheels_only:
        assert seen["formats"][0] == []
        assert ":all:" in seen["formats"][1]
    original = of_the_original(code)
    assert original is None or original == seen
    return True


@pytest.mark.parametrize("wheels_only", [True, False])
@pytest.mark.parametrize("text", ACCEPTED, ids=ascii)
def test_what_people_write_means_to_pip_what_it_means_to_us(code: Path, text: Written, wheels_only: bool) -> None:
    """Usual files are accepted, and pip reads our copy of them as it reads them."""
    assert held_against_pip(code, text, wheels_only=wheels_only)
    assert of_the_original(code) is not None


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_pip_reads_in_another_way_is_refused(code: Path, text: Written) -> None:
    """What looks like wheels alone and is more to pip, of any version, is refused."""
    with pytest.raises(LayerBuildError, match=r"^[a-z/]+\.txt "):
        ours(code, text)


PIECES = [
    *(
        "six",
        "Zope.Interface",
        "==1.0",
        ">=1,<2",
        "~=1.4",
        "===1",
        "[a]",
        "[a, b]",
        "(>=1)",
        "@",
        "; ",
        ";",
        "extra == 'x'",
    ),
    *(
        "python_version<'3.10'",
        ' platform_version == " --pre"',
        "https://h.example/",
        WHEEL_FILE,
        "six-1.0.tar.gz",
        "./",
        "./package",
    ),
    *(
        "--hash=sha256:0a",
        "--hash sha256:0b",
        "--hash",
        "--pre",
        "--no-binary",
        ":all:",
        "--no-binary=:all:",
        "--no-b=six",
    ),
    *(
        "--only-binary=",
        ":none:",
        "-r",
        "-c",
        " more.txt",
        "limits.txt",
        "-e",
        " .",
        "--index-url",
        "=",
        "-i",
        "-f wheels",
    ),
    *(
        "--find-links=wheels",
        "--trusted-host h.example",
        "--extra-index-url https://h.example/s",
        "--require-hashes",
        "--",
    ),
    *(
        "\n",
        "\n",
        "\n",
        " ",
        " ",
        "\t",
        "\\\n",
        "\\",
        "\\\\\n",
        "#",
        " # ",
        "'",
        '"',
        "${HOME}",
        "$",
        "%20",
        "\r",
        "\r\n",
    ),
    *(
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\u2028",
        "\xa0",
        "\ufeff",
        "ü",
        ".whl",
        ".WHL",
        ".tar.whl",
        ".tlz",
        "a/",
        "../",
        "//",
    ),
    *(
        "# coding: utf-7\n",
        "+AAo-",
        "# -*- coding: utf-8 -*-\n",
        "-",
        "--no-index",
        "--config-settings=a=b",
        "file:",
        "!",
        "~",
    ),
]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join), wheels_only=st.booleans())
@example(text=f"local @ file:{WHEEL_FILE}", wheels_only=True)
@example(text='six --hash=sha256:0a "--no-binary=:all:"', wheels_only=True)
def test_whatever_is_accepted_means_the_same_to_pip(code: Path, text: str, wheels_only: bool) -> None:
    """Any text made of what pip's parser knows is refused, or is to pip in our copy what it was to us and to it."""
    held_against_pip(code, text, wheels_only=wheels_only)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=40), start=st.sampled_from([b"", b"six\n", b"\xef\xbb\xbf", b"\xff\xfe", b"# coding: "]))
def test_any_bytes_are_refused_or_mean_the_same_to_pip(code: Path, data: bytes, start: bytes) -> None:
    """Encodings included: nothing is read in two ways."""
    held_against_pip(code, start + data, wheels_only=True)


@pytest.mark.parametrize(
    "text",
    [
        "six" + " " * 500_000 + "x",
        "six[" + " " * 500_000 + "x",
        "six[a" + " " * 500_000 + "x",
        "six @ " + "a" * 500_000 + '"',
        "six" + " " * 500_000 + "x # y",
        "https://" + "a" * 500_000 + "<",
        "a" * 500_000 + "<",
        "1" * 500_000 + "-" * 400_000,
        "six ; " + "(" * 500_000,
        "six" + " --hash=sha256:0a" * 30_000,
        "six[" + "a," * 200_000,
        "https://h.example/" + "a/" * 200_000 + "<",
        "six==" + "1." * 200_000 + "x",
        "\\\n" * 200_000,
    ],
    ids=lambda text: text[:12],
)
def test_long_files_are_read_in_a_moment(code: Path, text: str) -> None:
    """Reading takes time by length and not by its square: it happens in a worker's child."""
    began = time.process_time()
    with suppress(LayerBuildError):
        ours(code, text)
    assert time.process_time() - began < 3


def test_the_copy_is_written_out(code: Path) -> None:
    """What pip is given has one form, whatever the function's file looks like."""
    wanted = ours(
        code,
        "\ufeff# -*- coding: utf-8 -*-\n  Six [ a,b ] ( >= 1.0, <2 ) ;python_version<'3.10' --hash sha256:0a\n"
        f"-f wheels\n./sub/../{WHEEL_FILE}\n".replace("sub/../", "./")
        + "-i https://h.example/s\n-c limits.txt\n-r more.txt\n",
    )
    assert wanted is not None
    assert wanted.text == (
        "Six[a,b]>=1.0,<2 ; python_version < '3.10' --hash=sha256:0a\n"
        f"--find-links={CODE}/wheels\n{CODE}/{WHEEL_FILE}\n--index-url=https://h.example/s\nnumpy\n"
    )
    assert wanted.constraints_text == "six<2\n"


def test_a_file_that_is_included_is_included_once_at_a_time(code: Path) -> None:
    """Files that include each other are refused, two that include a third are not; their number has a limit."""
    (code / "round.txt").write_text("-r round.txt\n")
    with pytest.raises(LayerBuildError, match=r"round\.txt includes round\.txt, which includes it in turn"):
        ours(code, "-r round.txt\n")
    assert held_against_pip(code, "-r more.txt\n-r more.txt\n", wheels_only=True)
    with pytest.raises(LayerBuildError, match="includes more than 20 files"):
        ours(code, "-r more.txt\n" * 20)


def test_a_link_out_of_the_code_names_nothing(code: Path) -> None:
    """The code's own links lead nowhere else (see the archive's rules), and a folder is no wheel by its name."""
    folder = code / "folder-1.0-py3-none-any.whl"
    folder.mkdir()
    (folder / "setup.py").touch()
    try:
        with pytest.raises(LayerBuildError, match="only wheels are installed"):
            ours(code, f"./{folder.name}\n")
        assert ours(code, f"./{folder.name}\n", wheels_only=False) is not None
    finally:
        shutil.rmtree(folder)
