"""The outcome as text: one table for the terminal and the documents, the remaining slack, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.replay.outcome import ALL, EACH, NAMES, TUNER, VPA, Outcome
from benchmarks.replay.score import Score

GOAL_SLACK, GOAL_RERUNS = 0.15, 0.001

HEAD = (
    "| limit | slack | re-run | GB-seconds | by frequency: slack | re-run |",
    "|---|---|---|---|---|---|",
)


def table(found: Outcome) -> str:
    """Markdown, one row for each policy."""
    rows = []
    for name in NAMES:
        once, weighted = found.once[name], found.weighted[name]
        rows.append(
            f"| {name} | {_percent(once.slack, 1)} | {_percent(once.rerun_share, 3)} | {once.held_gb_s:,.0f} "
            f"| {_percent(weighted.slack, 1)} | {_percent(weighted.rerun_share, 3)} |"
        )
    return "\n".join([*HEAD, *rows])


def _percent(share: float, digits: int) -> str:
    return f"{share * 100:.{digits}f} %"


def _both(score: Score) -> str:
    """Slack and re-runs, in one cell."""
    return f"{_percent(score.slack, 1)} / {_percent(score.rerun_share, 3)}"


def left_over(found: Outcome) -> str:
    """What the tuner's limits left unused, by cause, in percent of all the memory they held."""
    score = found.once[TUNER]
    lines = [
        f"| {cause} | {_percent(unused / score.held_gb_s, 1)} |"
        for cause, unused in sorted(score.unused_gb_s.items(), key=lambda item: -item[1])
    ]
    return "\n".join(["| unused under the tuner's limits | of all GB-seconds |", "|---|---|", *lines])


def by_kind(found: Outcome) -> str:
    """Slack and re-runs by kind of function."""
    names = (VPA, TUNER, EACH)
    lines = [f"| kind | {' | '.join(names)} |", "|---|---|---|---|"]
    for kind in sorted(found.kinds[TUNER]):
        scores = [found.kinds[name][kind] for name in names]
        lines.append(f"| {kind} | " + " | ".join(map(_both, scores)) + " |")
    return "\n".join(lines)


def by_day(days: Sequence[tuple[str, Outcome]]) -> str:
    """How much the days differ."""
    lines = ["| day | VPA's rule | NanoGrid's tuner | best fixed limits, 0.1 % of all |", "|---|---|---|---|"]
    for name, found in days:
        scores = [found.once[policy] for policy in (VPA, TUNER, ALL)]
        lines.append(f"| {name} | " + " | ".join(map(_both, scores)) + " |")
    return "\n".join(lines)


def verdict(found: Outcome) -> list[str]:
    """The goals, and whether they were reached."""
    tuner, vpa, bound = found.once[TUNER], found.once[VPA], found.once[ALL]
    return [
        _goal("slack at most 15 %", tuner.slack <= GOAL_SLACK, _percent(tuner.slack, 1))
        + f" (the best fixed limits in hindsight: {_percent(bound.slack, 1)})",
        _goal("at most 0.1 % of the runs re-run", tuner.rerun_share <= GOAL_RERUNS, _percent(tuner.rerun_share, 3)),
        _goal(
            "better than VPA's rule on both",
            tuner.slack < vpa.slack and tuner.rerun_share < vpa.rerun_share,
            f"{_both(tuner)} against {_both(vpa)}",
        ),
    ]


def _goal(what: str, met: bool, figure: str) -> str:
    return f"{'MET' if met else 'NOT MET':8} {what}: {figure}"
