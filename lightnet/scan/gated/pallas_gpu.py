"""Gated linear attention on Hopper GPUs: what `scalar_gpu` and `tree_gpu` have in common.

Per token and head of 128 channels queries, keys, values and outputs take 1,024 bytes, float32 decays per key channel
512 more: 0.34 and 0.51 ns at 3 TB/s, against some 100,000 operations, 0.1 ns. Both forms are bound by memory, if
fetching and computing overlap; the docstrings there say what they move.

Operands are bfloat16, sums and the state float32. What a masked token contains is cleaned away before, one more pass;
tokens behind the end are filled with 0 by the copy to shared memory itself. With values of more than 128, XLA's
form runs under differentiation: its forward pass stores what its backward pass needs.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from lightnet.scan import hopper
from lightnet.scan.gated import blocks_gpu as blocks
from lightnet.scan.gated import scalar_backward_gpu, scalar_gpu, tree_backward_gpu, tree_gpu
from lightnet.scan.gated.chunk import LEAST
from lightnet.scan.gated.scalar_backward_gpu import VALUES
from lightnet.scan.gated.xla import gated_xla
from lightnet.scan.recurrence import Tokens, mapped_alike, only_real
from lightnet.typing import Array

Operands = tuple[Array, Array, Array, Array]


def gated_gpu(operands: Operands, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """See `gated_reference`."""
    return _scan(operands, initial_state, tokens, False)[:2]


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    q, k, v, log_decay = operands
    if wrong := hopper.not_half(q, k, v):
        return wrong
    if log_decay.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{log_decay.dtype.name} is not a precision of the kernel"
    if k.shape[-1] not in hopper.SIZES or v.shape[-1] % blocks.COLUMNS:
        return f"sizes {k.shape[-1]} and {v.shape[-1]} of a head are not 64 or 128 and a multiple of {blocks.COLUMNS}"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(operands: Operands, initial_state: Array, tokens: Tokens, keeps: bool) -> Any:
    """Outputs, last state, and the states before each chunk if they are kept."""
    found = _form(operands).forward(*_clean(operands, tokens), initial_state, store=keeps)
    return *mapped_alike(found[:2], (operands, initial_state)), found[2] if keeps else None


def _form(operands: Operands) -> ModuleType:
    return scalar_gpu if operands[3].shape[-1] == 1 else tree_gpu


def _clean(operands: Operands, tokens: Tokens) -> Operands:
    """Resets where runs begin, and 0 in the place of whatever a masked token contains."""
    *others, log_decay = operands
    if tokens.keep is not None:
        log_decay = jnp.where(tokens.keep[..., None, None], log_decay, jnp.asarray(LEAST, log_decay.dtype))
    q, k, v, log_decay = only_real(tokens, *others, log_decay)
    return q, k, v, log_decay


def _scan_forward(operands: Operands, initial_state: Array, tokens: Tokens, keeps: bool) -> Any:
    if operands[2].shape[-1] > VALUES:
        (o, final), pull = jax.vjp(lambda operands, state: gated_xla(operands, state, tokens), operands, initial_state)
        return (o.astype(operands[2].dtype), final, None), pull
    o, final, before = _scan(operands, initial_state, tokens, True)
    return (o, final, before if keeps else None), (operands, initial_state, tokens, before)


def _scan_backward(keeps: bool, residuals: Any, cotangents: Any) -> Any:
    if isinstance(residuals, tuple):
        return *_gradient(*residuals, cotangents[:2]), None
    do, dfinal, _ = cotangents
    return *residuals((do.astype(jnp.float32), dfinal)), None


_scan.defvjp(_scan_forward, _scan_backward)


@jax.custom_vjp
def _gradient(
    operands: Operands, initial_state: Array, tokens: Tokens, before: Array, cotangents: tuple[Array, Array]
) -> tuple[Operands, Array]:
    """Of all operands and the initial state."""
    form = scalar_backward_gpu if operands[3].shape[-1] == 1 else tree_backward_gpu
    *slopes, dinitial = form.backward(*_clean(operands, tokens), before, *cotangents)
    dq, dk, dv, dlog = only_real(tokens, *slopes)
    return (dq, dk, dv, dlog), dinitial


def _gradient_forward(*given: Any) -> Any:
    return _gradient(*given), given


def _gradient_backward(given: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: `before` is a function of the others."""
    operands, initial_state, tokens, before, (do, dfinal) = given

    def gradient(operands: Operands, initial_state: Array, cotangents: Any) -> Any:
        return jax.vjp(lambda x, state: gated_xla(x, state, tokens), operands, initial_state)[1](cotangents)

    _, pull = jax.vjp(gradient, operands, initial_state, (do.astype(jnp.float32), dfinal))
    doperands, dstate, (ddo, ddfinal) = pull(bars)
    return doperands, dstate, None, jnp.zeros_like(before), (ddo.astype(do.dtype), ddfinal)


_gradient.defvjp(_gradient_forward, _gradient_backward)
