"""Divergences of two language models from their hidden states, without the logits (B, T, V).

Tokens are gone through in chunks, and the gradients by hidden states and head are complete when the forward pass is;
`kd.tiles` has the mathematics. Under `jax.set_mesh` every device takes its tokens, and its part of the vocabulary where
the axis `tensor` splits it; what is left to communicate is a few numbers per token, dh and dW.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kd.checks import (
    ArrayInput,
    as_floats,
    as_labels,
    as_mask,
    at_least_float32,
    check_count,
    check_number,
    got,
)
from kd.divergences import divergence, per_token
from kd.mesh import Placement, laid_out, placement
from kd.rows import Row, times
from kd.tiles import Labels, Plan, Teacher, sums
from kd.typing import Array, Number

# -p log q: its gradient is that of KL(p || q), and with a label for p it is the cross-entropy.
CROSS_ENTROPY = Row(lambda lp, lq: -times(jnp.exp(lp), lq), lambda lp, lq: -jnp.exp(lp))


def chunked_divergence(
    kind: str,
    h_s: ArrayInput,
    W_s: ArrayInput,
    h_t: ArrayInput,
    W_t: ArrayInput,
    mask: ArrayInput = None,
    *,
    token_chunk: int,
    vocab_chunk: int | None = None,
    temperature: Number = 1.0,
    tau_squared: bool = False,
    denominator: Number | None = None,
    common_vocab: int | None = None,
    **kind_args: Any,
) -> Array:
    """The token mean of a divergence of two heads, sum mask D(softmax(h_t W_t^T / tau), softmax(h_s W_s^T / tau)) / n.

    Equal to `token_divergence` of the logits followed by `reduce_tokens`. Memory beside the gradients: a few arrays
    (token_chunk, V), or (token_chunk, vocab_chunk); with a `vocab_chunk` the logits are computed three times. Gradients
    go into h_s and W_s, none into the teacher, the temperature or the denominator.

    Args:
        kind: a name in `DIVERGENCES`.
        h_s: the student's hidden states (..., H).
        W_s: its head (V, H).
        h_t: the teacher's hidden states (..., H of the teacher).
        W_t: its head (V, H of the teacher).
        mask: (...), true at tokens that count.
        token_chunk: tokens at once; it need not divide their number.
        vocab_chunk: entries of the vocabulary at once, on each device; None takes all.
        temperature: divides the logits of both.
        tau_squared: whether the divergence is multiplied by temperature^2.
        denominator: n, by default the number of tokens that count, over all devices; see `reduce_tokens`.
        common_vocab: entries of the vocabulary that the two share, its first ones; they may then differ in size.
        **kind_args: see `divergence`.

    Returns:
        One number, float32 at least.

    Raises:
        ValueError: a kind, shape or value is not as stated.

    Example:
        >>> h, W = jnp.ones((1, 3, 2)), jnp.array([[0.0, 0.0], [1.0, 0.0]])
        >>> print(f"{chunked_divergence('forward_kl', h, W, h, 2 * W, token_chunk=2):.4f}")
        0.0671
    """
    row = divergence(kind, **kind_args)
    check_number("temperature", temperature, above=0)
    h_s, W_s = _head("s", h_s, W_s)
    h_t, W_t = _head("t", h_t, W_t)
    if h_t.shape[:-1] != h_s.shape[:-1]:
        raise ValueError(f"h_t: got {got(h_t)}, expected the axes {list(h_s.shape[:-1])} of h_s before the last")
    W_s, W_t = _of_one_vocabulary(W_s, W_t, common_vocab)
    factor = temperature**2 if tau_squared else 1.0
    target = Teacher(jax.lax.stop_gradient(h_t), jax.lax.stop_gradient(W_t))
    return _mean(row, h_s, W_s, target, mask, token_chunk, vocab_chunk, temperature, factor, denominator)


def _of_one_vocabulary(W_s: Array, W_t: Array, common_vocab: int | None) -> tuple[Array, Array]:
    """Both heads, cut to the rows that they share."""
    if common_vocab is not None:
        check_count("common_vocab", common_vocab, at_most=min(len(W_s), len(W_t)))
        W_s, W_t = W_s[:common_vocab], W_t[:common_vocab]
    if len(W_s) != len(W_t):
        expected = f"the {len(W_s)} rows of W_s, or common_vocab, the number of first rows that mean the same"
        raise ValueError(f"W_t: got {got(W_t)}, expected {expected}")
    return W_s, W_t


def chunked_cross_entropy(
    h: ArrayInput,
    W: ArrayInput,
    y: ArrayInput,
    mask: ArrayInput = None,
    *,
    token_chunk: int,
    vocab_chunk: int | None = None,
    denominator: Number | None = None,
) -> Array:
    """The token mean of the cross-entropy of a head with labels, -sum mask log softmax(h W^T)_y / n.

    Args:
        h: hidden states (..., H).
        W: head (V, H).
        y: labels (...), from 0 to V - 1 where the mask is true.
        mask: (...), true at tokens that count.
        token_chunk: tokens at once.
        vocab_chunk: entries of the vocabulary at once; None takes all.
        denominator: n, by default the number of tokens that count; see `reduce_tokens`.

    Returns:
        One number, float32 at least.

    Raises:
        ValueError: a shape or value is not as stated.

    Example:
        >>> h, W = jnp.ones((1, 3, 2)), jnp.zeros((4, 2))
        >>> y, mask = jnp.array([[0, 3, -100]]), jnp.array([[True, True, False]])
        >>> print(f"{chunked_cross_entropy(h, W, y, mask, token_chunk=2):.4f}")
        1.3863
    """
    h, W = _head("", h, W)
    mask = as_mask(mask, h.shape[:-1])
    target = Labels(as_labels(y, h.shape[:-1], len(W), mask=mask))
    return _mean(CROSS_ENTROPY, h, W, target, mask, token_chunk, vocab_chunk, 1.0, 1.0, denominator)


def _head(name: str, h: ArrayInput, W: ArrayInput) -> tuple[Array, Array]:
    h_name, W_name = (f"{word}_{name}" if name else word for word in "hW")
    (h,) = as_floats("... H", **{h_name: h})
    (W,) = as_floats("V H", **{W_name: W})
    if h.ndim < 2 or h.shape[-1] != W.shape[-1]:
        raise ValueError(f"{W_name}: got {got(W)}, expected (V, H) with the last axis of {h_name}, {got(h)}")
    return h, W


def _mean(
    row: Row,
    h: Array,
    W: Array,
    target: Teacher | Labels,
    mask: ArrayInput,
    token_chunk: int,
    vocab_chunk: int | None,
    temperature: Number,
    factor: Number,
    denominator: Number | None,
) -> Array:
    check_count("token_chunk", token_chunk)
    if vocab_chunk is not None:
        check_count("vocab_chunk", vocab_chunk)
    mask = as_mask(mask, h.shape[:-1])
    dtype = at_least_float32(jnp.zeros((), jnp.promote_types(h.dtype, W.dtype))).dtype
    scale = jnp.asarray(factor * per_token(h.shape[:-1], mask, denominator, dtype), dtype)
    weight = jnp.broadcast_to(scale, h.shape[:-1]) if mask is None else jnp.where(mask, scale, 0)
    placed = placement(h.shape[:-1], len(W))
    plan = Plan(row, token_chunk, vocab_chunk, placed.vocabulary if placed else ())
    given = jax.lax.stop_gradient((weight, jnp.asarray(1 / temperature, dtype)))
    return _weighted(plan, placed, h, W, target, *given)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted(
    plan: Plan,
    placed: Placement | None,
    h: Array,
    W: Array,
    target: Teacher | Labels,
    weight: Array,
    inverse_tau: Array,
) -> Array:
    return _placed(plan, placed, False, h, W, target, weight, inverse_tau)


def _forward(plan: Plan, placed: Placement | None, *operands: Any) -> tuple[Array, tuple[Array, Array]]:
    value, dh, dW = _placed(plan, placed, True, *operands)
    return value, (dh, dW)


def _backward(plan: Plan, placed: Placement | None, gradients: tuple[Array, Array], g: Array) -> tuple[Any, ...]:
    dh, dW = (g.astype(d.dtype) * d for d in gradients)
    return dh, dW, None, None, None


_weighted.defvjp(_forward, _backward)


def _placed(
    plan: Plan,
    placed: Placement | None,
    gradient: bool,
    h: Array,
    W: Array,
    target: Teacher | Labels,
    weight: Array,
    inverse_tau: Array,
) -> Any:
    """`sums` of tokens with any axes, each device with its part of them and of the vocabulary."""

    def here(h: Array, W: Array, target: Teacher | Labels, weight: Array, inverse_tau: Array) -> Any:
        flat = Labels(target.ids.ravel()) if isinstance(target, Labels) else Teacher(_rows(target.h), target.W)
        found = sums(plan, gradient, _rows(h), W, flat, weight.ravel(), inverse_tau)
        axes = tuple(name for names in placed.tokens for name in names) if placed else ()
        if not gradient:
            return jax.lax.psum(found, axes) if axes else found
        value, dh, dW = found
        value, dW = jax.lax.psum((value, dW), axes) if axes else (value, dW)
        return value, dh.reshape(h.shape), dW

    if placed is None:
        return here(h, W, target, weight, inverse_tau)
    tokens: Any = PartitionSpec(*(names or None for names in placed.tokens))
    heads: Any = PartitionSpec(placed.vocabulary or None)
    of_target: Any = Labels(tokens) if isinstance(target, Labels) else Teacher(tokens, heads)
    specs = (tokens, heads, of_target, tokens, PartitionSpec())
    operands = jax.tree.map(lambda x, spec: laid_out(x, spec, placed), (h, W, target, weight, inverse_tau), specs)
    out = (PartitionSpec(), tokens, heads) if gradient else PartitionSpec()
    split = jax.shard_map(here, in_specs=specs, out_specs=out, axis_names=placed.manual, check_vma=False)
    return split(*operands)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
