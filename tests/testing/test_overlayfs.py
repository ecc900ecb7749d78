"""overlayfs simulated: who may mount what beside whom, and what is left when a mount leaks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import exclfs
from exclfs.testing.overlayfs import Overlay

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.program]


@pytest.fixture
def tree(mounted: Mounted) -> Path:
    mounted.expect("lock_failed", "unlock_bad")
    for name in ("base", "more", "one/upper/sub", "one/work", "two/upper", "two/work"):
        mounted.setup(name)
    return mounted.path


def layers(tree: Path, whose: str, **other: Any) -> dict[str, Any]:
    """What an overlay of this container would be mounted with."""
    return {"lower": [tree / "base"], "upper": tree / whose / "upper", "work": tree / whose / "work", **other}


def refused(tree: Path, **options: Any) -> str:
    overlay = Overlay(**options)
    with pytest.raises(OSError, match=r".") as raised:
        overlay.mount()
    assert not overlay.mounted
    return errno.errorcode[raised.value.errno or 0]


def held(tree: Path) -> set[str]:
    with exclfs.connect(tree) as client:
        return {os.path.relpath(hold.path, tree) for hold in client.holds() if hold.path.startswith(f"{tree}/")}


def test_upper_and_work_are_taken_and_lower_is_not(tree: Path) -> None:
    with Overlay(**layers(tree, "one")) as overlay:
        assert overlay.mounted
        assert held(tree) == {"one/upper", "one/work"}
        assert (tree / "one/work/work").is_dir()
    assert held(tree) == set()
    assert not overlay.mounted


def test_two_overlays_share_a_lower_layer(tree: Path) -> None:
    with Overlay(**layers(tree, "one", index=True)), Overlay(**layers(tree, "two", index=True)) as two:
        assert two.warnings == []


SECOND: list[Callable[[Path], dict[str, Any]]] = [
    lambda tree: layers(tree, "two", upper=tree / "one/upper"),
    lambda tree: layers(tree, "two", work=tree / "one/work"),
    lambda tree: layers(tree, "two", lower=[tree / "one/upper"]),
    lambda tree: layers(tree, "two", lower=[tree / "base", tree / "one/work"]),
    lambda tree: layers(tree, "two", lower=[tree / "one/upper/sub"]),
    lambda tree: layers(tree, "two", upper=tree / "one/upper/sub"),
]


@pytest.mark.parametrize("second", SECOND)
def test_with_index_what_is_in_use_is_busy(tree: Path, second: Callable[[Path], dict[str, Any]]) -> None:
    with Overlay(**layers(tree, "one")):
        assert refused(tree, **second(tree), index=True) == "EBUSY"
        assert held(tree) == {"one/upper", "one/work"}


@pytest.mark.parametrize("second", SECOND)
def test_without_index_it_is_a_warning(tree: Path, second: Callable[[Path], dict[str, Any]]) -> None:
    with Overlay(**layers(tree, "one")), Overlay(**second(tree)) as two:
        assert len(two.warnings) == 1
        assert "undefined behavior" in two.warnings[0]
    assert held(tree) == set()


def test_index_is_ignored_without_an_upper_directory(tree: Path) -> None:
    with Overlay(**layers(tree, "one")), Overlay(lower=[tree / "one/upper", tree / "base"], index=True) as two:
        assert len(two.warnings) == 1


def test_what_another_has_stays_his_when_the_second_is_unmounted(tree: Path) -> None:
    with Overlay(**layers(tree, "one")):
        with Overlay(**layers(tree, "one")):
            pass
        assert held(tree) == {"one/upper", "one/work"}


def test_the_error_says_whose_it_is(tree: Path) -> None:
    with Overlay(**layers(tree, "one", name="container-7")), pytest.raises(OSError, match="container-7") as raised:
        Overlay(**layers(tree, "two", upper=tree / "one/upper", index=True)).mount()
    assert isinstance(raised.value.__cause__, exclfs.Held)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (lambda tree: {"work": tree / "one/upper"}, "EINVAL"),
        (lambda tree: {"work": tree / "one/upper/sub"}, "EINVAL"),
        (lambda tree: {"upper": tree / "one", "work": tree / "one/work"}, "EINVAL"),
        (lambda tree: {"lower": [tree / "one/upper"]}, "ELOOP"),
        (lambda tree: {"lower": [tree / "base", tree / "base"]}, "ELOOP"),
        (lambda tree: {"lower": [tree / "one/upper/sub"]}, "ELOOP"),
        (lambda tree: {"lower": [tree / "one/gone"]}, "ENOENT"),
    ],
)
def test_layers_that_cannot_go_together(tree: Path, changed: Callable[[Path], dict[str, Any]], expected: str) -> None:
    assert refused(tree, **layers(tree, "one", **changed(tree))) == expected
    assert held(tree) == set()


def test_upper_may_be_inside_of_lower(tree: Path) -> None:
    with Overlay(**layers(tree, "one", lower=[tree / "one"], index=True)) as overlay:
        assert overlay.warnings == []


def test_the_kernel_does_not_look_down_and_a_subtree_is_claimed_in_both_directions(tree: Path) -> None:
    above = layers(tree, "two", upper=tree / "one", index=True)
    with Overlay(**layers(tree, "one")), Overlay(**above) as second:
        assert second.warnings == []
    with Overlay(**layers(tree, "one", subtree=True)):
        assert refused(tree, **above) == "EBUSY"


def test_an_overlay_refuses_no_removal(tree: Path) -> None:
    with Overlay(**layers(tree, "two")):
        os.rmdir(tree / "two/upper")
        os.rename(tree / "two/work", tree / "two/elsewhere")


def test_a_leaked_one_keeps_what_it_took(tree: Path) -> None:
    leaked = Overlay(**layers(tree, "one"))
    leaked.mount()
    leaked.unmount(leaked=True)
    assert refused(tree, **layers(tree, "one", index=True)) == "EBUSY"
    leaked.let_go()
    leaked.let_go()
    with Overlay(**layers(tree, "one", index=True)):
        pass


def test_what_is_no_overlay(tree: Path) -> None:
    with pytest.raises(ValueError, match="lower"):
        Overlay(lower=[])
    with pytest.raises(ValueError, match="together"):
        Overlay(lower=[tree], upper=tree)
    with Overlay(**layers(tree, "one")) as overlay, pytest.raises(RuntimeError, match="already"):
        overlay.mount()
