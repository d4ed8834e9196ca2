"""What is timed beside ott-jax, and what is left out without it."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.distillation import sinkhorn_speed
from experiments.distillation.sinkhorn_speed import OURS, PEER, PEER_KERNEL, logits, losses

SMOKE = sinkhorn_speed.PRESETS["smoke"]


def test_without_the_peer_its_claims_are_not_run(monkeypatch):
    monkeypatch.setattr(sinkhorn_speed, "find_spec", lambda name: None)
    assert PEER not in losses(SMOKE)
    times = {"form": [OURS], "cpu_ms": [1.0]}
    assert sinkhorn_speed._measured({OURS: 2.0}, times) == {}


@pytest.mark.slow
def test_gradients_of_the_peer():
    pytest.importorskip("ott", reason="ott-jax is not installed")
    import jax

    config = replace(SMOKE, n_iters=200)  # it sets columns right first and we rows: the same plan only at the end
    with jax.numpy_rank_promotion("allow"):
        found = {name: jax.jit(jax.grad(loss))(*logits(config)) for name, loss in losses(config).items()}
    for name in (PEER, PEER_KERNEL):
        assert np.linalg.norm(found[name] - found[OURS]) < 1e-4 * np.linalg.norm(found[OURS])
