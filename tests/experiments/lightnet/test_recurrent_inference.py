"""Recurrent inference: the comparison with a parallel pass notices what it shall, and states do not grow."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.lightnet import drift, recurrent_inference

CONFIG = recurrent_inference.PRESETS["smoke"]


@pytest.fixture(scope="module")
def generated():
    """A model with random weights, its prompt, and what it generated."""
    model = recurrent_inference.described(CONFIG, positions="both").build()
    prompt = np.array([5, 6, 7], np.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.asarray(prompt[None])))
    params = jax.tree.map(lambda leaf: 3 * leaf, params)  # so that logits are not all alike
    return (
        model,
        params,
        prompt,
        drift.generate(
            model,
            params,
            prompt,
            seed=0,
            tokens=CONFIG.tokens,
            block=CONFIG.block,
            temperature=CONFIG.temperature,
        ),
    )


@pytest.mark.slow
def test_decoding_agrees_with_the_parallel_pass_and_a_wrong_byte_would_show(generated):
    model, params, prompt, found = generated
    assert found.tokens.shape == (CONFIG.tokens,) and len(set(found.tokens.tolist())) > 5
    apart = drift.drifts(model, params, prompt, found)
    assert apart.shape == (CONFIG.tokens,) and apart.max() < 1e-4
    wrong = found._replace(tokens=np.where(np.arange(CONFIG.tokens) == 20, 0, found.tokens))
    apart = drift.drifts(model, params, prompt, wrong)
    assert apart[:21].max() < 1e-4 < apart[21:].min()


@pytest.mark.slow
def test_nothing_drifts_in_float64_nor_with_remainders_and_each_part_that_is_rounded_does(generated):
    apart = drift.rounding(*generated)
    for part in ("nothing", "sum of the keys' weights", "state of the recurrence"):
        assert apart.pop(part) < 1e-12
    assert min(apart.values()) > 1e-9 and max(apart.values()) < 1e-4


def test_what_is_kept_of_a_state_in_float32():
    from lightnet.backbone import DecodingState
    from lightnet.mixers import LightNetState
    from lightnet.scan import AdditiveState
    from lightnet.scan.additive import Remainder

    with jax.enable_x64(True):
        sums, third = AdditiveState(*jnp.full((3, 1), 1 / 3)), np.float32(1 / 3)
        layer = LightNetState(jnp.zeros(1, int), sums, Remainder(*jnp.full((2, 1), 2.0**-80)), None)
        state = DecodingState(jnp.zeros(1, int), (layer,))
        (kept,) = drift._single(state, (".total",), True).backbone
        assert kept.recurrence.total.item() == third and kept.recurrence.state.item() == 1 / 3
        assert kept.remainder.total.item() == pytest.approx(1 / 3 - np.float64(third), rel=1e-6)
        assert kept.remainder.state.item() == 2.0**-80
        (dropped,) = drift._single(state, (".total",), False).backbone
        assert dropped.recurrence.total.item() == third and dropped.remainder.total.item() == 0


@pytest.mark.slow
def test_states_do_not_grow_and_a_cache_does(generated):
    found = generated[-1]
    sizes = {recurrent_inference.state_bytes(state) for state in found.states}
    assert len(sizes) == 1
    table = recurrent_inference._softmax(replace(CONFIG, caches=(16, 64)))
    assert table["bytes"][1] - table["bytes"][0] == 48 * (16 + 8) * 4  # slots, channels of keys and values, float32


def test_blocks_must_fit():
    with pytest.raises(ValueError, match="tokens: got 10500, expected a multiple of the block, 1000"):
        replace(recurrent_inference.PRESETS["cpu"], tokens=10_500)
