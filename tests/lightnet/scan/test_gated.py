"""Gated linear attention: the recurrence by hand, every implementation against it, segments and masks."""

import os
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.gated import gated_linear_attention, gated_linear_step
from lightnet.scan.gated.chunk import combine, decay_products, enter, halves
from lightnet.scan.gated.xla import summary
from lightnet.scan.recurrence import Tokens, tokens_of

REGIMES = ("mild", "sigmoid", "strong", "resets", "near zero", "mixture")
LENGTHS = (1, 2, 17, 63, 64, 65)


class Case(NamedTuple):
    """Arguments of `gated_linear_attention`, in float64."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    log_decay: np.ndarray
    state: np.ndarray

    def arrays(self, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(x, dtype) for x in self)


def log_decays(regime: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    normal, uniform = rng.standard_normal(shape), rng.random(shape)
    found = {
        "mild": -0.1 * uniform,
        "sigmoid": -np.logaddexp(0, -normal),
        "strong": -20 * uniform,
        "resets": np.where(rng.random(shape) < 0.05, -np.inf, -0.1 * uniform),
        "near zero": -1e-6 * uniform,
    }
    if regime == "mixture":
        return np.choose(rng.integers(0, 5, shape), list(found.values()))
    return found[regime]


def draw(
    length: int,
    *,
    scalar: bool,
    regime: str = "mixture",
    batch: int = 2,
    groups: int = 2,
    heads: int = 4,
    seed: int = 0,
) -> Case:
    rng = np.random.default_rng(seed)
    key, value = 5, 3
    case = Case(
        rng.standard_normal((batch, length, groups, key)),
        rng.standard_normal((batch, length, groups, key)),
        rng.standard_normal((batch, length, heads, value)),
        log_decays(regime, (batch, length, heads, 1 if scalar else key), rng),
        rng.standard_normal((batch, heads, key, value)),
    )
    return Case(*(x.astype(np.float32).astype(np.float64) for x in case))


def by_hand(case: Case, segment_ids: Any = None, mask: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The equation in float64, one row, token and head at a time."""
    batch, length, heads, size = case.v.shape
    share = heads // case.q.shape[2]
    o, final = np.zeros((batch, length, heads, size)), case.state.copy()
    for b in range(batch):
        previous = None
        for t in range(length):
            if mask is not None and not mask[b, t]:
                continue
            if segment_ids is not None and previous is not None and segment_ids[b, t] != previous:
                final[b] = 0
            previous = None if segment_ids is None else segment_ids[b, t]
            for h in range(heads):
                k, q = case.k[b, t, h // share], case.q[b, t, h // share]
                final[b, h] = np.exp(case.log_decay[b, t, h])[:, None] * final[b, h] + np.outer(k, case.v[b, t, h])
                o[b, t, h] = final[b, h].T @ q
    return o, final


def error(found: Any, expected: Any) -> float:
    """Relative, in the Frobenius norm; absolute where 0 is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1))


def run(arrays: Any, implementation: str | None = None, **named: Any) -> tuple[jax.Array, jax.Array]:
    q, k, v, log_decay, state = arrays
    return gated_linear_attention(q, k, v, log_decay, initial_state=state, implementation=implementation, **named)


@partial(jax.jit, static_argnames="implementation")
def everything(arrays: Any, implementation: str, segment_ids: Any = None, mask: Any = None) -> tuple[jax.Array, ...]:
    """Both results, and the gradients of a function of both of them with respect to each argument."""
    found, transpose = jax.vjp(lambda x: run(x, implementation, segment_ids=segment_ids, mask=mask), arrays)
    # Small integers are the same in every precision.
    weights = ((jnp.arange(x.size) % 7 % 4 - 1).reshape(x.shape).astype(x.dtype) for x in found)
    return (*found, *transpose(tuple(weights))[0])


def packed(length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    ids = np.cumsum(rng.random((2, length)) < 0.1, axis=1) % 2
    return {"segment_ids": ids, "mask": rng.random((2, length)) < 0.8}


def alike(length: int) -> dict[str, np.ndarray]:
    """One segment without a mask, as arrays, so that it runs the same program as `packed`."""
    return {"segment_ids": np.zeros((2, length), int), "mask": np.ones((2, length), bool)}


TOLERANCES = [2e-6] * 2 + [1e-5] * 5

both_decays = pytest.mark.parametrize("scalar", [False, True], ids=["vector", "scalar"])


@both_decays
@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("tokens", [alike, packed])
def test_it_is_the_equation(tokens: Any, implementation: str, scalar: bool) -> None:
    case, named = draw(65, scalar=scalar), tokens(65)
    found = everything(case.arrays(), implementation, **named)[:2]
    assert all(error(x, y) < 2e-6 for x, y in zip(found, by_hand(case, **named), strict=True))


@pytest.mark.parametrize(
    ("length", "scalar"), [(length, False) for length in LENGTHS] + [(length, True) for length in (1, 17, 64, 65)]
)
def test_values_and_gradients_at_any_length(length: int, scalar: bool) -> None:
    arrays, named = draw(length, scalar=scalar).arrays(), packed(length)
    found, expected = everything(arrays, "xla", **named), everything(arrays, "reference", **named)
    assert all(error(x, y) < tolerance for x, y, tolerance in zip(found, expected, TOLERANCES, strict=True))


@both_decays
@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_of_decays_against_double_precision(regime: str, scalar: bool) -> None:
    case = draw(65, scalar=scalar, regime=regime)
    found = everything(case.arrays(), "xla", **alike(65))
    with jax.enable_x64(True):
        expected = everything(case.arrays(jnp.float64), "reference", **alike(65))
    assert all(error(x, y) < tolerance for x, y, tolerance in zip(found, expected, TOLERANCES, strict=True))


@both_decays
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_reset_forgets_exactly_and_has_no_gradient(implementation: str, scalar: bool) -> None:
    case = draw(65, scalar=scalar, regime="resets")
    arrays = case.arrays()
    gradients = everything(arrays, implementation, **alike(65))[2:]
    assert not np.asarray(gradients[3])[np.isneginf(case.log_decay)].any()
    all_reset = (*arrays[:3], jnp.full_like(arrays[3], -jnp.inf), arrays[4])
    gradients = everything(all_reset, implementation, **alike(65))[2:]
    assert not gradients[3].any() and not gradients[4].any()
    assert all(bool(jnp.isfinite(x).all()) for x in gradients)


@both_decays
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_masked_tokens_do_not_exist_whatever_they_contain(implementation: str, scalar: bool) -> None:
    arrays, named = draw(65, scalar=scalar).arrays(), packed(65)
    hole = ~named["mask"][..., None, None]
    poisoned = (*(jnp.where(hole, jnp.nan, x) for x in arrays[:4]), arrays[4])
    found, clean = everything(poisoned, implementation, **named), everything(arrays, implementation, **named)
    assert all(jnp.array_equal(x, y) for x, y in zip(found, clean, strict=True))
    for x in (found[0], *found[2:6]):
        assert not np.asarray(x)[np.broadcast_to(hole, x.shape)].any()


@both_decays
@pytest.mark.parametrize("before", [0, 1, 2])
def test_padding_on_either_side_is_exact(before: int, scalar: bool) -> None:
    case, widths = draw(63, scalar=scalar), ((0, 0), (before, 2 - before))
    arrays = case.arrays()
    padded = (*(jnp.pad(x, (*widths, (0, 0), (0, 0)), constant_values=jnp.nan) for x in arrays[:4]), arrays[4])
    named = {"segment_ids": np.zeros((2, 65), int), "mask": np.pad(np.ones((2, 63), bool), widths)}
    o, final = everything(padded, "xla", **named)[:2]
    expected = by_hand(case)
    assert error(o[:, before : before + 63], expected[0]) < 2e-6 and error(final, expected[1]) < 2e-6


@both_decays
@pytest.mark.parametrize("at", [1, 64])
def test_a_sequence_split_in_two_is_the_whole(at: int, scalar: bool) -> None:
    *operands, state = draw(65, scalar=scalar).arrays()
    left, between = everything((*(x[:, :at] for x in operands), state), "xla", **alike(at))[:2]
    right, final = everything((*(x[:, at:] for x in operands), between), "xla", **alike(65 - at))[:2]
    o, expected = everything((*operands, state), "xla", **alike(65))[:2]
    assert error(jnp.concatenate([left, right], axis=1), o) < 1e-6 and error(final, expected) < 1e-6


@both_decays
def test_steps_are_the_sequence(scalar: bool) -> None:
    *operands, state = draw(17, scalar=scalar).arrays()
    o, final = everything((*operands, state), "xla", **alike(17))[:2]
    step = jax.jit(gated_linear_step)
    for t in range(17):
        o_t, state = step(*(x[:, t] for x in operands), state)
        assert error(o_t, o[:, t]) < 1e-6
    assert error(state, final) < 1e-6


@both_decays
def test_summaries_of_stretches_combine_to_that_of_the_whole(scalar: bool) -> None:
    case, named = draw(65, scalar=scalar, regime="sigmoid"), packed(65)
    arrays = case.arrays()
    tokens = tokens_of(jnp.asarray(named["segment_ids"]), jnp.asarray(named["mask"]))
    summarize = jax.jit(summary)
    one, two, three = (
        summarize(tuple(x[:, i] for x in arrays[:4]), jax.tree.map(lambda x, i=i: x[:, i], tokens))
        for i in (slice(0, 17), slice(17, 34), slice(34, 65))
    )
    whole, other = combine(combine(one, two), three), combine(one, combine(two, three))
    assert whole.decay.shape == (2, 4, 1 if scalar else 5)
    assert all(error(x, y) < 1e-6 for x, y in zip(whole, other, strict=True))
    assert error(enter(whole, arrays[4]), by_hand(case, **named)[1]) < 2e-6


@both_decays
def test_a_summary_is_differentiable(scalar: bool) -> None:
    arrays = draw(17, scalar=scalar).arrays()
    found = jax.jit(jax.grad(lambda x: enter(summary(x[:4], Tokens(None, None)), x[4]).sum()))(arrays)
    expected = jax.jit(jax.grad(lambda x: run(x, "reference")[1].sum()))(arrays)
    assert all(error(x, y) < 1e-5 for x, y in zip(found, expected, strict=True))


@both_decays
def test_bfloat16_operands_keep_a_float32_state(scalar: bool) -> None:
    *operands, state = draw(65, scalar=scalar, regime="sigmoid").arrays()
    rounded = [x.astype(jnp.bfloat16) for x in operands]
    found = everything((*rounded, state), "xla", **alike(65))
    expected = everything((*(x.astype(jnp.float32) for x in rounded), state), "reference", **alike(65))
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.float32, *[jnp.bfloat16] * 4, jnp.float32]
    assert error(found[1], expected[1]) < 2e-6
    assert all(error(x, y) < 1e-2 for x, y in zip(found, expected, strict=True))


@both_decays
def test_double_precision(scalar: bool) -> None:
    case = draw(65, scalar=scalar)
    with jax.enable_x64(True):
        found = run(case.arrays(jnp.float64))
    assert all(x.dtype == jnp.float64 and error(x, y) < 1e-13 for x, y in zip(found, by_hand(case), strict=True))


@pytest.mark.slow
@pytest.mark.exhaustive
@both_decays
def test_jit_and_vmap_change_nothing(scalar: bool) -> None:
    arrays = draw(17, scalar=scalar).arrays()
    jitted = everything(arrays, "xla", **alike(17))[:2]
    mapped = jax.jit(jax.vmap(lambda x: run(jax.tree.map(lambda y: y[None], x))))(arrays)
    for x, y, z in zip(run(arrays), jitted, mapped, strict=True):
        assert error(y, x) < 1e-6 and error(z[:, 0], x) < 1e-6


@both_decays
def test_one_head_of_keys_serves_all_heads(scalar: bool) -> None:
    case = draw(17, scalar=scalar, groups=1)
    assert all(error(x, y) < 2e-6 for x, y in zip(run(case.arrays()), by_hand(case), strict=True))


def test_products_of_decays_within_a_chunk() -> None:
    decay = np.random.default_rng(0).random((8, 3)).astype(np.float32)
    decay[5, 1] = 0
    start, end = halves(jnp.asarray(decay))[2]
    for t in range(8):
        block = t // 4 * 4
        np.testing.assert_allclose(start[t], decay[block : t + 1].prod(axis=0), rtol=1e-6)
        np.testing.assert_allclose(end[t], decay[t + 1 : block + 4].prod(axis=0), rtol=1e-6)
    one = decay[:, 1:2]
    with np.errstate(divide="ignore"):
        found = decay_products(jnp.asarray(np.log(one)))
    expected = [[one[j : i + 1].prod() if j <= i + 1 else 0 for j in range(9)] for i in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": jnp.zeros((2, 6, 2, 4))}, r"k: got float32\[2, 6, 2, 4\], expected a float array .* = \(2, 6, 2, 5\)"),
        ({"q": jnp.zeros((2, 6, 3, 5)), "k": jnp.zeros((2, 6, 3, 5))}, "q: got .* divides the 4 heads of v"),
        ({"v": jnp.zeros((2, 6, 4, 3), int)}, r"v: got int32\[2, 6, 4, 3\], expected a float array"),
        ({"log_decay": jnp.zeros((2, 6, 4, 2))}, r"log_decay: got .* \(2, 6, 4, 1 or 5\)"),
        (
            {"log_decay": jnp.full((2, 6, 4, 1), 0.5)},
            r"log_decay: got 0.5 at \[0, 0, 0, 0\], expected values of at most 0",
        ),
        ({"initial_state": jnp.zeros((2, 4, 3, 5))}, r"initial_state: got .* expected float32\[2, 4, 5, 3\]"),
        ({"initial_state": jnp.zeros((2, 4, 5, 3), jnp.bfloat16)}, "initial_state: got bfloat16"),
        ({"mask": jnp.ones((2, 5), bool)}, r"mask: got bool\[2, 5\], expected bool\[2, 6\]"),
        ({"segment_ids": jnp.ones((2, 6))}, r"segment_ids: got float32\[2, 6\], expected integer"),
        ({"implementation": "cuda"}, "implementation: got 'cuda'"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    q, k, v, log_decay, _ = draw(6, scalar=False).arrays()
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**({"q": q, "k": k, "v": v, "log_decay": log_decay} | change))


def test_a_positive_log_decay_at_a_masked_token_or_under_jit_is_not_looked_at() -> None:
    q, k, v, log_decay, _ = draw(6, scalar=True).arrays()
    log_decay = log_decay.at[:, 2].set(1.0)
    gated_linear_attention(q, k, v, log_decay, mask=jnp.ones((2, 6), bool).at[:, 2].set(False))
    jax.jit(gated_linear_attention)(q, k, v, log_decay)
    with pytest.raises(ValueError, match="log_decay: got 1 at"):
        gated_linear_step(q[:, 2], k[:, 2], v[:, 2], log_decay[:, 2], jnp.zeros((2, 4, 5, 3)))


MAPPED = """
import jax, jax.numpy as jnp
from lightnet.scan import gated_linear_attention

def gradient(*operands):
    return jax.grad(lambda *x: jnp.square(gated_linear_attention(*x)[0]).sum(), argnums=(0, 1, 2, 3))(*operands)

operands = [jax.random.normal(jax.random.key(i), (2, 64, 16, 2, 4)) for i in range(3)]
operands.append(-jnp.ones((2, 64, 16, 2, 4)))
mapped = jax.jit(jax.vmap(gradient))(*operands)
for one in range(2):
    alone = jax.jit(gradient)(*(x[one] for x in operands))
    assert all(jnp.allclose(a[one], b, rtol=1e-4, atol=1e-4) for a, b in zip(mapped, alone))
"""


def test_mapped_gradients_do_not_end_the_process():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    child = subprocess.run([sys.executable, "-c", MAPPED], env=environment, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr[-2000:]
