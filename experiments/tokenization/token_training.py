"""Models over tokens of a source, one per seed, trained together on batches from one pool of tokenized rows.

A row can be tokenized on the host only, so batches are drawn from a fixed pool of rows, which the seeds share, as is
the tokenizer; initial values, order and evaluation rows are their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.source_training import Curves, evaluation_texts, train_on_source
from experiments.sources import SwitchingSource
from experiments.tokenization.rows_config import RowsConfig
from experiments.tokenization.token_rows import binary_tokenizer, draw_rows, n_gram_loss
from experiments.tokenization.transformer import negative_log_likelihood, pad_rows
from experiments.training.config import TrainConfig
from lightnet.backbone import CausalLM


@dataclass(frozen=True)
class TokenTexts:
    """What models over the tokens of one dictionary are trained and evaluated on.

    Attributes:
        longest: tokens of the longest row.
        symbols: of the evaluation rows of a seed.
        draw: random key -> batch of "tokens" and "mask".
        evaluation: the same, one per seed.
        references: lines of a figure, in nats per character: "entropy_rate", "unigram_entropy" and, held out,
            "token_unigram" and "token_bigram"; and "characters_per_token".
    """

    longest: int
    symbols: int
    draw: Callable[[jax.Array], Any]
    evaluation: list[Any]
    references: dict[str, float]


def token_texts(
    source: SwitchingSource, size: int, *, seeds: Sequence[int], length: int, batch_size: int, rows: RowsConfig
) -> TokenTexts:
    """Tokenize texts of a source.

    Args:
        source: of two symbols.
        size: of the dictionary; 2 has characters as tokens.
        seeds: one set of evaluation rows each.
        length: symbols of a row.
        batch_size: rows of a batch.
        rows: how many there are.

    Returns:
        The texts.

    Example:
        >>> few = RowsConfig(tokenizer_characters=100, pool=3, evaluation=2, reference=2)
        >>> source = SwitchingSource(1, 0.8, 0.8)
        >>> texts = token_texts(source, 2, seeds=(0, 1), length=8, batch_size=4, rows=few)
        >>> texts.draw(jax.random.key(0))["tokens"].shape, texts.longest, texts.symbols
        ((4, 8), 8, 16)
    """
    counts = {"tokenizer": -(-rows.tokenizer_characters // length), "pool": rows.pool, "reference": 2 * rows.reference}
    drawn = draw_rows(source, 0, counts, length)
    tokenizer = binary_tokenizer(drawn["tokenizer"], rows.tokenizer_characters, size)
    fresh = evaluation_texts(source.sample, seeds, rows.evaluation, length)
    sets = [tokenizer.encode_batch(each) for each in (drawn["pool"], *map(np.asarray, fresh))]
    longest = max(len(row) for rows in sets for row in rows)
    pool, *evaluation = [jax.tree.map(jnp.asarray, pad_rows(rows, longest)) for rows in sets]

    def draw(key: jax.Array) -> Any:
        chosen = jax.random.randint(key, (batch_size,), 0, rows.pool)
        return {name: column[chosen] for name, column in pool.items()}

    references = {"entropy_rate": source.entropy_rate(), "unigram_entropy": source.unigram_entropy()}
    for order, name in enumerate(("token_unigram", "token_bigram"), start=1):
        references[name] = n_gram_loss(tokenizer, drawn["reference"], order)
    references["characters_per_token"] = drawn["pool"].size / sum(map(len, sets[0]))
    return TokenTexts(longest, rows.evaluation * length, draw, evaluation, references)


def train_on_tokens(
    config: TrainConfig, model: CausalLM, texts: TokenTexts, folder: Path, *, seeds: Sequence[int]
) -> Curves:
    """Train one model per seed to predict the next token.

    Args:
        config: of the training.
        model: from `sequence_model`.
        texts: with as many evaluation sets as seeds.
        folder: for the training; its name is the label.
        seeds: one per model.

    Returns:
        The curves, with the metric "loss" in nats per source symbol.
    """

    def nats(params: Any, batch: Any) -> jax.Array:
        return negative_log_likelihood(model, params, batch).sum()

    return train_on_source(
        config,
        lambda key: model.init(key, texts.evaluation[0]["tokens"][:1]),
        lambda params, batch: nats(params, batch) / batch["mask"].sum(),
        texts.draw,
        folder,
        seeds=seeds,
        label=folder.name,
        evaluation=texts.evaluation,
        measure=lambda params, batch: {"loss": nats(params, batch) / texts.symbols},
    )
