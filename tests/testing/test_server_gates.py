"""Gates in the mirror of a real mount: programs stop, tests act, programs go on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from exclfs.gating import Selection
from exclfs.testing import CannotBeGated, GateNotReached, LeftAtGate, NobodyWaits
from exclfs.testing.faults import Fault
from exclfs.testing.server_gates import ServerGate
from exclfs.wire.messages import StatusCall
from gated import control_of
from harness import default_options

if TYPE_CHECKING:
    from exclfs.testing.control import Control
    from gated import Run
    from harness import Mounted

pytestmark = pytest.mark.mount
PATIENCE = 30


def meant(mounted: Mounted, operations: str, pattern: str, more: dict[str, Any]) -> Selection:
    """Of the directory that this test has."""
    below = mounted.path.relative_to(mounted.root)
    return Selection(operations=operations.split(), pattern=str(below / pattern), **more)


def gate(mounted: Mounted, control: Control, operations: str, pattern: str = "**", **more: Any) -> ServerGate:
    return ServerGate(control, meant(mounted, operations, pattern, more))


def below(mounted: Mounted, path: str) -> str:
    """The path as a server tells it, relative to the mount."""
    return str((mounted.path / path).relative_to(mounted.root))


def files(mounted: Mounted, *names: str) -> None:
    for name in names:
        (mounted.backing / name).parent.mkdir(parents=True, exist_ok=True)
        (mounted.backing / name).write_text("content")


def test_a_program_stops_and_the_test_holds_what_it_was_about_to_remove(
    gated: Mounted, control: Control, run: Run
) -> None:
    gated.expect("refused")
    files(gated, "objects/a", "objects/b")
    with gate(gated, control, "unlink", "objects/a", pids=[os.getpid()]) as standing:
        rm = run("rm", gated.path / "objects/b", gated.path / "objects/a")
        stopped = standing.wait(PATIENCE)
        assert (stopped.operation, stopped.path, stopped.comm) == ("unlink", below(gated, "objects/a"), "rm")
        assert stopped.pid == rm.pid
        assert stopped.absolute == gated.path / "objects/a"
        assert (gated.backing / "objects/a").exists()
        assert standing.waiting == (stopped,)
        with control.hold(stopped.path, flags=None, claim=True, holder="me", reason="") as hold:
            assert [one.id for one in control.holds(stopped.path)] == [hold.id]
            standing.open()
            assert rm.wait(PATIENCE) == 1
    assert "resource busy" in rm.communicate()[1]
    assert sorted(os.listdir(gated.backing / "objects")) == ["a"]
    about = [event.name for event in control.events() if str(gated.path) in repr(event)]
    assert about == ["locked", "refused", "unlocked"]


def test_after_it_is_done(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    with gate(gated, control, "unlink", when="after") as standing:
        rm = run("rm", gated.path / "a")
        stopped = standing.wait(PATIENCE)
        assert stopped.when == "after"
        assert not (gated.backing / "a").exists()
        assert rm.poll() is None
        assert standing.open_one() == stopped
        assert rm.wait(PATIENCE) == 0


def test_one_after_the_other_and_an_answer(gated: Mounted, control: Control, run: Run) -> None:
    names = ["a", "b", "c"]
    files(gated, *names)
    with gate(gated, control, "unlink") as standing:
        rm = run("rm", *(gated.path / name for name in names))
        first = standing.wait(PATIENCE)
        assert standing.open_one(first) == first
        second = standing.wait(PATIENCE)
        with pytest.raises(NobodyWaits, match="does not wait"):
            standing.open_one(first)
        assert standing.answer(errno.EIO) == second
        assert standing.wait(PATIENCE).path == below(gated, "c")
        standing.open()
        assert rm.wait(PATIENCE) == 1
        assert "b': Input/output error" in rm.communicate()[1]
        with pytest.raises(NobodyWaits, match="nobody waits"):
            standing.open_one()
        with pytest.raises(ValueError, match="no errno"):
            standing.answer(0)
    assert os.listdir(gated.backing) == ["b"]


def test_only_by_whom_only_where_and_only_the_nth(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a", "b", "other/a")
    nobody = gate(gated, control, "unlink", "*", pids=[1 << 30])
    with gate(gated, control, "unlink", "*", nth=2, pids=[os.getpid()]) as second:
        subprocess.run(["rm", gated.path / "other/a", gated.path / "a"], check=True)
        shell = run("sh", "-c", 'rm "$0"; true', gated.path / "b")
        assert second.wait(PATIENCE).path == below(gated, "b")  # by a grandchild of this process
        second.open()
        assert shell.wait(PATIENCE) == 0
    assert nobody.waiting == ()
    with pytest.raises(GateNotReached) as caught, nobody:
        pass
    told = str(caught.value)
    assert f"unlink of '{below(gated, 'other/a')}': done" in told
    unlinked = [one.path for one in caught.value.happened if one.operation == "unlink"]
    assert unlinked == [below(gated, name) for name in ("other/a", "a", "b")]


def test_a_gate_that_nobody_comes_to_fails_the_test(gated: Mounted, control: Control) -> None:
    files(gated, "a")
    expected = r"(?s)nobody came to the gate before rmdir.*unlink of '.*/a': done"
    with pytest.raises(GateNotReached, match=expected), gate(gated, control, "rmdir"):
        subprocess.run(["rm", gated.path / "a"], check=True)


def test_one_that_is_left_at_a_gate_fails_the_test_and_goes_on(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    standing = gate(gated, control, "unlink")
    rm = run("rm", gated.path / "a")
    with pytest.raises(LeftAtGate, match=r"rm \(pid \d+\) stands before unlink of '.*/a'"), standing:
        standing.wait(PATIENCE)
    assert rm.wait(PATIENCE) == 0
    assert not (gated.backing / "a").exists()


def test_another_failure_is_not_covered_up(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    standing = gate(gated, control, "unlink")
    rm = run("rm", gated.path / "a")
    standing.wait(PATIENCE)
    with pytest.raises(ZeroDivisionError), standing:
        raise ZeroDivisionError
    assert rm.wait(PATIENCE) == 0


def test_a_gate_ends_with_its_connection(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    standing = gate(gated, control, "unlink")
    rm = run("rm", gated.path / "a")
    standing.wait(PATIENCE)
    standing._own.close()
    assert rm.wait(PATIENCE) == 0
    with standing:
        pass  # it has gone, which is nobody's failure
    subprocess.run(["touch", gated.path / "b"], check=True)


# --- who is to die ----------------------------------------------------------------------------------------------------


def test_a_killed_program_does_not_remove(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    with gate(gated, control, "unlink") as standing:
        rm = run("rm", gated.path / "a")
        standing.wait(PATIENCE)
        rm.kill()
        assert rm.wait(PATIENCE) == -signal.SIGKILL
        assert standing.waiting == ()
    assert (gated.backing / "a").exists()


def test_one_that_was_terminated_does_not_remove_either(gated: Mounted, control: Control, run: Run) -> None:
    """SIGTERM without a handler ends a program as surely: the kernel gives every thread a SIGKILL at once."""
    files(gated, "a")
    with gate(gated, control, "unlink") as standing:
        rm = run("rm", gated.path / "a")
        standing.wait(PATIENCE)
        rm.terminate()
        assert rm.wait(PATIENCE) == -signal.SIGTERM
    assert (gated.backing / "a").exists()


HANDLES_ALARMS = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
os.unlink(sys.argv[1])
"""


def test_a_signal_that_is_handled_changes_nothing_and_the_kill_after_it_ends_it(
    gated: Mounted, control: Control, run: Run
) -> None:
    """The kernel tells of one signal only; it is the second that ends the program."""
    files(gated, "a")
    with gate(gated, control, "unlink") as standing:
        program = run(sys.executable, "-c", HANDLES_ALARMS, gated.path / "a")
        standing.wait(PATIENCE)
        program.send_signal(signal.SIGALRM)
        with pytest.raises(GateNotReached):
            standing.wait(0.3)
        assert len(standing.waiting) == 1
        program.kill()
        assert program.wait(PATIENCE) == -signal.SIGKILL
    assert (gated.backing / "a").exists()


def test_after_it_was_done_a_killed_program_ends(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    with gate(gated, control, "unlink", when="after") as standing:
        rm = run("rm", gated.path / "a")
        standing.wait(PATIENCE)
        rm.kill()
        assert rm.wait(PATIENCE) == -signal.SIGKILL
    assert not (gated.backing / "a").exists()


# --- the end of the mount ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["umount -l", "SIGTERM"])
def test_the_end_of_the_mount_lets_everybody_go(gated_alone: Mounted, run: Run, how: str) -> None:
    mounted, control = gated_alone, control_of(gated_alone)
    files(mounted, "a/file", "b/file")
    with (
        gate(mounted, control, "unlink", "a/*") as first,
        gate(mounted, control, "unlink", "b/*", when="after") as last,
    ):
        rms = [run("rm", mounted.path / name) for name in ("a/file", "b/file")]
        first.wait(PATIENCE)
        last.wait(PATIENCE)
        if how == "SIGTERM":
            mounted.process.send_signal(signal.SIGTERM)
        else:
            assert subprocess.run(["umount", mounted.path], capture_output=True, check=False).returncode != 0
            subprocess.run(["umount", "-l", mounted.path], check=True)
            first.open()
            last.open()
        ends = [rm.wait(PATIENCE) for rm in rms]
        # What needs a verdict is refused once nobody is left to give one.
        asked = how == "SIGTERM" and default_options().get("ask_always")
        assert ends in ([0, 0], [1, 0] if asked else [0, 0])
        assert mounted.process.wait(PATIENCE) == 0
    assert os.listdir(mounted.backing / "a") == ["file"] * ends[0]
    assert os.listdir(mounted.backing / "b") == []
    control.close()


@pytest.mark.root
def test_an_abort_ends_everything(gated_alone: Mounted, run: Run) -> None:
    mounted, control = gated_alone, control_of(gated_alone)
    files(mounted, "a/file", "b/file")
    with (
        gate(mounted, control, "unlink", "a/*") as first,
        gate(mounted, control, "unlink", "b/*", when="after") as last,
    ):
        rms = [run("rm", mounted.path / name) for name in ("a/file", "b/file")]
        first.wait(PATIENCE)
        last.wait(PATIENCE)
        subprocess.run(["umount", "-f", mounted.path], capture_output=True, check=False)  # aborts, if it cannot unmount
        assert [rm.wait(PATIENCE) for rm in rms] == [1, 1]
        assert all("Software caused connection abort" in rm.communicate()[1] for rm in rms)
        assert mounted.process.wait(PATIENCE) == 0
    assert os.listdir(mounted.backing / "a") == ["file"]
    assert os.listdir(mounted.backing / "b") == []
    control.close()


# --- who may ----------------------------------------------------------------------------------------------------------


def test_what_nobody_could_come_to_is_refused(gated: Mounted, control: Control) -> None:
    with pytest.raises(CannotBeGated, match="flock never comes to the mount"):
        gate(gated, control, "flock")
    with pytest.raises(CannotBeGated, match="create cannot fail after it was done"):
        ServerGate(control, Selection(operations="create", when="after"), answer=errno.EIO)


def test_a_mount_without_the_option_has_none(mounted: Mounted) -> None:
    with pytest.raises(CannotBeGated, match="not started with -o gates"):
        gate(mounted, control_of(mounted), "unlink")


STRANGER = """
import os, sys
from exclfs.client import discovery
from exclfs.gating import Selection
from exclfs.testing.control import Control
from exclfs.testing.server_gates import ServerGate
server = discovery.find(sys.argv[1])
control = Control(server.mountpoint, server.socket, server.owner)
os.setgid(65534)
os.setuid(65534)
try:
    ServerGate(control, Selection(operations="unlink"))
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.root
def test_reads_and_writes_that_the_kernel_does_by_itself_are_refused(gated_alone: Mounted) -> None:
    control = control_of(gated_alone)
    if control.ask(StatusCall()).status.passthrough:
        with pytest.raises(CannotBeGated, match="nopassthrough"):
            gate(gated_alone, control, "write")
    else:
        pytest.skip("this kernel has no passthrough")
    control.close()


@pytest.mark.root
def test_others_than_root_and_the_owner_may_not(gated: Mounted) -> None:
    said = subprocess.run([sys.executable, "-c", STRANGER, gated.root], capture_output=True, text=True, check=False)
    assert said.stdout == "NotPermitted\n", said.stderr


def test_one_thread_opens_while_another_waits(gated: Mounted, control: Control) -> None:
    files(gated, "a")
    with gate(gated, control, "unlink") as standing:
        opener = threading.Timer(0.05, standing.open)
        opener.start()
        with pytest.raises(GateNotReached):
            standing.wait(0.5)
        opener.join()
        subprocess.run(["rm", gated.path / "a"], check=True)


# --- faults -----------------------------------------------------------------------------------------------------------


def fault(mounted: Mounted, control: Control, operations: str, pattern: str = "**", **more: Any) -> Fault:
    how = {name: more.pop(name) for name in ("answer", "delay") if name in more}
    return Fault(ServerGate(control, meant(mounted, operations, pattern, more), **how))


def test_the_second_fails_and_nothing_is_done_to_it(gated: Mounted, control: Control) -> None:
    files(gated, "a", "b", "c")
    with fault(gated, control, "unlink", answer=errno.ENOSPC, nth=2) as struck:
        rm = subprocess.run(["rm", *(gated.path / name for name in "abc")], capture_output=True, text=True, check=False)
        assert "b': No space left on device" in rm.stderr
    assert struck.struck == 1
    assert os.listdir(gated.backing) == ["b"]


def test_a_delay_lasts_as_long_as_the_fault(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    with fault(gated, control, "unlink", delay=1000.0) as struck:
        rm = run("rm", gated.path / "a")
        while not struck.struck:
            time.sleep(0.001)
        assert rm.poll() is None
    assert rm.wait(PATIENCE) == 0
    with fault(gated, control, "mkdir", delay=0.01):
        subprocess.run(["mkdir", gated.path / "directory"], check=True)


def test_a_fault_that_struck_nobody_fails_the_test(gated: Mounted, control: Control) -> None:
    with pytest.raises(GateNotReached, match="struck nobody"), fault(gated, control, "unlink", answer=errno.EIO):
        pass


def test_what_passes_a_gate_meets_the_fault_behind_it(gated: Mounted, control: Control, run: Run) -> None:
    files(gated, "a")
    with gate(gated, control, "unlink") as standing, fault(gated, control, "unlink", answer=errno.EIO):
        rm = run("rm", gated.path / "a")
        standing.wait(PATIENCE)
        standing.open()
        assert rm.wait(PATIENCE) == 1
    assert (gated.backing / "a").exists()
