"""Who is told of holds, refusals and events, and how much of whom (DESIGN section 6)."""

from __future__ import annotations

import itertools
import json
import os
from typing import TYPE_CHECKING

import pytest

import exclfs
from estate import EVERYBODY, LANDLORD, MEMBER, OWNER, connected, estate, make, place
from exclfs import Held
from twins import ROOT, User, as_user, outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]


everybody = pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    with estate() as mounted:
        yield mounted


@pytest.fixture
def hidden(mounted: Mounted) -> Path:
    """The owner's file, in a directory that only the landlord and the group may enter."""
    thing = make(mounted, 0o770) / "file"
    (mounted.backing / thing.parent.name).chmod(0o750)
    return thing


@everybody
def test_who_may_list(mounted: Mounted, hidden: Path, who: User) -> None:
    """Who can reach it; who asks for what is held anywhere is told of their own and of what they can reach."""
    reaches = who in (ROOT, LANDLORD, MEMBER)
    public, own = make(mounted) / "file", make(mounted) / "file"
    with connected(ROOT, public) as root, connected(OWNER, own) as owner, connected(who, public) as client:
        holds = {path: one.hold(path)[0].id for one, path in ((root, hidden), (root, public), (owner, own))}
        (mounted.backing / own.parent.name).chmod(0)
        told = {hold.id for hold in client.holds()} & set(holds.values())
    knows = {public, *([hidden] if reaches else []), *([own] if who in (ROOT, OWNER) else [])}
    assert told == {holds[path] for path in knows}
    assert (outcome_of(who, lambda: exclfs.holds(hidden), mounted.path) == "EACCES") is not reaches
    causes = as_user(who, lambda: exclfs.why(hidden)).causes
    assert [cause.kind for cause in causes if cause.kind == "no way"] == ([] if reaches else ["no way"])


@everybody
def test_who_is_told_of_refusals_and_events(mounted: Mounted, hidden: Path, who: User) -> None:
    """Who sees everything, and who has part in it: as the holder, or as the one who is refused."""
    last = make(mounted) / who.name
    last.touch()
    os.chown(last, who.uid, who.gid)
    with connected(who, last) as client, as_user(who, client.events) as events:
        with connected(ROOT, mounted.path) as root:
            root.hold(hidden)
            assert outcome_of(LANDLORD, lambda: os.unlink(hidden), mounted.path) == "EBUSY"
        as_user(who, lambda: place(last, holder="the last"))
        told = list(itertools.takewhile(lambda event: "the last" not in repr(event), events))
        refused = [refusal for refusal in client.status().last_refusals if refusal.path == str(hidden)]
    expected = {ROOT.name: ["locked", "refused", "unlocked"], LANDLORD.name: ["refused"]}.get(who.name, [])
    assert [event.name for event in told] == expected
    assert len(refused) == ("refused" in expected)


@everybody
def test_of_another_users_process_nothing_is_told_that_the_kernel_would_not(mounted: Mounted, who: User) -> None:
    """Its pid and its comm are for everybody; which program it is, readlink(2) of /proc/PID/exe tells its own user."""
    thing = make(mounted) / "file"
    with connected(OWNER, thing) as owner, connected(who, thing) as client:
        owner.hold(thing)
        by_xattr = as_user(who, lambda: json.loads(os.getxattr(thing, "system.exclfs.holders")))
        told = [hold.holder.process for hold in (*client.holds(thing), *client.holds())]
        told += [cause.hold.holder.process for cause in client.why(thing).causes if cause.hold]
        if who is OWNER:
            with pytest.raises(Held) as caught:
                client.hold(thing)
            told.append(caught.value.hold.holder.process)
    may = who is ROOT  # the process is root's, though it asks as the owner
    assert {(process.pid, process.comm is None) for process in told} == {(os.getpid(), False)}
    assert {process.exe is not None for process in told} == {may}
    assert (by_xattr["holds"][0]["holder"]["exe"] is not None) == may
