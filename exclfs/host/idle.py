"""What the processors of this machine do while they have nothing to do (cpuidle), and how they are kept from halting.

The kernel takes requests for how long waking may take on /dev/cpu_dma_latency
(Documentation/power/pm_qos_interface.rst): one lasts as long as its descriptor, and counts for every processor.
"""

from __future__ import annotations

import os
from typing import Final

LATENCY_DEVICE: Final = "/dev/cpu_dma_latency"
_DRIVER: Final = "/sys/devices/system/cpu/cpuidle/current_driver"
_FEW: Final = 4
"""Processors that may poll so that one of them is woken sooner, without anybody having asked for it."""


def driver(path: str = _DRIVER) -> str | None:
    """The name of the idle driver; None for a kernel without cpuidle."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def is_worth_polling(path: str = _DRIVER) -> bool:
    """Whether to wake a processor takes long here, and to keep it awake costs little.

    That is so in a virtual machine with few processors: to halt is an exit to the host. The driver that knows nothing
    but polling and that (cpuidle-haltpoll) is there for no other machine. Elsewhere all processors would need power.
    """
    return driver(path) == "haltpoll" and (os.cpu_count() or 1) <= _FEW


def open_latency_device(device: str = LATENCY_DEVICE) -> int:
    """A descriptor by which the kernel can be told how many microseconds it may take to wake a processor (an int32).

    Nothing changes before it is told.

    Raises:
        OSError: it is not for this user (EACCES, EPERM), or this machine has none (ENOENT).
    """
    return os.open(device, os.O_WRONLY | os.O_CLOEXEC)
