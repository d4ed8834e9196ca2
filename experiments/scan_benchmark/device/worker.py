"""A process that does what it is asked, and can be lost.

A kernel that never ends, or one that writes where it must not, takes its process and everything on the device with it.
So whoever decides and keeps the results never touches the device: it asks such a process, waits a while, and ends it.
"""

import importlib
import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

START_SECONDS = 90.0  # to start Python, import JAX or torch and find the device
LONGEST_REASON = 240  # characters of what an exception says


class Refused(Exception):
    """What cannot be had here: no kernel for these arrays, a peer that is not installed. The message says why."""


class Failed(Exception):
    """What was tried and went wrong. The message says how."""


class Worker:
    """A process with the functions of one module, started when it is first asked and again after it was lost.

    Args:
        module: name of the module, which is imported only there.
        environment: variables that are set there before anything is imported.

    Example:
        >>> Worker("math", {}).ask("sqrt", 30, 4.0)
        2.0
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._module, self._environment = module, dict(environment)
        self._process: Any = None
        self._pipe: Connection | None = None

    def ask(self, function: str, seconds: float, *arguments: Any) -> Any:
        """Call a function there.

        Args:
            function: its name.
            seconds: after which the process is ended.
            *arguments: of the function; pickled.

        Returns:
            What it returns.

        Raises:
            Refused: the function raised it, with the same message.
            Failed: it raised something else, did not come back in time, or the process died.
        """
        if self._process is None:
            self._start()
            seconds += START_SECONDS
        assert self._pipe is not None
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(seconds):
                raise Failed(f"no answer within {seconds:.0f} s")
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            status = self._process.exitcode
            self.close()
            raise Failed(f"its process died, exit status {status}") from None
        except Failed:
            self.close()
            raise
        if kind == "done":
            return content
        if kind == "refused":
            raise Refused(content)
        self.close()  # after an error on a device nothing there can be relied on
        raise Failed(content)

    def close(self) -> None:
        """End the process, whatever it does; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join(10)
            assert self._pipe is not None
            self._pipe.close()
        self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._module, self._environment), daemon=True)
        self._process.start()
        theirs.close()


def serve(pipe: Connection, module: str, environment: Mapping[str, str]) -> None:
    """Answer until the other end is closed.

    Args:
        pipe: of questions (function, arguments), and answers (kind, content).
        module: whose functions are called.
        environment: set before the module is imported.
    """
    os.environ.update(environment)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = "done", getattr(importlib.import_module(module), function)(*arguments)
        except Refused as error:
            answer = "refused", str(error)
        except Exception as error:
            answer = "failed", reason(error)
        pipe.send(answer)


def reason(error: BaseException) -> str:
    """An exception in one line.

    Args:
        error: what was raised.

    Returns:
        Its type and the beginning of its message.

    Example:
        >>> reason(ValueError("too", "many"))
        "ValueError: ('too', 'many')"
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]
