"""Holds that outlive their server (--persistent, --state): killed and started again, they are on the same inodes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import exclfs
from exclfs.holds.lifetime import Exit, StateFile, Time, Unmount
from harness import Mounted, mounts_now, start
from program import complaint, document, mounted_by_program, wait_for_exit
from program import exclfs as command
from twins import as_user
from user_mounts import AS_NOBODY, NOBODY, USERS_OPTIONS, device_for_everybody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


class Lasting:
    """A mount with a state file, whose server is killed and started again."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.tree = directory / "tree"
        self.path = directory / "mnt"
        self.expected: set[str] = set()
        self._options = {"state": str(self.state), **options}
        self._mounted: Mounted | None = None
        self.tree.mkdir(exist_ok=True)

    def start(self, **options: Any) -> Mounted:
        self._mounted = start(self.directory, **{**self._options, **options})
        self._mounted.expected = self.expected
        return self._mounted

    def kill(self) -> None:
        """SIGKILL; the mountpoint is cleared of what it leaves behind (ENOTCONN)."""
        assert self._mounted is not None
        self._mounted.process.kill()
        self._mounted.process.wait()
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        self._mounted = None

    def restart(self) -> Mounted:
        self.kill()
        return self.start()

    def unmount(self) -> None:
        """In good order; the server must have ended well."""
        if self._mounted is not None:
            mounted, self._mounted = self._mounted, None
            mounted.__exit__(None, None, None)

    def hold(self, *names: str, **how: Any) -> tuple[exclfs.Hold, ...]:
        """Places persistent holds, which end with nothing else unless it is named."""
        with exclfs.connect(self.path) as client:
            return client.hold([self.path / name for name in names], persistent=True, **how)

    def holds(self) -> tuple[exclfs.Hold, ...]:
        """All that the server has."""
        with exclfs.connect(self.path) as client:
            return client.holds()

    def setup(self, *names: str) -> None:
        """Makes directories behind the mount."""
        for name in names:
            (self.tree / name).mkdir(parents=True)


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Lasting]:
    made = Lasting(tmp_path)
    try:
        yield made
    finally:
        made.unmount()


def refused(remove: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="busy"):
        remove()


# --- SIGKILL and start ------------------------------------------------------------------------------------------------


def test_every_hold_is_back_after_a_sigkill(lasting: Lasting) -> None:
    lasting.expected = {"refused"}
    lasting.setup("directory")
    for number in range(50):
        (lasting.tree / f"file{number}").touch()
    lasting.start()
    placed = lasting.hold("directory", reason="the database") + lasting.hold(
        *(f"file{number}" for number in range(50)), claim=False, holder="wächter"
    )
    for _ in range(3):
        assert lasting.holds() == placed
        lasting.restart()
    assert lasting.holds() == placed
    refused((lasting.path / "directory").rmdir)
    refused((lasting.path / "file49").unlink)
    with exclfs.connect(lasting.path) as client, pytest.raises(exclfs.Held) as caught:
        client.hold(lasting.path / "directory")
    assert caught.value.hold == placed[0]


def test_what_is_not_persistent_is_not_back(lasting: Lasting) -> None:
    lasting.setup("kept", "not")
    lasting.start()
    with exclfs.connect(lasting.path) as client:
        client.hold(lasting.path / "not", until_unmount=True)
        placed = lasting.hold("kept")
    lasting.restart()
    assert lasting.holds() == placed
    (lasting.path / "not").rmdir()


def test_no_request_is_served_before(lasting: Lasting) -> None:
    """Programs that try to remove it all the time, through every restart, never succeed."""
    lasting.expected = {"refused"}
    lasting.setup("held")
    lasting.start()
    lasting.hold("held")
    path, end = lasting.path / "held", threading.Event()
    said: set[int | None] = set()

    def remove() -> None:
        while not end.is_set():
            try:
                path.rmdir()
                said.add(0)
            except OSError as error:
                said.add(error.errno)

    threads = [threading.Thread(target=remove) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            lasting.restart()
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert (lasting.tree / "held").is_dir()
    refused(path.rmdir)
    assert 0 not in said


def test_of_a_call_all_is_back_or_nothing(lasting: Lasting) -> None:
    """SIGKILL while clients place holds. What they were told to have is there; of what they were not, whole calls."""
    names = [f"{number:03}" for number in range(100)]
    lasting.setup(*names)
    place = """if True:
        import sys, exclfs
        with exclfs.connect(sys.argv[1]) as client:
            paths = [f"{sys.argv[1]}/{number:03}" for number in range(100)]
            while True:
                holds = client.hold(paths, claim=False, persistent=True)
                print(*(hold.id for hold in holds), flush=True)
    """
    lasting.start()
    known: set[str] = set()
    for turn in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", place, str(lasting.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as client:
            assert client.stdout is not None
            for _ in range(1 + turn):
                known |= set(client.stdout.readline().split())
            lasting.kill()
            for line in client.stdout:
                known |= set(line.split())
        lasting.start()
        there = {hold.id for hold in lasting.holds()}
        assert known <= there
        assert len(there - known) in (0, 100)
        known = there
    assert len(known) >= 1500


# --- on the same inodes -----------------------------------------------------------------------------------------------


def test_it_is_the_inode_that_is_held(lasting: Lasting) -> None:
    """Renamed behind the mount it is held under its new name, and what has taken the old one is not."""
    lasting.expected = {"refused"}
    lasting.setup("old/deep", "elsewhere")
    (lasting.tree / "old" / "deep" / "file").write_text("held")
    lasting.start()
    lasting.hold("old/deep", "old/deep/file")
    lasting.kill()
    (lasting.tree / "old" / "deep").rename(lasting.tree / "elsewhere" / "new")
    (lasting.tree / "elsewhere" / "new" / "file").rename(lasting.tree / "elsewhere" / "new" / "renamed")
    lasting.setup("old/deep")
    (lasting.tree / "old" / "deep" / "file").write_text("another")
    lasting.start()
    refused((lasting.path / "elsewhere" / "new" / "renamed").unlink)
    refused(lambda: (lasting.path / "elsewhere" / "new").rename(lasting.path / "older"))
    (lasting.path / "old" / "deep" / "file").unlink()
    (lasting.path / "old" / "deep").rmdir()


def test_all_links_of_a_file_are_held(lasting: Lasting) -> None:
    lasting.expected = {"refused"}
    (lasting.tree / "one").write_text("held")
    (lasting.tree / "two").hardlink_to(lasting.tree / "one")
    lasting.start()
    lasting.hold("one")
    lasting.kill()
    (lasting.tree / "one").unlink()
    (lasting.tree / "three").hardlink_to(lasting.tree / "two")
    lasting.start()
    refused((lasting.path / "two").unlink)
    refused((lasting.path / "three").unlink)


def test_what_reaches_beyond_its_inode_does_so_again(lasting: Lasting) -> None:
    """NO_REMOVE_BELOW and PIN_PATH."""
    lasting.expected = {"refused"}
    lasting.setup("below/a/b", "above/a/b")
    lasting.start()
    lasting.hold("below", flags=exclfs.Flags.NO_REMOVE_BELOW | exclfs.Flags.EXCL_SUBTREE)
    lasting.hold("above/a/b", flags=exclfs.Flags.PIN_PATH)
    lasting.restart()
    refused((lasting.path / "below" / "a" / "b").rmdir)
    refused(lambda: (lasting.path / "above").rename(lasting.path / "below" / "above"))
    with exclfs.connect(lasting.path) as client, pytest.raises(exclfs.Held):
        client.hold(lasting.path / "below" / "a", holder="another")
    with exclfs.connect(lasting.path) as client:
        client.release(client.holds())
    (lasting.path / "above").rename(lasting.path / "below" / "above")
    (lasting.path / "below" / "a" / "b").rmdir()


def test_one_whose_inode_is_gone_is_told_in_the_log(lasting: Lasting) -> None:
    lasting.expected = {'"hold'}
    lasting.setup("gone", "replaced", "kept")
    lasting.start()
    gone, replaced, kept = lasting.hold("gone", "replaced", "kept", reason="for the inquiry")
    lasting.kill()
    (lasting.tree / "gone").rmdir()
    (lasting.tree / "replaced").rmdir()
    lasting.setup("replaced")
    mounted = lasting.start()
    assert lasting.holds() == (kept,)
    (lasting.path / "replaced").rmdir()
    lasting.unmount()
    warnings = [line for line in mounted.log().splitlines() if "level=warning" in line]
    assert len(warnings) == 2
    for hold, line in zip((gone, replaced), warnings, strict=True):
        assert f"hold {hold.id} of" in line
        assert hold.path in line
        assert "was not restored: its inode is not in the tree any more" in line


# --- until what -------------------------------------------------------------------------------------------------------


def test_an_unmount_ends_what_ends_with_it_and_nothing_else(lasting: Lasting) -> None:
    lasting.setup("kept", "unmounted", "connected")
    lasting.start()
    kept = lasting.hold("kept")
    (unmounted,) = lasting.hold("unmounted", until_unmount=True)
    assert set(unmounted.ends) == {StateFile(), Unmount()}
    lasting.hold("connected", connection=True)
    lasting.restart()
    assert lasting.holds() == (*kept, unmounted)  # the server has ended, and not the mount; nobody is connected
    lasting.unmount()
    lasting.start()
    assert lasting.holds() == kept


def test_sigterm_is_an_unmount(lasting: Lasting) -> None:
    lasting.setup("kept", "unmounted")
    mounted = lasting.start()
    kept = lasting.hold("kept")
    lasting.hold("unmounted", until_unmount=True)
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.process.wait(30) == 0
    lasting.start()
    assert lasting.holds() == kept


def test_a_time_goes_on_meanwhile(lasting: Lasting) -> None:
    lasting.setup("long", "short")
    lasting.start()
    long = lasting.hold("long", ttl=1000)
    lasting.hold("short", ttl=1)
    lasting.kill()
    time.sleep(1)
    lasting.start()
    with exclfs.connect(lasting.path) as client:
        assert client.holds() == long
        (renewed,) = client.renew(long, 5000)
    lasting.restart()
    assert lasting.holds() == (renewed,)
    (before,) = (end for end in long[0].ends if isinstance(end, Time))
    (after,) = (end for end in renewed.ends if isinstance(end, Time))
    assert after.at > before.at
    (lasting.path / "short").rmdir()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_process_that_lives_still_holds(lasting: Lasting, sleeper: subprocess.Popen[bytes]) -> None:
    """After a restart it is watched again, and the removal after its death succeeds at once."""
    lasting.expected = {"refused"}
    lasting.setup("held")
    lasting.start()
    placed = lasting.hold("held", pid=sleeper.pid)
    lasting.restart()
    assert lasting.holds() == placed
    refused((lasting.path / "held").rmdir)
    sleeper.kill()
    sleeper.wait()
    (lasting.path / "held").rmdir()


def test_a_process_that_has_died_meanwhile_does_not(lasting: Lasting, sleeper: subprocess.Popen[bytes]) -> None:
    lasting.setup("held")
    lasting.start()
    lasting.hold("held", pid=sleeper.pid)
    lasting.kill()
    sleeper.kill()
    sleeper.wait()
    mounted = lasting.start()
    assert lasting.holds() == ()
    (lasting.path / "held").rmdir()
    lasting.unmount()
    assert f"process {sleeper.pid} has exited" in mounted.log()


def process_with(pid: int) -> subprocess.Popen[bytes] | None:
    """A new process that has got this pid, which is free; None if others were faster (proc_sys_kernel(5))."""
    for _ in range(50):
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
        process = subprocess.Popen(["sleep", "600"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    return None


@pytest.mark.skipif(not os.path.exists("/proc/sys/kernel/ns_last_pid"), reason="needs CONFIG_CHECKPOINT_RESTORE")
def test_nor_does_another_process_with_its_pid(lasting: Lasting, sleeper: subprocess.Popen[bytes]) -> None:
    lasting.setup("held")
    lasting.start()
    (hold,) = lasting.hold("held", pid=sleeper.pid)
    lasting.kill()
    sleeper.kill()
    sleeper.wait()
    another = process_with(sleeper.pid)
    if another is None:
        pytest.skip("the pid could not be had again")
    try:
        assert Exit(another.pid) in hold.ends
        lasting.start()
        (lasting.path / "held").rmdir()
    finally:
        another.kill()
        another.wait()


def test_it_is_released_after_a_restart_by_its_user(lasting: Lasting) -> None:
    """Though the process that has placed it is not there any more; and it does not come back."""
    lasting.setup("one", "two")
    lasting.start()
    one, two = lasting.hold("one", "two")
    lasting.restart()
    with exclfs.connect(lasting.path) as client:
        assert client.release(one) == (one,)
    lasting.restart()
    with exclfs.connect(lasting.path) as client:
        assert client.holds() == (two,)
        (new,) = client.hold(lasting.path / "one", persistent=True)
        assert new.id not in (one.id, two.id)


# --- what the file may be ---------------------------------------------------------------------------------------------


def must_not_start(lasting: Lasting, why: str, **options: Any) -> None:
    with pytest.raises(AssertionError, match="the mount failed") as caught:
        lasting.start(**options)
    assert why in str(caught.value)
    assert os.fsencode(lasting.path) not in mounts_now()


def test_a_second_server_does_not_get_it(lasting: Lasting, tmp_path: Path) -> None:
    lasting.setup("held")
    mounted = lasting.start()
    lasting.hold("held")
    (tmp_path / "other").mkdir()
    other = Lasting(tmp_path / "other", state=str(lasting.state))
    must_not_start(other, f"is in use by another server (pid {mounted.process.pid})", source=lasting.tree)
    lasting.unmount()
    must_not_start(other, "is of another tree")


def test_a_bad_one_is_refused_and_left(lasting: Lasting) -> None:
    lasting.setup("held")
    lasting.start()
    lasting.hold("held", reason="for the inquiry")
    lasting.unmount()
    whole = lasting.state.read_bytes()
    for contents, why in (
        (b"", "is something else"),
        (b"hello\n", "is something else"),
        (whole[:-512], "is damaged"),
        (whole.replace(b"inquiry", b"enquiry"), "is damaged"),
    ):
        lasting.state.write_bytes(contents)
        must_not_start(lasting, why)
        assert lasting.state.read_bytes() == contents
    lasting.state.unlink()
    os.mkfifo(lasting.state)
    must_not_start(lasting, "is not a regular file")


def test_without_one_nothing_is_persistent(lasting: Lasting) -> None:
    lasting.setup("held")
    lasting.start(state=None)
    with pytest.raises(exclfs.BadHold, match="--state FILE"):
        lasting.hold("held")
    assert lasting.holds() == ()


def test_on_a_full_disk_nothing_is_held(lasting: Lasting, tmp_path: Path) -> None:
    """The client is told, and what need not be written goes on."""
    lasting.expected = {"refused", '"the'}
    lasting.setup(*(f"held{number}" for number in range(100)), "other")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], check=True)
    try:
        lasting.start(state=str(disk / "state"))
        first = lasting.hold("held0")
        with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)
        with pytest.raises(exclfs.NotKept, match="full"):
            lasting.hold(*(f"held{number}" for number in range(1, 100)))
        said = complaint(
            command("hold", *(lasting.path / f"held{n}" for n in range(1, 100)), "--persistent", status=None)
        )
        assert "full" in said
        with exclfs.connect(lasting.path) as client:
            assert client.holds() == first
            client.hold(lasting.path / "other")
            refused((lasting.path / "other").rmdir)
        (lasting.path / "held1").rmdir()
        (disk / "ballast").unlink()
        second = lasting.hold("held2")
        lasting.kill()
        lasting.start(state=str(disk / "state"))
        with exclfs.connect(lasting.path) as client:
            assert client.holds() == first + second
        lasting.unmount()
    finally:
        lasting.unmount()
        subprocess.run(["umount", str(disk)], check=True)


# --- as people do it --------------------------------------------------------------------------------------------------


def test_by_the_commands_of_the_how_to(tmp_path: Path) -> None:
    tree, mountpoint, state = tmp_path / "tree", tmp_path / "mnt", tmp_path / "state"
    for directory in (tree, mountpoint, tree / "4f"):
        directory.mkdir()
    with mounted_by_program(tree, mountpoint, "--state", state) as told:
        command("hold", mountpoint / "4f", "--persistent", "--reason", "kept for the inquiry")
        assert document("status", mountpoint)["state"] == str(state)
        before = document("holds", mountpoint)["mounts"]
        pidfd = os.pidfd_open(told["pid"])
        os.kill(told["pid"], signal.SIGKILL)
        wait_for_exit(pidfd)
        os.close(pidfd)
        with pytest.raises(OSError, match="not connected"):
            (mountpoint / "4f").rmdir()
        with mounted_by_program(tree, mountpoint, "--state", state):  # which clears what is left of the first
            assert document("holds", mountpoint)["mounts"] == before
            refused((mountpoint / "4f").rmdir)
            command("release", mountpoint / "4f")
            (mountpoint / "4f").rmdir()
            command("umount", mountpoint)


# --- a mount of an ordinary user --------------------------------------------------------------------------------------


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lasting]:
    """A mount whose server may not open file handles: it has to look the tree up by its names."""
    directory = Path(tempfile.mkdtemp(prefix="exclfs-test-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory / "run"))
    try:
        made = Lasting(directory, program=("-c", AS_NOBODY), **USERS_OPTIONS)
        for name in ("mnt", "run"):
            (directory / name).mkdir()
        (directory / "log").touch()
        made.setup("kept", "renamed", "replaced")
        for path in (directory, *directory.iterdir(), *made.tree.iterdir()):
            path.chmod(0o755)
            os.chown(path, NOBODY.uid, NOBODY.gid)
        with device_for_everybody():
            try:
                yield made
            finally:
                made.unmount()
    finally:
        shutil.rmtree(directory)


def test_without_handles_it_is_the_same_inode_or_none(users: Lasting) -> None:
    """It is found where it was, or it is gone; and what has taken its name is told from it."""
    users.expected = {"refused", '"hold'}
    users.start()
    placed = as_user(NOBODY, lambda: users.hold("kept", "renamed", "replaced"))
    users.kill()
    (users.tree / "renamed").rename(users.tree / "new")
    (users.tree / "replaced").rmdir()
    users.setup("replaced")
    os.chown(users.tree / "replaced", NOBODY.uid, NOBODY.gid)
    users.start()
    assert as_user(NOBODY, users.holds) == placed[:1]
    refused(lambda: as_user(NOBODY, (users.path / "kept").rmdir))
    for name in ("new", "replaced"):
        as_user(NOBODY, (users.path / name).rmdir)
