from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from exclfs.diagnosis import blocked_by, explain, why
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, Unmount

if TYPE_CHECKING:
    from exclfs.holds.lifetime import End

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
PATH = "/mnt/cache/x"


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
