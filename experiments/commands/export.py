"""`export RUN DIR`: a trained language model as safetensors and config.json."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.commands.generate import ModelLabel, folder_of
from experiments.errors import UserError
from experiments.files import as_path, is_object_store


@dataclass(frozen=True)
class Flags:
    """A trained causal language model as config.json, model.safetensors and, unless it reads bytes, tokenizer.json.

    RUN is a run folder, the folder of one training in it, or the id of a result: then the run that `show` shows. DIR is
    made; an earlier export in it is replaced. Averaged weights are taken if the training kept an average.
    """

    model: ModelLabel = None
    """which model of a run that trained several"""
    runs_dir: RunsDir = None
    """folder of run folders"""


def main(arguments: Sequence[str]) -> int:
    """Write the folder.

    Args:
        arguments: words after `export`.

    Returns:
        0.
    """
    flags, words = parse(Flags(), f"{PROGRAM} export RUN DIR", arguments)
    source, target = exactly(words, "RUN", "DIR")
    folder, out = folder_of(source, flags.runs_dir), as_path(target)
    if is_object_store(out):
        raise UserError(f"DIR: got {target}, expected a folder on this machine")
    from experiments.language_models import export, load

    export(out, load(folder, flags.model))
    print(f"exported: {out}; try: {PROGRAM} generate {shlex.quote(str(out))} --prompt ...")
    return 0
