"""Conjecture 1 on chains with zeros: the smoke run, the chains, one loss by hand, the claims of made-up rows."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.tokenization import chains_with_zeros
from experiments.tokenization.chains_with_zeros import NO_REPETITION, PRESETS, Config, chains, measure, random_kernel
from tests.experiments.result_run import check_run


def test_smoke_run(tmp_path):
    result = check_run(chains_with_zeros, PRESETS["smoke"], tmp_path)
    table = result.tables["losses"]
    for name in chains_with_zeros.TOKENIZERS:
        assert (np.array(table[name]) >= np.array(table["entropy_rate"]) - 1e-9).all()
    # Eight symbols, no repetition, d = 10: blocks of one symbol lose log 8; the bound is known.
    row = table["chain"].index(NO_REPETITION)
    assert table["size"][row] == 10
    assert [table[name][row] for name in ("blocks", "characters")] == pytest.approx([math.log(8)] * 2)
    epsilon = math.log(math.log(8) / math.log(7)) / (0.99 * math.log(10))
    assert table["bound"][row] == pytest.approx(math.log(7) / (1 - epsilon))


def test_all_chains_have_zeros_and_one_is_drawn_anew_for_each_seed():
    one, other = chains(Config(), 0), chains(Config(), 1)
    assert all((source.kernel == 0).any() and source.order == 1 for source in one.values())
    changed = [name for name in one if not np.array_equal(one[name].kernel, other[name].kernel)]
    assert changed == ["random"]


def test_random_kernels_are_laws_with_as_many_successors_as_asked_for():
    for seed in range(20):
        kernel = random_kernel(np.random.default_rng(seed), 6, 3, minimum=0.2)
        np.testing.assert_allclose(kernel.sum(axis=1), 1)
        assert ((kernel > 0).sum(axis=1) == 3).all() and kernel[kernel > 0].min() >= 0.2
        assert (kernel[np.arange(6), (np.arange(6) + 1) % 6] > 0).all()


def test_the_best_tokenizer_counts_and_sizes_without_a_bound_do_not():
    losses = {"characters": 0.7, "blocks": 0.6, "LZW": 0.65, "BPE": 0.8}
    rows = [
        {"chain": "cycle", "bound": 0.5, **losses},
        {"chain": "random", "bound": 0.9, **losses},
        {"chain": "random", "bound": math.inf, **losses},
        {"chain": NO_REPETITION, "bound": 0.55, **losses},
        {"chain": NO_REPETITION, "bound": 0.58, **losses},
    ]
    found = measure(rows)
    assert found["tokenization/Conj1-without-positivity"] == [pytest.approx(0.1)]
    assert found["tokenization/Conj1-no-repetition"] == [pytest.approx(0.02)]
    assert measure(rows[2:3]) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sizes", (20, 10), "sizes: got .*, expected rising values"),
        ("sizes", (7,), "the smallest of sizes: got 7"),
        ("successors", 4, "successors: got 4"),
        ("minimum", 0.6, "minimum: got 0.6"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(Config(), **{field: value})
