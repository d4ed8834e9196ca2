"""The selective recurrence against a float64 loop over tokens, and its forms against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.linear.chunk import combine, enter
from lightnet.scan.recurrence import only_real, tokens_of
from lightnet.scan.selective import selective_scan, selective_step
from lightnet.scan.selective.chunk import Selective
from lightnet.scan.selective.xla import summary

BATCH, CHANNELS, STATES = 2, 5, 3
LENGTHS = (1, 2, 17, 63, 64, 65)
PER_TOKEN = ("x", "dt", "B", "C", "z")


def operands(length, seed=0, dtype=np.float32, batch=BATCH, channels=CHANNELS):
    """A named set of all the operands, with steps from far below to far above what the state forgets in."""
    random = np.random.default_rng(seed)
    shapes = dict(x="BLD", A="DN", B="BLN", C="BLN", D="D", z="BLD", initial_state="BDN")
    sizes = dict(B=batch, L=length, D=channels, N=STATES)
    found = {name: random.standard_normal([sizes[axis] for axis in axes]) for name, axes in shapes.items()}
    found["A"] = -np.exp(found["A"])
    found["dt"] = np.exp(random.uniform(-6, 1, found["x"].shape))
    return {name: jnp.array(v, dtype) for name, v in found.items()}


def packing(length, seed=0, batch=BATCH):
    random = np.random.default_rng(seed + 100)
    ids = np.cumsum(random.random((batch, length)) < 0.15, axis=1)
    return jnp.array(ids), jnp.array(random.random((batch, length)) < 0.8)


def scan(given, implementation="xla", **options):
    given = dict(given)
    first = [given.pop(name, None) for name in ("x", "dt", "A", "B", "C", "D")]
    return selective_scan(*first, **{"implementation": implementation, **options, **given})


def loop(given, ids=None, mask=None):
    """Token by token in float64, one number at a time where that matters."""
    x, dt, A, B, C, D, z, h = (
        np.array(given[n], np.float64) for n in ("x", "dt", "A", "B", "C", "D", "z", "initial_state")
    )
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
                h[row, d] = np.exp(dt[row, t, d] * A[d]) * h[row, d] + dt[row, t, d] * x[row, t, d] * B[row, t]
                gate = z[row, t, d] / (1 + np.exp(-z[row, t, d]))
                y[row, t, d] = (C[row, t] @ h[row, d] + D[d] * x[row, t, d]) * gate
    return y, h


def error(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)


def cotangents(length, batch=BATCH, channels=CHANNELS):
    random = np.random.default_rng(7)
    of_final = random.standard_normal((batch, channels, STATES))
    return random.standard_normal((batch, length, channels)), of_final


@partial(jax.jit, static_argnames="implementation")
def gradients(given, cotangents, implementation, ids=None, mask=None):
    """Output and final state, and the gradients of all the inputs from cotangents of both."""
    out, pull = jax.vjp(lambda g: scan(g, implementation, segment_ids=ids, mask=mask), given)
    return out, pull(jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), cotangents, out))[0]


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_a_loop_over_tokens_in_double_precision(implementation, packed):
    given, (ids, mask) = operands(70), packing(70) if packed else (None, None)
    y, final = scan(given, implementation, segment_ids=ids, mask=mask)
    expected = loop(given, ids, mask)
    assert error(y, expected[0]) < 2e-6
    assert error(final, expected[1]) < 2e-6


@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_all_gradients_equal_the_references(length):
    longest = max(LENGTHS)
    given, (ids, mask), (dy, dfinal) = (
        operands(longest, seed=length),
        packing(longest, seed=length),
        cotangents(longest),
    )
    mask &= jnp.arange(longest)[None] < length
    # What is masked has no part in the reference, so that one compiled program serves all the lengths.
    dy, poison = (np.where(mask[..., None], dy, v) for v in (0, np.nan))
    expected_out, expected = gradients(given, (dy, dfinal), "reference", ids, mask)
    cut = lambda tree: {n: v[:, :length] if n in PER_TOKEN else v for n, v in tree.items()}  # noqa: E731
    poisoned = {n: jnp.where(mask[..., None], v, jnp.nan) if n in PER_TOKEN else v for n, v in given.items()}
    out, found = gradients(cut(poisoned), (poison[:, :length], dfinal), "xla", ids[:, :length], mask[:, :length])
    assert error(out[0], expected_out[0][:, :length]) < 2e-6
    assert error(out[1], expected_out[1]) < 2e-6
    masked = ~np.asarray(mask[:, :length])
    assert not np.asarray(out[0])[masked].any()
    for name, want in cut(expected).items():
        assert error(found[name], want) < 1e-5, name
        assert name not in PER_TOKEN or not np.asarray(found[name])[masked].any(), name


def test_gradients_are_those_of_finite_differences_in_double_precision():
    with jax.enable_x64(True):
        given = operands(40, dtype=np.float64)
        random = np.random.default_rng(1)
        direction = {
            n: jnp.array(random.standard_normal(v.shape)) * (0.1 * v if n in ("dt", "A") else 1)
            for n, v in given.items()
        }
        weights = cotangents(40)
        out, found = gradients(given, weights, "xla")
        assert out[0].dtype == out[1].dtype == jnp.float64

        def value(step):
            moved = {n: given[n] + step * direction[n] for n in given}
            return sum((w * np.asarray(v)).sum() for w, v in zip(weights, loop(moved), strict=True))

        slope = (value(1e-6) - value(-1e-6)) / 2e-6
        np.testing.assert_allclose(sum((found[n] * direction[n]).sum() for n in given), slope, rtol=1e-7)


def test_what_is_optional_may_be_left_out():
    given = operands(40)
    plain = {n: v for n, v in given.items() if n not in ("D", "z", "initial_state")}
    out, found = gradients(plain, cotangents(40), "xla")
    expected_out, expected = gradients(plain, cotangents(40), "reference")
    assert error(out[0], expected_out[0]) < 2e-6
    for name in plain:
        assert error(found[name], expected[name]) < 1e-5, name


def test_padding_on_both_sides_is_exact():
    given, (ids, _) = operands(40), packing(40)
    mask = jnp.array(np.pad(np.ones((BATCH, 40), bool), ((0, 0), (7, 30))))
    pad = lambda v, value: jnp.pad(v, ((0, 0), (7, 30)) + ((0, 0),) * (v.ndim - 2), constant_values=value)  # noqa: E731
    padded = {n: pad(v, jnp.nan) if n in PER_TOKEN else v for n, v in given.items()}
    y, final = scan(given, segment_ids=ids)
    padded_y, padded_final = scan(padded, segment_ids=pad(ids, 99), mask=mask)
    np.testing.assert_allclose(padded_y[:, 7:47], y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(padded_final, final, rtol=1e-6, atol=1e-6)
    assert not padded_y[:, :7].any() and not padded_y[:, 47:].any()


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_the_state_carries_over_a_split(implementation):
    given = operands(45)
    y, final = scan(given, implementation)
    first, second = (
        {n: v[:, part] if n in PER_TOKEN else v for n, v in given.items()} for part in (slice(13), slice(13, 45))
    )
    first_y, state = scan(first, implementation)
    second_y, state = scan({**second, "initial_state": state}, implementation)
    assert error(jnp.concatenate([first_y, second_y], axis=1), y) < 1e-6
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
    step, state = jax.jit(selective_step), given["initial_state"]
    for t in range(9):
        x, dt, B, C, z = (given[n][:, t] for n in PER_TOKEN)
        got, state = step(x, dt, given["A"], B, C, given["D"], state, z=z)
        assert error(got, y[:, t]) < 1e-6
    assert error(state, final) < 1e-6


@pytest.mark.parametrize("packed", [False, True])
def test_summaries_of_stretches_give_the_state_behind_them(packed):
    given, (ids, mask) = operands(40), packing(40) if packed else (None, None)
    final = scan(given, segment_ids=ids, mask=mask)[1]
    tokens = tokens_of(ids, mask)
    x, dt, B, C, z = only_real(tokens, *(given[n] for n in PER_TOKEN))

    def stretch(start, stop):
        per_token = [v[:, start:stop] for v in (x, dt, B, C, z)]
        part = jax.tree.map(lambda v: v[:, start:stop], tokens)
        return summary(Selective(*per_token[:2], given["A"], *per_token[2:4], given["D"], per_token[4]), part)

    parts = [stretch(0, 3), stretch(3, 38), stretch(38, 40)]
    left = combine(combine(parts[0], parts[1]), parts[2])
    right = combine(parts[0], combine(parts[1], parts[2]))
    for both in (left, right):
        assert error(enter(both, given["initial_state"]), final) < 2e-6


@pytest.mark.parametrize("regime", ["mild", "strong", "resets", "still", "mixture", "huge"])
def test_long_sequences_of_every_kind_of_decay_stay_exact(regime):
    length, channels = 600, 16
    given, random = operands(length, batch=1, channels=channels), np.random.default_rng(3)
    shape = (1, length, channels)
    kinds = dict(
        mild=np.exp(random.uniform(-7, -2, shape)),
        strong=random.uniform(0, 20, shape) + 1e-3,
        resets=np.where(random.random(shape) < 0.05, 1e4, 0.05),
        still=random.uniform(1e-6, 1e-3, shape),
        huge=np.full(shape, 1e5),
    )
    kinds["mixture"] = np.choose(random.integers(0, 5, shape), list(kinds.values()))
    given["dt"] = jnp.array(kinds[regime], jnp.float32)
    expected = loop(given)
    out, found = gradients(given, cotangents(length, batch=1, channels=channels), "xla")
    assert error(out[0], expected[0]) < 2e-6
    assert error(out[1], expected[1]) < 2e-6
    assert all(np.isfinite(v).all() for v in found.values())


def test_bfloat16_keeps_its_state_in_float32():
    given = operands(65)
    low = {n: v if n in ("A", "D", "initial_state") else v.astype(jnp.bfloat16) for n, v in given.items()}
    expected = loop({n: v.astype(jnp.float32) for n, v in low.items()})
    out, found = gradients(low, cotangents(65), "xla")
    assert out[0].dtype == jnp.bfloat16 and out[1].dtype == jnp.float32
    assert error(out[0], expected[0]) < 1e-2
    assert error(out[1], expected[1]) < 2e-6
    assert {n: v.dtype for n, v in found.items()} == {n: v.dtype for n, v in low.items()}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_jit_and_vmap_change_nothing():
    given, (ids, mask) = operands(33), packing(33)
    y, final = scan(given, segment_ids=ids, mask=mask)
    jitted = jax.jit(partial(scan, implementation="xla"))(given, segment_ids=ids, mask=mask)
    for got, want in zip(jitted, (y, final), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    shared = {"A": None, "D": None}
    rows = {n: v if n in shared else v[:, None] for n, v in given.items()}
    axes = {n: shared.get(n, 0) for n in given}
    one = lambda g, i, m: scan(g, segment_ids=i, mask=m)  # noqa: E731
    got = jax.vmap(one, in_axes=(axes, 0, 0))(rows, ids[:, None], mask[:, None])
    for mapped, want in zip(got, (y, final), strict=True):
        np.testing.assert_allclose(mapped[:, 0], want, rtol=1e-6, atol=1e-6)


def test_nothing_of_the_size_of_all_states_is_kept():
    batch, length, channels, states = 1, 512, 64, 16
    shapes = [(batch, length, channels)] * 2 + [(channels, states)] + [(batch, length, states)] * 2
    given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    all_states = 4 * batch * length * channels * states
    forward = jax.jit(lambda *a: selective_scan(*a, implementation="xla"))
    backward = jax.jit(jax.grad(lambda *a: selective_scan(*a, implementation="xla")[0].sum(), tuple(range(5))))
    used = [f.lower(*given).compile().memory_analysis().temp_size_in_bytes for f in (forward, backward)]
    assert used[0] < 0.01 * all_states
    # One state per 32 tokens, the states of one chunk, and the cotangent of the output.
    assert used[1] < 0.25 * all_states


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", jnp.zeros((2, 4)), r"x: got float32\[2, 4\], expected a float array \(B, L, D\)"),
        ("dt", jnp.ones((2, 4, 4)), r"dt: got float32\[2, 4, 4\], expected a float array \(B, L, D\) = \(2, 4, 5\)"),
        ("A", jnp.zeros((3, 5)), r"A: got float32\[3, 5\], expected a float array \(D, N\) = \(5, N\)"),
        ("B", jnp.zeros((2, 4, 3), jnp.int32), r"B: got int32\[2, 4, 3\], expected a float array"),
        ("C", jnp.zeros((2, 4, 2)), r"C: got float32\[2, 4, 2\], expected a float array \(B, L, N\) = \(2, 4, 3\)"),
        ("D", jnp.zeros((3,)), r"D: got float32\[3\], expected a float array \(D\) = \(5\)"),
        ("z", jnp.zeros((2, 1, 5)), r"z: got float32\[2, 1, 5\], expected"),
        ("initial_state", jnp.zeros((2, 3, 5)), r"initial_state: got float32\[2, 3, 5\], expected float32\[2, 5, 3\]"),
        ("initial_state", jnp.zeros((2, 5, 3), jnp.bfloat16), r"initial_state: got bfloat16"),
        ("dt", jnp.ones((2, 4, 5)).at[1, 2, 3].set(-0.5), r"dt: got -0.5 at \[1, 2, 3\]"),
        ("implementation", "fast", r"implementation: got 'fast'"),
        ("mask", jnp.ones((2, 4)), r"mask: got float32\[2, 4\], expected bool\[2, 4\]"),
    ],
)
def test_bad_input_is_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        scan({**operands(4), name: value})


def test_step_sizes_are_checked_at_real_tokens_only():
    given = operands(4)
    given["dt"] = given["dt"].at[:, 0].set(-1)
    mask = jnp.ones((BATCH, 4), bool).at[:, 0].set(False)
    assert np.isfinite(scan(given, mask=mask)[0]).all()
