"""What LightNet's causal attention may store in bfloat16: operands, keys and log decays, and nothing that adds up."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan import AdditiveState, additive_recurrence, additive_step

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LENGTH, KEY, VALUE = 4096, 16, 8


def example(dtype: Any) -> list[jax.Array]:
    """Queries, logits and values (1, L, 1, ...), rounded to `dtype`."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((1, LENGTH, 1, size)), dtype) for size in (KEY, KEY, VALUE)]


def relative_error(actual: Any, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected))


def exact(q: Any, logits: Any, v: Any) -> tuple[np.ndarray, ...]:
    """Outputs, and the maximum, total and state of the last token, in float64 NumPy."""
    q, logits, v = (np.asarray(x, np.float64)[0, :, 0] for x in (q, logits, v))
    keys = np.exp(logits)
    inner = np.cumsum(keys[:, :, None] * v[:, None], axis=0)
    unit = np.exp(logits.max(axis=0))
    o = np.einsum("tk,tkv->tv", q / keys.cumsum(axis=0), inner)
    return o, logits.max(axis=0), keys.sum(axis=0) / unit, inner[-1] / unit[:, None]


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_operands_in_bfloat16_cost_no_more_than_the_rounding_of_the_output(implementation: str) -> None:
    """Below 5e-3 at 4,096 tokens; the state is as exact as one of float32 operands, so it never was in bfloat16."""
    given = example(jnp.bfloat16)
    o, final = jit(partial(additive_recurrence, implementation=implementation))(*given)
    assert o.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in final)
    expected, *state = exact(*given)
    assert relative_error(o[0, :, 0], expected) < 5e-3
    for x, y in zip(final, state, strict=True):
        assert relative_error(x[0, 0], y) < 1e-5


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("which", [(0, 1, 2), (0,), (1,), (2,)])
def test_the_state_is_single_whichever_operand_is_half(implementation: str, which: tuple[int, ...]) -> None:
    """Maximum, total and state, those of a step, and the gradients of the state that enters."""
    given = [x[:, :9].astype(jnp.bfloat16 if i in which else jnp.float32) for i, x in enumerate(example(jnp.float32))]
    state = AdditiveState(jnp.zeros((1, 1, KEY)), jnp.ones((1, 1, KEY)), jnp.zeros((1, 1, KEY, VALUE)))

    def sequence(state: AdditiveState) -> Any:
        return additive_recurrence(*given, initial_state=state, implementation=implementation)

    def loss(state: AdditiveState) -> jax.Array:
        return sequence(state)[0].astype(jnp.float32).sum()

    step = partial(additive_step, *(x[:, 0] for x in given))
    _, after = jax.eval_shape(sequence, state)
    _, stepped = jax.eval_shape(step, state)
    slopes = jax.eval_shape(jax.grad(loss), state)
    for found in (after, stepped, slopes):
        assert isinstance(found, AdditiveState)
        assert [x.dtype for x in found] == [jnp.float32] * 3
    for part in AdditiveState._fields:
        half = state._replace(**{part: getattr(state, part).astype(jnp.bfloat16)})
        for function in (sequence, step):
            with pytest.raises(ValueError, match=rf"state\.{part}: got bfloat16"):
                function(half)


def half(x: np.ndarray) -> np.ndarray:
    return x.astype(jnp.bfloat16).astype(np.float32)


def kept(x: np.ndarray) -> np.ndarray:
    return x


def gated_form(q: np.ndarray, logits: np.ndarray, v: np.ndarray, **stored: Callable[..., np.ndarray]) -> np.ndarray:
    """Last output of S_t = diag(exp g_t) S_{t-1} + k_t v_t^T in float32, with what `stored` names rounded each time."""
    in_key, in_log_decay, in_decay, in_normaliser, in_state = (
        stored.get(name, kept) for name in ("key", "log_decay", "decay", "normaliser", "state")
    )
    z = in_normaliser(logits[0])
    state = in_state(in_key(np.exp(logits[0] - z))[:, None] * v[0])
    for a, value in zip(logits[1:], v[1:], strict=True):
        before, z = z, in_normaliser(np.logaddexp(z, a))
        decay = in_decay(np.exp(in_log_decay(before - z)))
        state = in_state(decay[:, None] * state + in_key(np.exp(a - z))[:, None] * value)
    return q[-1] @ state


# The lower and the upper end of the error. Nothing in half precision costs about 1e-5, as subtracting two large
# normalisers does; a decay 1 - 1/t is 1 in bfloat16 for t above 512, and so the state grows for ever.
STORED = {
    "nothing": ({}, 0, 5e-5),
    "key and log decay": ({"key": half, "log_decay": half}, 1e-5, 1e-3),
    "decay": ({"decay": half}, 0.5, 10),
    "normaliser": ({"normaliser": half}, 1e-2, 100),
    "state": ({"state": half}, 1e-2, 1),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_may_be_stored_in_bfloat16(seed: int) -> None:
    """Values have mean 1 and deviation 1: those of mean 0 average to nothing, and errors are relative to that."""
    rng = np.random.default_rng(seed)
    q, logits, v = (rng.standard_normal((LENGTH, size), np.float32) for size in (KEY, KEY, VALUE))
    v += 1
    weights = np.exp(logits, dtype=np.float64)
    expected = q[-1] @ (weights.T @ v / weights.sum(axis=0)[:, None])
    for what, (stored, least, most) in STORED.items():
        assert least <= relative_error(gated_form(q, logits, v, **stored), expected) < most, what
