"""pip cache purge against pip install: an installation that fails although it need not.

Here it is the user of the cache that is stopped, and the cleaner that runs meanwhile:

    newfstatat("…/wheels/…/tiny-1.0-py3-none-any.whl")   install: there is a wheel, it need not be built
                                                         pip cache purge
    openat("…/wheels/…/tiny-1.0-py3-none-any.whl")       install: ERROR: [Errno 2] No such file or directory
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from exclfs import Flags

PROJECT = {
    "pyproject.toml": """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tiny"
version = "1.0"
""",
    "backend.py": """\
import os, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(os.path.join(directory, "tiny-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "tiny-1.0-py3-none-any.whl"
""",
}
WHEEL = "cache/wheels/**/tiny-1.0-py3-none-any.whl"


class Pip:
    """pip with its cache in a mount; in it there is a wheel of a package that was built before."""

    def __init__(self, cache, packages):
        """Use this cache and these packages."""
        self.environment = {
            **os.environ,
            "PIP_CACHE_DIR": str(cache),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        self.packages = packages

    def install(self, target):
        """The command that installs the package into a directory."""
        source = ["--no-index", f"--find-links={self.packages}", "--no-build-isolation", "--no-deps"]
        return [sys.executable, "-m", "pip", "install", "--quiet", *source, f"--target={target}", "tiny"]

    def purge(self):
        """Purge the cache."""
        command = [sys.executable, "-m", "pip", "cache", "purge"]
        return subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A directory with a package, and the cache that pip has when it has installed it once."""
    directory = tmp_path_factory.mktemp("pip")
    packages = directory / "packages"
    packages.mkdir()
    with tarfile.open(packages / "tiny-1.0.tar.gz", "w:gz") as archive:
        for name, text in PROJECT.items():
            (directory / name).write_text(text)
            archive.add(directory / name, f"tiny-1.0/{name}")
    pip = Pip(directory / "cache", packages)
    subprocess.run(pip.install(directory / "before"), env=pip.environment, check=True)
    return directory


@pytest.fixture
def pip(exclfs_mount, filled):
    """With a filled cache in the mount."""
    shutil.copytree(filled / "cache", exclfs_mount.backing / "cache")
    return Pip(exclfs_mount.path / "cache", filled / "packages")


@pytest.fixture
def install(exclfs_mount, pip, tmp_path):
    """The installation that has a wheel in the cache to go by, not yet running."""
    command = pip.install(tmp_path / "after")
    return exclfs_mount.program(command, env=pip.environment, stderr=subprocess.PIPE, text=True)


def test_an_installation_loses_the_wheel_that_it_has_found(exclfs_mount, pip, install):
    """The race, every time."""
    with exclfs_mount.gate("open", WHEEL, by=install) as gate:
        install.start()
        gate.wait()
        assert pip.purge().returncode == 0
        gate.open()
        _, said = install.communicate()
    assert install.returncode == 1
    assert "No such file or directory" in said


def test_a_cache_that_is_held_is_not_purged(exclfs_mount, pip, install):
    """Whoever installs holds the cache, as `exclfs hold CACHE --flag NO_REMOVE_BELOW -- pip install …` does."""
    with exclfs_mount.gate("open", WHEEL, by=install) as gate:
        install.start()
        gate.wait()
        with exclfs_mount.hold("cache/wheels", holder="pip install", flags=Flags.NO_REMOVE_BELOW):
            purge = pip.purge()
            gate.open()
            _, said = install.communicate()
    assert install.returncode == 0, said
    assert purge.returncode != 0
    assert "Device or resource busy" in purge.stderr
