"""Where the control socket listens: its name, its directory, and whose it is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from exclfs.services import listener
from exclfs.services.listener import open_control_socket


def names_in(directory: Path) -> list[str]:
    """What is in a directory of sockets, beside the lock that stays."""
    return sorted(set(os.listdir(directory)) - {".lock"})


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


async def test_the_socket_has_the_name_of_the_device_and_is_open_to_all(tmp_path: Path) -> None:
    control = open_control_socket(os.makedev(0, 77), str(tmp_path))
    assert control.path == str(tmp_path / "0:77.sock")
    assert os.stat(control.path).st_mode & 0o777 == 0o666
    assert names_in(tmp_path) == ["0:77.sock"]
    assert connects(control.path)
    await control.close()
    assert names_in(tmp_path) == []
    await control.close()


async def test_dead_sockets_are_cleared_and_living_ones_stay(tmp_path: Path) -> None:
    living = open_control_socket(os.makedev(0, 1), str(tmp_path))
    for name in "0:2.sock", "0:3.sock":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / name))
    (tmp_path / "other").touch()
    control = open_control_socket(os.makedev(0, 2), str(tmp_path))
    assert names_in(tmp_path) == ["0:1.sock", "0:2.sock", "other"]
    assert connects(living.path)
    assert connects(control.path)
    await control.close()
    await living.close()


async def test_who_was_replaced_does_not_remove_the_successor(tmp_path: Path) -> None:
    first = open_control_socket(os.makedev(0, 1), str(tmp_path))
    second = open_control_socket(os.makedev(0, 1), str(tmp_path))
    await first.close()
    assert connects(second.path)
    await second.close()


async def test_who_ends_while_another_begins_removes_nothing(tmp_path: Path) -> None:
    """The name may have become another's at any moment, so it stays; whoever begins next clears it away."""
    first = open_control_socket(os.makedev(0, 1), str(tmp_path))
    with listener._locked(str(tmp_path)):
        await first.close()
        assert names_in(tmp_path) == ["0:1.sock"]
    second = open_control_socket(os.makedev(0, 2), str(tmp_path))
    assert names_in(tmp_path) == ["0:2.sock"]
    await second.close()


def test_the_directory_of_others_is_theirs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    os.chown(tmp_path, 1000, -1) if os.getuid() == 0 else None
    directory = tmp_path / "exclfs"
    directory.mkdir(mode=0o777)
    if os.getuid() == 0:
        with pytest.raises(PermissionError, match="belongs to uid 0"):
            listener.runtime_directory()
        os.chown(directory, 1000, -1)
    else:
        monkeypatch.setattr(os, "geteuid", os.getuid)
    assert listener.runtime_directory() == str(directory)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_place_of_the_directory_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "ROOTS_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        listener.runtime_directory()


@pytest.mark.root
def test_the_directory_of_root_can_be_entered_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "ROOTS_DIRECTORY", str(tmp_path / "run"))
    umask = os.umask(0o077)
    try:
        assert listener.runtime_directory() == str(tmp_path / "run")
    finally:
        os.umask(umask)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755
