"""What the tuner has to say about one run: its mode, and its advice where there is any."""

from __future__ import annotations

from dataclasses import dataclass

from nanogrid.tuner.advice import Advice
from nanogrid.wire.tuner_mode import Mode


@dataclass(frozen=True)
class Decision:
    """The mode in force for a function, and the advice for its next run. None: nothing was learned of it yet."""

    mode: Mode
    advice: Advice | None

    def limit_mb(self, requested_mb: int, code: str) -> int:
        """The memory limit of a run, never above `requested_mb`.

        Code that the advice is not for runs with what it asks for: nobody has seen it run.
        """
        if self.mode is not Mode.APPLY or self.advice is None or self.advice.code != code:
            return requested_mb
        return self.advice.under(requested_mb).limit_mb

    @property
    def learns(self) -> bool:
        """Whether runs are to be told to the tuner."""
        return self.mode is not Mode.OFF

    def recommended_mb(self) -> int | None:
        """What results recommend; None where nothing can be said."""
        return None if self.mode is Mode.OFF or self.advice is None else self.advice.recommended_mb

    def tip(self, requested_mb: int) -> str | None:
        """The sentence for a result. Its numbers are those of the size that was requested last."""
        if self.mode is Mode.OFF or self.advice is None or self.advice.requested_mb != requested_mb:
            return None
        return self.advice.sentence


NOT_TUNED = Decision(Mode.OFF, None)
"""For a run that the tuner has nothing to do with."""
