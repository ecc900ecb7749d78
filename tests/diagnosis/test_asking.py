"""The frame: which causes are told, in which order, and what follows from them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import exclfs
from exclfs.diagnosis import asking
from exclfs.diagnosis.asking import why
from exclfs.diagnosis.attempts import ORDER, Attempt, Outcome, number, outcome, possible, rank
from exclfs.diagnosis.findings import Cause, Unread, caused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exclfs.diagnosis.findings import Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.view import Host


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    return tmp_path / "directory"


def only(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    """From now on these are found, whatever is asked about."""

    def find(_: Subject, __: Host) -> Iterator[Finding]:
        yield from findings

    monkeypatch.setattr(asking, "FINDERS", (find,))


NOT_EMPTY = caused("not empty", "Something is in it.", (Attempt.RMDIR,), "ENOTEMPTY")
MOUNTPOINT = caused("mountpoint", "It is one.", (Attempt.RMDIR, Attempt.RENAME, Attempt.UNLINK), "EBUSY")
READ_ONLY = caused("read-only", "It is.", (Attempt.RMDIR, Attempt.RENAME, Attempt.UNLINK), "EROFS")
DESCRIPTOR = caused("descriptor", "It is open.")
NOT_READ = Unread("processes", "Some.", (Attempt.RMDIR,))


def test_of_several_causes_the_first_in_the_kernels_order_gives_the_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, NOT_EMPTY, DESCRIPTOR, MOUNTPOINT, READ_ONLY)
    assert why(path, attempt="rmdir").errno == "EROFS"
    only(monkeypatch, NOT_EMPTY, DESCRIPTOR, MOUNTPOINT)
    assert why(path, attempt="rmdir").errno == "EBUSY"
    only(monkeypatch, NOT_EMPTY, DESCRIPTOR)
    assert why(path, attempt="rmdir").errno == "ENOTEMPTY"
    assert (why(path, attempt="rename").blocked, why(path, attempt="rename").errno) == (False, None)


def test_what_blocks_comes_first_and_in_the_kernels_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, DESCRIPTOR, NOT_EMPTY, READ_ONLY, MOUNTPOINT)
    assert [cause.kind for cause in why(path).causes] == ["read-only", "mountpoint", "not empty", "descriptor"]


def test_every_attempt_that_makes_sense_is_blocked_or_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, NOT_EMPTY, DESCRIPTOR)
    sensible = {attempt.value for attempt in possible(path.stat().st_mode, mountpoint=False)}
    for cause in why(path).causes:
        assert {*cause.blocks, *cause.allows} >= {"rmdir", "rename"}
        assert {*cause.blocks, *cause.allows} <= sensible
        assert not {*cause.blocks} & {*cause.allows}
    (first, second) = why(path, attempt="umount").causes
    assert "umount" in first.allows
    assert "umount" in second.allows


def test_what_was_not_read_makes_a_success_uncertain_and_no_failure(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, NOT_READ)
    assert (why(path, attempt="rmdir").blocked, why(path, attempt="rename").blocked) == (None, False)
    only(monkeypatch, NOT_READ, NOT_EMPTY)
    assert (why(path, attempt="rmdir").blocked, why(path, attempt="rmdir").errno) == (True, "ENOTEMPTY")
    only(monkeypatch)
    assert (why(path).blocked, why(path).causes, why(path).unread) == (False, (), ())


def test_a_cause_of_what_nobody_would_try_is_told_only_if_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, caused("is a directory", "It is.", (Attempt.UNLINK,), "EISDIR"))
    assert why(path).causes == ()
    assert [cause.blocks for cause in why(path, attempt="unlink").causes] == [("unlink",)]


def test_an_unknown_kind_comes_last_and_predicts_nothing() -> None:
    causes = [Cause("unheard of", "It is.", ("rmdir",), (), (), errno="EIO"), NOT_EMPTY]
    assert rank(causes[0]) == len(ORDER)
    assert outcome(Attempt.RMDIR, causes, ()) == Outcome(blocked=True, errno="ENOTEMPTY")


def test_every_kind_has_one_place_in_the_order() -> None:
    assert len(set(ORDER)) == len(ORDER)
    assert number("EBUSY") == 16


@pytest.mark.parametrize("what", ["none", "none/below", "file/below", "x" * 300])
def test_a_path_that_is_not_there_is_an_error(path: Path, what: str) -> None:
    (path / "file").touch()
    for attempt in (None, "rmdir", "umount"):
        with pytest.raises(OSError, match=r"No such file|Not a directory|name too long"):
            why(path / what, attempt=attempt)


def test_an_attempt_that_there_is_not_is_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match="mkdir"):
        exclfs.why(path, attempt="mkdir")


def test_a_finder_that_may_not_read_something_is_not_taken_for_a_way_that_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: Subject, __: Host) -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr(asking, "FINDERS", (find,))
    with pytest.raises(PermissionError):
        why(path)


def test_nothing_is_left_open(path: Path) -> None:
    why(path)
    before = os.listdir("/proc/self/fd")
    for attempt in (None, *Attempt):
        why(path, attempt=attempt)
        why("/", attempt=attempt)
        why("/proc/sys", attempt=attempt)
    assert os.listdir("/proc/self/fd") == before
