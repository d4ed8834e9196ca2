"""Decoding: pieces equal the whole, padding and order of rows change nothing, and tokens are drawn as promised."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet import decoding
from lightnet.decoding import generate, prefill, reorder, sample, stream
from lightnet.mixers import LightNetAttention, LinearAttention, MultiplicativeDecay, SoftmaxAttention
from lightnet.models import Size, causal_lm

VOCAB = 11
MIXERS = {
    "lightnet": LightNetAttention,
    "conv": partial(LightNetAttention, conv_width=3),
    "unshared": partial(LightNetAttention, decay="vector"),
    "phantom": partial(LightNetAttention, decay="scalar", phantom_logit=-0.5),
    "not-normalised": partial(LightNetAttention, decay="vector", normalised=False),
    "linear": LinearAttention,
    "multiplicative": MultiplicativeDecay,
    "softmax": partial(SoftmaxAttention, max_length=40),
}
EVERY_MIXER = pytest.mark.parametrize("name", MIXERS)


@cache
def build(name, slots=None):
    """A small model with MD-LRPE and TPE, and parameters so large that every path matters."""
    mixer = MIXERS[name] if slots is None else partial(MIXERS[name], max_length=slots)
    model = causal_lm(Size(1, 12, 2, "ours", hidden=20), VOCAB, mixer=mixer)
    random = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    return model, jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape, np.float32)), shapes)


def tokens_of(batch, length, seed=1):
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, length)).astype(np.int32)


@cache
def compiled(model):
    """The whole sequence, pieces and steps as programs, which the tests share: most of their time is compilation."""
    whole, step = (jax.jit(partial(model.apply, method=method)) for method in ("extend", "step"))
    return whole, jax.jit(partial(prefill, model)), step


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@EVERY_MIXER
def test_pieces_and_steps_at_random_points_equal_the_whole_sequence(name):
    model, variables = build(name)
    whole, piece, step = compiled(model)
    tokens, random = tokens_of(3, 37), np.random.default_rng(5)
    expected, end = whole(variables, tokens)
    state, at = None, 0
    while at < tokens.shape[1]:
        size = min(random.choice([1, 1, 4, 7]) if state else 7, tokens.shape[1] - at)
        if state is not None and size == 1:
            logits, state = step(variables, tokens[:, at], state)
        else:
            logits, state = piece(variables, tokens[:, at : at + size], state)
        at += size
        close(logits, expected[:, at - 1])
    jax.tree.map(close, state, end)


@EVERY_MIXER
def test_rows_of_different_lengths_equal_each_row_alone(name):
    model, variables = build(name)
    whole, piece, step = compiled(model)
    rows = tokens_of(3, 37)
    # The first row is padded on the right, the second on the left, the third in between; the second call goes on.
    read = [[0, 1, 2, 3, 4, None, None, 5], [None, None, 0, 1, 2, 3, 4, 5], [0, None, 1, None, 2, 3, None, None]]
    more = [[6, 7, 8, 9], [None, 6, None, None], [None] * 4]
    ends, state = [], None
    for places in (read, more):
        mask = np.array([[place is not None for place in row] for row in places])
        padded = np.array([[row[place or 0] for place in line] for row, line in zip(rows, places, strict=True)])
        logits, state = piece(variables, np.where(mask, padded, VOCAB - 1), state, mask=mask)
        ends.append(logits)
    alone, _ = whole(variables, rows)
    for logits, last in zip(ends, [(5, 5, 3), (9, 6, None)], strict=True):
        for row, position in enumerate(last):
            close(logits[row], alone[row, position] if position is not None else np.full(VOCAB, np.nan))
    lengths = np.array([10, 7, 4])
    assert state.position.tolist() == lengths.tolist()
    for _ in range(3):
        at = np.arange(3), lengths
        logits, state = step(variables, rows[at], state)
        close(logits, alone[at])
        lengths += 1


@EVERY_MIXER
def test_padding_alone_leaves_the_state_as_it_is(name):
    model, variables = build(name)
    _, piece, _ = compiled(model)
    padding, ignored = np.zeros((3, 4), bool), tokens_of(3, 4, seed=2)
    _, before = piece(variables, tokens_of(3, 7))
    logits, after = piece(variables, ignored, before, mask=padding)
    assert np.isnan(logits).all()
    jax.tree.map(np.testing.assert_array_equal, after, before)
    nothing = model.apply(variables, 3, method="init_state")
    _, still_nothing = piece(variables, ignored, nothing, mask=padding)
    jax.tree.map(np.testing.assert_array_equal, still_nothing, nothing)


@EVERY_MIXER
def test_one_key_gives_the_same_tokens_in_one_loop_as_a_stream_and_by_hand(name):
    model, variables = build(name)
    prompt, key, settings = tokens_of(2, 7), jax.random.key(3), {"temperature": 0.8, "top_k": 7, "top_p": 0.9}
    mask = np.array([[True] * 7, [False] * 3 + [True] * 4])
    expected = generate(model, variables, prompt, 12, key, mask=mask, **settings)
    for chunk in (1, 5):
        streamed = stream(model, variables, prompt, key, steps=12, mask=mask, chunk=chunk, **settings)
        np.testing.assert_array_equal(np.stack(list(streamed), axis=1), expected)
    _, piece, step = compiled(model)
    logits, state = piece(variables, prompt, mask=mask)
    for n in range(12):
        token = sample(jax.random.fold_in(key, n), logits, **settings)
        np.testing.assert_array_equal(token, expected[:, n])
        logits, state = step(variables, token, state)
    other = generate(model, variables, prompt, 12, jax.random.key(4), mask=mask, **settings)
    assert (other != expected).any()


def smallest_set(probabilities, top_k, top_p):
    """The likeliest tokens that are kept, one after the other until their share of the `top_k` reaches `top_p`."""
    likeliest = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))[: top_k or None]
    total, kept = sum(probabilities[i] for i in likeliest), []
    while sum(probabilities[i] for i in kept) < top_p * total and len(kept) < len(likeliest):
        kept.append(likeliest[len(kept)])
    return kept


def test_tokens_are_drawn_with_their_probabilities_from_the_smallest_set_that_reaches_p():
    random, draws = np.random.default_rng(2), 20_000
    logits = (1.5 * random.standard_normal(13)).astype(np.float32)
    logits[4] = -np.inf
    settings = [
        (1.0, 0, 1.0),
        (0.6, 0, 1.0),
        (2.0, 5, 1.0),
        (1.0, 0, 0.35),
        (0.7, 9, 0.8),
        (3.0, 20, 0.97),
        (1.0, 1, 1),
    ]
    for seed, (temperature, top_k, top_p) in enumerate(settings):
        weights = np.exp(logits.astype(np.float64) / temperature)
        kept = smallest_set(weights / weights.sum(), top_k, top_p)
        expected = np.zeros(13)
        expected[kept] = weights[kept] / weights[kept].sum()
        many = jnp.broadcast_to(logits, (draws, 13))
        drawn = sample(jax.random.key(seed), many, temperature=temperature, top_k=top_k, top_p=top_p)
        share = np.bincount(drawn, minlength=13) / draws
        assert set(np.unique(drawn)) <= set(kept) and 4 not in kept
        # Five standard deviations, about once in a million.
        assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all(), settings[seed]


def test_temperature_zero_takes_the_first_of_the_likeliest_and_ties_are_cut_by_id():
    logits = jnp.array([[0.0, 3.0, 3.0, -1.0], [2.0, -jnp.inf, 0.0, 2.0]])
    for seed in range(3):
        assert sample(jax.random.key(seed), logits, temperature=0.0).tolist() == [1, 0]
        assert sample(jax.random.key(seed), logits, temperature=1e-30, top_k=1).tolist() == [1, 0]
    assert sample(jax.random.key(0), logits[0], temperature=0.0).shape == ()
    flat = jnp.zeros((500, 6))
    assert set(sample(jax.random.key(0), flat, top_k=2).tolist()) == {0, 1}
    assert set(sample(jax.random.key(0), flat, top_p=0.45).tolist()) == {0, 1, 2}
    assert set(sample(jax.random.key(0), flat, top_k=4, top_p=0.45).tolist()) == {0, 1}


@EVERY_MIXER
def test_reordered_rows_go_on_as_the_rows_that_they_were(name):
    model, variables = build(name)
    _, piece, step = compiled(model)
    _, state = piece(variables, tokens_of(3, 7))
    order, token = [2, 0, 2, 1], np.array([4, 5, 6], np.int32)
    expected, after = step(variables, token, state)
    logits, reordered = step(variables, token[order], reorder(state, order))
    close(logits, expected[np.array(order)])
    jax.tree.map(lambda new, old: close(new, old[np.array(order)]), reordered, after)
    assert np.abs(expected[0] - expected[2]).max() > 1e-2


def test_known_rows_can_be_taken_while_a_program_is_traced_and_are_checked():
    rows, state = jnp.array([2, 0]), {"h": jnp.arange(3.0)[:, None]}
    assert jax.jit(lambda state: reorder(state, rows))(state)["h"].ravel().tolist() == [2.0, 0.0]
    with pytest.raises(ValueError, match="expected rows from 0 to 1"):
        jax.jit(lambda state: reorder(state, rows))({"h": jnp.zeros((2, 1))})


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"temperature": 1e-30}, {"top_k": 2}, {"top_p": 0.5}])
def test_rows_without_finite_logits_give_no_token_and_the_others_do(settings):
    nan, inf = jnp.nan, jnp.inf
    logits = jnp.array([[0.0, nan, 1.0], [-inf, -inf, -inf], [inf, 0.0, 0.0], [-inf, 2e30, -inf]])
    assert sample(jax.random.key(0), logits, **settings).tolist() == [-1, -1, -1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0, expected a number from 0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_k": -1}, "top_k: got -1, expected an integer from 0"),
        ({"top_k": 1.5}, "top_k: got 1.5, expected an integer from 0"),
        ({"top_p": 0.0}, "top_p: got 0.0, expected a number above 0"),
        ({"top_p": 1.1}, "top_p: got 1.1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        sample(jax.random.key(0), jnp.zeros(3), **settings)
    model, variables = build("lightnet")
    with pytest.raises(ValueError, match=message):
        stream(model, variables, tokens_of(1, 3), jax.random.key(0), **settings)


def test_wrong_arguments_are_refused_by_name():
    model, variables = build("lightnet")
    key, prompt = jax.random.key(0), tokens_of(1, 3)
    with pytest.raises(ValueError, match=r"logits: got int32\[3\], expected floats"):
        sample(key, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"prompt: got shape \[1, 0\], expected \(B, P\) with P from 1"):
        generate(model, variables, prompt[:, :0], 3, key)
    with pytest.raises(ValueError, match="steps: got 0, expected at least 1"):
        generate(model, variables, prompt, 0, key)
    with pytest.raises(ValueError, match="chunk: got 0, expected at least 1"):
        stream(model, variables, prompt, key, chunk=0)
    with pytest.raises(ValueError, match=r"indices: got \[0, 1\], expected rows from 0 to 0"):
        reorder(model.apply(variables, 1, method="init_state"), [0, 1])
    with pytest.raises(ValueError, match=r"indices: got float32\[1\], expected integers"):
        reorder(model.apply(variables, 1, method="init_state"), [0.0])
    with pytest.raises(ValueError, match="indices: got none, expected a row or more"):
        reorder(model.apply(variables, 1, method="init_state"), [])
    with pytest.raises(ValueError, match="state: got none, expected arrays"):
        reorder(None, [0])
    for wrong in (VOCAB, -1):
        ids = np.array([[1, wrong]])
        with pytest.raises(ValueError, match=f"prompt: got the id {wrong}, expected ids from 0 to 10"):
            generate(model, variables, ids, 3, key)
        with pytest.raises(ValueError, match=f"tokens: got the id {wrong}, expected ids from 0 to 10"):
            prefill(model, variables, ids)
    padded = prefill(model, variables, np.array([[1, -1]]), mask=np.array([[True, False]]))[0]
    close(padded, prefill(model, variables, np.array([[1]]))[0])
    with pytest.raises(ValueError, match="SoftmaxAttention: state not supported"):
        generate(*build("softmax", slots=0), prompt, 3, key)


def test_a_full_cache_is_told_and_not_drawn_from():
    model, variables = build("softmax", slots=6)
    prompt, key = tokens_of(1, 4), jax.random.key(0)
    # Two of the tokens that are drawn can be read, and one more be drawn from that.
    assert generate(model, variables, prompt, 3, key).shape == (1, 3)
    assert len(list(stream(model, variables, prompt, key, steps=3, chunk=5))) == 3
    with pytest.raises(ValueError, match="logits: not finite at token 3 of row 0; .*cache are full"):
        generate(model, variables, prompt, 8, key)
    given = []
    with pytest.raises(ValueError, match="logits: not finite at token 3 of row 0"):
        given.extend(stream(model, variables, prompt, key))
    no_tokens = np.zeros((1, 4), bool)
    with pytest.raises(ValueError, match="logits: not finite at token 0 of row 0; the prompt's row is empty"):
        generate(model, variables, prompt, 1, key, mask=no_tokens)


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
    model, variables = build("conv")
    prompt, key = tokens_of(2, 11), jax.random.key(0)
    mask = np.arange(11) < np.array([[11], [3]])  # the second row ends in the first piece
    expected = generate(model, variables, prompt, 6, key, mask=mask)
    monkeypatch.setattr(decoding, "_PIECE", 4)
    np.testing.assert_array_equal(generate(model, variables, prompt, 6, key, mask=mask), expected)


def test_a_stream_compiles_one_step_and_keeps_one_state():
    model, variables = build("lightnet")
    before = decoding._continued._cache_size()
    tokens = stream(model, variables, tokens_of(1, 5), jax.random.key(0))
    for _ in range(20):
        next(tokens)
    live = sum(array.nbytes for array in jax.live_arrays())
    for _ in range(50):
        next(tokens)
    assert decoding._continued._cache_size() == before + 1
    assert sum(array.nbytes for array in jax.live_arrays()) <= live


@pytest.mark.parametrize("name", ["lightnet", "unshared", "conv", "multiplicative"])
def test_ten_thousand_steps_do_not_drift(name):
    model, variables = build(name)
    tokens = tokens_of(1, 10_000)
    expected, end = jax.jit(partial(model.apply, method="extend"))(variables, tokens)

    @jax.jit
    def steps(state):
        def body(state, token):
            logits, state = model.apply(variables, token, state, method="step")
            return state, logits

        return jax.lax.scan(body, state, tokens.T)

    state, logits = steps(model.apply(variables, 1, method="init_state"))
    np.testing.assert_allclose(logits[:, 0], expected[0], rtol=0, atol=1e-4)
    assert state.position.tolist() == end.position.tolist() == [10_000]
