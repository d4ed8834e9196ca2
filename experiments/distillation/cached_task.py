"""A student language model that learns from the stored outputs of a teacher, as the one training loop takes it.

Batches are those of `experiments.records.order.in_training_order` with `teacher`: rows, and for each token that a row
predicts the teacher's K largest log probabilities. The teacher itself is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import kd
from experiments.packed_language import packed_nats, packed_task
from experiments.records.teacher import IDS, LOG_PROBABILITIES, LOG_REST
from experiments.training.task import Loss, Task

if TYPE_CHECKING:
    import grain


def restored(topk_logprobs: jax.Array, log_rest: jax.Array) -> jax.Array:
    """Log probabilities in float32 whose mass is again the one that they had before they were rounded.

    .. math:: \\tilde x_v = x_v - \\log \\sum_{u \\in I} e^{x_u} + \\log(1 - e^r)

    Without it, what is left for the other tokens would be the rounding of a sum near 1.

    Args:
        topk_logprobs: x, rounded (..., K).
        log_rest: r, log probability of all others together (...), -inf where there is none.

    Returns:
        (..., K).

    Example:
        >>> kept = jnp.log(jnp.array([0.75, 0.245])).astype(jnp.float16)
        >>> print(f"{1 - jnp.exp(restored(kept, jnp.log(0.005))).sum():.6f}")
        0.005000
    """
    x = topk_logprobs.astype(jnp.float32)
    mass = jnp.log1p(-jnp.exp(log_rest.astype(jnp.float32)))
    return x + (mass - jax.nn.logsumexp(x, axis=-1))[..., None]


def cached_divergence(
    logits: jax.Array, batch: Mapping[str, jax.Array], kind: str = "forward_kl", **options: Any
) -> tuple[jax.Array, jax.Array]:
    """A divergence from the stored teacher at every token that follows one of its own segment.

    Args:
        logits: of the student (B, L - 1, V), of the token after each position but the last.
        batch: "segment_ids" (B, L), and the teacher's arrays (B, L - 1, K) and (B, L - 1).
        kind: a name in `kd.DIVERGENCES`.
        **options: of `kd.sparse_divergence`, such as `convention`.

    Returns:
        (B, L - 1) values, 0 where nothing is predicted, and which positions count, booleans.
    """
    segments = batch["segment_ids"]
    real = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    log_p = restored(batch[LOG_PROBABILITIES], batch[LOG_REST])
    return kd.sparse_divergence(kind, logits, batch[IDS].astype(jnp.int32), log_p, mask=real, **options), real


def cached_task(
    model: Any,
    held_out: grain.MapDataset,
    batch_size: int,
    *,
    kind: str = "forward_kl",
    labels: float = 0.0,
    **options: Any,
) -> Task:
    """Distillation of packed rows from stored outputs: per token, (1 - labels) D(teacher, student) + labels nats.

    Args:
        model: the student, a `lightnet.backbone.CausalLM` whose mixer takes segments.
        held_out: finite dataset of rows to evaluate on, in nats per token of the text.
        batch_size: rows evaluated at once.
        kind: a name in `kd.DIVERGENCES`.
        labels: share of the cross-entropy, from 0 to 1.
        **options: of `kd.sparse_divergence`, such as `convention`.

    Returns:
        The task.

    Raises:
        ValueError: the share is out of its range.
    """
    if not 0 <= labels <= 1:
        raise ValueError(f"labels: got {labels}, expected a share from 0 to 1")

    def loss(variables: Any, batch: Mapping[str, Any], key: Any) -> Loss:
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        logits = model.apply(variables, tokens[:, :-1], segment_ids=segment_ids[:, :-1], rngs={"dropout": key})
        values, real = cached_divergence(logits, batch, kind, **options)
        count, total = real.sum(), (1 - labels) * values.sum()
        if labels:
            total = total + labels * packed_nats(logits, tokens, segment_ids)[0].sum()
        return Loss(total / jnp.maximum(count, 1), weight=count)

    return replace(packed_task(model, held_out, batch_size), loss=loss)
