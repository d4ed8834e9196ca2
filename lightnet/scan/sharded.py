"""Any recurrence on a mesh: batch, channels and heads split without communication, the sequence split by summaries.

Under `jax.set_mesh` a public function of the scan core runs inside `jax.shard_map`, each device on its part of the
arrays; which part that is, `placement` says.

A device that has a later stretch of the sequence needs the state that enters it. What a stretch does to the state that
enters it, its summary, is small and associative. So each device makes the summary of its own stretch, the summaries are
exchanged, and one full pass follows with the right state. The gradient takes the same way back.

Summaries are combined along one binary tree over `LEAVES` equal parts of the sequence. So the state that enters a
stretch has the same bits for 2, 4, 8 and 16 devices where these cut the sequence alike, and for both ways of exchange:
all gather all summaries where there are few devices, else each exchanges with a partner once per level of the tree.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lightnet.scan.mesh import lie
from lightnet.scan.placement import Placement, enough_groups, pairs, spec, whole_parts, with_letters
from lightnet.scan.recurrence import Recurrence, Tokens
from lightnet.typing import Array

LEAVES = 16
GATHERED = 16  # beyond this number of devices, summaries are exchanged level by level
PER_TOKEN = Tokens._make(("B L", "B L"))


def sharded(
    recurrence: Recurrence,
    run: Callable,
    placed: Placement,
    operands: Any,
    initial_state: Any,
    tokens: Tokens,
    **options: Any,
) -> Any:
    """Run a recurrence on the whole mesh.

    Args:
        recurrence: which.
        run: (operands, initial state, tokens) -> what the recurrence returns, on one device.
        placed: from `placement`.
        operands: whole arrays.
        initial_state: whole arrays.
        tokens: whole arrays.
        **options: static arguments of the recurrence.

    Returns:
        What the recurrence returns, whole arrays.
    """
    axes = recurrence.axes
    operands = enough_groups(axes.operands, operands, placed)
    operands, tokens = whole_parts(axes.operands, operands, tokens, placed)
    part = -(-placed.lengths["L"] // placed.parts["L"])
    leaves = math.gcd(part, 1 << max(LEAVES // placed.parts["L"], 1).bit_length() - 1)

    def here(operands: Any, initial_state: Any, tokens: Tokens) -> Any:
        if placed.parts["L"] == 1:
            return run(operands, initial_state, tokens)
        if recurrence.split is not None:
            return recurrence.split(operands, tokens, placed.names["L"], **options)
        entering = _entering(recurrence, placed, leaves, operands, initial_state, tokens, options)
        output, final = run(operands, entering, tokens)
        return output, _of_last(final, placed, options)

    given, letters = (operands, initial_state, tokens), (axes.operands, axes.state, PER_TOKEN)
    in_specs = with_letters(lambda x, names: spec(x.shape, names, placed), letters, given)
    output = PartitionSpec(*(placed.names.get(letter) or None for letter in axes.output.split()))
    out_specs = output if axes.state is None else (output, in_specs[1])
    split = jax.shard_map(here, in_specs=in_specs, out_specs=out_specs, axis_names=placed.manual, check_vma=False)
    # Outside of `jit`, `shard_map` cannot leave axes to the compiler.
    result = (jax.jit(split) if placed.automatic else split)(*jax.tree.map(lie, given, in_specs))
    if axes.state is None:
        return _cut(result, output, placed)
    return _cut(result[0], output, placed), result[1]


def _cut(output: Array, split: PartitionSpec, placed: Placement) -> Array:
    """Without the tokens that were added at the end."""
    length = placed.lengths["L"]
    if output.shape[1] == length:
        return output
    return lie(output, PartitionSpec(split[0], None, *split[2:]))[:, :length]


def _entering(
    recurrence: Recurrence,
    placed: Placement,
    leaves: int,
    operands: Any,
    state: Any,
    tokens: Tokens,
    options: dict[str, Any],
) -> Any:
    """The state that enters the stretch of this device: the initial one, past the nodes of the tree before it."""
    (axis,), count = placed.names["L"], placed.parts["L"]
    backwards = options.get("reverse", False)
    own = _summary(recurrence, leaves, operands, tokens, options)
    place = lax.axis_index(axis)
    place = count - 1 - place if backwards else place
    power_of_two = count & (count - 1) == 0
    exchange = _exchanged if count > GATHERED and power_of_two else _gathered
    nodes = exchange(recurrence, own, axis, count, place, backwards)
    for level, node in reversed(list(enumerate(nodes))):
        state = _select(place >> level & 1 == 1, recurrence.enter(node, state), state)
    return state


def _summary(recurrence: Recurrence, leaves: int, operands: Any, tokens: Tokens, options: dict[str, Any]) -> Any:
    """Of the stretch of this device, from its leaves up."""
    if leaves == 1:
        return recurrence.summary(operands, tokens, **options)
    length = max(
        x.shape[letters.index("L")] for x, letters in pairs(recurrence.axes.operands, operands) if "L" in letters
    )
    given, letters = (operands, tokens), (recurrence.axes.operands, PER_TOKEN)

    def has_time(x: Array, names: list[str]) -> bool:
        return "L" in names and x.shape[1] == length

    def cut(x: Array, names: list[str]) -> Array:
        return x.reshape(x.shape[0], leaves, length // leaves, *x.shape[2:]) if has_time(x, names) else x

    over = with_letters(lambda x, names: 1 if has_time(x, names) else None, letters, given)
    each = jax.vmap(lambda operands, tokens: recurrence.summary(operands, tokens, **options), in_axes=over)(
        *with_letters(cut, letters, given)
    )
    if options.get("reverse", False):
        each = jax.tree.map(lambda x: x[::-1], each)
    while leaves > 1:
        each, leaves = _next_level(recurrence, each), leaves // 2
    return jax.tree.map(lambda x: x[0], each)


def _gathered(recurrence: Recurrence, own: Any, axis: str, count: int, place: Array, backwards: bool) -> list[Any]:
    """At each level the node just before that of this device, where there is one; from all summaries at once."""
    level = _move(lambda x: lax.all_gather(x, axis)[:: -1 if backwards else 1], own)
    nodes = []
    for k in range((count - 1).bit_length()):
        before = (place >> (k + 1)) << 1
        nodes.append(jax.tree.map(lambda x, i=before: lax.dynamic_index_in_dim(x, i, keepdims=False), level))
        level = _next_level(recurrence, level)
    return nodes


def _exchanged(recurrence: Recurrence, own: Any, axis: str, count: int, place: Array, backwards: bool) -> list[Any]:
    """The same nodes by one exchange with a partner per level; the number of devices is a power of two."""
    nodes, node = [], own
    for k in range((count - 1).bit_length()):
        partner = [(p, p ^ (1 << k)) for p in range(count)]
        other = _move(lambda x, to=partner: lax.ppermute(x, axis, to), node)
        nodes.append(other)
        second = place >> k & 1 == 1
        node = recurrence.combine(_select(second, other, node), _select(second, node, other))
    return nodes


def _move(collective: Callable, arrays: Any) -> Any:
    """Apply a collective operation; to real and imaginary parts by themselves, as TPUs do not reduce complex ones."""

    def one(x: Array) -> Array:
        return lax.complex(collective(x.real), collective(x.imag)) if jnp.iscomplexobj(x) else collective(x)

    return jax.tree.map(one, arrays)


def _next_level(recurrence: Recurrence, level: Any) -> Any:
    """Nodes of the tree two by two; one that is left over at the end is never asked for."""
    even = jax.tree.leaves(level)[0].shape[0] // 2 * 2
    return jax.vmap(recurrence.combine)(*(jax.tree.map(lambda x, k=k: x[k:even:2], level) for k in range(2)))


def _of_last(final: Any, placed: Placement, options: dict[str, Any]) -> Any:
    """The final state of the last stretch, on every device."""
    (axis,), count = placed.names["L"], placed.parts["L"]
    last = lax.axis_index(axis) == (0 if options.get("reverse", False) else count - 1)
    return _move(lambda x: lax.psum(jnp.where(last, x, jnp.zeros_like(x)), axis), final)


def _select(flag: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(flag, x, y), yes, no)
