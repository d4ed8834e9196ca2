"""The presets of the first result: each really runs, and the published models have the published sizes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sources import SwitchingSource
from experiments.tokenization import entropy_gap
from experiments.tokenization.transformer import transformer

SHORT = {"seeds": (0,), "evaluation_rows": 16, "reference_rows": 20, "character_steps": 2, "plateau": (1, 2)}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("preset", ["cpu", "gpu", "paper"])
def test_two_updates_of_every_preset_at_least_depth_and_widths(preset, tmp_path):
    config = entropy_gap.PRESETS[preset]
    short = replace(config, **SHORT, layers=config.layers[:1], train=replace(config.train, steps=2, eval_every=1))
    result = entropy_gap.run(short, tmp_path)
    assert set(result.measured) == {claim.id for claim in entropy_gap.CLAIMS}
    assert all(np.isfinite(values).all() and len(values) == 1 for values in result.measured.values())
    assert result.series["BPE"]["loss"].shape == (1, len(config.widths), 3)
    # Untrained models guess uniformly: log 2 per character, log 10 per token.
    assert result.series["characters"]["loss"][0, 0, 0] == pytest.approx(np.log(2), abs=0.05)


def test_a_longer_training_begins_with_the_same_rows():
    config = entropy_gap.PRESETS["smoke"]
    source = SwitchingSource(config.order, config.p, config.q)
    longer = replace(config, train=replace(config.train, steps=700))
    short, long = (entropy_gap._training_rows(source, c, seed=3) for c in (config, longer))
    assert len(short) < entropy_gap.CHUNK_ROWS < len(long)
    np.testing.assert_array_equal(long[: len(short)], short)
    assert abs(long.mean() - 0.5) < 0.01 and len(np.unique(long, axis=0)) == len(long)


def test_the_smallest_published_model_on_characters_has_9k_parameters():
    config = entropy_gap.PRESETS["paper"]
    model = transformer(2, config.length, layers=3, width=min(config.widths), heads=config.heads)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    # 8,812 parameters of Figure 5a's "9K" model and the ten numbers of the start token.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 8_822


def test_the_smallest_published_model_on_ten_tokens_has_18k_parameters():
    """Figure 5a; with a position for each of the 173 tokens that the longest of some rows of 512 characters has."""
    model = transformer(10, 173, layers=3, width=20, heads=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    width, tokens = 20, 10
    expected = 3 * 12 * width**2 + (tokens + 1 + 173) * width + 7 * width + tokens
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected == 18_230


def test_the_published_settings_are_those_of_the_paper():
    config = entropy_gap.PRESETS["paper"]
    assert (config.order, config.p, config.q, config.length, len(config.seeds)) == (2, 0.8, 0.8, 512, 5)
    assert (config.character_steps, config.train.steps, config.dictionary_size) == (200, 300, 10)
    optimizer = config.train.optimizer
    assert (optimizer.learning_rate, optimizer.b1, optimizer.b2, optimizer.weight_decay) == (2e-3, 0.9, 0.95, 1e-3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("p", 1.5, "p: got 1.5, expected between 0 and 1"),
        ("layers", (), "the smallest of layers: got 0, expected at least 1"),
        ("character_steps", -3, "character_steps: got -3, expected at least 1"),
        ("heads", 3, "heads: got 3, expected a divisor of each width, 20 among them"),
        ("plateau", (10, 5), "the first step of plateau: got 10, expected between 0 and 5"),
        ("length", 10**9, "characters to train on"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(entropy_gap.PRESETS["cpu"], **{field: value})
