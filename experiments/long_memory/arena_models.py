"""The models of the Long Range Arena: one stack around each mixer, of equal size, and the mean of what is real."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from experiments import mixers
from experiments.equal_size import count_parameters, hidden_for
from experiments.long_memory.arena_tasks import ArenaTask
from experiments.long_memory.both_ways import BothWays
from experiments.long_memory.networks import ModelConfig
from lightnet.backbone import Backbone, partitioned
from lightnet.backbone.language_model import embedded
from lightnet.heads import patch_embedding
from lightnet.typing import Array

SINGLE_SCANS = ("s4", "s4d")
STEPPED = ("s4", "s4d", "s5", "s5-bidirectional")


class SequenceClassifier(nn.Module):
    """Classes of sequences of ids or of pixels: embedding, positions, a backbone, the mean of real tokens, a layer.

    Of two texts u, v that share everything so far, [u, v, u * v, u - v] goes through one more layer, as in S4's code.

    Attributes:
        backbone: the stack.
        classes: number of logits.
        vocabulary: ids; 0 where tokens are pixels, whose values from 0 to 255 become those from -1 to 1.
        texts: sequences that are read for one answer, 1 or 2.
        told: whether positions and mixers are told what is padding. Causal ones need not be: it stands behind.
        input_positions: constructor of an encoding of embedded tokens, called with `width` and `dtype`, or None.

    Example:
        >>> import jax
        >>> from ssm.s4d import S4D
        >>> model = SequenceClassifier(Backbone(S4D, num_layers=1, width=4), classes=3, vocabulary=9)
        >>> tokens, lengths = jnp.array([[1, 2, 0]]), jnp.array([[2]])
        >>> logits, _ = jax.jit(model.init_with_output)(jax.random.key(0), tokens, lengths)
        >>> logits.shape
        (1, 3)
    """

    backbone: Backbone
    classes: int
    vocabulary: int
    texts: int = 1
    told: bool = False
    input_positions: Callable[..., nn.Module] | None = None

    def setup(self) -> None:
        """Declare the embedding, positions and the last layers."""
        width, dtype = self.backbone.width, self.backbone.dtype
        init = nn.initializers.normal(0.02)
        if self.vocabulary:
            self.embedding = self.param("embedding", partitioned(init, "vocab", "embed"), (self.vocabulary, width))
        else:
            self.embed = patch_embedding(width, dtype)
        if self.input_positions is not None:
            self.places = self.input_positions(width=width, dtype=dtype)
        if self.texts == 2:
            self.compare = nn.Dense(width, kernel_init=partitioned(nn.initializers.lecun_normal(), None, "embed"))
        self.head = nn.Dense(self.classes, kernel_init=partitioned(init, "embed", None))

    def __call__(self, tokens: Array, lengths: Array) -> Array:
        """Logits of each class.

        Args:
            tokens: (B, texts * L), one text behind the other, each filled up behind.
            lengths: (B, texts) real tokens of each.

        Returns:
            Logits (B, classes), float32 at least.
        """
        rows = tokens.reshape(len(tokens) * self.texts, -1)
        real = jnp.arange(rows.shape[1])[None] < lengths.reshape(-1, 1)
        mask = real if self.told else None
        x = self._embedded(rows)
        if self.input_positions is not None:
            x, _ = self.places(x, mask=mask)
        x, _ = self.backbone(x, mask=mask)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        pooled = jnp.sum(x, axis=1, where=real[..., None]) / real.sum(axis=1, keepdims=True)
        if self.texts == 2:
            pooled = self._compared(*jnp.unstack(pooled.reshape(len(tokens), 2, -1), axis=1))
        return self.head(pooled)

    def _embedded(self, rows: Array) -> Array:
        dtype = self.backbone.dtype
        if not self.vocabulary:
            return self.embed(rows[..., None].astype(jnp.float32 if dtype is None else dtype) / 127.5 - 1)
        x = embedded(self.embedding, rows)
        return x if dtype is None else x.astype(dtype)

    def _compared(self, u: Array, v: Array) -> Array:
        return nn.gelu(self.compare(jnp.concatenate([u, v, u * v, u - v], axis=-1)))


def classifier(
    config: ModelConfig, name: str, task: ArenaTask, length: int, *, both_ways: bool, **stack_options: Any
) -> tuple[SequenceClassifier, int]:
    """A model of about `config.parameters` parameters.

    Args:
        config: its size.
        name: mixer and positions.
        task: what it is for.
        length: tokens of a sequence.
        both_ways: whether S4 and S4D read from the end too.
        **stack_options: see `lightnet.models.stack`.

    Returns:
        The model, and the width of its GLU.

    Example:
        >>> from experiments.long_memory.arena_tasks import TASKS
        >>> model, hidden = classifier(ModelConfig(1, 8, 2, 3000), "s4d+none", TASKS["text"], 50, both_ways=True)
        >>> model.classes, model.told, hidden
        (2, True, 1)
    """
    shapes = (jnp.zeros((1, task.texts * 4), jnp.uint8), jnp.ones((1, task.texts), jnp.int32))
    build = partial(_built, config, name, task, length, both_ways, stack_options)
    hidden = hidden_for(lambda width: count_parameters(build(width), *shapes), config.parameters)
    return build(hidden), hidden


def _built(
    config: ModelConfig,
    name: str,
    task: ArenaTask,
    length: int,
    both_ways: bool,
    stack_options: dict[str, Any],
    hidden: int,
) -> SequenceClassifier:
    from lightnet.models import Size, stack

    kind, _, encoding = name.partition("+")
    size = Size(config.num_layers, config.width, config.num_heads, "ours", hidden=hidden)
    encodings = mixers.positions(encoding, length=length)
    mixer = mixers.mixer(kind, causal=False, **({"dt_min": task.dt_min} if kind in STEPPED else {}))
    twice = both_ways and kind in SINGLE_SCANS
    backbone = stack(size, _twice(mixer) if twice else mixer, relative=encodings["relative"], **stack_options)
    told = task.padded and (twice or kind not in mixers.CAUSAL_ONLY)
    positions = encodings["input_positions"]
    return SequenceClassifier(backbone, task.classes, task.vocabulary, task.texts, told, positions)


def _twice(mixer: Callable[..., Any]) -> Callable[..., Any]:
    def both(*, num_heads: int, relative: Any = None, **options: Any) -> BothWays:
        return BothWays(partial(mixer, num_heads=num_heads, relative=relative), **options)

    return both
