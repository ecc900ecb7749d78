"""Requests that are stopped before they are served, or after it with their reply withheld.

The test is kernel, policy and service at once (kernel.py), so every order of events can be had, each time.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kernel import PATIENCE, Op, rig

from exclfs.gating import Operation
from exclfs.mirror import ROOT
from exclfs.mirror.sightings import GIVING, OPCODES, Sighting, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kernel import Rig

HELD = 1
"""A flags word."""


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, gates=True) as made:
        yield made


def seen(made: Rig, number: int = 1) -> list[Sighting]:
    """Waits for so many sightings."""
    taken: list[Sighting] = []
    while len(taken) < number:
        ready, _, _ = select.select([made.mirror.sightings.news], [], [], PATIENCE)
        assert ready, f"only {taken} were seen"
        taken += made.mirror.sightings.take()[0]
    assert len(taken) == number
    return taken


def stopped(made: Rig, stage: Stage) -> Sighting:
    (sighting,) = seen(made)
    assert sighting.stage is stage
    return sighting


def watch(made: Rig, *, before: str = "", after: str = "", told: str = "") -> None:
    made.mirror.sightings.watch(
        **{
            name: [Operation(one) for one in names.split()]
            for name, names in {"before": before, "after": after, "told": told}.items()
        }
    )


def interrupt(made: Rig, unique: int) -> None:
    made.kernel.ask(Op.INTERRUPT, 0, struct.pack("=Q", unique))


@contextmanager
def somebody() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills it, and does not wait for it: what was pending of a zombie is still shown, as of one that cannot die."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if not re.search(r"(SigPnd|ShdPnd):\t\w{13}[13579bdf]00", Path(f"/proc/{process.pid}/status").read_text()):
        pytest.skip("this kernel does not show what was pending of a process that has died")


# --- before -----------------------------------------------------------------------------------------------------------


def test_what_is_watched_stops_before_it_is_done_and_others_go_on(one: Rig) -> None:
    path, _ = one.file()
    watch(one, before="unlink")
    asked = one.kernel.ask(Op.UNLINK, ROOT, b"file\0", pid=4711, uid=77)
    sighting = stopped(one, Stage.BEFORE)
    assert (sighting.operation, sighting.path, sighting.second_path) == (Operation.UNLINK, "file", None)
    assert (sighting.pid, sighting.uid) == (4711, 77)
    (one.tree / "other").mkdir()
    one.kernel.lookup("other")  # the only worker is free
    one.kernel.call(Op.RMDIR, ROOT, b"other\0")
    assert path.exists()
    assert not one.kernel.answered()
    assert one.mirror.sightings.let_go(sighting.number)
    one.kernel.reply(asked)
    assert not path.exists()
    (done,) = seen(one)
    assert (done.stage, done.number, done.errno) == (Stage.DONE, sighting.number, 0)
    assert not one.mirror.sightings.let_go(sighting.number)


def test_one_that_is_let_go_meets_holds_and_verdicts_as_any_other(one: Rig) -> None:
    path, inode = one.file()
    watch(one, before="unlink")
    for verdict in ("refuse", "proceed"):
        asked = one.unlink(path)
        sighting = stopped(one, Stage.BEFORE)
        one.mirror.set_word(inode, HELD, wait=False)
        one.mirror.sightings.let_go(sighting.number)
        question = one.policy.question()
        getattr(one.policy, verdict)(question)
        if verdict == "refuse":
            with pytest.raises(OSError, match="busy"):
                one.kernel.reply(asked)
            assert path.exists()
            assert seen(one)[0].errno == errno.EBUSY
    one.kernel.reply(asked)
    assert not path.exists()
    assert one.mirror.counters()["remove"] == 2


def test_one_that_is_answered_is_never_done(one: Rig) -> None:
    path, _ = one.file()
    watch(one, before="unlink", after="unlink")
    asked = one.unlink(path)
    one.mirror.sightings.let_go(stopped(one, Stage.BEFORE).number, errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        one.kernel.reply(asked)
    assert path.exists()
    assert stopped(one, Stage.DONE).errno == errno.ENOSPC
    for wrong in (-1, 512):
        with pytest.raises(ValueError, match="answered"):
            one.mirror.sightings.let_go(1, wrong)


def test_many_stand_and_are_let_go_in_any_order(one: Rig) -> None:
    names = [f"file{number}" for number in range(200)]
    paths = {name: one.file(name)[0] for name in names}
    watch(one, before="unlink")
    asked = {name: one.unlink(paths[name]) for name in names}
    sightings = {sighting.path: sighting for sighting in seen(one, len(names))}
    for name in reversed(names):
        one.mirror.sightings.let_go(sightings[name].number)
    for name in names:
        one.kernel.reply(asked[name])
        assert not paths[name].exists()


def test_a_write_is_kept_whole(one: Rig) -> None:
    path, inode = one.file()
    fh, _ = struct.unpack_from("=QI", one.kernel.call(Op.OPEN, inode.nodeid, struct.pack("=II", os.O_RDWR, 0)))
    watch(one, before="write")
    data = os.urandom(1 << 16)
    asked = one.kernel.ask(Op.WRITE, inode.nodeid, struct.pack("=QQIIQII", fh, 0, len(data), 0, 0, os.O_RDWR, 0) + data)
    sighting = stopped(one, Stage.BEFORE)
    assert (sighting.operation, sighting.path) == (Operation.WRITE, "file")
    one.kernel.getattr()  # the worker's buffer is used again
    one.mirror.sightings.let_go(sighting.number)
    one.kernel.reply(asked)
    assert path.read_bytes() == data
    one.kernel.call(Op.RELEASE, inode.nodeid, struct.pack("=QIIQ", fh, 0, 0, 0))


# --- after ------------------------------------------------------------------------------------------------------------


def test_after_it_is_done_and_nobody_has_been_told(one: Rig) -> None:
    path, _ = one.file()
    watch(one, after="unlink")
    asked = one.unlink(path)
    sighting = stopped(one, Stage.AFTER)
    assert not path.exists()
    one.kernel.getattr()
    assert not one.kernel.answered()
    one.mirror.sightings.let_go(sighting.number)
    one.kernel.reply(asked)
    assert stopped(one, Stage.DONE).errno == 0


def test_what_is_refused_stops_after_that_too(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.set_word(inode, HELD, wait=False)
    watch(one, after="unlink")
    asked = one.unlink(path)
    one.policy.refuse(one.policy.question())
    sighting = stopped(one, Stage.AFTER)
    assert not one.kernel.answered()
    one.mirror.sightings.let_go(sighting.number)
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)


def test_what_was_withheld_arrives_as_it_was(one: Rig) -> None:
    _, inode = one.file()
    watch(one, after="lookup")
    asked = one.kernel.ask(Op.LOOKUP, ROOT, b"file\0")
    sighting = stopped(one, Stage.AFTER)
    with pytest.raises(ValueError, match="served"):
        one.mirror.sightings.let_go(sighting.number, errno.EIO)
    assert Operation.LOOKUP in GIVING
    one.mirror.sightings.let_go(sighting.number)
    assert struct.unpack_from("=Q", one.kernel.reply(asked)) == (inode.nodeid,)


def test_what_gives_nothing_back_can_be_answered_otherwise(one: Rig) -> None:
    path, _ = one.file()
    watch(one, after="unlink")
    asked = one.unlink(path)
    one.mirror.sightings.let_go(stopped(one, Stage.AFTER).number, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        one.kernel.reply(asked)
    assert not path.exists()


def test_both_sides_of_one_request(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.set_word(inode, HELD, wait=False)
    watch(one, before="unlink", after="unlink")
    asked = one.unlink(path)
    first = stopped(one, Stage.BEFORE)
    one.mirror.sightings.let_go(first.number)
    one.policy.proceed(one.policy.question())
    second = stopped(one, Stage.AFTER)
    assert first.number == second.number
    assert not path.exists()
    one.mirror.sightings.let_go(second.number)
    one.kernel.reply(asked)


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_every_operation_has_its_opcodes_and_none_twice() -> None:
    assert set(Operation) - set(OPCODES) == {Operation.FLOCK}  # locks stay in the kernel
    opcodes = [opcode for operation in OPCODES for opcode in OPCODES[operation]]
    assert len(opcodes) == len(set(opcodes))
    named = {Op[name] for name in ("STATX", "RENAME2", "FSYNCDIR", "READDIRPLUS", "TMPFILE")}
    named |= {Op[operation.name] for operation in OPCODES}
    assert set(opcodes) == named


def test_two_paths_come_in_the_order_of_the_system_call(one: Rig) -> None:
    (one.tree / "directory").mkdir()
    directory = one.kernel.lookup("directory").nodeid
    _, inode = one.file()
    watch(one, told="link rename symlink setxattr create")
    one.kernel.call(Op.LINK, directory, struct.pack("=Q", inode.nodeid) + b"second\0")
    one.kernel.call(Op.RENAME2, directory, struct.pack("=QII", ROOT, 0, 0) + b"second\0third\0")
    one.kernel.call(Op.SYMLINK, directory, b"pointer\0whatever/it/says\0")
    with pytest.raises(OSError, match=r"supported|permitted"):
        one.kernel.call(Op.SETXATTR, directory, struct.pack("=IIII", 1, 0, 0, 0) + b"system.x\0y")
    made = one.kernel.call(Op.TMPFILE, directory, struct.pack("=IIII", os.O_RDWR, 0o600, 0, 0) + b"/\0")
    one.kernel.call(Op.RELEASE, struct.unpack_from("=Q", made)[0], made[128:136] + bytes(16))
    assert [(sighting.operation.value, sighting.path, sighting.second_path) for sighting in seen(one, 5)] == [
        ("link", "file", "directory/second"),
        ("rename", "directory/second", "third"),
        ("symlink", "directory/pointer", None),
        ("setxattr", "directory", None),
        ("create", "directory", None),
    ]


def test_what_is_only_told_does_not_stop(one: Rig) -> None:
    path, _ = one.file()
    watch(one, told="unlink")
    one.kernel.reply(one.unlink(path))
    with pytest.raises(FileNotFoundError):
        one.kernel.reply(one.unlink(path))
    assert [(sighting.stage, sighting.errno) for sighting in seen(one, 2)] == [
        (Stage.DONE, 0),
        (Stage.DONE, errno.ENOENT),
    ]


def test_what_nobody_takes_is_counted_and_not_kept(one: Rig) -> None:
    watch(one, told="getattr")
    for _ in range(5000):
        one.kernel.getattr()
    taken, dropped = one.mirror.sightings.take()
    assert len(taken) + dropped == 5000
    assert 0 < len(taken) < 5000
    assert one.mirror.sightings.take() == ([], 0)


def test_what_is_not_watched_is_not_seen(one: Rig) -> None:
    path, inode = one.file()
    watch(one, before="rmdir")
    one.kernel.reply(one.unlink(path))
    watch(one)
    with pytest.raises(FileNotFoundError):
        one.kernel.call(Op.RMDIR, ROOT, b"nothing\0")
    one.kernel.forget(inode.nodeid)
    assert one.mirror.sightings.take() == ([], 0)


def test_a_mirror_without_gates_never_stops_anything(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        path, _ = made.file()
        watch(made, before="unlink", after="unlink", told="unlink")
        made.kernel.reply(made.unlink(path))
        assert made.mirror.sightings.take() == ([], 0)


def test_what_never_stops(one: Rig) -> None:
    _, inode = one.file()
    fh, _ = struct.unpack_from("=QI", one.kernel.call(Op.OPEN, inode.nodeid, struct.pack("=II", os.O_RDONLY, 0)))
    everything = (1 << 64) - 1
    one.mirror._mirror.watch(everything, everything, 0)
    one.kernel.call(Op.RELEASE, inode.nodeid, struct.pack("=QIIQ", fh, 0, 0, 0))
    one.device.send(struct.pack("=IIQQIIIHHQ", 48, Op.FORGET, 0, inode.nodeid, 0, 0, 0, 0, 0, 1))
    one.kernel.init()
    assert one.mirror.sightings.take() == ([], 0)


# --- who is to die ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["killed before it comes", "killed at the gate", "and interrupted"])
def test_one_whose_process_is_killed_fails_with_eintr_and_is_never_done(one: Rig, order: str) -> None:
    path, _ = one.file()
    watch(one, before="unlink", after="unlink")
    with somebody() as process:
        if order == "killed before it comes":
            kill(process)
        asked = one.kernel.ask(Op.UNLINK, ROOT, b"file\0", pid=process.pid)
        if order != "killed before it comes":
            stopped(one, Stage.BEFORE)
            kill(process)
        if order == "and interrupted":
            interrupt(one, asked)
        with pytest.raises(InterruptedError):
            one.kernel.reply(asked)
    assert path.exists()


def test_after_it_was_done_a_killed_process_gets_its_reply(one: Rig) -> None:
    path, _ = one.file()
    watch(one, after="unlink")
    with somebody() as process:
        asked = one.kernel.ask(Op.UNLINK, ROOT, b"file\0", pid=process.pid)
        stopped(one, Stage.AFTER)
        kill(process)
        interrupt(one, asked)
        one.kernel.reply(asked)
    assert not path.exists()


def test_an_interrupt_of_one_that_lives_on_changes_nothing(one: Rig) -> None:
    path, _ = one.file()
    watch(one, before="unlink", after="unlink")
    with somebody() as process:
        process.send_signal(signal.SIGSTOP)
        asked = one.kernel.ask(Op.UNLINK, ROOT, b"file\0", pid=process.pid)
        sighting = stopped(one, Stage.BEFORE)
        interrupt(one, asked)
        interrupt(one, asked + 2)  # of nobody
        one.kernel.getattr()
        assert not one.kernel.answered()
        one.mirror.sightings.let_go(sighting.number)
        sighting = stopped(one, Stage.AFTER)
        interrupt(one, asked)
        one.kernel.getattr()
        assert not one.kernel.answered()
        one.mirror.sightings.let_go(sighting.number)
        one.kernel.reply(asked)
    assert not path.exists()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_opening_lets_all_go_and_stops_nobody_any_more(one: Rig) -> None:
    first, _ = one.file("first")
    second, _ = one.file("second")
    third, _ = one.file("third")
    watch(one, before="unlink", after="rename")
    waiting = [one.unlink(first), one.unlink(second)]
    waiting.append(one.kernel.ask(Op.RENAME2, ROOT, struct.pack("=QII", ROOT, 0, 0) + b"third\0fourth\0"))
    seen(one, 3)
    one.mirror.sightings.open()
    for unique in waiting:
        one.kernel.reply(unique)
    assert not any(path.exists() for path in (first, second, third))
    fourth = one.tree / "fourth"
    one.kernel.reply(one.unlink(fourth))
    assert not fourth.exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_waits_for_nobody_who_stands_at_a_gate(tmp_path: Path, when: str) -> None:
    with rig(tmp_path, gates=True, threads=2) as made:
        paths = [made.file(f"file{number}")[0] for number in range(20)]
        watch(made, **{when: "unlink lookup"})
        for path in paths:
            made.unlink(path)
            made.kernel.ask(Op.LOOKUP, ROOT, path.name.encode() + b"\0")
        sightings = seen(made, 40)
        for sighting in sightings[:10]:
            made.mirror.sightings.let_go(sighting.number)
        made.mirror.stop()
        with pytest.raises(ValueError, match="stopped"):
            made.mirror.sightings.let_go(sightings[-1].number)


def test_a_stop_with_one_that_asks_after_its_gate(tmp_path: Path) -> None:
    with rig(tmp_path, gates=True) as made:
        path, inode = made.file()
        made.mirror.set_word(inode, HELD, wait=False)
        watch(made, before="unlink", after="unlink")
        made.unlink(path)
        made.mirror.sightings.let_go(stopped(made, Stage.BEFORE).number)
        made.policy.question()
        made.mirror.stop()
    assert path.exists()


def test_the_policy_may_be_gone(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.set_word(inode, HELD, wait=False)
    watch(one, after="unlink")
    asked = one.unlink(path)
    one.policy.question()
    one.policy.channel.close()
    one.mirror.sightings.let_go(stopped(one, Stage.AFTER).number)
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)
