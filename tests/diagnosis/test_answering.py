from __future__ import annotations

from datetime import UTC, datetime, timedelta

from attrs import evolve

from exclfs.diagnosis.answering import answer
from exclfs.diagnosis.holding import explain
from exclfs.holds.events import Refused
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Unmount
from exclfs.host import mounts

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
INODE = Inode(1, 2)
HOLD = Hold("h1", INODE, "/mnt/a b", DEFAULT, Holder("us", Process(1, 0)), "", NOON, (Unmount(),))
RM = Process(7, 0, "rm", user="root")
REFUSED = Refused(NOON, Operation.UNLINK, "/mnt/a b", INODE, RM, (HOLD,))
(MOUNT,) = mounts.parse(rb"40 39 0:50 / /other/a\040b rw - tmpfs scratch rw" + b"\n")


def test_nothing_names_who_knows_more() -> None:
    said = answer("/mnt/a b", (), INODE, enforced=True, now=NOON)
    assert said == """Nothing holds "/mnt/a b"; "exclfs why '/mnt/a b'" looks at the whole host."""


def test_a_hold_is_told_as_everywhere() -> None:
    assert answer("/mnt/a b", (HOLD,), INODE, enforced=True, now=NOON) == explain("/mnt/a b", (HOLD,), INODE, now=NOON)


def test_what_is_mounted_there_is_told_and_how_to_end_it() -> None:
    said = answer("/mnt/a b", (), INODE, enforced=True, mounted=(MOUNT,), now=NOON)
    assert said == (
        """"/mnt/a b" is a mountpoint where you are: tmpfs "scratch" is mounted on it as "/other/a b", and """
        """the kernel refuses unlink, rmdir and rename before exclfs is asked. "umount '/other/a b'" ends that."""
    )


def test_refusals_are_counted_and_the_last_requester_is_named() -> None:
    once = answer("/mnt/a b", (), INODE, enforced=True, refusals=(REFUSED,), now=NOON)
    assert once.endswith(" Removing or renaming it was refused once to rm (pid 7, user root) at 12:00:00 UTC.")
    folded = evolve(REFUSED, count=1000, until=NOON + timedelta(minutes=1), requester=evolve(RM, comm="find"))
    later = (folded, evolve(REFUSED, at=NOON + timedelta(seconds=5)))
    said = answer("/mnt/a b", (HOLD,), INODE, enforced=True, refusals=later, now=NOON)
    assert said.startswith(explain("/mnt/a b", (HOLD,), INODE, now=NOON))
    assert said.endswith(" was refused 1001 times, last to find (pid 7, user root) at 12:01:00 UTC.")


def test_what_was_let_happen_is_told_apart() -> None:
    let = evolve(REFUSED, enforced=False, requester=Process(None, 0, user="root"))
    said = answer("/mnt/a b", (HOLD,), INODE, enforced=False, refusals=(REFUSED, let, let), now=NOON)
    assert "it was refused once to rm (pid 7, user root) at" in said
    assert (
        "it would have been refused 2 times, last to a process outside the server's pid namespace, or the kernel "
        "(user root) at 12:00:00 UTC." in said
    )
