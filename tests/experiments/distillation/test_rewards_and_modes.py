"""SequenceMatch's rewards, f-distill's modes, f-divergence fine-tuning and f-DPO on tables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import f_sft_frontier, mode_coverage, reward_bounds
from experiments.distillation.f_sft_frontier import frontier, lists, preferences, reward_at
from experiments.distillation.reward_bounds import ascent, closed_form, laws, supremum
from tests.experiments.result_run import check_run


@pytest.mark.parametrize("regularizer", reward_bounds.REGULARIZERS)
def test_the_best_reward_attains_the_supremum(regularizer):
    config = replace(reward_bounds.PRESETS["smoke"], states=7 * 2)
    data, own = laws(config, 5, 0.2)
    r = closed_form(data, own, regularizer)
    under = (data + own) / 2 if regularizer == "mixture" else data

    def objective(r):
        return (data - own) @ r - reward_bounds.WEIGHT * under @ r**2

    assert objective(r) == pytest.approx(supremum(data, own, regularizer), rel=1e-10)
    steps = 1e-3 * np.eye(len(r))
    assert all(objective(r + step) < objective(r) > objective(r - step) for step in steps)
    _, climbed = ascent(replace(config, steps=40_000, rate=2.0), data, own, regularizer)
    np.testing.assert_allclose(climbed, r, rtol=1e-6, atol=1e-6)


def test_estimates_use_what_was_drawn():
    config = replace(reward_bounds.PRESETS["smoke"], samples=2_000_000)
    assert reward_bounds.estimate_error(config, 1, "mixture", 0.2) < 0.01
    few = replace(config, samples=10)
    assert reward_bounds.estimate_error(few, 1, "mixture", 0.2) > 0.02


@pytest.mark.slow
def test_a_student_has_the_gradient_of_its_divergence():
    """Without noise and clipping, the weighted score difference is the gradient of the reverse KL of the generator."""
    means = jnp.array([[0.3, 0.1], [-0.4, 0.2]])
    student, teacher = (means, jnp.zeros(2)), (jnp.array([[1.0, 0.0]]), jnp.array([0.2]))
    keys = jax.random.split(jax.random.key(0))
    parts, normal = jax.random.randint(keys[0], (100_000,), 0, 2), jax.random.normal(keys[1], (100_000, 2))

    def log_ratio(x, student):
        return mode_coverage.log_density(x, *student, 0.0) - mode_coverage.log_density(x, *teacher, 0.0)

    def reverse_kl(student):
        x = mode_coverage.generated(student, parts, normal)
        return jnp.mean(jax.vmap(log_ratio, (0, None))(x, student))

    def by_scores(student):
        x = mode_coverage.generated(student, parts, normal)
        fixed = jax.lax.stop_gradient(student)
        difference = jax.vmap(jax.grad(log_ratio), (0, None))(jax.lax.stop_gradient(x), fixed)
        return jnp.mean(jnp.sum(difference * x, axis=1))

    whole, ours = (jax.jit(jax.grad(f))(student) for f in (reverse_kl, by_scores))
    # the score of the student itself has mean 0: what is left is the error of 100,000 samples
    np.testing.assert_allclose(whole[0], ours[0], atol=0.02)
    assert float(jnp.abs(ours[0]).max()) > 0.1


def test_lists_and_preferences():
    config = f_sft_frontier.PRESETS["smoke"]
    data, reference = lists(config, 2)
    assert data.shape == reference.shape == (2, 6) and all(set(row) == {0, 1, 2} for row in (*data, *reference))
    config = replace(config, pairs=4000)
    log_reference, reward, better, worse = preferences(config, 2)
    pair = (better[0] == 0) & (worse[0] == 1), (better[0] == 1) & (worse[0] == 0)
    share = pair[0].sum() / (pair[0].sum() + pair[1].sum())
    assert share == pytest.approx(1 / (1 + np.exp(reward[0, 1] - reward[0, 0])), abs=0.06)
    both = np.bincount(np.concatenate([better[1], worse[1]]), minlength=3) / 8000
    np.testing.assert_allclose(both, np.exp(log_reference[1]), atol=0.03)


@pytest.mark.slow
def test_preferences_lead_to_the_tilted_reference():
    """With many pairs and KL(pi, reference), pi is reference exp(reward / beta), normalised."""
    config = replace(f_sft_frontier.PRESETS["smoke"], pairs=2000, steps=200, rate=0.1, prompts=1)
    log_reference, reward, better, worse = preferences(config, 1)
    place = f_sft_frontier.BETAS.index(1.0)
    log_pi = np.asarray(f_sft_frontier._preference(config)(log_reference, better, worse))[0, place]
    tilted = log_reference + reward
    np.testing.assert_allclose(np.exp(log_pi), np.exp(tilted) / np.exp(tilted).sum(), atol=0.05)
    found = frontier(log_pi, log_reference, reward)
    pi = np.exp(log_pi)
    assert found["KL"] == pytest.approx((pi * (log_pi - log_reference)).sum(), rel=1e-4)
    rows = {"reward": np.array([[3.0, 2.0, 1.0]]), "KL": np.array([[0.2, 0.5, 0.1]])}
    assert reward_at(rows, "KL", 0.3).tolist() == [1.5] and reward_at(rows, "KL", 0.9).tolist() == [3.0]


@pytest.mark.parametrize("module", [reward_bounds, f_sft_frontier, mode_coverage])
def test_smoke_run(module, tmp_path):
    check_run(module, module.PRESETS["smoke"], tmp_path)
