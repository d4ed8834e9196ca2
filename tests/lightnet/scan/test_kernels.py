"""The kernels for TPUs, interpreted, against the definition: values and gradients, in every regime of the decays."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet import scan
from lightnet.scan import AdditiveState, additive_global, additive_recurrence, explain, linear_scan
from lightnet.scan.additive import order_free_tpu as global_kernel
from lightnet.scan.additive import pallas_tpu as additive_kernel
from lightnet.scan.gated import pallas_tpu as gated_kernel
from lightnet.scan.linear import pallas_tpu as linear_kernel
from tests.lightnet.scan.calls import CALLS, cotangents, operands

# Tiles so small that short sequences have several of them, with a last one that is not whole.
SMALL = {
    linear_kernel: {"LANES": 3, "TILE": 128},
    gated_kernel: {"CHUNK": 16, "TOKENS": 64},
    additive_kernel: {"CHUNK": 16, "TOKENS": 64},
    global_kernel: {"TOKENS": 32},
}
# Nearly all of the time of these tests is compilation.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LINEAR = ("linear_scan", "linear_scan backwards", "linear_scan with one decay", "linear_scan of complex numbers")
REGIMES = {
    "mild": lambda random, shape: -0.1 * random.random(shape),
    "usual": lambda random, shape: -np.log1p(np.exp(-random.standard_normal(shape))),
    "steep": lambda random, shape: -20 * random.random(shape),
    "with resets": lambda random, shape: np.where(random.random(shape) < 0.05, -np.inf, -random.random(shape)),
    "nearly none": lambda random, shape: -1e-6 * random.random(shape),
    "resets alone": lambda random, shape: np.full(shape, -np.inf),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    for module, sizes in SMALL.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


def call(name):
    others = {LINEAR[3]: linear_scan, "additive_global": additive_global, "additive_recurrence": _additive}
    return others.get(name) or CALLS[name]


def _additive(q, logits, v, maximum, total, state, **given):
    return additive_recurrence(q, logits, v, initial_state=AdditiveState(maximum, total, state), **given)


def arguments(name, length, regime, *, batch=2):
    """As for the other tests, with decays of a regime."""
    random = np.random.default_rng(length)
    args = list(operands(name, batch, length, seed=length))
    if name.startswith("gated"):
        args[3] = jnp.asarray(REGIMES[regime](random, args[3].shape), jnp.float32)
        q, k, v, log_decay, state = args
        return [q[:, :, :1], k[:, :, :1], v[:, :, :2], log_decay[:, :, :2], state[:, :2]]
    if name.startswith("additive"):
        logits = jnp.asarray(REGIMES[regime](random, args[1].shape), jnp.float32)
        of_tokens = [x[:, :, :2] for x in (args[0][..., : logits.shape[-1]], logits, args[2])]
        return of_tokens if name == "additive_global" else [*of_tokens, *(x[:, :2, :4] for x in args[4:])]
    args[0] = jnp.asarray(np.exp(REGIMES[regime](random, args[0].shape)), jnp.float32)
    if "complex" in name:
        turned = [jnp.asarray(np.exp(1j * random.standard_normal(x.shape)), jnp.complex64) for x in args]
        args = [x * y for x, y in zip(args, turned, strict=True)]
    return args


def packing(length, batch=2):
    random = np.random.default_rng(length)
    ids = np.repeat(random.integers(0, 3, (batch, length)), 3, axis=1)[:, :length]
    return {"segment_ids": jnp.asarray(ids), "mask": jnp.asarray(random.random((batch, length)) < 0.7)}


def difference(x, y):
    x, y = np.asarray(x), np.asarray(y)
    return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30)


def outputs_and_gradients(name, args, implementation, given):
    def run(*args):
        return call(name)(*args, implementation=implementation, **given)

    out = cotangents(run, args, {})
    both = jax.jit(lambda args, out: (lambda y, pull: (y, pull(out)))(*jax.vjp(run, *args)), compiler_options=QUICKLY)
    value, gradients = both(args, out)
    return jax.tree.leaves(value), gradients


def check(name, args, given, *, values=2e-6, gradients=1e-5):
    got, slopes = outputs_and_gradients(name, args, "pallas_interpret", given)
    expected, expected_slopes = outputs_and_gradients(name, args, "reference", given)
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == y.dtype
        assert difference(x, y) < values
    for x, y in zip(slopes, expected_slopes, strict=True):
        assert x.dtype == y.dtype
        assert difference(x, y) < gradients


def check_values(args, given):
    """Of `additive_recurrence`, whose maximum is -inf where a run has no finite logit."""

    def run(implementation):
        function = jax.jit(lambda *x: _additive(*x, implementation=implementation, **given), compiler_options=QUICKLY)
        return jax.tree.leaves(function(*args))

    for x, y in zip(run("pallas_interpret"), run("reference"), strict=True):
        error, size = jnp.where(x == y, 0, x - y), jnp.where(jnp.isfinite(y), y, 0)
        assert np.linalg.norm(error) <= 2e-6 * np.linalg.norm(size)


def test_values_and_gradients_of_a_short_packed_sequence():
    check("linear_scan", arguments("linear_scan", 8, "with resets"), packing(8))


# One set of arguments per test and recurrence in continuous integration: the first.
every_regime = pytest.mark.parametrize(
    ("length", "regime", "packed"),
    [
        (37, "with resets", True),
        (1, "usual", True),
        (16, "usual", False),
        (33, "mild", False),
        (37, "steep", True),
        (37, "nearly none", False),
        (19, "resets alone", True),
    ],
)


@pytest.mark.slow
@every_regime
@pytest.mark.parametrize("name", LINEAR)
def test_linear_scan_in_every_regime(name, length, regime, packed):
    check(name, arguments(name, length, regime), packing(length) if packed else {})


@pytest.mark.slow
@every_regime
def test_gated_linear_attention_in_every_regime(length, regime, packed):
    name = "gated_linear_attention"
    check(name, arguments(name, length, regime), packing(length) if packed else {})


@pytest.mark.slow
@every_regime
def test_additive_global_in_every_regime(length, regime, packed):
    mask = packing(length)["mask"].at[1].set(length % 2 == 0)
    check("additive_global", arguments("additive_global", length, regime), {"mask": mask} if packed else {})


@pytest.mark.slow
@every_regime
def test_additive_recurrence_in_every_regime(length, regime, packed):
    """The values: its backward pass is XLA's."""
    check_values(arguments("additive_recurrence", length, regime), packing(length) if packed else {})


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_additive_recurrence_where_keys_rise_steeply_within_a_chunk(packed):
    args = arguments("additive_recurrence", 40, "usual")
    args[1] = args[1] + jnp.outer(jnp.arange(40.0), jnp.array([10.0, -10.0, 0.0, 5.0]))[None, :, None]
    check_values(args, packing(40) if packed else {})


@pytest.mark.slow
def test_what_is_not_a_number_stays_so():
    q, logits, v, *state = arguments("additive_recurrence", 20, "usual")
    o, final = jax.jit(lambda *x: _additive(*x, implementation="pallas_interpret"))(
        q, logits.at[0, 17, 0, 0].set(jnp.nan), v, *state
    )
    assert np.isnan(o[0, 17:, 0]).all()
    assert np.isnan(final.state[0, 0, 0]).all()
    assert np.isfinite(o[1]).all()


@pytest.mark.slow
def test_gradients_of_additive_recurrence():
    check("additive_recurrence", arguments("additive_recurrence", 19, "usual"), packing(19))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated_linear_attention", *LINEAR[:3], "additive_global"])
def test_half_precision_is_read_and_written_and_the_state_is_wide(name):
    args, given = arguments(name, 37, "usual"), packing(37)
    state = args[len(args) :] if name == "additive_global" else args[-1:]
    half = [x.astype(jnp.bfloat16) for x in args[: len(args) - len(state)]]
    if not state:
        del given["segment_ids"]
    got, slopes = outputs_and_gradients(name, [*half, *state], "pallas_interpret", given)
    wide = [x.astype(jnp.float32) for x in half]
    expected, expected_slopes = outputs_and_gradients(name, [*wide, *state], "reference", given)
    assert got[0].dtype == jnp.bfloat16
    for x, y in zip(got[1:], expected[1:], strict=True):
        assert x.dtype == jnp.float32
        # Matrix products round their factors to half precision.
        assert difference(x, y) < (2e-6 if name.startswith("linear") else 1e-2)
    for x, y in zip((got[0], *slopes), (expected[0], *expected_slopes), strict=True):
        assert difference(x, y) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated_linear_attention", "linear_scan"])
def test_a_masked_token_may_contain_anything(name):
    given, args = packing(37), arguments(name, 37, "usual")
    clean = outputs_and_gradients(name, args, "pallas_interpret", given)
    masked = ~given["mask"]
    poisoned = [x.at[masked].set(jnp.nan) for x in args[:-1]]
    got = outputs_and_gradients(name, [*poisoned, args[-1]], "pallas_interpret", given)
    jax.tree.map(np.testing.assert_array_equal, clean, got)


@pytest.mark.slow
def test_a_run_that_overflows_does_not_reach_the_next():
    a, b = np.full((1, 20, 1), 1e30, np.float32), np.ones((1, 20, 1), np.float32)
    a[0, 18:] = 0.5
    ids = np.arange(20)[None] // 18
    h, _ = jax.jit(lambda a, b: linear_scan(a, b, segment_ids=ids, implementation="pallas_interpret"))(a, b)
    assert np.isinf(h[0, 17, 0])
    np.testing.assert_array_equal(h[0, 18:, 0], [1, 1.5])


@pytest.mark.slow
def test_sequences_side_by_side_and_under_vmap(monkeypatch):
    monkeypatch.setattr(linear_kernel, "LANES", 8)
    assert linear_kernel.tiling(6, 7, 4, 1).sequences == 2
    args, given = arguments("linear_scan", 7, "with resets", batch=6), packing(7, batch=6)
    check("linear_scan", args, given)
    run = jax.jit(jax.vmap(lambda *x: linear_scan(*x, implementation="pallas_interpret")))
    stacked = [jnp.stack([x[:2], 0.5 * x[:2]]) for x in args]
    expected = linear_scan(*(x[1] for x in stacked), implementation="reference")
    for x, y in zip(run(*stacked), expected, strict=True):
        assert difference(x[1], y) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_scan", "gated_linear_attention"])
def test_derivatives_of_second_order(name):
    args, given = arguments(name, 8, "usual"), packing(8)
    everything = tuple(range(len(args)))

    def product(implementation):
        def loss(*x):
            y, final = CALLS[name](*x, implementation=implementation, **given)
            return (y**3).sum() + (final**3).sum()

        slopes = jax.grad(loss, everything)
        return jax.jit(jax.grad(lambda *x: sum((g**2).sum() for g in slopes(*x)), everything))(*args)

    for x, y in zip(product("pallas_interpret"), product("reference"), strict=True):
        assert difference(x, y) < 1e-5


def test_the_kernel_is_what_runs_on_tpus_and_what_it_cannot_run_is_said():
    x = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
    assert explain("linear_scan", x, x).splitlines()[2] == "linear_scan on tpu: pallas (a kernel for this platform)"
    q, v, one = (jax.ShapeDtypeStruct((1, 2, 10, size), jnp.float32) for size in (64, 48, 1))
    assert "on tpu: pallas" in explain("gated_linear_attention", q, q, q, q)
    assert "on tpu: pallas" in explain("additive_global", q, q, q)
    assert "on tpu: pallas" in explain("additive_recurrence", q, q, q)
    factor = jax.ShapeDtypeStruct((1, 2, 1, 1, 64), jnp.float32)
    assert "on tpu: xla (the kernel is without key" in explain("additive_recurrence", q, q, q, key_factor=factor)
    assert "on tpu: xla (the kernel is for one segment" in explain("additive_global", q, q, q, key_factor=factor)
    assert "on tpu: xla (sizes 64 and 48" in explain("gated_linear_attention", q, q, v, q)
    assert "on tpu: xla (the kernel is for one decay per key channel)" in explain(
        "gated_linear_attention", q, q, v, one
    )
    half = jax.ShapeDtypeStruct((1, 2, 3), jnp.float16)
    assert "on tpu: xla (float16 is not a precision of the kernel)" in explain("linear_scan", half, half)
    program = jax.jit(linear_scan).trace(x, x).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in program
    assert "tpu_custom_call" not in jax.jit(linear_scan).trace(x, x).lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("dtypes", list(product((jnp.bfloat16, jnp.float32), repeat=3)))
@pytest.mark.parametrize("name", ["linear_scan", "gated_linear_attention", "additive_recurrence", "additive_global"])
def test_kernel_and_xla_have_the_same_dtypes_whatever_is_mixed(name, dtypes):
    """Both are branches of one program, which is not made otherwise; nothing is computed here."""
    one, two, three = dtypes
    x = lambda dtype: jax.ShapeDtypeStruct((1, 12, 2, 128), dtype)  # noqa: E731
    y = lambda dtype: jax.ShapeDtypeStruct((1, 12, 256), dtype)  # noqa: E731
    arrays = {
        "linear_scan": (y(one), y(two)),
        "gated_linear_attention": (x(one), x(two), x(three), x(jnp.float32)),
    }.get(name, (x(one), x(two), x(three)))

    def gradients(*arrays):
        outputs, pull = jax.vjp(getattr(scan, name), *arrays)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    _, found = jax.eval_shape(gradients, *arrays)
    assert [leaf.dtype for leaf in found] == [array.dtype for array in arrays]
