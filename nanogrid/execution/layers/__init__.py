"""Layers: what is built from a function's code once, for all its runs.

    requirements   what requirements.txt asks for (lines: each line)
    recipes        code → builds, each with an id
    build          one build in one container (inside/: the programs in it)
    build_claims   one builder per layer; removes orphans
    build_log      the output of a build
    failed_builds  builds that failed recently
    explain        why a build failed, in a sentence

The rule: a layer is found by the hash of everything that decides its content, is built at most once, and never changes.

    <data_dir>/layers/entries/   built layers (see nanogrid.execution.code.cache, which also evicts them)
    <data_dir>/layers/logs/      the log of each build     failures/  failed builds      builds/  locks of builders
"""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nanogrid.errors import CodeCorruptError, CodeError, CodeUnavailableError
from nanogrid.execution.code import Code
from nanogrid.execution.code.archive import unpack
from nanogrid.execution.code.cache import Cache, CacheEntry, CacheUsage
from nanogrid.execution.code.limits import ArchiveLimits
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.hardening import MIB
from nanogrid.execution.layers import explain
from nanogrid.execution.layers.build import Build, Recipe, Verdict
from nanogrid.execution.layers.build_claims import forget_dead, only_builder, owner_of_build, remove_orphans
from nanogrid.execution.layers.build_log import BuildLog, prune
from nanogrid.execution.layers.failed_builds import FailedBuilds
from nanogrid.execution.layers.recipes import Needs, needs, packages_recipe, tree_recipe
from nanogrid.runtimes import Runtime
from nanogrid.settings import Settings
from nanogrid.telemetry import counters
from nanogrid.telemetry.events import count

__all__ = ["LayerStore", "LayeredCode"]

log = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
BUILDS = "builds"
LOGS_KEPT = 200
CODES_KNOWN = 10_000
IMAGE_KNOWN_S = 30.0
"""How long the id of an image's name is cached before the engine is asked again."""


@dataclass(frozen=True)
class LayeredCode:
    """Code with its layers, ready to run.

    `tree` is copied to `/workspace`: it is the code itself, or what its `build.sh` made of it. `packages` are Python packages
    for `PYTHONPATH`. `key` identifies the content of both. `build_ms` is the time spent on building, or on waiting for
    another builder; None if nothing was built.
    """

    tree: Path
    packages: Path | None
    key: str
    build_ms: float | None


class LayerStore:
    """All layers of this host. Thread-safe; any number of processes may use the same data folder, also after a fork.

    All mutable state: two dicts that cache facts about code and images.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._folder = settings.data_dir / "layers"
        self._cache = Cache(self._folder, settings.layer_cache_mb * MIB)
        self._failures = FailedBuilds(self._folder / "failures", settings.layer_failure_ttl_s, settings.build_network)
        # The tar is not compressed, so the ratio does not matter.
        self._limits = ArchiveLimits(settings.layer_limit_mb * MIB, settings.layer_files_limit, ratio=1)
        self._needs: dict[tuple[str, bool], Needs] = {}
        self._image_ids: dict[str, tuple[str, float]] = {}

    def prepare(self, code: Code, runtime: Runtime) -> AbstractContextManager[LayeredCode]:
        """The code with its layers, kept on disk for the length of the `with` block.

        Builds the missing layers, or waits for another builder. Raises LayerBuildError (final: a fault of the code),
        CodeUnavailableError or ContainerError (retryable).
        """
        return self._prepare(code, runtime)

    def usage(self) -> CacheUsage:
        """What the cache of layers holds."""
        return self._cache.usage()

    @contextmanager
    def _prepare(self, code: Code, runtime: Runtime) -> Iterator[LayeredCode]:
        wanted = self._wanted(code, runtime)
        if not wanted:
            yield LayeredCode(code.path, None, code.sha256, None)
            return
        try:
            with ExitStack() as held:
                yield self._with_layers(wanted, code, runtime, held)
        finally:
            self._trim()

    def _wanted(self, code: Code, runtime: Runtime) -> Needs:
        known_as = (code.sha256, runtime.supports_handler)
        found = self._needs.get(known_as)
        if found is None:
            found = needs(code.path, runtime, self._settings)
            if len(self._needs) >= CODES_KNOWN:
                self._needs.clear()
            self._needs[known_as] = found
        return found

    def _with_layers(self, wanted: Needs, code: Code, runtime: Runtime, held: ExitStack) -> LayeredCode:
        image_id = self._image_id(runtime.image)
        tree, packages, packages_id, tree_id = code.path, None, "", ""
        built_ms: list[float] = []
        if wanted.requirements is not None:
            recipe = packages_recipe(wanted.requirements, code, image_id, runtime, self._settings)
            packages_id = recipe.layer_id
            packages = self._layer(recipe, held, built_ms, index_is_ours=wanted.requirements.default_index)
        if wanted.script:
            recipe = tree_recipe(code, (packages_id, packages) if packages else None, image_id, self._settings)
            tree_id = recipe.layer_id
            tree = self._layer(recipe, held, built_ms, index_is_ours=False)
        key = hashlib.sha256("\0".join((code.sha256, packages_id, tree_id)).encode()).hexdigest()
        return LayeredCode(tree, packages, key, sum(built_ms) if built_ms else None)

    def _image_id(self, image: str) -> str:
        known, known_until = self._image_ids.get(image, ("", 0.0))
        if time.monotonic() < known_until:
            return known
        found = self._engine.ensure_image(image)
        self._image_ids[image] = (found, time.monotonic() + IMAGE_KNOWN_S)
        return found

    def _layer(self, recipe: Recipe, held: ExitStack, built_ms: list[float], *, index_is_ours: bool) -> Path:
        """The folder of a layer, locked against eviction until `held` is closed."""
        with self._local_trouble(recipe):
            entry = self._cache.use(recipe.layer_id)
            count(counters.LAYER_LOOKUP, counters.MISS if entry is None else counters.HIT)
            if entry is None:
                self._failures.check(recipe.layer_id)
                started = time.perf_counter()
                entry = self._built(recipe, index_is_ours=index_is_ours)
                built_ms.append((time.perf_counter() - started) * 1000)
        held.callback(entry.release)
        return entry.path

    def _built(self, recipe: Recipe, *, index_is_ours: bool) -> CacheEntry:
        """Build a layer, unless another builder does meanwhile."""
        with only_builder(self._folder / BUILDS, recipe.layer_id, self._log_path(recipe)):
            entry = self._cache.use(recipe.layer_id)
            if entry is not None:
                return entry
            self._failures.check(recipe.layer_id)
            began = time.monotonic()
            try:
                entry = self._build(recipe, index_is_ours=index_is_ours)
            except CodeError as error:
                count(counters.LAYER_BUILD, counters.FAILED, time.monotonic() - began)
                log.info("layer %s: %s", recipe.layer_id[:12], str(error).partition("\n")[0])
                self._failures.remember(recipe.layer_id, error)
                raise
            count(counters.LAYER_BUILD, counters.BUILT, time.monotonic() - began)
            self._failures.forget(recipe.layer_id)
            return entry

    def _build(self, recipe: Recipe, *, index_is_ours: bool) -> CacheEntry:
        self._cache.sweep()
        remove_orphans(self._settings.data_dir, self._engine, recipe.layer_id)
        forget_dead(self._folder / BUILDS, self._settings.data_dir)
        prune(self._folder / "logs", LOGS_KEPT)
        log.info("layer %s: building it from %s, image %s", recipe.layer_id[:12], recipe.source, recipe.image[:19])
        started = time.monotonic()
        with ExitStack() as using:
            labels = using.enter_context(owner_of_build(self._settings.data_dir, recipe.layer_id))
            workplace = using.enter_context(self._cache.workplace())
            build_log = BuildLog(self._log_path(recipe))
            using.callback(build_log.close)
            build = Build(recipe, workplace, build_log, self._engine, self._settings)
            verdict = build.run(labels)
            if verdict is not Verdict.BUILT:
                raise explain.failure(verdict, recipe, build_log, self._settings, index_is_ours=index_is_ours)
            entry = self._publish(build.tar, workplace / "draft", recipe, build_log)
        log.info(
            "layer %s: built in %.1f s, %d files and folders, %d bytes",
            recipe.layer_id[:12], time.monotonic() - started, entry.unpacked.entries, entry.unpacked.size_bytes,
        )  # fmt: skip
        return entry

    def _publish(self, tar: Path, draft: Path, recipe: Recipe, build_log: BuildLog) -> CacheEntry:
        (draft / "tree").mkdir(mode=0o700, parents=True)
        try:
            unpacked = unpack(tar, draft / "tree", self._limits)
        except CodeCorruptError as error:
            raise explain.unusable(str(error), recipe, build_log) from error
        tar.unlink()
        return self._cache.publish(draft, recipe.layer_id, unpacked)

    def _log_path(self, recipe: Recipe) -> Path:
        return self._folder / "logs" / f"{recipe.layer_id}.log"

    @contextmanager
    def _local_trouble(self, recipe: Recipe) -> Iterator[None]:
        """Turn errors of the local disk into CodeUnavailableError. If the disk is full, evict idle layers."""
        try:
            yield
        except OSError as error:
            if error.errno in DISK_FULL:
                self._make_room()
                problem = "its disk is full: free some space, or lower NANOGRID_LAYER_CACHE_MB"
            else:
                problem = f"it cannot be used ({error}): check its owner, its permissions and the disk"
            raise CodeUnavailableError(
                f"the layer of {recipe.source} could not be stored in {self._folder}, {problem}"
            ) from error

    def _make_room(self) -> None:
        try:
            self._cache.empty()
        except OSError:
            log.warning("Could not evict layers from a full disk.", exc_info=True)

    def _trim(self) -> None:
        try:
            self._cache.trim()
        except OSError:
            # The run is over and has its result; the next build evicts what remains.
            log.warning("Could not trim the layers.", exc_info=True)
