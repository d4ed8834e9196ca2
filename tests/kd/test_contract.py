"""What all objectives have in common: masks, parts of a batch, compilation, seeds, precision and no gradient to t."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.sparse import CONVENTIONS
from tests.kd.cases import softmax

RANDOM = np.random.default_rng(13)
B, T, V, H = 4, 5, 7, 3
S, TEACHER = 2 * RANDOM.normal(size=(2, B, T, V)).astype(np.float32)
W_S, W_T = RANDOM.normal(size=(2, V, H)).astype(np.float32)
HIDDEN, HIDDEN_T = RANDOM.normal(size=(2, B, T, H)).astype(np.float32)
MASK = RANDOM.random((B, T)) < 0.6
LABELS = RANDOM.integers(0, V, (B, T))


def meaned(f):
    """A divergence at every token as a loss with a denominator."""
    return lambda s, t, mask, denominator: kd.reduce_tokens(f(s, t, mask=mask), mask, denominator)


def sparse(convention, s, t, mask):
    ids = jnp.argsort(-t, axis=-1)[..., :3]
    stored = jnp.take_along_axis(jax.nn.log_softmax(t), ids, -1)
    return kd.sparse_divergence("jsd", s, ids, stored, convention=convention, mask=mask)


def chunked(h, h_t, mask, denominator):
    args = {"token_chunk": 3, "vocab_chunk": 4, "denominator": denominator}
    return kd.chunked_divergence("skew_kl", h, W_S, h_t, W_T, mask, **args)


def labelled(h, h_t, mask, denominator):
    labels = jnp.where(mask, jnp.argmax(h_t, axis=-1), -100)
    return kd.chunked_cross_entropy(h, W_S, labels, mask, token_chunk=4, denominator=denominator)


# what is trained (B, T, D), what it is compared with (B, T, D), mask (B, T), denominator -> scalar
SEQUENCE = {
    "token_divergence": (meaned(partial(kd.token_divergence, "reverse_kl")), S, TEACHER),
    "taid": (meaned(lambda s, t, mask: kd.taid(s, t, 0.4, mask=mask)), S, TEACHER),
    "akl": (meaned(kd.akl), S, TEACHER),
    "kl_top": (lambda s, t, mask, n: kd.kl_top(s, t, k=4, mask=mask, denominator=n), S, TEACHER),
    **{f"sparse, {c}": (meaned(partial(sparse, c)), S, TEACHER) for c in CONVENTIONS},
    "chunked_divergence": (chunked, HIDDEN, HIDDEN_T),
    "chunked_cross_entropy": (labelled, HIDDEN, HIDDEN_T),
}


def tokens(f):
    """A loss of log probabilities of tokens, by a denominator, as one of arrays (B, T, D)."""
    return meaned(lambda s, t, mask: f(s[..., 0], t[..., 0], mask=mask))


def kdrl(s, t, mask, denominator):
    A = jnp.where(mask, t[..., 1], 0).sum(1)
    return kd.kdrl_loss(s[..., 0], t[..., 0], A, beta=0.3, mask=mask, denominator=denominator)


def by_mask(f):
    return lambda s, t, mask, n: f(s, t, mask=mask, denominator=n)


def with_tokens(f):
    """A loss along sequences that are the teacher's most likely ones."""
    return lambda s, t, mask, n: f(s, t, jnp.where(mask, jnp.argmax(t, axis=-1), -100), mask=mask, denominator=n)


def hybrid(s, t, mask, denominator):
    ids = np.array([0, 3]), np.array([1, 2])
    return kd.hybrid_uld(s, t[..., :5], *ids, mask=mask, denominator=denominator)


def matched(s, t, mask, denominator):
    actions = jnp.where(mask, jnp.argmax(t, axis=-1), -100)
    args = {"own_mask": mask, "denominator": denominator, "own_denominator": denominator}
    return kd.sequence_match(s, actions, s + 1.0, actions, mask=mask, **args)


SEQUENCE |= {
    "gkd": (by_mask(kd.gkd), S, TEACHER),
    "uld": (by_mask(kd.uld), S, TEACHER),
    "hybrid_uld": (hybrid, S, TEACHER),
    "sequence_kd": (with_tokens(lambda s, t, tokens, **args: kd.sequence_kd(s, tokens, **args)), S, TEACHER),
    "minillm": (with_tokens(kd.minillm), S, TEACHER),
    "sequence_match": (matched, S, TEACHER),
    "kl_surrogate": (tokens(kd.kl_surrogate), S, TEACHER),
    "kl_surrogate, k3": (tokens(partial(kd.kl_surrogate, kind="k3")), S, TEACHER),
    "kdrl_loss": (kdrl, S, TEACHER),
    "dph_anchor": (tokens(partial(kd.dph_anchor, generator="jensen_shannon")), S, TEACHER),
}


def cases(table, quick):
    return [pytest.param(name, id=name, marks=[pytest.mark.slow] * (name not in quick)) for name in table]


@pytest.mark.parametrize("name", cases(SEQUENCE, ("kl_top",)))
def test_padding_parts_and_nothing_to_count(name):
    """Whatever stands at masked tokens, value and gradient are those without it; parts sum to the whole."""
    loss, s, t = SEQUENCE[name]
    both = jax.jit(jax.value_and_grad(loss))
    number = float(MASK.sum())
    value, gradient = both(s, t, MASK, number)
    for poison in (np.nan, np.inf, -np.inf, 1e30):
        dirty_s, dirty_t = (np.where(MASK[..., None], x, poison) for x in (s, t))
        again, dirty = both(dirty_s, dirty_t, MASK, number)
        assert again == value
        np.testing.assert_array_equal(dirty, gradient)
        assert (np.asarray(dirty)[~MASK] == 0).all()
    longer = [np.concatenate([x, RANDOM.normal(size=(B, 2, x.shape[-1])).astype(np.float32)], axis=1) for x in (s, t)]
    padded = np.concatenate([MASK, np.zeros((B, 2), bool)], axis=1)
    again, more = both(*longer, padded, number)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    np.testing.assert_allclose(more[:, :T], gradient, rtol=1e-4, atol=1e-7)
    halves = [both(s[i : i + 2], t[i : i + 2], MASK[i : i + 2], number) for i in (0, 2)]
    np.testing.assert_allclose(sum(half[0] for half in halves), value, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([half[1] for half in halves]), gradient, rtol=1e-4, atol=1e-7)
    value, gradient = both(np.full_like(s, np.nan), t, np.zeros_like(MASK), 0.0)
    assert value == 0 and (gradient == 0).all()


Y = RANDOM.integers(0, V, B)
CENTROIDS = softmax(RANDOM.normal(size=(V, V))).astype(np.float32)
# student logits (B, C), teacher logits (B, C) -> scalar
CLASSIFICATION = {
    "hinton": lambda s, t: kd.hinton(s, t, Y),
    "abkd": lambda s, t: kd.abkd(s, t, Y, alpha=0.2, beta=0.7),
    "dkd": lambda s, t: kd.dkd(s, t, Y),
    "dist": lambda s, t: kd.dist(s, t, Y),
    "pld": lambda s, t: kd.pld(s, t, Y, temperature=2.0),
    "pld, truncated": lambda s, t: kd.pld(s, t, Y, top_m=3),
    "sinkd": lambda s, t: kd.sinkd(s, t),
    "sinkd, debiased": lambda s, t: kd.sinkd(s, t, debiased=True),
    "sinkd_sample_wise": lambda s, t: kd.sinkd_sample_wise(s, t),
    "bd_kd": lambda s, t: kd.bd_kd(s, t, Y).student,
    "kl_top": lambda s, t: kd.kl_top(s, t, k=3),
    "mdcs_consistency": lambda s, t: kd.mdcs_consistency(t[None], s[None], jnp.argmax(t, 1)),
    "token_divergence": lambda s, t: kd.token_divergence("jsd", s, t, temperature=2.0).sum(),
}


@pytest.mark.parametrize("name", cases(CLASSIFICATION, ("hinton",)))
def test_compiled_over_seeds_and_in_low_precision(name):
    loss = CLASSIFICATION[name]
    s, t = S[:, :2].swapaxes(0, 1), TEACHER[:, :2].swapaxes(0, 1)  # two seeds of (B, C)
    both = jax.value_and_grad(loss, (0, 1))
    alone = jax.jit(both)
    plain = [alone(*pair) for pair in zip(s, t, strict=True)]
    mapped, (to_student, to_teacher) = jax.jit(jax.vmap(both))(s, t)
    for i, (value, (gradient, _)) in enumerate(plain):
        np.testing.assert_allclose(mapped[i], value, rtol=1e-5)
        np.testing.assert_allclose(to_student[i], gradient, rtol=1e-4, atol=1e-6)
    assert (to_teacher == 0).all() and np.abs(to_student).max() > 0
    np.testing.assert_allclose(to_student.sum(-1), 0, atol=2e-6)  # a shift of the logits changes nothing
    low = [jnp.asarray(x[0], jnp.bfloat16) for x in (s, t)]
    value, (gradient, _) = alone(*low)
    exact, _ = alone(*(x.astype(jnp.float32) for x in low))
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)


def test_mcmi_trains_the_teacher_only_through_its_logits():
    t = TEACHER[:, 0]
    both = jax.jit(jax.grad(lambda t, Q: kd.mcmi_teacher(t, Y, Q, weight=0.4), (0, 1)))
    to_logits, to_centroids = both(t, CENTROIDS)
    assert np.abs(to_logits).max() > 0 and (to_centroids == 0).all()
