"""The recommended network of builds, made as docs/operations.md says: an internal one, with a proxy that leads to the index alone."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nanogrid.cli.checks import Check, CheckHealth, check_build_network
from nanogrid.errors import LayerBuildError
from nanogrid.execution.code import Code
from nanogrid.execution.code.tree import remove_tree
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.layers import LayeredCode, LayerStore
from nanogrid.settings import Settings
from tests.support.package_index import package_index
from tests.support.rig import CPP_IMAGE, NEWEST_PYTHON_IMAGE, PYTHON_IMAGE
from tests.support.services import free_port, wait_until

PROXY = Path(__file__).resolve().parents[1] / "support" / "forward_proxy.py"
INHIBITED = "com.docker.network.bridge.inhibit_ipv4"

REACH = """
import socket, sys
def reach(host, port):
    try:
        socket.create_connection((host, port), timeout=2).close()
        return "reached"
    except OSError:
        return "not reached"
print(" ".join(f"{where}: {reach(*where.rsplit(':', 1))}" for where in sys.argv[1:]))
"""


@dataclass
class Place:
    """Networks and containers of one test: builds stand in `inside`, with the proxy; the index stands in `outside`."""

    engine: Engine
    inside: str
    outside: str
    host_address: str


MakeNetwork = Callable[..., str]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """This host's engine."""
    engine = Engine(Settings())
    yield engine
    engine.close()


@pytest.fixture
def make_network(engine: Engine) -> Iterator[MakeNetwork]:
    """Makes networks that are removed after the test."""
    made: list[str] = []

    def make(**options: Any) -> str:
        name = f"nanogrid-test-{uuid.uuid4().hex[:12]}"
        engine.api.create_network(name, driver="bridge", **options)
        made.append(name)
        return name

    yield make
    for name in made:
        engine.api.remove_network(name)


@pytest.fixture
def place(engine: Engine, make_network: MakeNetwork, tmp_path: Path) -> Iterator[Place]:
    """A network for builds, an index outside of it, and a proxy with a foot in each."""
    outside = make_network()
    inside = make_network(internal=True, options={INHIBITED: "true"})
    with package_index(tmp_path / "index") as pages:
        pages.add_wheel("greeting", "TEXT = 'hello'\n")
    with ExitStack() as containers:
        serve = ["python3", "-m", "http.server", "--directory", "/index", "8000"]
        _run(engine, containers, outside, "index", serve, [f"{tmp_path}/index:/index:ro"])
        proxy = ["python3", "/forward_proxy.py", "3128", "index:8000"]
        egress = _run(engine, containers, outside, "egress", proxy, [f"{PROXY}:/forward_proxy.py:ro"])
        engine.api.connect_container_to_network(egress, inside, aliases=["egress"])
        gateway = engine.api.inspect_network(outside)["IPAM"]["Config"][0]["Gateway"]
        yield Place(engine, inside, outside, gateway)
    remove_tree(tmp_path)


def _run(engine: Engine, containers: ExitStack, network: str, name: str, command: list[str], binds: list[str]) -> str:
    container: str = engine.api.create_container_from_config(  # type: ignore[no-untyped-call]
        {
            "Image": NEWEST_PYTHON_IMAGE,
            "Cmd": command,
            "HostConfig": {"Binds": binds, "NetworkMode": network},
            "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [name]}}},
        }
    )["Id"]
    containers.callback(engine.remove, container)
    engine.api.start(container)
    return container


def prepare(place: Place, folder: Path, files: dict[str, str], runtime: str, **settings: Any) -> LayeredCode:
    """Prepare a function of these files in the network for builds."""
    chosen = Settings(
        data_dir=folder / "data", python_image=PYTHON_IMAGE, cpp_image=CPP_IMAGE, pull_images=False,
        build_network=place.inside, build_index_url="http://index:8000/simple/", build_memory_mb=256, **settings,
    )  # fmt: skip
    path = folder / f"code-{uuid.uuid4().hex}"
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content)
    store = LayerStore(chosen, place.engine)
    with store.prepare(Code(path, path.name, 1, 0.0, 0.0, cached=True), chosen.runtime_table[runtime]) as prepared:
        return prepared


PIP_ENV = {"PIP_PROXY": "http://egress:3128", "PIP_TRUSTED_HOST": "index", "PIP_RETRIES": "1"}


@pytest.mark.parametrize("wheels_only", [True, False])
def test_builds_reach_the_index_by_the_proxy(place: Place, tmp_path: Path, wheels_only: bool) -> None:
    """What requirements.txt names is installed through the proxy, which leads nowhere else."""

    def installed() -> bool:
        try:
            wanted = {"main.py": "", "requirements.txt": "greeting\n"}
            packages = prepare(
                place, tmp_path, wanted, "python",
                build_pip_env=PIP_ENV, build_wheels_only=wheels_only, layer_failure_ttl_s=0,
            ).packages  # fmt: skip
        except LayerBuildError:
            return False
        return packages is not None and (packages / "greeting.py").exists()

    wait_until(installed, "the index and the proxy answer")


def test_builds_reach_nothing_beside_the_proxy(place: Place, make_network: MakeNetwork, tmp_path: Path) -> None:
    """Neither the index itself, nor a port of this host, nor the metadata service's address. In an internal network without
    the option that port is reached: this is why the option is there."""
    with socket.create_server(("0.0.0.0", 0)) as of_the_host:  # as a Redis for several hosts listens
        port = of_the_host.getsockname()[1]
        targets = f"index:8000 {place.host_address}:{port} 169.254.169.254:80"
        files = {"run.sh": "", "reach.py": REACH, "build.sh": f"python3 reach.py {targets} >said"}
        prepared = prepare(place, tmp_path, files, "cpp")
        assert (prepared.tree / "said").read_text().count("not reached") == 3
        place.inside = make_network(internal=True)
        prepared = prepare(place, tmp_path, files, "cpp")
        said = (prepared.tree / "said").read_text()
        assert f"{place.host_address}:{port}: reached" in said, said


def test_doctor_tells_networks_apart(engine: Engine, make_network: MakeNetwork) -> None:
    """What reaches everything is a warning with the way to a better one, and so is an internal one that leads to the host."""

    def told(*, is_local: bool = False, **settings: Any) -> Check:
        (check,) = check_build_network(Settings(**settings), is_local=is_local)
        return check

    closed = make_network(internal=True, options={INHIBITED: "true"})
    assert [told(build_network=name).health for name in ("none", closed)] == [CheckHealth.OK] * 2
    for name in ("bridge", "host", "default", "container:x", make_network(), make_network(internal=True)):
        check = told(build_network=name)
        assert check.health is CheckHealth.WARNING, name
        assert "docker network create --internal" in check.remedy
    assert "metadata service" in told(build_network="bridge").found
    assert told(build_network="nanogrid-nowhere").health is CheckHealth.BROKEN
    assert told(build_network="bridge", docker_url=f"tcp://127.0.0.1:{free_port()}").health is CheckHealth.WARNING
    assert told(build_network=closed, docker_url=f"tcp://127.0.0.1:{free_port()}").health is CheckHealth.BROKEN
    assert told(build_network="bridge", is_local=True).health is CheckHealth.OK
    assert "cannot reach the index" in told(build_index_url="https://packages.internal/simple/").found
