"""A short training, disturbed at random moments, must lose nothing and end bit for bit like an undisturbed one.

    python tests/reliability/disturbance.py --rounds 100 --seed 0

A round is one training in a folder of its own. One to four times its process is disturbed: SIGKILL, SIGTERM, a full
disk, or a limit on the size of files, at a moment that is uniform over the updates still to come, or over the whole
life of the process, from its start to its exit. In between, the newest checkpoint may be damaged: a file cut short,
emptied, deleted or changed in one bit, or the folder of one item deleted. At last it is left alone to finish.

- killed: processes that were still running when the signal was sent.
- restarted: processes that had to go on from where a disturbed one had left the folder.
- lost: one of them did not start from the newest checkpoint that was whole, or failed, or hung; or the process before
  took a checkpoint with it, or ended otherwise than it should: with status 75 and everything saved after SIGTERM, with
  status 2 and one line of error on a full disk (threads of libraries may print tracebacks too; these are counted).
- different: a training whose final state or metrics are not those of the undisturbed one.

The disk is really full where mounts in a namespace of one's own are permitted (Linux, `unshare`): a small one in
memory is filled up while the training runs. Elsewhere only the limit on the size of files makes saving fail.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from etils import epath

from experiments.training.manifest import damage

STEPS, PAUSE_SECONDS = 40, 0.01  # as in disturbed_training.py
PATIENCE_SECONDS = 120.0  # after which a process counts as hung
DISK_BYTES = 2**25

KILLS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
FULL, LIMIT = "full disk", "file size limit"
DAMAGES = ("cut short", "emptied", "deleted", "bit flipped", "folder deleted")
# Written by Orbax at the commit itself; nothing is read from them, so that damage to them must not matter.
UNUSED = ("_CHECKPOINT_METADATA", "commit_success.txt")


class Process:
    """One life of a training, and what it has said so far."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it."""
        self.begun = time.monotonic()
        self._popen = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._popen.stdout is not None
        self.pid, self._pipe, self._read = self._popen.pid, self._popen.stdout.fileno(), b""
        self._closed = False
        os.set_blocking(self._pipe, False)

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def told(self) -> str:
        """Whole lines from stdout and stderr."""
        with suppress(BlockingIOError):
            while not self._closed and (piece := os.read(self._pipe, 2**16)):
                self._read += piece
        return self._read[: self._read.rfind(b"\n") + 1].decode(errors="replace")

    @property
    def updates(self) -> int | None:
        """Completed updates as last told; None before the first one of this life is begun."""
        _, begun, rest = f"\n{self.told}".rpartition("\nupdate ")
        return int(rest.split()[0]) if begun else None

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait for something or the end; returns whether it is still running.

        Raises:
            Trouble: neither has come.
        """
        while self.status is None and not until():
            if time.monotonic() - self.begun > PATIENCE_SECONDS:
                raise Trouble(f"hung for {PATIENCE_SECONDS:g} s")
            time.sleep(0.003)
        return self.status is None

    def close(self) -> None:
        """Leave no process behind."""
        self._popen.kill()
        self._popen.wait()
        _, self._closed = self.told, True
        assert self._popen.stdout is not None
        self._popen.stdout.close()


class Trouble(Exception):
    """A process did what it must not: something is lost."""


@dataclass
class Counts:
    """What happened, over all rounds."""

    rounds: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    restarted: int = 0
    lost: int = 0
    different: int = 0
    noisy: int = 0

    def __str__(self) -> str:
        """One line of counts."""
        killed, faults = (
            f"{sum(counter.values())} ({', '.join(f'{name} {counter[name]}' for name in sorted(counter)) or 'none'})"
            for counter in (self.killed, self.faults)
        )
        noisy = f", of the refused writes {self.noisy} with tracebacks of libraries" if self.noisy else ""
        told = f"rounds {self.rounds}, killed {killed}, faults {faults}{noisy}"
        return f"{told}, restarted {self.restarted}, lost {self.lost}, different {self.different}"


@dataclass
class Setting:
    """What all rounds share.

    Attributes:
        command: begins or continues the training whose folder is its last word.
        environment: of the process.
        folder: where the trainings are.
        faults: of the disk, among `FULL` and `LIMIT`; a full one only where that folder is a disk of its own.
        expected: name -> digest, of the undisturbed training.
        seconds: that it took.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    faults: tuple[str, ...] = (LIMIT,)
    expected: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def undisturbed(self) -> None:
        """Learn what to expect, twice: a training that differs from itself would tell nothing."""
        ends = []
        for number in range(2):
            process = Process([*self.command, str(self.folder / f"undisturbed-{number}")], self.environment)
            try:
                process.wait()
                self.seconds = time.monotonic() - process.begun
            finally:
                process.close()
            ends.append(_end(process.told))
            if process.status or not ends[-1]:
                raise SystemExit(f"the undisturbed training failed:\n{process.told}")
        if ends[0] != ends[1]:
            raise SystemExit(f"two undisturbed trainings differ in {', '.join(_differences(*ends))}")
        self.expected = ends[0]


class Round:
    """One training, and a book of what must be left of it."""

    def __init__(self, setting: Setting, name: str, counts: Counts) -> None:
        """Begin with nothing; all that is random depends on the name."""
        self.setting, self.counts, self.random = setting, counts, random.Random(name)
        self.folder = setting.folder / re.sub(r"\W+", "-", name)
        self.damaged: set[int] = set()
        self.story: list[str] = []
        self._told = ""

    def run(self) -> list[str]:
        """Disturb the training until it is left to finish; returns what went wrong."""
        self.counts.rounds += 1
        try:
            for life in range(self.random.randint(1, 4)):
                self.counts.restarted += life > 0
                self._live(self.random.choice([*KILLS, *KILLS, *KILLS, *self.setting.faults]))
                if self.random.random() < 0.5:
                    self._damage(self.random.choice(DAMAGES))
            self.counts.restarted += 1
            differing = self._live(None)
        except Trouble as trouble:
            self.counts.lost += 1
            return [f"lost: {trouble}", *self._told.splitlines()]
        if differing:
            self.counts.different += 1
            return [f"different: {', '.join(differing)}"]
        shutil.rmtree(self.folder)
        return []

    def _live(self, kind: str | None) -> list[str]:
        """One process, disturbed or not, and what it must and must not have done; returns what it ended with."""
        before = max(self._whole(), default=0)
        process = Process([*self.setting.command, str(self.folder)], self.setting.environment)
        hit, at = False, None
        try:
            if kind is not None and self._wait_for_moment(process, before):
                hit, at = True, process.updates
                self._disturb(process, kind)
            process.wait()
        finally:
            process.close()
            (self.setting.folder / "filler").unlink(missing_ok=True)
            self._told = process.told
        self.story.append(f"{kind or 'left alone'}{f' at {at}' if hit else ''}: status {process.status}")
        self._check_start(before)
        newest = self._check_left(before)
        self._check_status(process.status, kind if hit else None, at, newest)
        return _differences(_end(self._told), self.setting.expected) if process.status == 0 else []

    def _wait_for_moment(self, process: Process, start: int) -> bool:
        """Whether the process is still there when the random moment has come."""
        if self.random.random() < 0.3:
            moment = process.begun + self.random.uniform(0, self.setting.seconds)
        else:
            update = self.random.randint(min(start, STEPS - 1), STEPS)
            process.wait(lambda: (process.updates or -1) >= min(update, STEPS - 1))
            late = 0.4 if update == STEPS else 4 * PAUSE_SECONDS
            moment = time.monotonic() + self.random.uniform(0, late)
        return process.wait(lambda: time.monotonic() >= moment)

    def _disturb(self, process: Process, kind: str) -> None:
        if kind in KILLS:
            os.kill(process.pid, KILLS[kind])  # not yet waited for, so that the number is still its own
            self.counts.killed[kind] += 1
            return
        self.counts.faults[kind] += 1
        if kind == FULL:
            left = int(2 ** self.random.uniform(12, 20))
            with suppress(OSError), open(self.setting.folder / "filler", "wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, max(1, shutil.disk_usage(self.setting.folder).free - left))
        else:
            with suppress(ProcessLookupError):
                _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
                limit = int(2 ** self.random.uniform(0, 15))
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, hard))

    def _damage(self, kind: str) -> None:
        """Damage the newest whole checkpoint if there is another one to go on from."""
        whole = self._whole()
        if len(whole) < 2:
            return
        newest = self._checkpoint(whole[-1])
        if kind == "folder deleted":
            name = self.random.choice(("state", "loop"))
            shutil.rmtree(newest / name)
        else:
            files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
            path = self.random.choice(files)
            name = path.relative_to(newest).as_posix()
            damage_file(path, kind, self.random)
        self.counts.faults[kind] += 1
        self.story.append(f"{kind} {whole[-1]}/{name}")
        if name not in UNUSED:
            self.damaged.add(whole[-1])

    def _check_start(self, newest: int) -> None:
        """It started from the newest whole checkpoint, if it came to that."""
        going_on = re.search(r": going on from .* after (\d+) updates$", self._told, re.M)
        first = re.search(r"^update (\d+)$", self._told, re.M)
        start = going_on or first
        if start and int(start[1]) != newest:
            raise Trouble(f"started after {start[1]} updates, the newest whole checkpoint is {newest}")
        # Those that were damaged were all newer, and have been put aside.
        self.damaged = set() if going_on else self.damaged & set(self._committed())

    def _check_left(self, before: int) -> int:
        """The newest checkpoint is whole unless it was damaged here, and none was lost; returns its step."""
        newest = max(set(self._committed()) - self.damaged, default=0)
        reason = damage(epath.Path(self._checkpoint(newest))) if newest else None
        if reason:
            raise Trouble(f"checkpoint {newest} was left damaged ({reason})")
        if newest < before:
            raise Trouble(f"checkpoint {before} is gone, the newest is {newest}")
        return newest

    def _check_status(self, status: int | None, kind: str | None, at: int | None, newest: int) -> None:
        """It ended as this disturbance may end it; at: updates that were complete then."""
        allowed = {None: {0}, "SIGKILL": {-signal.SIGKILL, 0}, FULL: {0, 2}, LIMIT: {0, 2}}.get(kind)
        if kind == "SIGTERM":
            # Before training and behind it there is nothing to save, and the signal ends the process by itself.
            stepping = at is not None and at < STEPS - 1
            allowed = {75} if stepping else {75, -signal.SIGTERM, 0}
            saved = re.search(r": SIGTERM, saved after (\d+) updates", self._told)
            promised = max(at, int(saved[1]) if saved else STEPS) if at is not None else 0
            if newest < promised:
                raise Trouble(f"SIGTERM after {at} updates, the newest checkpoint is {newest}")
        errors = len(re.findall(r"^error: ", self._told, re.M))
        if status not in (allowed or ()) or errors != (status == 2):
            raise Trouble(f"status {status} and {errors} lines of error after {kind or 'nothing'} at update {at}")
        self.counts.noisy += status == 2 and "Traceback" in self._told
        if status == 0 and newest != STEPS:
            raise Trouble(f"finished, and the newest checkpoint is {newest}")

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / str(step)

    def _committed(self) -> list[int]:
        folder = self.folder / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    def _whole(self) -> list[int]:
        undamaged = (step for step in self._committed() if step not in self.damaged)
        return [step for step in undamaged if damage(epath.Path(self._checkpoint(step))) is None]


def damage_file(path: Path, kind: str, chance: random.Random) -> None:
    """Damage a file that is not empty, one of `DAMAGES`."""
    content = path.read_bytes()
    if kind == "deleted":
        path.unlink()
    elif kind == "bit flipped":
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
    else:
        path.write_bytes(content[: chance.randrange(len(content)) if kind == "cut short" else 0])


def _end(told: str) -> dict[str, str]:
    """The digests that a process printed."""
    end = re.search(r"^end (\{.*\})$", told, re.M)
    return json.loads(end[1]) if end else {}


def _differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def disturb(setting: Setting, rounds: range, seed: int, *, verbose: bool = False) -> Counts:
    """Run rounds one after the other, telling at once what went wrong."""
    counts = Counts()
    for number in rounds:
        attempt = Round(setting, f"seed {seed} round {number}", counts)
        wrong = attempt.run()
        if wrong or verbose:
            print(f"round {number}: {'; '.join(attempt.story)}", *wrong, sep="\n  ", flush=True)
    return counts


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="trainings to disturb")
    parser.add_argument("--first", type=int, default=0, help="number of the first round, to see one again")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random but the clock")
    parser.add_argument("--verbose", action="store_true", help="tell what happened in each round")
    parser.add_argument("--disk", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.disk is None:
        return _on_a_disk_of_its_own(arguments)
    compiled = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(given.disk.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, str(Path(__file__).resolve().with_name("disturbed_training.py"))]
    faults = (FULL, LIMIT) if os.path.ismount(given.disk) else (LIMIT,)
    setting = Setting(command, {**os.environ, **compiled}, given.disk, faults)
    begun = time.monotonic()
    setting.undisturbed()
    counts = disturb(setting, range(given.first, given.first + given.rounds), given.seed, verbose=given.verbose)
    print(f"{counts}; {time.monotonic() - begun:.0f} s")
    return int(counts.lost + counts.different > 0)


def _on_a_disk_of_its_own(arguments: Sequence[str]) -> int:
    """Call this program again with a folder, which is a small disk if it may be mounted without being root."""
    with tempfile.TemporaryDirectory() as scratch:
        disk = Path(scratch) / "disk"
        disk.mkdir()
        script = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && exec "$@"'
        mount = ["unshare", "-rm", "sh", "-c", script, str(disk)]
        try:
            mounted = subprocess.run([*mount, "true"], stderr=subprocess.DEVNULL).returncode == 0
        except OSError:
            mounted = False
        again = [sys.executable, __file__, *arguments, "--disk", str(disk)]
        return subprocess.run([*(mount if mounted else ()), *again]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
