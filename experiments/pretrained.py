"""Checkpoints in the layout of others as language models that text comes from.

Importing this module imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.errors import UserError
from experiments.text_stream import Vocabulary

if TYPE_CHECKING:
    from lightnet.backbone import CausalLM

TOKENIZER = "tokenizer.json"
_BYTES = 256


@dataclass(frozen=True)
class PretrainedModel(Vocabulary):
    """A causal language model of a checkpoint in the layout of others.

    Attributes:
        model: as its package makes it.
        vocab_size: number of tokens.
        tokenizer: JSON of a Hugging Face tokenizer; None reads bytes.
        limit: the model reads as many tokens as it is given.
    """

    model: CausalLM
    vocab_size: int
    tokenizer: str | None = None
    limit: ClassVar[None] = None

    def build(self, *, cache: int = 0) -> CausalLM:
        """The model, whose state has the same size however many tokens it has read."""
        del cache
        return self.model


def read_pretrained(
    folder: Path, load_pretrained: Callable[[Path], tuple[CausalLM, Any]]
) -> tuple[PretrainedModel, CausalLM, Any]:
    """A checkpoint in the layout of others.

    Args:
        folder: with tokenizer.json; without it tokens are bytes, if there are no more of them.
        load_pretrained: `ssm.pretrained.load_pretrained` or `lightnet.pretrained.load_pretrained`.

    Returns:
        What it is, the model and its variables.

    Raises:
        UserError: the checkpoint cannot be read, or it is not known what its tokens are.
    """
    try:
        model, variables = load_pretrained(folder)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    path, size = folder / TOKENIZER, model.vocab_size
    if not path.is_file() and size > _BYTES:
        raise UserError(f"{path} does not exist, and the model's {size} tokens are no bytes: put its tokenizer there")
    tokenizer = path.read_text(encoding="utf-8") if path.is_file() else None
    return PretrainedModel(model, size, tokenizer), model, variables
