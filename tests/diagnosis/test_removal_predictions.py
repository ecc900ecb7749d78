"""What `exclfs.why` says of rmdir, unlink and rename is what the calls then do: in every situation, for everybody."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import exclfs
from estate import estate, open_directory
from exclfs import Flags
from harness import start
from kernel_situations import SITUATIONS
from predicted import (
    CALLS,
    CONTAINED,
    MS_BIND,
    MS_RDONLY,
    MS_REMOUNT,
    PREFIX,
    USERS,
    answer,
    as_process_of,
    mount,
    tried,
)
from situations import attribute, filled, new_directory, new_file
from twins import ALICE, LIBC, ROOT, User, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Mounted
    from predicted import Answer

pytestmark = pytest.mark.root

UNCERTAIN = {
    *(("in_an_overlay", "rename", user) for user in USERS),
    ("unreadable", "rmdir", ALICE),
    ("unreadable", "rmdir", CONTAINED),
}
"""What cannot be known by somebody before it is tried; then that is said."""
WITH_ANOTHER_ERROR = {("immutable_mountpoint", attempt, user) for attempt in CALLS for user in (ALICE, CONTAINED)}
"""What fails, as was said, but with EPERM, which was said to be possible: only root sees what is under a mount."""


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    def used() -> set[str]:
        files = [*Path("/sys/block").glob("loop*/loop/backing_file"), Path("/proc/swaps")]
        return {line for file in files if file.exists() for line in file.read_text().splitlines() if PREFIX in line}

    before = used()
    yield
    assert used() == before


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
@pytest.mark.parametrize("name", SITUATIONS)
def test_the_call_does_what_was_said(name: str, user: User) -> None:
    make, kinds = SITUATIONS[name]
    for attempt in CALLS:
        told = answer(make, user, attempt)
        if (name, attempt, user) in UNCERTAIN:
            assert (told.blocked, bool(told.unread)) == (None, True), told
        elif (name, attempt, user) in WITH_ANOTHER_ERROR:
            assert (told.blocked, told.real) == (True, "EPERM"), told
            assert any("may fail with EPERM" in text for text in told.unread), told
        else:
            assert told.is_right, f"{attempt}: {told}"
        if user == ROOT:
            assert set(kinds) <= set(told.kinds), told


# --- In a mount of exclfs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[Mounted]:
    with estate() as mounted:
        mounted.backing.chmod(0o777)
        yield mounted


@pytest.fixture
def here(place: Mounted, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A directory that everybody may write."""
    with place.narrowed(request.node.name) as narrowed:
        narrowed.backing.chmod(0o777)
        yield narrowed


def must_be_right(user: User, path: Path, attempt: str, real: str | None, *kinds: str) -> Answer:
    told = as_process_of(user, lambda: tried(str(path), attempt))
    assert (told.real, told.is_right) == (real, True), told
    assert set(kinds) <= set(told.kinds), told
    return told


@pytest.mark.mount
@pytest.mark.parametrize("user", [ROOT, ALICE], ids=lambda user: user.name)
@pytest.mark.parametrize("attempt", ["rmdir", "rename"])
def test_a_hold_comes_before_the_contents(here: Mounted, user: User, attempt: str) -> None:
    filled(here.backing / "thing")
    with exclfs.hold(here.path / "thing"):
        must_be_right(user, here.path / "thing", attempt, "EBUSY", "hold", "not empty")
    must_be_right(user, here.path / "thing", attempt, "ENOTEMPTY" if attempt == "rmdir" else None, "not empty")


@pytest.mark.mount
@pytest.mark.parametrize("attempt", ["unlink", "rename"])
def test_permissions_come_before_a_hold(here: Mounted, attempt: str) -> None:
    thing = new_file(new_directory(here.backing / "directory") / "thing")
    path = here.path / "directory" / "thing"
    with exclfs.hold(path):
        must_be_right(ALICE, path, attempt, "EACCES", "no permission", "hold")
        must_be_right(ROOT, path, attempt, "EBUSY", "hold")
        thing.parent.chmod(0o1777)
        must_be_right(ALICE, path, attempt, "EPERM", "sticky", "hold")
    must_be_right(ROOT, path, attempt, None)


@pytest.mark.mount
def test_a_hold_that_refuses_rmdir_alone_is_said_to(here: Mounted) -> None:
    path = new_directory(here.backing / "thing") and here.path / "thing"
    with exclfs.hold(path, flags=Flags.KERNEL_FILE):
        must_be_right(ROOT, path, "rmdir", "EBUSY", "hold")
        must_be_right(ROOT, path, "rename", None, "hold")


@pytest.mark.mount
@pytest.mark.parametrize("letter", ["i", "a"])
@pytest.mark.parametrize("attempt", ["unlink", "rename"])
def test_what_the_backing_tree_refuses_comes_after_a_hold(here: Mounted, letter: str, attempt: str) -> None:
    thing = new_file(here.backing / "thing")
    beside = new_file(new_directory(here.backing / "directory") / "thing")
    with attribute(letter, thing), attribute(letter, beside.parent):
        must_be_right(ROOT, here.path / "thing", attempt, "EPERM", "backing tree")
        must_be_right(ROOT, here.path / "directory" / "thing", attempt, "EPERM", "backing tree")
        with exclfs.hold(here.path / "thing"):
            must_be_right(ROOT, here.path / "thing", attempt, "EBUSY", "hold", "backing tree")


@pytest.mark.mount
def test_a_mountpoint_of_the_backing_tree_is_found(here: Mounted) -> None:
    thing = new_directory(here.backing / "thing")
    with mounted_there("none", thing, "tmpfs"):
        for attempt in ("rmdir", "rename"):
            must_be_right(ROOT, here.path / "thing", attempt, "EBUSY", "backing tree")


@pytest.mark.mount
def test_a_backing_tree_that_is_read_only_is_found() -> None:
    with open_directory() as directory:
        tree = new_directory(directory / "tree")
        with mounted_there(str(tree), tree, flags=MS_BIND):
            new_file(tree / "thing")
            with start(directory) as mounted:
                mount("none", tree, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
                for attempt in ("unlink", "rename"):
                    must_be_right(ROOT, mounted.path / "thing", attempt, "EROFS", "backing tree")


@pytest.mark.mount
def test_the_backing_tree_is_found_under_a_mount_in_place() -> None:
    with open_directory() as directory:
        tree = new_directory(directory / "tree")
        thing = new_file(new_directory(tree / "below") / "thing")
        with attribute("i", thing), start(directory, mountpoint=tree) as mounted:
            told = must_be_right(ROOT, mounted.path / "below" / "thing", "unlink", "EPERM", "backing tree")
            assert not any("could not be looked at" in text for text in told.unread)
            told = as_process_of(ALICE, lambda: tried(str(mounted.path / "below" / "thing"), "unlink"))
            assert (told.real, told.errno, told.kinds) == ("EACCES", "EACCES", ["no permission"])
            assert any("could not be looked at" in text for text in told.unread)


@contextmanager
def mounted_there(source: str, target: Path, kind: str = "", flags: int = 0) -> Iterator[None]:
    mount(source, target, kind, flags)
    try:
        yield
    finally:
        check(LIBC.umount2(os.fsencode(target), 2))
