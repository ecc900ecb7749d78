"""What is said of what a thing is, and of what is in it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from exclfs.diagnosis.asking import why
from predicted import CLONE_NEWNS, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT, in_a_child, mount
from situations import new_directory
from twins import LIBC, check

if TYPE_CHECKING:
    from exclfs.wire.causes import Cause


def cause_of(path: Path, attempt: str, kind: str) -> Cause:
    (cause,) = (cause for cause in why(path, attempt=attempt).causes if cause.kind == kind)
    return cause


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, 'is not empty: "0" is in it. Only an empty directory can be removed: `ls -A '),
        (3, 'is not empty: "0", "1", "2" are in it.'),
        (6, 'is not empty: 6 names are in it, "0", "1", "2", "3", "4" among them.'),
        (1001, "is not empty: more than 1000 names are in it"),
    ],
)
def test_the_first_names_and_the_number_are_told(tmp_path: Path, number: int, words: str) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    for name in range(number):
        (directory / str(name)).touch()
    cause = cause_of(directory, "rmdir", "not empty")
    assert words in cause.text
    assert (cause.blocks, cause.errno) == (("rmdir",), "ENOTEMPTY")
    assert set(cause.allows) >= {"rename"}


def test_an_empty_directory_is_not_told_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    assert why(tmp_path / "directory", attempt="rmdir").causes == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.touch(), "is a file"),
        (lambda path: path.symlink_to("/"), "is a symlink"),
        (os.mkfifo, "is a FIFO"),
    ],
)
def test_rmdir_and_overlays_want_directories(tmp_path: Path, make: object, words: str) -> None:
    thing = tmp_path / "thing"
    assert callable(make)
    make(thing)
    cause = cause_of(thing, "rmdir", "not a directory")
    assert words in cause.text
    assert (cause.blocks, cause.errno) == (("rmdir",), "ENOTDIR")
    if not thing.is_symlink():  # which mount(2) would follow
        assert cause_of(thing, "overlay-mount", "not a directory").errno == "EINVAL"


def test_what_nobody_would_try_is_not_told_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    for name in ("file", "directory"):
        kinds = {cause.kind for cause in why(tmp_path / name).causes}
        assert not kinds & {"not a directory", "is a directory"}
    assert why(tmp_path / "directory", attempt="unlink").errno == "EISDIR"


def test_the_contents_of_what_is_mounted_are_not_those_of_the_directory() -> None:
    """/proc/sys/fs/binfmt_misc, /dev/pts and the like: what is in them says nothing of what is under them."""
    kinds = {cause.kind for cause in why("/dev/pts", attempt="rmdir").causes}
    assert "mountpoint" in kinds
    assert "not empty" not in kinds


@pytest.mark.root
@pytest.mark.parametrize("kind", ["writable", "read-only", "overlay", "proc"])
def test_what_can_never_be_an_upper_directory(tmp_path: Path, kind: str) -> None:
    """Which mount(2) says, too; and which is told only to who asks for it."""

    def look() -> dict[str, Any]:
        check(LIBC.unshare(CLONE_NEWNS))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount("none", tmp_path, "tmpfs")
        for name in ("lower", "upper", "work", "merged", "on", "on-lower", "on-upper", "on-work"):
            new_directory(tmp_path / name)
        on = tmp_path / "on"
        if kind == "overlay":
            layers = f"lowerdir={on}-lower,upperdir={on}-upper,workdir={on}-work"
            mount("overlay", on, "overlay", options=layers)
        else:
            mount("none", on, "tmpfs")
        upper, work = new_directory(on / "upper"), new_directory(on / "work")
        if kind == "read-only":
            mount("none", on, flags=MS_REMOUNT | MS_RDONLY)
        if kind == "proc":
            upper, work = Path("/proc/fs"), Path("/proc/irq")
        said = why(upper, attempt="overlay-mount")
        unasked = why(upper)
        real = None
        try:
            options = f"lowerdir={tmp_path}/lower,upperdir={upper},workdir={work}"
            mount("overlay", tmp_path / "merged", "overlay", options=options)
        except OSError as error:
            real = errno.errorcode[error.errno or 0]
        return {
            "said": [said.blocked, said.errno],
            "real": [real is not None, real],
            "unasked": [cause.kind for cause in unasked.causes],
        }

    told = in_a_child(look)
    assert told["said"] == told["real"] == ([False, None] if kind == "writable" else [True, "EINVAL"])
    assert "unsuitable filesystem" not in told["unasked"]
