"""Callers in a user namespace and a pid namespace of their own: everybody is who they are outside."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from contained import Contained, contained
from estate import KINDS, LANDLORD, MODES, OWNER, STRANGER, connected, estate, make
from exclfs.holds.mode import Mode
from twins import ROOT, outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    with estate() as mounted:
        yield mounted


@pytest.fixture(scope="module")
def root_inside(mounted: Mounted) -> Iterator[Contained]:
    """The owner, who is root in a user namespace, and 1 in a pid namespace."""
    with contained(mounted.path, 0, {0: OWNER.uid, 1: LANDLORD.uid}) as inside:
        assert inside.do("ids") == [1, 0]
        yield inside


@pytest.fixture(scope="module")
def user_inside(mounted: Mounted) -> Iterator[Contained]:
    """The landlord, who has another number inside."""
    with contained(mounted.path, 1, {0: OWNER.uid, 1: LANDLORD.uid}) as inside:
        assert inside.do("ids") == [1, 1]
        yield inside


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_in_a_container_everybody_is_who_they_are_outside(
    mounted: Mounted, root_inside: Contained, user_inside: Contained, mode: int, kind: str
) -> None:
    thing = make(mounted, mode) / kind
    held = root_inside.do("hold", thing, "NO_REMOVE")
    assert (held["holder"]["uid"], held["holder"]["pid"]) == (OWNER.uid, root_inside.pid)
    assert root_inside.do("set", thing) is None
    may = kind != "linked"
    assert isinstance(user_inside.do("hold", thing, "NO_REMOVE"), dict) == may
    assert user_inside.do("set", thing) == (None if may else "PermissionError")
    assert user_inside.do("call", "Release", {"ids": [held["id"]]}) == "NotPermitted"
    broken = user_inside.do("call", "Release", {"ids": [held["id"]], "break_it": True})
    assert isinstance(broken, dict) == may


def test_root_in_a_container_is_not_root(mounted: Mounted, root_inside: Contained) -> None:
    thing = make(mounted) / "roots"
    thing.touch()
    with connected(ROOT, thing) as root:
        (hold,) = root.hold(thing)
        assert root_inside.do("hold", thing, "NO_REMOVE") == "NotPermitted"
        assert root_inside.do("set", thing) == "PermissionError"
        assert root_inside.do("call", "Release", {"ids": [hold.id], "break_it": True}) == "NotPermitted"
        assert root_inside.do("call", "Mode", {"mode": "off"}) == "NotPermitted"
        assert root.mode() is Mode.ENFORCE


def test_a_process_of_a_container_is_named_by_a_descriptor(mounted: Mounted, root_inside: Contained) -> None:
    """A number in another pid namespace would be another process's here."""
    thing = make(mounted) / "file"
    assert root_inside.do("hold", thing, pid=1) == "BadHold"
    with contained(mounted.path, 0, {0: OWNER.uid}) as other:
        held = other.do("hold", thing, pidfd=True)
        assert held["ends"] == [{"kind": "process", "pid": other.pid, "at": None}]
        assert outcome_of(LANDLORD, lambda: os.unlink(thing), mounted.path) == "EBUSY"
        os.kill(other.pid, signal.SIGKILL)
    assert outcome_of(LANDLORD, lambda: os.unlink(thing), mounted.path) is None


def test_whoever_is_nobody_outside_is_nobody(mounted: Mounted) -> None:
    """A user whose number is another's inside has that other's rights nowhere."""
    thing = make(mounted) / "file"
    with contained(mounted.path, OWNER.uid, {OWNER.uid: STRANGER.uid}) as inside:
        assert inside.do("ids") == [1, OWNER.uid]
        assert inside.do("hold", thing, "NO_REMOVE") == "NotPermitted"
        assert inside.do("set", thing) == "PermissionError"
