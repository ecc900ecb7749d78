"""A path and what it is located as are the same object, however the path is spelled and whatever is mounted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exclfs.client.discovery import Server
from exclfs.client.locations import locate
from exclfs.holds.errors import BadObject
from exclfs.host import mounts
from private_mounts import private_mounts


def server_of(directory: Path) -> Server:
    """As if the filesystem of this directory were served."""
    return Server("/mnt", "/run/none.sock", os.getuid(), whole=True, st_dev=directory.lstat().st_dev)


def located(path: str | Path, tree: Path) -> str:
    """Where the path is located, absolute again as seen through the mount that `tree` is on."""
    (named,) = locate([os.fspath(path)], server_of(tree))
    assert named.path is not None
    assert not named.path.startswith("/")
    mount = mounts.mount_of(tree)
    inside = os.path.relpath(os.path.join("/", named.path), os.fsdecode(mount.root))
    return os.path.normpath(os.path.join(os.fsdecode(mount.mountpoint), inside))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """With files, directories and symlinks, one of each under names that are no UTF-8."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "a/link").symlink_to("b")
    (tmp_path / "a/to-file").symlink_to("b/file")
    (tmp_path / "a/dangling").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff\xfe")).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("spelled", "is_at"),
    [
        ("a/b/file", "a/b/file"),
        ("a/b", "a/b"),
        ("a/b/", "a/b"),
        ("a//b/./file", "a/b/file"),
        ("a/b/c/../file", "a/b/file"),
        ("a/b/..", "a"),
        ("a/b/.", "a/b"),
        ("a/link", "a/link"),
        ("a/link/", "a/b"),
        ("a/link/file", "a/b/file"),
        ("a/link/../link", "a/link"),
        ("a/to-file", "a/to-file"),
        ("a/dangling", "a/dangling"),
        ("a/\udcff\udcfe", "a/\udcff\udcfe"),
        ("a/\udcff\udcfe/.", "a/\udcff\udcfe"),
    ],
)
def test_it_is_what_open_finds(tree: Path, spelled: str, is_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert located(f"{tree}/{spelled}", tree) == f"{tree}/{is_at}"
    monkeypatch.chdir(tree)
    assert located(spelled, tree) == f"{tree}/{is_at}"
    assert os.path.samestat(os.lstat(spelled), os.lstat(is_at))


def test_a_name_without_a_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "a")
    assert located("link", tree) == f"{tree}/a/link"
    assert located(".", tree) == f"{tree}/a"


def test_the_root_of_the_filesystem() -> None:
    root = Path("/proc")
    (named,) = locate(["/proc"], server_of(root))
    assert named.path == "."
    assert [one.path for one in locate(["/proc/self", "/proc/sys/kernel"], server_of(root))] == ["self", "sys/kernel"]


def test_what_is_elsewhere_is_named(tree: Path) -> None:
    with pytest.raises(BadObject, match='"/proc/version" is not in the mount "/mnt"'):
        locate([str(tree / "a"), "/proc/version"], server_of(tree))


def test_what_is_not_there_is_an_os_error(tree: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        locate([str(tree / "a"), str(tree / "none")], server_of(tree))
    assert caught.value.filename == str(tree / "none")


BOUND = """
import os, sys
from exclfs.client.discovery import Server
from exclfs.client.locations import locate

os.chdir(sys.argv[1])
server = Server("/mnt", "", 0, whole=True, st_dev=os.lstat("fs").st_dev)
for path, located in {
    "fs": ".",
    "fs/deep": "deep",
    "elsewhere": "deep/er",
    "elsewhere/x": "deep/er/x",
    "elsewhere/..": None,
    "fs/inside": "deep/er",
    "fs/inside/x": "deep/er/x",
    "fs/inside/../deep/er": "deep/er",
    "fs/file": "deep/er/x",
    "fs/nested": None,
    "fs/nested/x": None,
    "fs/nested/..": ".",
    "fs/deep (deleted)/x": "deep (deleted)/x",
}.items():
    try:
        found = locate([path], server)[0].path
    except Exception as error:
        found = None if path in str(error) else repr(error)
    assert found == located, (path, found, located)
"""


@pytest.mark.root
def test_bind_mounts_and_nested_ones(tmp_path: Path) -> None:
    """A directory and a file of the filesystem, bound elsewhere and inside itself; and another one on top."""
    commands = """
    cd "$1"; mkdir fs elsewhere
    mount -t tmpfs none fs
    mkdir -p fs/deep/er fs/inside fs/nested "fs/deep (deleted)"
    touch fs/deep/er/x fs/file "fs/deep (deleted)/x"
    mount --bind fs/deep/er elsewhere
    mount --bind fs/deep/er fs/inside
    mount --bind fs/deep/er/x fs/file
    mount -t tmpfs none fs/nested; touch fs/nested/x
    """
    with private_mounts() as space:
        space.run("sh", "-ec", commands, "sh", tmp_path)
        subprocess.run([*space.prefix, sys.executable, "-c", BOUND, tmp_path], check=True)
