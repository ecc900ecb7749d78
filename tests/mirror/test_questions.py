"""Requests that wait for a verdict: asked once, asked again, answered late, never, and by nobody.

The test is kernel and policy at once (kernel.py), so every order of events can be had, each time.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from kernel import Op, rig

from exclfs.holds.errors import Gone
from exclfs.mirror import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kernel import Kernel, Question, Rig

HELD, MORE = 1, 3
"""Flags words; the mirror does not know what their bits mean."""
ROUNDS = 4
"""As in mirror.h."""
EXCHANGE = 2
NOW = 0.01
"""A decision_timeout that has passed before anybody decides."""


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def refused(kernel: Kernel, unique: int) -> None:
    with pytest.raises(OSError, match="busy") as caught:
        kernel.reply(unique)
    assert caught.value.errno == errno.EBUSY


def held_file(made: Rig, word: int = HELD) -> tuple[Path, Any]:
    path, inode = made.file()
    made.mirror.set_word(inode, word, wait=False)
    return path, inode


def change_word(made: Rig, inode: Any) -> None:
    """As a hold that comes and goes between question and answer. Who asked may still share the stripe: it waits."""
    made.mirror.set_word(inode, MORE, wait=True)
    made.mirror.set_word(inode, HELD, wait=False)


def frozen_question(made: Rig, inode: Any) -> Question:
    """Answers PROCEED too late for every round but the last, and gives that round's question."""
    for _ in range(ROUNDS):
        question = made.policy.question()
        change_word(made, inode)
        made.policy.proceed(question)
    return made.policy.question()


def asleep(thread: str) -> bool:
    with open(f"/proc/self/task/{thread}/stat") as status:
        return status.read().rpartition(")")[2].split()[0] == "S"


def in_thread(work: Callable[[], object]) -> Callable[[], object]:
    """Begins to work; what is returned waits for the end, and gives the result or the exception."""
    result: list[object] = []

    def working() -> None:
        try:
            result.append(work())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=working)
    thread.start()

    def ended() -> object:
        thread.join(60)
        assert not thread.is_alive(), "it still waits"
        return result[0]

    return ended


# --- asking -----------------------------------------------------------------------------------------------------------


def test_what_no_flag_concerns_is_done_without_a_question(one: Rig) -> None:
    path, _ = one.file()
    one.kernel.reply(one.unlink(path))
    assert not path.exists()
    assert not one.policy.was_asked()


def test_a_question_names_the_inode_and_its_path(one: Rig) -> None:
    (one.tree / "directory").mkdir()
    directory = one.kernel.lookup("directory")
    (one.tree / "directory" / "file").write_text("")
    entry = one.kernel.lookup("file", directory.nodeid)
    one.mirror.set_word(one.mirror.identify(entry.nodeid), HELD, wait=False)
    asked = one.kernel.ask(Op.UNLINK, directory.nodeid, b"file\0")
    question = one.policy.question()
    assert (question.op, question.nodeid) == (Op.UNLINK, entry.nodeid)
    assert (question.parents, question.paths) == ((directory.nodeid,), ("directory/file",))
    one.policy.refuse(question)
    refused(one.kernel, asked)
    assert (one.tree / "directory" / "file").exists()


def test_proceed_is_carried_out(one: Rig) -> None:
    path, inode = held_file(one)
    asked = one.unlink(path)
    one.policy.proceed(one.policy.question())
    one.kernel.reply(asked)
    assert not path.exists()
    with pytest.raises(Gone):
        one.mirror.set_word(inode, MORE, wait=False)


def test_ask_always_asks_of_what_is_free_and_unknown_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with rig(tmp_path, ask_always=True) as made:
        asked = made.kernel.ask(Op.UNLINK, ROOT, b"file\0")
        question = made.policy.question()
        assert made.mirror.identify(question.nodeid).ino == (tmp_path / "file").stat().st_ino
        made.policy.proceed(question)
        made.kernel.reply(asked)
        assert made.mirror.counters()["asked"] == 1
    assert not (tmp_path / "file").exists()


def test_a_name_that_is_not_there_is_no_question(tmp_path: Path) -> None:
    with rig(tmp_path, ask_always=True) as made:
        with pytest.raises(FileNotFoundError):
            made.kernel.call(Op.UNLINK, ROOT, b"nothing\0")
        assert not made.policy.was_asked()


def rename(made: Rig, old: str, new: str, flags: int = 0) -> int:
    return made.kernel.ask(Op.RENAME2, ROOT, struct.pack("=QII", ROOT, flags, 0) + f"{old}\0{new}\0".encode())


@pytest.mark.parametrize("held", ["old", "new"])
@pytest.mark.parametrize("flags", [0, EXCHANGE])
def test_a_rename_asks_of_both_names(one: Rig, held: str, flags: int) -> None:
    inodes = {name: one.file(name)[1] for name in ("old", "new")}
    one.mirror.set_word(inodes[held], HELD, wait=False)
    asked = rename(one, "old", "new", flags)
    question = one.policy.question()
    assert question.paths == ("old", "new")
    assert (question.nodeid, question.second_nodeid) == (inodes["old"].nodeid, inodes["new"].nodeid)
    one.policy.proceed(question)
    one.kernel.reply(asked)
    assert (one.tree / "new").stat().st_ino == inodes["old"].ino
    assert (one.tree / "old").exists() == bool(flags)


def test_a_rename_to_a_new_name_has_one_victim(one: Rig) -> None:
    held_file(one)
    asked = rename(one, "file", "moved")
    question = one.policy.question()
    assert question.second_nodeid == 0
    one.policy.proceed(question)
    one.kernel.reply(asked)
    assert (one.tree / "moved").exists()


def test_a_name_that_comes_into_being_meanwhile_is_asked_about_too(one: Rig) -> None:
    held_file(one)
    asked = rename(one, "file", "moved")
    question = one.policy.question()
    _, late = one.file("moved")
    one.policy.proceed(question)
    again = one.policy.question()
    assert again.second_nodeid == late.nodeid
    one.policy.refuse(again)
    refused(one.kernel, asked)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [-1, 512, 100000])
def test_an_errno_that_the_kernel_would_not_take_is_eio(one: Rig, code: int) -> None:
    path, _ = held_file(one)
    asked = one.unlink(path)
    one.policy.answer(one.policy.question(), code)
    with pytest.raises(OSError, match="Input/output"):
        one.kernel.reply(asked)


def test_what_is_no_answer_is_ignored(one: Rig) -> None:
    path, _ = held_file(one)
    asked = one.unlink(path)
    question = one.policy.question()
    for nonsense in (b"x", bytes(15), bytes(16), b"\xff" * 16, b"\xff" * 5000):
        one.policy.channel.send(nonsense)
    one.policy.refuse(question)
    refused(one.kernel, asked)


def test_answers_may_come_in_any_order(one: Rig) -> None:
    path, _ = held_file(one)
    asked = [one.unlink(path) for _ in range(5)]
    questions = [one.policy.question() for _ in asked]
    for question in reversed(questions):
        one.policy.refuse(question)
    for unique in asked:
        refused(one.kernel, unique)


# --- no answer --------------------------------------------------------------------------------------------------------


def test_without_an_answer_in_time_it_is_busy_and_what_comes_later_is_ignored(tmp_path: Path) -> None:
    with rig(tmp_path, decision_timeout=NOW) as made:
        path, _ = held_file(made)
        asked = made.unlink(path)
        question = made.policy.question()
        refused(made.kernel, asked)
        assert made.mirror.counters()["timed_out"] == 1
        made.policy.proceed(question)
        # The next question is answered after that; so when it is, the late verdict has been heard.
        asked = made.unlink(path)
        made.policy.question()
        refused(made.kernel, asked)
        assert path.exists()
        assert not made.kernel.answered()


def test_whoever_waits_for_an_answer_is_known_by_its_pid(tmp_path: Path) -> None:
    with rig(tmp_path, decision_timeout=0.3) as made:
        path, _ = held_file(made)
        asked = made.kernel.ask(Op.UNLINK, ROOT, os.fsencode(path.name) + b"\0", pid=4711)
        made.policy.question()
        assert made.mirror.awaits(4711)
        assert not made.mirror.awaits(4712)
        refused(made.kernel, asked)  # in time, by the mirror itself
        assert not made.mirror.awaits(4711)


def test_when_the_policy_has_gone_it_is_busy_at_once(one: Rig) -> None:
    path, _ = held_file(one)
    waiting = one.unlink(path)
    one.policy.question()
    one.policy.channel.close()
    refused(one.kernel, waiting)
    refused(one.kernel, one.unlink(path))
    assert one.kernel.lookup("file").nlink == 1


def test_a_policy_that_has_gone_costs_nothing(one: Rig) -> None:
    """The end of file on the channel is always readable: whoever kept looking would never sleep."""
    one.policy.channel.close()
    path, _ = held_file(one)
    refused(one.kernel, one.unlink(path))
    for _ in range(1000):
        if all(asleep(thread) for thread in os.listdir("/proc/self/task") if int(thread) != threading.get_native_id()):
            return
        time.sleep(0.001)
    pytest.fail("a thread of the mirror does not sleep")


def test_what_it_had_answered_before_it_went_counts(one: Rig) -> None:
    path, _ = held_file(one)
    asked = one.unlink(path)
    one.policy.proceed(one.policy.question())
    one.policy.channel.close()
    one.kernel.reply(asked)
    assert not path.exists()


def test_ten_thousand_questions_that_nobody_hears_stop_nobody_else(one: Rig) -> None:
    path, _ = held_file(one)
    many = [one.unlink(path) for _ in range(10_000)]
    assert one.kernel.getattr()[0] == one.tree.stat().st_ino
    assert not one.kernel.answered()
    for unique in many:
        one.policy.refuse(one.policy.question())
        refused(one.kernel, unique)
    assert not one.policy.was_asked()


def test_questions_that_never_got_through_are_busy_in_time(tmp_path: Path) -> None:
    with rig(tmp_path, decision_timeout=0.3) as made:
        path, _ = held_file(made)
        for unique in [made.unlink(path) for _ in range(2_000)]:
            refused(made.kernel, unique)
        assert path.exists()
        assert made.mirror.counters()["timed_out"] == 2_000


# --- asked again ------------------------------------------------------------------------------------------------------


def test_a_word_that_changed_is_asked_about_again(one: Rig) -> None:
    path, inode = held_file(one)
    asked = one.unlink(path)
    question = one.policy.question()
    one.mirror.set_word(inode, MORE, wait=True)
    one.policy.proceed(question)
    again = one.policy.question()
    assert again == question
    one.policy.refuse(again)
    refused(one.kernel, asked)
    assert one.mirror.counters()["asked_again"] == 1
    assert path.exists()


def test_a_verdict_about_another_inode_is_none(one: Rig) -> None:
    """The name was given to another held inode behind the mount."""
    path, _ = held_file(one)
    asked = one.unlink(path)
    question = one.policy.question()
    path.rename(one.tree / "elsewhere")
    _, second = held_file(one)
    one.policy.proceed(question)
    again = one.policy.question()
    assert again.nodeid == second.nodeid != question.nodeid
    one.policy.refuse(again)
    refused(one.kernel, asked)


def test_for_the_last_round_the_word_is_frozen(one: Rig) -> None:
    path, inode = held_file(one)
    asked = one.unlink(path)
    question = frozen_question(one, inode)
    with pytest.raises(BlockingIOError):
        one.mirror.set_word(inode, MORE, wait=False)
    waiting = in_thread(lambda: one.mirror.set_word(inode, MORE, wait=True))
    one.policy.proceed(question)
    one.kernel.reply(asked)
    assert not path.exists()
    assert isinstance(waiting(), Gone)


def test_a_frozen_word_thaws_when_the_verdict_is_no(one: Rig) -> None:
    path, inode = held_file(one)
    asked = one.unlink(path)
    question = frozen_question(one, inode)
    waiting = in_thread(lambda: one.mirror.set_word(inode, MORE, wait=True))
    one.policy.refuse(question)
    refused(one.kernel, asked)
    assert waiting() is None
    assert path.exists()


def test_a_frozen_word_can_be_lowered(one: Rig) -> None:
    path, inode = held_file(one)
    asked = one.unlink(path)
    question = frozen_question(one, inode)
    one.mirror.set_word(inode, 0, wait=False)
    one.policy.proceed(question)
    one.kernel.reply(asked)
    assert not path.exists()


def test_a_frozen_word_thaws_when_nobody_answers(tmp_path: Path) -> None:
    with rig(tmp_path, decision_timeout=2.0) as made:
        path, inode = held_file(made)
        asked = made.unlink(path)
        frozen_question(made, inode)
        waiting = in_thread(lambda: made.mirror.set_word(inode, MORE, wait=True))
        refused(made.kernel, asked)
        assert waiting() is None
        assert path.exists()


# --- the xattrs of exclfs ---------------------------------------------------------------------------------------------


def test_an_xattr_of_exclfs_goes_up_as_it_is_and_its_answer_comes_down_as_it_is(one: Rig) -> None:
    _, inode = one.file()
    asked = one.kernel.ask(Op.GETXATTR, inode.nodeid, struct.pack("=II", 100, 0) + b"user.exclfs.holders\0")
    question = one.policy.question()
    assert (question.op, question.nodeid) == (Op.GETXATTR, inode.nodeid)
    assert question.body == struct.pack("=II", 100, 0) + b"user.exclfs.holders\0"
    one.policy.answer(question, body=b"nobody")
    assert one.kernel.reply(asked) == b"nobody"


def test_setting_one_goes_up_in_the_form_that_libfuse_knows(one: Rig) -> None:
    _, inode = one.file()
    name, value = b"system.exclfs.hold\0", b"me"
    asked = one.kernel.ask(Op.SETXATTR, inode.nodeid, struct.pack("=IIII", len(value), 0, 0, 0) + name + value)
    question = one.policy.question()
    assert question.body == struct.pack("=II", len(value), 0) + name + value
    one.policy.answer(question)
    one.kernel.reply(asked)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_nobody_who_waits_for_a_verdict(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        path, inode = held_file(made)
        made.unlink(path)
        frozen_question(made, inode)
        waiting = in_thread(lambda: made.mirror.set_word(inode, MORE, wait=True))
        for _ in range(500):
            made.unlink(path)
        made.mirror.stop()
        assert waiting() is None or isinstance(waiting(), ValueError)
        with pytest.raises(ValueError, match="stopped"):
            made.mirror.identify(inode.nodeid)
    assert path.exists()


def test_a_stop_waits_for_calls_that_are_at_work(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        _, inode = made.file()

        def work() -> None:
            while True:
                made.mirror.attributes(inode)
                made.mirror.resolve(b"file", os.geteuid(), os.getegid(), ())
                made.mirror.set_word(inode, MORE, wait=True)
                made.mirror.set_word(inode, HELD, wait=True)

        workers = [in_thread(work) for _ in range(4)]
        for _ in range(50):
            made.kernel.lookup("file")
        made.mirror.stop()
        for ended in workers:
            assert isinstance(ended(), ValueError)
