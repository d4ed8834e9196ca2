"""SequenceMatch: maximum likelihood as a case, its formula, its divergences, and what <backspace> does to inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from tests.kd.cases import in_float64, softmax

RANDOM = np.random.default_rng(33)
B, T, V = 3, 5, 4
LOGITS, OWN = RANDOM.normal(size=(2, B, T, V))
ACTIONS, OWN_ACTIONS = RANDOM.integers(0, V, (2, B, T))
LENGTHS, OWN_LENGTHS = np.array([5, 3, 1]), np.array([2, 5, 4])
MASK, OWN_MASK = (np.arange(T) < x[:, None] for x in (LENGTHS, OWN_LENGTHS))


def test_maximum_likelihood_is_a_case():
    def both(z):
        matched = jax.value_and_grad(lambda z: kd.sequence_match(z, ACTIONS, regularizer="none", mask=MASK))(z)
        return matched, jax.value_and_grad(lambda z: kd.sequence_kd(z, ACTIONS, mask=MASK))(z)

    have, want = in_float64(both, LOGITS)
    np.testing.assert_allclose(have[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(have[1], want[1], rtol=0, atol=1e-14)
    discounted = in_float64(lambda z: kd.sequence_match(z, ACTIONS, regularizer="none", gamma=0.5, mask=MASK), LOGITS)
    np.testing.assert_allclose(discounted, want[0], rtol=1e-12)  # the values cancel at any discount


def rewards(logits, actions, lengths, gamma):
    r, gain = [], []
    for z, a, length in zip(logits, actions, lengths, strict=True):
        values = np.append(np.log(np.exp(z).sum(-1))[:length], 0.0)
        r.append(z[np.arange(length), a[:length]] - gamma * values[1:])
        gain.append(values[:-1] - gamma * values[1:])
    return np.concatenate(r), np.concatenate(gain)


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", ["chi2", "mixture", "none"])
def test_the_formula(regularizer):
    (r, gain), (own_r, own_gain) = (
        rewards(*x, 0.9) for x in ((LOGITS, ACTIONS, LENGTHS), (OWN, OWN_ACTIONS, OWN_LENGTHS))
    )
    square = {"chi2": (r**2).mean(), "mixture": ((r**2).mean() + (own_r**2).mean()) / 2, "none": 0.0}[regularizer]
    want = -r.mean() + gain.mean() / 2 + own_gain.mean() / 2 + 0.4 * square
    args = {"regularizer": regularizer, "weight": 0.4, "gamma": 0.9, "mask": MASK, "own_mask": OWN_MASK}

    def loss(z, own):
        return kd.sequence_match(z, ACTIONS, own, OWN_ACTIONS, **args)

    dirty = [np.where(mask[..., None], z, np.nan) for mask, z in ((MASK, LOGITS), (OWN_MASK, OWN))]
    value, gradients = in_float64(jax.value_and_grad(loss, (0, 1)), *dirty)
    np.testing.assert_allclose(value, want, rtol=1e-12)
    for mask, gradient in zip((MASK, OWN_MASK), gradients, strict=True):
        assert (gradient[~mask] == 0).all() and np.isfinite(gradient).all() and np.abs(gradient[mask]).max() > 0
    for place in ((0, 1, 2), (1, 2, 0)):
        step = np.zeros_like(LOGITS)
        step[place] = 1e-6
        up, down = (in_float64(loss, LOGITS + sign * step, OWN) for sign in (1, -1))
        np.testing.assert_allclose(gradients[0][place], (up - down) / 2e-6, atol=1e-8)


@pytest.mark.parametrize("mixture", [True, False])
def test_what_the_square_makes_of_the_reward(mixture):
    """sup over r of E_data r - E_own r - c E r^2 is the divergence over 4 c, attained at the closed form."""
    data, own = softmax(RANDOM.normal(size=(2, 6)))
    c = 0.4
    under = (data + own) / 2 if mixture else data

    def objective(r):
        return ((data - own) * r - c * under * r**2).sum(-1)

    r = in_float64(lambda a, b: kd.chi2_reward(a, b, weight=c, mixture=mixture), np.log(data), np.log(own))
    np.testing.assert_allclose(r, (data - own) / (2 * c * under), rtol=1e-12)
    np.testing.assert_allclose(objective(r), ((data - own) ** 2 / under).sum() / (4 * c), rtol=1e-12)
    assert (objective(r + RANDOM.normal(size=(100, 6))) < objective(r)).all()
    if not mixture and c == 0.4:
        quarter = in_float64(lambda a, b: kd.chi2_reward(a, b, mixture=False), np.log(data), np.log(own))
        best = (data * (quarter - quarter**2 / 4) - own * quarter).sum()
        np.testing.assert_allclose(best, ((own - data) ** 2 / data).sum(), rtol=1e-12)


def test_rewards_where_the_data_never_go():
    log_data, log_own = np.log([0.5, 1e-30]), np.log([0.5, 0.5])
    bounded, plain = (np.asarray(kd.chi2_reward(log_data, log_own, mixture=m)) for m in (True, False))
    np.testing.assert_allclose(bounded, [0, -4], atol=1e-6)
    assert plain[1] < -1e28


BACKSPACE = 7
WALK = np.array([[0, 3, 4, 7, 5, 7, 7, 6, 1, 7], [0, 7, 2, 7, 7, 3, 3, 7, 0, 0]])
COUNTED = np.array([[True] * 10, [True] * 8 + [False] * 2])


def prefixes(actions):
    prefix = []
    for action in actions:
        if action != BACKSPACE:
            prefix = [*prefix, action]
        elif len(prefix) > 1:
            prefix = prefix[:-1]
        yield prefix


def attention(inputs, positions, attend):
    """Two layers of attention with positions."""
    random = np.random.default_rng(5)
    x = random.normal(size=(8, 6))[inputs] + random.normal(size=(12, 6))[positions]
    for _ in range(2):
        keys, queries, values = random.normal(size=(3, 6, 6)) / 2
        score = np.where(attend, (x @ queries) @ (x @ keys).T, -np.inf)
        x = x + softmax(score) @ (x @ values)
    return x


@pytest.mark.slow
def test_inputs_stand_for_prefixes():
    """Two layers of causal attention on the prefix alone, and on the walk: the same at every place."""
    given = jax.tree.map(np.asarray, kd.apply_backspace(WALK, BACKSPACE, mask=COUNTED))
    for b in range(2):
        have = attention(given.inputs[b], given.positions[b], given.attend[b])
        for t, prefix in enumerate(prefixes(WALK[b][COUNTED[b]])):
            size = len(prefix)
            want = attention(np.array(prefix), np.arange(size), np.tri(size, dtype=bool))[-1]
            np.testing.assert_allclose(have[t], want, rtol=1e-10)
            assert given.inputs[b, t] == prefix[-1] and given.positions[b, t] == size - 1
    assert np.diagonal(given.attend, axis1=1, axis2=2).all()
    assert not given.attend[np.triu(np.ones((10, 10), bool), 1)[None].repeat(2, 0)].any()
    assert (given.attend[1, 8:] == np.eye(10, dtype=bool)[8:]).all()


@pytest.mark.slow
def test_mistakes_are_taken_back():
    tokens = RANDOM.integers(0, 6, (50, 9))
    noised = jax.tree.map(np.asarray, kd.insert_mistakes(jax.random.key(1), tokens, 6, rate=0.3, vocab=6, length=25))
    for row, wrong, mask, right in zip(*noised, tokens, strict=True):
        removed = np.flatnonzero(row == 6)
        np.testing.assert_array_equal(np.flatnonzero(wrong), removed - 1)
        kept = np.delete(np.arange(25), np.concatenate([removed, removed - 1]))
        np.testing.assert_array_equal(row[kept][:9], right)
        assert mask.sum() == 9 + 2 * len(removed) and mask[: mask.sum()].all()
        assert (row[removed - 1] != row[removed + 1]).all()
    share = noised.mistakes.sum() / (50 * 8)
    assert abs(share - 0.3) < 5 * np.sqrt(0.21 / 400)
    short = jax.tree.map(np.asarray, kd.insert_mistakes(jax.random.key(1), tokens, 6, rate=0.3, vocab=6))
    np.testing.assert_array_equal(short.actions, noised.actions[:, :9])


@pytest.mark.slow
def test_bytes_have_room_for_backspace():
    tokens = np.array([[200, 255, 3]], np.uint8)
    noised = kd.insert_mistakes(jax.random.key(0), tokens, 256, rate=1.0, vocab=256, length=7)
    assert noised.actions[0, np.array([0, 2, 3, 5, 6])].tolist() == [200, 256, 255, 256, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.sequence_match(LOGITS, ACTIONS), "own_logits: got None, expected the model's own sequences"),
        (
            lambda: kd.sequence_match(LOGITS, ACTIONS, OWN, OWN_ACTIONS + V),
            "own_actions: got .* expected labels",
        ),
        (lambda: kd.sequence_match(LOGITS, ACTIONS, regularizer="kl"), "regularizer: got 'kl'"),
        (lambda: kd.chi2_reward(LOGITS, OWN, weight=0.0), "weight: got 0.0, expected a number above 0"),
        (lambda: kd.apply_backspace(ACTIONS[0], 3), "actions: got int.*, expected integer"),
        (lambda: kd.insert_mistakes(jax.random.key(0), ACTIONS, 3, rate=0.5, vocab=4), "backspace: got 3, expected"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.slow
def test_nothing_counts():
    none = np.zeros((B, T), bool)
    dirty = np.full((B, T, V), np.nan, np.float32)
    loss = jax.value_and_grad(lambda z: kd.sequence_match(z, ACTIONS, z, ACTIONS, mask=none, own_mask=none))
    value, gradient = jax.jit(loss)(dirty)
    assert value == 0 and (gradient == 0).all() and jnp.isfinite(gradient).all()
