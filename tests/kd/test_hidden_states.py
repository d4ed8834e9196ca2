"""SLMRec's losses, as its paper and as its code have them."""

import jax
import numpy as np
import pytest

import kd
from tests.kd.cases import in_float64, softmax

RANDOM = np.random.default_rng(34)
H_S, H_T = RANDOM.normal(size=(2, 3, 4, 5))
MASK = np.array([True, False, True, True])


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "squared"), [("mean", True), ("sum", False)])
def test_paper_and_code(reduction, squared):
    over = getattr(np, reduction)
    lengths = [np.linalg.norm(x, axis=-1) for x in (H_S, H_T)]
    cosine = over(1 - (H_S * H_T).sum(-1) / (lengths[0] * lengths[1]), axis=0)[MASK].mean()
    distance = np.linalg.norm(H_S - H_T, axis=-1)
    norm = over(distance**2 if squared else distance, axis=0)[MASK].mean()
    y = np.array([1, -5, 4, 0])
    ce = -np.log(softmax(H_S))[:, np.arange(4), y % 5]
    dirty = np.where(MASK[:, None], H_S, np.nan)
    args = {"reduction": reduction, "mask": MASK}

    def all_of_it(s, t):
        losses = [
            lambda s, t: kd.hidden_cosine(s, t, **args),
            lambda s, t: kd.hidden_norm(s, t, squared=squared, **args),
            lambda s, t: kd.block_cross_entropy(s, y, **args),
        ]
        return [jax.value_and_grad(f, (0, 1))(s, t) for f in losses]

    have = in_float64(all_of_it, dirty, H_T)
    np.testing.assert_allclose([x[0] for x in have], [cosine, norm, over(ce, axis=0)[MASK].mean()], rtol=1e-12)
    for _, (gradient, to_teacher) in have:
        assert (to_teacher == 0).all() and (gradient[:, ~MASK] == 0).all() and np.isfinite(gradient).all()


@pytest.mark.slow
def test_nothing_to_tell_apart_and_nothing_to_count():
    zero = np.zeros((2, 3, 4), np.float32)
    none = np.zeros(3, bool)
    y = np.zeros(3, int)
    losses = [
        lambda s, m: kd.hidden_cosine(s, zero, mask=m),
        lambda s, m: kd.hidden_norm(s, zero, squared=False, mask=m),
        lambda s, m: kd.block_cross_entropy(s, y, mask=m),
    ]
    for loss in losses:
        for s, mask in ((zero, ~none), (np.full_like(zero, np.nan), none)):
            value, gradient = jax.jit(jax.value_and_grad(loss))(s, mask)
            assert np.isfinite(value) and np.isfinite(gradient).all()
        assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.hidden_cosine(H_S, H_T, reduction="none"), "reduction: got 'none', expected one of mean, sum"),
        (lambda: kd.hidden_norm(H_S, H_T[:2]), "h_t: got float"),
        (lambda: kd.block_cross_entropy(H_S, np.zeros(3, int)), "y: got int.*, expected integer.4."),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
