"""Digits generated: equal parameters, presets that run, and ratios that are the right way up."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet import generation
from experiments.lightnet.generation import BOTH, LINEAR, NONE, SOFTMAX


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cpu", pytest.param("gpu", marks=[pytest.mark.slow, pytest.mark.exhaustive])])
def test_all_variants_have_the_same_number_of_parameters_within_one_percent(preset):
    config = generation.PRESETS[preset]
    counts = {v: generation._count(config, v, generation.matched_hidden(config, v)) for v in config.variants}
    assert max(counts.values()) / min(counts.values()) < 1.01
    assert generation.matched_hidden(config, config.variants[0]) == config.hidden
    assert generation.matched_hidden(config, ("lightnet", "none")) > config.hidden
    assert counts["lightnet", "both"] == {"cpu": 49_940, "gpu": 1_746_705}[preset]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_gpu_preset(tmp_path):
    config = generation.PRESETS["gpu"]
    two, few = replace(config.train, steps=2, batch_size=16), replace(config.judge, steps=2)
    size = {"seeds": (0, 1), "layers": 1, "samples": 40, "sampling_steps": 2}
    variants = (("lightnet", "both"), ("softmax", "both"))
    short = replace(config, **size, variants=variants, at_once=2, guidance=1.5, train=two, judge=few)
    result = generation.run(short, tmp_path)
    assert set(result.measured) == {"lightnet/R6-digits-generation", "lightnet/R6-class-accuracy"}
    assert all(np.isfinite(values).all() and len(values) == 2 for values in result.measured.values())
    assert all(picture.shape == (40, 8, 8) for picture in result.series["pictures"].values())


def test_ratios_are_those_of_the_claims():
    table = {"variant": [], "distance": [], "accuracy": []}
    for name, distance in ((BOTH, 2.0), (NONE, 6.0), (SOFTMAX, 1.0), (LINEAR, 4.0)):
        for seed in (0, 1):
            for column, entry in zip(table.values(), (name, distance * (seed + 1), 80.0 + seed), strict=True):
                column.append(entry)
    measured = {id.removeprefix("lightnet/"): values.tolist() for id, values in generation._measured(table).items()}
    assert measured["R6-digits-generation"] == [2.0, 2.0]
    assert measured["R6-worse-without-positions"] == [3.0, 3.0]
    assert measured["R6-against-linear"] == [0.5, 0.5]
    assert measured["R6-class-accuracy"] == [80.0, 81.0]


def test_some_classes_are_not_told_and_the_true_noise_has_no_loss():
    class Recorder:
        def apply(self, variables, x, time, classes):
            self.classes = classes
            return jnp.zeros_like(x)

    config, recorder = replace(generation.PRESETS["cpu"], no_class=0.5), Recorder()
    labels = np.arange(100, dtype=np.int32) % 10
    loss = generation._loss(
        config, recorder, np.zeros((100, 8, 8, 1), np.float32), labels, {}, jnp.arange(100), jax.random.key(0)
    )
    untold = np.asarray(recorder.classes) == generation.CLASSES
    assert 30 < untold.sum() < 70 and float(loss) == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(np.asarray(recorder.classes)[~untold], labels[~untold])


def test_values_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="samples: got 10, expected at least 40"):
        replace(generation.PRESETS["cpu"], samples=10)
    with pytest.raises(ValueError, match="variants: got mamba with both"):
        replace(generation.PRESETS["cpu"], variants=(("mamba", "both"),))
    with pytest.raises(ValueError, match="variants: expected at least one, each of them once"):
        replace(generation.PRESETS["cpu"], variants=())


def test_a_variant_that_is_larger_even_without_its_glu_is_refused_before_any_training(tmp_path):
    variants = (("lightnet", "both"), ("lightnet", "seqpe"))
    config = replace(generation.PRESETS["smoke"], variants=variants)
    with pytest.raises(ValueError, match="hidden: got 8, expected at least 70, so that lightnet with seqpe") as found:
        generation.run(config, tmp_path)
    needed = int(str(found.value).split("at least ")[1].split(",")[0])
    assert generation.matched_hidden(replace(config, hidden=needed), variants[1]) == 1
    assert not any(tmp_path.iterdir())
