"""The beginning of a program: as long as all that it has done is to import and to define.

The rule: what the program has imported until then, it imports in each run of the same code, in this order, and nothing that it
does can make a difference to it. So that, and no more, may be imported before the program begins. It is read off the bytecode that
has run so far: names bound to constants, functions and plain classes, and imports. A call ends the beginning, also one that would
change nothing; so does an assignment to anything but a name, a loop, and a choice by what can differ between two runs.
"""

# Lists of words are easier to read as words.
# ruff: noqa: PTH110, SIM905
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import builtins
import opcode
import os
import sys

from nanogrid_warm.places import WORKSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Iterator
    from types import CodeType, FrameType
    from typing import Any

OWN = WORKSPACE + "/"
BOOTSTRAP = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
HANDLERS = "/nanogrid/runner/call_handler.py"
VERSION = sys.version_info[:2]

BOUNDARIES = frozenset(
    "STORE_NAME STORE_GLOBAL STORE_FAST STORE_DEREF DELETE_NAME DELETE_GLOBAL DELETE_FAST POP_TOP IMPORT_NAME IMPORT_FROM IMPORT_STAR "
    "CALL_INTRINSIC_1 RETURN_VALUE RETURN_CONST JUMP_FORWARD JUMP_ABSOLUTE JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT POP_EXCEPT "
    "POP_BLOCK RERAISE RAISE_VARARGS CHECK_EXC_MATCH JUMP_IF_NOT_EXC_MATCH SETUP_FINALLY PUSH_EXC_INFO".split()
)
"""After these another statement, or another part of one, begins."""

QUIET = BOUNDARIES.union(
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
"""They look into what they are given, which may be a package's."""
SUBSCRIPTS = ("BINARY_SUBSCR", "BINARY_SLICE", "BINARY_OR")
"""As in annotations, which are no more than kept."""
SUBSCRIPT_ARGUMENTS = (7, 26)
"""The same as arguments of BINARY_OP."""
DEFINES = ("MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE", "CALL", "CALL_FUNCTION")
CALLS = ("CALL", "CALL_FUNCTION", "CALL_METHOD", "CALL_FUNCTION_KW", "CALL_KW", "CALL_FUNCTION_EX")
CHOICES = ("POP_JUMP", "JUMP_IF")
NAMED = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD", "STORE_NAME", "STORE_GLOBAL")
SHIFTED = (("LOAD_GLOBAL",) if VERSION >= (3, 11) else ()) + (("LOAD_ATTR",) if VERSION >= (3, 12) else ())
"""Whose argument holds more than the place of a name, in its last bit."""
IN_PLACE = range(13, 26)
"""Arguments of BINARY_OP that change what stands on its left."""

STEADY = frozenset(
    "__name__ TYPE_CHECKING typing sys os version_info platform name maxsize byteorder hexversion".split()
)
"""By these a program may choose and choose the same in each run."""

LOUD_NAMES = frozenset(
    "__builtins__ __cached__ __class_getitem__ __file__ __import__ __loader__ __name__ __package__ __path__ __spec__".split()
)
"""What is bound to them changes what reading something does, or what others see of the module."""
PLAIN_BASES = frozenset(
    "enum typing abc Enum IntEnum StrEnum Flag IntFlag NamedTuple TypedDict Protocol ABC Generic".split()
)
"""Beside Python's own types, what a class may be derived from and do no more than be defined."""
MOVES_HANDLERS = VERSION >= (3, 12)
"""Whether handlers of exceptions stand behind all other code, in the order of what they handle."""
EQUALS = 2
EQUALS_SHIFT = 5 if VERSION >= (3, 13) else 4 if VERSION >= (3, 12) else 0


class Beginning:
    """Of one run, while it is watched."""

    def __init__(self) -> None:
        self.specs: list[Any] = []
        self._quiet: dict[str, bool] = {}

    def note(self, spec: Any) -> None:
        """A module that has been found: its code, if it is the program's own, is going to run."""
        if _is_of_program(spec):
            self.specs.append(spec)

    def lasts(self, frame: FrameType | None) -> bool:
        """Whether an import that happens in `frame` is one of the program's own, and belongs to its beginning."""
        inside: CodeType | None = None
        on_stack = []
        while frame is not None:
            code = frame.f_code
            if code.co_filename == HANDLERS:
                # Which of a module's functions is called, the request decides.
                if (code if inside is None else inside).co_name != "<module>":
                    return False
                inside = code
                break
            if code.co_filename not in BOOTSTRAP:
                if not code.co_filename.startswith(OWN) or not _leads_to(code, frame.f_lasti, inside):
                    return False
                inside = code
                on_stack.append(code.co_filename)
            frame = frame.f_back
        return inside is not None and all(spec.origin in on_stack or self._is_quiet(spec) for spec in self.specs)

    def _is_quiet(self, spec: Any) -> bool:
        """Whether all of a module that has been made is quiet.

        Its code is read where Python has left it, never compiled here: that can warn. One that is about to be made has none yet.
        """
        known = self._quiet.get(spec.origin)
        if known is None:
            if not os.path.exists(spec.cached or ""):
                return False
            try:
                code = spec.loader.get_code(spec.name)
            except Exception:  # noqa: BLE001  # whatever a loader does
                code = None
            known = self._quiet[spec.origin] = code is not None and is_quiet(code)
        return known


def is_own(module: object) -> bool:
    """Whether a module is one of the program's own files."""
    return _is_of_program(getattr(module, "__spec__", None))


def _is_of_program(spec: Any) -> bool:
    origin = getattr(spec, "origin", None)
    return isinstance(origin, str) and origin.startswith(OWN)


def is_quiet(code: CodeType) -> bool:
    """Whether all of a module's code, or of a class's, does nothing but import and define."""
    return _Reading(code, is_main=False).is_quiet([(0, len(code.co_code))])


def _leads_to(code: CodeType, here: int, inside: CodeType | None) -> bool:
    """Whether `code` was quiet until it came to `here`, where it imports, or calls the function `inside` by its name."""
    while here > 0 and code.co_code[here] == 0:  # what belongs to a call stands behind it
        here -= 2
    reading = _Reading(code, is_main=True)
    if not reading.is_quiet(_spans(code, here)):
        return False
    name = opcode.opname[code.co_code[here]]
    if inside is None or inside.co_name == "<module>":
        return name == "IMPORT_NAME"
    return name in CALLS and inside.co_name in reading.names


class _Reading:
    """Reads bytecode as if all of it had run."""

    def __init__(self, code: CodeType, *, is_main: bool) -> None:
        self.code = code
        self.is_main = is_main
        self.names: set[object] = set()
        """What the present statement has read, by name."""
        self._bound: set[str] = set()
        self._classes = 0
        """How many classes are being built."""
        self._constant: Any = None
        self._subscribes = False
        """Whether the present statement has taken something out of what is not its own."""
        self._before = ("", "")
        """The operations before this one."""
        self._compares_equal = False

    def is_quiet(self, spans: list[tuple[int, int]]) -> bool:
        """Whether everything in these spans is; `names` is then what the last statement has read."""
        skip = 0
        for first, last in reversed(spans):
            self.names = set()
            for offset, name, argument in _instructions(self.code.co_code, first, last):
                if offset < skip:
                    continue
                if not self._keeps_quiet(name, argument):
                    return False
                if name.startswith("POP_JUMP") and name.endswith("IF_FALSE") and self._leaves_out_main():
                    skip = _target(offset, argument)
                if name in BOUNDARIES or name.startswith(CHOICES):
                    self.names, self._subscribes = set(), False
                if name != "CACHE":
                    self._before = (self._before[1], name)
        return True

    def _keeps_quiet(self, name: str, argument: int) -> bool:
        if name in CALLS:
            self._classes -= 1
            return self._classes >= 0 and name in ("CALL", "CALL_FUNCTION")
        if name.startswith(CHOICES) and name not in BOUNDARIES:
            return self.names <= STEADY
        if name == "STORE_SUBSCR":
            return self._before == ("LOAD_NAME", "LOAD_CONST") and "__annotations__" in self.names
        if name.startswith(OPERATORS) and not self._looks_at_its_own(name, argument):
            return False
        if name in BOUNDARIES and self._subscribes and self._before[1] not in DEFINES:
            return False
        if (
            name not in QUIET
            or (name == "BINARY_OP" and argument in IN_PLACE)
            or (name == "KW_NAMES" and self._classes)
        ):
            return False
        if name in NAMED:
            return self._knows(name, self.code.co_names[argument >> (name in SHIFTED)])
        if name.startswith("LOAD_FAST") or "DEREF" in name:
            self.names.add(None)
        elif name == "LOAD_BUILD_CLASS":
            self._classes += 1
        elif name == "COMPARE_OP":
            self._compares_equal = argument >> EQUALS_SHIFT == EQUALS
        elif name == "LOAD_CONST":
            self._constant = self.code.co_consts[argument]
            return not (self._classes and hasattr(self._constant, "co_code")) or is_quiet(self._constant)
        return True

    def _looks_at_its_own(self, name: str, argument: int) -> bool:
        """Whether an operator does not depend on what a package has made, or only does so in the annotation of a function."""
        if all(known in STEADY or known in self._bound or hasattr(builtins, str(known)) for known in self.names):
            return True
        self._subscribes = True
        return name in SUBSCRIPTS or (name == "BINARY_OP" and argument in SUBSCRIPT_ARGUMENTS)

    def _knows(self, operation: str, name: str) -> bool:
        """Whether a name that is read, or bound, keeps it quiet."""
        if operation.startswith("STORE"):
            is_class = "__qualname__" in self.code.co_names
            if not self._before[1].startswith("IMPORT_"):
                self._bound.add(name)
            return name not in LOUD_NAMES and (is_class or name != "__getattr__")
        self.names.add(name)
        if not self._classes or name in PLAIN_BASES:
            return True
        return name not in self._bound and isinstance(getattr(builtins, name, None), type)

    def _leaves_out_main(self) -> bool:
        """Whether this is `if __name__ == "__main__"` in a module that is not that one."""
        return not self.is_main and self.names == {"__name__"} and self._compares_equal and self._constant == "__main__"


def _spans(code: CodeType, here: int) -> list[tuple[int, int]]:
    """What of the code can have run when it has come to `here`; first the part that leads there."""
    handlers = [handler for handler in _handlers(code) if MOVES_HANDLERS]
    behind = min([target for _, _, target in handlers], default=len(code.co_code))
    tries = [handler for handler in handlers if handler[0] < behind]
    if here >= behind:
        entered = max((target, last) for _, last, target in tries if target <= here)
        return [(behind, here), (0, entered[1])]
    ahead = [target for _, last, target in tries if last > here]
    return [(0, here), (behind, min(ahead, default=len(code.co_code)))]


def _instructions(data: bytes, first: int, last: int) -> Iterator[tuple[int, str, int]]:
    argument = 0
    for offset in range(first, last, 2):
        name = opcode.opname[data[offset]]
        argument = argument << 8 | data[offset + 1]
        yield offset, "CACHE" if data[offset] == 0 else name, argument
        if name != "EXTENDED_ARG":
            argument = 0


def _target(offset: int, argument: int) -> int:
    """Where a jump that is not taken backwards leads to."""
    if VERSION < (3, 11):
        return argument * (2 if VERSION >= (3, 10) else 1)
    return offset + 2 + 2 * argument + (2 if VERSION >= (3, 13) else 0)


def _handlers(code: CodeType) -> Iterator[tuple[int, int, int]]:
    """Where what is handled begins and ends, and where the handler stands."""
    table = iter(getattr(code, "co_exceptiontable", b""))
    for byte in table:
        first = _number(byte, table)
        length, target, _ = (_number(next(table), table) for _ in range(3))
        yield first * 2, (first + length) * 2, target * 2


def _number(byte: int, table: Iterator[int]) -> int:
    number = byte & 63
    while byte & 64:
        byte = next(table)
        number = number << 6 | byte & 63
    return number
