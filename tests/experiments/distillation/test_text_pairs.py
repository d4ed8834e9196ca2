"""Pairs of language models: what claims are computed from, and what students of one seed have in common."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssm
from experiments.distillation import text_pairs
from experiments.distillation.sequence_config import SequenceDistillation
from experiments.distillation.text_pairs import KINDS, LABELS, OWN, PAIRS, TEXT, objective
from ssm import Mamba
from ssm.models import Architecture, mamba_lm
from tests.experiments.result_run import check_run

SMOKE, CPU = text_pairs.PRESETS["smoke"], text_pairs.PRESETS["cpu"]
CLAIMS = {claim.id.partition("/")[2] for claim in text_pairs.CLAIMS}


def tables(pairs, seeds):
    """Rows as a run appends them, with a loss and a divergence of each kind (pairs, seeds, kinds), and ratios."""
    random = np.random.default_rng(0)
    loss, divergence = random.random((2, len(pairs), seeds, len(KINDS)))
    ratio = random.random((len(pairs), seeds))
    models = {name: [] for name in ("teacher", "student", "seed", "learns", "loss", "divergence")}
    for (i, seed, kind), value in np.ndenumerate(loss):
        entry = (*pairs[i], seed, KINDS[kind], value, divergence[i, seed, kind])
        if kind == 0:
            text_pairs._append(models, *pairs[i], seed, "the teacher", 0.0, 0.0)
        text_pairs._append(models, *entry)
    return models, {"ratio, all own": ratio.ravel().tolist()}, loss, divergence, ratio


def test_claims_are_differences_within_a_seed():
    models, speeds, loss, divergence, ratio = tables(PAIRS, 4)
    found = text_pairs._measured(replace(CPU, seeds=(0, 1, 2, 3)), models, speeds)
    labels, text, own = (KINDS.index(kind) for kind in (LABELS, TEXT, OWN))
    expected = {
        "pair-mamba-to-lightnet": loss[0, :, labels] - loss[0, :, text],
        "pair-lightnet-to-mamba": loss[1, :, labels] - loss[1, :, text],
        "pair-own-samples": (divergence[..., text] - divergence[..., own]).min(0),
        "on-policy-throughput": ratio.min(0),
    }
    assert set(expected) == CLAIMS
    assert set(found) == {f"distillation/{name}" for name in expected}
    for name, values in expected.items():
        np.testing.assert_array_equal(found[f"distillation/{name}"], values)


def test_a_teacher_of_two_students_is_in_two_pairs():
    """One of them is claimed about; what is not there is not measured."""
    pairs = (PAIRS[0], (PAIRS[0][0], "linear+none"))
    models, speeds, loss, divergence, _ = tables(pairs, 3)
    teachers, students = zip(*pairs, strict=True)
    config = replace(CPU, teachers=teachers, students=students, calls=0)
    found = text_pairs._measured(config, models, speeds)
    assert set(found) == {"distillation/pair-mamba-to-lightnet", "distillation/pair-own-samples"}
    np.testing.assert_array_equal(found["distillation/pair-mamba-to-lightnet"], loss[0, :, 0] - loss[0, :, 1])
    np.testing.assert_array_equal(
        found["distillation/pair-own-samples"], (divergence[..., 1] - divergence[..., 2]).min(0)
    )
    assert text_pairs._measured(replace(config, learns=(OWN,)), models, speeds) == {}


def test_what_each_student_learns():
    given = SequenceDistillation(on_policy_fraction=0.5, label_weight=0.25, prompt=4)
    assert objective(given, OWN) == given
    assert objective(given, TEXT) == replace(given, on_policy_fraction=0.0)
    assert objective(given, LABELS) == replace(given, on_policy_fraction=0.0, label_weight=1.0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"students": ("linear+none", "linear+none")}, "students: got 2 for 1 teachers"),
        ({"learns": ("nothing",)}, "learns: "),
        ({"students": ("linear+nowhere",)}, "students"),
        ({"vocabulary": 255}, "vocabulary"),
    ],
)
def test_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        replace(SMOKE, **changes)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_seed_is_the_same_among_others_and_its_students_see_one_teacher(tmp_path):
    """Differences within a seed are of the seed: nothing of another enters, and nothing but the objective differs."""
    config = replace(SMOKE, seeds=(3, 1), learns=KINDS)
    both, alone = (
        text_pairs.run(each, tmp_path / str(len(each.seeds))).tables["models"]
        for each in (config, replace(config, seeds=(1,)))
    )
    of_seed = [row for row, seed in enumerate(both["seed"]) if seed == 1]
    for name, column in alone.items():
        assert [both[name][row] for row in of_seed] == column, name
    assert alone["learns"] == ["the teacher", *KINDS]
    losses = dict(zip(alone["learns"], alone["loss"], strict=True))
    assert len(set(losses.values())) == 4
    # students whose objectives agree are one student, to the bit: rows, their order and initial values are the seed's
    labels = replace(
        config, seeds=(1,), learns=(LABELS, TEXT), distillation=SequenceDistillation(label_weight=1.0, prompt=4)
    )
    same = text_pairs.run(labels, tmp_path / "labels").tables["models"]
    assert same["loss"] == [losses["the teacher"], losses[LABELS], losses[LABELS]]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_checkpoint_of_mamba_teaches_by_its_path(tmp_path):
    model = mamba_lm(Architecture(Mamba(width=6, state_size=3), vocab_size=256, num_layers=1))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    # Twice as large: the teacher is not the one that initial values would give.
    variables = jax.tree.map(lambda leaf: 2 * leaf, variables)
    ssm.save_pretrained(tmp_path / "mamba", model, variables)
    (tmp_path / "run").mkdir()
    (tmp_path / "again").mkdir()
    config = replace(SMOKE, teachers=(str(tmp_path / "mamba"),), learns=(TEXT, OWN))
    table = text_pairs.run(config, tmp_path / "run").tables["models"]
    assert table["learns"] == ["the teacher", TEXT, OWN]
    assert table["parameters"][0] == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert np.isfinite(table["loss"]).all()
    assert len(set(table["loss"])) == 3
    ssm.save_pretrained(tmp_path / "other", model, jax.tree.map(lambda leaf: 0.5 * leaf, variables))
    other = text_pairs.run(replace(config, teachers=(str(tmp_path / "other"),)), tmp_path / "again").tables["models"]
    assert all(x != y for x, y in zip(table["loss"], other["loss"], strict=True))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_smoke_run(tmp_path):
    check_run(text_pairs, SMOKE, tmp_path, absent=CLAIMS)
