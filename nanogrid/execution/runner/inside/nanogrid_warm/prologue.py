"""The prologue of a program: everything that it runs while it has done nothing but import and define.

The rule: whatever the program has imported by then, it imports in each run of the same code, in this order, and nothing it has done can
make a difference to those imports. So these modules, and no others, may be imported before the program begins. The prologue is read from the
bytecode that has run so far. That may only be declarative: imports, and names bound to constants, functions and plain classes. A call ends
the prologue, even one that would change nothing. So does an assignment to anything but a name, a loop, and a choice by what can
differ between two runs.
"""

# Lists of words are easier to read as words.
# ruff: noqa: PTH110, SIM905
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import builtins
import opcode
import os
import sys

from nanogrid_warm import vendored
from nanogrid_warm.paths import CALL_HANDLER, WORKSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Iterator
    from types import CodeType, FrameType
    from typing import Any

OWN = WORKSPACE + "/"
BOOTSTRAP = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
VERSION = sys.version_info[:2]

STATEMENT_ENDS = frozenset(
    "STORE_NAME STORE_GLOBAL STORE_FAST STORE_DEREF DELETE_NAME DELETE_GLOBAL DELETE_FAST POP_TOP IMPORT_NAME IMPORT_FROM IMPORT_STAR "
    "CALL_INTRINSIC_1 RETURN_VALUE RETURN_CONST JUMP_FORWARD JUMP_ABSOLUTE JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT POP_EXCEPT "
    "POP_BLOCK RERAISE RAISE_VARARGS CHECK_EXC_MATCH JUMP_IF_NOT_EXC_MATCH SETUP_FINALLY PUSH_EXC_INFO".split()
)
"""Operations that end a statement, or a part of one."""

DECLARATIVE_OPERATIONS = STATEMENT_ENDS.union(
    "CACHE NOP RESUME NOT_TAKEN EXTENDED_ARG PUSH_NULL PRECALL KW_NAMES COPY SWAP DUP_TOP DUP_TOP_TWO ROT_TWO ROT_THREE ROT_FOUR "
    "LOAD_CONST LOAD_SMALL_INT LOAD_NAME LOAD_GLOBAL LOAD_FAST LOAD_FAST_CHECK LOAD_FAST_BORROW LOAD_FAST_LOAD_FAST "
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_DEREF LOAD_CLOSURE LOAD_LOCALS LOAD_CLASSDEREF LOAD_FROM_DICT_OR_DEREF "
    "LOAD_FROM_DICT_OR_GLOBALS MAKE_CELL COPY_FREE_VARS LOAD_ATTR LOAD_METHOD LOAD_BUILD_CLASS MAKE_FUNCTION SET_FUNCTION_ATTRIBUTE "
    "SETUP_ANNOTATIONS BUILD_TUPLE BUILD_LIST BUILD_SET BUILD_MAP BUILD_CONST_KEY_MAP BUILD_STRING BUILD_SLICE LIST_EXTEND SET_UPDATE "
    "DICT_UPDATE DICT_MERGE LIST_TO_TUPLE UNARY_POSITIVE UNARY_NEGATIVE UNARY_NOT UNARY_INVERT TO_BOOL COMPARE_OP IS_OP CONTAINS_OP "
    "BINARY_SUBSCR BINARY_SLICE BINARY_OP BINARY_ADD BINARY_SUBTRACT BINARY_MULTIPLY BINARY_TRUE_DIVIDE BINARY_FLOOR_DIVIDE "
    "BINARY_MODULO BINARY_POWER BINARY_LSHIFT BINARY_RSHIFT BINARY_AND BINARY_OR BINARY_XOR".split()
)
OPERATORS = ("COMPARE_OP", "CONTAINS_OP", "BINARY_", "UNARY_", "LIST_EXTEND", "SET_UPDATE", "DICT_", "LIST_TO_TUPLE")
"""Operations that run code of their operands, which may be a package's."""
SUBSCRIPTS = ("BINARY_SUBSCR", "BINARY_SLICE", "BINARY_OR")
"""Operations that annotations contain: their results are only kept."""
SUBSCRIPT_ARGUMENTS = (7, 26)
"""The same operations as arguments of BINARY_OP."""
DEFINITIONS = ("MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE", "CALL", "CALL_FUNCTION")
CALLS = ("CALL", "CALL_FUNCTION", "CALL_METHOD", "CALL_FUNCTION_KW", "CALL_KW", "CALL_FUNCTION_EX")
CHOICES = ("POP_JUMP", "JUMP_IF")
NAME_OPERATIONS = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD", "STORE_NAME", "STORE_GLOBAL")
SHIFTED_ARGUMENTS = (("LOAD_GLOBAL",) if VERSION >= (3, 11) else ()) + (("LOAD_ATTR",) if VERSION >= (3, 12) else ())
"""Operations whose argument has a flag in its last bit, besides the index of a name."""
IN_PLACE_ARGUMENTS = range(13, 26)
"""Arguments of BINARY_OP that change the left operand."""

CONSTANT_NAMES = frozenset(
    "__name__ TYPE_CHECKING typing sys os version_info platform name maxsize byteorder hexversion".split()
)
"""Names that have the same value in each run. A program may choose by them."""

FORBIDDEN_NAMES = frozenset(
    "__builtins__ __cached__ __class_getitem__ __file__ __import__ __loader__ __name__ __package__ __path__ __spec__".split()
)
"""Names whose values change what reading something does, or what others see of the module."""
PLAIN_BASES = frozenset(
    "enum typing abc Enum IntEnum StrEnum Flag IntFlag NamedTuple TypedDict Protocol ABC Generic".split()
)
"""Besides Python's own types, the bases that a class may have and still only be defined."""
HANDLERS_AT_END = VERSION >= (3, 12)
"""Whether exception handlers come after all other code, in the order of what they handle."""
EQUALS = 2
EQUALS_SHIFT = 5 if VERSION >= (3, 13) else 4 if VERSION >= (3, 12) else 0


class PrologueWatch:
    """Decides for one run which of its imports belong to the prologue."""

    def __init__(self) -> None:
        self.specs: list[Any] = []
        self._declarative: dict[str, bool] = {}

    def note_found(self, spec: Any) -> None:
        """Remember a module that was found. If it is the program's own, its code is about to run."""
        if _is_of_program(spec):
            self.specs.append(spec)

    def includes(self, frame: FrameType | None) -> bool:
        """Return whether an import in `frame` is one of the program's own and belongs to its prologue."""
        inside: CodeType | None = None
        on_stack = []
        while frame is not None:
            code = frame.f_code
            if code.co_filename == CALL_HANDLER:
                # The request decides which of a module's functions is called.
                if (code if inside is None else inside).co_name != "<module>":
                    return False
                inside = code
                break
            if code.co_filename not in BOOTSTRAP:
                if not vendored.is_own_file(code.co_filename) or not _is_prologue_until(code, frame.f_lasti, inside):
                    return False
                inside = code
                on_stack.append(code.co_filename)
            frame = frame.f_back
        return inside is not None and all(spec.origin in on_stack or self._is_declarative(spec) for spec in self.specs)

    def _is_declarative(self, spec: Any) -> bool:
        """Return whether all code of a loaded module is declarative.

        The code is read from Python's cache file and never compiled here, because compiling can warn. A module that is about to be
        loaded has no cache file yet.
        """
        known = self._declarative.get(spec.origin)
        if known is None:
            if not os.path.exists(spec.cached or ""):
                return False
            try:
                code = spec.loader.get_code(spec.name)
            except Exception:  # noqa: BLE001  # a loader can raise anything
                code = None
            known = self._declarative[spec.origin] = code is not None and is_declarative(code)
        return known


def is_in_workspace(module: object) -> bool:
    """Return whether a module is among the program's own files, packages there included."""
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return isinstance(origin, str) and origin.startswith(OWN)


def _is_of_program(spec: Any) -> bool:
    origin = getattr(spec, "origin", None)
    return isinstance(origin, str) and vendored.is_own_file(origin)


def is_declarative(code: CodeType) -> bool:
    """Return whether all code of a module, or of a class, does nothing but import and define."""
    return _BytecodeReader(code, is_main=False).is_declarative([(0, len(code.co_code))])


def _is_prologue_until(code: CodeType, offset: int, inside: CodeType | None) -> bool:
    """Return whether `code` was declarative until `offset`, where it imports, or calls the function `inside` by its name."""
    while offset > 0 and code.co_code[offset] == 0:  # the cache entries of a call follow it
        offset -= 2
    reader = _BytecodeReader(code, is_main=True)
    if not reader.is_declarative(_executed_spans(code, offset)):
        return False
    name = opcode.opname[code.co_code[offset]]
    if inside is None or inside.co_name == "<module>":
        return name == "IMPORT_NAME"
    return name in CALLS and inside.co_name in reader.names


class _BytecodeReader:
    """Reads bytecode as if all of it had run."""

    def __init__(self, code: CodeType, *, is_main: bool) -> None:
        self.code = code
        self.is_main = is_main
        self.names: set[object] = set()
        """The names that the current statement has read."""
        self._bound_names: set[str] = set()
        self._classes = 0
        """How many classes are being built."""
        self._constant: Any = None
        self._reads_foreign = False
        """Whether the current statement has applied an operator to a value that is not the program's own."""
        self._previous = ("", "")
        """The two operations before this one."""
        self._compares_equal = False

    def is_declarative(self, spans: list[tuple[int, int]]) -> bool:
        """Return whether everything in these spans is declarative. Afterwards `names` has what the last statement has read."""
        skip = 0
        for first, last in reversed(spans):
            self.names = set()
            for offset, name, argument in _instructions(self.code.co_code, first, last):
                if offset < skip:
                    continue
                if not self._is_allowed(name, argument):
                    return False
                if name.startswith("POP_JUMP") and name.endswith("IF_FALSE") and self._skips_main():
                    skip = _jump_target(offset, argument)
                if name in STATEMENT_ENDS or name.startswith(CHOICES):
                    self.names, self._reads_foreign = set(), False
                if name != "CACHE":
                    self._previous = (self._previous[1], name)
        return True

    def _is_allowed(self, name: str, argument: int) -> bool:
        if name in CALLS:
            self._classes -= 1
            return self._classes >= 0 and name in ("CALL", "CALL_FUNCTION")
        if name.startswith(CHOICES) and name not in STATEMENT_ENDS:
            return self.names <= CONSTANT_NAMES
        if name == "STORE_SUBSCR":
            return self._previous == ("LOAD_NAME", "LOAD_CONST") and "__annotations__" in self.names
        if name.startswith(OPERATORS) and not self._reads_own_values(name, argument):
            return False
        if name in STATEMENT_ENDS and self._reads_foreign and self._previous[1] not in DEFINITIONS:
            return False
        if (
            name not in DECLARATIVE_OPERATIONS
            or (name == "BINARY_OP" and argument in IN_PLACE_ARGUMENTS)
            or (name == "KW_NAMES" and self._classes)
        ):
            return False
        if name in NAME_OPERATIONS:
            return self._is_allowed_name(name, self.code.co_names[argument >> (name in SHIFTED_ARGUMENTS)])
        if name.startswith("LOAD_FAST") or "DEREF" in name:
            self.names.add(None)
        elif name == "LOAD_BUILD_CLASS":
            self._classes += 1
        elif name == "COMPARE_OP":
            self._compares_equal = argument >> EQUALS_SHIFT == EQUALS
        elif name == "LOAD_CONST":
            self._constant = self.code.co_consts[argument]
            return not (self._classes and hasattr(self._constant, "co_code")) or is_declarative(self._constant)
        return True

    def _reads_own_values(self, name: str, argument: int) -> bool:
        """Return whether an operator depends on nothing that a package has made. If it might, only an annotation may contain it."""
        if all(
            known in CONSTANT_NAMES or known in self._bound_names or hasattr(builtins, str(known))
            for known in self.names
        ):
            return True
        self._reads_foreign = True
        return name in SUBSCRIPTS or (name == "BINARY_OP" and argument in SUBSCRIPT_ARGUMENTS)

    def _is_allowed_name(self, operation: str, name: str) -> bool:
        """Return whether reading or binding this name is declarative."""
        if operation.startswith("STORE"):
            is_class = "__qualname__" in self.code.co_names
            if not self._previous[1].startswith("IMPORT_"):
                self._bound_names.add(name)
            return name not in FORBIDDEN_NAMES and (is_class or name != "__getattr__")
        self.names.add(name)
        if not self._classes or name in PLAIN_BASES:
            return True
        return name not in self._bound_names and isinstance(getattr(builtins, name, None), type)

    def _skips_main(self) -> bool:
        """Return whether this is `if __name__ == "__main__"` in a module that is not the main one."""
        return not self.is_main and self.names == {"__name__"} and self._compares_equal and self._constant == "__main__"


def _executed_spans(code: CodeType, offset: int) -> list[tuple[int, int]]:
    """Return the spans of the code that can have run before `offset`; first the span that leads there."""
    handlers = [handler for handler in _exception_handlers(code) if HANDLERS_AT_END]
    behind = min([target for _, _, target in handlers], default=len(code.co_code))
    tries = [handler for handler in handlers if handler[0] < behind]
    if offset >= behind:
        entered = max((target, last) for _, last, target in tries if target <= offset)
        return [(behind, offset), (0, entered[1])]
    ahead = [target for _, last, target in tries if last > offset]
    return [(0, offset), (behind, min(ahead, default=len(code.co_code)))]


def _instructions(data: bytes, first: int, last: int) -> Iterator[tuple[int, str, int]]:
    argument = 0
    for offset in range(first, last, 2):
        name = opcode.opname[data[offset]]
        argument = argument << 8 | data[offset + 1]
        yield offset, "CACHE" if data[offset] == 0 else name, argument
        if name != "EXTENDED_ARG":
            argument = 0


def _jump_target(offset: int, argument: int) -> int:
    """Return the target of a forward jump."""
    if VERSION < (3, 11):
        return argument * (2 if VERSION >= (3, 10) else 1)
    return offset + 2 + 2 * argument + (2 if VERSION >= (3, 13) else 0)


def _exception_handlers(code: CodeType) -> Iterator[tuple[int, int, int]]:
    """Yield the start and the end of each handled span, and the start of its handler."""
    table = iter(getattr(code, "co_exceptiontable", b""))
    for byte in table:
        first = _varint(byte, table)
        length, target, _ = (_varint(next(table), table) for _ in range(3))
        yield first * 2, (first + length) * 2, target * 2


def _varint(byte: int, table: Iterator[int]) -> int:
    number = byte & 63
    while byte & 64:
        byte = next(table)
        number = number << 6 | byte & 63
    return number
