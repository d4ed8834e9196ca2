"""Entropic optimal transport by Sinkhorn's iterations, and the L1 costs between rows without their differences.

The plan is Pi_ij = exp((f_i + g_j - W_ij) / eps) with rows that sum to a and columns that sum to b. Each iteration sets
first the rows right and then the columns, so that the columns of the result are exact. The gradient is that of the
iterations.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kd.checks import ArrayInput, as_floats, at_least_float32, check_count, check_mass, check_number, got, known
from kd.classification.potentials import potentials
from kd.typing import Array, Number


def sinkhorn(
    cost: ArrayInput,
    a: ArrayInput = None,
    b: ArrayInput = None,
    *,
    eps: Number = 0.1,
    n_iters: int = 20,
    log_domain: bool = True,
) -> Array:
    """The entropic transport plan of a cost; see the module.

    Args:
        cost: W (n, m).
        a: sums of the rows (n), at least 0; None is 1 for each, so that the mass of a square cost is n and not 1.
        b: sums of the columns (m), of the same mass together; None is 1 for each.
        eps: strength of the entropy, in the unit of the cost.
        n_iters: iterations.
        log_domain: whether logarithms are iterated. Otherwise exp(-W / eps) itself is, as in the released code: in
            float32 0 / 0 where all costs of a row are above 87 eps.

    Returns:
        Pi (n, m).

    Raises:
        ValueError: an argument is not as stated, or rows and columns differ in their mass.

    Example:
        >>> plan = sinkhorn(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
        >>> plan.round(3).tolist(), plan.sum(0).round(5).tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0])
    """
    (cost,) = as_floats("N M", cost=cost)
    cost = at_least_float32(cost)
    check_number("eps", eps, above=0)
    check_count("n_iters", n_iters)
    given = a, b
    a, b = (_marginal(name, x, size, cost) for name, x, size in zip("ab", given, cost.shape, strict=True))
    _check_equal_mass(given, cost)
    if not log_domain:
        return _normalised(jnp.exp(-cost / eps), a, b, n_iters)
    log_kernel = -cost / eps
    f, g = potentials(n_iters, log_kernel, jnp.log(a), jnp.log(b))
    return jnp.exp(log_kernel + f[:, None] + g[None])


def _normalised(plan: Array, a: Array, b: Array, n_iters: int) -> Array:
    def iterate(plan: Array, _: None) -> tuple[Array, None]:
        plan = plan * (a / plan.sum(1))[:, None]
        return plan * (b / plan.sum(0))[None], None

    return jax.lax.scan(iterate, plan, length=n_iters)[0]


def _marginal(name: str, x: ArrayInput, size: int, cost: Array) -> Array:
    if x is None:
        return jnp.ones(size, cost.dtype)
    (x,) = as_floats("N", **{name: x})
    if x.shape != (size,):
        raise ValueError(f"{name}: got {got(x)}, expected a float array of the {size} sums of cost, {got(cost)}")
    check_mass(name, x)
    # a mass of 0 has no logarithm
    return jnp.maximum(x.astype(cost.dtype), jnp.finfo(cost.dtype).tiny)


def _check_equal_mass(given: tuple[ArrayInput, ArrayInput], cost: Array) -> None:
    if not all(known(x) for x in given):
        return
    sizes = zip(given, cost.shape, strict=True)
    rows, columns = (size if x is None else float(np.asarray(x, np.float64).sum()) for x, size in sizes)
    if abs(rows - columns) > 1e-2 * rows:
        raise ValueError(f"b: got a mass of {columns:g}, expected that of a, {rows:g}")


@jax.custom_vjp
def l1_costs(x: Array, y: Array) -> Array:
    """W_ij = sum_c |x_ic - y_jc|, whose gradient is 0 where two entries are equal.

    JAX's gradient of the absolute value is 1 at 0, which would move rows that agree. Row after row of x, so that the
    (n, m, C) differences never exist together.

    Args:
        x: (n, C).
        y: (m, C).

    Returns:
        (n, m).

    Example:
        >>> x = jnp.array([[0.0, 1.0]])
        >>> l1_costs(x, jnp.array([[0.0, 3.0], [1.0, 1.0]])).tolist()
        [[2.0, 1.0]]
        >>> jax.grad(lambda x: l1_costs(x, jnp.array([[0.0, 3.0]])).sum())(x).tolist()
        [[0.0, -1.0]]
    """
    return jax.lax.map(lambda row: jnp.sum(jnp.abs(row[None] - y), axis=1), x)


def _l1_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return l1_costs(x, y), (x, y)


def _l1_backward(operands: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, y = operands

    def one_row(dy: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        weighted = row[1][:, None] * jnp.sign(row[0][None] - y)
        return dy - weighted, weighted.sum(0)

    dy, dx = jax.lax.scan(one_row, jnp.zeros_like(y), (x, g))
    return dx, dy


l1_costs.defvjp(_l1_forward, _l1_backward)
