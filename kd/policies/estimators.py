"""Estimators of KL(pi || target) from samples: what each has for a value, and what for a gradient.

With d = log pi(a) - log target(a) of a sampled action, or of a whole sequence,

    k1 = d,    k2 = d^2 / 2,    k3 = exp(-d) - 1 + d

and a drawn from pi:

    used as                          value                      gradient, the samples held fixed
    k1 in a loss                     KL(pi || target)           0: nothing is learned
    k2 in a loss                     biased                     that of KL(pi || target)
    k3 in a loss                     KL(pi || target), >= 0     that of KL(target || pi)
    k1 as a reward, d grad log pi    -                          that of KL(pi || target)

so that a value and a surrogate of the gradient are two functions here, and k1 is refused as the second. Samples from
anything but pi are to be weighted by pi / proposal, held fixed: `importance_weights`. Of the tokens of a sequence each
surrogate has the gradient at its own state only: that pi also decides which states come later is left out (`minillm`
has that part). Sources: Schulman, "Approximating KL divergence"; KDRL (arXiv 2506.02208).
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_floats, at_least_float32, check_choice, check_number
from kd.divergences import LARGEST_LOG_RATIO
from kd.rows import exp_remainder
from kd.typing import Array, Number

VALUES = ("k1", "k2", "k3")
SURROGATES = ("k2", "k3", "reward")
PRODUCTS = ("token", "state", "prefix", "sequence")


def kl_value(
    log_pi: ArrayInput,
    log_target: ArrayInput,
    *,
    kind: str = "k3",
    mask: ArrayInput = None,
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
) -> Array:
    """An estimate of KL(pi || target) from every sample: a number to watch, without gradient; see the module.

    Args:
        log_pi: log probabilities of what pi drew (...), by token or by sequence.
        log_target: of the same under the target (...).
        kind: k1 (may be below 0), k2 (biased, at least 0) or k3 (at least 0).
        mask: (...), true at what counts; the rest gives 0.
        largest_log_ratio: clips d on both sides.

    Returns:
        (...), float32 at least.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi, log_target = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> [f"{kl_value(log_pi, log_target, kind=k).mean():.4f}" for k in ("k1", "k2", "k3")]
        ['0.5108', '0.7339', '0.5108']
    """
    check_choice("kind", kind, VALUES)
    mask, (log_pi, log_target) = as_counted(mask, log_pi=log_pi, log_target=log_target)
    return jax.lax.stop_gradient(_estimate(kind, _log_ratio(log_pi, log_target, largest_log_ratio)))


def kl_surrogate(
    log_pi: ArrayInput,
    log_target: ArrayInput,
    *,
    kind: str = "k2",
    importance: ArrayInput = None,
    baseline: Number = 0.0,
    mask: ArrayInput = None,
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
) -> Array:
    """What to minimise for the gradient of a KL between pi and the target; see the module.

    Args:
        log_pi: log probabilities of the samples (...), by token or by sequence.
        log_target: of the same under the target (...), held fixed.
        kind: k2, or reward, which is (d - baseline) log pi with the bracket held fixed: the gradient of
            KL(pi || target). k3: the gradient of KL(target || pi).
        importance: pi / proposal where the samples are not from pi (...), held fixed; see `importance_weights`.
        baseline: of the reward; changes its variance, and nothing in expectation.
        mask: (...), true at what counts; the rest gives 0, with gradient 0.
        largest_log_ratio: clips d on both sides; outside of it k2 and k3 have no gradient.

    Returns:
        (...), float32 at least. Only the gradient means something: see `kl_value`.

    Raises:
        ValueError: an argument is not as stated; above all, the kind is k1.

    Example:
        >>> log_pi, log_target = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> gradient = jax.grad(lambda x: kl_surrogate(x, log_target).sum())(log_pi)
        >>> [f"{x:.4f}" for x in gradient]
        ['-0.5878', '1.6094']
        >>> kl_surrogate(log_pi, log_target, kind="k1")
        Traceback (most recent call last):
        ValueError: kind: got 'k1', whose gradient as a loss is 0 in expectation, expected one of k2, k3, reward
    """
    if kind == "k1":
        expected = ", ".join(SURROGATES)
        raise ValueError(f"kind: got 'k1', whose gradient as a loss is 0 in expectation, expected one of {expected}")
    check_choice("kind", kind, SURROGATES)
    check_number("baseline", baseline)
    operands = {"log_pi": log_pi, "log_target": log_target} | ({} if importance is None else {"importance": importance})
    mask, (log_pi, log_target, *weight) = as_counted(mask, **operands)
    d = _log_ratio(log_pi, jax.lax.stop_gradient(log_target), largest_log_ratio)
    loss = jax.lax.stop_gradient(d - baseline) * log_pi if kind == "reward" else _estimate(kind, d)
    for w in weight:
        loss = loss * jax.lax.stop_gradient(w)
    return loss


def importance_weights(
    log_pi: ArrayInput,
    log_proposal: ArrayInput,
    *,
    over: str = "token",
    mask: ArrayInput = None,
    largest: Number | None = None,
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
) -> Array:
    """pi / proposal at every token, held fixed, for samples that are the proposal's.

    What is estimated at token t needs the product of the ratios of

        token       t alone, the usual approximation; exact for one-step problems
        state       the tokens before t: the weight of the state, for an exact expectation over the next token
        prefix      the tokens up to t
        sequence    all of them: for what depends on later tokens too

    Args:
        log_pi: log probabilities of the tokens (..., T) under the policy.
        log_proposal: under what they were drawn from (..., T).
        over: which product.
        mask: (..., T), true at tokens that count; the others have ratio 1 in a product, and weight 0.
        largest: caps the weights, which makes them biased; None does not.
        largest_log_ratio: clips the logarithm of the product on both sides.

    Returns:
        (..., T).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi, log_proposal = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.25]))
        >>> [importance_weights(log_pi, log_proposal, over=x).round(3).tolist() for x in ("state", "prefix")]
        [[1.0, 2.0], [2.0, 4.0]]
    """
    check_choice("over", over, PRODUCTS)
    mask, (log_pi, log_proposal) = as_counted(mask, log_pi=log_pi, log_proposal=log_proposal)
    if log_pi.ndim == 0:
        raise ValueError("log_pi: got one number, expected (..., T)")
    check_number("largest_log_ratio", largest_log_ratio, above=0)
    d = jax.lax.stop_gradient(log_pi - log_proposal)
    if over == "sequence":
        d = jnp.broadcast_to(jnp.sum(d, axis=-1, keepdims=True), d.shape)
    elif over != "token":
        d = jnp.cumsum(d, axis=-1) - (d if over == "state" else 0)
    weight = jnp.exp(jnp.clip(d, -largest_log_ratio, largest_log_ratio))
    if largest is not None:
        check_number("largest", largest, above=0)
        weight = jnp.minimum(weight, largest)
    return weight if mask is None else jnp.where(mask, weight, 0)


def log_normalizer(log_P: ArrayInput, log_proposal: ArrayInput) -> Array:
    """log Z of an unnormalised target P from samples of a proposal: log mean(P / proposal), unbiased for Z itself.

    Args:
        log_P: log P of the samples (B).
        log_proposal: their log probabilities under what they were drawn from (B).

    Returns:
        One number, without gradient: what `f_dpg_loss` wants subtracted from log P.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_P = jnp.log(jnp.array([0.4, 0.2]))
        >>> print(f"{jnp.exp(jax.jit(log_normalizer)(log_P, jnp.log(jnp.array([0.5, 0.5])))):.2f}")
        0.60
    """
    log_P, log_proposal = (at_least_float32(x) for x in as_floats("B", log_P=log_P, log_proposal=log_proposal))
    return jax.lax.stop_gradient(jax.nn.logsumexp(log_P - log_proposal) - jnp.log(len(log_P)))


def _log_ratio(log_pi: Array, log_target: Array, largest: Number) -> Array:
    check_number("largest_log_ratio", largest, above=0)
    return jnp.clip(log_pi - log_target, -largest, largest)


def _estimate(kind: str, d: Array) -> Array:
    if kind == "k1":
        return d
    if kind == "k2":
        return d * d / 2
    near = jnp.abs(d) < 1
    return jnp.where(near, exp_remainder(jnp.where(near, -d, 0)), jnp.expm1(-d) + d)
