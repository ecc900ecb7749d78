"""Whatever a user types: one clear line and the exit code of its kind, nothing changed, and the mount keeps serving."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness import mounts_now
from program import complaint
from program import exclfs as command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program, pytest.mark.usefixtures("it_serves_afterwards")]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """Directories and files to be named wrongly; nothing is ever mounted there."""
    for name in ("tree/inside", "mnt", "covered/below"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-tree").symlink_to("tree")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "covered/below"], check=True)
    try:
        yield tmp_path
        assert not [mountpoint for mountpoint in mounts_now() if mountpoint.startswith(os.fsencode(tmp_path))]
    finally:
        subprocess.run(["umount", tmp_path / "covered/below"], check=True)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("{}/nothing {}/mnt", 6, "SRC {}/nothing: does not exist"),
        ("{}/file {}/mnt", 6, "SRC {}/file: is not a directory"),
        ("{}/file/below {}/mnt", 6, "SRC {}/file/below: is not a directory"),
        ("{}/loop {}/mnt", 6, "SRC {}/loop: too many levels of symbolic links"),
        ("{}/tree {}/nothing", 6, "MNT {}/nothing: does not exist"),
        ("{}/tree {}/file", 6, "MNT {}/file: is not a directory"),
        ("{}/tree {}/tree/inside", 6, "{}/tree/inside is inside {}/tree"),
        ("{}/tree/inside {}/tree", 6, "{}/tree/inside is inside {}/tree"),
        ("{}/to-tree/inside {}/tree", 6, "{}/tree/inside is inside {}/tree"),
        ("{}/tree {}/covered", 6, "{}/covered/below is mounted below it and would be hidden"),
        ("{}/tree {}/mnt -o nonsense", 2, "-o nonsense: there is no such option"),
        ("{}/tree {}/mnt -o ro,allow_othr", 2, "did you mean allow_other?"),
        ("{}/tree {}/mnt -o threads=many", 2, "-o threads=many: takes a number"),
        ("{}/tree {}/mnt -o decision_timeout=0", 2, "-o decision_timeout=0: takes a number of seconds"),
        ("{}/tree {}/mnt -o entry_timeout=1e999", 2, "-o entry_timeout=1e999: takes a number of seconds"),
        ("{}/tree {}/mnt --log {}/nothing/log", 6, "cannot log to {}/nothing/log"),
        ("{}/tree {}/mnt --log {}/mnt/log", 2, "-o log={}/mnt/log: would be inside the mount, and keep it busy"),
        ("{}/tree {}/mnt --log journal", 6, "cannot log to journal"),
        ("{}/tree {}/mnt --nonsense", 2, "--nonsense"),
        ("{}/tree", 2, "MNT is missing"),
        ("{}/tree {}/mnt {}/more", 2, "{}/more is one too many"),
    ],
)
def test_what_cannot_be_mounted(host: Path, words: str, status: int, said: str) -> None:
    if "journal" in words and os.path.exists("/run/systemd/journal/socket"):
        pytest.skip("there is a journal here")
    typed = words.replace("{}", str(host)).split()
    assert said.replace("{}", str(host)) in complaint(command("mount", *typed, status=status))


@pytest.mark.parametrize("words", ["hold {}", "holds {}", "inuse {}", "status {}", "release {}", "umount {}"])
def test_paths_that_are_in_no_mount(words: str) -> None:
    assert "/etc/passwd is not in an exclfs mount" in complaint(command(*words.format("/etc/passwd").split(), status=4))
    assert "/nothing/there: no such file" in complaint(command(*words.format("/nothing/there").split(), status=2))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--holder", ""], 2, "the holder's name is empty"),
        (["--holder", "x" * 256], 2, "the holder's name is 256 bytes long; at most 255 are allowed"),
        (["--holder", "a\nb"], 2, "the holder's name contains the control character U+000A"),
        (["--holder", b"\xff"], 2, "the holder's name is not UTF-8"),
        (["--reason", "x" * 1025], 2, "the reason is 1025 bytes long; at most 1024 are allowed"),
        (["--reason", "\x1b[2J"], 2, "the reason contains the control character U+001B"),
        (["--reason", b"\xff"], 2, "the reason is not UTF-8"),
        (["--flag", "nonsense"], 2, "unknown flag 'nonsense'; the flags are EXCL_INUSE, NO_REMOVE, KERNEL_FILE"),
        (["--flag", "NO_REMOVE", "--no-claim"], 2, "two answers to one question"),
        (["-E", "256"], 2, "an exit code is a number from 0 to 255"),
        (["-E", "x"], 2, "-E"),
        (["/etc/passwd"], 4, "is not of the mount"),
        (["{}/nothing"], 2, "{}/nothing: no such file or directory"),
    ],
)
def test_holds_that_are_none(mounted: Mounted, words: list[str | bytes], status: int, said: str) -> None:
    typed = [os.fsdecode(word).replace("{}", str(mounted.path)) for word in words]
    done = command("hold", mounted.path / "kept", *typed, status=status)
    assert said.replace("{}", str(mounted.path)) in complaint(done)
