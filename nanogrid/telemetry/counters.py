"""Names of the counters that `nanogrid.telemetry.events.count` adds to, and the labels that each may have.

The rule: labels are few and known. Never a function's name, a request's id or an error's text.
"""

from __future__ import annotations

CODE_LOOKUP = "code_lookup"
"""A lookup in the code cache: HIT or MISS."""

LAYER_LOOKUP = "layer_lookup"
"""A lookup of a layer: HIT or MISS. Code without layers causes no lookup."""

HIT = "hit"
MISS = "miss"

S3_BYTES = "s3_bytes"
"""Bytes of an archive that were downloaded, even if the archive was refused or the download failed; the amount is the bytes."""

LAYER_BUILD = "layer_build"
"""A layer build: BUILT or FAILED; the amount is seconds."""

BUILT = "built"
FAILED = "failed"

ATTEMPT_FAILED = "attempt_failed"
"""An attempt failed because of NanoGrid or a service it needs, by one of CAUSES."""

CAUSES = ("code", "container", "limit", "pool", "redis", "time", "unexpected")
"""`NanoGridError.cause` is one of these. "redis" and "time" also stand for errors of Redis and Celery's soft time limit."""

RETRY = "retry"
"""A request waits for its next attempt."""

GAVE_UP = "gave_up"
"""The last attempt at a request failed."""

DUPLICATE = "duplicate"
"""A request was delivered again: ANSWERED with the stored result, or WAITED for the run under way elsewhere."""

ANSWERED = "answered"
WAITED = "waited"

DEAD_LETTER = "dead_letter"
"""A request was found in a dead-letter queue, and its result stored."""

NOT_APPENDED = "results_not_appended"
"""A result has no entry in the results stream."""

RERUN = "tuner_reruns"
"""A run was repeated because the tuner's limit was too small."""
