"""Students of sparse teachers: what is measured of them, and where each convention's optimum lies."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.distillation import sparse_teachers
from experiments.distillation.sparse_teachers import (
    BUCKET,
    CONVENTIONS,
    DENSE,
    PARTIAL,
    RENORM,
    SAMPLED,
    TEACHER,
    cells,
    loss_of,
    measure,
    teacher,
)

SMOKE = sparse_teachers.PRESETS["smoke"]


def test_measures_of_a_student_with_half_of_the_tail():
    drawn = teacher(replace(SMOKE, symbols=4), 2)
    p = np.exp(drawn.log_p)
    tail = np.argsort(np.argsort(-p, 1), 1) >= 2
    q = np.where(tail, p / 2, p)
    q = np.where(tail, q, q * (1 - q.sum(1, keepdims=True, where=tail)) / q.sum(1, keepdims=True, where=~tail))
    have = measure(drawn, np.log(q) + 3.0, 2)
    assert have.ratio == pytest.approx(0.5) and have.inside == pytest.approx(0, abs=1e-12)
    assert have.kl == pytest.approx(drawn.share @ (p * np.log(p / q)).sum(1))


def test_the_share_is_that_of_the_source():
    drawn = teacher(SMOKE, 0)
    p = np.exp(drawn.log_p).reshape(5, 5, 5)
    share = drawn.share.reshape(5, 5)
    np.testing.assert_allclose(np.einsum("ab,abc->bc", share, p), share, atol=1e-12)


@pytest.mark.slow
def test_losses_at_the_teacher_and_on_average():
    """Samples have the dense gradient on average; at the teacher the conventions that are right have none."""
    drawn = teacher(SMOKE, 1)

    def gradients(s, log_p, keys):
        def gradient(target, s, key):
            return jax.grad(lambda s: loss_of(target, 2)(s, log_p, drawn.share, key))(s)

        sampled = jax.vmap(lambda key: gradient(SAMPLED, s, key))(keys)
        return sampled, gradient(DENSE, s, keys[0]), [gradient(c, log_p, keys[0]) for c in CONVENTIONS]

    keys = jax.random.split(jax.random.key(3), 1000)
    s = np.random.default_rng(0).normal(size=drawn.log_p.shape)
    with jax.enable_x64(True):
        sampled, dense, at_teacher = jax.tree.map(np.asarray, jax.jit(gradients)(s, drawn.log_p, keys))
    error, expected = ((sampled.mean(0) - dense) ** 2).sum(), sampled.var(0).sum() / 1000
    assert 0.3 < error / expected < 2
    assert [bool(np.abs(g).max() < 1e-12) for g in at_teacher] == [c in (BUCKET, RENORM) for c in CONVENTIONS]


def test_every_cell_once():
    config = sparse_teachers.PRESETS["cpu"]
    assert len(set(cells(config))) == len(cells(config)) == 16 + 7
    assert {target for _, target, _ in cells(config)} == {BUCKET, RENORM, TEACHER, PARTIAL, SAMPLED, DENSE}
    with pytest.raises(ValueError, match="reported: got 3, expected one of kept"):
        replace(SMOKE, reported=3)
