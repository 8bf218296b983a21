"""The code cache: right content, within its limit, never taking away what is in use."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchmarks.children import in_child
from nanogrid.execution.code import cache as cache_module
from nanogrid.execution.code import locks
from nanogrid.execution.code.cache import Cache, CacheEntry, Occupied, source_name
from nanogrid.execution.code.locks import try_exclusive, try_shared, wait_for_file
from nanogrid.execution.code.s3_source import ObjectVersion
from nanogrid.execution.code.tree import BLOCK_BYTES, TreeSize, remove_tree
from tests.support.interleaved import before_every_line

T = TypeVar("T")

SOME = ObjectVersion("etag", "")


def digest(name: str) -> str:
    """A digest to stand for some object."""
    return hashlib.sha256(name.encode()).hexdigest()


def publish(cache: Cache, name: str, blocks: int = 1) -> CacheEntry:
    """Put code of this name and size into the cache, and use it."""
    with cache.workplace() as workplace:
        draft = workplace / "draft"
        (draft / "tree").mkdir(parents=True)
        (draft / "tree" / "name").write_text(name)
        (draft / "tree").chmod(0o555)
        return cache.publish(draft, digest(name), TreeSize(len(name), blocks * BLOCK_BYTES, 1))


@pytest.fixture
def cache(data_dir: Path) -> Cache:
    """An empty cache with room for 10 blocks."""
    return Cache(data_dir / "code", 10 * BLOCK_BYTES)


def entered(context: AbstractContextManager[T]) -> tuple[ExitStack, T]:
    """A context that was entered, and what leaves it."""
    held = ExitStack()
    return held, held.enter_context(context)


def kept(cache: Cache, *names: str) -> list[str]:
    """Which of these are in the cache. Does not count as a use."""
    return [name for name in names if (cache._entries / digest(name)).exists()]


class CacheMachine(RuleBasedStateMachine):
    """Publish, use, release and evict in any order, against a model of what must hold."""

    limit_blocks = 10

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cache = Cache(self.folder / "code", self.limit_blocks * BLOCK_BYTES)
        self.blocks: dict[str, int] = {}
        self.used: list[tuple[str, CacheEntry]] = []
        self.order: list[str] = []

    def teardown(self) -> None:
        for _, entry in self.used:
            entry.release()
        remove_tree(self.folder)

    names = st.sampled_from("abcdefgh")

    def present(self) -> list[str]:
        return [name for name in self.blocks if (self.cache._entries / digest(name)).exists()]

    def in_use(self) -> set[str]:
        return {name for name, _ in self.used}

    def touch(self, name: str) -> None:
        self.order = [other for other in self.order if other != name] + [name]

    def expect_evictions(self, before: list[str], coming: int) -> None:
        """What went must be the least recently used idle ones, and no more than needed."""
        total = sum(self.blocks[name] for name in before) + coming
        expected = set()
        for name in self.order:
            if total <= self.limit_blocks:
                break
            if name in before and name not in self.in_use():
                expected.add(name)
                total -= self.blocks[name]
        assert set(before) - set(self.present()) == expected

    @rule(name=names, blocks=st.integers(1, 6), keep=st.sampled_from([False, False, True]))
    def fetch(self, name: str, blocks: int, keep: bool) -> None:
        before = self.present()
        fresh = name not in before
        if fresh:
            self.blocks[name] = blocks
        entry = publish(self.cache, name, self.blocks[name])
        assert (entry.path / "name").read_text() == name
        self.expect_evictions([other for other in before if other != name or not fresh], blocks if fresh else 0)
        self.touch(name)
        self.used.append((name, entry))
        if not keep:
            self.release(len(self.used) - 1)

    @rule(name=names, keep=st.sampled_from([False, False, True]))
    def use(self, name: str, keep: bool) -> None:
        entry = self.cache.use(digest(name))
        assert (entry is not None) == (name in self.present())
        if entry is not None:
            assert (entry.path / "name").read_text() == name
            self.touch(name)
            self.used.append((name, entry))
            if not keep:
                self.release(len(self.used) - 1)

    @precondition(lambda self: self.used)
    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        _, entry = self.used.pop(which % len(self.used))
        entry.release()
        before = self.present()
        self.cache.trim()
        self.expect_evictions(before, 0)

    @rule()
    def sweep(self) -> None:
        self.cache.sweep()

    @rule()
    def empty(self) -> None:
        self.cache.empty()
        assert set(self.present()) == self.in_use()

    @invariant()
    def what_is_in_use_stays(self) -> None:
        for name, entry in self.used:
            assert (entry.path / "name").read_text() == name

    @invariant()
    def the_limit_holds_but_for_what_is_in_use(self) -> None:
        usage = self.cache.usage()
        assert usage.entries == len(self.present())
        assert usage.disk_bytes == sum(self.blocks[name] for name in self.present()) * BLOCK_BYTES
        assert usage.disk_bytes <= usage.limit_bytes or set(self.present()) == self.in_use()

    @invariant()
    def nothing_unfinished_is_left(self) -> None:
        workplaces = self.cache._workplaces
        assert not workplaces.exists() or list(workplaces.iterdir()) == []


TestCacheInAnyOrder = CacheMachine.TestCase
TestCacheInAnyOrder.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestCacheInAnyOrder.__doc__ = "The cache holds its promises whatever the order of its uses."


def test_a_record_is_what_was_remembered_last(cache: Cache) -> None:
    """A source's record holds the version and digest of the last fetch, and each fetch makes a new one."""
    assert cache.record("source") is None
    cache.remember("source", ObjectVersion('"1"', "v"), digest("a"))
    first = cache.record("source")
    cache.remember("source", ObjectVersion('"1"', "v"), digest("a"))
    second = cache.record("source")
    assert first
    assert second
    assert (second.version, second.sha256) == (ObjectVersion('"1"', "v"), digest("a"))
    assert first != second


def test_a_record_that_a_power_loss_emptied_is_no_record(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """An unreadable record costs one download and a line in the log."""
    cache.remember("source", SOME, digest("a"))
    (cache._index / "source.json").write_text("")
    assert cache.record("source") is None
    assert "cannot be read" in caplog.text


def test_records_of_evicted_code_are_forgotten(cache: Cache) -> None:
    """The index does not grow with code that is long gone."""
    for name in ("old", "new"):
        publish(cache, name, blocks=6).release()
        cache.remember(f"source of {name}", SOME, digest(name))
    publish(cache, "newer", blocks=4).release()
    assert kept(cache, "old", "new", "newer") == ["new", "newer"]
    assert cache.record("source of new")
    publish(cache, "newest", blocks=9).release()
    assert list(cache._index.iterdir()) == []


def test_a_use_puts_off_eviction(cache: Cache) -> None:
    """What was used last is evicted last, however long ago it was published."""
    for name in "abc":
        publish(cache, name, blocks=3).release()
    used = cache.use(digest("a"))
    assert used
    used.release()
    publish(cache, "d", blocks=3).release()
    assert kept(cache, *"abcd") == ["a", "c", "d"]


def publish_all(cache: Cache, names: Iterable[str]) -> None:
    """Put code of these names into the cache, one block each."""
    for name in names:
        publish(cache, name).release()


def entries_read_by(work: Callable[[], object]) -> int:
    """How many entries' descriptions a call reads, in a forked child: what a process audits, it audits for ever."""

    def audited() -> int:
        names: list[str] = []
        sys.addaudithook(lambda event, args: names.append(str(args[0])) if event == "open" else None)
        work()
        return sum(name.endswith("/entry.json") and "/entries/" in name for name in names)

    return in_child(audited)


@pytest.mark.parametrize("known", [10, 60])
def test_publishing_costs_the_same_however_much_is_cached(data_dir: Path, known: int) -> None:
    """A fetch reads no other code's description while there is room, and a full cache is counted once for many fetches."""
    cache = Cache(data_dir / "code", 60 * BLOCK_BYTES)
    for number in range(known - 1):
        publish(cache, f"old {number}").release()
    assert entries_read_by(lambda: publish(cache, "new").release()) == 0
    if known == 60:
        counted = entries_read_by(lambda: publish_all(cache, [f"newer {number}" for number in range(4)]))
        assert counted == known  # once: then there is room for three more
        assert cache.usage().entries == 60


@pytest.mark.parametrize(
    "note", [None, "", "{}", '{"disk_bytes": 0, "counted_at": 0}', '{"disk_bytes": 0, "counted_at": "x"}']
)
def test_a_note_that_is_gone_broken_or_old_is_not_relied_on(cache: Cache, note: str | None) -> None:
    """The limit holds whatever happened to the note of what is occupied."""
    for name in "abcdefghij":
        publish(cache, name).release()
    if note is None:
        cache._occupied.unlink()
    else:
        cache._occupied.write_text(note)
    publish(cache, "k").release()
    assert kept(cache, *"abcdefghijk") == list("bcdefghijk")


def test_a_cache_on_a_full_disk_can_be_emptied(cache: Cache) -> None:
    """Emptying it makes room, so it must not need any."""
    publish_all(cache, "abc")

    def empty_where_nothing_can_be_written() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        cache.empty()

    in_child(empty_where_nothing_can_be_written)
    assert cache.usage().entries == 0
    assert list(cache._workplaces.iterdir()) == []
    publish_all(cache, "abcdefghijk")
    assert cache.usage().entries == 10


def test_a_note_that_is_too_high_costs_a_count_and_no_code(cache: Cache) -> None:
    """So it is after a process was killed before its entry appeared."""
    publish(cache, "a").release()
    cache._note(Occupied(100 * BLOCK_BYTES, time.time()))
    publish(cache, "b").release()
    assert kept(cache, "a", "b") == ["a", "b"]
    assert not cache._overfull.exists()


def test_names_of_sources_differ() -> None:
    """Endpoint, bucket and key together name a source, and do not run into each other."""
    names = {source_name(*parts) for parts in [("", "a", "b/c"), ("", "a/b", "c"), ("a", "", "b/c"), ("x", "a", "b/c")]}
    assert len(names) == 4


def test_code_in_use_in_another_cache_object_is_not_evicted(cache: Cache, data_dir: Path) -> None:
    """Use is known to all who open the same folder, not only to the object that began it."""
    held = publish(cache, "held", blocks=6)
    publish(Cache(data_dir / "code", 10 * BLOCK_BYTES), "other", blocks=6).release()
    assert (held.path / "name").read_text() == "held"
    assert kept(cache, "held", "other") == ["held", "other"]
    held.release()
    cache.trim()
    assert kept(cache, "held", "other") == ["other"]


def test_a_workplace_of_a_dead_process_is_swept_and_a_living_one_is_not(cache: Cache) -> None:
    """What nobody holds a lock on is removed; what somebody works in stays."""
    with cache.workplace() as alive:
        dead = cache._workplaces / "dead"
        (dead / "tree" / "sealed").mkdir(parents=True)
        (dead / "tree" / "sealed" / "file").touch(0o444)
        (dead / "tree" / "sealed").chmod(0o555)
        (cache._locks / "source of the dead").touch()
        with cache.fetching("source of the living"):
            cache.sweep()
            assert sorted(path.name for path in cache._locks.iterdir()) == ["source of the living"]
        assert list(cache._workplaces.iterdir()) == [alive]
    assert list(cache._workplaces.iterdir()) == []


def test_nothing_that_is_begun_is_taken_for_a_dead_processs(cache: Cache, data_dir: Path) -> None:
    """Another process may sweep before any line: a new workplace, its publishing and a fetch's lock stay."""
    other = Cache(data_dir / "code", 10 * BLOCK_BYTES)
    for held, path in before_every_line(lambda: entered(cache.workplace()), other.sweep, cache_module, locks):
        with held:
            assert path.is_dir()
            assert try_exclusive(path) is None
    for held, _ in before_every_line(lambda: entered(cache.fetching("source")), other.sweep, cache_module, locks):
        with held:
            assert (cache._locks / "source").exists()
            assert try_exclusive(cache._locks / "source") is None
    for entry in before_every_line(lambda: publish(cache, "a"), other.sweep, cache_module, locks):
        assert (entry.path / "name").read_text() == "a"
        entry.release()
        cache.empty()


def test_code_that_is_taken_into_use_is_there_or_is_told_to_be_gone(cache: Cache, data_dir: Path) -> None:
    """Another process may evict before any line of taking it into use."""
    other = Cache(data_dir / "code", 10 * BLOCK_BYTES)
    publish(cache, "a").release()
    found = []
    for entry in before_every_line(lambda: cache.use(digest("a")), other.empty, cache_module, locks):
        found.append(entry is not None)
        if entry is None:
            publish(cache, "a").release()
            continue
        assert (entry.path / "name").read_text() == "a"
        entry.release()
    assert set(found) == {True, False}


def test_one_fetch_at_a_time_for_each_source(cache: Cache) -> None:
    """Threads that fetch the same source take turns, and leave no lock file."""
    inside: list[int] = []
    most = 0

    def fetch(number: int) -> None:
        nonlocal most
        with cache.fetching("source"):
            inside.append(number)
            most = max(most, len(inside))
            cache.remember("source", SOME, digest("a"))
            inside.remove(number)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(fetch, range(60)))
    assert most == 1
    assert list(cache._locks.iterdir()) == []


def test_threads_that_publish_and_use_the_same_code(cache: Cache) -> None:
    """Publishing, using and evicting at once from many threads always gives the right content, and keeps the limit."""

    def work(number: int) -> None:
        name = "abcde"[number % 5]
        entry = cache.use(digest(name)) or publish(cache, name, blocks=4)
        assert (entry.path / "name").read_text() == name
        entry.release()
        cache.trim()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(150)))
    usage = cache.usage()
    assert usage.disk_bytes <= usage.limit_bytes
    assert list(cache._workplaces.iterdir()) == []


def test_the_second_to_publish_gets_the_first_ones_entry(cache: Cache) -> None:
    """Two processes that unpacked the same code end up with one entry."""
    first, second = publish(cache, "same"), publish(cache, "same")
    assert first.path.samefile(second.path)
    assert cache.usage().entries == 1
    first.release()
    second.release()


def test_a_cache_without_a_folder_is_empty(tmp_path: Path) -> None:
    """Asking for what is not there makes nothing."""
    cache = Cache(tmp_path / "nothing" / "code", 1)
    assert cache.usage().entries == 0
    assert cache.use(digest("a")) is None
    cache.trim()
    assert list(tmp_path.iterdir()) == []


def test_other_users_see_nothing(cache: Cache) -> None:
    """The cache's folder is closed to other users of the host: code may hold secrets."""
    publish(cache, "a").release()
    assert cache._folder.stat().st_mode & 0o777 == 0o700


def test_a_lock_is_exclusive_or_shared(tmp_path: Path) -> None:
    """Shared locks go together, an exclusive one with none, and release makes room."""
    path = tmp_path / "lock"
    path.touch()
    first, second = try_shared(path), try_shared(path)
    assert first
    assert second
    assert try_exclusive(path) is None
    first.release()
    first.release()
    second.release()
    with wait_for_file(path):
        assert try_shared(path) is None


def test_a_lock_on_what_was_replaced_is_no_lock(tmp_path: Path) -> None:
    """A folder that was taken away and made anew while its lock was waited for is locked anew."""
    path = tmp_path / "folder"
    path.mkdir()
    old = try_exclusive(path)
    assert old
    shutil.rmtree(path)
    assert try_shared(path) is None
    path.mkdir()
    new = try_exclusive(path)
    assert new
    assert not os.path.samestat(os.fstat(old._descriptor), os.fstat(new._descriptor))
    old.release()
    new.release()


def test_a_forgotten_lock_ends_with_its_last_reference(tmp_path: Path) -> None:
    """A holder that was interrupted before it could release does not hold for ever."""
    path = tmp_path / "lock"
    path.touch()
    lock = try_exclusive(path)
    assert lock
    del lock
    assert try_exclusive(path)
