"""Everything that confines a function, in one place. A security reviewer can read this file alone.

A function is untrusted code. It gets this and nothing else:

- no network, unless the deployment allows one by name;
- no capability, no way to gain one (no-new-privileges), the engine's default seccomp profile; in a warm container also a filter that
  refuses io_uring and the flags of files;
- an unprivileged user and group, with the same number inside and outside, in read-only copies of the image's user files;
- a read-only root file system; `/workspace`, `/tmp` and `/nanogrid/run` in memory, limited in size and number of files; no
  writable file of the host, except for the result of a launched container (an image without Python);
- its code from a read-only mount, copied into `/workspace`: no function can write to the cache;
- in a warm container, nothing from the previous run: the runner kills every process and removes every file in memory, and
  a function can neither signal, trace nor reach the runner; a container runs one piece of code, and is destroyed after a run
  that was cut short;
- memory without swap, CPU, processes and threads, open files, the size of a file on the host's disk: each with a limit;
- an IPC namespace without IPC that could outlive a run (System V IPC and message queues are disabled), a private /dev/shm;
- an environment with a few variables of NanoGrid and those of the request, nothing from the worker;
- no log on the host's disk: output goes through pipes and is cut at a limit.

None of this confines what the kernel shares with every container (its system calls): run workers on dedicated hosts, and
keep their kernels current.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nanogrid.execution.container import users
from nanogrid.request import FunctionRequest
from nanogrid.settings import Settings

WORKSPACE = "/workspace"
MOUNT = "/nanogrid"
"""Where a container's own folder is mounted, read-only: its function's code, our programs, a launcher's pipes."""

RUN = f"{MOUNT}/run"
"""The folder of a run's payload and result, in memory."""

MIB = 1024 * 1024
TMPFS_FILES_LIMIT = 65_536
SHM_MB = 64
NO_NETWORK = "none"
IPC_SYSCTLS = {"kernel.shmmni": "0", "kernel.msgmni": "0", "kernel.sem": "0 0 0 0", "fs.mqueue.queues_max": "0"}
NETWORK_SYSCTLS = {
    "net.ipv4.tcp_max_tw_buckets": "0",
    "net.ipv4.tcp_no_metrics_save": "1",
    "net.ipv4.tcp_fastopen": "0",
}
"""The kernel keeps no closed connection of one run, which would make the next one fail (`Address already in use`), and remembers
nothing about the addresses a run connected to, not even how fast a connection opened."""

BASE_ENVIRONMENT = {"HOME": WORKSPACE, "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Confinement:
    """The limits of one container that a request may choose, within the deployment's bounds."""

    memory_mb: int
    cpus: float
    network: str


def environment(request: FunctionRequest, settings: Settings) -> dict[str, str]:
    """All variables that are set for a function, in addition to the image's own, such as PATH.

    A handler also gets AWS Lambda's variables, unless the request sets them itself.
    """
    return {
        **BASE_ENVIRONMENT,
        **(_environment_of_lambda(request, settings) if request.handler else {}),
        **request.env,
        "NANOGRID_REQUEST_ID": request.request_id,
        "NANOGRID_FUNCTION_ID": request.function_id,
        "NANOGRID_TIMEOUT_MS": str(request.timeout_ms),
        "NANOGRID_MEMORY_MB": str(request.memory_mb),
        "NANOGRID_PAYLOAD": f"{RUN}/payload.json",
        "NANOGRID_RESULT": f"{RUN}/result.json",
    }


def _environment_of_lambda(request: FunctionRequest, settings: Settings) -> dict[str, str]:
    """The variables that Lambda sets for every handler, except credentials and `AWS_EXECUTION_ENV`, which the container sets."""
    return {
        "_HANDLER": request.handler or "",
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(request.memory_mb),
        "AWS_LAMBDA_FUNCTION_NAME": request.function_id,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{request.function_id}",
        "AWS_LAMBDA_LOG_STREAM_NAME": time.strftime("%Y/%m/%d/[$LATEST]", time.gmtime()) + request.request_id,
        "AWS_REGION": settings.region,
        "LAMBDA_TASK_ROOT": WORKSPACE,
    }


def runner_options(
    image: str,
    interpreter: str,
    limits: Confinement,
    settings: Settings,
    *,
    slot_dir: str,
    programs_dir: str,
    users_dir: str,
    labels: dict[str, str],
    compiles: bool,
) -> dict[str, Any]:
    """The body of the engine's create call for a warm container: the runner as first process.

    The runner is root with four capabilities: it becomes the function's user, and kills what that user started. The function
    gets none of them: they are dropped, bounding set included, before a request is known. `slot_dir`, `programs_dir` and
    `users_dir` are paths on the engine's host. `compiles`: the function's command may be a compiler, which gets a cache.
    """
    user = settings.container_uid
    config = _host_config(limits, settings)
    config["CapAdd"] = ["SETUID", "SETGID", "KILL", "SETPCAP"]
    config["Tmpfs"][RUN] = _tmpfs(settings.workspace_mb, f"noexec,mode=0700,uid={user},gid={user}")
    if compiles:
        config["Tmpfs"][f"{MOUNT}/compiler-cache"] = _tmpfs(
            settings.compiler_cache_mb, f"noexec,mode=0700,uid={user},gid={user}"
        )
    config["Mounts"] = _mounts(slot_dir, programs_dir, users_dir, limits)
    return {
        **_container(image, limits, labels, config),
        "Entrypoint": [interpreter, "-I", "-S", f"{MOUNT}/runner/__main__.py"],
        "Cmd": [
            *("--uid", str(user), "--gid", str(user)),
            *("--network", "host" if limits.network == "host" else "own"),
            *("--learn", "imports" if settings.learn_imports else "nothing"),
        ],
        "User": "0:0",
    }


def launcher_options(
    image: str,
    limits: Confinement,
    settings: Settings,
    *,
    slot_dir: str,
    programs_dir: str,
    users_dir: str,
    labels: dict[str, str],
) -> dict[str, Any]:
    """The body of the engine's create call for one run in an image without Python: the launcher as first process.

    It runs as the function's user, without any capability.
    """
    config = _host_config(limits, settings)
    # Bounds the one file on the host's disk that a function can write.
    config["Ulimits"].append(_ulimit("fsize", settings.workspace_mb * MIB))
    result = "run/result.json"
    config["Mounts"] = [
        *_mounts(slot_dir, programs_dir, users_dir, limits),
        _bind(f"{slot_dir}/{result}", f"{MOUNT}/{result}", read_only=False),
    ]
    return {
        **_container(image, limits, labels, config),
        "Entrypoint": ["/bin/sh", f"{MOUNT}/runner/launch.sh"],
        "Cmd": [],
        "User": f"{settings.container_uid}:{settings.container_uid}",
    }


def _container(image: str, limits: Confinement, labels: dict[str, str], host_config: dict[str, Any]) -> dict[str, Any]:
    """The part of a create call that all containers share (Docker API 1.41)."""
    return {
        "Image": image,
        "WorkingDir": WORKSPACE,
        "Labels": labels,
        "Hostname": "function",
        "Env": [f"{name}={value}" for name, value in BASE_ENVIRONMENT.items()],
        # Without a network, the engine need not set one up: the kernel's own empty one takes 100 ms less.
        "NetworkDisabled": limits.network == NO_NETWORK,
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host_config,
    }


def _host_config(limits: Confinement, settings: Settings) -> dict[str, Any]:
    """The engine's HostConfig, without mounts."""
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
            # Executable, as the workspace is: compilers, installers and JITs expect it, and forbidding it protects nothing.
            "/tmp": _tmpfs(settings.tmp_mb, "exec,mode=1777"),  # noqa: S108
        },
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "NanoCpus": int(limits.cpus * 1e9),
        "PidsLimit": settings.pids_limit,
        "Ulimits": [
            _ulimit("nofile", settings.nofile_limit),
            _ulimit("core", 0),
        ],
        "IpcMode": "private",
        "ShmSize": SHM_MB * MIB,
        "Sysctls": IPC_SYSCTLS if limits.network == "host" else {**IPC_SYSCTLS, **NETWORK_SYSCTLS},
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
    }


def _mounts(slot_dir: str, programs_dir: str, users_dir: str, limits: Confinement) -> list[dict[str, Any]]:
    mounts = [
        _bind(slot_dir, MOUNT, read_only=True),
        _bind(programs_dir, f"{MOUNT}/runner", read_only=True),
        *_users(users_dir),
    ]
    if limits.network == NO_NETWORK:  # else the engine writes them
        mounts += [_bind(f"{programs_dir}/{name}", f"/etc/{name}", read_only=True) for name in ("hosts", "resolv.conf")]
    return mounts


def _users(users_dir: str) -> list[dict[str, Any]]:
    return [_bind(f"{users_dir}/{path.rpartition('/')[2]}", path, read_only=True) for path in users.FILES]


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


BUILD_PIDS_LIMIT = 512
"""Compilers and installers start more processes at a time than functions do."""


@dataclass(frozen=True)
class BuildContainer:
    """A container of a layer's build: the one that builds, or the one that serves the package index to it.

    `folder` (mounted as `/nanogrid`) and `users_dir` are paths on the engine's host. `arguments` are those of its script.
    """

    image: str
    arguments: tuple[str, ...]
    env: dict[str, str]
    folder: str
    users_dir: str
    labels: dict[str, str]


def build_options(
    container: BuildContainer, settings: Settings, *, binds: dict[str, str], network: str
) -> dict[str, Any]:
    """The body of the engine's create call for a container that builds a layer.

    It is confined as a function is, with these differences: it has limits of its own (`build_*` in the settings), and a
    network of its own if the deployment names one. Everything it writes is in memory; its result leaves it through a pipe.
    `binds` are further read-only mounts, path in the container → path on the engine's host.
    """
    limits = Confinement(settings.build_memory_mb, settings.build_cpus, network)
    config = _host_config(limits, settings)
    user = settings.container_uid
    config["PidsLimit"] = max(BUILD_PIDS_LIMIT, settings.pids_limit)
    config["Ulimits"] = [_ulimit("nofile", settings.nofile_limit), _ulimit("core", 0)]
    files = f"rw,nosuid,nodev,exec,size={settings.build_memory_mb * MIB},nr_inodes={2 * settings.layer_files_limit}"
    config["Tmpfs"] = {
        WORKSPACE: f"{files},mode=0700,uid={user},gid={user}",
        "/tmp": f"{files},mode=1777",  # noqa: S108
    }
    config["Mounts"] = [
        _bind(container.folder, MOUNT, read_only=True),
        *_users(container.users_dir),
        *(_bind(source, target, read_only=True) for target, source in binds.items()),
    ]
    return {
        **_container(container.image, limits, container.labels, config),
        "Hostname": "build",
        "Entrypoint": ["/bin/sh", f"{MOUNT}/build.sh"],
        "Cmd": list(container.arguments),
        "User": f"{user}:{user}",
        "Env": [f"{name}={value}" for name, value in container.env.items()],
    }


INDEX_MEMORY_MB = 256
INDEX_FILE_MB = 1


def index_options(container: BuildContainer, settings: Settings, *, gateway_dir: str) -> dict[str, Any]:
    """The body of the engine's create call for the container that serves the package index to a build.

    It is confined as that build is, and the two share `gateway_dir`, a folder with a socket and a pipe. This container has
    the index's credentials and the deployment's network, and runs only pip and NanoGrid's program. The build has neither,
    and runs code from packages. On the host's disk this container can create that socket, and files of at most 1 MiB.
    """
    options = build_options(container, settings, binds={}, network=settings.build_network)
    config = options["HostConfig"]
    config["Memory"] = config["MemorySwap"] = INDEX_MEMORY_MB * MIB
    config["Ulimits"].append(_ulimit("fsize", INDEX_FILE_MB * MIB))
    config["Mounts"].append(_bind(gateway_dir, f"{MOUNT}/gateway", read_only=False))
    return {**options, "Hostname": "index", "Entrypoint": ["/bin/sh", f"{MOUNT}/index.sh"]}
