"""Handlers of AWS Lambda run unmodified: AWS's own runtime runs each program here too, and the results must be equal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanogrid.execution.container.hardening import environment
from nanogrid.execution.executor import handler_command
from nanogrid.request import FunctionRequest, parse_request
from nanogrid.settings import Settings
from tests.support.lambda_reference import Reference, reference
from tests.support.rig import NEWEST_PYTHON_IMAGE, PYTHON_IMAGE
from tests.support.runner_box import Box, Run, box, write_code

REFERENCES: dict[str, Reference] = {}
SETTINGS = Settings(aws_region="eu-central-1")

RETURNED = {
    "text": "'ü\\u2028 \\U0001f600'",
    "numbers": "[0, -1, 2**70, 1.5, 1e300, -0.0, True, None]",
    "decimals": "[D('1.10'), D('-0'), D('1E+3'), D('0.1234567890123456789')]",
    "decimal alone": "D('7')",
    "decimal that is none": "[D('NaN'), D('-NaN'), D('sNaN'), D('Infinity'), D('-Infinity')]",
    "a key that is a decimal": "{D('1'): 1}",
    "no numbers": "{'a': float('nan'), 'b': [float('inf'), -float('inf')]}",
    "named tuple": "Point(1, [Point(2, 3)])",
    "named tuple among others": "[1, (2, Point(3, 4)), {'p': Point(None, '')}]",
    "typing's named tuple": "Typed('a')",
    "what has _asdict": "HasAsdict()",
    "what has _asdict that gives no dict": "HasBadAsdict()",
    "bytes that are JSON": "b'{\"a\": [1]}'",
    "bytes that are none": "b'\\x89PNG\\r\\n\\xff'",
    "no bytes": "b''",
    "bytes inside": "{'a': b'text', 'b': [b'\\xc3\\xbc']}",
    "bytes inside that are no text": "[b'\\xff']",
    "a key in bytes": "{b'k': 1}",
    "bytearray": "bytearray(b'x')",
    "keys": "{1: 'a', 1.5: 'b', True: 'c', None: 'd', float('nan'): 'e'}",
    "a key that is a tuple": "{(1, 2): 3}",
    "datetime": "datetime.datetime(2024, 1, 1)",
    "date inside": "{'when': datetime.date(2024, 1, 1)}",
    "uuid": "uuid.UUID(int=1)",
    "set": "{1}",
    "generator": "(x for x in 'ab')",
    "enumerations": "[Color.RED, Named.A, {Color.RED: Named.A}]",
    "a plain enumeration": "Plain.A",
    "subclasses": "[Text('t'), Whole(3), Real(1.5), List([Whole(1)]), Dict(a=Text('x'))]",
    "ordered": "collections.OrderedDict([('b', 1), ('a', collections.defaultdict(list, x=[1]))])",
    "dataclass": "Data(1)",
    "object": "object()",
    "exception": "ValueError('x')",
    "class": "Data",
    "circle": "circle()",
    "deep": "deep(400)",
    "too deep": "deep(100000)",
    "much": "[{'n': n, 'p': Point(n, n)} for n in range(1000)]",
    "coroutine": "asynchronous()",
    "nothing": "None",
    "a key twice": "{1: 'a', '1': 'b'}",
    "half a character": "'\\ud800'",
}
"""What handlers return, as Python writes it."""

VALUES = (
    """
import collections, dataclasses, datetime, enum, typing, uuid, warnings
from decimal import Decimal as D

warnings.simplefilter("ignore")
Point = collections.namedtuple("Point", "x y")
class Typed(typing.NamedTuple):
    name: str
class HasAsdict:
    def _asdict(self): return {"as": "dict"}
class HasBadAsdict:
    def _asdict(self): return [1]
class Color(enum.IntEnum):
    RED = 1
class Named(str, enum.Enum):
    A = "a"
class Plain(enum.Enum):
    A = "a"
class Text(str): pass
class Whole(int): pass
class Real(float): pass
class List(list): pass
class Dict(dict): pass
@dataclasses.dataclass
class Data:
    x: int
def circle():
    found = []; found.append(found); return found
def deep(levels):
    found = 1
    for _ in range(levels): found = [found]
    return found
async def asynchronous(): return 1
def handle(event, context):
    return CASES[event]()
CASES = {
"""
    + "\n".join(f"    {name!r}: lambda: {source}," for name, source in RETURNED.items())
    + "\n}\n"
)


def asked(handler: str, **fields: Any) -> FunctionRequest:
    """Return a request for a handler."""
    wire = {"functionId": "function", "runtime": "python", "s3Bucket": "code", "s3Key": "key", "handler": handler}
    return parse_request({**wire, **fields}, SETTINGS, request_id="request")


def run(here: Box, request: FunctionRequest) -> Run:
    """Run a handler in a warm container."""
    assert request.handler is not None
    return here.run(handler_command(request.handler)[0], environment(request, SETTINGS), payload=request.payload)


def host_environment(request: FunctionRequest) -> dict[str, str]:
    """Return the environment for the reference, on this host."""
    kept = {name: value for name, value in environment(request, SETTINGS).items() if name != "HOME"}
    return {**kept, "PATH": "/usr/bin:/bin", **request.env}


@pytest.fixture(scope="module", params=[PYTHON_IMAGE, NEWEST_PYTHON_IMAGE])
def here(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A warm container of the oldest Python, and one of the newest."""
    with box(tmp_path_factory.mktemp("box"), request.param) as made:
        yield made


def of_reference(code: Path, request: FunctionRequest, events: tuple[Any, ...] = ()) -> Reference:
    """Return what the reference returns for the request, or for some events. It runs once for all images."""
    assert request.handler is not None
    files = sorted((str(path.relative_to(code)), path.read_text()) for path in code.rglob("*") if path.is_file())
    known = repr((files, request, events))
    if known not in REFERENCES:
        REFERENCES[known] = reference(
            code, request.handler, events or (request.payload,), host_environment(request), request.request_id
        )
    return REFERENCES[known]


def compared(here: Box, tmp_path: Path, files: dict[str, str], request: FunctionRequest) -> tuple[list[Run], str]:
    """Return a handler's runs here, in a new interpreter and in a held one, and the reference's output. Their results are equal."""
    code = write_code(tmp_path / "code", files)
    here.replace(code)
    runs = [run(here, request) for _ in range(2)]
    other = of_reference(code, request)
    failed = not other.answers or bool(other.answers[0].error)
    for one in runs:
        assert (one.exit_code != 0) == failed, (one, other)
        if not failed:
            assert json.loads(one.result) == json.loads(other.answers[0].value)
    return runs, other.out


def test_what_is_returned_is_what_lambda_makes_of_it(here: Box, tmp_path: Path) -> None:
    """Decimals, named tuples, bytes, NaN, keys: the text is the same, and what Lambda refuses is refused here."""
    code = write_code(tmp_path / "code", {"app.py": VALUES})
    here.replace(code)
    answers = of_reference(code, asked("app.handle"), tuple(RETURNED)).answers
    differing = {}
    for name, answer in zip(RETURNED, answers, strict=True):
        one = run(here, asked("app.handle", payload=name))
        ours = one.result if one.exit_code == 0 else None
        theirs = None if answer.error else answer.value
        if ours != theirs or b"Traceback" in one.err or (one.exit_code and not one.err.startswith(b"nanogrid: ")):
            differing[name] = (ours, theirs, one.err)
    assert differing == {}


LOGGING = {
    "root at INFO": "logging.getLogger().setLevel(logging.INFO)\nlogging.info('an %s line', 'INFO')",
    "root as it is": "logging.info('not shown')\nlogging.warning('shown')\nlogging.getLogger('a.b').error('too')",
    "basicConfig does nothing": "logging.basicConfig(level=logging.DEBUG, format='%(message)s')\nlogging.warning('w')",
    "basicConfig by force": "logging.basicConfig(level=logging.DEBUG, force=True, stream=sys.stdout)\nlogging.debug('d')",
    "a logger of its own": "log = logging.getLogger(__name__)\nlog.setLevel('DEBUG')\nlog.debug('d')\nprint('between')\nlog.info('two\\nlines')",
    "an exception": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('caught')",
    "the context's": "context.log('logged')\ncontext.log(7)\nprint()",
    "the handler's looks": "h, = logging.root.handlers\nprint(h.level, h.formatter._fmt, h.formatter.datefmt, len(h.filters), logging.root.level, logging.lastResort.level)",
    "an own formatter": "logging.root.handlers[0].setFormatter(logging.Formatter('%(aws_request_id)s: %(message)s'))\nlogging.warning('w')",
    "more than text": "logging.getLogger('a').error({'b': [1]}, extra={'when': print, 'n': 1})\nlogging.log(25, 'between')",
    "streams": "sys.stdout.write('no line end')\nsys.stdout.writelines(['a', 'b'])\nprint(sys.stdout.encoding, sys.stdout.isatty())",
}


def masked(text: str) -> str:
    """Remove what differs from run to run: times, and the code's folder."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", "TIME", text)
    text = re.sub(r"(?<=[\" ])/[^\" ]*/(?=app\.py)", "", text)
    return re.sub(r"(\n|\\n) *~*\^+~*(?=\n|\\n)", "", text)


CHOSEN = {"AWS_LAMBDA_LOG_LEVEL": "TRACE", "AWS_LAMBDA_LOG_FORMAT": "JSON"}
ASKED = [
    ({}, list(LOGGING)),
    ({"AWS_LAMBDA_LOG_LEVEL": "info"}, ["root as it is", "the handler's looks"]),
    (CHOSEN, ["root as it is", "a logger of its own", "an exception", "more than text"]),
]


@pytest.mark.parametrize(("env", "names"), ASKED, ids=["default", "level", "JSON"])
def test_logs_look_as_in_lambda(env: dict[str, str], names: list[str], here: Box, tmp_path: Path) -> None:
    """The root logger has Lambda's handler, which writes to stdout immediately, before the function's code is imported."""
    lines = ["import json, logging, sys", "logging.warning('while it is imported')", "CASES = {}"]
    for name, source in LOGGING.items():
        body = source.replace("\n", "\n    ")
        lines += [f"def case(context):\n    {body}", f"CASES[{name!r}] = case"]
    code = write_code(tmp_path / "code", {"app.py": "\n".join([*lines, "def handle(e, c): CASES[e](c)", ""])})
    here.replace(code)
    for name in names:
        request = asked("app.handle", payload=name, env=env)
        other = of_reference(code, request)
        one = run(here, request)
        assert (one.exit_code, one.err) == (0, b""), name
        assert [answer.error for answer in other.answers] == [""]
        assert masked(one.out.decode()) == masked(other.out), name


def test_output_before_the_end_is_there_however_the_handler_ends(here: Box, tmp_path: Path) -> None:
    """As in Lambda, output is never buffered."""
    files = {
        "app.py": "import logging, os\ndef f(e, c):\n    print('printed')\n    logging.warning('w')\n    os._exit(3)\n"
    }
    runs, other = compared(here, tmp_path, files, asked("app.f"))
    assert [(masked(one.out.decode()), one.exit_code) for one in runs] == [(masked(other), 3)] * 2


@pytest.mark.parametrize(
    ("handler", "file"),
    [
        ("todos/get.get", "todos/get.py"),
        ("todos/get.get", "todos/get/__init__.py"),
        ("my-app/send-mail.run", "my-app/send-mail.py"),
        ("a/b.c/d.run", "a/b/c/d.py"),
        ("package.run", "package/__init__.py"),
        ("über.größe", "über.py"),
        ("a+b.run", "a+b.py"),
        ("2fa.run", "2fa.py"),
    ],
)
def test_handlers_are_named_as_in_lambda(handler: str, file: str, here: Box, tmp_path: Path) -> None:
    """With slashes and hyphens, in a package, and with any other name that a file can have."""
    name = handler.rpartition(".")[2]
    runs, _ = compared(here, tmp_path, {file: f"def {name}(event, context): return [event, __name__]"}, asked(handler))
    assert [one.exit_code for one in runs] == [0, 0]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("async def f(e, c): return 1", "coroutine is not JSON serializable (Lambda does not await handlers either"),
        ("class f:\n    def __init__(self, e, c): pass", "Object of type f is not JSON serializable"),
        ("class f(dict):\n    def __init__(self, e, c): super().__init__(a=e)", ""),
        ("class F:\n    def __call__(self, e, c): return e\nf = F()", ""),
        ("class F:\n    @staticmethod\n    def f(e, c): return e\nf = F.f", ""),
        ("import functools\ndef g(x, e, c): return x\nf = functools.partial(g, 1)", ""),
        ("f = 1", "app has no callable f"),
        ("", "app has no callable f"),
        ("def f(): pass", "takes 0 positional arguments but 2 were given"),
        ("def f(e, c): yield 1", "generator is not JSON serializable"),
        ("import nowhere", "No module named 'nowhere'"),
        ("def f(:", "SyntaxError"),
        ("import sys\ndef f(e, c): sys.exit(0)", "ended the process instead of returning"),
        ("import sys\ndef f(e, c): sys.exit()", "ended the process instead of returning"),
        ("raise SystemExit", "ended the process instead of returning"),
        ("import sys\ndef f(e, c): sys.exit(4)", ""),
        ("import sys\ndef f(e, c): sys.exit('why')", "why"),
    ],
)
def test_what_can_be_called_is_called_as_by_lambda(source: str, says: str, here: Box, tmp_path: Path) -> None:
    """Async handlers and classes too: what fails in Lambda fails here, and reports why."""
    runs, _ = compared(here, tmp_path, {"app.py": source}, asked("app.f", payload=[1]))
    assert [says in one.err.decode() for one in runs] == [True, True], runs


def test_a_module_of_python_s_own_is_no_handler_module(here: Box, tmp_path: Path) -> None:
    """Python finds its built-in module before the file, so the function could never be found."""
    runs, _ = compared(here, tmp_path, {"time.py": "def f(e, c): return 1"}, asked("time.f"))
    assert b"time is a built-in module of Python" in runs[0].err


LOOK = """
import os
def f(event, context):
    names = [name for name in dir(context) if not name.startswith("_")]
    shown = {name: getattr(context, name) for name in names}
    return {
        "context": {name: value for name, value in shown.items() if isinstance(value, (str, type(None)))},
        "names": names,
        "identity": [context.identity.cognito_identity_id, context.identity.cognito_identity_pool_id, repr(context.identity)],
        "repr": repr(context),
        "w3c": context.w3c(),
        "remaining": isinstance(context.get_remaining_time_in_millis(), int),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "LAMBDA_", "_HANDLER"))},
    }
"""


def test_context_and_environment_are_lambda_s(here: Box, tmp_path: Path) -> None:
    """Every name of AWS's context exists, with the same value. Two more are NanoGrid's. So do the variables that Lambda promises."""
    request = asked("app.f", memoryMb=256, env={"AWS_REGION": "us-east-1"})
    code = write_code(tmp_path / "code", {"app.py": LOOK})
    here.replace(code)
    other = of_reference(code, request)
    theirs = json.loads(other.answers[0].value)
    for one in [run(here, request) for _ in range(2)]:
        ours = json.loads(one.result)
        variables = ours.pop("environment")
        assert sorted({*ours["names"]} - {*theirs["names"]}) == ["deadline", "request_id"]
        ours["names"] = [name for name in ours["names"] if name not in ("deadline", "request_id")]
        assert ours["context"].pop("request_id") == "request"
        assert {**ours, "environment": 0} == {**theirs, "environment": 0}
        assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\]request", variables.pop("AWS_LAMBDA_LOG_STREAM_NAME"))
        assert re.fullmatch(r"AWS_Lambda_python3\.(9|13)", variables.pop("AWS_EXECUTION_ENV"))
        assert variables == {
            "_HANDLER": "app.f",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
            "AWS_LAMBDA_FUNCTION_NAME": "function",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/function",
            "AWS_REGION": "us-east-1",
            "LAMBDA_TASK_ROOT": "/workspace",
        }
