"""`generate RUN_OR_PATH --prompt TEXT`: text from a trained language model, as it is made."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.compilation_cache import keep_compiled_programs
from experiments.errors import UserError
from experiments.evidence import find
from experiments.files import as_path

if TYPE_CHECKING:
    from experiments.language_models import LanguageModel, PretrainedModel, Trained

ModelLabel = Annotated[str | None, tyro.conf.arg(metavar="LABEL", help_behavior_hint="(needed if there are several)")]
_NO_PROMPT = "\n"


@dataclass(frozen=True)
class Flags:
    """Text from a trained causal language model, printed as it is made.

    RUN_OR_PATH is a run folder, the folder of one training in it, a folder that `export` wrote, or the id of a result:
    then the run that `show` shows. It may also be a checkpoint of Mamba, Mamba-2 or LightNet in the layout of others:
    config.json, safetensors and tokenizer.json. Only what follows the prompt is printed; the speed goes to stderr.
    """

    prompt: str = ""
    """text to continue; - reads it from stdin; an empty one stands for a newline"""
    tokens: int = 200
    """tokens to draw"""
    temperature: float = 1.0
    """divides the logits; 0 takes the likeliest token"""
    top_k: int = 0
    """draw from so many likeliest tokens; 0 from all"""
    top_p: float = 1.0
    """draw from the fewest likeliest tokens that reach this probability together"""
    seed: int = 0
    """the same seed gives the same text"""
    model: ModelLabel = None
    """which model of a run that trained several"""
    runs_dir: RunsDir = None
    """folder of run folders"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.tokens < 1:
            raise ValueError(f"--tokens: got {self.tokens}, expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature: got {self.temperature}, expected a number from 0")
        if self.top_k < 0:
            raise ValueError(f"--top_k: got {self.top_k}, expected at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p: got {self.top_p}, expected a number above 0 and up to 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"--seed: got {self.seed}, expected an integer from 0 to 2**31 - 1")


def main(arguments: Sequence[str]) -> int:
    """Print the text.

    Args:
        arguments: words after `generate`.

    Returns:
        0.
    """
    flags, words = parse(Flags(), f"{PROGRAM} generate RUN_OR_PATH", arguments)
    (source,) = exactly(words, "RUN_OR_PATH")
    folder = folder_of(source, flags.runs_dir)
    keep_compiled_programs()
    from experiments.language_models import load

    trained = load(folder, flags.model)
    prompt = _prompt(flags.prompt, trained.language_model)
    decoder, made, begun = trained.language_model.decoder(), 0, 0.0
    for made, token in enumerate(_tokens(trained, prompt, flags), start=1):
        print(decoder.push(token), end="", flush=True)
        begun = time.perf_counter() if made <= 2 else begun  # before the second the programs are compiled
    seconds = time.perf_counter() - begun
    print(decoder.finish(), flush=True)
    rate = f", {(made - 2) / seconds:.1f} tokens per second" if made > 2 else ""
    print(f"{made} tokens after {len(prompt)} of the prompt{rate}", file=sys.stderr)
    return 0


def folder_of(source: str, runs_dir: Path | None) -> Path:
    """The folder that a word of the command line means.

    Args:
        source: a folder, or the id of a result.
        runs_dir: folder of run folders.

    Returns:
        The folder, which exists.

    Raises:
        UserError: there is neither.
    """
    folder = as_path(source)
    return folder if folder.is_dir() else find(source, None, runs_dir).path


def _prompt(given: str, language_model: LanguageModel | PretrainedModel) -> list[int]:
    """Tokens of the prompt, at least one."""
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if given == "-" else given
    if tokens := language_model.encode(text or _NO_PROMPT):
        return tokens
    raise UserError("--prompt: the tokenizer makes no token of it")


def _tokens(trained: Trained, prompt: Sequence[int], flags: Flags) -> Iterator[int]:
    """Ids of the continuation."""
    import jax
    import numpy as np

    from lightnet.decoding import stream

    language_model, needed = trained.language_model, len(prompt) + flags.tokens - 1
    if language_model.limit is not None and needed > language_model.limit:
        most = max(0, language_model.limit - len(prompt) + 1)
        raise UserError(f"--tokens: got {flags.tokens}, and the model's positions end {most} tokens after the prompt")
    drawn = stream(
        language_model.build(cache=needed),
        trained.variables,
        np.array([prompt], np.int32),
        jax.random.key(flags.seed),
        steps=flags.tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
    )
    return (int(token[0]) for token in drawn)
