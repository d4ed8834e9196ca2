"""A distillation in the training loop: what learns, what is logged, and going on after an interruption."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation.digits import digit_parts
from experiments.distillation.networks import network
from experiments.distillation.objectives import OBJECTIVES
from experiments.distillation.task import columns, distillation_task
from experiments.training.config import CheckpointConfig, TrainConfig
from experiments.training.loop import train
from experiments.training.task import Task

STUDENT, TEACHER, PARTS = network("mlp-4"), network("mlp-6"), digit_parts()
CONFIG = TrainConfig(steps=6, batch_size=8, eval_every=3, checkpoint=CheckpointConfig(every=2))


def taught(seed):
    return TEACHER.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))


def task(name, teacher):
    return distillation_task(STUDENT, TEACHER, teacher, OBJECTIVES[name], 4.0, PARTS.test)


def run(folder, some, config=CONFIG):
    return train(config, some, columns(PARTS.train, np.arange(40)), folder, seed=3)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


@pytest.mark.slow
def test_a_frozen_teacher_is_what_was_given_and_is_evaluated_from_the_start_on(tmp_path):
    teacher = taught(1)
    outcome = run(tmp_path, task("hinton", teacher))
    assert same(outcome.params["teacher"], teacher["params"])
    said = TEACHER.apply(teacher, PARTS.test.images).logits.argmax(-1)
    accuracy = 100 * np.mean(np.asarray(said) == PARTS.test.labels)
    assert outcome.evaluation["step"].tolist() == [0, 3, 6]
    np.testing.assert_allclose(outcome.evaluation["teacher accuracy"], accuracy, rtol=1e-6)
    assert {"agreement", "entropy", "teacher entropy", "calibration error"} <= set(outcome.evaluation)
    assert {"agreement", "entropy", "teacher entropy"} <= set(outcome.train)
    start = task("hinton", teacher).init(jax.random.key(0))
    assert set(start) == {"params", "teacher"} and set(start["params"]) == {"student"}


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_undisturbed_one_with_the_teacher_it_began_with(tmp_path):
    undisturbed = run(tmp_path / "whole", task("hinton", taught(1)))

    class Stop(Exception):
        pass

    first = task("hinton", taught(1))
    seen = []

    def interrupted(variables):
        seen.append(1)
        if len(seen) == 2:
            raise Stop
        return first.evaluate(variables)

    with pytest.raises(Stop):
        run(tmp_path / "parts", Task(init=first.init, loss=first.loss, evaluate=interrupted))
    # Whoever goes on with another teacher at hand goes on with that of the checkpoint.
    resumed = run(tmp_path / "parts", task("hinton", taught(2)))
    assert same(resumed.params, undisturbed.params)
    np.testing.assert_array_equal(resumed.train["loss"], undisturbed.train["loss"])


@pytest.mark.slow
def test_online_both_networks_learn_and_only_from_their_own_losses(tmp_path):
    teacher = taught(1)
    outcome = run(tmp_path, task("bd_kd_online", teacher), replace(CONFIG, steps=2, eval_every=0))
    assert set(outcome.params) == {"params"} and set(outcome.params["params"]) == {"student", "teacher"}
    assert not same(outcome.params["params"]["teacher"], teacher["params"])
    random = task("bd_kd_online", None).init(jax.random.key(0))["params"]["teacher"]
    assert jax.tree.structure(random) == jax.tree.structure(teacher["params"])


def test_a_teacher_that_stays_must_be_given():
    with pytest.raises(ValueError, match="taught: got None, expected the variables of a teacher"):
        task("dkd", None)
