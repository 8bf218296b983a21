"""The first process of a warm container: its protocol, and that the next run finds nothing of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogrid.errors import ContainerLostError
from nanogrid.execution.container.link import Hello, Ready, Unfit
from tests.support.rig import CPP_IMAGE, NEWEST_PYTHON_IMAGE, PYTHON_IMAGE
from tests.support.runner_box import PYTHON, Box, box, limits, write_code
from tests.support.services import wait_until

HANDLER = ("python", "/nanogrid/runner/call_handler.py")
RUNS = 300


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Box]:
    """A warm container with the oldest Python."""
    with box(tmp_path, PYTHON_IMAGE) as made:
        yield made


def place(here: Box, tmp_path: Path, files: dict[str, str] | str) -> Box:
    """Give the container a function."""
    here.place(write_code(tmp_path / "code", {"main.py": files} if isinstance(files, str) else files))
    return here


@pytest.mark.parametrize("image", [PYTHON_IMAGE, NEWEST_PYTHON_IMAGE, CPP_IMAGE])
def test_it_says_hello_then_ready_then_runs(image: str, tmp_path: Path) -> None:
    """`hello` names the Python, `ready` means that a run can start, and the first run of a prewarmed container is in process."""
    with box(tmp_path, image) as here:
        assert isinstance(here.hello, Hello)
        assert here.hello.version >= (3, 9)
        here.await_ready()
        run = place(here, tmp_path, "print('hello')").run()
        assert (run.out, run.err, run.exit_code, run.how) == (b"hello\n", b"", 0, "python")
        assert isinstance(here.receive(), Ready)
        assert run.ended.ended_ns >= run.ended.started_ns > 0


def test_a_run_without_code_fails_as_python_does(here: Box) -> None:
    """Without main.py the exit code is Python's own."""
    run = here.run()
    assert run.exit_code == 2
    assert b"can't open file '/workspace/main.py'" in run.err


@pytest.mark.parametrize("name", ["main.py/__init__.py", "main.py/__main__.py", "other.py"])
def test_what_is_no_script_fails_or_runs_as_with_python(name: str, here: Box, tmp_path: Path) -> None:
    """A folder, a folder that can be run, and no main.py at all."""
    place(here, tmp_path, {name: "print(__name__, __file__)"})
    runs = [here.run(), here.run(), here.run(in_process=False)]
    assert len({(run.out, run.err, run.exit_code) for run in runs}) == 1


def test_any_command_can_be_run(here: Box) -> None:
    """If the command is not the held interpreter's, it is executed, with the request's environment and streams."""
    run = here.run(("/bin/sh", "-c", 'cat; echo "$X" >&2; exit 3'), {"X": "a value"}, payload=[1])
    assert (run.out, run.err, run.exit_code, run.how) == (b"[1]", b"a value\n", 3, "exec")


def test_a_command_that_is_not_there_ends_with_127(here: Box) -> None:
    """As in a shell, with one line on stderr that names the reason."""
    run = here.run(("no-such-command",))
    assert run.exit_code == 127
    assert run.err == b"nanogrid: no-such-command: No such file or directory\n"


def test_a_script_that_names_no_interpreter_is_run_by_the_shell(here: Box, tmp_path: Path) -> None:
    """As in every shell. A file of the code is a command only by its path."""
    place(here, tmp_path, {"run": "echo run by $0 $1"})
    (here.slot.path / "code" / "run").chmod(0o555)
    assert here.run(("./run", "x")).out == b"run by ./run x\n"
    assert here.run(("run",)).exit_code == 127


def test_an_executed_command_has_the_signals_of_a_new_process(here: Box) -> None:
    """A signal that Python ignores is not ignored in an executed program."""
    run = here.run(("grep", "-E", "SigIgn|SigBlk", "/proc/self/status"))
    assert run.out.split() == [b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]


def test_an_environment_larger_than_a_packet_arrives(here: Box, tmp_path: Path) -> None:
    """A request of any size reaches the function."""
    place(here, tmp_path, "import os; print(len(os.environ['BIG']))")
    for _ in range(2):
        run = here.run(env={"BIG": "x" * 100_000})
        assert (run.out, run.how) == (b"100000\n", "python")


def test_nothing_that_a_run_writes_is_there_in_the_next(here: Box, tmp_path: Path) -> None:
    """Files in every folder are removed. The code is unchanged, and its times are those of the code."""
    place(
        here,
        tmp_path,
        "import os\n"
        "print(sorted(os.listdir('.')), os.listdir('/tmp'), os.listdir('/dev/shm'), os.listxattr('.'), oct(os.stat('.').st_mode))\n"
        "for folder in ('.', '/tmp', '/dev/shm'): open(folder + '/left', 'w').write('x')\n"
        "os.remove('main.py'); os.mkdir('more'); os.chmod('.', 0o777)\n",
    )
    first = here.run()
    assert first.out == b"['main.py'] [] [] [] 0o40700\n", first.err
    assert here.run().out == first.out


def test_hostile_leftovers_are_removed(here: Box, tmp_path: Path) -> None:
    """Closed folders, deep trees, odd names, many files, links and sockets: the next run finds none of them."""
    place(
        here,
        tmp_path,
        "import os, socket\n"
        "print(sorted(os.listdir(b'.')), os.listdir('/tmp'), os.listdir('/dev/shm'))\n"
        "for number in range(3000): open(f'/tmp/{number}', 'w')\n"
        "os.mkdir('closed'); open('closed/file', 'w'); os.mkdir('closed/in'); os.chmod('closed/in', 0); os.chmod('closed', 0)\n"
        "open(b'/dev/shm/\\xff\\n\\xfe', 'w'); os.mkdir(b'\\xff folder'); open(b'\\xff folder/-rf', 'w')\n"
        "os.symlink('/nanogrid', 'link'); os.symlink('loop', 'loop'); os.mkfifo('fifo'); os.link('main.py', 'hard')\n"
        "socket.socket(socket.AF_UNIX).bind('socket')\n"
        "for _ in range(2000): os.mkdir('d' * 100); os.chdir('d' * 100)\n"
        "os.chmod('/workspace', 0)\n",
    )
    for _ in range(3):
        run = here.run()
        assert run.out == b"[b'main.py'] [] []\n", run.err
        assert run.err == b""


def test_no_process_of_a_run_lives_when_it_has_ended(here: Box, tmp_path: Path) -> None:
    """Children that ignore signals, have sessions of their own or lost their parents are dead, and counted."""
    place(
        here,
        tmp_path,
        "import os, signal, subprocess\n"
        "print(sorted(p for p in os.listdir('/pr' + 'oc') if p.isdigit() and p not in ('1', str(os.getpid()))))\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT HUP; sleep 100'], start_new_session=True)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n    signal.pause()\n",
    )
    run = here.run()
    assert run.ended.killed >= 2
    assert here.run().out == b"[]\n"


def test_user_code_finds_nothing_of_the_first_process(here: Box, tmp_path: Path) -> None:
    """No descriptor beyond the three, no capability, no signal, no memory, no socket of the runner."""
    place(
        here,
        tmp_path,
        "import os, signal, socket\n"
        "def refused(do, *a):\n"
        "    try: do(*a)\n"
        "    except OSError as e: return e.errno\n"
        "proc = '/pr' + 'oc'\n"
        "print([fd for fd in range(3, 200) if not refused(os.fstat, fd)])\n"
        "print([l.split()[1] for l in open(proc + '/self/status') if l.startswith('Cap')], os.getresuid(), os.getresgid(), os.getgroups())\n"
        "print(open(proc + '/self/oom_score_adj').read().strip(), refused(open, proc + '/1/mem', 'r+b'), refused(os.listdir, proc + '/1/fd'))\n"
        "print(refused(os.kill, 1, signal.SIGKILL), refused(os.setuid, 0), refused(os.listdir, '/root'))\n"
        "print(refused(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect, '/nanogrid/control.sock'))\n"
        "print(refused(open, '/nanogrid/code/main.py', 'w'), refused(open, '/nanogrid/new', 'w'), refused(open, '/etc/new', 'w'))\n",
    )
    for in_process in (True, False):
        lines = here.run(in_process=in_process).out.decode().splitlines()
        assert lines[0] == "[]"
        assert lines[1] == f"{['0' * 16] * 5} (65534, 65534, 65534) (65534, 65534, 65534) [65534]"
        assert lines[2] == "1000 13 13"
        assert lines[3] == "1 1 13"
        assert lines[4] == "2"
        assert set(lines[5].split()) <= {"13", "30"}


def test_a_kill_ends_a_run_that_does_not_want_to(here: Box, tmp_path: Path) -> None:
    """A run that ignores every signal ends as soon as the host hangs up. It is reported like any other, and the container ends."""
    place(
        here,
        tmp_path,
        "import os, signal\n"
        "for number in range(1, 32):\n"
        "    if number not in (9, 19): signal.signal(number, signal.SIG_IGN)\n"
        "os.fork()\n"
        "while True: pass\n",
    )
    run = here.run(kill_after_s=0.1)
    assert run.exit_code == 137
    assert run.took_ms < 2000
    wait_until(lambda: not here.engine.end_of(here.id).running, "the container ends")


def test_a_kernel_that_refuses_newer_calls_is_served_too(tmp_path: Path) -> None:
    """Without pidfd_open and madvise, runs end, are killed and are reported as usual."""
    refusal = {"names": ["pidfd_open", "madvise"], "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refusal]}
    with box(tmp_path, PYTHON_IMAGE, security=[f"seccomp={json.dumps(profile)}"]) as here:
        place(here, tmp_path, "import sys\nwhile not sys.stdin.read(): pass\nprint('done')")
        for _ in range(3):
            run = here.run(payload=1)
            assert (run.out, run.how) == (b"done\n", "python")
        assert here.run(kill_after_s=0.05).exit_code == 137


def test_a_kill_after_the_end_ends_the_container(here: Box, tmp_path: Path) -> None:
    """A kill after its run has ended has nothing else to end, and no run is reported twice."""
    place(here, tmp_path, "print(1)").run()
    here.link.send_kill()
    wait_until(lambda: not here.engine.end_of(here.id).running, "the container ends")
    with pytest.raises(ContainerLostError):  # beyond `ready`, where that was faster, it has nothing to say
        assert [here.receive(), here.receive()] == [Ready()]


def test_memory_that_runs_out_ends_the_run_alone(tmp_path: Path) -> None:
    """The kernel kills the function, never the first process."""
    with box(tmp_path, PYTHON_IMAGE, memory_mb=64) as here:
        place(here, tmp_path, "import sys\nx = 'y' * (500 << 20 if sys.stdin.read() else 1)\nprint('fits')")
        for _ in range(2):
            assert here.run(payload=1).exit_code == 137
            assert here.run().out == b"fits\n"


def test_files_that_fill_the_memory_are_gone_in_the_next_run(tmp_path: Path) -> None:
    """A full /workspace and a full /tmp are empty again."""
    with box(tmp_path, PYTHON_IMAGE, memory_mb=512) as here:
        place(
            here,
            tmp_path,
            "import os\n"
            "for path in ('/tmp/x', '/workspace/x'):\n"
            "    try:\n"
            "        with open(path, 'wb') as f:\n"
            "            while True: f.write(b'x' * (1 << 20)); f.flush()\n"
            "    except OSError as e: print(e.errno)\n",
        )
        for _ in range(2):
            assert here.run().out == b"28\n28\n"


def test_a_fork_bomb_is_survived(here: Box, tmp_path: Path) -> None:
    """If every process slot is taken, a run that ends is followed by the next one, and one that does not end can be killed."""
    place(
        here,
        tmp_path,
        "import os, sys, time\n"
        "what, end = sys.stdin.read(), time.monotonic() + 0.3\n"
        "if what == '0': print('calm'); sys.exit()\n"
        "first = os.getpid()\n"
        "while what or time.monotonic() < end or os.getpid() != first:\n"
        "    try: os.fork()\n"
        "    except OSError: pass\n",
    )
    for _ in range(2):
        assert here.run().exit_code == 0
        assert here.run(payload=0).out == b"calm\n"
    assert here.run(payload=1, kill_after_s=0.3).exit_code == 137


def test_a_thread_bomb_is_survived(here: Box, tmp_path: Path) -> None:
    """Threads take the same slots."""
    place(
        here,
        tmp_path,
        "import threading, time\n"
        "try:\n"
        "    while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "except RuntimeError: print('no more')\n",
    )
    for _ in range(2):
        assert here.run().out == b"no more\n"


def test_the_end_of_the_connection_ends_the_container(here: Box, tmp_path: Path) -> None:
    """A container without its host ends, even with a run under way."""
    place(here, tmp_path, "import time; time.sleep(600)").start()
    here.link.close()
    wait_until(lambda: not here.engine.end_of(here.id).running, "the container ends")


def test_a_stop_from_outside_is_heeded_at_once(here: Box) -> None:
    """SIGTERM ends the first process: `docker stop` does not wait."""
    here.await_ready()
    here.engine.api.kill(here.id, "SIGTERM")
    wait_until(lambda: not here.engine.end_of(here.id).running, "the container ends")


def test_what_cannot_be_removed_makes_the_container_unclean(tmp_path: Path) -> None:
    """The host receives that instead of `ready`."""
    held = tmp_path / "held"
    held.mkdir()
    mount = {"Type": "bind", "Source": str(held), "Target": "/dev/shm/held", "ReadOnly": True}
    with box(tmp_path, PYTHON_IMAGE, mounts=[mount]) as here:
        message = here.receive()
        assert isinstance(message, Unfit)
        assert message.word == "unclean"
        assert "held" in message.reason


def test_code_that_does_not_fit_is_the_platforms_trouble(tmp_path: Path) -> None:
    """If the workspace is too small for the code, the host receives `broken` with the reason."""
    with box(tmp_path, PYTHON_IMAGE, tmpfs={"/workspace": "exec,mode=0700,uid=65534,gid=65534,size=65536"}) as here:
        here.await_ready()
        place(here, tmp_path, {"main.py": "print(1)", "large": "x" * 200_000}).start()
        message = here.receive()
        assert isinstance(message, Unfit)
        assert message.word == "broken"
        assert "could not be laid out" in message.reason


def test_many_runs_leave_no_trace_in_the_first_process(here: Box, tmp_path: Path) -> None:
    """Memory and descriptors of the first process are the same after hundreds of runs, and the slot holds no more files."""
    place(here, tmp_path, {"main.py": "import other, json; print(json.dumps(other.x))", "other.py": "x = 1"})
    for _ in range(30):
        here.run()
    before = limits(here)
    for _ in range(RUNS):
        run = here.run()
        assert (run.out, run.exit_code, run.how) == (b"1\n", 0, "python")
    after = limits(here)
    assert after.descriptors == before.descriptors
    assert after.memory_kb <= before.memory_kb + 300
    assert after.files == before.files


def test_modules_are_imported_beforehand_and_hidden(here: Box, tmp_path: Path) -> None:
    """From the second run on a module's compiled part is in memory before the import, and the module is still invisible."""
    place(
        here,
        tmp_path,
        "import sys\n"
        "mapped = '_decimal' in open('/pr' + 'oc/self/maps').read()\n"
        "print(mapped, 'decimal' in sys.modules, '_decimal' in sys.modules)\n"
        "import decimal\n"
        "print(decimal.Decimal(1) / 8)\n",
    )
    assert here.run().out == b"False False False\n0.125\n"
    assert here.run().out == b"True False False\n0.125\n"


def test_modules_are_brought_out_long_after_the_beginning(here: Box, tmp_path: Path) -> None:
    """Whatever a program has done: if that makes no difference to a module of the standard library, the module is not executed again."""
    place(
        here,
        tmp_path,
        "import sys, os, logging, multiprocessing.process\n"
        "made = []\n"
        "getattr(sys, 'addaudit' + 'hook')(lambda event, args: event == 'exec' and made.append(args[0].co_filename))\n"
        "os.environ['MODE'] = 'mine'; open('/tmp/a', 'w').close(); logging.basicConfig(); print('begins')\n"
        "import csv\ndef later(): import decimal, tempfile; return tempfile.gettempdir(), str(decimal.Decimal(1))\n"
        "print(later(), len(made))\n"
        "import json\nprint(json.loads('1'), len(made))\n",
    )
    assert b" 0\n" not in here.run().out
    for _ in range(2):
        assert here.run().out == b"begins\n('/tmp', '1') 0\n1 0\n"


def test_own_modules_are_compiled_once(here: Box, tmp_path: Path) -> None:
    """From the second run on Python compiles no module of the function, and its cache files exist as usual."""
    place(
        here,
        tmp_path,
        {
            "main.py": "import os, sys\nseen = []\n"
            "getattr(sys, 'addaudit' + 'hook')(lambda event, args: event == 'compile' and seen.append(args[1]))\n"
            "import other, pack.inner\n"
            "print([name for name in seen if name], sorted(os.listdir('__pycache__')), other.x, pack.inner.y)\n",
            "other.py": "x = 1",
            "pack/__init__.py": "",
            "pack/inner.py": "y = 2",
        },
    )
    first, second = here.run(), here.run()
    names = b"'/workspace/other.py', '/workspace/pack/__init__.py', '/workspace/pack/inner.py'"
    assert (first.out, first.how) == (b"[" + names + b"] ['other.cpython-39.pyc'] 1 2\n", "python")
    assert (second.out, second.how) == (b"[] ['other.cpython-39.pyc'] 1 2\n", "python")


def test_nothing_is_learned_where_the_deployment_wants_that(tmp_path: Path) -> None:
    """Then no run decides what is imported for the next: standard library, packages and own modules are as in the first run."""
    packages = write_code(tmp_path / "packages", {"pack.py": "import time; made = time.monotonic()"})
    source = (
        "import sys, pack, decimal\n"
        "maps = '/pr' + 'oc/self/maps'\nprint(pack.made > float(sys.argv[1]), '_json' in open(maps).read())\nimport json\n"
    )
    with box(tmp_path, PYTHON_IMAGE, learn_imports=False) as here:
        here.place(write_code(tmp_path / "code", {"main.py": source}), packages)
        for _ in range(3):
            here.await_ready()
            run = here.run((*PYTHON, str(time.monotonic())), {"PYTHONPATH": "/nanogrid/packages"})
            assert (run.out, run.err, run.how) == (b"True False\n", b"", "python")


def test_packages_are_imported_beforehand_in_the_spare_alone(here: Box, tmp_path: Path) -> None:
    """A learned package is imported before the request, as the function's user, anew for every run."""
    packages = write_code(
        tmp_path / "packages",
        {"pack/__init__.py": "import os, time\nuser, process, made = os.getuid(), os.getpid(), time.monotonic()\n"},
    )
    code = write_code(
        tmp_path / "code",
        {
            "main.py": "import sys, os, time\nimport pack\n"
            "print(pack.made < float(sys.argv[1]), pack.user, pack.process == os.getpid(), sys.path[:2])\n"
        },
    )
    here.place(code, packages)
    env = {"PYTHONPATH": "/nanogrid/packages"}
    for had in (b"False", b"True", b"True"):
        here.await_ready()
        run = here.run((*PYTHON, str(time.monotonic())), env)
        assert run.out == had + b" 65534 True ['/workspace', '/nanogrid/packages']\n"


ORDINARY = {
    "first thing": "import pack\n",
    "from": "from pack import made as _\nimport pack\n",
    "after other imports": '"""Doc."""\nfrom __future__ import annotations\nimport json, csv\nfrom os import *\nimport pack\n',
    "after another package": "import other.inner as inner\nfrom other import X\nimport pack\n",
    "after constants": "import os\nA = 60 * 60\nB = {'a': [1, 2, 3], 'b': (A, None)}\nC: int = -A\nimport pack\n",
    "after definitions": "import other\nclass Mine(ValueError):\n    x: int = 1\n    def __init__(self): pass\n"
    "class Colour(int): pass\ndef f(a: other.X, *, b: dict[str, int] = None) -> list[other.X]: return print(a)\n"
    "async def g(): await f()\nh = lambda x: x\nimport pack\n",
    "with another choice": "try:\n    import quick\nexcept ImportError:\n    quick = None\nexcept (ValueError, OSError) as error:\n    raise\n"
    "import pack\n",
    "instead of another": "try:\n    import quick as pack\nexcept ImportError:\n    import pack\n",
    "by version": "import sys\nif sys.version_info >= (3, 8):\n    import pack\nelse:\n    import other as pack\n",
    "typing alone": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import other\nimport pack\n",
    "in a function": "def main(arguments):\n    import pack\n    return pack\nimport sys\nif __name__ == '__main__':\n"
    "    pack = main(sys.argv[1:])\n",
    "by another module": "from helper import VALUE, pack\n",
    "after another module": "from helper import VALUE\nimport tool\nimport pack\n",
}
"""Programs that begin with imports, as most do, by what else is in their prologue."""
HELPERS = {
    "helper.py": "import pack\nVALUE = 3\ndef main(): print(VALUE)\nif __name__ == '__main__':\n    main()\n",
    "tool.py": "class Tool:\n    def run(self): return [x for x in range(3)]\n",
}


@pytest.mark.parametrize("image", [PYTHON_IMAGE, CPP_IMAGE, NEWEST_PYTHON_IMAGE])
def test_programs_that_begin_with_imports_have_their_packages_beforehand(image: str, tmp_path: Path) -> None:
    """From the second run on, everything that a program imports before it does anything else is imported in advance."""
    packages = write_code(
        tmp_path / "packages",
        {"pack.py": "import time; made = time.monotonic()", "other/__init__.py": "X = 1", "other/inner.py": ""},
    )
    had = {}
    with box(tmp_path, image) as here:
        for name, beginning in ORDINARY.items():
            source = f"{beginning}import sys\nprint(pack.made < float(sys.argv[1]))\n"
            here.replace(write_code(tmp_path / name.replace(" ", "-"), {"main.py": source, **HELPERS}), packages)
            here.run((*PYTHON, "0"), {"PYTHONPATH": "/nanogrid/packages"})
            here.await_ready()
            run = here.run((*PYTHON, str(time.monotonic())), {"PYTHONPATH": "/nanogrid/packages"})
            had[name] = run.out, run.err, run.how
    assert had == dict.fromkeys(ORDINARY, (b"True\n", b"", "python"))


def test_packages_of_several_parts_are_there_beforehand(here: Box, tmp_path: Path) -> None:
    """A part that becomes an attribute of its package is no change of the package."""
    packages = write_code(
        tmp_path / "packages",
        {
            "pack/__init__.py": "import time, pack.part\nmade = time.monotonic()\n",
            "pack/part.py": "x = 1",
            "pack/late.py": "",
        },
    )
    source = "import pack\nimport pack.late\nimport sys\nprint(pack.made < float(sys.argv[1]), pack.part.x, pack.late.__name__)\n"
    here.place(write_code(tmp_path / "code", {"main.py": source}), packages)
    for had in (b"False", b"True", b"True"):
        here.await_ready()
        run = here.run((*PYTHON, str(time.monotonic())), {"PYTHONPATH": "/nanogrid/packages"})
        assert (run.out, run.err) == (had + b" 1 pack.late\n", b"")


def test_a_handlers_beginning_is_its_own(here: Box, tmp_path: Path) -> None:
    """Packages in the prologue of a handler's module are imported in advance, for this module only."""
    packages = write_code(tmp_path / "packages", {"pack.py": "import time; made = time.monotonic()"})
    texts = "import pack\ndef run(payload, context): return pack.made < payload\n"
    other = "import sys\nhad = 'pack' in sys.modules\nsys.mine = 1\n" + texts.replace("return", "return had,")
    here.place(write_code(tmp_path / "code", {"texts.py": texts, "other.py": other}), packages)
    found = []
    for handler in ("texts.run",) * 4 + ("other.run",) * 2 + ("texts.run",) * 3:
        here.await_ready()
        command = ("python", "/nanogrid/runner/call_handler.py", handler)
        run = here.run(command, {"PYTHONPATH": "/nanogrid/packages"}, payload=time.monotonic())
        found.append((run.result, run.how, run.err))
    had = [result for result, _, _ in found]
    assert had[3:6] == [b"true", b"[false, false]", b"[false, false]"]
    assert (had[6], had[-1]) == (b"false", b"true")
    assert [error for _, _, error in found] == [b""] * len(found)


def test_packages_that_look_at_the_command_line(here: Box, tmp_path: Path) -> None:
    """They find the run's own command line."""
    packages = write_code(tmp_path / "packages", {"pack.py": "import sys\nseen = [*sys.argv]\nlast = sys.argv[-1]\n"})
    here.place(write_code(tmp_path / "code", {"main.py": "import pack\nprint(pack.seen, pack.last)\n"}), packages)
    for argument in ("a", "b", "b", "c"):
        run = here.run((*PYTHON, argument), {"PYTHONPATH": "/nanogrid/packages"})
        assert (run.out, run.err) == (f"['main.py', '{argument}'] {argument}\n".encode(), b"")


def test_packages_are_there_for_who_differs_in_nothing_they_have_read(here: Box, tmp_path: Path) -> None:
    """A run gets them in advance unless its environment differs in a variable that they have read, or could have read."""
    packages = write_code(
        tmp_path / "packages",
        {
            "pack/__init__.py": "import os\nmode = os.environ.get('MODE')\n",
            "pack/compiled.so": "\0OMP_THREADS\0text of MY_OTHER_NAME\0",
        },
    )
    source = "import pack\nprint(pack.mode)\n"
    here.place(write_code(tmp_path / "code", {"main.py": source}), packages)
    env = {"PYTHONPATH": "/nanogrid/packages"}
    assert [here.run(env=env).how for _ in range(2)] == ["python", "python"]
    hows = {}
    for name in ("PLAIN", "PLAIN", "MODE", "OMP_THREADS", "OTHER_NAME", "lower", "NAME"):
        run = here.run(env={**env, name: "mine"})
        assert run.out == (b"mine\n" if name == "MODE" else b"None\n")
        hows[name] = run.how
    assert hows == {
        "PLAIN": "python",  # after the first one, from which on it is known what the compiled module holds
        "MODE": "exec",
        "OMP_THREADS": "exec",
        "OTHER_NAME": "exec",  # the end of a string can be one of its own
        "lower": "exec",
        "NAME": "exec",
    }


def test_packages_that_look_at_the_whole_environment(here: Box, tmp_path: Path) -> None:
    """They may have seen any variable. Our own variables, which each run has, do not count."""
    packages = write_code(tmp_path / "packages", {"pack.py": "import os\nnames = sorted(os.environ)\n"})
    source = "import pack\nprint('A' in pack.names)\n"
    here.place(write_code(tmp_path / "code", {"main.py": source}), packages)
    env = {"PYTHONPATH": "/nanogrid/packages"}
    assert [here.run(env=env).how for _ in range(2)] == ["python", "python"]
    for _ in range(2):
        run = here.run(env={**env, "A": "1"})
        assert (run.out, run.how) == (b"True\n", "exec")


def test_packages_that_bring_a_library_of_the_image(tmp_path: Path) -> None:
    """The variables that the library could read when it is loaded count as the packages' own."""
    source = "import ctypes\nthreads = ctypes.CDLL('libgomp.so.1').omp_get_max_threads\n"
    packages = write_code(tmp_path / "packages", {"pack.py": source, "compiled.so": "NOTHING"})
    code = write_code(tmp_path / "code", {"main.py": "import pack\nprint(pack.threads())\n"})
    with box(tmp_path, CPP_IMAGE) as here:
        here.place(code, packages)
        env = {"PYTHONPATH": "/nanogrid/packages"}
        for _ in range(2):
            here.run(env=env)
        for number in (3, 4, 5):
            run = here.run(env={**env, "OMP_NUM_THREADS": str(number)})
            assert (run.out, run.how) == (b"%d\n" % number, "exec")
        assert [here.run(env={**env, "PLAIN": "1"}).how for _ in range(2)] == ["python"] * 2


def test_packages_that_give_the_environment_to_others(here: Box, tmp_path: Path) -> None:
    """The programs that they start when they are imported may have seen any variable."""
    packages = write_code(
        tmp_path / "packages", {"pack.py": "import os\ntold = os.system('exit $CODE') >> 8\n", "compiled.so": "NOTHING"}
    )
    here.place(write_code(tmp_path / "code", {"main.py": "import pack\nprint(pack.told)\n"}), packages)
    env = {"PYTHONPATH": "/nanogrid/packages"}
    assert [here.run(env=env).how for _ in range(2)] == ["python", "python"]
    for code in (b"3", b"4", b"5"):
        run = here.run(env={**env, "CODE": code.decode()})
        assert (run.out, run.how) == (code + b"\n", "exec")


def test_packages_find_the_functions_own_files(here: Box, tmp_path: Path) -> None:
    """A package that reads settings in the working directory, or a module beside the script, finds the same in each run."""
    source = "import os, site\nfrom pathlib import Path\nfound = Path('pack.ini').read_text(), os.listdir('.'), site.getusersitepackages()\n"
    packages = write_code(
        tmp_path / "packages",
        {"pack.py": source, "other.py": "try:\n    import mine\nexcept ImportError:\n    mine = None\n"},
    )
    code = write_code(
        tmp_path / "code",
        {
            "main.py": "import pack\nprint(pack.found)\n",
            "second.py": "import other, sys\nprint(other.mine.__file__, sys.modules['mine'] is other.mine)\n",
            "mine.py": "",
            "pack.ini": "text",
        },
    )
    here.place(code, packages)
    for script in ("main.py", "second.py"):
        runs = [here.run(("python", script), {"PYTHONPATH": "/nanogrid/packages"}) for _ in range(4)]
        assert {(run.out, run.err) for run in runs} == {(runs[0].out, b"")}
    assert runs[0].out == b"/workspace/mine.py True\n"


def test_a_package_that_is_imported_beforehand_sees_no_request(here: Box, tmp_path: Path) -> None:
    """While it is imported there is no payload, no variable of a request, no file but the code and no connection. Nothing that it writes
    stays."""
    packages = write_code(
        tmp_path / "packages",
        {
            "pack.py": "import os\n"
            "seen = [\n"
            "    [entry for place in ('/workspace', '/tmp', '/dev/shm', '/nanogrid/run') for entry in os.listdir(place)],\n"
            "    [name for name in os.environ if name.startswith('NANOGRID')],\n"
            "    [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')],\n"
            "]\n"
            "open('/tmp/left', 'w'); open('left', 'w')\n"
        },
    )
    source = "import pack, os\nprint(pack.seen[:2], [link for link in pack.seen[2] if 'socket' in link], os.listdir('/tmp'), os.listdir('.'), sorted(os.listdir('/nanogrid/run')))\n"
    here.place(write_code(tmp_path / "code", {"main.py": source}), packages)
    env = {"PYTHONPATH": "/nanogrid/packages"}
    first = here.run(env=env, payload="secret")
    assert (b"'NANOGRID_REQUEST_ID'" in first.out, b"'left'" in first.out) == (True, True)
    for _ in range(2):
        run = here.run(env=env, payload="secret")
        assert (run.out, run.err, run.how) == (
            b"[['main.py'], []] [] [] ['main.py'] ['payload.json', 'result.json']\n",
            b"",
            "python",
        )


@pytest.mark.parametrize(
    "source",
    [
        "print('loud')",
        "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "import os; os.chdir('/')",
        "import os; os.environ['X'] = '1'",
        "import os; os.mine = 1",
        "import json; json.dumps = str",
        "import json; json.JSONEncoder.encode = str",
        "import json; json.JSONEncoder.__init__ = lambda *_, **__: None",
        "import socket; socket.setdefaulttimeout(3)",
        "import logging; logging.basicConfig(level=1)",
        "import warnings; warnings.simplefilter('ignore')",
    ],
)
def test_packages_that_do_more_than_define_are_left_alone(source: str, here: Box, tmp_path: Path) -> None:
    """A package that prints, starts threads or changes the process when it is imported does so in each run that imports it, and in no other."""
    packages = write_code(tmp_path / "packages", {"pack.py": source})
    look = (
        "import json, logging, os, socket, warnings\n"
        "print(os.getcwd(), os.environ.get('X'), hasattr(os, 'mine'), json.dumps.__module__, json.JSONEncoder.encode, json.JSONEncoder.__init__)\n"
        "print(socket.getdefaulttimeout(), logging.root.level, len(logging.root.handlers), warnings.filters)\n"
    )
    look = look.replace("JSONEncoder.encode", "JSONEncoder.encode.__name__").replace("__init__", "__init__.__name__")
    code = write_code(tmp_path / "code", {"main.py": "import pack\n" + look, "without.py": look})
    here.place(code, packages)
    env = {"PYTHONPATH": "/nanogrid/packages"}
    without = here.run(("python", "without.py"), env)
    runs = [here.run(env=env) for _ in range(4)]
    assert len({(run.out, run.err, run.exit_code) for run in runs}) == 1
    assert runs[0].exit_code == 0
    after = here.run(("python", "without.py"), env)
    assert (after.out, after.err) == (without.out, without.err)


def test_packages_that_have_started_threads_are_imported_beforehand(tmp_path: Path) -> None:
    """The C library catches a signal of its own from its first thread on. That does not count as a change."""
    source = "import threading, time\none = threading.Thread(target=time.sleep, args=(0.1,))\none.start()\none.join()\nmade = time.monotonic()\n"
    packages = write_code(tmp_path / "packages", {"pack.py": source})
    look = "import pack, sys\nprint(pack.made < float(sys.argv[1]))\n"
    with box(tmp_path, NEWEST_PYTHON_IMAGE) as here:
        here.place(write_code(tmp_path / "code", {"main.py": look}), packages)
        for had in (b"False\n", b"True\n", b"True\n"):
            here.await_ready()
            assert here.run((*PYTHON, str(time.monotonic())), {"PYTHONPATH": "/nanogrid/packages"}).out == had


def test_a_port_can_be_bound_again_by_the_next_run(here: Box, tmp_path: Path) -> None:
    """No connection of a run is left waiting in the kernel."""
    place(
        here,
        tmp_path,
        "import socket\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 5000)); s.listen()\n"
        "c = socket.create_connection(('127.0.0.1', 5000)); d, _ = s.accept(); d.close(); c.close(); print('ok')\n",
    )
    for _ in range(3):
        assert here.run().out == b"ok\n"


def test_random_numbers_differ_from_run_to_run(here: Box, tmp_path: Path) -> None:
    """A forked interpreter does not repeat the numbers of the run before."""
    place(here, tmp_path, "import random, uuid, secrets; print(random.random(), uuid.uuid4(), secrets.token_hex())")
    assert len({here.run().out for _ in range(4)}) == 4


@pytest.mark.parametrize("image", [PYTHON_IMAGE, NEWEST_PYTHON_IMAGE])
def test_what_modules_keep_of_their_import_is_the_runs_own(image: str, tmp_path: Path) -> None:
    """Each run has its own key for processes, its own start time and its own folder."""
    source = (
        "import logging, multiprocessing.process as process\n"
        "record = logging.makeLogRecord({})\n"
        "print(process.current_process().authkey.hex(), record.relativeCreated < 1000, process.ORIGINAL_DIR)\n"
    )
    with box(tmp_path, image) as here:
        here.place(write_code(tmp_path / "code", {"main.py": source}))
        found = []
        for _ in range(4):
            found.append(here.run())
            time.sleep(0.5)
    assert {run.how for run in found} == {"python"}
    keys, *others = zip(*(run.out.split() for run in found), strict=True)
    assert len(set(keys)) == len(keys)
    assert [set(values) for values in others] == [{b"True"}, {b"/workspace"}]


def test_a_changed_environment_changes_the_held_interpreter(here: Box, tmp_path: Path) -> None:
    """Variables that an interpreter reads at its start cost one start. Then runs are in process again."""
    place(here, tmp_path, "import sys; print(sys.stdout.encoding)")
    assert here.run().how == "python"
    env = {"PYTHONIOENCODING": "latin-1"}
    runs = [here.run(env=env) for _ in range(2)]
    assert [(run.out, run.how) for run in runs] == [(b"iso8859-1\n", "exec"), (b"iso8859-1\n", "python")]


def test_a_path_that_leads_to_another_python_is_followed(here: Box, tmp_path: Path) -> None:
    """The command is searched in the request's PATH, and the held interpreter is used only if it is found there."""
    place(here, tmp_path, {"main.py": "print('held')", "bin/python": "#!/bin/sh\necho another $1\n"})
    (here.slot.path / "code" / "bin" / "python").chmod(0o555)
    for _ in range(2):
        run = here.run(env={"PATH": "/workspace/bin:/usr/bin:/bin"})
        assert (run.out, run.how) == (b"another main.py\n", "exec")
        run = here.run(env={"PATH": "/usr/bin:/bin:/workspace/bin"})
        assert (run.out, run.how) == (b"held\n", "python")
        run = here.run(env={"PATH": "/nowhere"})
        assert (run.exit_code, run.how) == (127, "exec")


def test_a_handler_is_called_with_payload_and_context(here: Box, tmp_path: Path) -> None:
    """In process from the second run on. `test_lambda_handlers.py` compares handlers with Lambda's own runtime."""
    source = "def handle(event, context):\n    return [event, context.request_id, 0 < context.get_remaining_time_in_millis() <= 30000]"
    place(here, tmp_path, {"app/__init__.py": "", "app/main.py": source})
    runs = [here.run((*HANDLER, "app.main.handle"), payload={"a": 1}) for _ in range(3)]
    assert [run.how for run in runs] == ["exec", "python", "python"]
    for run in runs:
        assert (run.err, run.exit_code) == (b"", 0)
        assert json.loads(run.result) == [{"a": 1}, "request", True]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "def f(e, c):\n    return 1 / 0\n",
            'Traceback (most recent call last):\n  File "/workspace/app.py", line 2, in f\n',
        ),
        (
            "def f(e, c): return {1, 2}",
            "nanogrid: the handler app.f returned a value that is not JSON: Object of type set",
        ),
        ("g = 1", "nanogrid: the handler app.f does not exist: app has no callable f\n"),
        ("1 / 0", 'Traceback (most recent call last):\n  File "/workspace/app.py", line 1, in <module>\n'),
    ],
)
def test_a_handler_that_fails_says_why(source: str, says: str, here: Box, tmp_path: Path) -> None:
    """Only the function's own frames, or one sentence. The exit code is 1 and there is no value."""
    place(here, tmp_path, {"app.py": source})
    for _ in range(2):
        run = here.run((*HANDLER, "app.f"))
        assert run.err.decode().startswith(says)
        assert b"call_handler" not in run.err
        assert (run.exit_code, run.result) == (1, b"")


def test_a_handler_in_no_module_of_the_code_says_so(here: Box, tmp_path: Path) -> None:
    """One sentence names the module."""
    run = place(here, tmp_path, "").run((*HANDLER, "nowhere.f"))
    assert run.err == b"nanogrid: the handler nowhere.f names the module nowhere, which is not in the code\n"
