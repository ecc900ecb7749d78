"""The command line. One file per subcommand; each is imported only when it is called, and its tables only to be drawn.

output    what is printed, and how text of strangers is made harmless
advice    from an error to its line and exit code
commands  which subcommands there are
helper    what mount(8) types
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HOLD_FAILED: Final = 125
"""What `exclfs hold … -- CMD` returns for its own failures, to tell them from those of CMD (env(1), flock(1))."""

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells count it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; whatever goes wrong is one line on standard error."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(typed)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read this has read enough. What is still buffered must not be complained about at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit:
        # So does rich, when nobody reads the help: with 1, which here is an answer.
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from exclfs.cli.advice import explain

        status = explain(error)
        return HOLD_FAILED if _runs_a_command(typed) else status
    return status


def _run(typed: list[str]) -> int:
    from exclfs.cli import helper

    if os.path.basename(sys.argv[0]) == helper.NAME:
        return helper.mount_as_told(typed, by_name=True)
    from exclfs.cli import commands

    if not typed:
        typed = ["--help"]
    if typed[0] not in commands.COMMANDS and helper.is_meant(typed):
        return helper.mount_as_told(typed, by_name=False)
    command = None
    if _runs_a_command(typed):
        end = typed.index("--")
        command, typed = tuple(typed[end + 1 :]), typed[:end]
    status = commands.parse(typed, command)()
    return status if isinstance(status, int) else 0


def _runs_a_command(typed: Sequence[str]) -> bool:
    return typed[:1] == ["hold"] and "--" in typed
