"""Training on a memory task: what is evaluated, when it ends, and what a seed decides."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.long_memory import learning
from experiments.long_memory.cells import COLUMNS, MemoryConfig, as_table, column_of, recipe, train_cell
from experiments.long_memory.learning import UNSOLVED, answer_loss, share_right, updates_to
from experiments.long_memory.networks import MODELS, TIME_INVARIANT, ModelConfig, SlowModelConfig, network
from experiments.long_memory.tasks import (
    DISTANT,
    AssociativeConfig,
    CopyingConfig,
    DistantConfig,
    InductionConfig,
    ListOpsConfig,
)
from experiments.sources.listops import SYMBOLS, evaluate
from experiments.sources.recall import Recall

SMALL = MemoryConfig(
    seeds=(3, 5),
    models=("s5+none",),
    model=ModelConfig(1, 8, 2, 1),
    evaluation_rows=16,
    train=recipe(60, 16, 5, learning_rate=1e-2),
)


def test_loss_and_accuracy_are_of_the_answers_alone():
    random = np.random.default_rng(0)
    logits = random.standard_normal((2, 5, 3)).astype(np.float32)
    targets, asked = random.integers(0, 3, (2, 5)), np.zeros((2, 5), bool)
    asked[0, [1, 4]] = asked[1, 2] = True
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    told = [(i, t) for i, t in zip(*np.nonzero(asked), strict=True)]
    expected = -np.mean([np.log(probabilities[i, t, targets[i, t]]) for i, t in told])
    right = np.mean([logits[i, t].argmax() == targets[i, t] for i, t in told])
    batch = Recall(None, jnp.asarray(targets), jnp.asarray(asked))
    np.testing.assert_allclose(answer_loss(jnp.asarray(logits), batch), expected, rtol=1e-5)
    np.testing.assert_allclose(share_right(jnp.asarray(logits), batch), right, rtol=1e-6)
    poisoned = jnp.where(asked[..., None], logits, 1e9)
    np.testing.assert_allclose(answer_loss(poisoned, batch), expected, rtol=1e-5)


def test_updates_are_counted_to_the_first_evaluation_that_is_good_enough():
    accuracy = np.array([[0.1, 0.95, 0.2, 1.0], [0.1, 0.2, 0.3, 0.94]])
    assert updates_to(0.95, np.array([0, 5, 10, 15]), accuracy) == [5, None]


def test_nothing_ends_a_training_but_its_answers():
    train = recipe(100, 8, 10)
    assert train.stop_metric == UNSOLVED and train.patience * train.eval_every >= train.steps


def test_each_seed_is_measured_on_as_many_held_out_sequences_as_are_asked_for():
    class One:
        """A model that always tells 1."""

        def apply(self, variables, tokens):
            return jnp.broadcast_to(variables["params"], (*tokens.shape, 2))

    def held_out(key, rows):
        answers = jax.random.bernoulli(key, shape=(rows, 3)).astype(jnp.int32)
        return Recall(jnp.zeros_like(answers), answers, jnp.ones_like(answers, bool))

    task = replace(DistantConfig(4, 2, 4).task(), draw=None, held_out=held_out)
    measure = learning._measuring(One(), task, (3, 5), 6, 2)
    for purpose in ("evaluation", "test"):
        keys = [jax.random.split(learning.random_stream(seed, purpose), 3) for seed in (3, 5)]
        expected = [np.mean([held_out(key, 2).targets for key in of_seed]) for of_seed in keys]
        np.testing.assert_allclose(measure(purpose, jnp.tile(jnp.array([[0.0, 1.0]]), (2, 1))), expected, rtol=1e-6)
    named = learning._named(jnp.array([0.25, 1.0]), (3, 5))
    assert named == {"accuracy 3": 0.25, "accuracy 5": 1.0, UNSOLVED: 0.75}  # of the worst


@pytest.mark.slow
def test_a_training_ends_with_the_worst_seed_and_is_tested_on_other_sequences(tmp_path, monkeypatch):
    given, seen = DistantConfig(4, 2, 4).task(), set()

    def draw(key, rows):
        seen.add(rows)
        return given.draw(key, rows)

    # other sequences than a key would give to train on
    task = replace(given, draw=draw, held_out=lambda key, rows: given.draw(jax.random.fold_in(key, 1), rows))
    config, asked = replace(SMALL, evaluation_rows=32), set()
    stream = learning.random_stream
    monkeypatch.setattr(learning, "random_stream", lambda *of: asked.add(of) or stream(*of))
    rows, model, found = train_cell(config, task, "s5+none", tmp_path)
    assert {(seed, purpose) for seed in (3, 5) for purpose in ("evaluation", "test")} <= asked
    assert seen == {config.train.batch_size}
    table = as_table(rows)
    assert list(table) == list(COLUMNS) and table["seed"] == [3, 5]
    ends = found.updates[-1]
    assert 0 < ends < 60 and found.accuracy[:, -1].min() >= 0.99  # four tokens are learnt at once
    assert (found.accuracy[:, :-1].min(axis=0) < 0.99).all()
    assert table["updates"] == [ends, ends] and table["chance"] == [50.0, 50.0]
    assert table["updates to 95 %"] == updates_to(0.95, found.updates, found.accuracy)
    for i, seed in enumerate(SMALL.seeds):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], found.params)
        told = {}
        for purpose in ("evaluation", "test"):
            batches = [task.held_out(key, 16) for key in jax.random.split(_stream(seed, purpose), 2)]
            of_each = [share_right(model.apply({"params": params}, batch.tokens), batch) for batch in batches]
            told[purpose] = float(np.mean(of_each))
        assert column_of(table, "accuracy", DISTANT, "s5+none")[i] == pytest.approx(100 * told["test"])
        assert found.accuracy[i, -1] == pytest.approx(told["evaluation"])


def _stream(seed, name):
    from experiments.training.update import random_stream

    return random_stream(seed, name)


def test_models_have_equal_sizes():
    config = ModelConfig()
    for name in (*MODELS, TIME_INVARIANT):
        model, hidden = network(config, name, 16)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert abs(size - config.parameters) < 0.01 * config.parameters and hidden > 8, name
        assert not model.tied and (model.input_positions is not None) == name.endswith("+both"), name


def test_state_space_models_of_long_sequences_begin_with_smaller_steps():
    slow = SlowModelConfig(1, 8, 2, 1000, dt_min=2e-4, mamba2_states=5)
    for kind in ("s4", "s4d", "s5", "mamba", "mamba2", "mamba-refined", TIME_INVARIANT.partition("+")[0]):
        mixer, elsewhere = (config.mixer(kind)(width=8, num_heads=2) for config in (slow, ModelConfig()))
        assert (mixer.dt_min, elsewhere.dt_min) == (2e-4, 1e-3), kind
        assert mixer.state_size == (5 if kind == "mamba2" else elsewhere.state_size), kind


def test_listops_are_drawn_from_two_pools():
    task = ListOpsConfig(pool=64).task()
    seen = []
    for draw in (task.draw, task.held_out):
        batch = jax.tree.map(np.asarray, draw(jax.random.key(0), 50))
        assert batch.tokens.shape == (50, task.length) and batch.asked.sum(axis=1).tolist() == [1] * 50
        for tokens, target, asked in zip(batch.tokens, batch.targets, batch.asked, strict=True):
            text = [SYMBOLS[id] for id in tokens[: asked.argmax()]]
            assert evaluate(text) == target[asked.argmax()] and SYMBOLS[tokens[asked.argmax()]] == "="
        seen.append({tuple(row) for row in batch.tokens})
    assert not seen[0] & seen[1] and len(seen[1]) <= 64 / 4 < len(seen[0])
    assert task.data and 0.1 < task.chance < 0.6


@pytest.mark.parametrize(
    "sizes",
    [
        CopyingConfig(5, 3, 9),
        InductionConfig(7, 4),
        AssociativeConfig(17, 3, 9),
        DistantConfig(50, shown=7),
        ListOpsConfig(pool=8),
    ],
)
def test_tasks_have_the_length_the_tokens_and_the_chance_that_they_say(sizes):
    task = sizes.task()
    batch = jax.tree.map(np.asarray, task.draw(jax.random.key(1), 99))
    assert batch.tokens.shape == batch.targets.shape == batch.asked.shape == (99, task.length)
    assert batch.tokens.min() >= 0 and batch.tokens.max() < task.vocabulary
    assert batch.asked.any(axis=1).all()
    if not isinstance(sizes, ListOpsConfig):  # whose answers are not equally frequent
        assert task.chance == 1 / len(set(batch.targets[batch.asked]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ()}, "models: expected at least one"),
        ({"models": ("mambo+none",)}, "unknown mixer 'mambo'; nearest: mamba"),
        ({"models": ("softmax+learned",)}, "got 'softmax\\+learned', but a table of learned positions"),
        ({"evaluation_rows": 0}, "evaluation_rows: got 0"),
        ({"evaluation_rows": 17}, "evaluation_rows: got 17, expected up to 16 or a multiple of it"),
        ({"train": replace(SMALL.train, stop_metric="", stop_at=None, eval_every=0)}, "eval_every: got 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_fewer_sequences_than_an_update_has_may_be_evaluated():
    assert replace(SMALL, evaluation_rows=3).evaluation_rows == 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (lambda: CopyingConfig(noise=-1), "noise: got -1"),
        (lambda: InductionConfig(length=2), "length: got 2"),
        (lambda: AssociativeConfig(length=31), "length: got 31, expected at least 32"),
        (lambda: DistantConfig(alphabet=5), "alphabet: got 5"),
        (lambda: DistantConfig(9, shown=9), "length: got 9, expected at least 10"),
        (lambda: ListOpsConfig(shortest=32), "shortest: got 32, expected between 4 and 31"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sizes()


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="model.num_heads: got 3"):
        ModelConfig(num_heads=3)
