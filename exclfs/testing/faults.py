"""Faults: an operation fails with an errno that the filesystem did not have, or takes longer than it would.

    with exclfs_mount.fault("unlink", "objects/*", errno=errno.EIO, nth=2):
        ...

The rule that this module owns: a test that is about a fault has met it. One that struck nobody fails the test, with
what did happen instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from exclfs.testing.gates import GateNotReached

if TYPE_CHECKING:
    from types import TracebackType

    from exclfs.testing.server_gates import ServerGate


class Fault:
    """A fault at the requests of a mount, that strikes from now on. As a context manager it ends with its block."""

    def __init__(self, gate: ServerGate) -> None:
        self._gate = gate

    @property
    def struck(self) -> int:
        """How often it has struck."""
        return self._gate.reached

    def close(self) -> None:
        """It strikes no more. What is delayed goes on."""
        self._gate._leave()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends it.

        Raises:
            GateNotReached: it struck nobody, and the block did not fail already.
        """
        left = self._gate._leave()
        if kind is None and left.reached == 0:
            raise GateNotReached(f"the fault struck nobody: {self._gate}", left.happened, left.missed)
