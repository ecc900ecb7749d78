"""Holds that outlive the command that placed them: `exclfs hold` with an end, `renew`, `release`, lists, patterns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

import exclfs
from exclfs.holds.lifetime import Exit, Time, Unmount
from program import complaint, document, ids, kinds, logged, mounted_by_program, started, wait_for_exit
from program import exclfs as command

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def holders(path: Path) -> list[str]:
    return [hold.holder.name for hold in exclfs.holds(path)]


# --- the ends --------------------------------------------------------------------------------------------------------


def test_with_an_end_it_prints_the_ids_and_does_not_stay(mounted: Mounted) -> None:
    paths = [mounted.setup(f"directory{number}") for number in range(2)]
    said = command("hold", *paths, "--until-unmount").stdout
    assert said.split() == [hold.id for path in paths for hold in exclfs.holds(path)]
    assert [hold.ends for path in paths for hold in exclfs.holds(path)] == [(Unmount(),), (Unmount(),)]
    table = command("holds", paths[0]).stdout.splitlines()
    assert " unmount " in table[1]


def test_with_a_process(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        pidfd = os.pidfd_open(sleeper.pid)
        command("hold", path, "--pid", sleeper.pid, "--no-claim")
        assert [hold.ends for hold in exclfs.holds(path)] == [(Exit(sleeper.pid),)]
        assert f" process {sleeper.pid} " in command("holds", path).stdout
        sleeper.kill()
        wait_for_exit(pidfd)
        os.close(pidfd)
        path.rmdir()


def test_a_process_that_is_not_there(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with subprocess.Popen(["true"]) as gone:
        pass
    assert f"--pid {gone.pid}: there is no such process" in complaint(
        command("hold", path, "--pid", gone.pid, status=2)
    )
    assert holders(path) == []


def test_with_a_time_that_is_put_off(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    name = command("hold", path, "--ttl", "1h", "--pid", os.getpid(), "--holder", "us").stdout.strip()
    untimed = command("hold", path, "--until-unmount", "--no-claim").stdout.strip()
    for what in (name, path):
        told = document("renew", what, "--ttl", "2h")
        assert ids(told["holds"]) == [name]
        assert sorted(kinds(told["holds"][0])) == ["process", "time"]
        (end,) = (end for end in exclfs.holds(path)[0].ends if isinstance(end, Time))
        assert end.at > datetime.now(UTC) + timedelta(hours=1.5)
    said = command("renew", name, "--ttl", "1d").stdout
    assert said.startswith(f"renewed {name} on {path}: ")
    assert "until " in said
    assert untimed in complaint(command("renew", untimed, "--ttl", "1h", status=2))
    command("release", name, untimed)
    assert "no hold of yours" in complaint(command("renew", path, "--ttl", "1h", status=1))
    assert f"there is no hold {name}" in complaint(command("renew", name, "--ttl", "1h", status=1))


def test_a_time_that_is_over(mounted: Mounted) -> None:
    mounted.expect("expired")
    path = mounted.setup("directory")
    name = command("hold", path, "--ttl", "0.1").stdout.strip()
    logged(mounted, "expired", f"holder_id={name}")
    path.rmdir()


def test_persistent_holds_need_a_place_and_are_there_after_a_restart(mounted: Mounted, tmp_path: Path) -> None:
    path = mounted.setup("directory")
    assert "--state" in complaint(command("hold", path, "--persistent", status=2))
    (tmp_path / "tree/directory").mkdir(parents=True)
    mountpoint, state = tmp_path / "mnt", tmp_path / "state"
    mountpoint.mkdir()
    with mounted_by_program(tmp_path / "tree", mountpoint, "--state", state):
        name = command("hold", mountpoint / "directory", "--persistent", "--reason", "kept").stdout.strip()
        command("umount", mountpoint)
    with mounted_by_program(tmp_path / "tree", mountpoint, "--state", state):
        with pytest.raises(OSError, match="busy"):
            (mountpoint / "directory").rmdir()
        (told,) = document("holds", mountpoint)["mounts"][0]["holds"]
        assert (told["id"], told["reason"], kinds(told)) == (name, "kept", ["state file"])
        command("release", mountpoint / "directory")
        (mountpoint / "directory").rmdir()


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["--wait", "--wait=1h"])
def test_it_queues_for_a_claim(mounted: Mounted, wait: str) -> None:
    path = mounted.setup("directory")
    with exclfs.connect(path) as client:
        (hold,) = client.hold(path, holder="them")
        with started("hold", wait, path, "--", "echo", "ran") as waiting:
            while client.status().waiting != 1:
                pass
            client.end([hold])
            assert waiting.communicate(timeout=30) == ("ran\n", "")
        assert waiting.returncode == 0


@pytest.mark.parametrize(
    ("more", "status"), [([], 3), (["-E", "75"], 75), (["--", "echo", "ran"], 125), (["-E", "75", "--", "true"], 75)]
)
def test_it_waits_only_so_long(mounted: Mounted, more: list[str], status: int) -> None:
    path = mounted.setup("directory")
    with exclfs.hold(path, holder="them", reason="it is theirs"):
        said = complaint(command("hold", path, "--wait=0.1s", *more, status=status))
        assert said.startswith(f"waited for 0.1s in vain: {path} is held by them (pid {os.getpid()}")
        assert holders(path) == ["them"]


def test_ctrl_c_ends_the_waiting_and_what_waits_for_it(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with exclfs.connect(path) as client:
        client.hold(path, holder="them")
        with started("hold", "--wait", path, "--", "echo", "ran") as waiting:
            while client.status().waiting != 1:
                pass
            waiting.send_signal(2)
            assert waiting.communicate(timeout=30) == ("", "")
        assert waiting.returncode == 130
        while client.status().waiting != 0:
            pass


# --- many ------------------------------------------------------------------------------------------------------------


def test_lists_and_patterns(mounted: Mounted) -> None:
    names = ["a/x.o", "a/b/y.o", "a/b/z.c", "other"]
    for name in names:
        mounted.setup(name)
    listed = "\n".join(str(mounted.path / name) for name in ("a/b/z.c", "other")) + "\n"
    done = command(
        *("hold", mounted.path / "other", "--glob", f"{mounted.path}/**/*.o", "--from", "-", "--ttl", "1h"),
        input=listed,
    )
    assert [holders(mounted.path / name) for name in names] == [["root"]] * 4
    assert len(done.stdout.split()) == 4
    said = command("release", "--from", "-", input=done.stdout).stdout
    assert said.count("released ") == 4
    assert [holders(mounted.path / name) for name in names] == [[]] * 4


def test_a_list_with_nuls_and_a_thousand_paths(mounted: Mounted, tmp_path: Path) -> None:
    for number in range(1000):
        (mounted.backing / f"file\n{number}").touch()
    listed = subprocess.run(["find", mounted.path, "-type", "f", "-print0"], capture_output=True, check=True).stdout
    (tmp_path / "list").write_bytes(listed)
    names = command("hold", "--from", tmp_path / "list", "-0", "--until-unmount").stdout
    assert len(set(names.split())) == 1000
    assert holders(mounted.path / "file\n7") == ["root"]
    assert command("release", "--from", "-", input=names).stdout.count("released") == 1000


def test_all_or_none_of_a_list(mounted: Mounted) -> None:
    paths = [mounted.setup(f"directory{number}") for number in range(3)]
    with exclfs.hold(paths[2], holder="them"):
        said = complaint(command("hold", "--glob", f"{mounted.path}/directory*", "--ttl", "1h", status=3))
        assert said.startswith(f"{paths[2]} is held by them")
    assert holders(paths[0]) == []


def test_two_links_of_one_inode_are_one_claim(mounted: Mounted) -> None:
    path = mounted.path / "file"
    path.touch()
    os.link(path, mounted.path / "link")
    assert "twice" in complaint(command("hold", "--glob", f"{mounted.path}/*", "--ttl", "1h", status=2))
    assert holders(path) == []
    command("hold", "--glob", f"{mounted.path}/*", "--until-unmount", "--no-claim")
    assert holders(path) == ["root", "root"]


# --- release ---------------------------------------------------------------------------------------------------------


def test_release_by_path_and_by_id(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    for by_path in (True, False):
        (told,) = json.loads(command("hold", path, "--until-unmount", "--json").stdout)["holds"]
        assert kinds(told) == ["unmount"]
        done = document("release", path if by_path else told["id"])
        assert ids(done["released"]) == [told["id"]]
        assert holders(path) == []


def test_releasing_what_is_not_there(mounted: Mounted) -> None:
    mounted.expect("unlock_bad")
    path = mounted.setup("directory")
    assert "there is no hold h999999" in complaint(command("release", "h999999", status=1))
    assert "no hold of yours" in complaint(command("release", path, status=1))
    assert "no such file" in complaint(command("release", path / "nothing", status=2))


def test_of_several_ids_all_or_none(mounted: Mounted) -> None:
    mounted.expect("unlock_bad")
    path = mounted.setup("directory")
    name = command("hold", path, "--until-unmount").stdout.strip()
    assert "there is no hold h999999" in complaint(command("release", name, "h999999", status=1))
    assert holders(path) == ["root"]


def test_somebody_elses_is_only_broken(mounted: Mounted) -> None:
    mounted.expect("unlock_bad", "broken")
    path = mounted.setup("directory")
    with exclfs.connect(path) as client:
        (hold,) = client.hold(path, holder="them")
        for what in (path, hold.id):
            said = complaint(command("release", what, status=5))
            assert "them's" in said
            assert "--break" in said
        assert holders(path) == ["them"]
        done = command("release", path, "--break", "--reason", "we need the place")
        assert f"released {hold.id} on {path}" in done.stdout
        assert holders(path) == []
        path.rmdir()
    line = logged(mounted, "broken", f"holder_id={hold.id}", f"holder_pid={os.getpid()}")
    assert "requester_uid=0" in line
    assert "we need the place" in line


def test_a_file_that_is_called_like_a_hold(mounted: Mounted, tmp_path: Path) -> None:
    path = mounted.setup("directory")
    name = command("hold", path, "--until-unmount").stdout.strip()
    (tmp_path / name).touch()
    assert f"released {name} on {path}" in command("release", name, cwd=tmp_path).stdout
    assert "is not in an exclfs mount" in complaint(command("release", f"./{name}", cwd=tmp_path, status=4))


def test_two_commands_of_one_user_may_end_what_no_connection_bounds(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    command("hold", path, "--ttl", "1h")
    inside = "import exclfs, sys; print(len(exclfs.release(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", inside, path], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
