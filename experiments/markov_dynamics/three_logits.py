"""An induction head reduced to three numbers: "Abrupt in-context learning" (arXiv 2312.03002), as we reconstruct it.

N pairs of an item and its label, then the item of one of the pairs; which of L labels follows? The label of pair k
stands at position i = 2 k. In layer 1 it attends to the i positions up to its own, with a logit beta at lag 1 and 0
elsewhere, so the share of its own item is

    w_i = e^beta / (e^beta + i - 1).

In layer 2 the last item attends to the 2 N + 1 positions, with a logit alpha w_i at the label of its own pair and 0
elsewhere. The classifier's logit of a label in the context is xi times the attention on it, that of the L - N other
labels is 0. The loss is the cross-entropy, averaged over which pair is asked for.

The paper's own equations 7 to 9 were not at hand: the three nested logits are its idea, the formulas are ours.
"""

from functools import partial

import jax
import jax.numpy as jnp


def loss(parameters: jax.Array, items: int, labels: int) -> jax.Array:
    """Mean cross-entropy over the pair that is asked for.

    Args:
        parameters: beta, alpha and xi, (3,).
        items: N.
        labels: L, N or more.

    Returns:
        Nats.

    Example:
        >>> round(float(jnp.exp(loss(jnp.zeros(3), 8, 32))), 3)
        32.0
    """
    beta, alpha, xi = parameters
    position = 2.0 * jnp.arange(1, items + 1)
    share = jax.nn.sigmoid(beta - jnp.log(position - 1))
    # Attention on the right label, and on each of the other 2 N positions.
    right = jax.nn.sigmoid(alpha * share - jnp.log(2.0 * items))
    wrong = (1 - right) / (2 * items)
    scores = jnp.stack([xi * right, xi * wrong, jnp.zeros_like(right)])
    counts = jnp.log(jnp.array([1.0, items - 1.0, labels - items]))[:, None]
    return (jax.nn.logsumexp(scores + counts, axis=0) - scores[0]).mean()


@partial(jax.jit, static_argnames=("items", "labels", "steps", "rate"))
def losses_of_descent(starts: jax.Array, *, items: int, labels: int, rate: float, steps: int) -> jax.Array:
    """Losses along gradient descent with a constant rate, from several starts.

    Args:
        starts: (starts, 3).
        items: N.
        labels: L.
        rate: step size.
        steps: number of steps.

    Returns:
        Before each step, (steps, starts).

    Example:
        >>> losses_of_descent(jnp.zeros((2, 3)), items=2, labels=4, rate=0.1, steps=5).shape
        (5, 2)
    """
    gradients = jax.vmap(jax.value_and_grad(partial(loss, items=items, labels=labels)))

    def step(parameters: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        values, slopes = gradients(parameters)
        return parameters - rate * slopes, values

    return jax.lax.scan(step, starts, length=steps)[1]
