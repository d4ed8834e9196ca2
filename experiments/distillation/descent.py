"""Adam on a loss without data: what toy figures and tabular students are fitted with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax


def fitted(
    loss: Callable[[Any, jax.Array], jax.Array],
    start: Any,
    *,
    steps: int,
    rate: float,
    record: Callable[[Any], Any] | None = None,
    key: jax.Array | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Any, Any]:
    """Parameters after Adam, and what was recorded before every step.

    Args:
        loss: (parameters, random key of the step) -> scalar.
        start: parameters.
        steps: how many.
        rate: of the first step; it falls to 0 like a cosine.
        record: parameters -> what is kept of them; None keeps nothing.
        key: the steps' keys are split from it; None is that of 0.
        eps: of Adam; gradients far below it are not scaled up, so that a start at the optimum is left as it is.
        weight_decay: decoupled, times the rate.

    Returns:
        The last parameters, and the records with a leading axis of the steps.

    Example:
        >>> import jax.numpy as jnp
        >>> end, path = fitted(lambda x, _: (x - 3.0) ** 2, jnp.zeros(()), steps=300, rate=0.1, record=lambda x: x)
        >>> round(float(end), 2), path.shape
        (3.0, (300,))
    """
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), eps=eps, weight_decay=weight_decay)

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Any]:
        params, state = carry
        kept = None if record is None else record(params)
        changes, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, changes), state), kept

    keys = jax.random.split(jax.random.key(0) if key is None else key, steps)
    (end, _), kept = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return end, kept
