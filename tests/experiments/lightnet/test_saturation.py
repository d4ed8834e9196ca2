"""The decays that are measured, the task's metrics, and what is read off both."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet import recency, saturation
from experiments.lightnet.saturation import BOTH, LIGHTNET, LINEAR, PRESETS
from experiments.sources.recall import Recall
from experiments.training.task import Loss


class Told:
    """A network whose answers are its variables."""

    def init(self, key, tokens):
        return jnp.zeros(())

    def apply(self, variables, tokens):
        return jnp.broadcast_to(variables, (*tokens.shape, variables.shape[-1]))


def test_accuracies_count_what_is_asked_and_the_last_quarter():
    targets = np.array([[2, 2, 1, 1, 1, 1, 2, 1], [2, 1, 1, 1, 1, 1, 1, 1]], np.int32)
    asked = np.broadcast_to(np.arange(8) >= 1, (2, 8))
    task = recency.recall_task(Told(), Recall(targets, targets, asked), 2)
    always_two = jnp.array([0.0, 0.0, 9.0])
    found = task.evaluate(always_two)
    assert found == pytest.approx({"accuracy": (2 / 7 + 0) / 2, "late_accuracy": (1 / 2 + 0) / 2})
    loss = task.loss(always_two, {"tokens": targets, "targets": targets, "asked": asked}, None)
    assert isinstance(loss, Loss) and float(loss.weight) == 14
    log_z = np.log(2 + np.exp(9))
    assert float(loss.value) == pytest.approx((2 * (log_z - 9) + 12 * log_z) / 14, rel=1e-5)


def test_means_near_a_step_are_of_that_step():
    values = np.arange(2, 3000) ** 2.0  # of t = 2, 3, ...
    found = saturation._around(values, (2, 9, 10, 1000))
    near = np.arange(900, 1101)
    np.testing.assert_allclose(found, [4, 81, (81 + 100 + 121) / 3, np.mean(near**2.0)])


@pytest.mark.slow
def test_measured_decays_are_those_of_the_logits():
    config = replace(PRESETS["cpu"], channels=1024, steps=(2, 5, 20))
    means, median = saturation._decays(config, 1.0, seed=4)
    expected = saturation._expected(config, 1.0)
    # The spread of t (-g_t) over channels is below 1.5: five standard deviations.
    np.testing.assert_allclose(means, expected, atol=5 * 1.5 / np.sqrt(1024))
    assert 0.4 < median < 0.8
    assert not np.allclose(saturation._decays(config, 1.0, seed=5)[0], means)


@pytest.mark.slow
def test_decays_of_a_model_are_those_of_its_keys():
    network = recency.model(5, mixer="lightnet", positions="none", layers=2, width=8, heads=2, remat="none")
    tokens = np.random.default_rng(0).integers(0, 5, (2, 9))
    variables = jax.jit(network.init)(jax.random.key(0), jnp.asarray(tokens))
    found = recency.scaled_decays(network, variables, tokens)
    assert found.shape == (2, 8)
    params = variables["params"]
    kernel = np.asarray(params["backbone"]["blocks_0"]["mix"]["qkv"]["kernel"].unbox())[:, 1]
    embedded = np.asarray(params["embedding"].unbox())[tokens]
    normed = embedded / np.sqrt((embedded**2).mean(axis=-1, keepdims=True) + 1e-6)
    z = np.logaddexp.accumulate(np.einsum("bld,dhk->blhk", normed, kernel), axis=1)
    expected = (z[:, 1:] - z[:, :-1]).mean(axis=(0, 2, 3)) * np.arange(2, 10)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


def test_claims_on_the_task_compare_the_right_rows():
    config = replace(PRESETS["cpu"], seeds=(0, 1), lengths=(64, 512))
    late = {
        (LIGHTNET, 64): (0.5, 0.4),
        (LIGHTNET, 512): (0.1, 0.2),
        (LINEAR, 64): (0.1, 0.1),
        (LINEAR, 512): (0.05, 0.1),
        (BOTH, 64): (1.0, 1.0),
        (BOTH, 512): (0.9, 0.8),
    }
    rows = [(*key, seed, value) for key, values in late.items() for seed, value in enumerate(values)]
    columns = dict(zip(("model", "length", "seed", "late_accuracy"), map(list, zip(*rows, strict=True)), strict=True))
    measured = saturation._of_task(config, columns)
    np.testing.assert_allclose(measured["lightnet/R11-recency-at-length"], [0.4 - 0.05, 0.3 - 0.1])
    np.testing.assert_allclose(measured["lightnet/R11-positions-restore-recency"], [0.8, 0.6])


def test_claims_on_the_decays_use_the_unit_spread():
    config = replace(PRESETS["cpu"], spreads=(0.5, 1.0), steps=(4, 16, 256, 4000))
    decays = [{0.5: (np.full(4, 9.0), 9.0), 1.0: (np.array([50, 1.2, 1.0, 0.8]), 0.6)}]
    expected = {0.5: np.ones(4), 1.0: np.array([1, 1.2, 1.25, 0.8])}
    measured = saturation._of_decays(config, decays, expected)
    assert measured["lightnet/decay-saturates"] == pytest.approx([1.5])
    assert measured["lightnet/decay-follows-expectation"] == pytest.approx([0.2])
    assert measured["lightnet/decay-median"] == [0.6]


def test_sequences_are_new_for_every_update_length_and_seed():
    config = replace(PRESETS["smoke"], lengths=(8, 16))
    fit, held_out = saturation._sequences(config, 8, 0)
    assert fit.tokens.shape == (2 * 2, 8) and held_out.tokens.shape == (4, 8)
    assert len(np.unique(np.concatenate([fit.tokens, held_out.tokens]), axis=0)) == 8
    assert (saturation._sequences(config, 8, 1)[0].tokens != fit.tokens).any()
    np.testing.assert_array_equal(saturation._sequences(config, 8, 0)[0].tokens, fit.tokens)


def shortened(**changes):
    cpu = PRESETS["cpu"]
    short = {"seeds": (0,), "channels": 8, "layers": 1, "batch_tokens": 32, "evaluation_tokens": 64}
    return replace(cpu, train=replace(cpu.train, steps=2, eval_every=2), **{**short, **changes})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_measure_every_claim(tmp_path):
    result = saturation.run(shortened(models=(LIGHTNET, BOTH, LINEAR), lengths=(16, 32)), tmp_path)
    assert set(result.measured) == {claim.id for claim in saturation.CLAIMS}
    assert len(result.tables["task"]["model"]) == 3 * 2
    shapes = {name: values.shape for name, values in result.series["trained"].items()}
    assert shapes == {"16 tokens": (1, 1, 15), "32 tokens": (1, 1, 31)}
    assert result.series["logits"]["mean"].shape == (1, 3, 12)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("models", ("multiplicative-2+none",), "models: got multiplicative-2 with none, but"),
        ("models", ("lightnet",), "models: got 'lightnet', expected"),
        ("steps", (1, 2), "the smallest of steps: got 1"),
        ("batch_tokens", 100, "batch_tokens: got 100"),
        ("heads", 5, "heads: got 5"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["cpu"], **{field: value})
