"""The selective recurrence on TPUs: a program takes up to 1,024 channels through time, with all their states.

Per token and 128 channels 768 bytes must move in bfloat16, 1.4 cycles on v5e, but with 16 states some 35 vector
operations on the two registers of state, four a bundle, make it 10 to 11 bundles with skip and gate, by the release of
the compiler, and backward, where the states of a block are made again, 32 to 35: bound by arithmetic. XLA's form is a
loop over the tokens with six small kernels in each turn, 12,900 cycles per token of two sequences of 2,048 channels by
its compiler's own estimate, where this kernel needs 360 at most; backward 36,400, where it needs 1,110.

B and C come as columns (N, tokens), which XLA turns; their gradients leave as columns, one set for each tile of
channels, which XLA sums. A masked token is a step of size 0, as are those behind the sequence.
"""

from collections.abc import Mapping
from functools import partial
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.kernels import differentiable, wrong_precision
from lightnet.scan.recurrence import Tokens, only_real
from lightnet.scan.selective.chunk import Selective, Step, Sums, advance, gated, of_inputs, pull, skipped, ungated
from lightnet.scan.selective.xla import selective_xla
from lightnet.scan.sweep import (
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

MOST_STATES = 96  # for which there is room for all those of a block
Refs = Mapping[str, Any]


def selective_tpu(
    operands: Selective, initial_state: Array, tokens: Tokens, *, interpret: bool = False
) -> tuple[Array, Array]:
    """See `selective_reference`."""
    (dt,) = only_real(tokens, operands.dt)  # where the public function has done that already, it is the same operation
    return _scan(operands._replace(dt=dt), initial_state, Tokens(tokens.keep, None), interpret)


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    if operands.A.shape[1] > MOST_STATES:
        return f"{operands.A.shape[1]} states per channel are more than the {MOST_STATES} of the kernel"
    return wrong_precision(operands)


def _forward(
    operands: Selective, initial_state: Array, tokens: Tokens, store: bool, interpret: bool
) -> tuple[Array, Array, list[Array]]:
    initial, states = whole_rows(initial_state.swapaxes(1, 2)), operands.A.shape[1]
    plan = plan_of(operands.x, states)
    batch, *rest = initial.shape
    outputs = {"y": ("tokens", like(operands.x, dtype=operands.x.dtype)), "final": ("state", like(initial))}
    if store:
        outputs["entered"] = ("states", jax.ShapeDtypeStruct((batch, plan.blocks, *rest), jnp.float32))
    given = _given(operands, tokens, plan) | {"initial": ("state", initial)}
    found = run(_forward_kernel, plan, given, outputs, for_rows(3, plan), backwards=False, interpret=interpret)
    return found["y"], found["final"][:, :states].swapaxes(1, 2), [found["entered"]] if store else []


def _backward(
    operands: Selective, cotangents: tuple[Array, Array], tokens: Tokens, entered: Array, interpret: bool
) -> tuple[Selective, Array]:
    x, dt, A, B, C, D, z = operands
    dy, dfinal, states = cotangents[0], whole_rows(cotangents[1].swapaxes(1, 2)), A.shape[1]
    plan = plan_of(x, states)
    batch, rows, channels = dfinal.shape
    parts = jax.ShapeDtypeStruct((plan.tiles, batch, rows, plan.columns), jnp.float32)
    outputs = {
        "dx": ("tokens", like(x, dtype=x.dtype)),
        "ddt": ("tokens", like(dt, dtype=dt.dtype)),
        "dB": ("parts", parts),
        "dC": ("parts", parts),
        "dA": ("state", like(dfinal)),
        "dh": ("state", like(dfinal)),
    }
    if D is not None:
        outputs["dD"] = ("state", jax.ShapeDtypeStruct((batch, 1, channels), jnp.float32))
    if z is not None:
        outputs["dz"] = ("tokens", like(z, dtype=z.dtype))
    given = {"dy": ("tokens", dy), "entered": ("states", entered), "dfinal": ("state", dfinal)}
    scratch = {
        "states": pltpu.VMEM((plan.tokens + 1, rows, plan.width), jnp.float32),
        "dread": pltpu.VMEM((plan.tokens, plan.width), jnp.float32),
    }
    found = run(
        _backward_kernel,
        plan,
        _given(operands, tokens, plan) | given,
        outputs,
        for_rows(5, plan) | scratch,
        backwards=True,
        interpret=interpret,
    )
    dB, dC = (
        found[name].sum(axis=0)[:, :states, : plan.length].swapaxes(1, 2).astype(v.dtype)
        for name, v in (("dB", B), ("dC", C))
    )
    dA = found["dA"].sum(axis=0)[:states].T.astype(A.dtype)
    dD = None if D is None else found["dD"].sum(axis=(0, 1)).astype(D.dtype)
    return Selective(found["dx"], found["ddt"], dA, dB, dC, dD, found.get("dz")), found["dh"][:, :states].swapaxes(1, 2)


_scan = differentiable(_forward, _backward, selective_xla)


def _given(operands: Selective, tokens: Tokens, plan: Plan) -> dict[str, tuple[str, Array]]:
    x, dt, A, B, C, D, z = operands
    given = flags_given(tokens, plan, behind=False) | {"x": ("tokens", x), "dt": ("tokens", dt)}
    for name, v in (("B", B), ("C", C)):
        turned = whole_rows(v.astype(jnp.float32).swapaxes(1, 2))
        given[name] = ("weights", jnp.pad(turned, ((0, 0), (0, 0), (0, plan.columns - plan.length))))
    given["A"] = ("fixed", whole_rows(A.astype(jnp.float32).T))
    if D is not None:
        given["D"] = ("fixed", D.astype(jnp.float32)[None])
    return given if z is None else given | {"z": ("tokens", z)}


class _Tokens(Group):
    """A group of tokens of this recurrence; the first rows of the scratch are those of dt and of dt x."""

    def __init__(self, refs: Refs, place: Place, g: Any) -> None:
        super().__init__(refs, place, g)
        self.rows = refs["rows"]
        B, C = self.columns("B"), self.columns("C")
        D = refs["D"][...] if "D" in refs else None
        z = self.read("z") if "z" in refs else None
        self.all = Selective(self.read("x"), self.read("dt"), refs["A"][...], B, C, D, z)
        self.rows[0], self.rows[1] = self.all.dt, self.all.dt * self.all.x

    def step(self, t: int) -> Step:
        """What one of them does."""
        _, _, A, B, C, _, _ = self.all
        return Step(self.row(0, t), self.row(1, t), A, B[:, t : t + 1], C[:, t : t + 1])


def _over_channels(exist: Array | None, h: Array, weights: Array) -> Array:
    terms = h * weights if exist is None else jnp.where(exist, h * weights, 0.0)
    return terms.sum(axis=1, keepdims=True)


def _forward_kernel(refs: Refs, place: Place) -> None:
    state = refs["final"]

    @pl.when(place.first)
    def _() -> None:
        state[...] = refs["initial"][...]

    if "entered" in refs:
        refs["entered"][...] = state[...]

    def group(g: Any, h: Array) -> Array:
        here = _Tokens(refs, place, g)
        for t in here.turns:
            step = here.step(t)
            h = advance(here.kept(t, (h,))[0], step)
            here.sum_later(2, t, step.C * h)
        here.write("y", gated(here.rows[2], here.all))
        return h

    state[...] = lax.fori_loop(0, place.plan.groups, group, state[...])


def _backward_kernel(refs: Refs, place: Place) -> None:
    @pl.when(place.first)
    def _() -> None:
        refs["dh"][...] = refs["dfinal"][...]
        for name in ("dA", "dD"):
            if name in refs:
                refs[name][...] = jnp.zeros_like(refs[name])

    _again(refs, place)
    _back(refs, place)


def _again(refs: Refs, place: Place) -> None:
    """The states of the block once more, and what the gate does to the cotangents of the outputs."""
    states = refs["states"]

    def group(g: Any, h: Array) -> Array:
        here = _Tokens(refs, place, g)
        for t in here.turns:
            states[here.start + t] = h
            step = here.step(t)
            h = advance(here.kept(t, (h,))[0], step)
            if "z" in refs:
                here.sum_later(2, t, step.C * h)
        dy = here.read("dy")
        if "z" in refs:
            dy, dz = ungated(skipped(here.rows[2], here.all), here.read("z"), dy)
            here.write("dz", dz)
        if "D" in refs:
            refs["dD"][...] += (dy * here.all.x).sum(axis=0, keepdims=True)
        refs["dread"][here.tokens, :] = dy
        return h

    states[place.plan.tokens] = lax.fori_loop(0, place.plan.groups, group, refs["entered"][...])


def _back(refs: Refs, place: Place) -> None:
    """The gradients of the tokens of the block, from the last to the first."""
    states, groups = refs["states"], place.plan.groups
    # What is summed over the states is so for several tokens at once.
    sums = Sums(mul, partial(_over_channels, place.exist))
    columns = lax.broadcasted_iota(jnp.int32, (1, refs["B"].shape[1]), 1)

    def group(g: Any, carry: Any) -> Any:
        g, (dh, dA, dB, dC) = groups - 1 - g, carry
        here = _Tokens(refs, place, g)
        dy = here.rows[2] = refs["dread"][here.tokens, :]
        for t in reversed(here.turns):
            (before,) = here.kept(t, (states[here.start + t],))
            dbefore, found = pull(before, states[here.start + t + 1], here.step(t), here.row(2, t), dh, sums)
            (dh,) = here.kept(t, (dbefore,))
            dA, its = dA + found.A, columns - here.start == t
            dB, dC = jnp.where(its, found.B, dB), jnp.where(its, found.C, dC)
            here.sum_later(3, t, found.dt)
            here.sum_later(4, t, found.input)
        dx, ddt = of_inputs(here.all, here.rows[3], here.rows[4], dy)
        here.write("dx", dx)
        here.write("ddt", ddt)
        return dh, dA, dB, dC

    none = jnp.zeros(refs["B"].shape, jnp.float32)
    dh, dA, dB, dC = lax.fori_loop(0, groups, group, (refs["dh"][...], jnp.zeros_like(refs["dh"]), none, none))
    refs["dh"][...], refs["dB"][...], refs["dC"][...] = dh, dB, dC
    # Summed within a block first: over a long sequence the rounding of one running sum would show.
    refs["dA"][...] += dA
