"""The flags that reach beyond their inode, on a real mount: NO_REMOVE_BELOW, PIN_PATH and EXCL_SUBTREE."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from test_race import REMOVER, WINDOW_US
from test_refusals import EXCHANGE, WHITEOUT, rename2

import exclfs
from exclfs import Flags
from harness import default_options, start, variant
from program import exclfs as run_exclfs
from program import logged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

BELOW, PIN, SUBTREE = Flags.NO_REMOVE_BELOW, Flags.PIN_PATH, Flags.EXCL_SUBTREE
CLAIM = Flags.EXCL_INUSE
DEPTH = 40
ROUNDS = 100
PINNED = 40
"""How often a path that is renamed all the time is pinned."""


@pytest.fixture
def client(mounted: Mounted) -> Iterator[exclfs.Client]:
    mounted.expect("refused")
    with exclfs.connect(mounted.path) as client:
        yield client


@pytest.fixture
def another(mounted: Mounted) -> Iterator[exclfs.Client]:
    with exclfs.connect(mounted.path) as client:
        yield client


@pytest.fixture
def tree(mounted: Mounted) -> Path:
    """top/a/b/file, top/file, other/file; made behind the mount, so that nobody has looked at it yet."""
    for directory in ("top/a/b", "other"):
        (mounted.backing / directory).mkdir(parents=True)
    for name in ("top/a/b/file", "top/file", "other/file"):
        (mounted.backing / name).write_text(name)
    return mounted.path


def hold(client: exclfs.Client, path: Path, flags: Flags, holder: str = "us") -> exclfs.Hold:
    (placed,) = client.hold(path, flags=flags, holder=holder)
    return placed


def refused(removal: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        removal()
    assert caught.value.errno == errno.EBUSY, caught.value


def everything(directory: Path) -> dict[str, int]:
    """The inode that each name below leads to."""
    return {str(path.relative_to(directory)): path.lstat().st_ino for path in sorted(directory.rglob("*"))}


def new(path: Path) -> Path:
    path.write_text("new")
    return path


def ids(holds: tuple[exclfs.Hold, ...]) -> list[str]:
    return [one.id for one in holds]


# --- NO_REMOVE_BELOW --------------------------------------------------------------------------------------------------

REMOVALS_BELOW: dict[str, Callable[[Path], object]] = {
    "unlink": lambda tree: (tree / "top/file").unlink(),
    "unlink, deeper": lambda tree: (tree / "top/a/b/file").unlink(),
    "rmdir": lambda tree: (tree / "top/empty").rmdir(),
    "rename": lambda tree: (tree / "top/file").rename(tree / "top/moved"),
    "rename of a directory": lambda tree: (tree / "top/a").rename(tree / "top/moved"),
    "rename from one directory to another": lambda tree: (tree / "top/a/b/file").rename(tree / "top/moved"),
    "rename out of it": lambda tree: (tree / "top/a/b").rename(tree / "other/b"),
    "rename into it, over what is there": lambda tree: (tree / "other/file").rename(tree / "top/a/b/file"),
    "exchange within": lambda tree: rename2(tree / "top/file", tree / "top/a/b/file", EXCHANGE),
    "exchange with what is outside": lambda tree: rename2(tree / "other/file", tree / "top/file", EXCHANGE),
    "whiteout": lambda tree: rename2(tree / "top/file", tree / "other/moved", WHITEOUT),
    "rmdir of itself": lambda tree: (tree / "top").rmdir(),
    "rename of itself": lambda tree: (tree / "top").rename(tree / "moved"),
    "replacing itself": lambda tree: (tree / "nothing").rename(tree / "top"),
    "exchanging itself": lambda tree: rename2(tree / "other", tree / "top", EXCHANGE),
}


@pytest.mark.parametrize("removal", REMOVALS_BELOW)
def test_no_name_below_can_be_removed_or_renamed(
    mounted: Mounted, tree: Path, client: exclfs.Client, removal: str
) -> None:
    (mounted.backing / "top/empty").mkdir()
    (mounted.backing / "nothing").mkdir()
    before = everything(mounted.backing)
    placed = hold(client, tree / "top", BELOW)
    refused(lambda: REMOVALS_BELOW[removal](tree))
    assert everything(mounted.backing) == before
    assert everything(tree) == before
    client.end([placed])
    if removal not in ("rmdir of itself", "replacing itself"):  # it is not empty
        REMOVALS_BELOW[removal](tree)


def test_new_names_below_are_welcome_and_covered_at_once(tree: Path, client: exclfs.Client) -> None:
    hold(client, tree / "top", BELOW)
    new(tree / "top/created")
    (tree / "top/made/below").mkdir(parents=True)
    (tree / "top/symlink").symlink_to("anywhere")
    (tree / "top/a/link").hardlink_to(tree / "other/file")
    (tree / "other/file").rename(tree / "top/a/b/moved in")
    for name in ("created", "made/below", "made", "symlink", "a/link", "a/b/moved in"):
        path = tree / "top" / name
        refused(path.rmdir if path.is_dir() else path.unlink)


def test_what_else_is_done_below_is_not_affected(tree: Path, client: exclfs.Client) -> None:
    hold(client, tree / "top", BELOW)
    path = tree / "top/a/b/file"
    path.write_text("written")
    os.truncate(path, 3)
    path.chmod(0o600)
    os.setxattr(path, "user.colour", b"red")
    assert path.read_text() == "wri"


def test_an_outside_link_of_what_lies_below_can_be_removed(tree: Path, client: exclfs.Client) -> None:
    """It is names that are refused, and that name is not below."""
    inside, outside = tree / "top/a/b/file", tree / "other/link"
    outside.hardlink_to(inside)
    placed = hold(client, tree / "top", BELOW)
    outside.rename(tree / "other/renamed")
    refused(inside.unlink)
    (tree / "other/renamed").unlink()
    refused(inside.unlink)
    client.end([placed])
    inside.unlink()


def test_whichever_of_its_links_was_seen_last(tree: Path, client: exclfs.Client) -> None:
    inside, outside = tree / "top/a/b/file", tree / "other/link"
    outside.hardlink_to(inside)
    hold(client, tree / "top", BELOW)
    for seen in (inside, outside):
        os.listdir(seen.parent)
        seen.stat()
        refused(inside.unlink)
    outside.unlink()


def test_a_directory_that_is_moved_in_becomes_covered(mounted: Mounted, tree: Path, client: exclfs.Client) -> None:
    (mounted.backing / "other/deep/deeper").mkdir(parents=True)
    new(mounted.backing / "other/deep/deeper/file")
    (tree / "other/deep/deeper/file").read_text()
    placed = hold(client, tree / "top", BELOW)
    new(tree / "other/deep/deeper/second").unlink()
    (tree / "other/deep").rename(tree / "top/a/deep")
    refused((tree / "top/a/deep/deeper/file").unlink)
    refused((tree / "top/a/deep/deeper").rmdir)
    refused((tree / "top/a/deep").rmdir)
    client.end([placed])
    (tree / "top/a/deep").rename(tree / "deep")
    hold(client, tree / "top", BELOW)
    (tree / "deep/deeper/file").unlink()


def test_by_an_exchange_one_comes_in_and_the_other_cannot_leave(tree: Path, client: exclfs.Client) -> None:
    (tree / "other/directory").mkdir()
    new(tree / "other/directory/file")
    hold(client, tree / "top/a", BELOW)
    refused(lambda: rename2(tree / "other/directory", tree / "top/a/b", EXCHANGE))
    rename2(tree / "other/directory", tree / "top/file", EXCHANGE)  # beside what is held
    (tree / "top/file/file").unlink()


def test_a_directory_above_can_be_renamed_and_all_stays_covered(tree: Path, client: exclfs.Client) -> None:
    hold(client, tree / "top/a", BELOW)
    (tree / "top").rename(tree / "other/moved")
    refused((tree / "other/moved/a/b/file").unlink)
    (tree / "other/moved/file").unlink()


def test_two_that_lie_one_in_the_other(tree: Path, client: exclfs.Client) -> None:
    outer, inner = hold(client, tree / "top", BELOW), hold(client, tree / "top/a/b", BELOW)
    client.end([outer])
    refused((tree / "top/a/b/file").unlink)
    (tree / "top/file").unlink()
    refused((tree / "top/a/b").rmdir)
    (tree / "top/a").rename(tree / "top/renamed")
    outer = hold(client, tree / "top", BELOW)
    client.end([inner])
    refused((tree / "top/renamed/b/file").unlink)


def test_at_any_depth(mounted: Mounted, client: exclfs.Client) -> None:
    path = mounted.path / "/".join(["d"] * DEPTH)
    path.mkdir(parents=True)
    new(path / "file")
    placed = hold(client, mounted.path / "d", BELOW)
    refused((path / "file").unlink)
    client.end([placed])
    (path / "file").unlink()


def test_elsewhere_nobody_is_asked(mounted: Mounted, tree: Path, client: exclfs.Client) -> None:
    if default_options().get("ask_always"):
        pytest.skip("it is, as that option wants")

    def decisions() -> int:
        status = client.status()
        return sum(status.requests.values()) - status.answered_without_a_decision

    hold(client, tree / "top", BELOW)
    hold(client, tree / "top/a/b", PIN)
    before = decisions()
    (tree / "other/file").rename(tree / "other/moved")
    (tree / "other/moved").unlink()
    (tree / "other").rename(tree / "renamed")
    (tree / "renamed").rmdir()
    assert decisions() == before
    refused((tree / "top/file").unlink)
    assert decisions() == before + 1


# --- PIN_PATH ---------------------------------------------------------------------------------------------------------

MOVES_ABOVE: dict[str, Callable[[Path], object]] = {
    "rename of the parent": lambda tree: (tree / "top/a/b").rename(tree / "top/a/moved"),
    "rename of the parent elsewhere": lambda tree: (tree / "top/a/b").rename(tree / "other/b"),
    "rename farther above": lambda tree: (tree / "top").rename(tree / "moved"),
    "exchange": lambda tree: rename2(tree / "other", tree / "top/a", EXCHANGE),
    "exchange, named first": lambda tree: rename2(tree / "top", tree / "other", EXCHANGE),
    "whiteout": lambda tree: rename2(tree / "top/a", tree / "other/a", WHITEOUT),
    "unlink": lambda tree: (tree / "top/a/b/file").unlink(),
    "rename": lambda tree: (tree / "top/a/b/file").rename(tree / "top/moved"),
    "replace": lambda tree: new(tree / "top/new").rename(tree / "top/a/b/file"),
}


@pytest.mark.parametrize("move", MOVES_ABOVE)
def test_no_directory_above_can_be_renamed(mounted: Mounted, tree: Path, client: exclfs.Client, move: str) -> None:
    path = tree / "top/a/b/file"
    inode = path.stat().st_ino
    placed = hold(client, path, PIN)
    refused(lambda: MOVES_ABOVE[move](tree))
    assert path.stat().st_ino == inode
    (tree / "top/new").unlink(missing_ok=True)
    client.end([placed])
    MOVES_ABOVE[move](tree)


def test_what_lies_beside_the_way_can_be_moved_and_removed(tree: Path, client: exclfs.Client) -> None:
    hold(client, tree / "top/a/b/file", PIN)
    (tree / "top/file").rename(tree / "top/renamed")
    (tree / "top/renamed").unlink()
    (tree / "other").rename(tree / "top/a/other")
    (tree / "top/a/other/file").unlink()
    (tree / "top/a/other").rmdir()
    new(tree / "top/a/b/new").unlink()


def test_a_directory_can_be_pinned_and_what_lies_in_it_is_free(tree: Path, client: exclfs.Client) -> None:
    hold(client, tree / "top/a", PIN)
    refused(lambda: (tree / "top").rename(tree / "moved"))
    refused(lambda: (tree / "top/a").rename(tree / "moved"))
    (tree / "top/a/b").rename(tree / "top/b")
    (tree / "top/b/file").unlink()


def test_what_lies_in_the_root_has_nothing_above_that_could_move(mounted: Mounted, client: exclfs.Client) -> None:
    path = new(mounted.root / "in the root")
    placed = hold(client, path, PIN)
    refused(path.unlink)
    client.end([placed])
    path.unlink()


def test_two_pins_of_one_way(tree: Path, client: exclfs.Client) -> None:
    first, second = hold(client, tree / "top/a/b/file", PIN), hold(client, tree / "top/file", PIN)
    client.end([first])
    refused(lambda: (tree / "top").rename(tree / "moved"))
    (tree / "top/a").rename(tree / "top/renamed")
    client.end([second])
    (tree / "top").rename(tree / "moved")


@pytest.mark.parametrize("seen", ["that", "the other"])
def test_of_several_links_the_path_by_which_it_was_placed_stays_true(
    mounted: Mounted, tree: Path, client: exclfs.Client, seen: str
) -> None:
    """Whichever of them the mirror has seen last. The inode stays by all its names, but another name's way is free."""
    (mounted.backing / "other/deep").mkdir()
    path, link = tree / "top/a/b/file", tree / "other/deep/link"
    link.hardlink_to(path)
    if seen == "the other":
        path.stat()
        os.scandir(link.parent).close()
        assert [entry.inode() for entry in os.scandir(link.parent)] == [path.stat().st_ino]
        link.rename(link)
    placed = hold(client, path, PIN)
    assert placed.path == str(path)
    for move in ("rename of the parent", "rename farther above", "exchange"):
        refused(lambda: MOVES_ABOVE[move](tree))  # noqa: B023
    refused(path.unlink)
    refused(link.unlink)
    (tree / "other").rename(tree / "renamed")
    (tree / "renamed/deep").rename(tree / "deep")
    refused((tree / "deep/link").unlink)
    assert path.stat().st_ino == placed.inode.ino
    client.end([placed])
    (tree / "top").rename(tree / "moved")


RENAMER = """
import os, sys
there, away = sys.argv[1:]
print("begun", flush=True)
renames = 0
while True:
    for source, target in ((there, away), (away, there)):
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno not in (16, 2):
                raise
"""


def test_a_path_that_is_pinned_while_it_is_renamed_is_true_or_is_not_pinned(tmp_path: Path) -> None:
    """The window between test and rename is widened, so that a rename is in flight most of the time."""
    build = variant(f"EXCLFS_TEST_WINDOW_US={WINDOW_US}")
    chance, pinned = random.Random(0), 0
    with start(tmp_path, environment={"PYTHONPATH": str(build)}) as mounted:
        mounted.expect("refused")
        path = mounted.setup("top") / "file"
        new(path)
        inode = path.stat().st_ino
        with (
            exclfs.connect(mounted.path) as client,
            subprocess.Popen(
                [sys.executable, "-c", RENAMER, mounted.path / "top", mounted.path / "away"], stdout=subprocess.PIPE
            ) as renamer,
        ):
            assert renamer.stdout is not None
            renamer.stdout.readline()
            try:
                while pinned < PINNED:
                    try:
                        (placed,) = client.hold(chance.choice([path, mounted.path / "away/file"]), flags=PIN)
                    except (exclfs.Gone, FileNotFoundError):
                        continue
                    pinned += 1
                    behind = mounted.backing / os.path.relpath(placed.path, mounted.path)
                    for _ in range(20):
                        assert behind.stat().st_ino == inode
                    client.end([placed])
            finally:
                renamer.kill()


# --- EXCL_SUBTREE -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "flags", "second", "wanted"),
    [
        ("top", SUBTREE, "top/a/b/file", CLAIM),
        ("top", SUBTREE, "top/a", SUBTREE),
        ("top", SUBTREE, "top/a", Flags.KERNEL_FILE),
        ("top", SUBTREE, "top", CLAIM),
        ("top", SUBTREE, "top", SUBTREE),
        ("top/a/b/file", CLAIM, "top", SUBTREE),
        ("top/a/b", SUBTREE, "top", SUBTREE),
        ("top/a/b", Flags.KERNEL_FILE, "top/a", SUBTREE),
        ("top/a/b", SUBTREE, "top/a", CLAIM),
    ],
)
def test_a_claim_above_or_below_is_in_the_way_and_is_told(
    tree: Path, client: exclfs.Client, another: exclfs.Client, first: str, flags: Flags, second: str, wanted: Flags
) -> None:
    placed = hold(client, tree / first, flags)
    with exclfs.events(tree / second) as events:
        with pytest.raises(exclfs.Held) as caught:
            hold(another, tree / second, wanted, "them")
        event = next(events)
    assert caught.value.hold.id == placed.id
    assert caught.value.hold.path == str(tree / first)
    assert isinstance(event, exclfs.LockFailed)
    assert (event.path, event.conflict.id) == (str(tree / second), placed.id)
    client.end([placed])
    hold(another, tree / second, wanted, "them")


@pytest.mark.parametrize(
    ("first", "flags", "second", "wanted"),
    [
        ("top", SUBTREE, "other", SUBTREE),
        ("top/a", SUBTREE, "top/file", CLAIM),
        ("top", CLAIM, "top/a/b/file", CLAIM),
        ("top", SUBTREE, "top/a", Flags.NO_REMOVE),
        ("top", SUBTREE, "top/a", BELOW),
        ("top", SUBTREE, "top/a/b/file", PIN),
        ("top", Flags.NO_REMOVE | BELOW | PIN, "top/a", SUBTREE),
    ],
)
def test_what_is_no_conflict(
    tree: Path, client: exclfs.Client, another: exclfs.Client, first: str, flags: Flags, second: str, wanted: Flags
) -> None:
    hold(client, tree / first, flags)
    hold(another, tree / second, wanted, "them")


def test_a_holder_is_in_its_own_way_nowhere_but_on_the_inode_itself(
    tree: Path, client: exclfs.Client, another: exclfs.Client
) -> None:
    """One holder is one name and one process; by how many connections does not matter."""
    hold(client, tree / "top", SUBTREE, "us")
    hold(another, tree / "top/a/b/file", CLAIM, "us")
    hold(client, tree / "top/a", SUBTREE, "us")
    with pytest.raises(exclfs.Held):
        hold(client, tree / "top", CLAIM, "us")
    with pytest.raises(exclfs.Held):
        hold(client, tree / "top/file", CLAIM, "us, by another name")


def test_it_refuses_no_removal(tree: Path, client: exclfs.Client) -> None:
    hold(client, tree / "top", SUBTREE)
    (tree / "top/file").unlink()
    (tree / "top").rename(tree / "moved")


def test_what_was_moved_out_is_claimed_no_more(tree: Path, client: exclfs.Client, another: exclfs.Client) -> None:
    hold(client, tree / "top", SUBTREE)
    (tree / "top/a").rename(tree / "other/a")
    hold(another, tree / "other/a/b/file", CLAIM, "them")
    hold(client, tree / "top/file", CLAIM)


def test_who_waits_for_a_subtree_has_it_when_the_last_claim_below_ends(
    tree: Path, client: exclfs.Client, another: exclfs.Client
) -> None:
    claims = [hold(client, tree / name, CLAIM) for name in ("top/a/b/file", "top/file")]
    placed: list[exclfs.Hold] = []
    thread = threading.Thread(
        target=lambda: placed.extend(another.hold(tree / "top", flags=SUBTREE, holder="them", timeout=None))
    )
    thread.start()
    while not client.status().waiting:
        pass
    for claim in claims:
        assert not placed
        client.end([claim])
    thread.join(30)
    assert [one.holder.name for one in placed] == ["them"]


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [BELOW, SUBTREE, BELOW | Flags.NO_REMOVE])
@pytest.mark.parametrize("name", ["file", "symlink"])
def test_what_reaches_below_is_placed_on_directories_only(
    tree: Path, client: exclfs.Client, flags: Flags, name: str
) -> None:
    path = tree / "top" / name
    if name == "symlink":
        path.symlink_to("a")
    with pytest.raises(exclfs.BadHold, match="not a directory"):
        hold(client, path, flags)
    assert exclfs.holds(path) == ()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        os.setxattr(path, "system.exclfs.hold", b'{"flags": ["NO_REMOVE_BELOW"]}', follow_symlinks=False)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("flags", "held", "refusing"),
    [(BELOW, "top", "top/a/b/file"), (PIN, "top/a/b/file", "top"), (PIN | BELOW, "top/a", "top/a/b/file")],
)
def test_whoever_is_refused_is_told_by_which_hold(
    mounted: Mounted, tree: Path, client: exclfs.Client, flags: Flags, held: str, refusing: str
) -> None:
    (placed,) = client.hold(tree / held, flags=flags, holder="keeper of the tree", reason="it is being moved")
    path = tree / refusing
    with exclfs.events(path) as events:
        refused(lambda: path.rename(tree / "elsewhere"))
        event = next(events)
    assert isinstance(event, exclfs.Refused)
    assert (event.path, ids(event.holds)) == (str(path), [placed.id])
    assert 'holder="keeper of the tree"' in logged(mounted, "refused", str(path))
    (cause,) = (cause for cause in exclfs.why(path).causes if cause.kind == "hold")
    assert cause.hold is not None
    assert cause.hold.id == placed.id
    assert "rename" in cause.blocks
    for text in (cause.text, os.getxattr(path, "user.exclfs.why").decode(), run_exclfs("why", path).stdout):
        assert "keeper of the tree" in text
        assert "it is being moved" in text
    assert str(tree / held) in cause.text


def holders_of(path: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(os.getxattr(path, "user.exclfs.holders"))["holds"]
    return told


def test_a_covered_path_lists_what_covers_it(tree: Path, client: exclfs.Client) -> None:
    placed = {
        "below": hold(client, tree / "top", BELOW),
        "subtree": hold(client, tree / "top/a", SUBTREE),
        "pin": hold(client, tree / "top/a/b", PIN),
        "own": hold(client, tree / "top/a/b/file", Flags.NO_REMOVE),
    }
    covering = {
        "top/a/b/file": ["below", "subtree", "own"],
        "top/a/b": ["below", "subtree", "pin"],
        "top/a": ["below", "subtree", "pin"],
        "top": ["below", "pin"],
        "top/file": ["below"],
        "other": [],
        "other/file": [],
    }
    for name, expected in covering.items():
        wanted = [placed[one].id for one in expected]
        assert ids(exclfs.holds(tree / name)) == wanted, name
        assert [one["id"] for one in holders_of(tree / name)] == wanted, name
        assert exclfs.inuse(tree / name) == bool(wanted)
    assert [one["path"] for one in holders_of(tree / "top/a/b/file")] == [
        str(tree / name) for name in ("top", "top/a", "top/a/b/file")
    ]


def test_a_path_that_was_moved_in_lists_it_too(tree: Path, client: exclfs.Client) -> None:
    placed = hold(client, tree / "top", BELOW)
    assert exclfs.holds(tree / "other/file") == ()
    (tree / "other").rename(tree / "top/a/other")
    assert ids(exclfs.holds(tree / "top/a/other/file")) == [placed.id]


@pytest.mark.parametrize("flags", [BELOW, PIN, SUBTREE])
def test_by_xattr_until_it_is_removed(tree: Path, flags: Flags, mounted: Mounted) -> None:
    mounted.expect("refused")
    os.setxattr(tree / "top/a", "system.exclfs.hold", json.dumps({"flags": flags.names}).encode())
    assert os.getxattr(tree / "top/a", "user.exclfs.flags") == flags.names[0].encode()
    if flags is BELOW:
        refused((tree / "top/a/b/file").unlink)
    if flags is PIN:
        refused(lambda: (tree / "top").rename(tree / "moved"))
    os.removexattr(tree / "top/a", "system.exclfs.hold")
    (tree / "top/a/b/file").unlink()
    (tree / "top").rename(tree / "moved")


# --- while removals are in flight -------------------------------------------------------------------------------------


def placed_above(mounted: Mounted, client: exclfs.Client, name: str) -> tuple[Path, Path, Callable[[], object]]:
    """A file, where it is afterwards, and what covers it: a hold on the directory above."""
    path = new(mounted.setup(f"top/{name}") / "file")
    return path, path, lambda: client.hold(mounted.path / "top", flags=BELOW)


def moved_in(mounted: Mounted, client: exclfs.Client, name: str) -> tuple[Path, Path, Callable[[], object]]:
    """A directory above it is moved into one that is held. (Of the moved one the VFS itself locks the names.)"""
    (mounted.backing / "top").mkdir(exist_ok=True)
    client.hold(mounted.path / "top", flags=BELOW)
    path = new(mounted.setup(f"other/{name}/in") / "file")
    moved = mounted.path / "top" / name
    return path, moved / "in" / "file", lambda: (mounted.path / "other" / name).rename(moved)


@pytest.mark.parametrize("covered", [placed_above, moved_in])
def test_once_it_is_covered_nothing_goes(tmp_path: Path, covered: Callable[..., Any]) -> None:
    """What was in flight has happened by then, or is refused. The window between test and removal is widened."""
    build = variant(f"EXCLFS_TEST_WINDOW_US={WINDOW_US}")
    chance, lead, answers = random.Random(0), 0.0, []
    with (
        start(tmp_path, environment={"PYTHONPATH": str(build)}) as mounted,
        exclfs.connect(mounted.path) as client,
        subprocess.Popen(
            [sys.executable, "-c", REMOVER, "unlink"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as remover,
    ):
        mounted.expect("refused")
        assert remover.stdin is not None
        assert remover.stdout is not None
        for number in range(ROUNDS):
            path, afterwards, cover = covered(mounted, client, str(number))
            behind = mounted.backing / afterwards.relative_to(mounted.path)
            head_start = lead + chance.uniform(-2, 2) * WINDOW_US * 1e-6
            remover.stdin.write(f"{path} {max(head_start, 0):.6f}\n")
            remover.stdin.flush()
            time.sleep(max(-head_start, 0))
            cover()
            there = behind.exists()
            answers.append(int(remover.stdout.readline()))
            assert behind.exists() == there, "it went after it was covered"
            assert (answers[-1] == 0) != there
            lead += -0.00005 if there else 0.00005
            client.release(path=mounted.path / "top")
        remover.stdin.close()
    assert min(answers.count(0), len(answers) - answers.count(0)) > ROUNDS // 20, f"it was no race: {answers}"
