"""Masks passwords in text for people: in any URL, and this deployment's own passwords anywhere.

The rule: a line is masked as a whole, after it is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, unquote

from nanogrid.settings import Settings

STARS = "**"
SHORTEST = 4
"""A shorter password is masked in URLs only: replacing it everywhere would mask ordinary words."""

IN_URL = re.compile(r"(://[^\s/@:\"']*):[^\s/\"']*@")
OF_SETTING = re.compile(r"[^:/]+://[^:/@]*:(.*)@", re.DOTALL)


class Mask:
    """Replaces passwords with stars. Thread-safe."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {form for secret in secrets for form in _forms(secret) if len(form) >= SHORTEST}
        self._known = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without passwords."""
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, STARS)
        return IN_URL.sub(rf"\1:{STARS}@", text) if "://" in text else text


def secrets_of(settings: Settings) -> set[str]:
    """Return the passwords in a deployment's settings: of brokers, Redis, package indexes, endpoints."""
    found = (OF_SETTING.match(text) for text in _texts(settings.model_dump()))
    return {match[1] for match in found if match and match[1]}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)


def _forms(secret: str) -> set[str]:
    """Return a password as written, quoted for a URL and unquoted, and each of these as written in JSON."""
    plain = {secret, unquote(secret), quote(unquote(secret), safe="")}
    return plain | {json.dumps(form)[1:-1] for form in plain}
