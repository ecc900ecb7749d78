from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from exclfs.diagnosis.holding import blocked_by, explain, why
from exclfs.holds.flags import DEFAULT, Flags, Place
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Close, Connection, Exit, StateFile, Time, Unmount

if TYPE_CHECKING:
    from exclfs.holds.lifetime import End

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
PATH = "/mnt/cache/x"
BELOW, ABOVE = Inode(1, 3), Inode(1, 1)


def hold(
    *,
    flags: Flags = DEFAULT,
    name: str = "backup",
    process: Process = Process(4711, 0, "rsync"),  # noqa: B008 - frozen
    reason: str = "nightly run",
    ends: tuple[End, ...] = (Connection(1),),
    id: str = "h3",
) -> Hold:
    since = datetime(2026, 11, 22, 13, 2, 15, tzinfo=UTC)
    return Hold(id, Inode(1, 2), PATH, flags, Holder(name, process), reason, since, ends)


def test_says_who_since_when_why_what_and_until_when() -> None:
    (cause,) = why(PATH, [hold()], now=NOW)
    assert cause.text == (
        '"/mnt/cache/x" is held by backup (pid 4711, rsync) since 13:02:15 UTC: nightly run. '
        "It refuses unlink, rmdir and rename. "
        'It ends when the holder\'s connection closes; "exclfs release --break h3" ends it now.'
    )
    assert (cause.kind, cause.blocks, cause.hold) == ("hold", ("unlink", "rmdir", "rename"), hold())


def test_another_day_has_its_date() -> None:
    (cause,) = why(PATH, [hold()], now=NOW.replace(day=23))
    assert "since 2026-11-22 13:02:15 UTC: nightly run." in cause.text


@pytest.mark.parametrize(
    ("flags", "blocks", "sentence"),
    [
        (Flags.NO_REMOVE, ("unlink", "rmdir", "rename"), "It refuses unlink, rmdir and rename."),
        (Flags.KERNEL_FILE, ("rmdir",), "It refuses rmdir."),
        (Flags.EXCL_INUSE, (), "It refuses other claims, and no removal."),
        (Flags.EXCL_SUBTREE, (), "It refuses other claims, here and below, and no removal."),
        (
            Flags.NO_REMOVE_BELOW,
            ("unlink", "rmdir", "rename"),
            "It refuses unlink, rmdir and rename, here and of every name below.",
        ),
        (
            Flags.PIN_PATH,
            ("unlink", "rmdir", "rename"),
            "It refuses unlink, rmdir and rename, and rename of every directory above.",
        ),
        (
            Flags.PIN_PATH | Flags.NO_REMOVE_BELOW,
            ("unlink", "rmdir", "rename"),
            "It refuses unlink, rmdir and rename, here and of every name below, and rename of every directory above.",
        ),
    ],
)
def test_says_what_each_flag_refuses(flags: Flags, blocks: tuple[str, ...], sentence: str) -> None:
    assert blocked_by(hold(flags=flags)) == blocks
    (cause,) = why(PATH, [hold(flags=flags)], now=NOW)
    assert cause.blocks == blocks
    assert sentence in cause.text


def test_says_of_a_hard_link_by_which_name_it_is_held() -> None:
    (cause,) = why("/mnt/cache/link", [hold()], now=NOW)
    assert cause.text.startswith('"/mnt/cache/link" is held, as "/mnt/cache/x", by backup (pid 4711, rsync) since ')


@pytest.mark.parametrize(
    ("flags", "blocks", "sentence"),
    [
        (Flags.NO_REMOVE_BELOW, ("unlink", "rmdir", "rename"), "It refuses unlink, rmdir and rename."),
        (Flags.EXCL_SUBTREE | Flags.NO_REMOVE, (), "It refuses other claims, and no removal."),
    ],
)
def test_says_of_a_hold_from_above_what_it_refuses_down_here(
    flags: Flags, blocks: tuple[str, ...], sentence: str
) -> None:
    (cause,) = why("/mnt/cache/x/y", [hold(flags=flags)], BELOW, now=NOW)
    assert cause.blocks == blocks == blocked_by(hold(flags=flags), Place.BELOW)
    assert cause.text.startswith(
        '"/mnt/cache/x/y" is held by backup (pid 4711, rsync), who covers it from above as "/mnt/cache/x", since '
    )
    assert sentence in cause.text


@pytest.mark.parametrize("flags", [Flags.PIN_PATH, Flags.PIN_PATH | Flags.NO_REMOVE_BELOW])
@pytest.mark.parametrize("path", ["/mnt/cache", "/"])
def test_says_of_a_pin_what_it_refuses_up_here(flags: Flags, path: str) -> None:
    (cause,) = why(path, [hold(flags=flags)], ABOVE, now=NOW)
    assert cause.blocks == ("rename",) == blocked_by(hold(flags=flags), Place.ABOVE)
    assert cause.text.startswith(
        f'"{path}" is held by backup (pid 4711, rsync), who pins the path of "/mnt/cache/x", since 13:02:15 UTC: '
    )
    assert "It refuses rename. " in cause.text


def test_a_pin_that_covers_what_is_below_is_told_as_such_there() -> None:
    (cause,) = why("/mnt/cache/x/y", [hold(flags=Flags.PIN_PATH | Flags.NO_REMOVE_BELOW)], BELOW, now=NOW)
    assert 'who covers it from above as "/mnt/cache/x", since' in cause.text
    assert cause.blocks == ("unlink", "rmdir", "rename")


def test_an_open_file_is_told_as_one() -> None:
    opened = hold(flags=Flags.NO_REMOVE, name="rsync", reason="opened by pid 4711 (rsync)", ends=(Close(),))
    (cause,) = why(PATH, [opened], opened.inode, now=NOW)
    assert cause.text == (
        '"/mnt/cache/x" is open: opened by rsync (pid 4711) since 13:02:15 UTC. '
        "It refuses unlink, rmdir and rename by other processes. "
        "It ends when the file is closed."
    )
    assert (cause.kind, cause.blocks) == ("open file", ("unlink", "rmdir", "rename"))


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (Process(None, 1000, user="alice"), "backup (user alice)"),
        (Process(None, 1000), "backup (user 1000)"),
        (Process(7, 0), "backup (pid 7)"),
        (Process(7, 0, "sh", container="docker:0123456789ab"), "backup (pid 7, sh, in docker:0123456789ab)"),
        (Process(7, 0, "\x1b[2J"), "backup (pid 7, \\x1b[2J)"),
    ],
)
def test_says_of_a_process_what_is_known(process: Process, words: str) -> None:
    assert f"is held by {words} since" in why(PATH, [hold(process=process)], now=NOW)[0].text


def test_without_a_reason_there_is_none() -> None:
    assert "since 13:02:15 UTC. It refuses" in why(PATH, [hold(reason="")], now=NOW)[0].text


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((Unmount(),), "It ends at unmount;"),
        ((Exit(4711, 5),), "It ends when pid 4711 exits;"),
        ((Time(NOW),), "It ends at 18:00:00 UTC;"),
        ((Time(NOW.replace(day=29)),), "It ends at 2026-11-29 18:00:00 UTC;"),
        ((StateFile(),), "It ends when it is released (it is kept in the state file);"),
        ((Connection(1), Unmount()), "It ends when the holder's connection closes or at unmount;"),
    ],
)
def test_says_every_end(ends: tuple[End, ...], words: str) -> None:
    assert words in why(PATH, [hold(ends=ends)], now=NOW)[0].text


def test_what_blocks_comes_first() -> None:
    claim, guard = hold(flags=Flags.EXCL_INUSE, id="h1"), hold(flags=Flags.NO_REMOVE, id="h2")
    assert [cause.hold for cause in why(PATH, [claim, guard], now=NOW)] == [guard, claim]


def test_one_line_whatever_the_path() -> None:
    line = explain("/mnt/a\nb\udcff", [hold(), hold(id="h4")], now=NOW)
    assert line.isprintable()
    assert line.startswith('"/mnt/a\\nb\\xff" is held, as "/mnt/cache/x", by backup')
    assert line.count(" is held, as ") == 2
    assert explain(PATH, [], now=NOW) == 'Nothing holds "/mnt/cache/x".'


def test_of_very_many_some_are_spelt_out() -> None:
    holds = [evolve(hold(), id=f"h{number}") for number in range(1000)]
    line = explain(PATH, holds, now=NOW)
    assert line.count(" is held by ") == 20
    assert line.endswith(' And 980 more: "exclfs holds" lists them.')
