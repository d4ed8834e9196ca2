"""Checkpoints: the whole training state and the position in the data, saved together by Orbax."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.errors import UserError

_SPARE_BYTES = 2**19  # file tables and metadata of a checkpoint, the metrics, the result
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


class Checkpoints:
    """The checkpoints of one training: saved asynchronously, the newest two kept.

    A checkpoint holds two items: `state` (parameters, optimizer, step) and `loop` (position in the data, seconds, and
    the metrics of the last step, which are logged only after the next one).
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the folder."""
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> None:
        """Start saving; the arrays are copied before this returns, so the state may be donated afterwards.

        Args:
            step: number of completed updates, the checkpoint's label.
            state: pytree of arrays.
            loop: JSON-able counters.

        Raises:
            UserError: this or an earlier save could not be written.
        """
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(loop))
        self._check_space(state)
        with self._told():
            self._manager.save(step, args=items)

    def restore(self, like: Any, shardings: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint, placed on the devices; None if there is none.

        Args:
            like: pytree of shapes and dtypes of the state.
            shardings: pytree of shardings of the state.

        Returns:
            The state and the loop's counters.

        Raises:
            UserError: there are checkpoints and the newest cannot be read; starting again would lose it silently.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        place = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(place), loop=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:
            # Orbax raises many kinds here (missing or torn files, other shapes); none may restart the training.
            reason = str(error).strip().splitlines()[0][:160]
            raise UserError(
                f"checkpoint {step} in {self.folder} cannot be read ({reason}); move that folder away to start again"
            ) from error
        return restored["state"], restored["loop"]

    def close(self) -> None:
        """Wait until everything is on disk.

        Raises:
            UserError: a save could not be written; the checkpoints before it are whole.
        """
        with self._told():
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_space(self, state: Any) -> None:
        """Refuse before anything is written: threads that meet a full disk half-way print a traceback each."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            size = f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free"
            raise UserError(f"no space left on device for a checkpoint in {self.folder}: {size}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the file system refused, in one line; Orbax and TensorStore wrap it in several."""
        try:
            yield
        except Exception as error:
            refused = (code for code in _REFUSALS if os.strerror(code) in str(error))
            code = next(refused, None)
            if code is None:
                raise
            raise UserError(f"a checkpoint could not be saved in {self.folder}: {os.strerror(code)}") from error
