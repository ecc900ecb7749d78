"""The situations of docs/how-to/device-or-resource-busy.md, made for real in a mount namespace of their own.

There /srv is a tmpfs, so that the page shows paths that people know and nothing of the machine is touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from private_mounts import PrivateMounts, private_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME: Final = Path(__file__).parents[2]
CGROUPS: Final = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
"""Where cgroup2 may be mounted: beside the first version, or alone."""

EXT4: Final = (
    "truncate -s 16M /srv/image && mkfs.ext4 -q /srv/image && mkdir /srv/disk && mount -o loop /srv/image /srv/disk"
)


@frozen
class Scene:
    """How a situation is made."""

    made: str = "true"
    """Shell commands that make it."""
    runs: str = ""
    """A command that runs meanwhile."""
    until: str = "true"
    """A condition: then it has begun."""
    ended: str = "true"
    """Shell commands that undo what would outlive the mount namespace."""

    @property
    def mounts(self) -> bool:
        """Whether it has a mount of exclfs."""
        return "exclfs mount" in self.made


SCENES: Final = {
    "open": Scene(runs="exec tail -f /srv/app.log", made="echo started > /srv/app.log", until="fuser -s /srv/app.log"),
    "held": Scene(
        made="mkdir -p /srv/tree/objects /srv/cache && exclfs mount /srv/tree /srv/cache --log /srv/log",
        runs="exec exclfs hold /srv/cache/objects --holder cachefilesd --reason 'being filled' -- sleep 1000",
        until="exclfs inuse /srv/cache/objects",
        ended="umount -l /srv/cache",
    ),
    "merged": Scene(
        made="mkdir -p /srv/tree/upper /srv/tree/work /srv/lower /srv/merged /srv/cache"
        " && echo x > /srv/tree/upper/config && exclfs mount /srv/tree /srv/cache --log /srv/log"
        " && mount -t overlay overlay -o"
        " lowerdir=/srv/lower,upperdir=/srv/cache/upper,workdir=/srv/cache/work /srv/merged",
        runs="exec exclfs hold /srv/cache/upper/config --holder backup --reason 'nightly run' -- sleep 1000",
        until="exclfs inuse /srv/cache/upper/config",
        ended="umount /srv/merged; umount -l /srv/cache",
    ),
    "mountpoint": Scene(made="mkdir /srv/data /srv/disk && mount --bind /srv/disk /srv/data"),
    "elsewhere": Scene(
        made="mkdir /srv/data",
        runs="exec unshare --mount sh -c 'mount -t tmpfs tmpfs /srv/data && touch /srv/there && exec sleep 1000'",
        until="test -e /srv/there",
    ),
    "cgroup": Scene(
        made='mkdir "$CGROUP"',
        runs='echo $$ > "$CGROUP/cgroup.procs" && exec sleep 1000',
        until='grep -q . "$CGROUP/cgroup.procs"',
        ended='until rmdir "$CGROUP" 2>/srv/said; do sleep 0.01; done',
    ),
    "working": Scene(
        made="mkdir /srv/disk && mount -t tmpfs tmpfs /srv/disk",
        runs="cd /srv/disk && exec sleep 1000",
        until="fuser -sm /srv/disk",
    ),
    "below": Scene(
        made="mkdir /srv/disk && mount -t tmpfs tmpfs /srv/disk && mkdir /srv/disk/inner"
        " && mount -t tmpfs tmpfs /srv/disk/inner"
    ),
    "loop": Scene(
        made="mkdir /srv/disk && mount -t tmpfs tmpfs /srv/disk && truncate -s 1M /srv/disk/image"
        " && losetup --find --show /srv/disk/image > /srv/loop",
        ended='losetup --detach "$(cat /srv/loop)"',
    ),
    "leaked": Scene(
        made="mkdir /srv/lower /srv/upper /srv/work /srv/work2 /srv/merged /srv/other",
        runs="exec unshare --mount sh -c 'mount -t overlay overlay"
        " -o lowerdir=/srv/lower,upperdir=/srv/upper,workdir=/srv/work,index=on /srv/other"
        " && touch /srv/there && exec sleep 1000'",
        until="test -e /srv/there",
    ),
    "immutable": Scene(
        made=f"{EXT4} && touch /srv/disk/license && chattr +i /srv/disk/license", ended="umount /srv/disk"
    ),
    "swap": Scene(
        made=f"{EXT4} && dd if=/dev/zero of=/srv/disk/swapfile bs=1M count=4 status=none"
        " && chmod 600 /srv/disk/swapfile && mkswap /srv/disk/swapfile && swapon /srv/disk/swapfile",
        ended="swapoff /srv/disk/swapfile; umount /srv/disk",
    ),
    "filled": Scene(made="mkdir /srv/data && touch /srv/data/a /srv/data/b /srv/data/c /srv/data/.hidden"),
}


class Stage:
    """A scene that is set."""

    def __init__(self, space: PrivateMounts, environment: dict[str, str]) -> None:
        self._space = space
        self._environment = environment

    def said(self, command: str) -> str:
        """What a command prints there, with what it complains about in its place."""
        done = self._space.run("sh", "-c", f"exec 2>&1; {command}", check=False, env=self._environment, cwd="/")
        return done.stdout

    def must(self, command: str) -> None:
        """A command that has to succeed."""
        self._space.run("sh", "-c", command, env=self._environment, cwd="/")

    @contextmanager
    def running(self, command: str, until: str) -> Iterator[None]:
        """A command that runs as long as the context lasts, once it has begun."""
        process = subprocess.Popen(
            [*self._space.prefix, "sh", "-c", command],
            env=self._environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while (
                process.poll() is None
                and self._space.run("sh", "-c", until, check=False, env=self._environment, cwd="/").returncode
            ):
                pass
            assert process.returncode is None, f"{command} has ended with {process.returncode}"
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def staged(name: str | Scene, scratch: Path) -> Iterator[Stage]:
    """The scene of this name, or this one."""
    scene = SCENES[name] if isinstance(name, str) else name
    program = scratch / "bin/exclfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={HOME} exec {sys.executable} -m exclfs.cli "$@"\n')
    program.chmod(0o755)
    group = next(root for root in CGROUPS if os.path.exists(f"{root}/cgroup.procs"))
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "CGROUP": f"{group}/exclfs-{os.getpid()}",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    with private_mounts() as space:
        stage = Stage(space, environment)
        stage.must("mount -t tmpfs -o mode=755 tmpfs /srv")
        stage.must(scene.made)
        try:
            if scene.runs:
                with stage.running(scene.runs, scene.until):
                    yield stage
            else:
                yield stage
        finally:
            stage.must(scene.ended)
