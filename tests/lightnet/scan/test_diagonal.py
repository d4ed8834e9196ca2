"""The diagonal recurrence against a double-precision loop over tokens, and its forms against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.diagonal import diagonal_ssm, diagonal_step
from lightnet.scan.diagonal.chunk import Diagonal, power
from lightnet.scan.diagonal.xla import summary
from lightnet.scan.linear.chunk import combine, enter
from lightnet.scan.recurrence import only_real, tokens_of

BATCH, CHANNELS, STATES = 2, 5, 3
LENGTHS = (1, 2, 17, 63, 64, 65)
KINDS = ["real", "complex"]


def operands(length, kind="complex", seed=0, double=False, batch=BATCH, channels=CHANNELS):
    """A named set of all the operands; the decays are from 0.03 to 0.999 in size."""
    random = np.random.default_rng(seed)
    turn = (lambda v: v * np.exp(2j * np.pi * random.random(v.shape))) if kind == "complex" else (lambda v: v)
    weights = (channels, STATES)
    found = dict(
        x=random.standard_normal((batch, length, channels)),
        a=turn(np.exp(-np.exp(random.uniform(-7, 1.2, weights)))),
        b=turn(random.standard_normal(weights)),
        c=turn(random.standard_normal(weights)),
        initial_state=turn(random.standard_normal((batch, *weights))),
    )
    return {
        n: jnp.array(v, v.dtype if double else np.complex64 if np.iscomplexobj(v) else np.float32)
        for n, v in found.items()
    }


def packing(length, seed=0, batch=BATCH):
    random = np.random.default_rng(seed + 100)
    ids = np.cumsum(random.random((batch, length)) < 0.15, axis=1)
    return jnp.array(ids), jnp.array(random.random((batch, length)) < 0.8)


def scan(given, implementation="xla", **options):
    given = dict(given)
    first = [given.pop(name) for name in ("x", "a", "b", "c")]
    return diagonal_ssm(*first, **{"implementation": implementation, **options, **given})


def loop(given, ids=None, mask=None):
    """Token by token in double precision."""
    x, a, b, c, h = (np.array(given[n], np.complex128) for n in ("x", "a", "b", "c", "initial_state"))
    y = np.zeros(x.shape)
    for row in range(x.shape[0]):
        previous = None
        for t in range(x.shape[1]):
            if mask is not None and not mask[row, t]:
                continue
            if ids is not None:
                if previous is not None and ids[row, t] != previous:
                    h[row] = 0
                previous = ids[row, t]
            for d in range(x.shape[2]):
                h[row, d] = a[d] * h[row, d] + b[d] * x[row, t, d]
                y[row, t, d] = (c[d] @ h[row, d]).real
    return y, h


def error(got, expected):
    got, expected = np.asarray(got, np.complex128), np.asarray(expected, np.complex128)
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)


def cotangents(length, kind="complex", batch=BATCH, channels=CHANNELS):
    random = np.random.default_rng(7)
    of_final = random.standard_normal((2, batch, channels, STATES))
    of_final = of_final[0] + 1j * of_final[1] if kind == "complex" else of_final[0]
    return random.standard_normal((batch, length, channels)), of_final


@partial(jax.jit, static_argnames="implementation")
def gradients(given, cotangents, implementation, ids=None, mask=None):
    """Output and final state, and the gradients of all the inputs from cotangents of both."""
    out, pull = jax.vjp(lambda g: scan(g, implementation, segment_ids=ids, mask=mask), given)
    return out, pull(jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), cotangents, out))[0]


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_equals_a_loop_over_tokens_in_double_precision(implementation, kind, packed):
    given, (ids, mask) = operands(70, kind), packing(70) if packed else (None, None)
    y, final = scan(given, implementation, segment_ids=ids, mask=mask)
    expected = loop(given, ids, mask)
    assert y.dtype == jnp.float32 and final.dtype == (jnp.complex64 if kind == "complex" else jnp.float32)
    assert error(y, expected[0]) < 2e-6
    assert error(final, expected[1]) < 2e-6


@pytest.mark.parametrize(("length", "kind"), [(65, "real"), *((length, "complex") for length in LENGTHS)])
def test_values_and_all_gradients_equal_the_references(length, kind):
    longest = max(LENGTHS)
    given, (ids, mask) = operands(longest, kind, seed=length), packing(longest, seed=length)
    dy, dfinal = cotangents(longest, kind)
    mask &= jnp.arange(longest)[None] < length
    # What is masked has no part in the reference, so that one compiled program serves all the lengths.
    dy, poison = (np.where(mask[..., None], dy, v) for v in (0, np.nan))
    expected_out, expected = gradients(given, (dy, dfinal), "reference", ids, mask)
    poisoned = {**given, "x": jnp.where(mask[..., None], given["x"], jnp.nan)[:, :length]}
    out, found = gradients(poisoned, (poison[:, :length], dfinal), "xla", ids[:, :length], mask[:, :length])
    assert error(out[0], expected_out[0][:, :length]) < 2e-6
    assert error(out[1], expected_out[1]) < 2e-6
    masked = ~np.asarray(mask[:, :length])
    assert not np.asarray(out[0])[masked].any() and not np.asarray(found["x"])[masked].any()
    for name, want in expected.items():
        assert found[name].dtype == want.dtype
        assert error(found[name], want[:, :length] if name == "x" else want) < 1e-5, name


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("turned", ["a", "c"])
def test_real_and_complex_weights_mix(turned):
    given = operands(40, "real")
    given[turned] = operands(40)[turned]
    given["initial_state"] = operands(40)["initial_state"]
    out, found = gradients(given, cotangents(40), "xla")
    expected_out, expected = gradients(given, cotangents(40), "reference")
    assert error(out[0], expected_out[0]) < 2e-6
    for name, want in expected.items():
        assert found[name].dtype == want.dtype == given[name].dtype
        assert error(found[name], want) < 1e-5, name


def test_gradients_are_those_of_finite_differences_in_double_precision():
    with jax.enable_x64(True):
        given, weights = operands(40, double=True), cotangents(40)
        direction = {n: jnp.asarray(v) * (0.1 if n == "a" else 1) for n, v in operands(40, seed=1, double=True).items()}
        out, found = gradients(given, weights, "xla")
        assert out[0].dtype == jnp.float64 and out[1].dtype == jnp.complex128

        def value(step):
            y, final = loop({n: given[n] + step * direction[n] for n in given})
            return (weights[0] * y).sum() + (weights[1] * final).sum().real

        slope = (value(1e-6) - value(-1e-6)) / 2e-6
        # JAX's gradients of complex numbers pair with a direction without conjugation.
        total = sum((found[n] * direction[n]).sum().real for n in given)
        np.testing.assert_allclose(total, slope, rtol=1e-7)


def test_padding_on_both_sides_is_exact():
    given, (ids, _) = operands(40), packing(40)
    mask = jnp.array(np.pad(np.ones((BATCH, 40), bool), ((0, 0), (7, 30))))
    padded = {**given, "x": jnp.pad(given["x"], ((0, 0), (7, 30), (0, 0)), constant_values=jnp.nan)}
    padded_ids = jnp.pad(ids, ((0, 0), (7, 30)), constant_values=99)
    y, final = scan(given, segment_ids=ids)
    padded_y, padded_final = scan(padded, segment_ids=padded_ids, mask=mask)
    np.testing.assert_allclose(padded_y[:, 7:47], y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(padded_final, final, rtol=1e-6, atol=1e-6)
    assert not padded_y[:, :7].any() and not padded_y[:, 47:].any()


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_the_state_carries_over_a_split(implementation):
    given = operands(45)
    y, final = scan(given, implementation)
    first, state = scan({**given, "x": given["x"][:, :13]}, implementation)
    second, state = scan({**given, "x": given["x"][:, 13:], "initial_state": state}, implementation)
    assert error(jnp.concatenate([first, second], axis=1), y) < 1e-6
    assert error(state, final) < 1e-6


def test_the_state_carries_over_any_split():
    given = operands(40)
    run = jax.jit(scan)
    y, final = run(given)
    for split in range(41):
        mask = jnp.broadcast_to(jnp.arange(40)[None] < split, (BATCH, 40))
        first, state = run(given, mask=mask)
        second, state = run({**given, "initial_state": state}, mask=~mask)
        assert error(first + second, y) < 1e-6
        assert error(state, final) < 1e-6


def test_steps_equal_the_sequence():
    given = operands(9)
    y, final = scan(given)
    step, state = jax.jit(diagonal_step), given["initial_state"]
    for t in range(9):
        got, state = step(given["x"][:, t], given["a"], given["b"], given["c"], state)
        assert error(got, y[:, t]) < 1e-6
    assert error(state, final) < 1e-6


@pytest.mark.parametrize("packed", [False, True])
def test_summaries_of_stretches_give_the_state_behind_them(packed):
    given, (ids, mask) = operands(40), packing(40) if packed else (None, None)
    final = scan(given, segment_ids=ids, mask=mask)[1]
    tokens = tokens_of(ids, mask)
    (x,) = only_real(tokens, given["x"])

    def stretch(start, stop):
        part = jax.tree.map(lambda v: v[:, start:stop], tokens)
        return summary(Diagonal(x[:, start:stop], given["a"], given["b"], given["c"]), part)

    parts = [stretch(0, 3), stretch(3, 38), stretch(38, 40)]
    left = combine(combine(parts[0], parts[1]), parts[2])
    right = combine(parts[0], combine(parts[1], parts[2]))
    for both in (left, right):
        assert error(enter(both, given["initial_state"]), final) < 2e-6


def test_powers_and_their_gradient_are_exact_also_of_zero():
    random = np.random.default_rng(0)
    a = np.exp(-np.exp(random.uniform(-8, 0, (1, 3, 4))) + 2j * np.pi * random.random((1, 3, 4)))
    a[0, 0, 0] = 0
    a, exponents = a.astype(np.complex64), np.array([0, 1, 700]).reshape(3, 1, 1)
    value, pull = jax.vjp(lambda v: power(v, jnp.array(exponents), 1000), jnp.array(a))
    wide = a.astype(np.complex128)
    assert error(value, wide**exponents) < 2e-6
    slopes = np.where(exponents > 0, exponents * wide ** np.maximum(exponents - 1, 0), 0)
    assert error(pull(jnp.ones_like(value))[0], slopes.sum(axis=0, keepdims=True)) < 2e-6


@pytest.mark.parametrize("regime", ["mild", "strong", "resets", "still", "mixture", "turning"])
def test_long_sequences_of_every_kind_of_decay_stay_exact(regime):
    length, shape = 600, (16, STATES)
    given, random = operands(length, batch=1, channels=16), np.random.default_rng(3)
    kinds = dict(
        mild=np.exp(-np.exp(random.uniform(-7, -2, shape))),
        strong=np.exp(random.uniform(-20, 0, shape)),
        resets=np.where(random.random(shape) < 0.5, 0, 0.9),
        still=np.exp(random.uniform(-1e-4, -1e-6, shape)),
        turning=0.999 * np.exp(1j * random.uniform(-np.pi, np.pi, shape)),
    )
    kinds["mixture"] = np.choose(random.integers(0, 5, shape), list(kinds.values()))
    given["a"] = jnp.array(kinds[regime], jnp.complex64)
    expected = loop(given)
    out, found = gradients(given, cotangents(length, batch=1, channels=16), "xla")
    assert error(out[0], expected[0]) < 2e-6
    assert error(out[1], expected[1]) < 2e-6
    assert all(np.isfinite(v).all() for v in found.values())


def test_bfloat16_keeps_its_state_in_float32():
    given = operands(65, "real")
    low = {n: v if n == "initial_state" else v.astype(jnp.bfloat16) for n, v in given.items()}
    expected = loop({n: v.astype(jnp.float32) for n, v in low.items()})
    out, found = gradients(low, cotangents(65, "real"), "xla")
    assert out[0].dtype == jnp.bfloat16 and out[1].dtype == jnp.float32
    assert error(out[0], expected[0]) < 1e-2
    assert error(out[1], expected[1]) < 2e-6
    assert {n: v.dtype for n, v in found.items()} == {n: v.dtype for n, v in low.items()}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_jit_and_vmap_change_nothing():
    given, (ids, mask) = operands(33), packing(33)
    y, final = scan(given, segment_ids=ids, mask=mask)
    jitted = jax.jit(scan)(given, segment_ids=ids, mask=mask)
    for got, want in zip(jitted, (y, final), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    axes = {n: 0 if n in ("x", "initial_state") else None for n in given}
    rows = {n: v[:, None] if axes[n] == 0 else v for n, v in given.items()}
    one = lambda g, i, m: scan(g, segment_ids=i, mask=m)  # noqa: E731
    got = jax.vmap(one, in_axes=(axes, 0, 0))(rows, ids[:, None], mask[:, None])
    for mapped, want in zip(got, (y, final), strict=True):
        np.testing.assert_allclose(mapped[:, 0], want, rtol=1e-6, atol=1e-6)


def test_nothing_of_the_size_of_all_states_is_kept():
    batch, length, channels, states = 1, 512, 64, 16
    weights = jax.ShapeDtypeStruct((channels, states), jnp.complex64)
    given = [jax.ShapeDtypeStruct((batch, length, channels), jnp.float32), weights, weights, weights]
    all_states = 8 * batch * length * channels * states
    forward = jax.jit(lambda *a: diagonal_ssm(*a, implementation="xla"))
    backward = jax.jit(jax.grad(lambda *a: diagonal_ssm(*a, implementation="xla")[0].sum(), (0, 1, 2, 3)))
    used = [f.lower(*given).compile().memory_analysis().temp_size_in_bytes for f in (forward, backward)]
    assert used[0] < 0.02 * all_states
    # One state per 32 tokens, the states of one chunk, and the cotangent of the output.
    assert used[1] < 0.25 * all_states


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", jnp.zeros((2, 4, 5), jnp.complex64), r"x: got complex64\[2, 4, 5\], expected a float array \(B, L, D\)"),
        ("a", jnp.zeros((3, 5)), r"a: got float32\[3, 5\], expected a float or complex array \(D, N\) = \(5, N\)"),
        ("b", jnp.zeros((5, 2)), r"b: got float32\[5, 2\], expected a float or complex array \(D, N\) = \(5, 3\)"),
        ("c", jnp.zeros((5, 3), jnp.int32), r"c: got int32\[5, 3\], expected a float or complex array"),
        (
            "initial_state",
            jnp.zeros((2, 5, 3)),
            r"initial_state: got float32\[2, 5, 3\], expected complex64\[2, 5, 3\]",
        ),
        ("initial_state", jnp.zeros((5, 3), jnp.complex64), r"expected complex64\[2, 5, 3\]"),
        ("segment_ids", jnp.zeros((2, 4)), r"segment_ids: got float32\[2, 4\], expected integer\[2, 4\]"),
        ("implementation", "pallas", "implementation: got 'pallas', expected another where diagonal_ssm has no kernel"),
    ],
)
def test_bad_input_is_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        scan({**operands(4), name: value})
