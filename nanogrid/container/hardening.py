"""Everything that confines a function, in one place. A security reviewer can read this file alone.

A function is code that nobody here has read. It gets, and this is all it gets:

- no network (another one only where the deployment allows it by name);
- no capability, no way to gain one (no-new-privileges), the engine's default seccomp profile;
- an unprivileged user and group, the same number inside and outside;
- a read-only root file system; `/workspace` and `/tmp` in memory, sized, with a limit on the number of files;
- its code from a read-only mount, copied into `/workspace`: what is in the cache cannot be written by any function;
- memory without swap, CPU, processes and threads, open files, file size: each with a limit;
- IPC of its own, with none that could outlive it (System V and message queues are off), a private /dev/shm;
- an environment of a few names of ours and the request's own, nothing of the worker's;
- no log on the host's disk: output flows through pipes that are cut at a limit.

What the engine's kernel shares with every container (its system calls) is not confined by any of this: run workers on
hosts of their own, and keep their kernels current.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanogrid.request import FunctionRequest
from nanogrid.settings import Settings

WORKSPACE = "/workspace"
MOUNT = "/nanogrid"
"""Where a run's own folder is mounted, read-only: launcher, payload, pipes and, one level down, code and result file."""

MIB = 1024 * 1024
TMPFS_FILES_LIMIT = 65_536
SHM_MB = 64
SYSCTLS = {"kernel.shmmni": "0", "kernel.msgmni": "0", "kernel.sem": "0 0 0 0", "fs.mqueue.queues_max": "0"}


@dataclass(frozen=True)
class Confinement:
    """The limits of one container that a request may choose, within the deployment's bounds."""

    memory_mb: int
    cpus: float
    network: str


def environment(request: FunctionRequest) -> dict[str, str]:
    """The whole environment that is set for a function (the image's own PATH and the like remain)."""
    return {
        "HOME": WORKSPACE,
        "LANG": "C.UTF-8",
        **request.env,
        "NANOGRID_REQUEST_ID": request.request_id,
        "NANOGRID_FUNCTION_ID": request.function_id,
        "NANOGRID_TIMEOUT_MS": str(request.timeout_ms),
        "NANOGRID_MEMORY_MB": str(request.memory_mb),
        "NANOGRID_PAYLOAD": f"{MOUNT}/payload.json",
        "NANOGRID_RESULT": f"{MOUNT}/result.json",
    }


def host_config(limits: Confinement, settings: Settings, *, run_dir: str, code_dir: str) -> dict[str, Any]:
    """The engine's HostConfig for a container (Docker API 1.41).

    `run_dir` and `code_dir` are paths on the engine's host.
    """
    memory_bytes = limits.memory_mb * MIB
    user = settings.container_uid
    return {
        "NetworkMode": limits.network,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "ReadonlyRootfs": True,
        "Tmpfs": {
            WORKSPACE: _tmpfs(settings.workspace_mb, f"exec,mode=0700,uid={user},gid={user}"),
            "/tmp": _tmpfs(settings.tmp_mb, "noexec,mode=1777"),  # noqa: S108
        },
        "Mounts": [
            _bind(run_dir, MOUNT, read_only=True),
            _bind(code_dir, f"{MOUNT}/code", read_only=True),
            _bind(f"{run_dir}/result.json", f"{MOUNT}/result.json", read_only=False),
        ],
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "NanoCpus": int(limits.cpus * 1e9),
        "PidsLimit": settings.pids_limit,
        "Ulimits": [
            _ulimit("nofile", settings.nofile_limit),
            _ulimit("core", 0),
            # Bounds the one file on the host's disk that a function can write, its result.
            _ulimit("fsize", settings.workspace_mb * MIB),
        ],
        "IpcMode": "private",
        "ShmSize": SHM_MB * MIB,
        "Sysctls": SYSCTLS,
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
    }


def create_options(
    image: str,
    command: tuple[str, ...],
    env: dict[str, str],
    limits: Confinement,
    settings: Settings,
    *,
    run_dir: str,
    code_dir: str,
    labels: dict[str, str],
) -> dict[str, Any]:
    """The body of the engine's create call: the launcher as first process, the function's command as its arguments."""
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh", f"{MOUNT}/launch.sh"],
        "Cmd": list(command),
        "User": f"{settings.container_uid}:{settings.container_uid}",
        "WorkingDir": WORKSPACE,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": labels,
        "Hostname": "function",
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host_config(limits, settings, run_dir=run_dir, code_dir=code_dir),
    }


def _tmpfs(size_mb: int, options: str) -> str:
    return f"rw,nosuid,nodev,size={size_mb * MIB},nr_inodes={TMPFS_FILES_LIMIT},{options}"


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}
