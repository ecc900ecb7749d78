from __future__ import annotations

import ctypes
import os
import socket
from typing import TYPE_CHECKING

import pytest

from exclfs.client import discovery
from exclfs.client.discovery import Server, find, peer, unreachable, verify
from exclfs.client.errors import NoServer, NotAMount, WrongServer
from exclfs.client.sync_client import connect, reach

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def served_by(uid: int, path: str = "/run/none.sock") -> Server:
    return Server("/mnt", path, uid, whole=True, st_dev=0)


def test_a_path_outside_any_exclfs_mount(tmp_path: Path) -> None:
    with pytest.raises(NotAMount) as caught:
        find(str(tmp_path))
    assert caught.value.path == str(tmp_path)


def test_a_path_that_is_not_there_is_told_by_its_name(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as caught:
        find(missing)
    assert os.fsdecode(caught.value.filename) == missing


def test_a_dangling_symlink_is_a_path_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere")
    with pytest.raises(NotAMount):
        find(str(tmp_path / "link"))


def test_connect_takes_any_path_object(tmp_path: Path) -> None:
    with pytest.raises(NotAMount):
        connect(tmp_path)


def test_the_peer_of_a_socket_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer(ours) == discovery.Peer(os.getpid(), os.getuid(), os.getgid())


def test_only_the_owner_of_the_mount_is_believed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        verify(ours, served_by(os.getuid()))
        with pytest.raises(WrongServer) as caught:
            verify(ours, served_by(os.getuid() + 1))
    assert (caught.value.uid, caught.value.owner) == (os.getuid(), os.getuid() + 1)


def test_nothing_is_asked_of_another_users_server(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(WrongServer):
            reach(served_by(os.getuid() + 1, path))
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(1) == b""


def test_a_socket_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NoServer, match="is gone"):
        reach(served_by(os.getuid(), str(tmp_path / "none.sock")))


def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    with pytest.raises(NoServer, match="connection refused"):
        reach(served_by(os.getuid(), path))


@pytest.mark.parametrize(
    ("error", "said"),
    [(PermissionError(13, "no"), "you may not"), (TimeoutError("slow"), "nobody accepts"), (OSError(5, "Bad"), "bad")],
)
def test_every_way_not_to_connect_is_worded(error: OSError, said: str) -> None:
    assert said in unreachable(served_by(0), error).why


# --- a mount whose server has ended: real, and cheap to make ----------------------------------------------------------


@pytest.fixture
def stale(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    mounted = libc.mount(b"nothing", os.fsencode(tmp_path), b"fuse.exclfs", 0, options)
    os.close(device)
    if mounted != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    yield tmp_path
    libc.umount2(os.fsencode(tmp_path), 2)


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_mount_whose_server_has_ended(stale: Path, below: str) -> None:
    with pytest.raises(NoServer) as caught:
        find(str(stale / below))
    assert caught.value.mountpoint == str(stale)
    assert "has ended" in caught.value.why
