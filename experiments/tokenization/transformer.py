"""The GPT-2-style transformer over tokens, and its loss per source symbol.

Table 3 of arXiv 2404.08335, completed from its authors' related code: pre-norm, no biases but at the output, exact
GELU, learned positions, tied embedding and output. Each row of symbols is tokenized by itself; a start token makes the
first token count too, so the summed loss is the negative log-likelihood of the whole row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.task import Loss, Task
from lightnet.backbone import Backbone, CausalLM, Mixer
from lightnet.mixers import SoftmaxAttention
from lightnet.typing import Array

Batch = Mapping[str, Array | np.ndarray]


def transformer(
    vocab_size: int, max_tokens: int, *, layers: int, width: int, heads: int, remat: str = "none"
) -> CausalLM:
    """A causal transformer that reads a start token (id `vocab_size`) and predicts tokens.

    Args:
        vocab_size: tokens V that can be predicted.
        max_tokens: length of the longest row, in tokens.
        layers: blocks.
        width: channels D.
        heads: attention heads.
        remat: see `Backbone`.

    Returns:
        The model.

    Example:
        >>> transformer(2, 16, layers=1, width=8, heads=1).num_input_only
        1
    """
    return sequence_model(
        partial(SoftmaxAttention, num_heads=heads), vocab_size, max_tokens, layers=layers, width=width, remat=remat
    )


def sequence_model(
    mixer: Callable[..., Mixer], vocab_size: int, max_tokens: int, *, layers: int, width: int, remat: str = "none"
) -> CausalLM:
    """`transformer` with any mixer in place of attention; embedding, positions and MLP stay.

    Args:
        mixer: constructor of causal mixers, see `Backbone`.
        vocab_size: tokens V that can be predicted.
        max_tokens: length of the longest row, in tokens.
        layers: blocks.
        width: channels D.
        remat: see `Backbone`.

    Returns:
        The model.

    Example:
        >>> from ssm.s5 import S5
        >>> sequence_model(S5, 2, 16, layers=1, width=8).max_length
        16
    """
    backbone = Backbone(
        mixer=mixer, num_layers=layers, width=width, activation=partial(nn.gelu, approximate=False), remat=remat
    )
    return CausalLM(backbone, vocab_size=vocab_size, num_input_only=1, max_length=max_tokens, head_bias=True)


def pad_rows(rows: Sequence[np.ndarray], width: int | None = None) -> dict[str, np.ndarray]:
    """Rows of tokens of different lengths as one rectangle and its mask.

    Args:
        rows: token ids, one array per row.
        width: of the rectangle; the longest row by default.

    Returns:
        "tokens" (N, L) int32 and "mask" (N, L), true at real tokens.

    Raises:
        ValueError: a row is longer than `width`.

    Example:
        >>> pad_rows([np.array([3, 4]), np.array([5])])["tokens"].tolist()
        [[3, 4], [5, 0]]
    """
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max()) if width is None else width
    if lengths.max() > width:
        raise ValueError(f"rows: got a row of {lengths.max()} tokens, expected at most {width}")
    mask = np.arange(width) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(rows)
    return {"tokens": tokens, "mask": mask}


def negative_log_likelihood(model: CausalLM, variables: dict, batch: Batch) -> Array:
    """Nats of each real token given the ones before it, 0 at padding.

    Args:
        model: from `transformer`.
        variables: its parameters.
        batch: "tokens" and "mask" (B, L).

    Returns:
        (B, L) float32.
    """
    tokens, mask = batch["tokens"], batch["mask"]
    start = jnp.full((tokens.shape[0], 1), model.vocab_size, tokens.dtype)
    inputs = jnp.concatenate([start, tokens[:, :-1]], axis=1)
    # Padding is on the right only, so no real position sees any of it; the mask is needed in the sum alone.
    logits: Any = model.apply(variables, inputs)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    return jnp.where(mask, -picked, 0)


def language_modelling(model: CausalLM, evaluation: Batch, symbols: int) -> Task:
    """Next-token prediction: mean loss per token to descend on, nats per source symbol to report.

    Args:
        model: from `transformer`.
        evaluation: fixed rows to evaluate on.
        symbols: source symbols in each row.

    Returns:
        The task for the training loop; its metric `per_symbol` is comparable between tokenizers.
    """

    def loss(variables: dict, batch: Batch, key: Array) -> Loss:
        nats, tokens = negative_log_likelihood(model, variables, batch).sum(), batch["mask"].sum()
        return Loss(nats / tokens, {"per_symbol": nats / (batch["tokens"].shape[0] * symbols)}, weight=tokens)

    @jax.jit
    def per_symbol(variables: dict, batch: Batch) -> Array:
        # Row by row groups, so that evaluating many rows takes the memory of a few.
        nats = jax.lax.map(lambda row: negative_log_likelihood(model, variables, row).sum(), batch)
        return nats.sum() / (batch["tokens"].size // batch["tokens"].shape[-1] * symbols)

    grouped = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, _group(len(x)), *x.shape[1:]), dict(evaluation))
    example = jnp.zeros((1, evaluation["tokens"].shape[1]), jnp.int32)
    return Task(
        init=lambda key: model.init(key, example),
        loss=loss,
        evaluate=lambda variables: {"per_symbol": per_symbol(variables, grouped)},
    )


def _group(rows: int) -> int:
    """The largest divisor of `rows` that is at most 16."""
    return max(size for size in range(1, 17) if rows % size == 0)
