"""How much of everything one user may have, so that none can freeze a mount or fill its server's memory."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from estate import OWNER, STRANGER, connected, open_directory
from exclfs import NotPermitted
from exclfs.client.errors import Disconnected
from exclfs.holds.errors import BadHold
from program import mounted_by_program
from twins import ROOT, User, as_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.fixture(scope="module")
def limited() -> Iterator[Path]:
    """A mount with small limits, as the command line makes one."""
    with open_directory() as directory:
        for name in ("tree", "mnt"):
            (directory / name).mkdir()
        limits = "max_holds=3,max_reason=5,max_ttl=1m,max_connections=4"
        with mounted_by_program(directory / "tree", directory / "mnt", "-o", limits):
            yield directory / "mnt"


@pytest.fixture
def owners(limited: Path, request: pytest.FixtureRequest) -> list[Path]:
    """Five files of the owner."""
    files = [limited / f"{request.node.name}{number}" for number in range(5)]
    for file in files:
        file.touch()
        os.chown(file, OWNER.uid, OWNER.gid)
    return files


def test_one_user_has_so_many_holds_and_root_any_number(owners: list[Path]) -> None:
    with connected(OWNER, owners[0]) as client, connected(OWNER, owners[0]) as another:
        _, second = client.hold(owners[:2], claim=False)
        with pytest.raises(NotPermitted, match="limit is 3"):
            another.hold(owners[:2], claim=False)
        another.hold(owners[0], claim=False)
        for _ in range(2):
            with pytest.raises(NotPermitted, match="limit is 3"):
                client.hold(owners[0], claim=False)
            with pytest.raises(PermissionError):
                as_user(OWNER, lambda: os.setxattr(owners[0], "system.exclfs.hold", b"more"))
        with connected(ROOT, owners[0]) as root:
            root.hold(owners, claim=False)
        client.release(second)
        client.hold(owners[0], claim=False)


@pytest.mark.parametrize("who", [ROOT, OWNER], ids=lambda who: who.name)
def test_a_reason_is_so_long(owners: list[Path], who: User) -> None:
    with connected(who, owners[0]) as client:
        client.hold(owners[0], reason="12345")
        with pytest.raises(BadHold, match="at most 5"):
            client.hold(owners[1], reason="123456")
        with pytest.raises(BadHold, match="at most 5"):
            client.release(path=owners[0], break_it=True, reason="123456")


def test_a_time_is_so_long_and_roots_any(owners: list[Path]) -> None:
    with connected(OWNER, owners[0]) as client, connected(ROOT, owners[0]) as root:
        hold = client.hold(owners[0], ttl=60)
        with pytest.raises(NotPermitted, match="60 s"):
            client.hold(owners[1], ttl=61)
        with pytest.raises(NotPermitted, match="60 s"):
            client.renew(hold, 61)
        root.release(root.hold(owners[1], ttl=1e8))
        client.release(hold)


def test_one_user_has_so_many_connections(owners: list[Path]) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(OWNER, owners[0])) for _ in range(4)]
        assert [client.holds() for client in clients] == [()] * 4
        fifth = stack.enter_context(connected(OWNER, owners[0]))
        with pytest.raises((NotPermitted, Disconnected), match=r"4 connections|closed"):
            fifth.holds()
        other = stack.enter_context(connected(STRANGER, owners[0]))
        assert other.holds() == ()
