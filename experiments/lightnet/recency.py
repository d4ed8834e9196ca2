"""Models and training of the recency task of `lightnet/saturation`, and the decays of a trained model."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import mixers
from experiments.sources.recall import Recall
from experiments.training.task import Loss, Task
from experiments.training.validation import validation
from lightnet.backbone import CausalLM
from lightnet.mixers.normaliser import log_decay, log_normalisers
from lightnet.models import Size, causal_lm
from lightnet.typing import Array


def model(
    alphabet: int, *, mixer: str, positions: str, layers: int, width: int, heads: int, remat: str, length: int = 0
) -> CausalLM:
    """A small causal model that answers at each position.

    Args:
        alphabet: tokens.
        mixer: one of `experiments.mixers.MIXERS`.
        positions: one of `experiments.mixers.POSITIONS`.
        layers: blocks.
        width: channels.
        heads: heads.
        remat: see `Backbone`.
        length: tokens of a sequence, for learned positions.

    Returns:
        The model.

    Example:
        >>> model(4, mixer="linear", positions="none", layers=1, width=8, heads=2, remat="none").vocab_size
        4
    """
    size = Size(layers, width, heads, source="ours")
    encodings = mixers.positions(positions, length=length)
    return causal_lm(size, alphabet, mixer=mixers.mixer(mixer, causal=True), remat=remat, **encodings)


def recall_task(network: CausalLM, held_out: Recall, batch_size: int) -> Task:
    """Cross-entropy of the answers; accuracy over all of them and over those in the last quarter of the positions.

    Args:
        network: from `model`.
        held_out: sequences to evaluate on.
        batch_size: of an evaluation.

    Returns:
        The task.
    """

    def loss(variables: Any, batch: Mapping[str, Array], key: Array) -> Loss:
        logits: Any = network.apply(variables, batch["tokens"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1)[..., 0]
        asked = batch["asked"].sum()
        return Loss(-jnp.where(batch["asked"], picked, 0).sum() / asked, weight=asked)

    late = np.arange(held_out.tokens.shape[1]) >= held_out.tokens.shape[1] * 3 // 4

    def metrics(variables: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        logits: Any = network.apply(variables, batch["tokens"])
        right = logits.argmax(-1) == batch["targets"]
        return {
            "accuracy": jnp.mean(right, axis=1, where=batch["asked"]),
            "late_accuracy": jnp.mean(right, axis=1, where=batch["asked"] & late[None]),
        }

    example = jnp.zeros((1, held_out.tokens.shape[1]), jnp.int32)
    return Task(
        init=lambda key: network.init(key, example),
        loss=loss,
        evaluate=validation(metrics, held_out._asdict(), batch_size),
    )


def scaled_decays(network: CausalLM, variables: Any, tokens: np.ndarray) -> np.ndarray:
    """t E[-g_t] of every layer of a trained model with LightNet's mixer, means over sequences, heads and channels.

    Args:
        network: from `model`, with the mixer "lightnet".
        variables: its parameters.
        tokens: (N, L).

    Returns:
        (layers, L - 1), for t from 2 on.
    """

    @jax.jit
    def means(variables: Any, tokens: Array) -> Array:
        _, kept = network.apply(variables, tokens, capture_intermediates=_is_projection, mutable="intermediates")
        blocks = kept["intermediates"]["backbone"]
        decays = []
        for i in range(len(blocks)):
            logits = blocks[f"blocks_{i}"]["mix"]["qkv"]["__call__"][0][:, :, 1]
            _, before = log_normalisers(logits)
            decays.append(-log_decay(logits, before)[:, 1:].mean(axis=(0, 2, 3)))
        return jnp.stack(decays)

    return np.asarray(means(variables, tokens)) * np.arange(2, tokens.shape[1] + 1)


def _is_projection(module: nn.Module, method: str) -> bool:
    return module.name == "qkv"
