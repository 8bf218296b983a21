"""Layers, built for real: by the engine, from a package index of the test's own."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nanogrid.errors import CodeUnavailableError, ContainerError, ContainerLostError, LayerBuildError
from nanogrid.execution.code import Code
from nanogrid.execution.code.tree import remove_tree
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.labels import BUILD_LABEL, DATA_LABEL, data_id, owners_folder
from nanogrid.execution.layers import LayeredCode, LayerStore, requirements
from nanogrid.execution.layers.lines import CODE
from nanogrid.execution.pool.owner.reaper import reap
from nanogrid.settings import Settings
from tests.support.package_index import PYPROJECT, PackageIndex, package_index, wheel
from tests.support.pip_reading import answer
from tests.support.requirements_corpus import ACCEPTED, FILES
from tests.support.rig import CPP_IMAGE, NEWEST_PYTHON_IMAGE, PYTHON_IMAGE
from tests.support.services import free_port, wait_until

READER = Path(__file__).resolve().parents[1] / "support" / "pip_reading.py"

Files = dict[str, str | bytes]

MAIN: Files = {"main.py": "import greeting; print(greeting.TEXT)"}
CPP: Files = {"run.sh": "./main"}
FOREVER: Files = {**CPP, "build.sh": "echo up; sleep 600"}


def code_of(folder: Path, files: Files) -> Code:
    """Code of these files, as the code cache holds it: read-only, by its digest."""
    sha256 = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    path = folder / sha256
    if not path.exists():
        path.mkdir(parents=True)
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            (path / name).chmod(0o444)
        path.chmod(0o555)
    return Code(path, sha256, 1, 0.0, 0.0, cached=True)


class Host:
    """One host's data folder, with a store on it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        values = {"data_dir": folder / "data", "build_memory_mb": 256, "build_timeout_s": 60.0, **settings}
        images = {"python_image": PYTHON_IMAGE, "cpp_image": CPP_IMAGE}
        self.settings = Settings(**{**images, "pull_images": False, **values})
        self.engine = Engine(self.settings)
        self.store = LayerStore(self.settings, self.engine)

    def prepare(self, files: Files, runtime: str = "python") -> LayeredCode:
        """Prepare a function and let it go again."""
        with self.store.prepare(self.code(files), self.settings.runtime_table[runtime]) as prepared:
            return prepared

    def build(self, script: str, **more: str) -> LayeredCode:
        """Prepare a function with this build.sh."""
        return self.prepare({**CPP, "build.sh": script, **more}, "cpp")

    def code(self, files: Files) -> Code:
        """Code of these files."""
        return code_of(self.folder / "code", files)

    def containers(self) -> list[str]:
        """States of this host's build containers."""
        found = self.engine.find({DATA_LABEL: data_id(self.settings.data_dir)})
        return [container.state for container in found if BUILD_LABEL in container.labels]

    def logs(self) -> str:
        """What all kept logs say."""
        folder = self.settings.data_dir / "layers" / "logs"
        return "".join(path.read_text() for path in sorted(folder.glob("*.log")))

    def litter(self) -> list[Path]:
        """What is left of unfinished work."""
        layers = self.settings.data_dir / "layers"
        left = [*(layers / "workplaces").glob("*"), *(layers / "builds").glob("*"), *(layers / "locks").glob("*")]
        return [*(path for path in left if path.name != "publish"), *owners_folder(self.settings.data_dir).rglob("*.*")]


OpenHost = Callable[..., Host]


@pytest.fixture
def open_host(tmp_path: Path) -> Iterator[OpenHost]:
    """Makes hosts with settings, on one data folder, on which nothing unfinished may be left."""
    hosts: list[Host] = []

    def opened(**settings: Any) -> Host:
        hosts.append(Host(tmp_path, **settings))
        return hosts[-1]

    yield opened
    for host in hosts:
        assert host.containers() == []
        assert host.litter() == []
        host.engine.close()
    remove_tree(tmp_path)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    """A package index that has the package `greeting`."""
    with package_index(tmp_path / "index") as here:
        here.add_wheel("greeting", "TEXT = 'hello from a wheel'\n")
        yield here


@pytest.fixture
def host(open_host: OpenHost, index: PackageIndex) -> Host:
    """A host whose builds reach the index."""
    return open_host(build_network="host", build_index_url=index.url)


@pytest.fixture
def offline(open_host: OpenHost) -> Host:
    """A host whose builds have no network."""
    return open_host(build_network="none")


def output_of(host: Host, prepared: LayeredCode, command: list[str], image: str) -> str:
    """What a command says that runs on prepared code as functions do: unprivileged, mounts read-only."""
    binds = [f"{prepared.tree}:/workspace:ro"]
    if prepared.packages is not None:
        binds.append(f"{prepared.packages}:/nanogrid/packages:ro")
    return said_in_container(host.engine, image, command, binds)


def said_in_container(engine: Engine, image: str, command: list[str], binds: list[str], *, stderr: bool = True) -> str:
    """What a command says in a container without network, as the functions' user."""
    api = engine.api
    container = api.create_container_from_config(  # type: ignore[no-untyped-call]
        {
            "Image": image,
            "Cmd": command,
            "WorkingDir": "/workspace",
            "User": "65534:65534",
            "Env": ["PYTHONPATH=/nanogrid/packages"],
            "HostConfig": {"Binds": binds, "NetworkMode": "none"},
        }
    )["Id"]
    try:
        api.start(container)
        api.wait(container)
        return bytes(api.logs(container, stderr=stderr)).decode()
    finally:
        engine.remove(container)


def in_another_process(folder: Path, files: Files, runtime: str, **settings: Any) -> subprocess.Popen[str]:
    """A process that prepares a function, and prints how many milliseconds it built, or its error."""
    program = (
        "import json, sys; from pathlib import Path; from tests.integration.test_layers import Host\n"
        "folder, files, runtime, settings = json.loads(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "print(Host(Path(folder), **settings).prepare(files, runtime).packages)\n"
    )
    arguments = json.dumps([str(folder), files, runtime, settings])
    process = subprocess.Popen([sys.executable, "-c", program, arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


# -- requirements.txt


def test_a_package_from_requirements_txt_can_be_imported(host: Host) -> None:
    """What requirements.txt names is installed, and imports in the runtime's own image."""
    prepared = host.prepare({**MAIN, "requirements.txt": "greeting==1.0\n"})
    assert prepared.build_ms is not None
    assert prepared.build_ms > 0
    assert output_of(host, prepared, ["python", "main.py"], PYTHON_IMAGE) == "hello from a wheel\n"


def test_packages_are_compiled_beforehand_for_their_place(host: Host) -> None:
    """Packages come with bytecode that is used without a look at the source, and names the place where they will lie."""
    prepared = host.prepare({**MAIN, "requirements.txt": "greeting\n"})
    assert prepared.packages is not None
    (compiled,) = (prepared.packages / "__pycache__").glob("greeting.*.pyc")
    assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 0b01  # hash-based, not checked
    assert b"/nanogrid/packages/greeting.py" in compiled.read_bytes()


def test_a_layer_that_is_there_is_not_built_again(host: Host, index: PackageIndex, open_host: OpenHost) -> None:
    """The second time nothing is built or downloaded, also by another store, and the key is the same."""
    files: Files = {**MAIN, "requirements.txt": "greeting\n"}
    first = host.prepare(files)
    second = open_host(build_network="host", build_index_url=index.url).prepare(files)
    assert (second.packages, second.key, second.build_ms) == (first.packages, first.key, None)
    assert index.downloads("greeting") == 1


def test_functions_with_the_same_requirements_share_their_packages(host: Host, index: PackageIndex) -> None:
    """Comments and blank lines make no difference; the code does, to the key alone."""
    one = host.prepare({**MAIN, "requirements.txt": "greeting\n"})
    other = host.prepare({"main.py": "1", "requirements.txt": "# ours\n\ngreeting  # here\r\n"})
    assert one.packages == other.packages
    assert one.key != other.key
    assert index.downloads("greeting") == 1


def test_code_without_anything_to_build_needs_no_engine(open_host: OpenHost) -> None:
    """Plain code is ready at once: nothing is built, nobody is asked, nothing is made on disk."""
    host = open_host()
    lonely = LayerStore(Settings(data_dir=host.folder / "none", docker_url="unix:///nowhere"), host.engine)
    for files in (MAIN, {**MAIN, "requirements.txt": "# nothing yet\n\n"}):
        code = host.code(files)
        with lonely.prepare(code, host.settings.runtime_table["python"]) as prepared:
            assert prepared == LayeredCode(code.path, None, code.sha256, None)
    assert not (host.folder / "none").exists()


def test_requirements_are_only_read_for_python(offline: Host) -> None:
    """In another runtime requirements.txt is a file like any other."""
    assert offline.prepare({**CPP, "requirements.txt": "greeting\n"}, "cpp").packages is None


def test_source_distributions_are_refused(host: Host, index: PackageIndex) -> None:
    """By default a package that does not come as a wheel is the user's error, and none of its code runs."""
    index.add_sdist("sourceful", "TEXT = 'built'\n")
    with pytest.raises(LayerBuildError, match=r"requirements\.txt could not be installed") as failed:
        host.prepare({**MAIN, "requirements.txt": "sourceful\n"})
    assert "No matching distribution found for sourceful" in str(failed.value)
    assert index.downloads("sourceful") == 0


def test_source_distributions_are_built_where_the_deployment_allows_it(
    open_host: OpenHost, index: PackageIndex
) -> None:
    """With NANOGRID_BUILD_WHEELS_ONLY=false a source distribution is built and installed."""
    index.add_sdist("sourceful", "TEXT = 'built'\n")
    host = open_host(build_network="host", build_index_url=index.url, build_wheels_only=False)
    prepared = host.prepare({"main.py": "import sourceful; print(sourceful.TEXT)", "requirements.txt": "sourceful\n"})
    assert output_of(host, prepared, ["python", "main.py"], PYTHON_IMAGE) == "built\n"


LOOK_AROUND = """
import glob, os, socket
seen = []
def look(what, text):
    seen.extend(f"{what} has it" for word in WORDS if word.encode() in text)
WORDS = [half + "-of-the-index" for half in ("password", "token")]
look("environment", repr(dict(os.environ)).encode())
paths = [path for what in ("environ", "cmdline", "fd/*") for path in glob.glob("/proc/*/" + what)]
for top in ("/nanogrid", "/workspace", "/tmp", "/root", "/home", "/etc", "/run"):
    paths += [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
for path in paths:
    try:
        if os.path.isfile(path) and os.path.basename(path) != "backend.py":
            with open(path, "rb") as file:
                look(path, file.read(1 << 20))
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=2).close()
    seen.append("the index can be reached")
except OSError:
    pass
print("set-up code saw:", seen)
if seen:
    raise SystemExit("it should not")
"""
"""Looks for the credentials of the index wherever a process can, and for a way to the index."""


@pytest.mark.parametrize("image", [PYTHON_IMAGE, NEWEST_PYTHON_IMAGE])
def test_set_up_code_finds_no_secret_of_the_index(open_host: OpenHost, tmp_path: Path, image: str) -> None:
    """Set-up code of a package runs without the index's credentials in reach, and without any network; pip still uses both."""
    password, token = "password-of-the-index", "token-of-the-index"
    with package_index(tmp_path / "index", password) as index:
        look = LOOK_AROUND.replace("PORT", str(index.port))
        index.add_wheel("helper", "TEXT = 'helps'\n")
        index.add_sdist("sourceful", "TEXT = 'built'\n", set_up=f"import helper\n{look}", needs="helper>=1")
        index.add_wheel("greeting", "TEXT = 'hello'\n")
        host = open_host(
            build_network="host",
            build_index_url=index.url,
            build_wheels_only=False,
            build_pip_env={
                "PIP_EXTRA_INDEX_URL": f"http://reader:{token}@127.0.0.1:{index.port}/more/",
                "PIP_RETRIES": "1",
            },
            python_image=image,
        )
        program = "import greeting, sourceful; print(greeting.TEXT, sourceful.TEXT)"
        prepared = host.prepare({"main.py": program, "requirements.txt": "sourceful>=1\ngreeting\n"})
    assert output_of(host, prepared, ["python3", "main.py"], image) == "hello built\n"
    assert password not in host.logs()
    assert token not in host.logs()


ASK = """
import urllib.request
seen = []
for path in ("/simple/greedy/", "/file/greedy/0/environ", "/address/0/greedy-1.0.tar.gz", "/address/0/..", "/file/../../etc/passwd"):
    try:
        with urllib.request.urlopen("http://127.0.0.1:8076" + path, timeout=20) as answer:
            seen += [path] * (b"password" + b"-of-the-index" in answer.read())
    except (OSError, ValueError):
        pass
raise SystemExit("set-up code saw: " + repr(seen))
"""
"""Asks the server of the index for files of its own container, which an index says are packages."""


@pytest.mark.parametrize("image", [PYTHON_IMAGE, NEWEST_PYTHON_IMAGE])
def test_an_index_cannot_make_its_server_hand_out_own_files(open_host: OpenHost, tmp_path: Path, image: str) -> None:
    """Links and redirects to files of the container that has the credentials lead nowhere."""
    with package_index(tmp_path / "index", "password-of-the-index") as index:
        index.add_link("greedy", "file:///proc/self/environ#egg=greedy-1.0")
        index.add_sdist("asking", "TEXT = 'built'\n", set_up=ASK)
        host = open_host(build_network="host", build_index_url=index.url, build_wheels_only=False, python_image=image)
        text = f"asking\ngreedy @ {index.url.replace('simple', 'leads-to')}proc/self/environ/greedy-1.0.tar.gz ; python_version < '3'\n"
        with pytest.raises(LayerBuildError):
            host.prepare({**MAIN, "requirements.txt": text})
        assert any(path.startswith("/leads-to/") for path in index.asked)
    assert "set-up code saw: []" in host.logs()


def test_set_up_code_gets_what_requirements_name_by_address(open_host: OpenHost, index: PackageIndex) -> None:
    """Addresses and indexes of requirements.txt are asked by the container that has a network, in pip's order."""
    index.add_sdist("sourceful", "TEXT = 'built'\n")
    host = open_host(build_network="host", build_wheels_only=False)
    text = f"sourceful @ {index.url}sourceful/sourceful-1.0.tar.gz\n--no-index\n--find-links {index.url}greeting/\ngreeting\n"
    program = "import greeting, sourceful; print(greeting.TEXT, sourceful.TEXT)"
    prepared = host.prepare({"main.py": program, "requirements.txt": text})
    assert output_of(host, prepared, ["python", "main.py"], PYTHON_IMAGE) == "hello from a wheel built\n"


def test_a_folder_that_is_named_like_a_wheel_is_not_set_up(open_host: OpenHost) -> None:
    """A source tree among the code is none for its name, and what stands beside pip under a requirement's name is not it."""
    host = open_host(python_image=NEWEST_PYTHON_IMAGE)
    marker = {"pyproject.toml": PYPROJECT.format([]), "backend.py": "raise SystemExit('set-up code ran')"}
    wanted = "greeting @ http://127.0.0.1:9/greeting-1.0-py3-none-any.whl?x=1"
    for folder, text in (
        ("greeting-1.0-py3-none-any.whl", "./greeting-1.0-py3-none-any.whl\n"),
        ("greeting-1.0-py3-none-any.WHL", "./greeting-1.0-py3-none-any.WHL\n"),
        (wanted.replace("//", "/"), f"{wanted}\n./local-1.0-py3-none-any.whl\n"),
    ):  # fmt: skip
        local = {"local-1.0-py3-none-any.whl": wheel("local", "TEXT = 1\n")}
        tree = {f"{folder}/{name}": content for name, content in marker.items()}
        files: Files = {**MAIN, **local, **tree, "requirements.txt": text}
        with pytest.raises(LayerBuildError):
            host.prepare(files)
        assert "set-up code ran" not in host.logs()


def test_what_was_checked_is_what_pip_reads(host: Host) -> None:
    """pip gets a copy of ours, also where the code is there during the build."""
    text = "# -*- coding: utf-8 -*-\n-r more.txt\n./local-1.0-py3-none-any.whl\n"
    local = wheel("local", "TEXT = 'local'\n")
    program = "import greeting, local; print(greeting.TEXT, local.TEXT)"
    files: Files = {
        "main.py": program,
        "requirements.txt": text,
        "more.txt": "greeting\n",
        "local-1.0-py3-none-any.whl": local,
    }
    assert output_of(host, host.prepare(files), ["python", "main.py"], PYTHON_IMAGE) == "hello from a wheel local\n"


@pytest.mark.parametrize("image", [PYTHON_IMAGE, CPP_IMAGE, NEWEST_PYTHON_IMAGE])
def test_every_pip_reads_our_copy_as_the_same(open_host: OpenHost, tmp_path: Path, image: str) -> None:
    """What was accepted of all texts that people write is the same to the pip of each image, from 20.3 on."""
    code = tmp_path / "code"
    for name, content in FILES.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes(content)
    copies = []
    for text in ACCEPTED:
        (code / "requirements.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        wanted = requirements.read(code, wheels_only=True)
        assert wanted is not None
        copies.append({"requirements.txt": wanted.text, "constraints.txt": wanted.constraints_text})
    (tmp_path / "copies.json").write_text(json.dumps(copies))
    binds = [f"{code}:{CODE}:ro", f"{tmp_path}/copies.json:/copies.json:ro", f"{READER}:/pip_reading.py:ro"]
    said = said_in_container(
        open_host().engine, image, ["python3", "/pip_reading.py", "/copies.json"], binds, stderr=False
    )
    for copy, theirs in zip(copies, json.loads(said), strict=True):
        here = {name: text.replace(CODE, str(code)) for name, text in copy.items()}
        assert json.loads(json.dumps(answer(here)).replace(str(code), CODE)) == theirs


def test_a_wheel_among_the_code_is_installed_for_this_code_alone(host: Host) -> None:
    """A requirement that is a file of the code is installed from it, and other code with the same text gets its own."""
    name = "local-1.0-py3-none-any.whl"
    layers = set()
    for text in ("one", "two"):
        files: Files = {"main.py": "import local; print(local.TEXT)", "requirements.txt": f"./{name}\n"}
        prepared = host.prepare({**files, name: wheel("local", f"TEXT = {text!r}\n")})
        assert output_of(host, prepared, ["python", "main.py"], PYTHON_IMAGE) == f"{text}\n"
        layers.add(prepared.packages)
    assert len(layers) == 2


def test_code_cannot_pose_as_pip(host: Host) -> None:
    """A pip.py beside requirements.txt is not what installs, not even where the code is there during the build."""
    files: Files = {**MAIN, "requirements.txt": "-r more.txt\n", "more.txt": "greeting\n", "pip.py": "print('posing')"}
    prepared = host.prepare(files)
    assert "posing" not in host.logs()
    assert output_of(host, prepared, ["python", "main.py"], PYTHON_IMAGE) == "hello from a wheel\n"


@pytest.mark.parametrize("wheels_only", [True, False])
def test_an_image_without_pip_is_named_as_the_reason(open_host: OpenHost, wheels_only: bool) -> None:
    """Where the image has no pip, the error says so and what to do."""
    host = open_host(build_network="none", build_wheels_only=wheels_only)
    host.settings.runtimes["bare"] = host.settings.runtime_table["python"].model_copy(
        update={"command": ("/nowhere/python", "main.py")}
    )
    bare = host.settings.runtimes["bare"]
    with (
        pytest.raises(LayerBuildError, match="the image has no pip"),
        host.store.prepare(host.code({**MAIN, "requirements.txt": "greeting\n"}), bare),
    ):
        pass


# -- failures


def test_a_failed_build_is_remembered(host: Host, index: PackageIndex) -> None:
    """A requirement that cannot be had is the user's error with the end of the log, and is not tried for each request."""
    files: Files = {**MAIN, "requirements.txt": "unheard-of==9\n"}
    with pytest.raises(LayerBuildError) as first:
        host.prepare(files)
    asked = len(index.asked)
    with pytest.raises(LayerBuildError) as second:
        host.prepare(files)
    assert not first.value.retryable
    assert "No matching distribution found for unheard-of==9" in str(first.value)
    assert str(second.value).startswith(str(first.value))
    assert "the next attempt is possible at" in str(second.value)
    assert len(index.asked) == asked


def test_a_failure_is_forgotten_in_time(open_host: OpenHost, index: PackageIndex) -> None:
    """After NANOGRID_LAYER_FAILURE_TTL_S the build is tried again, and what it gives counts from then on."""
    host = open_host(build_network="host", build_index_url=index.url, layer_failure_ttl_s=0.5)
    files: Files = {"main.py": "import late; print(late.TEXT)", "requirements.txt": "late\n"}
    with pytest.raises(LayerBuildError):
        host.prepare(files)
    index.add_wheel("late", "TEXT = 'at last'\n")

    def built() -> bool:
        with suppress(LayerBuildError):
            return host.prepare(files).packages is not None
        return False

    wait_until(built, "the build is tried again")


def test_the_whole_log_is_kept_and_its_place_told(offline: Host) -> None:
    """The error names the file that holds all that the build said, of which it shows the last lines."""
    with pytest.raises(LayerBuildError, match=r"build\.sh failed; the whole log is ") as failed:
        offline.build("for i in $(seq 200); do echo line $i; done; echo trouble >&2; exit 3")
    message = str(failed.value)
    path = Path(message.partition("the whole log is ")[2].partition(" on the worker's host")[0])
    assert path.read_text().startswith("line 1\nline 2\n")
    assert message.endswith("line 200\ntrouble\nnanogrid: build.sh ended with exit code 3")
    assert "line 100\n" not in message


def test_a_flood_of_output_leaves_a_small_log(offline: Host) -> None:
    """Of a log without bound the start and the end are kept."""
    offline.build("echo first; yes | head -c 5000000; echo last; echo >made")
    log = offline.logs()
    assert len(log) < 1_000_000
    assert log.startswith("first\n")
    assert log.endswith("last\n")
    assert "bytes left out" in log


def test_an_index_that_does_not_answer_is_not_the_users_error(open_host: OpenHost) -> None:
    """Where the deployment's own index cannot be reached, another attempt can help; the builds are spaced out."""
    impatient = {"PIP_RETRIES": "1", "PIP_TIMEOUT": "2"}
    host = open_host(
        build_network="host", build_index_url=f"http://127.0.0.1:{free_port()}/simple/", build_pip_env=impatient
    )
    for _ in range(2):
        with pytest.raises(CodeUnavailableError, match="the package index did not answer"):
            host.prepare({**MAIN, "requirements.txt": "greeting\n"})
    with pytest.raises(LayerBuildError, match="could not be installed"):
        host.prepare({**MAIN, "requirements.txt": f"-i http://127.0.0.1:{free_port()}/\ngreeting\n"})


def test_builds_without_a_network_say_so(open_host: OpenHost) -> None:
    """Unless the deployment names a network a requirement fails for good, with the reason and what to do."""
    host = open_host()
    wanted = (
        r"^requirements\.txt needs a package index, but builds have no network: name a network .*NANOGRID_BUILD_NETWORK"
    )
    for text in ("greeting\n", "-i http://127.0.0.1:9/\ngreeting\n"):
        with pytest.raises(LayerBuildError, match=wanted):
            host.prepare({**MAIN, "requirements.txt": text})
    with pytest.raises(LayerBuildError, match=wanted):
        open_host(build_wheels_only=False).prepare({**MAIN, "requirements.txt": "greeting\n"})


def test_a_build_reaches_nothing_unless_a_network_is_named(open_host: OpenHost) -> None:
    """By default a build has loopback alone: no other container, no address of the host, no metadata service."""
    open_host().build("cat /proc/net/route | wc -l; grep -c : /proc/net/dev; grep -c lo: /proc/net/dev; echo >made")
    assert open_host().logs() == "1\n1\n1\n"


def test_a_failure_without_a_network_does_not_outlast_it(open_host: OpenHost, index: PackageIndex) -> None:
    """Who names a network after such a failure has the next build try it."""
    files: Files = {**MAIN, "requirements.txt": "greeting\n"}
    with pytest.raises(LayerBuildError, match="builds have no network"):
        open_host(build_index_url=index.url).prepare(files)
    assert open_host(build_index_url=index.url, build_network="host").prepare(files).packages is not None


def test_an_engine_that_is_away_is_not_the_users_error(open_host: OpenHost) -> None:
    """Without an engine nothing is built, and another attempt can help."""
    host = open_host()
    away = Engine(Settings(docker_url=f"tcp://127.0.0.1:{free_port()}"))
    with (
        pytest.raises(ContainerError) as failed,
        LayerStore(host.settings, away).prepare(host.code(FOREVER), host.settings.runtime_table["cpp"]),
    ):
        pass
    assert failed.value.retryable


# -- build.sh


def test_a_cpp_program_is_compiled_once(offline: Host) -> None:
    """What build.sh makes beside the code stands there from then on, executable bits and all."""
    source = "#include <iostream>\nint main() { std::cout << 6 * 7; }"
    files: Files = {**CPP, "build.sh": "g++ -O1 main.cpp -o main", "main.cpp": source}
    first = offline.prepare(files, "cpp")
    second = offline.prepare(files, "cpp")
    assert (second.tree, second.build_ms) == (first.tree, None)
    assert {path.name for path in first.tree.iterdir()} == {"run.sh", "build.sh", "main.cpp", "main"}
    assert output_of(offline, first, ["/bin/bash", "run.sh"], CPP_IMAGE) == "42"


def test_build_sh_sees_what_requirements_txt_brought(host: Host) -> None:
    """In a python runtime build.sh runs after requirements.txt, and can import its packages."""
    script = "python -c 'import greeting; print(greeting.TEXT)' > made.txt"
    prepared = host.prepare({**MAIN, "requirements.txt": "greeting\n", "build.sh": script})
    assert (prepared.tree / "made.txt").read_text() == "hello from a wheel\n"
    assert prepared.packages is not None


def test_a_build_is_unprivileged_and_knows_no_secret_of_the_index(open_host: OpenHost) -> None:
    """build.sh runs as the functions' user without capabilities, on a read-only root, without pip's settings."""
    host = open_host(
        build_network="none", build_index_url="http://user:secret@127.0.0.1/", build_pip_env={"PIP_PASSWORD": "secret"}
    )
    script = "id -u; grep CapEff /proc/self/status; touch /made; touch /nanogrid/code/made; env; echo ok >made"
    host.build(script)
    log = host.logs()
    assert log.startswith("65534\nCapEff:\t0000000000000000\n")
    assert log.count("Read-only file system") == 2
    assert "secret" not in log


@pytest.mark.parametrize("uid", [65534, 12345], ids=["the image has it", "the image has it not"])
def test_a_build_knows_who_it_is(open_host: OpenHost, uid: int) -> None:
    """Its user has a name, a group and a home, as the functions' user has."""
    prepared = open_host(container_uid=uid).build("id -un && id -gn && getent passwd $(id -u) >user")
    assert (prepared.tree / "user").read_text().endswith("/workspace:/bin/sh\n")


def test_a_process_that_stays_behind_does_not_keep_a_build(offline: Host) -> None:
    """A build ends with build.sh; what it left running is ended."""
    prepared = offline.build("echo built >made; sleep 600 & disown; (setsid sleep 600 &)")
    assert (prepared.tree / "made").read_text() == "built\n"


def test_built_trees_are_read_only(offline: Host) -> None:
    """A layer belongs to the worker, no file or folder of it can be written, and its user cannot change that."""
    prepared = offline.build("mkdir -p a/b; echo x >a/b/c; chmod 777 a a/b a/b/c; chmod 4755 run.sh")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in prepared.tree.rglob("*")}
    assert modes == {"a": 0o555, "b": 0o555, "c": 0o555, "run.sh": 0o555, "build.sh": 0o444}
    assert {path.stat().st_uid for path in prepared.tree.rglob("*")} == {os.geteuid()}
    said = output_of(offline, prepared, ["/bin/sh", "-c", "echo >a/new; echo >a/b/c; chmod 777 a"], CPP_IMAGE)
    assert said.count("\n") == 3


def test_a_result_that_leads_out_of_the_tree_is_refused(offline: Host) -> None:
    """A link to somewhere else in the image would mean something else on the host: the error names it."""
    with pytest.raises(LayerBuildError, match="made files that cannot be used") as failed:
        offline.build("ln -s /etc/passwd users")
    assert "'./users'" in str(failed.value)
    assert "absolute path '/etc/passwd'" in str(failed.value)


# -- limits


def test_a_build_that_takes_too_long_is_ended(open_host: OpenHost) -> None:
    """NANOGRID_BUILD_TIMEOUT_S ends a build; the log so far is kept."""
    host = open_host(build_network="none", build_timeout_s=1.0)
    with pytest.raises(LayerBuildError, match="took longer than the 1 s of NANOGRID_BUILD_TIMEOUT_S"):
        host.prepare(FOREVER, "cpp")
    assert host.logs() == "up\n"


def test_a_build_that_needs_too_much_memory_is_ended(open_host: OpenHost) -> None:
    """NANOGRID_BUILD_MEMORY_MB bounds processes and files alike, and the error says what it was."""
    host = open_host(build_network="none", build_memory_mb=64)
    for script in ("python3 -c 'bytearray(200 << 20)'", "head -c 200M /dev/zero >large"):
        with pytest.raises(LayerBuildError, match="ran out of the 64 MiB of NANOGRID_BUILD_MEMORY_MB"):
            host.build(script)


def test_a_layer_that_is_too_large_is_refused(open_host: OpenHost) -> None:
    """NANOGRID_LAYER_LIMIT_MB and NANOGRID_LAYER_FILES_LIMIT bound a layer, and nothing of one beyond them stays."""
    host = open_host(build_network="none", layer_limit_mb=1, layer_files_limit=50)
    with pytest.raises(LayerBuildError, match="made more than the 1 MiB of NANOGRID_LAYER_LIMIT_MB"):
        host.build("head -c 2M /dev/zero >large")
    with pytest.raises(LayerBuildError, match="limit of 50 files and folders"):
        host.build("for i in $(seq 60); do echo $i >$i; done")
    assert host.store.usage().entries == 0


def test_the_least_recently_used_layer_is_evicted(open_host: OpenHost) -> None:
    """Beyond NANOGRID_LAYER_CACHE_MB the layer goes that was not used for longest, never one in use."""
    host = open_host(build_network="none", layer_cache_mb=1)
    script = "head -c 400K /dev/zero >large # {}"
    first, second = host.build(script.format(1)), host.build(script.format(2))
    with ExitStack() as held:
        code = host.code({**CPP, "build.sh": script.format(1)})
        held.enter_context(host.store.prepare(code, host.settings.runtime_table["cpp"]))
        third = host.build(script.format(3))
    assert [prepared.tree.exists() for prepared in (first, second, third)] == [True, False, True]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 3 MiB of this test's own, where the engine sees it too."""
    folder = Path(tempfile.mkdtemp(prefix="nanogrid-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=755", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def test_a_full_disk_is_not_the_users_error(small_disk: Path, open_host: OpenHost) -> None:
    """On a full disk a build leaves nothing half done and gives up idle layers; then there is room for the next attempt."""
    host = open_host(build_network="none", data_dir=small_disk)
    script = "head -c 1200000 /dev/zero >large # {}"
    idle = host.build(script.format(1))
    with pytest.raises(CodeUnavailableError, match="its disk is full: free some space"):
        host.build(script.format(2))
    assert not idle.tree.exists()
    assert host.litter() == []
    assert (host.build(script.format(2)).tree / "large").stat().st_size == 1_200_000


# -- at the same time, and when somebody dies


def test_what_many_ask_for_at_once_is_built_once(host: Host, index: PackageIndex) -> None:
    """Threads and processes that need the same layer wait for the one that builds it, and all get it."""
    files: Files = {**MAIN, "requirements.txt": "greeting\n"}
    settings = {"build_network": "host", "build_index_url": index.url}
    processes = [in_another_process(host.folder, files, "python", **settings) for _ in range(2)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(str(host.prepare(files).packages))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found += [process.communicate()[0].strip() for process in processes]
    assert set(found) == {str(host.prepare(files).packages)}
    assert len(found) == 4
    assert index.downloads("greeting") == 1


def test_who_waits_for_a_build_says_so(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Builder and waiter both tell in the worker's log what they are at, and where the build's own log is."""
    caplog.set_level(logging.INFO)
    files: Files = {**MAIN, "requirements.txt": "greeting\n", "build.sh": "echo working; sleep 1; echo >made"}
    host.code(files)
    threads = [threading.Thread(target=host.prepare, args=(files,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "building it from requirements.txt" in caplog.text
    assert "another builder is at work, waiting" in caplog.text
    assert "building it from build.sh" in caplog.text


def test_a_build_ends_with_its_builder(offline: Host, open_host: OpenHost) -> None:
    """After kill -9 of the builder its container ends at once, and the next builder removes it and builds."""
    builder = in_another_process(offline.folder, FOREVER, "cpp", build_network="none")
    wait_until(lambda: "up" in offline.logs(), "the build runs")
    assert offline.containers() == ["running"]
    builder.kill()
    builder.communicate()
    wait_until(lambda: offline.containers() == ["exited"], "the build has ended")
    with pytest.raises(LayerBuildError, match="took longer"):
        open_host(build_network="none", build_timeout_s=0.5).prepare(FOREVER, "cpp")
    assert offline.containers() == []


def test_what_serves_the_index_ends_with_the_builder(offline: Host, index: PackageIndex) -> None:
    """After kill -9 of the builder both containers of a build with set-up code end, and the next build removes them."""
    index.add_sdist("slow", "TEXT = 'built'\n", set_up="import time\ntime.sleep(600)")
    settings = {"build_network": "host", "build_index_url": index.url, "build_wheels_only": False}
    files: Files = {**MAIN, "requirements.txt": "slow\n"}
    builder = in_another_process(offline.folder, files, "python", **settings)
    wait_until(lambda: "Getting requirements to build wheel" in offline.logs(), "set-up code runs")
    assert offline.containers() == ["running", "running"]
    builder.kill()
    builder.communicate()
    wait_until(lambda: offline.containers() == ["exited", "exited"], "both have ended")
    offline.build("echo >made")
    assert offline.containers() == []


def test_a_dead_builders_container_goes_with_the_next_build_of_anything(offline: Host) -> None:
    """What a killed builder left is removed by whoever builds next, also another layer."""
    builder = in_another_process(offline.folder, FOREVER, "cpp", build_network="none")
    wait_until(lambda: "up" in offline.logs(), "the build runs")
    builder.kill()
    builder.communicate()
    offline.build("echo >made")
    assert offline.containers() == []
    assert offline.litter() == []


def test_the_reaper_tells_living_builds_from_dead_ones(offline: Host) -> None:
    """A worker that looks for orphans leaves a build alone while its builder lives, and removes it afterwards."""
    builder = in_another_process(offline.folder, FOREVER, "cpp", build_network="none")
    wait_until(lambda: "up" in offline.logs(), "the build runs")
    assert reap(offline.settings.data_dir, offline.engine) == 0
    assert offline.containers() == ["running"]
    builder.kill()
    builder.communicate()
    assert reap(offline.settings.data_dir, offline.engine) == 1
    offline.build("echo >made")  # sweeps the workplace


def test_a_build_goes_when_its_time_limit_interrupts_it(offline: Host) -> None:
    """An exception out of a signal handler, as Celery's soft time limit raises it, leaves no container behind."""

    class TooLateError(Exception):
        pass

    def late(*_: object) -> None:
        raise TooLateError

    def interrupt() -> None:
        wait_until(lambda: "up" in offline.logs(), "the build runs")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, late)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(TooLateError):
            offline.prepare(FOREVER, "cpp")
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert offline.containers() == []


def test_a_container_removed_by_hand_is_not_the_users_error(offline: Host) -> None:
    """Whoever removes a build container ends that attempt alone: the error is ours, and is not remembered."""
    errors: list[BaseException] = []

    def prepare() -> None:
        try:
            offline.prepare(FOREVER, "cpp")
        except ContainerLostError as error:
            errors.append(error)

    thread = threading.Thread(target=prepare)
    thread.start()
    wait_until(lambda: "up" in offline.logs(), "the build runs")
    (container,) = offline.engine.find({DATA_LABEL: data_id(offline.settings.data_dir)})
    offline.engine.remove(container.id)
    thread.join()
    assert [type(error) for error in errors] == [ContainerLostError]
    assert not list((offline.settings.data_dir / "layers" / "failures").glob("*"))
