"""Distillation between vocabularies: universal logit distillation (ULD, arXiv 2402.12030) and its hybrid (GOLD).

Probabilities of different vocabularies are compared by their rank: with p and q sorted from the largest and the shorter
filled up with zeros, sum_k |p_(k) - q_(k)|. It sees the shape of a distribution and not what it is about: a student
that puts the same probabilities on the wrong tokens has loss 0. The hybrid knows which entries are the same text and
takes the Jensen-Shannon divergence of those, and the sorted distance of the rest.

Positions of the two are to be the same places of the text: `align_spans` finds them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd.checks import (
    ArrayInput,
    as_counted,
    as_floats,
    as_labels,
    as_mask,
    at_least_float32,
    check_count,
    check_number,
    got,
)
from kd.divergences import divergence, reduce_tokens, terms
from kd.typing import Array, Number


def uld(
    s: ArrayInput,
    t: ArrayInput,
    *,
    temperature: Number = 1.0,
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The token mean of sum_k |p_(k) - q_(k)|; see the module.

    Args:
        s: student logits (..., V).
        t: teacher logits (..., the teacher's V).
        temperature: divides both.
        mask: (...), true at tokens that count.
        denominator: see `reduce_tokens`.

    Returns:
        One number, at most 2.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.log(jnp.array([[0.3, 0.7]])), jnp.log(jnp.array([[0.6, 0.1, 0.3]]))
        >>> print(f"{jax.jit(uld)(s, t):.4f}")
        0.2000
    """
    mask, log_q, log_p = _log_probabilities(s, t, temperature, mask)
    return reduce_tokens(_sorted_distance(jnp.exp(log_q), jnp.exp(log_p)), mask, denominator)


def hybrid_uld(
    s: ArrayInput,
    t: ArrayInput,
    common_s: ArrayInput,
    common_t: ArrayInput,
    *,
    beta: float | int = 0.5,
    weights: tuple[float, float] = (1.0, 1.0),
    temperature: Number = 1.0,
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The token mean of the divergence of the entries in common and the sorted distance of the others; see the module.

    The probabilities of the entries in common are not normalised again, so that their mass counts too.

    Args:
        s: student logits (..., V).
        t: teacher logits (..., the teacher's V).
        common_s: ids of the entries in common in the student's vocabulary (M), all different.
        common_t: in the teacher's (M), in the same order.
        beta: of the Jensen-Shannon divergence, see `gkd`; at 0 and 1 it is 0.
        weights: of the two parts.
        temperature: divides both.
        mask: (...), true at tokens that count.
        denominator: see `reduce_tokens`.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t, ids = jnp.log(jnp.array([[0.3, 0.7]])), jnp.log(jnp.array([[0.6, 0.1, 0.3]])), jnp.array([0])
        >>> f = jax.jit(hybrid_uld)
        >>> f"{f(s, t, ids, ids + 2):.4f} {f(s, t, ids, ids):.4f}"
        '0.2000 0.5255'
    """
    mask, log_q, log_p = _log_probabilities(s, t, temperature, mask)
    size = getattr(common_s, "shape", ())
    common_s = as_labels(common_s, size[:1], log_q.shape[-1], name="common_s")
    common_t = as_labels(common_t, size[:1], log_p.shape[-1], name="common_t")
    matched = terms(divergence("jsd", beta=beta), log_p[..., common_t], log_q[..., common_s]).sum(-1)
    rest = [jnp.exp(x).at[..., ids].set(0) for x, ids in ((log_q, common_s), (log_p, common_t))]
    return reduce_tokens(weights[0] * matched + weights[1] * _sorted_distance(*rest), mask, denominator)


class Alignment(NamedTuple):
    """Tokens of two tokenizers over one text, joined into spans that end where a token of both ends.

    Attributes:
        spans_s: the span of each token of the student (T,).
        spans_t: of each of the teacher (its T,).
        starts_s: the first token of each span (spans,): there the two have read the same text.
        starts_t: likewise of the teacher.
    """

    spans_s: np.ndarray
    spans_t: np.ndarray
    starts_s: np.ndarray
    starts_t: np.ndarray


def align_spans(ends_s: ArrayInput, ends_t: ArrayInput) -> Alignment:
    """The alignment of two tokenizations of a text, from where their tokens end.

    Args:
        ends_s: end of each token of the student in the text, in characters or bytes, rising.
        ends_t: of each of the teacher; the last is the same.

    Returns:
        Spans and their first tokens, as NumPy arrays.

    Raises:
        ValueError: ends do not rise, or the texts differ in length.

    Example:
        >>> alignment = align_spans([2, 3, 6], [1, 3, 5, 6])
        >>> alignment.spans_s.tolist(), alignment.spans_t.tolist(), alignment.starts_t.tolist()
        ([0, 0, 1], [0, 0, 1, 1], [0, 2])
    """
    ends = []
    for name, given in (("ends_s", ends_s), ("ends_t", ends_t)):
        x = np.asarray(given)
        if x.ndim != 1 or not x.size or not np.issubdtype(x.dtype, np.integer) or x[0] <= 0 or (np.diff(x) <= 0).any():
            raise ValueError(f"{name}: got {given}, expected rising integers above 0")
        ends.append(x)
    if ends[0][-1] != ends[1][-1]:
        raise ValueError(f"ends_t: got a text that ends at {ends[1][-1]}, expected {ends[0][-1]}, where ends_s does")
    common = np.intersect1d(ends[0], ends[1])
    spans = [np.searchsorted(common, x) for x in ends]
    starts = [np.searchsorted(x, np.arange(len(common))) for x in spans]
    return Alignment(*spans, *starts)


def span_log_probs(log_probs: ArrayInput, spans: ArrayInput, number: int, *, mask: ArrayInput = None) -> Array:
    """Log probabilities of the texts of spans: the sums of those of their tokens.

    Args:
        log_probs: of the tokens (B, T); see `token_log_probs`.
        spans: of each token (B, T), from 0 to number - 1; see `align_spans`.
        number: of spans, the largest of the batch.
        mask: (B, T), true at tokens that count.

    Returns:
        (B, number); 0 for a span without tokens.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> span_log_probs(jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([[0, 0, 1]]), 2).tolist()
        [[-3.0, -3.0]]
    """
    as_floats("B T", log_probs=log_probs)
    check_count("number", number)
    counted, (log_probs,) = as_counted(mask, log_probs=log_probs)
    spans = as_labels(spans, log_probs.shape, number, name="spans", mask=counted)
    return jax.vmap(lambda x, i: jax.ops.segment_sum(x, i, number))(log_probs, spans)


def _log_probabilities(s: ArrayInput, t: ArrayInput, temperature: Number, mask: ArrayInput) -> tuple:
    (s,), (t,) = as_floats("... V", s=s), as_floats("... V", t=t)
    if s.shape[:-1] != t.shape[:-1]:
        raise ValueError(f"t: got {got(t)}, expected logits at the tokens of s, {got(s)}")
    check_number("temperature", temperature, above=0)
    mask = as_mask(mask, s.shape[:-1])
    s, t = at_least_float32(s), at_least_float32(jax.lax.stop_gradient(t))
    if mask is not None:
        s, t = (jnp.where(mask[..., None], x, 0) for x in (s, t))
    return mask, jax.nn.log_softmax(s / temperature), jax.nn.log_softmax(t / temperature)


def _sorted_distance(q: Array, p: Array) -> Array:
    size = max(q.shape[-1], p.shape[-1])
    # ascending, so that what is filled up comes first
    q, p = (jnp.pad(jnp.sort(x, axis=-1), [(0, 0)] * (x.ndim - 1) + [(size - x.shape[-1], 0)]) for x in (q, p))
    # the derivative of |x| is 1 at 0 in JAX, where it has to be 0
    return jnp.sum((q - p) * jax.lax.stop_gradient(jnp.sign(q - p)), axis=-1)
