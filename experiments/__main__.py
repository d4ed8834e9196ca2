"""`python -m experiments COMMAND`, also installed as `lightnet-lab`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from experiments.commands import COMMANDS, PROGRAM
from experiments.distributed import leave
from experiments.errors import UserError, one_line
from experiments.registry import unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words of the command line without the program; None takes those of this process.

    Returns:
        Exit status: 0; 1 after a crash; 2 after a mistake, told in one line; 75 after SIGTERM, when the same command
        continues; 130 after Ctrl-C.

    Example:
        >>> main(["lsit"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the sign for plus-minus gets a question mark
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # tyro leaves this way after --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _tell(error, debug)


def _tell(error: Exception, debug: bool) -> int:
    """Print one line for each mistake, and a traceback for what is not one; returns the exit status."""
    if isinstance(error, ExceptionGroup):  # several results, of which some failed
        return min(_tell(part, debug) for part in error.exceptions)
    line = one_line(error)
    if debug or line is None:
        traceback.print_exception(error)
    print(f"error: {line or f'{type(error).__name__}: {error}'}", file=sys.stderr)
    return 2 if line else 1


def _dispatch(arguments: Sequence[str]) -> int:
    """Import and run the command that the first word names; only `run` has to know of `--debug`."""
    debug = ["--debug"] if "--debug" in arguments else []
    arguments = [word for word in arguments if word != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(_version())
        return 0
    if arguments[0] not in COMMANDS:
        raise UserError(unknown("command", arguments[0], COMMANDS))
    return importlib.import_module(f"experiments.commands.{arguments[0]}").main(
        [*arguments[1:], *(debug if arguments[0] == "run" else [])]
    )


def _version() -> str:
    """What `--version` prints: version and commit."""
    from experiments import environment

    commit, dirty = environment.git_state()
    version = environment.versions().get("lightnet-lab", "not installed")
    return f"lightnet-lab {version}, {environment.code_version(commit, dirty)}"


def _help() -> str:
    """What `--help` prints."""
    commands = "\n".join(f"  {name:<9}{purpose}" for name, purpose in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [--help] [--debug] ...\n\n"
        "Every claim of a paper is a command with a verdict.\n\n"
        f"{commands}\n\n"
        "COMMAND --help shows the flags of a command; --debug shows the traceback of an error;\n"
        "--version prints version and commit.\n\n"
        "examples:\n"
        f"  {PROGRAM} list\n"
        f"  {PROGRAM} run tokenization/entropy_gap --preset smoke\n"
        f"  {PROGRAM} run tokenization/entropy_gap --config.train.steps 200 --seeds 0:5\n"
        f"  {PROGRAM} show tokenization/entropy_gap"
    )


if __name__ == "__main__":
    leave(main())
