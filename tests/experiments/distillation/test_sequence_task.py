"""Students of language models: what their loss counts, and whose samples they learn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose

from experiments.distillation.sequence_config import SequenceDistillation
from experiments.distillation.sequence_task import divergence_of_own, sequence_task, with_own_rows
from experiments.language_models import LanguageModel, Trained
from experiments.training.config import CheckpointConfig, TrainConfig
from experiments.training.data import DeviceBatches
from experiments.training.loop import train
from lightnet.decoding import generate

SYMBOLS, LENGTH, ROWS = 7, 9, 4
KEY = jax.random.key(5)


def model(width):
    size = {"num_layers": 1, "num_heads": 1, "hidden": 4}
    return LanguageModel(SYMBOLS, mixer="linear", positions="none", width=width, **size)


@pytest.fixture(scope="module")
def teacher():
    described = model(8)
    built = described.build()
    variables = nn.unbox(jax.jit(built.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32)))
    # Far from uniform, as the student is close to it: a small divergence would be rounding alone.
    return Trained(described, built, jax.tree.map(lambda leaf: 8 * leaf, variables))


@pytest.fixture(scope="module")
def rows():
    return {"tokens": jnp.asarray(np.random.default_rng(0).integers(0, SYMBOLS, (ROWS, LENGTH + 1), np.int32))}


def task_of(teacher, rows, **settings):
    config = SequenceDistillation(prompt=3, **settings)
    return sequence_task(model(4), teacher, config, {"held": rows}, np.ones(SYMBOLS, np.float32), ROWS), config


def log_laws(described, params, tokens):
    return jax.nn.log_softmax(described.build().apply({"params": params}, tokens[:, :-1]))


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_part_of_a_batch_has_its_share_of_own_rows(teacher, rows, fraction):
    """As the loss sees it where gradients are accumulated."""
    task, config = task_of(teacher, rows, on_policy_fraction=fraction, label_weight=0.5)
    variables = nn.unbox(jax.jit(task.init)(KEY))
    part = {"tokens": rows["tokens"][: ROWS // 2]}
    loss, logged = jax.jit(task.loss)(variables, part, KEY)
    own = config.own_rows(ROWS // 2)
    _, counted = with_own_rows(model(4).build(), {"params": variables["params"]}, part["tokens"], config, KEY)
    assert np.isfinite(loss)
    assert (~counted).any(axis=1).sum() == own
    assert ("cross-entropy" in logged) == (own < ROWS // 2)
    if own < ROWS // 2:
        q = log_laws(model(4), variables["params"], part["tokens"])[own:]
        labels = part["tokens"][own:, 1:, None]
        assert_allclose(logged["cross-entropy"], -jnp.take_along_axis(q, labels, axis=-1).mean(), rtol=1e-5)


def test_a_part_without_a_whole_number_of_own_rows_is_refused(teacher, rows):
    task, _ = task_of(teacher, rows, on_policy_fraction=0.5)
    variables = jax.eval_shape(task.init, KEY)
    with pytest.raises(ValueError, match="got 0.5 of 1 rows, expected a whole number"):
        jax.eval_shape(task.loss, nn.unbox(variables), {"tokens": rows["tokens"][:1]}, KEY)


@pytest.mark.slow
def test_on_text_the_loss_is_the_mean_divergence_whatever_the_key(teacher, rows):
    task, _ = task_of(teacher, rows)
    variables = nn.unbox(jax.jit(task.init)(KEY))
    p = log_laws(model(8), variables["teacher"], rows["tokens"])
    q = log_laws(model(4), variables["params"], rows["tokens"])
    expected = (jnp.exp(p) * (p - q)).sum(axis=-1).mean()
    loss = jax.jit(task.loss)
    assert_allclose(loss(variables, rows, KEY)[0], expected, rtol=1e-5)
    assert loss(variables, rows, KEY)[0] == loss(variables, rows, jax.random.key(6))[0]


@pytest.mark.slow
def test_own_rows_are_the_samples_of_the_update_and_count_behind_the_prompt(teacher, rows):
    task, _ = task_of(teacher, rows, on_policy_fraction=0.5, divergence="reverse_kl", label_weight=0.25)
    variables = nn.unbox(jax.jit(task.init)(KEY))
    params = {"params": variables["params"]}
    own = generate(model(4).build(), params, rows["tokens"][:2, :3], LENGTH + 1 - 3, KEY)
    tokens = rows["tokens"].at[:2, 3:].set(own)
    counts = jnp.ones((ROWS, LENGTH)).at[:2, :2].set(0)

    def expected(params):
        p, q = log_laws(model(8), variables["teacher"], tokens), log_laws(model(4), params["params"], tokens)
        divergence = ((jnp.exp(q) * (q - p)).sum(axis=-1) * counts).sum() / counts.sum()
        labels = -jnp.take_along_axis(q[2:], tokens[2:, 1:, None], axis=-1).mean()
        return 0.75 * divergence + 0.25 * labels

    def found(params):
        return task.loss({**variables, **params}, rows, KEY)[0]

    given = jax.jit(jax.value_and_grad(found))(params)
    assert_allclose(given[0], expected(params), rtol=1e-5)
    # No gradient goes through the samples, so it is that of the loss with the samples as given.
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-6), given[1], jax.grad(expected)(params))


@pytest.mark.slow
def test_rows_that_are_not_the_students_stay(teacher, rows):
    config = SequenceDistillation(prompt=3, on_policy_fraction=0.25)
    variables = jax.jit(model(4).build().init)(KEY, rows["tokens"])
    given = rows["tokens"]
    tokens, counted = with_own_rows(model(4).build(), nn.unbox(variables), given, config, KEY)
    assert (tokens[1:] == given[1:]).all() and (tokens[0, :3] == given[0, :3]).all()
    assert (tokens[0, 3:] != given[0, 3:]).any() and ((tokens >= 0) & (tokens < SYMBOLS)).all()
    assert counted[1:].all() and counted[0].tolist() == [False] * 2 + [True] * (LENGTH - 2)


@pytest.mark.slow
def test_an_interrupted_training_draws_what_it_would_have_drawn(teacher, rows, tmp_path, monkeypatch):
    task, _ = task_of(teacher, rows, on_policy_fraction=1.0)
    many = {"tokens": np.tile(rows["tokens"], (8, 1))}
    config = TrainConfig(steps=5, batch_size=ROWS, eval_every=5, checkpoint=CheckpointConfig(every=2))
    whole = train(config, task, many, tmp_path / "whole", seed=3)
    read, left = DeviceBatches.__next__, iter(range(3))

    def stop(self):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return read(self)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(DeviceBatches, "__next__", stop)
        train(config, task, many, tmp_path / "parts", seed=3)
    parts = train(config, task, many, tmp_path / "parts", seed=3)
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    jax.tree.map(np.testing.assert_array_equal, whole.params["teacher"], teacher.variables["params"])


@pytest.mark.slow
def test_a_student_that_is_its_teacher_does_not_diverge(teacher, rows):
    config = SequenceDistillation(prompt=3)
    same = divergence_of_own(teacher.language_model, teacher.variables, teacher, rows["tokens"], config, KEY)
    assert abs(same) < 1e-6
    other = nn.unbox(model(8).build().init(KEY, jnp.zeros((1, 2), jnp.int32)))
    assert divergence_of_own(teacher.language_model, other, teacher, rows["tokens"], config, KEY) > 1e-3


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"on_policy_fraction": 0.3}, "on_policy_fraction"),
        ({"on_policy_fraction": 1.5}, "on_policy_fraction"),
        ({"temperature": 0.0}, "temperature"),
        ({"label_weight": 1.0, "on_policy_fraction": 1.0}, "label_weight"),
    ],
)
def test_settings_that_cannot_be_are_refused(teacher, rows, settings, word):
    with pytest.raises(ValueError, match=word):
        task_of(teacher, rows, **settings)


def test_other_vocabularies_and_long_prompts_are_refused(teacher, rows):
    lengths = np.ones(SYMBOLS, np.float32)
    with pytest.raises(ValueError, match="student: got 9 and 7 tokens"):
        other = LanguageModel(9, num_layers=1, width=4, num_heads=1, hidden=4)
        sequence_task(other, teacher, SequenceDistillation(), {"held": rows}, lengths, ROWS)
    with pytest.raises(ValueError, match="prompt: got 10 tokens"):
        config = SequenceDistillation(prompt=10, on_policy_fraction=1.0)
        sequence_task(model(4), teacher, config, {"held": rows}, lengths, ROWS)
