"""Students of many seeds, objectives and temperatures, and what they are beside their teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.digits import DigitsConfig, FitConfig, Parts, digit_parts, schedule, transfer_rows
from experiments.distillation.measures import accuracy_of, beside
from experiments.distillation.networks import Network, Outputs, network, say
from experiments.distillation.objectives import Objective
from experiments.distillation.teachers import Arrays, Params, Teachers, arrays, fit, initial, train_teachers
from experiments.training.together import mapped
from experiments.training.update import random_stream


class Given(NamedTuple):
    """What the students of a program are made from, stacked over the seeds where it differs between them.

    Attributes:
        start: initial values of each network that learns: the student's, and the teacher's if it learns too.
        orders: rows of each update.
        parts: the images.
        taught: the teacher's outputs on the images to train on; None where it learns too.
        told: its logits on the held-out parts.
        classes: on which the accuracy is measured besides; None: none.
    """

    start: tuple[Params, ...]
    orders: jax.Array
    parts: Arrays
    taught: Outputs | None
    told: Mapping[str, jax.Array]
    classes: jax.Array | None


@partial(jax.jit, static_argnames=("nets", "objective", "rate", "at_once"))
def distilled(
    given: Given,
    seeds: jax.Array,
    temperatures: jax.Array,
    *,
    nets: tuple[Network, ...],
    objective: Objective,
    rate: float,
    at_once: int,
) -> tuple[dict[str, dict[str, jax.Array]], Outputs]:
    """Students trained and measured, one program for all teachers and transfer sets of the same sizes.

    Args:
        given: see there.
        seeds: place of each student's seed (models,).
        temperatures: of each student (models,).
        nets: the modules that learn, the student first.
        objective: how.
        rate: of the first update.
        at_once: models computed together.

    Returns:
        Held-out part -> measure -> (models,), and the students' outputs on the test images.
    """
    images, labels = given.parts["train"]

    def one(seed: jax.Array, temperature: jax.Array) -> Any:
        start, taught, told, classes = jax.tree.map(
            lambda x: x[seed], (given.start, given.taught, given.told, given.classes)
        )

        def loss(params: tuple[Params, ...], rows: jax.Array) -> jax.Array:
            said, *learning = (say(net, each, images[rows]) for net, each in zip(nets, params, strict=True))
            heard = learning[0] if learning else jax.tree.map(lambda x: x[rows], taught)
            return objective.loss(said, heard, labels[rows], temperature)

        params = fit(loss, start, given.orders[seed], rate)
        found = {}
        for name in ("validation", "test"):
            held_out, truth = given.parts[name]
            said, *learning = (say(net, each, held_out) for net, each in zip(nets, params, strict=True))
            found[name] = beside(said.logits, learning[0].logits if learning else told[name], truth)
            if classes is not None:
                found[name]["unseen"] = accuracy_of(said.logits, truth, classes)
        return found, said

    return mapped(one, at_once)(seeds, temperatures)


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
        return self._run(objective, self._given(objective, teachers), (self.net(objective, teachers),), temperatures)[0]

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
        start = tuple(self._initial(net, name) for net, name in zip(nets, ("initialisation", "teacher"), strict=True))
        given = Given(start, self._orders(), arrays(self.parts), None, {}, self._classes())
        return self._run(objective, given, nets, temperatures)[0]

    def outputs(self, objective: Objective, teachers: Teachers, temperature: float) -> Outputs:
        """What students of one objective say of the test images, features included.

        Args:
            objective: how they are trained.
            teachers: of the same seeds.
            temperature: of the objective.

        Returns:
            (seeds, n, ...).
        """
        nets = (self.net(objective, teachers),)
        return self._run(objective, self._given(objective, teachers), nets, (temperature,))[1]

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

    def _run(
        self, objective: Objective, given: Given, nets: tuple[Network, ...], temperatures: Sequence[float]
    ) -> tuple[dict[str, dict[str, np.ndarray]], Outputs]:
        """One student for each temperature and seed, the seeds running fastest."""
        count, temper = len(self.seeds), jnp.asarray(temperatures, jnp.float32)
        grid = jnp.tile(jnp.arange(count), len(temper)), jnp.repeat(temper, count)
        options = {"objective": objective, "rate": self.config.learning_rate, "at_once": self.at_once}
        found, outputs = distilled(given, *grid, nets=nets, **options)
        return jax.tree.map(lambda x: np.asarray(x).reshape(len(temper), count), found), outputs

    def _given(self, objective: Objective, teachers: Teachers) -> Given:
        start = self._initial(self.net(objective, teachers), "initialisation")
        told = {"validation": teachers.validation.logits, "test": teachers.test.logits}
        return Given((start,), self._orders(), arrays(self.parts), teachers.train, told, self._classes())

    def _initial(self, net: Network, name: str) -> Params:
        return initial(net, jnp.stack([random_stream(seed, name) for seed in self.seeds]))

    def _orders(self) -> jax.Array:
        return jnp.stack([schedule(r, self.config, seed) for r, seed in zip(self.rows, self.seeds, strict=True)])

    def _classes(self) -> jax.Array | None:
        return jnp.asarray(self.of_interest) if self.of_interest else None


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
