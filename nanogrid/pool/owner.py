"""The owner of all containers of one worker: threads in the worker's main process.

A child asks for a container over a unix socket, and *the connection is the lease*: when the child releases it, or ends
for whatever reason (hard time limit, revoke, OOM killer), its connection closes and the container is destroyed. There is
no heartbeat and no timer to forget. What a crash of the whole worker leaves behind is found by label, here, at the next
start and periodically.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict

from nanogrid.container.engine import End, Engine
from nanogrid.container.hardening import create_options
from nanogrid.container.run_folder import RunFolder
from nanogrid.errors import NanoGridError
from nanogrid.pool import identity
from nanogrid.pool.reaper import reap
from nanogrid.pool.wire import LeasedContainer, LeaseRequest, Line, error_to_json, short_path
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

NAME_LENGTH = 60


class Owner:
    """Leases containers to the children of one worker.

    All mutable state: `_leases` (open leases by number), guarded by `_lock`; docker calls are made outside of it.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self._settings = settings
        self._engine = engine or Engine(settings)
        self._me = identity.Owner(settings.data_dir)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._leases: dict[int, Lease] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address = self._me.runs / "owner.sock"

    def __repr__(self) -> str:
        with self._lock:
            return f"<Owner {self._me.id} leases={len(self._leases)}>"

    @property
    def id(self) -> str:
        """The id that this owner's containers carry as a label."""
        return self._me.id

    def start(self) -> None:
        """Listen for children, and begin to look for what dead owners left."""
        with short_path(self.address) as address:
            self._listener.bind(address)
        self.address.chmod(0o600)
        self._listener.listen(128)
        for target in (self._accept, self._sweep):
            thread = threading.Thread(target=target, name=f"owner-{target.__name__.strip('_')}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End all leases, destroy their containers, and give the lock up."""
        self._stopping.set()
        with suppress(OSError):  # never started
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for lease in self._open_leases():
            lease.hang_up()
        for thread in self._threads:
            thread.join()
        for lease in self._open_leases():
            lease.thread.join()
        RunFolder(self._me.runs).remove()
        self._me.close()
        self._engine.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self._listener.close()
        self._me.detach()

    def _open_leases(self) -> list[Lease]:
        with self._lock:
            return list(self._leases.values())

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # stopped
            number = next(self._numbers)
            lease = Lease(number, connection, self._engine, self._settings, self._me)
            with self._lock:
                self._leases[number] = lease
            lease.thread = threading.Thread(target=self._serve, args=(lease,), name=f"lease-{number}", daemon=True)
            lease.thread.start()

    def _serve(self, lease: Lease) -> None:
        try:
            lease.serve()
        except Exception:  # a lease must never take the owner down with it
            log.exception("lease %d failed", lease.number)
        finally:
            lease.destroy()
            with self._lock:
                del self._leases[lease.number]

    def _sweep(self) -> None:
        while True:
            try:
                reap(self._settings.data_dir, self._engine, keep=self._me.id)
                self._remove_strays()
            except NanoGridError as error:
                log.warning("orphans could not be looked for: %s", error)
            if self._stopping.wait(self._settings.reap_interval_s):
                return

    def _remove_strays(self) -> None:
        """Remove containers of this owner that no open lease knows: the engine failed when they were to go."""
        found = self._engine.find(self._me.labels)
        with self._lock:
            open_numbers = {str(number) for number in self._leases}
        for container in found:
            if container.labels.get(identity.LEASE_LABEL) not in open_numbers:
                log.warning("container %s: no lease holds it; removing it", container.name)
                self._engine.remove(container.id)


class Lease:
    """One child's connection, run folder and container."""

    thread: threading.Thread

    def __init__(
        self, number: int, connection: socket.socket, engine: Engine, settings: Settings, owner: identity.Owner
    ) -> None:
        self.number = number
        self._connection = connection
        self._line = Line(connection)
        self._engine = engine
        self._settings = settings
        self._owner = owner
        self._folder = RunFolder(owner.runs / str(number))
        self._container_id: str | None = None

    def serve(self) -> None:
        """Answer the child until it lets go of the lease, or is gone."""
        try:
            self._line.send({"runDir": str(self._folder.path)})
            while (message := self._line.receive()) is not None:
                if "end" in message:
                    self._line.send({"ended": asdict(self._finish())})
                else:
                    self._line.send(self._answer(LeaseRequest.from_json(message["lease"])))
        except OSError:
            log.info("lease %d: the child is gone; its container goes too", self.number)

    def hang_up(self) -> None:
        """Make `serve` return, from another thread."""
        with suppress(OSError):  # the child was faster
            self._connection.shutdown(socket.SHUT_RDWR)

    def destroy(self) -> None:
        """Remove container and run folder. What the engine fails to remove now, the sweep removes later."""
        self._line.close()
        if self._container_id is not None:
            try:
                self._engine.remove(self._container_id)
            except NanoGridError as error:
                log.warning("lease %d: %s; it will be tried again", self.number, error)
        self._folder.remove()

    def _answer(self, request: LeaseRequest) -> dict[str, object]:
        try:
            return {"container": asdict(self._start(request))}
        except NanoGridError as error:
            return {"error": error_to_json(error)}

    def _start(self, request: LeaseRequest) -> LeasedContainer:
        self._engine.ensure_image(request.image)
        name = container_name(request.request_id)
        labels = {
            **self._owner.labels,
            identity.LEASE_LABEL: str(self.number),
            identity.REQUEST_LABEL: request.request_id,
            identity.FUNCTION_LABEL: request.function_id,
        }
        options = create_options(
            request.image,
            request.command,
            request.env,
            request.limits,
            self._settings,
            run_dir=str(self._folder.path),
            code_dir=request.code_dir,
            labels=labels,
        )
        began = time.monotonic()
        self._container_id = self._engine.create(name, options)
        pid = self._engine.start(self._container_id)
        log.debug("container %s: started in %.0f ms", name, (time.monotonic() - began) * 1000)
        return LeasedContainer(self._container_id, name, pid)

    def _finish(self) -> End:
        if self._container_id is None:
            return End(running=False, exit_code=-1, oom_killed=False)
        end = self._engine.end_of(self._container_id)
        self._engine.remove(self._container_id)
        self._container_id = None
        return end


def container_name(request_id: str) -> str:
    """`nanogrid-{requestId}`, safe and short: what Docker refuses becomes `-`, and a hash keeps altered names apart."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", request_id)[:NAME_LENGTH]
    if safe != request_id:
        safe = f"{safe}-{hashlib.sha256(request_id.encode()).hexdigest()[:8]}"
    return f"nanogrid-{safe}"
