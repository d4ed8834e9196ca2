"""LightNet's causal attention is one function in many forms, and its weights are what the equations say."""

import itertools
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import DTypeLike

from lightnet.scan import additive_global, additive_recurrence, gated_linear_attention, linear_scan
from lightnet.scan.additive import AdditiveState, merge, xla
from lightnet.scan.recurrence import Tokens

# Code generation is most of the time that these tests take; the numbers do not depend on it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY, VALUE = 5, 3
DOUBLE, SINGLE = (np.float64, 1e-12), (np.float32, 5e-6)
each_implementation = pytest.mark.parametrize("implementation", ["xla", "reference"])


CAUSAL = {
    name: jit(lambda *given, name=name: additive_recurrence(*given, implementation=name)[0])
    for name in ("reference", "xla")
}


def example(length: int, dtype: DTypeLike = np.float64, *, spread: float = 2.0, seed: int = 0) -> list[np.ndarray]:
    """Random queries (L, K), logits (L, K) and values (L, V) of one head."""
    rng = np.random.default_rng(seed + length)
    q, a, v = (rng.standard_normal((length, size)) for size in (KEY, KEY, VALUE))
    return [x.astype(dtype) for x in (q, spread * a, v)]


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """The largest error of each leaf, relative to its largest number."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        assert np.abs(x - y).max() <= tolerance * np.abs(y).max()


def gate(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key exp(a_t - z_t) and log decay z_{t-1} - z_t over axis 0, the latter 0 at the first token."""
    z = np.logaddexp.accumulate(logits, axis=0)
    return np.exp(logits - z), np.concatenate([0 * z[:1], z[:-1] - z[1:]])


def one_head(*arrays: np.ndarray) -> list[jax.Array]:
    """(L, ...) as (1, L, 1, ...)."""
    return [jnp.asarray(x)[None, :, None] for x in arrays]


def direct(q: np.ndarray, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The definition: for each token a softmax over those so far, for each channel by itself."""
    seen = np.tril(np.ones((len(a), len(a)), bool))[:, :, None]
    logits = np.where(seen, a[None], -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.einsum("tk,tjk,jv->tv", q, weights / weights.sum(axis=1, keepdims=True), v)


def naive(q: np.ndarray, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    keys = np.exp(a)
    return np.einsum("tk,tkv->tv", q / keys.cumsum(axis=0), (keys[:, :, None] * v[:, None]).cumsum(axis=0))


def running_maximum(q: np.ndarray, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    maximum, total, state, o = np.full_like(a[0], -np.inf), 0 * a[0], 0 * a[0][:, None] * v[0], np.empty_like(v)
    for t in range(len(a)):
        before, maximum = maximum, np.maximum(maximum, a[t])
        decay, key = np.exp(before - maximum), np.exp(a[t] - maximum)
        total, state = decay * total + key, decay[:, None] * state + key[:, None] * v[t]
        o[t] = q[t] / total @ state
    return o


def pairwise(q: np.ndarray, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    z = np.logaddexp.accumulate(a, axis=0)
    seen = np.tril(np.ones((len(a), len(a)), bool))[:, :, None]
    return np.einsum("tk,tjk,jv->tv", q, np.exp(np.where(seen, a[None] - z[:, None], -np.inf)), v)


def gated(q: np.ndarray, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    key, log_decay = gate(a)
    return jit(gated_linear_attention)(*one_head(q, key, v, log_decay))[0][0, :, 0]


def associative(q: np.ndarray, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    tokens = AdditiveState(a, np.ones_like(a), np.broadcast_to(v[:, None], (len(a), KEY, VALUE)))
    _, total, state = jit(partial(jax.lax.associative_scan, merge))(jax.tree.map(jnp.asarray, tokens))
    return np.einsum("tk,tkv->tv", q / total, state)


def recurrence(q: np.ndarray, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    return jit(partial(additive_recurrence, implementation="reference"))(*one_head(q, a, v))[0][0, :, 0]


FORMS = [gated, recurrence, naive, running_maximum, pairwise, associative]


@pytest.mark.parametrize("form", FORMS, ids=[form.__name__ for form in FORMS])
@pytest.mark.parametrize(("dtype", "tolerance"), [DOUBLE, SINGLE])
def test_every_form_is_the_masked_softmax(form: Callable[..., Any], dtype: DTypeLike, tolerance: float) -> None:
    with jax.enable_x64(dtype == np.float64):
        q, a, v = example(45, dtype)
        o = form(q, a, v)
        assert o.dtype == dtype
        assert_close(o, direct(*(x.astype(np.float64) for x in (q, a, v))), tolerance)


# Chunk and block; the last of the first length is the chunk that would be taken, of 48 tokens with 3 of padding.
CHUNKS = [
    (45, 16, 8),
    (45, 1, 1),
    (45, 8, 8),
    (45, 45, 45),
    (45, 64, 8),
    (32, 1, 1),
    (32, 8, 8),
    (32, 16, 8),
    (32, 32, 8),
]


@pytest.mark.parametrize(("length", "chunk", "block"), CHUNKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [DOUBLE, SINGLE])
@pytest.mark.parametrize("spread", [2.0, 1000.0])
def test_chunks_of_any_size_are_the_masked_softmax(
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    chunk: int,
    block: int,
    dtype: DTypeLike,
    tolerance: float,
    spread: float,
) -> None:
    monkeypatch.setattr(xla, "CHUNK", chunk)
    monkeypatch.setattr(xla, "BLOCK", block)
    empty = AdditiveState(np.full((1, 1, KEY), -np.inf), np.zeros((1, 1, KEY)), np.zeros((1, 1, KEY, VALUE)))
    with jax.enable_x64(dtype == np.float64):
        q, a, v = example(length, dtype, spread=spread)
        state = jax.tree.map(lambda x: jnp.asarray(x, dtype), empty)
        o, _ = jit(lambda *given: xla.additive_xla((*given, None), state, Tokens(None, None)))(*one_head(q, a, v))
        assert o.dtype == dtype
        assert_close(o[0, :, 0], direct(*(x.astype(np.float64) for x in (q, a, v))), tolerance)


@pytest.mark.parametrize("implementation", list(CAUSAL))
def test_later_tokens_have_no_gradient_exactly(implementation: str) -> None:
    @jit
    def gradients(given: list[jax.Array], bar: np.ndarray) -> Any:
        return jax.vjp(lambda *x: additive_recurrence(*x, implementation=implementation)[0], *given)[1](bar)

    with jax.enable_x64(True):
        for spread in (2.0, 1000.0):
            given = one_head(*example(70, spread=spread))
            for t in (0, 6, 7, 8, 40, 63, 64, 69):
                bar = np.zeros((1, 70, 1, VALUE))
                bar[:, t] = 1
                q_bar, a_bar, v_bar = gradients(given, bar)
                assert not q_bar[:, :t].any() and not any(x[:, t + 1 :].any() for x in (q_bar, a_bar, v_bar))
                seen = v_bar[:, : t + 1]
                assert q_bar[:, t].all() and (seen.all() if spread == 2.0 else seen.any())


FUTURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "larger": lambda x: x + 5,
    "other": lambda x: x[::-1],
    "much larger": lambda x: x + 500,
    "unseen": lambda x: x - np.inf,
}


@pytest.mark.parametrize("future", list(FUTURES))
@pytest.mark.parametrize("spread", [2.0, 20.0])
def test_what_comes_later_does_not_change_a_bit_of_what_was(spread: float, future: str) -> None:
    """Whatever it does to the chunk that it shares: a chunk's reference is the past's, and unseen keys count as 0.

    With logits of spread 20 the chunks of 64 have tokens that the quick form cannot reach, and others that it can.
    """
    q, a, v = example(150, np.float32, spread=spread)
    for t in (1, 63, 64, 70, 100, 128, 149):
        later_a, later_q, later_v = a.copy(), q.copy(), v.copy()
        later_a[t:], later_q[t:], later_v[t:] = FUTURES[future](a[t:]), q[t:] + 1, v[t:][::-1] - 7
        for name in ("reference", "xla"):
            causal = CAUSAL[name]
            before, after = (np.asarray(causal(*one_head(*x)))[0] for x in ((q, a, v), (later_q, later_a, later_v)))
            np.testing.assert_array_equal(before[:t], after[:t])
            assert (before[t:] != after[t:]).any() or future == "unseen"


def test_what_is_not_a_number_does_not_reach_earlier_tokens_or_chunks() -> None:
    q, a, v = example(150, np.float32)
    for t in (64, 70, 128):
        poisoned = [np.where(np.arange(150)[:, None] < t, x, np.nan) for x in (q, a, v)]
        for name, exact in (("reference", t), ("xla", t // xla.CHUNK * xla.CHUNK)):
            before, after = (np.asarray(CAUSAL[name](*one_head(*given))) for given in ((q, a, v), poisoned))
            np.testing.assert_array_equal(before[:, :exact], after[:, :exact])
            assert np.isnan(after[:, t:]).all()


@pytest.mark.parametrize("gap", [1.0, 10.0, 30.0, 1e4])
@pytest.mark.parametrize("implementation", list(CAUSAL))
def test_one_dominant_logit_decides(gap: float, implementation: str) -> None:
    """o_t is (sum of q) v_p, but for weights of at most exp(-gap) each."""
    at = 41
    with jax.enable_x64(True):
        q, a, v = example(70)
        a[at] = a.max() + gap
        o = CAUSAL[implementation](*one_head(q, a, v))[0, :, 0]
        rest = np.minimum(1, np.arange(at, 70) * np.exp(-gap))
        bound = np.abs(q[at:]).sum(axis=1) * (2 * np.abs(v).max() * rest + 1e-13)
        assert np.all(np.abs(o[at:] - q[at:].sum(axis=1)[:, None] * v[at]).max(axis=1) <= bound)
        assert_close(o[:at], direct(q[:at], a[:at], v[:at]), 1e-12)


def weights_of(function: Callable[..., Any], a: np.ndarray) -> np.ndarray:
    """(K, t, j): each channel has a head whose query asks for it alone, and token j has the unit vector j for value."""
    length, key = a.shape
    q = np.broadcast_to(np.eye(key), (1, length, key, key))
    logits = np.broadcast_to(a[None, :, None], (1, length, key, key))
    v = np.broadcast_to(np.eye(length)[None, :, None], (1, length, key, length))
    return np.asarray(function(*map(jnp.asarray, (q, logits, v))))[0].swapaxes(0, 1)


@each_implementation
def test_weights_are_convex(implementation: str) -> None:
    """k~ in (0, 1], k~_1 = 1, exp(g) + k~ = 1; and outputs are bounded by the values."""
    causal = CAUSAL[implementation]
    with jax.enable_x64(True):
        q, a, v = example(70)
        weights = weights_of(causal, a)
        key = np.diagonal(weights, axis1=1, axis2=2)
        assert np.all((key > 0) & (key <= 1)) and np.all(key[:, 0] == 1)
        assert not np.triu(weights, 1).any() and np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=0, atol=1e-14)
        # A token scales all that were before it by exp(g) = 1 - k~.
        before = np.tril((1 - key[:, 1:, None]) * weights[:, :-1])
        np.testing.assert_allclose(np.tril(weights[:, 1:]), before, rtol=0, atol=1e-14)
        np.testing.assert_allclose(np.exp(gate(a)[1][1:]) + gate(a)[0][1:], 1, rtol=0, atol=1e-14)
        np.testing.assert_allclose(key.T, gate(a)[0], rtol=0, atol=1e-14)

        constant = causal(*one_head(q, a, np.broadcast_to([2.0, -3.0, 0.5], v.shape)))[0, :, 0]
        np.testing.assert_allclose(constant, q.sum(axis=1)[:, None] * [2.0, -3.0, 0.5], rtol=0, atol=1e-13)
        bound = np.abs(q).sum(axis=1) * np.maximum.accumulate(np.abs(v).max(axis=1))
        assert np.all(np.abs(causal(*one_head(q, a, v))[0, :, 0]).max(axis=1) <= bound)


@each_implementation
def test_weights_are_a_function_of_one_token_over_a_function_of_the_other(implementation: str) -> None:
    """delta(j) / g(t); so g(t) may be that of the last token, which is the form without an order."""
    with jax.enable_x64(True):
        _, a, _ = example(70)
        delta, total = np.exp(a).T, np.exp(a).cumsum(axis=0).T
        causal = weights_of(CAUSAL[implementation], a)
        np.testing.assert_allclose(causal, np.tril(delta[:, None] / total[:, :, None]), rtol=1e-12, atol=0)
        assert causal.max() <= 1
        order_free = weights_of(jit(partial(additive_global, implementation=implementation)), a)
        expected = np.broadcast_to((delta / total[:, -1:])[:, None], order_free.shape)
        np.testing.assert_allclose(order_free, expected, rtol=1e-12, atol=0)


@each_implementation
def test_it_is_a_gated_recurrence_whose_gate_the_logits_decide(implementation: str) -> None:
    """Gated linear attention, and that of HGRN2 with forget gate sigmoid(z_{t-1} - a_t): values, state, gradients."""
    rng = np.random.default_rng(0)

    def lightnet(q: jax.Array, a: jax.Array, v: jax.Array) -> Any:
        o, final = additive_recurrence(q, a, v, implementation=implementation)
        return o, final.state / final.total[..., None]

    def linear_attention(q: jax.Array, a: jax.Array, v: jax.Array) -> Any:
        z = jax.lax.cumlogsumexp(a, axis=1)
        log_decay = jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :-1] - z[:, 1:]], axis=1)
        return gated_linear_attention(q, jnp.exp(a - z), v, log_decay, implementation=implementation)

    def hgrn2(q: jax.Array, a: jax.Array, v: jax.Array) -> Any:
        z = jax.lax.cumlogsumexp(a, axis=1)
        forget = jnp.concatenate([jnp.zeros_like(z[:, :1]), jax.nn.sigmoid(z[:, :-1] - a[:, 1:])], axis=1)

        def step(state: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            q, f, v = now
            state = f[..., None] * state + (1 - f)[..., None] * v[..., None, :]
            return state, jnp.einsum("bhk,bhkv->bhv", q, state)

        over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (q, forget, v))
        final, o = jax.lax.scan(step, jnp.zeros((2, 2, KEY, VALUE)), over_time)
        return o.swapaxes(0, 1), final

    with jax.enable_x64(True):
        q, a, v = (jnp.asarray(rng.standard_normal((2, 17, 2, size))) for size in (KEY, KEY, VALUE))
        bars = tuple(jnp.asarray(rng.standard_normal(s)) for s in ((2, 17, 2, VALUE), (2, 2, KEY, VALUE)))

        def run(function: Callable[..., Any]) -> Any:
            out, pull = jax.vjp(function, q, 2 * a, v)
            return out, pull(bars)

        expected = jit(partial(run, lightnet))()
        for other in (linear_attention, hgrn2):
            assert_close(jit(partial(run, other))(), expected, 1e-12)


def differences(one: Any, other: Any) -> list[np.ndarray]:
    return [np.asarray(x) != np.asarray(y) for x, y in zip(one, other, strict=True)]


def test_states_are_a_commutative_monoid() -> None:
    """Pieces of any length, merged in any order and grouping, are the state of the whole; no tokens are its unit."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        _, a, v = example(40, spread=50.0)
        a[rng.random(a.shape) < 0.2] = -np.inf
        a[10:12] = -np.inf

        def state(tokens: np.ndarray) -> AdditiveState:
            q = jnp.ones((1, len(tokens), 1, KEY))
            return additive_recurrence(q, *one_head(a[tokens], v[tokens]), implementation="reference")[1]

        pieces = [state(part) for part in np.split(np.arange(40), [3, 4, 10, 12, 30])]
        whole = state(np.arange(40))
        merged = jit(merge)
        for _ in range(5):
            left = reduce(merged, [pieces[i] for i in rng.permutation(len(pieces))])
            shuffled = [pieces[i] for i in rng.permutation(len(pieces))]
            right = reduce(lambda later, one: merged(one, later), shuffled)
            halves = merged(reduce(merged, shuffled[:3]), reduce(merged, shuffled[3:]))
            for found in (left, right, halves):
                assert_close(found, whole, 1e-12)
        assert_close(state(rng.permutation(40)), whole, 1e-12)
        nothing = AdditiveState(*(jnp.full_like(x, y) for x, y in zip(whole, (-jnp.inf, 0, 0), strict=True)))
        for found in (merge(nothing, whole), merge(whole, nothing), whole):
            assert not any(x.any() for x in differences(found, whole))
        # Operation by operation, without fused multiply-adds, the order of two does not change a bit.
        for one, other in itertools.pairwise(pieces):
            assert not any(x.any() for x in differences(merge(one, other), merge(other, one)))


@each_implementation
def test_a_linear_recurrence_is_a_sum_weighted_by_products_of_decays(implementation: str) -> None:
    """s_t = sum_j (prod_{i=j+1..t} a_i) b_j x_j; with b = 1 - a and a_1 = 0 the weights sum to 1."""
    rng = np.random.default_rng(0)
    decay = rng.random((70, KEY))
    decay[0] = 0
    entering, x = 1 - decay, rng.standard_normal((70, KEY))
    weights = np.zeros((70, 70, KEY))
    for t in range(70):
        for j in range(t + 1):
            weights[t, j] = decay[j + 1 : t + 1].prod(axis=0) * entering[j]
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-14)
    with jax.enable_x64(True):
        scan = jit(lambda a, b: linear_scan(a=a, b=b, implementation=implementation)[0])
        one, of_x = (scan(decay[None], (entering * y)[None])[0] for y in (np.ones_like(x), x))
        assert_close(one, np.ones((70, KEY)), 1e-14)
        assert_close(of_x, np.einsum("tjk,jk->tk", weights, x), 1e-13)
