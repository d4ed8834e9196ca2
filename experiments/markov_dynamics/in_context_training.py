"""Training the two-layer attention model on in-context chains, and what it is compared with on the way.

The strategies are those of `experiments.sources.predictors`: uniform, and the unigram and the bigram of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.markov_dynamics.induction_model import InductionModel, induction_mass, previous_token_attention
from experiments.source_training import Curves, train_on_source
from experiments.sources.in_context import InContextChains
from experiments.sources.predictors import (
    kgram_predictions,
    oracle_predictions,
    uniform_predictions,
    unigram_predictions,
)
from experiments.training.config import TrainConfig
from experiments.training.update import random_stream

STRATEGIES = ("uniform", "unigram", "bigram")

EvaluationSet = dict[str, jax.Array]


def train_on_chains(
    config: TrainConfig,
    chains: InContextChains,
    folder: str | Path,
    *,
    length: int,
    width: int,
    seeds: Sequence[int],
    label: str,
    evaluation: Sequence[Any],
    measure: Callable[[InductionModel, Any, Any], dict[str, jax.Array]],
) -> Curves:
    """Train one model per seed on fresh chains.

    Args:
        config: of the training.
        chains: their law.
        folder: for checkpoints and metrics.
        length: symbols that are read.
        width: channels.
        seeds: one per model.
        label: shown beside the progress.
        evaluation: one set per seed.
        measure: (model, parameters, evaluation set) -> scalars by name.

    Returns:
        The curves.
    """
    model = InductionModel(chains.alphabet, length, width)

    def loss(params: Any, symbols: jax.Array) -> jax.Array:
        applied: Any = model.apply(params, symbols[:, :-1])
        return next_symbol_loss(applied[0], symbols[:, 1:])

    return train_on_source(
        config,
        lambda key: model.init(key, jnp.zeros((1, length), jnp.int32)),
        loss,
        lambda key: chains.sample(key, (config.batch_size, length + 1)).symbols,
        folder,
        seeds=seeds,
        label=label,
        evaluation=evaluation,
        measure=lambda params, chosen: measure(model, params, chosen),
    )


def evaluation_set(chains: InContextChains, seed: int, shape: tuple[int, int]) -> EvaluationSet:
    """Fixed sequences of a seed, and for all symbols but the first the laws of the strategies and of the chain.

    Args:
        chains: their law.
        seed: of the random numbers.
        shape: (B, L + 1).

    Returns:
        "symbols" (B, L + 1); "uniform", "unigram", "bigram" and "truth" (B, L, K).
    """
    kernels, symbols = chains.sample(random_stream(seed, "evaluation"), shape)
    size = chains.alphabet
    laws = {
        "uniform": uniform_predictions(symbols, size),
        "unigram": unigram_predictions(symbols, size),
        "bigram": kgram_predictions(symbols, size, 1),
        "truth": oracle_predictions(kernels, symbols),
    }
    return {"symbols": symbols, **{name: law[:, 1:] for name, law in laws.items()}}


def references(evaluation: Sequence[EvaluationSet]) -> dict[str, list[float]]:
    """Cross-entropy of each strategy, and of the chains themselves, on each evaluation set.

    Args:
        evaluation: the sets.

    Returns:
        name -> nats per symbol, one per set.
    """
    names = (*STRATEGIES, "truth")
    return {name: [float(cross_entropy(jnp.log(one[name]), one["truth"])) for one in evaluation] for name in names}


def progress(model: InductionModel, params: Any, chosen: EvaluationSet) -> dict[str, jax.Array]:
    """Cross-entropy against the truth, relative entropies to the strategies, and what the layers attend to.

    Args:
        model: the model.
        params: its variables.
        chosen: an evaluation set.

    Returns:
        Scalars: "cross_entropy", "to_uniform", "to_unigram", "to_bigram", "previous_token", "induction".
    """
    read = chosen["symbols"][:, :-1]
    applied: Any = model.apply(params, read)
    logits, weights = applied
    logs = jax.nn.log_softmax(logits)
    return {
        "cross_entropy": cross_entropy(logs, chosen["truth"]),
        **{f"to_{name}": relative_entropy(logs, chosen[name]) for name in STRATEGIES},
        "previous_token": previous_token_attention(weights[0]),
        "induction": induction_mass(weights[-1], read),
    }


def next_symbol_loss(logits: jax.Array, symbols: jax.Array) -> jax.Array:
    """Mean negative log-likelihood.

    Args:
        logits: (B, L, K), of the symbols.
        symbols: (B, L).

    Returns:
        Nats per symbol.

    Example:
        >>> round(float(next_symbol_loss(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 1]]))), 6)
        0.693147
    """
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), symbols[..., None], axis=-1).mean()


def cross_entropy(logs: jax.Array, truth: jax.Array) -> jax.Array:
    """Mean over sequences and positions of - sum_x P(x) log Q(x).

    Args:
        logs: log Q, (B, L, K).
        truth: P, (B, L, K).

    Returns:
        Nats per symbol.

    Example:
        >>> round(float(cross_entropy(jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.array([[[0.1, 0.9]]]))), 6)
        0.693147
    """
    return -(truth * logs).sum(axis=-1).mean()


def relative_entropy(logs: jax.Array, law: jax.Array) -> jax.Array:
    """Mean over sequences and positions of KL(Q || S) = sum_x Q(x) log (Q(x) / S(x)).

    Args:
        logs: log Q of the model, (B, L, K).
        law: S of a strategy, (B, L, K), positive.

    Returns:
        Nats per symbol.

    Example:
        >>> half, other = jnp.full((1, 1, 2), 0.5), jnp.array([[[0.25, 0.75]]])
        >>> float(relative_entropy(jnp.log(half), half)), round(float(relative_entropy(jnp.log(half), other)), 4)
        (0.0, 0.1438)
    """
    return (jnp.exp(logs) * (logs - jnp.log(law))).sum(axis=-1).mean()
