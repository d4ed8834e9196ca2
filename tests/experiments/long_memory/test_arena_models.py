"""Models of the Long Range Arena: two directions, padding that changes nothing, two texts, equal sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.meta import unbox

from experiments.equal_size import count_parameters
from experiments.long_memory.arena_models import SequenceClassifier, _built, classifier
from experiments.long_memory.arena_tasks import TASKS
from experiments.long_memory.both_ways import BothWays
from experiments.long_memory.long_range_arena import MODELS, PRESETS
from experiments.long_memory.networks import ModelConfig
from lightnet.backbone import Backbone
from ssm.s4 import S4
from ssm.s4d import S4D

SMALL = ModelConfig(1, 8, 2, 1)


def initialised(module, *inputs):
    """Parameters none of which is 0 or 1."""
    leaves, tree = jax.tree.flatten(unbox(jax.jit(module.init)(jax.random.key(0), *inputs)))
    random = np.random.default_rng(1)
    return tree.unflatten([leaf + 0.2 * random.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def blocks(model, variables, x):
    """What comes out of the stack."""
    return np.asarray(jax.jit(lambda x: model.apply(variables, x, method=lambda model, x: model.backbone(x)[0]))(x))


@pytest.fixture(scope="module")
def two_ways():
    mixer = BothWays(partial(S4D, state_size=4), width=3)
    return mixer, initialised(mixer, jnp.ones((1, 5, 3)))


@pytest.mark.slow
def test_two_directions_are_two_mixers(two_ways):
    mixer, variables = two_ways
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    one = S4D(width=3, state_size=4)
    first, second = ({"params": variables["params"][name]} for name in ("forward", "backward"))
    one_way, apply = jax.jit(one.apply), jax.jit(mixer.apply)
    expected = one_way(first, x)[0] + one_way(second, x[:, ::-1])[0][:, ::-1]
    np.testing.assert_allclose(apply(variables, x)[0], expected, rtol=1e-4, atol=1e-5)
    everything = jnp.ones((2, 5), bool)
    np.testing.assert_allclose(apply(variables, x, mask=everything)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_masked_tokens_are_not_seen_in_either_direction_wherever_they_stand(two_ways):
    mixer, variables = two_ways
    apply = jax.jit(mixer.apply)
    mask = np.array([[False, True, True, False, True, False, True, True], [True] * 5 + [False] * 3])
    real = jax.random.normal(jax.random.key(2), (2, 5, 3))
    x = np.full((2, 8, 3), np.nan, np.float32)
    x[mask] = np.asarray(real).reshape(-1, 3)
    y = np.asarray(apply(variables, jnp.asarray(x), mask=jnp.asarray(mask))[0])
    expected = np.asarray(apply(variables, real)[0])
    np.testing.assert_allclose(y[mask], expected.reshape(-1, 3), rtol=1e-4, atol=1e-5)
    assert (y[~mask] == 0).all()
    gradient = jax.jit(jax.grad(lambda x: mixer.apply(variables, x, mask=jnp.asarray(mask))[0].sum()))(x)
    assert (np.asarray(gradient)[~mask] == 0).all() and np.isfinite(gradient).all()


@pytest.mark.slow
def test_two_directions_have_no_state(two_ways):
    mixer, variables = two_ways
    with pytest.raises(ValueError, match="state not supported"):
        mixer.apply(variables, jnp.ones((1, 5, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match="segments not supported"):
        mixer.apply(variables, jnp.ones((1, 5, 3)), segment_ids=jnp.ones((1, 5), jnp.int32))


# Two directions by two mixers, mixers that are told what is padding, and causal ones that are not.
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*MODELS, "mamba2+none"])
def test_what_stands_behind_a_text_changes_nothing(name):
    """Other bytes, and another number of them; each row is what it is alone."""
    task = TASKS["retrieval"]
    model, _ = classifier(SMALL, name, task, 9, both_ways=True)
    random = np.random.default_rng(3)
    texts, lengths = random.integers(0, 256, (3, 2, 9)).astype(np.uint8), np.array([[9, 4], [1, 6], [5, 9]])
    variables = initialised(model, jnp.asarray(texts).reshape(3, -1), jnp.asarray(lengths))
    apply = jax.jit(model.apply)
    expected = apply(variables, texts.reshape(3, -1), lengths)
    assert expected.shape == (3, 2) and len(np.unique(expected)) == 6
    padding = np.arange(9) >= lengths[..., None]
    poisoned = np.where(padding, random.integers(0, 256, texts.shape), texts).astype(np.uint8)
    assert (poisoned != texts).any()
    np.testing.assert_allclose(apply(variables, poisoned.reshape(3, -1), lengths), expected, rtol=1e-3, atol=1e-4)
    shorter, own = texts[1:2, :, :6].reshape(1, -1), lengths[1:2]
    np.testing.assert_allclose(apply(variables, shorter, own)[0], expected[1], rtol=1e-3, atol=1e-4)
    swapped = apply(variables, texts[:, ::-1].reshape(3, -1), lengths[:, ::-1])
    assert (np.abs(swapped - expected).max(axis=1) > 1e-3).all()  # which text is which is known


@pytest.mark.slow
def test_the_mean_is_of_real_tokens_and_pixels_are_values_from_minus_1_to_1():
    """Both by hand, around the blocks."""
    model = SequenceClassifier(Backbone(partial(S4D, state_size=2), num_layers=1, width=4), classes=3, vocabulary=9)
    tokens, lengths = jnp.array([[3, 5, 8, 0], [1, 1, 0, 0]], jnp.uint8), jnp.array([[3], [2]])
    variables = initialised(model, tokens, lengths)
    params = jax.tree.map(np.asarray, variables["params"])
    table, head = params["embedding"], params["head"]
    rows = blocks(model, variables, table[np.asarray(tokens)])
    means = np.stack([rows[0, :3].mean(axis=0), rows[1, :2].mean(axis=0)])
    expected = means @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, tokens, lengths), expected, rtol=1e-4, atol=1e-5)
    pixels = model.clone(vocabulary=0)
    variables = initialised(pixels, tokens, lengths)
    embed = jax.tree.map(np.asarray, variables["params"]["embed"])
    found = pixels.bind(variables)._embedded(jnp.array([[0, 255, 51]], jnp.uint8))
    values = np.array([[-1.0], [1.0], [-0.6]], np.float32)
    np.testing.assert_allclose(found[0], values @ embed["kernel"] + embed["bias"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_texts_are_compared_by_all_four_of_their_combinations():
    model = SequenceClassifier(Backbone(partial(S4D, state_size=2), num_layers=1, width=4), 2, 9, texts=2)
    tokens, lengths = jnp.array([[3, 5, 0, 7, 0, 0]], jnp.uint8), jnp.array([[2, 1]])
    variables = initialised(model, tokens, lengths)
    params = jax.tree.map(np.asarray, variables["params"])
    rows = blocks(model, variables, params["embedding"][np.asarray(tokens).reshape(2, 3)])
    u, v = rows[0, :2].mean(axis=0), rows[1, 0]
    compared = np.concatenate([u, v, u * v, u - v]) @ params["compare"]["kernel"] + params["compare"]["bias"]
    expected = np.asarray(jax.nn.gelu(compared)) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, tokens, lengths)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["retrieval", "path_x"])
def test_models_of_the_preset_paper_have_equal_sizes(name):
    config, task = PRESETS["paper"], TASKS[name]
    for model in config.models:
        built, hidden = classifier(config.model, model, task, task.length, both_ways=config.both_ways)
        size = count_parameters(built, jnp.zeros((1, 4 * task.texts), jnp.uint8), jnp.ones((1, task.texts), jnp.int32))
        assert abs(size - config.model.parameters) < 0.01 * config.model.parameters and hidden > 64, (model, hidden)


def test_initial_steps_are_as_small_as_the_length_asks_for():
    steps = []
    for name in ("text", "path_x"):
        mixer = _built(SMALL, "s4+none", TASKS[name], 8, True, {}, 1).backbone.mixer(width=8).one_way(width=8)
        assert isinstance(mixer, S4)
        steps.append(mixer.dt_min)
    assert steps == [1e-3, 1e-4]
    assert _built(SMALL, "s4+none", TASKS["text"], 8, False, {}, 1).told is False
