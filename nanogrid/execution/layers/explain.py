"""Why a layer could not be built, in one sentence with the end of the build's log.

The rule: what the function's author can fix is a LayerBuildError; an index that cannot be reached is the deployment's problem.
"""

from __future__ import annotations

from nanogrid.errors import CodeError, CodeUnavailableError, LayerBuildError
from nanogrid.execution.container.hardening import NO_NETWORK
from nanogrid.execution.layers.build import Recipe, Verdict
from nanogrid.execution.layers.build_log import BuildLog
from nanogrid.execution.layers.requirements import NAME
from nanogrid.settings import Settings

NO_CONNECTION = ("after connection broken by", "Max retries exceeded", "Read timed out", "ConnectionResetError")
"""What pip prints if it reaches no index, but not if an index does not have a package."""

NEEDS_NETWORK = (
    "needs a package index, but builds have no network: name a network that reaches the index in NANOGRID_BUILD_NETWORK, or "
    "put wheels into the code"
)


def failure(
    verdict: Verdict, recipe: Recipe, build_log: BuildLog, settings: Settings, *, index_is_ours: bool
) -> CodeError:
    """The error for a build that ended with any verdict but BUILT.

    `index_is_ours`: the requirements name no index of their own. Then an index that cannot be reached is the deployment's
    problem, and the error is retryable.
    """
    if verdict is Verdict.FAILED and recipe.source == NAME and build_log.says(*NO_CONNECTION):
        if settings.build_network == NO_NETWORK:
            return LayerBuildError(_with_log(NEEDS_NETWORK, recipe, build_log))
        if index_is_ours:
            reason = "could not be installed, the package index did not answer"
            return CodeUnavailableError(_with_log(reason, recipe, build_log))
    return LayerBuildError(_with_log(_reason(verdict, recipe, settings), recipe, build_log))


def unusable(problem: str, recipe: Recipe, build_log: BuildLog) -> LayerBuildError:
    """The error for a result that is not an acceptable tree."""
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
            return "cannot be installed because the image has no pip: use an image with pip, or pack the packages with the code"
        case _:
            return "could not be installed" if recipe.arguments[0] == "packages" else "failed"


def _with_log(reason: str, recipe: Recipe, build_log: BuildLog) -> str:
    whole = f"{recipe.source} {reason}; the whole log is {build_log.path} on the worker's host"
    end = build_log.end()
    return f"{whole}, and ends with:\n{end}" if end else f"{whole}, and is empty."
