"""What reaches below a directory: coverage, the tree lock, ancestors. Kernel and policy are played (kernel.py)."""

from __future__ import annotations

import os
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from kernel import Op, rig

from exclfs.holds.flags import Flags
from exclfs.mirror import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kernel import Rig

    from exclfs.holds.hold import Inode

BELOW = Flags.NO_REMOVE_BELOW.value
EXCHANGE = 2


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def known(made: Rig, path: str) -> Inode:
    """The inode at this path, looked up as the kernel does; what is not there is made: a directory, or FILE."""
    nodeid, at = ROOT, made.tree
    for name in path.split("/"):
        at = at / name
        if not at.exists():
            at.write_text("") if name.isupper() else at.mkdir()
        nodeid = made.kernel.lookup(name, nodeid).nodeid
    return made.mirror.identify(nodeid)


def unlink(made: Rig, parent: Inode, name: str) -> int:
    return made.kernel.ask(Op.UNLINK, parent.nodeid, name.encode() + b"\0")


def rename(made: Rig, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int = 0) -> int:
    body = struct.pack("=QII", new_parent.nodeid, flags, 0) + name.encode() + b"\0" + new_name.encode() + b"\0"
    return made.kernel.ask(Op.RENAME2, parent.nodeid, body)


def test_only_names_below_the_directory_are_asked_about(one: Rig) -> None:
    top, deep, beside = known(one, "top"), known(one, "top/a/b/c"), known(one, "beside")
    known(one, "top/a/b/c/FILE"), known(one, "beside/FILE")
    one.mirror.set_word(top, BELOW, wait=False)

    one.kernel.reply(unlink(one, beside, "FILE"))
    assert not one.policy.was_asked()

    asked = unlink(one, deep, "FILE")
    question = one.policy.question()
    assert question.parents == (deep.nodeid,)
    assert question.paths == ("top/a/b/c/FILE",)
    one.policy.proceed(question)
    one.kernel.reply(asked)
    assert not (one.tree / "top/a/b/c/FILE").exists()


def test_once_it_is_lifted_nobody_is_asked(one: Rig) -> None:
    top, below = known(one, "top"), known(one, "top/a")
    known(one, "top/a/FILE")
    one.mirror.set_word(top, BELOW, wait=False)
    asked = unlink(one, below, "FILE")
    one.policy.refuse(one.policy.question())
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)
    one.mirror.set_word(top, 0, wait=False)
    one.kernel.reply(unlink(one, below, "FILE"))
    assert not one.policy.was_asked()


def test_a_directory_that_is_moved_below_is_covered_there_and_out_of_it_free(one: Rig) -> None:
    root = one.mirror.identify(ROOT)
    top, moving = known(one, "top"), known(one, "moving")
    known(one, "moving/FIRST"), known(one, "moving/SECOND")
    one.mirror.set_word(top, BELOW, wait=False)
    one.kernel.reply(rename(one, root, "moving", top, "moving"))
    assert not one.policy.was_asked(), "a new name below takes nothing away"
    asked = unlink(one, moving, "FIRST")
    one.policy.refuse(one.policy.question())
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)

    asked = rename(one, top, "moving", root, "moving")
    question = one.policy.question()
    assert question.parents == (top.nodeid, ROOT)
    one.policy.proceed(question)
    one.kernel.reply(asked)
    one.kernel.reply(unlink(one, moving, "FIRST"))
    assert not one.policy.was_asked()


def test_a_name_that_would_be_replaced_below_is_asked_about(one: Rig) -> None:
    root, top = one.mirror.identify(ROOT), known(one, "top")
    known(one, "FILE"), known(one, "top/FILE")
    one.mirror.set_word(top, BELOW, wait=False)
    asked = rename(one, root, "FILE", top, "FILE")
    question = one.policy.question()
    assert question.second_nodeid != 0
    one.policy.refuse(question)
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)
    one.kernel.reply(rename(one, root, "FILE", top, "NEW"))
    assert not one.policy.was_asked()


def test_an_exchange_carries_the_names_of_both_along(one: Rig) -> None:
    root, top = one.mirror.identify(ROOT), known(one, "top")
    other, below = known(one, "other"), known(one, "other/below")
    known(one, "other/below/FILE"), known(one, "place")
    one.mirror.set_word(top, BELOW, wait=False)
    one.kernel.reply(rename(one, root, "place", other, "below", EXCHANGE))
    one.kernel.reply(rename(one, root, "place", top, "moved"))
    asked = unlink(one, below, "FILE")
    one.policy.proceed(one.policy.question())
    one.kernel.reply(asked)


def test_proceed_counts_no_more_once_the_tree_has_changed(one: Rig) -> None:
    top, other, below = known(one, "top"), known(one, "other"), known(one, "top/a")
    known(one, "top/a/FILE")
    one.mirror.set_word(top, BELOW, wait=False)
    asked = unlink(one, below, "FILE")
    question = one.policy.question()
    one.mirror.set_word(other, BELOW, wait=True)
    one.policy.proceed(question)
    again = one.policy.question()
    assert again.paths == question.paths
    one.policy.refuse(again)
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)


def test_a_barrier_has_verdicts_given_anew(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.set_word(inode, Flags.NO_REMOVE.value, wait=False)
    asked = one.unlink(path)
    question = one.policy.question()
    one.mirror.barrier(enforcing=True)
    one.policy.proceed(question)
    one.policy.refuse(one.policy.question())
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)
    assert path.exists()


def test_what_was_moved_behind_the_mount_is_covered_once_it_is_seen(one: Rig) -> None:
    top, moving = known(one, "top"), known(one, "moving")
    known(one, "moving/FILE")
    one.mirror.set_word(top, BELOW, wait=False)
    (one.tree / "moving").rename(one.tree / "top/moving")
    assert one.kernel.lookup("moving", top.nodeid).nodeid == moving.nodeid
    asked = unlink(one, moving, "FILE")
    one.policy.proceed(one.policy.question())
    one.kernel.reply(asked)


def test_a_circle_of_stale_places_ends(one: Rig) -> None:
    outer, inner = known(one, "outer"), known(one, "outer/inner")
    known(one, "held"), known(one, "outer/inner/FILE")
    one.mirror.set_word(known(one, "held"), BELOW, wait=False)
    (one.tree / "outer/inner").rename(one.tree / "inner")
    (one.tree / "outer").rename(one.tree / "inner/outer")
    # The kernel sees outer in inner, while inner is still remembered to be in outer.
    assert one.kernel.lookup("outer", inner.nodeid).nodeid == outer.nodeid
    asked = unlink(one, inner, "FILE")
    one.policy.proceed(one.policy.question())
    one.kernel.reply(asked)
    assert len(one.mirror.ancestors(inner)) > 0
    assert one.mirror.below(known(one, "held"), [inner]) == ()


def test_ancestors(one: Rig) -> None:
    a, b, c = known(one, "a"), known(one, "a/b"), known(one, "a/b/c")
    root = one.mirror.identify(ROOT)
    assert one.mirror.ancestors(c) == (b, a, root)
    assert one.mirror.ancestors(root) == ()
    assert one.mirror.below(a, [root, b, c, a]) == (b, c)


def test_a_way_is_looked_up_anew(one: Rig) -> None:
    a, b, c = known(one, "a"), known(one, "a/b"), known(one, "a/b/c")
    root = one.mirror.identify(ROOT)
    assert one.mirror.way(b"a/b/c") == (c, b, a, root)
    assert one.mirror.way(b"./a/") == (a, root)
    assert one.mirror.way(b".") == (root,)
    (one.tree / "a/b").rename(one.tree / "b")
    assert one.mirror.way(b"a/b/c") == ()
    assert one.mirror.way(b"b/c") == (c, b, root)
    assert one.mirror.way(b"b/../b") == ()
    assert one.mirror.ancestors(c) == (b, root)


def test_the_way_of_a_file_with_several_links_is_that_of_the_name(one: Rig) -> None:
    a, b = known(one, "a"), known(one, "b")
    file = known(one, "a/FILE")
    os.link(one.tree / "a/FILE", one.tree / "b/FILE")
    assert one.kernel.lookup("FILE", b.nodeid).nodeid == file.nodeid
    assert one.mirror.way(b"a/FILE")[:2] == (file, a)
    assert one.mirror.way(b"b/FILE")[:2] == (file, b)


def test_a_deep_tree_has_all_its_ancestors(one: Rig) -> None:
    inode, at, fd = one.mirror.identify(ROOT), ROOT, os.open(one.tree, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
        at = one.kernel.lookup("d", at).nodeid
    os.close(fd)
    inode = one.mirror.identify(at)
    assert len(one.mirror.ancestors(inode)) == 5000
    assert len(one.mirror.way(b"/".join([b"d"] * 5000))) == 5001
    assert one.mirror.below(one.mirror.identify(ROOT), [inode]) == (inode,)
    # pytest cannot take away what is so deep.
    while (one.tree / "d").exists():
        steps = 0
        fd = os.open(one.tree, os.O_RDONLY)
        while steps < 5000:
            try:
                deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
            except FileNotFoundError:
                break
            os.close(fd)
            fd, steps = deeper, steps + 1
        for _ in range(steps):
            upper = os.open("..", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = upper
            os.rmdir("d", dir_fd=fd)
        os.close(fd)


def test_changing_the_tree_waits_for_no_verdict(one: Rig) -> None:
    """A question that is up holds no lock: a helper that places such a flag is not kept by a slow policy."""
    path, inode = one.file()
    top = known(one, "top")
    one.mirror.set_word(inode, Flags.NO_REMOVE.value, wait=False)
    asked = one.unlink(path)
    question = one.policy.question()
    done = threading.Event()
    thread = threading.Thread(target=lambda: (one.mirror.set_word(top, BELOW, wait=True), done.set()))
    thread.start()
    assert done.wait(10)
    thread.join()
    one.policy.refuse(question)
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)


def test_many_threads_rename_remove_and_place(tmp_path: Path) -> None:
    """Nothing deadlocks, and what ThreadSanitizer would complain of is done here."""
    with rig(tmp_path, threads=4) as made:
        tops = [known(made, f"top{number}") for number in range(4)]
        root = made.mirror.identify(ROOT)
        stop = threading.Event()

        def place() -> None:
            while not stop.is_set():
                for top in tops:
                    made.mirror.set_word(top, BELOW, wait=True)
                    made.mirror.set_word(top, 0, wait=True)

        def answer() -> None:
            while not stop.is_set() or made.policy.was_asked():
                if made.policy.was_asked():
                    made.policy.proceed(made.policy.question())

        threads = [threading.Thread(target=place), threading.Thread(target=answer)]
        for thread in threads:
            thread.start()
        try:
            for number in range(200):
                known(made, f"d{number}")
                made.kernel.reply(rename(made, root, f"d{number}", tops[number % 4], "d"))
                made.kernel.reply(made.kernel.ask(Op.RMDIR, tops[number % 4].nodeid, b"d\0"))
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert sorted(os.listdir(tmp_path)) == ["top0", "top1", "top2", "top3"]
