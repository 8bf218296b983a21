"""The memory limit of a function's next run.

The rule: never more than the request asks for, and exactly that while there are few samples or right after a mistake.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from nanogrid.tuner.recommendation import recommend
from nanogrid.tuner.record import Record, need, renewed
from nanogrid.tuner.rules import Rules


@dataclass(frozen=True)
class Advice:
    """`limit_mb` is for a request that asks for `requested_mb`; `lowered` means that it is less than that.

    `recommended_mb` and `sentence` are for the result (None and the reason while there is no recommendation). `tuned_mb` is
    the tuner's own limit, whatever is requested; None while the tuner does not set one. `code` is the code it applies to.
    """

    limit_mb: int
    lowered: bool
    recommended_mb: int | None
    sentence: str
    requested_mb: int
    tuned_mb: int | None
    code: str

    def under(self, requested_mb: int) -> Advice:
        """Return the same advice for a request that asks for another amount."""
        if requested_mb == self.requested_mb:
            return self
        limit_mb = requested_mb if self.tuned_mb is None else min(requested_mb, self.tuned_mb)
        return replace(self, limit_mb=limit_mb, lowered=limit_mb < requested_mb, requested_mb=requested_mb)

    def to_json(self) -> dict[str, Any]:
        """Return plain data of a few hundred bytes."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Advice:
        """Parse the output of `to_json`. Raises TypeError on anything else."""
        return cls(**data)


def decide(record: Record, requested_mb: int, code: str, rules: Rules, now_s: float) -> Advice:
    """Return the limit of the next run of this code in mode `apply`.

    It is the requested limit while there is insufficient data, until the back-off after an OOM kill under a lowered limit
    is over, and if the ceiling is below the need.
    """
    record = renewed(record, code, rules)
    recommended = recommend(record, requested_mb, rules, now_s)
    tuned_mb = recommended.memory_mb
    if record.backs_off(now_s) or (tuned_mb == rules.ceiling_mb and _needs_more(record, requested_mb, rules)):
        tuned_mb = None
    limit_mb = requested_mb if tuned_mb is None else min(requested_mb, tuned_mb)
    return Advice(
        limit_mb=limit_mb,
        lowered=limit_mb < requested_mb,
        recommended_mb=recommended.memory_mb,
        sentence=recommended.sentence,
        requested_mb=requested_mb,
        tuned_mb=tuned_mb,
        code=code,
    )


def _needs_more(record: Record, requested_mb: int, rules: Rules) -> bool:
    """Whether the ceiling is below the need."""
    needed = need(record, requested_mb, rules)
    return needed is not None and needed.memory_mb > rules.ceiling_mb
