"""LightNet's attention without an order: against a float64 softmax, in value and gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.additive import additive_global, additive_recurrence

# Code generation is most of the time that these tests take; the numbers do not depend on it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BATCH, HEADS, KEY, VALUE = 2, 2, 3, 4
FLAGS = ("segment_ids", "mask")


def example(
    length: int, *, seed: int = 0, factors: int = 0, spread: float = 2.0, packed: bool = False
) -> dict[str, Any]:
    """Random arguments of `additive_global`."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    arguments = {
        "q": normal(BATCH, length, HEADS, max(factors, 1) * KEY),
        "key_logits": np.float32(spread) * normal(BATCH, length, HEADS, KEY),
        "v": normal(BATCH, length, HEADS, VALUE),
    }
    if factors:
        arguments["key_factor"] = normal(1, length, 1, factors, KEY)
    if packed:
        arguments["segment_ids"] = (rng.random((BATCH, length)) < 0.1).cumsum(axis=1) % 2
        arguments["mask"] = rng.random((BATCH, length)) < 0.8
        arguments["mask"][:, 0] = [False, True]
    return jax.tree.map(jnp.asarray, arguments)


def by_softmax(arguments: dict[str, Any]) -> np.ndarray:
    """Each run and channel by itself, in float64."""
    q, logits, v = (np.asarray(arguments[name], np.float64) for name in ("q", "key_logits", "v"))
    batch, length, heads, key = logits.shape
    factor = np.asarray(arguments.get("key_factor", np.ones((1, length, 1, 1, key))), np.float64)
    factor = np.broadcast_to(factor, (batch, length, heads, *factor.shape[3:]))
    ids = np.asarray(arguments.get("segment_ids", np.zeros((batch, length), int)))
    mask = np.asarray(arguments.get("mask", np.ones((batch, length), bool)))
    out = np.zeros(v.shape)
    for b in range(batch):
        real = np.flatnonzero(mask[b])
        runs = np.split(real, np.flatnonzero(np.diff(ids[b, real])) + 1)
        for run in runs:
            if len(run) == 0:
                continue
            maximum = logits[b, run].max(axis=0)
            weights = np.exp(logits[b, run] - np.where(np.isinf(maximum), 0, maximum))
            total = weights.sum(axis=0)
            keys = (weights / np.where(total > 0, total, 1))[:, :, None] * factor[b, run]
            out[b, run] = np.einsum("ihk,jhk,jhv->ihv", q[b, run], keys.reshape(len(run), heads, -1), v[b, run])
    return out


@partial(jit, static_argnames=("implementation", "num_segments"))
def values(arguments: dict[str, Any], implementation: str, num_segments: int = 1) -> jax.Array:
    return additive_global(**arguments, num_segments=num_segments, implementation=implementation)


@partial(jit, static_argnames=("implementation", "num_segments"))
def differentiate(arguments: dict[str, Any], implementation: str, num_segments: int = 1) -> Any:
    """Output, and gradients of all that has one, for a random gradient of the output."""
    floats = {name: x for name, x in arguments.items() if name not in FLAGS}
    flags = {name: x for name, x in arguments.items() if name in FLAGS} | {"num_segments": num_segments}
    o, pull = jax.vjp(lambda f: additive_global(**f, **flags, implementation=implementation), floats)
    return o, pull(jnp.asarray(np.random.default_rng(1).normal(size=o.shape), o.dtype))[0]


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Relative Frobenius error of each leaf."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.isfinite(x).all()
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y) + 1e-30


@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_keys_are_a_softmax_over_the_tokens_of_a_run(length: int, implementation: str) -> None:
    arguments = example(length, factors=2 * (length % 2), packed=True)
    assert_close(values(arguments, implementation, 30), by_softmax(arguments), 1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_one_segment_is_the_whole_row(implementation: str) -> None:
    arguments = example(50, factors=2)
    assert_close(values(arguments, implementation), by_softmax(arguments), 1e-6)


@pytest.mark.parametrize(("factors", "packed"), [(0, False), (2, False), (0, True), (2, True)])
def test_gradients_are_those_of_the_reference(factors: int, packed: bool) -> None:
    arguments = example(70, factors=factors, packed=packed)
    count = 30 if packed else 1
    assert_close(differentiate(arguments, "xla", count), differentiate(arguments, "reference", count), 3e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_finite_differences(packed: bool) -> None:
    with jax.enable_x64(True):
        arguments = example(9, factors=2, packed=packed)
        arguments = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, arguments)
        o, gradients = differentiate(arguments, "xla", 9)
        assert o.dtype == jnp.float64
        bar = np.random.default_rng(1).normal(size=o.shape)
        rng = np.random.default_rng(2)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), gradients)

        def moved(step: float) -> jax.Array:
            there = {name: arguments[name] + step * d for name, d in direction.items()}
            return values(arguments | there, "xla", 9)

        slope = np.vdot(bar, (moved(1e-6) - moved(-1e-6)) / 2e-6)
        np.testing.assert_allclose(slope, sum(np.vdot(gradients[n], d) for n, d in direction.items()), rtol=1e-7)


@pytest.mark.parametrize("packed", [False, True])
def test_no_logits_are_too_large(packed: bool) -> None:
    arguments = example(70, packed=packed)
    unit = jax.random.normal(jax.random.key(0), arguments["key_logits"].shape)
    ramp = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, 70)[None, :, None, None], unit.shape)
    for logits in (
        50 * unit,
        1000 * unit,
        200 * ramp,
        -200 * ramp,
        jnp.where(unit > 0, -jnp.inf, unit),
        unit - jnp.inf,
    ):
        o, gradients = differentiate(arguments | {"key_logits": logits}, "xla", 30)
        assert_close(o, by_softmax(arguments | {"key_logits": logits}), 2e-6)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_order_does_not_matter() -> None:
    arguments = example(40, factors=2)
    order = np.random.default_rng(0).permutation(40)
    shuffled = {name: x[:, order] for name, x in arguments.items()}
    assert_close(values(shuffled, "xla"), values(arguments, "xla")[:, order], 1e-6)


def test_the_last_token_of_the_causal_form_sees_all() -> None:
    arguments = example(40, factors=2)
    causal, _ = additive_recurrence(**arguments, implementation="reference")
    assert_close(causal[:, -1], values(arguments, "xla")[:, -1], 1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_what_masked_tokens_contain_does_not_matter(packed: bool) -> None:
    arguments = example(40, packed=True)
    if not packed:
        arguments.pop("segment_ids")
    masked = ~arguments["mask"]
    poisoned = {
        name: x if name in FLAGS else jnp.where(masked[..., None, None], jnp.nan, x) for name, x in arguments.items()
    }
    (o, gradients), (same, poisoned_gradients) = (differentiate(a, "xla", 30) for a in (arguments, poisoned))
    np.testing.assert_array_equal(o, same)
    assert not o[masked].any()
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, poisoned_gradients[name])
        assert not gradient[masked].any()


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_without_real_tokens_is_zero(packed: bool) -> None:
    arguments = example(40, packed=packed)
    arguments["mask"] = jnp.broadcast_to(jnp.arange(BATCH)[:, None] > 0, (BATCH, 40))
    o, gradients = differentiate(arguments, "xla", 30)
    assert not o[0].any() and not any(g[0].any() for g in gradients.values())
    assert_close(o, by_softmax(arguments), 1e-6)


def test_padding_is_exact() -> None:
    arguments = example(20)
    padded = {name: jnp.pad(x, ((0, 0), (7, 4), (0, 0), (0, 0)), constant_values=9.0) for name, x in arguments.items()}
    padded["mask"] = jnp.broadcast_to((jnp.arange(31) >= 7) & (jnp.arange(31) < 27), (BATCH, 31))
    assert_close(values(padded, "xla")[:, 7:27], values(arguments, "xla"), 1e-6)


def test_half_precision_sums_in_single() -> None:
    arguments = {name: x.astype(jnp.bfloat16) for name, x in example(70).items()}
    o = values(arguments, "xla")
    assert o.dtype == jnp.bfloat16
    assert_close(o, by_softmax({name: x.astype(jnp.float32) for name, x in arguments.items()}), 4e-3)


def test_vmap_and_no_jit_are_jit() -> None:
    arguments = example(40, packed=True)
    expected = values(arguments, "xla", 30)
    assert_close(additive_global(**arguments, num_segments=30), expected, 1e-6)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), arguments)
    both = jit(jax.vmap(lambda a: additive_global(**a, num_segments=30)))(stacked)
    assert_close(both, jnp.stack([expected, expected]), 1e-6)


def test_runs_beyond_the_stated_number_are_refused_where_they_are_known_and_else_left_out() -> None:
    arguments = example(6)
    arguments["segment_ids"] = jnp.broadcast_to(jnp.array([1, 1, 2, 2, 1, 1]), (BATCH, 6))
    with pytest.raises(ValueError, match="num_segments: got 2, expected at least 3"):
        additive_global(**arguments, num_segments=2)
    for implementation in ("reference", "xla"):
        o = values(arguments, implementation, 2)
        assert not o[:, 4:].any()
        assert_close(o[:, :4], by_softmax(arguments)[:, :4], 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_segments": 0}, "num_segments: got 0, expected an integer of at least 1"),
        (
            {"q": jnp.zeros((2, 5, 2, 4))},
            "q: got float32[2, 5, 2, 4], expected a float array (B, L, H, F*K) = (2, 5, 2, 3)",
        ),
        ({"segment_ids": jnp.zeros((2, 5))}, "segment_ids: got float32[2, 5], expected integer[2, 5]"),
        ({"implementation": "pallas"}, "additive_global has no kernel: it has them for tpu"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        additive_global(**(example(5) | change))
    assert message in str(error.value)
