"""Language modelling on Python's standard library: text to rows of tokens, the task, and models of equal size.

Tokens are bytes, or byte-level BPE trained on the training part. Losses are in nats per byte of text in both cases, so
that they compare. The text is not filtered: it is ASCII but for a few hundred bytes in a million.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from experiments import equal_size
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from experiments.language_models import LanguageModel
    from experiments.sources import Corpus
    from experiments.training.task import Task

BYTES = 256


@dataclass(frozen=True)
class TextConfig:
    """Which text, and how much of it is held out."""

    every: int = 8
    """Stride in the list of the standard library's files by path: 1 takes all 12 MB, 8 takes 92 files of 1.8 MB."""
    folds: int = 10
    """The held-out documents are one of so many parts of equal size; a seed decides which."""
    length: int = 128
    """Tokens per row."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("text.every", self.every, 1)
        require("text.folds", self.folds, 2)
        require("text.length", self.length, 1)


@dataclass(frozen=True)
class ModelConfig:
    """The size that all models have; the GLU's width is that of LightNet with both encodings."""

    num_layers: int = 2
    """Blocks."""
    width: int = 64
    """Channels."""
    num_heads: int = 2
    """Heads of the mixers that have any."""
    hidden: int = 128
    """Width of the GLU; other models get the width with which they have as many parameters."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_layers", "width", "num_heads", "hidden"):
            require(f"model.{name}", getattr(self, name), 1)
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads: got {self.num_heads}, expected a divisor of {self.width}, the width")


def parts(config: TextConfig, seed: int) -> tuple[Corpus, Corpus]:
    """The training part and the held-out part of the standard library's sources, whole files each.

    Args:
        config: how much text, and how much of it is held out.
        seed: decides which files are held out.

    Returns:
        (training part, held-out part).
    """
    from experiments.sources import Corpus, standard_library

    library = standard_library()
    corpus = Corpus(library.name, library.documents[:: config.every])
    return corpus.split(seed % config.folds, config.folds)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that text is cut into.

    Attributes:
        tokenizer: JSON of a byte-level Hugging Face tokenizer; None has bytes as tokens.
        lengths: (V,) bytes of each token.

    Example:
        >>> Vocabulary(None, np.ones(256)).encode(("ab", "c")).tolist()
        [97, 98, 99]
    """

    tokenizer: str | None
    lengths: NDArray[np.float32]

    def encode(self, documents: tuple[str, ...]) -> NDArray[np.int32]:
        """All documents, one behind the other, as one sequence of tokens."""
        if self.tokenizer is None:
            return np.frombuffer("".join(documents).encode(), dtype=np.uint8).astype(np.int32)
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_str(self.tokenizer).encode_batch_fast(list(documents))
        return np.concatenate([np.asarray(document.ids, np.int32) for document in encoded])


def vocabulary(size: int, text: Corpus) -> Vocabulary:
    """Bytes if there are 256 tokens, else byte-level BPE trained on a text.

    Args:
        size: tokens, at least 256; a short text may have fewer.
        text: what BPE is trained on.

    Returns:
        The vocabulary.

    Raises:
        ValueError: size is below 256.
    """
    if size < BYTES:
        raise ValueError(f"vocabularies: got {size}, expected at least {BYTES}, the bytes")
    if size == BYTES:
        return Vocabulary(None, np.ones(BYTES, np.float32))
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.documents, trainer)
    return of_tokenizer(tokenizer.to_str(), tokenizer.get_vocab_size())


def of_tokenizer(tokenizer: str | None, size: int) -> Vocabulary:
    """The vocabulary of a model that has one.

    Args:
        tokenizer: JSON of a byte-level Hugging Face tokenizer; None has bytes as tokens.
        size: tokens of the model, which may have more than its tokenizer.

    Returns:
        The vocabulary; a token that the tokenizer does not have counts one byte.
    """
    lengths = np.ones(size, np.float32)
    if tokenizer is not None:
        from tokenizers import Tokenizer

        # A byte-level token is written with one character per byte.
        for token, index in Tokenizer.from_str(tokenizer).get_vocab().items():
            lengths[index] = len(token)
    return Vocabulary(tokenizer, lengths)


def rows(stream: NDArray[np.int32], length: int) -> dict[str, NDArray[np.int32]]:
    """Rows that predict each token but the first once; each begins with the last token of the row before.

    Args:
        stream: (n,) tokens.
        length: predicted tokens L per row; what does not fill a row is left out.

    Returns:
        "tokens" (N, L + 1).

    Raises:
        ValueError: not even one row can be filled.

    Example:
        >>> rows(np.arange(6), 2)["tokens"].tolist()
        [[0, 1, 2], [2, 3, 4]]
    """
    if len(stream) <= length:
        raise ValueError(f"text.length: got {length}, expected fewer than the {len(stream)} tokens of the text")
    return {"tokens": np.ascontiguousarray(sliding_window_view(stream, length + 1)[::length])}


def next_token_task(model: Any, held_out: Mapping[str, Mapping[str, Any]], lengths: Any, batch_size: int) -> Task:
    """Prediction of the next token: the mean loss per token to descend on, nats per byte to report.

    Args:
        model: a `lightnet.backbone.CausalLM`.
        held_out: rows to evaluate on, by the name that their loss gets.
        lengths: (V,) bytes of each token.
        batch_size: rows evaluated at once.

    Returns:
        The task; its evaluation is total nats over total bytes of each set.
    """
    import jax
    import jax.numpy as jnp

    from experiments.training.task import Task
    from experiments.training.validation import validation

    def per_row(variables: Any, batch: Any, **dropping: Any) -> dict[str, Any]:
        tokens = batch["tokens"]
        logits = model.apply(variables, tokens[:, :-1], **dropping)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return {"nats": -picked.sum(axis=1), "bytes": jnp.asarray(lengths)[tokens[:, 1:]].sum(axis=1)}

    def loss(variables: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        sums = {name: values.sum() for name, values in per_row(variables, batch, rngs={"dropout": key}).items()}
        nats_per_byte = sums["nats"] / sums["bytes"]
        return sums["nats"] / batch["tokens"][:, 1:].size, {"nats_per_byte": nats_per_byte}

    def per_part(variables: Any, batch: Any) -> dict[str, Any]:
        sums, of = per_row(variables, batch), batch["part"]
        return {f"{name} {i}": jnp.where(of == i, sums[name], 0) for name in sums for i in range(len(held_out))}

    # One set with a column that tells the parts apart, so that one program is compiled.
    together = {
        "tokens": np.concatenate([columns["tokens"] for columns in held_out.values()]),
        "part": np.repeat(np.arange(len(held_out)), [len(columns["tokens"]) for columns in held_out.values()]),
    }
    means = validation(per_part, together, batch_size)

    def evaluate(variables: Any) -> dict[str, float]:
        found = means(variables)
        return {name: found[f"nats {i}"] / found[f"bytes {i}"] for i, name in enumerate(held_out)}

    return Task(init=lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32)), loss=loss, evaluate=evaluate)


def count_parameters(model: Any) -> int:
    """Parameters of a model of tokens (B, L), by tracing its initialisation."""
    return equal_size.count_parameters(model, np.zeros((1, 8), np.int32))


def at_equal_size(model: LanguageModel, parameters: int) -> LanguageModel:
    """The same model with the width of its GLU changed to have as many parameters as another.

    Args:
        model: to change.
        parameters: of the other one.

    Returns:
        The model. The width is a whole number, so its parameters are equal up to half of one unit's, which is within
        1 % at the sizes of the presets but `smoke`. A model that has more even without a GLU gets one unit and stays
        larger; results state how many parameters each model has.
    """
    hidden = equal_size.hidden_for(lambda width: count_parameters(replace(model, hidden=width).build()), parameters)
    return replace(model, hidden=hidden)


def train_language_model(
    config: TrainConfig,
    model: LanguageModel,
    train_rows: Mapping[str, Any],
    held_out: Mapping[str, Mapping[str, Any]],
    lengths: Any,
    folder: Path,
    *,
    seed: int,
) -> Any:
    """Describe a model in its folder and train it from initial values for its width.

    Args:
        config: of the training.
        model: what to train.
        train_rows: "tokens" (N, L + 1).
        held_out: sets of rows to evaluate on.
        lengths: (V,) bytes of each token.
        folder: of the training; its name is the label.
        seed: of the initialisation and the order.

    Returns:
        The outcome of `experiments.training.loop.train`.
    """
    from experiments.initial_values import for_narrow_models
    from experiments.language_models import describe
    from experiments.training.loop import train

    describe(folder, model)
    task = next_token_task(model.build(remat=config.remat), held_out, lengths, 4 * config.batch_size)
    created = task.init

    def init(key: Any) -> Any:
        return for_narrow_models(created(key), model.width)

    task = replace(task, init=init)
    return train(config, task, train_rows, folder, seed=seed, label=folder.name)
