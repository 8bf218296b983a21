"""A second, real dockerd that shares nothing with the machine's own, started by `scripts/start-engine`.

It runs in its own network and mount namespaces: an engine removes another's bridge if both see it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.services import wait_until

ROOT = Path(__file__).resolve().parents[2]


class SecondEngine:
    """Paths of an engine in a folder, and the script applied to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.pid_file = folder / "docker.pid"
        self.exec_root = folder / "run"
        self.containerd_socket = folder / "containerd.sock"

    @property
    def url(self) -> str:
        """Its address."""
        return f"unix://{self.socket}"

    def start(self, *options: str, dockerd: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run the script with its own options and dockerd's."""
        environment = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
        command = ["unshare", "--net", "--mount", str(ROOT / "scripts" / "start-engine"), *options]
        command += ["--socket", str(self.socket), "--pid-file", str(self.pid_file), "--exec-root", str(self.exec_root)]
        command += ["--containerd-socket", str(self.containerd_socket), "--log", str(self.folder / "log")]
        command += ["--", "--data-root", str(self.folder / "data"), *dockerd]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    @property
    def pid(self) -> int:
        """Process id of its dockerd."""
        return int(self.pid_file.read_text())

    @property
    def is_up(self) -> bool:
        """Whether its dockerd runs."""
        return self.pid_file.exists() and is_alive(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send its dockerd a signal."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Stop it as a service manager would, and wait for its end."""
        pid = self.pid
        self.signal(signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), "dockerd is gone", 60)

    def kill(self) -> None:
        """Kill it as a power cut would, containerd included."""
        pids = [self.pid, int((self.exec_root / "containerd" / "containerd.pid").read_text())]
        for pid in pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, pids)), "dockerd and containerd are gone")


def is_alive(pid: int) -> bool:
    """Whether a process runs. A process that has ended but was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
