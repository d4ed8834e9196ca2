"""The kernel for Hopper of gated linear attention, interpreted, against the definition; and what it is made of."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan import explain, gated, gated_linear_attention, hopper
from lightnet.scan.gated import blocks_gpu, pallas_gpu
from lightnet.scan.gated.chunk import split_sums, weights
from lightnet.scan.gated.xla import gated_xla
from lightnet.scan.recurrence import Kernel, Tokens
from tests.lightnet.scan.interpreted_gpu import OLD, interpreted
from tests.lightnet.scan.test_kernels import REGIMES, difference, packing, poisoned

SIZE = 16  # of chunks, tiles and heads


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in ("CHUNK", "COLUMNS"):
        monkeypatch.setattr(blocks_gpu, name, SIZE)
    monkeypatch.setattr(hopper, "ROWS", SIZE)
    monkeypatch.setattr(hopper, "SIZES", (SIZE, 2 * SIZE))


def arguments(length, regime, *, heads=2, groups=1, key=2 * SIZE, value=SIZE, decays=1):
    random = np.random.default_rng(length)
    q, k, v = (
        jnp.asarray(random.standard_normal((2, length, n, size)), jnp.bfloat16)
        for n, size in ((groups, key), (groups, key), (heads, value))
    )
    log_decay = jnp.asarray(REGIMES[regime](random, (2, length, heads, decays)), jnp.float32)
    return [q, k, v, log_decay, jnp.asarray(random.standard_normal((2, heads, key, value)), jnp.float32)]


def check(patch, args, given, *, gradients=False):
    """Against the definition, both as the public function calls them; what is masked is not a number."""
    check_all(patch, {"": args}, given, gradients=gradients)


def check_all(patch, named, given, *, gradients=False):
    """Arguments of the same shapes, so that they are compiled once."""

    def values(*args, implementation):
        *operands, state = args
        return gated_linear_attention(*operands, initial_state=state, implementation=implementation, **given)

    def both(*args, implementation):
        out, pull = jax.vjp(partial(values, implementation=implementation), *args[:5])
        return *out, *pull(tuple(x.astype(y.dtype) for x, y in zip(args[5:], out, strict=True)))

    function = both if gradients else values
    kernel = Kernel(lambda *a, interpret: pallas_gpu.gated_gpu(*a), pallas_gpu.refusal)
    definition = jax.jit(partial(function, implementation="reference"))
    with interpreted(patch), patch.context() as inner:
        inner.setattr(gated, "GATED", replace(gated.GATED, kernels={"tpu": kernel}))
        program = jax.jit(partial(function, implementation="pallas_interpret"))
        for name, args in named.items():
            random = np.random.default_rng(1)
            out = [jnp.asarray(random.standard_normal(args[i].shape), args[i].dtype) for i in (2, 4)][: 2 * gradients]
            expected = definition(*(x.astype(jnp.float32) for x in (*args, *out)))
            got = program(*poisoned(args, given), *out)
            assert [x.dtype for x in got] == [jnp.bfloat16, jnp.float32, *(x.dtype for x in args[: 5 * gradients])]
            for x, y in zip(got, expected, strict=True):
                assert difference(x.astype(jnp.float32), y) < 1e-2, name


# Behind the end of an array only newer releases read.
ragged = pytest.mark.skipif(OLD, reason="JAX 0.10 cannot interpret this")


def two_runs():
    """Over borders of chunks, so that states matter."""
    mask = jnp.asarray(np.random.default_rng(0).random((2, 48)) < 0.7)
    return {"segment_ids": jnp.broadcast_to(jnp.arange(48) // 27, (2, 48)), "mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize("decays", [1, 2 * SIZE])
def test_values_and_gradients_in_every_regime(monkeypatch, decays):
    named = {regime: arguments(48, regime, decays=decays) for regime in REGIMES}
    check_all(monkeypatch, named, two_runs(), gradients=True)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("decays", [1, 2 * SIZE])
@pytest.mark.parametrize(
    ("length", "packed"),
    [(48, True), (48, False), (16, False), *(pytest.param(length, True, marks=ragged) for length in (37, 19, 1))],
)
def test_values_of_any_length_in_every_regime(monkeypatch, length, packed, decays):
    named = {regime: arguments(length, regime, decays=decays) for regime in REGIMES}
    check_all(monkeypatch, named, packing(length) if packed else {})


@pytest.mark.slow
@pytest.mark.exhaustive
@ragged
@pytest.mark.parametrize("decays", [1, 2 * SIZE])
@pytest.mark.parametrize(("length", "packed"), [(37, True), (1, False)])
def test_gradients_of_any_length_in_every_regime(monkeypatch, length, packed, decays):
    named = {regime: arguments(length, regime, decays=decays) for regime in REGIMES}
    check_all(monkeypatch, named, packing(length) if packed else {}, gradients=True)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("decays", [1, SIZE])
def test_groups_of_heads_and_several_tiles_of_values(monkeypatch, decays):
    args = arguments(32, "usual", heads=4, groups=2, key=SIZE, value=2 * SIZE, decays=decays)
    check(monkeypatch, args, {}, gradients=True)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_log_decays_in_half_precision(monkeypatch):
    args = arguments(32, "usual", decays=2 * SIZE)
    check(monkeypatch, [*args[:3], args[3].astype(jnp.bfloat16), args[4]], {}, gradients=True)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_gradient_of_large_values_is_that_of_the_form_for_all_platforms(monkeypatch):
    monkeypatch.setattr(pallas_gpu, "VALUES", SIZE - 1)
    *operands, state = arguments(20, "usual")
    out = jnp.ones_like(operands[2]), jnp.ones_like(state)
    _, pull = jax.vjp(lambda x, state: pallas_gpu.gated_gpu(x, state, Tokens(None, None)), tuple(operands), state)
    _, like = jax.vjp(lambda x, state: gated_xla(x, state, Tokens(None, None)), tuple(operands), state)
    jax.tree.map(np.testing.assert_array_equal, pull(out), like((out[0].astype(jnp.float32), out[1])))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("decays", [1, 2 * SIZE])
def test_derivatives_of_second_order(monkeypatch, decays):
    *operands, state = arguments(2 * SIZE, "mild", decays=decays)
    tokens, random = Tokens(None, None), np.random.default_rng(1)
    weights, directions = (
        jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), x)
        for x in ((operands[2], state), (tuple(operands), state))
    )

    def along(run, *given):
        _, pull = jax.vjp(lambda x, state: run(x, state, tokens), *given)
        slopes = pull(weights)
        return sum(
            (x * y).astype(jnp.float32).sum() for x, y in zip(*map(jax.tree.leaves, (slopes, directions)), strict=True)
        )

    def of_xla(operands, state, tokens):
        o, final = gated_xla(operands, state, tokens)
        return o.astype(jnp.bfloat16), final

    with interpreted(monkeypatch):
        got, expected = (
            jax.grad(partial(along, run), (0, 1))(tuple(operands), state) for run in (pallas_gpu.gated_gpu, of_xla)
        )
    for x, y in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        assert x.dtype == y.dtype
        assert difference(x.astype(jnp.float32), y.astype(jnp.float32)) < 2**-8


@pytest.mark.parametrize("decays", [1, 2 * SIZE])
def test_values_and_gradients_have_the_dtypes_of_the_operands(decays):
    *operands, state = arguments(4, "usual", decays=decays)

    def run(*given):
        out, pull = jax.vjp(lambda *x: pallas_gpu.gated_gpu(x[:4], x[4], Tokens(None, None)), *given)
        return out, pull(out)

    out, slopes = jax.eval_shape(run, *operands, state)
    assert [x.dtype for x in out] == [jnp.bfloat16, jnp.float32]
    assert [x.dtype for x in slopes] == [x.dtype for x in (*operands, state)]


@pytest.mark.parametrize("regime", REGIMES)
def test_weights_of_two_tokens_are_exact_to_float32(regime):
    decay = REGIMES[regime](np.random.default_rng(0), 64).astype(np.float32)
    decay[20] = -1e30
    sums = split_sums(jnp.asarray(decay))
    i, j = np.indices((64, 64))
    got = weights(sums[:, :, None], sums[:, None], jnp.asarray(i >= j))
    each = np.where((i[..., None] >= np.arange(64)) & (np.arange(64) > j[..., None]), decay.astype(np.float64), 0)
    np.testing.assert_allclose(got, np.where(i >= j, np.exp(each.sum(axis=-1)), 0), rtol=3e-6, atol=1e-30)


def test_what_the_kernel_cannot_run_is_said():
    *operands, _ = arguments(4, "mild")
    half = [x.astype(jnp.bfloat16) for x in operands]
    refusal = lambda *x: pallas_gpu.refusal(x)  # noqa: E731
    assert refusal(*operands) is None
    assert refusal(*half) is None
    assert "float32 is not bfloat16, and tensor cores would round it" in refusal(half[0].astype(jnp.float32), *half[1:])
    assert "sizes 8 and 16" in refusal(half[0][..., :8], half[1][..., :8], *half[2:])
    assert "float16 is not a precision" in refusal(*half[:3], half[3].astype(jnp.float16))
    reason = "on cuda: xla (the kernel, which implementation='pallas' runs, has not been timed on this platform)"
    assert reason in explain("gated_linear_attention", *half)
