"""File handles of the mount: good while the kernel knows the inode, and ESTALE for what is gone."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from twins import CAROL, LIBC, Twins, as_user, check, handle_of, open_handle

pytestmark = [pytest.mark.mount, pytest.mark.root]


def test_a_handle_opens_what_it_was_taken_of(twins: Twins) -> None:
    (twins.behind / "directory").mkdir()
    (twins.behind / "directory/file").write_text("text")
    handles = {name: handle_of(twins.mount / name) for name in ("directory", "directory/file")}
    os.rename(twins.mount / "directory/file", twins.mount / "moved")
    with open(open_handle(twins.mount, handles["directory/file"])) as file:
        assert file.read() == "text"
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == str(twins.mount / "moved")
    fd = open_handle(twins.mount, handles["directory"])
    try:
        assert os.path.samestat(os.fstat(fd), os.stat(twins.mount / "directory"))
        assert os.path.samestat(os.stat("..", dir_fd=fd), os.stat(twins.mount))
    finally:
        os.close(fd)


def test_two_files_have_two_handles_and_two_links_have_one(twins: Twins) -> None:
    for name in ("one", "two"):
        (twins.behind / name).write_text(name)
    os.link(twins.behind / "one", twins.behind / "link")
    one, two, link = (bytes(handle_of(twins.mount / name)) for name in ("one", "two", "link"))
    assert one == link != two


def test_a_handle_of_what_was_removed_is_stale(twins: Twins) -> None:
    (twins.behind / "file").write_text("text")
    handle = handle_of(twins.mount / "file")
    os.unlink(twins.mount / "file")
    for number in range(50):  # one of them may get the number
        (twins.behind / f"new{number}").write_text("another")
        (twins.mount / f"new{number}").stat()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        open_handle(twins.mount, handle)
    assert caught.value.errno == errno.ESTALE


def test_only_who_may_read_everything_opens_handles(twins: Twins) -> None:
    (twins.behind / "file").write_text("text")
    handle = handle_of(twins.mount / "file")
    mount = os.open(twins.mount, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            as_user(CAROL, lambda: check(LIBC.open_by_handle_at(mount, ctypes.byref(handle), 0)))
    finally:
        os.close(mount)
