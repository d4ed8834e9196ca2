"""Masked diffusion by its definitions: the exact denoiser, laws of samplers, what each arm trains, what is compared."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.distillation import masked_diffusion
from experiments.distillation.masked_diffusion import ARMS, TEACHER, compared, measured_laws, source_law
from experiments.distillation.masked_paths import Arm, trained
from experiments.distillation.masked_states import all_moves, exact_denoiser, numbers, sampled_laws
from tests.experiments.result_run import check_run

SMOKE = masked_diffusion.PRESETS["smoke"]
CONFIG = replace(SMOKE, symbols=2, length=3, groups=3, group=4, steps=2, rate=0.1)
LAW = source_law(CONFIG, 3)
RANDOM = np.random.default_rng(5)


def test_the_denoiser_by_enumeration():
    table = np.exp(exact_denoiser(LAW))
    whole = np.indices(LAW.shape).reshape(3, -1).T
    for z in np.ndindex(3, 3, 3):
        row = table[numbers(np.array(z), 2)]
        for position in range(3):
            seen = [all(i == position or z[i] in (2, x[i]) for i in range(3)) for x in whole]
            want = np.bincount(whole[seen, position], LAW.ravel()[seen], 2)
            np.testing.assert_allclose(row[position], want / want.sum(), rtol=1e-12)


def test_samplers_of_the_exact_denoiser():
    """One evaluation has the right symbols independently, many have the law but for an error like 1 / n."""
    laws = sampled_laws(exact_denoiser(LAW), all_moves(2, 3), [1, 2, 400, 800])
    np.testing.assert_allclose(laws.sum(1), 1, rtol=1e-12)
    each = [LAW.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    np.testing.assert_allclose(laws[0], np.einsum("a,b,c->abc", *each).ravel(), rtol=1e-12)
    error = np.abs(laws - LAW.ravel()).max(1)
    assert error[2] < 0.01 * error[1] < 0.01 * error[0]
    np.testing.assert_allclose(error[2] / error[3], 2, rtol=0.02)


def test_a_sampler_against_samples():
    z = RANDOM.normal(size=(27, 3, 2))
    table = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    (law,) = sampled_laws(table, all_moves(2, 3), [3])
    state, count = np.full((40_000, 3), 2), 40_000
    for chance in (1 / 3, 1 / 2, 1):
        ones = RANDOM.random((count, 3)) < np.exp(table[numbers(state, 2), :, 1])
        state = np.where((state == 2) & (RANDOM.random((count, 3)) < chance), ones, state)
    found = np.bincount(state @ [4, 2, 1], minlength=8) / count
    assert (np.abs(found - law) < 5 * np.sqrt(law / count)).all()


@pytest.mark.slow
def test_what_an_arm_trains():
    """Without the decomposition the row of the masked state alone; with it, states on the way as well."""
    teacher = jax.numpy.float32(exact_denoiser(LAW))
    arms = Arm(*np.array(list(ARMS.values()), np.float32).T)
    given = jax.numpy.float32(LAW.ravel().cumsum()), jax.random.key(0)
    every = jax.jit(jax.vmap(lambda arm: trained(CONFIG, teacher, given[0], arm, given[1])))(arms)
    moved = np.abs(np.asarray(every) - np.asarray(teacher)[None]).max((2, 3)) > 1e-4
    for name, rows in zip(ARMS, moved, strict=True):
        assert rows[-1] and rows[:-1].any() == bool(ARMS[name][0]), name
        complete = [numbers(np.array(x), 2) for x in np.ndindex(2, 2, 2)]
        assert not rows[complete].any()


def test_measures_and_what_is_compared():
    laws = RANDOM.dirichlet(np.ones(8), 2)
    reverse, forward, entropy = measured_laws(laws, LAW.ravel())
    np.testing.assert_allclose(entropy, [-(law @ np.log(law)) for law in laws])
    np.testing.assert_allclose(reverse, [law @ np.log(law / LAW.ravel()) for law in laws])
    np.testing.assert_allclose(forward, [LAW.ravel() @ np.log(LAW.ravel() / law) for law in laws])

    found = np.zeros((3, 1, len(ARMS) + 1, 2))
    kl = {"baseline": 8, "decomposition": 6, "one time": 7, "weight": 5, "density": 4.5, "whole": 2}
    for place, name in enumerate((*ARMS, TEACHER)):
        found[0, 0, place] = 10, kl.get(name, 9)
    found[2, :, 5, 1] = 3
    got = {name: x.tolist() for name, x in compared(SMOKE, found, np.array([4.0])).items()}
    assert got == {
        "toy": [-8],
        "score-decomposition": [-7],
        "without-decomposition": [0],
        "ablation": [1],
        "decomposition-alone": [0.75],
        "few-evaluations": [1],
        "toy-beats-teacher": [1],
        "entropy": [0.75],
    }


def test_refused():
    with pytest.raises(ValueError, match="evaluations: got"):
        replace(SMOKE, evaluations=(2, 4))
    with pytest.raises(ValueError, match="earliest, uniform: got"):
        replace(SMOKE, earliest=1.0)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_smoke_run(tmp_path):
    check_run(masked_diffusion, SMOKE, tmp_path)
