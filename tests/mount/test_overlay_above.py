"""An overlayfs whose upper and work directories lie on a mount does what one on a plain directory does."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from overlays import STEPS, overlay, populate, without_links
from twins import ROOT, Twins, as_user, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.fixture(params=["", "redirect_dir=on", "metacopy=on,redirect_dir=on", "index=on"])
def overlays(twins: Twins, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """Two overlays: `mount` above the mount, `shadow` above the plain directory; `behind` is the first's upper."""
    lower = tmp_path / "lower"
    lower.mkdir()
    populate(lower)
    with ExitStack() as stack:
        merged = []
        for number, directory in enumerate((twins.mount, twins.shadow)):
            for name in ("upper", "work"):
                as_user(ROOT, lambda: os.mkdir(name), cwd=directory)  # noqa: B023
            os.chmod(directory / "upper", 0o777)
            mounting = overlay(
                tmp_path / f"merged{number}", lower, directory / "upper", directory / "work", request.param
            )
            merged.append(stack.enter_context(mounting))
        yield Twins(merged[0], twins.behind / "upper", merged[1])


def test_everything_that_an_overlay_does(overlays: Twins) -> None:
    for user, step in STEPS:
        overlays.both(step, user)
        expected, found = snapshot(overlays.shadow), snapshot(overlays.mount)
        assert without_links(found) == without_links(expected)
    assert overlays.both(lambda: sorted(os.listdir("."))) == sorted(os.listdir(overlays.mount))
    whiteout = os.lstat(overlays.behind / "second")
    assert whiteout.st_rdev == 0
    assert oct(whiteout.st_mode).startswith("0o2")
