"""What every test has: real mounts that are gone afterwards, and the checks that nothing is left behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import needs
import program
from exclfs.host import mounts
from exclfs.testing import forks, mounting
from filesystems import filesystem
from harness import SANITIZED, Mounted, default_options, mounts_now, server_environment, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _obstacle(item: pytest.Item) -> str | None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "needs root"
    if item.get_closest_marker("mount") and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Takes all descriptors that there are to be had: a test opens a thousand connections. And Ctrl-C and Ctrl-\\ end a
    program, which a shell has what it starts in the background ignore.

    EXCLFS_TEST_FILESYSTEM=xfs (…) puts everything that tests make, and so every backing tree, on such a filesystem.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)
    stack = ExitStack()
    config.add_cleanup(stack.close)
    if kind := os.environ.get("EXCLFS_TEST_FILESYSTEM"):
        config.option.basetemp = stack.enter_context(filesystem(kind)) / "tests"
    elif config.option.basetemp is None:
        config.option.basetemp = stack.enter_context(_directory_of_the_run()) / "tests"


@contextmanager
def _directory_of_the_run() -> Iterator[Path]:
    """Of runs side by side each has its own: pytest would have each clear away what the others have mounted."""
    directory = tempfile.mkdtemp(prefix="exclfs-tests-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
    yield Path(directory)
    if not any(mount.mountpoint.startswith(os.fsencode(directory)) for mount in mounts.mounts()):
        shutil.rmtree(directory, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A run in which every mount has other options leaves out what tries all kinds of mounts in any case."""
    if not default_options():
        return
    again = [
        item
        for item in items
        if "mount_of_each_kind" in getattr(item, "fixturenames", ()) or item.get_closest_marker("kinds")
    ]
    config.hook.pytest_deselected(items=again)
    items[:] = [item for item in items if item not in set(again)]


def pytest_collection_finish(session: pytest.Session) -> None:
    """What forks the servers is there before the first test looks at what this process has open."""
    if not any(item.get_closest_marker("mount") for item in session.items):
        return
    forks.server_of("exclfs.mount", mounting.server_environment())
    if not SANITIZED:
        forks.server_of("exclfs.mount", server_environment())
        program.fork_server()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot run, with the reason; in CI that is a failure."""
    if obstacle := _obstacle(item):
        needs.unmet(obstacle)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No mount and no descriptor of this process outlives the test that made it."""
    if request.node.get_closest_marker("mount") is None:
        yield
        return
    ours = os.fsencode(request.getfixturevalue("tmp_path_factory").getbasetemp())
    mounts, descriptors = _mounts_below(ours), len(os.listdir("/proc/self/fd"))
    yield
    assert _mounts_below(ours) <= mounts, "a mount was left behind"
    assert len(os.listdir("/proc/self/fd")) <= descriptors, "a descriptor was left open"


def _mounts_below(directory: bytes) -> set[bytes]:
    return {mountpoint for mountpoint in mounts_now() if mountpoint.startswith(directory)}


@pytest.fixture(scope="module")
def mount_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for all tests of a module, where each test works in a directory of its own."""
    with start(tmp_path_factory.mktemp("shared")) as mounted:
        yield mounted


@pytest.fixture
def mounted(mount_for_module: Mounted, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """The module's mount, narrowed to a directory that only this test has."""
    with mount_for_module.narrowed(request.node.name) as narrowed:
        yield narrowed


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Mounted]]:
    """Makes mounts of their own: `mount(ask_always=True, …)`, the fields of MountOptions."""
    running: list[Mounted] = []

    def one_more(**options: object) -> Mounted:
        directory = tmp_path / f"mount{len(running)}"
        directory.mkdir()
        running.append(start(directory, **options).__enter__())
        return running[-1]

    yield one_more
    failures = []
    for mounted in reversed(running):
        try:
            mounted.__exit__(None, None, None)
        except AssertionError as error:
            failures.append(error)
    if failures:
        raise failures[0]
