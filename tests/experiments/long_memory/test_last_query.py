"""Attention of the last token only, against all pairs, in the model that path length is measured with."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.meta import unbox

from experiments.long_memory.last_query import LastQueryAttention
from experiments.long_memory.learning import answer_loss
from experiments.long_memory.networks import SlowModelConfig, network
from experiments.sources.memory import distant_recall
from lightnet.mixers import SoftmaxAttention


def test_answers_and_gradients_are_those_of_all_pairs():
    model, _ = network(SlowModelConfig(1, 8, 2, 1000), "softmax+both", 9)
    of_model = model.backbone.mixer
    assert of_model.func is LastQueryAttention
    whole = model.clone(backbone=model.backbone.clone(mixer=partial(SoftmaxAttention, **of_model.keywords)))
    batch = distant_recall(jax.random.key(0), 3, length=11, payloads=3, alphabet=9, shown=2)
    params = unbox(model.init(jax.random.key(1), batch.tokens))
    leaves, tree = jax.tree.flatten(params)  # larger ones, so that attention is not even
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten([x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])

    def loss(of, params):
        logits = of.apply(params, batch.tokens)
        return answer_loss(logits, batch), logits[:, -1]

    (_, told), slopes = jax.jit(jax.value_and_grad(lambda p: loss(model, p), has_aux=True))(params)
    (_, expected), expected_slopes = jax.jit(jax.value_and_grad(lambda p: loss(whole, p), has_aux=True))(params)
    np.testing.assert_allclose(told, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slopes, expected_slopes)


def test_what_is_not_one_run_of_real_tokens_is_refused():
    mixer = LastQueryAttention(width=4, num_heads=2)
    with pytest.raises(ValueError, match="segment_ids, mask: expected None"):
        mixer.init(jax.random.key(0), jnp.ones((1, 3, 4)), mask=jnp.ones((1, 3), bool))


def test_more_than_one_block_is_refused():
    with pytest.raises(ValueError, match="num_layers: got 2"):
        SlowModelConfig(2)
