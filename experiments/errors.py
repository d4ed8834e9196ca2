"""Mistakes of the person at the keyboard, and how any of them becomes one line instead of a traceback."""

from __future__ import annotations

import opcode
import sys
import sysconfig
from pathlib import Path
from types import TracebackType

# Libraries wrap the system's refusals in exceptions of their own; these words survive the wrapping.
_SYSTEM_REFUSALS = (
    "No space left on device",
    "Read-only file system",
    "Permission denied",
    "Disk quota exceeded",
    "File too large",
)
_OWN_PACKAGES = ("experiments", "lightnet", "ssm", "kd")


class UserError(Exception):
    """A mistake of the person at the keyboard, told in one clear line.

    The command line prints `error: <line>` and exits with status 2; `--debug` adds the traceback.

    Example:
        >>> raise UserError("unknown preset 'cpuu'; nearest: cpu")
        Traceback (most recent call last):
        ...
        experiments.errors.UserError: unknown preset 'cpuu'; nearest: cpu
    """


def one_line(error: BaseException) -> str | None:
    """The line to show for an exception that is no fault of the program.

    Args:
        error: what was raised.

    Returns:
        The line, or None for an exception that deserves its traceback.

    Example:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "runs/x"))
        'No such file or directory: runs/x'
        >>> one_line(KeyError("x")) is None
        True
    """
    if isinstance(error, UserError):
        return _flat(str(error))
    if isinstance(error, OSError) and error.strerror:
        return _flat(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    if refusal := _system_refusal(error):
        return refusal
    if isinstance(error, ValueError) and _raised_by_us(error):
        return _flat(str(error))
    return None


def _system_refusal(error: BaseException | None) -> str | None:
    """First line of an exception, or of one of its causes, that repeats a refusal of the operating system."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for line in str(error).splitlines():
            if any(refusal in line for refusal in _SYSTEM_REFUSALS):
                return _flat(line)
        error = error.__cause__ or error.__context__
    return None


def _raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` of this project or of the user's own file made it: no library, and no bug in an expression."""
    origin = _origin(error)
    if origin is None:
        return False
    frame = origin.tb_frame
    if frame.f_code.co_code[origin.tb_lasti] != opcode.opmap["RAISE_VARARGS"]:  # `zip(strict=True)`, `int(text)`, ...
        return False
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _OWN_PACKAGES:
        return True
    path = Path(frame.f_code.co_filename)
    libraries = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sys.prefix}
    return path.is_file() and not any(path.is_relative_to(folder) for folder in libraries)


def _flat(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def _origin(error: BaseException) -> TracebackType | None:
    """Innermost entry of an exception's traceback."""
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    return entry
