"""Open files that count against removals: which, for whom, from when to when. The kernel is played (kernel.py)."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
from attrs import frozen
from kernel import ATTR, ENTRY, Op, rig

from exclfs.holds.errors import Gone
from exclfs.holds.flags import Flags
from exclfs.holds.hold import Inode
from exclfs.holds.mode import OpenFiles
from exclfs.host import processes
from exclfs.mirror import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kernel import Question, Rig

ME: Final = os.getpid()
ALICE, BOB = 61001, 61002
HELD: Final = Flags.NO_REMOVE.value
ASYNC_READ = 1
ROUNDS: Final = 4
"""As in mirror.h."""


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, hold_open=OpenFiles.ALL) as made:
        yield made


@pytest.fixture
def other() -> Iterator[int]:
    """Another process."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate()


@frozen
class OpenFile:
    """What the kernel has after an OPEN."""

    made: Rig
    handle: int

    def ask_to_release(self) -> int:
        """RELEASE, which the kernel sends without waiting for the reply."""
        return self.made.kernel.ask(Op.RELEASE, ROOT, struct.pack("=QIIQ", self.handle, 0, 0, 0))

    def release(self) -> None:
        self.made.kernel.reply(self.ask_to_release())


def opened(made: Rig, inode: Inode, pid: int = ME, *, uid: int | None = None, flags: int = os.O_RDONLY) -> OpenFile:
    asked = made.kernel.ask(Op.OPEN, inode.nodeid, struct.pack("=II", flags, 0), pid=pid, uid=uid)
    return OpenFile(made, *struct.unpack_from("=Q", made.kernel.reply(asked)))


def created(made: Rig, op: int, name: str, pid: int) -> tuple[Inode, OpenFile]:
    """CREATE, or TMPFILE, which has no name."""
    body = struct.pack("=IIII", os.O_RDWR, 0o600, 0, 0) + name.encode() + b"\0"
    reply = made.kernel.reply(made.kernel.ask(op, ROOT, body, pid=pid))
    nodeid, *_ = ENTRY.unpack_from(reply)
    return made.mirror.identify(nodeid), OpenFile(made, *struct.unpack_from("=Q", reply, ENTRY.size + ATTR.size))


@contextmanager
def open_meanwhile(made: Rig, inode: Inode, pid: int = ME, *, uid: int | None = None) -> Iterator[OpenFile]:
    file = opened(made, inode, pid, uid=uid)
    yield file
    file.release()


def unlink(made: Rig, path: Path, pid: int = ME) -> int:
    return made.kernel.ask(Op.UNLINK, ROOT, os.fsencode(path.name) + b"\0", pid=pid)


def rename(made: Rig, old: str, new: str, pid: int) -> int:
    body = struct.pack("=QII", ROOT, 0, 0) + f"{old}\0{new}\0".encode()
    return made.kernel.ask(Op.RENAME2, ROOT, body, pid=pid)


def question(made: Rig) -> Question:
    """The question that was asked; there is one."""
    made.kernel.getattr()  # answered after what was asked before
    assert made.policy.was_asked()
    return made.policy.question()


def done_unasked(made: Rig, unique: int) -> None:
    made.kernel.reply(unique)
    assert not made.policy.was_asked()


def refused(made: Rig, unique: int) -> None:
    with pytest.raises(OSError, match="busy") as caught:
        made.kernel.reply(unique)
    assert caught.value.errno == errno.EBUSY


def pids(made: Rig, inode: Inode) -> list[int]:
    return [opener.pid for opener in made.mirror.openers(inode)]


# --- who has it open --------------------------------------------------------------------------------------------------


def test_an_opener_is_told_until_the_release(one: Rig) -> None:
    _, inode = one.file()
    assert one.mirror.openers(inode) == ()
    with open_meanwhile(one, inode):
        (opener,) = one.mirror.openers(inode)
        me = processes.describe(ME)
        assert (opener.pid, opener.start_time, opener.uid) == (ME, me.start_time, me.uid)
        assert opener.since.tzinfo is not None
    assert one.mirror.openers(inode) == ()


def test_each_open_is_told_the_last_first(one: Rig, other: int) -> None:
    _, inode = one.file()
    first, second, third = (opened(one, inode, pid) for pid in (ME, other, ME))
    assert pids(one, inode) == [ME, other, ME]
    second.release()
    assert pids(one, inode) == [ME, ME]
    third.release()
    assert pids(one, inode) == [ME]
    first.release()
    assert pids(one, inode) == []


@pytest.mark.parametrize("op", [Op.CREATE, Op.TMPFILE])
def test_a_file_is_open_from_its_creation(one: Rig, op: int, other: int) -> None:
    inode, file = created(one, op, "new", other)
    assert pids(one, inode) == [other]
    file.release()
    assert pids(one, inode) == []
    one.kernel.forget(inode.nodeid)


def test_a_file_that_was_removed_is_open_all_the_same(one: Rig) -> None:
    path, inode = one.file()
    file = opened(one, inode)
    done_unasked(one, unlink(one, path))
    with open_meanwhile(one, inode):  # by its descriptor in /proc
        assert pids(one, inode) == [ME, ME]
    file.release()
    one.kernel.forget(inode.nodeid)
    with pytest.raises(Gone):
        one.mirror.openers(inode)


def test_a_thread_is_told_as_its_process(one: Rig) -> None:
    path, inode = one.file()
    found: list[int] = []

    def work() -> None:
        assert threading.get_native_id() != ME
        with open_meanwhile(one, inode, threading.get_native_id()):
            found.extend(pids(one, inode))
            done_unasked(one, unlink(one, path, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [ME]


def test_who_has_no_pid_here_does_not_count(one: Rig, other: int) -> None:
    """Of a foreign pid namespace, or gone: nobody could be named."""
    path, inode = one.file()
    with subprocess.Popen(["true"]) as gone:
        pass
    files = [opened(one, inode, pid) for pid in (0, gone.pid)]
    assert pids(one, inode) == []
    done_unasked(one, unlink(one, path, other))
    for file in files:
        file.release()


def test_nothing_counts_unless_it_is_asked_for(tmp_path: Path, other: int) -> None:
    with rig(tmp_path) as made:
        path, inode = made.file()
        with open_meanwhile(made, inode, other):
            assert pids(made, inode) == []
            done_unasked(made, unlink(made, path))


@pytest.mark.root
@pytest.mark.parametrize(
    ("whose", "counting"), [(OpenFiles.OWN, [0, ALICE]), (OpenFiles.ALL, [0, ALICE, BOB]), (OpenFiles.NONE, [])]
)
def test_whose_open_files_count(tmp_path: Path, whose: OpenFiles, counting: list[int]) -> None:
    with rig(tmp_path, hold_open=whose) as made:
        path, inode = made.file()
        os.chown(path, ALICE, ALICE)
        found = []
        for uid in (0, ALICE, BOB):
            with open_meanwhile(made, inode, uid=uid):
                found += [opener.uid for opener in made.mirror.openers(inode)]
        assert found == counting


@pytest.mark.root
def test_the_owner_is_who_it_is_at_the_opening(tmp_path: Path) -> None:
    with rig(tmp_path, hold_open=OpenFiles.OWN) as made:
        path, inode = made.file()
        os.chown(path, BOB, BOB)
        with open_meanwhile(made, inode, uid=BOB):
            os.chown(path, ALICE, ALICE)
            assert [opener.uid for opener in made.mirror.openers(inode)] == [BOB]
            with open_meanwhile(made, inode, uid=BOB):
                assert [opener.uid for opener in made.mirror.openers(inode)] == [BOB]


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_only_others_are_asked_about(one: Rig, other: int) -> None:
    path, inode = one.file()
    file = opened(one, inode, other)
    asked = unlink(one, path)
    one.policy.refuse(question(one))
    refused(one, asked)
    done_unasked(one, unlink(one, path, other))
    assert not path.exists()
    file.release()


def test_of_what_several_have_open_each_is_asked_about(one: Rig, other: int) -> None:
    path, inode = one.file()
    with open_meanwhile(one, inode, other), open_meanwhile(one, inode):
        for pid in (ME, other):
            asked = unlink(one, path, pid)
            one.policy.refuse(question(one))
            refused(one, asked)


def test_who_cannot_be_named_is_asked_about(one: Rig) -> None:
    path, inode = one.file()
    with open_meanwhile(one, inode):
        asked = unlink(one, path, 0)
        one.policy.refuse(question(one))
        refused(one, asked)


def test_a_doubter_is_asked_about_its_own_files_too(tmp_path: Path) -> None:
    with rig(tmp_path, hold_open=OpenFiles.ALL, ask_always=True) as made:
        path, inode = made.file()
        with open_meanwhile(made, inode):
            asked = unlink(made, path)
            made.policy.proceed(question(made))
            made.kernel.reply(asked)


@pytest.mark.parametrize("name", ["old", "new"])
def test_a_rename_is_asked_about_for_both_names(one: Rig, name: str, other: int) -> None:
    inodes = {name: one.file(name)[1] for name in ("old", "new")}
    with open_meanwhile(one, inodes[name], other):
        asked = rename(one, "old", "new", ME)
        found = question(one)
        assert found.paths == ("old", "new")
        one.policy.refuse(found)
        refused(one, asked)
        done_unasked(one, rename(one, "old", "new", other))


def test_a_temporary_file_may_be_renamed_into_place_while_it_is_open(one: Rig) -> None:
    _, target = one.file("target")
    _, temporary = one.file("temporary")
    with open_meanwhile(one, target), open_meanwhile(one, temporary):
        done_unasked(one, rename(one, "temporary", "target", ME))
    one.kernel.forget(target.nodeid)


# --- verdicts that are not true any more ------------------------------------------------------------------------------


def test_proceed_that_meets_a_new_opener_is_asked_again(one: Rig, other: int) -> None:
    path, inode = one.file()
    first = opened(one, inode, other)
    asked = unlink(one, path)
    before = question(one)
    second = opened(one, inode, other)
    one.policy.proceed(before)
    assert one.policy.question() == before
    one.policy.refuse(before)
    refused(one, asked)
    assert one.mirror.counters()["asked_again"] == 1
    first.release()
    second.release()


def test_in_the_last_round_too(one: Rig, other: int) -> None:
    path, inode = one.file()
    files = [opened(one, inode, other)]
    asked = unlink(one, path)
    for _ in range(ROUNDS + 2):
        found = one.policy.question()
        files.append(opened(one, inode, other))
        one.policy.proceed(found)
    one.policy.refuse(one.policy.question())
    refused(one, asked)
    for file in files:
        file.release()


def test_who_has_opened_it_meanwhile_and_closed_it_is_nobody(one: Rig, other: int) -> None:
    path, inode = one.file()
    file = opened(one, inode, other)
    asked = unlink(one, path)
    found = question(one)
    with open_meanwhile(one, inode, other):
        file.release()
    one.policy.proceed(found)
    done_unasked(one, asked)


def test_what_the_requester_opens_meanwhile_is_nothing_new(one: Rig) -> None:
    """Else a program that replaces what its own threads open all the time would wait for ever."""
    path, inode = one.file()
    one.mirror.set_word(inode, HELD, wait=False)
    asked = unlink(one, path)
    found = question(one)
    with open_meanwhile(one, inode):
        one.policy.proceed(found)
        done_unasked(one, asked)
    one.kernel.forget(inode.nodeid)


def test_where_nothing_is_enforced_proceed_is_said_once(one: Rig, other: int) -> None:
    """Else what others open all the time could not be removed, and each try would be recorded many times."""
    path, inode = one.file()
    one.mirror.barrier(enforcing=False)
    one.mirror.set_word(inode, HELD, wait=False)
    asked = unlink(one, path)
    found = question(one)
    one.mirror.set_word(inode, HELD | Flags.EXCL_INUSE.value, wait=True)
    with open_meanwhile(one, inode, other):
        one.policy.proceed(found)
        done_unasked(one, asked)
    one.kernel.forget(inode.nodeid)


def test_also_there_another_inode_is_asked_about(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.barrier(enforcing=False)
    one.mirror.set_word(inode, HELD, wait=False)
    asked = unlink(one, path)
    found = question(one)
    path.rename(one.tree / "elsewhere")
    _, second = one.file()
    one.mirror.set_word(second, HELD, wait=False)
    one.policy.proceed(found)
    again = one.policy.question()
    assert again.nodeid == second.nodeid
    one.policy.proceed(again)
    done_unasked(one, asked)


def test_a_verdict_from_before_the_switch_is_given_anew(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.barrier(enforcing=False)
    one.mirror.set_word(inode, HELD, wait=False)
    asked = unlink(one, path)
    found = question(one)
    one.mirror.barrier(enforcing=True)
    one.policy.proceed(found)
    one.policy.refuse(one.policy.question())
    refused(one, asked)
    assert path.exists()


# --- when -------------------------------------------------------------------------------------------------------------


def test_a_release_is_counted_when_it_is_read_and_not_when_it_is_done(tmp_path: Path, other: int) -> None:
    """The removal is read by another thread, which may well be faster."""
    with rig(tmp_path, hold_open=OpenFiles.ALL, threads=4) as made:
        for _ in range(3000):
            path, inode = made.file()
            file = opened(made, inode, other)
            released, asked = file.ask_to_release(), unlink(made, path)
            done_unasked(made, asked)
            made.kernel.reply(released)


def test_what_would_delay_a_release_is_not_negotiated(tmp_path: Path) -> None:
    for whose in OpenFiles:
        with rig(tmp_path, start=False, hold_open=whose) as made:
            made.mirror.start()
            made.policy.greeting()
            answer = made.kernel.init(flags=ASYNC_READ)
            _, _, _, flags, background, _ = struct.unpack_from("=4I2H", answer)
            assert bool(flags & ASYNC_READ) == (whose is OpenFiles.NONE)
            assert (background == 0xFFFF) == (whose is not OpenFiles.NONE)


def test_a_stop_does_not_wait_for_those_who_wait_to_read(tmp_path: Path) -> None:
    """The mount is still there: one thread reads, the others wait for their turn."""
    with rig(tmp_path, hold_open=OpenFiles.ALL, threads=8) as made:
        made.mirror.stop()
        assert not made.kernel.answered()


def test_many_threads_open_close_and_remove(tmp_path: Path, other: int) -> None:
    """Nothing deadlocks, nothing is left, and what ThreadSanitizer would complain of is done here."""
    with rig(tmp_path, hold_open=OpenFiles.ALL, threads=4) as made:
        stop = threading.Event()

        def proceed() -> None:
            while not stop.is_set():
                if made.policy.was_asked():
                    made.policy.proceed(made.policy.question())

        policy = threading.Thread(target=proceed)
        policy.start()
        try:
            for _ in range(200):
                path, inode = made.file()
                asked = [
                    made.kernel.ask(Op.OPEN, inode.nodeid, struct.pack("=II", os.O_RDONLY, 0), pid=pid)
                    for pid in (ME, other, ME, other)
                ]
                removal = unlink(made, path)
                files = [OpenFile(made, *struct.unpack_from("=Q", made.kernel.reply(unique))) for unique in asked]
                assert sorted(pids(made, inode)) == sorted([ME, other, ME, other])
                releases = [file.ask_to_release() for file in files]
                for unique in (*releases, removal):
                    made.kernel.reply(unique)
                assert made.mirror.openers(inode) == ()
                made.kernel.forget(inode.nodeid)
        finally:
            stop.set()
            policy.join(30)
        assert os.listdir(tmp_path) == []
