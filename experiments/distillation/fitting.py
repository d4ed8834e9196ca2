"""Teachers and students of many seeds, trained one after the other in one program.

All that differs between two of them, the seed's images, their order and the initial values, belongs to the seed, so
that objectives and temperatures are compared in pairs. One model after the other is fastest on a CPU; `at_once` of them
are computed together where that is more than 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.distillation.digits import (
    CLASSES,
    DigitsConfig,
    FitConfig,
    Parts,
    digit_parts,
    schedule,
    transfer_rows,
)
from experiments.distillation.measures import accuracy_of, beside
from experiments.distillation.networks import IMAGE, Network, Outputs, network, say
from experiments.distillation.objectives import Objective
from experiments.sources.digits import Digits
from experiments.training.loop import random_stream

Params = Any


def fit(loss: Callable[[Params, jax.Array], jax.Array], params: Params, rows: jax.Array, config: FitConfig) -> Params:
    """Train one model.

    Args:
        loss: (parameters, rows (B,)) -> scalar.
        params: at the start.
        rows: of each update (steps, B).
        config: the rate.

    Returns:
        The parameters at the end.

    Example:
        >>> rows, config = jnp.zeros((400, 2), int), FitConfig(400, 2, 0.1)
        >>> print(f"{fit(lambda w, rows: (w - 1.0) ** 2, jnp.zeros(()), rows, config):.3f}")
        1.000
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, len(rows)))

    def step(carry: Any, rows: jax.Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]


def each(function: Callable[..., Any], arguments: Any, at_once: int) -> Any:
    """The function of each model's arguments, compiled.

    Example:
        >>> each(lambda x: 2 * x, jnp.arange(3), 1).tolist()
        [0, 2, 4]
    """
    batch_size = at_once if at_once > 1 else None
    return jax.jit(lambda given: jax.lax.map(function, given, batch_size=batch_size))(arguments)


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
    net, (images, labels) = network(name), _arrays(parts.train)
    chosen = [np.arange(len(labels))] * len(seeds) if rows is None else rows

    def one(own: tuple[jax.Array, jax.Array]) -> Params:
        params, order = own

        def loss(params: Params, rows: jax.Array) -> jax.Array:
            return _cross_entropy(say(net, params, images[rows]).logits, labels[rows])

        return fit(loss, params, order, config)

    keys = jnp.stack([random_stream(seed, "teacher") for seed in seeds])
    orders = jnp.stack([schedule(r, config, seed) for r, seed in zip(chosen, seeds, strict=True)])
    return _teachers(net, one, (initial(net, keys), orders), parts, at_once)


def _teachers(net: Network, train: Callable[[Any], Params], given: Any, parts: Parts, at_once: int) -> Teachers:
    """Each one trained, with its outputs."""

    def one(own: Any) -> tuple[Params, list[Outputs]]:
        params = train(own)
        return params, [say(net, params, _arrays(part)[0]) for part in parts[:3]]

    params, outputs = each(one, given, at_once)
    return Teachers(net, params, *outputs)


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
    import kd

    images, labels = _arrays(parts.train)

    def one(own: Any) -> Params:
        params, logits, order = own
        centroids = kd.class_centroids(jax.nn.softmax(logits), labels, CLASSES)

        def loss(params: Params, rows: jax.Array) -> jax.Array:
            logits = say(teachers.net, params, images[rows]).logits
            return kd.mcmi_teacher(logits, labels[rows], centroids, weight=weight)

        return fit(loss, params, order, config)

    orders = jnp.stack([schedule(np.arange(len(labels)), config, seed + 1) for seed in seeds])
    return _teachers(teachers.net, one, (teachers.params, teachers.train.logits, orders), parts, at_once)


@dataclass(frozen=True)
class Students:
    """What students of several seeds have in common, whatever they are taught by.

    Attributes:
        name: of the network.
        parts: the images.
        seeds: one student of each objective and temperature for each.
        rows: images that each seed's students learn from.
        config: the training.
        at_once: students computed together.
        of_interest: a class for each seed, on which the accuracy is measured as "unseen"; empty: none.
    """

    name: str
    parts: Parts
    seeds: tuple[int, ...]
    rows: tuple[np.ndarray, ...]
    config: FitConfig = field(default_factory=FitConfig)
    at_once: int = 1
    of_interest: tuple[int, ...] = ()

    def distil(
        self, objective: Objective, teachers: Teachers, temperatures: Sequence[float]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Train a student for each temperature and seed, and measure it beside its teacher.

        Args:
            objective: how.
            teachers: of the same seeds.
            temperatures: of the objective.

        Returns:
            "validation" and "test" -> measure -> (temperatures, seeds).
        """
        net = self.net(objective, teachers)
        train = self._trained(net, objective, teachers)

        def one(own: tuple[jax.Array, jax.Array]) -> Any:
            params, seed = train(own), own[0]
            return self._beside(
                seed, lambda name, images: (say(net, params, images).logits, getattr(teachers, name).logits[seed])
            )

        return self._each(one, temperatures)

    def online(
        self, objective: Objective, teacher: Network, temperatures: Sequence[float]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Train a student and a teacher together, from initial values, for each temperature and seed.

        Args:
            objective: the sum of both losses.
            teacher: its module.
            temperatures: of the objective.

        Returns:
            As `distil`.
        """
        nets = network(self.name), teacher
        images, labels = _arrays(self.parts.train)
        names = ("initialisation", "teacher")
        keys = [jnp.stack([random_stream(seed, name) for seed in self.seeds]) for name in names]
        start, orders = [initial(net, own) for net, own in zip(nets, keys, strict=True)], self._orders()

        def one(own: tuple[jax.Array, jax.Array]) -> Any:
            seed, temperature = own

            def loss(params: Params, rows: jax.Array) -> jax.Array:
                student, teacher = (say(net, each, images[rows]) for net, each in zip(nets, params, strict=True))
                return objective.loss(student, teacher, labels[rows], temperature)

            params = fit(loss, jax.tree.map(lambda x: x[seed], start), orders[seed], self.config)
            return self._beside(
                seed, lambda name, x: tuple(say(net, p, x).logits for net, p in zip(nets, params, strict=True))
            )

        return self._each(one, temperatures)

    def outputs(self, objective: Objective, teachers: Teachers, temperature: float, part: Digits) -> Outputs:
        """What students of one objective say of images, features included.

        Args:
            objective: how they are trained.
            teachers: of the same seeds.
            temperature: of the objective.
            part: the images.

        Returns:
            (seeds, n, ...).
        """
        net = self.net(objective, teachers)
        train, images = self._trained(net, objective, teachers), _arrays(part)[0]
        count = len(self.seeds)
        grid = jnp.arange(count), jnp.full(count, temperature, jnp.float32)
        return each(lambda own: say(net, train(own), images), grid, self.at_once)

    def compare(self, variants: Mapping[str, tuple[Objective, float]], teachers: Teachers) -> dict[str, dict[str, Any]]:
        """Train the students of several objectives, each at one temperature.

        Args:
            variants: name -> (objective, temperature).
            teachers: of the same seeds.

        Returns:
            Name -> measure on the test images -> (seeds,).
        """
        found = {name: self.distil(one, teachers, (at,))["test"] for name, (one, at) in variants.items()}
        return {name: {cell: values[0] for cell, values in each.items()} for name, each in found.items()}

    def net(self, objective: Objective, teachers: Teachers) -> Network:
        """The student's module."""
        return network(self.name, teachers.train.features.shape[-1] if objective.projected else 0)

    def _each(self, one: Callable[[Any], Any], temperatures: Sequence[float]) -> dict[str, dict[str, np.ndarray]]:
        """One student for each temperature and seed, called with the seed's place and the temperature."""
        count, temper = len(self.seeds), jnp.asarray(temperatures, jnp.float32)
        grid = jnp.tile(jnp.arange(count), len(temper)), jnp.repeat(temper, count)
        return jax.tree.map(lambda x: np.asarray(x).reshape(len(temper), count), each(one, grid, self.at_once))

    def _beside(self, seed: jax.Array, logits: Callable[[str, jax.Array], Any]) -> dict[str, dict[str, jax.Array]]:
        """Measures on both held-out parts; `logits` gives those of student and teacher."""
        found = {}
        for name in ("validation", "test"):
            images, labels = _arrays(getattr(self.parts, name))
            said, taught = logits(name, images)
            found[name] = beside(said, taught, labels)
            if self.of_interest:
                found[name]["unseen"] = accuracy_of(said, labels, jnp.asarray(self.of_interest)[seed])
        return found

    def _orders(self) -> jax.Array:
        return jnp.stack([schedule(r, self.config, seed) for r, seed in zip(self.rows, self.seeds, strict=True)])

    def _trained(self, net: Network, objective: Objective, teachers: Teachers) -> Callable[[Any], Params]:
        images, labels = _arrays(self.parts.train)
        start = initial(net, jnp.stack([random_stream(seed, "initialisation") for seed in self.seeds]))
        orders = self._orders()

        def one(own: tuple[jax.Array, jax.Array]) -> Params:
            seed, temperature = own
            params, taught = jax.tree.map(lambda x: x[seed], (start, teachers.train))

            def loss(params: Params, rows: jax.Array) -> jax.Array:
                said = say(net, params, images[rows])
                heard = jax.tree.map(lambda x: x[rows], taught)
                return objective.loss(said, heard, labels[rows], temperature)

            return fit(loss, params, orders[seed], self.config)

        return one


def prepared(config: DigitsConfig, seeds: Sequence[int] | None = None) -> tuple[Teachers, Students]:
    """Teachers of a configuration, trained, and students to be.

    Args:
        config: networks, images and trainings.
        seeds: None takes those of the configuration.

    Returns:
        Both, of the same seeds.
    """
    parts, seeds = digit_parts(), tuple(config.seeds if seeds is None else seeds)
    teachers = train_teachers(config.teacher, parts, seeds, config.teacher_fit, at_once=config.at_once)
    rows = tuple(transfer_rows(parts.train.labels, config.images, seed) for seed in seeds)
    return teachers, Students(config.student, parts, seeds, rows, config.fit, config.at_once)


def _arrays(part: Digits) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(part.images), jnp.asarray(part.labels)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
