"""Settings: read from the environment, checked, and documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from nanogrid.settings import Settings

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_environment_is_read_when_settings_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting has a variable with the prefix NANOGRID_."""
    monkeypatch.setenv("NANOGRID_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("NANOGRID_ALLOWED_NETWORKS", "none, bridge")
    settings = Settings()
    assert settings.max_attempts == 7
    assert settings.allowed_networks == ("none", "bridge")


def test_a_deployment_adds_a_runtime_with_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """One JSON entry creates a runtime with a queue of its own name, beside the built-in ones."""
    monkeypatch.setenv(
        "NANOGRID_RUNTIMES",
        '{"nodejs": {"image": "node:22-slim", "command": ["node", "main.js"], "requiredFile": "main.js"}}',
    )
    table = Settings().runtime_table
    assert table["nodejs"].queue == "nodejs"
    assert table.queues() == ["python", "cpp", "nodejs"]


def test_an_image_is_exchanged_by_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting changes the image of a built-in runtime without repeating its entry."""
    monkeypatch.setenv("NANOGRID_PYTHON_IMAGE", "mine/python:1")
    table = Settings().runtime_table
    assert (table["python"].image, table["python"].command) == ("mine/python:1", ("python", "main.py"))


@pytest.mark.parametrize(
    "changes",
    [
        {"visibility_timeout_s": 10, "visibility_heartbeat_s": 9},
        {"timeout_ms": 1_000_000},
        {"memory_mb": 5000},
        {"max_attempts": 0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, int]) -> None:
    """A combination that cannot work is an error at start."""
    with pytest.raises(ValidationError):
        Settings(**changes)  # type: ignore[arg-type]


def test_the_handbook_lists_every_setting_with_its_default() -> None:
    """docs/operations.md has one table row per setting, with variable, default and description as in the code."""
    rows = dict(re.findall(r"^\| `(NANOGRID_[A-Z0-9_]+)` \| (.*) \|$", OPERATIONS.read_text(), re.MULTILINE))
    assert rows == {f"NANOGRID_{name.upper()}": row for name, row in Settings.documented()}


def test_a_boolean_is_no_number() -> None:
    """Numeric settings refuse booleans, alone or in a table; switches accept them, and numbers in the environment are text."""
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
    assert len(numbers) > 50
    for name in numbers:
        with pytest.raises(ValidationError, match="true is a boolean; accepted are numbers"):
            Settings.model_validate({name: True})
    with pytest.raises(ValidationError, match="true is a boolean; accepted are numbers"):
        Settings.model_validate({"prewarmed": {"python": True}})
    assert Settings(create_queues=True).create_queues is True
