"""The documents name nothing that is not there: links, files, commands, fields, settings and tests."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import tomllib
import typer
from pydantic import BaseModel

import nanogrid
from nanogrid import errors
from nanogrid.cli.application import app
from nanogrid.execution.container.hardening import environment
from nanogrid.request import FunctionRequest, parse_request
from nanogrid.result import ExecutionResult
from nanogrid.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
REFERENCE = ROOT / "docs" / "reference"
REQUEST = (REFERENCE / "request.md").read_text()
RESULT = (REFERENCE / "result.md").read_text()
API = (REFERENCE / "api.md").read_text()
README_LINES = 150
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")

FILES_OF_FUNCTIONS = {"main.py", "report.py", "run.sh", "build.sh", "main.js", "hello.py"}
"""Names of files that a function brings, not this repository."""

FOLDERS_OF_CODE = (
    ROOT,
    ROOT / "nanogrid",
    ROOT / "nanogrid" / "execution",
    ROOT / "nanogrid" / "execution" / "runner" / "inside",
)
"""Where a file that is named without its whole path may lie."""

OTHER_VARIABLES = {"NANOGRID_LOCAL_DIR"}
"""Read by the local stack, not a setting."""

AVOIDED = re.compile(r"(?:^|_)(?:manager|helper|util)s?(?:_|$)")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def named(path: Path) -> str:
    """A document's name in a test's id."""
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return INDENTED.sub("", FENCE.sub("", text))


def code(text: str) -> list[str]:
    """Every line of a block of code, and every span."""
    blocks = "\n".join([*FENCE.findall(text), *INDENTED.findall(FENCE.sub("", text))])
    return [*(line.strip() for line in blocks.splitlines()), *SPAN.findall(prose(text))]


def anchors(text: str) -> set[str]:
    """The anchors that a renderer makes of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def shell_commands(text: str, program: str) -> Iterator[list[str]]:
    """The words after `program` wherever code calls it."""
    for line in code(text):
        match = re.match(rf"(?:\$ )?(?:\.venv/bin/)?{program} (.+)", line)
        if match:
            yield words_of(match[1])


def words_of(line: str) -> list[str]:
    """A command line's words, without what only looks like a shell's."""
    try:
        return shlex.split(line.rstrip("\\"), comments=True)
    except ValueError:  # a quotation that goes on in the next line
        return line.split()


def first_column(page: str) -> list[str]:
    """The names in the first column of a page's table."""
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def wire_fields(model: type[BaseModel]) -> list[str]:
    """The names of a model's fields as they stand in JSON."""
    return [field.alias or name for name, field in model.model_fields.items()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(document: Path) -> None:
    """A relative link names a file that exists, and an anchor in it a heading."""
    broken = []
    for target in LINK.findall(prose(document.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_file_that_is_named_exists(document: Path) -> None:
    """A source file, script or deployment file that a document names is there."""
    names = set()
    for line in code(document.read_text()):
        names |= set(re.findall(r"(?<![\w./<>-])[\w./-]+\.(?:py|sh|yaml|toml|service)\b", line))
    missing = [
        name
        for name in sorted(names - FILES_OF_FUNCTIONS)
        if not any((folder / name).exists() for folder in (*FOLDERS_OF_CODE, document.parent))
    ]
    assert [name for name in missing if not name.startswith("/")] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_command_that_is_named_exists(document: Path) -> None:
    """Each `nanogrid ...` has a subcommand of that name, and each of its options is one of that subcommand's."""
    commands = typer.main.get_group(app).commands
    wrong = []
    for words in shell_commands(document.read_text(), "nanogrid"):
        if words[0].startswith("-") or words[0] == "COMMAND":
            continue
        command = commands.get(words[0])
        known = {option for parameter in command.params for option in parameter.opts} if command else set()
        options = {word.split("=")[0].rstrip("])") for word in words[1:] if re.match(r"\[?--[a-z]", word)}
        if command is None or not {option.lstrip("[") for option in options} <= known | {"--help"}:
            wrong.append(" ".join(words))
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    """Each `make ...` is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {words[0] for words in shell_commands(document.read_text(), "make")} - targets == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_variable_that_is_named_exists(document: Path) -> None:
    """Each `NANOGRID_...` is a setting, or one of the few other variables."""
    settings = {f"NANOGRID_{name.upper()}" for name in Settings.model_fields}
    request = parse_request(
        {"requestId": "r", "functionId": "f", "runtime": "python", "s3Bucket": "bucket", "s3Key": "key"}, Settings()
    )
    known = settings | set(environment(request, Settings())) | OTHER_VARIABLES
    assert set(re.findall(r"NANOGRID_[A-Z0-9_]*[A-Z0-9]", document.read_text())) - known == set()


def test_the_readme_is_short() -> None:
    """A newcomer reads all of it; the rest is in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_reference_lists_every_field_of_a_request() -> None:
    """The table of request fields has exactly those of FunctionRequest."""
    assert sorted(first_column(REQUEST)) == sorted(wire_fields(FunctionRequest))


def test_the_reference_says_which_fields_are_required() -> None:
    """A field is required exactly where a request without it is refused."""
    said = set(re.findall(r"^\| `([^`]+)` \| yes \|", REQUEST, re.MULTILINE))
    full = {"functionId": "f", "runtime": "python", "s3Bucket": "bucket", "s3Key": "key"}
    assert said == set(full)
    parse_request(full, Settings(), request_id="r")
    for field in full:
        with pytest.raises(ValueError, match=field):
            parse_request({name: value for name, value in full.items() if name != field}, Settings(), request_id="r")


def test_the_reference_lists_every_field_of_a_result() -> None:
    """The table of result fields has exactly those of ExecutionResult, in their order."""
    assert first_column(RESULT) == wire_fields(ExecutionResult)


def test_the_reference_has_every_public_name() -> None:
    """The page of the API documents each name of `nanogrid.__all__`, and each error by the module that has all of them."""
    documented = re.findall(r"^\.\. (?:py:)?(?:auto)?(?:class|function|data|module):: (\w[\w.]*)", API, re.MULTILINE)
    assert "nanogrid.errors" in documented
    names = {path.rpartition(".")[2] for path in documented} | {name for name in vars(errors) if name.endswith("Error")}
    assert set(nanogrid.__all__) - names == set()


def test_what_the_reference_documents_exists() -> None:
    """Each name that a directive of the API's page gives can be imported."""
    paths = re.findall(r"^\.\. (?:py:)?(?:auto)?(?:class|function|data):: (nanogrid\.[\w.]+)", API, re.MULTILINE)
    assert paths
    for path in paths:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name), path


def test_the_pictures_are_up_to_date() -> None:
    """Each drawn picture is what its script draws now, from the numbers that docs/performance.md has now."""
    command = [sys.executable, str(ROOT / "docs" / "pictures" / "draw.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_picture_is_there_and_has_words_for_it(document: Path) -> None:
    """An image that a document shows is a file of the repository, and says in words what it shows."""
    for words, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", prose(document.read_text())):
        assert (document.parent / target).is_file(), target
        assert words, target


def test_every_threat_names_a_test_that_exists() -> None:
    """docs/security.md claims no test that is not there."""
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    claimed = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / "docs" / "security.md").read_text()))
    assert claimed
    assert {name for name in claimed if f"def {name}(" not in written} == set()


def test_the_tree_in_the_architecture_is_the_tree() -> None:
    """The picture names every package of `nanogrid/` down to the third level, and every module beside them."""
    picture = ARCHITECTURE.split("\n## The tree\n", 1)[1].split("```")[1]
    drawn, above = set(), [""]
    for line in picture.splitlines()[2:]:
        names = re.split(r"\s{3,}", line.strip())[0].split()
        above[(len(line) - len(line.lstrip())) // 2 :] = [names[0]]
        drawn |= {"".join(above[1:])} if names[0].endswith("/") else {f"{name}.py" for name in names}
    package = ROOT / "nanogrid"
    folders = {f"{path.parent.relative_to(package)}/" for path in package.rglob("__init__.py")}
    insides = {folder for folder in folders if "inside" in folder} | {"./"}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert drawn == (folders - insides) | modules


def test_the_rows_of_the_architecture_are_those_of_the_import_contract() -> None:
    """The table has the layers of `[tool.importlinter]`, in their order, and says which may import each other."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    rows = re.findall(r"^\| (`.+`) \| (yes)? ?\|$", ARCHITECTURE.split("\n## The tree\n", 1)[1], re.MULTILINE)
    assert [(re.findall(r"`(\w+)`", names), said == "yes") for names, said in rows] == [
        (re.findall(r"\w+", layer), ":" in layer) for layer in contract["layers"]
    ]


def test_every_decision_is_in_the_index() -> None:
    """The index lists each record once, in order, under the record's own title."""
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[(\d{4})\]\((.+?)\) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    records = sorted(folder.glob("[0-9]*.md"))
    assert [(f"# {number} {title}", name) for number, name, title in listed] == [
        (record.read_text().splitlines()[0], record.name) for record in records
    ]


def test_every_decision_has_the_same_parts() -> None:
    """Each record has status, context, decision, consequences and what was rejected."""
    for record in (ROOT / "docs" / "decisions").glob("[0-9]*.md"):
        headings = re.findall(r"^## (.+)$", record.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "Rejected"], record.name
        assert "\nStatus: " in record.read_text(), record.name


def defined_names(path: Path) -> Iterator[str]:
    """Every name that a module gives to something, its own included."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_nothing_has_a_name_that_the_glossary_avoids() -> None:
    """No module, class, function, argument or variable is called manager, helper or util."""
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "nanogrid").rglob("*.py"))
        for name in defined_names(path)
        if AVOIDED.search(CAMEL.sub("_", name).lower())
    ]
    assert found == []
