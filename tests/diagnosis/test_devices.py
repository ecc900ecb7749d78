"""Swap, loop and block devices: what is said, and that umount does what was said."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from exclfs.diagnosis import devices, subject
from exclfs.diagnosis.asking import why
from exclfs.host.view import Host
from kernel_situations import SITUATIONS
from loops import make_image
from predicted import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, answer, in_a_child, mount, run
from situations import new_directory
from sysfs import Sysfs
from twins import ALICE, LIBC, ROOT, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exclfs.wire.causes import Cause

pytestmark = pytest.mark.root

CAN_BE_UNMOUNTED = ([False, None], [None, None])
"""Whether it is certain depends on whether this machine lets root look at every process that may use the mount."""


def found(path: Path, host: Host) -> list[Cause]:
    with subject.looked_up(str(path), host) as looked_at:
        return [finding for finding in devices.find(looked_at, host) if not hasattr(finding, "may_block")]


def elsewhere(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What comes of it in a mount namespace of its own."""

    def run_there() -> dict[str, Any]:
        check(LIBC.unshare(CLONE_NEWNS))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        return work()

    return in_a_child(run_there)


@contextmanager
def attached(image: Path) -> Iterator[str]:
    node = run("losetup", "--find", "--show", image)
    try:
        yield node
    finally:
        run("losetup", "--detach", node)


@contextmanager
def mounted_image(image: Path, *directories: Path) -> Iterator[str]:
    """An ext4 filesystem of 8 MiB, at all of these."""
    make_image(image, "ext4", mebibytes=8)
    with attached(image) as node:
        mount(node, directories[0], "ext4")
        for directory in directories[1:]:
            mount(str(directories[0]), directory, flags=MS_BIND)
        try:
            yield node
        finally:
            for directory in directories:
                LIBC.umount2(os.fsencode(directory), 2)


def predicted_and_real(mountpoint: Path) -> dict[str, Any]:
    """What is said of umount, and what umount2(2) does."""
    said = why(mountpoint, attempt="umount")
    real = None
    if LIBC.umount2(os.fsencode(mountpoint), 0) != 0:
        real = errno.errorcode[ctypes.get_errno()]
    return {
        "said": [said.blocked, said.errno],
        "real": [real is not None, real],
        "causes": [[cause.kind, cause.text, cause.blocks, cause.where] for cause in said.causes],
    }


def test_the_chain_of_a_backing_file_is_told_to_where_it_is_mounted(tmp_path: Path) -> None:
    image, directory = tmp_path / "image", new_directory(tmp_path / "mnt")

    def look() -> dict[str, Any]:
        with mounted_image(image, directory) as node:
            (cause,) = (cause for cause in why(image).causes if cause.kind == "loop")
            return {"text": cause.text, "blocks": cause.blocks, "where": cause.where, "node": node}

    told = elsewhere(look)
    assert (told["blocks"], told["where"]) == ([], told["node"])
    assert f"is the backing file of {told['node']}" in told["text"]
    assert f'{told["node"]} is mounted at "{directory}".' in told["text"]
    assert told["text"].endswith(f"Then `losetup -d {told['node']}` lets go.")


def test_where_it_is_mounted_is_found_in_other_namespaces(tmp_path: Path) -> None:
    image, directory = tmp_path / "image", new_directory(tmp_path / "mnt")

    def look() -> dict[str, Any]:
        with mounted_image(image, directory):
            with subprocess.Popen(["unshare", "--mount", "sleep", "infinity"]) as other:
                try:
                    while not _is_elsewhere(other.pid):
                        os.sched_yield()
                    check(LIBC.umount2(os.fsencode(directory), 0))
                    (cause,) = (cause for cause in why(image).causes if cause.kind == "loop")
                finally:
                    other.kill()
            return {"text": cause.text, "pid": other.pid}

    told = elsewhere(look)
    assert f'is mounted at "{directory}" in mount namespace ' in told["text"]
    assert f"pid {told['pid']}, sleep" in told["text"]


def _is_elsewhere(pid: int) -> bool:
    executable = os.readlink(f"/proc/{pid}/exe")
    return os.path.basename(executable) == "sleep" and os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(
        "/proc/self/ns/mnt"
    )


def test_a_backing_file_is_itself_by_any_of_its_names(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    os.link(image, tmp_path / "link")
    (tmp_path / "copy").write_bytes(image.read_bytes())
    with attached(image) as node:
        assert [cause.where for cause in found(tmp_path / "link", Host())] == [node]
        assert found(tmp_path / "copy", Host()) == []
        image.rename(tmp_path / "moved")  # the kernel tells the new name
        assert [cause.where for cause in found(tmp_path / "moved", Host())] == [node]


def test_a_backing_file_keeps_its_mount_busy_and_no_other(tmp_path: Path) -> None:
    outer, bound = new_directory(tmp_path / "outer"), new_directory(tmp_path / "bound")

    def look() -> dict[str, Any]:
        with mounted_image(tmp_path / "image", outer, bound):
            with open(outer / "inner", "wb") as file:
                file.truncate(1 << 20)
            with attached(outer / "inner") as node:
                return {"bound": predicted_and_real(bound), "outer": predicted_and_real(outer), "node": node}

    told = elsewhere(look)
    assert told["bound"]["real"] == [False, None]
    assert told["bound"]["said"] in CAN_BE_UNMOUNTED
    assert told["outer"]["said"] == told["outer"]["real"] == [True, "EBUSY"], told
    ((_, text, blocks, where),) = (cause for cause in told["outer"]["causes"] if cause[0] == "loop")
    assert (blocks, where) == (["umount"], told["node"])
    assert f'"{outer}/inner", on the filesystem that is mounted here' in text


def test_a_swap_file_keeps_its_mount_busy(tmp_path: Path) -> None:
    outer = new_directory(tmp_path / "outer")

    def look() -> dict[str, Any]:
        with mounted_image(tmp_path / "image", outer):
            file = outer / "swap file"
            file.write_bytes(bytes(1 << 20))
            file.chmod(0o600)
            run("mkswap", file)
            run("swapon", file)
            try:
                busy = predicted_and_real(outer)
            finally:
                run("swapoff", file)
            return {"busy": busy, "free": predicted_and_real(outer)}

    told = elsewhere(look)
    assert told["busy"]["said"] == told["busy"]["real"] == [True, "EBUSY"], told
    ((_, text, blocks, where),) = (cause for cause in told["busy"]["causes"] if cause[0] == "swap")
    assert (blocks, where) == (["umount"], f"{outer}/swap file")
    assert f"`swapoff '{outer}/swap file'`" in text
    assert told["free"]["real"] == [False, None]
    assert told["free"]["said"] in CAN_BE_UNMOUNTED


def test_a_swap_file_says_how_to_end_it() -> None:
    make, _ = SITUATIONS["swap_file"]
    for user in (ROOT, ALICE):
        told = answer(make, user, "unlink")
        (text,) = (text for kind, text in zip(told.kinds, told.texts, strict=True) if kind == "swap")
        assert "`swapoff /" in text
        assert "ETXTBSY" in text


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """With a logical volume on a partition of a loop device, mounted here, and an array of md that is swapped to."""
    sys = Sysfs(tmp_path / "sys")
    sys.device("loop0", "7:0", backing_file=str(tmp_path / "image"))
    sys.device("loop0p1", "259:1", partition_of="loop0")
    sys.device("dm-0", "250:77", dm="vg-\x1broot", made_of=["loop0p1"])
    sys.device("md127", "9:127", level="raid1", made_of=["loop0"])
    proc = new_directory(tmp_path / "proc")
    (proc / "swaps").write_text("Filename Type Size Used Priority\n/dev/md127 partition 1020 0 -2\n")
    (tmp_path / "image").write_bytes(bytes(512))
    own = new_directory(proc / str(os.getpid()))
    mountinfo = Path("/proc/self/mountinfo").read_text()
    (own / "mountinfo").write_text(f"{mountinfo}9999 1 250:77 / /volume rw - ext4 /dev/mapper/vg-root rw\n")
    new_directory(own / "ns")
    (own / "ns" / "mnt").symlink_to(os.readlink("/proc/self/ns/mnt"))
    (own / "root").symlink_to("/")
    (proc / "self").symlink_to(own)
    return Host(proc=str(proc), sys=sys.path)


def test_the_whole_chain_is_told_through_device_mapper_and_md(tmp_path: Path, host: Host) -> None:
    (cause,) = found(tmp_path / "image", host)
    assert (cause.kind, cause.blocks, cause.where) == ("loop", (), "/dev/loop0")
    assert "It can be removed and renamed all the same" in cause.text
    assert "/dev/loop0p1 is made of it." in cause.text
    assert "/dev/mapper/vg-\\x1broot (dm-0) is made of it." in cause.text
    assert '/dev/mapper/vg-\\x1broot is mounted at "/volume".' in cause.text
    assert "/dev/md127 (raid1) is made of it. The kernel swaps to /dev/md127." in cause.text


def test_a_block_device_tells_what_it_is_made_of_and_for(tmp_path: Path, host: Host) -> None:
    os.mknod(tmp_path / "loop", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    os.mknod(tmp_path / "volume", stat.S_IFBLK | 0o600, os.makedev(250, 77))
    os.mknod(tmp_path / "none", stat.S_IFBLK | 0o600, os.makedev(250, 78))
    (loop,) = found(tmp_path / "loop", host)
    assert (loop.kind, loop.blocks, loop.where) == ("block device", (), "/dev/loop0")
    assert f'Its backing file is "{tmp_path}/image".' in loop.text
    assert "The node can be removed and renamed all the same" in loop.text
    (volume,) = found(tmp_path / "volume", host)
    assert "It is made of loop0p1." in volume.text
    assert 'is mounted at "/volume".' in volume.text
    assert found(tmp_path / "none", host) == []
