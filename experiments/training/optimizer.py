"""AdamW with its schedule, from optax."""

from typing import Any

import jax
import optax

from experiments.training.config import OptimizerConfig


def decay_mask(params: Any) -> Any:
    """True at the leaves that weight decay applies to: kernels of dense layers and an untied output head.

    Embeddings, learned positions, norms and biases are left alone, as in GPT-2's recipes.

    Example:
        >>> decay_mask({"up": {"kernel": 0, "bias": 0}, "embedding": 0})
        {'embedding': False, 'up': {'bias': False, 'kernel': True}}
    """

    def decays(path: tuple, _: Any) -> bool:
        return any(getattr(entry, "key", None) in ("kernel", "head") for entry in path)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate against the number of completed updates.

    onecycle: a half cosine from peak / 100 to the peak over the first `warmup` of the steps, another down to peak / 5.

    Example:
        >>> rate = make_schedule(OptimizerConfig(learning_rate=1.0), 100)
        >>> [round(float(rate(step)), 3) for step in (0, 2, 100)]
        [0.01, 1.0, 0.2]
    """
    if config.schedule == "constant":
        return optax.schedules.constant_schedule(config.learning_rate)
    # optax divides the first rate by final_div_factor: peak / (100 * 0.05) = peak / 5.
    return optax.schedules.cosine_onecycle_schedule(
        steps, config.learning_rate, pct_start=config.warmup, div_factor=100.0, final_div_factor=0.05
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW on the schedule, after clipping by global norm if asked for.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer(OptimizerConfig(), steps=10)
        >>> state = optimizer.init({"kernel": jnp.ones(3)})
    """
    adamw = optax.adamw(
        make_schedule(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
