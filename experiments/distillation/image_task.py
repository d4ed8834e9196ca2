"""Teachers and students with batch normalisation as the training loop takes them.

The running means of what learns are a collection of the state, "batch_stats". A teacher that stays as it is, with its
own running means, which it then uses, is another one, "teacher": it lies in every checkpoint.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.baselines.residual import ResidualNetwork
from experiments.distillation.examplewise import collected, example_measures
from experiments.distillation.measures import entropy
from experiments.distillation.networks import Outputs
from experiments.training.task import Loss, Task
from experiments.training.validation import validation

Standardise = Callable[[jax.Array], jax.Array]
Heads = Callable[[Outputs, Outputs, jax.Array], Any]


def heard(net: ResidualNetwork, variables: Any, images: jax.Array) -> Outputs:
    """What a network says of images that it does not learn from."""
    seen: Any = net.apply(variables, images)
    return Outputs(seen.logits, seen.features)


def learning(net: ResidualNetwork, variables: Any, images: jax.Array) -> tuple[Outputs, Any]:
    """What a network says of a batch that it learns from, and its running means after that."""
    seen, changed = net.apply(variables, images, train=True, mutable=["batch_stats"])
    return Outputs(seen.logits, seen.features), changed["batch_stats"]


def label_task(
    net: ResidualNetwork, standardise: Standardise, held_out: Mapping[str, np.ndarray], batch_size: int
) -> Task:
    """A network trained on labels, such as a teacher.

    Args:
        net: the module.
        standardise: images as they are stored -> as the network sees them.
        held_out: "image" and "label" to evaluate on.
        batch_size: of the evaluation.

    Returns:
        The task, for batches of "image" and "label".
    """

    def loss(variables: Any, batch: Any, key: jax.Array) -> Loss:
        said, running = learning(net, variables, standardise(batch["image"]))
        value = optax.softmax_cross_entropy_with_integer_labels(said.logits, batch["label"]).mean()
        return Loss(value, collections={"batch_stats": running})

    def metrics(variables: Any, batch: Any) -> dict[str, jax.Array]:
        said = heard(net, variables, standardise(batch["image"])).logits.argmax(axis=-1)
        return {"accuracy": 100.0 * (said == batch["label"])}

    return Task(_initial(net, held_out), loss, validation(metrics, held_out, batch_size))


def distillation_task(
    student: ResidualNetwork,
    teacher: ResidualNetwork,
    taught: Mapping[str, Any],
    heads: Heads,
    standardise: Standardise,
    held_out: Mapping[str, np.ndarray],
    batch_size: int,
    weights: Mapping[str, Any] | None = None,
) -> Task:
    """A student trained beside its teacher, which stays as it is.

    Args:
        student: the module that learns.
        teacher: the module that it learns from.
        taught: variables of the teacher.
        heads: (student's outputs, teacher's outputs, labels) -> scalar, or scalars by name.
        standardise: images as they are stored -> as both networks see them.
        held_out: "image" and "label" on which both are evaluated, from before the first update on.
        batch_size: of the evaluation.
        weights: of the scalars, numbers or schedules; see `Task`.

    Returns:
        The task, for batches of "image" and "label". It logs the entropies and the agreement of each batch, and
        evaluates all of `experiments.distillation.measures.beside`.
    """
    initial = _initial(student, held_out)

    def init(key: jax.Array) -> dict[str, Any]:
        own = {name: {"student": value} for name, value in initial(key).items()}
        return {**own, "teacher": jax.tree.map(jnp.asarray, dict(taught))}

    def of_student(variables: Any) -> dict[str, Any]:
        return {name: variables[name]["student"] for name in ("params", "batch_stats")}

    def loss(variables: Any, batch: Any, key: jax.Array) -> Loss:
        images = standardise(batch["image"])
        s, running = learning(student, of_student(variables), images)
        t = jax.lax.stop_gradient(heard(teacher, variables["teacher"], images))
        agreement = 100.0 * (s.logits.argmax(axis=-1) == t.logits.argmax(axis=-1)).mean()
        logged = {"agreement": agreement, "entropy": entropy(s.logits), "teacher entropy": entropy(t.logits)}
        return Loss(heads(s, t, batch["label"]), logged, {"batch_stats": {"student": running}})

    def metrics(variables: Any, batch: Any) -> dict[str, jax.Array]:
        images = standardise(batch["image"])
        s, t = heard(student, of_student(variables), images), heard(teacher, variables["teacher"], images)
        return example_measures(s.logits, t.logits, batch["label"])

    means = validation(metrics, held_out, batch_size)
    return Task(init, loss, lambda variables: collected(means(variables)), weights or {})


def _initial(net: ResidualNetwork, held_out: Mapping[str, np.ndarray]) -> Callable[[jax.Array], Any]:
    """random key -> variables, for images of the size of those that are held out."""
    image = jnp.zeros((1, *held_out["image"].shape[1:]))
    return lambda key: net.init(key, image)
