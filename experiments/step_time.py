"""One update of a training as a program that can be timed against others."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from experiments.training.config import MomentumConfig, OptimizerConfig
from experiments.training.optimizer import make_optimizer
from experiments.training.recording import recorder
from experiments.training.task import Task


def update_program(
    task: Task,
    optimizer: OptimizerConfig | MomentumConfig,
    batch: Mapping[str, np.ndarray] | Iterator[Mapping[str, Any]],
) -> Callable[[], Any]:
    """Loss, gradient and the optimizer on one batch, the parameters carried from call to call.

    Args:
        task: its loss returns the value first.
        optimizer: of the training.
        batch: which is on the device before the first call; or batches, of which each call takes the next one.

    Returns:
        A function that does one update and returns the loss when it is done. It is compiled, and has been called once.
        While trainings are written down instead of done, see `experiments.training.recording`, it does nothing.
    """
    if recorder() is not None:
        return lambda: None
    rule = make_optimizer(optimizer, 10_000, task.labels)
    params = nn.unbox(jax.jit(task.init)(jax.random.key(0)))
    batches = batch if isinstance(batch, Iterator) else itertools.repeat(jax.device_put(dict(batch)))

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return task.loss(params, batch, key)[0]

    @jax.jit
    def update(carry: tuple[Any, Any], batch: Any, key: Any) -> tuple[tuple[Any, Any], Any]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, batch, key)
        changes, state = rule.update(gradient, state, params)
        return (optax.apply_updates(params, changes), state), value

    carry, key = (params, rule.init(params)), jax.random.key(1)

    def call() -> Any:
        nonlocal carry
        carry, value = update(carry, next(batches), key)
        jax.block_until_ready(carry)
        return value

    call()
    return call
