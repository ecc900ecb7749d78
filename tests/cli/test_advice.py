from __future__ import annotations

import errno
import os
from datetime import UTC, datetime

import pytest

from exclfs import options
from exclfs.cli import advice
from exclfs.cli.advice import advise
from exclfs.client import errors as client
from exclfs.holds import errors as holds
from exclfs.holds.flags import DEFAULT
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Unmount

HOLD = Hold(
    id="h7",
    inode=Inode(1, 2),
    path="/mnt/cache/\x1b[31m",
    flags=DEFAULT,
    holder=Holder("worker", Process(42, 1000, comm="python3", user="alice", container="docker:0123456789ab")),
    reason="being\u202eserved",
    since=datetime(2020, 11, 22, 13, 2, 15, tzinfo=UTC),
    ends=(Unmount(),),
)

EXAMPLES = [
    (holds.Held(HOLD), 3, ["worker", "pid 42", "alice", "docker:0123456789ab", "2020-11-22", "exclfs release h7"]),
    (advice.WaitedInVain(holds.Held(HOLD), "1h30m"), 3, ["waited for 1h30m in vain", "worker", "exclfs release h7"]),
    (advice.WaitedInVain(holds.Held(HOLD), "90"), 3, ["waited for 90s in vain"]),
    (holds.NotKept("the disk is full"), 4, ["the disk is full", "nothing was placed"]),
    (holds.NoSuchHold("h9"), 1, ["h9", "exclfs holds"]),
    (holds.Gone(), 2, ["removed"]),
    (holds.NotPermitted("this inode is not yours"), 5, ["this inode is not yours"]),
    (holds.UnknownFlag("X", ("A", "B")), 2, ["X", "A, B"]),
    (holds.BadHold("the reason is too long"), 2, ["the reason is too long"]),
    (holds.BadObject("it is on another mount"), 4, ["it is on another mount"]),
    (client.NotAMount("/srv"), 4, ["/srv", "exclfs mount"]),
    (client.NoServer("/mnt", "it has ended"), 4, ["/mnt", "it has ended", "exclfs umount /mnt"]),
    (client.WrongServer("/mnt", uid=7, owner=0), 4, ["uid 7", "uid 0"]),
    (client.Disconnected("/mnt", "the server closed it"), 4, ["/mnt", "have ended"]),
    (client.NoAnswer("/mnt", 30.0), 4, ["30 s", "exclfs status /mnt"]),
    (client.EventsLost(7), 4, ["7 events were lost", "start again"]),
    (client.BadAnswer("/mnt", "what"), 4, ["/mnt", "another version"]),
    (options.UnknownOption("x", "y"), 2, ["-o x", "did you mean y?"]),
    (options.UnknownOption("x", None), 2, ["-o x"]),
    (options.BadOption("threads=x", "takes a number"), 2, ["-o threads=x", "takes a number"]),
    (options.SourceUnusable("/s", "does not exist"), 6, ["SRC /s", "does not exist"]),
    (options.MountpointUnusable("/m", "does not exist"), 6, ["MNT /m", "does not exist"]),
    (options.Nested("/m/s", "/m", "/m/s"), 6, ["/m/s is inside /m"]),
    (options.AlreadyMounted("/m", "/s"), 6, ["/m", "/s", "exclfs umount /m"]),
    (options.NotAllowed("no /dev/fuse"), 5, ["no /dev/fuse"]),
    (options.MountFailed("no luck"), 6, ["no luck"]),
    (advice.Usage("PATH is missing", "why"), 2, ["PATH is missing", "exclfs why --help"]),
    (advice.Usage("what", ""), 2, ["`exclfs --help`"]),
    (advice.StillHeld("/m", 2), 3, ["/m", "2 holds", "--force"]),
    (advice.Busy("/m"), 3, ["/m is busy", "fuser -vm /m"]),
    (advice.UnmountFailed("/m", "no"), 4, ["/m", "no"]),
    (advice.SeveralMounts("h1", ("/a", "/b")), 2, ["h1", "/a, /b"]),
    (FileNotFoundError(2, "No such file or directory", "x"), 2, ["x: no such file"]),
    (NotADirectoryError(20, "Not a directory", "x/y"), 2, ["x/y: not a directory"]),
    (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 2, ["x: too many"]),
    (PermissionError(13, "Permission denied", b"x"), 5, ["x: permission denied"]),
    (OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "/m/x"), 4, ["/m/x", "exclfs umount"]),
    (OSError(errno.EIO, "Input/output error"), 4, ["input/output error"]),
]


@pytest.mark.parametrize(("error", "status", "said"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_every_error_has_its_line_and_exit_code(error: Exception, status: int, said: list[str]) -> None:
    told = advise(error)
    assert told.status == status
    for words in said:
        assert words in told.line
    assert told.line.isprintable()


def kinds(base: type[Exception]) -> set[type[Exception]]:
    return {kind for below in base.__subclasses__() for kind in {below, *kinds(below)}}


def test_no_error_of_ours_is_without_advice() -> None:
    ours = kinds(holds.HoldError) | kinds(client.ClientError) | kinds(options.MountError)
    assert ours
    assert ours <= {type(error) for error, _, _ in EXAMPLES}


def test_what_nobody_thought_of_says_where_and_is_not_taken_for_an_answer() -> None:
    try:
        raise RuntimeError("one\ntwo")
    except RuntimeError as error:
        told = advise(error)
    assert told.status == 70
    assert "RuntimeError: one two" in told.line
    assert "test_advice.py:" in told.line


def test_1_is_only_ever_an_answer() -> None:
    assert {type(error) for error, status, _ in EXAMPLES if status == 1} == {holds.NoSuchHold}


def test_explaining_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert advice.explain(holds.NotPermitted("not\nyours")) == 5
    assert capsys.readouterr() == ("", "exclfs: not yours\n")
