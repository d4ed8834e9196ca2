"""Classification and masked language modelling around LightNet's mixer: meaning, not shapes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.heads import Classifier, MaskedLM, patches, unpatched
from lightnet.mixers import LightNetAttention
from lightnet.models import Size, classifier, masked_lm
from lightnet.positions import MDLRPE, MDTPE

SMALL = Size(num_layers=1, width=16, num_heads=2, source="ours", hidden=24)
ORDER_FREE = partial(LightNetAttention, num_heads=2, causal=False)


def build(model, *arguments, scale=0.3):
    """Random parameters that are far from their initial values, so that every path matters."""
    random = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype), shapes)


def apply(model, *arguments, method=None, **options):
    """`model.apply`, compiled."""
    return jax.jit(partial(model.apply, method=method))(*arguments, **options)


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def tokens_of(model, batch=2, length=9):
    return jnp.asarray(np.random.default_rng(1).integers(0, model.vocab_size, (batch, length)))


def images(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))


@pytest.mark.parametrize(("grid", "patch"), [((2, 3), (2, 4)), ((3,), (5,)), ((2, 1, 3), (1, 2, 2))])
def test_patches_are_cut_row_by_row_and_put_together_again(grid, patch):
    x = images(2, *(n * p for n, p in zip(grid, patch, strict=True)), 3)
    cut = patches(x, patch)
    last = tuple(slice((n - 1) * p, None) for n, p in zip(grid, patch, strict=True))
    np.testing.assert_array_equal(cut[:, -1], x[(slice(None), *last)].reshape(2, -1))
    np.testing.assert_array_equal(unpatched(cut, grid, patch), x)


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_a_classifier_sees_places_only_through_its_encodings(pool):
    model = classifier(SMALL, (4, 6), (2, 2), 3, pool=pool)
    x = images(2, 4, 6, 1)
    variables = build(model, x)
    moved = jnp.roll(x, 2, axis=2)  # whole patches
    expected = apply(model, variables, x)
    assert np.abs(apply(model, variables, moved) - expected).max() > 1e-2

    bag = classifier(SMALL, (4, 6), (2, 2), 3, pool=pool, relative=None, input_positions=None)
    variables = build(bag, x)
    close(apply(bag, variables, moved), apply(bag, variables, x))


def test_pooling_is_the_mean_or_the_class_token():
    x = images(2, 4, 6, 1)
    mean = classifier(SMALL, (4, 6), (2, 2), 3)
    token = classifier(SMALL, (4, 6), (2, 2), 3, pool="token")
    variables = build(mean, x)
    tree = variables["params"]
    stream, _ = apply(
        mean, variables, x, method=lambda model, x: model.backbone(model.places(model.embed(patches(x, (2, 2))))[0])
    )
    close(
        apply(mean, variables, x), np.asarray(stream).mean(axis=1) @ tree["head"]["kernel"] + tree["head"]["bias"][None]
    )
    variables = build(token, x)
    gradient = jax.jit(jax.grad(lambda v: token.apply(v, x).sum()))(variables)["params"]["class_token"]
    assert np.abs(gradient).min() > 0
    with pytest.raises(ValueError, match="pool: got 'max', expected mean or token"):
        classifier(SMALL, (4, 6), (2, 2), 3, pool="max").init(jax.random.key(0), x)


def test_a_volume_is_classified_too():
    model = classifier(SMALL, (4, 4, 2), (2, 2, 1), 2)
    x = images(1, 4, 4, 2, 1)
    variables = build(model, x)
    assert np.abs(apply(model, variables, x[:, :, ::-1]) - apply(model, variables, x)).max() > 1e-3


@pytest.mark.slow
def test_blank_images_have_moderate_gradients():
    model = classifier(SMALL, (4, 6), (2, 2), 3)
    x = jnp.zeros((2, 4, 6, 1))
    variables = nn.meta.unbox(model.init(jax.random.key(0), x))
    gradient = jax.jit(jax.grad(lambda v: nn.log_softmax(model.apply(v, x))[:, 0].sum()))(variables)
    assert float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))) < 100


def test_a_masked_language_model_sees_both_sides():
    model = masked_lm(SMALL, vocab_size=7)
    tokens = tokens_of(model)
    variables = build(model, tokens)
    before = apply(model, variables, tokens)
    for changed in (0, 8):
        other = tokens.at[:, changed].set(model.vocab_size)
        assert np.abs(apply(model, variables, other) - before)[:, 4].min() > 0
    assert before.shape == (2, 9, 7) and before.dtype == jnp.float32


def test_padding_and_packing_of_a_masked_language_model_are_exact():
    model = masked_lm(SMALL, vocab_size=7, mixer=partial(LightNetAttention, causal=False, max_segments=3))
    tokens = tokens_of(model)
    variables = build(model, tokens)
    ids = jnp.asarray(np.tile([4, 4, 4, 1, 1, 4, 4, 4, 4], (2, 1)))
    packed = apply(model, variables, tokens, segment_ids=ids)
    mask = jnp.asarray(np.tile([False, True, True, True, False, True, True, False, False], (2, 1)))
    padded = apply(model, variables, tokens, mask=mask)
    for result, places in ((packed, [5, 6, 7, 8]), (padded, [1, 2, 3, 5, 6])):
        places = np.array(places)
        close(result[:, places], apply(model, variables, tokens[:, places]))
    with pytest.raises(ValueError, match=r"tokens: got float32\[2, 9\], expected an integer array \(B, L\)"):
        model.init(jax.random.key(0), jnp.zeros((2, 9)))
    with pytest.raises(ValueError, match="tokens: got the id 77"):
        model.init(jax.random.key(0), jnp.full((2, 9), 77))


def test_encodings_have_to_fit_the_grid():
    mixer = partial(ORDER_FREE, relative=partial(MDLRPE, axes=2), grid=(2, 2))
    stack = classifier(SMALL, (4, 6), (2, 2), 3).backbone.clone(mixer=mixer)
    with pytest.raises(ValueError, match=r"x: got 6 tokens, expected 4: 0 and \(2, 2\)"):
        Classifier(stack, 3, (2, 2)).init(jax.random.key(0), images(1, 4, 6, 1))
    model = MaskedLM(stack, vocab_size=5, input_positions=partial(MDTPE, grid=(3, 3)))
    with pytest.raises(ValueError, match=r"x: got 4 tokens, expected 9: 0 and \(3, 3\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 4), int))
    with pytest.raises(ValueError, match=r"patch: got \(3, 2\), expected a divisor of each of \(4, 6\)"):
        classifier(SMALL, (4, 6), (3, 2), 3)
    with pytest.raises(
        ValueError, match=r"x: got shape \[1, 5, 6, 1\], expected \(B, 2 axes that \(2, 2\) divides, C\)"
    ):
        patches(images(1, 5, 6, 1), (2, 2))
