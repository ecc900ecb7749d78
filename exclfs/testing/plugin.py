"""The pytest plugin: the fixtures `exclfs_mount` and `exclfs_mounts`, and what a failing test shows.

The rule that this module owns: whoever has it installed and does not use it does not notice. Each run of pytest
imports it, so it imports nothing of the kit before a test asks for a mount.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from exclfs.testing.mounting import Mount

_MOUNTS: Final = pytest.StashKey[list["Mount"]]()
_SECTION: Final = "exclfs: what happened"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin."""
    group = parser.getgroup("exclfs", "exclfs: races that are forced")
    group.addoption("--exclfs-require", action="store_true", help="fail tests that need a mount where there is none")
    group.addoption("--exclfs-seed", metavar="SEED", help="explorations run the schedule of this seed alone")
    group.addoption("--exclfs-timeline", action="store_true", help="show what happened also for tests that pass")


@pytest.fixture
def exclfs_mounts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Mount]]:
    """Makes mounts that are gone after the test, as `exclfs_mounts(passthrough=False)`: see mounting.Mount."""
    from exclfs.testing.mounting import CannotMount, Mount

    made = request.node.stash[_MOUNTS] = []

    def one_more(**options: Any) -> Mount:
        try:
            made.append(Mount(tmp_path_factory.mktemp("exclfs"), **options))
        except CannotMount as error:
            if request.config.getoption("exclfs_require"):
                pytest.fail(f"--exclfs-require: {error.why}", pytrace=False)
            pytest.skip(f"nothing can be mounted here: {error.why}")
        return made[-1]

    yield one_more
    problems: list[Exception] = []
    for mount in reversed(made):
        try:
            mount.close()
        except Exception as error:
            problems.append(error)
    if problems:
        raise problems[0]


@pytest.fixture
def exclfs_mount(exclfs_mounts: Callable[..., Mount]) -> Mount:
    """A mount over an empty tree, for this test alone: see mounting.Mount."""
    return exclfs_mounts()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the timeline to the report of a test that failed, or of any, if that was asked for."""
    report = yield
    wanted = report.failed or item.config.getoption("exclfs_timeline")
    if report.when == "call" and wanted:
        writer = item.config.get_terminal_writer()
        for mount in item.stash.get(_MOUNTS, []):
            drawn = mount.timeline(width=shutil.get_terminal_size().columns, colour=writer.hasmarkup)
            if drawn:
                report.sections.append((_SECTION, drawn))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Shows the timelines of tests that passed, if that was asked for; pytest shows those of others."""
    if not config.getoption("exclfs_timeline"):
        return
    for report in terminalreporter.getreports("passed"):
        for name, drawn in report.sections:
            if name == _SECTION:
                terminalreporter.section(f"{report.nodeid}: what happened", sep="_")
                terminalreporter.write(drawn)
