"""An ordinary user mounts with fusermount3, holds, is refused and unmounts: everything that root does for itself.

In a mount namespace with a /dev/fuse that is open to all, as most hosts have it, and with this Python, exclfs and its
libraries bound to where every user can reach them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import exclfs
from exclfs.options import FUSE_CONF
from harness import SANITIZED
from private_mounts import PrivateMounts, private_mounts
from program import complaint, ids, run_options, wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.host.mounts import Mount

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]

STAGE = "/mnt"
"""Covered by a tmpfs in the namespace."""
UID, STRANGER = 65534, 61001


class Host:
    """A namespace where ordinary users can run exclfs."""

    def __init__(self, space: PrivateMounts) -> None:
        self.space = space
        space.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", STAGE)
        places = {
            "python": sys.base_prefix,
            "site": sysconfig.get_path("purelib"),
            "exclfs": os.path.dirname(os.path.dirname(exclfs.__file__)),
        }
        for name, place in places.items():
            space.run("mkdir", f"{STAGE}/{name}")
            space.run("mount", "--bind", place, f"{STAGE}/{name}")
        space.run("mknod", "-m", "666", f"{STAGE}/fuse", "c", "10", "229")
        space.run("mount", "--bind", f"{STAGE}/fuse", "/dev/fuse")
        for uid in (UID, STRANGER):
            space.run("install", "-d", "-m", "700", "-o", str(uid), "-g", str(uid), f"{STAGE}/run{uid}")
        self.home = f"{STAGE}/home"
        space.run("install", "-d", "-m", "755", "-o", str(UID), "-g", str(UID), self.home)
        self.python = f"{STAGE}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"

    def words(self, uid: int, *words: str) -> list[str]:
        environment = {
            "HOME": self.home,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{STAGE}/exclfs:{STAGE}/site",
            "LD_LIBRARY_PATH": f"{STAGE}/python/lib",  # of a Python that is built with a shared library
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_RUNTIME_DIR": f"{STAGE}/run{uid}",
        }
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "env", "-C", self.home, "-i"]
        return [*self.space.prefix, *become, *(f"{name}={value}" for name, value in environment.items()), *words]

    def run(self, *words: str, uid: int = UID, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.words(uid, *words), capture_output=True, text=True, check=False)
        assert status in (None, done.returncode), f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def exclfs(self, *words: str, uid: int = UID, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.run(self.python, "-m", "exclfs.cli", *words, uid=uid, status=status)

    def json(self, *words: str, status: int = 0) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.exclfs(*words, "--json", status=status).stdout)
        return told

    def mount_at(self, mountpoint: str) -> Mount | None:
        found = [mount for mount in self.space.exclfs_mounts() if mount.mountpoint == os.fsencode(mountpoint)]
        return found[-1] if found else None


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if SANITIZED:
        pytest.skip("needs a Python that every user can run; a sanitizer's runtime is not")
    with private_mounts() as space:
        try:
            made = Host(space)
            works = made.run(made.python, "-c", "import exclfs.mount", status=None)
        except AssertionError as error:
            pytest.skip(f"needs a place where other users can run exclfs: {error}")
        if works.returncode:
            pytest.skip(f"needs a Python that other users can run: {works.stderr}")
        yield made


@pytest.fixture
def user(host: Host) -> Iterator[Host]:
    """A clean home: tree/directory and mnt. What is mounted in it is taken away."""
    host.run("sh", "-c", "rm -rf tree mnt && mkdir -p tree/directory mnt && echo text > tree/file")
    yield host
    while mount := host.mount_at(f"{host.home}/mnt") or host.mount_at(f"{host.home}/tree"):
        host.space.run("umount", "-l", os.fsdecode(mount.mountpoint))


@pytest.fixture
def mounted(user: Host) -> Iterator[dict[str, Any]]:
    told = user.json("mount", "tree", "mnt", *run_options(), "--log", "log")
    pidfd = os.pidfd_open(told["pid"])
    yield told
    if user.mount_at(told["mountpoint"]):
        user.run("fusermount3", "-u", "mnt")
    wait_for_exit(pidfd)
    os.close(pidfd)


def test_mounts_as_the_kernel_lets_users(user: Host, mounted: dict[str, Any]) -> None:
    mount = user.mount_at(f"{user.home}/mnt")
    assert mount is not None
    assert {"nosuid", "nodev"} <= set(mount.options)
    assert f"user_id={UID}" in mount.super_options
    assert "default_permissions" in mount.super_options
    assert "allow_other" not in mount.super_options
    assert mount.source == f"{user.home}/tree".encode()
    told = user.json("status", "mnt")
    assert (told["uid"], told["pid"]) == (UID, mounted["pid"])
    assert told["log"] == f"file {user.home}/log"
    assert mounted["socket"].startswith(f"{STAGE}/run{UID}/exclfs/")
    user.run("fusermount3", "-u", "mnt")
    assert user.mount_at(f"{user.home}/mnt") is None


def test_holds_refuses_and_explains(user: Host, mounted: dict[str, Any]) -> None:
    refused = user.exclfs("hold", "mnt/directory", "--reason", "because", "--", "rmdir", "mnt/directory", status=1)
    assert "Device or resource busy" in refused.stderr
    user.exclfs("hold", "mnt/file", "--until-unmount")
    assert len(ids(user.json("holds", "mnt/file")["mounts"][0]["holds"])) == 1
    assert user.json("why", "mnt/file")["blocked"] is True
    assert "busy" in user.run("mv", "mnt/file", "mnt/moved", status=1).stderr
    user.exclfs("release", "mnt/file")
    user.run("setfattr", "-n", "user.exclfs.hold", "-v", "us", "mnt/directory")
    assert "busy" in user.run("rmdir", "mnt/directory", status=1).stderr
    user.run("setfattr", "-x", "user.exclfs.hold", "mnt/directory")
    user.run("rm", "-r", "mnt/directory", "mnt/file")
    assert user.run("ls", "tree").stdout == ""
    told = user.json("status", "mnt")
    assert told["refusals"] == 3
    assert {refusal["requester"]["uid"] for refusal in told["last_refusals"]} == {UID}
    assert user.run("grep", "-c", "event=refused", "log").stdout == "3\n"


def test_what_it_may_do_is_what_the_user_may_do(user: Host, mounted: dict[str, Any]) -> None:
    user.run("sh", "-c", "umask 027; echo new > mnt/new; mkdir mnt/below; ln -s new mnt/link; ln mnt/new mnt/second")
    assert user.run("stat", "-c", "%a %u %h", "tree/new").stdout == f"640 {UID} 2\n"
    assert user.run("cat", "mnt/link").stdout == "new\n"
    assert user.run("sh", "-c", "cp -a mnt/. copy && diff -r copy tree && rm -r copy").stderr == ""
    user.space.run("sh", "-c", f"echo secret > {user.home}/tree/secret; chmod 600 {user.home}/tree/secret")
    assert "Permission denied" in user.run("cat", "mnt/secret", status=1).stderr
    assert "Operation not permitted" in user.run("chmod", "644", "mnt/secret", status=1).stderr
    user.exclfs("hold", "mnt/secret", "--", "test", "-e", "mnt/secret")  # what they may remove they may hold
    user.run("rm", "-f", "mnt/secret")  # it is their directory


def test_umount_is_done_once_the_server_has_ended(user: Host, mounted: dict[str, Any]) -> None:
    user.exclfs("hold", "mnt/directory", "--", user.python, "-m", "exclfs.cli", "umount", "mnt", status=3)
    user.exclfs("umount", "mnt")
    assert user.mount_at(f"{user.home}/mnt") is None
    assert user.run("ls", "mnt").stdout == ""
    assert not os.path.exists(f"/proc/{mounted['pid']}/exe")


def test_a_signal_unmounts(user: Host, mounted: dict[str, Any]) -> None:
    pidfd = os.pidfd_open(mounted["pid"])
    user.run("kill", str(mounted["pid"]))
    wait_for_exit(pidfd)
    os.close(pidfd)
    assert user.mount_at(f"{user.home}/mnt") is None


def test_what_a_killed_server_left_is_cleared_away(user: Host) -> None:
    told = user.json("mount", "tree", "mnt", *run_options(), "--log", "log")
    pidfd = os.pidfd_open(told["pid"])
    user.run("kill", "-KILL", str(told["pid"]))
    wait_for_exit(pidfd)
    os.close(pidfd)
    assert "has ended" in complaint(user.exclfs("status", "mnt", status=4))
    again = user.exclfs("mount", "tree", "mnt", *run_options(), "--log", "log")
    assert "cleared away" in complaint(again)
    assert user.run("ls", "mnt").stdout == "directory\nfile\n"
    user.exclfs("umount", "mnt")


def test_in_place(user: Host) -> None:
    user.exclfs("mount", "tree", "tree", *run_options(), "--log", "log")
    assert "busy" in user.exclfs("hold", "tree/directory", "--", "rmdir", "tree/directory", status=1).stderr
    user.exclfs("umount", "tree")
    user.run("rmdir", "tree/directory")


def test_other_users_stay_outside(user: Host, mounted: dict[str, Any]) -> None:
    assert "Permission denied" in user.run("ls", f"{user.home}/mnt", uid=STRANGER, status=2).stderr
    for command in ("holds", "status", "umount"):
        done = user.exclfs(command, f"{user.home}/mnt", uid=STRANGER, status=None)
        assert done.returncode in (4, 5), (command, done.returncode, done.stderr)
        complaint(done)
    # That it is a mountpoint can be seen from outside.
    said = user.exclfs("why", f"{user.home}/mnt", uid=STRANGER).stdout
    assert "is a mountpoint" in said
    assert "The holds on it could not be asked for" in said
    assert user.mount_at(f"{user.home}/mnt") is not None


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["tree", "mnt", "-o", "allow_other"], 5, "allow_other needs the line user_allow_other in /etc/fuse.conf"),
        (["closed", "mnt"], 6, "SRC closed: you cannot read it"),
        (["closed/below", "mnt"], 6, "SRC closed/below: you cannot enter it"),
        (["tree", "/etc"], 6, "/etc"),
    ],
)
def test_what_a_user_cannot_mount(user: Host, words: list[str], status: int, said: str) -> None:
    if "allow_other" in words and "\nuser_allow_other" in Path(FUSE_CONF).read_text():
        pytest.skip("here users may")
    user.run("sh", "-c", "mkdir -p closed/below; chmod 0 closed")
    try:
        assert said in complaint(user.exclfs("mount", *words, status=status))
        assert user.mount_at(f"{user.home}/mnt") is None
        assert user.mount_at("/etc") is None
    finally:
        user.run("sh", "-c", "chmod 700 closed; rm -r closed")
