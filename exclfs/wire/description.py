"""What introspection answers: who made this server, and the text of its interfaces.

The rule that this module owns: the .varlink files beside it are the contract, and are given out as they are.
"""

from __future__ import annotations

import importlib.resources
from typing import Final

from exclfs._version import __version__
from exclfs.wire.errors import InterfaceNotFound
from exclfs.wire.messages import GetInfoReply, GetInterfaceDescriptionReply

INTERFACES: Final = ("org.varlink.service", "org.exclfs", "org.exclfs.gates")
"""The names of the interfaces that every server has."""

URL: Final = "https://exclfs.readthedocs.io"


def info() -> GetInfoReply:
    """The answer to org.varlink.service.GetInfo."""
    return GetInfoReply(vendor="exclfs", product="exclfs", version=__version__, url=URL, interfaces=INTERFACES)


def describe(interface: str) -> GetInterfaceDescriptionReply:
    """The answer to org.varlink.service.GetInterfaceDescription.

    Raises:
        InterfaceNotFound: no server has this interface.
    """
    if interface not in INTERFACES:
        raise InterfaceNotFound(interface)
    return GetInterfaceDescriptionReply((_FILES / f"{interface}.varlink").read_text(encoding="utf-8"))


_FILES: Final = importlib.resources.files("exclfs.wire")
