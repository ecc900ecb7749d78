"""The virtual xattrs: the same facts on every kind of object, carried by no copy, and one that places and releases."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from test_refusals import KINDS

import exclfs
import needs
from exclfs.host.names import printable
from program import ids, logged
from twins import ALICE, BOB, ROOT, as_user

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

READ_ONLY = ("holders", "flags", "why", "refusals", "socket")
PREFIXES = ("user.exclfs.", "system.exclfs.")


def get(path: Path, name: str) -> bytes:
    return os.getxattr(path, name, follow_symlinks=False)


def read(path: Path, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(get(path, name))
    assert told.pop("version") == 1
    return told


def place(path: Path, value: bytes = b"us", prefix: str = "system.exclfs.") -> None:
    os.setxattr(path, f"{prefix}hold", value, follow_symlinks=False)


def remove(path: Path, prefix: str = "system.exclfs.") -> None:
    os.removexattr(path, f"{prefix}hold", follow_symlinks=False)


def must_fail(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        call()
    assert caught.value.errno == code, caught.value


def nothing_holds(path: Path) -> str:
    return f'Nothing holds "{path}"; "exclfs why {shlex.quote(str(path))}" looks at the whole host.'


# --- looking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "unreadable"])
def test_every_kind_of_object_answers(mounted: Mounted, kind: str) -> None:
    mounted.expect("refused")
    path = mounted.path / "object"
    KINDS.get(kind, KINDS["file"])(path)
    if kind == "unreadable":
        path.chmod(0)
    assert read(path, "system.exclfs.holders") == {"holds": []}
    assert get(path, "system.exclfs.flags") == b""
    assert get(path, "system.exclfs.why").decode() == nothing_holds(path)
    must_fail(errno.ENODATA, lambda: get(path, "system.exclfs.hold"))
    place(path, b'{"holder": "us", "reason": "because"}')
    must_fail(errno.EBUSY, lambda: path.rename(path.with_name("moved")))
    prefixes = PREFIXES if kind in {"file", "directory", "unreadable"} else PREFIXES[1:]  # xattr(7)
    for prefix in prefixes:
        (hold,) = read(path, f"{prefix}holders")["holds"]
        assert ids([hold])
        assert (hold["path"], hold["inode"]) == (str(path), os.lstat(path).st_ino)
        assert (hold["holder"]["name"], hold["reason"], hold["ends"]) == (
            "us",
            "because",
            [{"kind": "unmount", "pid": None, "at": None}],
        )
        assert get(path, f"{prefix}flags") == b"EXCL_INUSE,NO_REMOVE"
        assert b"is held by us" in get(path, f"{prefix}why")
        assert read(path, f"{prefix}hold") == read(path, f"{prefix}holders")
        assert read(path, f"{prefix}refusals")["refusals"][-1]["operation"] == "rename"
        assert os.path.isabs(get(path, f"{prefix}socket"))
    remove(path)
    path.rename(path.with_name("moved"))


def test_refusals_are_counted_and_the_last_requester_is_named(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    place(path)
    for _ in range(3):
        must_fail(errno.EBUSY, path.rmdir)
    done = subprocess.run(["rmdir", path], capture_output=True, check=False)
    assert b"busy" in done.stderr
    said = get(path, "user.exclfs.why").decode()
    assert said.startswith(f'"{path}" is held by ')
    assert " Removing or renaming it was refused 4 times, last to rmdir (pid " in said
    assert [refusal["count"] for refusal in read(path, "user.exclfs.refusals")["refusals"]] == [3, 1]
    remove(path)
    said = get(path, "user.exclfs.why").decode()
    assert said.startswith(nothing_holds(path))
    assert " was refused 4 times, last to rmdir (pid " in said


def test_what_is_mounted_there_for_whoever_asks_is_told(mounted: Mounted) -> None:
    """By the name of a bind mount nothing is seen mounted on it, and yet rmdir is EBUSY before exclfs is asked."""
    path = mounted.setup("a directory")
    mounted.setup("other")
    bound = mounted.path / "other"
    script = """
mount --bind "$1" "$2"
mount -t tmpfs scratch "$1/a directory"
getfattr --absolute-names --only-values -n user.exclfs.why "$2/a directory"
echo
LC_ALL=C rmdir "$2/a directory" 2>&1 || true
read go_on
umount "$1/a directory"
rmdir "$2/a directory"
"""
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", mounted.path, bound],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None
        assert inside.stdout.readline().rstrip("\n") == (
            f'"{path}" is a mountpoint where you are: tmpfs "scratch" is mounted on it as "{path}", and the kernel '
            f"refuses unlink, rmdir and rename before exclfs is asked. \"umount '{path}'\" ends that."
        )
        assert "Device or resource busy" in inside.stdout.readline()
        assert get(path, "user.exclfs.why").decode() == nothing_holds(path)  # nothing is mounted there for this process
        inside.stdin.write("\n")
    assert inside.returncode == 0
    assert not (mounted.backing / path.name).exists()


def test_on_the_root_of_the_mount(mounted: Mounted) -> None:
    place(mounted.root)
    (hold,) = read(mounted.root, "user.exclfs.holders")["holds"]
    assert hold["path"] == str(mounted.root)
    remove(mounted.root)


def test_what_is_not_there(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    for name in ("nothing", "", "holders ", "hold.er", "HOLDERS"):
        for prefix in PREFIXES:
            must_fail(errno.ENODATA, lambda: get(path, prefix + name))  # noqa: B023
    os.setxattr(path, "user.exclfsx", b"stored")
    os.setxattr(path, "user.exclf", b"stored")
    assert sorted(os.listxattr(mounted.backing / "directory")) == ["user.exclf", "user.exclfsx"]
    assert get(path, "user.exclfsx") == b"stored"


def test_the_size_is_asked_for_first(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    place(path, b"x" * 255)
    done = subprocess.run(["getfattr", "--absolute-names", "-d", "-m", "-", path], capture_output=True, check=True)
    assert done.stdout == b""
    done = subprocess.run(
        ["getfattr", "--absolute-names", "--only-values", "-n", "user.exclfs.holders", path],
        capture_output=True,
        check=True,
    )
    assert ids(json.loads(done.stdout)["holds"])
    remove(path)


def test_the_same_as_the_socket_says(mounted: Mounted) -> None:
    path = mounted.path / os.fsdecode(b"not \xff utf-8")
    path.mkdir()
    with exclfs.connect(path) as client:
        client.hold(path, claim=False, holder="one")
        client.hold(path, holder="two", reason="quotes \" and ' and \\")
        place(path, b'{"claim": false, "holder": "three"}')
        from exclfs.wire.shapes import hold_to_json

        assert read(path, "user.exclfs.holders")["holds"] == [hold_to_json(hold) for hold in client.holds(path)]
        assert [hold["holder"]["name"] for hold in read(path, "user.exclfs.hold")["holds"]] == ["three"]
        assert get(path, "user.exclfs.why").count(b"is held by") == 3
    remove(path)


def test_more_than_an_xattr_holds_is_counted(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with exclfs.connect(path) as client:
        for number in range(200):
            client.hold(path, claim=False, holder=f"holder {number}", reason="x" * 300)
        value = get(path, "user.exclfs.holders")
        told = json.loads(value)
        assert len(value) <= 65536
        assert len(ids(told["holds"])) + told["more"] == 200
        assert len(get(path, "user.exclfs.why")) <= 65536
        assert len(client.holds(path)) == 200


# --- copies ----------------------------------------------------------------------------------------------------------

COPIES = {
    "cp": ["cp", "-a", "--preserve=all", "{}/tree", "{}/copy"],
    "rsync": ["rsync", "-aX", "{}/tree", "{}/copy"],
    "tar": ["sh", "-c", "tar --xattrs --xattrs-include='*' -C {}/tree -cf - . | (mkdir {}/copy; tar -C {}/copy -xf -)"],
}


@pytest.mark.parametrize("program", COPIES)
def test_no_copy_carries_them(mounted: Mounted, program: str) -> None:
    needs.programs(program)
    tree = mounted.setup("tree")
    for kind in ("file", "directory", "symlink", "fifo"):
        KINDS[kind](tree / kind)
        place(tree / kind)
    os.setxattr(tree / "file", "user.colour", b"red")
    words = [word.replace("{}", str(mounted.path)) for word in COPIES[program]]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for path in mounted.path.glob("copy/**/*"):
        assert os.listxattr(path, follow_symlinks=False) in ([], ["user.colour"])
        assert exclfs.holds(path) == ()
    for kind in ("file", "directory", "symlink", "fifo"):
        remove(tree / kind)


# --- placing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_is_told_cannot_be_written(mounted: Mounted, name: str) -> None:
    path = mounted.setup("directory")
    for prefix in PREFIXES:
        before = get(path, prefix + name)
        must_fail(errno.EPERM, lambda: os.setxattr(path, prefix + name, b"x"))  # noqa: B023
        must_fail(errno.EPERM, lambda: os.removexattr(path, prefix + name))  # noqa: B023
        assert get(path, prefix + name) == before
    assert os.listxattr(mounted.backing / "directory") == []


@pytest.mark.parametrize(
    ("value", "flags", "holder", "reason"),
    [
        (b"a name", "EXCL_INUSE,NO_REMOVE", "a name", ""),
        (b"a name\n", "EXCL_INUSE,NO_REMOVE", "a name", ""),
        (b"n\xc3\xa4me\0", "EXCL_INUSE,NO_REMOVE", "näme", ""),
        (b"x" * 255, "EXCL_INUSE,NO_REMOVE", "x" * 255, ""),
        (b'{"holder": "a", "reason": "b"}', "EXCL_INUSE,NO_REMOVE", "a", "b"),
        (b'{"holder": "a", "claim": false}', "NO_REMOVE", "a", ""),
        (b'{"holder": "a", "flags": ["kernel_file"]}', "KERNEL_FILE", "a", ""),
    ],
)
def test_values_that_place_a_hold(mounted: Mounted, value: bytes, flags: str, holder: str, reason: str) -> None:
    path = mounted.setup("directory")
    place(path, value, "user.exclfs.")
    (hold,) = exclfs.holds(path)
    assert (",".join(hold.flags.names), hold.holder.name, hold.reason) == (flags, holder, reason)
    assert hold.holder.process.pid == os.getpid()
    remove(path, "user.exclfs.")
    assert exclfs.holds(path) == ()


@pytest.mark.parametrize("comm", [b"a program", b"a\nb", b"\xff\x1b[2J"], ids=["plain", "lines", "bytes"])
def test_without_a_name_the_holder_is_the_program(mounted: Mounted, comm: bytes) -> None:
    path = mounted.setup("directory")
    script = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[2]))
os.setxattr(sys.argv[1], "system.exclfs.hold", b"{}")
"""
    subprocess.run([sys.executable, "-c", script, path, comm], check=True)
    (hold,) = exclfs.holds(path)
    assert hold.holder.process.comm == os.fsdecode(comm)
    assert hold.holder.name == printable(os.fsdecode(comm))
    remove(path)


NO_HOLDS = [
    *(b"", b" ", b"\xff", b"a\nb", b"\x1b[2J", b"x" * 256, b"x" * 4097, b"x" * 65536),
    *(b"{", b'{"holder": "a"} {}', b'{"a":' * 800 + b"1" + b"}" * 800, b'{"nonsense": 1}'),
    *(b'{"holder": 1}', b'{"holder": ""}', b'{"holder": "\\ud800"}', b'{"holder": null}'),
    *(b'{"reason": null}', b'{"reason": "\\u0000"}', b'{"reason": "%s"}' % (b"x" * 1025)),
    *(b'{"flags": []}', b'{"flags": "NO_REMOVE"}', b'{"flags": [1]}', b'{"flags": ["NONSENSE"]}', b'{"flags": [[]]}'),
    *(b'{"claim": 1}', b'{"flags": ["NO_REMOVE"], "claim": true}'),
]


@pytest.mark.parametrize("value", NO_HOLDS, ids=range(len(NO_HOLDS)))
def test_values_that_are_no_hold(mounted: Mounted, value: bytes) -> None:
    path = mounted.setup("directory")
    for prefix in PREFIXES:
        must_fail(errno.EINVAL, lambda: place(path, value, prefix))  # noqa: B023
    assert exclfs.holds(path) == ()
    path.rmdir()


def test_a_claim_that_is_taken_is_busy(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with exclfs.hold(path):
        must_fail(errno.EBUSY, lambda: place(path))
        place(path, b'{"holder": "guard", "claim": false}')
        must_fail(errno.EPERM, lambda: os.removexattr(path, "user.exclfs.holders"))
        remove(path)
        must_fail(errno.ENODATA, lambda: remove(path))  # what a connection holds is not placed so
        assert len(exclfs.holds(path)) == 1


# --- by whom ---------------------------------------------------------------------------------------------------------


def test_who_may_place_and_who_may_remove(mounted: Mounted) -> None:
    mounted.expect("unlock_bad", "broken", "refused")
    os.chmod(mounted.backing, 0o755)  # nobody else may remove what is in it
    path = mounted.setup("directory")
    os.chown(path, ALICE.uid, ALICE.gid)
    os.chmod(path, 0o777)  # that all may write in it does not make it everybody's to hold

    def do(user: Any, call: Callable[[], object]) -> None:
        as_user(user, call)

    here = os.open(path, os.O_PATH)
    at = f"/proc/self/fd/{here}"  # pytest's own directories let nobody but root through
    try:

        def setting(value: bytes) -> Callable[[], None]:
            return lambda: os.setxattr(at, "system.exclfs.hold", value)

        removing = lambda: os.removexattr(at, "system.exclfs.hold")  # noqa: E731
        for prefix in PREFIXES:
            must_fail(errno.EPERM, lambda: do(BOB, lambda: os.setxattr(at, f"{prefix}hold", b"bob")))  # noqa: B023
        assert exclfs.holds(path) == ()
        do(ALICE, setting(b"alice"))
        do(BOB, lambda: os.getxattr(at, "system.exclfs.holders"))
        must_fail(errno.EPERM, lambda: do(BOB, removing))
        (hold,) = exclfs.holds(path)
        assert (hold.holder.name, hold.holder.process.uid) == ("alice", ALICE.uid)
        do(ALICE, removing)
        assert exclfs.holds(path) == ()
        do(ROOT, setting(b"root"))
        must_fail(errno.EPERM, lambda: do(ALICE, removing))
        must_fail(errno.EBUSY, lambda: path.rmdir())
        do(ROOT, removing)
        do(ALICE, setting(b"alice"))
        do(ROOT, removing)  # root breaks it
    finally:
        os.close(here)
    logged(mounted, "broken", "holder=alice", "requester_uid=0")
    path.rmdir()
