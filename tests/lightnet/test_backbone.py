"""The backbone and the causal language model: meaning, not shapes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.backbone import Backbone, Block, CausalLM
from lightnet.heads import MaskedLM
from lightnet.mixers import SoftmaxAttention


def gpt2(layers=2, width=20, vocab=7, cache=24, positions=24, heads=2, **options):
    """A small GPT-2-style model."""
    mixer = partial(SoftmaxAttention, num_heads=heads, max_length=cache)
    backbone = Backbone(mixer=mixer, num_layers=layers, width=width)
    return CausalLM(backbone, vocab_size=vocab, max_length=positions, head_bias=True, **options)


def build(model, batch=2, length=9):
    """Tokens and amplified parameters, so that every path matters."""
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.integers(0, model.vocab_size, (batch, length)))
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
    return tokens, jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape, np.float32)), shapes)


def apply(model, *arguments, method=None, **options):
    """`model.apply`, compiled: one program is much faster to make than its operations one by one."""
    return jax.jit(partial(model.apply, method=method))(*arguments, **options)


def extend(model, *arguments, **options):
    """Logits, and the state behind the tokens."""
    return apply(model, *arguments, method="extend", **options)


def close(actual, expected):
    """Equal up to float32 rounding through a few layers."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def count(variables):
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("layers", "width", "vocab", "positions", "expected"),
    [(3, 10, 2, 512, 8_812), (3, 20, 10, 167, 18_090)],
)
def test_parameter_counts_of_the_published_models(layers, width, vocab, positions, expected):
    # "9K" (characters) and "18K" (BPE, ten tokens) in Figure 5a of arXiv 2404.08335.
    model = gpt2(layers, width, vocab, cache=0, positions=positions, heads=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert count(shapes) == expected


@pytest.mark.slow
def test_initial_loss_is_that_of_a_uniform_guess():
    model = gpt2(vocab=50)
    tokens = jax.random.randint(jax.random.key(1), (4, 20), 0, 50)
    logits, _ = model.init_with_output(jax.random.key(0), tokens)
    loss = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1))
    assert abs(float(loss) - np.log(50)) < 0.05


def test_residual_projections_start_smaller_with_depth():
    model = gpt2(layers=8, width=64)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    block = params["backbone"]["blocks_0"]
    expected = [(block["mix"]["out"], 0.005), (block["feed_forward"]["down"], 0.005), (block["mix"]["qkv"], 0.02)]
    for layer, scale in expected:
        assert np.std(layer["kernel"]) == pytest.approx(scale, rel=0.1)


def test_tied_embedding_gets_gradient_from_both_ends():
    model = gpt2()
    tokens, variables = build(model)
    gradient = jax.jit(jax.grad(lambda v: model.apply(v, tokens)[..., 3].sum()))(variables)["params"]["embedding"]
    used = np.isin(np.arange(model.vocab_size), tokens)
    used[3] = True
    np.testing.assert_array_equal(np.abs(gradient).max(axis=1) > 0, used)


def test_prefill_then_steps_equal_the_whole_sequence_with_padding_on_both_sides():
    model = gpt2()
    tokens, variables = build(model, batch=3, length=12)
    expected, _ = extend(model, variables, tokens)
    left = np.array([0, 2, 1])
    mask = (np.arange(10) >= left[:, None]) & (np.arange(10) < left[:, None] + 6)
    padded = np.full((3, 10), 5)
    padded[mask] = np.ravel(tokens[:, :6])
    logits, state = extend(model, variables, jnp.asarray(padded), mask=jnp.asarray(mask))
    for row, n in enumerate([0, 2, 1]):
        close(logits[row, n : n + 6], expected[row, :6])
    step = jax.jit(partial(model.apply, method="step"))
    for t in range(6, 12):
        logits, state = step(variables, tokens[:, t], state)
        close(logits, expected[:, t])


def test_packed_documents_equal_separate_ones():
    model = gpt2()
    tokens, variables = build(model, length=12)
    ids = np.tile([3] * 5 + [1] * 4 + [3] * 3, (2, 1))
    packed, state = extend(model, variables, tokens, segment_ids=ids)
    for start, stop in [(0, 5), (5, 9), (9, 12)]:
        alone, last = extend(model, variables, tokens[:, start:stop])
        close(packed[:, start:stop], alone)
    token = jnp.array([1, 2])
    after_packed, _ = apply(model, variables, token, state, method="step")
    close(after_packed, apply(model, variables, token, last, method="step")[0])


def test_input_only_tokens_are_never_predicted():
    model = gpt2(vocab=5, num_input_only=1)
    tokens = jnp.array([[5, 0, 4]])
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), tokens)
    assert logits.shape == (1, 3, 5)
    assert nn.meta.unbox(variables)["params"]["embedding"].shape == (6, 20)


def test_bfloat16_computation_keeps_float32_parameters_and_logits():
    mixer = partial(SoftmaxAttention, num_heads=2)
    model = CausalLM(Backbone(mixer=mixer, num_layers=2, width=16, dtype=jnp.bfloat16), vocab_size=9, max_length=16)
    tokens = jnp.arange(8)[None]
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), tokens)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (jnp.zeros((2, 3)), r"tokens: got float32\[2, 3\], expected an integer array \(B, L\)"),
        (jnp.zeros(3, jnp.int32), r"tokens: got int32\[3\]"),
        (jnp.zeros((1, 30), jnp.int32), "tokens: got length 30, expected at most max_length=24"),
    ],
)
def test_wrong_tokens_are_refused_by_name(tokens, message):
    with pytest.raises(ValueError, match=message):
        gpt2().init(jax.random.key(0), tokens)


def test_a_full_cache_is_refused_and_inside_jit_gives_nan():
    model = gpt2(cache=4, positions=0)
    tokens, variables = build(model, length=4)
    logits, state = extend(model, variables, tokens)
    assert state.position.tolist() == [4, 4] and np.isfinite(logits).all()
    with pytest.raises(ValueError, match="1 more tokens do not fit a cache of 4 slots"):
        model.apply(variables, tokens[:, 0], state, method="step")
    with pytest.raises(ValueError, match="5 more tokens"):
        model.apply(variables, jnp.zeros((1, 5), jnp.int32))
    logits, state = apply(model, variables, tokens[:, 0], state, method="step")
    assert np.isnan(logits).all()
    assert np.isnan(extend(model, variables, tokens, state)[0]).all()


def test_more_tokens_than_positions_are_refused_and_inside_jit_give_nan():
    model = gpt2(cache=8, positions=4)
    tokens, variables = build(model, length=4)
    logits, state = extend(model, variables, tokens)
    assert np.isfinite(logits).all()
    with pytest.raises(ValueError, match="tokens: got length 5, expected at most max_length=4"):
        model.apply(variables, tokens[:, 0], state, method="step")
    assert np.isnan(apply(model, variables, tokens[:, 0], state, method="step")[0]).all()


def test_a_language_model_refuses_a_mixer_that_sees_the_future():
    backbone = Backbone(mixer=partial(SoftmaxAttention, num_heads=2, causal=False), num_layers=1, width=8)
    model = CausalLM(backbone, vocab_size=5)
    with pytest.raises(ValueError, match="SoftmaxAttention: causal not supported"):
        model.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": jnp.zeros((2, 3, 7))}, r"x: got shape \[2, 3, 7\], expected \(B, L, 8\)"),
        ({"x": jnp.zeros((3, 8))}, r"x: got shape \[3, 8\]"),
        ({"x": jnp.zeros((2, 0, 8))}, "with L from 1"),
        ({"mask": jnp.ones((2, 4), bool)}, r"mask: got bool\[2, 4\], expected bool\[2, 3\]"),
        ({"mask": jnp.ones((2, 3), jnp.int32)}, r"mask: got int32\[2, 3\], expected bool\[2, 3\]"),
        ({"segment_ids": jnp.ones((2, 3))}, r"segment_ids: got float32\[2, 3\], expected integer\[2, 3\]"),
    ],
)
def test_wrong_arguments_of_the_backbone_are_refused_by_name(arguments, message):
    backbone = Backbone(mixer=partial(SoftmaxAttention, num_heads=2), num_layers=1, width=8)
    with pytest.raises(ValueError, match=message):
        backbone.init(jax.random.key(0), **{"x": jnp.zeros((2, 3, 8)), **arguments})


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_product_of_their_factors(tied):
    backbone = Backbone(partial(SoftmaxAttention, num_heads=2), num_layers=1, width=8)
    model = CausalLM(backbone, vocab_size=7, num_input_only=2, tied=tied)
    tokens, variables = build(model)
    mask = jnp.arange(9)[None] < jnp.array([[9], [4]])
    h, W = apply(model, variables, tokens, method="logit_factors", mask=mask)
    assert W.shape == (7, 8)
    close(h @ W.T, apply(model, variables, tokens, mask=mask))


def test_logits_with_a_bias_have_no_factors():
    tokens, variables = build(gpt2())
    with pytest.raises(ValueError, match="head_bias: got True, expected logits that are a product"):
        gpt2().apply(variables, tokens, method="logit_factors")


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads: got 3, expected a divisor of the width 20"):
        gpt2(heads=3).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


def test_logits_have_the_precision_of_the_parameters_and_float32_at_least():
    tokens = jnp.array([[1, 2, 3]])
    mixer = partial(SoftmaxAttention, num_heads=2)
    for model in (
        CausalLM(Backbone(mixer, num_layers=1, width=8), vocab_size=5),
        MaskedLM(Backbone(partial(mixer, causal=False), num_layers=1, width=8), vocab_size=5),
    ):
        variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
        for given, expected in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)):
            with jax.enable_x64(given == jnp.float64):
                cast = jax.tree.map(lambda leaf, dtype=given: jnp.asarray(leaf, dtype), variables)
                assert model.apply(cast, tokens).dtype == expected


@pytest.mark.parametrize("wide", [False, True])
def test_the_residual_stream_may_be_float32_whatever_the_rest_is(wide):
    mixer = partial(SoftmaxAttention, num_heads=2)
    backbone = Backbone(mixer, num_layers=2, width=8, dtype=jnp.bfloat16, float32_residual=wide)
    x = jnp.ones((1, 3, 8), jnp.bfloat16)
    variables = nn.unbox(jax.jit(backbone.init)(jax.random.key(0), x))
    _, kept = backbone.apply(variables, x, capture_intermediates=lambda module, _: isinstance(module, Block))
    streams = [kept["intermediates"][f"blocks_{i}"]["__call__"][0][0] for i in range(2)]
    assert {stream.dtype for stream in streams} == {jnp.dtype(jnp.float32 if wide else jnp.bfloat16)}


@pytest.mark.parametrize("wrong", [-1, 5])
def test_ids_that_do_not_exist_are_refused_unless_masked(wrong):
    model = CausalLM(Backbone(partial(SoftmaxAttention, num_heads=2), num_layers=1, width=8), vocab_size=5)
    tokens, variables = build(model)
    strange = tokens.at[0, 1].set(wrong)
    with pytest.raises(ValueError, match=f"tokens: got the id {wrong}, expected ids from 0 to 4"):
        model.apply(variables, strange)
    model.apply(variables, strange, mask=jnp.ones(tokens.shape, bool).at[0, 1].set(False))
