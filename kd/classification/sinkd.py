"""Sinkhorn distillation (SinKD, arXiv 2402.17110).

Batch-wise, as released: transport between the B outputs of the student and the B of the teacher,

    L = sum_ij Pi_ij W_ij,    W_ij = sum_c |q_ic - p_jc|,    Pi = sinkhorn(W, eps 0.1, 20 iterations), temperature 2

with rows and columns that sum to 1, so that it is a sum over the batch. One sample: |q - p|_1, twice the total
variation. It does not change when the student's rows change places, and cannot tell which sample is which: it is to be
added to a loss that can. At s = t it is neither 0 nor stationary, because the entropy spreads the plan; `debiased`
subtracts half of the cost of each batch to itself, and is both.

The released code normalises exp(-W / eps) itself (`log_domain=False`); its scripts never add the term, so that
published numbers do not come from it. Its weight there is 0.0008 or 0.001, times 0.8, beside a distillation without
tau^2.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, at_least_float32, check_number, got
from kd.classification.inputs import as_batch
from kd.classification.sinkhorn import l1_costs, sinkhorn
from kd.typing import Array, Number


def sinkd(
    s: ArrayInput,
    t: ArrayInput,
    *,
    eps: Number = 0.1,
    n_iters: int = 20,
    temperature: Number = 2.0,
    log_domain: bool = True,
    debiased: bool = False,
    detach_plan: bool = False,
) -> Array:
    """The transport cost between a batch of student outputs and the teacher's, summed over the batch; see the module.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        eps: strength of the entropy.
        n_iters: Sinkhorn iterations.
        temperature: of both.
        log_domain: see `sinkhorn`; the two are equal where neither runs out of range.
        debiased: whether half of the cost of each batch to itself is subtracted.
        detach_plan: whether the plan is a constant in the gradient, instead of a function of the outputs.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.array([[3.0, 0.0], [0.0, 3.0]]), jnp.array([[0.0, 3.0], [3.0, 0.0]])
        >>> print(f"{jax.jit(sinkd)(s, t):.4f}")
        0.0000
    """
    s, t = as_batch(s, t)
    check_number("temperature", temperature, above=0)
    q = jax.nn.softmax(s / temperature)
    p = jax.nn.softmax(jax.lax.stop_gradient(t) / temperature)

    def transport(x: Array, y: Array) -> Array:
        cost = l1_costs(x, y)
        plan = sinkhorn(cost, eps=eps, n_iters=n_iters, log_domain=log_domain)
        return jnp.sum(cost * (jax.lax.stop_gradient(plan) if detach_plan else plan))

    if not debiased:
        return transport(q, p)
    return transport(q, p) - (transport(q, q) + transport(p, p)) / 2


def sinkd_sample_wise(
    s: ArrayInput,
    t: ArrayInput,
    cost: ArrayInput = None,
    *,
    eps: Number = 0.1,
    n_iters: int = 20,
    temperature: Number = 2.0,
    detach_plan: bool = False,
) -> Array:
    """The ablation without the batch: for each sample, transport of the student's probabilities to the teacher's.

    The classes of one sample are the points, with masses q and p; which cost between classes the paper uses could not
    be verified, and without one it is |q_k - p_l| here.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        cost: between the classes (C, C).
        eps: strength of the entropy.
        n_iters: Sinkhorn iterations.
        temperature: of both.
        detach_plan: whether the plan is a constant in the gradient.

    Returns:
        One number, summed over the batch.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.array([[20.0, 0.0]]), jnp.array([[0.0, 20.0]])
        >>> print(f"{jax.jit(sinkd_sample_wise)(s, t, 1.0 - jnp.eye(2)):.4f}")
        0.9999
    """
    s, t = as_batch(s, t)
    check_number("temperature", temperature, above=0)
    classes = s.shape[1]
    if cost is not None:
        (cost,) = as_floats("C C", cost=cost)
        if cost.shape != (classes, classes):
            raise ValueError(f"cost: got {got(cost)}, expected a float array (C, C) = ({classes}, {classes})")
        cost = at_least_float32(cost)

    def of_sample(s: Array, t: Array) -> Array:
        q, p = jax.nn.softmax(s / temperature), jax.nn.softmax(t / temperature)
        W = l1_costs(q[:, None], p[:, None]) if cost is None else cost
        plan = sinkhorn(W, q, p, eps=eps, n_iters=n_iters)
        return jnp.sum(W * (jax.lax.stop_gradient(plan) if detach_plan else plan))

    return jnp.sum(jax.vmap(of_sample)(s, jax.lax.stop_gradient(t)))
