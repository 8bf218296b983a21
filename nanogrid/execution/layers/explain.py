"""Why a layer could not be built, in one sentence with the end of the build's log.

The rule: what the function's author can mend is a LayerBuildError; an index that cannot be reached is not theirs.
"""

from __future__ import annotations

from nanogrid.errors import CodeError, CodeUnavailableError, LayerBuildError
from nanogrid.execution.container.hardening import NO_NETWORK
from nanogrid.execution.layers.build import Recipe, Verdict
from nanogrid.execution.layers.build_log import BuildLog
from nanogrid.execution.layers.requirements import NAME
from nanogrid.settings import Settings

NO_CONNECTION = ("after connection broken by", "Max retries exceeded", "Read timed out", "ConnectionResetError")
"""What pip says when it met no index, and not when an index knows no such package."""

NEEDS_NETWORK = (
    "needs a package index and builds have no network: name one that reaches the index with NANOGRID_BUILD_NETWORK, or put "
    "wheels into the code"
)


def failure(
    verdict: Verdict, recipe: Recipe, build_log: BuildLog, settings: Settings, *, index_is_ours: bool
) -> CodeError:
    """The error for a build that ended with any other verdict than BUILT.

    `index_is_ours`: the requirements name no index of their own, so one that cannot be reached is the deployment's
    trouble, and worth another attempt.
    """
    if verdict is Verdict.FAILED and recipe.source == NAME and build_log.says(*NO_CONNECTION):
        if settings.build_network == NO_NETWORK:
            return LayerBuildError(_with_log(NEEDS_NETWORK, recipe, build_log))
        if index_is_ours:
            reason = "could not be installed, the package index did not answer"
            return CodeUnavailableError(_with_log(reason, recipe, build_log))
    return LayerBuildError(_with_log(_reason(verdict, recipe, settings), recipe, build_log))


def unusable(problem: str, recipe: Recipe, build_log: BuildLog) -> LayerBuildError:
    """The error for a result that is no acceptable tree."""
    return LayerBuildError(_with_log(f"made files that cannot be used ({problem})", recipe, build_log))


def _reason(verdict: Verdict, recipe: Recipe, settings: Settings) -> str:
    match verdict:
        case Verdict.TIMED_OUT:
            return f"took longer than the {settings.longest_build_s:g} s of NANOGRID_BUILD_TIMEOUT_S"
        case Verdict.OUT_OF_MEMORY:
            return f"ran out of the {settings.build_memory_mb} MiB of NANOGRID_BUILD_MEMORY_MB (files count as well)"
        case Verdict.TOO_LARGE:
            return f"made more than the {settings.layer_limit_mb} MiB of NANOGRID_LAYER_LIMIT_MB"
        case Verdict.NO_PIP:
            return (
                "cannot be installed because the image has no pip: use one that has, or pack the packages with the code"
            )
        case _:
            return "could not be installed" if recipe.arguments[0] == "packages" else "failed"


def _with_log(reason: str, recipe: Recipe, build_log: BuildLog) -> str:
    whole = f"{recipe.source} {reason}; the whole log is {build_log.path} on the worker's host"
    end = build_log.end()
    return f"{whole}, and ends with:\n{end}" if end else f"{whole}, and is empty."
