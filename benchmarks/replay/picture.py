"""One picture of the replay: slack against re-runs, GB-seconds used and not used, and the remaining slack by cause."""

from __future__ import annotations

from pathlib import Path

from benchmarks.replay.outcome import NAMES, TUNER, Outcome
from benchmarks.replay.report import GOAL_RERUNS, GOAL_SLACK

LEAST_SHARE = 1e-5
"""The position of policies without re-runs on the logarithmic axis."""


def draw(found: Outcome, *paths: Path) -> None:
    """Write the picture to each path, in the format of its ending."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(19, 5.5))
    for name in NAMES:
        score = found.once[name]
        share = max(LEAST_SHARE, score.rerun_share)
        left.plot(share * 100, score.slack * 100, "o", markersize=9 if name == TUNER else 6, label=name)
    left.axvline(GOAL_RERUNS * 100, linestyle=":", color="grey")
    left.axhline(GOAL_SLACK * 100, linestyle=":", color="grey")
    left.set(
        xscale="log",
        xlabel="re-run after OOM, % of the runs (none: at the left edge)",
        ylabel="slack, % of GB-seconds",
        ylim=(0, 100),
    )
    left.legend(fontsize=8, loc="upper right")
    left.set_title("lower and further left is better; dotted: the goal", fontsize=9)

    held = [found.once[name].held_gb_s for name in reversed(NAMES)]
    used = [found.once[name].used_gb_s for name in reversed(NAMES)]
    middle.barh(range(len(NAMES)), held, color="lightgrey", label="held")
    middle.barh(range(len(NAMES)), used, label="used")
    middle.set_yticks(range(len(NAMES)), list(reversed(NAMES)), fontsize=8)
    middle.set_xlabel("GB-seconds of the replayed runs")
    middle.legend(fontsize=8, loc="lower right")

    score = found.once[TUNER]
    causes = sorted(score.unused_gb_s.items(), key=lambda item: item[1])
    right.barh(range(len(causes)), [unused / score.held_gb_s * 100 for _, unused in causes])
    right.set_yticks(range(len(causes)), [cause for cause, _ in causes], fontsize=8)
    right.set_xlabel("not used under the tuner's limits, % of its GB-seconds")
    figure.tight_layout()
    for path in paths:
        figure.savefig(path, dpi=110)
    pyplot.close(figure)
