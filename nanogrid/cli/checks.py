"""The checks of `nanogrid doctor`, one function each.

The rule: a check changes nothing, and always returns a line with what it found, and with a remedy if something is wrong.
A check that fails unexpectedly is itself a finding.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import partial
from typing import Any

from nanogrid.errors import NanoGridError
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
TOLERABLE_SKEW_S = 5.0
REFUSED_SKEW_S = 300.0
"""AWS refuses signatures if the clock is off by more."""

_MIB = 1024 * 1024

REACHING_EVERYTHING = ("bridge", "default", "host")
INHIBITED = "com.docker.network.bridge.inhibit_ipv4"
GATEWAY_MODE = "com.docker.network.bridge.gateway_mode_ipv4"
METADATA_TOO = ", including the cloud's metadata service and private addresses"
INTERNAL_NETWORK = f"name a network created by: docker network create --internal -o {INHIBITED}=true, with the package index or a proxy to it in it"


class CheckHealth(str, Enum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True)
class Check:
    """One line of `nanogrid doctor`. `remedy` is empty if nothing needs to be done."""

    name: str
    health: CheckHealth
    found: str
    remedy: str = ""

    def to_wire(self) -> dict[str, str]:
        """The JSON object."""
        return {"name": self.name, "health": self.health.value, "found": self.found, "remedy": self.remedy}


def run_checks(settings: Settings, *, is_local: bool = False) -> list[Check]:
    """The findings of all checks, which run in parallel, in a fixed order. `is_local`: for a local stack."""
    checks: list[tuple[str, Callable[[Settings], Iterator[Check]]]] = [
        ("docker", _check_docker),
        ("images", _check_images),
        ("build network", partial(check_build_network, is_local=is_local)),
        ("s3", _check_s3),
        ("queues", _check_queues),
        ("redis", _check_redis),
        ("workers", _check_workers),
        ("health", _check_health),
        ("disk", _check_disk),
        ("cgroups", _check_cgroups),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        found = pool.map(lambda named: _guarded(named[0], named[1], settings), checks)
        return [check for lines in found for check in lines]


def _guarded(name: str, check: Callable[[Settings], Iterator[Check]], settings: Settings) -> list[Check]:
    lines: list[Check] = []
    try:
        lines.extend(check(settings))
    except Exception as unexpected:  # any failure of a check is a finding, and must not hide the others
        log.debug("check %s failed", name, exc_info=True)
        lines.append(
            _broken(
                name,
                f"could not be checked: {type(unexpected).__name__}: {unexpected}",
                "this is a bug in the check: please report it",
            )
        )
    return lines


def _ok(name: str, found: str) -> Check:
    return Check(name, CheckHealth.OK, found)


def _warning(name: str, found: str, remedy: str) -> Check:
    return Check(name, CheckHealth.WARNING, found, remedy)


def _broken(name: str, found: str, remedy: str) -> Check:
    return Check(name, CheckHealth.BROKEN, found, remedy)


def _check_docker(settings: Settings) -> Iterator[Check]:
    from nanogrid.execution.container.engine import Engine

    try:
        version = Engine(settings).version()
    except NanoGridError as silent:
        yield _broken(
            "docker",
            str(silent),
            f"start the engine, check your access to {settings.docker_url}, or name another in NANOGRID_DOCKER_URL",
        )
        return
    yield _ok("docker", f"engine {version['Version']}, API {version['ApiVersion']}, kernel {version['KernelVersion']}")


def _check_images(settings: Settings) -> Iterator[Check]:
    from nanogrid.execution.container.engine import Engine

    engine = Engine(settings)
    for name, runtime in settings.runtime_table.items():
        label = f"image {name}"
        try:
            if engine.has_image(runtime.image):
                yield _ok(label, f"{runtime.image} is present")
            elif settings.pull_images and (refusal := engine.registry_refusal(runtime.image)) is None:
                yield _ok(label, f"{runtime.image} is not present; it is pulled at the first run")
            else:
                reason = f"and cannot be pulled: {refusal}" if settings.pull_images else "and pulling is disabled"
                yield _broken(label, f"{runtime.image} is not present, {reason}", _image_remedy(name))
        except NanoGridError as silent:
            yield _broken(label, str(silent), "fix the engine first")


def _image_remedy(runtime: str) -> str:
    variable = {"python": "NANOGRID_PYTHON_IMAGE", "cpp": "NANOGRID_CPP_IMAGE"}.get(runtime, "NANOGRID_RUNTIMES")
    return f"let the engine reach a registry, or build equivalents (deploy/images/build) and name them in {variable}"


def check_build_network(settings: Settings, *, is_local: bool) -> Iterator[Check]:
    """Check what builds can reach: they run the code of packages and build.sh."""
    from nanogrid.execution.container.engine import Engine
    from nanogrid.execution.container.hardening import NO_NETWORK

    label, name = "build network", settings.build_network
    if name == NO_NETWORK and settings.build_index_url:
        remedy = "name a network with the index in it in NANOGRID_BUILD_NETWORK"
        yield _warning(label, "none, so builds cannot reach the index of NANOGRID_BUILD_INDEX_URL", remedy)
    elif name == NO_NETWORK:
        yield _ok(label, "none: builds reach nothing")
    elif is_local:
        yield _ok(label, f"{name}, for development")
    elif name in REACHING_EVERYTHING or name.startswith("container:"):
        yield _warning(label, f"{name}: builds reach everything that this host reaches{METADATA_TOO}", INTERNAL_NETWORK)
    else:
        try:
            with closing(Engine(settings)) as engine:
                found = engine.network(name)
        except NanoGridError as silent:
            yield _broken(label, str(silent), "fix the engine first")
            return
        yield _named_network(label, name, found)


def _named_network(label: str, name: str, found: dict[str, Any] | None) -> Check:
    if found is None:
        return _broken(label, f"there is no network {name}", "create it, or name another in NANOGRID_BUILD_NETWORK")
    if not found.get("Internal"):
        return _warning(
            label, f"{name}: builds reach everything that this host reaches{METADATA_TOO}", INTERNAL_NETWORK
        )
    options = found.get("Options") or {}
    isolated = options.get(INHIBITED) == "true" or options.get(GATEWAY_MODE) == "isolated"
    if found.get("Driver") == "bridge" and not isolated:
        return _warning(label, f"{name}: internal, but builds reach the ports of this host itself", INTERNAL_NETWORK)
    return _ok(label, f"{name}: internal; builds reach only what is in it")


def _check_s3(settings: Settings) -> Iterator[Check]:
    import boto3.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(connect_timeout=PATIENCE_S, read_timeout=PATIENCE_S, retries={"total_max_attempts": 1})
    session = boto3.session.Session()  # the default session is not thread-safe
    client = session.client(
        "s3", region_name=settings.region, endpoint_url=settings.s3_endpoint_url or None, config=once
    )
    where = client.meta.endpoint_url
    try:
        answer: Any = client.list_buckets()["ResponseMetadata"]
    except ClientError as refusal:
        answer = refusal.response["ResponseMetadata"]
        code = refusal.response["Error"]["Code"]
        if code != "AccessDenied":  # AccessDenied only means that listing is not allowed; workers do not need it
            yield _broken("s3", f"{where} refuses: {code}", "check the AWS credentials and the clock of this machine")
            return
    except BotoCoreError as silent:
        remedy = "check the AWS credentials, the region, and AWS_ENDPOINT_URL or NANOGRID_S3_ENDPOINT_URL"
        yield _broken("s3", str(silent), remedy)
        return
    yield _ok("s3", f"{where} answers")
    yield from _check_clock("clock", f"S3 at {where}", _server_time(answer))


def _server_time(answer: dict[str, Any]) -> float | None:
    date = answer.get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(date).timestamp() if date else None


def _check_clock(name: str, other: str, their_time: float | None) -> Iterator[Check]:
    """Compare this machine's clock: `maxAgeMs` and AWS signatures depend on it."""
    if their_time is None:
        return
    skew_s = abs(time.time() - their_time)
    found = f"{skew_s:.0f} s off from {other}"
    if skew_s < TOLERABLE_SKEW_S:
        yield _ok(name, found)
    else:
        make = _broken if skew_s > REFUSED_SKEW_S else _warning
        yield make(name, found, "synchronize the clocks with NTP: `maxAgeMs` and AWS signatures depend on them")


def _check_queues(settings: Settings) -> Iterator[Check]:
    from botocore.exceptions import BotoCoreError, ClientError

    from nanogrid.sqs.queues import check_queues, depths

    # A check creates nothing, even if the settings allow a worker to.
    looking = settings.model_copy(update={"create_queues": False})
    for queue in settings.runtime_table.queues():
        label = f"queue {queue}"
        try:
            findings = check_queues([queue], looking)
            for finding in findings:
                problem, _, remedy = finding.problem.rpartition(": ")
                yield _broken(label, problem or remedy, remedy)
            if not findings:
                yield _depth_line(label, depths([queue], looking)[0])
        except (NanoGridError, BotoCoreError, ClientError) as silent:
            yield _broken(label, str(silent), "check the AWS credentials, the region and the SQS endpoint")


def _depth_line(label: str, depth: Any) -> Check:
    found = f"has a dead-letter queue; {depth.visible} waiting, {depth.in_flight} held, {depth.delayed} delayed"
    if depth.dead_letters:
        return _warning(
            label,
            f"{found}; {depth.dead_letters} dead letters",
            "inspect the dead-letter queue: no worker could handle these messages",
        )
    return _ok(label, found)


def _check_redis(settings: Settings) -> Iterator[Check]:
    yield from _check_one_redis("redis results", settings.result_url, "NANOGRID_RESULT_URL", keeps_results=True)
    yield from _check_replicas(settings)
    yield from _check_one_redis("redis monitor", settings.monitor_url, "NANOGRID_MONITOR_URL", keeps_results=False)
    if _place(settings.result_url) == _place(settings.monitor_url):
        yield _broken(
            "redis databases",
            "results and monitoring share one database",
            "give NANOGRID_MONITOR_URL another database number: a flush or scan of one would affect the other",
        )


def _check_one_redis(label: str, url: str, variable: str, *, keeps_results: bool) -> Iterator[Check]:
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S) as client:
            client.ping()
            info: dict[str, Any] = client.info()
    except (redis.RedisError, ValueError) as silent:
        yield _broken(label, f"{_without_password(url)}: {silent}", f"start Redis, or name another in {variable}")
        return
    policy = str(info.get("maxmemory_policy", "noeviction"))
    found = f"{_without_password(url)}: Redis {info['redis_version']}"
    if keeps_results and info.get("maxmemory") and policy != "noeviction":
        remedy = "set maxmemory-policy noeviction: otherwise Redis drops results and claims when its memory is full"
        yield _warning(label, f"{found}, evicts ({policy})", remedy)
    else:
        yield _ok(label, found)


def _check_replicas(settings: Settings) -> Iterator[Check]:
    """Check what a failover of the result Redis would lose. No finding if it has no replica and none is requested."""
    import redis

    label, wanted = "redis replicas", settings.result_replicas
    try:
        with redis.Redis.from_url(
            settings.result_url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S
        ) as client:
            info: dict[str, Any] = client.info("replication")
    except (redis.RedisError, ValueError):
        return  # another check reports this
    if info.get("role") == "slave":
        found = f"{_without_password(settings.result_url)} is itself a replica, and accepts no writes"
        yield _broken(label, found, "name the primary, or an address that leads to it, in NANOGRID_RESULT_URL")
        return
    there = sum(info[f"slave{number}"]["state"] == "online" for number in range(int(info.get("connected_slaves", 0))))
    answer = f"{there} replica answers" if there == 1 else f"{there} replicas answer"
    waits = f"each result waits until {wanted} {'has' if wanted == 1 else 'have'} it"
    if wanted and there < wanted:
        found = f"{answer}, and {waits}"
        yield _broken(
            label, found, "fix the replicas, or lower NANOGRID_RESULT_REPLICAS: until then no message is deleted"
        )
    elif wanted:
        yield _ok(label, f"{answer}; {waits}")
    elif there and not info.get("min_slaves_good_slaves"):
        remedy = "set NANOGRID_RESULT_REPLICAS=1: otherwise a failover loses results that the replica does not have yet"
        yield _warning(label, f"{answer}, and no result waits for it", remedy)
    elif there:
        yield _ok(label, f"{answer}; Redis accepts writes while enough of them keep up (min-replicas-to-write)")


def _place(url: str) -> tuple[Any, ...]:
    """Host, port and database (or socket) of a Redis URL, with the defaults filled in."""
    from redis.connection import parse_url

    options = parse_url(url)  # type: ignore[no-untyped-call]
    server = options.get("path") or (options.get("host", "localhost"), options.get("port", 6379))
    return (server, options.get("db", 0))


def _without_password(url: str) -> str:
    from kombu.utils.url import maybe_sanitize_url

    return str(maybe_sanitize_url(url))


def _check_workers(settings: Settings) -> Iterator[Check]:
    from kombu.exceptions import OperationalError

    from nanogrid.celery import make_app

    try:
        with make_app(settings) as app:
            replies = app.control.ping(timeout=1.0) or []
    except (OperationalError, OSError) as silent:
        yield _broken("workers", f"cannot be reached: {silent}", "fix the monitoring Redis first")
        return
    names = sorted(name for reply in replies for name in reply)
    if names:
        yield _ok("workers", ", ".join(names))
    else:
        yield _warning("workers", "none answers", "start one: celery -A nanogrid worker -Q python,cpp")


def _check_health(settings: Settings) -> Iterator[Check]:
    """Check what the workers of this data folder report about themselves, if they have an HTTP port."""
    from nanogrid.metrics.address import published

    for _, address in published(settings.data_dir):
        try:
            health, worker = _page_of(f"{address.url}/healthz"), _page_of(f"{address.url}/status")["worker"]
        except (OSError, ValueError) as silent:
            yield _broken(
                "health", f"{address.url}: {silent}", "check the worker's log: its main process may be busy or stopped"
            )
            continue
        failing = [f"{name}: {check['found']}" for name, check in health["checks"].items() if not check["ok"]]
        if failing:
            remedy = "the worker itself reports this: fix what it names"
            yield _broken("health", f"{address.url}/healthz: {'; '.join(failing)}", remedy)
        else:
            yield _ok("health", f"{address.url}: {', '.join(health['checks'])}; /metrics is available, too")
        if worker["stalled"]:
            remedy = "the worker recovers by itself, or exits to be restarted; its log says what it did"
            yield _broken("ready", f"{address.url}/readyz: {worker['reason']}", remedy)
        elif not worker["ready"]:
            yield _warning("ready", f"{address.url}/readyz: {worker['reason']}", "wait if it is starting or draining")


def _page_of(url: str) -> dict[str, Any]:
    """The JSON of a worker's page, also for an error status. Raises OSError and ValueError."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310  # an address of a NanoGrid worker
            page: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            page = json.load(refusal)
    return page


def _check_disk(settings: Settings) -> Iterator[Check]:
    folder = settings.data_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        yield _broken("disk", f"{existing} cannot be written", "run as its owner, or name another in NANOGRID_DATA_DIR")
        return
    free_mb = shutil.disk_usage(existing).free // _MIB
    found = f"{folder}: {free_mb / 1024:.1f} GiB free"
    one_function_mb = settings.archive_limit_mb + settings.unpacked_limit_mb
    if free_mb < one_function_mb:
        remedy = "free some space, or name another folder in NANOGRID_DATA_DIR"
        yield _broken("disk", f"{found}, less than the largest function needs ({one_function_mb} MiB)", remedy)
    elif free_mb + _used_mb(settings) < settings.code_cache_mb:
        remedy = "free some space, or lower NANOGRID_CODE_CACHE_MB"
        yield _warning("disk", f"{found}, less than the code cache may take ({settings.code_cache_mb} MiB)", remedy)
    else:
        yield _ok("disk", found)


def _used_mb(settings: Settings) -> int:
    """The size of the data folder, which counts as room for the code cache."""
    folder = settings.data_dir
    if not folder.exists():
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) // _MIB


def _check_cgroups(settings: Settings) -> Iterator[Check]:
    from nanogrid.execution.container.cgroup import detect

    hierarchy = detect(settings)
    if hierarchy.version is None or not hierarchy.readable:
        remedy = "mount the host's cgroup tree where the worker runs, and name it in NANOGRID_CGROUP_DIR"
        found = f"{settings.cgroup_dir} is not readable, so peak memory and CPU time are unknown"
        yield _warning("cgroups", found, remedy)
    else:
        yield _ok("cgroups", f"version {hierarchy.version}, readable at {settings.cgroup_dir}")
