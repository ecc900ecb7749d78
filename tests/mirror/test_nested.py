"""A tree with mounts inside: views of one directory, limits of a mount, loops. Kernel and policy are played."""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
from typing import TYPE_CHECKING

import pytest
from kernel import PATIENCE, Op, rig

from exclfs.holds.errors import Gone
from exclfs.holds.flags import Flags
from exclfs.mirror import ROOT
from nesting import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, Nesting, nesting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kernel import Rig

pytestmark = pytest.mark.root

NO_REMOVE, BELOW = Flags.NO_REMOVE.value, Flags.NO_REMOVE_BELOW.value
TO_EXECUTE = 0x20
MODE, RDEV = 9, 13
"""Where they are in struct fuse_attr."""


@pytest.fixture
def nest() -> Iterator[Nesting]:
    with nesting() as made:
        yield made


@pytest.fixture
def one(tmp_path: Path, nest: Nesting) -> Iterator[Rig]:
    """A tree in which the directory `there` is reached by `seen`, too."""
    tree = tmp_path / "tree"
    (tree / "there" / "inner").mkdir(parents=True)
    (tree / "there" / "file").write_text("content")
    nest.bind(tree / "there", tree / "seen")
    with rig(tree) as made:
        yield made


def nodeid(made: Rig, path: str) -> int:
    at = ROOT
    for name in path.split("/"):
        at = made.kernel.lookup(name, at).nodeid
    return at


def error_of(call: Callable[[], object]) -> str | None:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def removed(made: Rig, op: Op, path: str) -> int:
    """Sends the removal of a name, without waiting for the reply."""
    parent, _, name = path.rpartition("/")
    return made.kernel.ask(op, nodeid(made, parent) if parent else ROOT, name.encode() + b"\0")


def test_a_directory_by_two_mounts_is_two_nodeids_and_one_inode(one: Rig) -> None:
    there, seen = nodeid(one, "there"), nodeid(one, "seen")
    inner, seen_inner = nodeid(one, "there/inner"), nodeid(one, "seen/inner")
    assert len({there, seen, inner, seen_inner}) == 4
    assert one.mirror.identify(there) == one.mirror.identify(seen)
    assert one.mirror.identify(inner) == one.mirror.identify(seen_inner)
    assert one.kernel.getattr(there)[0] == one.kernel.getattr(seen)[0], "st_ino is of the inode"


def test_a_file_by_two_mounts_that_allow_the_same_is_one_nodeid(one: Rig) -> None:
    """So it has one page cache, and locks by either name exclude each other."""
    assert nodeid(one, "there/file") == nodeid(one, "seen/file")


@pytest.mark.parametrize("held", ["there/inner", "seen/inner"])
@pytest.mark.parametrize("removed_as", ["there/inner", "seen/inner"])
def test_a_hold_by_one_way_is_one_by_every_way(one: Rig, held: str, removed_as: str) -> None:
    inode = one.mirror.identify(nodeid(one, held))
    one.mirror.set_word(inode, NO_REMOVE, wait=False)
    asked = removed(one, Op.RMDIR, removed_as)
    question = one.policy.question()
    assert one.mirror.identify(question.nodeid) == inode
    one.policy.refuse(question)
    assert error_of(lambda: one.kernel.reply(asked)) == "EBUSY"
    one.mirror.set_word(inode, 0, wait=False)
    one.kernel.reply(removed(one, Op.RMDIR, removed_as))
    assert not one.policy.was_asked()


@pytest.mark.parametrize("order", [("there", "seen"), ("seen", "there")])
@pytest.mark.parametrize("forgotten_first", [0, 1])
def test_forgotten_in_any_order_the_other_goes_on_and_nothing_is_left(
    one: Rig, order: tuple[str, str], forgotten_first: int
) -> None:
    before = one.mirror.counters()["inodes"]
    views = [one.kernel.lookup(name).nodeid for name in order]
    inode = one.mirror.identify(views[0])
    one.kernel.forget(views[forgotten_first])
    left = views[1 - forgotten_first]
    assert one.mirror.identify(left) == inode, "what the policy knows it by stays"
    one.mirror.set_word(inode, NO_REMOVE, wait=False)
    asked = removed(one, Op.RMDIR, "there")
    one.policy.refuse(one.policy.question())
    assert error_of(lambda: one.kernel.reply(asked)) == "EBUSY"
    one.mirror.set_word(inode, 0, wait=False)
    one.kernel.forget(left)
    one.kernel.forget(one.kernel.lookup("there").nodeid, 2)
    assert one.mirror.counters()["inodes"] == before


def test_a_view_is_known_below_its_own_name(one: Rig) -> None:
    """`..` of each leads back to where it was seen: a working directory stays in its own tree."""
    for name in ("there", "seen"):
        inner = nodeid(one, f"{name}/inner")
        up = one.kernel.call(Op.LOOKUP, inner, b"..\0")
        assert struct.unpack_from("=Q", up)[0] == nodeid(one, name)


def test_renamed_by_one_way_it_is_known_under_the_new_name_by_every_way(one: Rig) -> None:
    there, seen = nodeid(one, "there/inner"), nodeid(one, "seen/inner")
    parent = nodeid(one, "seen")
    nodeid(one, "there")
    one.kernel.call(Op.RENAME2, parent, struct.pack("=QII", parent, 0, 0) + b"inner\0renamed\0")
    for known in (there, seen):
        one.kernel.getattr(known)
    assert one.mirror.path(one.mirror.identify(there)) == b"there/renamed"
    assert nodeid(one, "there/renamed") == there
    assert nodeid(one, "seen/renamed") == seen


def test_what_was_removed_by_one_way_can_still_be_asked_about_by_the_other(one: Rig) -> None:
    there, seen = nodeid(one, "there/inner"), nodeid(one, "seen/inner")
    one.kernel.reply(removed(one, Op.RMDIR, "there/inner"))
    for known in (seen, there):
        assert one.kernel.getattr(known)[10] == 0, "nlink"
    with pytest.raises(FileNotFoundError):
        one.kernel.lookup("inner", nodeid(one, "seen"))


def test_a_bind_of_an_ancestor_ends(tmp_path: Path, nest: Nesting) -> None:
    """On the backing tree it is finite: the mount shows the directory on which it is mounted, and no mount there."""
    tree = tmp_path / "tree"
    tree.mkdir()
    nest.bind(tree, tree / "again")
    with rig(tree) as made:
        again = nodeid(made, "again")
        assert again != ROOT
        assert made.mirror.identify(again) == made.mirror.identify(ROOT)
        deeper = nodeid(made, "again/again")
        assert len({ROOT, again, deeper}) == 3
        assert made.kernel.getattr(deeper)[0] == (tree / "again" / "again").stat().st_ino
        with pytest.raises(FileNotFoundError):
            made.kernel.lookup("again", deeper)
        made.kernel.forget(made.kernel.lookup("again", again).nodeid, 2)


def test_limits_of_a_mount_are_those_of_what_is_reached_by_it(tmp_path: Path, nest: Nesting) -> None:
    tree = tmp_path / "tree"
    (tree / "there").mkdir(parents=True)
    program = tree / "there" / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o6755)
    os.mknod(tree / "there" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    nest.bind(tree / "there", tree / "seen", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with rig(tree) as made:
        free, limited = nodeid(made, "there/program"), nodeid(made, "seen/program")
        assert free != limited
        assert made.mirror.identify(free) == made.mirror.identify(limited)
        assert stat.S_IMODE(made.kernel.getattr(free)[MODE]) == 0o6755
        assert stat.S_IMODE(made.kernel.getattr(limited)[MODE]) == 0o755, "it does not count there (nosuid)"
        assert made.kernel.getattr(nodeid(made, "there/null"))[RDEV] != 0
        assert made.kernel.getattr(nodeid(made, "seen/null"))[RDEV] == 0, "no device of anybody's (nodev)"

        def opened(nodeid: int, flags: int) -> str | None:
            def open_and_close() -> None:
                handle = made.kernel.call(Op.OPEN, nodeid, struct.pack("=II", flags, 0))[:8]
                made.kernel.call(Op.RELEASE, nodeid, handle + bytes(16))

            return error_of(open_and_close)

        assert opened(free, os.O_RDONLY | TO_EXECUTE) is None
        assert opened(limited, os.O_RDONLY | TO_EXECUTE) == "EACCES"
        assert opened(free, os.O_WRONLY) is None
        assert opened(limited, os.O_WRONLY) == "EROFS"
        assert opened(limited, os.O_RDONLY) is None


def test_the_mount_that_is_served_is_a_loop(tmp_path: Path, nest: Nesting) -> None:
    """A tmpfs plays the mount: whatever is on it is never looked at."""
    tree = tmp_path / "tree"
    tree.mkdir()
    own = nest.tmpfs(tmp_path / "own")
    (own / "below").mkdir()
    nest.bind(own, tree / "loop")
    nest.bind(own / "below", tree / "loop of what is in it")
    with rig(tree, mounted=own.stat().st_dev) as made:
        for name in ("loop", "loop of what is in it"):
            assert error_of(lambda name=name: made.kernel.lookup(name)) == "ELOOP"
            assert error_of(lambda name=name: made.kernel.reply(removed(made, Op.RMDIR, name))) == "EBUSY"
            with pytest.raises(OSError, match="symbolic links"):
                made.mirror.resolve(name.encode(), 0, 0, ())
        with pytest.raises(OSError, match="symbolic links"):
            made.mirror.resolve(b"loop/below", 0, 0, ())
        with pytest.raises(OSError, match="symbolic links"):
            made.mirror.way(b"loop/below")


def test_inode_numbers_of_many_devices_do_not_collide(tmp_path: Path, nest: Nesting) -> None:
    """On each of them the first directory has the same number."""
    tree = tmp_path / "tree"
    tree.mkdir()
    names = [f"device{number}" for number in range(24)]
    for name in names:
        (nest.tmpfs(tree / name) / "first").mkdir()
    numbers = {(tree / name / "first").stat().st_ino for name in names}
    assert len(numbers) < len(names)
    with rig(tree) as made:
        entries = [made.kernel.lookup("first", nodeid(made, name)) for name in names]
        assert len({entry.ino for entry in entries}) == len(names)
        assert len({entry.nodeid for entry in entries}) == len(names)


def test_what_was_only_looked_at_does_not_keep_a_mount_busy(tmp_path: Path, nest: Nesting) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    inner = nest.tmpfs(tree / "inner")
    (inner / "deep" / "deeper").mkdir(parents=True)
    with rig(tree) as made:
        deeper = nodeid(made, "inner/deep/deeper")
        made.kernel.lookup("deeper", nodeid(made, "inner/deep"))
        while error_of(lambda: nest.umount(inner)) == "EBUSY":
            os.sched_yield()
        assert error_of(lambda: made.kernel.getattr(deeper)) == "ESTALE"
        entry = made.kernel.lookup("inner")
        assert entry.ino == (tree / "inner").stat().st_ino, "what was covered is there again"
        with pytest.raises(Gone):
            made.mirror.attributes(made.mirror.identify(deeper))


# --- what reaches below a directory -----------------------------------------------------------------------------------


def asked_about(made: Rig, path: str) -> bool:
    """Whether the removal of this file needs a verdict; it is refused, or else there is one less."""
    asked = removed(made, Op.UNLINK, path)
    if made.policy.channel in select.select([made.policy.channel, made.device], [], [], PATIENCE)[0]:
        made.policy.refuse(made.policy.question())
        assert error_of(lambda: made.kernel.reply(asked)) == "EBUSY"
        return True
    made.kernel.reply(asked)
    return False


@pytest.fixture
def woven(tmp_path: Path, nest: Nesting) -> Iterator[Rig]:
    """top/a/b is reached by other/seen, too, and a second filesystem's directory by two mounts."""
    tree = tmp_path / "tree"
    for name in ("top/a/b/c", "other", "beside"):
        (tree / name).mkdir(parents=True)
    nest.bind(tree / "top" / "a" / "b", tree / "other" / "seen")
    second = nest.tmpfs(tree / "second")
    (second / "d" / "e").mkdir(parents=True)
    nest.bind(second / "d", tree / "beside" / "d")
    for name in ("top/a/b/c", "second/d/e"):
        for number in range(4):
            (tree / name / f"file{number}").touch()
    with rig(tree) as made:
        yield made


@pytest.mark.parametrize("holder_looked", [False, True], ids=["nobody has looked", "all has been looked up"])
@pytest.mark.parametrize(
    ("held", "covered", "free"),
    [
        ("top", ["top/a/b/c", "other/seen/c"], ["second/d/e", "beside/d/e"]),
        ("top/a", ["top/a/b/c", "other/seen/c"], []),
        ("other", ["top/a/b/c", "other/seen/c"], ["second/d/e"]),
        ("other/seen", ["top/a/b/c", "other/seen/c"], ["beside/d/e"]),
        ("second", ["second/d/e", "beside/d/e"], ["top/a/b/c"]),
        ("beside", ["second/d/e", "beside/d/e"], ["other/seen/c"]),
    ],
)
def test_below_is_below_by_every_way(
    woven: Rig, held: str, covered: list[str], free: list[str], holder_looked: bool
) -> None:
    if holder_looked:
        for name in ("top/a/b/c", "other/seen/c", "second/d/e", "beside/d/e"):
            nodeid(woven, name)
    woven.mirror.set_word(woven.mirror.identify(nodeid(woven, held)), BELOW, wait=False)
    for number, name in enumerate(covered):
        assert asked_about(woven, f"{name}/file{number}"), name
    for number, name in enumerate(free):
        assert not asked_about(woven, f"{name}/file{number}"), name


def test_a_mount_that_comes_later_is_a_way_too(woven: Rig, nest: Nesting) -> None:
    woven.mirror.set_word(woven.mirror.identify(nodeid(woven, "beside")), BELOW, wait=False)
    assert not asked_about(woven, "top/a/b/c/file0")
    late = nest.bind(woven.tree / "top" / "a", woven.tree / "beside" / "late")
    assert asked_about(woven, "top/a/b/c/file1")
    while error_of(lambda: nest.umount(late)) == "EBUSY":
        os.sched_yield()
    assert not asked_about(woven, "top/a/b/c/file1")


def test_above_and_below_are_by_every_way(woven: Rig) -> None:
    c = woven.mirror.identify(nodeid(woven, "other/seen/c"))
    named = {name: woven.mirror.identify(nodeid(woven, name)) for name in ("top", "top/a", "other", "beside")}
    above = woven.mirror.ancestors(c)
    assert {named["top"], named["top/a"], named["other"]} <= set(above)
    assert named["beside"] not in above
    for name in ("top", "other"):
        assert woven.mirror.below(named[name], [c]) == (c,)
    assert woven.mirror.below(named["beside"], [c]) == ()


def test_ways_that_lead_in_a_circle_end(tmp_path: Path, nest: Nesting) -> None:
    tree = tmp_path / "tree"
    (tree / "top" / "down").mkdir(parents=True)
    nest.bind(tree, tree / "top" / "down")
    for number in range(2):
        (tree / "top" / f"file{number}").touch()
    with rig(tree) as made:
        top = made.mirror.identify(nodeid(made, "top"))
        assert made.mirror.identify(nodeid(made, "top/down/top")) == top
        made.mirror.set_word(made.mirror.identify(ROOT), BELOW, wait=False)
        assert asked_about(made, "top/file0")
        assert asked_about(made, "top/down/top/file1")
        assert set(made.mirror.ancestors(top)) == {top, made.mirror.identify(ROOT)}, "it lies in itself by that way"
