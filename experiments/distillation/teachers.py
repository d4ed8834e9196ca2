"""Networks of many seeds fitted one after the other in one program: teachers, and teachers fine-tuned by MCMI.

All that differs between two of them, the seed's images, their order and the initial values, belongs to the seed, so
that objectives and temperatures are compared in pairs. One model after the other is fastest on a CPU; `at_once` of them
are computed together where that is more than 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.distillation.digits import (
    CLASSES,
    FitConfig,
    Parts,
    schedule,
)
from experiments.distillation.networks import IMAGE, Network, Outputs, network, say
from experiments.training.together import mapped
from experiments.training.update import random_stream

PARTS = ("train", "validation", "test")
Params = Any
Arrays = Mapping[str, tuple[jax.Array, jax.Array]]
"""Part -> images and labels."""


def fit(loss: Callable[[Params, Any], jax.Array], params: Params, rows: Any, rate: float) -> Params:
    """Train one model.

    Args:
        loss: (parameters, rows (B,)) -> scalar.
        params: at the start.
        rows: of each update (steps, B); or a pytree of what differs between updates, the updates first.
        rate: of the first update.

    Returns:
        The parameters at the end.

    Example:
        >>> print(f"{fit(lambda w, rows: (w - 1.0) ** 2, jnp.zeros(()), jnp.zeros((400, 2), int), 0.1):.3f}")
        1.000
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(jax.tree.leaves(rows)[0])))

    def step(carry: Any, rows: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]


def arrays(parts: Parts) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Images and labels of "train", "validation" and "test"."""
    named = zip(PARTS, parts[:3], strict=True)
    return {name: (jnp.asarray(part.images), jnp.asarray(part.labels)) for name, part in named}


@partial(jax.jit, static_argnums=0)
def initial(net: Network, keys: jax.Array) -> Params:
    """Parameters at the start, one set for each key."""
    return jax.vmap(lambda key: net.init(key, jnp.zeros(IMAGE)))(keys)


@dataclass(frozen=True)
class Teachers:
    """Trained networks of several seeds, and what they say of every image.

    Attributes:
        net: the module.
        params: stacked over the seeds.
        train: outputs on the images to train on, (seeds, n, ...).
        validation: on those to choose on.
        test: on those to test on.
    """

    net: Network
    params: Params
    train: Outputs
    validation: Outputs
    test: Outputs


def train_teachers(
    name: str,
    parts: Parts,
    seeds: Sequence[int],
    config: FitConfig,
    *,
    rows: Sequence[np.ndarray] | None = None,
    at_once: int = 1,
) -> Teachers:
    """Networks trained on labels.

    Args:
        name: of the network.
        parts: the images.
        seeds: one network each.
        config: the training.
        rows: of the images that each learns from; None is all to train on.
        at_once: networks computed together.

    Returns:
        The networks.
    """
    net, count = network(name), len(parts.train)
    chosen = [np.arange(count)] * len(seeds) if rows is None else rows
    start = initial(net, jnp.stack([random_stream(seed, "teacher") for seed in seeds]))
    orders = jnp.stack([schedule(r, config, seed) for r, seed in zip(chosen, seeds, strict=True)])
    fitted = _on_labels(start, orders, arrays(parts), net=net, rate=config.learning_rate, at_once=at_once)
    return Teachers(net, *fitted)


@partial(jax.jit, static_argnames=("net", "rate", "at_once"))
def _on_labels(start: Params, orders: jax.Array, parts: Arrays, *, net: Network, rate: float, at_once: int) -> Any:
    """Parameters and outputs on the three parts of networks trained on labels."""
    images, labels = parts["train"]

    def one(params: Params, order: jax.Array) -> Any:
        def loss(params: Params, rows: jax.Array) -> jax.Array:
            logits = say(net, params, images[rows]).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        return _with_outputs(net, fit(loss, params, order, rate), parts)

    return mapped(one, at_once)(start, orders)


def _with_outputs(net: Network, params: Params, parts: Arrays) -> Any:
    return params, *(say(net, params, parts[name][0]) for name in PARTS)


def mcmi_teachers(
    teachers: Teachers, parts: Parts, seeds: Sequence[int], config: FitConfig, *, weight: float, at_once: int = 1
) -> Teachers:
    """The teachers, fine-tuned to tell more of an image than its class (MCMI); centroids are those of the start.

    Args:
        teachers: trained on labels.
        parts: the images.
        seeds: of the order of the images.
        config: the fine-tuning.
        weight: of the conditional mutual information.
        at_once: networks computed together.

    Returns:
        New teachers.
    """
    count = len(parts.train)
    orders = jnp.stack([schedule(np.arange(count), config, seed + 1) for seed in seeds])
    given = teachers.params, teachers.train.logits, orders, arrays(parts), jnp.float32(weight)
    return Teachers(teachers.net, *_tuned(*given, net=teachers.net, rate=config.learning_rate, at_once=at_once))


@partial(jax.jit, static_argnames=("net", "rate", "at_once"))
def _tuned(
    start: Params,
    logits: jax.Array,
    orders: jax.Array,
    parts: Arrays,
    weight: jax.Array,
    *,
    net: Network,
    rate: float,
    at_once: int,
) -> Any:
    """Parameters and outputs of fine-tuned networks."""
    import kd

    images, labels = parts["train"]

    def one(params: Params, logits: jax.Array, order: jax.Array) -> Any:
        centroids = kd.class_centroids(jax.nn.softmax(logits), labels, CLASSES)

        def loss(params: Params, rows: jax.Array) -> jax.Array:
            logits = say(net, params, images[rows]).logits
            return kd.mcmi_teacher(logits, labels[rows], centroids, weight=weight)

        return _with_outputs(net, fit(loss, params, order, rate), parts)

    return mapped(one, at_once)(start, logits, orders)
