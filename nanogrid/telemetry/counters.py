"""Names of what children tell by `observations.happened` so that it is counted, and the labels that each may have.

The rule: labels are few and known. Never a function's name, a request's id or an error's text.
"""

from __future__ import annotations

CODE_LOOKUP = "code_lookup"
"""Code was looked for in the cache: HIT or MISS."""

LAYER_LOOKUP = "layer_lookup"
"""A layer was looked for: HIT or MISS. Code that needs none looks for none."""

HIT = "hit"
MISS = "miss"

S3_BYTES = "s3_bytes"
"""Bytes of an archive were downloaded, also of one that was refused or broke off; the amount says how many."""

LAYER_BUILD = "layer_build"
"""A layer was built: BUILT or FAILED; the amount is seconds."""

BUILT = "built"
FAILED = "failed"

ATTEMPT_FAILED = "attempt_failed"
"""An attempt failed by NanoGrid's own trouble, one of CAUSES."""

CAUSES = ("code", "container", "limit", "pool", "redis", "time", "unexpected")

RETRY = "retry"
"""A request waits for its next attempt."""

GAVE_UP = "gave_up"
"""The last attempt at a request failed."""

DUPLICATE = "duplicate"
"""A request was in somebody's hand, or done: ANSWERED by the stored result, or WAITED for the one who runs it."""

ANSWERED = "answered"
WAITED = "waited"

DEAD_LETTER = "dead_letter"
"""A request was found in a dead-letter queue, and its end stored."""

NOT_APPENDED = "results_not_appended"
"""A result has no entry in the results stream."""

RERUN = "tuner_reruns"
"""A run had too little memory by the tuner's fault, and was run again."""
