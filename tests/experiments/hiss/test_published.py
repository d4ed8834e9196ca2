"""The published comparison: its recipe, what becomes of a recording before a model, errors, claims, and two updates."""

from dataclasses import replace

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.hiss import published
from experiments.hiss.data_sets import DATA_SETS, load
from experiments.hiss.hierarchy import FLAT_END, FLAT_START, HIERARCHIES
from experiments.hiss.published_training import LOSS, MSE, examples_of, network_of, squared_errors, training_task
from experiments.hiss.recordings import Recording
from experiments.hiss.released import PUBLISHED, Preparation, Scale, input_scale, target_scale
from experiments.training.recording import recording
from tests.experiments.hiss import made_up_recordings as made_up
from tests.experiments.result_run import check_run

PAPER = published.PRESETS["paper"]


def recordings(channels=3, targets=2, lengths=(3, 5, 2), size=1.0):
    rng = np.random.default_rng(channels)
    return [
        Recording(f"{T}", size * rng.normal(2, 3, (10 * T, channels)), rng.normal(1, 2, (T, targets))) for T in lengths
    ]


def test_the_recipe_is_the_released_one():
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert (train.batch_size, train.precision, PAPER.epochs, PAPER.dropout) == (4, "float32", 300, 0.1)
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.weight_decay) == (1e-4, "constant", 0)
    assert (optimizer.b1, optimizer.b2, optimizer.clip_norm) == (0.9, 0.999, 0)
    assert set(PUBLISHED) == set(DATA_SETS) and len(PAPER.models) == 20
    assert np.median([own.gain for own in PUBLISHED.values()]) == pytest.approx(0.232, abs=1e-4)


@pytest.mark.parametrize(("model", "flat"), [("mamba over s4", False), ("flat mamba over s4 end", True)])
def test_levels_have_the_sizes_that_were_released_for_the_set(model, flat):
    network = network_of(PAPER, "marker_writing", model, 2)
    assert (network.high.width, network.high.num_layers, network.high.dropout) == (128, 6, 0.0)
    assert (network.low.width, network.low.num_layers, network.low.dropout) == (256, 6, 0.1)
    assert [level.mixer.keywords["state_size"] for level in (network.high, network.low)] == [16, 64]
    assert flat == hasattr(network, "offset") and network.freq_ratio == 10


def test_scales_are_those_of_each_set():
    given = recordings(channels=6)
    samples = np.concatenate([own.samples for own in given])
    differences = np.concatenate([np.diff(own.samples, axis=0, prepend=own.samples[:1]) for own in given])
    both = np.concatenate([samples, differences], axis=1)
    for name in ("marker_writing", "ronin"):
        scale = input_scale(name, given)
        np.testing.assert_allclose(scale.shift, both.mean(axis=0))
        np.testing.assert_allclose(scale.size, 3 * both.std(axis=0))
    for name in ("intrinsic_slip", "vector"):
        scale = input_scale(name, given)
        np.testing.assert_allclose(scale.size, np.ptp(both, axis=0) / 5)
        assert not scale.shift.any()
    assert (input_scale("joystick_control", given).size == 1000).all()
    body = recordings(channels=117)
    size, samples = input_scale("total_capture", body).size, np.concatenate([own.samples for own in body])
    np.testing.assert_allclose(size[:39], np.ptp(samples[:, :39], axis=0))
    assert (size[39:156] == 1).all() and (size[156:] > 1).all() and size.shape == (234,)


def test_scales_of_targets_are_those_of_each_set():
    targets = [own.targets for own in recordings(targets=3)]
    together = np.concatenate(targets)
    for name, times in (
        ("marker_writing", 1),
        ("ronin", 1),
        ("vector", 1),
        ("joystick_control", 2),
        ("total_capture", 3),
    ):
        scale = target_scale(name, targets)
        np.testing.assert_allclose(scale.shift, together.mean(axis=0))
        np.testing.assert_allclose(scale.size, times * together.std(axis=0))
    slip = target_scale("intrinsic_slip", targets)
    np.testing.assert_allclose(slip.size, together.std(axis=0)[[0, 0, 2]])
    assert not slip.shift.any()


def test_examples_are_limited_scaled_by_the_part_that_is_trained_on_and_padded_to_the_longest():
    train, held_out = recordings(size=1000.0), recordings(lengths=(6,), size=1000.0)
    prepare = Preparation.of("marker_writing", train, held_out)
    example = prepare(train[2])
    assert example["inputs"].shape == (60, 6) and example["targets"].shape == (6, 2) and example["chunks"] == 2
    assert not example["inputs"][20:].any() and not example["targets"][2:].any()
    samples = train[2].samples
    limited = np.concatenate([samples, np.diff(samples, axis=0, prepend=samples[:1])], axis=1).clip(-3000, 3000)
    assert (limited == 3000).any()
    expected = (limited - prepare.inputs.shift) / prepare.inputs.size
    np.testing.assert_allclose(example["inputs"][:20], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(prepare.inputs.size, input_scale("marker_writing", train).size)
    still = Preparation.of("vector", [Recording("", np.ones((10, 1)), np.ones((1, 1)))], [])
    assert np.isfinite(still(Recording("", np.ones((10, 1)), np.ones((1, 1))))["inputs"]).all()


def test_only_ronin_is_given_another_heading_each_time():
    train = recordings(channels=6, lengths=(2,))
    plain = Preparation(Scale(np.zeros(12), np.ones(12)), Scale(np.zeros(2), np.ones(2)), 2)
    first, second = (examples_of("ronin", train, plain, seed=0)[i] for i in range(2))
    assert np.abs(first["targets"] - second["targets"]).max() > 0.1
    for example in (first, second):
        for of, ours in (
            (example["inputs"], plain(train[0])["inputs"]),
            (example["targets"], plain(train[0])["targets"]),
        ):
            np.testing.assert_allclose(
                np.linalg.norm(of[:, :2], axis=1), np.linalg.norm(ours[:, :2], axis=1), rtol=1e-5
            )
        heading = [np.arctan2(x[:, 1], x[:, 0]) for x in (example["inputs"], example["targets"])]
        was = [np.arctan2(x[:, 1], x[:, 0]) for x in (plain(train[0])["inputs"], plain(train[0])["targets"])]
        turns = np.concatenate([a - b for a, b in zip(heading, was, strict=True)]) % (2 * np.pi)
        np.testing.assert_allclose(turns, turns[0], atol=1e-4)
        np.testing.assert_allclose(example["inputs"][:, 2], plain(train[0])["inputs"][:, 2])  # the vertical axis
    same = examples_of("vector", train, plain, seed=0)[1]
    np.testing.assert_array_equal(same["inputs"], plain(train[0])["inputs"])


class Zero:
    """A model that always tells 0."""

    def init(self, key, x):
        return {"params": {}}

    def apply(self, variables, x, rngs=None):
        return jnp.zeros((x.shape[0], x.shape[1] // 10, 2))


def test_errors_are_means_over_all_real_chunks():
    train, held_out = recordings(), recordings(lengths=(4, 1, 2))
    prepare = Preparation.of("joystick_control", train, held_out)
    task = training_task(Zero(), prepare, held_out, batch_size=2)
    scaled = np.concatenate([(own.targets - prepare.targets.shift) / prepare.targets.size for own in held_out])
    found = task.evaluate({})
    assert found[LOSS] == pytest.approx((scaled**2).mean(), rel=1e-5)
    # what is told is the mean of the part that is trained on
    told = np.concatenate([own.targets for own in held_out]) - prepare.targets.shift
    assert found[MSE] == pytest.approx((told**2).mean(), rel=1e-5)
    (batch,) = grain.MapDataset.source(held_out).map(prepare).batch(3)
    loss = task.loss({}, batch, None)
    assert float(loss.value) == pytest.approx(found[LOSS], rel=1e-5) and loss.weight == 7
    poisoned = {
        **batch,
        "targets": np.where(np.arange(5)[None, :, None] < batch["chunks"][:, None, None], batch["targets"], np.nan),
    }
    np.testing.assert_array_equal(
        squared_errors(jnp.zeros((3, 5, 2)), poisoned), squared_errors(jnp.zeros((3, 5, 2)), batch)
    )


WRITERS = {
    "marker_writing": lambda place, i: made_up.reskin_and_kinova(place / f"demonstration_{i}", i),
    "intrinsic_slip": lambda place, i: made_up.reskin_and_kinova(place / "box" / f"demonstration_{i}", i),
    "joystick_control": lambda place, i: made_up.xela_and_joystick(place / f"demonstration_{i}"),
    "vector": lambda place, i: made_up.vector(place / f"{i}"),
}


def write(folder, name):
    """Five recordings, of which four are trained on; of sets that come divided three or one."""
    data_set = DATA_SETS[name]
    place = folder / data_set.folder
    if name in WRITERS:
        for i in range(5):
            WRITERS[name](place, i)
    for part in (*data_set.train, *data_set.held_out):
        writer = made_up.ronin if name == "ronin" else made_up.total_capture
        writer(place / part / "a000_1")


def tiny(folder, **changed):
    train = replace(PAPER.train, batch_size=2)
    small = {"width": 4, "layers": 1, "state_size": 2, "epochs": 1, "seeds": (3,), "train": train}
    return replace(PAPER, folder=str(folder), **(small | changed))


@pytest.mark.slow
def test_two_updates_on_files_of_the_published_format(tmp_path):
    pytest.importorskip("h5py")  # of the extra hdf5
    write(tmp_path, "ronin")
    config = tiny(tmp_path, data_sets=("ronin",), models=("lstm over lstm", "flat transformer end"))
    absent = {claim.id.partition("/")[2] for claim in published.CLAIMS}
    result = check_run(published, config, tmp_path, absent=absent)
    table = result.tables["errors"]
    assert table["model"] == ["lstm over lstm"]  # flat transformers are left out
    (curve,) = result.series.values()
    assert curve["updates"].tolist() == [0, 2] and len(set(curve["loss"].tolist())) == 2
    counted = int(np.argmin(curve["loss"]))
    assert (table["loss"][0], table["mse"][0]) == (curve["loss"][counted], curve["mse"][counted])
    assert table["last"] == [curve["mse"][-1]] and set(result.data) == {"CSP-Bench, ronin"}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in DATA_SETS if name != "ronin"])
def test_two_updates_on_the_other_sets(tmp_path, name):
    pytest.importorskip("h5py")
    write(tmp_path, name)
    absent = {claim.id.partition("/")[2] for claim in published.CLAIMS}
    config = tiny(tmp_path, data_sets=(name,), models=("lstm over lstm",))
    table = check_run(published, config, tmp_path, absent=absent).tables["errors"]
    assert table["set"] == [name] and np.isfinite(table["mse"]).all()


def test_an_absent_set_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"\A\S+vector: no such folder; the layout is in experiments/hiss/README.md\Z"):
        published.run(tiny(tmp_path, data_sets=("vector",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    made_up.vector(tmp_path / "vector" / "a")
    with pytest.raises(UserError, match=r"\A\S+vector: got 1 recording that can be read, expected at least 2\Z"):
        published.run(tiny(tmp_path, data_sets=("vector",)), tmp_path / "run")


def test_a_plan_needs_no_files():
    targets = {
        "marker_writing": 2,
        "intrinsic_slip": 3,
        "joystick_control": 3,
        "ronin": 2,
        "vector": 3,
        "total_capture": 63,
    }
    with recording(print):
        for name in DATA_SETS:
            train, held_out = load(name, "nowhere")
            example = Preparation.of(name, train[:2], held_out)(train[0])
            assert len(train) > 4 * len(held_out) > 0 and np.isfinite(example["inputs"]).all()
            assert example["inputs"].shape[0] == 10 * example["chunks"] and example["targets"].shape[1] == targets[name]


def errors_of_all(**changed):
    errors = {
        name: {
            model: np.full(2, 0.5)
            for model in (
                *HIERARCHIES,
                *published.flat_models(name, FLAT_START),
                *published.flat_models(name, FLAT_END),
            )
        }
        for name in DATA_SETS
    }
    for name, models in changed.items():
        errors[name] |= {model: np.array(values) for model, values in models.items()}
    return errors


def test_claims_are_about_the_sets_and_models_that_they_name():
    measured = published._measured(errors_of_all())
    assert set(measured) == {claim.id for claim in published.CLAIMS}
    assert all((values == 0).all() for values in measured.values())
    best = {name: {own.best: [0.4, 0.3]} for name, own in PUBLISHED.items()}
    best["vector"] = {"mamba over mamba": [0.4, 0.4], "flat lstm start": [0.25, 0.25], "flat s4 end": [0.2, 0.2]}
    best["ronin"] |= {"flat s4 end": [0.2, 0.3]}
    best["marker_writing"] |= {"flat mamba start": [0.4, 0.45], "flat transformer start": [0.8, 0.6]}
    best["intrinsic_slip"] |= {
        "flat transformer start": [0.64, 1.0],
        "flat s4 start": [0.6, 0.7],
        "flat mamba start": [0.45, 0.6],
        "mamba over s4": [0.6, 0.5],
        "mamba over lstm": [0.5, 0.4],
    }
    measured = published._measured(errors_of_all(**best))
    short = {name.removeprefix("hiss/"): np.round(values, 6).tolist() for name, values in measured.items()}
    assert short["marker-writing"] == [0.0, round(1 - 0.3 / 0.45, 6)]
    assert short["intrinsic-slip"] == [-0.2, 0.0]  # the hierarchy that is named, though another is better
    assert short["joystick"] == short["ronin"] == short["totalcapture"] == [0.2, 0.4]
    assert short["vector"] == [-0.6, -0.6]
    assert short["abstract-23-percent"] == [0.1, 0.366667]
    assert short["published-against-aligned-flat"] == [0.1, 0.3]
    assert short["low-level-s4"] == [-0.2, -0.25]
    assert short["flat-ordering"] == [0.0625, -0.2]


def test_claims_whose_sets_or_models_are_absent_are_not_measured():
    errors = errors_of_all()
    del errors["ronin"], errors["marker_writing"]["s4 over lstm"], errors["intrinsic_slip"]["flat s4 start"]
    expected = {PUBLISHED[name].claim for name in DATA_SETS if name not in ("ronin", "intrinsic_slip")}
    assert set(published._measured(errors)) == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data_sets", ("vektor",), "data_sets: unknown data set 'vektor'; nearest: vector"),
        ("data_sets", (), r"data_sets: got \(\), expected at least one"),
        ("models", ("mamba",), "models: got 'mamba'"),
        ("models", ("flat transformer start",), "models: got flat transformers alone, and none is published on ronin"),
        ("width", -1, "width: got -1, expected at least 0"),
        ("epochs", 0, "epochs: got 0, expected at least 1"),
        ("dropout", 1.0, "dropout: got 1.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **{field: value})
