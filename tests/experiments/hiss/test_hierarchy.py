"""The table of hierarchies and flat models: recordings, which evaluation counts, and what is claimed of which model."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.hiss import comparison, hierarchy
from experiments.hiss.comparison import Part, Trained, parts, recipe, train_model
from experiments.sources.sensors import Sensors
from tests.experiments.result_run import check_run

SMALL = replace(
    hierarchy.PRESETS["smoke"],
    models=("lstm over lstm",),
    filtered=("lstm over lstm",),
    seeds=(3, 5),
    sensors=Sensors(length=20),
    recordings=4,
    train=recipe(2, 1, 2),
)


def test_recordings_of_a_seed_are_the_same_for_all_models_and_nested():
    more, fewer, other = (parts(SMALL, seed, count) for seed, count in ((3, 6), (3, 4), (5, 4)))
    assert more["train"].inputs.shape == (6, 20, 6) and more["train"].targets.shape == (6, 2, 2)
    np.testing.assert_array_equal(more["train"].targets[:4], fewer["train"].targets)
    np.testing.assert_array_equal(more["test"].targets, fewer["test"].targets)
    assert np.abs(more["test"].targets - other["test"].targets).max() > 0.1
    assert np.abs(more["test"].targets - more["validation"].targets).max() > 0.1
    _, velocity = SMALL.sensors.sample((3, 0), 4)
    np.testing.assert_array_equal(fewer["train"].targets, velocity[:, [0, 10]])
    np.testing.assert_allclose(more["train"].inputs.mean(axis=(0, 1)), 0, atol=1e-5)
    assert np.abs(more["test"].inputs.mean(axis=(0, 1))).max() > 0.01  # by the training part's mean, not its own
    assert np.abs(parts(SMALL, 3, 4, cutoff=5.0)["train"].inputs - fewer["train"].inputs).max() > 0.1


def test_the_test_error_that_counts_is_where_the_validation_error_is_smallest():
    found = Trained(np.arange(3), np.array([[3.0, 1, 2], [1, 2, 3]]), np.array([[9.0, 8, 7], [6, 5, 4]]), 1, 0.0)
    assert found.errors.tolist() == [8.0, 6.0]


def test_errors_are_means_of_squares_of_each_models_own_recordings():
    class Scaled:
        def apply(self, variables, x):
            return variables["params"]["a"] * x[:, ::2, :1]

    told = {"validation": (1.0, 5.0), "test": (4.0, 1.0)}
    given = [
        {part: Part(np.full((2, 4, 1), 2.0), np.full((2, 2, 1), own[i])) for part, own in told.items()} for i in (0, 1)
    ]
    measured = comparison._errors(Scaled(), given, (4, 9))({"a": jnp.array([1.0, 2.0])})
    assert measured == {"validation 4": 1.0, "test 4": 4.0, "validation 9": 1.0, "test 9": 9.0}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_each_seed_is_trained_on_its_own_recordings_as_if_it_were_alone(tmp_path):
    together = train_model(SMALL, "lstm over lstm", 4, tmp_path / "both")
    alone = train_model(replace(SMALL, seeds=(5,)), "lstm over lstm", 4, tmp_path / "one")
    np.testing.assert_allclose(together.test[1], alone.test[0], rtol=1e-5)
    assert together.updates.tolist() == [0, 1, 2] and together.validation.shape == (2, 3)
    assert together.parameters == alone.parameters


def errors_of_all(**changed):
    errors = {(name, False): np.full(2, 0.5) for name in hierarchy.PRESETS["cpu"].models}
    errors |= {(name, True): np.full(2, 0.5) for name in hierarchy.FILTERED}
    return errors | {tuple(name): np.array(values) for name, values in changed.values()}


def test_claims_are_about_the_models_that_they_name():
    measured = hierarchy._measured(errors_of_all())
    assert set(measured) == {claim.id for claim in hierarchy.CLAIMS}
    assert all((values == 0).all() for values in measured.values())
    measured = hierarchy._measured(
        errors_of_all(
            best=(("s4 over mamba", False), [0.1, 0.3]),
            lstm=(("flat lstm end", False), [0.4, 0.6]),
            s4=(("flat s4 start", False), [0.4, 0.6]),
            mamba=(("flat mamba start", False), [0.3, 0.45]),
            transformer=(("flat transformer start", False), [0.9, 0.4]),
            behind=(("mamba over s4", True), [0.4, 0.6]),
        )
    )
    short = {name.removeprefix("hiss/"): np.round(values, 6).tolist() for name, values in measured.items()}
    assert short["abstract-filtering"] == short["filtering-against-aligned-flat"] == [0.2, -0.2]
    assert short["unfair-flat-offset-lstm"] == [0.1, -0.1] and short["unfair-flat-offset-s4"] == [-0.1, 0.1]
    assert short["unfair-flat-offset-mamba"] == [-0.2, -0.05] and short["unfair-flat-offset"] == [-0.2, -0.1]
    assert short["synthetic-23-percent"] == [round(1 - 0.1 / 0.3, 6), round(1 - 0.3 / 0.45, 6)]
    assert short["synthetic-against-best-aligned-flat"] == [0.8, 0.4]
    assert short["synthetic-low-level-s4"] == [-0.4, -0.2]
    assert short["synthetic-flat-ordering"] == [0.1, -0.2]


def test_claims_whose_models_are_absent_are_not_measured():
    some = {key: values for key, values in errors_of_all().items() if key[0] != "lstm over s4" and not key[1]}
    assert set(hierarchy._measured(some)) == {f"hiss/unfair-flat-offset-{kind}" for kind in hierarchy.FLAT_KINDS}


def test_smoke_run(tmp_path):
    names = {claim.id.partition("/")[2] for claim in hierarchy.CLAIMS}
    check_run(hierarchy, SMALL, tmp_path, absent=names)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("models", ("mamba over s5",), "models: got 'mamba over s5': unknown level 's5'"),
        ("models", (), "models: got \\(\\), expected at least one"),
        ("filtered", ("flat lstm end",) * 2, "filtered: got .*, expected at least one, each of them once"),
        ("recordings", 1, "recordings: got 1, expected at least 2"),
        ("cutoff", 25.0, "cutoff: got 25.0"),
        ("freq_ratio", 7, "sensors.length: got 20, expected a multiple of freq_ratio, 7"),
        ("width", 0, "width: got 0"),
        ("train", replace(SMALL.train, eval_every=0), "eval_every: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **{field: value})
