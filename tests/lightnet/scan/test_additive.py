"""LightNet's causal attention: against a float64 loop and each other, in value and gradient."""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lightnet.scan.additive import ADDITIVE, AdditiveState, additive_recurrence, additive_step, merge
from lightnet.scan.recurrence import tokens_of

# Code generation is most of the time that these tests take; the numbers do not depend on it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BATCH, HEADS, KEY, VALUE, FACTORS = 2, 2, 3, 4, 2


def example(
    length: int = 70, *, seed: int = 0, spread: float = 2.0, packed: bool = True, state: bool = True
) -> dict[str, Any]:
    """Random arguments of `additive_recurrence`, all of them given, so that tests share compiled programs.

    With `packed` there are several segments, and masked tokens, the first of a row included. Without `state` it is the
    empty one.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    ids, mask = np.zeros((BATCH, length), int), np.ones((BATCH, length), bool)
    if packed:
        ids, mask = (rng.random((BATCH, length)) < 0.1).cumsum(axis=1) % 2, rng.random((BATCH, length)) < 0.8
        mask[:, 0] = [False, True]
    carried = AdditiveState(
        normal(BATCH, HEADS, KEY) if state else np.full((BATCH, HEADS, KEY), -np.inf, np.float32),
        np.exp(normal(BATCH, HEADS, KEY)) * state,
        normal(BATCH, HEADS, FACTORS * KEY, VALUE) * state,
    )
    arguments = {
        "q": normal(BATCH, length, HEADS, FACTORS * KEY),
        "key_logits": np.float32(spread) * normal(BATCH, length, HEADS, KEY),
        "v": normal(BATCH, length, HEADS, VALUE),
        "key_factor": normal(BATCH, length, HEADS, FACTORS, KEY),
        "initial_state": carried,
        "segment_ids": ids,
        "mask": mask,
    }
    return jax.tree.map(jnp.asarray, arguments)


def plain(length: int) -> dict[str, Any]:
    """Nothing given that need not be."""
    arguments = example(length, packed=False, seed=length)
    return {name: arguments[name] for name in ("key_logits", "v")} | {"q": arguments["q"][..., :KEY]}


def by_loop(arguments: dict[str, Any]) -> tuple[np.ndarray, AdditiveState]:
    """Every weight of every token by itself, in float64; the state that enters is one more token of its run."""
    q, logits, v = (np.asarray(arguments[name], np.float64) for name in ("q", "key_logits", "v"))
    batch, length, heads, key = logits.shape
    factors = q.shape[-1] // key
    factor = np.asarray(arguments.get("key_factor", np.ones((1, length, 1, 1, key))), np.float64)
    factor = np.broadcast_to(factor, (batch, length, heads, factors, key))
    ids = np.asarray(arguments.get("segment_ids", np.zeros((batch, length), int)))
    mask = np.asarray(arguments.get("mask", np.ones((batch, length), bool)))
    start = arguments.get("initial_state")
    out = np.zeros((batch, length, heads, v.shape[-1]))
    final = AdditiveState(
        np.full((batch, heads, key), -np.inf),
        np.zeros((batch, heads, key)),
        np.zeros((batch, heads, factors * key, v.shape[-1])),
    )
    for b in range(batch):
        seen: list[int] = []
        entered = start is not None
        for t in np.flatnonzero(mask[b]):
            if seen and ids[b, seen[-1]] != ids[b, t]:
                seen, entered = [], False
            seen.append(t)
            carried = [np.asarray(x[b], np.float64) for x in start] if start is not None and entered else None
            tokens = np.concatenate([logits[b, seen], carried[0][None]]) if carried else logits[b, seen]
            maximum = tokens.max(axis=0)
            weights = np.exp(tokens - np.where(np.isinf(maximum), 0, maximum))
            counts = np.concatenate([np.ones((len(seen), heads, key)), carried[1][None]]) if carried else 1
            total = (weights * counts).sum(axis=0)
            keys = (factor[b, seen] * weights[: len(seen), :, None]).reshape(len(seen), heads, -1)
            inner = np.einsum("jhk,jhv->hkv", keys, v[b, seen])
            if carried:
                inner += np.tile(weights[-1], factors)[..., None] * carried[2]
            divisor = np.tile(np.where(total > 0, total, 1), factors)
            out[b, t] = np.einsum("hk,hkv->hv", q[b, t] / divisor, inner)
            final.maximum[b], final.total[b], final.state[b] = maximum, total, inner
        if not mask[b].any() and start is not None:
            for x, y in zip(final, start, strict=True):
                x[b] = y[b]
    return out, final


FLAGS = ("segment_ids", "mask")


@partial(jit, static_argnames="implementation")
def differentiate(arguments: dict[str, Any], implementation: str, of_state: float = 1.0) -> Any:
    """Outputs, and gradients of all that has one, for random gradients of the outputs, the state's times `of_state`."""
    floats = {name: x for name, x in arguments.items() if name not in FLAGS}
    flags = {name: x for name, x in arguments.items() if name in FLAGS}
    out, pull = jax.vjp(lambda f: additive_recurrence(**f, **flags, implementation=implementation), floats)
    rng = np.random.default_rng(1)
    o_bar, state_bar = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), out)
    return out, pull((o_bar, jax.tree.map(lambda x: of_state * x, state_bar)))[0]


@partial(jit, static_argnames="implementation")
def values(arguments: dict[str, Any], implementation: str) -> Any:
    return additive_recurrence(**arguments, implementation=implementation)


def double(arguments: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, arguments)


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Relative Frobenius error of each leaf; infinities at the same places."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert not np.isnan(x).any()
        np.testing.assert_array_equal(np.isinf(x), np.isinf(y))
        x, y = np.where(np.isinf(x), 0, x), np.where(np.isinf(y), 0, y)
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y) + 1e-30


@pytest.mark.parametrize("arguments", [example(13), plain(13)], ids=["all", "plain"])
def test_the_reference_is_the_weighted_mean(arguments: dict[str, Any]) -> None:
    assert_close(values(arguments, "reference"), by_loop(arguments), 1e-6)


@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 65])
def test_xla_is_the_reference(length: int) -> None:
    arguments = example(length, seed=length) if length % 2 else plain(length)
    assert_close(values(arguments, "xla"), values(arguments, "reference"), 1e-6)


@pytest.mark.parametrize("arguments", [plain(1), example(70)], ids=["plain", "all"])
def test_gradients_are_those_of_the_reference(arguments: dict[str, Any]) -> None:
    assert_close(differentiate(arguments, "xla"), differentiate(arguments, "reference"), 3e-6)


@pytest.mark.parametrize("implementation", ["xla", "reference", "pallas_interpret"])
def test_where_there_is_nothing_the_gradient_of_the_last_state_is_that_of_the_first(implementation: str) -> None:
    """A masked row, a channel of logits of -inf, and the same behind a reset, where the state depends on nothing."""
    arguments = example(20, packed=False, state=False)
    arguments["mask"] = arguments["mask"].at[0].set(False).at[1, 3].set(False)
    arguments["key_logits"] = arguments["key_logits"].at[1, :, 0, 1].set(-jnp.inf)
    for ids, counts in ((arguments["segment_ids"], 1), (arguments["segment_ids"].at[1, 7:].set(1), 0)):
        (o, final), gradients = differentiate(arguments | {"segment_ids": ids}, implementation)
        expected = differentiate(arguments | {"segment_ids": ids}, "reference")
        assert_close(((o, final), gradients), expected, 3e-6)
        rng = np.random.default_rng(1)
        _, bars = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), (o, final))
        found = gradients["initial_state"]
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), found, bars)
        jax.tree.map(lambda x, y, n=counts: np.testing.assert_array_equal(x[1, 0, 1], n * y[1, 0, 1]), found, bars)
        assert not gradients["key_logits"][1, :, 0, 1].any()


def test_a_factor_that_rows_and_heads_share_has_the_gradients_of_all() -> None:
    arguments = example()
    shared = arguments | {"key_factor": arguments["key_factor"][:1, :, :1]}
    written_out = arguments | {"key_factor": jnp.broadcast_to(shared["key_factor"], arguments["key_factor"].shape)}
    out, gradients = differentiate(shared, "xla")
    expected, each = differentiate(written_out, "xla")
    each["key_factor"] = each["key_factor"].sum(axis=(0, 2), keepdims=True)
    assert_close((out, gradients), (expected, each), 2e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_gradients_are_finite_differences(implementation: str) -> None:
    with jax.enable_x64(True):
        arguments = double(example())
        out, gradients = differentiate(arguments, implementation)
        assert out[0].dtype == out[1].total.dtype == jnp.float64
        rng = np.random.default_rng(1)
        bars = jax.tree.map(lambda x: rng.normal(size=x.shape), out)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), gradients)

        def moved(step: float) -> Any:
            there = jax.tree.map(lambda x, d: x + step * d, {name: arguments[name] for name in gradients}, direction)
            return values(arguments | there, implementation)

        slope = sum(np.vdot(g, (x - y) / 2e-6) for g, x, y in _together(bars, moved(1e-6), moved(-1e-6)))
        np.testing.assert_allclose(slope, sum(np.vdot(g, d) for g, d in _together(gradients, direction)), rtol=1e-7)


def _together(*trees: Any) -> Any:
    return zip(*map(jax.tree.leaves, trees), strict=True)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


REGIMES = {
    "equal": lambda t, rng: 0 * t,
    "rising": lambda t, rng: 200 * t,
    "falling": lambda t, rng: -200 * t,
    "rising far": lambda t, rng: 3000 * t,
    "spread 50": lambda t, rng: 50 * rng.normal(size=t.shape),
    "spread 1000": lambda t, rng: 1000 * rng.normal(size=t.shape),
    "unseen": lambda t, rng: np.where(rng.random(t.shape) < 0.5, -np.inf, rng.normal(size=t.shape)),
}


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_no_logits_are_too_large(implementation: str) -> None:
    arguments = example(packed=False, state=False)
    t = np.broadcast_to(np.linspace(0, 1, 70)[None, :, None, None], arguments["key_logits"].shape)
    for regime in REGIMES.values():
        arguments["key_logits"] = jnp.asarray(regime(t, np.random.default_rng(0)), jnp.float32)
        out, gradients = differentiate(arguments, implementation, of_state=0.0)
        assert_close(out, by_loop(arguments), 2e-6)
        with jax.enable_x64(True):
            expected = differentiate(double(arguments), "reference", of_state=0.0)[1]
        # One number for all: that of the logits alone is 0 up to rounding where each channel has one token.
        assert_close(_flat(gradients), _flat(expected), 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_shift_of_the_logits_changes_nothing(implementation: str) -> None:
    arguments = example(packed=False, state=False)
    o, _ = values(arguments, implementation)
    shift = jnp.array([50.0, -50.0, 0.0])
    shifted, _ = values(arguments | {"key_logits": arguments["key_logits"] + shift[None, None, None]}, implementation)
    assert_close(shifted, o, 1e-5)
    gradients = differentiate(arguments, implementation, of_state=0.0)[1]["key_logits"]
    np.testing.assert_allclose(gradients.sum(axis=1), 0, atol=1e-5)


def test_what_masked_tokens_contain_does_not_matter() -> None:
    arguments = example()
    masked = ~arguments["mask"]
    poisoned = dict(arguments)
    for name in ("q", "key_logits", "v", "key_factor"):
        where = masked.reshape(masked.shape + (1,) * (arguments[name].ndim - 2))
        poisoned[name] = jnp.where(where, jnp.nan, arguments[name])
    for implementation in ("reference", "xla"):
        (out, gradients), (same, poisoned_gradients) = (differentiate(a, implementation) for a in (arguments, poisoned))
        for x, y in _together((out, gradients), (same, poisoned_gradients)):
            np.testing.assert_array_equal(x, y)
        assert not out[0][masked].any()
        assert not any(gradients[name][masked].any() for name in ("q", "key_logits", "v", "key_factor"))


@pytest.mark.parametrize("left", [0, 5, 53])
def test_padding_is_exact(left: int) -> None:
    arguments, around = example(17, packed=False), example(70, packed=False)
    inside = slice(left, left + 17)
    padded = {
        name: x if name == "initial_state" else x.at[:, inside].set(arguments[name]) for name, x in around.items()
    } | {"initial_state": arguments["initial_state"]}
    padded["mask"] = jnp.zeros_like(padded["mask"]).at[:, inside].set(True)
    o, final = values(padded, "xla")
    assert_close((o[:, inside], final), values(arguments, "xla"), 1e-6)
    o, final = values(padded | {"mask": jnp.zeros_like(padded["mask"])}, "xla")
    assert not o.any()
    for x, y in _together(final, arguments["initial_state"]):
        np.testing.assert_array_equal(x, y)


def _cut(arguments: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: x if name == "initial_state" else x[:, start:stop] for name, x in arguments.items()}


@pytest.mark.parametrize("at", [1, 64])
def test_a_carried_state_goes_on_where_it_stopped(at: int) -> None:
    arguments = example()
    arguments["segment_ids"] = jnp.zeros((BATCH, 70), int)
    first, state = values(_cut(arguments, 0, at), "xla")
    second, final = values(_cut(arguments, at, 70) | {"initial_state": state}, "xla")
    assert_close((jnp.concatenate([first, second], axis=1), final), values(arguments, "xla"), 1e-6)


def test_packed_segments_are_separate_sequences() -> None:
    arguments = example(51, packed=False, state=False)
    ids = jnp.broadcast_to(jnp.repeat(jnp.array([4, 9, 4]), 17, total_repeat_length=51), (BATCH, 51))
    o, final = values(arguments | {"segment_ids": ids}, "xla")
    parts = [values(_cut(arguments, start, start + 17), "xla") for start in (0, 17, 34)]
    assert_close((o, final), (jnp.concatenate([part for part, _ in parts], axis=1), parts[-1][1]), 1e-6)


def test_steps_are_the_sequence() -> None:
    arguments = example(17, packed=False, seed=17)
    state, outputs = arguments["initial_state"], []
    step = jit(additive_step)
    for t in range(17):
        q, logits, v, factor = (arguments[name][:, t] for name in ("q", "key_logits", "v", "key_factor"))
        o, state = step(q, logits, v, state, key_factor=factor)
        outputs.append(o)
    assert_close((jnp.stack(outputs, axis=1), state), values(arguments, "xla"), 1e-6)


def test_the_summary_of_a_stretch_enters_as_the_stretch_does() -> None:
    arguments = example()
    _, final = values(arguments, "reference")
    tokens = tokens_of(arguments["segment_ids"], arguments["mask"])
    both = tuple(arguments[name] for name in ("q", "key_logits", "v", "key_factor")), tokens

    part = jit(lambda start: ADDITIVE.summary(*jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, 10, 1), both)))
    parts = [part(start) for start in range(0, 70, 10)]
    left, right = reduce(ADDITIVE.combine, parts), reduce(lambda x, y: ADDITIVE.combine(y, x), parts[::-1])
    assert_close(ADDITIVE.enter(left, arguments["initial_state"]), final, 1e-6)
    assert_close(ADDITIVE.enter(right, arguments["initial_state"]), final, 1e-6)
    one, other = parts[0].last, parts[2].last
    assert_close(merge(one, other), merge(other, one), 1e-7)


def test_half_precision_keeps_its_state_in_single() -> None:
    arguments = example(packed=False)
    half = {n: x.astype(jnp.bfloat16) if n in ("q", "key_logits", "v") else x for n, x in arguments.items()}
    o, final = values(half, "xla")
    assert o.dtype == jnp.bfloat16 and final.total.dtype == jnp.float32
    rounded = {n: x.astype(jnp.float32) if n in ("q", "key_logits", "v") else x for n, x in half.items()}
    expected, expected_final = values(rounded, "xla")
    assert_close(o, expected, 4e-3)
    assert_close(final, expected_final, 1e-6)


def test_vmap_and_no_jit_are_jit() -> None:
    arguments = example()
    expected, short = values(arguments, "xla"), plain(64)
    assert_close(additive_recurrence(**short, implementation="xla"), values(short, "xla"), 1e-6)
    # One row takes the exact path and the other does not.
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), arguments)
    stacked["key_logits"] = stacked["key_logits"] * jnp.array([1.0, 100.0])[:, None, None, None, None]
    both = jit(jax.vmap(lambda a: additive_recurrence(**a, implementation="xla")))(stacked)
    second = values(jax.tree.map(lambda x: x[1], stacked), "reference")
    assert_close(jax.tree.map(lambda x: x[0], both), expected, 1e-6)
    assert_close(jax.tree.map(lambda x: x[1], both), second, 2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_logits": jnp.zeros((2, 5, 2))}, "key_logits: got float32[2, 5, 2], expected a float array (B, L, H, K)"),
        (
            {"v": jnp.zeros((2, 4, 2, 4))},
            "v: got float32[2, 4, 2, 4], expected a float array (B, L, H, V) = (2, 5, 2, V)",
        ),
        (
            {"q": jnp.zeros((2, 5, 2, 6))},
            "q: got float32[2, 5, 2, 6], expected a float array (B, L, H, F*K) = (2, 5, 2, 3)",
        ),
        ({"key_factor": jnp.zeros((1, 5, 1, 2, 4))}, "key_factor: got float32[1, 5, 1, 2, 4]"),
        ({"mask": jnp.zeros((2, 5))}, "mask: got float32[2, 5], expected bool[2, 5]"),
        ({"implementation": "fast"}, "implementation: got 'fast'"),
        ({"implementation": "pallas"}, "additive_recurrence has no kernel: it has them for tpu"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        additive_recurrence(**(plain(5) | change))
    assert message in str(error.value)


def test_a_state_of_another_shape_or_dtype_is_refused() -> None:
    arguments = example(5)
    state = arguments["initial_state"]
    for wrong, message in (
        (state._replace(total=state.total[:1]), "initial_state.total: got float32[1, 2, 3], expected float32[2, 2, 3]"),
        (state._replace(maximum=state.maximum.astype(jnp.bfloat16)), "initial_state.maximum: got bfloat16[2, 2, 3]"),
    ):
        with pytest.raises(ValueError) as error:
            additive_recurrence(**(arguments | {"initial_state": wrong}))
        assert message in str(error.value)
