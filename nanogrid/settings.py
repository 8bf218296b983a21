"""Every setting of NanoGrid: a typed field, read from `NANOGRID_*` or given as an argument.

Importing this module reads nothing from the environment: each call of `Settings()` reads it, `current()` reads it once. A test
checks that `docs/operations.md` has the same table.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from nanogrid.errors import ConfigurationError
from nanogrid.runtimes import BUILT_IN, Runtime, RuntimeTable
from nanogrid.wire.model import WholeNumber, check_number
from nanogrid.wire.tuner_mode import Mode

SQS_MESSAGE_LIMIT_BYTES = 1024 * 1024
"""Largest SQS message in bytes, body and attributes together (AWS quota since August 2025)."""

SQS_LONGEST_VISIBILITY_S = 12 * 3600
"""SQS keeps a received message invisible for this many seconds at most, renewals included."""


OFF = "off"
"""Switches a setting off. An empty variable would mean the default."""

ID_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=~-]{0,99}")
"""A prefix of request ids. It is shorter than an id, which needs room for more."""

ADDRESS = re.compile(
    r"(?:\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/nanogrid")
    return Path(os.environ.get("XDG_DATA_HOME", "~/.local/share")).expanduser() / "nanogrid"


class Settings(BaseSettings):
    """All settings of one process. Immutable.

    Each field `name` is read from the environment variable `NANOGRID_NAME` unless it is given as a keyword argument; an empty
    variable counts as unset. Names end with the unit: sizes in MiB (`_mb`) or bytes (`_bytes`), times in seconds (`_s`) or
    milliseconds (`_ms`). Mappings are JSON in the environment. docs/operations.md describes each field.

    The constructor raises pydantic's `ValidationError` for a value that is wrong, and for values that contradict each other;
    `current()` raises `ConfigurationError` that names the variable.
    """

    model_config = SettingsConfigDict(env_prefix="NANOGRID_", extra="ignore", frozen=True, env_ignore_empty=True)

    # -- addresses and folders
    broker_url: str = Field(
        "sqs://",
        description="Celery broker. Must be `sqs://`; region, credentials and endpoint come from settings and the AWS environment.",
    )
    aws_region: str = Field(
        "", description="AWS region. Empty: `AWS_REGION`, then `AWS_DEFAULT_REGION`, then `us-east-1`."
    )
    sqs_endpoint_url: str = Field(
        "", description="SQS endpoint URL. Empty: `AWS_ENDPOINT_URL_SQS` or `AWS_ENDPOINT_URL`, then AWS."
    )
    s3_endpoint_url: str = Field(
        "", description="S3 endpoint URL. Empty: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, then AWS."
    )
    result_url: str = Field("redis://127.0.0.1:6379/0", description="Redis that holds results and claims.")
    monitor_url: str = Field(
        "redis://127.0.0.1:6379/1",
        description="Redis (another database) that carries worker events and remote control for Flower.",
    )
    docker_url: str = Field("unix:///var/run/docker.sock", description="Docker engine of this host.")
    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Folder for cached code and layers, the containers' slots, and lock files. It must have the same path on the Docker engine's host. Default: `/var/lib/nanogrid` for root, else `~/.local/share/nanogrid`.",
    )
    cgroup_dir: Path = Field(Path("/sys/fs/cgroup"), description="Mount point of the host's cgroup tree.")

    # -- queues
    create_queues: bool = Field(
        False,
        description="Create missing queues, each with a dead-letter queue. For local stacks; in AWS, queues belong to the deployment.",
    )
    queue_urls: dict[str, str] = Field(
        default_factory=dict,
        description="Queue name → SQS queue URL (JSON). Other queues are looked up by `queue_prefix` + name.",
    )
    queue_prefix: str = Field("", description="Prefix of each queue's name in SQS.")
    visibility_timeout_s: int = Field(
        30,
        ge=3,
        le=SQS_LONGEST_VISIBILITY_S,
        description="How long a held message stays invisible without renewal. After the loss of a host its messages are redelivered within this time.",
    )
    visibility_heartbeat_s: float = Field(
        10.0, ge=0, description="How often the invisibility of each held message is renewed. 0: never."
    )
    receive_wait_s: int = Field(20, ge=0, le=20, description="SQS long-poll time. 0: no long polls.")
    max_receives: int = Field(
        5,
        ge=1,
        le=1000,
        description="Deliveries after which a queue moves a message to its dead-letter queue. Set on queues that NanoGrid creates.",
    )
    dead_letter_check_s: float = Field(
        30.0, gt=0, description="How often dead-letter queues are read, to store results for the requests in them."
    )

    # -- requests
    timeout_ms: int = Field(10_000, ge=1, description="`timeoutMs` of a request without one.")
    max_timeout_ms: int = Field(900_000, ge=1, description="Largest accepted `timeoutMs`.")
    memory_mb: int = Field(512, ge=6, description="`memoryMb` of a request without one.")
    max_memory_mb: int = Field(4096, ge=6, description="Largest accepted `memoryMb`.")
    cpus: float = Field(1.0, gt=0, description="`cpus` of a request without one.")
    max_cpus: float = Field(4.0, gt=0, description="Largest accepted `cpus`.")
    allowed_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        ("none",), description="Docker networks that a request may name, separated by commas."
    )
    request_id_prefixes: dict[str, str] = Field(
        default_factory=dict,
        description="Queue name → prefix of all request ids in that queue, and in no other queue (JSON). For queues of different producers: no producer can end, repeat or read another's requests. Producers need the setting too. Default: any queue accepts any id.",
    )
    message_limit_bytes: int = Field(
        SQS_MESSAGE_LIMIT_BYTES,
        ge=1024,
        description="Largest message in bytes. The producer refuses larger ones.",
    )

    # -- runtimes
    runtimes: dict[str, Runtime] = Field(
        default_factory=dict,
        description="Additional or replaced runtimes (JSON): name → image, command, requiredFile and, optionally, queue, aliases, supportsHandler.",
    )
    python_image: str = Field("", description="Image of the runtime `python`. Empty: `python:3.9-slim`.")
    cpp_image: str = Field("", description="Image of the runtime `cpp`. Empty: `gcc:11`.")
    pull_images: bool = Field(True, description="Pull a missing image. False: a missing image is an error.")

    # -- code
    archive_limit_mb: int = Field(256, ge=1, description="Largest S3 object that is downloaded.")
    unpacked_limit_mb: int = Field(512, ge=1, description="Largest size of an unpacked function.")
    unpacked_files_limit: int = Field(10_000, ge=1, description="Largest number of files and folders in an archive.")
    compression_ratio_limit: int = Field(
        200, ge=1, description="Largest ratio of unpacked to packed bytes. Applies to archives over 1 MiB unpacked."
    )
    code_cache_mb: int = Field(
        4096, ge=1, description="Size of the code cache on disk. Beyond it, the least recently used code is evicted."
    )

    # -- containers
    workspace_mb: int = Field(
        256, ge=1, description="Size of the writable `/workspace` (memory-backed, counts towards the memory limit)."
    )
    tmp_mb: int = Field(64, ge=1, description="Size of `/tmp` (memory-backed, counts towards the memory limit).")
    pids_limit: int = Field(128, ge=4, description="Largest number of processes and threads in a container.")
    nofile_limit: int = Field(1024, ge=64, description="Largest number of open files of a process.")
    container_uid: int = Field(65534, ge=1, description="User and group id that functions run as.")
    output_limit_bytes: int = Field(
        1024 * 1024,
        ge=1,
        description="Most bytes of stdout, and of stderr, that a function may write. A function that writes more is killed, with the outcome `OUTPUT_LIMIT`.",
    )
    value_limit_bytes: int = Field(1024 * 1024, ge=2, description="Largest JSON value in `NANOGRID_RESULT`.")
    reap_interval_s: float = Field(
        60.0, gt=0, description="How often containers and folders of dead workers are searched for and removed."
    )

    # -- pool
    prewarmed: dict[str, WholeNumber] = Field(
        default_factory=dict,
        description="Runtime → number of containers kept ready for functions without a warm one (JSON). Default: one for each runtime whose queue the worker polls.",
    )
    pool_containers: int = Field(
        160, ge=1, description="Largest number of containers of this worker. Idle containers are evicted for new ones."
    )
    pool_memory_mb: int = Field(
        0,
        ge=0,
        description="Memory for all containers of this worker. A running container counts with its limit, an idle one with its usage. 0: half of the host's memory.",
    )
    function_containers: int = Field(
        0, ge=0, description="Largest number of containers per function. 0: only the pool's limit applies."
    )
    idle_timeout_s: float = Field(
        600.0,
        ge=0,
        description="How long an idle container is kept for the next run of its function. 0: no container is reused.",
    )
    pause_after_s: float = Field(
        0.25, ge=0, description="A container is paused after it has been idle for this long, until its next run."
    )
    image_check_s: float = Field(
        10.0, gt=0, description="How often the pool checks whether an image's name now refers to another image."
    )
    pool_wait_s: float = Field(
        60.0,
        gt=0,
        description="How long a request waits for a container if all are in use. After that it is retried later.",
    )

    # -- layers
    build_network: str = Field(
        "none",
        description="Docker network of containers that build layers (`requirements.txt`, `build.sh`), such as an internal network with a package index. `none`: builds have no network.",
    )
    build_index_url: str = Field(
        "", description="URL of the package index for `requirements.txt`. Empty: pip's default."
    )
    build_pip_env: dict[str, str] = Field(
        default_factory=dict,
        description="Additional environment variables of pip in build containers, such as `PIP_TRUSTED_HOST` (JSON).",
    )
    build_wheels_only: bool = Field(
        True,
        description="Install only wheels. False: also source distributions, whose setup code then runs in the build container.",
    )
    build_memory_mb: int = Field(2048, ge=64, description="Memory limit of a build, including its files.")
    build_cpus: float = Field(2.0, gt=0, description="CPU limit of a build.")
    build_timeout_s: float = Field(
        90.0,
        gt=0,
        description="Longest time of a build. Never more than four fifths of `overhead_s`, which includes it.",
    )
    layer_limit_mb: int = Field(1024, ge=1, description="Largest layer.")
    layer_files_limit: int = Field(100_000, ge=1, description="Largest number of files and folders in a layer.")
    layer_cache_mb: int = Field(
        8192, ge=1, description="Size of all layers on disk. Beyond it, the least recently used layers are evicted."
    )
    layer_failure_ttl_s: float = Field(
        600.0,
        ge=0,
        description="How long a failed build is remembered. Until then requests for it fail without a new build.",
    )
    learn_imports: bool = Field(
        True,
        description="Import the modules that a function's runs have imported before its next run in the same container. A run can choose what is learned, and the next run can see it.",
    )
    compiler_cache_mb: int = Field(
        64, ge=1, description="Size of a container's compiler cache (memory-backed, counts towards the memory limit)."
    )

    # -- tuner
    tuner_mode: Mode = Field(
        Mode.RECOMMEND,
        description="What the tuner does with memory limits: `off`, `recommend` (results report a sufficient limit) or `apply` (runs get that limit; if it is too small, the run repeats with the requested memory). `nanogrid tuner set` sets the mode of one function.",
    )
    tuner_minimum_runs: int = Field(
        10, ge=1, description="Runs of a function before the tuner recommends a limit for it."
    )
    tuner_percentile: float = Field(
        0.99,
        gt=0,
        le=1,
        description="Share of past runs that a recommended limit must suffice for. Of these limits the tuner chooses the cheapest, including the cost of repeated runs.",
    )
    tuner_margin: float = Field(
        0.1,
        ge=0,
        description="Share added to a recommended limit at the minimum number of runs. It shrinks as more runs are known.",
    )
    tuner_floor_mb: int = Field(32, ge=6, description="Smallest limit that the tuner recommends.")
    tuner_ceiling_mb: int = Field(0, ge=0, description="Largest limit that the tuner recommends. 0: `max_memory_mb`.")
    tuner_half_life_s: float = Field(86_400.0, gt=0, description="Age at which a run counts half as much as a new one.")
    tuner_backoff_s: float = Field(
        600.0,
        ge=0,
        description="How long a function gets its requested limit after the tuner's limit was too small for a run, or until five runs have ended, whichever comes first.",
    )
    tuner_expires_s: int = Field(
        2_592_000, ge=60, description="How long the tuner's data of a function is kept without a run."
    )

    # -- attempts and results
    max_attempts: int = Field(
        5, ge=1, description="Attempts at a request if NanoGrid's own parts fail, including the first."
    )
    retry_backoff_s: float = Field(
        1.0,
        gt=0,
        description="Longest wait before the second attempt. It doubles with each attempt; the actual wait is random up to it.",
    )
    retry_backoff_max_s: float = Field(60.0, gt=0, description="Upper bound of the wait between attempts.")
    overhead_s: float = Field(
        120.0,
        gt=0,
        description="Time for fetching code and starting a container. Celery's soft time limit is `timeoutMs` plus this.",
    )
    hard_limit_grace_s: float = Field(15.0, gt=0, description="Time between Celery's soft and hard time limit.")
    claim_ttl_s: float = Field(
        15.0, ge=1, description="A claim on a request id expires if it is not renewed for this long."
    )
    result_expires_s: int = Field(86_400, ge=1, description="How long results stay in Redis.")
    result_replicas: int = Field(
        0,
        ge=0,
        description="Replicas of the result Redis that must have a result before its message is deleted and the result is published. 0: no wait, and a failover may lose the latest results.",
    )
    result_replicas_wait_ms: int = Field(
        1000,
        ge=1,
        le=5000,
        description="How long one wait for those replicas takes. If too few have the result by then, the wait repeats and the message is kept until they have it.",
    )
    concurrency: int = Field(0, ge=0, description="Number of worker children. 0: one per core.")
    stalled_after_s: float = Field(
        60.0,
        gt=0,
        description="A worker that holds requests for this long while free children receive none reports that it is not ready, and recovers.",
    )

    # -- results stream
    stream_name: str = Field(
        "nanogrid:results", min_length=1, description="Key of the Redis stream to which each result is appended."
    )
    stream_entries_limit: int = Field(
        20_000,
        ge=0,
        description="Largest number of results in that stream. Beyond it, the oldest are removed. 0: no stream.",
    )
    stream_output_limit_bytes: int = Field(
        4096,
        ge=0,
        description="Most bytes of stdout, and of stderr, per result in the stream: the first of stdout, the last of stderr.",
    )
    stream_value_limit_bytes: int = Field(
        4096, ge=0, description="Largest JSON value in the stream in bytes. A larger one is null there."
    )

    # -- monitoring
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of a worker's log: `text` for people, or `json` with one object per line."
    )
    tracing: bool = Field(
        False,
        description="Create OpenTelemetry traces of requests, in producers and workers. Needs `nanogrid[otel]`; the standard variables `OTEL_*` configure the exporter.",
    )
    metrics_address: str = Field(
        "127.0.0.1:9747",
        description="Address of a worker's `/metrics`, `/healthz`, `/readyz` and `/status`, as `host:port`. Port 0: any free port; `nanogrid doctor` shows it. `off`: no server.",
    )
    metrics_look_s: float = Field(
        15.0, gt=0, description="How often a worker checks its own health and the depths of its queues."
    )

    # -- Flower
    flower_insecure: bool = Field(False, description="Let Flower listen beyond loopback without authentication.")

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return check_number(cls, value, info.field_name)

    @field_validator("allowed_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("request_id_prefixes")
    @classmethod
    def _prefixes(cls, value: dict[str, str]) -> dict[str, str]:
        for queue, prefix in value.items():
            if not ID_PREFIX.fullmatch(prefix):
                raise ValueError(
                    f"{prefix!r} of the queue {queue} is not a prefix of request ids; accepted are up to 100 letters, digits "
                    "and ._:/@+=~-, starting with a letter or digit"
                )
        for one, other in permutations(set(value.values()), 2):
            if other.startswith(one):
                raise ValueError(f"{other!r} begins with {one!r}, so one queue could use the other's request ids")
        return value

    @field_validator("metrics_address")
    @classmethod
    def _address(cls, value: str) -> str:
        if value not in ("", OFF) and not ADDRESS.fullmatch(value):
            raise ValueError(f"must be host:port, such as 127.0.0.1:9747 or [::1]:9747, or {OFF}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.visibility_heartbeat_s * 2 > self.visibility_timeout_s:
            raise ValueError(
                f"visibility_heartbeat_s is {self.visibility_heartbeat_s:g} and visibility_timeout_s is "
                f"{self.visibility_timeout_s}: the heartbeat must come at least twice per timeout"
            )
        for default, largest in (
            ("timeout_ms", "max_timeout_ms"),
            ("memory_mb", "max_memory_mb"),
            ("cpus", "max_cpus"),
        ):
            if getattr(self, default) > getattr(self, largest):
                raise ValueError(
                    f"{default} is {getattr(self, default)}, more than {largest} ({getattr(self, largest)})"
                )
        queues = self.runtime_table.queues()
        for queue in self.request_id_prefixes:
            if queue not in queues:
                raise ValueError(
                    f"request_id_prefixes: {queue!r} is not the queue of a runtime; accepted are {', '.join(queues)}"
                )
        return self

    @classmethod
    def documented(cls) -> list[tuple[str, str]]:
        """Every setting as a pair of its name and "default | description", as `docs/operations.md` shows them."""
        rows = []
        for name, field in cls.model_fields.items():
            default = "" if field.default is PydanticUndefined else field.default
            default = default.value if isinstance(default, Mode) else default
            shown = ",".join(default) if isinstance(default, tuple) else str(default)
            rows.append((name, f"{f'`{shown}`' if shown else '–'} | {field.description}"))  # noqa: RUF001  # a dash for "none"
        return rows

    @cached_property
    def region(self) -> str:
        """The AWS region in use: the setting, else `AWS_REGION`, `AWS_DEFAULT_REGION`, `us-east-1`."""
        return (
            self.aws_region
            or os.environ.get("AWS_REGION", "")
            or os.environ.get("AWS_DEFAULT_REGION", "")
            or "us-east-1"
        )

    @cached_property
    def runtime_table(self) -> RuntimeTable:
        """The built-in runtimes with the deployment's images, then the entries of `runtimes`."""
        table = dict(BUILT_IN)
        for name, image in (("python", self.python_image), ("cpp", self.cpp_image)):
            if image:
                table[name] = table[name].model_copy(update={"image": image})
        return RuntimeTable({**table, **self.runtimes})

    @property
    def longest_build_s(self) -> float:
        """Longest time of a build in seconds. It leaves the request some overhead: a build that is killed starts again."""
        return min(self.build_timeout_s, 0.8 * self.overhead_s)

    @property
    def longest_run_s(self) -> float:
        """Longest time in seconds that a worker holds one delivery: the largest timeout, the overhead and the grace time."""
        return self.max_timeout_ms / 1000 + self.overhead_s + self.hard_limit_grace_s


_current: Settings | None = None


def from_environment() -> Settings:
    """New settings from the environment. Raises ConfigurationError that names the wrong variable."""
    try:
        return Settings()
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = f"NANOGRID_{str(first['loc'][0]).upper()}: " if first["loc"] else ""
        raise ConfigurationError(f"{where}{first['msg']}, got {str(first['input'])[:80]!r}") from None
    except SettingsError as invalid:
        raise ConfigurationError(f"the environment cannot be read: {invalid}") from None


def current() -> Settings:
    """The settings of this process: those given to `configure`, else those of the environment at the first call.

    Raises ConfigurationError that names the wrong variable.
    """
    global _current
    if _current is None:
        _current = from_environment()
    return _current


def configure(settings: Settings) -> None:
    """Use these settings in this process. Call it before sending the first task or starting the worker."""
    global _current
    _current = settings
