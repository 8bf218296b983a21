"""Log lines about the stages of a request: what they hold, in text and in JSON, and what they never hold."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nanogrid.celery import make_app
from nanogrid.result import ExecutionResult, Outcome, StartKind, not_run
from nanogrid.settings import Settings
from nanogrid.telemetry import stages
from nanogrid.telemetry.logs import JsonLines, Logging, TextLines, _not_a_stage, _without_body
from nanogrid.telemetry.masking import Mask, secrets_of

FORMAT = "[%(levelname)s/%(processName)s] %(message)s"
STARTED: Any = {
    "container": "nanogrid-hello-ab12-3",
    "start": StartKind.WARM,
    "acquire_ms": 0.4,
    "timeout_ms": 1000,
    "memory_mb": 512,
    "cpus": 1,
}
SUCCEEDED = ExecutionResult(
    request_id="r-1",
    function_id="hello",
    exit_code=0,
    stdout="out-secret",
    stderr="err-secret",
    duration_millis=2,
    success=True,
    outcome=Outcome.SUCCEEDED,
    value="value-secret",
    peak_memory_bytes=9_500_000,
    memory_limit_mb=512,
    start_kind=StartKind.WARM,
)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the test's own handler writes for the stages; `as_json` or `as_text` sets its formatter."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines(Mask(), FORMAT, use_color=False))
    stages.log.addHandler(handler)
    stages.log.setLevel(logging.INFO)
    yield stream
    stages.log.removeHandler(handler)
    stages.log.setLevel(logging.NOTSET)


def as_json(record: logging.LogRecord, *secrets: str) -> dict[str, Any]:
    """Return a record's line as JSON."""
    line = JsonLines(Mask(secrets), "w1@here").format(record)
    assert "\n" not in line
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def record_of(message: object, *args: object, level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    return logging.getLogger("some.logger").makeRecord("some.logger", level, "f", 1, message, args, None, **more)


def say_all() -> None:
    """Write every stage once."""
    stages.received("r-1", "hello", 1, queue="python", deliveries=1, age_ms=8.4)
    with stages.RunStages("r-1", "hello", 1) as run:
        run.code_ready(cached=True, fetch_ms=0.61, unpack_ms=0.0, build_ms=None)
        run.started(**STARTED)
    stages.retrying("r-1", "hello", 1, "S3 does not answer\nand more", 1.54)
    stages.finished(SUCCEEDED)
    stages.answered(SUCCEEDED)


def test_each_stage_is_a_line_for_people(written: io.StringIO) -> None:
    """Stage, request and function come first, then the details."""
    say_all()
    assert written.getvalue().splitlines() == [
        "[INFO/MainProcess] received  r-1  hello  queue python, sent 8 ms ago",
        "[INFO/MainProcess] code      r-1  hello  cached, fetch 0.6 ms",
        "[INFO/MainProcess] container r-1  hello  nanogrid-hello-ab12-3, warm start, 0.4 ms",
        "[INFO/MainProcess] started   r-1  hello  timeout 1000 ms, 512 MiB, 1 CPU",
        "[WARNING/MainProcess] retrying  r-1  hello  attempt 1 failed: S3 does not answer; again in 1.5 s",
        "[INFO/MainProcess] finished  r-1  hello  SUCCEEDED, exit code 0, 2 ms, warm start, peak 9.1 of 512 MiB",
        "[INFO/MainProcess] answered  r-1  hello  SUCCEEDED is not stored: the request had a result before",
    ]


def test_each_stage_is_an_object(caplog: pytest.LogCaptureFixture) -> None:
    """All lines start with the same fields; the stage's own follow."""
    with caplog.at_level(logging.INFO, stages.log.name):
        say_all()
    lines = [as_json(record) for record in caplog.records]
    assert {tuple(line)[:7] for line in lines} == {
        ("time", "level", "stage", "request", "function", "worker", "attempt")
    }
    assert set(stages.WORDS) == {line["stage"] for line in lines}
    assert {(line["request"], line["function"], line["worker"], line["attempt"]) for line in lines} == {
        ("r-1", "hello", "w1@here", 1)
    }
    (finished,) = (line for line in lines if line["stage"] == "finished")
    assert finished["outcome"] == "SUCCEEDED"
    assert finished["peakMemoryBytes"] == 9_500_000


def test_no_line_holds_what_a_function_wrote(written: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    """Neither form holds stdout, stderr or value of a result."""
    with caplog.at_level(logging.INFO, stages.log.name):
        stages.finished(SUCCEEDED)
    assert "secret" not in written.getvalue()
    assert "secret" not in json.dumps([as_json(record) for record in caplog.records])


def test_a_warm_run_writes_nothing_before_it_has_begun(written: io.StringIO) -> None:
    """The line about cached code waits for the others, keeps its own time, and is also written if these never come."""
    with stages.RunStages("r-1", "hello", 1) as run:
        run.code_ready(cached=True, fetch_ms=0.61, unpack_ms=0.0, build_ms=None)
        assert written.getvalue() == ""
        run.started(**STARTED)
        assert [line.split()[1] for line in written.getvalue().splitlines()] == ["code", "container", "started"]
    with stages.RunStages("r-2", "hello", 1) as run:
        run.code_ready(cached=True, fetch_ms=0.61, unpack_ms=0.0, build_ms=None)
    assert written.getvalue().splitlines()[3:] == ["[INFO/MainProcess] code      r-2  hello  cached, fetch 0.6 ms"]


@pytest.mark.parametrize(("cached", "build_ms"), [(False, None), (True, 800.0)])
def test_what_took_its_time_is_told_at_once(written: io.StringIO, cached: bool, build_ms: float | None) -> None:
    """Code that was downloaded or built gets its line before the request asks for a container."""
    with stages.RunStages("r-1", "hello", 1) as run:
        run.code_ready(cached=cached, fetch_ms=90.0, unpack_ms=3.0, build_ms=build_ms)
        assert written.getvalue().count("\n") == 1


def test_a_line_tells_the_time_of_its_stage(caplog: pytest.LogCaptureFixture) -> None:
    """Not the time of its writing."""
    with caplog.at_level(logging.INFO, stages.log.name):
        stage = stages.Stage("answered", "r-1", "hello", 1, {"outcome": "SUCCEEDED"})
        stage.at = 61.25
        stages.write(logging.INFO, stage)
    assert as_json(caplog.records[0])["time"] == "1970-01-01T00:01:01.250Z"


def test_only_the_first_line_of_a_reason_is_told(written: io.StringIO) -> None:
    """Later lines may be the end of a build log."""
    stages.finished(not_run("r-1", "hello", "build.sh failed, and ends with:\nbuild-secret"))
    assert written.getvalue() == (
        "[WARNING/MainProcess] finished  r-1  hello  NOT_RUN: build.sh failed, and ends with:\n"
    )


def test_a_name_cannot_forge_a_line(written: io.StringIO) -> None:
    """Line ends, control characters and spaces in a function's name are escaped, and a long name is cut."""
    stages.received("r\n-1", "a b\n\x1b[31m finished", 2, queue="python", deliveries=3, age_ms=None)
    assert written.getvalue() == (
        "[INFO/MainProcess] received  r\\n-1  a\\x20b\\n\\x1b[31m\\x20finished  queue python, delivery 3, attempt 2\n"
    )
    assert len(stages.Stage("received", "r", "f" * 10_000, 1, {}).function) == stages.NAME_LENGTH


def test_nothing_is_made_where_nobody_listens(written: io.StringIO) -> None:
    """Below the log level a stage costs one check; warnings are logged nevertheless."""
    stages.log.setLevel(logging.WARNING)
    say_all()
    assert [line.split()[1] for line in written.getvalue().splitlines()] == ["retrying"]


def test_other_lines_are_objects_too() -> None:
    """Logger and message; an exception with its traceback is in the same line."""
    plain = as_json(record_of("hello %s", "you"))
    assert (plain["logger"], plain["message"], plain["request"]) == ("some.logger", "hello you", None)
    try:
        int("no\ngood")
    except ValueError:
        failed = as_json(logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "oh", (), sys.exc_info()))
    assert (failed["level"], failed["message"]) == ("ERROR", "oh")
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith("'no\\ngood'")


def test_the_time_is_utc_to_the_millisecond() -> None:
    """ISO 8601; the text of the second is reused from line to line."""
    lines = JsonLines(Mask(), "w")
    for created, text in (
        (0.0, "1970-01-01T00:00:00.000Z"),
        (0.9995, "1970-01-01T00:00:00.999Z"),
        (61.02, "1970-01-01T00:01:01.020Z"),
    ):
        record = record_of("x")
        record.created = created
        assert json.loads(lines.format(record))["time"] == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:secret@host:6379/0 is away", "redis://:**@host:6379/0 is away"),
        ("redis://user:s3cr:et@host/0", "redis://user:**@host/0"),
        ("rediss://u:a@b@host", "rediss://u:**@host"),
        ("https://name:token@index/simple and amqp://a:b@c", "https://name:**@index/simple and amqp://a:**@c"),
        ('{"url":"redis://:x@h","next":"a:b@c"}', '{"url":"redis://:**@h","next":"a:b@c"}'),
        ("http://host:8080/path, mail a@b", "http://host:8080/path, mail a@b"),
        ("s3://bucket/key@1", "s3://bucket/key@1"),
    ],
)
def test_passwords_in_urls_are_hidden(text: str, masked: str) -> None:
    """In any URL, whoever logs it; the rest of the line stays unchanged."""
    assert Mask()(text) == masked


def test_passwords_of_the_settings_are_hidden_wherever_they_stand() -> None:
    """Not only in URLs: also as they are, percent-encoded, and as written in JSON."""
    settings = Settings(
        result_url="redis://:top%22secret@host/0",
        monitor_url="redis://user:other-secret@host/1",
        broker_url="sqs://AKIA:key/with/slashes@",
        build_pip_env={"PIP_EXTRA_INDEX_URL": "https://me:pip-secret@index/simple"},
    )
    secrets = secrets_of(settings)
    assert secrets == {"top%22secret", "other-secret", "key/with/slashes", "pip-secret"}
    mask = Mask(secrets)
    for text in ("AUTH other-secret", "password='top\"secret'", "top%22secret", "key%2Fwith%2Fslashes", "pip-secret"):
        assert "secret" not in mask(text)
        assert "slashes" not in mask(text)
    line = as_json(record_of('wrong password: top"secret'), *secrets)
    assert line["message"] == "wrong password: **"


def test_a_short_password_does_not_blot_out_words() -> None:
    """It is masked in URLs only."""
    mask = Mask(secrets_of(Settings(result_url="redis://:re@host/0")))
    assert mask("stored at redis://:re@host/0") == "stored at redis://:**@host/0"


@pytest.mark.parametrize(("log_format", "expected"), [("text", TextLines), ("json", JsonLines)])
def test_the_setting_chooses_the_formatter(log_format: Any, expected: type) -> None:
    """For each handler that Celery creates, by the app's own settings."""
    app = make_app(Settings(log_format=log_format, result_url="redis://:top-secret@host/0"))
    assert isinstance(app.log, Logging)
    logger = logging.getLogger(f"nanogrid.test.{log_format}")
    app.log.setup_handlers(logger, io.StringIO(), FORMAT, False)
    (handler,) = logger.handlers
    logger.handlers.clear()
    assert isinstance(handler.formatter, expected)
    assert "top-secret" not in handler.format(record_of("it is top-secret"))


def test_celerys_lines_about_our_tasks_go() -> None:
    """Lines that a stage replaces are dropped; other tasks' lines stay, and so do warnings."""
    from celery.app.trace import LOG_FAILURE, LOG_RETRY, LOG_SUCCESS

    def stays(message: str, name: str, *args: object) -> bool:
        return _not_a_stage(record_of(message, *args, extra={"data": {"name": name}}))

    for message in (LOG_SUCCESS, LOG_RETRY):
        assert not stays(message, "nanogrid.execute_function")
        assert not stays(message, "nanogrid.reduce_function")
        assert stays(message, "another.task")
    assert stays(LOG_FAILURE, "nanogrid.execute_function")
    assert not stays("Discarding revoked task: %s[%s]", "", "nanogrid.execute_function", "r-1")
    assert stays("Discarding revoked task: %s[%s]", "", "another.task", "r-1")


def test_the_body_of_an_unusable_message_goes() -> None:
    """Celery would log it in full."""
    from celery.worker.consumer.consumer import INVALID_TASK_ERROR, UNKNOWN_FORMAT, UNKNOWN_TASK_ERROR

    for message, args, said in (
        (
            UNKNOWN_TASK_ERROR,
            ("'no.such'", "body-secret", {}, {}),
            "a message for the unknown task 'no.such' is given back",
        ),
        (INVALID_TASK_ERROR, ("no id", "body-secret"), "a message that is not a usable task is given back: no id"),
        (UNKNOWN_FORMAT, ("body-secret",), "a message of an unknown form is given back"),
    ):
        record = record_of(message, *args)
        assert _without_body(record)
        assert record.getMessage() == said


def test_a_record_is_like_loggings_own(caplog: pytest.LogCaptureFixture) -> None:
    """Most of its attributes are copied from an earlier record: of this level, process and thread."""
    with caplog.at_level(logging.INFO, stages.log.name):
        for level in (logging.INFO, logging.WARNING, logging.INFO):
            before = time.time()
            stages.write(level, stages.Stage("answered", "r-1", "hello", 1, {"outcome": "SUCCEEDED"}))
            record = caplog.records[-1]
            like = stages.log.makeRecord(stages.log.name, level, stages.__file__, 0, record.msg, (), None)
            moments = ("created", "msecs", "relativeCreated", "message", "asctime")
            assert {name: value for name, value in vars(record).items() if name not in moments} == {
                name: value for name, value in vars(like).items() if name not in moments
            }
            assert before <= record.created <= like.created
            assert record.msecs == pytest.approx(record.created % 1 * 1000)
            assert record.relativeCreated == pytest.approx(
                like.relativeCreated - (like.created - record.created) * 1000, abs=0.01
            )


def test_a_factory_of_records_sees_each_stage(caplog: pytest.LogCaptureFixture) -> None:
    """A deployment's own, such as OpenTelemetry's, adds to each record what belongs to it."""
    own, seen = logging.getLogRecordFactory(), []

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = own(*args, **kwargs)
        seen.append(record)
        return record

    logging.setLogRecordFactory(factory)
    try:
        with caplog.at_level(logging.INFO, stages.log.name):
            say_all()
    finally:
        logging.setLogRecordFactory(own)
    assert seen == caplog.records


@pytest.mark.parametrize("colored", [True, False])
def test_a_stage_is_formatted_as_any_line_is(colored: bool) -> None:
    """The shorter way gives the same text."""
    lines = TextLines(Mask(["secret"]), "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s", use_color=colored)
    for level in (logging.INFO, logging.WARNING):
        for second in (0.0, 0.25, 3600.5):
            stage = stages.Stage("answered", "r-1-secret", "hello", 1, {"outcome": "SUCCEEDED"})
            short, full = record_of(stage, level=level), record_of(str(stage), level=level)
            short.created = full.created = 1_700_000_000 + second
            short.msecs = full.msecs = second % 1 * 1000
            assert lines.format(short) == lines.format(full)
