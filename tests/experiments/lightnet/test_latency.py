"""What is timed is what is said, and the numbers that claims are about are right. No test looks at a time."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.lightnet import latency
from experiments.lightnet.cores import CORES, core, operands
from experiments.lightnet.latency import FOUR, ONE, PRESETS, TWO, by_program, crossing, shape_of

# one repetition of made-up times: n^2 for softmax, n for the others, c times as much for c scans
FACTORS = {"lightnet": 2.0, "linear": 2.5, ONE: 8.0, TWO: 16.0, FOUR: 32.0}


def made_up_times(config):
    times = {}
    for level in latency.LEVELS:
        for length in sorted({*config.lengths, *config.curve}):
            names = FACTORS if length in config.lengths else ("lightnet",)
            for name in names:
                times[level, name, length] = np.array([FACTORS[name], FACTORS[name]]) * length
            times[level, "softmax", length] = np.array([1 / 64, 1 / 32]) * length**2
    return times


def test_every_claim_is_measured_and_read_off_the_right_times():
    config = replace(PRESETS["cpu"], seeds=(0, 1))
    measured = latency._measured(config, made_up_times(config))
    assert set(measured) == {claim.id for claim in latency.CLAIMS}
    expected = {
        "Fig2-one-scan-faster": [8, 8],
        "R1-cheaper-than-multiplicative": [4, 4],
        "R1-one-scan-mixer": [4, 4],
        "R1-one-scan-recurrence": [4, 4],
        "R1-four-scans-mixer": [16, 16],
        "R1-four-scans-recurrence": [16, 16],
        "R1-linear-in-scans": [4, 4],
        "R1-about-linear-attention": [0.8, 0.8],
        "R1-softmax-quadratic": [2, 2],
        "R1-softmax-crossing": [128, 64],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measured[f"lightnet/{name}"], values, rtol=1e-9, err_msg=name)


def test_a_mixer_that_was_not_timed_leaves_its_claims_untested():
    config = replace(PRESETS["cpu"], seeds=(0, 1), mixers=(ONE,))
    times = {key: value for key, value in made_up_times(config).items() if key[1] in ("lightnet", "softmax", ONE)}
    measured = latency._measured(config, times)
    assert "lightnet/R1-one-scan-mixer" in measured
    assert not {"lightnet/Fig2-one-scan-faster", "lightnet/R1-about-linear-attention"} & set(measured)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ([2.0, 3.0, 4.0], 10.0),
        ([0.5, 0.9, 1.0], math.inf),
        ([0.1, 10.0, 20.0], 100.0),
        ([2.0, 0.1, 10.0], 2000.0),
        ([0.1, math.nan, 10.0], math.nan),
    ],
)
def test_the_crossing_is_where_the_ratio_is_above_one_for_good(ratio, expected):
    assert crossing((10, 1000, 4000), np.array(ratio)) == pytest.approx(expected, nan_ok=True)


def test_times_of_a_program_stay_together():
    table = {
        "level": ["mixer"] * 4,
        "mixer": ["a", "a", "b", "b"],
        "length": [8] * 4,
        "cpu_ms": [1.0, 2.0, 3.0, 4.0],
    }
    found = by_program(table, "cpu_ms", 2)
    assert {key: value.tolist() for key, value in found.items()} == {
        ("mixer", "a", 8): [1.0, 2.0],
        ("mixer", "b", 8): [3.0, 4.0],
    }


def test_grids_have_as_many_cells_as_tokens():
    assert [shape_of(n) for n in (4, 6, 13, 1024, 2048)] == [(2, 2), (2, 3), (1, 13), (32, 32), (32, 64)]


def direct(name, q, k, v, decay=None):
    """Sums over pairs of tokens in double precision, for the first head and row."""
    q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in (q, k, v))
    if name == "softmax":
        scores = q @ k.T / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True) @ v
    if name == "lightnet":
        k = np.exp(k) / np.exp(k).sum(axis=0)
    if decay is None:
        return q @ k.T @ v
    total = np.cumsum(np.asarray(decay, np.float64)[0, :, 0], axis=0)
    n = len(q)
    return np.array([sum((q[i] * np.exp(total[i] - total[j])) @ k[j] * v[j] for j in range(i + 1)) for i in range(n)])


@pytest.mark.parametrize("name", CORES)
def test_a_core_is_the_sum_over_pairs_that_it_stands_for(name):
    q, logits, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 1, 3))
    given = operands(name, q, logits, v)
    assert len(given) == (4 if name.startswith("multiplicative") else 3)
    found = np.asarray(core(name, (2, 3))(*given))[0, :, 0]
    orders = [np.arange(6)]
    if name in (TWO, FOUR):
        orders += [orders[0][::-1]]
    if name == FOUR:
        columns = np.array([0, 3, 1, 4, 2, 5])
        orders += [columns, columns[::-1]]
    expected = np.zeros((6, 3))
    for order in orders:
        expected[order] += direct(name, *(x[:, order] for x in given))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_an_unknown_core_is_refused():
    with pytest.raises(ValueError, match="core: got 'mamba', expected one of lightnet"):
        core("mamba")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mixers", ("mamba",), "mixers: got mamba, expected some of linear"),
        ("lengths", (64, 32), "lengths: got"),
        ("curve", (64,), "number of curve: got 1"),
        ("calls", 0, "calls: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["cpu"], **{field: value})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_gpu_preset_at_two_small_lengths(tmp_path):
    small = {"batch": 1, "heads": 2, "head_size": 8, "lengths": (16,), "curve": (8, 16), "calls": 1, "seeds": (0, 1)}
    config = replace(PRESETS["gpu"], **small)
    result = latency.run(config, tmp_path)
    assert set(result.measured) == {claim.id for claim in latency.CLAIMS}
    assert all(len(values) == 2 for values in result.measured.values())
    # at 8 tokens two programs at each of two levels, at 16 all six; two repetitions
    assert len(result.tables["times"]["level"]) == (4 + 12) * 2
    assert len(result.tables["medians"]["level"]) == 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightnet", ONE, FOUR])
def test_the_gpu_preset_differentiates_bfloat16_in_all_parameters(name):
    config = replace(PRESETS["gpu"], batch=1, heads=2, head_size=8)
    function, (variables, x) = latency._mixer(config, name, 12)
    shapes = jax.eval_shape(lambda *a: jax.vjp(function, *a)[1](function(*a)), variables, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"bfloat16"}
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(variables) and shapes[1].shape == x.shape
