"""f-DPG on tables: what a sampled step does, and what claims compare."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import f_dpg_targets
from experiments.distillation.f_dpg_targets import BASELINE, EXACT, GENERATORS, METRICS, NONE, base_and_targets
from tests.experiments.result_run import check_run

SMOKE = f_dpg_targets.PRESETS["smoke"]


@pytest.mark.slow
def test_samples_lead_where_exact_gradients_lead():
    config = replace(SMOKE, batch=256, steps=300, exact_steps=300)
    base, targets = (jnp.asarray(x) for x in base_and_targets(config, 3))

    def both(which):
        path, _ = f_dpg_targets.sampled_path(config, which, 1.0, base, targets[0], jax.random.key(0))
        return path, f_dpg_targets.exact_end(config, which, base, targets[0])

    paths, exact = jax.jit(jax.vmap(both))(jnp.eye(len(GENERATORS))[:3])
    assert np.asarray(exact).max() < 1e-3
    assert np.asarray(paths)[:, -1, METRICS.index("total_variation")].max() < 0.05
    p, q = np.exp(targets[0]), np.exp(base)
    assert paths[0, 0, 0] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-4)
    assert paths[0, 0, 3] == pytest.approx(np.abs(p - q).sum() / 2, rel=1e-4)


def test_the_constrained_target_keeps_the_proportions_of_the_base_model():
    base, targets = base_and_targets(SMOKE, 1)
    rare = np.argsort(base)[:2]
    assert np.exp(targets[1][rare]).sum() == pytest.approx(0.99)
    assert np.diff(targets[1][rare]) == pytest.approx(np.diff(base[rare]))


def test_what_is_compared():
    ends = {(name, gradient): np.full((2, 3, 4), 0.2) for name in GENERATORS for gradient in (BASELINE, NONE, EXACT)}
    ends["forward_kl", BASELINE] = np.full((2, 3, 4), 0.4)
    ends["reverse_kl", BASELINE] = np.full((2, 3, 4), 0.3)
    ends["reverse_kl", BASELINE][:, 1] = 0.1
    jumps = {name: np.full((2, 3), 1.0) for name in GENERATORS} | {"chi2_qp": np.full((2, 3), 4.0)}
    got = {name: values[0] for name, values in f_dpg_targets.compared(ends, jumps).items()}
    assert got["no-single-best"] == 2 and got["converges"] == 0.2 and got["chi2-unstable"] == 3
    assert got["js-over-forward"] == pytest.approx(-np.log(2)) and got["js-tradeoff"] == pytest.approx(np.log(2) / 3)
    assert got["baseline"] == pytest.approx((np.log(2) + (2 * np.log(1.5) - np.log(2)) / 3) / 5)


def test_smoke_run(tmp_path):
    check_run(f_dpg_targets, SMOKE, tmp_path)
