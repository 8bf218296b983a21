"""The exit code of a program that ends by SystemExit, known before Python has taken itself apart.

The rule: seen only when Python's own C code asks for it at the end of the script, and otherwise as if nobody looked. That
code reads the exception's `code` and keeps it to itself; so the attribute, which nobody has read yet, is one that remembers
being read with no Python code on the stack.
"""

# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from typing import Any

EXIT_CODES = range(256)


class ExitCode:
    """Remembers how the script ended. None: not by SystemExit, or by one whose code is not simply a number."""

    def __init__(self) -> None:
        self.value: int | None = None

    def install(self) -> None:
        """Watch from now on, in this process and its children."""
        fields = gc.get_referents(SystemExit.__dict__)[0]
        field = fields["code"]

        def read(exception: SystemExit) -> Any:
            code = field.__get__(exception)
            if sys._getframe().f_back is None:
                self.value = 0 if code is None else int(code) if isinstance(code, int) and code in EXIT_CODES else None
            return code

        fields["code"] = property(read, field.__set__, field.__delete__, field.__doc__)
