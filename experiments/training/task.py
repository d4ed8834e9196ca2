"""What the loop trains: a task as a few functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from experiments.training.optimizer import Labels, parameter_labels

Variables = Any
Batch = Any
Metrics = Mapping[str, Any]

_NONE: Mapping[str, Any] = MappingProxyType({})


class Loss(NamedTuple):
    """What a loss function returns; a tuple of the first two, or more, will do.

    Attributes:
        value: a scalar; or scalars by name, several heads, of which the weighted sum is minimised.
        metrics: further scalars to log.
        collections: new values of the mutable collections (batch statistics, carried states), by name.
        weight: how many examples or tokens `value` and the metrics are means over. Accumulated parts of a batch are
            averaged with it, metrics that are sums too: a mean over the real tokens of a batch is no mean of means
            where padding differs. A part of weight 0 does not count.
    """

    value: jax.Array | Mapping[str, jax.Array]
    metrics: Metrics = _NONE
    collections: Mapping[str, Any] = _NONE
    weight: jax.Array | float = 1.0


@dataclass(frozen=True)
class Task:
    """What is trained, as functions.

    Attributes:
        init: random key -> variables, for example `lambda key: model.init(key, tokens)`. Logical axis names on the
            parameters are honoured. Of a dictionary with the key "params" all other keys are mutable collections.
        loss: (variables, batch, key) -> `Loss`, or a tuple of its first fields.
        evaluate: variables -> dictionary of scalars; None evaluates nothing. Compile it yourself, or take
            `experiments.training.validation`. It gets the averaged parameters if the training keeps an average.
        weights: of the heads of the loss, numbers or optax schedules; 1 where none is given.
        labels: parameters -> pytree of parameter groups, "decay", "no_decay" or "ssm".
    """

    init: Callable[[jax.Array], Variables]
    loss: Callable[[Variables, Batch, jax.Array], Any]
    evaluate: Callable[[Variables], Metrics] | None = None
    weights: Mapping[str, float | Callable[[Any], Any]] = field(default_factory=dict)
    labels: Labels = parameter_labels
