"""LightNet's kernels for Hopper: their bodies on a stand-in for the device, against the definition."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan import AdditiveState, additive, additive_global, additive_recurrence, explain, hopper
from lightnet.scan.additive import (
    blocks_gpu,
    gradients_gpu,
    launch_gpu,
    order_free_gpu,
    pallas_gpu,
    pallas_gpu_backward,
)
from lightnet.scan.additive.xla import additive_xla, slopes
from lightnet.scan.recurrence import Kernel, tokens_of
from tests.lightnet.scan.stand_in_gpu import instead_of_the_device

CAUSAL = blocks_gpu, pallas_gpu, gradients_gpu, pallas_gpu_backward


@pytest.fixture
def kernels(monkeypatch):
    """`pallas_interpret` runs the kernels for Hopper here, in any precision, on stretches of two blocks or chunks."""
    monkeypatch.setattr(order_free_gpu, "TOKENS", 16)
    monkeypatch.setattr(order_free_gpu, "_each", lambda blocks, heads, state: min(blocks, 2))
    monkeypatch.setattr(pallas_gpu, "_each", lambda programs, chunks: min(chunks, 2))
    runs = {"ADDITIVE_GLOBAL": order_free_gpu.global_gpu, "ADDITIVE": pallas_gpu.additive_gpu}
    for name, run in runs.items():
        here = lambda *given, interpret, run=run, **options: run(*given, **options)  # noqa: E731
        kernel = Kernel(here, lambda operands, **options: None)
        monkeypatch.setattr(additive, name, replace(getattr(additive, name), kernels={"tpu": kernel}))
    instead_of_the_device(monkeypatch, hopper, launch_gpu, order_free_gpu, *CAUSAL)


def arrays(length, dtype=jnp.float32, *, batch=2, heads=2, sizes=(64, 64), spread=2.0):
    """Of q, logits, v and the gradient of the output."""
    random = np.random.default_rng(length)
    widths = sizes[0], sizes[0], sizes[1], sizes[1]
    q, logits, v, do = (random.standard_normal((batch, length, heads, n)) for n in widths)
    return [jnp.asarray(x, dtype) for x in (q, spread * logits, v, do)]


def values_and_gradients(function, given, **options):
    o, pull = jax.vjp(lambda *x: function(*x, **options), *given[:3])
    return [o, *pull(given[3].astype(o.dtype))]


def check(function, given, tolerance, **options):
    got = values_and_gradients(function, given, implementation="pallas_interpret", **options)
    wide = [x.astype(jnp.float32) for x in given]
    expected = values_and_gradients(function, wide, implementation="xla", **options)
    for x, y, like in zip(got, expected, (given[2], *given[:3]), strict=True):
        assert x.dtype == like.dtype
        error = np.linalg.norm(np.asarray(x - y, np.float32))
        assert error <= tolerance * np.linalg.norm(y)


@pytest.mark.parametrize(
    ("length", "sizes", "spread"),
    [
        (40, (64, 64), 2.0),
        pytest.param(3, (64, 128), 2.0, marks=pytest.mark.slow),
        pytest.param(77, (128, 64), 0.1, marks=pytest.mark.slow),
        pytest.param(64, (64, 64), 50.0, marks=pytest.mark.slow),
    ],
)
def test_order_free(kernels, length, sizes, spread):
    check(additive_global, arrays(length, sizes=sizes, spread=spread), 2e-6)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_order_free_in_half_precision(kernels):
    check(additive_global, arrays(70, jnp.bfloat16), 1e-2)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_order_free_with_masks_and_logits_of_minus_infinity(kernels):
    given = arrays(37, heads=1)
    given[1] = given[1].at[:, ::3, :, :9].set(-jnp.inf).at[1, :, :, 5].set(-jnp.inf)
    mask = jnp.asarray(np.random.default_rng(0).random((2, 37)) < 0.6).at[1, :20].set(False)
    check(additive_global, given, 2e-6, mask=mask)
    poisoned = [jnp.where(mask[..., None, None], x, jnp.nan) for x in given[:3]]
    both = [
        values_and_gradients(additive_global, [*x, given[3]], implementation="pallas_interpret", mask=mask)
        for x in (given[:3], poisoned)
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)


def state_of_some(sizes):
    """An initial state that some channels lack."""
    random = np.random.default_rng(1)
    shapes = (2, 1, sizes[0]), (2, 1, sizes[0]), (2, 1, *sizes)
    maximum, total, inner = (jnp.asarray(random.standard_normal(x), jnp.float32) for x in shapes)
    lacking = jnp.zeros(maximum.shape, bool).at[0, 0, :9].set(True)
    return AdditiveState(
        jnp.where(lacking, -jnp.inf, maximum),
        jnp.where(lacking, 0, total**2),
        jnp.where(lacking[..., None], 0, inner),
    )


def check_causal(
    length, *, sizes=(64, 64), dtype=jnp.float32, spread=2.0, rise=0.0, tolerance=3e-6, gradients=False, **given
):
    """Outputs and the last state, behind an initial one that some channels lack; or the gradients of all arguments."""
    *operands, do = arrays(length, dtype, heads=1, sizes=sizes, spread=spread)
    operands[1] += (rise * jnp.arange(length, dtype=dtype))[None, :, None, None]
    operands.append(state_of_some(sizes))
    random = np.random.default_rng(2)
    final_bar = jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), operands[3])

    def values(operands, implementation):
        def function(q, logits, v, state):
            return additive_recurrence(q, logits, v, initial_state=state, implementation=implementation, **given)

        if not gradients:
            return function(*operands)
        (o, _), pull = jax.vjp(function, *operands)
        return pull((do.astype(o.dtype), final_bar))

    expected = values([*(x.astype(jnp.float32) for x in operands[:3]), operands[3]], "xla")
    if "mask" in given:
        real = given["mask"][..., None, None]
        operands[:3] = [jnp.where(real, x, jnp.nan) for x in operands[:3]]
        do = jnp.where(real, do, jnp.nan)
    got = values(operands, "pallas_interpret")
    assert all(x.dtype == dtype for x in got[: 3 if gradients else 1])
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        error = np.where(x == y, 0, np.asarray(x, np.float32) - y)
        assert np.linalg.norm(error) <= tolerance * np.linalg.norm(np.where(np.isfinite(y), y, 0))


def packing(length):
    """Runs of 11 tokens and more, or of one; masked tokens everywhere."""
    random = np.random.default_rng(length)
    ids = np.repeat(random.integers(0, 9, (2, length)), 11, axis=1)[:, :length]
    ids[1, 70:140] = np.arange(70)[: max(length - 70, 0)]
    return {"segment_ids": jnp.asarray(ids), "mask": jnp.asarray(random.random((2, length)) < 0.7)}


@pytest.fixture
def no_other_form(monkeypatch):
    """XLA's, which a steep rise calls for, gives nothing."""
    nothing = lambda *given: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), additive_xla(*given))  # noqa: E731
    monkeypatch.setattr(pallas_gpu, "additive_xla", nothing)
    none = lambda *given: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), slopes(*given))  # noqa: E731
    monkeypatch.setattr(pallas_gpu_backward, "slopes", none)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_causal(kernels, no_other_form):
    check_causal(70)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "sizes", "names"),
    [
        (150, (128, 64), ["segment_ids", "mask"]),
        (150, (64, 128), []),
        (150, (64, 64), ["mask"]),
        (1, (64, 64), []),
        (5, (64, 64), ["segment_ids"]),
    ],
)
def test_causal_with_segments_and_masks(kernels, no_other_form, length, sizes, names):
    check_causal(length, sizes=sizes, **{x: packing(length)[x] for x in names})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_causal_in_half_precision(kernels, no_other_form):
    check_causal(100, dtype=jnp.bfloat16, tolerance=1e-2)


@pytest.mark.slow
def test_gradients_with_segments_and_masks(kernels, no_other_form):
    check_causal(70, gradients=True, **packing(70))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("length", "sizes", "names"),
    [
        (150, (128, 64), ["segment_ids", "mask"]),
        (150, (64, 128), []),
        (150, (64, 64), ["mask"]),
        (128, (64, 64), ["segment_ids"]),
        (1, (64, 64), []),
        (5, (64, 64), ["segment_ids"]),
    ],
)
def test_gradients_of_any_length(kernels, no_other_form, length, sizes, names):
    check_causal(length, sizes=sizes, gradients=True, **{x: packing(length)[x] for x in names})


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("spread", "rise", "names"),
    [
        (0.05, 0.0, ["segment_ids", "mask"]),
        (8.0, 0.0, ["segment_ids", "mask"]),
        (1.0, 0.3, ["segment_ids", "mask"]),
        (1.0, -3.0, ["mask"]),  # a run that began later would lie too far below
    ],
)
def test_gradients_in_every_regime(kernels, no_other_form, spread, rise, names):
    check_causal(140, spread=spread, rise=rise, gradients=True, **{x: packing(140)[x] for x in names})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_gradients_in_half_precision(kernels, no_other_form):
    check_causal(150, dtype=jnp.bfloat16, tolerance=1e-2, gradients=True, **packing(150))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_programs_of_several_chunks_give_the_same_gradients(kernels, no_other_form, monkeypatch):
    monkeypatch.setattr(pallas_gpu_backward, "_each", lambda heads, chunks: 2)
    check_causal(150, gradients=True, **packing(150))


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_causal_where_keys_rise_steeply_takes_the_other_form(kernels, monkeypatch, gradients):
    with np.errstate(over="ignore", invalid="ignore"):  # in what is replaced
        check_causal(70, rise=5.0, gradients=gradients)
        for module, name, form in ((pallas_gpu, "additive_xla", additive_xla), (pallas_gpu_backward, "slopes", slopes)):
            nothing = lambda *given, form=form: jax.tree.map(jnp.zeros_like, form(*given))  # noqa: E731
            monkeypatch.setattr(module, name, nothing)
        with pytest.raises(AssertionError):
            check_causal(70, rise=5.0, gradients=gradients)


@pytest.mark.parametrize("later", [0.0, pytest.param(-jnp.inf, marks=pytest.mark.slow)])
def test_a_run_far_below_the_one_before_it_leaves_numbers(kernels, later):
    q, logits, v, _ = arrays(70, heads=1, batch=1)
    ids = (jnp.arange(70) >= 30).astype(jnp.int32)[None]
    logits = jnp.where(ids[..., None, None] == 0, 150.0, logits).at[:, 30:64].set(later)
    empty = AdditiveState(*(jnp.full((1, 1, *x), y) for x, y in (((64,), -jnp.inf), ((64,), 0.0), ((64, 64), 0.0))))
    o, final, least, _ = pallas_gpu._march((q, logits, v, None), empty, tokens_of(ids, None), False)
    assert (least < pallas_gpu.LEAST).any()  # so the other form is taken
    assert all(np.isfinite(x).all() for x in (o, *final))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_derivatives_of_second_order_of_the_causal_form(kernels):
    q, logits, v, do = arrays(24, heads=1, batch=1)

    def product(implementation):
        o = lambda *x: additive_recurrence(*x, implementation=implementation)[0]  # noqa: E731
        slopes = jax.grad(lambda *x: (o(*x) * do).sum(), (0, 1, 2))
        return jax.grad(lambda *x: sum((g**2).sum() for g in slopes(*x)), (0, 1, 2))(q, logits, v)

    for x, y in zip(product("pallas_interpret"), product("xla"), strict=True):
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(y)


def test_a_stretch_is_as_long_as_busy_cores_allow():
    shapes = [jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in ((4, 4096, 16, 128), (1, 4096, 1, 64), (8, 200, 64, 64))]
    grids = [order_free_gpu._stretches("gather", x, x.shape[3])[1]["stretch"] for x in shapes]
    assert grids == [2, 64, 1]


def test_what_runs_on_hopper_and_what_is_refused():
    x, wide = (jax.ShapeDtypeStruct((1, 2, 4, 64), dtype) for dtype in (jnp.bfloat16, jnp.float32))
    small = jax.ShapeDtypeStruct((1, 2, 4, 48), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    assert "on cuda: xla (the kernel, which implementation='pallas' runs" in explain("additive_global", x, x, x)
    assert "on cuda: xla (float32 is not bfloat16, and" in explain("additive_global", x, wide, x)
    assert "on cuda: xla (sizes 64 and 48 of a head are not 64 or 128)" in explain("additive_global", x, x, small)
    factor = jax.ShapeDtypeStruct((1, 2, 4, 1, 64), jnp.bfloat16)
    assert "on cuda: xla (the kernel, which implementation='pallas' runs" in explain("additive_recurrence", x, x, x)
    assert "on cuda: xla (the kernel is without key factors)" in explain(
        "additive_recurrence", x, x, x, key_factor=factor
    )
    assert "on cuda: xla (the kernel is for one segment" in explain("additive_global", x, x, x, segment_ids=ids)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_derivatives_of_second_order(kernels):
    q, logits, v, do = arrays(24, heads=1, batch=1)

    def product(implementation):
        slopes = jax.grad(lambda *x: (additive_global(*x, implementation=implementation) * do).sum(), (0, 1, 2))
        return jax.grad(lambda *x: sum((g**2).sum() for g in slopes(*x)), (0, 1, 2))(q, logits, v)

    for x, y in zip(product("pallas_interpret"), product("xla"), strict=True):
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(y)
