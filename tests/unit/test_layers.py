"""Layers on plain data: what requirements.txt says, what decides an id, what a log keeps, what is remembered."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from nanogrid.errors import CodeError, CodeUnavailableError, LayerBuildError
from nanogrid.execution.code import Code, locks
from nanogrid.execution.code.locks import try_exclusive
from nanogrid.execution.container.labels import owners_folder
from nanogrid.execution.layers import build_claims, requirements
from nanogrid.execution.layers.build_log import HEAD_BYTES, TAIL_BYTES, BuildLog, prune
from nanogrid.execution.layers.failed_builds import FailedBuilds
from nanogrid.execution.layers.lines import RequirementLine
from nanogrid.execution.layers.recipes import Needs, needs, packages_recipe, tree_recipe
from nanogrid.execution.layers.requirements import Requirements
from nanogrid.runtimes import CPP, PYTHON
from nanogrid.settings import Settings
from tests.support.interleaved import before_every_line


def read(folder: Path, text: str, *, wheels_only: bool = True, **more: str) -> Requirements | None:
    """The requirements of code with this requirements.txt and further files beside it."""
    (folder / "requirements.txt").write_text(text)
    for name, content in more.items():
        (folder / f"{name}.txt").write_text(content)
    return requirements.read(folder, wheels_only=wheels_only)


def found(folder: Path, text: str, *, wheels_only: bool = True) -> Requirements:
    """The requirements of a text that has some."""
    known = read(folder, text, wheels_only=wheels_only)
    assert known is not None
    return known


# -- requirements.txt


def test_comments_blank_lines_and_line_ends_do_not_count(tmp_path: Path) -> None:
    """Two texts that mean the same to pip are the same requirements."""
    text = "\ufeff# ours\r\n\r\nnumpy==2.0  # fast\r\nrequests \\\r\n  >=2\r\n"
    assert found(tmp_path, text).text == "numpy==2.0\nrequests>=2\n"


@pytest.mark.parametrize("text", ["", "\n\n", "# numpy\n", "   \n#\n"])
def test_an_empty_file_asks_for_nothing(tmp_path: Path, text: str) -> None:
    """A requirements.txt without a requirement is as good as none."""
    assert read(tmp_path, text) is None


@pytest.mark.parametrize(
    "line",
    [
        "numpy",
        "numpy==2.0.2",
        "requests[security, socks]>=2.8.1,<3",
        "six ; python_version < '3.10'",
        "six===1.0",
        "six==1.0 --hash=sha256:abc",
        "six==1.0 \\\n    --hash=sha256:abc \\\n    --hash=sha256:def",
        "zope.interface~=5.0",
        "--pre",
        "--only-binary=:all:",
    ],
)
def test_plain_requirements_stand_alone(tmp_path: Path, line: str) -> None:
    """Requirements by name are the same for any code, and come from the deployment's index."""
    known = found(tmp_path, f"{line}\n")
    assert (known.alone, known.default_index) == (True, True)


@pytest.mark.parametrize(
    ("line", "alone"),
    [
        ("--extra-index-url https://example.org/simple", True),
        ("--index-url=https://example.org/simple", True),
        ("six @ https://example.org/six-1.0-py3-none-any.whl", True),
        ("https://example.org/six-1.0-py3-none-any.whl#sha256=abc", True),
        ("--find-links wheels", False),
        ("./six-1.0-py3-none-any.whl", False),
        ("six-1.0-py3-none-any.whl", False),
        ("six @ file:six-1.0-py3-none-any.whl", False),
    ],
)
def test_addresses_and_files_are_told_apart_from_names(tmp_path: Path, line: str, alone: bool) -> None:
    """What names an address is not the index's trouble; what names a file depends on the code."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "six-1.0-py3-none-any.whl").touch()
    known = found(tmp_path, f"{line}\nnumpy\n")
    assert (known.alone, known.default_index) == (alone, not alone and "find-links" not in line)


@pytest.mark.parametrize(
    "line",
    [
        "--no-binary :all:",
        "--only-binary :none:",
        ".",
        "./package",
        "six @ https://example.org/six-1.0.tar.gz",
        "https://example.org/six-1.0.tar.gz#egg=six",
        "six-1.0.tar.gz",
        "six --global-option=x",
    ],
)
def test_what_could_bring_in_more_than_wheels_is_refused(tmp_path: Path, line: str) -> None:
    """Where only wheels are installed no line may say otherwise; elsewhere it may, for this code alone or from its address."""
    for folder in (tmp_path, tmp_path / "package"):
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").touch()
    (tmp_path / "six-1.0.tar.gz").touch()
    with pytest.raises(LayerBuildError, match="only wheels are installed") as refused:
        read(tmp_path, f"numpy\n{line}\n")
    assert repr(line)[1:-1] in str(refused.value)
    assert "requirements.txt" in str(refused.value)
    assert read(tmp_path, f"numpy\n{line}\n", wheels_only=False) is not None


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("--no-b=:all:", "one option per line is supported"),
        ("--pre --no-binary=:all:", "one option per line is supported"),
        ("-e .", "name a wheel or a folder without -e"),
        ("--editable=.", "name a wheel or a folder without -e"),
        ("-r https://example.org/more.txt", "add that file to the code"),
        ("git+https://example.org/six.git", "name a wheel or an archive of it"),
        ("six @ git+https://example.org/six.git", "name the address of a wheel or of a source archive"),
        ("six --pre", "only --hash is allowed"),
        ('six --hash="sha256:0a"', "write it without"),
        ("six-1.0.tar.gz", "not a file of the code"),
        ("./package", "not a file of the code"),
        ("gr\u00f6\u00dfe", "plain ASCII"),
        ("six>=1.0.*", "write them as in name>=1.0,<2"),
        ("six ; import os", "write it as in name ; python_version < '3.10'"),
    ],
)
def test_what_is_not_understood_is_refused_everywhere(tmp_path: Path, line: str, remedy: str) -> None:
    """Where source distributions are allowed, too: what is not taken apart is not given to pip. The error says what to do."""
    with pytest.raises(LayerBuildError, match=re.escape(remedy)) as refused:
        read(tmp_path, f"numpy\n{line}\n", wheels_only=False)
    assert str(refused.value).startswith(f"requirements.txt has the line {line!r}")


def test_included_files_are_read_as_well(tmp_path: Path) -> None:
    """A file that requirements.txt includes is held to the same rule, at any depth, and its lines stand in its place."""
    known = read(tmp_path, "-r more.txt\nattrs\n", more="-c limits.txt\nnumpy\n", limits="six<2\n--pre\n")
    assert known is not None
    assert (known.text, known.constraints_text, known.alone) == ("--pre\nnumpy\nattrs\n", "six<2\n", True)
    with pytest.raises(LayerBuildError, match=r"limits\.txt has the line"):
        read(tmp_path, "-r more.txt\n", limits="--no-binary :all:\n")


@pytest.mark.parametrize("name", ["../more.txt", "/etc/passwd", "a/../../more.txt"])
def test_included_files_must_lie_in_the_code(tmp_path: Path, name: str) -> None:
    """A path out of the code is refused before it is opened."""
    with pytest.raises(LayerBuildError, match="is outside of the code"):
        read(tmp_path, f"-r {name}\n")


def test_variables_are_refused(tmp_path: Path) -> None:
    """A line cannot have the deployment's secrets sent to an address of its choice."""
    with pytest.raises(LayerBuildError, match="with a variable"):
        read(tmp_path, "--index-url https://example.org/${PIP_INDEX_URL}\n")


def test_unreadable_requirements_are_the_users_error(tmp_path: Path) -> None:
    """A file in another encoding, too large, or missing where it is included: one sentence says what to do."""
    (tmp_path / "requirements.txt").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(LayerBuildError, match="is not UTF-8"):
        requirements.read(tmp_path, wheels_only=True)
    with pytest.raises(LayerBuildError, match="more than 1048576 bytes"):
        read(tmp_path, "#" * 1_100_000)
    with pytest.raises(LayerBuildError, match="cannot be read"):
        read(tmp_path, "-r nowhere.txt\n")


# -- what is built, and its id


def code_in(path: Path, sha256: str = "c0de") -> Code:
    """Code in this folder."""
    return Code(path, sha256, 1, 0.0, 0.0, cached=True)


def packages_id(
    wanted: Requirements | None, path: Path, sha256: str = "c0de", image: str = "image", **settings: object
) -> str:
    """The id of the packages of some code."""
    assert wanted is not None
    chosen = Settings(**settings)  # type: ignore[arg-type]  # each test names real settings
    return packages_recipe(wanted, code_in(path, sha256), image, PYTHON, chosen).layer_id


def test_only_what_is_asked_for_is_built(tmp_path: Path) -> None:
    """requirements.txt counts for python, build.sh for every runtime, and folders of these names for none."""
    (tmp_path / "build.sh").mkdir()
    assert not needs(tmp_path, PYTHON, Settings())
    (tmp_path / "build.sh").rmdir()
    (tmp_path / "requirements.txt").write_text("numpy\n")
    (tmp_path / "build.sh").write_text("make\n")
    assert needs(tmp_path, CPP, Settings()) == Needs(None, script=True)
    assert needs(tmp_path, PYTHON, Settings()) == Needs(Requirements((RequirementLine("numpy"),)), script=True)


def test_an_id_changes_with_all_that_decides_the_packages(tmp_path: Path) -> None:
    """Text, image, index, pip's environment and wheels-only each make another layer; the code does not."""
    numpy = read(tmp_path, "numpy\n")
    ids = [
        packages_id(numpy, tmp_path),
        packages_id(read(tmp_path, "numpy<2\n"), tmp_path),
        packages_id(read(tmp_path, "numpy\n-c more.txt\n", more="numpy<2\n"), tmp_path),
        packages_id(numpy, tmp_path, image="other"),
        packages_id(numpy, tmp_path, build_index_url="https://example.org/simple"),
        packages_id(numpy, tmp_path, build_pip_env={"PIP_EXTRA_INDEX_URL": "https://example.org/simple"}),
        packages_id(numpy, tmp_path, build_wheels_only=False),
    ]
    assert len(set(ids)) == len(ids)
    assert packages_id(numpy, tmp_path, sha256="other") == ids[0]


def test_requirements_that_name_files_belong_to_their_code(tmp_path: Path) -> None:
    """The code is part of the id, and is there during the build, only where its files decide."""
    (tmp_path / "six-1.0-py3-none-any.whl").touch()
    local = found(tmp_path, "./six-1.0-py3-none-any.whl\n")
    assert packages_id(local, tmp_path) != packages_id(local, tmp_path, sha256="other")
    recipe = packages_recipe(local, code_in(tmp_path), "image", PYTHON, Settings())
    assert recipe.binds == {"/nanogrid/code": str(tmp_path)}
    assert recipe.files["requirements.txt"] == "/nanogrid/code/six-1.0-py3-none-any.whl\n"
    plain = packages_recipe(found(tmp_path, "six\n"), code_in(tmp_path), "image", PYTHON, Settings())
    assert (plain.binds, plain.files) == ({}, {"requirements.txt": "six\n", "constraints.txt": ""})


def test_who_may_run_set_up_code_gets_neither_network_nor_credentials(tmp_path: Path) -> None:
    """Where source distributions are built, all that says where packages come from is another container's."""
    text = (
        "-i https://user:secret@example.org/simple\n--no-index\nsix --hash=sha256:0a\n--pre\n"
        "local @ https://example.org/local-1.0.tar.gz?key=secret#sha256=0b ; python_version >= '3'\n-c limits.txt\n"
    )
    (tmp_path / "limits.txt").write_text("more @ https://example.org/more-1.0.zip?secret\nfewer<2\n")
    settings = Settings(
        build_wheels_only=False,
        build_network="packages",
        build_index_url="https://user:secret@example.org/",
        build_pip_env={
            "PIP_PROXY": "http://secret@proxy:1",
            "PIP_CLIENT_CERT": "/secret",
            "PIP_NO_BUILD_ISOLATION": "1",
        },
    )
    wanted = found(tmp_path, text, wheels_only=False)
    recipe = packages_recipe(wanted, code_in(tmp_path), "image", PYTHON, settings)
    assert recipe.network == "none"
    assert "secret" not in repr((recipe.arguments, recipe.env, recipe.files))
    assert recipe.env["PIP_NO_BUILD_ISOLATION"] == "1"
    assert recipe.files["requirements.txt"] == (
        "six --hash=sha256:0a\n--pre\n"
        "local @ http://127.0.0.1:8076/address/0/local-1.0.tar.gz#sha256=0b ; python_version >= '3'\n"
    )
    assert recipe.files["constraints.txt"] == "more @ http://127.0.0.1:8076/address/1/more-1.0.zip\nfewer<2\n"
    assert recipe.index is not None
    assert [address.partition("?")[0][-8:] for address in json.loads(recipe.index.files["addresses.json"])] == [
        "0.tar.gz",
        "-1.0.zip",
    ]
    assert recipe.index.files["sources.txt"] == "--index-url=https://user:secret@example.org/simple\n--no-index\n"
    assert recipe.index.env["PIP_INDEX_URL"] == "https://user:secret@example.org/"
    only_wheels = packages_recipe(found(tmp_path, "six\n"), code_in(tmp_path), "image", PYTHON, Settings())
    assert (only_wheels.index, only_wheels.network) == (None, "none")


def test_a_built_tree_belongs_to_code_image_and_packages(tmp_path: Path) -> None:
    """The result of build.sh is kept apart by all three, and pip's settings do not reach it."""
    ids = [
        tree_recipe(code_in(tmp_path), None, "image", Settings()).layer_id,
        tree_recipe(code_in(tmp_path, "other"), None, "image", Settings()).layer_id,
        tree_recipe(code_in(tmp_path), None, "other", Settings()).layer_id,
        tree_recipe(code_in(tmp_path), ("packages", tmp_path), "image", Settings()).layer_id,
    ]
    assert len(set(ids)) == len(ids)
    assert not any(name.startswith("PIP_") for name in tree_recipe(code_in(tmp_path), None, "image", Settings()).env)


# -- logs and failures


def test_a_short_log_is_kept_as_it_is(tmp_path: Path) -> None:
    """Every byte of a log that fits is in the file once, and its last lines can stand in a message."""
    log = BuildLog(tmp_path / "logs" / "a.log")
    for chunk in (b"one\n", b"two\x1b[31m \xff\n", b"three\n\n"):
        log.add(chunk)
    log.close()
    assert log.path.read_bytes() == b"one\ntwo\x1b[31m \xff\nthree\n\n"
    assert log.last_line() == "three"
    assert log.end() == "one\ntwo [31m \ufffd\nthree"


@pytest.mark.parametrize("extra", [0, 1, TAIL_BYTES, TAIL_BYTES + 1, 3 * TAIL_BYTES])
def test_a_long_log_keeps_its_start_and_its_end(tmp_path: Path, extra: int) -> None:
    """What is left out is told, nothing is there twice, and the file is bounded."""
    data = bytes(number % 251 for number in range(HEAD_BYTES + extra))
    log = BuildLog(tmp_path / "a.log")
    for at in range(0, len(data), 10_000):
        log.add(data[at : at + 10_000])
    log.close()
    kept = log.path.read_bytes()
    left_out = max(0, extra - TAIL_BYTES)
    note = f"\n... {left_out} bytes left out ...\n".encode() if left_out else b""
    assert kept == data[:HEAD_BYTES] + note + data[HEAD_BYTES + left_out :]


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    """Logs of old builds go, so that their folder does not grow for ever."""
    for number in range(5):
        log = BuildLog(tmp_path / f"{number}.log")
        log.close()
    prune(tmp_path, keep=2)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failure_is_told_with_its_time_until_it_is_forgotten(tmp_path: Path) -> None:
    """Within its time a failure is raised again as what it was; afterwards, or when the layer came to be, it is not."""
    failures = FailedBuilds(tmp_path / "failures", ttl_s=60, network="none")
    failures.check("layer")
    failures.remember("layer", LayerBuildError("build.sh failed; see the log"))
    with pytest.raises(
        LayerBuildError, match=r"^build\.sh failed; see the log\n\(It failed at .*; the next attempt is possible at "
    ):
        FailedBuilds(tmp_path / "failures", ttl_s=60, network="none").check("layer")
    failures.forget("layer")
    failures.check("layer")


def test_a_failure_of_ours_stays_retryable_and_is_kept_for_seconds(tmp_path: Path) -> None:
    """An index that did not answer is not asked by each request, and its error can still be retried."""
    failures = FailedBuilds(tmp_path, ttl_s=600, network="none")
    failures.remember("layer", CodeUnavailableError("the index did not answer"))
    with pytest.raises(CodeUnavailableError):
        failures.check("layer")
    assert b'"until": ' in (tmp_path / "layer.json").read_bytes()
    until = float((tmp_path / "layer.json").read_text().partition('"until": ')[2].partition(",")[0])
    assert until - time.time() <= 10


@pytest.mark.parametrize("ttl_s", [0.0, 1e-9])
def test_without_a_time_nothing_is_remembered(tmp_path: Path, ttl_s: float) -> None:
    """With no time to keep it, a failure is not told to the next request."""
    failures = FailedBuilds(tmp_path / "failures", ttl_s, "none")
    error: CodeError = LayerBuildError("build.sh failed")
    failures.remember("layer", error)
    failures.check("layer")


def test_a_failure_belongs_to_the_network_that_builds_had(tmp_path: Path) -> None:
    """A build that failed without a network is repeated as soon as the deployment names one."""
    FailedBuilds(tmp_path, 60, "none").remember("layer", LayerBuildError("no network"))
    FailedBuilds(tmp_path, 60, "packages").check("layer")
    with pytest.raises(LayerBuildError):
        FailedBuilds(tmp_path, 60, "none").check("layer")


def test_a_damaged_record_is_no_failure(tmp_path: Path) -> None:
    """A record that a power loss left empty costs one build."""
    (tmp_path / "layer.json").write_text("")
    FailedBuilds(tmp_path, 60, "none").check("layer")


# -- builders


def test_a_builder_that_starts_is_never_taken_for_dead(tmp_path: Path) -> None:
    """Another builder may tidy up before any line: a new builder keeps the lock of its layer, and that of its container."""
    folder, data_dir = tmp_path / "layers" / "builds", tmp_path
    folder.mkdir(parents=True)
    (owners_folder(data_dir) / build_claims.BUILDERS).mkdir(parents=True)

    def start() -> ExitStack:
        held = ExitStack()
        held.enter_context(build_claims.only_builder(folder, "layer", tmp_path / "log"))
        held.enter_context(build_claims.owner_of_build(data_dir, "layer"))
        return held

    for held in before_every_line(start, lambda: build_claims.forget_dead(folder, data_dir), build_claims, locks):
        with held:
            kept = [*folder.iterdir(), *(owners_folder(data_dir) / build_claims.BUILDERS).iterdir()]
            assert [path.suffix for path in kept] == ["", ".lock"]
            assert [try_exclusive(path) for path in kept] == [None, None]


def test_other_users_see_nothing_of_layers(tmp_path: Path) -> None:
    """The folder of all layers is closed, also where a builder's lock is the first thing in it."""
    with build_claims.only_builder(tmp_path / "data" / "layers" / "builds", "layer", tmp_path / "log"):
        pass
    assert (tmp_path / "data" / "layers").stat().st_mode & 0o777 == 0o700
