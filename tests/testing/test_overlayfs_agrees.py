"""The simulated overlayfs and the kernel's own say the same of the same layers."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from exclfs.testing.overlayfs import Overlay
from mounting import leave, overlay, tmpfs
from predicted import in_a_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]

TREE: Final = (
    "base",
    "more",
    "one/upper/sub",
    "one/work/sub",
    "two/upper",
    "two/work",
    "two/base/upper",
    "two/base/work",
)
FIRST: Final = ("base", "one/upper", "one/work")
"""What is mounted already: lower, upper, work."""
SECOND: Final = [
    ("base", "two/upper", "two/work"),
    ("base", "one/upper", "two/work"),
    ("base", "two/upper", "one/work"),
    ("base", "one/upper", "one/work"),
    ("one/upper", "two/upper", "two/work"),
    ("base:one/work", "two/upper", "two/work"),
    ("one/upper/sub", "two/upper", "two/work"),
    ("base", "one/upper/sub", "two/work"),
    ("base", "two/upper", "one/work/sub"),
    ("one/upper:base", None, None),
    ("one:base", None, None),
    ("one", "two/upper", "two/work"),
    ("base", "one", "two/work"),
    ("base", "two/upper", "one"),
    ("base", "two/upper", "two/upper"),
    ("base", "two", "two/work"),
    ("base", "two/upper", "two"),
    ("two/upper", "two/upper", "two/work"),
    ("two/work", "two/upper", "two/work"),
    ("base:more:base", "two/upper", "two/work"),
    ("base:more", "two/upper", "two/work"),
    ("two/base/upper:base", "two/base", "two/work"),
    ("two/base", "two/base/upper", "two/base/work"),
    ("two:two/base", "two/upper", "two/work"),
    ("base:gone", "two/upper", "two/work"),
]

Layers = tuple[str, str | None, str | None]


def errno_of(work: Callable[[], object]) -> str | None:
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def simulated(tree: Path, layers: Layers, *, index: bool) -> Overlay:
    lower, upper, work = layers
    return Overlay(
        lower=[tree / name for name in lower.split(":")],
        upper=tree / upper if upper else None,
        work=tree / work if work else None,
        index=index,
    )


def real(tree: Path, layers: Layers, *, index: bool) -> str:
    lower, upper, work = layers
    options = "lowerdir=" + ":".join(f"{tree}/{name}" for name in lower.split(":"))
    if upper:
        options += f",upperdir={tree}/{upper},workdir={tree}/{work},index={'on' if index else 'off'}"
    elif index:
        options += ",index=on"
    return options


def answers_of_the_kernel(directory: Path) -> dict[str, Any]:
    """What a second overlay gets, for each pair of SECOND and index; each on a tree of its own."""
    leave()
    answers = {}
    for number, second in enumerate(SECOND):
        for index in (False, True):
            tree = tmpfs(directory / f"{number}{index}")
            for name in TREE:
                (tree / name).mkdir(parents=True)
            overlay(tree / "merged1", real(tree, FIRST, index=False))
            mount = partial(overlay, tree / "merged2", real(tree, second, index=index))
            answers[f"{number}{index}"] = errno_of(mount)
    return answers


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("kernel")
    if not os.path.exists("/sys/module/overlay"):
        pytest.skip("this kernel has no overlayfs")
    return in_a_child(lambda: answers_of_the_kernel(directory))


@pytest.mark.parametrize("number", range(len(SECOND)))
def test_a_second_overlay_gets_what_the_kernel_says(mounted: Mounted, kernel: dict[str, Any], number: int) -> None:
    mounted.expect("lock_failed")
    for name in TREE:
        mounted.setup(name)
    with simulated(mounted.path, FIRST, index=False):
        for index in (False, True):
            second = simulated(mounted.path, SECOND[number], index=index)
            said = errno_of(second.mount)
            second.let_go()
            assert said == kernel[f"{number}{index}"], (SECOND[number], index)


def test_there_is_something_of_everything(kernel: dict[str, Any]) -> None:
    assert set(kernel.values()) == {None, "EBUSY", "ELOOP", "EINVAL", "ENOENT"}
