"""The exit code of a program that ends by SystemExit, read before Python finalizes the interpreter.

The rule: reading it changes nothing for the program. Python's own C code reads the exception's `code` at the end of the script and keeps
it to itself. So the attribute is replaced by a property that remembers the value when it is read with no Python code on the stack.
"""

# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from typing import Any

EXIT_CODES = range(256)


class ExitCode:
    """Remembers how the script ended. None: not by SystemExit, or by one whose code is not a plain number."""

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
