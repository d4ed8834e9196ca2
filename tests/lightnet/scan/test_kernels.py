"""The kernels for TPUs, interpreted, against the definition: values and gradients, in every regime of the decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan import AdditiveState, additive_global, additive_recurrence, linear_scan
from lightnet.scan.additive import blocks_tpu as additive_blocks
from lightnet.scan.additive import order_free_tpu as global_kernel
from lightnet.scan.additive import pallas_tpu as additive_kernel
from lightnet.scan.gated import pallas_tpu as gated_kernel
from lightnet.scan.linear import pallas_tpu as linear_kernel
from tests.lightnet.scan.calls import CALLS, cotangents, operands

# Tiles so small that short sequences have several of them, with a last one that is not whole.
SMALL = {
    linear_kernel: {"LANES": 3, "TILE": 128, "ROW": 1},
    gated_kernel: {"CHUNK": 16, "TOKENS": 64},
    additive_kernel: {"CHUNK": 16, "TOKENS": 64},
    global_kernel: {"TOKENS": 32, "TOKENS_BACKWARD": 32, "TOKENS_OF_SEGMENTS": 32},
}
# Nearly all of the time of these tests is compilation.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LINEAR = ("linear_scan", "linear_scan backwards", "linear_scan with one decay", "linear_scan of complex numbers")
FACTORS = " with key factors"
STATES = {"additive_global": 0, "additive_recurrence": 3}  # arrays that make up a state, elsewhere 1
GATED = ("gated_linear_attention", "gated_linear_attention with one decay per head")
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
    if callable(name):
        return name
    others = {LINEAR[3]: linear_scan, "additive_global": additive_global, "additive_recurrence": _additive}
    return others.get(name) or CALLS[name.removesuffix(FACTORS)]


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


def with_factors(name, length, *, shared):
    """Arguments of two heads; factors are shared by all heads and sequences, or none is."""
    q, logits, v, factor, *state = operands(name, 2, length, seed=length)
    if not shared:
        factor = factor * jnp.asarray(np.random.default_rng(length).standard_normal((2, 1, 2, 1, 1)), jnp.float32)
    return [*(x[:, :, :2] for x in (q, logits, v, factor)), *(x[:, :2] for x in state)]


def many_heads(length, *, heads=3, key=5, value=6):
    """Arguments of `additive_recurrence`, whose heads fill no rows of 128 numbers."""
    random = np.random.default_rng(heads)
    sizes = ((2, length, heads, key),) * 2 + ((2, length, heads, value),)
    sizes += ((2, heads, key), (2, heads, key), (2, heads, key, value))
    args = [jnp.asarray(random.standard_normal(size), jnp.float32) for size in sizes]
    return [*args[:4], abs(args[4]), args[5]]


def packing(length, batch=2):
    random = np.random.default_rng(length)
    ids = np.repeat(random.integers(0, 3, (batch, length)), 3, axis=1)[:, :length]
    return {"segment_ids": jnp.asarray(ids), "mask": jnp.asarray(random.random((batch, length)) < 0.7)}


def difference(x, y):
    """Relative; infinities are to be the same, such as the maximum of a run without a finite logit."""
    x, y = np.asarray(x), np.asarray(y)
    same = x == y
    size = np.linalg.norm(np.where(np.isfinite(y), y, 0))
    return np.linalg.norm(np.where(same, 0, x) - np.where(same, 0, y)) / max(size, 1e-30)


def compiled(name, implementation):
    """(arguments, cotangents, tokens) -> values and gradients."""

    def both(args, out, given):
        value, pull = jax.vjp(lambda *x: call(name)(*x, implementation=implementation, **given), *args)
        return jax.tree.leaves(value), pull(out)

    return jax.jit(both, compiler_options=QUICKLY)


def outputs_and_gradients(name, args, implementation, given, program=None):
    out = cotangents(lambda *x: call(name)(*x, implementation=implementation, **given), args, {})
    return (program or compiled(name, implementation))(args, out, given)


def poisoned(args, given):
    """What stands at a masked token may be anything."""
    if (mask := given.get("mask")) is None:
        return args
    real = [mask.reshape(mask.shape + (1,) * (x.ndim - 2)) if x.shape[:2] == mask.shape else True for x in args]
    return [jnp.where(y, x, jnp.nan) for x, y in zip(args, real, strict=True)]


def check(name, args, given, *, values=2e-6, gradients=1e-5, programs=(None, None)):
    got, slopes = outputs_and_gradients(name, poisoned(args, given), "pallas_interpret", given, programs[0])
    expected, expected_slopes = outputs_and_gradients(name, args, "reference", given, programs[1])
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == y.dtype
        assert difference(x, y) < values
    for x, y in zip(slopes, expected_slopes, strict=True):
        assert x.dtype == y.dtype
        assert difference(x, y) < gradients


def check_every_regime(name, length, given, arguments=arguments):
    """Of the same length, so that all regimes are compiled once; of what is masked the kernel sees no numbers."""
    programs = [compiled(name, implementation) for implementation in ("pallas_interpret", "reference")]
    for regime in REGIMES:
        # The gradient of the initial maximum is 0 there, and beside nothing what rounding leaves of it is much.
        most = np.inf if (name, regime) == ("additive_recurrence", "resets alone") else 1e-5
        try:
            check(name, arguments(name, length, regime), given, gradients=most, programs=programs)
        except AssertionError as error:
            error.add_note(f"regime: {regime}")
            raise


def test_values_and_gradients_of_a_short_packed_sequence():
    check("linear_scan", arguments("linear_scan", 8, "with resets"), packing(8))


def if_there_is_time(*case):
    """`make test-all` has it, continuous integration has not."""
    return pytest.param(*case, marks=pytest.mark.exhaustive)


every_regime = pytest.mark.parametrize(
    ("length", "packed"),
    [(37, True), if_there_is_time(37, False), if_there_is_time(16, False), if_there_is_time(1, True)],
)


@pytest.mark.slow
@every_regime
@pytest.mark.parametrize("name", [*LINEAR, *GATED, "additive_recurrence"])
def test_every_regime(name, length, packed):
    check_every_regime(name, length, packing(length) if packed else {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "groups", "key", "value"),
    [(8, 4, 64, 64), if_there_is_time(9, 9, 4, 6), if_there_is_time(4, 1, 128, 128)],
    ids=["groups in a program", "sizes that fill no rows", "a group over several programs"],
)
@pytest.mark.parametrize("name", [GATED[1], if_there_is_time(GATED[0])])
def test_gated_linear_attention_over_several_programs(monkeypatch, name, heads, groups, key, value):
    for how_many in ("HEADS", "HEADS_BACKWARD"):
        monkeypatch.setattr(gated_kernel, how_many, heads // 2)
    random, tokens = np.random.default_rng(heads), (1, 20)
    shapes = [(*tokens, groups, key)] * 2 + [(*tokens, heads, value), (1, heads, key, value)]
    q, k, v, state = (jnp.asarray(random.standard_normal(shape) / shape[-1] ** 0.5, jnp.float32) for shape in shapes)
    decay = REGIMES["with resets"](random, (*tokens, heads, 1 if "one decay" in name else key))
    check(name, [q, k, v, jnp.asarray(decay, jnp.float32), state], packing(20, batch=1))


@pytest.mark.slow
@every_regime
def test_additive_global_in_every_regime(length, packed):
    mask = packing(length)["mask"].at[1].set(length % 2 == 0)
    check_every_regime("additive_global", length, {"mask": mask} if packed else {})


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, if_there_is_time(False)])
def test_additive_recurrence_where_keys_rise_steeply_within_a_chunk(packed):
    args = arguments("additive_recurrence", 40, "usual")
    args[1] = args[1] + jnp.outer(jnp.arange(40.0), jnp.array([10.0, -10.0, 0.0, 5.0]))[None, :, None]
    check("additive_recurrence", args, packing(40) if packed else {})


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0.0, if_there_is_time(10.0)])
def test_additive_recurrence_over_several_chunks_whose_runs_have_the_same_maximum(monkeypatch, steps):
    """What reaches the final maximum belongs to the last run alone, in whichever chunk it begins."""
    for name, size in {"CHUNK": 16, "TOKENS": 64}.items():
        monkeypatch.setattr(additive_kernel, name, size)
    args, begins = arguments("additive_recurrence", 70, "usual"), np.zeros((2, 70), int)
    args[1] = args[1] + steps * jnp.asarray(np.random.default_rng(0).random(args[1].shape) < 0.1)
    for row, column in ((0, 37), (1, 20), (1, 66)):
        begins[row, column] = 1
    for row, column in ((0, 5), (0, 50), (1, 5), (1, 30), (1, 68)):
        args[1] = args[1].at[row, column].set(args[1].max())
    check("additive_recurrence", args, {"segment_ids": jnp.asarray(begins.cumsum(axis=1))})


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, if_there_is_time(False)])
def test_additive_recurrence_with_key_factors(shared):
    name = f"additive_recurrence{FACTORS}"
    check(name, with_factors("additive_recurrence", 21, shared=shared), packing(21))


@pytest.mark.slow
def test_additive_recurrence_with_steep_keys_and_factors():
    args = with_factors("additive_recurrence", 20, shared=True)
    args[1] = args[1] + 10 * jnp.arange(20.0)[None, :, None, None]
    check(f"additive_recurrence{FACTORS}", args, {})


@pytest.mark.slow
def test_additive_recurrence_with_heads_that_fill_no_rows(monkeypatch):
    """Zeros behind them, and a program that lacks one."""
    for name, value in {"LANES": 16, "MOST_HEADS": 2, "SIZES": 8}.items():
        monkeypatch.setattr(additive_blocks, name, value)
    assert additive_blocks.side_by_side(3, (5, 6), 4) is None
    assert additive_blocks.side_by_side(3, (8, 8), 4) == 2
    check("additive_recurrence", many_heads(19), {})


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, if_there_is_time(False)])
def test_additive_global_with_key_factors(shared):
    args = with_factors("additive_global", 37, shared=shared)
    check(f"additive_global{FACTORS}", args, {"mask": packing(37)["mask"]})


@pytest.mark.slow
@pytest.mark.parametrize(("segments", "factors"), [(50, True), if_there_is_time(3, False)])
def test_additive_global_of_several_segments(segments, factors):
    """Some within one block of tokens, some over several; what is beyond the number of segments gives 0."""
    name, length = "additive_global", 75
    args = with_factors(name, length, shared=True) if factors else arguments(name, length, "with resets")
    ids = np.repeat(np.arange(8), [1, 20, 3, 30, 2, 1, 10, 8])[None].repeat(2, axis=0)
    ids[1, 5:70] = 9
    given = {"segment_ids": jnp.asarray(ids), "mask": packing(length)["mask"].at[1, 60:].set(False)}

    def run(*args, **given):
        return additive_global(*args[:3], key_factor=args[3] if factors else None, num_segments=segments, **given)

    check(run, args, given)


@pytest.mark.slow
@pytest.mark.parametrize("factors", [2, if_there_is_time(1)], ids=["summed in a program", "a gradient of half a row"])
def test_additive_global_with_heads_that_fill_no_rows(monkeypatch, factors):
    for name, value in {"LANES": 16, "MOST_HEADS": 2, "SIZES": 8}.items():
        monkeypatch.setattr(additive_blocks, name, value)
    q, logits, v, *_ = many_heads(37)
    factor = jnp.asarray(np.random.default_rng(0).standard_normal((1, 37, 1, factors, 5)), jnp.float32)
    check(f"additive_global{FACTORS}", [jnp.concatenate([q, 2 - q][:factors], axis=-1), logits, v, factor], {})


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
@pytest.mark.parametrize(
    "name",
    [
        *(GATED[0], LINEAR[0], "additive_global"),
        *map(if_there_is_time, (GATED[1], *LINEAR[1:3], "additive_recurrence")),
    ],
)
def test_half_precision_is_read_and_written_and_the_state_is_wide(name):
    args, given = arguments(name, 37, "usual"), packing(37)
    state = args[len(args) - STATES.get(name, 1) :]
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
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*GATED, "linear_scan", "additive_recurrence"])
def test_a_masked_token_may_contain_anything(name):
    given, args = packing(37), arguments(name, 37, "usual")
    clean = outputs_and_gradients(name, args, "pallas_interpret", given)
    got = outputs_and_gradients(name, poisoned(args, given), "pallas_interpret", given)
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
@pytest.mark.parametrize(
    "name", ["linear_scan", *map(if_there_is_time, (*GATED, "additive_recurrence", "additive_global"))]
)
def test_derivatives_of_second_order(name):
    args, given = arguments(name, 8, "usual"), packing(8)
    if name == "additive_global":
        given["num_segments"] = 8
    everything = tuple(range(len(args)))

    def product(implementation):
        def loss(*x):
            return sum((y**3).sum() for y in jax.tree.leaves(call(name)(*x, implementation=implementation, **given)))

        slopes = jax.grad(loss, everything)
        return jax.jit(jax.grad(lambda *x: sum((g**2).sum() for g in slopes(*x)), everything))(*args)

    for x, y in zip(product("pallas_interpret"), product("reference"), strict=True):
        assert difference(x, y) < 1e-5


def test_few_channels_take_the_room_of_a_row(monkeypatch):
    """Long sequences of them would not fit into VMEM otherwise, and the program would not compile."""
    monkeypatch.setattr(linear_kernel, "ROW", 4)
    assert linear_kernel.tiling(1, 1000, 1, 1).tokens == 32
