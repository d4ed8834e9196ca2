"""LightNet's compensated sums: 20,000 tokens in float32 against float64, where plain sums drift by 1e-4."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan import AdditiveState, additive_recurrence, additive_step
from lightnet.scan.additive import Remainder, compensated_end, compensated_step
from lightnet.scan.additive.compensated import fade_and_add, no_remainder

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
STEPS, KEY, VALUE = 20_000, 4, 3
EMPTY = AdditiveState(jnp.full((1, 1, KEY), -jnp.inf), jnp.zeros((1, 1, KEY)), jnp.zeros((1, 1, KEY, VALUE)))


def adverse(kind: str) -> np.ndarray:
    """Logits (L, K) whose sums are rounded the same way at each token."""
    t = np.arange(STEPS)[:, None]
    if kind == "all alike":
        return np.where(t == 0, 0, np.log([0.1, 0.3, 0.7, 0.9])).astype(np.float32)
    rates = {"creeping maximum": [1e-6, 1e-5, 1e-4, 1e-3], "rising maximum": [0.003, 0.03, 0.1, 0.6]}
    return (t * np.array(rates[kind])).astype(np.float32)


def exact(logits: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Totals (L, K) and states (L, K, V), step by step in float64."""
    maximum, total, state, found = np.full(KEY, -np.inf), np.zeros(KEY), np.zeros((KEY, VALUE)), []
    for a, x in zip(logits.astype(np.float64), v.astype(np.float64), strict=True):
        before, maximum = maximum, np.maximum(maximum, a)
        decay, key = np.exp(before - maximum), np.exp(a - maximum)
        total, state = decay * total + key, decay[:, None] * state + key[:, None] * x
        found.append((total, state))
    totals, states = zip(*found, strict=True)
    return np.array(totals), np.array(states)


def drift(state: AdditiveState, totals: np.ndarray, states: np.ndarray) -> tuple[float, float]:
    """Largest relative errors of totals and of states (L, 1, 1, ..)."""
    total = np.abs(np.asarray(state.total)[:, 0, 0] / totals - 1).max()
    apart = np.abs(np.asarray(state.state)[:, 0, 0] - states) / np.abs(states).max(axis=-1, keepdims=True)
    return total, apart.max()


def token(a: Any, x: Any) -> tuple[jax.Array, ...]:
    return jnp.ones((1, 1, KEY)), a[None, None], x[None, None]


@pytest.mark.parametrize("kind", ["all alike", "creeping maximum", "rising maximum"])
def test_sums_of_steps_do_not_drift_and_plain_ones_do(kind: str) -> None:
    logits, v = adverse(kind), np.full((STEPS, VALUE), [0.7, 1.1, 1.3], np.float32)

    def one(carry: Any, xs: Any) -> Any:
        (state, remainder), plain = carry
        _, *compensated = compensated_step(*token(*xs), state, remainder)
        plain = additive_step(*token(*xs), plain)[1]
        return (tuple(compensated), plain), (compensated[0], plain)

    start = ((EMPTY, no_remainder(EMPTY)), EMPTY)
    _, (compensated, plain) = jax.jit(lambda xs: jax.lax.scan(one, start, xs))((logits, v))
    expected = exact(logits, v)
    # What is left: the rounding of keys and decays themselves, and one of the sum.
    assert max(drift(compensated, *expected)) < 5e-7
    assert min(drift(plain, *expected)) > (1e-4 if kind != "rising maximum" else 5e-6)


def test_sums_of_many_short_calls_do_not_drift() -> None:
    """Two tokens a call, as in speculative decoding."""
    logits, v = adverse("all alike"), np.full((STEPS, VALUE), 1.1, np.float32)
    calls = [x.reshape(STEPS // 2, 1, 2, 1, -1) for x in (logits, v)]

    def one(carry: Any, xs: Any) -> Any:
        (state, remainder), plain = carry
        compensated = compensated_end(*xs, state, remainder)
        plain = additive_recurrence(jnp.ones_like(xs[0]), *xs, initial_state=plain)[1]
        return (compensated, plain), (compensated[0], plain)

    start = ((EMPTY, no_remainder(EMPTY)), EMPTY)
    _, (compensated, plain) = jax.jit(lambda xs: jax.lax.scan(one, start, xs))(calls)
    expected = [x[1::2] for x in exact(logits, v)]
    assert max(drift(compensated, *expected)) < 5e-7
    assert min(drift(plain, *expected)) > 5e-5


def random_call(length: int) -> tuple[list[jax.Array], AdditiveState]:
    """q, logits, v (2, L, 3, ..) and factors of two, and a state that is behind some tokens but in one row."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, 3, 2 * KEY), (2, length, 3, KEY), (2, length, 3, VALUE), (1, length, 1, 2, KEY)]
    given = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    state = AdditiveState(*(rng.uniform(1, 2, s).astype(np.float32) for s in ((2, 3, KEY),) * 2 + ((2, 3, 8, VALUE),)))
    state.maximum[0], state.total[0], state.state[0] = -np.inf, 0, 0
    return given, AdditiveState(*map(jnp.asarray, state))


def ends(length: int) -> tuple[Any, Any, tuple[jax.Array, AdditiveState]]:
    """Functions (logits, state, segment ids, mask) -> the last state, plain and compensated, and the first two."""
    (q, logits, v, factor), state = random_call(length)

    def plain(logits: Any, state: Any, ids: Any = None, mask: Any = None) -> Any:
        kwargs = {"key_factor": factor, "segment_ids": ids, "mask": mask}
        return additive_recurrence(q, logits, v, initial_state=state, **kwargs)[1]

    def compensated(logits: Any, state: Any, ids: Any = None, mask: Any = None) -> Any:
        kwargs = {"key_factor": factor, "segment_ids": ids, "mask": mask}
        return compensated_end(logits, v, state, no_remainder(state), **kwargs)[0]

    return plain, compensated, (logits, state)


@pytest.mark.parametrize("length", [9, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_ends_are_those_of_the_recurrence(length: int) -> None:
    """With key factors, behind tokens and behind none; with segments, and masks that leave one row no token."""
    *functions, given = ends(length)
    ids = jnp.asarray(np.random.default_rng(7).integers(0, 2, (2, length)))
    mask = jnp.asarray(np.arange(length) != np.array([[0], [20]]))
    for per_token in ((), (ids, mask)):
        expected, found = (jit(f)(*given, *per_token) for f in functions)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), found, expected)


@pytest.mark.slow
def test_gradients_of_ends_are_those_of_the_recurrence() -> None:
    *functions, given = ends(9)

    def loss(end: AdditiveState) -> jax.Array:
        """Of the log normaliser and of what would be read, which do not depend on the maximum as a unit."""
        z, read = end.maximum + jnp.log(end.total), end.state / jnp.tile(end.total, 2)[..., None]
        return jnp.sin(z).sum() + jnp.sin(read).sum()

    slopes = [jit(jax.grad(lambda *x, f=f: loss(f(*x)), argnums=(0, 1)))(*given) for f in functions]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *slopes)


def test_a_step_is_that_of_the_recurrence() -> None:
    (q, logits, v, factor), state = random_call(1)
    now = (q[:, 0], logits[:, 0], v[:, 0])
    found = compensated_step(*now, state, no_remainder(state), key_factor=factor[:, 0])[:2]
    expected = additive_step(*now, state, key_factor=factor[:, 0])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), found, expected)


def test_padding_leaves_sums_and_remainders_as_they_are() -> None:
    """To the bit."""
    (_, logits, v, factor), state = random_call(2)
    end = jit(partial(compensated_end, key_factor=factor))
    before = end(logits, v, state, Remainder(3e-8 * state.total, -2e-8 * state.state))
    after = end(logits, v, *before, mask=jnp.zeros((2, 2), bool))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("decay", [0.0, 1e-7, 0.3, 0.499, 0.501, 0.9, 1 - 1e-6, 1.0])
def test_sum_and_remainder_are_the_exact_sum(decay: float) -> None:
    """Nothing is lost of what neither fades nor is added."""
    rng = np.random.default_rng(0)
    x, y = (np.float32(rng.standard_normal(1000) * 10.0 ** rng.integers(-3, 4, 1000)) for _ in range(2))
    change = np.float64(decay) - 1
    given = (x, np.zeros_like(x), np.float32(decay), np.float32(change), y)
    rounded, left = (np.asarray(part, np.float64) for part in jax.jit(fade_and_add)(*given))
    error = np.abs(rounded + left - ((1 + change) * x.astype(np.float64) + y))
    lost = min(-change, 1 + change) if change > -0.5 else 1 + change
    assert np.all(error <= 2.0**-22 * (lost * np.abs(x) + np.abs(y)))
    if decay == 1:
        assert not error[np.abs(x) > np.abs(y)].any() and np.abs(left).max() > 0


def test_a_remainder_of_another_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"remainder\.total: got float32\[2, 1, 4\], expected float32\[1, 1, 4\]"):
        compensated_step(
            *token(jnp.zeros(KEY), jnp.zeros(VALUE)), EMPTY, Remainder(jnp.zeros((2, 1, KEY)), EMPTY.state)
        )
    with pytest.raises(ValueError, match="remainder: got NoneType, expected a Remainder"):
        compensated_step(*token(jnp.zeros(KEY), jnp.zeros(VALUE)), EMPTY, None)
