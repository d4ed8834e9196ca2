"""causal_conv: both forms against a loop over tokens in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.conv import CONV, causal_conv, causal_conv_step, combine, enter, halo
from lightnet.scan.recurrence import tokens_of

WIDTHS = [1, 2, 4]
# One compilation per test in the place of one per operation.
conv = jax.jit(causal_conv, static_argnames="implementation")


def operands(seed, length, width, batch=2, channels=3):
    random = np.random.default_rng(seed)
    shapes = [(batch, length, channels), (width, channels), (channels,), (batch, width - 1, channels)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def packing(seed, length, batch=2):
    random = np.random.default_rng(seed)
    ids = np.repeat(random.integers(0, 3, (batch, length)), 3, axis=1)[:, :length]
    return ids, random.random((batch, length)) < 0.7


def by_hand(x, w, bias, state, ids=None, mask=None):
    """Token by token and row by row, in double precision."""
    y, size = np.zeros(x.shape), w.shape[0] - 1
    final = np.zeros(state.shape)
    for row in range(x.shape[0]):
        past, previous = list(np.float64(state[row])), None
        for t in range(x.shape[1]):
            if mask is not None and not mask[row, t]:
                continue
            if ids is not None and previous is not None and ids[row, t] != previous:
                past = [np.zeros(x.shape[2])] * size
            previous = None if ids is None else ids[row, t]
            past.append(np.float64(x[row, t]))
            y[row, t] = bias + sum(w[j] * past[len(past) - size - 1 + j] for j in range(size + 1))
        final[row] = np.array(past[len(past) - size :]).reshape(size, x.shape[2])
    return y, final


def close(x, y, tolerance=2e-6):
    y = np.asarray(y)
    assert np.linalg.norm(np.asarray(x, np.float64) - y) <= tolerance * max(np.linalg.norm(y), 1e-30)


def gradients(inputs, implementation=None, **options):
    """Of every input, for random cotangents of outputs and final state."""

    def run(x, w, bias, state):
        return causal_conv(x, w, bias, initial_state=state, implementation=implementation, **options)

    inputs = [jnp.asarray(x) for x in inputs]
    random = np.random.default_rng(0)
    cotangents = tuple(jnp.asarray(random.normal(size=y.shape), y.dtype) for y in jax.eval_shape(run, *inputs))
    return jax.jit(lambda inputs, cotangents: jax.vjp(run, *inputs)[1](cotangents))(inputs, cotangents)


def kinds_of_packing(ids, mask):
    return [{}, {"segment_ids": ids}, {"mask": mask}, {"segment_ids": ids, "mask": mask}]


@pytest.mark.parametrize(("implementation", "length"), [("reference", 17), *(("xla", n) for n in [1, 2, 17, 64])])
def test_values_are_those_of_a_loop_in_double_precision(implementation, length):
    ids, mask = packing(length, length)
    for width, options in zip([*WIDTHS, 4], kinds_of_packing(ids, mask), strict=True):
        x, w, bias, state = operands(length, length, width)
        expected = by_hand(x, w, bias, state, options.get("segment_ids"), options.get("mask"))
        got = conv(x, w, bias, initial_state=state, implementation=implementation, **options)
        for one, other in zip(got, expected, strict=True):
            close(one, other)


@pytest.mark.parametrize(
    ("length", "width", "packing_kind"), [(1, 4, 3), (2, 4, 1), (17, 4, 3), (17, 1, 3), (63, 2, 2), (65, 4, 0)]
)
def test_gradients_are_those_of_the_definition(length, width, packing_kind):
    options = kinds_of_packing(*packing(length, length))[packing_kind]
    inputs = operands(length, length, width)
    expected = gradients(inputs, "reference", **options)
    for one, other in zip(gradients(inputs, "xla", **options), expected, strict=True):
        close(one, other, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_masked_token_may_contain_anything_and_gets_gradient_zero(implementation):
    ids, mask = packing(3, 17)
    x, w, bias, state = operands(3, 17, 4)
    options = {"segment_ids": ids, "mask": mask, "implementation": implementation}
    poisoned = np.where(mask[..., None], x, np.nan)
    for one, other in zip(
        (*conv(poisoned, w, bias, initial_state=state, **options), *gradients([poisoned, w, bias, state], **options)),
        (*conv(x, w, bias, initial_state=state, **options), *gradients([x, w, bias, state], **options)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert not np.asarray(conv(poisoned, w, bias, **options)[0])[~mask].any()
    assert not np.asarray(gradients([poisoned, w, bias, state], **options)[0])[~mask].any()


@pytest.mark.parametrize("places", [[4, 5, 6], [0, 1, 2], [0, 2, 6]])
def test_padding_anywhere_changes_nothing(places):
    x, w, bias, state = operands(5, 4, 3)
    y, final = conv(x, w, bias, initial_state=state)
    real = [t for t in range(7) if t not in places]
    mask = np.isin(np.arange(7), real)[None].repeat(2, axis=0)
    wide = np.full((2, 7, 3), np.nan, np.float32)
    wide[:, real] = x
    padded, padded_final = conv(wide, w, bias, initial_state=state, mask=mask)
    np.testing.assert_array_equal(padded[:, real], y)
    np.testing.assert_array_equal(padded_final, final)


def test_a_row_of_masked_tokens_alone_passes_the_state():
    x, w, bias, state = operands(6, 5, 4)
    y, final = conv(x, w, bias, initial_state=state, mask=np.zeros((2, 5), bool))
    np.testing.assert_array_equal(final, state)
    assert not y.any()


@pytest.mark.parametrize("at", [1, 2, 8])
def test_a_split_sequence_and_single_steps_equal_the_whole(at):
    x, w, bias, state = operands(at, 9, 4)
    y, final = conv(x, w, bias, initial_state=state)
    first, between = conv(x[:, :at], w, bias, initial_state=state)
    second, end = conv(x[:, at:], w, bias, initial_state=between)
    close(jnp.concatenate([first, second], axis=1), y)
    np.testing.assert_array_equal(end, final)
    for t in range(at):
        token, state = jax.jit(causal_conv_step)(x[:, t], w, bias, state)
        close(token, y[:, t])
    np.testing.assert_array_equal(state, between)


@pytest.mark.parametrize("seed", range(3))
def test_halos_of_stretches_give_the_state_between_them(seed):
    ids, mask = packing(seed, 13, batch=8)
    x, w, bias, state = (jnp.asarray(z) for z in operands(seed, 13, 4, batch=8))
    tokens = tokens_of(jnp.asarray(ids), jnp.asarray(mask))
    _, final = conv(x, w, bias, initial_state=state, segment_ids=ids, mask=mask)
    cuts = [slice(0, 1), slice(1, 3), slice(3, 13)] if seed else [slice(0, 6), slice(6, 12), slice(12, 13)]
    one, two, three = (jax.jit(halo)((x[:, c], w, bias), jax.tree.map(lambda z, c=c: z[:, c], tokens)) for c in cuts)
    for whole in (combine(combine(one, two), three), combine(one, combine(two, three))):
        np.testing.assert_array_equal(enter(whole, state), final)


def test_a_sequence_in_shards_equals_the_whole():
    ids, mask = packing(9, 12)
    x, w, bias, state = (jnp.asarray(z) for z in operands(9, 12, 4))
    tokens = tokens_of(jnp.asarray(ids), jnp.asarray(mask))
    y, _ = conv(x, w, bias, initial_state=state, segment_ids=ids, mask=mask)
    parts = []
    for cut in (slice(0, 4), slice(4, 6), slice(6, 12)):
        shard = (x[:, cut], w, bias), jax.tree.map(lambda z, c=cut: z[:, c], tokens)
        clean = (jnp.where(mask[:, cut, None], shard[0][0], 0), w, bias)
        parts.append(jax.jit(CONV.xla)(clean, state, shard[1])[0])
        state = jax.jit(lambda shard, state: enter(halo(*shard), state))(shard, state)
    close(jnp.where(mask[..., None], jnp.concatenate(parts, axis=1), 0), y)


def test_precisions():
    x, w, bias, state = operands(11, 33, 4)
    expected, _ = by_hand(x, w, bias, state)
    half = [jnp.asarray(z, jnp.bfloat16) for z in (x, w, bias)]
    y, final = conv(*half, initial_state=state)
    assert (y.dtype, final.dtype) == (jnp.bfloat16, jnp.float32)
    close(y.astype(np.float32), expected, 1e-2)
    np.testing.assert_array_equal(final, half[0][:, -3:].astype(np.float32))
    with jax.enable_x64(True):
        wide = [np.float64(z) for z in (x, w, bias, state)]
        y, _ = conv(*wide[:3], initial_state=wide[3])
        assert y.dtype == np.float64
        close(y, by_hand(*wide)[0], 1e-14)


def test_complex_taps_of_real_inputs():
    x, w, bias, state = operands(12, 9, 3)
    y, final = conv(x, w + 2j * w, bias, initial_state=state, mask=np.ones((2, 9), bool))
    assert (y.dtype, final.dtype) == (np.complex64, np.float32)
    close(y.real, by_hand(x, w, bias, state)[0])
    close(y.imag, by_hand(x, 2 * w, 0 * bias, state)[0])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_under_jit_and_vmap():
    ids, mask = packing(13, 9)
    x, w, bias, state = operands(13, 9, 4)

    def run(x, state):
        return causal_conv(x, w, bias, initial_state=state, segment_ids=ids, mask=mask)

    stacked = np.stack([x, 2 * x]), np.stack([state, 3 * state])
    got, jitted = jax.jit(jax.vmap(run))(*stacked), jax.jit(run)(x, state)
    for i, one in enumerate([run(x, state), run(2 * x, 3 * state)]):
        jax.tree.map(lambda a, b, i=i: close(a[i], b), got, one)
    jax.tree.map(close, jitted, run(x, state))


def test_no_array_larger_than_the_padded_input_is_made():
    x, w, bias, _ = operands(14, 512, 4, channels=64)
    memory = jax.jit(causal_conv).lower(x, w, bias).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.1 * x.nbytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0]}, "x: got list, expected an array of JAX or NumPy"),
        ({"x": np.zeros((2, 5), np.float32)}, r"x: got float32\[2, 5\], expected a float or complex array \(B, L, D\)"),
        ({"w": np.zeros((4, 2), np.float32)}, r"w: got float32\[4, 2\], expected .* \(width, D\) = \(4, 3\)"),
        ({"bias": np.zeros(4, np.float32)}, r"bias: got float32\[4\], expected .* \(D\) = \(3\)"),
        ({"initial_state": np.zeros((2, 4, 3), np.float32)}, r"initial_state: .* expected float32\[2, 3, 3\]"),
        ({"mask": np.ones((2, 4), bool)}, r"mask: got bool\[2, 4\], expected bool\[2, 5\]"),
        ({"implementation": "pallas"}, "implementation: 'pallas' cannot run causal_conv"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"x": np.zeros((2, 5, 3), np.float32), "w": np.zeros((4, 3), np.float32), **change}
    with pytest.raises(ValueError, match=message):
        causal_conv(**given)
