"""The table of runtimes: the image that runs a function, its command, the required file and the queue.

A deployment adds an entry with `NANOGRID_RUNTIMES` (JSON) or `Settings(runtimes=...)`:

    {"nodejs": {"image": "node:22-slim", "command": ["node", "main.js"], "requiredFile": "main.js"}}
"""

from __future__ import annotations

from pydantic import Field

from nanogrid.wire.model import Wire


class Runtime(Wire):
    """How functions of one language run. Immutable; unknown fields are refused."""

    image: str = Field(min_length=1)
    """Docker image, by name, tag or digest."""
    command: tuple[str, ...] = Field(min_length=1)
    """Argument vector inside the container. The working folder is `/workspace`, a copy of the code."""
    required_file: str = Field(min_length=1)
    """Path of a file that the code must have."""
    queue: str = ""
    """Queue of the requests. Default: the runtime's own name."""
    aliases: tuple[str, ...] = ()
    """Other names that a request may use for the runtime."""
    supports_handler: bool = False
    """Whether a request may name a `handler`. Needs Python in the image."""


PYTHON = Runtime(image="python:3.9-slim", command=("python", "main.py"), required_file="main.py", supports_handler=True)
CPP = Runtime(image="gcc:11", command=("/bin/bash", "run.sh"), required_file="run.sh", aliases=("c++",))

BUILT_IN: dict[str, Runtime] = {"python": PYTHON, "cpp": CPP}


class RuntimeTable:
    """The runtimes of a deployment, by name or alias. Letter case does not matter."""

    def __init__(self, runtimes: dict[str, Runtime]) -> None:
        self._by_name: dict[str, Runtime] = {}
        self._canonical: dict[str, str] = {}
        for name, runtime in runtimes.items():
            key = name.lower()
            self._by_name[key] = runtime if runtime.queue else runtime.model_copy(update={"queue": key})
            for known in (key, *(alias.lower() for alias in runtime.aliases)):
                self._canonical[known] = key

    def canonical(self, name: str) -> str | None:
        """The runtime's own name for a name or alias, or None if the table has neither."""
        return self._canonical.get(name.strip().lower())

    def __getitem__(self, canonical: str) -> Runtime:
        return self._by_name[canonical]

    def items(self) -> list[tuple[str, Runtime]]:
        """All pairs of name and runtime in the order of the table."""
        return list(self._by_name.items())

    def accepted(self) -> list[str]:
        """Every name and alias that a request may use, for error messages."""
        return list(self._canonical)

    def queues(self) -> list[str]:
        """The queues of the runtimes, each once."""
        return list(dict.fromkeys(runtime.queue for runtime in self._by_name.values()))
