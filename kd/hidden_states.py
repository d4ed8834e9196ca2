"""Losses of hidden states, block by block (SLMRec, arXiv 2405.17890).

Teacher and student are cut into as many blocks; h^(m) is the state of the last token after block m, of one size. With
the teacher's states held fixed,

    cosine      1 - cos(h_t^(m), h_s^(m))
    norm        |h_t^(m) - h_s^(m)|^2
    blocks      cross-entropy of the items from the states of all blocks but the last

and L = CE + cosine + 0.1 norm + w blocks, w from 0.01 to 1 by data set. **Paper and code differ**: the paper has means
over the blocks and squared norms, the code sums and norms that are not squared; `reduction` and `squared` say which.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, as_labels, as_mask, at_least_float32, check_choice
from kd.divergences import reduce_tokens
from kd.features import euclidean_norm, unit
from kd.typing import Array, Number

REDUCTIONS = ("mean", "sum")


def hidden_cosine(
    h_s: ArrayInput,
    h_t: ArrayInput,
    *,
    reduction: str = "mean",
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The mean over samples, and mean or sum over blocks, of 1 - cos; see the module. A state of 0 has cosine 0.

    Args:
        h_s: the student's states (blocks, B, D).
        h_t: the teacher's (blocks, B, D).
        reduction: over the blocks: mean (paper) or sum (code).
        mask: (B), true at samples that count.
        denominator: number of samples of the whole batch, where it comes in parts.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> h_s, h_t = jnp.array([[[2.0, 0.0]], [[0.0, 1.0]]]), jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]])
        >>> [float(hidden_cosine(h_s, h_t, reduction=x)) for x in ("mean", "sum")]
        [0.5, 1.0]
    """
    mask, h_s, h_t = _states(h_s, h_t, mask)
    return _over_blocks(1 - jnp.sum(unit(h_s) * unit(h_t), axis=-1), reduction, mask, denominator)


def hidden_norm(
    h_s: ArrayInput,
    h_t: ArrayInput,
    *,
    squared: bool = True,
    reduction: str = "mean",
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The mean over samples, and mean or sum over blocks, of |h_t - h_s|, squared or not; see the module.

    Args:
        h_s: the student's states (blocks, B, D).
        h_t: the teacher's (blocks, B, D).
        squared: true in the paper, false in the code.
        reduction: over the blocks: mean (paper) or sum (code).
        mask: (B), true at samples that count.
        denominator: number of samples of the whole batch, where it comes in parts.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> h_s, h_t = jnp.zeros((2, 1, 2)), jnp.array([[[3.0, 4.0]], [[0.0, 0.0]]])
        >>> float(hidden_norm(h_s, h_t)), float(hidden_norm(h_s, h_t, squared=False, reduction="sum"))
        (12.5, 5.0)
    """
    mask, h_s, h_t = _states(h_s, h_t, mask)
    distance = jnp.sum((h_t - h_s) ** 2, axis=-1) if squared else euclidean_norm(h_t - h_s)
    return _over_blocks(distance, reduction, mask, denominator)


def block_cross_entropy(
    logits: ArrayInput,
    y: ArrayInput,
    *,
    reduction: str = "mean",
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The mean over samples, and mean or sum over blocks, of the cross-entropy from the state of each; see the module.

    Args:
        logits: of the items, from each block (blocks, B, items).
        y: the next item (B).
        reduction: over the blocks: mean (paper) or sum (code).
        mask: (B), true at samples that count.
        denominator: number of samples of the whole batch, where it comes in parts.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> print(f"{block_cross_entropy(jnp.zeros((3, 1, 4)), jnp.array([2]), reduction='sum'):.4f}")
        4.1589
    """
    (logits,) = as_floats("blocks B items", logits=logits)
    mask = as_mask(mask, logits.shape[1:2])
    y = as_labels(y, logits.shape[1:2], logits.shape[2], mask=mask)
    logits = at_least_float32(logits if mask is None else jnp.where(mask[None, :, None], logits, 0))
    log_q = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_q, jnp.broadcast_to(y[None, :, None], (len(logits), len(y), 1)), axis=2)[..., 0]
    return _over_blocks(loss, reduction, mask, denominator)


def _states(h_s: ArrayInput, h_t: ArrayInput, mask: ArrayInput) -> tuple[Array | None, Array, Array]:
    h_s, h_t = as_floats("blocks B D", h_s=h_s, h_t=h_t)
    mask = as_mask(mask, h_s.shape[1:2])
    h_s, h_t = at_least_float32(h_s), at_least_float32(jax.lax.stop_gradient(h_t))
    if mask is not None:
        h_s, h_t = (jnp.where(mask[None, :, None], x, 0) for x in (h_s, h_t))
    return mask, h_s, h_t


def _over_blocks(x: Array, reduction: str, mask: Array | None, denominator: Number | None) -> Array:
    check_choice("reduction", reduction, REDUCTIONS)
    return reduce_tokens(jnp.mean(x, axis=0) if reduction == "mean" else jnp.sum(x, axis=0), mask, denominator)
