"""What the commands answer on a real mount: lists, answers by exit code, and one documented shape of JSON each."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING

import attrs
import pytest

import exclfs
import needs
from exclfs.holds.flags import Flags
from exclfs.wire.causes import Cause
from private_mounts import PrivateMounts, private_mounts
from program import (
    EXCLFS,
    complaint,
    document,
    ids,
    is_text,
    mounted_by_program,
    must_be_a_hold,
    must_be_a_process,
    run_options,
    started,
    wait_for_exit,
)
from program import exclfs as command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]

HOME = os.path.dirname(os.path.dirname(exclfs.__file__))
"""Where exclfs is imported from."""


# --- mount and umount ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/directory").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    return tmp_path / "tree"


def test_mount_is_done_once_it_serves(tree: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    with mounted_by_program(tree, mountpoint, "--log", tmp_path / "the log") as told:
        assert set(told) == {"version", "source", "mountpoint", "pid", "socket", "log"}
        assert (told["version"], told["source"], told["mountpoint"]) == (1, str(tree), str(mountpoint))
        assert told["log"] == f"file {tmp_path / 'the log'}"
        assert os.listdir(mountpoint) == ["directory"]
        assert os.getxattr(mountpoint, "user.exclfs.socket").decode() == told["socket"]
        # Nothing ties it to who has started it: not its directory, not its terminal, not its session.
        assert os.readlink(f"/proc/{told['pid']}/cwd") == "/"
        assert os.getsid(told["pid"]) == told["pid"]
        assert {os.readlink(f"/proc/{told['pid']}/fd/{fd}") for fd in range(3)} == {"/dev/null"}


def test_mount_in_the_foreground_serves_until_ctrl_c(tree: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    with started("mount", "-f", tree, mountpoint, *run_options(), "--log", "stderr") as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"{tree} is served at {mountpoint}; Ctrl-C unmounts it\n"
        with exclfs.hold(mountpoint / "directory", holder="us"), pytest.raises(OSError, match="busy"):
            (mountpoint / "directory").rmdir()
        assert document("status", mountpoint)["log"] == "stderr"
        server.send_signal(2)
        _, said = server.communicate(timeout=30)
    assert server.returncode == 0
    assert [line.split(" event=")[1].split()[0] for line in said.splitlines()] == ["locked", "refused", "unlocked"]
    assert os.listdir(mountpoint) == []


def test_mount_without_background_says_its_log_as_json(tree: Path, tmp_path: Path) -> None:
    with started("mount", "-f", tree, tmp_path / "mnt", *run_options(), "--log", "stderr", "--json") as server:
        assert server.stdout is not None
        assert '"version": 1' in server.stdout.readline()
        server.terminate()
        assert server.wait(30) == 0


def test_umount_refuses_while_something_is_held(tree: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    with mounted_by_program(tree, mountpoint):
        os.setxattr(mountpoint, "system.exclfs.hold", b"nobody that lives")
        with exclfs.hold(mountpoint / "directory", holder="us", reason="it is ours"):
            told = command("umount", mountpoint, status=3)
            listed, advice = told.stderr.splitlines()
            assert f"{mountpoint}/directory is held by us" in listed
            assert "1 hold" in advice
            assert "--force" in advice
            told_as_json = document("umount", mountpoint, status=3)
            assert told_as_json["mountpoint"] == str(mountpoint)
            assert told_as_json["unmounted"] is False
            assert len(ids(told_as_json["holds"])) == 1
            assert (mountpoint / "directory").is_dir()
        # Only living processes are in the way: what is to end at unmount ends.
        assert document("umount", mountpoint) == {"mountpoint": str(mountpoint), "unmounted": True, "holds": []}
    assert os.listdir(mountpoint) == []


@pytest.mark.parametrize(
    ("end", "in_the_way"),
    [
        (["--ttl", "1h"], False),
        (["--until-unmount"], False),
        (["--persistent"], False),
        (["--pid", str(os.getpid())], True),
        (["--pid", str(os.getpid()), "--ttl", "1h"], True),
    ],
)
def test_umount_waits_for_processes_only(tree: Path, tmp_path: Path, end: list[str], in_the_way: bool) -> None:
    mountpoint = tmp_path / "mnt"
    with mounted_by_program(tree, mountpoint, "--state", tmp_path / "state"):
        command("hold", mountpoint / "directory", *end)
        assert document("umount", mountpoint, status=3 if in_the_way else 0)["unmounted"] is not in_the_way


def test_mount_passes_its_own_options_on(tree: Path, tmp_path: Path) -> None:
    mountpoint, state = tmp_path / "mnt", tmp_path / "state, and more"
    with mounted_by_program(tree, mountpoint, "--mode", "warn", "--hold-open", "own", "--state", state):
        told = document("status", mountpoint)
        assert (told["mode"], told["hold_open"], told["state"]) == ("warn", "own", str(state))
        for_people = command("status", mountpoint).stdout
    assert f"state file          {state}\n" in for_people
    assert "open files          held, if opened by their owner or root\n" in for_people


def test_umount_by_force(tree: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    with mounted_by_program(tree, mountpoint), exclfs.hold(mountpoint / "directory"):
        assert command("umount", mountpoint, "--force").stderr == ""
        assert os.listdir(mountpoint) == []


def test_umount_names_the_mountpoint_to_who_is_inside(mounted: Mounted) -> None:
    assert str(mounted.root) in complaint(command("umount", mounted.path, status=2))


# --- what mount(8) does ----------------------------------------------------------------------------------------------


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[PrivateMounts]:
    """Where `exclfs` is installed in /usr/local/bin: mount(8) looks nowhere else, whatever PATH the caller has."""
    needs.programs("/sbin/mount.fuse")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/exclfs"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={HOME} exec {" ".join(EXCLFS)} "$@"\n')
    wrapper.chmod(0o755)
    with private_mounts() as space:
        space.run("mount", "--bind", tmp_path / "bin", "/usr/local/bin")
        yield space


@pytest.mark.parametrize("by", ["mount -t fuse.exclfs", "exclfs"])
def test_mount_8_and_its_way_to_call_us(namespace: PrivateMounts, tree: Path, tmp_path: Path, by: str) -> None:
    mountpoint = tmp_path / "mnt"
    options = ",".join(["noexec", "nodev", "decision_timeout=3", f"log={tmp_path / 'log'}", *run_options()[1:]])
    namespace.run(*by.split(), tree, mountpoint, "-o", options)
    (mount,) = namespace.exclfs_mounts()
    assert (mount.mountpoint, mount.source) == (os.fsencode(mountpoint), os.fsencode(tree))
    assert {"noexec", "nodev"} <= set(mount.options)
    assert "nosuid" not in mount.options
    refused = namespace.run(
        "exclfs", "hold", mountpoint / "directory", "--", "rmdir", mountpoint / "directory", check=False
    )
    assert "busy" in refused.stderr
    told = json.loads(namespace.run("exclfs", "status", mountpoint, "--json").stdout)
    assert (told["source"], told["mountpoint"], told["refusals"]) == (str(tree), str(mountpoint), 1)
    pidfd = os.pidfd_open(told["pid"])
    namespace.run("umount", mountpoint)
    wait_for_exit(pidfd)
    os.close(pidfd)
    assert namespace.exclfs_mounts() == []


def test_mount_8_passes_the_complaint_on(namespace: PrivateMounts, tree: Path, tmp_path: Path) -> None:
    done = namespace.run("mount", "-t", "fuse.exclfs", tree, tmp_path / "mnt", "-o", "allow_othr", check=False)
    assert done.returncode != 0
    assert done.stderr == (
        "exclfs: -o allow_othr: there is no such option; did you mean allow_other? (`exclfs mount --help` lists them)\n"
    )


# --- questions -------------------------------------------------------------------------------------------------------


def test_holds_of_a_path_of_a_mount_and_of_all(mounted: Mounted) -> None:
    with exclfs.connect(mounted.path) as client:
        mine = [client.hold(mounted.setup(f"held{number}"), holder=f"h{number % 2}")[0].id for number in range(3)]
        assert len(command("holds", mounted.path).stdout.splitlines()) == 0
        (of_path,) = document("holds", mounted.path / "held1")["mounts"]
        assert set(of_path) == {"mountpoint", "holds"}
        assert (of_path["mountpoint"], ids(of_path["holds"])) == (str(mounted.root), [mine[1]])
        (whole,) = document("holds", mounted.root)["mounts"]
        assert [one for one in ids(whole["holds"]) if one in mine] == mine
        # 4 says that a mount has no server; that may be one that somebody else is just taking away.
        everywhere = json.loads(command("holds", "--json", status=None).stdout)["mounts"]
        (here,) = (mount for mount in everywhere if mount["mountpoint"] == str(mounted.root))
        assert [one for one in ids(here["holds"]) if one in mine] == mine
        (of_one,) = document("holds", mounted.root, "--holder", "h0")["mounts"]
        assert ids(of_one["holds"]) == [mine[0], mine[2]]
        table = command("holds", mounted.root, "--holder", "h1").stdout.splitlines()
        assert table[0].split()[:3] == ["ID", "PATH", "HOLDER"]
        assert table[1].split()[:3] == [mine[1], str(mounted.path / "held1"), "h1"]


def test_a_hold_in_json_is_the_hold(mounted: Mounted) -> None:
    path = mounted.path / os.fsdecode(b"not \xff utf-8 \n")
    path.mkdir()
    with exclfs.hold(path, holder="häuschen", reason="a reason", claim=False) as hold:
        ((told,),) = (mount["holds"] for mount in document("holds", path)["mounts"])
        must_be_a_hold(told)
        assert list(told["path"]) == ["bytes"]
        assert (told["id"], told["flags"], told["reason"]) == (hold.id, ["NO_REMOVE"], "a reason")
        assert (told["dev"], told["inode"]) == (mounted.backing.stat().st_dev, os.stat(path).st_ino)
        assert told["holder"] | {"exe": None} == {
            "name": "häuschen",
            "pid": os.getpid(),
            "comm": hold.holder.process.comm,
            "exe": None,
            "uid": 0,
            "user": "root",
            "own_uid": None,
            "container": told["holder"]["container"],
        }
        assert told["holder"]["exe"] == os.readlink("/proc/self/exe")
        assert datetime.fromisoformat(told["since"]) == hold.since
        assert told["ends"] == [{"kind": "connection", "pid": None, "at": None}]


def test_inuse_answers_by_its_exit_code(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    assert command("inuse", path, status=1).stdout == f"{path} is not held\n"
    assert document("inuse", path, status=1) == {"path": str(path), "inuse": False, "holds": []}
    with exclfs.hold(path, holder="us") as hold:
        assert f"{path} is held by us (pid {os.getpid()}" in command("inuse", path).stdout
        told = document("inuse", path)
        assert (told["path"], told["inuse"], ids(told["holds"])) == (str(path), True, [hold.id])


def test_why_answers_by_its_exit_code_and_explains(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    assert command("why", path, status=1).stdout.startswith(f"Nothing keeps {path} from being removed or renamed.\n")
    told = document("why", path, status=1)
    assert set(told) == {"path", "attempt", "blocked", "errno", "causes", "unread"}
    assert (told["path"], told["attempt"], told["blocked"], told["errno"]) == (str(path), None, False, None)
    assert told["causes"] == []
    with exclfs.hold(path, holder="us", reason="it is ours") as hold:
        sentence, labels, *_ = command("why", path).stdout.splitlines()
        assert sentence.startswith(f'"{path}" is held by us (pid {os.getpid()}')
        assert "it is ours. It refuses unlink, rmdir and rename." in sentence
        assert labels == "  blocks rmdir, rename (EBUSY); not overlay-mount"
        told = document("why", path)
        (cause,) = told["causes"]
        assert set(cause) == set(attrs.fields_dict(Cause))
        assert (told["blocked"], cause["kind"], cause["errno"]) == (True, "hold", "EBUSY")
        assert (cause["blocks"], cause["allows"]) == (["rmdir", "rename"], ["overlay-mount"])
        assert (cause["where"], cause["namespace"]) == (None, None)
        assert must_be_a_hold(cause["hold"])["id"] == hold.id
        assert cause["text"] == sentence


def test_why_predicts_the_error_of_one_attempt(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with exclfs.hold(path, holder="us"):
        verdict, sentence, *_ = command("why", path, "--for", "rmdir").stdout.splitlines()
        assert verdict == f"rmdir of {path} would fail now: EBUSY, device or resource busy."
        assert sentence.startswith(f'"{path}" is held by us')
        told = document("why", path, "--for", "rmdir")
        assert (told["attempt"], told["blocked"], told["errno"]) == ("rmdir", True, "EBUSY")
        with pytest.raises(OSError, match="busy"):
            path.rmdir()
    assert command("why", path, "--for", "rmdir", status=1).stdout.startswith(f"rmdir of {path} would succeed now.\n")
    path.rmdir()
    for words in ((), ("--for", "rmdir"), ("--for", "umount"), ("--json",)):
        assert command("why", path, *words, status=2).stderr == f"exclfs: {path}: no such file or directory\n"


def test_why_tells_a_claim_from_a_guard(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with exclfs.hold(path, flags=Flags.EXCL_INUSE):
        told = document("why", path, status=1)
        assert told["blocked"] is False
        (cause,) = told["causes"]
        assert (cause["kind"], cause["blocks"], cause["errno"]) == ("hold", [], None)
        first, heading, sentence, *_ = command("why", path, status=1).stdout.splitlines()
        assert first == f"Nothing keeps {path} from being removed or renamed."
        assert heading == f"Blocks none of {', '.join(cause['allows'])}:"
        assert sentence == f"  {cause['text']}"
    path.rmdir()


def test_status_says_how_the_mount_does(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with exclfs.hold(path, holder="a holder of status"):
        with pytest.raises(OSError, match="busy"):
            path.rmdir()
        told = document("status", mounted.path)
        assert (told["pid"], told["uid"]) == (mounted.process.pid, 0)
        assert (told["source"], told["mountpoint"]) == (str(mounted.backing.parent), str(mounted.root))
        assert told["holders"]["a holder of status"] == 1
        assert told["log"] == f"file {mounted.log_file}"
        assert told["requests"]["remove"] >= 1
        assert told["verdicts_timed_out"] == 0
        assert (told["mode"], told["hold_open"], told["state"]) == ("enforce", "off", None)
        assert (told["waiting"], told["would_have_refused"]) == (0, 0)
        refusal = told["last_refusals"][-1]
        assert set(refusal) == {
            *("event", "at", "operation", "path", "dev", "inode", "requester", "holds", "enforced", "count", "until")
        }
        assert (refusal["operation"], refusal["path"], refusal["inode"]) == ("rmdir", str(path), path.stat().st_ino)
        must_be_a_process(refusal["requester"])
        assert is_text(refusal["path"])
        assert refusal["requester"]["pid"] == os.getpid()
        assert len(ids(refusal["holds"])) == 1
        for_people = command("status", mounted.root).stdout
    assert f"pid {mounted.process.pid}" in for_people
    assert str(mounted.log_file) in for_people
    assert "a holder of status" in for_people.splitlines()[-1]
