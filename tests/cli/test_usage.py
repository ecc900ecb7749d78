from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from exclfs import cli, options
from exclfs._version import __version__
from exclfs.cli import commands, helper

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _fuse_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad usage is told on machines without FUSE, too."""
    monkeypatch.setattr(options, "FUSE_DEVICE", "/dev/null")


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dir" / "below").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


USAGE = [
    ("bogus", "unknown command"),
    ("mont", 'Did you mean "mount"'),
    ("--bogus", "--bogus"),
    ("mount", "SRC is missing"),
    ("mount dir", "MNT is missing"),
    ("mount dir beside more", "more is one too many"),
    ("mount dir beside -o ask_allways", "did you mean ask_always"),
    ("mount dir beside -o bogus=3", "there is no such option"),
    ("mount dir beside -o threads=0", "from 1 to 64"),
    ("mount dir beside -o remount", "unmount it and mount it again"),
    ("mount dir beside --bogus", "--bogus"),
    ("mount dir beside -o", "needs a value"),
    ("umount", "MNT is missing"),
    ("hold", "PATH is missing"),
    ("hold dir --flag BOGUS", "EXCL_INUSE, NO_REMOVE, KERNEL_FILE"),
    ("hold dir --flag NO_REMOVE --no-claim", "give one of them"),
    ("hold dir -E x", "-E"),
    ("hold dir -E 256", "from 0 to 255"),
    ("hold dir --holder", "--holder needs a value"),
    ("hold dir --ttl 5x", "--ttl: '5x' is not a time"),
    ("hold dir --ttl 0", "is not a time"),
    ("hold dir --wait=soon", "--wait: 'soon' is not a time"),
    ("hold dir --wait 5m", "5m: no such file; a time to wait is written --wait=5m"),
    ("hold dir --pid x", "--pid"),
    ("hold dir --from", "--from needs a value"),
    ("hold --from none", "none: no such file or directory"),
    ("hold --from /dev/null", "--from /dev/null: it names nothing"),
    ("hold --glob none*", "--glob none*: nothing matches"),
    ("renew", "--ttl is missing"),
    ("renew --ttl 5m", "ID|PATH is missing"),
    ("renew dir --ttl x", "--ttl: 'x' is not a time"),
    ("events", "MNT|PATH is missing"),
    ("mode", "MNT is missing"),
    ("mode dir loud", '"enforce", "warn", "off"'),
    ("mount dir beside --mode loud", "enforce, warn, off"),
    ("mount dir beside --hold-open some", "off, own, all"),
    ("mount dir beside -o max_ttl=x", "-o max_ttl=x"),
    ("hold none", "none: no such file or directory"),
    ("release", "is missing"),
    ("inuse", "PATH is missing"),
    ("inuse none", "none: no such file or directory"),
    ("inuse file/x", "file/x: not a directory"),
    ("why", "PATH is missing"),
    ("why dir more", "more is one too many"),
    ("status", "MNT is missing"),
    ("holds dir --holder", "--holder needs a value"),
    ("./dir beside more", "SRC and MNT are needed"),
    ("./dir beside -x", "option -x not recognized"),
    ("./dir beside -o", "option -o requires argument"),
]

FAILS = [
    ("mount none beside", 6, "SRC none: does not exist"),
    ("mount file beside", 6, "SRC file: is not a directory"),
    ("mount dir none", 6, "MNT none: does not exist"),
    ("mount dir file", 6, "MNT file: is not a directory"),
    ("mount dir dir/below", 6, "is inside"),
    ("mount dir/below dir", 6, "is inside"),
    ("./none beside -o rw,dev,suid,_netdev,nofail,x-systemd.requires=/", 6, "SRC ./none: does not exist"),
    ("./dir dir/below -n -s -v -o ro", 6, "is inside"),
    ("umount dir", 4, "dir is not in an exclfs mount"),
    ("hold dir", 4, "dir is not in an exclfs mount"),
    ("hold dir -- true", 125, "dir is not in an exclfs mount"),
    ("hold none -- true", 125, "none: no such file or directory"),
    ("hold dir --bogus -- true", 125, "--bogus"),
    ("hold dir --", 125, "the command after -- is missing"),
    ("hold dir --wait", 4, "dir is not in an exclfs mount"),
    ("hold dir --wait=5m", 4, "dir is not in an exclfs mount"),
    ("hold --wait dir", 4, "dir is not in an exclfs mount"),
    ("hold --glob d* --glob **/below", 4, "dir is not in an exclfs mount"),
    ("hold dir --pid 1 -- true", 125, "give one of them"),
    ("hold dir --ttl 5x -- true", 125, "is not a time"),
    ("renew h123456 --ttl 5m", 1, "there is no hold h123456"),
    ("renew dir --ttl 5m", 4, "dir is not in an exclfs mount"),
    ("events dir", 4, "dir is not in an exclfs mount"),
    ("events dir -f", 4, "dir is not in an exclfs mount"),
    ("mode dir", 4, "dir is not in an exclfs mount"),
    ("mode dir off", 4, "dir is not in an exclfs mount"),
    ("release dir", 4, "dir is not in an exclfs mount"),
    ("release h123456", 1, "there is no hold h123456"),
    ("holds dir", 4, "dir is not in an exclfs mount"),
    ("inuse dir", 4, "dir is not in an exclfs mount"),
    ("status dir", 4, "dir is not in an exclfs mount"),
]


@pytest.mark.parametrize(
    ("line", "status", "said"), [*((line, 2, said) for line, said in USAGE), *FAILS], ids=lambda value: str(value)
)
def test_one_clear_line_and_an_exit_code(capsys: pytest.CaptureFixture[str], line: str, status: int, said: str) -> None:
    told, output, errors = say(capsys, *line.split())
    assert told == status, errors
    assert output == ""
    assert errors.startswith("exclfs: ")
    assert said in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", ["", *commands.COMMANDS])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(capsys: pytest.CaptureFixture[str], command: str, flag: str) -> None:
    status, output, errors = say(capsys, *command.split(), flag)
    assert (status, errors) == (0, "")
    assert output.startswith(f"Usage: exclfs {command}".rstrip())
    assert "Exit codes: 0 ok" in output
    for option in ("--empty", "--no-json", "--no-force", "ARGS..."):
        assert option not in output


def test_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    _, output, _ = say(capsys)
    for name, (_, summary) in commands.COMMANDS.items():
        assert f"{name}: {summary}" in output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, "--version") == (0, f"{__version__}\n", "")


def test_holds_without_any_mount_in_reach_is_an_empty_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exclfs.host.mounts.exclfs_mounts", lambda: ())
    assert say(capsys, "holds") == (0, "", "")
    status, output, _ = say(capsys, "holds", "--json")
    assert (status, json.loads(output)) == (0, {"version": 1, "mounts": []})


def test_a_strange_name_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, errors = say(capsys, "inuse", os.fsdecode(b"\x1b[31m\n\xff"))
    assert errors == "exclfs: \\x1b[31m \\xff: no such file or directory\n" or "\x1b" not in errors
    assert errors.count("\n") == 1


# --- mount(8) ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("/srv /mnt", True),
        ("./x /mnt -o ro", True),
        ("dir /mnt", True),
        ("hodl /mnt", False),
        ("/srv", False),
        ("-o ro", False),
    ],
)
def test_what_mount_8_types_is_told_from_a_mistyped_command(line: str, meant: bool) -> None:
    assert helper.is_meant(line.split()) is meant


@pytest.mark.parametrize("line", ["dir beside -f -n -o ro,_netdev", "-s -v -N /x -t exclfs dir beside -f"])
def test_mount_exclfs_can_be_faked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["/sbin/mount.exclfs"])
    assert say(capsys, *line.split()) == (0, "", "")


def test_mount_exclfs_has_no_subcommands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/sbin/mount.exclfs"])
    status, _, errors = say(capsys, "holds")
    assert status == 2
    assert "SRC and MNT" in errors


# --- as a program -----------------------------------------------------------------------------------------------------


LIGHT = """
import sys
from exclfs.cli import main
from exclfs.host import mounts
mounts.exclfs_mounts = tuple  # what else this machine has mounted is not this test's business
status = main({arguments})
heavy = {{"trio", "pyfuse3", "structlog", "asyncio", "rich.table", "rich.console", "sqlite3"}} & set(sys.modules)
assert not heavy, heavy
assert status == {status}, status
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["holds", "--json"], 0),
        (["holds", "/"], 4),
        (["hold", "/"], 4),
        (["hold", "/", "--", "true"], 125),
        (["inuse", "/"], 4),
        (["why", "/"], 0),
        (["release", "/"], 4),
        (["status", "/"], 4),
        (["renew", "/", "--ttl", "5m"], 4),
        (["events", "/", "-f"], 4),
        (["mode", "/"], 4),
        (["umount", "/"], 4),
    ],
)
def test_clients_load_neither_trio_nor_pyfuse3_nor_tables(arguments: list[str], status: int) -> None:
    code = LIGHT.format(arguments=arguments, status=status)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "exclfs.cli", "--help"]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
