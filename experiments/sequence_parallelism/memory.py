"""Memory that a device needs in a training step, counted in what the step's own program keeps for its gradient.

The program is traced and not compiled: `jax.vjp` hands the arrays that the forward half keeps to the backward half, and
traced at three sizes each array tells how it grows with the batch and the length. To this come weights, gradients and
Adam's two averages in float32, and the gradient of the largest array that is kept with what it is computed from.

A model keeps what its products, norms and activations are given and nothing else, as PyTorch does: norms and the
activation are computed again from their input. Without dropout, positions, and segments.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

BYTES = 4  # float32
STATE = 4  # weight, gradient, two averages
METHODS = ("tensor", "ring, scores kept", "ring", "lightnet", "linformer")
_BATCH, _LENGTH, _PARTS = 5, 56, 2


@dataclass(frozen=True)
class Shape:
    """A BERT.

    Attributes:
        num_layers: blocks.
        width: channels D.
        num_heads: heads H.
        vocab_size: tokens, BERT's 30,522 rounded up until devices can share them.
        rank: of Linformer's projection.
    """

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    vocab_size: int = 30528
    rank: int = 256


@dataclass(frozen=True)
class Kept:
    """One array.

    Attributes:
        numbers: of it, for one example of one token.
        batch: power of the batch size that it grows with.
        length: power of the length.
        heads: whether tensor parallelism splits it.
    """

    numbers: float
    batch: int
    length: int
    heads: bool

    def bytes(self, batch: int, length: int, tensor: int, sequence: int) -> float:
        """Of it on a device."""
        parts = (tensor if self.heads else 1) * (sequence if self.length else 1)
        return BYTES * self.numbers * batch**self.batch * length**self.length / parts


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        state: weights.
        kept: for the gradient.
        chunk: numbers per example, head and token of a device that a chunk of a ring's scores takes, by keys at once;
            0 is no ring.
        num_heads: of the model.
    """

    state: Sequence[Kept]
    kept: Sequence[Kept]
    chunk: int = 0
    num_heads: int = 1

    def bytes(self, batch: int, length: int, tensor: int = 1, sequence: int = 1) -> float:
        """Memory of a device.

        Args:
            batch: examples.
            length: tokens of each.
            tensor: devices that share heads, hidden channels and the vocabulary.
            sequence: devices that share a sequence.
        """
        size = partial(Kept.bytes, batch=batch, length=length, tensor=tensor, sequence=sequence)
        here = length / sequence
        ring = 3 * BYTES * batch * self.num_heads * here * min(self.chunk, here)
        passing = max([2 * size(array) for array in self.kept] + [ring])
        return STATE * sum(map(size, self.state)) + sum(map(size, self.kept)) + passing


def step_of(method: str, shape: Shape) -> Step:
    """What a method needs.

    Args:
        method: one of METHODS. "tensor" and "ring, scores kept" have the same program, softmax attention with all
            scores at once, whose arrays lie on devices in different ways.
        shape: of the model.

    Returns:
        Its arrays.

    Raises:
        ValueError: there is no such method.

    Example:
        >>> tiny = Shape(num_layers=1, width=8, num_heads=2, vocab_size=20)
        >>> dense = step_of("tensor", tiny)
        >>> max(array.length for array in dense.kept), max(array.length for array in step_of("ring", tiny).kept)
        (2, 1)
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    return _counted("tensor" if method == "ring, scores kept" else method, shape)


@cache
def _counted(method: str, shape: Shape) -> Step:
    from lightnet.mixers.ring import CHUNK

    parts = 1 if method == "tensor" else _PARTS
    traced = [_traced(method, shape, *size, parts) for size in ((_BATCH, _LENGTH), (2 * _BATCH, _LENGTH))]
    traced.append(_traced(method, shape, _BATCH, 2 * _LENGTH, parts))
    split = {shape.num_heads, 4 * shape.width, shape.vocab_size}
    state, kept = (
        [_grown(leaves, parts, split) for leaves in zip(*(found[half] for found in traced), strict=True)]
        for half in (0, 1)
    )
    weights = {(2 * array.length, array.numbers) for array in state}
    # The gradient needs the weights too, which are counted already.
    kept = [array for array in kept if array.batch or (2 * array.length, array.numbers) not in weights]
    return Step(state, kept, CHUNK if method == "ring" else 0, shape.num_heads)


def _traced(method: str, shape: Shape, batch: int, length: int, parts: int) -> tuple[list[Any], list[Any]]:
    """Shapes of the weights and of what is kept."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax.sharding import AbstractMesh, AxisType

    model = bert(method, shape, length)
    mesh = AbstractMesh((parts,), ("sequence",), axis_types=(AxisType.Auto,))
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh) if parts > 1 else nullcontext():
        variables = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
        pull = jax.eval_shape(lambda w, x: jax.vjp(partial(loss, model, tokens=x), w)[1], variables, tokens)
    return jax.tree.leaves(variables), jax.tree.leaves(pull)


def _grown(leaves: Sequence[Any], parts: int, split: set[int]) -> Kept:
    """One array from its shapes at the first size, with twice the batch, and with twice the length."""
    first, twice_batch, twice_length = (math.prod(leaf.shape) for leaf in leaves)
    batch, length = round(math.log2(twice_batch / first)), round(math.log2(twice_length / first))
    # What `shard_map` gives has the copies of all devices side by side; what is split counts once.
    copies = parts if batch and not length and leaves[0].shape[0] == parts * _BATCH else 1
    numbers = first * leaves[0].dtype.itemsize / BYTES / copies / _BATCH**batch / _LENGTH**length
    return Kept(numbers, batch, length, bool(split & set(leaves[0].shape)))


def bert(method: str, shape: Shape, length: int) -> Any:
    """A masked language model whose blocks keep what their products, norms and activations are given.

    Args:
        method: see `step_of`.
        shape: of the model.
        length: of its sequences.

    Returns:
        A `lightnet.heads.MaskedLM`.
    """
    import flax.linen as nn
    import jax

    from experiments.mixers import mixer
    from experiments.sequence_parallelism.linformer import Linformer
    from lightnet.backbone import Backbone
    from lightnet.heads import MaskedLM

    mixers: dict[str, Callable[..., Any]] = {
        "lightnet": mixer("lightnet", causal=False),
        "linformer": partial(Linformer, length=length, rank=shape.rank),
    }
    norm = partial(nn.remat(nn.LayerNorm), epsilon=1e-5, use_bias=False)
    backbone = Backbone(
        mixer=partial(mixers.get(method, mixer("softmax", causal=False)), num_heads=shape.num_heads),
        num_layers=shape.num_layers,
        width=shape.width,
        activation=jax.checkpoint(nn.gelu),
        norm=norm,
    )
    return MaskedLM(backbone, vocab_size=shape.vocab_size, num_input_only=0)


def loss(model: Any, variables: Any, tokens: Any) -> Any:
    """Mean cross-entropy of all tokens."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, tokens), tokens).mean()


def largest(fits: Callable[[int], bool], most: int = 1 << 40) -> int:
    """The largest number that fits, if all smaller ones do; 0 if none does.

    Example:
        >>> largest(lambda n: n * n < 50)
        7
    """
    low, high = 0, 1
    while high < most and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
