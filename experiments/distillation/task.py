"""A distillation as the one training loop takes it: student and teacher in one state.

A teacher that stays as it is, is a collection of the state and not a parameter: no gradient reaches it, it lies in
every checkpoint, and a training that goes on uses the teacher it began with.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.distillation.measures import beside, entropy
from experiments.distillation.networks import IMAGE, Network, say
from experiments.distillation.objectives import Objective
from experiments.sources.digits import Digits
from experiments.training.task import Metrics, Task


def label_task(net: Network, held_out: Digits) -> Task:
    """A network trained on labels, such as a teacher.

    Args:
        net: the module.
        held_out: images to evaluate on.

    Returns:
        The task, for batches of "image" and "label".
    """

    def loss(variables: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
        logits = say(net, variables, batch["image"]).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), {}

    @jax.jit
    def evaluate(variables: Any) -> dict[str, jax.Array]:
        said = say(net, variables, jnp.asarray(held_out.images)).logits.argmax(axis=-1)
        return {"accuracy": 100.0 * (said == jnp.asarray(held_out.labels)).mean()}

    return Task(init=lambda key: net.init(key, jnp.zeros(IMAGE)), loss=loss, evaluate=evaluate)


def distillation_task(
    student: Network, teacher: Network, taught: Any, objective: Objective, temperature: float, held_out: Digits
) -> Task:
    """A student trained beside its teacher.

    Args:
        student: the module that learns.
        teacher: the module that it learns from.
        taught: variables of the teacher; where it learns too, it starts from them, or from initial values if None.
        objective: the loss, and whether the teacher learns too.
        temperature: of the objective.
        held_out: images on which both are evaluated, from before the first update on.

    Returns:
        The task, for batches of "image" and "label". It logs the entropies and the agreement of each batch, and
        evaluates all of `experiments.distillation.measures.beside`.

    Raises:
        ValueError: there is no teacher, and it shall stay as it is.
    """
    if taught is None and not objective.joint:
        raise ValueError("taught: got None, expected the variables of a teacher, which does not learn here")

    def init(key: jax.Array) -> dict[str, Any]:
        one, other = jax.random.split(key)
        params = {"student": student.init(one, jnp.zeros(IMAGE))["params"]}
        of_teacher = (teacher.init(other, jnp.zeros(IMAGE)) if taught is None else taught)["params"]
        if objective.joint:
            return {"params": {**params, "teacher": of_teacher}}
        return {"params": params, "teacher": of_teacher}

    both = _both(student, teacher, objective)

    def loss(variables: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, t = both(variables, batch["image"])
        agreement = 100.0 * (s.logits.argmax(axis=-1) == t.logits.argmax(axis=-1)).mean()
        logged = {"agreement": agreement, "entropy": entropy(s.logits), "teacher entropy": entropy(t.logits)}
        return objective.loss(s, t, batch["label"], temperature), logged

    @jax.jit
    def evaluate(variables: Any) -> Metrics:
        s, t = both(variables, jnp.asarray(held_out.images))
        return beside(s.logits, t.logits, jnp.asarray(held_out.labels))

    return Task(init=init, loss=loss, evaluate=evaluate)


def _both(student: Network, teacher: Network, objective: Objective) -> Callable[[Any, Any], Any]:
    """(variables, images) -> outputs of student and teacher."""

    def outputs(variables: Any, images: Any) -> Any:
        params = variables["params"]
        own = params["teacher"] if objective.joint else variables["teacher"]
        return say(student, {"params": params["student"]}, images), say(teacher, {"params": own}, images)

    return outputs


def columns(part: Digits, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Images and labels as the loop reads them.

    Args:
        part: where they are.
        rows: which ones; None takes all.

    Returns:
        "image" and "label".
    """
    chosen = slice(None) if rows is None else rows
    return {"image": part.images[chosen], "label": part.labels[chosen]}
