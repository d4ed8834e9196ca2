"""The supervisor of `run --processes N`: starts the processes, says which one died, and leaves none behind.

A process of JAX that loses another one is aborted by the runtime and cannot speak for itself, so that somebody outside
has to: the first process that fails is named in one line, and what the survivors then print is left out.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from experiments import distributed
from experiments.training.preemption import STATUS as PREEMPTED

_INTERRUPTED = 130
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 3.0  # for the others after one has failed, or after Ctrl-C
_LEAVING_SECONDS = 60.0  # for the others after one has saved and left
_CHATTER = (
    b"[Gloo] Rank",
    b"preemption_notifier.cc",
    b"Reached preemption sync point",
)  # of the runtime, at every start and every SIGTERM
# The runtime tells what it aborts a process for, with a stack trace behind it.
_ABORTING = re.compile(rb"^E\d+ .*coordination_service|the JAX distributed service detected fatal errors")
_SILENT = b"stopped sending heartbeats"  # and the numbers of those who did, one per line


def supervise(arguments: Sequence[str], count: int, *, run: str, debug: bool = False) -> int:
    """Run one command line of `experiments` in several processes on this machine, and wait for all of them.

    Process 0 prints to stdout itself. On stderr its lines are shown as they are and those of the others with their
    number before them; a refusal that several tell is shown once.

    Args:
        arguments: words of the command line, the command first.
        count: of processes.
        run: what the same command continues, for the message after Ctrl-C.
        debug: also show what the others print after one has failed.

    Returns:
        0; 2 if the command was refused; 75 if it saved after SIGTERM; 130 after Ctrl-C; 128 + the number of the signal
        that killed a process; else 1.
    """
    return _Supervisor(arguments, count, run, debug).supervise()


class _Process:
    """One process, and the thread that reads its stderr."""

    def __init__(self, number: int, command: list[str], environment: dict[str, str], lines: queue.SimpleQueue) -> None:
        self.number = number
        self._popen = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C reaches the supervisor alone, which passes it on
        )
        self._lines = lines
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ended_at = float("inf")
        self._status: int | None = None
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def ended(self) -> int | None:
        """Exit status, negative for a signal, once it has ended; nothing that it started outlives it."""
        if self._status is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._reader.join(1.0)
        return self._status

    def send(self, signum: int) -> None:
        self._popen.send_signal(signum)

    def kill(self) -> None:
        """End it, and wait until it has."""
        self._popen.kill()
        self._waiter.join()
        self.ended()

    def _wait(self) -> None:
        # Who ended first is the cause: the others notice only then, and end within the same look of the supervisor.
        status = self._popen.wait()
        self.ended_at = time.monotonic()
        self._status = status

    def _read(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stderr:
            for line in stderr:
                self._lines.put((self.number, line))


class _Supervisor:
    """The processes of one command, and what became of them."""

    def __init__(self, arguments: Sequence[str], count: int, run: str, debug: bool) -> None:
        self._command = [sys.executable, "-m", "experiments", *arguments]
        self._count, self._run, self._debug = count, run, debug
        self._lines: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._running: list[_Process] = []
        self._signals: list[int] = []
        self._told: set[bytes] = set()
        self._last_words: dict[int, list[bytes]] = {}
        self._status = 0
        self._quiet = False
        self._terminated = False
        self._deadline = float("inf")

    def supervise(self) -> int:
        """Start, watch and wait; returns the exit status."""
        with self._noting_signals():
            try:
                self._start()
                while self._running:
                    self._follow_signals()
                    self._look()
            finally:
                for process in self._running:
                    process.kill()
        return self._status

    def _start(self) -> None:
        coordinator = f"localhost:{_free_port()}"
        for number in range(self._count):
            environment = _environment(number, self._count, coordinator)
            self._running.append(_Process(number, self._command, environment, self._lines))

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """Collect SIGTERM and SIGINT inside this block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {signum: signal.signal(signum, lambda given, _: self._signals.append(given)) for signum in signals}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _follow_signals(self) -> None:
        """Pass on what has arrived; a second Ctrl-C waits for nothing, nor does a process past its grace."""
        while self._signals:
            signum = self._signals.pop(0)
            if signum == signal.SIGTERM:
                self._terminated = True
            elif self._status == _INTERRUPTED:
                self._deadline = 0.0
            else:
                self._interrupted()
            self._send(signum)
        if time.monotonic() > self._deadline:
            self._send(signal.SIGKILL)

    def _interrupted(self) -> None:
        self._say(f"interrupted: the same command continues this run ({self._run})")
        self._give_up(_INTERRUPTED)

    def _look(self) -> None:
        """Notice which processes have ended, before showing what the others have to say about it."""
        lines = self._arrived(_POLL_SECONDS)
        ended = [(process, status) for process in self._running if (status := process.ended()) is not None]
        self._running = [process for process in self._running if process not in [gone for gone, _ in ended]]
        lines = self._without_last_words(lines + self._arrived(0))
        failed = [] if self._quiet else [(process, status) for process, status in ended if not self._is_fine(status)]
        words = [(process.number, line) for process, _ in ended for line in self._last_words.pop(process.number, [])]
        if not failed:
            self._show(lines + words)
        else:
            process, status = min(failed, key=lambda pair: (_suspicion(pair[1]), pair[0].ended_at))
            silent = _silent([line for number, line in words if number == process.number])
            lines += words if self._debug or not silent else []
            self._show([line for line in lines if line[0] == process.number or self._debug])
            self._failed(process.number, status, silent)
        if not self._quiet and any(self._has_left(status) for _, status in ended):
            self._status = PREEMPTED
            self._deadline = min(self._deadline, time.monotonic() + _LEAVING_SECONDS)

    def _without_last_words(self, lines: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Keep for later what a process says of its being aborted: another one may be the cause, and is named there."""
        others = []
        for number, line in lines:
            if number in self._last_words or _ABORTING.search(line):
                self._last_words.setdefault(number, []).append(line)
            else:
                others.append((number, line))
        return others

    def _is_fine(self, status: int) -> bool:
        late = self._status == PREEMPTED and status == -signal.SIGKILL  # did not leave with the others in time
        return status == 0 or late or self._has_left(status)

    def _has_left(self, status: int) -> bool:
        """Whether a process left because the machine is taken away, with something to save or before that."""
        return status == PREEMPTED or (self._terminated and status == -signal.SIGTERM)

    def _failed(self, number: int, status: int, silent: Sequence[int]) -> None:
        """Name the process, or those that it waited for, unless it told in one line what it refused; end the others."""
        if silent:
            how = "no longer answers" if len(silent) == 1 else "no longer answer"
        elif status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = "was interrupted" if status == _INTERRUPTED else f"failed with status {status}"
        if status != 2:
            who = ", ".join(map(str, silent or [number]))
            self._say(f"process {who} {how}; run the same command again to continue")
        self._give_up(128 - status if status < 0 else status if status in (2, _INTERRUPTED) else 1)
        self._send(signal.SIGTERM)

    def _give_up(self, status: int) -> None:
        self._status, self._quiet = status, True
        self._deadline = time.monotonic() + _GRACE_SECONDS

    def _send(self, signum: int) -> None:
        for process in self._running:
            process.send(signum)

    def _arrived(self, timeout: float) -> list[tuple[int, bytes]]:
        """Lines that have arrived; the first is waited for."""
        lines = []
        with suppress(queue.Empty):
            lines.append(self._lines.get(timeout=timeout) if timeout else self._lines.get_nowait())
            while True:
                lines.append(self._lines.get_nowait())
        return lines

    def _show(self, lines: Sequence[tuple[int, bytes]]) -> None:
        """Pass lines on."""
        if self._quiet and not self._debug:
            return
        for number, line in lines:
            if line.startswith(b"error: "):
                if line in self._told:
                    continue
                self._told.add(line)
            elif any(part in line for part in _CHATTER) and not self._debug:
                continue
            elif number > 0:
                line = b"[process %d] " % number + line
            sys.stderr.write(line.decode(errors="replace"))
        sys.stderr.flush()

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _silent(last_words: Sequence[bytes]) -> list[int]:
    """Numbers of the processes for whose silence the runtime aborted another one.

    Example:
        >>> _silent([b"are unhealthy (stopped sending heartbeats):", b"1", b"3", b"The tasks have crashed."])
        [1, 3]
    """
    begin = next((i for i, line in enumerate(last_words) if _SILENT in line), len(last_words))
    numbers = (re.search(rb"(\d+)\s*$", line) for line in last_words[begin + 1 :])
    return [int(number[1]) for number in takewhile(bool, numbers) if number]


def _suspicion(status: int) -> int:
    """Of several that failed at the same moment, the one killed from outside comes first, an aborted one last."""
    return 2 if status == -signal.SIGABRT else 0 if status < 0 else 1


def _environment(number: int, count: int, coordinator: str) -> dict[str, str]:
    """What makes a process one of several; each sees one accelerator, and the same modules as this process."""
    root = str(Path(__file__).resolve().parent.parent)
    ours = {
        distributed.PROCESS: str(number),
        distributed.PROCESSES: str(count),
        distributed.COORDINATOR: coordinator,
        distributed.SUPERVISOR: str(os.getpid()),
        "JAX_LOCAL_DEVICE_IDS": os.environ.get("JAX_LOCAL_DEVICE_IDS", str(number)),
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **ours}


def _free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
