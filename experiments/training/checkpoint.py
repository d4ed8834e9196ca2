"""Checkpoints: the whole training state and the loop's counters, saved together by Orbax and verified when read.

A save runs in the background. Before Orbax commits it (a rename on a local disk, a marker file on an object store), a
manifest with the SHA-256 of each file is written into it, so that a checkpoint is either whole or known not to be.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from experiments.errors import UserError
from experiments.files import is_object_store
from experiments.training.config import CheckpointConfig
from experiments.training.manifest import copy_files, damage, write_manifest

_SPARE_BYTES = 2**19  # file tables and metadata of a checkpoint, the metrics, the result
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_DAMAGED = "damaged"
_NONE, _FAILED = -1, -2  # in the place of a step


class Checkpoints:
    """The checkpoints of one training: the newest, permanent ones, and the best.

    A checkpoint holds two items: `state` (the arrays) and `loop` (the loop's counters, and the value of
    `config.best` if it was a new best). All processes of a training make the same calls.
    """

    def __init__(
        self, folder: epath.PathLike, config: CheckpointConfig | None = None, *, read_only: bool = False
    ) -> None:
        """Open the folder, or create it.

        Args:
            folder: on a local disk, or on an object store such as `gs://bucket/run/checkpoints`.
            config: which checkpoints are kept.
            read_only: change nothing in the folder, which may be another training's.
        """
        self.folder = epath.Path(folder)
        self._local = not is_object_store(self.folder)
        if self._local:
            self.folder = self.folder.resolve()
        self._config, self._read_only = config or CheckpointConfig(), read_only
        self._writing: int | None = None
        self._failure: Exception | None = None
        self._kept_best = _KeptBest()
        self._manager = ocp.CheckpointManager(self.folder, options=self._options())
        if self._config.best and not read_only:
            self._kept_best.values = {step: self._best(step) for step in self.steps()}

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        self._settle()
        return sorted(step for step in self._manager.all_steps() if step != self._writing)

    @property
    def best_metric(self) -> str:
        """Name of the metric whose best checkpoint is kept; empty if none is."""
        return self._config.best

    def keep_best(self, step: int, value: float) -> None:
        """Keep a checkpoint that was saved before its value of `config.best` was known.

        Args:
            step: of the checkpoint.
            value: of the metric.
        """
        self._kept_best.values[step] = value

    def save(self, step: int, state: Any, loop: Mapping[str, Any], *, best: float | None = None) -> None:
        """Start saving; the arrays are copied before this returns, so the state may be donated afterwards.

        Args:
            step: number of completed updates, the checkpoint's label.
            state: pytree of arrays.
            loop: JSON-able counters.
            best: value of `config.best`, if this step is a new best; the checkpoint of the smallest value is kept.

        Raises:
            UserError: this or an earlier save could not be written.
        """
        if self._read_only:
            raise ValueError(f"folder: got {self.folder}, opened to read only, expected one to write to")
        self._settle(wait=True)
        self.check()
        if step in self.steps():
            raise UserError(f"there is a checkpoint {step} in {self.folder} already")
        values = {"loop": dict(loop), "best": None if best is None else {self._config.best: best}}
        json.dumps(values)  # a counter that is no JSON is the caller's mistake, not the disk's
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(values))
        with self._told():
            self._check_space(state)
            self._kept_best.values[step] = best
            self._writing = step
            try:
                self._manager.save(step, args=items, force=True)
            except Exception:
                self._forget()
                raise

    def check(self) -> None:
        """Raise what a save in the background raised; takes microseconds.

        Raises:
            UserError: a save could not be written; the checkpoints before it are whole.
        """
        self._settle()
        failure, self._failure = self._failure, None
        if failure is not None:
            with self._told():
                raise failure

    def restore(self, like: Any, shardings: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that is not damaged, placed on the devices; None if there are no checkpoints.

        Damaged ones that are newer are named on stderr and put aside, into the folder `damaged`.

        Args:
            like: pytree of shapes and dtypes of the state.
            shardings: pytree of shardings of the state.
            step: read this one and no other.

        Returns:
            The state and the loop's counters.

        Raises:
            UserError: all are damaged, the one found is of another model, or `step` is not there.
        """
        found = self._newest_whole(step)
        if found is None:
            return None
        place = _placed(like, shardings)
        self._refuse_other(found, place)
        with self._told("read"):
            state = self._read(found, "state", ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(place))
            loop = self._read(found, "loop", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())["loop"]
            if step is None and not self._read_only:
                self._put_aside([newer for newer in self.steps() if newer > found])
        return state, loop

    def restore_params(
        self, like: Mapping[str, Any], shardings: Mapping[str, Any], step: int | None = None, *, ema: bool = False
    ) -> dict[str, Any]:
        """Some fields of the state in the newest checkpoint that is not damaged; nothing in the folder is changed.

        Args:
            like: name of the field (`params`, `collections`) -> pytree of shapes and dtypes.
            shardings: name of the field -> pytree of shardings.
            step: read this one and no other.
            ema: read the averaged parameters in the place of `params`, if the training kept an average.

        Returns:
            Name of the field -> arrays.

        Raises:
            UserError: there is none, all are damaged, it is of another model, or `step` is not there.
        """
        found = self._newest_whole(step)
        if found is None:
            raise UserError(f"no checkpoint in {self.folder}")
        averaged = ema and any(name.startswith("ema/") for name in self._shapes(found))
        stored = {"params": "ema"} if averaged else {}
        place = {stored.get(name, name): _placed(like[name], shardings[name]) for name in like}
        self._refuse_other(found, place, partial=True)
        restore_args = ocp.checkpoint_utils.construct_restore_args(place)
        args = ocp.args.PyTreeRestore(item=place, restore_args=restore_args, partial_restore=True)
        with self._told("read"):
            fields = self._read(found, "state", ocp.PyTreeCheckpointHandler(), args)
        return {name: fields[stored.get(name, name)] for name in like}

    def close(self) -> None:
        """Wait until everything is on disk.

        Raises:
            UserError: a save could not be written; the checkpoints before it are whole.
        """
        try:
            self._settle(wait=True)
            self.check()
        finally:
            self._manager.close()

    def _options(self) -> ocp.CheckpointManagerOptions:
        config, managers, modes = self._config, ocp.checkpoint_managers, ocp.options.AtomicityMode
        kept: list[Any] = [managers.LatestN(config.keep)]
        if config.permanent_every:
            kept.append(managers.EveryNSteps(config.permanent_every))
        if config.best:
            kept.append(self._kept_best)
        return ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(kept),
            create=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
            save_root_metadata=False,
            # Opening reads no metadata of Orbax, which may be damaged and is used for nothing here.
            lightweight_initialize=True,
            atomicity_options=ocp.options.AtomicityOptions(modes.ATOMIC_RENAME if self._local else modes.COMMIT_FILE),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._before_commit),
        )

    def _before_commit(self) -> None:
        """Called by Orbax in process 0 when all files are written, right before the commit."""
        atomicity = ocp.path.atomicity
        kind = atomicity.AtomicRenameTemporaryPath if self._local else atomicity.CommitFileTemporaryPath
        write_manifest(kind.from_final(self.folder / str(self._writing)).get())

    def _settle(self, *, wait: bool = False) -> None:
        """Take note that the save in the background has ended, and how."""
        if self._writing is None or (self._manager.is_saving_in_progress() and not wait):
            return
        try:
            # Not `check_for_errors`: it would take the error from Orbax's own thread, which then deletes older ones.
            self._manager.wait_until_finished()
        except Exception as failure:
            self._failure = failure
            self._forget()
        self._writing = None

    def _forget(self) -> None:
        """A save failed: Orbax counts it and has already struck off those that were to make room for it."""
        self._writing = None
        self._manager.reload()

    def _newest_whole(self, step: int | None) -> int | None:
        self._settle(wait=True)
        if step is not None and step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"no checkpoint {step} in {self.folder}; there: {there}")
        steps = self.steps() if step is None else [step]
        with self._told("read"):
            found = _of_first_process(lambda: self._verified(steps[::-1]))
        return None if found == _NONE else found

    def _verified(self, steps: Sequence[int]) -> int:
        reasons: dict[int, str] = {}
        for step in steps:
            reason = damage(self.folder / str(step))
            if reason is None:
                for damaged, what in reasons.items():
                    text = f"checkpoint {damaged} in {self.folder} is damaged ({what}); going on from checkpoint {step}"
                    print(f"warning: {text}", file=sys.stderr)
                return step
            reasons[step] = reason
        if not steps:
            return _NONE
        which = (
            f"checkpoint {steps[0]} in {self.folder} is damaged"
            if len(steps) == 1
            else (f"all {len(steps)} checkpoints in {self.folder} are damaged, the newest is {steps[0]}")
        )
        raise UserError(f"{which} ({reasons[steps[0]]}); move that folder away to start again")

    def _put_aside(self, steps: Sequence[int]) -> None:
        """Move damaged checkpoints out of the way: somebody may still want to look at what they hold."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                source, target = self.folder / str(step), self.folder / _DAMAGED / str(step)
                if target.exists():
                    target.rmtree()
                target.parent.mkdir(parents=True, exist_ok=True)
                if self._local:
                    source.rename(target)
                else:
                    copy_files(source, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints put aside")
        if not self._local:
            for step in steps:
                self._manager.delete(step)
        self._manager.reload()

    def _read(self, step: int, item: str, handler: Any, args: Any) -> Any:
        # An item by itself, because the files that Orbax writes at the commit are in no manifest.
        with ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(self.folder / str(step) / item, args=args)

    def _best(self, step: int) -> float | None:
        try:
            # The file that `JsonSave` writes; one that cannot be read is damaged, which matters when it is restored.
            best = json.loads((self.folder / str(step) / "loop" / "metadata").read_bytes())["best"]
            return best[self._config.best]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _shapes(self, step: int) -> dict[str, str]:
        saved = ocp.StandardCheckpointHandler().metadata(self.folder / str(step) / "state")
        return _shapes(saved)

    def _refuse_other(self, step: int, like: Any, *, partial: bool = False) -> None:
        """Refuse a checkpoint of another model: Orbax would cast, cut and pad."""
        with self._told("read"):
            saved = self._shapes(step)
        expected = _shapes(like)
        if partial:
            saved = {name: shape for name, shape in saved.items() if name.split("/")[0] in like}
        for name in sorted(saved.keys() | expected.keys()):
            ours, theirs = expected.get(name, "nothing"), saved.get(name, "nothing")
            if ours != theirs:
                raise UserError(
                    f"checkpoint {step} in {self.folder} is of another model: "
                    f"{name}: checkpoint has {theirs}, the model {ours}"
                )

    def _check_space(self, state: Any) -> None:
        """Refuse before anything is written: threads that meet a full disk half-way print a traceback each."""
        if not self._local:
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            size = f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free"
            raise UserError(f"no space left on device for a checkpoint in {self.folder}: {size}")

    @contextmanager
    def _told(self, what: str = "saved") -> Iterator[None]:
        """What went wrong below, in one line; Orbax and TensorStore wrap it in several."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            refused = next((os.strerror(code) for code in _REFUSALS if os.strerror(code) in str(error)), None)
            if refused is None and isinstance(error, TypeError | AttributeError | LookupError | AssertionError):
                raise  # a mistake in a program, which needs its traceback
            reason = refused or (next(iter(str(error).strip().splitlines()), "") or type(error).__name__)[:160]
            raise UserError(f"a checkpoint could not be {what} in {self.folder}: {reason}") from error


class _KeptBest(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the checkpoint of the smallest value, of equal ones the newest.

    Attributes:
        values: step -> value, None for a checkpoint that was no new best.
    """

    def __init__(self) -> None:
        self.values: dict[int, float | None] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        valued = [(self.values.get(info.step), -info.step) for info in checkpoints]
        ranked = [(value, step) for value, step in valued if value is not None]
        best = -min(ranked)[1] if ranked else None
        return [info.step == best for info in checkpoints]


def _placed(like: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)


def _shapes(tree: Any) -> dict[str, str]:
    """Path of each array -> dtype and shape as they are stored; typed random keys are stored as their data."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.ShapeDtypeStruct) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        if getattr(leaf, "shape", None) is not None:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            named[name] = f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
    return named


def _of_first_process(find: Callable[[], int]) -> int:
    """What process 0 finds, in all processes; where it refuses, all do."""
    if jax.process_count() == 1:
        return find()
    found, failure = _FAILED, None
    if jax.process_index() == 0:
        try:
            found = find()
        except Exception as error:
            failure = error
    found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if found == _FAILED:
        raise failure or UserError("process 0 could not read a checkpoint")
    return found
