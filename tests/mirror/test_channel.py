"""How a mirror begins and ends, and what it makes of a kernel that it does not know."""

from __future__ import annotations

import errno
import os
import select
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from kernel import INIT, Op, message, rig

from exclfs.mirror import ROOT, Mirror

PASSTHROUGH = 1 << 37
INIT_EXT = 1 << 30


def test_init_takes_only_what_is_offered(tmp_path: Path) -> None:
    with rig(tmp_path, passthrough=True) as made:
        major, minor, _, flags, _, _, max_write = struct.unpack_from("=4I2HI", made.kernel.init(flags=1 << 0))
        assert (major, minor, max_write) == (7, 41, 1 << 20)
        assert flags == 1 << 0
        assert made.mirror.counters()["passthrough"] == 0


def test_a_kernel_that_is_too_old_is_told_so(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        for major, minor in ((7, 35), (6, 99), (8, 0)):
            with pytest.raises(OSError, match="Protocol") as caught:
                made.kernel.call(Op.INIT, 0, INIT.pack(major, minor, 0, 0, 0))
            assert caught.value.errno == errno.EPROTO


def test_what_is_unknown_or_broken_gets_an_error_and_the_next_request_is_served(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        with pytest.raises(OSError, match="not implemented"):
            made.kernel.call(4711)
        with pytest.raises(OSError, match="Invalid"):
            made.kernel.call(Op.GETATTR, ROOT, b"too short")
        with pytest.raises(OSError, match="Stale"):
            made.kernel.getattr(12345678)
        made.device.send(b"no header")
        made.device.send(message(Op.INTERRUPT, 0, bytes(8)))
        assert made.kernel.getattr()[0] == tmp_path.stat().st_ino


def test_the_end_of_the_mount_is_told(tmp_path: Path) -> None:
    with rig(tmp_path, threads=4) as made:
        assert not select.select([made.mirror.finished], [], [], 0)[0]
        made.device.close()
        assert select.select([made.mirror.finished], [], [], 60)[0]


def test_a_mirror_starts_once(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        with pytest.raises(OSError, match="already") as caught:
            made.mirror.start()
        assert caught.value.errno == errno.EALREADY
        assert made.kernel.getattr()[0] == tmp_path.stat().st_ino


def test_a_mirror_that_never_started_can_be_stopped_or_dropped(tmp_path: Path) -> None:
    with rig(tmp_path, start=False) as made:
        made.mirror.stop()
        made.mirror.stop()
    with rig(tmp_path, start=False):
        pass


def test_a_tree_that_is_none_is_an_error_and_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mirror(
            source=-1,
            device=-1,
            channel=-1,
            entry_timeout=1,
            attr_timeout=1,
            negative_timeout=0,
            decision_timeout=1,
            threads=1,
            descriptors=1,
            passthrough=False,
            ask_always=False,
            privileged=False,
        )
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_policy_that_has_gone_before_the_start_is_an_error_there(tmp_path: Path) -> None:
    with rig(tmp_path, start=False) as made:
        made.policy.channel.close()
        with pytest.raises(BrokenPipeError):
            made.mirror.start()


WITHOUT_UNSHARE = """
import ctypes, errno, pathlib, struct, sys
sys.path.insert(0, sys.argv[2])
from kernel import rig
libc = ctypes.CDLL(None)
load_number, is_unshare = (0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[3]))
refuse, allow = (0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)
program = b"".join(struct.pack("=HBBI", *step) for step in (load_number, is_unshare, refuse, allow))
code = ctypes.create_string_buffer(program)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("@HP", 4, ctypes.addressof(code)), 0, 0) == 0
with rig(pathlib.Path(sys.argv[1]), start=False, threads=3) as made:
    try:
        made.mirror.start()
    except PermissionError:
        print("refused")
"""
UNSHARE = {"x86_64": 272, "aarch64": 97}


@pytest.mark.skipif(os.uname().machine not in UNSHARE, reason="the number of unshare(2) is not known here")
def test_a_thread_that_cannot_begin_is_an_error_of_start_and_no_mount_that_hangs(tmp_path: Path) -> None:
    """A container's seccomp filter may forbid unshare(2); then no request would ever be answered."""
    arguments = [str(tmp_path), str(Path(__file__).parent), str(UNSHARE[os.uname().machine])]
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_UNSHARE, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr
