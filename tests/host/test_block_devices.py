from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from exclfs.host import block_devices
from sysfs import Sysfs


@pytest.fixture
def sys(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def test_a_device_is_read_as_it_stands_there(sys: Sysfs) -> None:
    sys.device("loop0", "7:0", backing_file="/images/disk image")
    sys.device("loop0p1", "259:1", partition_of="loop0")
    sys.device("dm-0", "253:0", dm="vg-root", made_of=["loop0p1"])
    sys.device("md127", "9:127", level="raid1", made_of=["dm-0"])
    loop = block_devices.numbered("7:0", sys.path)
    assert loop is not None
    assert (loop.name, loop.node, loop.number) == ("loop0", "/dev/loop0", "7:0")
    assert loop.backing_file == b"/images/disk image"
    assert (loop.above, loop.below) == (("loop0p1",), ())
    above = block_devices.everything_above(loop, sys.path)
    assert [device.name for device in above] == ["loop0p1", "dm-0", "md127"]
    assert [device.node for device in above] == ["/dev/loop0p1", "/dev/mapper/vg-root", "/dev/md127"]
    assert [device.title for device in above] == [None, "vg-root", "raid1"]
    assert above[1].below == ("loop0p1",)
    assert block_devices.loops(sys.path) == (loop,)


def test_a_deleted_backing_file_has_the_name_that_it_had(sys: Sysfs) -> None:
    sys.device("loop3", "7:3", backing_file="/gone (deleted)")
    assert [device.backing_file for device in block_devices.loops(sys.path)] == [b"/gone"]


def test_a_loop_device_without_a_file_is_none(sys: Sysfs) -> None:
    sys.device("loop1", "7:1")
    assert block_devices.loops(sys.path) == ()


def test_a_name_with_a_slash(sys: Sysfs) -> None:
    sys.device("cciss!c0d0", "104:0")
    device = block_devices.numbered("104:0", sys.path)
    assert device is not None
    assert device.node == "/dev/cciss/c0d0"


def test_devices_that_hold_one_another_are_told_once(sys: Sysfs) -> None:
    sys.device("sda", "8:0")
    sys.device("dm-0", "253:0", dm="a", made_of=["sda"])
    sys.device("dm-1", "253:1", dm="b", made_of=["sda", "dm-0"])
    disk = block_devices.named("sda", sys.path)
    assert disk is not None
    assert [device.name for device in block_devices.everything_above(disk, sys.path)] == ["dm-0", "dm-1"]


def test_what_is_not_there_is_nothing(sys: Sysfs) -> None:
    assert block_devices.numbered("8:0", sys.path) is None
    assert block_devices.named("sda", sys.path) is None
    assert block_devices.loops(sys.path) == ()


@pytest.mark.root
def test_a_real_loop_device(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    losetup = ["losetup", "--find", "--show", image]
    node = subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()
    try:
        (ours,) = (device for device in block_devices.loops() if device.backing_file == os.fsencode(image))
        rdev = os.stat(node).st_rdev
        assert (ours.node, ours.number) == (node, f"{os.major(rdev)}:{os.minor(rdev)}")
        assert block_devices.numbered(ours.number) == ours
    finally:
        subprocess.run(["losetup", "--detach", node], check=True)
