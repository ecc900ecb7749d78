"""renameat2(2) with every flag, between all kinds of files, and what is open or below while names move."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from twins import ALICE, CAROL, EXCHANGE, NOREPLACE, ROOT, WHITEOUT, Twins, User, rename2

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.mount, pytest.mark.root]


def full(name: str) -> None:
    os.mkdir(name)
    Path(name, "inside").write_text("inside")


KINDS: dict[str, Callable[[str], object]] = {
    "file": lambda name: Path(name).write_text(name),
    "empty": os.mkdir,
    "full": full,
    "symlink": lambda name: os.symlink("nowhere", name),
    "fifo": os.mkfifo,
    "none": lambda name: None,
}


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE, WHITEOUT, NOREPLACE | EXCHANGE, WHITEOUT | NOREPLACE, 8])
@pytest.mark.parametrize("user", [ROOT, ALICE], ids=lambda user: user.name)
def test_every_kind_onto_every_kind(twins: Twins, flags: int, user: User) -> None:
    def make() -> None:
        os.mkdir("to")
        os.chmod("to", 0o777)
        for one, make_one in KINDS.items():
            for two, make_two in KINDS.items():
                make_one(f"{one} to {two}")
                make_two(f"to/{one} to {two}")

    twins.setup(make)
    for one in KINDS:
        for two in KINDS:
            name = f"{one} to {two}"
            twins.both(lambda: rename2(name, f"to/{name}", flags), user)  # noqa: B023
    twins.must_be_equal()


def test_a_whiteout_is_the_device_0_0_and_the_requesters(twins: Twins) -> None:
    def use() -> tuple[int, int, int]:
        Path("file").write_text("text")
        rename2("file", "moved", WHITEOUT)
        status = os.stat("file")
        return stat.S_IFMT(status.st_mode), status.st_rdev, status.st_uid

    assert twins.succeed(use, CAROL) == (stat.S_IFCHR, 0, CAROL.uid)
    twins.must_be_equal()


def test_an_exchange_moves_everything_below(twins: Twins) -> None:
    def use() -> list[str]:
        os.makedirs("one/below")
        os.makedirs("two/other")
        Path("one/below/file").write_text("of one")
        rename2("one", "two", EXCHANGE)
        Path("two/below/new").write_text("new")
        rename2("two/below", "one/other", EXCHANGE)
        return sorted(str(path) for path in Path().rglob("*"))

    assert "one/other/file" in twins.succeed(use, ALICE)
    twins.must_be_equal()


def test_a_link_onto_another_link_of_the_same_file_stays(twins: Twins) -> None:
    def use() -> int:
        Path("one").write_text("text")
        os.link("one", "two")
        for flags in (0, EXCHANGE):
            rename2("one", "two", flags)
        return os.stat("one").st_nlink

    assert twins.succeed(use, ALICE) == 2
    assert twins.both(lambda: rename2("one", "two", NOREPLACE), ALICE) == "EEXIST"
    twins.must_be_equal()


def test_a_long_dance_of_renames(twins: Twins) -> None:
    """What editors, git and package managers do: write beside, rename over, link, and move directories."""

    def dance() -> list[str]:
        os.makedirs("tree/sub")
        for number in range(100):
            Path("tree/.new").write_text(f"{number}")
            os.rename("tree/.new", "tree/file")
            os.link("tree/file", f"tree/sub/{number}")
            os.rename("tree/sub", f"tree/sub{number}")
            os.rename(f"tree/sub{number}", "tree/sub")
            if number % 3:
                os.unlink(f"tree/sub/{number}")
            assert Path("tree/file").read_text() == f"{number}"
        return sorted(os.listdir("tree/sub"))

    assert len(twins.succeed(dance, ALICE)) == 34
    twins.must_be_equal()


def test_a_directory_that_moves_takes_its_parent_along(twins: Twins) -> None:
    def use() -> list[bool]:
        os.makedirs("a/b/c")
        os.mkdir("d")
        os.chdir("a/b/c")
        os.rename("../../b", "../../../d/b")
        return [os.path.samefile("../..", "../../../d"), os.path.exists("../../../a/b"), os.getcwd().endswith("d/b/c")]

    assert twins.succeed(use, ALICE) == [True, False, True]
    twins.must_be_equal()
