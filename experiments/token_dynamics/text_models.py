"""Language models of Mamba on embedded text, trained with their checkpoints kept, for the results that look into them.

The models are the published architecture, blocks of RMSNorm and mixer without an MLP, and `RefinedMamba` where a part
is left out or a sign chosen. Their initial values are the published ones but for the embedding, whose standard
deviation is width^-1/2: the published 0.02 is meant for models much wider. Tokens are bytes, or byte-level BPE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from experiments import language
from experiments.language import BYTES
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from experiments.sources import Corpus
    from lightnet.backbone import CausalLM


@dataclass(frozen=True)
class TextConfig:
    """Which text, and how much of it is held out."""

    corpus: Literal["documentation", "standard library"] = "documentation"
    """Python's documentation topics, 0.45 MB, or the sources of its standard library, 12 MB."""
    folds: int = 10
    """The held-out documents are one of so many parts of equal size; a seed decides which."""
    length: int = 64
    """Tokens per row."""
    vocabulary: int = BYTES
    """Tokens: 256 are the bytes, more are byte-level BPE."""
    analysed: int = 64
    """Held-out rows that are looked into, from all over the held-out part."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("text.folds", self.folds, 2)
        require("text.length", self.length, 2)
        require("text.vocabulary", self.vocabulary, BYTES)
        require("text.analysed", self.analysed, 2)


@dataclass(frozen=True)
class SizeConfig:
    """The size of the models."""

    layers: int = 3
    """Blocks."""
    width: int = 64
    """Channels D of the residual stream; the mixer has twice as many."""
    states: int = 16
    """States N of each inner channel, at most half of these so that the inertia can be (N, N)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("size.layers", self.layers, 1)
        require("size.width", self.width, 1)
        require("size.states", self.states, 1, self.width)


def recipe(steps: int, checkpoints: int, batch_size: int = 8, **options: Any) -> TrainConfig:
    """A training of which evenly spaced checkpoints are kept.

    Args:
        steps: updates, a multiple of `checkpoints`.
        checkpoints: how many are kept, the last state among them.
        batch_size: rows per update.
        **options: further fields of the training.

    Returns:
        The training.

    Example:
        >>> recipe(400, 4).checkpoint.permanent_every
        100
    """
    every = steps // checkpoints
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        eval_every=every,
        # A model without norms may have a bad update; it is skipped and counted, and the training goes on.
        max_skipped=steps,
        optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine", warmup=0.05, weight_decay=0.1, clip_norm=1.0),
        checkpoint=CheckpointConfig(every=every, keep=1, permanent_every=every),
        **options,
    )


class Text(NamedTuple):
    """A text as rows of tokens.

    Attributes:
        vocabulary: what tokens are.
        train: rows to train on, "tokens" (N, L + 1).
        held_out: rows to evaluate on.
        analysed: (n, L + 1) of the latter.
        data: name -> hash of the text.
    """

    vocabulary: language.Vocabulary
    train: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    analysed: np.ndarray
    data: dict[str, str]


def parts(config: TextConfig, seed: int) -> tuple[Corpus, Corpus]:
    """The training part and the held-out part, whole documents each.

    Args:
        config: which text.
        seed: decides which documents are held out.

    Returns:
        (training part, held-out part).
    """
    from experiments.sources import documentation, standard_library

    corpus = documentation() if config.corpus == "documentation" else standard_library()
    return corpus.split(seed % config.folds, config.folds)


def read_text(config: TextConfig, seed: int) -> Text:
    """Rows of tokens of both parts.

    Args:
        config: which text.
        seed: decides which documents are held out.

    Returns:
        The text.
    """
    both = parts(config, seed)
    vocabulary = language.vocabulary(config.vocabulary, both[0])
    train, held_out = (language.rows(vocabulary.encode(corpus.documents), config.length) for corpus in both)
    data = {f"{corpus.name}, seed {seed}": corpus.sha256 for corpus in both}
    return Text(vocabulary, train, held_out, spread(held_out["tokens"], config.analysed), data)


def read_texts(config: TextConfig, seeds: Sequence[int]) -> tuple[dict[int, Text], dict[str, str]]:
    """The text of every seed, and the hashes of all of them.

    Args:
        config: which text.
        seeds: each decides which documents are held out.

    Returns:
        (seed -> text, name -> hash).
    """
    texts = {seed: read_text(config, seed) for seed in seeds}
    return texts, {name: sha256 for text in texts.values() for name, sha256 in text.data.items()}


def check_kept(train: TrainConfig) -> None:
    """Refuse a training whose kept states have no losses of their own.

    Args:
        train: the training.

    Raises:
        ValueError: no states are kept, or they are not those that are evaluated.
    """
    require("train.checkpoint.permanent_every", train.checkpoint.permanent_every, 1)
    require("train.eval_every", train.eval_every, 1)
    if train.eval_every != train.checkpoint.permanent_every:
        raise ValueError("train.eval_every: expected train.checkpoint.permanent_every, so that states have losses")


def append_row(table: dict[str, list], *row: Any) -> None:
    """Add a row to a table of columns.

    Args:
        table: column -> values.
        *row: one value for each column, in their order.

    Example:
        >>> table = {"seed": [0], "loss": [2.5]}
        >>> append_row(table, 1, 2.0)
        >>> table
        {'seed': [0, 1], 'loss': [2.5, 2.0]}
    """
    for column, entry in zip(table.values(), row, strict=True):
        column.append(entry)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """So many rows, evenly from all of them.

    Args:
        rows: (N, ...).
        count: how many; all if there are fewer.

    Returns:
        (min(count, N), ...).

    Example:
        >>> spread(np.arange(10), 4).tolist()
        [0, 2, 5, 7]
    """
    count = min(count, len(rows))
    return rows[np.arange(count) * len(rows) // count]


def build(
    size: SizeConfig,
    vocabulary: int,
    *,
    norm: bool = True,
    remat: str = "none",
    scan_layers: bool = False,
    **options: Any,
) -> CausalLM:
    """A language model of `RefinedMamba`.

    Args:
        size: of the model.
        vocabulary: tokens V.
        norm: whether there are norms, before the mixers and before the logits.
        remat: see `lightnet.backbone.Backbone`.
        scan_layers: see there, too.
        **options: further fields of the mixer, such as `scenario` or `gate`.

    Returns:
        The model.

    Example:
        >>> build(SizeConfig(layers=1, width=8, states=3), 256, gate=False).backbone.num_layers
        1
    """
    from ssm import Architecture, RefinedMamba, mamba_lm

    mixer = RefinedMamba(width=size.width, state_size=size.states, **options)
    model = mamba_lm(Architecture(mixer, vocab_size=vocabulary, num_layers=size.layers))
    changed: dict[str, Any] = {"remat": remat, "scan_layers": scan_layers} | ({} if norm else {"norm": without_norm})
    return model.clone(backbone=model.backbone.clone(**changed))


def without_norm(**options: Any) -> Any:
    """A module that changes nothing, in the place of a norm.

    Args:
        **options: of a norm; not used.

    Returns:
        The module.
    """
    import flax.linen as nn

    del options
    return nn.Sequential([lambda x: x])


class Kept(NamedTuple):
    """A training and the states that were kept of it.

    Attributes:
        steps: updates at which the states are, 0 first, (n,).
        losses: held-out loss of each, nats per byte, (n,).
        skipped: updates that were skipped because something was not finite.
        states: variables of each.
    """

    steps: np.ndarray
    losses: np.ndarray
    skipped: int
    states: Iterator[Any]


def train_kept(config: TrainConfig, model: CausalLM, text: Text, folder: Path, *, seed: int) -> Kept:
    """Train a model, and read its checkpoints back.

    Args:
        config: of the training, see `recipe`.
        model: as `build` makes it.
        text: to train on.
        folder: of the training; its name is the label.
        seed: of the initial values and the order.

    Returns:
        The training and its states.
    """
    import jax

    from experiments.training.loop import train

    task = language.next_token_task(model, {"held_out": text.held_out}, text.vocabulary.lengths, 4 * config.batch_size)
    created, width = task.init, model.backbone.width

    def init(key: Any) -> Any:
        variables = created(key)
        embedding = jax.tree.map(lambda leaf: leaf / (0.02 * width**0.5), variables["params"]["embedding"])
        return {"params": {**variables["params"], "embedding": embedding}}

    task = replace(task, init=init)
    outcome = train(config, task, text.train, folder, seed=seed, label=folder.name)
    steps = np.asarray(outcome.evaluation["step"])
    states = _states(init, folder / "checkpoints", steps, seed)
    return Kept(steps, outcome.evaluation["held_out"], int(outcome.state.skipped), states)


def _states(init: Any, folder: Path, steps: np.ndarray, seed: int) -> Iterator[Any]:
    """The initial values, and those of every checkpoint."""
    import flax.linen as nn
    import jax

    from experiments.training.checkpoint import Checkpoints
    from experiments.training.update import random_stream

    first = jax.jit(lambda: nn.meta.unbox(init(random_stream(seed, "initialisation"))))()
    yield first
    like = {"params": jax.eval_shape(lambda: first)}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with closing(Checkpoints(folder, read_only=True)) as checkpoints:
        for step in steps[1:]:
            where = jax.tree.map(lambda _: place, like)
            yield checkpoints.restore_params(like, where, int(step))["params"]
