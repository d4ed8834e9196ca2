"""AdamW with its schedule, from optax."""

from typing import Any

import jax
import optax

from experiments.training.config import OptimizerConfig


def decay_mask(params: Any) -> Any:
    """True at the leaves that weight decay applies to: kernels of dense layers and an untied output head.

    Embeddings, learned positions, norms and biases are left alone, as in GPT-2's recipes.

    Args:
        params: pytree of dictionaries.

    Returns:
        Pytree of booleans like it.

    Example:
        >>> decay_mask({"up": {"kernel": 0, "bias": 0}, "embedding": 0})
        {'embedding': False, 'up': {'bias': False, 'kernel': True}}
    """

    def decays(path: tuple, _: Any) -> bool:
        # Parameters still boxed with their axis names end in an entry of the box.
        keys = [entry.key for entry in path if hasattr(entry, "key")]
        return bool(keys) and keys[-1] in ("kernel", "head")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate against the number of completed updates.

    onecycle: a half cosine from peak / 100 to the peak over the first `warmup` of the steps, at least one step, and
    another down to peak / 5 at the last step.

    Args:
        config: peak, kind and warm-up.
        steps: updates of the whole training.

    Returns:
        Learning rate as a function of the step.

    Example:
        >>> rate = make_schedule(OptimizerConfig(learning_rate=1.0), 100)
        >>> [round(float(rate(step)), 3) for step in (0, 2, 100)]
        [0.01, 1.0, 0.2]
    """
    if config.schedule == "constant":
        return optax.schedules.constant_schedule(config.learning_rate)
    # optax truncates the warm-up to whole steps, and one of none would start at the peak.
    warmup = min(1.0, max(config.warmup, (1 + 1e-6) / steps))
    # optax divides the first rate by final_div_factor: peak / (100 * 0.05) = peak / 5.
    return optax.schedules.cosine_onecycle_schedule(
        steps, config.learning_rate, pct_start=warmup, div_factor=100.0, final_div_factor=0.05
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW on the schedule, after clipping by global norm if asked for.

    Args:
        config: rates and decays.
        steps: updates of the whole training.

    Returns:
        An optax transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer(OptimizerConfig(), steps=10)
        >>> state = optimizer.init({"kernel": jnp.ones(3)})
    """
    adamw = optax.adamw(
        make_schedule(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
