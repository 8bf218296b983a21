"""From an S3 object to a ready folder, over the real S3 protocol and the real disk."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from types_boto3_s3 import S3Client

from nanogrid.errors import CodeCorruptError, CodeNotFoundError, CodeUnavailableError, ConfigurationError
from nanogrid.execution.code import ASKED_LATELY_S, CLOCKS_DIFFER_S, Code, CodeStore
from nanogrid.settings import Settings
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.services import aws_client, free_port, wait_until

KEY = "functions/hello world.zip"


def packed(files: dict[str, bytes]) -> bytes:
    """A zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def hello(text: str = "hello") -> bytes:
    """A zip of a small python function."""
    return packed({"main.py": f"print({text!r})".encode()})


@pytest.fixture
def s3(aws_url: str) -> Iterator[S3Client]:
    """A client for the store behind everything."""
    client = aws_client("s3", aws_url)
    yield client
    client.close()


@pytest.fixture
def bucket(s3: S3Client, unique: str) -> str:
    """An empty bucket."""
    s3.create_bucket(Bucket=unique)
    return unique


@pytest.fixture
def faulty(aws_url: str) -> Iterator[FaultyS3]:
    """S3 behind a server that counts requests and makes faults."""
    with faulty_s3(aws_url) as server:
        yield server


@pytest.fixture
def settings(faulty: FaultyS3, data_dir: Path) -> Settings:
    """Settings of one worker host."""
    return Settings(data_dir=data_dir, s3_endpoint_url=faulty.url)


@pytest.fixture
def store(settings: Settings) -> Iterator[CodeStore]:
    """The store under test, which must leave nothing unfinished behind."""
    yield CodeStore(settings)
    assert litter(settings.data_dir) == []


def litter(data_dir: Path) -> list[Path]:
    """What is left of unfinished work."""
    code = data_dir / "code"
    left = [*(code / "workplaces").glob("*"), *(code / "locks").glob("*")]
    return [path for path in left if path.name != "publish"]


def fetch(
    store: CodeStore, bucket: str, sha256: str | None = None, key: str = KEY, sent_at: float | None = None
) -> tuple[Code, bytes]:
    """One checkout, and the main.py that it gave."""
    with store.checkout(bucket, key, sha256=sha256, sent_at=sent_at, required="main.py") as code:
        return code, (code.path / "main.py").read_bytes()


def test_a_first_checkout_downloads_and_unpacks(store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3) -> None:
    """The first checkout costs one GET and gives the object's content, its digest and how long each phase took."""
    body = hello()
    s3.put_object(Bucket=bucket, Key=KEY, Body=body)
    code, main = fetch(store, bucket)
    assert main == b"print('hello')"
    assert code.sha256 == hashlib.sha256(body).hexdigest()
    assert (code.cached, code.size_bytes) == (False, len(main))
    assert code.fetch_ms > 0
    assert code.unpack_ms > 0
    assert faulty.methods() == ["GET"]


def test_an_unchanged_object_costs_one_request_without_content(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """A second checkout asks S3 once, moves no content and unpacks nothing."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    first, _ = fetch(store, bucket)
    faulty.forget()
    second, _ = fetch(store, bucket)
    assert faulty.methods() == ["HEAD"]
    assert second.cached
    assert second.unpack_ms == 0
    assert second.path == first.path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The store's clock, which stands still unless a test sets it."""
    here = SimpleNamespace(now=1_700_000_000.0, perf_counter=time.perf_counter)
    here.time = lambda: here.now
    monkeypatch.setattr("nanogrid.execution.code.time", here)
    return here


def test_requests_that_wait_share_an_answer_of_s3(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3, clock: SimpleNamespace
) -> None:
    """S3 was asked less than a second ago, and more than a second after the request was sent: nobody could expect newer code."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("old"))
    fetch(store, bucket)
    faulty.forget()
    asked_at = clock.now
    fetch(store, bucket, sent_at=asked_at)
    clock.now = asked_at + ASKED_LATELY_S
    for _ in range(2):
        fetch(store, bucket, sent_at=asked_at - CLOCKS_DIFFER_S)
    assert faulty.methods() == ["HEAD"]
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("new"))
    assert fetch(store, bucket, sent_at=asked_at)[1] == b"print('new')"
    assert fetch(store, bucket, sent_at=asked_at)[1] == b"print('new')"
    assert faulty.methods() == ["HEAD", "HEAD", "GET"]


@pytest.mark.parametrize(
    ("sent_after_s", "asked_ago_s"),
    [(-CLOCKS_DIFFER_S / 2, 0.0), (0.1, 0.2), (None, 0.0), (-60.0, ASKED_LATELY_S + 0.01), (-60.0, -0.01)],
)
def test_all_others_ask(
    sent_after_s: float | None,
    asked_ago_s: float,
    store: CodeStore,
    s3: S3Client,
    bucket: str,
    faulty: FaultyS3,
    clock: SimpleNamespace,
) -> None:
    """A request that was sent later or whose age is unknown, and each one a second after the answer, or if the clock was set back."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("old"))
    fetch(store, bucket)
    fetch(store, bucket, sent_at=clock.now)
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("new"))
    sent_at = None if sent_after_s is None else clock.now + sent_after_s
    clock.now += asked_ago_s
    assert fetch(store, bucket, sent_at=sent_at)[1] == b"print('new')"


def test_an_answer_from_before_another_process_fetched_newer_code_is_not_used(
    store: CodeStore, settings: Settings, s3: S3Client, bucket: str, faulty: FaultyS3, clock: SimpleNamespace
) -> None:
    """S3 is asked again, and nothing is downloaded twice."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("old"))
    fetch(store, bucket)
    fetch(store, bucket, sent_at=clock.now)
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("new"))
    fetch(CodeStore(settings), bucket)
    faulty.forget()
    assert fetch(store, bucket, sent_at=clock.now - 60)[1] == b"print('new')"
    assert faulty.methods() == ["HEAD"]


def test_a_changed_object_is_noticed_at_the_next_checkout(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """New content under the same key is what the next checkout gives."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("old"))
    fetch(store, bucket)
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello("new"))
    faulty.forget()
    code, main = fetch(store, bucket)
    assert main == b"print('new')"
    assert not code.cached
    assert faulty.methods() == ["HEAD", "GET"]


def test_a_new_version_with_the_same_content_is_not_unpacked_again(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """In a versioned bucket an upload of the same bytes is fetched once, found to be the same, and known from then on."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    body = hello()
    s3.put_object(Bucket=bucket, Key=KEY, Body=body)
    first, _ = fetch(store, bucket)
    s3.put_object(Bucket=bucket, Key=KEY, Body=body)
    faulty.forget()
    second, _ = fetch(store, bucket)
    third, _ = fetch(store, bucket)
    assert faulty.methods() == ["HEAD", "GET", "HEAD"]
    assert first.path == second.path == third.path
    assert store.usage().entries == 1


def test_a_pinned_digest_that_is_cached_costs_no_request(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """With codeSha256 and the code in the cache, S3 is not asked, and may be away."""
    body = hello()
    s3.put_object(Bucket=bucket, Key=KEY, Body=body)
    sha256 = hashlib.sha256(body).hexdigest()
    fetch(store, bucket, sha256)
    faulty.forget()
    faulty.refusal = (503, "SlowDown")
    code, _ = fetch(store, bucket, sha256)
    assert code.cached
    assert faulty.requests == []


def test_a_pinned_digest_that_does_not_match_is_refused(store: CodeStore, s3: S3Client, bucket: str) -> None:
    """Content other than codeSha256 promises is an error that names both digests, and is not kept."""
    body = hello()
    s3.put_object(Bucket=bucket, Key=KEY, Body=body)
    with pytest.raises(CodeCorruptError) as caught:
        fetch(store, bucket, "0" * 64)
    assert "0" * 64 in str(caught.value)
    assert hashlib.sha256(body).hexdigest() in str(caught.value)
    assert store.usage().entries == 0


def test_a_deleted_object_is_not_run_from_the_cache(store: CodeStore, s3: S3Client, bucket: str) -> None:
    """Code whose object was deleted is gone at the next checkout."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    fetch(store, bucket)
    s3.delete_object(Bucket=bucket, Key=KEY)
    with pytest.raises(CodeNotFoundError, match="no such object"):
        fetch(store, bucket)


def test_a_missing_key_names_bucket_and_key(store: CodeStore, bucket: str) -> None:
    """A key that is not there is a final error that names it and says what to check."""
    with pytest.raises(
        CodeNotFoundError, match=f"s3://{bucket}/nothing.zip .*404 NoSuchKey: .*check the key"
    ) as caught:
        fetch(store, bucket, key="nothing.zip")
    assert not caught.value.retryable


def test_a_missing_bucket_says_so(store: CodeStore, unique: str) -> None:
    """A bucket that is not there is a final error that tells it from a missing key."""
    with pytest.raises(CodeNotFoundError, match=f"s3://{unique}/.*no such bucket"):
        fetch(store, unique)


@pytest.mark.parametrize("name", ["white space", "Ünicode", "a/b/c"])
def test_an_impossible_bucket_name_is_final(store: CodeStore, name: str) -> None:
    """A bucket name that S3 does not allow is a final error."""
    with pytest.raises(CodeNotFoundError, match="check"):
        fetch(store, name)


@pytest.mark.parametrize("cached", [False, True], ids=["first fetch", "cached"])
def test_denied_access_says_which_rights_to_check(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3, cached: bool
) -> None:
    """403 is a final error that names the permissions, whether or not the code is in the cache."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    if cached:
        fetch(store, bucket)
    faulty.refusal = (403, "AccessDenied")
    with pytest.raises(CodeNotFoundError, match="s3:GetObject"):
        fetch(store, bucket)


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequestsException"), (400, "ExpiredToken")],
)
def test_trouble_of_s3_can_be_retried(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3, status: int, code: str
) -> None:
    """Server errors, throttling and expired credentials are retryable, and the next checkout after them works."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    faulty.refusal = (status, code)
    with pytest.raises(CodeUnavailableError, match=f"{status} {code}") as caught:
        fetch(store, bucket)
    assert caught.value.retryable
    faulty.refusal = None
    assert fetch(store, bucket)[1] == b"print('hello')"


def test_a_host_that_is_not_there_can_be_retried(data_dir: Path) -> None:
    """A refused connection is a retryable error that says where to look."""
    store = CodeStore(Settings(data_dir=data_dir, s3_endpoint_url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(CodeUnavailableError, match=r"EndpointConnectionError.*check that this host reaches S3"):
        fetch(store, "bucket")


def test_silence_in_the_middle_of_an_answer_ends_in_time(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An S3 that takes the request and says nothing is a retryable error after the read timeout."""
    monkeypatch.setattr("nanogrid.connections.s3.READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr("nanogrid.connections.s3.ATTEMPTS", 1)
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    faulty.gate.clear()
    with pytest.raises(CodeUnavailableError, match="ReadTimeoutError"):
        fetch(store, bucket)


def test_a_download_cut_in_the_middle_can_be_retried(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """A connection that ends before the object does is retryable, leaves nothing, and the next checkout is whole."""
    content = os.urandom(600_000)
    s3.put_object(Bucket=bucket, Key=KEY, Body=packed({"main.py": content}))
    faulty.cut_at_bytes = 400_000
    with pytest.raises(CodeUnavailableError, match=f"s3://{bucket}/"):
        fetch(store, bucket)
    faulty.cut_at_bytes = None
    assert fetch(store, bucket)[1] == content


def test_missing_credentials_say_so(store: CodeStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the error says that they are missing, and may pass when the host gets them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(CodeUnavailableError, match="NoCredentialsError"):
        fetch(store, bucket)


def test_an_unusable_endpoint_is_a_matter_of_configuration(data_dir: Path) -> None:
    """An endpoint that is no URL is reported as a setting to mend."""
    store = CodeStore(Settings(data_dir=data_dir, s3_endpoint_url="no url"))
    with pytest.raises(ConfigurationError, match="NANOGRID_S3_ENDPOINT_URL"):
        fetch(store, "bucket")


@pytest.mark.parametrize("honest", [True, False], ids=["by its header", "by its bytes"])
def test_an_object_over_the_limit_is_refused(
    settings: Settings, s3: S3Client, bucket: str, honest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object over archive_limit_mb is refused, by its announced length or else by the bytes that come."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=bytes(1024 * 1024 + 1))
    store = CodeStore(settings.model_copy(update={"archive_limit_mb": 1}))
    if not honest:

        def lie(parsed: dict[str, object], **_: object) -> None:
            parsed.pop("ContentLength")

        store._source.client.meta.events.register("after-call.s3.GetObject", lie)
    with pytest.raises(CodeCorruptError, match="over the limit of 1 MiB"):
        fetch(store, bucket)
    assert litter(settings.data_dir) == []


def test_a_missing_required_file_names_what_was_found(store: CodeStore, s3: S3Client, bucket: str) -> None:
    """Code without the runtime's file is refused with the object's address and what is there; another runtime may use it."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    with (
        pytest.raises(CodeCorruptError, match=f"s3://{bucket}/.*run.sh is missing.*'main.py'"),
        store.checkout(bucket, KEY, sha256=None, required="run.sh"),
    ):
        raise AssertionError("the code was handed out")
    assert fetch(store, bucket)[0].cached


def test_an_error_of_the_run_is_passed_on_untouched(store: CodeStore, s3: S3Client, bucket: str) -> None:
    """What is raised inside the `with` block, even a full disk, is not taken for trouble with the code."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    full = OSError(errno.ENOSPC, "of the run")
    with pytest.raises(OSError, match="of the run") as caught, store.checkout(bucket, KEY, required="main.py"):
        raise full
    assert caught.value is full


def test_threads_that_want_the_same_code_download_it_once(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """Eight threads at once cost one GET, and all get the same folder."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    with ThreadPoolExecutor(8) as threads:
        codes = [code for code, _ in threads.map(lambda _: fetch(store, bucket), range(8))]
    assert faulty.methods().count("GET") == 1
    assert len({code.path for code in codes}) == 1
    assert sum(not code.cached for code in codes) == 1


def _fetch_in_child(settings: Settings, bucket: str, start: object, answers: object) -> None:
    store = CodeStore(settings)
    start.wait()  # type: ignore[attr-defined]
    code, main = fetch(store, bucket)
    answers.put((code.cached, main))  # type: ignore[attr-defined]


def test_processes_that_want_the_same_code_download_it_once(
    settings: Settings, store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """Three processes at once cost one GET, and all get whole code."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    spawn = multiprocessing.get_context("spawn")
    start, answers = spawn.Barrier(3), spawn.Queue()
    children = [spawn.Process(target=_fetch_in_child, args=(settings, bucket, start, answers)) for _ in range(3)]
    for child in children:
        child.start()
    got = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert faulty.methods().count("GET") == 1
    assert sorted(cached for cached, _ in got) == [False, True, True]
    assert {main for _, main in got} == {b"print('hello')"}


def test_a_waiting_checkout_takes_over_when_the_fetching_one_fails(
    store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """A failed download of one thread does not fail those that wait behind it."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    faulty.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        refused = threads.submit(fetch, store, bucket, "0" * 64)
        assert faulty.held.wait(30)
        waiting = threads.submit(fetch, store, bucket)
        faulty.gate.set()
        assert isinstance(refused.exception(), CodeCorruptError)
        assert waiting.result()[1] == b"print('hello')"


def test_a_store_made_before_a_fork_works_after_it(
    settings: Settings, store: CodeStore, s3: S3Client, bucket: str, faulty: FaultyS3
) -> None:
    """A forked child makes a client of its own and does not hold on to the parent's code."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    script = textwrap.dedent(
        f"""
        import os
        from nanogrid.execution.code import CodeStore
        from nanogrid.settings import Settings
        store = CodeStore(Settings())
        read, write = os.pipe()
        ready, say_ready = os.pipe()
        with store.checkout({bucket!r}, {KEY!r}, required="main.py"):
            client = store._source.client
            child = os.fork()
            if child == 0:
                with store.checkout({bucket!r}, {KEY!r}, required="main.py") as code:
                    assert code.cached and store._source.client is not client
                os.close(write)
                os.write(say_ready, b"!")
                os.read(read, 1)      # lives on until the parent is through
                os._exit(0)
            os.close(say_ready)
            assert os.read(ready, 1) == b"!"
        store._cache.empty()
        assert store.usage().entries == 0, "the child holds the parent's code"
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        """
    )
    environment = {**os.environ, "NANOGRID_DATA_DIR": str(settings.data_dir), "NANOGRID_S3_ENDPOINT_URL": faulty.url}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


MANY_FILES = {"main.py": b"print('whole')"} | {
    f"data/{number:03}": bytes([number % 256]) * 3000 for number in range(250)
}


def _fetch_for_ever(settings: Settings, bucket: str) -> None:
    store = CodeStore(settings)
    while True:
        fetch(store, bucket)
        store._cache.empty()


def _work_seen(data_dir: Path, files: int) -> bool:
    """Whether a workplace has at least so many files right now."""
    seen = 0
    for _, _, names in os.walk(data_dir / "code" / "workplaces"):
        seen += len(names)
        if seen >= files:
            return True
    return False


def test_a_kill_at_any_point_leaves_no_half_entry(settings: Settings, s3: S3Client, bucket: str) -> None:
    """kill -9 while code is downloaded, unpacked, published or evicted: the next checkout is whole and tidies up."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=packed(MANY_FILES))
    chance = random.Random(20)
    spawn = multiprocessing.get_context("spawn")
    interrupted = 0
    for files in chance.sample(range(1, 240), 3):
        child = spawn.Process(target=_fetch_for_ever, args=(settings, bucket))
        child.start()
        wait_until(partial(_work_seen, settings.data_dir, files), "the child unpacks")
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        interrupted += bool(litter(settings.data_dir))
        store = CodeStore(settings)
        with store.checkout(bucket, KEY, required="main.py") as code:
            assert {
                str(path.relative_to(code.path)): path.read_bytes() for path in code.path.rglob("*") if path.is_file()
            } == MANY_FILES
        store._cache.empty()
        assert store.usage().entries == 0
        fetch(store, bucket)
        assert litter(settings.data_dir) == []
        store._cache.empty()
    assert interrupted, "no kill came in the middle of the work"


def test_a_full_disk_is_retryable_and_leaves_nothing(
    s3: S3Client, bucket: str, faulty: FaultyS3, tmp_path: Path
) -> None:
    """On a full disk the checkout says so, leaves nothing half done, gives up idle code, and then there is room."""
    s3.put_object(Bucket=bucket, Key="idle", Body=packed({"main.py": os.urandom(1_200_000)}))
    s3.put_object(Bucket=bucket, Key="next", Body=packed({"main.py": os.urandom(1_200_000)}))
    script = textwrap.dedent(
        f"""
        import os, sys
        from nanogrid.execution.code import CodeStore
        from nanogrid.errors import CodeUnavailableError
        from nanogrid.settings import Settings
        store = CodeStore(Settings())
        def fetch(key):
            with store.checkout({bucket!r}, key, required="main.py") as code:
                return (code.path / "main.py").stat().st_size
        assert fetch("idle") == 1_200_000
        try:
            fetch("next")
        except CodeUnavailableError as error:
            print(error)
        assert os.listdir(store._cache._workplaces) == [], os.listdir(store._cache._workplaces)
        assert store.usage().entries == 0
        assert fetch("next") == 1_200_000
        """
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f'mount -t tmpfs -o size=3m,mode=0755 none "{disk}" && exec "$0" -c "$1"'
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    environment = {**os.environ, "NANOGRID_DATA_DIR": str(disk), "NANOGRID_S3_ENDPOINT_URL": faulty.url}
    done = subprocess.run(
        [*namespace, "sh", "-c", mounted, sys.executable, script],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"the disk of {disk} is full: free some space" in done.stdout


def test_a_data_folder_that_is_a_file_is_reported(settings: Settings, s3: S3Client, bucket: str) -> None:
    """A data folder that cannot be used is a retryable error that names it."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    (settings.data_dir / "code").write_text("in the way")
    with pytest.raises(CodeUnavailableError, match="cannot be used"):
        fetch(CodeStore(settings), bucket)


def test_the_cache_is_not_overrun_by_code_that_was_in_use(settings: Settings, s3: S3Client, bucket: str) -> None:
    """Code beyond the limit that could not be evicted while it ran goes as soon as it is released."""
    for key in ("a", "b"):
        s3.put_object(Bucket=bucket, Key=key, Body=packed({"main.py": os.urandom(700_000)}))
    store = CodeStore(settings.model_copy(update={"code_cache_mb": 1}))
    with store.checkout(bucket, "a", required="main.py") as a:
        with store.checkout(bucket, "b", required="main.py") as b:
            assert store.usage().entries == 2
            assert a.path.exists()
        assert store.usage().entries == 1
        assert a.path.exists()
        assert not b.path.exists()
    usage = store.usage()
    assert usage.entries == 1
    assert usage.disk_bytes <= usage.limit_bytes


def test_every_download_is_logged_once(
    store: CodeStore, s3: S3Client, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what was fetched, how large, and how long it took; a cached checkout says nothing."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=hello())
    with caplog.at_level(logging.INFO, "nanogrid.execution.code"):
        fetch(store, bucket)
        fetch(store, bucket)
    assert [record.message.split(":")[0] for record in caplog.records] == ["Fetched s3"]
