"""A function's input and variables on the command line: as words, from files, or from stdin.

The rule: an error names the file and the variable, but shows nothing of the file's content, which may be secret.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

from nanogrid.errors import InvalidRequestError

STDIN = "-"
VARIABLE_LIMIT_BYTES = 131_071
"""The longest `NAME=value` that Linux passes to a program (MAX_ARG_STRLEN, without the zero at its end)."""


def input_fields(
    env: list[str], payload: str | None, stdin: str | None = None, stdin_text: str | None = None
) -> dict[str, Any]:
    """The request's `env` and its input, from the words of `--env`, and of `--payload`, `--stdin` or `--stdin-text`."""
    inputs = {"--payload": payload, "--stdin": stdin, "--stdin-text": stdin_text}
    options = [option for option, word in inputs.items() if word is not None]
    if len(options) > 1:
        raise InvalidRequestError("", f"{' and '.join(options)} each give the function's input: use only one")
    from_stdin = [word for word in env if word.partition("=")[2] == f"@{STDIN}"] + [STDIN] * (STDIN in (payload, stdin))
    if len(from_stdin) > 1:
        raise InvalidRequestError(
            "env",
            "standard input can be read only for one of --env, --payload and --stdin: give the others from files",
        )
    if stdin is not None:
        return {"env": parse_env(env), **as_field(_stdin_of(stdin))}
    if stdin_text is not None:
        return {"env": parse_env(env), **as_field(os.fsencode(stdin_text))}
    return {"env": parse_env(env), **({} if payload is None else {"payload": parse_payload(payload)})}


def as_field(raw: bytes) -> dict[str, str]:
    """The request's field for raw stdin: the text, or base64 if it is not text or the text would be longer."""
    in_base64 = base64.b64encode(raw).decode()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return {"stdinBase64": in_base64}
    return {"stdin": text} if len(json.dumps(text)) - 2 <= len(in_base64) else {"stdinBase64": in_base64}


def _stdin_of(file: str) -> bytes:
    """The content that `--stdin` names. The read is bounded, since a device or a pipe may have no end."""
    from nanogrid.settings import SQS_MESSAGE_LIMIT_BYTES

    if not file:
        raise InvalidRequestError("stdin", "--stdin names no file: give one, or - for standard input")
    what = "standard input" if file == STDIN else file
    try:
        raw = _read(file, SQS_MESSAGE_LIMIT_BYTES + 1)
    except OSError as unreadable:
        raise InvalidRequestError("stdin", f"{what} cannot be read: {unreadable.strerror}") from None
    if len(raw) > SQS_MESSAGE_LIMIT_BYTES:
        raise InvalidRequestError(
            "stdin",
            f"{what} has more than the {SQS_MESSAGE_LIMIT_BYTES} bytes that fit into a message: put it in S3, and give the "
            "function its address",
        )
    return raw


def parse_env(words: list[str]) -> dict[str, str]:
    """NAME=VALUE words as a mapping; the last word of a name wins.

    NAME=@FILE reads the text of a file, and NAME=@- reads stdin, without one line end at the end. NAME=@@TEXT is @TEXT.
    """
    env = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidRequestError("env", f"{word!r} is not NAME=VALUE")
        if value.startswith("@@"):
            value = value[1:]
        elif value.startswith("@"):
            value = _text_of(value[1:], name)
        env[name] = value
    return env


def parse_payload(text: str | None) -> Any:
    """The JSON value of `--payload`: given itself, in a file (@name) or on stdin (-)."""
    if text is None:
        return None
    try:
        if text == STDIN:
            raw = sys.stdin.buffer.read()
        else:
            raw = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        return json.loads(raw)
    except OSError as unreadable:
        raise InvalidRequestError("payload", f"{text[1:]} cannot be read: {unreadable.strerror}") from None
    except ValueError as invalid:  # broken JSON, or bytes that are not text
        raise InvalidRequestError(
            "payload", f"is not JSON ({invalid}): a text needs its own quotes, as in --payload '\"text\"'"
        ) from None


def _text_of(file: str, name: str) -> str:
    """The value of the variable `name` from a file."""
    if not file:
        raise InvalidRequestError("env", f"'{name}=@' names no file: give {name}=@FILE, or {name}=@@ for the text @")
    what = f"{'standard input' if file == STDIN else file}, for {name!r},"
    limit_bytes = VARIABLE_LIMIT_BYTES - len(f"{name}=".encode())
    try:
        # Room for a line end, which is removed. The read is bounded, since a device or a pipe may have no end.
        raw = _read(file, limit_bytes + len("\r\n") + 1)
    except OSError as unreadable:
        raise InvalidRequestError(
            "env",
            f"{what} cannot be read: {unreadable.strerror}; give an existing file, or {name}=@@… for a text that starts with @",
        ) from None
    line_end = b"\r\n" if raw.endswith(b"\r\n") else b"\n"
    raw = raw[: -len(line_end)] if raw.endswith(line_end) else raw
    if len(raw) > limit_bytes:
        raise InvalidRequestError(
            "env",
            f"{what} is too large: a variable with its name has at most {VARIABLE_LIMIT_BYTES} bytes; pass it as the payload, "
            "with --payload @FILE",
        )
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(
            "env", f"{what} is not UTF-8 text: give a file with text, such as base64 of these bytes"
        ) from None


def _read(file: str, limit_bytes: int) -> bytes:
    if file == STDIN:
        return sys.stdin.buffer.read(limit_bytes)
    with Path(file).open("rb") as opened:
        return opened.read(limit_bytes)
