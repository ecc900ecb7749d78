"""Mounts of every kind that must not differ, and the plain directory that each is compared with."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import exclfs
from harness import Mounted, start
from twins import Twins

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {
    "default": {},
    "nopassthrough": {"passthrough": False},
    "ask_always": {"ask_always": True},
}
_numbers = itertools.count()


@pytest.fixture(scope="session")
def mount_of_each_kind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Mounted]]:
    """One mount of each kind, for every test that works in a directory of its own."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(start(tmp_path_factory.mktemp(kind), **options))
            for kind, options in KINDS.items()
        }


@pytest.fixture(params=KINDS)
def any_mount(request: pytest.FixtureRequest, mount_of_each_kind: dict[str, Mounted]) -> Mounted:
    """A mount of each kind in turn."""
    return mount_of_each_kind[request.param]


@pytest.fixture
def twins(any_mount: Mounted) -> Twins:
    """A directory of the mount and one that is like it, both for everybody to write in."""
    name = f"twin{next(_numbers)}"
    shadows = any_mount.root.parent / "shadow"
    shadows.mkdir(exist_ok=True)
    found = Twins(any_mount.root / name, any_mount.backing / name, shadows / name)
    for directory in (found.behind, found.shadow):
        directory.mkdir()
        directory.chmod(0o777)
    return found


@pytest.fixture
def it_serves_afterwards(mounted: Mounted) -> Iterator[None]:
    """Whatever was done: nothing in the mount has changed, and it places, refuses and lets go as before."""
    mounted.expect("refused", '"pid')
    path = mounted.setup("kept")
    before = sorted(mounted.backing.rglob("*"))
    yield
    assert sorted(mounted.backing.rglob("*")) == before
    assert exclfs.holds(path) == ()
    with exclfs.hold(path), pytest.raises(OSError, match="busy"):
        path.rmdir()
    path.rmdir()
