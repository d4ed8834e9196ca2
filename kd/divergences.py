"""The registry of divergences, and a divergence of logits, token by token."""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from kd import rows
from kd.checks import ArrayInput, as_floats, as_mask, at_least_float32, check_count, check_number, got
from kd.generators import f_divergence
from kd.rows import Row
from kd.typing import Array, Number

LARGEST_LOG_RATIO = 20.0

# Name -> what makes its row from the arguments of the kind. A new divergence is a new line here.
DIVERGENCES: dict[str, Callable[..., Row]] = {
    "forward_kl": rows.forward_kl,
    "reverse_kl": rows.reverse_kl,
    "jsd": rows.jsd,
    "skew_kl": rows.skew_kl,
    "skew_reverse_kl": rows.skew_reverse_kl,
    "alpha_beta": rows.alpha_beta,
    "alpha": rows.alpha_divergence,
    "total_variation": rows.total_variation,
    "squared_hellinger": rows.squared_hellinger,
    "chi2_pq": rows.chi2_pq,
    "chi2_qp": rows.chi2_qp,
    "l2": rows.l2,
    "f_divergence": f_divergence,
}


def divergence(kind: str, **kind_args: Any) -> Row:
    """The row of a registered divergence.

    Args:
        kind: a name in `DIVERGENCES`.
        **kind_args: Python numbers that choose one of its family, for example `beta` of "jsd".

    Returns:
        phi, a and slope; the same object for the same arguments.

    Raises:
        ValueError: there is no such divergence, or it does not take these arguments.

    Example:
        >>> row = divergence("jsd", beta=0.25)
        >>> row is divergence("jsd", beta=0.25)
        True
        >>> divergence("jsd", beta=2.0)
        Traceback (most recent call last):
        ValueError: beta: got 2.0, expected a number from 0 to 1
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(DIVERGENCES)}")
    for name, value in kind_args.items():
        if isinstance(value, jax.Array):
            raise ValueError(f"{name}: got {got(value)}, expected a Python number: it chooses the formula")
    try:
        return _row(kind, **kind_args)
    except TypeError:
        raise ValueError(f"{kind}: got the arguments {kind_args}, which it does not take") from None


@lru_cache(maxsize=1024)
def _row(kind: str, **kind_args: Any) -> Row:
    return DIVERGENCES[kind](**kind_args)


def token_divergence(
    kind: str,
    s: ArrayInput,
    t: ArrayInput,
    *,
    temperature: Number = 1.0,
    tau_squared: bool = False,
    mask: ArrayInput = None,
    common_vocab: int | None = None,
    **kind_args: Any,
) -> Array:
    """A divergence between a teacher and a student at every token: D = sum_v phi(p_v, q_v).

    p = softmax(t / temperature), q = softmax(s / temperature). The gradient with respect to s is
    (a - q sum a) / temperature; none goes into the teacher. Logits of position i predict token i + 1: shifting labels
    and masks is the caller's job. A logit may be -inf: an entry that both exclude costs nothing, one that only the
    student excludes makes KL(p || q) infinite, and one that only the teacher excludes KL(q || p).

    Args:
        kind: a name in `DIVERGENCES`.
        s: student logits (..., V).
        t: teacher logits (..., V).
        temperature: divides both.
        tau_squared: whether the divergence is multiplied by temperature^2, so that its gradient keeps its size.
        mask: (...), true at tokens that count; the others give 0, with gradient 0, whatever they contain.
        common_vocab: entries of the vocabulary that the two share, its first ones; they may then differ in size.
        **kind_args: see `divergence`.

    Returns:
        (...), float32 at least.

    Raises:
        ValueError: a kind, shape or value is not as stated.

    Example:
        >>> s, t = jnp.zeros((1, 2, 2)), jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]]))
        >>> [f"{value:.3f}" for value in token_divergence("forward_kl", s, t)[0]]
        ['0.000', '0.368']
    """
    row = divergence(kind, **kind_args)
    s, t = as_logits(s, t, common_vocab)
    check_number("temperature", temperature, above=0)
    mask = as_mask(mask, s.shape[:-1])
    if mask is not None:
        s, t = (jnp.where(mask[..., None], x, 0) for x in (s, t))
    lp = jax.nn.log_softmax(jax.lax.stop_gradient(t) / temperature, axis=-1)
    value = terms(row, lp, jax.nn.log_softmax(s / temperature, axis=-1)).sum(-1)
    if tau_squared:
        value = value * temperature**2
    return value if mask is None else jnp.where(mask, value, 0)


def as_logits(s: ArrayInput, t: ArrayInput, common_vocab: int | None = None) -> tuple[Array, Array]:
    """The logits of the two in float32 at least, cut to the vocabulary that they share.

    Raises:
        ValueError: they are no float arrays (..., V) of one shape, or there is less in common than stated.

    Example:
        >>> s, t = as_logits(jnp.zeros((2, 5)), jnp.zeros((2, 6)), common_vocab=4)
        >>> s.shape, t.shape
        ((2, 4), (2, 4))
    """
    if common_vocab is not None:
        sizes = [x.shape[-1] for x in (s, t) if getattr(x, "ndim", 0)]
        check_count("common_vocab", common_vocab, at_most=min(sizes, default=None))
        s, t = (x[..., :common_vocab] for x in (s, t))
    s, t = as_floats("... V", s=s, t=t)
    return at_least_float32(s), at_least_float32(t)


def admitting(s: Array, t: Array, temperature: Number = 1.0) -> Array:
    """Teacher logits with e^-20 of the student's probability where the teacher alone excludes an entry.

    KL(q || p) is infinite there and its gradient not a number. What is sampled has its log ratio clipped at 20; this is
    the same bound for sums over the vocabulary.

    Args:
        s: student logits (..., V).
        t: teacher logits (..., V).
        temperature: that divides both.

    Returns:
        (..., V), without gradient; t itself where nothing is so excluded.

    Example:
        >>> s, t = jnp.zeros(2), jnp.array([0.0, -jnp.inf])
        >>> [f"{x:.2f}" for x in admitting(s, t)], admitting(t, t).tolist()
        (['0.00', '-20.69'], [0.0, -inf])
    """
    s, t = jax.lax.stop_gradient((s, t))
    total = jax.nn.logsumexp(t / temperature, axis=-1, keepdims=True)
    least = temperature * (jax.nn.log_softmax(s / temperature) + total - LARGEST_LOG_RATIO)
    return jnp.where(t == -jnp.inf, least, t)


def reduce_tokens(x: ArrayInput, mask: ArrayInput = None, denominator: Number | None = None) -> Array:
    """Mean over the tokens that count: sum(mask x) / denominator.

    Args:
        x: (...), one number per token.
        mask: (...), true at tokens that count.
        denominator: number of such tokens, by default of this mask. Where a batch comes in parts, that of all parts of
            all devices: the sum over the parts is then what one large batch gives.

    Returns:
        One number; 0, with gradient 0, where the denominator is 0.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> x, mask = jnp.array([1.0, jnp.nan, 5.0]), jnp.array([True, False, True])
        >>> float(reduce_tokens(x, mask)), float(reduce_tokens(x, mask, denominator=4))
        (3.0, 1.5)
    """
    (x,) = as_floats("...", x=x)
    x = at_least_float32(x)
    mask = as_mask(mask, x.shape)
    total = jnp.sum(x if mask is None else jnp.where(mask, x, 0))
    return total * per_token(x.shape, mask, denominator, total.dtype)


def per_token(
    shape: tuple[int, ...], mask: Array | None, denominator: Number | None, dtype: Any = jnp.float32
) -> Array:
    """1 / denominator, by default the number of tokens that count, and 0 where that is 0.

    Raises:
        ValueError: the denominator is below 0.

    Example:
        >>> float(per_token((4,), None, None)), float(per_token((1,), jnp.array([False]), None))
        (0.25, 0.0)
    """
    if denominator is None:
        number = jnp.asarray(math.prod(shape), dtype) if mask is None else jnp.sum(mask, dtype=dtype)
    else:
        check_number("denominator", denominator, at_least=0)
        number = jax.lax.stop_gradient(jnp.asarray(denominator, dtype))
    return jnp.where(number > 0, 1 / jnp.where(number > 0, number, 1), 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def terms(row: Row, lp: Array, lq: Array) -> Array:
    """phi at every entry, from log probabilities; its derivative by log q is the row's a, none goes into log p.

    Args:
        row: the divergence.
        lp: log p, of any shape.
        lq: log q, of the same shape.

    Returns:
        Of that shape; 0 where both are -inf.

    Example:
        >>> log_p, log_q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.25, 0.75, 0.0]))
        >>> terms(divergence("total_variation"), log_p, log_q).round(6).tolist()
        [0.125, 0.125, 0.0]
    """
    return present(row.phi, lp, lq)


@terms.defjvp
def _terms_jvp(row: Row, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    lp, lq = primals
    return terms(row, lp, lq), present(row.a, lp, lq) * tangents[1]


def textbook_terms(row: Row, lp: Array, lq: Array) -> Array:
    """phi as the textbook has it: what to sum where p or q does not sum to 1 over what is summed.

    Args:
        row: the divergence.
        lp: log p, of any shape.
        lq: log q, of the same shape.

    Returns:
        Of that shape; entries may be below 0.

    Example:
        >>> half, quarter = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
        >>> print(f"{textbook_terms(divergence('reverse_kl'), half, quarter)[0]:.4f}")
        -0.1733
    """
    return terms(row, lp, lq) - row.slope * (jnp.exp(lq) - jnp.exp(lp))


def present(f: Callable[[Array, Array], Array], lp: Array, lq: Array) -> Array:
    """f(log p, log q), and 0, with gradient 0, where both probabilities are 0.

    Example:
        >>> absent = jnp.array([-jnp.inf])
        >>> present(lambda lp, lq: lq - lp, absent, absent).tolist()
        [0.0]
    """
    absent = (lp == -jnp.inf) & (lq == -jnp.inf)
    return jnp.where(absent, 0, f(jnp.where(absent, 0, lp), jnp.where(absent, 0, lq)))
