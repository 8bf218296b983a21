"""The builds that a function's code needs, each with an id over everything that decides its result.

The rule: what is not in the id does not reach the build. So one id never stands for two different layers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from nanogrid.execution.code import Code
from nanogrid.execution.container.hardening import MOUNT, NO_NETWORK, WORKSPACE
from nanogrid.execution.layers import lines, requirements
from nanogrid.execution.layers.build import CONSTRAINTS, IndexRecipe, Recipe
from nanogrid.execution.layers.lines import RequirementLine
from nanogrid.execution.layers.requirements import Requirements
from nanogrid.runtimes import Runtime
from nanogrid.settings import Settings

SCRIPT = "build.sh"
FORMAT = "2"
"""Part of each id. A new number invalidates all earlier builds."""

BUILD_ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108
PIP_ENVIRONMENT = {
    "PIP_NO_CACHE_DIR": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    # On the file system of the result, so that pip moves packages there instead of copying them.
    "TMPDIR": f"{WORKSPACE}/tmp",  # noqa: S108
}

INDEX_PORT = 8076
"""The index's port on loopback in a build that may run set-up code. The container has no other port."""
SERVED = f"http://127.0.0.1:{INDEX_PORT}"
SERVED_ENVIRONMENT = {
    "INDEX_PORT": str(INDEX_PORT),
    # pip waits for the other container, whose own pip applies the deployment's timeout.
    "PIP_TIMEOUT": "600",
    "PIP_CONFIG_FILE": "/dev/null",
}
NOT_OF_THE_INDEX = (
    "PIP_NO_BUILD_ISOLATION",
    "PIP_USE_PEP517",
    "PIP_PRE",
    "PIP_PREFER_BINARY",
    "PIP_NO_BINARY",
    "PIP_ONLY_BINARY",
)
"""Settings of pip that say how to build. All others stay in the index container: any of them may contain a password."""


@dataclass(frozen=True)
class Needs:
    """The builds that a function's code needs."""

    requirements: Requirements | None
    script: bool

    def __bool__(self) -> bool:
        return self.requirements is not None or self.script


def needs(code: Path, runtime: Runtime, settings: Settings) -> Needs:
    """Read the code's needs. Raises LayerBuildError if its requirements are refused."""
    wanted = None
    if runtime.supports_handler and (code / requirements.NAME).is_file():
        wanted = requirements.read(code, wheels_only=settings.build_wheels_only)
    return Needs(wanted, (code / SCRIPT).is_file())


def packages_recipe(wanted: Requirements, code: Code, image_id: str, runtime: Runtime, settings: Settings) -> Recipe:
    """Install what `requirements.txt` names. The code is mounted only if the requirements name files of it."""
    python = runtime.command[0]
    chosen = dict(settings.build_pip_env)
    if settings.build_index_url:
        chosen["PIP_INDEX_URL"] = settings.build_index_url
    patience = {"PIP_RETRIES": "1"} if settings.build_network == NO_NETWORK else {}
    asking = {**BUILD_ENVIRONMENT, **PIP_ENVIRONMENT, **patience, **chosen}
    arguments: tuple[str, ...] = ("packages", python, "--only-binary", ":all:")
    decides = [wanted.text, wanted.constraints_text, image_id, json.dumps(chosen, sort_keys=True)]
    files = {requirements.NAME: wanted.text, CONSTRAINTS: wanted.constraints_text}
    env, index, network = asking, None, settings.build_network
    if not settings.build_wheels_only:
        arguments = ("packages", python, "--index-url", f"{SERVED}/simple/")
        files, of_the_index = _served(wanted)
        index = IndexRecipe((python,), asking, of_the_index)
        building = {name: chosen[name] for name in NOT_OF_THE_INDEX if name in chosen}
        if all(place.startswith("/") for place in chosen.get("PIP_FIND_LINKS", "-").split()):
            building["PIP_FIND_LINKS"] = chosen["PIP_FIND_LINKS"]  # folders of the image
        env, network = {**BUILD_ENVIRONMENT, **PIP_ENVIRONMENT, **building, **SERVED_ENVIRONMENT}, NO_NETWORK
    return Recipe(
        _id(*arguments, *decides, "" if wanted.alone else code.sha256),
        requirements.NAME,
        image_id,
        arguments,
        env,
        network=network,
        binds={} if wanted.alone else {lines.CODE: str(code.path)},
        files=files,
        index=index,
    )


def _served(wanted: Requirements) -> tuple[dict[str, str], dict[str, str]]:
    """The files of a build whose index is served by another container, and the files of the other container.

    Lines that say where packages come from go to the other container; the build only names what it needs.
    """
    addresses: list[str] = []

    def served(line: RequirementLine) -> str:
        if not line.target:
            return line.text
        place = f"{SERVED}/address/{len(addresses)}/{line.file}{''.join(line.target.partition('#')[1:])}"
        addresses.append(line.target)
        return line.text.replace(line.target, place, 1)

    sources = [line for line in wanted.lines if _is_source(line)]
    kept = [served(line) for line in wanted.lines if not _is_source(line)]
    constraints = [served(line) for line in wanted.constraints]
    return (
        {requirements.NAME: _text(kept), CONSTRAINTS: _text(constraints)},
        {"sources.txt": _text([line.text for line in sources]), "addresses.json": json.dumps(addresses)},
    )


def _is_source(line: RequirementLine) -> bool:
    """Whether a line says where packages come from, other than the code."""
    return line.text == "--no-index" or (line.option and line.elsewhere and line.alone)


def _text(texts: list[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def tree_recipe(code: Code, packages: tuple[str, Path] | None, image_id: str, settings: Settings) -> Recipe:
    """Run `build.sh`. `packages` (id and folder) are those that `requirements.txt` installed. It gets no settings of pip."""
    binds, env, packages_id = {lines.CODE: str(code.path)}, dict(BUILD_ENVIRONMENT), ""
    if packages is not None:
        packages_id = packages[0]
        binds[f"{MOUNT}/packages"] = str(packages[1])
        env["PYTHONPATH"] = f"{MOUNT}/packages"
    layer_id = _id("tree", image_id, code.sha256, packages_id)
    return Recipe(layer_id, SCRIPT, image_id, ("tree",), env, network=settings.build_network, binds=binds)


def _id(*parts: str) -> str:
    return hashlib.sha256("\0".join((FORMAT, *parts)).encode("utf-8", "surrogatepass")).hexdigest()
