"""What is said of permissions: which directory, whose it is, and what to type next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from exclfs.diagnosis import backing
from exclfs.diagnosis.findings import Unread
from exclfs.diagnosis.subject import looked_up
from exclfs.host.places import Tree
from exclfs.host.view import Host
from kernel_situations import SITUATIONS
from predicted import CONTAINED, answer, as_process_of, mount, tried
from situations import new_directory, new_file
from twins import ALICE, LIBC, ROOT, User, check

if TYPE_CHECKING:
    from pathlib import Path

    from predicted import Answer

pytestmark = pytest.mark.root


def told(name: str, user: User, attempt: str) -> Answer:
    make, _ = SITUATIONS[name]
    return answer(make, user, attempt)


SENTENCES = [
    (
        "no_write",
        ALICE,
        "unlink",
        "no permission",
        ["/directory", "by uid 61001", "owned by root, group root, mode 0755"],
    ),
    ("an_acl_denies", ALICE, "unlink", "no permission", ["with an access control list (`getfacl "]),
    ("no_write", CONTAINED, "unlink", "no permission", ["no number in this user namespace", "root on the host can"]),
    ("directory_of_proc", ROOT, "rmdir", "no permission", ["refused even to CAP_DAC_OVERRIDE"]),
    ("sticky", ALICE, "unlink", "sticky", ["is sticky", "mode 1777", "owned by root", "you are uid 61001"]),
    ("sticky", CONTAINED, "unlink", "sticky", ["no number in this user namespace"]),
    ("no_search_above", ALICE, "rmdir", "no way", ['/closed" must not be searched', "mode 0700", "with sudo"]),
    ("no_search_behind_a_symlink", ALICE, "unlink", "no way", ['/closed" must not be searched']),
    ("immutable_file", ROOT, "unlink", "immutable", ["not even root", "`chattr -i /", "/thing`"]),
    ("append_only_file", ROOT, "unlink", "append-only", ["`chattr -a /", "/thing`"]),
    ("in_an_immutable_directory", ROOT, "unlink", "immutable directory", ["`chattr -i /", "/directory`"]),
    ("in_an_append_only_directory", ROOT, "rmdir", "append-only directory", ["`chattr -a /", "/directory`"]),
    ("on_a_read_only_mount", ROOT, "unlink", "read-only", ["`mount -o remount,bind,rw /", "/directory`"]),
    (
        "on_a_read_only_filesystem_and_not_empty",
        ROOT,
        "rmdir",
        "read-only",
        ["a filesystem that is read-only (tmpfs, at ", "`mount -o remount,rw /"],
    ),
    ("owner_not_mapped_on_the_mount", ROOT, "unlink", "unmapped owner", ['/bound", which maps ids']),
]


@pytest.mark.parametrize(("name", "user", "attempt", "kind", "words"), SENTENCES)
def test_the_sentence_names_what_and_whose_and_what_to_do(
    name: str, user: User, attempt: str, kind: str, words: list[str]
) -> None:
    found = told(name, user, attempt)
    (text,) = (text for each, text in zip(found.kinds, found.texts, strict=True) if each == kind)
    for word in words:
        assert word in text
    assert text.endswith(".")


def test_a_mount_of_somebody_who_lets_nobody_in_is_told(tmp_path: Path) -> None:
    """FUSE without allow_other, which nobody has to serve: the kernel turns others away by itself, root too."""
    directory = new_directory(tmp_path / "mnt")
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},user_id={ALICE.uid},group_id={ALICE.gid},rootmode=40000"
        mount("none", directory, "fuse", options=options)
        try:
            found = tried(str(directory / "thing"), "unlink")
        finally:
            check(LIBC.umount2(os.fsencode(directory), 2))
    finally:
        os.close(device)
    assert (found.errno, found.real, found.kinds) == ("EACCES", "EACCES", ["no way"])
    assert "is a FUSE mount, which lets in uid 61001 alone, not even root" in found.texts[0]


@pytest.mark.parametrize("fstype", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_what_a_server_refuses_by_itself_is_said_not_to_be_known(tmp_path: Path, fstype: str) -> None:
    """What cannot be mounted here: as if the filesystem of the path were one."""
    host = Host()
    with looked_up(str(tmp_path), host) as subject:
        assert list(backing.find(subject, host)) == []
        there = evolve(subject.mount, fstype=fstype, source=b"them:/export")
        host.tree = Tree(there if each.id == there.id else each for each in host.mounts)
        (gap,) = backing.find(subject, host)
        assert isinstance(gap, Unread)
        assert f'What the server of "them:/export" ({fstype}) refuses by itself is not known' in gap.text
        assert set(gap.may_block) == {"rmdir", "unlink", "rename"}


def test_no_way_blocks_whatever_may_be_tried(tmp_path: Path) -> None:
    """And is an answer, with exit code 0, not an error."""
    closed = new_directory(tmp_path / "closed", 0o700)
    new_file(closed / "thing")
    tmp_path.chmod(0o755)

    program = "import sys; from exclfs.cli import main; sys.exit(main(['why', sys.argv[1], '--json']))"
    command = ["setpriv", "--reuid=61001", "--regid=61001", "--clear-groups"]
    done = subprocess.run(
        [*command, sys.executable, "-c", program, "thing"], cwd=closed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["blocked"], document["errno"]) == (True, None)
    (cause,) = document["causes"]
    assert (cause["kind"], cause["errno"]) == ("no way", "EACCES")
    assert cause["blocks"] == ["rmdir", "unlink", "rename", "umount", "overlay-mount"]


def test_a_strange_name_is_one_line(tmp_path: Path) -> None:
    thing = new_directory(tmp_path / "a\n'b\x1b")
    new_file(thing / "inside")
    found = as_process_of(ROOT, lambda: tried(str(thing), "rmdir"))
    (text,) = found.texts
    assert "\n" not in text
    assert "\x1b" not in text
    assert found.is_right
