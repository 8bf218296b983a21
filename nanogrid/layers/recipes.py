"""From a function's code to the builds that it needs, each with an id over all that decides its result.

The rule: what is not in the id does not reach the build. So the same id never stands for two different layers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from nanogrid.code import Code
from nanogrid.container.hardening import MOUNT, WORKSPACE
from nanogrid.layers import requirements
from nanogrid.layers.build import Recipe
from nanogrid.layers.requirements import Requirements
from nanogrid.runtimes import Runtime
from nanogrid.settings import Settings

SCRIPT = "build.sh"
FORMAT = "1"
"""Part of each id: another number where builds of before are of no use any more."""

BUILD_ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108
PIP_ENVIRONMENT = {
    "PIP_NO_CACHE_DIR": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    # On the file system of the result, so that packages are moved there and not copied.
    "TMPDIR": f"{WORKSPACE}/tmp",  # noqa: S108
}


@dataclass(frozen=True)
class Needs:
    """What the files of some code ask to have built."""

    requirements: Requirements | None
    script: bool

    def __bool__(self) -> bool:
        return self.requirements is not None or self.script


def needs(code: Path, runtime: Runtime, settings: Settings) -> Needs:
    """Look at the code. Raises LayerBuildError where its requirements are refused."""
    wanted = None
    if runtime.supports_handler and (code / requirements.NAME).is_file():
        wanted = requirements.read(code, wheels_only=settings.build_wheels_only)
    return Needs(wanted, (code / SCRIPT).is_file())


def packages_recipe(wanted: Requirements, code: Code, image_id: str, runtime: Runtime, settings: Settings) -> Recipe:
    """Install what `requirements.txt` names. The code is there only where its files decide."""
    options = ("--only-binary", ":all:") if settings.build_wheels_only else ()
    chosen = dict(settings.build_pip_env)
    if settings.build_index_url:
        chosen["PIP_INDEX_URL"] = settings.build_index_url
    arguments = ("packages", runtime.command[0], *options)
    decides = [*arguments, image_id, wanted.text, json.dumps(chosen, sort_keys=True)]
    return Recipe(
        _id(*decides, "" if wanted.alone else code.sha256),
        requirements.NAME,
        image_id,
        arguments,
        {**BUILD_ENVIRONMENT, **PIP_ENVIRONMENT, **chosen},
        binds={} if wanted.alone else {f"{MOUNT}/code": str(code.path)},
        files={f"code/{requirements.NAME}": wanted.text} if wanted.alone else {},
    )


def tree_recipe(code: Code, packages: tuple[str, Path] | None, image_id: str) -> Recipe:
    """Run `build.sh`. `packages` (id and folder) are what `requirements.txt` brought before. pip's settings stay out of it."""
    binds, env, packages_id = {f"{MOUNT}/code": str(code.path)}, dict(BUILD_ENVIRONMENT), ""
    if packages is not None:
        packages_id = packages[0]
        binds[f"{MOUNT}/packages"] = str(packages[1])
        env["PYTHONPATH"] = f"{MOUNT}/packages"
    return Recipe(_id("tree", image_id, code.sha256, packages_id), SCRIPT, image_id, ("tree",), env, binds)


def _id(*parts: str) -> str:
    return hashlib.sha256("\0".join((FORMAT, *parts)).encode("utf-8", "surrogatepass")).hexdigest()
