"""LightNet's named sizes, and its language model as a whole: decoding, packing, where it starts."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.mixers import LightNetAttention, LinearAttention, MultiplicativeDecay, SoftmaxAttention
from lightnet.models import (
    CAUSAL_LMS,
    CLASSIFIERS,
    DIFFUSION,
    MASKED_LMS,
    Size,
    causal_lm,
    classifier,
    diffusion,
    masked_lm,
)

SMALL = Size(num_layers=1, width=16, num_heads=2, source="ours", hidden=24)
TWO_LAYERS = replace(SMALL, num_layers=2)
GPT2_TOKENS = 50257


def build(model, *arguments, scale=0.3):
    """Random parameters that are far from their initial values, so that every path matters."""
    random = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype), shapes)


def apply(model, *arguments, method=None, **options):
    """`model.apply`, compiled."""
    return jax.jit(partial(model.apply, method=method))(*arguments, **options)


def extend(model, *arguments, **options):
    """Logits, and the state behind the tokens."""
    return apply(model, *arguments, method="extend", **options)


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def tokens_of(model, batch=2, length=9):
    return jnp.asarray(np.random.default_rng(1).integers(0, model.vocab_size, (batch, length)))


def count(model, *arguments):
    """Number of parameters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def of_stack(size):
    """The formula: projections, gate and GLU of each layer with its three norms, and the last norm."""
    width, rank = size.width, size.width // size.num_heads
    return size.num_layers * (4 * width**2 + 2 * width * rank + 3 * width * size.glu + 3 * width) + width


def of_positions(size, axes, rank=8):
    """The formula of MD-TPE: weights, decays, norm and projection for each axis."""
    return axes * (size.width * rank + rank + size.width + size.width**2)


TEXT = jnp.zeros((1, 4), jnp.int32)


@pytest.mark.parametrize(
    ("name", "expected", "untied"),
    [
        ("44m", 45_668_872, 71_400_456),
        ("160m", 125_336_840, 163_934_216),
        ("380m", 364_022_792, 415_485_960),
        ("1.3b", 1_352_996_872, 1_455_923_208),
    ],
)
def test_sizes_of_causal_language_models(name, expected, untied):
    size = CAUSAL_LMS[name]
    assert count(causal_lm(size, GPT2_TOKENS), TEXT) == expected
    assert count(causal_lm(size, GPT2_TOKENS, tied=False), TEXT) == untied
    assert of_stack(size) + of_positions(size, 1) + GPT2_TOKENS * size.width == expected
    assert not size.verified


def test_size_of_the_masked_language_model():
    size, expected = MASKED_LMS["base"], 125_387_865
    assert count(masked_lm(size, GPT2_TOKENS), TEXT) == expected
    embeddings = (GPT2_TOKENS + 1) * size.width + GPT2_TOKENS
    assert of_stack(size) + of_positions(size, 1) + embeddings == expected and not size.verified


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tiny", 6_028_280), ("small", 22_819_832), ("base", 88_695_800)],
)
def test_sizes_of_classifiers(name, expected):
    size = CLASSIFIERS[name]
    model = classifier(size, (224, 224), (16, 16), num_classes=1000)
    assert count(model, jnp.zeros((1, 224, 224, 3))) == expected
    ends = (16 * 16 * 3 + 1) * size.width + (size.width + 1) * 1000
    assert of_stack(size) + of_positions(size, 2) + ends == expected and not size.verified


@pytest.mark.parametrize(
    ("name", "expected"),
    # DiT itself: 33, 130, 458 and 675 million; what is more here are gates and MD-TPE.
    [("small", 33_719_856), ("base", 132_615_216), ("large", 464_478_256), ("xl", 681_896_496)],
)
def test_sizes_of_diffusion_models(name, expected):
    model = diffusion(DIFFUSION[name], (32, 32), (2, 2), num_classes=1000, channels_out=8)
    latents, time, label = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    assert count(model, latents, time, label) == expected and not DIFFUSION[name].verified


@pytest.mark.parametrize("mixer", [LinearAttention, MultiplicativeDecay, partial(LightNetAttention, phantom_logit=0.0)])
def test_models_that_are_compared_have_equal_parameters(mixer):
    size = CAUSAL_LMS["44m"]
    assert count(causal_lm(size, 256, mixer=mixer), TEXT) == count(causal_lm(size, 256), TEXT)
    softmax = count(causal_lm(size, 256, mixer=SoftmaxAttention), TEXT)
    gate_and_norm = size.num_layers * (2 * size.width * size.width // size.num_heads + size.width)
    assert count(causal_lm(size, 256), TEXT) - softmax == gate_and_norm


def language_models():
    short = partial(LightNetAttention, conv_width=3)
    decays = partial(LightNetAttention, decay="vector", normalised=False)
    slow = pytest.mark.slow
    return [LightNetAttention, pytest.param(short, marks=slow), pytest.param(decays, marks=slow)]


@pytest.mark.parametrize("mixer", language_models())
def test_prefill_chunks_and_steps_equal_the_whole_sequence(mixer):
    model = causal_lm(TWO_LAYERS, vocab_size=7, mixer=mixer)
    tokens = tokens_of(model, batch=3, length=12)
    variables = build(model, tokens)
    expected, _ = extend(model, variables, tokens)
    # Rows of different lengths: five tokens of each, padded on both sides.
    left = np.array([0, 2, 1])
    mask = (np.arange(8) >= left[:, None]) & (np.arange(8) < left[:, None] + 5)
    padded = np.full((3, 8), 6)
    padded[mask] = np.ravel(tokens[:, :5])
    _, state = extend(model, variables, jnp.asarray(padded), mask=jnp.asarray(mask))
    logits, state = extend(model, variables, tokens[:, 5:9], state)
    close(logits, expected[:, 5:9])
    step = jax.jit(partial(model.apply, method="step"))
    for t in range(9, 12):
        logits, state = step(variables, tokens[:, t], state)
        close(logits, expected[:, t])
    empty = model.apply(variables, 3, method="init_state")
    assert jax.tree.structure(empty) == jax.tree.structure(state)
    assert [a.shape for a in jax.tree.leaves(empty)] == [a.shape for a in jax.tree.leaves(state)]


def test_packed_documents_of_a_causal_language_model_are_separate_ones():
    model = causal_lm(SMALL, vocab_size=7)
    tokens = tokens_of(model)
    variables = build(model, tokens)
    ids = jnp.asarray(np.tile([3, 3, 3, 3, 1, 1, 3, 3, 3], (2, 1)))
    packed, state = extend(model, variables, tokens, segment_ids=ids)
    alone, last = extend(model, variables, tokens[:, 6:])
    close(packed[:, 6:], alone)
    jax.tree.map(close, state, last)


def test_initial_keys_are_uniform_and_the_initial_loss_is_that_of_a_uniform_guess():
    model = causal_lm(SMALL, vocab_size=50)
    tokens = tokens_of(model, batch=4, length=20)
    (logits, state), _ = jax.jit(partial(model.init_with_output, method="extend"))(jax.random.key(0), tokens)
    loss = -jnp.mean(jnp.take_along_axis(nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1))
    assert float(loss) == pytest.approx(np.log(50), rel=0.1)
    recurrence = state.backbone[0].recurrence
    # Logits are products of rows of norm sqrt(D) with kernels of scale 0.02: five standard deviations.
    logits_at_most = 5 * 0.02 * SMALL.width**0.5
    assert np.abs(recurrence.maximum + jnp.log(recurrence.total) - np.log(20)).max() < logits_at_most
    assert np.abs(recurrence.maximum).max() < logits_at_most


@pytest.mark.slow
@pytest.mark.parametrize("mixer", [LightNetAttention, partial(LightNetAttention, decay="vector", normalised=False)])
def test_ten_thousand_steps_do_not_drift(mixer):
    model = causal_lm(TWO_LAYERS, vocab_size=7, mixer=mixer)
    tokens = tokens_of(model, batch=1, length=10_000)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens[:, :1]))
    variables = jax.tree.map(lambda leaf: 5 * leaf, variables)
    expected, _ = extend(model, variables, tokens)
    _, state = extend(model, variables, tokens[:, :3])

    @jax.jit
    def decode(variables, state):
        def step(state, token):
            logits, state = model.apply(variables, token, state, method="step")
            return state, logits

        return jax.lax.scan(step, state, tokens[:, 3:].T)[1]

    logits = decode(variables, state)
    np.testing.assert_allclose(logits[:, 0], expected[0, 3:], rtol=0, atol=1e-4)
    assert np.abs(expected[:, -1] - expected[:, -2]).max() > 1e-2
