"""Networks with batch normalisation in the training loop: what learns, what stays, what is evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.residual import residual_network
from experiments.distillation.image_task import distillation_task, label_task
from experiments.distillation.measures import beside
from experiments.training.config import MomentumConfig, TrainConfig
from experiments.training.loop import train

NET, TEACHER = residual_network("resnet8", 5), residual_network("wrn-10-1", 5)
CONFIG = TrainConfig(steps=2, batch_size=4, eval_every=2, optimizer=MomentumConfig())


def pictures(count, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return {"image": image, "label": rng.integers(0, 5, count).astype(np.int32)}


def scaled(images):
    return images.astype(jnp.float32) / 255


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_student_learns_with_its_running_means_from_a_teacher_that_stays_as_it_is(tmp_path):
    held_out = pictures(7, 1)
    taught = jax.jit(TEACHER.init)(jax.random.key(5), jnp.zeros((1, 8, 8, 3)))

    def heads(s, t, y):
        return {
            "labels": -jax.nn.log_softmax(s.logits)[jnp.arange(4), y].mean(),
            "off": ((s.logits - t.logits) ** 2).sum(),
        }

    task = distillation_task(NET, TEACHER, taught, heads, scaled, held_out, 4, {"off": 0.0})
    outcome = train(CONFIG, task, pictures(12, 0), tmp_path / "student", seed=3)
    assert same(outcome.params["teacher"], taught)
    found = outcome.evaluation
    assert found["step"].tolist() == [0, 2] and found["teacher accuracy"][0] == found["teacher accuracy"][1]
    # The last evaluation is that of both networks as they are used, on all images at once.
    own = {name: outcome.params[name]["student"] for name in ("params", "batch_stats")}

    @jax.jit
    def expected(images, labels):
        return beside(NET.apply(own, scaled(images)).logits, TEACHER.apply(taught, scaled(images)).logits, labels)

    for name, value in expected(held_out["image"], held_out["label"]).items():
        np.testing.assert_allclose(found[name][1], value, rtol=1e-4, err_msg=name)
    assert {"agreement", "entropy", "teacher entropy", "loss/labels", "loss/off"} <= set(outcome.train)
    # With a weight of 0 the teacher does not matter: the same student is trained on labels alone.
    alone = train(CONFIG, label_task(NET, scaled, held_out, 4), pictures(12, 0), tmp_path / "alone", seed=3)
    for name in own:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), own[name], alone.params[name])
    assert all(np.any(leaf != leaf.round()) for leaf in jax.tree.leaves(alone.params["batch_stats"]))  # not 0 or 1
    np.testing.assert_allclose(alone.evaluation["accuracy"], found["accuracy"], rtol=1e-6)
