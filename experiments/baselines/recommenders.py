"""Neural recommenders that others are compared with: SASRec, BERT4Rec, and a recurrent one like GRU4Rec.

All are the same stack of pre-norm blocks over embedded items with the same tied scores, so that they differ in what
mixes positions and in what they are trained on; the published ones differ from it, and from each other, in the places
of norms and the widths. What is causal may be trained on the next item at every place (SASRec, Kang and McAuley 2018,
arXiv 1808.09781); what sees both sides on items that are hidden from it (BERT4Rec, Sun et al. 2019, arXiv 1904.06690).
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


class Size(NamedTuple):
    """Of a recommender: items, channels, blocks, heads of attention, and the rate of dropout."""

    items: int
    width: int
    layers: int
    heads: int = 2
    dropout: float = 0.2


def attention_recommender(size: Size, window: int, *, causal: bool) -> MaskedLM:
    """Softmax attention with learned positions; SASRec if it is causal, BERT4Rec if not.

    Args:
        size: of the model.
        window: places.
        causal: whether a place sees only those before it.

    Returns:
        The module, called with ids (B, L) and perhaps a mask; the id after the last item hides one. It gives scores
        (B, L, items): of the next item if it is so trained, or else of the item at that place.

    Example:
        >>> model = attention_recommender(Size(9, 4, 1), 5, causal=True)
        >>> model.init_with_output(jax.random.key(0), jnp.array([[1, 2, 9]]))[0].shape
        (1, 3, 9)
    """
    mixer = partial(SoftmaxAttention, num_heads=size.heads, causal=causal)
    return _model(size, mixer, partial(LearnedAbsolute, length=window))


def recurrent_recommender(size: Size) -> MaskedLM:
    """Gated recurrent units in the same stack, which need no positions; as GRU4Rec (Hidasi et al., arXiv 1511.06939).

    Args:
        size: of the model.

    Returns:
        As `attention_recommender`; it takes no mask.

    Example:
        >>> model = recurrent_recommender(Size(9, 4, 1))
        >>> model.init_with_output(jax.random.key(0), jnp.array([[1, 2, 8]]))[0].shape
        (1, 3, 9)
    """
    return _model(size, GRU, None)


def _model(size: Size, mixer: Any, positions: Any) -> MaskedLM:
    backbone = Backbone(mixer=mixer, num_layers=size.layers, width=size.width, mlp_ratio=2, dropout=size.dropout)
    return MaskedLM(backbone, size.items, input_positions=positions)


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
        >>> params = model.init(jax.random.key(0), items := jnp.array([[1, 2, 8]]))
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
    """What the last place attends to in an `attention_recommender`.

    Args:
        model: with softmax attention.
        params: its variables.
        items: (B, L) ids, without padding.

    Returns:
        (blocks, B, heads, L), each row with the sum 1.

    Example:
        >>> model = attention_recommender(Size(9, 4, 2), 5, causal=True)
        >>> params = model.init(jax.random.key(0), jnp.array([[1, 2, 3]]))
        >>> attention_weights(model, params, jnp.array([[1, 2, 3]])).sum(-1).round(5).tolist()
        [[[1.0, 1.0]], [[1.0, 1.0]]]
    """

    def projections(module: nn.Module, method: str) -> bool:
        return module.name == "qkv" and method == "__call__"

    _, kept = model.apply(params, items, capture_intermediates=projections, mutable=["intermediates"])
    found = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(kept["intermediates"])}
    maps = []
    for _, leaf in sorted(found.items(), key=lambda entry: jax.tree_util.keystr(entry[0])):
        q, k, _ = jnp.unstack(leaf, axis=2)
        scores = jnp.einsum("bhk,bshk->bhs", q[:, -1], k) / jnp.sqrt(q.shape[-1])
        maps.append(nn.softmax(scores))
    return jnp.stack(maps)
