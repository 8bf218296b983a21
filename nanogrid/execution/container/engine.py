"""The Docker engine of this host: images, and containers by label.

The only module that talks to Docker and translates its errors. docker-py is imported on first use: a producer never
needs it. Thread-safe: docker-py's connection pool is, and an image is pulled by one thread at a time.
"""

from __future__ import annotations

import io
import logging
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanogrid.errors import ContainerError, ContainerStartError, ImageUnavailableError
from nanogrid.settings import Settings

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger(__name__)

API_TIMEOUT_S = 60
PROGRESS_EVERY_S = 5.0
FILE_LIMIT_BYTES = 1024 * 1024
LINKS_FOLLOWED = 3

_texts: dict[tuple[str, str], str | None] = {}
"""Files that were read from images, by image id and path. Each value is set in one step."""


@dataclass(frozen=True)
class EngineContainer:
    """A container as the engine lists it. `state` is `running`, `paused`, `exited`, ..."""

    id: str
    name: str
    labels: dict[str, str]
    state: str


@dataclass(frozen=True)
class ExitStatus:
    """Whether a container's first process runs and how it ended, as the engine reports it."""

    running: bool
    exit_code: int
    oom_killed: bool


class Engine:
    """One Docker engine. Every method raises ContainerError or a subclass when the engine fails or is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: APIClient | None = None
        self._lock = threading.Lock()
        self._pulls: dict[str, threading.Lock] = {}

    @property
    def api(self) -> APIClient:
        """The low-level client, connected on first use."""
        with self._lock:
            if self._client is None:
                from docker import APIClient

                with _translated("connect to the engine"):
                    self._client = APIClient(
                        base_url=self._settings.docker_url, version="auto", timeout=API_TIMEOUT_S, max_pool_size=64
                    )
            return self._client

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def network(self, name: str) -> dict[str, Any] | None:
        """The engine's description of a network: Driver, Internal, Options, ... None if no network has this name."""
        from docker.errors import NotFound

        with _translated(f"inspect the network {name}"):
            try:
                return dict(self.api.inspect_network(name))
            except NotFound:
                return None

    def version(self) -> dict[str, Any]:
        """The engine's own description: Version, ApiVersion, KernelVersion, ..."""
        with _translated("report its version"):
            return dict(self.api.version())

    # -- images

    def has_image(self, image: str) -> bool:
        """Whether the image is on this host."""
        return self.image_id(image) is not None

    def image_id(self, image: str) -> str | None:
        """The id that an image's name stands for now. None if the image is not on this host."""
        from docker.errors import ImageNotFound

        with _translated(f"inspect the image {image}"):
            try:
                return str(self.api.inspect_image(image)["Id"])
            except ImageNotFound:
                return None

    def files_of(self, image_id: str, paths: Sequence[str], labels: dict[str, str]) -> dict[str, str]:
        """The texts of an image's files, by path; symbolic links are followed. What is no file of at most 1 MiB is left out.

        They are read from a container with these labels, which is never started, once per process: an id always stands
        for the same files.
        """
        unread = [path for path in paths if (image_id, path) not in _texts]
        if unread:
            body = {"Image": image_id, "Entrypoint": ["-"], "Labels": labels, "NetworkDisabled": True}
            with _translated(f"read files of image {image_id}"):
                container_id = self.api.create_container_from_config(body)["Id"]
                try:
                    for path in unread:
                        _texts[image_id, path] = self._text_in(container_id, path)
                finally:
                    self.remove(container_id)
        found = {path: _texts[image_id, path] for path in paths}
        return {path: text for path, text in found.items() if text is not None}

    def _text_in(self, container_id: str, path: str) -> str | None:
        from docker.errors import NotFound

        for _ in range(LINKS_FOLLOWED + 1):
            try:
                chunks, about = self.api.get_archive(container_id, path)
            except NotFound:
                return None
            if not about["linkTarget"]:
                break
            path = about["linkTarget"]
        if about["mode"] & ~0o777 or about["size"] > FILE_LIMIT_BYTES:
            return None
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            file = archive.extractfile(archive.next() or "")
            return None if file is None else file.read().decode("utf-8", "surrogateescape")

    def ensure_image(self, image: str) -> str:
        """Pull the image if it is missing, with progress in the log. Return its id. Raises ImageUnavailableError."""
        with self._lock:
            lock = self._pulls.setdefault(image, threading.Lock())
        with lock:
            if (found := self.image_id(image)) is None:
                self._pull(image)
                found = self.image_id(image)
        if found is None:
            raise ImageUnavailableError(
                f"image {image} was pulled but is gone again: check what removes images on this host"
            )
        return found

    def registry_refusal(self, image: str) -> str | None:
        """Why the registry refuses the image; None if it would serve it."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        try:
            self.api.inspect_distribution(image)
        except (DockerException, RequestException) as refusal:
            return _reason(refusal)
        return None

    def _pull(self, image: str) -> None:
        advice = "pull it manually, build one with deploy/images/build, or name another in NANOGRID_RUNTIMES"
        if not self._settings.pull_images:
            raise ImageUnavailableError(f"image {image} is not on this host and pulling is disabled: {advice}")
        from docker.errors import DockerException
        from docker.utils import parse_repository_tag

        log.info("image %s: pulling", image)
        started = time.monotonic()
        repository, tag = parse_repository_tag(image)
        try:
            for line in _every(
                PROGRESS_EVERY_S, self.api.pull(repository, tag=tag or "latest", stream=True, decode=True)
            ):
                if "error" in line:
                    raise ImageUnavailableError(f"image {image} cannot be pulled ({line['error'].strip()}): {advice}")
                log.info("image %s: %s %s", image, line.get("status", ""), line.get("progress", ""))
        except (DockerException, OSError) as error:
            raise ImageUnavailableError(f"image {image} cannot be pulled ({_reason(error)}): {advice}") from error
        log.info("image %s: pulled in %.1f s", image, time.monotonic() - started)

    # -- containers

    def create(self, name: str, options: dict[str, Any]) -> str:
        """Create a container from an API body and return its id. If the name is taken, it gets a suffix."""
        from docker.errors import APIError

        with _translated(f"create container {name}", ContainerStartError):
            try:
                return str(self.api.create_container_from_config(options, name)["Id"])
            except APIError as error:
                if error.status_code != 409:
                    raise
                log.warning("container name %s is taken; the new container gets a suffix", name)
                return str(self.api.create_container_from_config(options, f"{name}-{time.time_ns():x}")["Id"])

    def start(self, container_id: str) -> int:
        """Start a created container and return the host's pid of its first process (0 when it has ended already)."""
        with _translated(f"start container {container_id[:12]}", ContainerStartError):
            self.api.start(container_id)
            return int(self.api.inspect_container(container_id)["State"]["Pid"])

    def start_only(self, container_id: str) -> None:
        """Start a created container."""
        with _translated(f"start container {container_id[:12]}", ContainerStartError):
            self.api.start(container_id)

    def is_running(self, container_id: str) -> bool:
        """Whether the container's first process is alive."""
        return self.end_of(container_id).running

    def pause(self, container_id: str) -> None:
        """Pause a container, visibly for the engine. A container that is already paused stays paused."""
        from docker.errors import APIError

        with _translated(f"pause container {container_id[:12]}"):
            try:
                self.api.pause(container_id)
            except APIError as error:
                if "already paused" not in str(error.explanation):
                    raise

    def unpause(self, container_id: str) -> None:
        """Unpause a container. Does nothing if it is not paused."""
        from docker.errors import APIError

        with _translated(f"unpause container {container_id[:12]}"):
            try:
                self.api.unpause(container_id)
            except APIError as error:
                if "not paused" not in str(error.explanation):
                    raise

    def limit(self, container_id: str, memory_bytes: int, cpus: float) -> None:
        """Change the limits of a container, running or paused."""
        body = {"Memory": memory_bytes, "MemorySwap": memory_bytes, "NanoCpus": int(cpus * 1e9)}
        with _translated(f"change the limits of container {container_id[:12]}"):
            # docker-py's update does not support NanoCpus, and the engine accepts no other CPU limit once they are set.
            url = f"{self.api.base_url}/v{self.api.api_version}/containers/{container_id}/update"
            self.api.post(url, json=body, timeout=API_TIMEOUT_S).raise_for_status()

    def rename(self, container_id: str, name: str) -> None:
        """Rename a container. If the name is taken, the old one stays: names are only for people."""
        from docker.errors import APIError

        with _translated(f"rename container {container_id[:12]}"):
            try:
                self.api.rename(container_id, name)
            except APIError as error:
                if error.status_code != 409:
                    raise

    def end_of(self, container_id: str) -> ExitStatus:
        """The container's exit status. A container that is gone has exit code -1."""
        from docker.errors import NotFound

        with _translated(f"inspect container {container_id[:12]}"):
            try:
                state = self.api.inspect_container(container_id)["State"]
            except NotFound:
                return ExitStatus(running=False, exit_code=-1, oom_killed=False)
            return ExitStatus(bool(state["Running"]), int(state["ExitCode"]), bool(state["OOMKilled"]))

    def kill(self, container_id: str) -> None:
        """Kill a container and wait until it has ended. Does nothing if it has ended or is gone."""
        from docker.errors import APIError

        with _translated(f"kill container {container_id[:12]}"):
            try:
                self.api.kill(container_id)
                self.api.wait(container_id)
            except APIError as error:
                if error.status_code not in (404, 409):
                    raise

    def remove(self, container_id: str) -> None:
        """Kill and remove a container in any state. Does nothing if it is gone or being removed."""
        from docker.errors import APIError, NotFound

        with _translated(f"remove container {container_id[:12]}"):
            for asked_before in (False, True):
                try:
                    self.api.remove_container(container_id, force=True, v=True)
                except NotFound:
                    return
                except APIError as error:
                    if error.status_code == 409:  # removal is in progress already
                        return
                    # The container ended just before the engine killed it; then the engine removes nothing. The second
                    # attempt cannot meet this again.
                    if asked_before or "is not running" not in _reason(error):
                        raise
                else:
                    return

    def find(self, labels: dict[str, str]) -> list[EngineContainer]:
        """All containers, in any state, that have all these labels with these values."""
        with _translated("list containers"):
            rows = self.api.containers(
                all=True, filters={"label": [f"{name}={value}" for name, value in labels.items()]}
            )
        return [EngineContainer(row["Id"], row["Names"][0].lstrip("/"), row["Labels"], row["State"]) for row in rows]


@contextmanager
def _translated(doing: str, error_class: Callable[[str], ContainerError] = ContainerError) -> Iterator[None]:
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException, OSError) as error:
        raise error_class(f"Docker could not {doing}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error).strip()


def _every(seconds: float, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every line with an error, and at most one other line per `seconds`."""
    due = 0.0
    for line in lines:
        if "error" in line:
            yield line
        elif time.monotonic() >= due:
            due = time.monotonic() + seconds
            yield line
