"""What a stopped call is said to be about, however the program names it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from stopping import python

if TYPE_CHECKING:
    from pathlib import Path

SEEN = {
    "a relative path": ("os.unlink('d/f')", ("unlink", "d/f", None)),
    "an absolute path": ("os.unlink(root + '/d/f')", ("unlink", "d/f", None)),
    "the root itself": ("os.listdir(root)", ("opendir", "", None)),
    "dots": ("os.unlink('d/../d/./f')", ("unlink", "d/f", None)),
    "many slashes": ("os.unlink(root + '//d///f')", ("unlink", "d/f", None)),
    "out and in again": ("os.unlink('../root/d/f')", ("unlink", "d/f", None)),
    "a directory's descriptor": ("os.unlink('f', dir_fd=os.open('d', os.O_RDONLY))", ("unlink", "d/f", None)),
    "another working directory": ("os.chdir('d'); os.unlink('../d/f')", ("unlink", "d/f", None)),
    "a symlink on the way": ("os.unlink('to_d/f')", ("unlink", "d/f", None)),
    "an absolute symlink on the way": ("os.unlink('absolutely_to_d/f')", ("unlink", "d/f", None)),
    "a symlink from outside": ("os.unlink(root + '.link/d/f')", ("unlink", "d/f", None)),
    "a symlink that is removed": ("os.unlink('to_f')", ("unlink", "to_f", None)),
    "a symlink that is followed": ("os.chmod('to_f', 0o600)", ("setattr", "d/f", None)),
    "a symlink that is not followed": ("os.lstat('to_f')", ("getattr", "to_f", None)),
    "a symlink that is opened": ("os.open('to_f', os.O_RDONLY)", ("open", "d/f", None)),
    "a symlink that is not opened": (
        "try: os.open('to_f', os.O_RDONLY | os.O_NOFOLLOW)\nexcept OSError: pass",
        ("open", "to_f", None),
    ),
    "symlinks in a circle": ("try: os.stat('circle/x')\nexcept OSError: pass", ("getattr", "circle/x", None)),
    "/proc/self/fd": ("os.stat('/proc/self/fd/%d/f' % os.open('d', os.O_RDONLY))", ("getattr", "d/f", None)),
    "a name that is not UTF-8": ("os.unlink(b'd/\\xff\\x01\\n')", ("unlink", os.fsdecode(b"d/\xff\x01\n"), None)),
    "a name across two pages": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 8192); at = 4096 - 2\nm[at:at + 4] = b'd/f\\0'\n"
        "ctypes.CDLL(None).unlink(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(m)) + at))",
        ("unlink", "d/f", None),
    ),
    "a rename": ("os.rename('d/f', 'd/g')", ("rename", "d/f", "d/g")),
    "a link": ("os.link('d/f', 'd/g')", ("link", "d/f", "d/g")),
    "a symlink": ("os.symlink('anything', 'd/g')", ("symlink", "d/g", None)),
    "rmdir": ("os.rmdir('empty')", ("rmdir", "empty", None)),
    "unlinkat of a directory": ("os.rmdir('empty', dir_fd=os.open('.', os.O_RDONLY))", ("rmdir", "empty", None)),
    "mkdir": ("os.mkdir('d/new')", ("mkdir", "d/new", None)),
    "a new file": ("os.open('d/new', os.O_CREAT | os.O_WRONLY)", ("create", "d/new", None)),
    "a file that is there": ("os.open('d/f', os.O_CREAT | os.O_WRONLY)", ("open", "d/f", None)),
    "an open file": ("os.ftruncate(os.open('d/f', os.O_WRONLY), 0)", ("setattr", "d/f", None)),
    "an open file that was removed": (
        "f = os.open('d/f', os.O_WRONLY); os.unlink('d/f'); os.fsync(f)",
        ("fsync", "d/f", None),
    ),
    "a lock": ("import fcntl; fcntl.flock(os.open('d/f', os.O_RDONLY), fcntl.LOCK_EX)", ("flock", "d/f", None)),
    "a lock of fcntl": ("import fcntl; fcntl.lockf(os.open('d/f', os.O_RDWR), fcntl.LOCK_EX)", ("flock", "d/f", None)),
    "a child": ("import subprocess; subprocess.run(['rm', 'd/f'])", ("unlink", "d/f", None)),
    "a thread": (
        "import threading; t = threading.Thread(target=os.unlink, args=('d/f',)); t.start(); t.join()",
        ("unlink", "d/f", None),
    ),
    "a program of its own": ("os.execv('/bin/rm', ['rm', 'd/f'])", ("unlink", "d/f", None)),
}
UNSEEN = [
    "os.unlink(root + '.in')",
    "os.unlink('out/outside')",
    "import fcntl; fcntl.fcntl(os.open('d', os.O_RDONLY), fcntl.F_GETFL)",
    "try: os.fsync(77)\nexcept OSError: pass",
    "import ctypes; ctypes.CDLL(None).unlink(ctypes.c_void_p(1))",
    "try: os.unlink('')\nexcept OSError: pass",
]
"""A sibling with the same beginning; a symlink out; no lock; no descriptor; no address; no name."""


def fill(tree: Path) -> None:
    """The root of one program's tries, and beside it what is outside."""
    (tree / "d").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "d" / "f").write_text("f")
    (tree / "d" / os.fsdecode(b"\xff\x01\n")).write_text("f")
    (tree / "to_d").symlink_to("d")
    (tree / "absolutely_to_d").symlink_to(tree / "d")
    (tree / "to_f").symlink_to("d/f")
    (tree / "circle").symlink_to("circle")
    beside = tree.parent
    (beside / "root.link").symlink_to("root")
    (beside / "root.in").write_text("in")
    (beside / "outside").mkdir()
    (beside / "outside" / "outside").write_text("")
    (tree / "out").symlink_to("../outside")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The root of what is watched, and beside it what is not."""
    fill(tmp_path / "root")
    return tmp_path / "root"


EACH = """
import os, sys
for code, root in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()
    if child == 0:
        os.chdir(root)
        os.close(0)
        exec(code)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, code
"""


def test_a_call_is_read(tmp_path: Path) -> None:
    """All of them by one program, each in a tree of its own, below what is watched as a whole."""
    tries = []
    for number, (code, _) in enumerate(SEEN.values()):
        root = tmp_path / str(number) / "root"
        fill(root)
        tries += [code, str(root)]
    with python(tmp_path, EACH, *tries) as program:
        assert program.start().wait() == 0
        entries = program.trail.since()
    for number, (how, (_, (operation, path, second_path))) in enumerate(SEEN.items()):
        root = f"{number}/root" if path == "" else f"{number}/root/"
        seen = {
            (entry.operation, entry.path.removeprefix(root), (entry.second_path or "").removeprefix(root))
            for entry in entries
        }
        assert (operation, path, second_path or "") in seen, how


def test_what_is_outside_is_not_seen(tree: Path) -> None:
    tries = [word for code in UNSEEN for word in (code, str(tree))]
    with python(tree, EACH, *tries, operations=("unlink", "fsync", "flock")) as program:
        assert program.start().wait() == 0
        assert program.trail.since() == ()


def test_a_rename_across_the_border_is_seen_by_the_side_that_is_inside(tree: Path) -> None:
    tries = ["os.rename('d/f', root + '.out')", str(tree), "os.rename(root + '.in', 'd/in')", str(tree)]
    with python(tree, EACH, *tries, operations="rename") as program:
        assert program.start().wait() == 0
        assert [(entry.path, entry.second_path) for entry in program.trail.since()] == [("d/f", None), ("d/in", None)]


def test_symlinks_inside_are_read_behind_the_mount(tmp_path: Path) -> None:
    """The mountpoint is never asked: here it is empty, and the links are in the backing tree alone."""
    root, backing = tmp_path / "root", tmp_path / "backing"
    root.mkdir()
    (backing / "d").mkdir(parents=True)
    (backing / "link").symlink_to("d")
    code = "import os\ntry: os.unlink('link/f')\nexcept OSError: pass"
    with python(root, code, backing=backing, operations="unlink") as program:
        assert program.start().wait() == 0
        assert [entry.path for entry in program.trail.since()] == ["d/f"]


def test_openat2_says_its_flags_in_memory(tree: Path) -> None:
    number = 437
    code = (
        "import ctypes, os, struct\nhow = struct.pack('=QQQ', os.O_CREAT | os.O_WRONLY, 0o600, 0)\n"
        f"assert ctypes.CDLL(None).syscall({number}, -100, b'd/new', how, 24) > 0"
    )
    with python(tree, code, operations=("create", "open")) as program:
        assert program.start().wait() == 0
        assert [(entry.operation, entry.path) for entry in program.trail.since()] == [("create", "d/new")]
