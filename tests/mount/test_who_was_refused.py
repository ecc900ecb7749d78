"""Whoever is refused is told as who it is: in other pid namespaces, killed while it asks, and behind an overlay."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_tracing import fields

import exclfs
from exclfs.host.requesters import UNSEEN, VANISHED
from harness import Mounted, start
from program import exclfs as command
from program import logged
from twins import ALICE, as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root]


def hold(path: Path) -> None:
    os.setxattr(path, "user.exclfs.hold", b'{"holder": "us", "claim": false}')


def requester(path: Path) -> dict[str, Any]:
    """Who was refused last, in JSON."""
    told: dict[str, Any] = json.loads(os.getxattr(path, "user.exclfs.refusals"))["refusals"][-1]["requester"]
    return told


def sentences(path: Path) -> str:
    return os.getxattr(path, "user.exclfs.why").decode()


# --- pid namespaces --------------------------------------------------------------------------------------------------


def test_a_process_of_a_child_pid_namespace_has_the_pid_that_it_has_here(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    hold(path)
    script = """
import os, sys
print(os.getpid(), os.readlink("/proc/self"))  # /proc is that of outside
try: os.rmdir(sys.argv[1])
except OSError as error: print(error.errno)
"""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    inside, outside, code = done.stdout.split()
    assert (inside, code) == ("1", "16")
    line = fields(logged(mounted, "refused", str(path)))
    told = requester(path)
    assert line["requester_pid"] == outside == str(told["pid"])
    assert line["requester_exe"] == told["exe"] == os.path.realpath(sys.executable)
    assert f"(pid {outside}, user root" in sentences(path)
    os.removexattr(path, "user.exclfs.hold")


APART = """
import os, sys
command = 'umount -l -a -t fuse.exclfs; exec "$@"'  # copies of others' mounts would keep their servers from ending
server = ["env", "LD_PRELOAD=" + os.environ.pop("LD_PRELOAD", ""), sys.executable, "-P", "-m", "exclfs.mount"]
os.execvp("unshare", ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", command, "sh", *server, *sys.argv[1:]])
"""


@contextmanager
def in_a_pid_namespace(directory: Path) -> Iterator[tuple[Mounted, Path]]:
    """A server in a pid namespace with a /proc of its own, and the way to its mount from outside."""
    script = directory / "apart.py"
    script.write_text(APART)
    with start(directory, program=[str(script)]) as mounted:
        parent = mounted.process.pid
        server = int(Path(f"/proc/{parent}/task/{parent}/children").read_text())
        try:
            yield mounted, Path(f"/proc/{server}/root{mounted.path}")
        finally:
            os.kill(server, signal.SIGTERM)


def test_a_process_outside_of_the_servers_pid_namespace_is_told_as_that(tmp_path: Path) -> None:
    with in_a_pid_namespace(tmp_path) as (mounted, root):
        mounted.expect("refused")
        mounted.setup("directory")
        path = root / "directory"
        hold(path)
        with pytest.raises(OSError, match="busy"):
            path.rmdir()
        line = fields(logged(mounted, "refused"))
        told = requester(path)
        assert (line["requester_pid"], line["requester_comm"], line["requester_exe"]) == ("", "", "")
        assert (line["requester_uid"], line["requester_user"]) == ("0", "root")
        assert told == dict.fromkeys(told, None) | {"uid": 0, "user": "root"}
        assert f" was refused once to {UNSEEN} (user root) at " in sentences(path)


# --- killed while it asks --------------------------------------------------------------------------------------------

SLOW = """
import os, sys, time
from pathlib import Path
from exclfs import mount
from exclfs.fuse.operations import Policy

decide = Policy._decide

def slow(self, removals, ctx):
    Path(os.environ["ASKED"]).touch()
    while os.path.exists(os.environ["ASKED"]):
        time.sleep(0.01)
    decide(self, removals, ctx)

Policy._decide = slow
sys.exit(mount.main())
"""


class Slow:
    """A mount whose policy makes up its mind when it is let."""

    def __init__(self, mounted: Mounted, asked: Path) -> None:
        self.mounted = mounted
        self.path = mounted.setup("directory")
        self._asked = asked
        hold(self.path)

    def until_it_is_asked(self) -> None:
        while not self._asked.exists():
            time.sleep(0.01)

    def let_it_decide(self) -> None:
        self._asked.unlink(missing_ok=True)


@contextmanager
def slow(directory: Path, decision_timeout: float) -> Iterator[Slow]:
    script, asked = directory / "slow.py", directory / "asked"
    script.write_text(SLOW)
    with start(
        directory, program=[str(script)], environment={"ASKED": str(asked)}, decision_timeout=decision_timeout
    ) as mounted:
        mounted.expect("refused")
        it = Slow(mounted, asked)
        try:
            yield it
        finally:
            it.let_it_decide()


def test_one_that_is_killed_while_it_asks_is_told_as_it_was(tmp_path: Path) -> None:
    """Its first thread has ended then, and has no program any more; the one that asks waits for the answer."""
    script = "import os, sys, threading; threading.Thread(target=os.rmdir, args=sys.argv[1:]).start()"
    with slow(tmp_path, 60) as it:
        asker = subprocess.Popen([sys.executable, "-c", script, it.path])
        it.until_it_is_asked()
        asker.kill()
        while readable(f"/proc/{asker.pid}/exe"):  # the kernel ends its threads one by one
            time.sleep(0.001)
        it.let_it_decide()
        assert asker.wait() == -signal.SIGKILL
        line = fields(logged(it.mounted, "refused"))
        assert line["requester_pid"] == str(asker.pid)
        assert line["requester_exe"] == os.path.realpath(sys.executable)
        assert line["requester_comm"] == requester(it.path)["comm"]
        assert line["requester_comm"]


def readable(link: str) -> bool:
    try:
        os.readlink(link)
    except OSError:
        return False
    return True


def test_one_whose_pid_is_anothers_by_now_is_not_told_as_that_other(tmp_path: Path) -> None:
    """The answer came too late: the mirror has refused by itself, and who asked was free to end."""
    with slow(tmp_path, 0.3) as it:
        asker = subprocess.Popen(["rmdir", it.path], stderr=subprocess.DEVNULL)
        it.until_it_is_asked()
        asker.kill()
        assert asker.wait() == -signal.SIGKILL
        with another_with_this_pid(asker.pid):
            it.let_it_decide()
            line = fields(logged(it.mounted, "refused"))
        told = requester(it.path)
        assert (line["requester_pid"], line["requester_comm"], line["requester_exe"]) == (str(asker.pid), "", "")
        assert told == dict.fromkeys(told, None) | {"pid": asker.pid, "uid": 0, "user": "root"}
        assert f" was refused once to {VANISHED} (pid {asker.pid}, user root) at " in sentences(it.path)


def test_what_was_answered_by_the_timeout_is_not_done_later(tmp_path: Path) -> None:
    with slow(tmp_path, 0.3) as it:
        other = it.mounted.setup("other")
        asker = subprocess.Popen(["rmdir", it.path], stderr=subprocess.DEVNULL)
        it.until_it_is_asked()
        setting = ["setfattr", "-n", "system.exclfs.hold", "-v", "who was told no", other]
        assert "busy" in subprocess.run(setting, capture_output=True, text=True, check=False).stderr
        it.let_it_decide()
        assert asker.wait() == 1
        os.setxattr(other, "system.exclfs.hold", b"who is told yes")
        locked = logged(it.mounted, "locked", "told")
    assert fields(locked)["holder"] == "who is told yes"
    assert "told no" not in it.mounted.log()


CLONE3 = 435
"""On all architectures (clone3(2))."""


@contextmanager
def another_with_this_pid(pid: int) -> Iterator[None]:
    """A process that is given this pid, which is free (set_tid of clone3(2), as CRIU does)."""
    wanted = (ctypes.c_int * 1)(pid)
    zeros = [0] * 3
    arguments = (ctypes.c_uint64 * 10)(0, *zeros, signal.SIGCHLD, *zeros, ctypes.addressof(wanted), 1)
    child = ctypes.PyDLL(None, use_errno=True).syscall(CLONE3, arguments, ctypes.sizeof(arguments))
    if child == 0:
        os.execvp("sleep", ["sleep", "600"])
    assert child == pid, os.strerror(ctypes.get_errno())
    try:
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- overlayfs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def overlay(mounted: Mounted, tmp_path: Path) -> Iterator[Path]:
    """An overlay whose upper directory lies in the mount, for everybody to write in."""
    lower, merged = tmp_path / "lower", tmp_path / "merged"
    upper, work = mounted.setup("upper"), mounted.setup("work")
    for directory in lower, merged:
        directory.mkdir()
    for directory in lower, upper:
        directory.chmod(0o777)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


def test_a_user_behind_an_overlay_is_told_as_that_and_as_whoever_mounted_it(mounted: Mounted, overlay: Path) -> None:
    mounted.expect("refused")
    as_user(ALICE, lambda: os.mkdir("directory"), cwd=overlay)
    path = mounted.path / "upper/directory"
    with exclfs.hold(path):
        with pytest.raises(OSError, match="busy"):
            as_user(ALICE, lambda: os.rmdir("directory"), cwd=overlay)
        told = requester(path)
        said = sentences(path)
        table = command("status", mounted.root).stdout
    line = fields(logged(mounted, "refused", str(path)))
    assert (told["pid"], told["uid"], told["user"], told["own_uid"]) == (os.getpid(), 0, "root", ALICE.uid)
    assert (line["requester_pid"], line["requester_uid"]) == (str(os.getpid()), "0")
    assert (line["requester_user"], line["requester_own_uid"]) == ("root", str(ALICE.uid))
    for words in said, table:
        assert f"(pid {os.getpid()}, user {ALICE.uid}, asking as root" in words


def test_root_behind_an_overlay_is_told_as_itself(mounted: Mounted, overlay: Path) -> None:
    mounted.expect("refused")
    (overlay / "directory").mkdir()
    path = mounted.path / "upper/directory"
    with exclfs.hold(path):
        with pytest.raises(OSError, match="busy"):
            (overlay / "directory").rmdir()
        assert requester(path)["own_uid"] is None
    assert "requester_own_uid" not in fields(logged(mounted, "refused", str(path)))
