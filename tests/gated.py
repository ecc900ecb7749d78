"""Mounts with gates, reached as the kit does, and programs that stand there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from exclfs.client import discovery
from exclfs.testing.control import Control

if TYPE_CHECKING:
    from harness import Mounted

Run = Callable[..., "subprocess.Popen[str]"]
"""Starts a program that is gone when the test is."""


def control_of(mounted: Mounted) -> Control:
    """The server of a mount."""
    server = discovery.find(str(mounted.root))
    return Control(server.mountpoint, server.socket, os.geteuid())
