"""What is fetched and built once, and kept in .bench/: source packages of Debian, a wheel of PyPI.

A source package comes from the archive that this machine's packages come from, with apt's own checks of its
signatures: only the index of sources is read from a list of our own, for most machines have none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final

CACHE: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".bench")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unreachable(Exception):
    """Something cannot be had here; the text says what, and why."""


def source_package(name: str) -> str:
    """The path of the upstream tarball of a Debian source package.

    Raises:
        Unreachable: this is no Debian, or its archive has no sources for us.
    """
    directory = os.path.join(CACHE, name)
    if not (found := _tarball(directory)):
        _fetch(name, directory)
        found = _tarball(directory)
    if not found:
        raise Unreachable(f"the source package {name} has no tarball")
    return found


def wheel(requirement: str) -> str:
    """The path of a wheel of PyPI, without what it depends on.

    Raises:
        Unreachable: pip says no.
    """
    directory = os.path.join(CACHE, "wheels", requirement)
    if not os.path.isdir(directory):
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
        _run(*command, "--dest", directory + ".new", requirement)
        os.rename(directory + ".new", directory)
    return os.path.join(directory, os.listdir(directory)[0])


def _tarball(directory: str) -> str | None:
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    tarballs = [name for name in names if ".orig.tar." in name and not name.endswith(".asc")]
    return os.path.join(directory, tarballs[0]) if tarballs else None


def _fetch(name: str, directory: str) -> None:
    if shutil.which("apt-get") is None or not os.path.exists(KEYRING):
        raise Unreachable("source packages come from Debian, and this is none")
    lists = os.path.join(CACHE, "lists")
    os.makedirs(os.path.join(lists, "partial"), exist_ok=True)
    own = os.path.join(CACHE, "sources.list")
    with open("/etc/os-release") as release:
        facts = dict(line.strip().split("=", 1) for line in release if "=" in line)
    with open(own, "w") as file:
        file.write(f"deb-src [signed-by={KEYRING}] http://deb.debian.org/debian {facts['VERSION_CODENAME']} main\n")
    options = ("-o", f"Dir::Etc::SourceList={own}", "-o", "Dir::Etc::SourceParts=/dev/null")
    options += ("-o", f"Dir::State::Lists={lists}", "-o", "APT::Sandbox::User=root")
    if not os.path.exists(os.path.join(lists, "lock")) or not any(name.endswith(".lz4") for name in os.listdir(lists)):
        _run("apt-get", "-qq", *options, "update")
    fetched = directory + ".new"
    shutil.rmtree(fetched, ignore_errors=True)
    os.makedirs(fetched)
    _run("apt-get", "-qq", *options, "source", "--download-only", name, cwd=fetched)
    os.rename(fetched, directory)


def _run(*command: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unreachable(f"{' '.join(command[:1])} failed: {done.stderr.strip().splitlines()[-1:]}")
