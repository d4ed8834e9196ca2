"""`selective_scan` and `diagonal_ssm` by their kernels for TPUs, interpreted, against the definition."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet import scan
from lightnet.scan import explain, sweep
from tests.lightnet.scan.calls import CALLS, operands
from tests.lightnet.scan.test_kernels import (
    QUICKLY,
    REGIMES,
    check,
    check_every_regime,
    difference,
    every_regime,
    if_there_is_time,
    outputs_and_gradients,
    packing,
    poisoned,
)

SELECTIVE, COMPLEX, REAL = "selective_scan", "diagonal_ssm", "diagonal_ssm of real numbers"
every_kind = pytest.mark.parametrize("name", [SELECTIVE, COMPLEX, REAL])
one_kind = pytest.mark.parametrize("name", [SELECTIVE, if_there_is_time(COMPLEX), if_there_is_time(REAL)])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Short sequences of few channels have several blocks of both, with last ones that are not whole."""
    for name, size in {"BLOCK": 8, "GROUP": 4, "SUBLANES": 4, "LANES": 3, "NUMBERS": 3}.items():
        monkeypatch.setattr(sweep, name, size)


def arguments(name, length, regime):
    """As for the other tests, with decays of a regime; a step of 200 leaves nothing."""
    random = np.random.default_rng(length)
    args = list(operands(name.split()[0], 2, length, seed=length))
    if name == SELECTIVE:
        args[1] = jnp.asarray(np.minimum(-REGIMES[regime](random, args[1].shape), 200), jnp.float32)
        return args
    size = jnp.asarray(np.exp(REGIMES[regime](random, args[1].shape)), jnp.float32)
    args[1] = size * jnp.exp(2j * random.standard_normal(size.shape))
    return [args[0], size, *(x.real for x in args[2:])] if name == REAL else args


@pytest.mark.slow
@every_regime
@every_kind
def test_every_regime(name, length, packed):
    def of_kind(_, length, regime):
        return arguments(name, length, regime)

    check_every_regime(name.split()[0], length, packing(length) if packed else {}, of_kind)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_real_weights_of_a_complex_state():
    x, a, b, c, state = arguments(COMPLEX, 5, "usual")
    check(COMPLEX, [x, a.real, b, c.real, state], {})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_selective_scan_without_skip_and_gate():
    x, dt, a, b, c, *_, state = arguments(SELECTIVE, 19, "usual")

    def run(implementation, *args):
        call = partial(scan.selective_scan, implementation=implementation)
        value, pull = jax.vjp(lambda state, *args: call(*args, initial_state=state), *args)
        return value, pull(jax.tree.map(jnp.ones_like, value))

    kernel, definition = (
        jax.jit(partial(run, implementation), compiler_options=QUICKLY)(state, x, dt, a, b, c)
        for implementation in ("pallas_interpret", "reference")
    )
    for got, expected in zip(jax.tree.leaves(kernel), jax.tree.leaves(definition), strict=True):
        assert difference(got, expected) < 1e-5


@pytest.mark.slow
@one_kind
def test_half_precision_is_read_and_written_and_the_state_is_wide(name):
    args, given = arguments(name, 37, "usual"), packing(37)
    # Weights of complex numbers have no half precision.
    half = [x if jnp.iscomplexobj(x) else x.astype(jnp.bfloat16) for x in args[:-1]]
    got, slopes = outputs_and_gradients(name.split()[0], [*half, args[-1]], "pallas_interpret", given)
    wide = [x.astype(like.dtype) for x, like in zip(half, args, strict=False)]
    expected, expected_slopes = outputs_and_gradients(name.split()[0], [*wide, args[-1]], "reference", given)
    assert got[0].dtype == jnp.bfloat16
    assert got[1].dtype == args[-1].dtype
    assert difference(got[1], expected[1]) < 2e-6
    for x, y, like in zip(slopes, expected_slopes, [*half, args[-1]], strict=True):
        assert x.dtype == like.dtype
        assert difference(x, y) < 1e-2


@pytest.mark.slow
@pytest.mark.exhaustive
@every_kind
def test_a_masked_token_may_contain_anything(name):
    given, args = packing(37), arguments(name, 37, "usual")
    masked = ~given["mask"]

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(args, of_output):
        (y, final), pull = jax.vjp(partial(CALLS[name.split()[0]], implementation="pallas_interpret", **given), *args)
        return y, final, pull((jnp.broadcast_to(of_output, y.shape), jnp.ones_like(final)))

    clean = run(args, jnp.ones((*masked.shape, 1)))
    got = run(poisoned(args, given), jnp.where(masked, jnp.nan, 1)[..., None])
    jax.tree.map(np.testing.assert_array_equal, clean, got)
    assert not clean[0][masked].any()


@pytest.mark.slow
@pytest.mark.exhaustive
@every_kind
def test_under_vmap(name):
    args = arguments(name, 7, "usual")
    run = jax.jit(jax.vmap(partial(CALLS[name.split()[0]], implementation="pallas_interpret", **packing(7))))
    expected = CALLS[name.split()[0]](*(0.5 * x for x in args), implementation="reference", **packing(7))
    for x, y in zip(run(*(jnp.stack([x, 0.5 * x]) for x in args)), expected, strict=True):
        assert difference(x[1], y) < 2e-6


@pytest.mark.slow
@pytest.mark.exhaustive
@every_kind
def test_derivatives_of_second_order(name):
    args, given = arguments(name, 8, "usual"), packing(8)
    everything = tuple(range(len(args)))

    def products(implementation):
        def loss(*x):
            y, final = CALLS[name.split()[0]](*x, implementation=implementation, **given)
            return (y**3).sum() + jnp.real(final**3).sum()

        slopes = jax.grad(loss, everything)
        return jax.jit(jax.grad(lambda *x: sum(jnp.real(g**2).sum() for g in slopes(*x)), everything))(*args)

    for x, y in zip(products("pallas_interpret"), products("reference"), strict=True):
        assert difference(x, y) < 1e-5


def test_the_kernels_are_what_runs_on_tpus_and_what_they_cannot_run_is_said():
    x, few, many, weights = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 2, 3), (3, 16), (3, 200), (1, 2, 200))
    )
    turning = jax.ShapeDtypeStruct((3, 65), jnp.complex64)
    assert "on tpu: pallas" in explain("diagonal_ssm", x, few, few, few)
    assert "on tpu: xla (200 states per channel are more than the 96" in explain(
        "selective_scan", x, x, many, weights, weights
    )
    assert "on tpu: xla (200 real states per channel are more than the 128" in explain("diagonal_ssm", x, *[many] * 3)
    assert "on tpu: xla (65 complex states per channel are more than the 64" in explain(
        "diagonal_ssm", x, *[turning] * 3
    )
    half = jax.ShapeDtypeStruct((3, 16), jnp.float16)
    assert "on tpu: xla (float16 is not a precision of the kernel)" in explain("diagonal_ssm", x, half, few, few)


@pytest.mark.parametrize("dtypes", list(product((jnp.bfloat16, jnp.float32), repeat=3)))
@pytest.mark.parametrize("name", ["selective_scan", "diagonal_ssm"])
def test_kernel_and_xla_have_the_same_dtypes_whatever_is_mixed(name, dtypes):
    """Both are branches of one program, which is not made otherwise; nothing is computed here."""
    one, two, three = dtypes
    per_token = lambda dtype, size=6: jax.ShapeDtypeStruct((1, 12, size), dtype)  # noqa: E731
    fixed = [jax.ShapeDtypeStruct((6, 3), dtype) for dtype in dtypes]
    arrays = (per_token(one), *fixed)
    if name == "selective_scan":
        arrays = (per_token(one), per_token(two), fixed[0], per_token(three, 3), per_token(one, 3))

    def gradients(*arrays):
        outputs, pull = jax.vjp(getattr(scan, name), *arrays)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    _, found = jax.eval_shape(gradients, *arrays)
    assert [leaf.dtype for leaf in found] == [array.dtype for array in arrays]


@pytest.mark.parametrize(
    ("channels", "states", "width", "tiles"), [(768, 16, 384, 2), (2048, 16, 512, 4), (200, 1, 200, 1)]
)
def test_tiles_of_channels_are_as_even_as_rows_of_128_allow(monkeypatch, channels, states, width, tiles):
    monkeypatch.undo()
    plan = sweep.plan_of(jnp.zeros((1, 300, channels)), states)
    assert (plan.width, plan.tiles, plan.tokens, plan.blocks, plan.columns) == (width, tiles, 128, 3, 384)
