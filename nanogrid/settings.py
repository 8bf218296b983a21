"""Every setting of NanoGrid: one typed field each, read from `NANOGRID_*` or given as an argument.

Nothing is read from the environment at import: `Settings()` reads it when it is called, `current()` reads it once.
`docs/operations.md` shows the same table, and a test holds the two together.
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
"""Largest SQS message, body and attributes together (AWS quota since August 2025)."""

SQS_LONGEST_VISIBILITY_S = 12 * 3600
"""SQS does not keep a received message invisible for longer than this in all, renewals included."""


OFF = "off"
"""The value of a setting that is switched off where an empty variable means the default."""

ID_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=~-]{0,99}")
"""What a request id can begin with, with room for what follows."""

ADDRESS = re.compile(
    r"(?:\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/nanogrid")
    return Path(os.environ.get("XDG_DATA_HOME", "~/.local/share")).expanduser() / "nanogrid"


class Settings(BaseSettings):
    """All settings. Sizes in MiB (`_mb`) or bytes (`_bytes`), times in seconds (`_s`) or milliseconds (`_ms`)."""

    model_config = SettingsConfigDict(env_prefix="NANOGRID_", extra="ignore", frozen=True, env_ignore_empty=True)

    # -- where things are
    broker_url: str = Field(
        "sqs://", description="Celery broker. `sqs://` takes region, credentials and endpoint from the AWS environment."
    )
    aws_region: str = Field(
        "", description="AWS region. Empty: `AWS_REGION`, then `AWS_DEFAULT_REGION`, then `us-east-1`."
    )
    sqs_endpoint_url: str = Field(
        "", description="SQS endpoint other than AWS. Empty: `AWS_ENDPOINT_URL_SQS` or `AWS_ENDPOINT_URL`, then AWS."
    )
    s3_endpoint_url: str = Field(
        "", description="S3 endpoint other than AWS. Empty: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, then AWS."
    )
    result_url: str = Field("redis://127.0.0.1:6379/0", description="Redis that holds results and claims.")
    monitor_url: str = Field(
        "redis://127.0.0.1:6379/1",
        description="Redis (another database) that carries worker events and remote control for Flower.",
    )
    docker_url: str = Field("unix:///var/run/docker.sock", description="Docker engine of this host.")
    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Folder of cached code and layers, of the containers' slots, and of lock files. On the engine's host, under the same path. Default: `/var/lib/nanogrid` for root, else `~/.local/share/nanogrid`.",
    )
    cgroup_dir: Path = Field(Path("/sys/fs/cgroup"), description="Where the host's cgroup tree is mounted.")

    # -- queues
    create_queues: bool = Field(
        False,
        description="Create missing queues, each with a dead-letter queue. For local stacks; in AWS queues belong to the deployment.",
    )
    queue_urls: dict[str, str] = Field(
        default_factory=dict,
        description="Queue name → SQS queue URL (JSON). Queues not named here are looked up by `queue_prefix` + name.",
    )
    queue_prefix: str = Field("", description="Put before each queue's name in SQS.")
    visibility_timeout_s: int = Field(
        30,
        ge=3,
        le=SQS_LONGEST_VISIBILITY_S,
        description="How long a held message stays invisible without renewal; the time to redelivery after a host is lost.",
    )
    visibility_heartbeat_s: float = Field(
        10.0, ge=0, description="Renew the invisibility of every held message this often. 0 switches renewal off."
    )
    receive_wait_s: int = Field(20, ge=0, le=20, description="SQS long-poll time.")
    max_receives: int = Field(
        5, ge=1, le=1000, description="Deliveries before a created queue moves a message to its dead-letter queue."
    )
    dead_letter_check_s: float = Field(
        30.0, gt=0, description="How often dead-letter queues are read, to store a result for what died there."
    )

    # -- requests
    timeout_ms: int = Field(10_000, ge=1, description="`timeoutMs` of a request that names none.")
    max_timeout_ms: int = Field(900_000, ge=1, description="Largest accepted `timeoutMs`.")
    memory_mb: int = Field(512, ge=6, description="`memoryMb` of a request that names none.")
    max_memory_mb: int = Field(4096, ge=6, description="Largest accepted `memoryMb`.")
    cpus: float = Field(1.0, gt=0, description="`cpus` of a request that names none.")
    max_cpus: float = Field(4.0, gt=0, description="Largest accepted `cpus`.")
    allowed_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        ("none",), description="Docker networks a request may name, separated by commas."
    )
    request_id_prefixes: dict[str, str] = Field(
        default_factory=dict,
        description="Queue name → what every request id in that queue begins with, and in no other (JSON). For queues of different producers: none can decide, repeat or read a request of another's. Producers need it too. Default: any id from any queue.",
    )
    message_limit_bytes: int = Field(
        SQS_MESSAGE_LIMIT_BYTES,
        ge=1024,
        description="Largest message that is sent; larger ones are refused at the producer.",
    )

    # -- runtimes
    runtimes: dict[str, Runtime] = Field(
        default_factory=dict,
        description="Further or replaced runtimes (JSON): name → image, command, requiredFile and, optional, queue, aliases, supportsHandler.",
    )
    python_image: str = Field("", description="Image of the runtime `python` in place of `python:3.9-slim`.")
    cpp_image: str = Field("", description="Image of the runtime `cpp` in place of `gcc:11`.")
    pull_images: bool = Field(True, description="Pull a missing image. False: a missing image is an error.")

    # -- code
    archive_limit_mb: int = Field(256, ge=1, description="Largest S3 object that is downloaded.")
    unpacked_limit_mb: int = Field(512, ge=1, description="Largest size of an unpacked function.")
    unpacked_files_limit: int = Field(10_000, ge=1, description="Most files and folders in an archive.")
    compression_ratio_limit: int = Field(
        200, ge=1, description="Largest ratio of unpacked to packed bytes of an archive over 1 MiB unpacked."
    )
    code_cache_mb: int = Field(
        4096, ge=1, description="Size of the code cache on disk; the least recently used code is evicted beyond it."
    )

    # -- containers
    workspace_mb: int = Field(
        256, ge=1, description="Size of the writable `/workspace` (memory-backed, counts towards the memory limit)."
    )
    tmp_mb: int = Field(64, ge=1, description="Size of `/tmp` (memory-backed, counts towards the memory limit).")
    pids_limit: int = Field(128, ge=4, description="Most processes and threads of a container.")
    nofile_limit: int = Field(1024, ge=64, description="Most open files of a process.")
    container_uid: int = Field(65534, ge=1, description="User and group id that functions run as.")
    output_limit_bytes: int = Field(
        1024 * 1024,
        ge=1,
        description="Most bytes kept of stdout, and of stderr. A function that writes more is ended with OUTPUT_LIMIT.",
    )
    value_limit_bytes: int = Field(1024 * 1024, ge=2, description="Largest JSON value in `NANOGRID_RESULT`.")
    reap_interval_s: float = Field(
        60.0, gt=0, description="How often containers and folders of dead workers are looked for."
    )

    # -- pool
    prewarmed: dict[str, WholeNumber] = Field(
        default_factory=dict,
        description="Runtime → containers kept ready for code that was not run before (JSON). Default: one for each runtime whose queue the worker reads.",
    )
    pool_containers: int = Field(
        160, ge=1, description="Most containers of this worker at a time; idle ones are evicted for new ones."
    )
    pool_memory_mb: int = Field(
        0,
        ge=0,
        description="Memory for all containers of this worker: running ones count with their limit, idle ones with what they use. 0: half of the host's memory.",
    )
    function_containers: int = Field(
        0, ge=0, description="Most containers that one function may have at a time. 0: no limit but the pool's."
    )
    idle_timeout_s: float = Field(
        600.0,
        ge=0,
        description="How long a warm container waits for the next run of its function. 0: no container is reused.",
    )
    pause_after_s: float = Field(
        0.25, ge=0, description="A container that is idle for this long is paused until its next run."
    )
    image_check_s: float = Field(
        10.0, gt=0, description="How often the pool looks whether an image's name stands for another image by now."
    )
    pool_wait_s: float = Field(
        60.0,
        gt=0,
        description="Longest wait for a container when all are in use; then the request is tried again later.",
    )

    # -- layers
    build_network: str = Field(
        "none",
        description="Docker network of containers that build layers (`requirements.txt`, `build.sh`), such as an internal one with the package index in it. `none`: builds reach nothing.",
    )
    build_index_url: str = Field("", description="Package index for `requirements.txt`. Empty: pip's own default.")
    build_pip_env: dict[str, str] = Field(
        default_factory=dict,
        description="Further environment of pip in build containers, such as `PIP_TRUSTED_HOST` (JSON).",
    )
    build_wheels_only: bool = Field(
        True,
        description="Install wheels only. False: source distributions too, whose set-up code then runs in the build container.",
    )
    build_memory_mb: int = Field(2048, ge=64, description="Memory of a build, its files included.")
    build_cpus: float = Field(2.0, gt=0, description="CPUs of a build.")
    build_timeout_s: float = Field(
        90.0, gt=0, description="Longest build; never more than four fifths of `overhead_s`, which it is a part of."
    )
    layer_limit_mb: int = Field(1024, ge=1, description="Largest layer.")
    layer_files_limit: int = Field(100_000, ge=1, description="Most files and folders in a layer.")
    layer_cache_mb: int = Field(
        8192, ge=1, description="Size of all layers on disk; the least recently used ones are evicted beyond it."
    )
    layer_failure_ttl_s: float = Field(
        600.0, ge=0, description="How long a failed build is remembered and answered without being repeated."
    )
    learn_imports: bool = Field(
        True,
        description="Import beforehand, for a function's next runs in its container, which modules its runs there have imported. A run can choose what is learned, which the next one can see.",
    )
    compiler_cache_mb: int = Field(
        64, ge=1, description="Size of a container's compiler cache (memory-backed, counts towards the memory limit)."
    )

    # -- tuner
    tuner_mode: Mode = Field(
        Mode.RECOMMEND,
        description="What the tuner does with memory limits: `off`, `recommend` (results say what would do) or `apply` (runs get it, and one that it was too little for runs again). Functions can have a mode of their own: `nanogrid tuner set`.",
    )
    tuner_minimum_runs: int = Field(10, ge=1, description="Runs of a function before anything is recommended for it.")
    tuner_percentile: float = Field(
        0.99,
        gt=0,
        le=1,
        description="Share of runs that a recommended limit must have been enough for. Above it the cheapest limit is taken, second runs counted.",
    )
    tuner_margin: float = Field(
        0.1, ge=0, description="Room above that, as a share, at the minimum of runs; it shrinks as more are known."
    )
    tuner_floor_mb: int = Field(32, ge=6, description="Smallest limit that is recommended.")
    tuner_ceiling_mb: int = Field(0, ge=0, description="Largest limit that is recommended. 0: `max_memory_mb`.")
    tuner_half_life_s: float = Field(
        86_400.0, gt=0, description="After this time what a run used counts half as much as what one uses now."
    )
    tuner_backoff_s: float = Field(
        600.0,
        ge=0,
        description="How long a function keeps its requested limit after the tuner's was too little for a run, if that is not over after five runs.",
    )
    tuner_expires_s: int = Field(
        2_592_000, ge=60, description="How long what was learned of a function stays without a run of it."
    )

    # -- attempts and results
    max_attempts: int = Field(
        5, ge=1, description="Attempts at a request when NanoGrid's own parts fail, the first included."
    )
    retry_backoff_s: float = Field(
        1.0, gt=0, description="Wait before the second attempt; doubles with each one, with full jitter."
    )
    retry_backoff_max_s: float = Field(60.0, gt=0, description="Longest wait between attempts.")
    overhead_s: float = Field(
        120.0,
        gt=0,
        description="Added to `timeoutMs` for Celery's soft time limit: what fetching code and starting a container may take.",
    )
    hard_limit_grace_s: float = Field(15.0, gt=0, description="Time between Celery's soft and its hard limit.")
    claim_ttl_s: float = Field(
        15.0, ge=1, description="A claim on a request id that is not renewed for this long is free again."
    )
    result_expires_s: int = Field(86_400, ge=1, description="How long results stay in Redis.")
    result_replicas: int = Field(
        0,
        ge=0,
        description="Replicas of the result Redis that must have a request's result before its message is deleted and anybody is told. 0: none is waited for, and a failover may lose the last results.",
    )
    result_replicas_wait_ms: int = Field(
        1000,
        ge=1,
        le=5000,
        description="How long one question to those replicas waits. Where too few have answered they are asked again, and the message is kept, for as long as it takes.",
    )
    concurrency: int = Field(0, ge=0, description="Worker children. 0: one per core.")
    stalled_after_s: float = Field(
        60.0,
        gt=0,
        description="A worker that holds requests for this long, with children free that take none, is not ready, and mends itself.",
    )

    # -- results stream
    stream_name: str = Field(
        "nanogrid:results", min_length=1, description="Key of the Redis stream to which every result is appended."
    )
    stream_entries_limit: int = Field(
        20_000, ge=0, description="Results in that stream; the oldest go beyond it. 0: there is no stream."
    )
    stream_output_limit_bytes: int = Field(
        4096,
        ge=0,
        description="Bytes of stdout, and of stderr, in the stream: the first of stdout, the last of stderr.",
    )
    stream_value_limit_bytes: int = Field(
        4096, ge=0, description="Largest JSON value in the stream; a larger one is null there."
    )

    # -- watching
    log_format: Literal["text", "json"] = Field(
        "text", description="What a worker's log is made of: `text` for people, or `json`, one object per line."
    )
    tracing: bool = Field(
        False,
        description="Make OpenTelemetry traces of requests, in producers and workers. Needs `nanogrid[otel]`; where they go is said by the standard variables `OTEL_*`.",
    )
    metrics_address: str = Field(
        "127.0.0.1:9747",
        description="Where a worker serves `/metrics`, `/healthz`, `/readyz` and `/status`, as `host:port`. Port 0: any that is free, see `nanogrid doctor`. `off`: nowhere.",
    )
    metrics_look_s: float = Field(
        15.0, gt=0, description="How often a worker looks at its own health and at the depth of its queues."
    )

    # -- Flower
    flower_insecure: bool = Field(
        False, description="Let Flower listen beyond loopback although no authentication is configured."
    )

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
                    f"{prefix!r} of the queue {queue} cannot begin a request id; accepted are up to 100 letters, digits "
                    "and ._:/@+=~-, of which the first is a letter or digit"
                )
        for one, other in permutations(set(value.values()), 2):
            if other.startswith(one):
                raise ValueError(f"{one!r} begins {other!r}, so that one queue could name the other's request ids")
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
                raise ValueError(f"request_id_prefixes: {queue!r} is no runtime's queue; there are {', '.join(queues)}")
        return self

    @classmethod
    def documented(cls) -> list[tuple[str, str]]:
        """(name, "default | description") of every setting, as `docs/operations.md` shows them."""
        rows = []
        for name, field in cls.model_fields.items():
            default = "" if field.default is PydanticUndefined else field.default
            default = default.value if isinstance(default, Mode) else default
            shown = ",".join(default) if isinstance(default, tuple) else str(default)
            rows.append((name, f"{f'`{shown}`' if shown else '–'} | {field.description}"))  # noqa: RUF001  # a dash for "none"
        return rows

    @cached_property
    def region(self) -> str:
        """The AWS region in force."""
        return (
            self.aws_region
            or os.environ.get("AWS_REGION", "")
            or os.environ.get("AWS_DEFAULT_REGION", "")
            or "us-east-1"
        )

    @cached_property
    def runtime_table(self) -> RuntimeTable:
        """Built-in runtimes with the deployment's images, then the deployment's own entries."""
        table = dict(BUILT_IN)
        for name, image in (("python", self.python_image), ("cpp", self.cpp_image)):
            if image:
                table[name] = table[name].model_copy(update={"image": image})
        return RuntimeTable({**table, **self.runtimes})

    @property
    def longest_build_s(self) -> float:
        """Longest build that leaves the request it is for some of its overhead: one that is cut off begins anew."""
        return min(self.build_timeout_s, 0.8 * self.overhead_s)

    @property
    def longest_run_s(self) -> float:
        """Longest time one delivery of a message can be held: the largest timeout and what surrounds it."""
        return self.max_timeout_ms / 1000 + self.overhead_s + self.hard_limit_grace_s


_current: Settings | None = None


def from_environment() -> Settings:
    """The settings of the environment. Raises ConfigurationError that names the variable which is wrong."""
    try:
        return Settings()
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = f"NANOGRID_{str(first['loc'][0]).upper()}: " if first["loc"] else ""
        raise ConfigurationError(f"{where}{first['msg']}, got {str(first['input'])[:80]!r}") from None
    except SettingsError as invalid:
        raise ConfigurationError(f"the environment is not usable: {invalid}") from None


def current() -> Settings:
    """The settings of this process: those given to `configure`, else those of the environment at the first call."""
    global _current
    if _current is None:
        _current = from_environment()
    return _current


def configure(settings: Settings) -> None:
    """Use these settings in this process. To be called before the first task is sent or the worker starts."""
    global _current
    _current = settings
