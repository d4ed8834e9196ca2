"""Neural recommenders that others are compared with: SASRec, BERT4Rec, and a recurrent one like GRU4Rec.

All are the same stack of pre-norm blocks over embedded items with the same tied scores, so that they differ in what
mixes positions and in what they are trained on; the published ones differ from it, and from each other, in the places
of norms and the widths. What is causal may be trained on the next item at every place (SASRec, Kang and McAuley 2018,
arXiv 1808.09781); what sees both sides on items that are hidden from it (BERT4Rec, Sun et al. 2019, arXiv 1904.06690).
Histories begin at the left of their rows; their learned positions are counted from the end of the history, as those of
the published models are, whose rows end at the right. So the place behind a longer history is one that was trained.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.baselines.lstm import GRU
from lightnet.backbone import Backbone
from lightnet.heads import MaskedLM
from lightnet.mixers import SoftmaxAttention
from lightnet.positions import LearnedAbsolute
from lightnet.typing import Array
from ssm.sigma import real_items


class Size(NamedTuple):
    """Of a recommender: items, channels, blocks, heads of attention, and the rate of dropout."""

    items: int
    width: int
    layers: int
    heads: int = 2
    dropout: float = 0.2


class LearnedFromEnd(LearnedAbsolute):
    """x + table[place], the last real token of each row having the last place of the table.

    Attributes:
        length: places of the table, and most tokens of a row.

    Example:
        >>> positions, mask = LearnedFromEnd(width=1, length=5), jnp.array([[True, True, False]])
        >>> table = {"params": {"table": jnp.arange(5.0)[:, None]}}
        >>> positions.apply(table, jnp.zeros((1, 3, 1)), mask=mask)[0].ravel().tolist()
        [3.0, 4.0, 0.0]
    """

    def __call__(
        self, x: Array, state: Array | None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Give the tokens their places.

        Args:
            x: (B, L, D).
            state: not supported.
            segment_ids: not supported.
            mask: (B, L), true at real tokens.

        Returns:
            (B, L, D), and the place behind the last one.

        Raises:
            ValueError: something that is not supported is given.
        """
        if state is not None or segment_ids is not None:
            raise ValueError("state, segment_ids: expected None: places are counted from the end of a row")
        tokens = jnp.full(x.shape[0], x.shape[1]) if mask is None else mask.sum(axis=1)
        return super().__call__(x, self.length - tokens, mask=mask)


def attention_recommender(size: Size, window: int, *, causal: bool) -> MaskedLM:
    """Softmax attention with learned positions; SASRec if it is causal, BERT4Rec if not.

    Args:
        size: of the model.
        window: places.
        causal: whether a place sees only those before it.

    Returns:
        The module, called with ids (B, L) and, if there is padding, a mask; the id after the last item hides one. It
        gives scores (B, L, items): of the next item if it is so trained, or else of the item at that place.

    Example:
        >>> model = attention_recommender(Size(9, 4, 1), 5, causal=True)
        >>> jax.jit(model.init_with_output)(jax.random.key(0), jnp.array([[1, 2, 9]]))[0].shape
        (1, 3, 9)
    """
    mixer = partial(SoftmaxAttention, num_heads=size.heads, causal=causal)
    return _model(size, mixer, partial(LearnedFromEnd, length=window))


def recurrent_recommender(size: Size) -> MaskedLM:
    """Gated recurrent units in the same stack, which need no positions; as GRU4Rec (Hidasi et al., arXiv 1511.06939).

    Args:
        size: of the model.

    Returns:
        As `attention_recommender`; it takes no mask.

    Example:
        >>> model = recurrent_recommender(Size(9, 4, 1))
        >>> jax.jit(model.init_with_output)(jax.random.key(0), jnp.array([[1, 2, 8]]))[0].shape
        (1, 3, 9)
    """
    return _model(size, GRU, None)


def _model(size: Size, mixer: Any, positions: Any) -> MaskedLM:
    backbone = Backbone(mixer=mixer, num_layers=size.layers, width=size.width, mlp_ratio=2, dropout=size.dropout)
    return MaskedLM(backbone, size.items, input_positions=positions)


def items_mask(model: MaskedLM, lengths: jax.Array, places: int) -> jax.Array | None:
    """What a model has to be told of rows that begin with their items.

    Args:
        model: any of these.
        lengths: (B,), items of each row.
        places: L of the rows.

    Returns:
        A mask (B, L), true at items; or None for a recurrent model, which reads padding after all items.

    Example:
        >>> model = attention_recommender(Size(9, 4, 1), 5, causal=True)
        >>> items_mask(model, jnp.array([1]), 3).tolist()
        [[True, False, False]]
        >>> items_mask(recurrent_recommender(Size(9, 4, 1)), jnp.array([1]), 3) is None
        True
    """
    return None if model.input_positions is None else real_items(lengths, places)


def hidden_states(model: MaskedLM, params: Any, items: jax.Array, **options: Any) -> tuple[jax.Array, jax.Array]:
    """What the scores are a product of, for a loss that never holds them; the bias of items is left out.

    Args:
        model: any of these.
        params: its variables.
        items: (B, L) ids.
        **options: further arguments of `apply`.

    Returns:
        States (B, L, D), and the embedding of items (V, D).

    Example:
        >>> model = attention_recommender(Size(9, 4, 1), 5, causal=True)
        >>> params = jax.jit(model.init)(jax.random.key(0), items := jnp.array([[1, 2, 8]]))
        >>> h, W = hidden_states(model, nn.unbox(params), items)
        >>> bool(jnp.allclose(h @ W.T, model.apply(params, items), atol=1e-6))
        True
    """

    def backbone(module: nn.Module, method: str) -> bool:
        return module.name == "backbone" and method == "__call__"

    _, kept = model.apply(params, items, capture_intermediates=backbone, mutable=["intermediates"], **options)
    h, _ = kept["intermediates"]["backbone"]["__call__"][0]
    return h, params["params"]["embedding"][: model.vocab_size]


def attention_weights(model: MaskedLM, params: Any, items: jax.Array) -> jax.Array:
    """What each place attends to in an `attention_recommender`.

    Args:
        model: with softmax attention.
        params: its variables.
        items: (B, L) ids, without padding.

    Returns:
        (blocks, B, heads, L, L), each row with the sum 1.

    Example:
        >>> model = attention_recommender(Size(9, 4, 2), 5, causal=True)
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.array([[1, 2, 3]]))
        >>> maps = attention_weights(model, params, jnp.array([[1, 2, 3]]))
        >>> maps.shape, bool(jnp.allclose(maps.sum(-1), 1)), float(maps[0, 0, 0, 0, 2])
        ((2, 1, 2, 3, 3), True, 0.0)
    """

    def projections(module: nn.Module, method: str) -> bool:
        return module.name == "qkv" and method == "__call__"

    _, kept = model.apply(params, items, capture_intermediates=projections, mutable=["intermediates"])
    every = jnp.ones((items.shape[1], items.shape[1]), bool)
    seen = jnp.tril(every) if model.backbone.mixer.keywords["causal"] else every  # type: ignore[attr-defined]
    maps = []
    for i in range(model.backbone.num_layers):
        (leaf,) = kept["intermediates"]["backbone"][f"blocks_{i}"]["mix"]["qkv"]["__call__"]
        q, k, _ = jnp.unstack(leaf, axis=2)
        scores = jnp.einsum("blhk,bshk->bhls", q, k) / jnp.sqrt(q.shape[-1])
        maps.append(nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf)))
    return jnp.stack(maps)
