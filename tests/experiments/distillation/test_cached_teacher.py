"""Distillation from stored outputs: the mass that rounding moved comes back, the loss is the live teacher's."""

from dataclasses import replace

import grain
import jax
import numpy as np
import pytest

import kd
from experiments.distillation import cached_teacher
from experiments.distillation.cached_task import cached_divergence, cached_task, restored
from experiments.distillation.cached_teacher import PRESETS, rounding_bound
from experiments.packed_language import packed_nats
from experiments.records.teacher import rounded, top_k_outputs
from tests.experiments.result_run import check_run

SMOKE = PRESETS["smoke"]
B, LENGTH, V, K = 3, 7, 40, 6


@pytest.fixture(scope="module")
def case():
    """Logits of both, a batch with stored outputs that are poisoned where nothing is predicted, and what counts."""
    random = np.random.default_rng(0)
    s, t = (2.5 * random.standard_normal((B, LENGTH - 1, V)).astype(np.float32) for _ in range(2))
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1] * 7, [1, 2, 2, 2, 3, 3, 3]], np.int32)
    real = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    kept = jax.device_get(jax.jit(top_k_outputs, static_argnums=1)(t, K))
    stored = rounded(kept, V)
    for name, poison in (("topk_logprobs", np.nan), ("log_rest", np.nan), ("topk_ids", 7)):
        stored[name] = np.where(real.reshape(*real.shape, *[1] * (stored[name].ndim - 2)), stored[name], poison)
        stored[name] = stored[name].astype(
            {"topk_logprobs": np.float16, "log_rest": np.float32, "topk_ids": np.uint16}[name]
        )
    batch = {"tokens": random.integers(0, V, (B, LENGTH)), "segment_ids": segments, **stored}
    return s, kept, batch, real


def test_restored_log_probabilities_leave_the_mass_that_the_others_had():
    """Where they are small; from the rounded ones alone it would be negative, or twice as large."""
    random = np.random.default_rng(1)
    rest = np.exp(random.uniform(np.log(1e-4), np.log(0.5), 500))
    p = random.dirichlet(np.full(9, 0.5), 500) * (1 - rest)[:, None]
    x = np.log(np.maximum(p, 1e-30)).astype(np.float16)
    again = np.asarray(jax.jit(restored)(x, np.log(rest).astype(np.float32)), np.float64)
    found = 1 - np.exp(again).sum(-1)
    np.testing.assert_allclose(found, rest, rtol=0, atol=2e-6)  # single precision of a sum of ten
    assert np.abs(1 - np.exp(x.astype(np.float64)).sum(-1) - rest).max() > 1e-4


def test_the_gradient_is_that_of_the_live_teacher_up_to_the_rounding(case):
    s, kept, batch, real = case

    @jax.jit
    def gradients(s, batch, ids, log_p):
        live = jax.grad(lambda s: kd.sparse_divergence("forward_kl", s, ids, log_p, mask=real).sum())
        return jax.grad(lambda s: cached_divergence(s, batch)[0].sum())(s), live(s)

    found, expected = gradients(s, batch, kept["topk_ids"], kept["topk_logprobs"])
    distance = np.abs(np.asarray(found) - np.asarray(expected)).sum(-1)
    assert (distance[~real] == 0).all() and np.isfinite(distance).all() and distance.max() > 0
    assert (distance <= rounding_bound(kept["topk_logprobs"].astype(np.float64))).all()


def test_the_bound_is_one_of_the_rounding():
    """A rounding to 7 bits, where float16 has 11, exceeds it; float16's own does not."""
    random = np.random.default_rng(2)
    t, s = 3 * random.standard_normal((2, 400, V)).astype(np.float32)
    kept = jax.jit(top_k_outputs, static_argnums=1)(t, K)
    log_p, ids = kept["topk_logprobs"], kept["topk_ids"]
    bound = rounding_bound(np.asarray(log_p, np.float64))

    @jax.jit
    def gradient(x):
        return jax.grad(lambda s: kd.sparse_divergence("forward_kl", s, ids, x).sum())(s)

    def ratios(x):
        again = jax.jit(restored)(x, kept["log_rest"])
        return np.abs(np.asarray(gradient(again)) - np.asarray(gradient(log_p))).sum(-1) / bound

    mantissa, exponent = np.frexp(np.asarray(log_p, np.float64))
    coarse = np.ldexp(np.round(mantissa * 2**7), exponent - 7)
    assert ratios(np.asarray(log_p).astype(np.float16)).max() < 1
    assert ratios(coarse.astype(np.float32)).max() > 1


class Tabled:
    """A student that says the same logits whatever it reads."""

    def __init__(self, s):
        self.s = s

    def apply(self, variables, tokens, segment_ids, **_):
        """As a module."""
        return variables * self.s


@pytest.mark.slow
def test_the_loss_is_a_mean_over_what_is_predicted_mixed_with_that_of_the_labels(case):
    s, _, batch, real = case
    held_out = grain.MapDataset.source([{"tokens": batch["tokens"][0], "segment_ids": batch["segment_ids"][0]}])
    teacher = np.asarray(jax.jit(cached_divergence)(s, batch)[0])[real].mean()
    nats, _ = jax.jit(packed_nats)(s, batch["tokens"], batch["segment_ids"])
    labels = float(np.asarray(nats).sum()) / real.sum()
    for share in (0.0, 0.25, 1.0):
        task = cached_task(Tabled(s), held_out, 1, labels=share)
        value, weight = jax.jit(lambda *given, task=task: task.loss(*given)[::3])(1.0, batch, jax.random.key(0))
        np.testing.assert_allclose(value, (1 - share) * teacher + share * labels, rtol=1e-5)
        assert int(weight) == real.sum()
    with pytest.raises(ValueError, match="labels: got 1.5, expected a share from 0 to 1"):
        cached_task(Tabled(s), held_out, 1, labels=1.5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("top_k", 257, "top_k: got 257"),
        ("vocabulary", 255, "vocabulary: got 255"),
        ("length", 1, "length: got 1, expected at least 2"),
        ("shards", 1, "shards: got 1, expected at least 2"),
        ("mixer", "lightnet", "mixer: got 'lightnet'"),
    ],
)
def test_refusals(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **{field: value})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_smoke_run(tmp_path):
    result = check_run(cached_teacher, SMOKE, tmp_path)
    assert set(result.tables["updates"]["loss"]) == set(cached_teacher.LOSSES)
