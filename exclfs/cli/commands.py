"""The command line as a whole: which subcommands there are. Each is imported only when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cyclopts
from cyclopts import App, Group, Parameter

from exclfs._version import __version__
from exclfs.cli.advice import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS: Final = {
    "mount": ("mount SRC MNT [OPTIONS]", "Mount SRC at MNT, so that what is held in it cannot be removed."),
    "umount": ("umount MNT [OPTIONS]", "Unmount MNT, unless a living process holds something in it."),
    "hold": ("hold PATH… [OPTIONS] [-- CMD…]", "Hold every PATH while CMD runs; without CMD until Ctrl-C."),
    "renew": ("renew ID|PATH… --ttl DUR [OPTIONS]", "Put off the time at which holds end."),
    "release": ("release PATH|ID… [OPTIONS]", "Release your holds on a path, or the hold with an id."),
    "holds": ("holds [PATH] [OPTIONS]", "List what is held, by whom, since when and why."),
    "inuse": ("inuse PATH [OPTIONS]", "Tell whether anything holds PATH."),
    "why": ("why PATH [OPTIONS]", "Explain what keeps PATH from being removed, renamed or unmounted."),
    "events": ("events MNT|PATH [-f] [OPTIONS]", "Show what has happened, or with -f what happens."),
    "mode": ("mode MNT [enforce|warn|off] [OPTIONS]", "Show or switch whether a mount enforces its holds."),
    "status": ("status MNT [OPTIONS]", "Show how a mount does: its server, its holders, its last refusals."),
}
"""The subcommands, in the order in which --help lists them: how each is called, and what it does."""

WITHOUT_VALUE: Final = {"--wait": "--wait=forever"}
"""What an option means that may have a value (after "=") and has none."""

_HELP: Final = """Places holds on files and directories in exclfs mounts, and says who holds what, and why.

While something is held, nobody can remove, rename or replace it through the mount: they get EBUSY."""

_EXIT_CODES: Final = """Exit codes: 0 ok; 1 the answer is no; 2 usage, or an argument that names nothing; 3 held by
another; 4 not an exclfs mount, or no server; 5 not permitted; 6 mount failed."""

_EPILOGUE: Final = f"""{_EXIT_CODES}

`exclfs SRC MNT -o OPTIONS` is what mount(8) runs for -t fuse.exclfs."""


def application(chosen: str) -> App:
    """The parser of the command line, if `chosen` is its first word."""
    app = App(
        name="exclfs",
        help=_HELP,
        help_epilogue=_EPILOGUE,
        help_format="markdown",
        help_formatter="plain",
        version=__version__,
        default_parameter=Parameter(negative=(), show_default=False),
    )
    app["--help"].group = app["--version"].group = Group("Options", sort_key=1)
    for order, (name, (usage, summary)) in enumerate(COMMANDS.items()):
        app.command(
            f"exclfs.cli.{name}:{name}",
            name=name,
            sort_key=order,
            usage=f"Usage: exclfs {usage}",
            help=None if name == chosen else summary,  # the chosen one has its docstring; the others are not imported
            help_epilogue=_EXIT_CODES,
        )
    return app


def parse(arguments: Sequence[str], command: tuple[str, ...] | None = None) -> Callable[[], object]:
    """What the arguments ask for, ready to be called; it returns the exit code, or None for 0.

    Args:
        arguments: the command line without the program's name; at least one.
        command: what follows `--` in `exclfs hold … -- CMD`; None if there is no `--`.

    Raises:
        Usage: they are not a command line of exclfs.
    """
    app = application(arguments[0])
    try:
        words = [WITHOUT_VALUE.get(word, word) for word in arguments]
        function, bound, set_by_us = app.parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise Usage(_word(error), _subcommand(arguments)) from None
    extra = {"command": command} if "command" in set_by_us else {}
    return lambda: function(*bound.args, **bound.kwargs, **extra)


def _subcommand(arguments: Sequence[str]) -> str:
    return arguments[0] if arguments and arguments[0] in COMMANDS else ""


def _word(error: cyclopts.CycloptsError) -> str:
    """The error in one line, lower case, without a full stop."""
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None:
        if error.keyword is not None:
            return f"{error.keyword} needs a value"
        name = error.argument.name
        return f"{name if name.startswith('--') else name.upper()} is missing"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or ())} is one too many"
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:]
