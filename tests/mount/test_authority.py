"""Who may place, release and break, on a real mount: every kind of user, directory and name (DESIGN section 6).

What the kernel lets somebody remove, the kernel is asked: behind the mount, with the very same thing.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest

import exclfs
from contained import contained
from estate import (
    EVERYBODY,
    KINDS,
    LANDLORD,
    MEMBER,
    MODES,
    OWNER,
    STRANGER,
    connected,
    estate,
    kernel_lets_read,
    kernel_lets_remove,
    make,
    place,
)
from exclfs import Flags, NotPermitted
from exclfs.holds.events import Broken
from program import logged
from twins import ROOT, SHARED, User, as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

everybody = pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)


@pytest.fixture(scope="module", params=[None, SHARED], ids=["no group", "a group"])
def with_and_without_group(request: pytest.FixtureRequest) -> Iterator[tuple[Mounted, bool]]:
    """A mount, and another with -o holders=GROUP."""
    with estate(holders=request.param) as mounted:
        yield mounted, request.param is not None


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    with estate() as mounted:
        yield mounted


# --- ways to place a hold ---------------------------------------------------------------------------------------------


def by_descriptor(thing: Path, *, claim: bool) -> bool:
    with exclfs.connect(thing) as client:
        try:
            client.hold(thing, claim=claim)
        except NotPermitted:
            return False
        return True


def by_path(thing: Path, *, claim: bool) -> bool:
    with exclfs.connect(thing) as client:
        root = client.mountpoint
    wanted = {
        "objects": [{"path": str(thing.relative_to(root))}],
        "flags": ["NO_REMOVE", *(["EXCL_INUSE"] if claim else [])],
        "holder": "by path",
        "reason": "",
    }
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.getxattr(root, "user.exclfs.socket"))
        line.sendall(json.dumps({"method": "org.exclfs.Hold", "parameters": wanted}).encode() + b"\0")
        answer = json.loads(line.recv(65536).rstrip(b"\0"))
    assert answer.get("error") in (None, "org.exclfs.NotPermitted"), answer
    return "error" not in answer


def by_xattr(thing: Path, *, claim: bool) -> bool:
    try:
        os.setxattr(thing, "system.exclfs.hold", json.dumps({"claim": claim}).encode())
    except PermissionError:
        return False
    os.removexattr(thing, "system.exclfs.hold")
    return True


WAYS: Final[tuple[Callable[..., bool], ...]] = (by_descriptor, by_path, by_xattr)


@everybody
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_who_may_place(with_and_without_group: tuple[Mounted, bool], who: User, way: Callable[..., bool]) -> None:
    mounted, grouped = with_and_without_group
    for mode, kind, claim in itertools.product(MODES, KINDS, (False, True)):
        thing = make(mounted, mode) / kind
        may = who in (ROOT, OWNER)
        may |= kind != "linked" and kernel_lets_remove(mounted, who, thing)
        may |= grouped and who is MEMBER and not claim and kernel_lets_read(who, thing)
        assert as_user(who, lambda: way(thing, claim=claim)) == may, (oct(mode), kind, claim)  # noqa: B023
        if not may:
            assert exclfs.holds(thing) == ()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_link_in_ones_own_directory_gives_no_right(mounted: Mounted, way: Callable[..., bool]) -> None:
    link = make(mounted, 0o777) / "strangers/linked"
    assert kernel_lets_remove(mounted, STRANGER, link)
    assert not as_user(STRANGER, lambda: way(link, claim=False))
    (mounted.backing / link.relative_to(mounted.path).parent.parent / "linked").unlink()
    assert as_user(STRANGER, lambda: way(link, claim=False)), "now it is the only one"


@everybody
def test_who_may_pin_a_path(mounted: Mounted, who: User) -> None:
    """Who may rename each directory on it, and hold what it leads to."""
    for root, mode in itertools.product((0o755, 0o1777, 0o777), MODES):
        mounted.backing.chmod(root)
        thing = make(mounted, mode) / "directory"
        below = mounted.backing / thing.relative_to(mounted.path) / "below"
        below.touch()
        os.chown(below, OWNER.uid, OWNER.gid)
        thing.chmod(0o777)
        may = all(kernel_lets_remove(mounted, who, one) for one in (thing, thing.parent))
        with suppress(NotPermitted):
            hold = as_user(who, lambda: place(thing / "below", flags=Flags.PIN_PATH))  # noqa: B023
            assert may, (oct(root), oct(mode))
            assert hold.flags == Flags.PIN_PATH
            continue
        assert not may, (oct(root), oct(mode))
    mounted.backing.chmod(0o755)


def test_a_path_is_not_pinned_by_right_of_another_link(mounted: Mounted) -> None:
    mounted.backing.chmod(0o1777)
    directory = make(mounted)
    own = mounted.backing / "own"
    own.mkdir()
    os.chown(own, OWNER.uid, OWNER.gid)
    os.link(mounted.backing / directory.name / "linked", own / "linked")
    assert as_user(OWNER, lambda: place(mounted.path / "own/linked", flags=Flags.PIN_PATH))
    with pytest.raises(NotPermitted, match="PIN_PATH"):
        as_user(OWNER, lambda: place(directory / "linked", flags=Flags.PIN_PATH))
    mounted.backing.chmod(0o755)


# --- releasing and breaking -------------------------------------------------------------------------------------------


@everybody
@pytest.mark.parametrize("kind", KINDS)
def test_who_may_release_and_who_may_break(mounted: Mounted, who: User, kind: str) -> None:
    thing = make(mounted, 0o777) / kind
    with connected(OWNER, thing) as held:
        (hold,) = held.hold(thing, until_unmount=True)

        def release(*, break_it: bool) -> bool:
            with exclfs.connect(thing) as client:
                try:
                    client.release(hold, break_it=break_it, reason=f"for {who.name}")
                except NotPermitted:
                    return False
                return True

        assert as_user(who, lambda: release(break_it=False)) == (who is OWNER)
        if who is OWNER:
            return
        may = who is ROOT or (who is LANDLORD and kind != "linked")
        assert as_user(who, lambda: release(break_it=True)) == may
        assert held.holds(thing) == (() if may else (hold,))
        if may:
            assert who.name in logged(mounted, "broken", hold.id)
        else:
            logged(mounted, "unlock_bad", hold.id)
            held.release(hold)


def test_by_connection_a_hold_is_its_process_alone(mounted: Mounted) -> None:
    """Another process of the same user breaks it, on the record."""
    thing = make(mounted) / "file"
    with connected(OWNER, thing) as client, contained(mounted.path, OWNER.uid, {OWNER.uid: OWNER.uid}) as another:
        (hold,) = client.hold(thing)
        assert another.do("call", "Release", {"ids": [hold.id]}) == "NotPermitted"
        assert client.holds(thing) == (hold,)
        reply = another.do("call", "Release", {"ids": [hold.id], "break_it": True})
        assert [released["id"] for released in reply["released"]] == [hold.id]
        assert client.holds(thing) == ()
        logged(mounted, "broken", hold.id)


def test_the_holder_is_told_who_broke_its_hold_and_why(mounted: Mounted) -> None:
    thing = make(mounted) / "file"
    with connected(OWNER, thing) as client:
        (hold,) = client.hold(thing)
        with client.events(own=True) as events:
            as_user(LANDLORD, lambda: exclfs.release(thing, break_it=True, reason="it blocks the move"))
            broken = next(events)
    assert isinstance(broken, Broken)
    assert (broken.hold.id, broken.requester.uid, broken.reason) == (hold.id, LANDLORD.uid, "it blocks the move")
    assert "it blocks the move" in logged(mounted, "broken", hold.id)
