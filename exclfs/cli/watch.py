"""Watches over one's own holds: when somebody else ends one, that is said at once, with who and why."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

from exclfs.cli.advice import advise
from exclfs.cli.event_lines import ending, is_over
from exclfs.cli.output import warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.client.sync_client import Events
    from exclfs.holds.hold import Hold


def follow(events: Events, placed: Sequence[Hold]) -> None:
    """Says how each of these holds ends, and returns when the last one has, or when the stream is closed.

    Args:
        events: from before the first of them was placed.
        placed: the holds.

    Raises:
        ClientError: the server has ended, or what it says is not understood.
        EventsLost: it was not listened to fast enough.
    """
    left = {hold.id for hold in placed}
    for event in events:
        if is_over(event) and event.hold.id in left:
            if line := ending(event):
                warn(line)
            left.discard(event.hold.id)
            if not left:
                return


@contextlib.contextmanager
def following(events: Events, placed: Sequence[Hold]) -> Iterator[None]:
    """Does the same in a thread, while the block runs."""
    thread = threading.Thread(target=_follow_to_the_end, args=(events, placed), daemon=True)
    # A signal must not find this thread in the place of the one that passes signals on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        events.close()
        thread.join()


def _follow_to_the_end(events: Events, placed: Sequence[Hold]) -> None:
    try:
        follow(events, placed)
    except Exception as error:  # the command runs on
        warn(advise(error).line)
