"""The function's own packages, imported in a spare before its request.

The rule: this is the function's code, so it never runs in the first process; and it runs with the environment that it was
learned with, speaks to nobody and leaves nothing running, or it is not imported beforehand again.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH109, PTH208
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _thread
import gc
import os
import sys

from nanogrid_warm import begin

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Callable, Iterable

    from nanogrid_warm.imports import Imports

OWN_PREFIX = "NANOGRID_"
START_MODULES = ("sitecustomize", "usercustomize")


class Packages:
    """Which packages to import beforehand, and the environment of the run that has told so."""

    def __init__(self, names: Iterable[str] = (), env: dict[str, str] | None = None) -> None:
        self.names = tuple(names)
        self.env = env or {}
        self.known = ()
        self.loaded = False

    def learn(self, names: Iterable[str], env: dict[str, str]) -> None:
        """Remember for the next spares."""
        if names:
            self.names = tuple(dict.fromkeys((*self.names, *names)))
            self.env = _shared(env)

    def forget(self) -> None:
        """Import none beforehand."""
        self.names = ()

    def allow(self, env: dict[str, str]) -> bool:
        """Whether a run with this environment may find the packages that are imported here, and the interpreter as it is."""
        if self.loaded and _shared(env) != self.env:
            return False
        if env.get("PYTHONPATH") != begin.PACKAGES:
            return True
        try:
            tops = {name.partition(".")[0] for name in os.listdir(begin.PACKAGES)}
        except OSError:
            return True
        return tops.isdisjoint(START_MODULES) and tops.isdisjoint(sys.modules)

    def put_path(self, env: dict[str, str]) -> None:
        """Put the packages where Python puts what PYTHONPATH names: before its own library, after the script's folder."""
        if env.get("PYTHONPATH") == begin.PACKAGES and begin.PACKAGES not in sys.path:
            sys.path.insert(0, begin.PACKAGES)

    def load(self, imports: Imports, put_environment: Callable[[dict[str, str]], None]) -> bool:
        """Import them in this process. Whether it is now as a new interpreter would be but for what is hidden in it."""
        if not self.names:
            return True
        sys.path.insert(0, begin.PACKAGES)
        put_environment(self.env)
        streams = [os.dup(stream) for stream in range(3)]
        silent = os.memfd_create("silent", os.MFD_CLOEXEC)
        for stream in range(3):
            os.dup2(silent, stream)
        folder, mask = os.getcwd(), os.umask(0o022)
        try:
            imports.show_all()
            for name in self.names:
                if name not in sys.modules:
                    imports.load(name)
            imports.hide(self.known, self.names)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001  # whatever it is that the function's packages do
            return False
        for stream, descriptor in enumerate(streams):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        self.loaded = True
        spoke = os.fstat(silent).st_size
        os.close(silent)
        gc.freeze()
        return (
            not spoke
            and _thread._count() == 0
            and os.getcwd() == folder
            and os.umask(0o022) == mask
            and self._has_own_environment()
        )

    def _has_own_environment(self) -> bool:
        return os.environ._data == {os.fsencode(name): os.fsencode(value) for name, value in self.env.items()}


def _shared(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(OWN_PREFIX)}
