"""Private names of kombu, Celery and Flower: two modules use them, lists name them, and a missing one is refused in one sentence."""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from kombu.asynchronous.http import Client, get_client
from kombu.transport import SQS

import nanogrid
from nanogrid.connections.private_parts import PrivateParts, defines
from nanogrid.monitoring import celery_private, dashboard
from nanogrid.sqs.transport import kombu_private
from nanogrid.worker import private_parts_step
from nanogrid.worker.private_parts_step import PrivatePartsStep

PRIVATE_MODULES = {kombu_private.__name__, celery_private.__name__}
"""The modules that may use private names on objects of kombu and Celery."""

FOREIGN = ("billiard", "celery", "flower", "kombu", "redis", "vine")
OWN = ("self", "cls")
PUBLIC = {"_replace", "_fields", "_asdict", "_make", "_exit"}
"""Documented names of the standard library."""

ALL_PARTS = (kombu_private.KOMBU, celery_private.celery_parts(), dashboard.FLOWER)


def is_private(name: str) -> bool:
    """Whether a name starts with one underscore."""
    return name.startswith("_") and not name.startswith("__")


def modules() -> Iterator[ModuleType]:
    """All modules that run in a producer, a worker or a command; the programs inside containers know no Celery."""
    for found in pkgutil.walk_packages(nanogrid.__path__, "nanogrid."):
        if "inside" not in found.name.split("."):
            yield importlib.import_module(found.name)


def tree_of(module: ModuleType) -> ast.Module:
    """A module's source, parsed."""
    return ast.parse(Path(str(module.__file__)).read_text())


def own_names(tree: ast.AST) -> set[str]:
    """Private names that a module defines itself: functions, classes, variables and attributes of its objects."""
    defined = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    stored = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return {*defined, *stored}


def is_own(node: ast.expr) -> bool:
    """Whether an expression is the object of the method itself, or `super()`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in OWN


def foreign_uses(tree: ast.Module) -> Iterator[str]:
    """Private names that a module uses on objects of others, also as a text (`getattr`), and imports of private names."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            if isinstance(node.ctx, ast.Store) or node.attr not in {*own, *PUBLIC}:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(FOREIGN):
            yield from (part for part in str(node.module).split(".") if is_private(part))
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("getattr", "setattr", "hasattr", "delattr", "attrgetter"):
                texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                yield from (text for text in texts if isinstance(text, str) and is_private(text))


def inherited(module: ModuleType) -> Iterator[tuple[type, str]]:
    """Each class of a module, and each private name of a foreign base class that it overrides or uses."""
    for own in vars(module).values():
        if not inspect.isclass(own) or own.__module__ != module.__name__:
            continue
        used = {
            node.attr
            for code in ast.walk(tree_of(module))
            if isinstance(code, ast.ClassDef) and code.name == own.__name__
            for node in ast.walk(code)
            if isinstance(node, ast.Attribute) and is_private(node.attr) and is_own(node.value)
        }
        overridden = {name for each in own.__mro__ if each.__module__.startswith("nanogrid.") for name in vars(each)}
        foreign = [base for base in own.__mro__ if base.__module__.partition(".")[0] in FOREIGN]
        for name in {*used, *overridden} - {"_abc_impl"}:
            if is_private(name) and any(defines(base, name) for base in foreign):
                yield own, name


def test_no_other_module_uses_private_names_of_kombu_or_celery() -> None:
    """Attributes, texts for `getattr` and imports. The two modules that may do it are found, else the search finds nothing."""
    found = {module.__name__: sorted(set(foreign_uses(tree_of(module)))) for module in modules()}
    assert {name for name, uses in found.items() if uses} == PRIVATE_MODULES, found


def test_every_inherited_private_name_is_listed() -> None:
    """Overriding or using a private name of a base class is allowed if the list has it, so that a missing one is noticed."""
    listed = [
        (owner, name) for parts in ALL_PARTS for owner, names in parts.names if inspect.isclass(owner) for name in names
    ]
    found = [each for module in modules() for each in inherited(module)]
    assert len(found) > 30
    for own, name in found:
        assert any(name == known and issubclass(own, owner) for owner, known in listed), (own, name)


@pytest.mark.parametrize("parts", ALL_PARTS, ids=lambda parts: str(parts.package))
def test_the_installed_versions_have_every_name(parts: PrivateParts) -> None:
    """The lists are right, and say which version they are of."""
    assert parts.problem() is None
    assert version(parts.package).startswith(parts.known_version)


@pytest.mark.parametrize("parts", ALL_PARTS, ids=lambda parts: str(parts.package))
def test_a_missing_name_is_refused_in_one_sentence(parts: PrivateParts) -> None:
    """The sentence names the package, both versions, the name and what needs it."""
    owner, names = parts.names[-1]
    changed = replace(parts, names=(*parts.names[:-1], (owner, (*names, "_of_another_version"))))
    assert changed.problem() == (
        f"{parts.package} {version(parts.package)} has no {owner.__name__}._of_another_version, which NanoGrid's "
        f"{parts.needed_by} builds on: install {parts.package} {parts.known_version}"
    )


def test_a_removed_method_and_a_renamed_attribute_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes that only objects have count if a method sets them; one that methods only read is missing."""
    monkeypatch.delattr(SQS.Channel, "_loop1")
    monkeypatch.setattr(get_client, "__code__", Client.__code__)
    assert str(kombu_private.KOMBU.problem()).startswith(
        f"kombu {version('kombu')} has no Channel._loop1, get_client._current_http_client, which NanoGrid's SQS transport"
    )


def test_a_worker_does_not_start_without_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One critical line, and exit code 1, before any step starts."""
    missing = replace(kombu_private.KOMBU, names=((SQS.Channel, ("_of_another_version",)),))
    monkeypatch.setattr(private_parts_step, "KOMBU", missing)
    with caplog.at_level(logging.CRITICAL, "nanogrid.worker"), pytest.raises(SystemExit) as ended:
        PrivatePartsStep(None)
    assert ended.value.code == 1
    (line,) = caplog.messages
    assert line.startswith("the worker cannot start: kombu 5.")
    assert line.endswith(
        "has no Channel._of_another_version, which NanoGrid's SQS transport builds on: install kombu 5.7"
    )


def test_a_worker_starts_with_them(caplog: pytest.LogCaptureFixture) -> None:
    """The step leaves no part in the worker."""
    step: Any = PrivatePartsStep(None)
    assert step.include_if(None) is False
    assert caplog.messages == []


def test_flower_is_refused_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's command shows the sentence."""
    missing = replace(dashboard.FLOWER, names=((dashboard.FLOWER.names[1][0], ("of_another_version",)),))
    monkeypatch.setattr(dashboard, "FLOWER", missing)
    with pytest.raises(
        click.ClickException, match=r"^flower 2\.2.* has no Flower\.of_another_version, .*: install flower 2\.2$"
    ):
        dashboard.install()
