"""Programs that are stopped before their system calls, on a real mount: what can happen meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from stopping import python, selection

import exclfs
from exclfs.testing.programs import Program
from exclfs.testing.seccomp import Listener
from harness import Mounted, start
from program import logged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.mount


NO_CACHE = {"entry_timeout": 0, "attr_timeout": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for all that leave it as it is."""
    with start(tmp_path_factory.mktemp("shared"), **NO_CACHE) as mounted:
        yield mounted


@pytest.fixture
def served(shared: Mounted, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A directory of it with two objects."""
    with shared.narrowed(request.node.name) as narrowed:
        fill(narrowed)
        yield narrowed


@pytest.fixture
def own(mount: Callable[..., Mounted]) -> Mounted:
    """The same on a mount of its own."""
    mounted = mount(**NO_CACHE)
    fill(mounted)
    return mounted


def fill(mounted: Mounted) -> None:
    directory = mounted.setup("objects")
    for name in ("4f", "50"):
        (directory / name).write_text(name)


def on(mounted: Mounted, args: list[Any], **options: Any) -> Program:
    return Program(args, root=mounted.path, backing=mounted.backing, cwd=mounted.path, **options)


def test_a_hold_that_comes_between_the_check_and_the_removal(served: Mounted) -> None:
    served.expect("refused")
    objects = served.path / "objects"
    with on(served, ["find", "objects", "-type", "f", "-delete"], stderr=subprocess.PIPE, text=True) as culler:
        with culler.gate(selection("unlink", "objects/4f")) as gate:
            culler.start()
            stopped = gate.wait()
            with exclfs.hold(stopped.absolute, reason="being served"):
                gate.open()
                assert "objects/4f" in culler.communicate()[1]
        assert culler.returncode == 1
    assert os.listdir(objects) == ["4f"]
    logged(served, "refused")


def test_nothing_is_locked_in_the_directory_meanwhile(served: Mounted) -> None:
    """All of this would wait for an unlink that stands in the mount."""
    objects = served.path / "objects"
    with on(served, ["rm", "objects/4f"]) as program, program.gate(selection("unlink")) as gate:
        program.start()
        gate.wait()
        (objects / "new").write_text("new")
        assert (objects / "4f").read_text() == "4f"
        assert sorted(os.listdir(objects)) == ["4f", "50", "new"]
        os.setxattr(objects / "4f", "user.comment", b"still here")
        (objects / "4f").write_text("written")
        (objects / "new").rename(objects / "4f")
        (objects / "50").unlink()
        gate.open()
        assert program.wait() == 0
    assert os.listdir(objects) == []


def test_one_that_is_killed_there_has_done_nothing_and_keeps_nothing_busy(own: Mounted) -> None:
    with on(own, ["rm", "objects/4f"]) as program, program.gate(selection("unlink")) as gate:
        program.start()
        gate.wait()
        program.kill()
        assert program.wait() == -signal.SIGKILL
        own.unmount()
    assert (own.backing / "objects" / "4f").exists()


def test_a_look_at_a_program_never_asks_the_mount(served: Mounted) -> None:
    """Its server is stopped, and the call is read, through a symlink that only the server could have told of."""
    (served.backing / "link").symlink_to("objects")
    code = "import os; input(); os.unlink('link/4f')"
    program = python(served.path, code, backing=served.backing, stdin=subprocess.PIPE, text=True)
    with program, program.gate(selection("unlink", "objects/4f")) as gate:
        program.start()
        served.process.send_signal(signal.SIGSTOP)
        try:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
            assert gate.wait().path == "objects/4f"
            gate.open()
        finally:
            served.process.send_signal(signal.SIGCONT)
        assert program.wait() == 0


@pytest.mark.root
def test_a_mount_that_goes_away_under_a_program_that_stands(own: Mounted) -> None:
    with on(own, ["rm", "objects/4f"], stderr=subprocess.PIPE, text=True) as program:
        with program.gate(selection("unlink")) as gate:
            program.start()
            gate.wait()
            subprocess.run(["umount", "-l", str(own.path)], check=True)
            gate.open()
            program.communicate()
        # Its working directory was in the mount, and kept it: the file is gone all the same.
        assert program.returncode == 0
    assert not (own.backing / "objects" / "4f").exists()


def test_a_call_that_was_read_too_late_counts_for_nobody(served: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of a thread is worth nothing if its call has gone meanwhile: the pid may be another's."""
    monkeypatch.setattr(Listener, "stands", lambda *_: False)
    with on(served, ["rm", "-f", "objects/4f"]) as program:
        assert program.start().wait() == 0
        assert program.trail.since() == ()
