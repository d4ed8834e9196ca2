"""linear_scan: the definition against a loop in float64, and the fast form against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.linear import LINEAR, linear_scan, linear_step
from lightnet.scan.recurrence import tokens_of

# One compilation per test in the place of one per operation.
scan = jax.jit(linear_scan, static_argnames=("reverse", "implementation"))
SHAPES_OF_A = ["B L D", "1 L D", "B 1 D", "1 1 D"]


def operands(seed, length, batch=2, channels=3, shape="B L D", dtype=np.float32):
    """Decays in (0, 1) with resets, inputs and a state; complex numbers also in the decays."""
    random = np.random.default_rng(seed)
    sizes = {"B": batch, "L": length, "D": channels, "1": 1}
    real = 1 / (1 + np.exp(-random.normal(size=[sizes[s] for s in shape.split()])))
    a = np.where(random.random(real.shape) < 0.05, 0, real)
    b = random.normal(size=(batch, length, channels))
    state = random.normal(size=(batch, channels))
    if np.issubdtype(dtype, np.complexfloating):
        a = a * np.exp(1j * random.normal(size=a.shape))
        b, state = b + 1j * random.normal(size=b.shape), state + 1j * random.normal(size=state.shape)
    return a.astype(dtype), b.astype(dtype), state.astype(dtype)


def packing(seed, length, batch=2):
    random = np.random.default_rng(seed)
    ids = np.repeat(random.integers(0, 3, (batch, length)), 3, axis=1)[:, :length]
    return ids, random.random((batch, length)) < 0.7


def by_hand(a, b, state, ids=None, mask=None, reverse=False):
    """Token by token and row by row, in double precision."""
    wide = np.result_type(np.float64, a, b)
    a = np.broadcast_to(a, b.shape).astype(wide)
    h, final = np.zeros(b.shape, wide), np.array(state, wide)
    order = range(b.shape[1])[::-1] if reverse else range(b.shape[1])
    for row in range(b.shape[0]):
        previous = None
        for t in order:
            if mask is not None and not mask[row, t]:
                continue
            starts = ids is not None and previous is not None and ids[row, t] != previous
            previous = None if ids is None else ids[row, t]
            final[row] = (0 if starts else a[row, t] * final[row]) + b[row, t]
            h[row, t] = final[row]
    return h, final


def difference(x, y):
    """Relative Frobenius norm."""
    y = np.asarray(y)
    x = np.asarray(x).astype(np.result_type(np.float64, y))
    return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30)


def gradients(a, b, state, implementation, seed=0, **options):
    """Of every input, for random cotangents of outputs and final state."""

    def run(a, b, state):
        return linear_scan(a, b, state, implementation=implementation, **options)

    inputs = tuple(jnp.asarray(x) for x in (a, b, state))
    random = np.random.default_rng(seed)
    cotangents = tuple(jnp.asarray(random.normal(size=y.shape), y.dtype) for y in jax.eval_shape(run, *inputs))
    return jax.jit(lambda inputs, cotangents: jax.vjp(run, *inputs)[1](cotangents))(inputs, cotangents)


def kinds_of_packing(ids, mask):
    """For each shape of a, segments, masks, both or none."""
    return [{}, {"segment_ids": ids}, {"mask": mask}, {"segment_ids": ids, "mask": mask}]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("implementation", "length"), [("reference", 17), *(("xla", n) for n in [1, 2, 17, 63, 64])])
def test_values_are_those_of_a_loop_in_double_precision(length, implementation, reverse):
    ids, mask = packing(length, length)
    for shape, options in zip(SHAPES_OF_A, kinds_of_packing(ids, mask), strict=True):
        a, b, state = operands(length, length, shape=shape)
        expected = by_hand(a, b, state, options.get("segment_ids"), options.get("mask"), reverse)
        got = scan(a, b, state, reverse=reverse, implementation=implementation, **options)
        for x, y in zip(got, expected, strict=True):
            assert difference(x, y) < 2e-6


@pytest.mark.parametrize(
    ("length", "shape", "packing_kind", "reverse"),
    [
        (1, "B L D", 3, False),
        (2, "1 L D", 2, True),
        (17, "B L D", 3, True),
        (17, "1 L D", 3, False),
        (17, "1 1 D", 3, True),
        (63, "B 1 D", 1, False),
        (64, "B L D", 0, True),
        (65, "1 1 D", 2, False),
    ],
)
def test_gradients_are_those_of_the_definition(length, shape, packing_kind, reverse):
    options = kinds_of_packing(*packing(length, length))[packing_kind]
    a, b, state = operands(length, length, shape=shape)
    expected = gradients(a, b, state, "reference", reverse=reverse, **options)
    for x, y in zip(gradients(a, b, state, "xla", reverse=reverse, **options), expected, strict=True):
        assert x.dtype == y.dtype
        assert difference(x, y) < 1e-5


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_masked_token_may_contain_anything_and_gets_gradient_zero(implementation):
    ids, mask = packing(3, 17)
    a, b, state = operands(3, 17)
    clean = scan(a, b, state, segment_ids=ids, mask=mask, implementation=implementation)
    clean_gradients = gradients(a, b, state, implementation, segment_ids=ids, mask=mask)
    a[~mask], b[~mask] = np.nan, np.inf
    poisoned = scan(a, b, state, segment_ids=ids, mask=mask, implementation=implementation)
    poisoned_gradients = gradients(a, b, state, implementation, segment_ids=ids, mask=mask)
    jax.tree.map(np.testing.assert_array_equal, (clean, clean_gradients), (poisoned, poisoned_gradients))
    for gradient in poisoned_gradients[:2]:
        assert not np.asarray(gradient)[~mask].any()
    assert not np.asarray(poisoned[0])[~mask].any()


def test_padding_anywhere_changes_nothing():
    a, b, state = operands(5, 9)
    h, final = scan(a, b, state)
    for left, right in [(4, 0), (0, 4), (3, 2)]:
        padding = ((0, 0), (left, right), (0, 0))
        mask = np.pad(np.ones((2, 9), bool), padding[:2])
        wide = (np.pad(x, padding, constant_values=np.nan) for x in (a, b))
        padded, padded_final = scan(*wide, state, mask=mask)
        np.testing.assert_array_equal(padded[:, left : left + 9], h)
        np.testing.assert_array_equal(padded_final, final)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_run_that_overflows_does_not_reach_the_next(implementation):
    a, b = np.full((1, 6, 1), 1e30, np.float32), np.ones((1, 6, 1), np.float32)
    a[0, 4:] = 0.5
    h, _ = scan(a, b, segment_ids=np.array([[0, 0, 0, 0, 1, 1]]), implementation=implementation)
    assert np.isinf(h[0, 3, 0])
    np.testing.assert_array_equal(h[0, 4:, 0], [1, 1.5])


def test_the_decay_of_a_reset_has_the_gradient_of_the_definition():
    a, b = jnp.array([[[0.5], [0.0], [0.5]]]), jnp.array([[[2.0], [3.0], [5.0]]])
    gradient = jax.grad(lambda a: scan(a, b)[0].sum())(a)
    # <g_t, h_{t-1}>: h = 2, 3, 6.5 and g = 1, 1.5, 1.
    np.testing.assert_allclose(gradient[0, :, 0], [0, 3, 3])


@pytest.mark.parametrize("at", [1, 8, 16])
def test_a_split_sequence_and_single_steps_equal_the_whole(at):
    a, b, state = operands(at, 17)
    h, final = scan(a, b, state)
    first, between = scan(a[:, :at], b[:, :at], state)
    second, end = scan(a[:, at:], b[:, at:], between)
    np.testing.assert_array_equal(jnp.concatenate([first, second], axis=1), h)
    np.testing.assert_array_equal(end, final)
    for t in range(at):
        token, state = jax.jit(linear_step)(a[:, t], b[:, t], state)
        np.testing.assert_allclose(token, h[:, t], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state, between, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_summary_of_stretches_gives_the_final_state(reverse):
    ids, mask = packing(7, 23)
    a, b, state = (jnp.asarray(x) for x in operands(7, 23))
    tokens = tokens_of(jnp.asarray(ids), jnp.asarray(mask), reverse=reverse)
    _, final = scan(a, b, state, reverse=reverse, segment_ids=ids, mask=mask)
    cuts = [slice(0, 5), slice(5, 11), slice(11, 23)]
    parts = [
        LINEAR.summary((a[:, c], b[:, c]), jax.tree.map(lambda x, c=c: x[:, c], tokens), reverse=reverse) for c in cuts
    ]
    one, two, three = parts[::-1] if reverse else parts
    for whole in (
        LINEAR.combine(LINEAR.combine(one, two), three),
        LINEAR.combine(one, LINEAR.combine(two, three)),
        LINEAR.summary((a, b), tokens, reverse=reverse),
    ):
        assert difference(LINEAR.enter(whole, state), np.asarray(final)) < 1e-6


@pytest.mark.parametrize(("complex_a", "complex_b"), [(True, True), (True, False), (False, True)])
def test_complex_and_mixed_numbers(complex_a, complex_b):
    a, b, state = operands(11, 19, dtype=np.complex64)
    a, b = (a if complex_a else a.real), (b if complex_b else b.real)
    ids, mask = packing(11, 19)
    for x, y in zip(scan(a, b, state, segment_ids=ids, mask=mask), by_hand(a, b, state, ids, mask), strict=True):
        assert difference(x, y) < 2e-6
    expected = gradients(a, b, state, "reference", segment_ids=ids, mask=mask)
    for x, y in zip(gradients(a, b, state, "xla", segment_ids=ids, mask=mask), expected, strict=True):
        assert x.dtype == y.dtype
        assert difference(x, y) < 1e-5


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_bfloat16_keeps_its_state_in_float32(implementation):
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in operands(13, 65)[:2])
    state = operands(13, 65)[2]
    h, final = scan(a, b, state, implementation=implementation)
    expected, expected_final = by_hand(np.float32(a), np.float32(b), state)
    assert (h.dtype, final.dtype) == (jnp.bfloat16, jnp.float32)
    assert difference(h, expected) < 1e-2
    assert difference(final, expected_final) < 2e-6
    wide = gradients(np.float32(a), np.float32(b), state, "reference")
    for x, y in zip(gradients(a, b, state, implementation), wide, strict=True):
        assert difference(x, np.asarray(y)) < 1e-2


def test_double_precision_stays_double():
    with jax.enable_x64(True):
        a, b, state = operands(17, 33, dtype=np.float64)
        for x, y in zip(scan(a, b, state), by_hand(a, b, state), strict=True):
            assert x.dtype == jnp.float64
            assert difference(x, y) < 1e-14


def test_derivatives_of_second_order_are_those_of_the_definition():
    ids, mask = packing(19, 9)
    a, b, state = operands(19, 9)

    def product(implementation):
        def loss(a, b, state):
            h, final = linear_scan(a, b, state, segment_ids=ids, mask=mask, implementation=implementation)
            return (h**3).sum() + (final**3).sum()

        slopes = jax.grad(loss, (0, 1, 2))
        return jax.jit(jax.grad(lambda *x: sum((g**2).sum() for g in slopes(*x)), (0, 1, 2)))(a, b, state)

    for x, y in zip(product("xla"), product("reference"), strict=True):
        assert difference(x, np.asarray(y)) < 1e-5


def test_under_jit_and_vmap():
    ids, mask = packing(23, 12)
    a, b, state = operands(23, 12)

    def run(a, b, state):
        return linear_scan(a, b, state, segment_ids=ids, mask=mask)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), jax.jit(run)(a, b, state), run(a, b, state))
    stacked = [np.stack([x, x[::-1] * 0.5]) for x in (a, b, state)]
    got = jax.jit(jax.vmap(run))(*stacked)
    for i in range(2):
        for x, y in zip(got, run(*(s[i] for s in stacked)), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-6)
    slopes = jax.jit(jax.vmap(gradients_of_sum(run)))(*stacked)
    for x, y in zip(slopes, gradients_of_sum(run)(*(s[1] for s in stacked)), strict=True):
        np.testing.assert_allclose(x[1], y, rtol=1e-5, atol=1e-6)


def gradients_of_sum(run):
    return jax.grad(lambda *x: run(*x)[0].sum(), (0, 1, 2))


@pytest.mark.slow
def test_long_sequences_stay_exact():
    a, b, state = operands(29, 262_144, batch=1, channels=4, shape="1 1 D")
    a = np.float32(0.999 - 0.01 * a)
    for x, y in zip(scan(a, b, state), by_hand(a, b, state), strict=True):
        assert difference(x, y) < 2e-5
    with jax.enable_x64(True):
        exact = gradients(*(np.float64(x) for x in (a, b, state)), "xla")
    for x, y in zip(gradients(a, b, state, "xla"), exact, strict=True):
        assert difference(x, np.asarray(y)) < 1e-5


def temporaries(f, *operands):
    return jax.jit(f).lower(*operands).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("shape", SHAPES_OF_A)
@pytest.mark.parametrize("packed", [False, True])
def test_the_forward_pass_needs_no_temporaries_and_no_copy_of_the_decays(shape, packed):
    a, b, _ = operands(31, 256, channels=64, shape=shape)
    ids, mask = packing(31, 256) if packed else (None, None)
    flags = 16 * ids.size if packed else 0
    assert temporaries(lambda a, b: linear_scan(a, b, segment_ids=ids, mask=mask), a, b) < b.nbytes // 16 + flags


@pytest.mark.parametrize(("shape", "arrays"), [("B L D", 1), ("1 1 D", 3)])
def test_the_backward_pass_holds_outputs_and_cotangents_alone(shape, arrays):
    """The cotangent of h; with constant decays h, which then is not reused for the gradient of a, and its products."""
    a, b, _ = operands(37, 512, channels=128, shape=shape)
    gradient = jax.grad(lambda a, b: (linear_scan(a, b)[0] ** 2).sum(), (0, 1))
    assert temporaries(gradient, a, b) < (arrays + 0.1) * b.nbytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((2, 4, 3), np.float32)}, r"a: got float32\[2, 4, 3\], expected .* = \(1 or 2, 1 or 5, 3\)"),
        ({"b": [[[1.0]]]}, "b: got list, expected an array of JAX or NumPy"),
        ({"b": np.zeros((2, 5, 3), int)}, r"b: got int\d+\[2, 5, 3\], expected a float or complex array"),
        ({"b": np.zeros((2, 0, 3), np.float32)}, r"b: got float32\[2, 0, 3\], expected .*"),
        ({"initial_state": np.zeros((2, 4), np.float32)}, r"initial_state: got float32\[2, 4\], expected .*\[2, 3\]"),
        ({"initial_state": np.zeros((2, 3), np.float16)}, r"initial_state: got float16\[2, 3\], expected float32"),
        ({"segment_ids": np.zeros((2, 5), np.float32)}, r"segment_ids: got float32\[2, 5\], expected integer\[2, 5\]"),
        ({"mask": np.ones((2, 4), bool)}, r"mask: got bool\[2, 4\], expected bool\[2, 5\]"),
        (
            {"implementation": "pallas", "b": np.zeros((2, 5, 3), np.float16)},
            "implementation: 'pallas' cannot run linear_scan here .*tpu: float16 is not a precision of the kernel",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"a": np.zeros((2, 5, 3), np.float32), "b": np.zeros((2, 5, 3), np.float32), **change}
    with pytest.raises(ValueError, match=message):
        linear_scan(**given)


def test_a_bad_state_of_a_step_is_named():
    one = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"state: got float32\[3, 3\], expected float32\[2, 3\]"):
        linear_step(one, one, np.zeros((3, 3), np.float32))
