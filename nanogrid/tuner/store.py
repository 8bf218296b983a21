"""The tuner's data in Redis: records that main processes write, advice that children read.

The rule: a record changes only by compare-and-set, so that any number of workers can update the same one and no run is lost
or counted twice. No run waits for it: advice is read together with the claim, and samples are stored in the background.

    nanogrid:tuner:<functionId>    a hash: record, advice (JSON), version; mode, if one is set for this function.
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
"""Fields that a run needs. They are read in the same round trip as its claim."""

# Sets record and advice if the version is still the one that was read, and lets the key expire unless a mode is set.
# If the version is the new one already, this very command wrote it and its answer was lost.
SAVE = """
if redis.call('hget', KEYS[1], 'version') == ARGV[2] then return 1 end
if (redis.call('hget', KEYS[1], 'version') or '') ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[1], 'version', ARGV[2], 'record', ARGV[3], 'advice', ARGV[4])
if redis.call('hexists', KEYS[1], 'mode') == 0 then redis.call('expire', KEYS[1], ARGV[5]) end
return 1
"""

# A reset removes what was learned and keeps a mode that was set.
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
    """The stored data of one function. `mode` is None if the deployment's mode applies. `version` is for the next save."""

    function_id: str
    record: Record
    advice: Advice | None
    mode: Mode | None
    version: str


@dataclass
class SampleBatch:
    """Runs to learn from, by function. `token` marks the records that hold them, so that no run counts twice."""

    runs: dict[str, list[RunEvent]]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, runs: Iterable[RunEvent]) -> SampleBatch:
        """Group these runs by function, in their order."""
        by_function: dict[str, list[RunEvent]] = {}
        for run in runs:
            by_function.setdefault(run.function_id, []).append(run)
        return cls(by_function)


def key_of(function_id: str) -> str:
    """Return the Redis key of a function."""
    return PREFIX + function_id


def rules_of(settings: Settings) -> Rules:
    """Return the tuner's parameters from the settings."""
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
    """Return the decision for the next run of a function, from the values of the fields READ_BY_RUNS."""
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
        """The tuner's parameters in this deployment."""
        return self._rules

    def load(self, function_ids: Sequence[str]) -> list[TunerEntry]:
        """Return the entries of these functions, in their order. One round trip."""
        with self._redis.pipeline(transaction=False) as many:
            for function_id in function_ids:
                many.hgetall(key_of(function_id))
            hashes = many.execute()
        return [self._entry(function_id, fields) for function_id, fields in zip(function_ids, hashes, strict=True)]

    def all(self) -> Iterator[TunerEntry]:
        """Yield the entry of every stored function, in no particular order."""
        for keys in _batches(self._redis.scan_iter(match=PREFIX + "*", count=SCAN_COUNT), SCAN_COUNT):
            yield from self.load([key.removeprefix(PREFIX) for key in keys])

    def learn(self, batch: SampleBatch) -> None:
        """Add a batch's runs to the records of their functions, and remove from the batch what is stored.

        Raises RedisError if Redis does not answer. The same batch can then be passed again, however far this call came.
        """
        while batch.runs:
            entries = self.load(list(batch.runs))
            stored = [entry.function_id for entry in entries if entry.version == batch.token]  # and the answer was lost
            for function_id in stored:
                del batch.runs[function_id]
            new = [entry for entry in entries if entry.version != batch.token]
            with self._redis.pipeline(transaction=False) as many:
                for entry in new:
                    self._write(entry, batch, many)
                saved = many.execute()
            for entry, done in zip(new, saved, strict=True):
                if done:  # otherwise another worker was faster: read what it wrote, and add to that
                    del batch.runs[entry.function_id]

    def set_mode(self, function_id: str, mode: Mode | None) -> None:
        """Set a function's own mode, or with None return it to the deployment's."""
        value = "" if mode is None else mode.value
        self._set_mode(keys=[key_of(function_id)], args=[value, self._settings.tuner_expires_s])

    def reset(self, function_id: str) -> bool:
        """Remove what was learned about a function, but keep its mode. Returns False if nothing was learned."""
        # Two commands: if the second one is sent again after its answer was lost, it finds nothing.
        learned = bool(self._redis.hexists(key_of(function_id), "version"))
        self._forget(keys=[key_of(function_id)])
        return learned

    def _write(self, entry: TunerEntry, batch: SampleBatch, pipeline: Any) -> None:
        record, runs = entry.record, batch.runs[entry.function_id]
        for run in runs:
            record = learn(record, _sample(run), self._rules)
        advice = decide(record, runs[-1].requested_mb, runs[-1].code, self._rules, time.time())
        self._save(
            keys=[key_of(entry.function_id)],
            args=[
                entry.version,
                batch.token,
                _text(record.to_json()),
                _text(advice.to_json()),
                self._settings.tuner_expires_s,
            ],
            client=pipeline,
        )

    def _entry(self, function_id: str, fields: dict[str, str]) -> TunerEntry:
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
            log.warning("the tuner's record of %s cannot be parsed (%s); learning starts again", function_id, error)
            return Record.empty(self._rules)


def _sample(run: RunEvent) -> Sample:
    """Convert a run to a sample. A kill for memory under a lowered limit counts even if the function coped: it needed more."""
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
    """Parse stored advice. None if there is none, or another version of NanoGrid wrote it."""
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
