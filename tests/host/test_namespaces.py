"""Mount namespaces: which there are, who is in them, and what each shows."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from estate import open_directory
from exclfs.diagnosis.asking import why
from exclfs.host import namespaces, places
from exclfs.host.mounts import parse
from exclfs.host.view import Host
from mounting import bind, in_another_namespace, privately, process, tmpfs
from twins import ALICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.host.namespaces import Namespace


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that everybody can enter."""
    with open_directory() as path:
        yield path


def number_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def of(pid: int) -> Namespace:
    """The one namespace that has this process in it."""
    (found,) = [namespace for namespace in Host().namespaces if pid in namespace.pids]
    return found


def sources(namespace: Namespace) -> set[bytes]:
    return {mount.source for mount in namespace.mounts}


def test_our_own_comes_first_and_has_what_we_see() -> None:
    host = Host()
    assert host.namespaces[0].is_ours
    assert not any(namespace.is_ours for namespace in host.namespaces[1:])
    assert os.getpid() in host.namespaces[0].pids
    assert set(host.tree.by_id) <= {mount.id for mount in host.namespaces[0].mounts}


@pytest.mark.root
@privately
def test_processes_of_one_namespace_are_together(directory: Path) -> None:
    with in_another_namespace(lambda: tmpfs(directory / "thing", "theirs")) as one:
        namespace = of(one)
        assert namespace.number == number_of(one)
        assert namespace.pids == (one,)
        assert namespace.keepers == (one,)
        assert b"theirs" in sources(namespace)
        command = ["nsenter", "-t", str(one), "-m", "sh", "-c", "echo there; read -r _"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as two:
            assert two.stdout is not None
            assert two.stdout.readline() == b"there\n"
            assert of(one).pids == tuple(sorted((one, two.pid)))
            two.communicate(b"\n")


@pytest.mark.root
@privately
def test_the_process_that_shows_most_is_believed(directory: Path) -> None:
    """One whose root is a mount, in the same namespace, shows that alone."""
    jail = tmpfs(directory / "jail", "jail")
    with process(lambda: os.chroot(jail)) as pid:
        (shown,) = parse(Path(f"/proc/{pid}/mountinfo").read_bytes())
        assert shown.mountpoint == b"/"
        namespace = of(pid)
        assert os.getpid() in namespace.pids
        assert len(namespace.mounts) > 1
        assert namespace.tree.by_id[shown.id].mountpoint == os.fsencode(jail)


HIDDEN = """
import sys
from exclfs.host.view import Host
for each in Host().namespaces:
    print(each.number, each.is_ours, *(pid for pid in each.pids if str(pid) in sys.argv))
"""


@pytest.mark.root
@privately
def test_another_users_processes_are_told_apart_by_what_they_show(directory: Path) -> None:
    with in_another_namespace(lambda: None) as one, in_another_namespace(lambda: None) as two, process(list) as here:
        command = ["setpriv", f"--reuid={ALICE.uid}", f"--regid={ALICE.gid}", "--clear-groups"]
        command += [sys.executable, "-c", HIDDEN, *map(str, (one, two, here))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == f"{number_of(here)} True {here}"
        assert f"None False {one}" in lines
        assert f"None False {two}" in lines


@pytest.mark.root
@privately
def test_a_namespace_that_is_kept_by_one_that_is_kept(directory: Path) -> None:
    """Only the outer one has the bind mount of the inner one, and only a descriptor keeps that."""
    noted = directory / "number"

    def outer() -> None:
        own = tmpfs(directory / "own")
        (own / "inner").touch()
        # Only a younger namespace can be bound; which is younger the kernel tells by numbers that each CPU gives out.
        while not noted.exists():
            with in_another_namespace(lambda: None) as inner, suppress(OSError):
                bind(Path(f"/proc/{inner}/ns/mnt"), own / "inner")
                noted.write_text(str(number_of(inner)))

    with in_another_namespace(outer) as pid:
        outer_number, _ = number_of(pid), os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    inner_number = int(noted.read_text())
    found = {namespace.number: namespace for namespace in Host().namespaces}
    assert found[outer_number].descriptors == (os.getpid(),)
    assert found[outer_number].pids == ()
    assert found[inner_number].bound_at == (os.fsencode(directory / "own/inner"),)
    assert found[outer_number].mounts
    assert found[inner_number].mounts == ()
    (gap,) = [gap for gap in why(directory).unread if gap.kind == "namespaces"]
    assert f"mounted in mount namespace {inner_number} could not be read" in gap.text


def test_whoever_sees_every_process_says_so() -> None:
    """Where pid 2 is the kernel's kthreadd, which has no parent but 0, this is the initial pid namespace."""
    assert namespaces.sees_all_processes(Host()) == (Path("/proc/2/stat").exists() and kthreadd())
    assert not namespaces.hides_processes(Host())


def kthreadd() -> bool:
    fields = Path("/proc/2/stat").read_bytes().rpartition(b")")[2].split()
    return fields[1] == b"0"


# --- Places ----------------------------------------------------------------------------------------------------------

TREE = places.Tree(
    parse(
        b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        b"2 1 8:2 / /srv rw - ext4 /dev/sdb1 rw\n"
        b"3 2 8:1 /home/a /srv/a rw - ext4 /dev/sda1 rw\n"
        b"4 1 0:9 / /home/a/x rw - tmpfs one rw\n"
        b"5 4 0:10 / /home/a/x rw - tmpfs two rw\n"
        b"6 99 0:11 / /out/of/sight rw - tmpfs three rw\n"
    )
)


def test_the_way_to_a_path_crosses_what_is_mounted_on_it() -> None:
    for path, way in {
        b"/": [1],
        b"/srv": [1, 2],
        b"/srv/a/b": [1, 2, 3],
        b"/srv/ab": [1, 2],
        b"/home/a/x": [1, 4, 5],
        b"/home/a": [1],
        b"/out/of/sight": [1],
    }.items():
        assert [mount.id for mount in TREE.way(path)] == way, path


def test_one_place_has_many_names() -> None:
    assert TREE.place(b"/srv/a/y") == TREE.place(b"/home/a/y") == places.Place("8:1", b"/home/a/y")
    assert TREE.place(b"/srv/a") == places.Place("8:1", b"/home/a")
    assert TREE.place(b"/home/a/x/z") == places.Place("0:10", b"/z")
    assert places.Tree(()).place(b"/") is None


def test_what_is_mounted_over_a_place() -> None:
    assert [mount.id for mount in TREE.over(places.Place("8:1", b"/home/a/x"))] == [4]
    assert [mount.id for mount in TREE.over(places.Place("0:9", b"/"))] == [5]
    assert TREE.over(places.Place("8:2", b"/home/a/x")) == []
    assert TREE.covered(TREE.by_id[6]) is None
    assert TREE.covered(TREE.by_id[1]) is None


def test_a_place_contains_what_is_below_it() -> None:
    here = places.Place("8:1", b"/home")
    assert here.contains(here / b"a")
    assert places.Place("8:1", b"/").contains(here)
    assert not here.contains(here)
    assert not here.contains(places.Place("8:1", b"/homes"))
    assert not here.contains(places.Place("8:2", b"/home/a"))
