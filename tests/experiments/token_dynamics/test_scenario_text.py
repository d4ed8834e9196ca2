"""The scenario table on text: variants and their control, what claims are of, and which updates count."""

from dataclasses import replace
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from experiments.token_dynamics import scenario_text, signs
from experiments.token_dynamics.scenario_text import CONTROL, PRESETS, updates_to
from experiments.token_dynamics.scenarios import VARIANTS, initial_values
from experiments.token_dynamics.text_models import SizeConfig, build

TINY = SizeConfig(layers=2, width=6, states=4)
LETTERS = 11


def variables_of(variant, size=TINY, vocabulary=LETTERS):
    model = build(size, vocabulary, **VARIANTS[variant])
    made = jax.jit(model.init)(jax.random.key(3), np.zeros((1, 2), np.int32))
    return model, initial_values(nn.unbox(made), variant)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_variants_have_the_same_shapes_and_differ_in_what_the_table_says():
    shapes = [
        jax.eval_shape(build(TINY, LETTERS, **options).init, jax.random.key(0), np.zeros((1, 2), np.int32))
        for options in VARIANTS.values()
    ]
    assert len({str(jax.tree.map(lambda leaf: leaf.shape, tree)) for tree in shapes}) == 1
    (_, positive), (_, control) = (variables_of(name) for name in ("positive", CONTROL))
    for path, leaf in jax.tree_util.tree_leaves_with_path(positive):
        other = control
        for entry in path:
            other = other[entry.key]
        turned = {entry.key for entry in path} & {"D", "out_proj"}
        np.testing.assert_array_equal(other, -leaf if turned else leaf)
    embedding = variables_of("free", replace(TINY, width=50), 400)[1]["params"]["embedding"]
    assert embedding.std() == pytest.approx(50**-0.5, rel=0.02)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_control_is_positive_written_in_another_way():
    tokens = np.random.default_rng(0).integers(0, LETTERS, (2, 9)).astype(np.int32)
    logits = []
    for name in ("positive", CONTROL, "negative"):
        model, variables = variables_of(name)
        logits.append(np.asarray(jax.jit(model.apply)(variables, tokens)))
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 1e-3 * np.abs(logits[0]).max()


@pytest.mark.slow
def test_a_factor_is_only_measured_where_the_matrix_is_positive():
    _, variables = variables_of("positive")
    raw = [np.asarray(kernel) for kernel in signs.raw_kernels(variables)]
    expected = min(np.log1p(np.exp(kernel[0, -4:])).min() + 0.7 for kernel in raw)
    assert signs.smallest_factor(variables, 4) == pytest.approx(expected, rel=1e-6)
    matrix = signs.input_output_matrix(np.arange(24.0).reshape(4, 6), 2)
    x, y = np.random.default_rng(0).standard_normal((2, 4))
    kernel = np.arange(24.0).reshape(4, 6)
    assert x @ matrix @ y == pytest.approx((x @ kernel[:, 4:]) @ (y @ kernel[:, 2:4]))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["negative", "mixed", None])
def test_a_factor_is_zero_where_the_matrix_is_not_positive(scenario, monkeypatch):
    """With the kernel of another scenario in place of the positive one."""
    import ssm.refinements

    plain = ssm.refinements.signed_kernel

    def other(raw, states, asked):
        assert asked == "positive"
        return plain(raw, states, scenario) if scenario else raw

    monkeypatch.setattr(ssm.refinements, "signed_kernel", other)
    assert signs.smallest_factor(variables_of("positive")[1], 4) == 0


@pytest.mark.slow
def test_at_the_start_eigenvalues_are_larger_and_weights_are_dead():
    (ratio,) = signs.eigenvalue_ratios(TINY, LETTERS, 9, [5])
    assert ratio > 1
    model = build(TINY, LETTERS)
    tokens = np.zeros((1, 2), np.int32)
    kernels = signs.raw_kernels(nn.unbox(jax.jit(model.init)(jax.random.key(5), tokens)))
    free = [np.abs(np.linalg.eigvals(k[:, -8:-4].T @ k[:, -4:])).max() for k in map(np.float64, kernels)]
    signed = []
    for kernel in map(np.float64, kernels):
        P = np.tril(kernel[:, -8:-4], -1) + np.eye(12, 4)
        delta = np.log1p(np.exp(kernel[0, -4:])) + 0.7
        signed.append(np.linalg.eigvalsh(np.sqrt(delta)[:, None] * (P.T @ P) * np.sqrt(delta)).min())
    assert ratio == pytest.approx(min(signed) / max(free), rel=1e-4)


@pytest.mark.slow
def test_a_sign_is_no_restriction_of_a_block():
    assert signs.sign_asymmetry(TINY, 7, 0) == 0


def test_updates_to_a_target_lie_between_evaluations():
    updates, losses = np.array([0, 10, 20, 30]), np.array([5.0, 3.0, 3.5, 1.5])
    assert updates_to(4.0, updates, losses) == 5.0
    assert updates_to(2.0, updates, losses) == 27.5
    assert updates_to(6.0, updates, losses) == 0
    assert np.isnan(updates_to(1.0, updates, losses))


def test_claims_compare_the_last_losses_of_the_same_seed():
    held_out = {"updates": np.array([0, 4])}
    last = {"free": [2.0, 2.2], "positive": [1.9, 2.3], "mixed": [2.0, 2.0], "negative": [2.1, 2.1]}
    held_out |= {name: np.array([[9.0, value] for value in values]) for name, values in last.items()}
    held_out[CONTROL] = held_out["positive"]
    training = {name: np.zeros((2, 3)) for name in VARIANTS}
    training[CONTROL] = np.array([[0, -0.5, 0.25], [0, 0, 0]])
    config = replace(PRESETS["cpu"], seeds=(3, 5))
    measured = scenario_text._compared(config, {"held out": held_out, "training": training})
    expected = {
        "abstract-convergent-hurts": [0.2, -0.2],
        "abstract-refinements-help": [0.1, -0.1],
        "scenario-text-small": [np.exp(0.2) - 1, np.exp(0.3) - 1],
        "scenario-symmetric-control": [0.5, 0],
        # On lines from 9 to the last loss; 2.3 is not within 2 % of 2.2, so that training counts whole.
        "scenario-text-speed": [
            4 * (9 - 2.04) / (9 - 2.0) - 4 * (9 - 2.04) / (9 - 1.9),
            4 * (9 - 2.244) / (9 - 2.2) - config.train.steps,
        ],
    }
    assert set(measured) == {f"token_dynamics/{name}" for name in expected}
    for name, values in expected.items():
        np.testing.assert_allclose(measured[f"token_dynamics/{name}"], values, atol=1e-12)
    table = scenario_text._table(config, held_out, dict.fromkeys(VARIANTS, 7))
    row = [column[table["variant"].index("negative") + 1] for column in table.values()]
    assert row[:3] == ["negative", 5, 2.1] and row[3] == pytest.approx(np.exp(2.1)) and row[5] == 7
    assert row[4] == pytest.approx(4 * (9 - 1.02 * 2.2) / (9 - 2.1))
    only = replace(config, variants=("mixed",))
    assert scenario_text._compared(only, {"held out": held_out, "training": training}) == {}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("preset", ["gpu", pytest.param("smoke", marks=pytest.mark.exhaustive)])
def test_two_updates_of_a_preset(preset, tmp_path):
    config = PRESETS[preset]
    if preset == "gpu":
        assert (config.text.corpus, config.text.length, config.train.precision) == ("standard library", 512, "bfloat16")
        shapes = jax.eval_shape(build(config.size, 256).init, jax.random.key(0), np.zeros((1, 2), np.int32))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_669_376
    size = replace(config.size, layers=1, width=8, states=3)
    short = replace(config.train, steps=2, batch_size=2, eval_every=2)
    text = replace(config.text, folds=70, length=24)
    config = replace(config, seeds=(3,), variants=("positive", CONTROL), size=size, train=short, text=text)
    result = scenario_text.run(config, tmp_path)
    assert result.measured["token_dynamics/scenario-symmetric-control"] == 0
    assert result.measured["token_dynamics/positive-parameterisation"][0] > 0.7
    assert result.tables["losses"]["variant"] == ["positive", CONTROL] and len(result.data) == 2
    assert set(result.measured) < {claim.id for claim in scenario_text.CLAIMS}
    stored = SimpleNamespace(series=result.series, config={"variants": list(config.variants)})
    scenario_text.plot(stored)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variants", ("free", "free"), "variants: expected at least one, each of them once"),
        ("variants", ("negativ",), "variants: unknown variant 'negativ'; nearest: negative"),
        ("target", 0.9, "target: got 0.9, expected at least 1"),
        ("train", replace(PRESETS["cpu"].train, eval_every=0), "train.eval_every: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["cpu"], **{field: value})
