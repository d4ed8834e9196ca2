"""AdamW by parameter groups, or momentum, each with its schedule, from optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.training.config import MomentumConfig, OptimizerConfig

# What parameterises a recurrence in S4, S4D, S5, Mamba and Mamba-2: the transition, the step size, the input matrix of
# S5 and the skip. Their published recipes train these without weight decay, S4 and S5 also at a smaller rate. The
# readout C has the rate of the rest, and is not decayed here, while the published code of S4 and S5 decays it.
SSM_PARAMETERS = frozenset({"A_log", "A_real", "A_imag", "log_A_real", "Lambda_re", "Lambda_im"})
SSM_PARAMETERS |= {"P", "B", "D", "dt_bias", "log_dt", "log_step"}
DECAYED_PARAMETERS = frozenset({"kernel", "head"})

Labels = Callable[[Any], Any]


def parameter_labels(params: Any) -> Any:
    """The group of each parameter by its name: "ssm", "decay" (kernels and untied heads) or "no_decay".

    Embeddings, learned positions, norms and biases are not decayed, as in GPT-2's recipes.

    Args:
        params: pytree of dictionaries.

    Returns:
        Pytree of labels like it.

    Example:
        >>> parameter_labels({"up": {"kernel": 0, "bias": 0}, "mix": {"A_log": 0}})
        {'mix': {'A_log': 'ssm'}, 'up': {'bias': 'no_decay', 'kernel': 'decay'}}
    """

    def label(path: tuple, _: Any) -> str:
        # Parameters still boxed with their axis names end in an entry of the box.
        name = next((entry.key for entry in reversed(path) if hasattr(entry, "key")), None)
        return "ssm" if name in SSM_PARAMETERS else "decay" if name in DECAYED_PARAMETERS else "no_decay"

    return jax.tree_util.tree_map_with_path(label, params)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate against the number of completed updates.

    onecycle: a half cosine from peak / 100 to the peak over the first `warmup` of the steps, at least one step, and
    another down to peak / 5 at the last step. linear and cosine: a line from 0 to the peak, then that curve down to 0.
    rsqrt: the same line, then peak sqrt(w / t) at step t, w being the step of the peak (Vaswani et al., section 5.3).

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
    peak = config.learning_rate
    if config.schedule == "constant":
        return optax.schedules.constant_schedule(peak)
    if config.schedule == "onecycle":
        # optax truncates the warm-up to whole steps, and one of none would start at the peak.
        warmup = min(1.0, max(config.warmup, (1 + 1e-6) / steps))
        # optax divides the first rate by final_div_factor: peak / (100 * 0.05) = peak / 5.
        return optax.schedules.cosine_onecycle_schedule(
            steps, peak, pct_start=warmup, div_factor=100.0, final_div_factor=0.05
        )
    rising = min(round(config.warmup * steps), steps - 1)
    if config.schedule == "cosine":
        return optax.schedules.warmup_cosine_decay_schedule(0.0, peak, rising, steps)
    up = optax.schedules.linear_schedule(0.0, peak, max(1, rising))
    if config.schedule == "rsqrt":
        top = max(1, rising)

        def down(after: jax.typing.ArrayLike) -> jax.Array:
            return peak * (1 + jnp.maximum(after, 0) / top) ** -0.5

        return optax.schedules.join_schedules([up, down], [top])
    return optax.schedules.join_schedules([up, optax.schedules.linear_schedule(peak, 0.0, steps - rising)], [rising])


def stepped_schedule(config: MomentumConfig, steps: int) -> optax.Schedule:
    """Learning rate against the number of completed updates: a constant between milestones.

    Args:
        config: rate, milestones and factor.
        steps: updates of the whole training.

    Returns:
        Learning rate as a function of the step.

    Example:
        >>> rate = stepped_schedule(MomentumConfig(learning_rate=1.0), 240)
        >>> [round(float(rate(step)), 4) for step in (0, 149, 150, 180, 210)]
        [1.0, 1.0, 0.1, 0.01, 0.001]
    """
    scales: dict[int, float] = {}
    for milestone in config.milestones:  # in a short training two of them may be the same update
        update = round(milestone * steps)
        scales[update] = scales.get(update, 1.0) * config.factor
    return optax.schedules.piecewise_constant_schedule(config.learning_rate, scales)


def make_optimizer(
    config: OptimizerConfig | MomentumConfig, steps: int, labels: Labels = parameter_labels
) -> optax.GradientTransformation:
    """AdamW on the schedule for each parameter group, after clipping all of them by their global norm if asked for.

    Of a `MomentumConfig`: v <- momentum v + (gradient + weight_decay w), w <- w - rate v, for all parameters alike.

    Args:
        config: rates and decays.
        steps: updates of the whole training.
        labels: parameters -> pytree of "decay", "no_decay" and "ssm", the groups of AdamW.

    Returns:
        An optax transformation.

    Raises:
        ValueError: in `init`, a label is none of the three.

    Example:
        >>> optimizer = make_optimizer(OptimizerConfig(), steps=10)
        >>> state = optimizer.init({"kernel": jnp.ones(3)})
    """
    if isinstance(config, MomentumConfig):
        descent = optax.sgd(stepped_schedule(config, steps), momentum=config.momentum)
        return optax.chain(optax.add_decayed_weights(config.weight_decay), descent)
    rate = make_schedule(config, steps)

    def adamw(scale: float = 1.0, weight_decay: float = 0.0) -> optax.GradientTransformation:
        return optax.adamw(lambda step: scale * rate(step), config.b1, config.b2, weight_decay=weight_decay)

    groups = {"decay": adamw(weight_decay=config.weight_decay), "no_decay": adamw(), "ssm": adamw(config.ssm_rate)}
    # The same tree with and without clipping, so that a training may be continued with the other.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.partition(groups, labels))
