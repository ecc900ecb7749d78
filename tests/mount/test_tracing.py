"""The log of a real mount: one line for each refusal, with both sides of it, which no name can forge."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from test_refusals import EXCHANGE, WHITEOUT, rename2

import exclfs
from harness import Mounted
from program import document, logged, mounted_by_program, run_options, started
from program import exclfs as command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]

PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"\\=]*)(?: |$)')


def fields(line: str) -> dict[str, str]:
    """The pairs of a line, all of it, with what is quoted unquoted."""
    pairs = {}
    at = 0
    while at < len(line):
        found = PAIR.match(line, at)
        assert found, f"not a pair at {at}: {line}"
        assert found[1] not in pairs, f"{found[1]} twice: {line}"
        # A byte that is not UTF-8 stands there as \xff, as in Python's bytes.
        pairs[found[1]] = ast.literal_eval(found[2]) if found[2].startswith('"') else found[2]
        at = found.end()
    return pairs


def refusals(mounted: Mounted, inode: int) -> list[dict[str, str]]:
    """The lines of refusals of one inode. The log is a moment behind: what is asked for waits for all there were."""
    with exclfs.connect(mounted.root) as client:
        wanted = client.status().refusals
    while sum(int(line["count"]) for line in every_refusal(mounted)) < wanted:
        time.sleep(0.01)
    return [line for line in every_refusal(mounted) if line["inode"] == str(inode)]


def every_refusal(mounted: Mounted) -> list[dict[str, str]]:
    """The lines of refusals so far; a line that is being written just now is none yet."""
    written, _, _ = mounted.log().rpartition("\n")
    return [fields(line) for line in written.splitlines() if " event=refused " in line]


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="busy"):
        call()


def test_a_line_names_both_sides(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    inode = path.stat().st_ino
    with exclfs.hold(path, holder="us", reason="it is ours") as hold:
        done = subprocess.run(["rmdir", path], capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
        assert "Device or resource busy" in done.stderr
        began = datetime.now(UTC)
    (line,) = refusals(mounted, inode)
    assert list(line)[:3] == ["at", "level", "event"]
    assert line["until"] == line["at"]
    assert hold.since <= datetime.fromisoformat(line.pop("until")) <= began
    assert int(line.pop("requester_pid")) > 0
    del line["at"]
    assert {key: value for key, value in line.items() if not key.endswith("_container")} == {
        "level": "warning",
        "event": "refused",
        "op": "rmdir",
        "path": str(path),
        "inode": str(inode),
        "dev": str(mounted.backing.stat().st_dev),
        "enforced": "yes",
        "count": "1",
        "requester_comm": "rmdir",
        "requester_exe": os.path.realpath(str(shutil.which("rmdir"))),
        "requester_uid": "0",
        "requester_user": "root",
        "holders": "1",
        "holder": "us",
        "holder_pid": str(os.getpid()),
        "holder_comm": str(hold.holder.process.comm),
        "holder_exe": os.path.realpath(sys.executable),
        "holder_uid": "0",
        "holder_user": "root",
        "holder_reason": "it is ours",
        "holder_since": hold.since.isoformat().replace("+00:00", "Z"),
        "holder_id": hold.id,
        "holder_ends": "connection",
    }


def test_every_operation_has_its_name(mounted: Mounted) -> None:
    mounted.expect("refused")
    path, other = mounted.path / "held", mounted.path / "other"
    path.write_text("")
    other.write_text("")
    with exclfs.hold(path):
        refused(path.unlink)
        refused(lambda: path.rename(mounted.path / "new"))
        refused(lambda: other.rename(path))
        refused(lambda: rename2(other, path, EXCHANGE))
        refused(lambda: rename2(path, other, EXCHANGE))
        refused(lambda: rename2(path, mounted.path / "new", WHITEOUT))
    lines = refusals(mounted, path.stat().st_ino)
    assert [line["op"] for line in lines] == ["unlink", "rename", "replace", "exchange", "whiteout"]
    assert [line["count"] for line in lines] == ["1", "1", "1", "2", "1"]
    assert {line["path"] for line in lines} == {str(path)}
    assert {line["requester_pid"] for line in lines} == {str(os.getpid())}


def test_both_ends_of_a_rename_that_are_held_have_a_line(mounted: Mounted) -> None:
    mounted.expect("refused")
    first, second = mounted.path / "first", mounted.path / "second"
    first.write_text("")
    second.write_text("")
    with exclfs.hold(first), exclfs.hold(second):
        refused(lambda: first.rename(second))
    assert [line["op"] for line in refusals(mounted, first.stat().st_ino)] == ["rename"]
    assert [line["op"] for line in refusals(mounted, second.stat().st_ino)] == ["replace"]


def test_by_another_link_the_path_is_the_one_that_was_to_go(mounted: Mounted) -> None:
    mounted.expect("refused")
    first, second = mounted.path / "first", mounted.path / "second"
    first.write_text("")
    second.hardlink_to(first)
    with exclfs.hold(first) as hold:
        refused(second.unlink)
    (line,) = refusals(mounted, first.stat().st_ino)
    assert line["path"] == str(second)
    assert hold.path == str(first)


def test_two_holders_are_both_named(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with (
        exclfs.hold(path, holder="first", reason="one"),
        started("hold", path, "--no-claim", "--holder", "second") as it,
    ):
        assert it.stdout is not None
        it.stdout.readline()
        refused(path.rmdir)
        it.terminate()
    (line,) = refusals(mounted, path.stat().st_ino)
    assert (line["holders"], line["holder"], line["holder2"]) == ("2", "first", "second")
    assert (line["holder_pid"], line["holder2_pid"]) == (str(os.getpid()), str(it.pid))
    assert (line["holder_reason"], line["holder2_reason"]) == ("one", "")
    assert line["holder_since"] < line["holder2_since"]


def test_a_thread_is_told_as_its_process(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    script = """
import ctypes, os, sys, threading
def remove():
    ctypes.CDLL(None).prctl(15, b"a thread")
    try: os.rmdir(sys.argv[1])
    except OSError as error: print(error.errno, threading.get_native_id() != os.getpid())
ctypes.CDLL(None).prctl(15, b"a process")
thread = threading.Thread(target=remove)
thread.start()
thread.join()
"""
    with exclfs.hold(path):
        remover = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True)
        assert remover.communicate() == ("16 True\n", None)
    (line,) = refusals(mounted, path.stat().st_ino)
    assert (line["requester_pid"], line["requester_comm"]) == (str(remover.pid), "a process")


NAMES = [
    b"a\nat=now event=forged level=error op=rmdir",
    b'a" event="forged',
    b"a b=c\tevent=forged",
    b"\\",
    b'\\"',
    b"\xff\xfe",
    b"\x1b[2J\x1b]0;title\x07",
    "\u202eevil\u2028event=forged".encode(),
    b"\xed\xa0\x80",
    b"x" * 255,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_no_name_forges_a_line(mounted: Mounted, name: bytes) -> None:
    mounted.expect("refused")
    path = mounted.path / os.fsdecode(name)
    path.mkdir()
    script = "import ctypes, os, sys; ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[2])); os.rmdir(sys.argv[1])"
    with exclfs.hold(path, holder='a" event="forged', reason="\\ event=forged"):
        subprocess.run([sys.executable, "-c", script, path, name], capture_output=True, check=False)
    line = refusals(mounted, path.stat().st_ino)[-1]  # others before may have had this number
    assert line["event"] == "refused"
    assert (line["holder"], line["holder_reason"]) == ('a" event="forged', "\\ event=forged")
    told = line["path"].encode("latin-1", errors="surrogateescape") if _is_bytes(name) else line["path"].encode()
    assert told == os.fsencode(path)
    assert all(character.isprintable() for character in mounted.log_lines("refused")[-1])
    path.rmdir()


def _is_bytes(name: bytes) -> bool:
    """Whether it is not UTF-8, so that its escapes are those of bytes."""
    with suppress(UnicodeDecodeError):
        name.decode()
        return False
    return True


def test_a_thousand_tries_of_one_culler_are_one_line(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    script = """
import os, sys
for _ in range(1000):
    try: os.rmdir(sys.argv[1])
    except OSError as error: assert error.errno == 16, error
"""
    with exclfs.hold(path):
        before = datetime.now(UTC)
        culler = subprocess.Popen([sys.executable, "-c", script, path])
        assert culler.wait() == 0
        lines = refusals(mounted, path.stat().st_ino)
        (line,) = (line for line in lines if line["path"] == str(path))  # others before may have had this number
        (told,) = (refused for refused in exclfs_refusals(path) if refused["requester"]["pid"] == culler.pid)
    assert (line["count"], line["requester_pid"], line["op"]) == ("1000", str(culler.pid), "rmdir")
    assert before <= datetime.fromisoformat(line["at"]) < datetime.fromisoformat(line["until"]) <= datetime.now(UTC)
    assert (told["count"], told["at"], told["until"]) == (1000, line["at"], line["until"])
    assert "inodes" not in line


def exclfs_refusals(path: Path) -> list[dict[str, Any]]:
    """As the xattr tells them."""
    told: list[dict[str, Any]] = json.loads(os.getxattr(path, "user.exclfs.refusals"))["refusals"]
    return told


def test_find_that_meets_two_hundred_holds_is_some_lines(mounted: Mounted) -> None:
    """A process of its own for each try, and an inode of its own: all of one program."""
    mounted.expect("refused")
    tree = mounted.setup("tree")
    paths = [tree / str(number) for number in range(200)]
    for path in paths:
        path.write_text("")
    known = len(every_refusal(mounted))
    with exclfs.connect(tree) as client:
        client.hold(paths)
        done = subprocess.run(["find", tree, "-type", "f", "-exec", "rm", "-f", "{}", ";"], capture_output=True)
        assert done.stderr.count(b"busy") == 200
        refusals(mounted, 0)  # waits until all are counted
        lines = [line for line in every_refusal(mounted)[known:] if line["requester_comm"] == "rm"]
        assert sum(int(line["count"]) for line in lines) == 200
        # In ten seconds no more than that have a line of their own; where this machine is slow it takes longer.
        assert len(lines) < 100
        widest = max(lines, key=lambda line: int(line["count"]))
        assert int(widest["inodes"]) == int(widest["requesters"]) == int(widest["count"]) > 20
        assert len(list(tree.iterdir())) == 200


def test_other_events_have_their_lines(mounted: Mounted) -> None:
    mounted.expect("unlock_bad", "broken")
    path = mounted.setup("directory")
    with exclfs.connect(path) as client, exclfs.connect(path) as second:
        (hold,) = client.hold(path, holder="us")
        with pytest.raises(exclfs.Held):
            second.hold(path, holder="them")
        with pytest.raises(exclfs.NoSuchHold):
            client.release("h999999")
        client.release(hold)
    logged(mounted, "unlocked", f"holder_id={hold.id}")
    ours = [line for line in map(fields, mounted.log().splitlines()) if line.get("path") == str(path)]
    assert [line["event"] for line in ours] == ["locked", "lock_failed", "unlocked"]
    assert ours[0]["flags"] == "EXCL_INUSE,NO_REMOVE"
    assert ours[1]["holder"] == "us"
    assert fields(logged(mounted, "unlock_bad"))["id"] == "h999999"


# --- where -----------------------------------------------------------------------------------------------------------


def test_a_file_and_status_says_where(tmp_path: Path) -> None:
    (tmp_path / "tree/directory").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    log = tmp_path / "a log, with a comma"
    with mounted_by_program(tmp_path / "tree", tmp_path / "mnt", "--log", log):
        assert document("status", tmp_path / "mnt")["log"] == f"file {log}"
        command("hold", tmp_path / "mnt/directory", "--", "rmdir", tmp_path / "mnt/directory", status=1)
        assert oct(log.stat().st_mode & 0o777) == "0o640"
    assert [fields(line)["event"] for line in log.read_text().splitlines()] == ["locked", "refused", "reaped"]


def test_as_json_and_status_says_so(tmp_path: Path) -> None:
    directory = tmp_path / "mnt" / os.fsdecode(b"directory \xff")
    (tmp_path / "tree" / directory.name).mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    log = tmp_path / "log"
    with mounted_by_program(tmp_path / "tree", tmp_path / "mnt", "--log", log, "--log-format", "json") as told:
        assert told["log"] == document("status", tmp_path / "mnt")["log"] == f"file {log}, as JSON"
        command("hold", directory, "--", "rmdir", directory, status=1)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["locked", "refused", "reaped"]
    assert (lines[1]["enforced"], lines[1]["count"], lines[1]["requester_uid"]) == (True, 1, 0)
    assert base64.b64decode(lines[1]["path"]["bytes"]) == os.fsencode(directory)
    assert lines[0]["flags"] == ["EXCL_INUSE", "NO_REMOVE"]


def test_a_relative_file_is_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tree", "mnt", "logs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    with mounted_by_program(tmp_path / "tree", tmp_path / "mnt", "--log", "logs/log") as told:
        assert told["log"] == f"file {tmp_path}/logs/log"
        command("hold", "mnt", "--", "true")
    assert "event=locked" in (tmp_path / "logs/log").read_text()


def test_in_the_foreground_it_is_stderr_where_there_is_nothing_better(tmp_path: Path) -> None:
    if os.path.exists("/run/systemd/journal/socket") or os.path.exists("/dev/log"):
        pytest.skip("there is a journal or syslog here, which is better")
    (tmp_path / "tree/directory").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    with started("mount", "-f", tmp_path / "tree", tmp_path / "mnt", *run_options()) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert document("status", tmp_path / "mnt")["log"] == "stderr"
        command("hold", tmp_path / "mnt/directory", "--", "rmdir", tmp_path / "mnt/directory", status=1)
        server.terminate()
        _, said = server.communicate(timeout=30)
    assert server.returncode == 0
    assert [fields(line)["event"] for line in said.splitlines()] == ["locked", "refused", "reaped"]
