"""A loop over stacked blocks against the same blocks one by one."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.mixers import MIXERS, ORDER_FREE_ONLY, mixer
from lightnet.backbone import Backbone, CausalLM, stack_layers, unstack_layers
from lightnet.models import Size, causal_lm
from lightnet.positions import MDLRPE, MDTPE

BATCH, LENGTH, VOCABULARY = 2, 11, 13
LAYERS = 2
SIZE = Size(LAYERS, 8, 2, "of this test", hidden=12)


def model(kind="lightnet", **options):
    encodings = {"relative": MDLRPE, "input_positions": MDTPE} if kind == "lightnet" else {}
    encodings = encodings or {"relative": None, "input_positions": None}
    return causal_lm(SIZE, VOCABULARY, mixer=mixer(kind, causal=True), **encodings, **options)


def drawn(built, scale=3.0):
    """Parameters of every block different, and large enough that each of them matters."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    shapes = nn.meta.unbox(jax.eval_shape(built.init, jax.random.key(0), tokens))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(0, 0.1, leaf.shape), leaf.dtype), shapes)


def drawn_for(backbone, x):
    shapes = nn.meta.unbox(jax.eval_shape(backbone.init, jax.random.key(0), x))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)


def _first(params):
    """Of a backbone with its first block alone."""
    layers = unstack_layers(params)
    return {name: value for name, value in layers.items() if name != "blocks_1"}


def loss(built, variables, tokens, **per_token):
    logits = built.apply(variables, tokens, **per_token)
    return jnp.mean(jax.nn.log_softmax(logits)[..., 0] ** 2)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH)))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", pytest.param("nothing_saveable", marks=pytest.mark.slow)])
def test_losses_and_gradients_are_those_of_blocks_one_by_one(tokens, remat):
    plain, scanned = model(remat=remat), model(remat=remat, scan_layers=True)
    variables = drawn(plain)
    segments = {"segment_ids": jnp.asarray([[0] * 4 + [1] * 7, [0] * 11])}
    expected = jax.jit(jax.value_and_grad(partial(loss, plain)))(variables, tokens, **segments)
    found = jax.jit(jax.value_and_grad(partial(loss, scanned)))(stack_layers(variables), tokens, **segments)
    assert expected[0] > 1e-3 and all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[1]))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for got, wanted in zip(jax.tree.leaves(unstack_layers(found[1])), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6 * float(jnp.abs(wanted).max()))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["lightnet", "softmax"])
def test_a_state_goes_on_in_either_layout(tokens, kind):
    plain, scanned = model(kind), model(kind, scan_layers=True)
    options = {"max_length": LENGTH} if kind == "softmax" else {}
    plain, scanned = (
        CausalLM(
            one.backbone.clone(mixer=partial(one.backbone.mixer, **options)),
            VOCABULARY,
            input_positions=one.input_positions,
        )
        for one in (plain, scanned)
    )
    variables = drawn(plain)
    both = [(plain, variables), (scanned, stack_layers(variables))]
    answers = []
    for built, given in both:
        empty = built.apply(given, BATCH, method="init_state")
        logits, state = built.apply(given, tokens[:, :5], empty, method="extend")
        step, state = built.apply(given, tokens[:, 5], state, method="step")
        answers.append((empty, logits, step, state))
    assert jax.tree.structure(answers[0]) == jax.tree.structure(answers[1])
    for wanted, got in zip(*map(jax.tree.leaves, answers), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [name for name in MIXERS if name not in ORDER_FREE_ONLY])
def test_every_mixer_is_looped_over(tokens, kind):
    plain, scanned = model(kind), model(kind, scan_layers=True)
    created = nn.meta.unbox(jax.jit(scanned.init)(jax.random.key(0), tokens))
    assert jax.tree.structure(created) == jax.tree.structure(stack_layers(unstack_layers(created)))
    found = jax.jit(partial(loss, scanned))(created, tokens)
    np.testing.assert_allclose(found, jax.jit(partial(loss, plain))(unstack_layers(created), tokens), rtol=1e-5)


def test_stacked_parameters_have_the_names_of_their_axes_and_their_own_initial_values(tokens):
    scanned = model(scan_layers=True)
    created = jax.jit(scanned.init)(jax.random.key(0), tokens)
    boxes = created["params"]["backbone"]["blocks"]["feed_forward"]["gate"]["kernel"]
    assert boxes.names == ("layers", "embed", "mlp") and boxes.value.shape == (LAYERS, 8, 12)
    assert len({float(jnp.std(kernel)) for kernel in boxes.value}) == LAYERS
    np.testing.assert_allclose(jnp.std(boxes.value), 0.02, rtol=0.2)
    plain = jax.eval_shape(model().init, jax.random.key(0), tokens)
    shapes = jax.tree.map(lambda leaf: leaf.shape, nn.meta.unbox(plain))
    assert jax.tree.map(lambda leaf: leaf.shape, unstack_layers(nn.meta.unbox(created))) == shapes


def test_each_block_drops_numbers_of_its_own(tokens):
    scanned = model("linear", scan_layers=True, dropout=0.5)
    variables = drawn(scanned)
    apply = jax.jit(lambda key: scanned.apply(variables, tokens, rngs={"dropout": key}))
    first, again, other = (apply(jax.random.key(key)) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0.01


def test_branches_are_dropped_at_the_rate_of_their_block():
    """The first block keeps all; both branches of the last are dropped for a quarter of the examples."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3, 8), np.float32))
    plain = Backbone(mixer("linear", causal=True, num_heads=2, relative=None), 2, 8, scan_layers=True)
    variables = drawn_for(plain, x)
    dropping = plain.clone(drop_path=0.5)
    apply = jax.jit(lambda key: dropping.apply(variables, x, rngs={"dropout": key})[0])
    first = Backbone(plain.mixer, 1, 8).apply({"params": _first(variables["params"])}, x)[0]
    found = np.asarray(apply(jax.random.key(0)))
    np.testing.assert_allclose(dropping.apply(variables, x)[0], plain.apply(variables, x)[0], rtol=1e-6)
    same = np.isclose(found, first, rtol=1e-4, atol=1e-5).all(axis=(1, 2))
    assert 0.05 < same.mean() < 0.5
