"""The diagonal recurrence on TPUs: a program takes up to 1,024 channels through time, with all their states.

Per token and 128 channels 512 bytes must move in bfloat16, 0.9 cycles on v5e, but with 32 complex states some 55 vector
operations on the eight registers of state, four a bundle, make it 17.7 bundles, and backward, where the states of a
block are made again, 46.4: bound by arithmetic. With 16 real states it is 11 to 12 backward, by the compiler's release.
XLA's form is a loop over the tokens with a few small kernels in each turn, 14,000 cycles per token of two sequences of
2,048 channels with 32 complex states by its compiler's own estimate, where this kernel needs 570; backward 60,800,
where it needs 1,480.

Complex numbers are pairs of real ones: all real parts of a state, then all imaginary ones, (2 N, channels).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.diagonal.chunk import Diagonal, Parts, Weights, advance, of_readout, real_products, retreat
from lightnet.scan.diagonal.xla import diagonal_xla, in_kind_of
from lightnet.scan.kernels import differentiable, wrong_precision
from lightnet.scan.recurrence import Tokens
from lightnet.scan.sweep import (
    MOST_ROWS,
    Group,
    Place,
    Plan,
    flags_given,
    for_rows,
    like,
    plan_of,
    run,
    whole_rows,
)
from lightnet.typing import Array

WEIGHTS = ("a", "b", "c")
Refs = Mapping[str, Any]


def diagonal_tpu(
    operands: Diagonal, initial_state: Array, tokens: Tokens, *, interpret: bool = False
) -> tuple[Array, Array]:
    """See `diagonal_reference`."""
    return _scan(operands, initial_state, tokens, interpret)


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    states, kind = operands.a.shape[1], "complex" if any(map(jnp.iscomplexobj, operands)) else "real"
    most = MOST_ROWS // (2 if kind == "complex" else 1)
    if states > most:
        return f"{states} {kind} states per channel are more than the {most} of the kernel"
    return wrong_precision(operands, (jnp.float32, jnp.bfloat16, jnp.complex64))


def _forward(
    operands: Diagonal, initial_state: Array, tokens: Tokens, store: bool, interpret: bool
) -> tuple[Array, Array, list[Array]]:
    initial = _rows(initial_state)
    plan = plan_of(operands.x, initial.shape[1])
    batch, *rest = initial.shape
    outputs = {"y": ("tokens", like(operands.x, dtype=operands.x.dtype)), "final": ("state", like(initial))}
    if store:
        outputs["entered"] = ("states", jax.ShapeDtypeStruct((batch, plan.blocks, *rest), jnp.float32))
    given = _given(operands, initial_state.dtype, tokens, plan) | {"initial": ("state", initial)}
    kernel = partial(_forward_kernel, pairs=jnp.iscomplexobj(initial_state))
    found = run(kernel, plan, given, outputs, for_rows(2, plan), backwards=False, interpret=interpret)
    final = _numbers(found["final"], initial_state)
    return found["y"], final, [found["entered"]] if store else []


def _backward(
    operands: Diagonal, cotangents: tuple[Array, Array], tokens: Tokens, entered: Array, interpret: bool
) -> tuple[Diagonal, Array]:
    dy, dfinal = cotangents[0], _rows(cotangents[1])
    plan = plan_of(operands.x, dfinal.shape[1])
    given = {"dy": ("tokens", dy), "entered": ("states", entered), "dfinal": ("state", dfinal)}
    scratch = {"states": pltpu.VMEM((plan.tokens, dfinal.shape[1], plan.width), jnp.float32)}
    of_x = {"dx": ("tokens", like(operands.x, dtype=operands.x.dtype))}
    found = run(
        partial(_backward_kernel, pairs=jnp.iscomplexobj(cotangents[1])),
        plan,
        _given(operands, cotangents[1].dtype, tokens, plan) | given,
        of_x | {name: ("state", like(dfinal)) for name in ("dh", "da", "db", "dc")},
        for_rows(3, plan) | scratch,
        backwards=True,
        interpret=interpret,
    )
    dh, *weights = (_numbers(found[name], cotangents[1]) for name in ("dh", "da", "db", "dc"))
    gradients = (in_kind_of(g.sum(axis=0), v) for g, v in zip(weights, operands[1:], strict=True))
    return Diagonal(found["dx"], *gradients), dh


_scan = differentiable(_forward, _backward, diagonal_xla)


def _given(operands: Diagonal, dtype: Any, tokens: Tokens, plan: Plan) -> dict[str, tuple[str, Array]]:
    weights = {name: ("fixed", _rows(v.astype(dtype))) for name, v in zip(WEIGHTS, operands[1:], strict=True)}
    return flags_given(tokens, plan, behind=True) | {"x": ("tokens", operands.x)} | weights


def _rows(h: Array) -> Array:
    """Numbers (..., D, N) as rows of real ones (..., rows, D): all real parts, then all imaginary ones."""
    parts = (h.real, h.imag) if jnp.iscomplexobj(h) else (h,)
    return jnp.concatenate([whole_rows(part.swapaxes(-1, -2)) for part in parts], axis=-2)


def _numbers(rows: Array, template: Array) -> Array:
    """The numbers (..., D, N), as many as those of the template and of their kind."""
    parts = [part.swapaxes(-1, -2)[..., : template.shape[-1]] for part in _parts(rows, jnp.iscomplexobj(template))]
    return lax.complex(*parts) if len(parts) == 2 else parts[0]


def _parts(rows: Array, complex_numbers: bool) -> Parts:
    """The real and the imaginary part, if there are both, of (..., rows, D)."""
    if not complex_numbers:
        return (rows,)
    half = rows.shape[-2] // 2
    return rows[..., :half, :], rows[..., half:, :]


class _Tokens(Group):
    """A group of tokens of this recurrence; the first rows of the scratch are those of x."""

    def __init__(self, refs: Refs, place: Place, g: Any) -> None:
        super().__init__(refs, place, g)
        self.rows = refs["rows"]
        self.rows[0] = self.read("x")

    def behind(self, h: Parts, t: int, weights: Weights) -> Parts:
        """The state behind its token t, which finds the state h."""
        return self.moved(t, advance(self.kept(t, h), self.row(0, t), weights), h)


def _forward_kernel(refs: Refs, place: Place, *, pairs: bool) -> None:
    state, weights = refs["final"], Weights(*(_parts(refs[name][...], pairs) for name in WEIGHTS))

    @pl.when(place.first)
    def _() -> None:
        state[...] = refs["initial"][...]

    if "entered" in refs:
        refs["entered"][...] = state[...]

    def group(g: Any, h: Parts) -> Parts:
        here = _Tokens(refs, place, g)
        for t in here.turns:
            h = here.behind(h, t, weights)
            here.sum_later(1, t, real_products(weights.c, h))
        here.write("y", here.rows[1])
        return h

    h = lax.fori_loop(0, place.plan.groups, group, _parts(state[...], pairs))
    _store(h, state)


def _backward_kernel(refs: Refs, place: Place, *, pairs: bool) -> None:
    states, groups = refs["states"], place.plan.groups
    weights = Weights(*(_parts(refs[name][...], pairs) for name in WEIGHTS))

    @pl.when(place.first)
    def _() -> None:
        refs["dh"][...] = refs["dfinal"][...]
        for name in ("da", "db", "dc"):
            refs[name][...] = jnp.zeros_like(refs[name])

    def again(g: Any, carry: tuple[Parts, Parts]) -> tuple[Parts, Parts]:
        """The states once more, and what needs no others."""
        h, dc = carry
        here = _Tokens(refs, place, g)
        here.rows[1] = here.read("dy")
        for t in here.turns:
            _store(h, states.at[here.start + t])
            h = here.behind(h, t, weights)
            dc = _plus(dc, of_readout(h, here.row(1, t)))
        return h, dc

    def back(g: Any, carry: tuple[Parts, Parts, Parts]) -> tuple[Parts, Parts, Parts]:
        g, (dh, da, db) = groups - 1 - g, carry
        here = _Tokens(refs, place, g)
        here.rows[1] = here.read("dy")
        for t in reversed(here.turns):
            before = here.kept(t, _parts(states[here.start + t], pairs))
            # At a masked token dy is 0, and what is behind it goes to what is before it untouched.
            real = here.moved(t, dh, tuple(map(jnp.zeros_like, dh)))
            dbefore, terms, *more = retreat(before, here.row(0, t), weights, here.row(1, t), real)
            dh, da, db = here.moved(t, here.kept(t, dbefore), dh), _plus(da, more[0]), _plus(db, more[1])
            here.sum_later(2, t, terms)
        here.write("dx", here.rows[2])
        return dh, da, db

    entered = _parts(refs["entered"][...], pairs)
    zero = tuple(map(jnp.zeros_like, entered))
    _, dc = lax.fori_loop(0, groups, again, (entered, zero))
    dh, da, db = lax.fori_loop(0, groups, back, (_parts(refs["dh"][...], pairs), zero, zero))
    _store(dh, refs["dh"])
    # Summed within a block first: over a long sequence the rounding of one running sum would show.
    for name, part in (("da", da), ("db", db), ("dc", dc)):
        refs[name][...] += jnp.concatenate(part, axis=0)


def _plus(x: Parts, y: Parts) -> Parts:
    return tuple(u + v for u, v in zip(x, y, strict=True))


def _store(h: Parts, ref: Any) -> None:
    ref[...] = jnp.concatenate(h, axis=0)
