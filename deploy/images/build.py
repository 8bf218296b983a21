"""Runtime images for hosts without a registry: Debian packages → mmdebstrap → the engine.

The rule: an equivalent never takes an official image's name. `--if-unreachable` is the product's path: use or pull
the official image where that works, build the equivalent where it does not. Standard output carries only `NAME=image`
lines that a shell can read; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import apt_sources
import docker
from docker.errors import APIError, DockerException, ImageNotFound
from engine import connect
from progress import BuildError, say, timed
from requests.exceptions import RequestException

HERE = Path(__file__).resolve().parent
RECIPE_LABEL = "nanogrid.recipe"
REGISTRY_TIMEOUT_S = 10
ENGINE_TIMEOUT_S = 900

Recipe = dict[str, Any]


def load_recipes(path: Path = HERE / "recipes.json") -> dict[str, Recipe]:
    """Name of the equivalent → recipe, the common parts merged in."""
    data = json.loads(path.read_text())
    return {name: _complete(image, data["common"]) for name, image in data["images"].items()}


def _complete(image: Recipe, common: Recipe) -> Recipe:
    """A recipe with the common parts; a standalone recipe takes no packages and no commands from them."""
    shared = {"packages": [], "customize": []} if "alone" in image else common
    return {
        **image,
        "packages": shared["packages"] + image["packages"],
        "customize": shared["customize"] + image["customize"],
        "dpkg_options": common["dpkg_options"],
        "environment": common["environment"],
    }


def recipe_hash(recipe: Recipe) -> str:
    """The value of an image's label if the image is current."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def label_of(client: docker.DockerClient, name: str) -> str | None:
    """The recipe hash on an image, empty if it has none, None if there is no such image."""
    try:
        return str(client.images.get(name).labels.get(RECIPE_LABEL, ""))
    except ImageNotFound:
        return None


def mmdebstrap_command(recipe: Recipe, sources: Path, options: Path, tarball: Path) -> list[str]:
    """The command that makes the file system of a recipe."""
    hooks = [
        # apt gets credentials for the host's mirrors only during the build.
        'if [ -e /etc/apt/auth.conf ]; then cp /etc/apt/auth.conf "$1"/etc/apt/; fi',
        'if [ -d /etc/apt/auth.conf.d ]; then cp -r /etc/apt/auth.conf.d "$1"/etc/apt/; fi',
    ]
    # Mirrors and credentials belong to this host; apt itself is not in the image.
    remove = 'cd "$1"/etc/apt && rm -rf auth.conf auth.conf.d apt.conf.d/99mmdebstrap sources.list sources.list.d'
    return [
        "mmdebstrap",
        "--variant=essential",
        f"--aptopt={options}",
        *(f"--dpkgopt={option}" for option in recipe["dpkg_options"]),
        *(f"--setup-hook={hook}" for hook in hooks),
        *(f"--hook-dir=/usr/share/mmdebstrap/hooks/{name}" for name in recipe.get("hooks", [])),
        *(f"--customize-hook={command}" for command in recipe["customize"]),
        f"--customize-hook={remove}",
        f"--include={','.join(recipe['packages'])}",
        recipe["suite"],
        str(tarball),
        str(sources),
    ]


def sources_for(suite: str) -> str:
    """apt sources of a Debian release, from the host's own."""
    host = apt_sources.release_of_host()
    stanzas = apt_sources.for_release(apt_sources.host_stanzas(), host, suite)
    if not stanzas:
        raise BuildError(
            f"The apt sources of this host ({host or 'unknown release'}) name no Debian archive to take {suite} from. "
            "Build on a Debian host, or give the engine access to a registry."
        )
    return apt_sources.render(stanzas)


def build_image(client: docker.DockerClient, name: str, recipe: Recipe) -> None:
    """Build the equivalent `name` from Debian packages and import it into the engine."""
    if shutil.which("mmdebstrap") is None:
        raise BuildError("mmdebstrap is not installed. Run `make setup`, or `apt-get install mmdebstrap`.")
    with tempfile.TemporaryDirectory(prefix="nanogrid-image-") as folder, timed(f"{name}: Debian {recipe['suite']}"):
        tarball, sources, options = (Path(folder, part) for part in ("root.tar", "debian.sources", "apt.conf"))
        sources.write_text(sources_for(recipe["suite"]))
        options.write_text(apt_sources.transport_options())
        bootstrap(name, mmdebstrap_command(recipe, sources, options, tarball))
        import_tarball(client, name, recipe, tarball)


def bootstrap(name: str, command: list[str]) -> None:
    """Run mmdebstrap; its stages become progress lines, its output is shown if it fails."""
    started = time.monotonic()
    output = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            output.append(line)
            if line.startswith(("I: running apt", "I: downloading", "I: installing")):
                say(f"{name}: {time.monotonic() - started:3.0f} s {line[3:].strip()}")
    if process.returncode:
        raise BuildError(
            f"mmdebstrap could not build {name} (exit code {process.returncode}):\n{''.join(output[-25:])}"
        )


def import_tarball(client: docker.DockerClient, name: str, recipe: Recipe, tarball: Path) -> None:
    """Import a file system into the engine as an image."""
    repository, tag = name.split(":")
    changes = [
        *(f"ENV {key}={value}" for key, value in recipe["environment"].items()),
        f"LABEL {RECIPE_LABEL}={recipe_hash(recipe)}",
        *recipe.get("changes", []),
        f"CMD {json.dumps(recipe['command'])}",
    ]
    reply = client.api.import_image(src=str(tarball), repository=repository, tag=tag, changes=changes)
    last = json.loads(str(reply).strip().splitlines()[-1])
    if "error" in last:
        raise BuildError(f"The engine refused the image {name}: {last['error']}")


def current_image(client: docker.DockerClient, name: str, recipe: Recipe, *, rebuild: bool) -> str:
    """Build `name` unless the engine has it from this same recipe."""
    if rebuild or label_of(client, name) != recipe_hash(recipe):
        build_image(client, name, recipe)
    else:
        say(f"{name}: up to date")
    return name


def official_image(client: docker.DockerClient, name: str) -> str | None:
    """The official image: present, or pulled now. None if no registry serves it."""
    if label_of(client, name) is not None:
        say(f"{name}: present")
        return name
    try:
        # Asking first keeps the wait short if no registry answers; a pull may take minutes.
        connect(REGISTRY_TIMEOUT_S).images.get_registry_data(name)
        with timed(f"{name}: pulling"):
            client.images.pull(name)
    except (APIError, RequestException) as error:
        reason = str(error.explanation if isinstance(error, APIError) else error)
        say(f"{name}: cannot be pulled here ({reason[:160]})")
        return None
    return name


def choose_image(client: docker.DockerClient, name: str, recipe: Recipe, *, if_unreachable: bool, rebuild: bool) -> str:
    """The image to use for a recipe."""
    if if_unreachable and not rebuild:
        # If the equivalent exists, the registry did not answer before: do not ask it again.
        if label_of(client, name) == recipe_hash(recipe):
            return current_image(client, name, recipe, rebuild=False)
        official = official_image(client, recipe["official"])
        if official is not None:
            return official
    return current_image(client, name, recipe, rebuild=rebuild)


def parse_arguments(recipes: dict[str, Recipe]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="deploy/images/build",
        description="Make the runtime images available. Prints NAME=image lines for the environment.",
    )
    usual = [name for name, recipe in recipes.items() if "on_request" not in recipe]
    others = [name for name in recipes if name not in usual]
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help=f"default: all of {', '.join(usual)}; also {', '.join(others)}"
    )
    parser.add_argument(
        "--if-unreachable",
        action="store_true",
        help="use or pull the official image; build the equivalent only if that fails",
    )
    parser.add_argument("--rebuild", action="store_true", help="build even what is up to date")
    arguments = parser.parse_args()
    unknown = set(arguments.images) - set(recipes)
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are {', '.join(recipes)}")
    arguments.images = arguments.images or usual
    return arguments


def main() -> int:
    """Build the images that the command line names, and print the environment lines."""
    recipes = load_recipes()
    arguments = parse_arguments(recipes)
    try:
        client = connect(ENGINE_TIMEOUT_S)
        for name in arguments.images:
            image = choose_image(
                client, name, recipes[name], if_unreachable=arguments.if_unreachable, rebuild=arguments.rebuild
            )
            print(f"{recipes[name]['variable']}={image}", flush=True)
    except (BuildError, DockerException) as error:
        print(f"deploy/images/build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
