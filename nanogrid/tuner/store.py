"""What is known of each function's memory, in Redis: records that main processes write, advice that children read.

The rule: a record changes only by comparing and setting, so that any number of workers learn into the same one and no run
is lost or counted twice. A run waits for none of it: advice comes with the claim, and samples travel in their own time.

    nanogrid:tuner:<functionId>    a hash: record, advice (JSON), version; mode, where somebody set one for this function.
                                   `version` marks the last write
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis

from nanogrid.result import Outcome
from nanogrid.settings import Settings
from nanogrid.telemetry.events import RunEvent
from nanogrid.tuner.advice import Advice, decide
from nanogrid.tuner.decision import Decision
from nanogrid.tuner.record import Record, Sample, learn
from nanogrid.tuner.rules import Rules
from nanogrid.tuner.sizes import is_measured
from nanogrid.wire.tuner_mode import Mode

log = logging.getLogger(__name__)

PREFIX = "nanogrid:tuner:"
READ_BY_RUNS = ("advice", "mode")
"""Fields that a run needs; they come in the round trip of its claim."""

# Sets record and advice if the version is still the one that was read, and lets the key expire unless a mode was set.
# A version that is the new one already was written by this very command, whose answer was lost.
SAVE = """
if redis.call('hget', KEYS[1], 'version') == ARGV[2] then return 1 end
if (redis.call('hget', KEYS[1], 'version') or '') ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[1], 'version', ARGV[2], 'record', ARGV[3], 'advice', ARGV[4])
if redis.call('hexists', KEYS[1], 'mode') == 0 then redis.call('expire', KEYS[1], ARGV[5]) end
return 1
"""

# A reset forgets what was learned; what somebody decided stays.
FORGET = "return redis.call('hdel', KEYS[1], 'version', 'record', 'advice')"

SET_MODE = """
if ARGV[1] ~= '' then
  redis.call('hset', KEYS[1], 'mode', ARGV[1])
  redis.call('persist', KEYS[1])
else
  redis.call('hdel', KEYS[1], 'mode')
  redis.call('expire', KEYS[1], ARGV[2])
end
return 1
"""

SCAN_COUNT = 500
T = TypeVar("T")


@dataclass(frozen=True)
class TunerEntry:
    """All that is known of one function. `mode` is None where the deployment's counts. `version` is for the next save."""

    function_id: str
    record: Record
    advice: Advice | None
    mode: Mode | None
    version: str


@dataclass
class SampleBatch:
    """Runs that are to be learned, by function. `token` marks what was written of it, so that nothing counts twice."""

    runs: dict[str, list[RunEvent]]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, runs: Iterable[RunEvent]) -> SampleBatch:
        """These runs, each function's in their order."""
        by_function: dict[str, list[RunEvent]] = {}
        for run in runs:
            by_function.setdefault(run.function_id, []).append(run)
        return cls(by_function)


def key_of(function_id: str) -> str:
    """The Redis key of a function."""
    return PREFIX + function_id


def rules_of(settings: Settings) -> Rules:
    """The deployment's numbers."""
    return Rules(
        percentile=settings.tuner_percentile,
        margin=settings.tuner_margin,
        least_margin=min(settings.tuner_margin, Rules.least_margin),
        floor_mb=settings.tuner_floor_mb,
        ceiling_mb=settings.tuner_ceiling_mb or settings.max_memory_mb,
        minimum_samples=settings.tuner_minimum_runs,
        half_life_s=settings.tuner_half_life_s,
        backoff_s=settings.tuner_backoff_s,
    )


def decision_for(function_id: str, read: Sequence[str | None], settings: Settings) -> Decision:
    """What holds for the next run of a function, from what `READ_BY_RUNS` gave."""
    advice_json, mode = read
    if is_measured(function_id):
        return Decision(Mode.OFF, None)
    return Decision(_mode(mode) or settings.tuner_mode, _advice(advice_json))


class TunerStore:
    """The records in one Redis. Thread-safe, as its client is."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self._settings = settings
        self._rules = rules_of(settings)
        self._redis = client
        self._save = client.register_script(SAVE)
        self._set_mode = client.register_script(SET_MODE)
        self._forget = client.register_script(FORGET)

    @property
    def rules(self) -> Rules:
        """The numbers that this deployment tunes by."""
        return self._rules

    def load(self, function_ids: Sequence[str]) -> list[TunerEntry]:
        """What is known of these functions, in their order. One round trip."""
        with self._redis.pipeline(transaction=False) as many:
            for function_id in function_ids:
                many.hgetall(key_of(function_id))
            found = many.execute()
        return [self._known(function_id, fields) for function_id, fields in zip(function_ids, found, strict=True)]

    def all(self) -> Iterator[TunerEntry]:
        """Every function that something is known of, in no order."""
        for keys in _batches(self._redis.scan_iter(match=PREFIX + "*", count=SCAN_COUNT), SCAN_COUNT):
            yield from self.load([key.removeprefix(PREFIX) for key in keys])

    def learn(self, batch: SampleBatch) -> None:
        """Add a batch's runs to their functions' records, and take out of it what is written.

        Raises RedisError where Redis does not answer; the same batch can then be given again, however far this one came.
        """
        while batch.runs:
            known = self.load(list(batch.runs))
            written = [one.function_id for one in known if one.version == batch.token]  # before an answer was lost
            for function_id in written:
                del batch.runs[function_id]
            new = [one for one in known if one.version != batch.token]
            with self._redis.pipeline(transaction=False) as many:
                for one in new:
                    self._write(one, batch, many)
                saved = many.execute()
            for one, done in zip(new, saved, strict=True):
                if done:  # otherwise another worker was faster: read what it wrote, and add to that
                    del batch.runs[one.function_id]

    def set_mode(self, function_id: str, mode: Mode | None) -> None:
        """Set a function's own mode, or with None let it follow the deployment's again."""
        value = "" if mode is None else mode.value
        self._set_mode(keys=[key_of(function_id)], args=[value, self._settings.tuner_expires_s])

    def reset(self, function_id: str) -> bool:
        """Forget what was learned of a function. False where nothing was. Its mode stays."""
        # Two questions: the second one may be sent again after its answer was lost, and finds nothing then.
        learned = bool(self._redis.hexists(key_of(function_id), "version"))
        self._forget(keys=[key_of(function_id)])
        return learned

    def _write(self, known: TunerEntry, batch: SampleBatch, pipeline: Any) -> None:
        record, runs = known.record, batch.runs[known.function_id]
        for run in runs:
            record = learn(record, _sample(run), self._rules)
        advice = decide(record, runs[-1].requested_mb, runs[-1].code, self._rules, time.time())
        self._save(
            keys=[key_of(known.function_id)],
            args=[
                known.version,
                batch.token,
                _text(record.to_json()),
                _text(advice.to_json()),
                self._settings.tuner_expires_s,
            ],
            client=pipeline,
        )

    def _known(self, function_id: str, fields: dict[str, str]) -> TunerEntry:
        return TunerEntry(
            function_id,
            self._record(function_id, fields.get("record")),
            _advice(fields.get("advice")),
            _mode(fields.get("mode")),
            fields.get("version", ""),
        )

    def _record(self, function_id: str, text: str | None) -> Record:
        if text is None:
            return Record.empty(self._rules)
        try:
            return Record.from_json(json.loads(text), self._rules)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("what was learned of %s cannot be read (%s); it is learned anew", function_id, error)
            return Record.empty(self._rules)


def _sample(run: RunEvent) -> Sample:
    """A run as the tuner sees it. A kill for memory that the function coped with is one all the same: it needed more."""
    lowered = run.limit_mb < run.requested_mb
    return Sample(
        at_s=run.at_s,
        peak_mb=None if run.peak_bytes is None else run.peak_bytes / 2**20,
        outcome=Outcome.OUT_OF_MEMORY if lowered and run.killed_for_memory else Outcome(run.outcome),
        duration_ms=run.duration_ms,
        cpu_ms=run.cpu_ms,
        limit_mb=run.limit_mb,
        requested_mb=run.requested_mb,
        code=run.code,
        lowered=lowered,
        rerun=run.rerun,
    )


def _advice(text: str | None) -> Advice | None:
    """Stored advice; None where there is none, or another version of NanoGrid wrote it."""
    if not text:
        return None
    try:
        return Advice.from_json(json.loads(text))
    except (ValueError, TypeError):
        return None


def _mode(text: str | None) -> Mode | None:
    try:
        return Mode(text) if text else None
    except ValueError:
        return None


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
