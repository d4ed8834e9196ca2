"""Speeds: the smoke run, the peer is the engine that our trainer equals, the claims of made-up times."""

import numpy as np
import pytest

from experiments.tokenization import BPETokenizer, engine_speed
from experiments.tokenization.engine_speed import OURS, PEER, PRESETS, Config, measure, train_peer
from tests.experiments.result_run import check_run


def test_smoke_run(tmp_path):
    result = check_run(engine_speed, PRESETS["smoke"], tmp_path, absent={"speed-trainer", "speed-peer"})
    assert result.tables["times"]["what"] == [OURS] * 2 + [PEER] * 2 + ["greedy", "minimal", "merges"]


def test_the_peer_learns_as_many_tokens_as_we_do():
    text = np.random.default_rng(0).integers(0, 2, 600)
    assert train_peer(text, 40) == len(BPETokenizer.train_whole([text], 40)) == 40


def test_claims_of_made_up_times():
    config = Config(seeds=(5,))
    rows = [{"what": OURS, "characters": n, "seconds": 2e-6 * n} for n in config.lengths]
    rows += [{"what": PEER, "characters": n, "seconds": 1e-9 * n**2} for n in config.peer_lengths]
    rows += [
        {"what": name, "characters": 2_000_000, "seconds": t}
        for name, t in (("greedy", 0.2), ("minimal", 1.0), ("merges", 4.0))
    ]
    found = measure(config, [{"seed": 5, **row} for row in rows])
    assert {id.partition("-")[2]: value for id, (value,) in found.items()} == pytest.approx(
        {"greedy": 10.0, "minimal": 2.0, "merges": 0.5, "growth": 1.0, "trainer": 2.0, "peer": 500.0}
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lengths", (2000,), "the number of lengths: got 1"),
        ("peer_lengths", (10, 2000), "the smallest of peer_lengths"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
