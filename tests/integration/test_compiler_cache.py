"""The compiler cache in a real container: the same command by the real compiler, on a miss, and on a hit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

import nanogrid.execution.runner.inside.compiler_cache as cache
from tests.support.rig import NEWEST_PYTHON_IMAGE

IMAGE = "nanogrid/gcc:11"
Step = dict[str, Any]
Steps = Callable[..., list[Step]]

HELLO = '#include <iostream>\n#include "inc/h.h"\nint main() { int unused; std::cout << N << std::endl; }\n'
FILES = {
    "main.cpp": HELLO,
    "inc/h.h": "#define N 1\n",
    "a.c": '#include <stdio.h>\nint f(void);\nint main(void) { printf("%d\\n", f()); return 0; }\n',
    "b.c": "int f(void) { return 7; }\n",
    "bad.cpp": "int main() { return x; }\n",
    "clock.c": "const char *when = __DATE__;\nint main(void) { return 0; }\n",
    "Makefile": "prog: a.o b.o\n\tgcc a.o b.o -o prog\n%.o: %.c\n\tgcc -MMD -c $< -o $@\n",
}


def drive() -> None:
    """Runs inside the container, as a program: reads steps as JSON and prints what each did."""
    import json
    import os
    import shutil
    import subprocess
    import sys
    import time
    from pathlib import Path

    kept = Path("/nanogrid/compiler-cache")

    def entries() -> dict[str, tuple[int, int]]:
        found = [path.stat() for path in kept.iterdir() if path.is_file()]
        return {str(status.st_ino): (status.st_mtime_ns, status.st_size) for status in found}

    def tree() -> dict[str, list[Any]]:
        files = [path for path in Path().rglob("*") if path.is_file()]
        return {str(path): [path.stat().st_mode, path.read_bytes().hex()] for path in files}

    def lay_out(files: dict[str, str]) -> None:
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, text in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text)
        # Until the clock that stamps files has moved on: a source may not look as young as the compile.
        laid_out_ns = time.clock_gettime_ns(5)
        while time.clock_gettime_ns(5) == laid_out_ns:
            pass

    def take(step: dict[str, Any]) -> dict[str, Any]:
        lay_out(step["files"])
        before = entries()
        path = os.environ["PATH"] if step["real"] else "/nanogrid/runner/bin:" + os.environ["PATH"]
        environment = {**os.environ, "PATH": path, **step["env"]}
        done = subprocess.run(["bash", "-c", step["line"]], env=environment, capture_output=True, check=False)
        after = entries()
        how = "kept" if set(after) - set(before) else "hit" if after != before else "real"
        out, err = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
        return {"code": done.returncode, "out": out, "err": err, "how": how, "tree": tree()}

    sys.stdout.write(json.dumps([take(step) for step in json.loads(sys.argv[1])]))


PROGRAM = "from typing import Any\n" + inspect.getsource(drive) + "drive()\n"


def _container(client: docker.DockerClient, image: str) -> Any:
    return client.containers.run(
        image,
        ["sleep", "600"],
        detach=True,
        init=True,
        user="65534:65534",
        working_dir="/workspace",
        read_only=True,
        network_mode="none",
        labels={"nanogrid.test": "compiler-cache"},
        volumes={str(Path(cache.__file__).parent): {"bind": "/nanogrid/runner", "mode": "ro"}},
        tmpfs={
            "/tmp": "noexec,mode=1777",
            "/workspace": "exec,mode=0700,uid=65534,gid=65534",
            "/nanogrid/compiler-cache": "mode=0700,uid=65534,gid=65534,size=4m",
        },
    )


def _steps_in(container: Any) -> Steps:
    def steps(*lines: str, env: dict[str, str] | None = None, real: tuple[int, ...] = (), **files: str) -> list[Step]:
        """Run lines, each in a new folder. `real`: the numbers of the lines without the cache in PATH."""
        given = [
            {"line": line, "files": {**FILES, **files}, "env": env or {}, "real": number in real}
            for number, line in enumerate(lines)
        ]
        code, output = container.exec_run(["python3", "-c", PROGRAM, json.dumps(given)], demux=True)
        assert code == 0, output[1]
        return list(json.loads(output[0]))

    return steps


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    """The engine."""
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def container(client: docker.DockerClient) -> Iterator[Any]:
    """A container with a compiler, created like those that run functions."""
    container = _container(client, IMAGE)
    yield container
    container.remove(force=True)


@pytest.fixture
def steps(container: Any) -> Steps:
    """Runs command lines in the container, with an empty cache at first."""
    container.exec_run(["sh", "-c", "rm -f /nanogrid/compiler-cache/*"])
    return _steps_in(container)


def _seen(step: Step) -> Step:
    return {name: value for name, value in step.items() if name != "how"}


@pytest.mark.parametrize(
    "line",
    [
        "g++ main.cpp",
        "g++ main.cpp -o main && ./main",
        "g++ -Wall -Wextra -g -O1 -std=c++17 main.cpp -o main",
        "g++ -Wall -c main.cpp 2>&1",
        "c++ -c main.cpp -o inc/main.o && c++ inc/main.o -o prog && ./prog",
        "g++ -S main.cpp && g++ -E main.cpp -o main.ii",
        "gcc a.c b.c -o prog && ./prog",
        "cc -c a.c b.c && ar rc libb.a b.o && cc a.o -L. -lb -o prog && ./prog",
        "gcc -shared -fPIC b.c -o libb.so && gcc a.c -L. -lb -Wl,-rpath,. -o prog && ./prog",
        "gcc -MMD -MP -c a.c && gcc -MD -MF inc/deps -c b.c -o b.obj",
        "gcc -Iinc -DX='\"a b\"' -include inc/h.h -c a.c",
        "umask 077; gcc a.c b.c",
        "echo old >a.out; chmod 600 a.out; gcc a.c b.c",
        "gcc -flto -O2 -c b.c -frandom-seed=1",
        "gcc -pipe -m64 -march=native -c b.c",
        "cd inc; gcc -g ../b.c -c",
        "make -j4 && ./prog",
    ],
)
def test_a_hit_does_what_the_compiler_did(steps: Steps, line: str) -> None:
    """Output, warnings, exit code, files and modes are equal: by the real compiler, on the miss, and on the hit."""
    real, first, second = steps(line, line, line, real=(0,))
    assert real["code"] == 0, real["err"]
    assert (real["how"], first["how"], second["how"]) == ("real", "kept", "hit")
    assert _seen(first) == _seen(real)
    assert _seen(second) == _seen(real)


@pytest.mark.parametrize(
    "line",
    [
        "g++ bad.cpp",
        "g++ missing.cpp -o main",
        "g++",
        "g++ --version",
        "g++ -dumpversion; gcc -print-search-dirs",
        "gcc -E a.c | grep -c stdio",
        "gcc -x c - -c -o x.o <b.c",
        "echo '-c b.c' >args; gcc @args",
        "gcc -c b.c -save-temps",
        "gcc -fstack-usage -c b.c",
        "gcc -c clock.c",
        "gcc -M b.c",
        "gcc -c b.c -o /dev/null",
        "gcc -c b.c -o no/such/folder/b.o",
        "gcc b.c",
        "gcc -Wall -Werror -include missing.h -c b.c",
    ],
)
def test_everything_else_is_the_compilers_own(steps: Steps, line: str) -> None:
    """A command that is not understood, fails or depends on the clock is never kept, and behaves as without the cache."""
    real, first, second = steps(line, line, line, real=(0,))
    assert (first["how"], second["how"]) == ("real", "real")
    for step in (first, second):
        # The linker names the compiler's temporary files in its errors.
        assert {**_seen(step), "err": ""} == {**_seen(real), "err": ""}
        assert (step["err"] == real["err"]) or "/tmp/cc" in real["err"]


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("g++ main.cpp && ./a.out", {"inc/h.h": "#define N 2\n"}),
        ("g++ main.cpp && ./a.out", {"main.cpp": HELLO.replace("N", "N + 1", 1)}),
        ("g++ -Iinc main.cpp && ./a.out", {"inc/iostream": "#include_next <iostream>\n#define endl 5\n"}),
        ("g++ main.cpp && ./a.out", {"maybe.h": "7"}),
        ("gcc -c a.c b.c && ar rc libb.a b.o && gcc a.o -L. -lb && ./a.out", {"b.c": "int f(void) { return 8; }"}),
    ],
)
def test_a_change_is_seen(steps: Steps, line: str, change: dict[str, str]) -> None:
    """After a change to a source, a header or a library, or with a new header that comes first, the result is the compiler's."""
    base = {"main.cpp": HELLO + '#if __has_include("maybe.h")\n#error maybe\n#endif\n'} if "maybe.h" in change else {}
    steps(line, **base)
    changed = {**base, **change}
    first, again, real = steps(line, line, line, real=(2,), **changed)
    assert _seen(first) == _seen(real)
    assert _seen(again) == _seen(real)
    before = steps(line, line, real=(1,), **base)
    assert _seen(before[0]) == _seen(before[1])


@pytest.mark.parametrize(
    "env",
    [{"CPATH": "/workspace/inc"}, {"LC_ALL": "C"}, {"GCC_COLORS": "", "SOURCE_DATE_EPOCH": "1"}],
)
def test_the_environment_is_part_of_the_question(steps: Steps, env: dict[str, str]) -> None:
    """Another environment is another compile, and neither gets the other's result."""
    line = "g++ -Wall main.cpp && ./a.out"
    steps(line)
    first, second, real = steps(line, line, line, env=env, real=(2,))
    assert (first["how"], second["how"]) == ("kept", "hit")
    assert _seen(first) == _seen(second) == _seen(real)


def test_messages_keep_the_callers_character_set(steps: Steps) -> None:
    """The interpreter's own choice of a locale does not reach the compiler."""
    line = "unset LANG LC_ALL LC_CTYPE; g++ -Wall -c main.cpp; g++ bad.cpp"
    cached, real = steps(line, line, real=(1,))
    assert cached["err"] == real["err"]
    assert "'int main()'" in real["err"]


def test_a_full_cache_fails_no_compile(steps: Steps, container: Any) -> None:
    """Without room the compiler works as usual, and nothing is kept."""
    container.exec_run(["sh", "-c", "mkdir /nanogrid/compiler-cache/x; cat /dev/zero >/nanogrid/compiler-cache/x/fill"])
    line = "g++ main.cpp && ./a.out"
    first, second = steps(line, line)
    container.exec_run(["rm", "-r", "/nanogrid/compiler-cache/x"])
    assert (first["code"], first["out"], second["code"], second["out"]) == (0, "1\n", 0, "1\n")


def test_old_entries_make_room(steps: Steps) -> None:
    """If there are more outputs than fit, the least recently used are removed, and the newest is kept."""
    line = "for i in 1 2 3 4 5 6; do gcc -c -DX=$i big.c -o $i.o; done; du -sk /nanogrid/compiler-cache >/tmp/du"
    source = "char x[600000] = {1, X};\n"
    steps(line, **{"big.c": source})
    last, used = steps("gcc -c -DX=6 big.c -o 6.o", "cat /tmp/du", **{"big.c": source})
    assert last["how"] == "hit"
    assert int(used["out"].split()[0]) <= 3 * 1024


def test_damaged_entries_are_ignored(steps: Steps, container: Any) -> None:
    """A cache full of garbage costs a compile and nothing else."""
    line = "g++ main.cpp && ./a.out"
    steps(line)
    container.exec_run(["sh", "-c", "for f in /nanogrid/compiler-cache/[0-9a-f]*; do echo rubbish >$f; done"])
    first, second = steps(line, line)
    assert (first["how"], first["out"], second["how"], second["out"]) == ("kept", "1\n", "hit", "1\n")


def test_a_compiler_that_ends_by_a_signal_does_so(steps: Steps) -> None:
    """A signal to the wrapper reaches the compiler, and the caller sees that signal's code."""
    line = "mkfifo inc/h.h.pipe; g++ -include inc/h.h.pipe main.cpp & p=$!; exec 3>inc/h.h.pipe; kill -TERM $p; wait $p"
    cached, real = steps(f"{line}; echo $?", f"{line}; echo $?", real=(1,))
    assert cached["out"] == real["out"] == "143\n"


def test_a_missing_compiler_is_still_missing(client: docker.DockerClient) -> None:
    """Without a compiler, the call ends like an unknown command."""
    container = _container(client, NEWEST_PYTHON_IMAGE)
    try:
        (step,) = _steps_in(container)("g++ main.cpp")
    finally:
        container.remove(force=True)
    assert (step["code"], step["err"]) == (127, "g++: command not found\n")
