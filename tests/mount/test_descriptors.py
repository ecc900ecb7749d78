"""A server that may open few files walks a tree of many: no EMFILE, whatever the kernel remembers."""

from __future__ import annotations

import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import exclfs
from harness import Mounted, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root]

DIRECTORIES, FILES = 80, 60
FEW = 128
LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {FEW}))
from exclfs.mount import main
sys.exit(main())
"""


@pytest.fixture(scope="module", params=[True, False], ids=["passthrough", "nopassthrough"])
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    directory = tmp_path_factory.mktemp("limited")
    tree = directory / "tree"
    for number in range(DIRECTORIES):
        (tree / f"{number}/below").mkdir(parents=True)
        for file in range(FILES):
            (tree / f"{number}/below/{file}").write_text(f"{number} {file}")
    with start(directory, program=("-c", LIMITED), threads=2, passthrough=request.param) as mounted:
        yield mounted


@pytest.fixture
def without_handles(tmp_path: Path) -> Iterator[Mounted]:
    """On a filesystem whose files cannot be opened by handle."""
    filesystem = tmp_path / "filesystem"
    filesystem.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", filesystem], check=True)
    try:
        (filesystem / "tree").mkdir()
        with start(tmp_path, source=filesystem / "tree", program=("-c", LIMITED), threads=2) as mounted:
            yield mounted
    finally:
        subprocess.run(["umount", filesystem], check=True)


def descriptors(mounted: Mounted) -> int:
    return len(os.listdir(f"/proc/{mounted.process.pid}/fd"))


def walked(top: Path) -> set[str]:
    found = set()
    for root, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(root, name)
            found.add(f"{os.path.relpath(path, top)} {os.lstat(path).st_ino}")
    return found


def test_a_tree_of_thousands_is_walked_and_read(limited: Mounted) -> None:
    assert walked(limited.path) == walked(limited.backing)
    for number in range(DIRECTORIES):
        for file in range(0, FILES, 7):
            assert (limited.path / f"{number}/below/{file}").read_text() == f"{number} {file}"
    assert descriptors(limited) <= FEW


def test_every_directory_at_once_from_several_threads(limited: Mounted) -> None:
    def read(number: int) -> int:
        below = limited.path / f"{number}/below"
        return sum(len((below / name).read_text()) for name in os.listdir(below))

    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(read, [*range(DIRECTORIES)] * 2))
    assert total == 2 * sum(len(f"{number} {file}") for number in range(DIRECTORIES) for file in range(FILES))


def test_open_files_cost_no_descriptor_with_passthrough(limited: Mounted, request: pytest.FixtureRequest) -> None:
    if "nopassthrough" in request.node.name or not has_passthrough(limited):
        pytest.skip("needs passthrough")
    with ExitStack() as files:
        opened = [
            files.enter_context(open(limited.path / f"{number % DIRECTORIES}/below/{number % FILES}", "r+"))
            for number in range(3 * FEW)
        ]
        assert descriptors(limited) <= FEW
        assert all(file.read() for file in opened)


def has_passthrough(mounted: Mounted) -> bool:
    """Whether a file that is open through the mount costs the server no descriptor."""
    with open(mounted.path / "0/below/0") as _:
        return not any(
            os.readlink(f"/proc/{mounted.process.pid}/fd/{fd}").endswith("/0/below/0") and is_real(mounted, fd)
            for fd in os.listdir(f"/proc/{mounted.process.pid}/fd")
        )


def is_real(mounted: Mounted, fd: str) -> bool:
    with open(f"/proc/{mounted.process.pid}/fdinfo/{fd}") as information:
        flags = next(int(line.split()[1], 8) for line in information if line.startswith("flags:"))
    return not flags & os.O_PATH


def test_names_come_and_go_in_thousands(limited: Mounted) -> None:
    """Nothing is kept for a name that has gone."""
    (limited.path / "churn").mkdir()
    for number in range(3 * FEW):
        path = limited.path / f"churn/{number}"
        path.write_text("text")
        os.link(path, limited.path / "churn/link")
        os.unlink(path)
        os.rename(limited.path / "churn/link", path)
        if number % 2:
            path.unlink()
    assert len(os.listdir(limited.backing / "churn")) == 3 * FEW // 2
    assert descriptors(limited) <= FEW


def open_directories(path: Path, many: int, opened: ExitStack) -> None:
    for number in range(many):
        opened.callback(os.close, os.open(path / f"{number % DIRECTORIES}/below", os.O_RDONLY))


def test_a_server_that_has_no_descriptor_left_says_so_and_goes_on(
    limited: Mounted, request: pytest.FixtureRequest
) -> None:
    """Directories are open in the server: too many are EMFILE for who opens one more, and for nobody else."""
    limited.expect("failed")
    with ExitStack() as directories, pytest.raises(OSError, match="Too many open files"):
        open_directories(limited.path, 2 * FEW, directories)
    assert walked(limited.path / "3") == walked(limited.backing / "3")


def test_of_many_links_one_goes_where_nothing_is_opened_by_handle(without_handles: Mounted) -> None:
    """An inode whose known name has gone has others: nothing is kept for it, and it is found when one is looked up."""
    path, backing = without_handles.path, without_handles.backing
    for name in ("kept", "removed"):
        (backing / name).mkdir()
    for number in range(3 * FEW):
        (backing / f"kept/{number}").touch()
        os.link(backing / f"kept/{number}", backing / f"removed/{number}")
    for name in ("kept", "removed"):
        assert walked(path / name) == walked(backing / name)
    opened = [os.open(path / f"removed/{number}", os.O_RDONLY) for number in range(8)]
    try:
        for number in range(3 * FEW):
            os.unlink(path / f"removed/{number}")
        assert descriptors(without_handles) <= FEW
        assert [os.fstat(fd).st_nlink for fd in opened] == [1] * len(opened)
        assert walked(path) == walked(backing)
        assert exclfs.holds(path) == ()
    finally:
        for fd in opened:
            os.close(fd)


def test_files_without_names_that_are_too_many_take_nothing_from_others(limited: Mounted) -> None:
    """With passthrough any number can be open and removed; without, who opens one too many gets EMFILE, and only he."""
    passes_through = has_passthrough(limited)
    (limited.path / "nameless").mkdir()
    opened: list[int] = []
    refused = 0
    try:
        for number in range(3 * FEW):
            path = limited.path / f"nameless/{number}"
            opened.append(os.open(path, os.O_RDWR | os.O_CREAT))
            os.write(opened[-1], b"%d" % number)
            path.unlink()
    except OSError as error:
        refused = error.errno or 0
    try:
        assert refused == (0 if passes_through else errno.EMFILE)
        assert len(opened) >= FEW // 16
        assert descriptors(limited) <= FEW
        assert [os.fstat(fd).st_nlink for fd in opened] == [0] * len(opened)
        assert [int(os.pread(fd, 16, 0)) for fd in opened] == [*range(len(opened))]
        assert exclfs.holds(limited.path) == ()
        assert {os.stat(limited.path / f"3/below/{file}").st_size for file in range(FILES)} == {3, 4}
    finally:
        for fd in opened:
            os.close(fd)
