"""cachefiles simulated: each answer is the one that fs/cachefiles gives, and any other program meets its marks."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import exclfs
from exclfs.testing.cachefiles import Cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.program]


@pytest.fixture
def root(mounted: Mounted) -> Path:
    mounted.expect("refused")
    return mounted.setup("fscache")


@pytest.fixture
def cache(root: Path) -> Iterator[Cache]:
    with Cache(root) as cache:
        yield cache


def errno_of(work: Callable[[], object]) -> str:
    with pytest.raises(OSError, match=r".") as raised:
        work()
    return errno.errorcode[raised.value.errno or 0]


def made(cache: Cache, key: str, data: bytes = b"data") -> Path:
    """An object that nobody uses."""
    with cache.look_up("volume", key) as used:
        os.write(used.fileno(), data)
    return used.path


def cull(cache: Cache, path: Path) -> None:
    cache.cull(path.parent, path.name)


def inuse(cache: Cache, path: Path) -> bool:
    return cache.inuse(path.parent, path.name)


def test_a_new_object_has_a_name_when_it_is_closed(cache: Cache) -> None:
    with cache.look_up("volume", "4f") as used:
        assert used.is_new
        assert not used.path.exists()
        os.write(used.fileno(), b"data")
    assert used.path.read_bytes() == b"data"
    assert not list((cache.root / "tmp").iterdir())
    assert used.path.parent == cache.directory("volume", "4f")


def test_what_is_in_use_is_not_culled_and_then_it_is(cache: Cache) -> None:
    path = made(cache, "4f")
    with cache.look_up("volume", "4f") as used:
        assert not used.is_new
        assert inuse(cache, path)
        assert errno_of(lambda: cull(cache, path)) == "EBUSY"
        assert path.exists()
    assert cache.files_released == 2
    assert not inuse(cache, path)
    cull(cache, path)
    assert not path.exists()


def test_a_new_object_is_in_use_from_the_moment_that_it_has_a_name(cache: Cache) -> None:
    with cache.look_up("volume", "4f") as used:
        used.commit()
        assert errno_of(lambda: cull(cache, used.path)) == "EBUSY"


def test_an_object_is_marked_once(cache: Cache) -> None:
    made(cache, "4f")
    with cache.look_up("volume", "4f"), pytest.raises(OSError, match="in use, by cachefiles") as raised:
        cache.look_up("volume", "4f")
    assert raised.value.errno == errno.EBUSY
    assert isinstance(raised.value.__cause__, exclfs.Held)
    assert raised.value.__cause__.hold.holder.name == "cachefiles"


def test_a_cache_is_bound_once(cache: Cache) -> None:
    assert errno_of(lambda: Cache(cache.root)) == "EBUSY"


def test_whoever_has_the_name_goes_when_an_object_is_committed(cache: Cache) -> None:
    with cache.look_up("volume", "4f") as first, cache.look_up("volume", "4f") as second:
        os.write(first.fileno(), b"first")
        os.write(second.fileno(), b"second")
        first.commit()
        second.commit()
        assert first.path.read_bytes() == b"second"


@pytest.mark.parametrize(("name", "expected"), [("a/b", "EINVAL"), ("gone", "ENOENT"), ("", "EIO"), ("..", "EIO")])
def test_names_that_cannot_be_culled(cache: Cache, name: str, expected: str) -> None:
    made(cache, "4f")
    fan = cache.directory("volume", "4f")
    assert errno_of(lambda: cache.cull(fan, name)) == expected
    assert errno_of(lambda: cache.inuse(fan, name)) == expected


def test_later_kernels_say_estale_of_what_is_gone(root: Path) -> None:
    with Cache(root, gone=errno.ESTALE) as cache:
        assert errno_of(lambda: cache.cull(cache.store, "gone")) == "ESTALE"


def test_what_is_no_directory_has_nothing_to_cull(cache: Cache) -> None:
    assert errno_of(lambda: cache.cull(made(cache, "4f"), "x")) == "ENOTDIR"


def test_a_directory_is_buried_and_then_dismantled(cache: Cache) -> None:
    directory = cache.store / "Iold"
    (directory / "@00").mkdir(parents=True)
    (directory / "@00" / "Dx").write_bytes(b"")
    cull(cache, directory)
    assert not directory.exists()
    (grave,) = cache.graveyard.iterdir()
    assert len(grave.name) == 16
    assert int(grave.name, 16)
    assert (grave / "@00" / "Dx").exists()
    assert cache.dismantle() == ()
    assert not list(cache.graveyard.iterdir())


def test_something_weird_under_the_name_of_an_object_is_buried(cache: Cache) -> None:
    fan = cache.directory("volume", "4f")
    fan.mkdir(parents=True)
    (fan / "D4f").mkdir()
    assert made(cache, "4f").read_bytes() == b"data"
    assert len(list(cache.graveyard.iterdir())) == 1


def test_directories_of_a_cache_are_in_use_and_cannot_be_removed(cache: Cache) -> None:
    fan = made(cache, "4f").parent
    for directory in (fan, fan.parent, cache.store, cache.graveyard):
        assert inuse(cache, directory)
    assert errno_of(lambda: os.rmdir(cache.graveyard)) == "EBUSY"
    removed = subprocess.run(["rmdir", cache.graveyard], capture_output=True, text=True, check=False)
    assert "Device or resource busy" in removed.stderr


def test_the_mark_refuses_neither_unlink_nor_rename(cache: Cache) -> None:
    path = made(cache, "4f")
    with cache.look_up("volume", "4f") as used:
        os.rename(path, path.with_name("D50"))
        os.unlink(path.with_name("D50"))
        assert os.read(used.fileno(), 4) == b"data"


def test_an_object_whose_look_up_fails_is_free_again(cache: Cache) -> None:
    path = made(cache, "4f")
    assert errno_of(lambda: cache.look_up("volume", "4f", error=errno.ENOMEM)) == "ENOMEM"
    cull(cache, path)


def test_the_bug_of_april_2022_leaves_it_in_use_for_ever(root: Path) -> None:
    with Cache(root, forgets_to_unmark=True) as cache:
        path = made(cache, "4f")
        assert errno_of(lambda: cache.look_up("volume", "4f", error=errno.ENOMEM)) == "ENOMEM"
        assert errno_of(lambda: cache.look_up("volume", "4f")) == "EBUSY"
        assert errno_of(lambda: cull(cache, path)) == "EBUSY"
    with Cache(root) as cache:  # closing /dev/cachefiles does not help
        assert errno_of(lambda: cull(cache, path)) == "EBUSY"
    exclfs.release(path, break_it=True)


def test_a_new_object_whose_look_up_fails_leaves_nothing(cache: Cache) -> None:
    assert errno_of(lambda: cache.look_up("volume", "4f", error=errno.EIO)) == "EIO"
    assert not list((cache.root / "tmp").iterdir())
    made(cache, "4f")


def test_a_cache_that_cannot_bury_is_dead(cache: Cache) -> None:
    directory = cache.store / "Iold"
    directory.mkdir()
    with exclfs.hold(directory, claim=False):
        cull(cache, directory)  # the kernel says 0
    assert cache.dead
    assert directory.exists()
    assert errno_of(lambda: cull(cache, directory)) == "EIO"


def test_an_unlink_that_fails_leaves_the_victim_marked(cache: Cache) -> None:
    path = made(cache, "4f")
    with exclfs.hold(path, claim=False):
        assert errno_of(lambda: cull(cache, path)) == "EIO"
    assert inuse(cache, path)


def test_what_somebody_else_claims_is_not_culled(cache: Cache) -> None:
    path = made(cache, "4f")
    with exclfs.hold(path, holder="reader", claim=True), pytest.raises(OSError, match="reader") as raised:
        cull(cache, path)
    assert raised.value.errno == errno.EBUSY


def test_a_cache_that_is_withdrawn_leaves_nothing_in_use(root: Path) -> None:
    cache = Cache(root)
    path = made(cache, "4f")
    kept = cache.look_up("volume", "4f")
    cache.withdraw()
    cache.withdraw()
    assert kept.fileno() == -1
    with exclfs.connect(root) as client:
        assert not [hold for hold in client.holds() if root.name in hold.path]
    assert errno_of(lambda: cull(cache, path)) == "EIO"
    assert errno_of(lambda: cache.look_up("volume", "4f")) == "EIO"
    with Cache(root) as again:
        cull(again, path)


@pytest.mark.parametrize("name", ["", "a/b", "a\0b"])
def test_names_of_objects_are_names(cache: Cache, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        cache.look_up("volume", name)
