"""The table of runtimes: which image runs a function, by which command, from which file, fed by which queue.

A deployment extends the table with one entry, by `NANOGRID_RUNTIMES` (JSON) or `Settings(runtimes=...)`:

    {"nodejs": {"image": "node:22-slim", "command": ["node", "main.js"], "requiredFile": "main.js"}}
"""

from __future__ import annotations

from pydantic import Field

from nanogrid.wire.model import Wire


class Runtime(Wire):
    """How functions of one language run.

    `command` is the argument vector inside the container, with `/workspace` as the working folder. `queue` defaults to
    the runtime's own name. `aliases` are other names that a request may use for it.
    """

    image: str = Field(min_length=1)
    command: tuple[str, ...] = Field(min_length=1)
    required_file: str = Field(min_length=1)
    queue: str = ""
    aliases: tuple[str, ...] = ()
    supports_handler: bool = False


PYTHON = Runtime(image="python:3.9-slim", command=("python", "main.py"), required_file="main.py", supports_handler=True)
CPP = Runtime(image="gcc:11", command=("/bin/bash", "run.sh"), required_file="run.sh", aliases=("c++",))

BUILT_IN: dict[str, Runtime] = {"python": PYTHON, "cpp": CPP}


class RuntimeTable:
    """Look-up by name or alias. Names are matched without regard to case."""

    def __init__(self, runtimes: dict[str, Runtime]) -> None:
        self._by_name: dict[str, Runtime] = {}
        self._canonical: dict[str, str] = {}
        for name, runtime in runtimes.items():
            key = name.lower()
            self._by_name[key] = runtime if runtime.queue else runtime.model_copy(update={"queue": key})
            for known in (key, *(alias.lower() for alias in runtime.aliases)):
                self._canonical[known] = key

    def canonical(self, name: str) -> str | None:
        """The runtime's own name for a name or alias, or None where there is none."""
        return self._canonical.get(name.strip().lower())

    def __getitem__(self, canonical: str) -> Runtime:
        return self._by_name[canonical]

    def items(self) -> list[tuple[str, Runtime]]:
        """All (name, runtime) pairs in the order of the table."""
        return list(self._by_name.items())

    def accepted(self) -> list[str]:
        """Every name and alias that a request may use, for messages."""
        return list(self._canonical)

    def queues(self) -> list[str]:
        """The queues that feed the runtimes, each once."""
        return list(dict.fromkeys(runtime.queue for runtime in self._by_name.values()))
