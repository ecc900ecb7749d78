"""The life of a server: however its mount ends, it ends cleanly, and what a killed one leaves is cleared away."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import exclfs
from harness import Mounted, mounts_now, start
from program import complaint, mounted_by_program, run_options, started
from program import exclfs as command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Mount = Callable[..., Mounted]

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def must_have_ended_cleanly(mounted: Mounted, address: str) -> None:
    """Exit 0; what was below the mount is there again; the control socket is gone."""
    assert mounted.process.wait(30) == 0
    assert os.fsencode(mounted.root) not in mounts_now()
    assert os.listdir(mounted.root) == []
    # The number of the device may have gone to another mount already, and with it the name of the socket.
    assert not os.path.lexists(address) or server_of(address) != mounted.process.pid


def server_of(path: str) -> int:
    """The process that listens on a control socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def socket_of(mounted: Mounted) -> str:
    return os.getxattr(mounted.path, "system.exclfs.socket").decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_unmounts(mount: Mount, number: signal.Signals) -> None:
    mounted = mount()
    address = socket_of(mounted)
    with exclfs.hold(mounted.setup("held")):
        mounted.process.send_signal(number)
        must_have_ended_cleanly(mounted, address)


EARLY = """
import os, signal, sys
from exclfs import mount
from exclfs.mirror import channel

mounted = channel.mount

def and_a_signal(*arguments, **named):
    device = mounted(*arguments, **named)
    os.kill(os.getpid(), signal.SIGTERM)
    return device

channel.mount = and_a_signal
sys.exit(mount.main())
"""


def test_a_signal_that_comes_between_mounting_and_serving_leaves_no_mount(tmp_path: Path) -> None:
    script = tmp_path / "early.py"
    script.write_text(EARLY)
    with start(tmp_path, program=[str(script)]) as mounted:
        assert mounted.process.wait(30) == 0
        assert os.fsencode(mounted.root) not in mounts_now()


@pytest.mark.parametrize(
    "words",
    [["umount"], ["fusermount3", "-u"], ["umount", "-l"], [sys.executable, "-m", "exclfs.cli", "umount"]],
    ids=["umount", "fusermount3", "umount -l", "exclfs umount"],
)
def test_unmounting_ends_the_server(mount: Mount, words: list[str]) -> None:
    mounted = mount()
    address = socket_of(mounted)
    os.setxattr(mounted.setup("held"), "system.exclfs.hold", b"until unmount")
    subprocess.run([*words, str(mounted.root)], check=True, capture_output=True)
    must_have_ended_cleanly(mounted, address)


def test_an_unmounted_mount_serves_until_its_last_user_leaves(mount: Mount) -> None:
    mounted = mount()
    address = socket_of(mounted)
    (mounted.setup("directory") / "file").write_text("content")
    directory = os.open(mounted.path / "directory", os.O_RDONLY)
    try:
        subprocess.run(["umount", "-l", str(mounted.root)], check=True)
        assert os.fsencode(mounted.root) not in mounts_now()
        for number in range(100):
            os.close(os.open(f"new{number}", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
            os.unlink(f"new{number}", dir_fd=directory)
        assert os.stat("file", dir_fd=directory).st_size == len("content")
        assert mounted.process.poll() is None
        assert os.path.lexists(address)
    finally:
        os.close(directory)
    must_have_ended_cleanly(mounted, address)


@contextlib.contextmanager
def user_of(mounted: Mounted, uses: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the mount in use in this way, and on the next line that it is told tries to go on."""
    uses_it = {
        "file": "f = open('file', 'r+'); go_on = lambda: (f.write('x'), f.flush(), os.fsync(f.fileno()))",
        "directory": "f = os.open('directory', os.O_RDONLY); go_on = lambda: os.stat('file', dir_fd=f)",
        "working directory": "os.chdir('directory'); go_on = lambda: open('new', 'w')",
        "mapping": "m = mmap.mmap(os.open('file', os.O_RDWR), 0); go_on = lambda: (m.__setitem__(0, 1), m.flush())",
    }
    script = f"""
import mmap, os
os.chdir({str(mounted.root)!r})
{uses_it[uses]}
if not {uses!r}.startswith("working"): os.chdir("/")
print("using", flush=True)
input()
try: go_on()
except OSError as error: print(error.errno, flush=True)
else: print("went on", flush=True)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "using\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("uses", ["file", "directory", "working directory", "mapping"])
def test_a_signal_unmounts_also_what_is_in_use(mount: Mount, uses: str) -> None:
    mounted = mount()
    address = socket_of(mounted)
    (mounted.backing / "file").write_text("content")
    mounted.setup("directory")
    with user_of(mounted, uses) as process:
        mounted.process.terminate()
        must_have_ended_cleanly(mounted, address)
        said, _ = process.communicate("go on\n", timeout=30)
        # What was opened is served no more; only what the kernel can write to the disk itself (passthrough) may go on.
        assert said.strip() in {str(errno.ENOTCONN), str(errno.ECONNABORTED), str(errno.EIO), "went on"}
        assert uses in {"file", "mapping"} or said != "went on\n"
        assert process.returncode == 0


def test_unmounting_what_is_in_use_says_so_and_it_goes_on(mount: Mount) -> None:
    mounted = mount()
    (mounted.backing / "file").write_text("content")
    mounted.setup("directory")
    with user_of(mounted, "directory") as process:
        assert "busy" in complaint(command("umount", mounted.root, status=3))
        mounted.setup("removed")
        (mounted.path / "removed").rmdir()
        assert process.communicate("go on\n", timeout=30)[0] != ""


# --- servers that are killed -----------------------------------------------------------------------------------------


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Mounted]:
    """A mountpoint whose server was killed."""
    mounted = start(tmp_path)
    os.setxattr(mounted.setup("held"), "system.exclfs.hold", b"until unmount")
    mounted.process.kill()
    mounted.process.wait()
    assert os.fsencode(mounted.root) in mounts_now()
    yield mounted
    if os.fsencode(mounted.root) in mounts_now():
        subprocess.run(["umount", "-l", str(mounted.root)], check=True)


def test_the_next_mount_clears_away_what_a_killed_server_left(killed: Mounted) -> None:
    with mounted_by_program(killed.backing, killed.root):
        (killed.path / "held").rmdir()
        assert sum(mountpoint == os.fsencode(killed.root) for mountpoint in mounts_now()) == 1
        command("umount", killed.root)
    assert os.listdir(killed.root) == []


def test_also_while_somebody_still_uses_it(killed: Mounted) -> None:
    again = os.open(killed.root, os.O_PATH)
    try:
        with mounted_by_program(killed.backing, killed.root):
            assert (killed.path / "held").is_dir()
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.stat("held", dir_fd=again)
    finally:
        os.close(again)


def test_what_a_killed_server_left_is_told_from_a_mount_and_unmounted(killed: Mounted) -> None:
    for words in (["status"], ["holds"], ["inuse"], ["hold"]):
        assert "has ended" in complaint(command(*words, killed.root, status=4))
    said = command("why", killed.root).stdout
    assert "is a mountpoint" in said
    assert "has ended" in said
    with pytest.raises(exclfs.NoServer):
        exclfs.connect(killed.root)
    command("umount", killed.root)
    assert os.listdir(killed.root) == []


# --- several mounts --------------------------------------------------------------------------------------------------


def test_two_mounts_are_two_servers(mount: Mount) -> None:
    one, other = mount(), mount()
    assert one.process.pid != other.process.pid
    assert socket_of(one) != socket_of(other)
    assert one.path.stat().st_dev != other.path.stat().st_dev
    with exclfs.hold(one.setup("held")):
        other.setup("held").rmdir()
        assert exclfs.holds(other.path) == ()
        other.process.kill()
        other.process.wait()
        with pytest.raises(OSError, match="busy"):
            (one.path / "held").rmdir()
    one.expect("refused")
    subprocess.run(["umount", str(other.root)], check=True)
    other.process.returncode = 0


@pytest.mark.parametrize("in_place", [False, True], ids=["elsewhere", "in place"])
def test_a_mountpoint_is_mounted_once(mount: Mount, tmp_path: Path, in_place: bool) -> None:
    tree = tmp_path / "tree"
    mounted = mount(source=tree, mountpoint=tree) if in_place else mount()
    source = mounted.root if in_place else mounted.backing
    said = complaint(command("mount", source, mounted.root, *run_options(), status=6))
    assert str(mounted.root) in said
    assert "already" in said
    (mounted.path / "served").mkdir()


@pytest.mark.parametrize("in_place", [False, True], ids=["elsewhere", "in place"])
def test_of_those_that_mount_at_the_same_moment_one_does(tmp_path: Path, in_place: bool) -> None:
    source, mountpoint = tmp_path / "tree", tmp_path / "mnt"
    source.mkdir()
    mountpoint.mkdir()
    if in_place:
        mountpoint = source
    words = ["mount", source, mountpoint, *run_options(), "--log", tmp_path / "log"]
    for _ in range(2):
        rivals = [started(*words) for _ in range(3)]
        ends = [(*rival.communicate(timeout=60), rival.returncode) for rival in rivals]
        try:
            assert sorted(status for *_, status in ends) == [0, 6, 6], ends
            assert all("already" in said and said.count("\n") == 1 for _, said, status in ends if status), ends
            assert list(mounts_now()).count(os.fsencode(mountpoint)) == 1
            (mountpoint / "directory").mkdir()
            (mountpoint / "directory").rmdir()
        finally:
            command("umount", mountpoint)
    assert os.fsencode(mountpoint) not in mounts_now()


def test_a_tree_is_covered_in_place_and_comes_back(mount: Mount, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "held").mkdir(parents=True)
    before = tree.stat().st_dev
    mounted = mount(source=tree, mountpoint=tree)
    mounted.expect("refused")
    assert tree.stat().st_dev != before
    with exclfs.hold(tree / "held"), pytest.raises(OSError, match="busy"):
        (tree / "held").rmdir()
    (tree / "new").write_text("written through the mount")
    mounted.unmount()
    assert mounted.process.wait(30) == 0
    assert tree.stat().st_dev == before
    assert (tree / "new").read_text() == "written through the mount"
    (tree / "held").rmdir()
