"""`exclfs status` counts what was done, and says it of everybody to those who may know."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import exclfs
from estate import EVERYBODY, LANDLORD, OWNER, connected, estate, make
from program import document, must_be_a_hold
from program import exclfs as command
from twins import ROOT, User, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def refused(remove: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="busy"):
        remove()


def test_the_figures_are_of_what_was_done(mount: Callable[..., Mounted]) -> None:
    mounted = mount()
    mounted.expect("refused", "mode_changed")
    paths = [mounted.setup(f"d{number}") for number in range(3)]
    with exclfs.connect(mounted.root) as client:
        oldest, *_ = client.hold(paths, holder="us", reason="it is ours")
        client.hold(paths[0], holder="them", claim=False)
        for _ in range(7):
            refused(paths[0].rmdir)
        for path in paths:
            refused(lambda path=path: path.rename(mounted.path / "moved"))  # type: ignore[misc]
        for _ in range(2):
            subprocess.run(["rmdir", paths[1]], check=False, stderr=subprocess.DEVNULL)
        told = document("status", mounted.root)
        for_people = command("status", mounted.root).stdout
        client.mode("warn")
        paths[2].rmdir()
        warned = document("status", mounted.root)
    assert (told["holds"], told["holders"]) == (4, {"us": 3, "them": 1})
    assert must_be_a_hold(told["oldest_hold"])["id"] == oldest.id
    assert (told["refusals"], told["would_have_refused"]) == (12, 0)
    assert told["refusals_by_operation"] == {"rmdir": 9, "rename": 3}
    with open("/proc/self/comm") as name:
        ours = {"comm": name.read().strip(), "uid": 0, "user": "root", "refusals": 10}
    assert told["refusals_by_requester"] == [ours, {"comm": "rmdir", "uid": 0, "user": "root", "refusals": 2}]
    assert told["refusals_by_others"] == 0
    assert [(one["operation"], one["count"]) for one in told["last_refusals"]] == [
        *(("rmdir", 7), ("rename", 1), ("rename", 1), ("rename", 1)),  # repeats are one
        *(("rmdir", 1), ("rmdir", 1)),  # of two processes
    ]
    assert told["requests"]["remove"] >= 12
    assert told["answered_without_a_decision"] > 0
    assert told["verdicts"] == 12
    assert told["verdicts_timed_out"] == 0
    assert 0 < told["verdicts_p50_us"] <= told["verdicts_p99_us"]
    assert told["inodes"] >= 4
    assert 0 < told["descriptors"] <= told["descriptor_budget"]
    assert (warned["refusals"], warned["would_have_refused"]) == (12, 1)
    assert warned["refusals_by_operation"]["rmdir"] == 10
    assert warned["verdicts"] == 13
    assert f"oldest hold         {oldest.id} on {paths[0]}, held by us (pid {os.getpid()}" in for_people
    assert "refused             rmdir 9, rename 3\n" in for_people
    assert f"refused to          {ours['comm']} of root 10, rmdir of root 2\n" in for_people
    assert f"verdicts            12, half of them within {told['verdicts_p50_us']} µs, 99 % within " in for_people
    assert for_people.splitlines()[-6].split()[1:4] == ["rmdir", "7", str(paths[0])]


def test_a_free_directory_is_a_verdict_only_where_it_is_always_asked_for(any_mount: Mounted) -> None:
    path = any_mount.backing / "free"
    path.mkdir()
    with exclfs.connect(any_mount.root) as client:
        before = client.status()
        (any_mount.root / "free").rmdir()
        after = client.status()
    assert after.verdicts - before.verdicts == after.ask_always
    assert after.requests["remove"] == before.requests["remove"] + 1


def test_what_nobody_has_asked_has_taken_no_time(mount: Callable[..., Mounted]) -> None:
    with exclfs.connect(mount().root) as client:
        status = client.status()
    assert (status.verdicts, status.verdicts_p50_us, status.verdicts_p99_us) == (0, None, None)
    assert (status.oldest_hold, status.refusals_by_operation, status.refusals_by_requester) == (None, {}, ())


def test_the_server_has_been_there_for_longer_and_longer(mounted: Mounted) -> None:
    with exclfs.connect(mounted.root) as client:
        first = client.status()
        time.sleep(0.02)
        second = client.status()
    assert 0 < first.uptime <= second.uptime - 0.02
    assert first.since == second.since


# --- to whom ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lived_in() -> Iterator[tuple[Mounted, Path, Path]]:
    """An estate on which root holds something, then the owner; and where both, and the landlord, were refused."""
    with estate() as mounted:
        by_root, by_owner = (make(mounted) / "file" for _ in range(2))
        with connected(ROOT, by_root) as root, connected(OWNER, by_owner) as owner:
            root.hold(by_root)
            owner.hold(by_owner)
            for who, path in (ROOT, by_root), (LANDLORD, by_root), (LANDLORD, by_owner), (LANDLORD, by_owner):
                assert outcome_of(who, lambda path=path: os.unlink(path), mounted.path) == "EBUSY"  # type: ignore[misc]
            yield mounted, by_root, by_owner


@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)
def test_who_is_told_of_whom(lived_in: tuple[Mounted, Path, Path], who: User) -> None:
    """Root is told everything; others of the holds and the refusals that they are part of, and numbers of the rest."""
    mounted, by_root, by_owner = lived_in
    with connected(who, mounted.path) as client:
        status = client.status()
    oldest = {ROOT: str(by_root), OWNER: str(by_owner)}.get(who)
    assert (status.oldest_hold.path if status.oldest_hold else None) == oldest
    requesters = {(one.uid, one.refusals) for one in status.refusals_by_requester}
    assert requesters == {ROOT: {(0, 1), (LANDLORD.uid, 3)}, LANDLORD: {(LANDLORD.uid, 3)}}.get(who, set())
    assert sum(refusals for _, refusals in requesters) + status.refusals_by_others == status.refusals == 4
