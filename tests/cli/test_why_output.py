"""What `exclfs why` prints: one shape for people, one for programs."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from exclfs import cli
from exclfs.cli import why as command
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Cause, Diagnosis, Unread

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full" / "below").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    status = cli.main(["why", *words])
    told = capsys.readouterr()
    return status, told.out.splitlines(), told.err


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    cli.main(["why", *words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_nothing_is_said_in_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    status, (first, *_), _ = said(capsys, "file")
    assert (status, first) == (1, "Nothing keeps file from being removed or renamed.")
    status, (first, *_), _ = said(capsys, "file", "--for", "unlink")
    assert (status, first) == (1, "unlink of file would succeed now.")


def test_what_blocks_is_said_first_and_with_what_it_does_not_block(capsys: pytest.CaptureFixture[str]) -> None:
    status, (sentence, labels, *_), _ = said(capsys, "full")
    assert status == 0
    assert sentence.startswith('"full" is not empty: "below" is in it. ')
    assert sentence.endswith(" `ls -A full` lists what is in the way.")
    assert labels.startswith("  blocks rmdir (ENOTEMPTY); not rename")


def test_with_an_attempt_the_verdict_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    status, (verdict, sentence, labels, *_), _ = said(capsys, "full", "--for", "rmdir")
    assert (status, verdict) == (0, "rmdir of full would fail now: ENOTEMPTY, directory not empty.")
    assert sentence.startswith('"full" is not empty')
    assert labels.startswith("  blocks rmdir (ENOTEMPTY)")
    status, (verdict, heading, sentence, *_), _ = said(capsys, "full", "--for", "rename")
    assert (status, verdict) == (1, "rename of full would succeed now.")
    assert heading == "Not in the way of rename, but of something else:"
    assert sentence.startswith('  "full" is not empty')


def test_what_uses_it_and_blocks_nothing_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with open("file") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, (first, heading, *uses), _ = said(capsys, "file")
    assert (status, first) == (1, "Nothing keeps file from being removed or renamed.")
    assert heading == "Blocks none of unlink, rename:"
    assert any(f"pid {os.getpid()}" in use for use in uses)
    assert all(use.startswith("  ") for use in uses[:2])


BLOCKS = Cause("mountpoint", "It is one.", ("rmdir", "rename"), ("umount",), (), errno="EBUSY")
BLOCKS_UMOUNT = Cause("mount below", "Something is below.", ("umount",), ("rmdir", "rename"), (), errno="EBUSY")
USES = Cause("flock", "It is \x1b[1mlocked.", (), ("rmdir", "rename", "umount"), ())
GAP = Unread("processes", "Some could not be read; root can.", (Attempt.UMOUNT,))


def test_the_whole_shape(capsys: pytest.CaptureFixture[str]) -> None:
    found = Diagnosis("/x", None, True, None, (BLOCKS, BLOCKS_UMOUNT, USES), (GAP,))
    command._say(found)
    assert capsys.readouterr().out.splitlines() == [
        "It is one.",
        "  blocks rmdir, rename (EBUSY); not umount",
        "Something is below.",
        "  blocks umount (EBUSY); not rmdir, rename",
        "Blocks none of rmdir, rename, umount:",
        "  It is \\x1b[1mlocked.",
        "Could not be read:",
        "  Some could not be read; root can.",
    ]
    command._say(attrs.evolve(found, attempt=Attempt.UMOUNT, errno="EBUSY"))
    assert capsys.readouterr().out.splitlines() == [
        "umount of /x would fail now: EBUSY, device or resource busy.",
        "Something is below.",
        "  blocks umount (EBUSY); not rmdir, rename",
        "Not in the way of umount, but of something else:",
        "  It is one.",
        "    blocks rmdir, rename (EBUSY); not umount",
        "Blocks none of rmdir, rename, umount:",
        "  It is \\x1b[1mlocked.",
        "Could not be read:",
        "  Some could not be read; root can.",
    ]


def test_with_an_attempt_only_those_gaps_are_told_that_may_matter(capsys: pytest.CaptureFixture[str]) -> None:
    found = Diagnosis("/x", Attempt.UNLINK, False, None, (), (GAP,))
    command._say(found)
    assert capsys.readouterr().out.splitlines() == ["unlink of /x would succeed now."]
    command._say_json(found)
    assert [gap["kind"] for gap in json.loads(capsys.readouterr().out)["unread"]] == ["processes"], "JSON has them all"


@pytest.mark.parametrize(
    ("attempt", "line"),
    [
        (None, "Nothing was found that keeps /x from being removed or renamed, but not all was read."),
        (Attempt.UMOUNT, "Nothing was found that makes umount of /x fail, but not all could be read."),
    ],
)
def test_what_is_not_certain_is_not_said_to_be(
    capsys: pytest.CaptureFixture[str], attempt: Attempt | None, line: str
) -> None:
    command._say(Diagnosis("/x", attempt, None, None, (), (GAP,)))
    assert capsys.readouterr().out.splitlines() == [line, "Could not be read:", f"  {GAP.text}"]
    assert command._STATUS == {True: 0, False: 1, None: 5}


def test_json_is_one_document_with_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "full", "--for", "rmdir")
    assert set(told) == {"version", "path", "attempt", "blocked", "errno", "causes", "unread"}
    assert (told["path"], told["attempt"], told["blocked"], told["errno"]) == ("full", "rmdir", True, "ENOTEMPTY")
    (cause,) = told["causes"]
    assert set(cause) == set(attrs.fields_dict(Cause))
    assert (cause["kind"], cause["blocks"], cause["errno"]) == ("not empty", ["rmdir"], "ENOTEMPTY")
    assert all(set(gap) == {"kind", "text", "may_block"} for gap in told["unread"])


def test_a_name_that_is_not_utf_8_is_carried(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"a\xff")
    os.mkdir(name)
    assert document(capsys, name)["path"] == {"bytes": "Yf8="}
    _, (first, *_), _ = said(capsys, name)
    assert first == "Nothing keeps a\\xff from being removed or renamed."


def test_a_symlink_is_itself(capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink("full", "link")
    status, (first, *_), _ = said(capsys, "link", "--for", "rmdir")
    assert (status, first) == (0, "rmdir of link would fail now: ENOTDIR, not a directory.")
    status, (first, *_), _ = said(capsys, "link", "--for", "unlink")
    assert (status, first) == (1, "unlink of link would succeed now.")
    os.symlink("nothing", "dangling")
    assert said(capsys, "dangling")[0] == 1


@pytest.mark.parametrize("words", [(), ("--json",), ("--for", "rmdir"), ("--for", "umount")])
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("none", "exclfs: none: no such file or directory\n"),
        ("none/below", "exclfs: none: no such file or directory\n"),
        ("file/below", "exclfs: file: not a directory\n"),
        ("", "exclfs: : no such file or directory\n"),
    ],
)
def test_a_path_that_is_not_there_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], path: str, words: tuple[str, ...], line: str
) -> None:
    assert said(capsys, path, *words) == (2, [], line)


def test_an_attempt_that_there_is_not_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "file", "--for", "mkdir")
    assert (status, out) == (2, [])
    assert '"rmdir", "unlink", "rename", "umount", "overlay-mount"' in err
    assert err.count("\n") == 1
