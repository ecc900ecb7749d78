from __future__ import annotations

import os
import pwd

import pytest

from exclfs.holds.holder import Process
from exclfs.host import mounts, places
from exclfs.host.requesters import in_words, mounted_on
from private_mounts import private_mounts


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (Process(7, 0, "rm", "/bin/rm", "root", "cron.service"), "rm (pid 7, user root, cron.service)"),
        (Process(7, 54321, "rm"), "rm (pid 7, user 54321)"),
        (Process(7, 0, "rm", user="root", own_uid=54321), "rm (pid 7, user 54321, asking as root)"),
        (Process(7, 54321, "rm", own_uid=0), f"rm (pid 7, user {pwd.getpwuid(0).pw_name}, asking as 54321)"),
        (Process(7, 0, user="root"), "a process that is gone or hidden (pid 7, user root)"),
        (
            Process(None, 0, user="root"),
            "a process outside the server's pid namespace, or the kernel (user root)",
        ),
        (Process(2, 0, "kworker/0:1", None, "root"), "kworker/0:1 (pid 2, user root)"),
        (Process(7, 0, "a\nb\x1b", user="root"), "a\\nb\\x1b (pid 7, user root)"),
    ],
)
def test_a_requester_in_words(process: Process, words: str) -> None:
    assert in_words(process) == words


def place(path: str) -> places.Place:
    return places.of(os.fsencode(path), mounts.mount_of(path))


@pytest.mark.root
def test_what_is_mounted_is_seen_in_the_namespace_of_whoever_asks(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(os.path.realpath(tmp_path), "a directory")
    os.mkdir(path)
    with private_mounts() as there:
        there.run("mount", "-t", "tmpfs", "something", path)
        (mount,) = mounted_on(there.keeper, place(path))
        assert (mount.fstype, mount.source, os.fsdecode(mount.mountpoint)) == ("tmpfs", b"something", path)
        assert mounted_on(os.getpid(), place(path)) == []
        assert mounted_on(there.keeper, place(os.path.dirname(path))) == []
        os.rmdir(path)  # the mount is elsewhere: it goes with the directory


def test_nobody_has_nothing_mounted(tmp_path: os.PathLike[str]) -> None:
    for pid in 0, -1, 1 << 30:
        assert mounted_on(pid, place(os.fspath(tmp_path))) == []
