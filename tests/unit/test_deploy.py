"""What is shipped besides the package: lock files, scripts, deployment files and the recipes of images."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanogrid.runtimes import BUILT_IN
from nanogrid.settings import Settings
from nanogrid.sqs.queues import DEAD_LETTER_RETENTION_S, DEAD_LETTER_SUFFIX

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "deploy" / "images"
LOCKS = ("runtime.txt", "dev.txt")

# Put together from parts, so that this very file passes.
INDEX_HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"))]
IMAGE_HOSTS = ["registry-1." + "docker.io", "index." + "docker.io", "ghcr" + ".io", "quay" + ".io"]
MACHINE_PATHS = ["/" + part for part in ("work/main", "work/shared", "root/", "opt/pypi", "opt/wheels")]


@pytest.fixture(scope="module")
def modules() -> Iterator[Path]:
    """The folder deploy/images, importable for the length of this module's tests."""
    sys.path.insert(0, str(IMAGES))
    yield IMAGES
    sys.path.remove(str(IMAGES))


@pytest.fixture
def apt_sources(modules: Path) -> ModuleType:
    """deploy/images/apt_sources.py."""
    return importlib.import_module("apt_sources")


@pytest.fixture
def build(modules: Path) -> ModuleType:
    """deploy/images/build.py."""
    return importlib.import_module("build")


@pytest.fixture
def wheels(modules: Path) -> ModuleType:
    """deploy/images/wheels.py."""
    return importlib.import_module("wheels")


def shipped_files() -> list[Path]:
    """Every file that is committed or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def shell_scripts() -> list[Path]:
    """Every shipped file that bash runs."""
    return [path for path in shipped_files() if path.read_bytes().startswith(b"#!/usr/bin/env bash")]


def lock_entries(name: str) -> list[str]:
    """Logical lines of a lock file."""
    text = (ROOT / "requirements" / name).read_text()
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


# -- the tree as it is shipped


def test_no_index_registry_or_machine_path_is_named() -> None:
    """Nothing that is shipped names a package index, an image registry or a place on the machine it was made on."""
    forbidden = re.compile("|".join(map(re.escape, INDEX_HOSTS + IMAGE_HOSTS + MACHINE_PATHS)))
    found = []
    for path in shipped_files():
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in forbidden.finditer(text)]
    assert found == []


def test_shell_scripts_parse() -> None:
    """Bash accepts every shell script."""
    scripts = shell_scripts()
    assert {"scripts/setup", "scripts/start-engine", ".ci/run"} <= {str(path.relative_to(ROOT)) for path in scripts}
    for path in scripts:
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_shell_scripts_stop_at_the_first_error() -> None:
    """Every shell script can be executed and does not go on after a failed command."""
    for path in shell_scripts():
        assert os.access(path, os.X_OK), path
        assert "set -euo pipefail\n" in path.read_text(), path


def test_continuous_integration_is_make_test() -> None:
    """CI runs what the README tells people to run."""
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")


def test_make_help_names_the_commands() -> None:
    """`make` alone lists what there is."""
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    for target in ("setup", "check", "test", "demo", "down", "images", "worker-image", "lock", "clean"):
        assert f"make {target} " in done.stdout


# -- the lock


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_requirement_has_hashes_and_a_version(name: str) -> None:
    """No entry of a lock can be satisfied by a file that nobody has seen before."""
    entries = lock_entries(name)
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"^[a-z0-9][a-z0-9._-]*(\[[a-z0-9,]+\])?==\S+ ", entry), entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]


@pytest.mark.parametrize("name", LOCKS)
def test_locks_name_no_address(name: str) -> None:
    """pip takes the index that the machine is configured for."""
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE)


def test_what_runs_in_production_is_what_is_tested() -> None:
    """The development lock has the very lines of the runtime lock."""
    assert set(lock_entries("runtime.txt")) <= set(lock_entries("dev.txt"))


def test_the_lock_is_narrowed_to_one_interpreter(wheels: ModuleType) -> None:
    """Markers are decided for the image's Python, not for the one that gathers; hashes stay."""
    lock = (
        "one==1 ; python_full_version < '3.11' \\\n    --hash=sha256:aa\n"
        "one==2 ; python_full_version >= '3.11' \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
        "two==3 ; sys_platform == 'win32' \\\n    --hash=sha256:dd\n"
        "three[extra]==4 \\\n    --hash=sha256:ee\n"
    )
    old = {"python_full_version": "3.10.2", "python_version": "3.10", "platform_machine": "x86_64"}
    new = old | {"python_full_version": "3.13.5", "python_version": "3.13"}
    assert wheels.lock_for(lock, old) == "one==1 \\\n    --hash=sha256:aa\nthree==4 \\\n    --hash=sha256:ee\n"
    assert wheels.lock_for(lock, new).startswith("one==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n")


# -- apt sources of another release


def test_debians_sources_follow_the_release(apt_sources: ModuleType) -> None:
    """Mirror and keyring stay the host's, the suite becomes the other release's."""
    text = (
        "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "# a comment\nTypes: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n"
    )
    stanzas = apt_sources.for_release(apt_sources.parse_deb822(text), "bookworm", "trixie")
    assert [(stanza["URIs"], stanza["Suites"], stanza["Components"]) for stanza in stanzas] == [
        ("http://mirror.example/debian", "trixie", "main"),
        ("http://mirror.example/security", "trixie-security", "main"),
    ]
    assert stanzas[0]["Signed-By"] == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert stanzas[0]["Types"] == "deb"


def test_one_line_sources_follow_the_release(apt_sources: ModuleType) -> None:
    """The older form of apt's sources, with options and the older name of the security suite, is understood as well."""
    text = (
        "# deb http://off.example/debian bookworm main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian stable main\n"
        "deb http://mirror.example/security stable/updates main # note\n"
    )
    stanzas = apt_sources.for_release(apt_sources.parse_one_line(text), "bookworm", "bullseye")
    assert [(stanza["URIs"], stanza["Suites"]) for stanza in stanzas] == [
        ("http://mirror.example/debian", "bullseye"),
        ("http://mirror.example/security", "bullseye-security"),
    ]
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in apt_sources.render(stanzas)


def test_other_vendors_sources_are_left_out(apt_sources: ModuleType) -> None:
    """A vendor's repository, a backport, a disabled source: nothing of them gets into an image."""
    text = (
        "Types: deb\nURIs: http://vendor.example\nSuites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/vendor.gpg\n\n"
        "Types: deb\nURIs: http://engine.example\nSuites: bookworm\nComponents: stable\n\n"
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n"
    )
    assert apt_sources.for_release(apt_sources.parse_deb822(text), "bookworm", "trixie") == []


def test_a_key_inside_a_source_is_kept(apt_sources: ModuleType) -> None:
    """A keyring written into the source survives being read and written."""
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\nSigned-By: {key}\n"
    (stanza,) = apt_sources.for_release(apt_sources.parse_deb822(text), "bookworm", "trixie")
    assert apt_sources.parse_deb822(apt_sources.render([stanza])) == [stanza]


# -- recipes


def test_equivalents_never_take_an_official_name(build: ModuleType) -> None:
    """Every image that is built is in the project's own name space and stands in for another."""
    recipes = build.load_recipes()
    for name, recipe in recipes.items():
        assert name.startswith("nanogrid/")
        assert not recipe["official"].startswith("nanogrid/")


def test_every_built_in_runtime_has_an_equivalent(build: ModuleType) -> None:
    """Where no registry answers, each runtime of the table can still run, by a setting that exists."""
    by_official = {recipe["official"]: recipe["variable"] for recipe in build.load_recipes().values()}
    for name, runtime in BUILT_IN.items():
        assert by_official[runtime.image] == f"NANOGRID_{name.upper()}_IMAGE"
        assert f"{name}_image" in Settings.model_fields


def test_a_changed_recipe_has_another_hash(build: ModuleType) -> None:
    """An image made from an older recipe is recognised."""
    recipe = build.load_recipes()["nanogrid/gcc:11"]
    assert build.recipe_hash(recipe) == build.recipe_hash(dict(recipe))
    assert build.recipe_hash(recipe) != build.recipe_hash(recipe | {"packages": [*recipe["packages"], "cmake"]})


# -- deployment


def template() -> dict[str, Any]:
    """The CloudFormation template's resources."""
    resources: dict[str, Any] = json.loads((ROOT / "deploy" / "aws" / "nanogrid.json").read_text())["Resources"]
    return resources


def test_every_runtimes_queue_in_aws_is_as_the_worker_wants_it() -> None:
    """Each queue has a dead-letter queue, and the limits that the worker checks at start."""
    settings = Settings()
    queues = [entry["Properties"] for entry in template().values() if entry["Type"] == "AWS::SQS::Queue"]
    by_name = {queue["QueueName"]["Fn::Sub"].removeprefix("${Prefix}"): queue for queue in queues}
    for name in settings.runtime_table.queues():
        queue, dead_letters = by_name.pop(name), by_name.pop(name + DEAD_LETTER_SUFFIX)
        assert queue["VisibilityTimeout"] == settings.visibility_timeout_s
        assert queue["ReceiveMessageWaitTimeSeconds"] == settings.receive_wait_s
        assert queue["RedrivePolicy"]["maxReceiveCount"] == settings.max_receives
        target = queue["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0]
        assert template()[target]["Properties"] == dead_letters
        assert dead_letters["MessageRetentionPeriod"] == DEAD_LETTER_RETENTION_S
    assert by_name == {}


def test_policies_name_actions_and_resources() -> None:
    """No policy has a wildcard action, and none reaches beyond the queues and the code bucket."""
    policies = [entry for entry in template().values() if entry["Type"] == "AWS::IAM::ManagedPolicy"]
    assert len(policies) == 2
    for policy in policies:
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            assert "*" not in json.dumps(statement["Action"])
            assert statement["Resource"] != "*"


def test_a_producer_may_only_send() -> None:
    """The producer's policy lets it put requests on queues, and neither read nor delete them."""
    statements = template()["ProducerPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    allowed = {action for statement in statements for action in statement["Action"]}
    assert allowed == {"sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:SendMessage"}


@pytest.mark.parametrize("place", ["Procfile", "deploy/Dockerfile", "deploy/compose.yaml", "worker.service"])
def test_the_worker_is_started_in_one_way(place: str) -> None:
    """Every place that starts a worker gives it the queues of all built-in runtimes."""
    path = ROOT / "deploy" / "systemd" / f"nanogrid-{place}" if place.endswith(".service") else ROOT / place
    assert re.search(r"celery\W+-A\W+nanogrid\W+worker\W+-Q\W+python,cpp\b", path.read_text())


def test_units_are_well_formed() -> None:
    """systemd's files have the sections that make a service."""
    units = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
    assert [unit.stem for unit in units] == ["nanogrid-flower", "nanogrid-worker"]
    for unit in units:
        parser = read_unit(unit)
        assert parser.sections() == ["Unit", "Service", "Install"]
        assert parser["Service"]["ExecStart"].startswith("/opt/nanogrid/bin/celery -A nanogrid ")


def test_flower_has_an_environment_of_its_own() -> None:
    """What a worker is given, AWS credentials above all, is not given to the web page beside it."""
    worker, flower = (
        environment_files(ROOT / "deploy" / "systemd" / f"nanogrid-{name}.service") for name in ("worker", "flower")
    )
    assert (worker, flower) == (["/etc/nanogrid/environment"], ["/etc/nanogrid/flower"])
    files = [re.findall("env_file: (.*)$", compose_service(name), re.MULTILINE) for name in ("worker", "flower")]
    assert files == [["worker.env"], ["flower.env"]]
    assert "env_file" not in (ROOT / "deploy" / "compose.yaml").read_text().partition("services:")[0]


def test_flower_does_not_take_the_hosts_role() -> None:
    """On a host with an instance role that role is the worker's; Flower is told, and in a unit also kept, not to ask for it."""
    unit = ROOT / "deploy" / "systemd" / "nanogrid-flower.service"
    assert "Environment=AWS_EC2_METADATA_DISABLED=true\n" in unit.read_text()
    assert (
        read_unit(unit)["Service"]["IPAddressDeny"]
        == "169.254.169.254 169.254.170.2 169.254.170.23 fd00:ec2::254 fd00:ec2::23"
    )
    assert '      AWS_EC2_METADATA_DISABLED: "true"\n' in compose_service("flower")


def compose_service(name: str) -> str:
    """The lines of one service of deploy/compose.yaml."""
    found = re.search(rf"^  {name}:\n((?: {{4}}.*\n)+)", (ROOT / "deploy" / "compose.yaml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def environment_files(unit: Path) -> list[str]:
    """The files from which systemd takes a unit's environment; a setting of systemd's that may stand more than once."""
    return re.findall("^EnvironmentFile=-?(.*)$", unit.read_text(), re.MULTILINE)


def read_unit(unit: Path) -> configparser.ConfigParser:
    """A unit's sections."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names keep their case
    parser.read(unit)
    return parser
