"""What the tuner decides about one run: the mode of its function, and the advice if there is any."""

from __future__ import annotations

from dataclasses import dataclass

from nanogrid.tuner.advice import Advice
from nanogrid.wire.tuner_mode import Mode


@dataclass(frozen=True)
class Decision:
    """The mode in force for a function, and the advice for its next run. None: the tuner has learned nothing yet."""

    mode: Mode
    advice: Advice | None

    def limit_mb(self, requested_mb: int, code: str) -> int:
        """Return the memory limit of a run, never above `requested_mb`.

        If the advice is for other code, the run gets what it asks for: no run of this code was observed yet.
        """
        if self.mode is not Mode.APPLY or self.advice is None or self.advice.code != code:
            return requested_mb
        return self.advice.under(requested_mb).limit_mb

    @property
    def learns(self) -> bool:
        """Whether the tuner learns from the run."""
        return self.mode is not Mode.OFF

    def recommended_mb(self) -> int | None:
        """Return what the result recommends, or None without a recommendation."""
        return None if self.mode is Mode.OFF or self.advice is None else self.advice.recommended_mb

    def tip(self, requested_mb: int) -> str | None:
        """Return the sentence for the result. Its numbers apply only to the memory that was requested last."""
        if self.mode is Mode.OFF or self.advice is None or self.advice.requested_mb != requested_mb:
            return None
        return self.advice.sentence


NOT_TUNED = Decision(Mode.OFF, None)
"""For a run that does not involve the tuner."""
