from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exclfs.host import attributes
from exclfs.host.attributes import NONE, UNKNOWN, Attributes

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def opened(path: str | Path, flags: int = os.O_PATH | os.O_NOFOLLOW) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def chattr(letter: str, path: Path) -> Iterator[None]:
    subprocess.run(["chattr", f"+{letter}", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{letter}", path], check=True)


@pytest.mark.root
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
@pytest.mark.parametrize(
    ("letter", "expected"),
    [
        ("i", Attributes(immutable=True, append_only=False)),
        ("a", Attributes(immutable=False, append_only=True)),
        ("d", NONE),
    ],
)
def test_both_ways_of_asking_tell_the_same(tmp_path: Path, make: object, letter: str, expected: Attributes) -> None:
    thing = tmp_path / "thing"
    assert callable(make)
    make(thing)
    with chattr(letter, thing), opened(thing) as descriptor:
        assert attributes.of(descriptor) == expected
        assert attributes._flags(descriptor) == expected


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/maps", "/proc/self/cwd", "/sys/kernel"])
def test_what_can_have_none_has_none(path: str) -> None:
    with opened(path) as descriptor:
        assert attributes.of(descriptor) == NONE


def test_a_filesystem_without_such_flags_says_so() -> None:
    """The second way of asking: /proc answers ENOTTY."""
    with opened("/proc/self/status") as descriptor:
        assert attributes._flags(descriptor) == NONE


def test_what_cannot_be_asked_is_not_known(tmp_path: Path) -> None:
    with opened(tmp_path) as descriptor:
        pass
    assert attributes.of(descriptor) == UNKNOWN
