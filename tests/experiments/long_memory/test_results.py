"""The results on memory: what their claims are about, small runs, and the published sizes."""

from dataclasses import replace
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.meta import unbox

from experiments.equal_size import count_parameters
from experiments.long_memory import core_speed, efficiency, induction, path_length, recall, selective_copying
from experiments.long_memory.extrapolation import last_logits, reader
from experiments.long_memory.learning import Learned
from experiments.long_memory.networks import TIME_INVARIANT, ModelConfig, network
from experiments.long_memory.tasks import ASSOCIATIVE, COPYING, DISTANT, LISTOPS, AssociativeConfig, ListOpsConfig
from experiments.sources.memory import induction_heads
from experiments.training.update import random_stream
from tests.experiments.result_run import check_run


def table_of(task, accuracies, updates=None):
    """A table of two seeds."""
    rows = [(model, seed) for model in accuracies for seed in (0, 1)]
    return {
        "task": [task] * len(rows),
        "model": [model for model, _ in rows],
        "accuracy": [accuracies[model][seed] for model, seed in rows],
        "updates to 95 %": [(updates or accuracies)[model][seed] for model, seed in rows],
    }


def merged(*tables):
    return {column: list(chain.from_iterable(table[column] for table in tables)) for column in tables[0]}


def test_recall_claims_are_about_the_worst_of_some_and_the_best_of_others():
    attentive = {"softmax+both": [90.0, 91.0], "mamba+none": [95.0, 80.0], "mamba2+none": [99.0, 99.0]}
    invariant = {"s4d+none": [30.0, 50.0], "s5+none": [40.0, 20.0]}
    linear = {"lightnet+both": [60.0, 70.0], "linear+both": [50.0, 75.0]}
    lists = {"s4d+none": [40.0, 41.0], "s5+none": [50.0, 35.0], "mamba+none": [45.0, 45.0], "mamba2+none": [60.0, 60.0]}
    table = merged(table_of(ASSOCIATIVE, attentive | invariant | linear), table_of(LISTOPS, lists))
    found = recall._measured(recall.PRESETS["cpu"], table)
    assert found["long_memory/mqar-attention-gap"].tolist() == [50.0, 30.0]
    assert found["long_memory/listops-31-tokens"].tolist() == [40.0, 35.0]
    assert found["long_memory/lightnet-recalls-more-than-linear"].tolist() == [10.0, -5.0]
    assert len(found) == 3
    assert recall._measured(recall.PRESETS["cpu"], table_of(ASSOCIATIVE, attentive)) == {}
    published = recall._measured(recall.PRESETS["gpu"], table)
    names = ("mqar-attention-gap-64-pairs", "listops-1999-tokens", "lightnet-recalls-more-than-linear-64-pairs")
    assert [published[f"long_memory/{name}"].tolist() for name in names] == [[50.0, 30.0], [40.0, 35.0], [10.0, -5.0]]
    other = replace(recall.PRESETS["gpu"], associative=AssociativeConfig(64, 8), listops=ListOpsConfig(depth=9))
    assert {*found, *published} == {claim.id for claim in recall.CLAIMS}
    assert recall._measured(other, table) == {}


def test_a_model_that_never_gets_there_counts_with_all_its_updates():
    config = selective_copying.PRESETS["cpu"]
    accuracies = {"mamba+none": [99.0, 98.0], TIME_INVARIANT: [60.0, 97.0]}
    updates = {"mamba+none": [100, 200], TIME_INVARIANT: [None, 300]}
    table = table_of(COPYING, accuracies, updates)
    found = selective_copying._measured(config, table)
    steps = config.train.steps
    assert found["long_memory/mamba-selective-copying-small"].tolist() == [steps / 100, 1.5]
    assert found["long_memory/mamba-selective-copying-97"] == [99.0, 98.0]
    published = selective_copying._measured(selective_copying.PRESETS["paper"], table)
    assert {name: values.tolist() for name, values in published.items()} == {
        "long_memory/mamba-selective-copying": [39.0, 1.0]
    }
    assert selective_copying._measured(selective_copying.PRESETS["smoke"], table) == {}


@pytest.mark.parametrize(("preset", "claim"), [("cpu", "analogue-1024"), ("gpu", "analogue")])
def test_the_claims_on_path_length_are_about_its_length_and_what_is_shown(preset, claim):
    table = table_of(DISTANT, {"s4d+none": [80.0, 90.0], "s5+none": [85.0, 70.0]})
    (found,) = path_length._measured(path_length.PRESETS[preset], table).items()
    assert found[0] == f"long_memory/s4-path-x-{claim}" and found[1].tolist() == [80.0, 70.0]
    assert path_length._measured(path_length.PRESETS["smoke"], table) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightnet+both", "mamba+none", "mamba2+none", "s5+none", "linear+both"])
def test_chunks_with_a_state_are_the_whole(name):
    """Logits that depend on all tokens: initial values are made larger."""
    model, _ = network(ModelConfig(2, 8, 2, 1), name, 6)
    tokens = jax.random.randint(jax.random.key(1), (3, 23), 0, 6)
    params = unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 20 * leaf if path[-1].key in ("kernel", "embedding", "head") else leaf, params
    )
    whole = jax.jit(model.apply)({"params": params}, tokens)[:, -1]
    state, read = model.apply({"params": params}, 3, method="init_state"), reader(model)
    for chunk in (5, 23):
        found = last_logits(read, params, tokens, state, chunk)
        np.testing.assert_allclose(found, whole, rtol=2e-4, atol=2e-4 * float(jnp.abs(whole).max()))


def test_chunks_follow_each_other_and_what_is_left_over_comes_first():
    seen = []

    def read(*given):
        seen.append(given)
        return given[1][:, -1:], [*given[2], given[1].tolist()]

    for length in (2, 4, 7):
        last_logits(read, None, jnp.arange(length)[None], [], 2 + length // 7)
    assert [given[1].tolist() for given in seen] == [[[0, 1]], [[0, 1]], [[2, 3]], [[0]], [[1, 2, 3]], [[4, 5, 6]]]
    assert seen[-1][2] == [[[0]], [[1, 2, 3]]]


def test_what_is_claimed_of_induction_is_about_the_longest_sequences(monkeypatch, tmp_path):
    monkeypatch.setattr(induction, "train_cell", lambda *_: ([], None, None))
    monkeypatch.setattr(induction, "_tested", lambda *_: np.array([[100.0, 90.0, 50.0], [100.0, 99.0, 60.0]]))
    config = replace(induction.PRESETS["cpu"], seeds=(0, 1), test_lengths=(8, 16, 32), models=("s5+none", "mamba+none"))
    result = induction.run(config, tmp_path)
    assert result.measured["long_memory/mamba-induction-extrapolates"].tolist() == [50.0, 60.0]
    assert result.tables["lengths"]["length"] == [8, 16, 32] * 4


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["s5+none", "softmax+both"])
def test_accuracy_at_a_length_is_that_of_the_last_token(name):
    changes = {"seeds": (2, 4), "test_lengths": (8, 12), "test_rows": 30, "softmax_longest": 8}
    config = replace(induction.PRESETS["smoke"], models=(name,), **changes)
    assert induction._lengths(config, name) == ([8] if name == "softmax+both" else [8, 12])
    model, _ = network(config.model, name, 16)
    each = [unbox(model.init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32))["params"]) for seed in config.seeds]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    accuracy = induction._tested(config, name, model, Learned(np.zeros(1), np.zeros((2, 1)), np.zeros(2), params, 0.0))
    for i, seed in enumerate(config.seeds):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        for k, length in enumerate(induction._lengths(config, name)):
            task = induction_heads(random_stream(seed, f"{length} tokens"), 30, length=length, alphabet=16)
            told = model.apply({"params": own}, task.tokens)[:, -1].argmax(-1)
            assert accuracy[i, k] == pytest.approx(100 * np.mean(told == task.targets[:, -1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_lengths": (9, 8)}, "test_lengths: got"),
        ({"test_lengths": ()}, "the smallest of test_lengths: got 0"),
        ({"test_rows": 0}, "test_rows: got 0"),
        ({"chunk": 0}, "chunk: got 0"),
    ],
)
def test_lengths_that_cannot_be_tested_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(induction.PRESETS["cpu"], **change)


def test_a_task_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="task_names: unknown task 'mqar'"):
        replace(recall.PRESETS["cpu"], task_names=("mqar",))


def test_smoke_run(tmp_path):
    lacking = {claim.id.partition("/")[2] for claim in recall.CLAIMS}
    check_run(recall, recall.PRESETS["smoke"], tmp_path, lacking)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_recurrences_are_timed_with_all_their_gradients():
    programs = core_speed.programs(core_speed.PRESETS["smoke"], 2)
    shapes = {name: [leaf.shape for leaf in program()] for name, program in programs.items()}
    assert shapes["Mamba"] == [(1, 3, 4), (1, 3, 4), (4, 2), (1, 3, 2), (1, 3, 2)]
    assert shapes["Mamba-2"] == [(1, 3, 1, 2), (1, 3, 1, 2), (1, 3, 2, 2), (1, 3, 2, 1)]


def test_speed_is_compared_at_one_size_of_the_state():
    columns = {"recurrence": ["Mamba", "Mamba-2"] * 2, "states": [64, 64, 16, 16], "cpu_ms": [6.0, 2.0, 1.0, 1.0]}
    assert core_speed._measured(columns)["long_memory/mamba2-faster"].tolist() == [3.0]
    with pytest.raises(ValueError, match="head_size: got 48, expected a divisor of inner, 256"):
        replace(core_speed.PRESETS["cpu"], head_size=48)


def test_as_efficient_is_about_the_worse_of_time_and_memory():
    rows = [
        (name, batch, length, seed, cpu, 0.0, memory)
        for batch, length in ((2, 512), (2, 4096), (16, 4096))
        for seed in (0, 1)
        for name, cpu, memory in (("s4", 3.0 + seed, 4.0), ("linear", batch, 1.0 if length == 512 else 2.5))
    ]
    names = ("mixer", "batch", "length", "repetition", "cpu_ms", "wall_ms", "mebibytes")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    found = {id: values.tolist() for id, values in efficiency._measured(columns).items()}
    assert found == {"long_memory/s4-efficiency": [1.6, 2.0], "long_memory/s4-efficiency-16-rows": [1.6, 1.6]}
    assert efficiency._measured({name: column[:4] for name, column in columns.items()}) == {}


@pytest.mark.slow
def test_what_is_timed_is_the_mixer_and_its_gradients():
    """With respect to the input and each parameter, none of which is left out as unused."""
    config = replace(efficiency.PRESETS["smoke"], mixers=("s4",))
    (y,), gradients = efficiency.program(config, "s4", 3, 5).call()
    assert y.shape == (3, 5, 4)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("module", [core_speed, efficiency, selective_copying, path_length, induction])
def test_small_runs(module, tmp_path):
    lacking = {claim.id.partition("/")[2] for claim in module.CLAIMS}
    check_run(module, module.PRESETS["smoke"], tmp_path, lacking)


@pytest.mark.slow
def test_published_sizes():
    for preset in ("gpu", "paper"):
        config = selective_copying.PRESETS[preset]
        sizes = (config.task.noise, config.task.data, config.task.alphabet)
        assert sizes == (4096, 16, 16) and config.train.batch_size == 64
        assert (config.model.num_layers, config.model.width) == (2, 64)
        assert [parameters(config, name, 16) for name in config.models] == [99_904, 100_160]
    published = selective_copying.PRESETS["paper"].train
    assert (published.steps, published.optimizer.learning_rate) == (400_000, 1e-4)
    config = recall.PRESETS["gpu"]
    assert {parameters(config, name, 256) // 1000 for name in config.models} <= {149, 150, 151}
    config = induction.PRESETS["gpu"]
    assert config.task.length == 256 and max(config.test_lengths) == 2**20
    assert parameters(config, "mamba+none", 16) == 99_904


@pytest.mark.slow
@pytest.mark.parametrize("module", [recall, path_length])
def test_models_of_a_table_have_as_many_parameters(module):
    config = module.PRESETS["cpu"]
    sizes = [parameters(config, name, 16) for name in config.models]
    assert len(sizes) >= 6 and max(sizes) <= 1.01 * min(sizes)


def parameters(config, name, vocabulary):
    model, _ = network(config.model, name, vocabulary)
    return count_parameters(model, np.zeros((1, 4), np.int32))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("module", "preset"),
    [(selective_copying, "gpu"), (selective_copying, "paper"), (induction, "gpu"), (recall, "gpu")],
)
def test_two_updates_at_published_lengths(module, preset, tmp_path):
    """One block, and one model; all else is that of the preset but for how often and on how much it is evaluated."""
    config = module.PRESETS[preset]
    train = config.train
    smaller = {"seeds": (0,), "models": ("mamba+none",), "model": replace(config.model, num_layers=1, parameters=1)}
    smaller |= {"train": replace(train, steps=2, eval_every=2), "evaluation_rows": 1}
    if module is induction:
        smaller |= {"test_lengths": (2**15,), "test_rows": 1}
    if module is recall:
        smaller |= {"task_names": (ASSOCIATIVE, LISTOPS), "listops": replace(config.listops, pool=4)}
        smaller |= {"train": replace(smaller["train"], batch_size=2)}
    result = module.run(replace(config, **smaller), tmp_path)
    assert set(result.tables["models"]["updates"]) == {2}
