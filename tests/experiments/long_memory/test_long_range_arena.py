"""The Long Range Arena as a result: its recipes, what its claims are about, and two updates of each task."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.long_memory import long_range_arena as arena
from experiments.long_memory.arena_data import Parts
from experiments.long_memory.arena_tasks import TASKS
from experiments.long_memory.arena_training import counted, settings_of
from experiments.long_memory.networks import ModelConfig
from experiments.planning.trainings import recorded
from experiments.registry import load_id
from tests.experiments.long_memory import made_up_arena as made
from tests.experiments.result_run import check_run

PAPER = arena.PRESETS["paper"]


def table_of(accuracies):
    """A table of two seeds, from model -> task -> accuracies."""
    rows = [
        (task, model, seed, values[seed])
        for model, tasks in accuracies.items()
        for task, values in tasks.items()
        for seed in (0, 1)
    ]
    return {name: [row[i] for row in rows] for i, name in enumerate(("task", "model", "seed", "accuracy"))}


def test_claims_are_about_the_worst_of_six_tasks():
    s4 = {name: [task.best_transformer + 20, task.best_transformer + 30] for name, task in TASKS.items()}
    s5 = {name: [values[0] + 1, values[1] - 0.5] for name, values in s4.items()}
    softmax = {name: [values[0] - 15, values[1] - 40] for name, values in s4.items()}
    s4["image"][1] -= 31  # one below the best transformer
    found = arena._measured(table_of({arena.S4: s4, arena.S5: s5, arena.TRANSFORMER: softmax}))
    assert set(found) == {claim.id for claim in arena.CLAIMS}
    expected = {
        "long_memory/s4-lra-every-task": [20, -1],
        "long_memory/s4-path-x": [70, 80],
        "long_memory/s5-lra": [1, -0.5],
        "long_memory/lra-transformer": [-15, -9],
    }
    for id, values in expected.items():
        np.testing.assert_allclose(found[id], values, atol=1e-9, err_msg=id)
    del s4["text"]
    assert set(arena._measured(table_of({arena.S4: s4, arena.S5: s5}))) == {"long_memory/s4-path-x"}
    assert arena._measured(table_of({arena.S5: s5, arena.TRANSFORMER: softmax})) == {}


def test_the_recipes_are_those_of_the_released_settings():
    batches = {name: PAPER.training(name).batch_size for name in TASKS}
    assert batches == {"listops": 32, "text": 16, "retrieval": 64, "image": 50, "pathfinder": 64, "path_x": 16}
    epochs = {"listops": (40, 96_000), "text": (32, 25_000), "image": (200, 45_000), "path_x": (50, 160_000)}
    for name, (count, examples) in epochs.items():
        assert PAPER.training(name).steps == count * examples // batches[name]
    for name in TASKS:
        published, other = settings_of(PAPER, name, "s4+none"), settings_of(PAPER, name, "mamba+none")
        assert published == settings_of(PAPER, name, arena.S5) == PAPER.training(name)
        rates = published.optimizer.learning_rate, other.optimizer.learning_rate
        assert rates[1] == pytest.approx(0.1 * rates[0]) and published.optimizer.ssm_rate * rates[0] == pytest.approx(
            1e-3
        )
    lengths = [task.texts * task.tokens(PAPER.longest) for task in TASKS.values()]
    assert lengths == [2000, 4000, 8000, 1024, 1024, 16_384]


def test_the_update_that_counts_is_chosen_without_the_test_part():
    errors = {"validation error": np.array([0.5, 0.2, 0.3]), "test error": np.array([0.5, 0.4, 0.1])}
    assert counted(errors, Parts(None, [], None)) == 1 and counted(errors, Parts(None, None, None)) == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_names": ("listopts",)}, "task_names: unknown task 'listopts'; nearest: listops"),
        ({"task_names": ()}, "task_names: expected at least one"),
        ({"models": ("mamba+none", "mamba+none")}, "models: expected at least one, each of them once"),
        ({"models": ("multiplicative-4+none",)}, "scans two axes, and text has one"),
        ({"longest": 0}, "longest: got 0"),
        ({"image_dropout": 1.0}, "image_dropout: got 1.0"),
        ({"text": replace(PAPER.text, eval_every=0)}, "text.eval_every: got 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **change)


def test_without_the_folder_a_run_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"lra_release/listops-1000/basic_train.tsv: not there"):
        arena.run(replace(PAPER, task_names=("listops",)), tmp_path / "run")


@pytest.mark.parametrize(("looped", "blocks"), [(True, {"blocks"}), (False, {"blocks_0", "blocks_1"})])
def test_one_block_stands_for_all_unless_it_shall_not(looped, blocks):
    config = replace(arena.PRESETS["smoke"], model=ModelConfig(2, 4, 2, 1), scan_layers=looped)
    (training,) = recorded(load_id("long_memory/long_range_arena"), config).trainings
    assert blocks == {name for name in training.shapes.params["backbone"] if name.startswith("blocks")}


def test_smoke_run(tmp_path):
    absent = {claim.id.partition("/")[2] for claim in arena.CLAIMS}
    result = check_run(arena, arena.PRESETS["smoke"], tmp_path, absent)
    assert result.tables["models"]["task"] == ["listops"] and set(result.data) == {"Long Range Arena, listops"}


def written(folder, task):
    """The files of a task, and where TFDS has its own."""
    if task in ("text", "image"):
        return {"data_dir": made.prepare(folder / "tfds")}
    if task in ("pathfinder", "path_x"):
        made.write_paths(folder, 32 if task == "pathfinder" else 128)
    else:
        (made.write_listops if task == "listops" else made.write_pairs)(folder)
    return {"folder": str(folder)}


CASES = [
    ("listops", "s5-bidirectional+none"),
    ("text", "softmax+rotary"),
    ("retrieval", "s4+none"),
    ("image", "lightnet+both"),
    ("pathfinder", "mamba+none"),
    ("path_x", "s4d+none"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model"),
    [pytest.param(*case, marks=[pytest.mark.exhaustive] if case[0] != "listops" else []) for case in CASES],
)
def test_two_updates_of_the_preset_paper(task, model, tmp_path):
    """Published lengths and recipe, through the files; one block of four channels, and two examples in a batch."""
    train = replace(PAPER.training(task), steps=2, batch_size=2, eval_every=1)
    size = ModelConfig(1, 4, 2, 1)
    config = replace(PAPER, seeds=(3,), task_names=(task,), models=(model,), model=size, **{task: train})
    config = replace(config, **written(tmp_path, task))
    absent = {claim.id.partition("/")[2] for claim in arena.CLAIMS}
    result = check_run(arena, config, tmp_path, absent)
    (curve,) = result.series.values()
    assert curve["updates"].tolist() == [0, 1, 2]
    table = result.tables["models"]
    assert table["accuracy"][0] in curve["accuracy"] and table["parameters"][0] > 50
    assert table["chance"] == [100 / TASKS[task].classes]
