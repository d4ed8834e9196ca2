"""States in another precision than that of the computation: cast on the way in, and back on the way out.

An empty state is made without looking at parameters, so that it may be wider than what they compute in, or not as wide.
A step gives a state the precision in which it came; so a loop over steps, compiled, carries one type.
"""

from typing import Any

import jax
import jax.numpy as jnp


def computing_state(state: Any, dtype: Any, *operands: Any) -> Any:
    """A state in the precision of a recurrence, float32 at least; None as it is.

    Args:
        state: pytree, whose integers stay as they are.
        dtype: of the computation; None takes that of the operands.
        *operands: pytrees of inputs and parameters.

    Returns:
        The same pytree.

    Example:
        >>> computing_state([jnp.ones(2, jnp.bfloat16)], None, jnp.ones(3, jnp.bfloat16))[0].dtype
        dtype('float32')
    """
    wide = jnp.result_type(jnp.float32, *([dtype] if dtype is not None else jax.tree.leaves(operands)))
    return jax.tree.map(lambda s: s.astype(wide) if jnp.issubdtype(s.dtype, jnp.floating) else s, state)


def stored_state(after: Any, before: Any) -> Any:
    """The state behind some tokens in the precision of the one before them, or as it is if that is None.

    Example:
        >>> stored_state([jnp.ones(2)], [jnp.ones(2, jnp.bfloat16)])[0].dtype
        dtype(bfloat16)
    """
    return after if before is None else jax.tree.map(lambda new, old: new.astype(old.dtype), after, before)
