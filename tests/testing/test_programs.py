"""Programs that are stopped at their system calls: gates, faults, and that nobody hangs."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from stopping import python, selection

from exclfs.gating import BadSelection
from exclfs.testing import (
    CannotBeGated,
    GateNotReached,
    LeftAtGate,
    NobodyWaits,
)
from exclfs.testing.calls import CallReader
from exclfs.testing.programs import Program
from exclfs.testing.trail import Fate
from harness import children


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with three files."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abc":
        (tree / name).write_text(name)
    return tree


@pytest.fixture(autouse=True)
def nothing_left(tree: Path) -> object:
    """No thread, descriptor or child outlives the programs of a test; idle threads of others may end meanwhile."""
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), children()
    yield
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert threading.active_count() <= before[1]
    assert children() <= before[2]


REMOVE = "import os, sys\nfor name in sys.argv[1:]:\n    os.unlink(name)"


def test_it_is_stopped_before_anything_is_locked(tree: Path) -> None:
    with python(tree, REMOVE, "a") as program, program.gate(selection("unlink", "a")) as gate:
        program.start()
        stopped = gate.wait()
        assert (stopped.operation, stopped.path, stopped.second_path) == ("unlink", "a", None)
        assert stopped.pid == program.pid
        assert stopped.absolute == tree / "a"
        (tree / "new").write_text("in the same directory")
        (tree / "a").rename(tree / "saved")
        gate.open()
        assert program.wait() == 1
    assert (tree / "saved").exists()


def test_one_after_another(tree: Path) -> None:
    with python(tree, REMOVE, "a", "b", "c") as program, program.gate(selection("unlink")) as gate:
        program.start()
        assert gate.wait().path == "a"
        assert [stopped.path for stopped in gate.waiting] == ["a"]
        gate.open_one()
        stopped = gate.wait()
        assert stopped.path == "b"
        assert not (tree / "a").exists()
        assert (tree / "b").exists()
        assert gate.open_one(stopped) == stopped
        with pytest.raises(NobodyWaits):
            gate.open_one(stopped)
        gate.open()
        assert program.wait() == 0


def test_an_answer_is_not_executed(tree: Path) -> None:
    with python(tree, REMOVE, "a", stderr=subprocess.PIPE, text=True) as program:
        with program.gate(selection("unlink")) as gate:
            program.start()
            gate.wait()
            gate.answer(errno.EBUSY)
            assert "Device or resource busy" in program.communicate()[1]
        assert program.returncode == 1
    assert (tree / "a").exists()
    fates = [(entry.fate, entry.path, entry.errno) for entry in program.trail.since() if entry.operation == "unlink"]
    assert fates == [(Fate.STOPPED, "a", None), (Fate.ANSWERED, "a", errno.EBUSY)]


def test_only_the_nth(tree: Path) -> None:
    with python(tree, REMOVE, "a", "b", "c") as program, program.gate(selection("unlink", nth=2)) as gate:
        program.start()
        assert gate.wait().path == "b"
        gate.open_one()
        assert program.wait() == 0


def test_two_gates_in_order(tree: Path) -> None:
    with python(tree, REMOVE, "a") as program:
        first, second = program.gate(selection("unlink")), program.gate(selection(("unlink", "rmdir"), "a"))
        with first, second:
            program.start()
            first.wait()
            assert second.waiting == ()
            first.open()
            assert second.wait().path == "a"
            second.answer(errno.EPERM)
            assert program.wait() == 1
    assert (tree / "a").exists()


def test_children_and_threads_are_watched(tree: Path) -> None:
    code = (
        "import os, subprocess, threading\n"
        "threads = [threading.Thread(target=os.unlink, args=(name,)) for name in 'ab']\n"
        "[thread.start() for thread in threads]\n"
        "subprocess.run(['sh', '-c', 'rm c'], check=True)\n"
        "[thread.join() for thread in threads]"
    )
    with python(tree, code) as program, program.gate(selection("unlink")) as gate:
        program.start()
        stopped = {gate.wait().path: gate for _ in range(3)}
        assert set(stopped) == {"a", "b", "c"}
        assert len({one.pid for one in gate.waiting}) == 3
        gate.open()
        assert program.wait() == 0


def test_a_statically_started_shell_runs_as_ever(tree: Path) -> None:
    with Program(
        ["sh", "-c", "cat a b; rm c; exit 7"], root=tree, backing=tree, cwd=tree, stdout=subprocess.PIPE
    ) as it:
        assert it.start().communicate() == (b"ab", None)
        assert it.returncode == 7
    assert not (tree / "c").exists()


def test_nothing_of_the_launcher_remains(tree: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "ONLY": "this"}
    command = ["sh", "-c", "env -u PWD -u SHLVL -u _; ls /proc/self/fd; grep SigIgn /proc/$$/status"]
    expected = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, check=True).stdout
    with Program(command, root=tree, backing=tree, cwd=tree, env=environment, stdout=subprocess.PIPE) as program:
        assert program.start().communicate()[0] == expected


def test_a_program_that_is_not_there_is_an_error_here(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="exclfs-no-such-program"):
        Program(["exclfs-no-such-program"], root=tree, backing=tree).start()
    with pytest.raises(PermissionError):
        Program([tree / "a"], root=tree, backing=tree).start()


def test_a_gate_that_nobody_reaches_says_what_happened(tree: Path) -> None:
    with python(tree, REMOVE, "a") as program:
        gate = program.gate(selection("unlink", "b"))
        with pytest.raises(GateNotReached, match="has not been started"):
            gate.wait()
        program.start()
        with pytest.raises(GateNotReached, match=r"has ended(.|\n)*unlink of 'a'"):
            gate.wait()
        with pytest.raises(GateNotReached, match="nobody came"), gate:
            pass


def test_left_at_a_gate(tree: Path) -> None:
    with python(tree, REMOVE, "a") as program:
        gate = program.gate(selection("unlink"))
        program.start()
        gate.wait()
        with pytest.raises(LeftAtGate, match="unlink of 'a'"), gate:
            pass
        assert program.wait() == 0
    assert not (tree / "a").exists()


def test_a_failure_of_the_block_is_not_hidden(tree: Path) -> None:
    with python(tree, REMOVE, "a") as program:
        gate = program.gate(selection("unlink"))
        program.start()
        gate.wait()
        with pytest.raises(ZeroDivisionError), gate:
            raise ZeroDivisionError
        assert program.wait() == 0


def test_what_is_killed_where_it_stands_is_gone_and_has_done_nothing(tree: Path) -> None:
    with python(tree, REMOVE, "a") as program, program.gate(selection("unlink")) as gate:
        program.start()
        stopped = gate.wait()
        program.kill()
        assert program.wait() == -signal.SIGKILL
        with pytest.raises(NobodyWaits):
            gate.open_one(stopped)
        assert gate.waiting == ()
    assert (tree / "a").exists()


def test_a_signal_does_not_disturb_who_stands(tree: Path) -> None:
    """A handler runs after the call (WAIT_KILLABLE_RECV); on an older kernel the call comes back by itself."""
    code = "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))\nos.unlink('a')"
    with python(tree, code, stdout=subprocess.PIPE, text=True) as program:
        with program.gate(selection("unlink")) as gate:
            program.start()
            gate.wait()
            program.send_signal(signal.SIGUSR1)
            gate.open()
            assert program.communicate()[0] == "handled\n"
        assert program.returncode == 0


def test_closing_ends_all_of_it(tree: Path) -> None:
    """Also what sleeps, and what has left the process group and the tree."""
    code = (
        "import os, subprocess, sys, time\n"
        "sleeper = subprocess.Popen(['sleep', '1000'])\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), sleeper.pid, flush=True)\n"
        "        while True:\n"
        "            os.path.exists('a'); time.sleep(0.01)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "os.unlink('a')"
    )
    with python(tree, code, stdout=subprocess.PIPE, text=True) as program:
        gate = program.gate(selection("unlink"))
        program.start()
        gate.wait()
        pids = [os.pidfd_open(int(word)) for word in program.stdout.readline().split()]  # type: ignore[union-attr]
    for pid in pids:
        assert select.select([pid], [], [], 30)[0]
        os.close(pid)
    assert (tree / "a").exists()


def test_when_the_test_dies_nobody_hangs(tree: Path) -> None:
    """The listener closes with it, and the call fails with ENOSYS."""
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from stopping import python, selection
tree = Path({str(tree)!r})
program = python(tree, "import os\\ntry: os.unlink('a')\\nexcept OSError as e: os.write(1, str(e.errno).encode())")
gate = program.gate(selection("unlink"))
program.start()
gate.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert died.stdout == str(errno.ENOSYS).encode()
    assert (tree / "a").exists()


def test_a_supervisor_that_breaks_hangs_nobody(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    caught: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", caught.append)
    with python(tree, REMOVE, "a", "b", stderr=subprocess.PIPE, text=True) as program:
        gate = program.gate(selection("unlink"))
        program.start()
        gate.wait()
        monkeypatch.setattr(CallReader, "read", broken)
        gate.open()
        assert "Function not implemented" in program.communicate()[1]
    assert [str(args.exc_value) for args in caught] == ["broken"]


AS_A_USER = """
import ctypes, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import exclfs.testing.launch as launch
from exclfs.testing.programs import Program
from stopping import selection
tree = Path(sys.argv[4])
(tree / "a").write_text("")
tree.chmod(0o777)
# The user may not be able to read where exclfs and Python are: only the launcher is read from now on.
text = Path(launch.__file__).read_text()
launch.__file__ = str(tree / "launch.py")
Path(launch.__file__).write_text(text)
sys.executable = sys.argv[3]
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as in a program that was this user's from its start
code = "rm a; grep NoNewPrivs /proc/self/status"
program = Program(["sh", "-c", code], root=tree, backing=tree, cwd=tree, operations="unlink")
with program, program.gate(selection("unlink", "a")) as gate:
    program.start()
    print(gate.wait().path, flush=True)
    gate.open()
    program.wait()
"""


def test_it_runs_for_an_ordinary_user_as_well(tmp_path: Path) -> None:
    """With no_new_privs, which the kernel wants of whoever is not root."""
    if os.geteuid() != 0:
        pytest.skip("the other tests show it: this user is not root")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("there is no Python that every user can run")
    command = [sys.executable, "-c", AS_A_USER, str(Path(__file__).parent), str(Path(__file__).parents[2]), python]
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # the way to tmp_path is not open to everybody
        done = subprocess.run([*command, directory], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("a\nNoNewPrivs:\t1\n", 0), done.stderr


# --- faults ----------------------------------------------------------------------------------------------------------


def test_the_nth_fails(tree: Path) -> None:
    code = "import os\nfor name in 'abc':\n    try: os.unlink(name)\n    except OSError as e: print(name, e.errno)"
    with python(tree, code, stdout=subprocess.PIPE, text=True) as program:
        with program.fault(selection("unlink", nth=2), errno=errno.ENOSPC) as fault:
            assert program.start().communicate()[0] == f"b {errno.ENOSPC}\n"
        assert fault.struck == 1
    assert sorted(os.listdir(tree)) == ["b"]


def test_a_delay_comes_before_the_call(tree: Path) -> None:
    code = "import os, time\nt = time.monotonic(); os.unlink('a'); print(time.monotonic() - t)"
    with python(tree, code, stdout=subprocess.PIPE, text=True) as program:
        program.fault(selection("unlink"), delay=0.3)
        assert float(program.start().communicate()[0]) >= 0.3
    assert not (tree / "a").exists()
    fates = [entry.fate for entry in program.trail.since() if entry.operation == "unlink"]
    assert fates == [Fate.DELAYED, Fate.LET_GO]


def test_a_delay_ends_with_its_program(tree: Path) -> None:
    with python(tree, "import os; os.unlink('a')") as program:
        program.fault(selection("unlink"), delay=1000)
        program.start()
        while not [entry for entry in program.trail.since() if entry.fate is Fate.DELAYED]:
            time.sleep(0.01)
    assert (tree / "a").exists()


def test_a_fault_that_is_closed_strikes_no_more_and_what_it_delays_goes_on(tree: Path) -> None:
    with python(tree, REMOVE, "a", "b") as program:
        program.fault(selection("unlink", "b"), errno=errno.EIO).close()
        fault = program.fault(selection("unlink", "a"), delay=1000)
        program.start()
        while not fault.struck:
            time.sleep(0.01)
        fault.close()
        assert program.wait() == 0


def test_a_fault_that_strikes_nobody_fails_the_test(tree: Path) -> None:
    with python(tree, REMOVE, "a") as program:
        fault = program.fault(selection("rename"), errno=errno.EIO)
        assert program.start().wait() == 0
        with pytest.raises(GateNotReached, match=r"struck nobody(.|\n)*unlink of 'a'"), fault:
            pass


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_gates_that_could_never_be_reached_are_refused(tree: Path) -> None:
    with python(tree, REMOVE, "a", operations="unlink") as program:
        with pytest.raises(CannotBeGated, match="after"):
            program.gate(selection("unlink", when="after"))
        with pytest.raises(CannotBeGated, match="rename"):
            program.gate(selection(("unlink", "rename")))
    with pytest.raises(CannotBeGated, match="lookup"):
        python(tree, REMOVE, operations="lookup")
    with pytest.raises(BadSelection, match="nonsense"):
        python(tree, REMOVE, operations="nonsense")


def test_a_listener_beside_another_is_told(tree: Path) -> None:
    """The kernel allows a process one listener (EBUSY)."""
    inner = (
        "import sys\nsys.path[:0] = sys.argv[2:4]\nfrom pathlib import Path\nfrom stopping import python\n"
        "tree = Path(sys.argv[1])\ntry: python(tree, 'pass').start()\nexcept OSError as error: print(error.errno)"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", inner, str(tree), *paths]
    with Program(command, root=tree, backing=tree, stdout=subprocess.PIPE, text=True) as program:
        assert program.start().communicate()[0] == f"{errno.EBUSY}\n"
