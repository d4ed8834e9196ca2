"""LightNet's mixer and those beside it against sums over pairs of tokens, and what order means to each."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.mixers import LightNetAttention, LinearAttention, MultiplicativeDecay, SoftmaxAttention, scan_orders
from lightnet.positions import MDLRPE, Rotary

WIDTH, HEADS, LENGTH = 12, 3, 6
SIZE = WIDTH // HEADS
GRID = (2, 3)
ORDER_FREE = partial(LightNetAttention, causal=False)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def build(mixer_class, seed=0, length=LENGTH, scale=0.7, **options):
    """A mixer, random parameters in double precision, and tokens."""
    random = np.random.default_rng(seed)
    mixer = mixer_class(width=WIDTH, **{"num_heads": HEADS, **options})
    x = random.standard_normal((2, length, WIDTH))
    shapes = nn.meta.unbox(jax.eval_shape(mixer.init, jax.random.key(0), x))
    return mixer, jax.tree.map(lambda leaf: scale * random.standard_normal(leaf.shape), shapes), x


def run(mixer, variables, x, **options):
    """The mixer's output, compiled."""
    return np.asarray(jax.jit(lambda v, x: mixer.apply(v, x, **options)[0])(variables, x))


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def difference(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lrpe_scores(q, k, coordinates):
    """sum_c q_c k_c cos((s - m) theta_c) for each pair of tokens, on any number of axes."""
    axes = coordinates.shape[1]
    block = -(-SIZE // axes)
    i = np.arange(block)
    theta = np.where(2 * i < block, 10000.0 ** (-2 * i / block), 0) if axes == 1 else 10000.0 ** (-i / block)
    angles = np.concatenate([coordinates[:, [r]] * theta for r in range(axes)], axis=1)[:, :SIZE]
    return q[:, None] * k[None, :] * np.cos(angles[:, None] - angles[None, :])


def weights_of_pairs(mixer, x, params):
    """For one row: the weight of the key of j at i for each channel, (L, L, H, K), and queries, keys and values."""
    q, k, v = np.moveaxis(np.einsum("ld,dphk->lphk", x, params["qkv"]["kernel"]), 1, 0)
    if mixer.conv_width:
        projected, taps = np.stack([q, k, v], axis=1), params["conv"]
        padded = np.concatenate([np.zeros((mixer.conv_width - 1, *projected.shape[1:])), projected])
        q, k, v = np.moveaxis(sum(taps[i] * padded[i : i + len(x)] for i in range(mixer.conv_width)), 1, 0)
    q, logits = silu(q), k
    if mixer.decay == "vector":
        logits = (x @ params["decay_down"]["kernel"] @ params["decay_up"]["kernel"]).reshape(k.shape)
    if mixer.decay == "scalar":
        logits = np.broadcast_to((x @ params["decay_heads"]["kernel"])[..., None], k.shape)
    keys = np.ones_like(k) if mixer.decay == "shared" else silu(k)
    weights = np.zeros((len(x), len(x), HEADS, SIZE))
    phantom = 0 if mixer.phantom_logit is None else np.exp(mixer.phantom_logit)
    total = phantom + np.exp(logits).cumsum(axis=0)
    for i in range(len(x)):
        for j in range(i + 1 if mixer.causal else len(x)):
            if mixer.normalised:
                weights[i, j] = np.exp(logits[j]) / total[i if mixer.causal else -1]
            else:  # the product of decays z_{t-1} - z_t from j + 1 to i
                weights[i, j] = total[j] / total[i]
    return weights, q, keys, v


def expected_of_lightnet(mixer, variables, x):
    """Equations of the module, pair by pair, in NumPy: one row."""
    params = variables["params"]
    weights, q, keys, v = weights_of_pairs(mixer, x, params)
    coordinates = np.arange(len(x))[:, None] if mixer.grid is None else np.indices(mixer.grid).reshape(2, -1).T
    o = np.zeros_like(v)
    for h in range(HEADS):
        scores = q[:, None, h] * keys[None, :, h]
        if mixer.relative is not None:
            scores = lrpe_scores(q[:, h], keys[:, h], coordinates)
        o[:, h] = (scores * weights[:, :, h]).sum(axis=-1) @ v[:, h]
    output = params["output"]
    activation = silu if mixer.gate_activation is nn.silu else sigmoid
    gate = activation(x @ output["gate_down"]["kernel"] @ output["gate_up"]["kernel"])
    o = o.reshape(x.shape)
    o = o * gate if mixer.gate_position == "before" else o
    o = o / np.sqrt((o**2).mean(axis=-1, keepdims=True) + 1e-6) * output["norm_over_heads"]["scale"]
    o = o * gate if mixer.gate_position == "after" else o
    return o @ output["out"]["kernel"].reshape(WIDTH, WIDTH)


SWITCHES = {
    "default": {},
    "order-free": {"causal": False},
    "lrpe": {"relative": MDLRPE},
    "order-free-md-lrpe": {"causal": False, "relative": partial(MDLRPE, axes=2), "grid": GRID},
    "vector": {"decay": "vector", "relative": MDLRPE},
    "order-free-vector": {"decay": "vector", "causal": False},
    "scalar": {"decay": "scalar"},
    "decays-only": {"decay": "vector", "normalised": False, "relative": MDLRPE},
    "scalar-decays-only": {"decay": "scalar", "normalised": False},
    "phantom": {"phantom_logit": 0.0, "relative": MDLRPE},
    "phantom-decays-only": {"phantom_logit": 0.7, "decay": "vector", "normalised": False},
    "convolution": {"conv_width": 4},
    "gate-after": {"gate_position": "after", "gate_activation": nn.silu, "gate_rank": 2},
}
QUICK = ("order-free-md-lrpe", "vector", "phantom", "gate-after")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SWITCHES]
)
def test_lightnet_is_the_sum_over_pairs(name):
    mixer, variables, x = build(LightNetAttention, **SWITCHES[name])
    close(run(mixer, variables, x), np.stack([expected_of_lightnet(mixer, variables, row) for row in x]))


def test_every_switch_changes_something():
    shared, variables, x = build(LightNetAttention)
    first = run(shared, variables, x)
    same_parameters = [{"causal": False}, {"phantom_logit": 0.0}, {"relative": MDLRPE}, {"gate_position": "after"}]
    for options in same_parameters:
        assert difference(run(shared.clone(**options), variables, x), first) > 0.01, options


def test_without_an_order_only_coordinates_know_of_the_places_of_tokens():
    mixer, variables, x = build(ORDER_FREE)
    expected = run(mixer, variables, x)
    by_columns = np.arange(LENGTH).reshape(GRID).T.ravel()
    for order in (np.random.default_rng(0).permutation(LENGTH), by_columns):
        close(run(mixer, variables, x[:, order]), expected[:, order])
    placed = mixer.clone(relative=partial(MDLRPE, axes=2), grid=GRID)
    moved = run(placed, variables, x[:, by_columns])
    assert difference(moved, run(placed, variables, x)[:, by_columns]) > 0.01


def test_the_last_token_of_the_causal_form_is_that_of_the_form_without_an_order():
    causal, variables, x = build(LightNetAttention, relative=MDLRPE)
    order_free = causal.clone(causal=False)
    close(run(causal, variables, x)[:, -1], run(order_free, variables, x)[:, -1])
    alone = x[:, :1]
    close(run(causal, variables, alone), run(order_free, variables, alone))


def test_one_token_reads_its_own_value_times_the_sum_of_queries():
    mixer, variables, x = build(ORDER_FREE, length=1)
    params = variables["params"]
    q, _, v = np.moveaxis(np.einsum("bd,dphk->bphk", x[:, 0], params["qkv"]["kernel"]), 1, 0)
    o = silu(q).sum(axis=-1, keepdims=True) * v
    gated = o.reshape(2, WIDTH) * sigmoid(
        x[:, 0] @ params["output"]["gate_down"]["kernel"] @ params["output"]["gate_up"]["kernel"]
    )
    normed = gated / np.sqrt((gated**2).mean(axis=-1, keepdims=True) + 1e-6)
    normed = normed * params["output"]["norm_over_heads"]["scale"]
    close(run(mixer, variables, x)[:, 0], normed @ params["output"]["out"]["kernel"].reshape(WIDTH, WIDTH))


def test_multiplicative_scans_and_what_they_know_of_order():
    one, variables, x = build(MultiplicativeDecay)
    two, four = one.clone(num_scans=2), one.clone(num_scans=4, grid=GRID)
    backwards = slice(None, None, -1)
    for mixer, reflects in ((one, False), (two, True), (four, True)):
        changed = difference(run(mixer, variables, x[:, backwards]), run(mixer, variables, x)[:, backwards])
        assert changed < 1e-12 if reflects else changed > 0.1
    by_columns = np.arange(LENGTH).reshape(GRID).T.ravel()
    transposed = four.clone(grid=GRID[::-1])
    close(run(transposed, variables, x[:, by_columns]), run(four, variables, x)[:, by_columns])
    for mixer in (one, two):
        assert difference(run(mixer, variables, x[:, by_columns]), run(mixer, variables, x)[:, by_columns]) > 0.01


def test_multiplicative_decay_is_the_sum_over_pairs():
    mixer, variables, x = build(MultiplicativeDecay, num_scans=2, relative=MDLRPE)
    params = variables["params"]
    expected = []
    for row in x:
        q, f, v = np.moveaxis(np.einsum("ld,dphk->lphk", row, params["qkv"]["kernel"]), 1, 0)
        forget, q = sigmoid(f + 2), silu(q)
        o = np.zeros_like(v)
        for i in range(LENGTH):
            for j in range(LENGTH):
                decay = (forget[j + 1 : i + 1] if j <= i else forget[i:j]).prod(axis=0)
                keys = (1 - forget[j]) * decay * np.cos((i - j) * np.array([1.0, 0.01, 0, 0]))
                scans = 2 if i == j else 1
                o[i] += scans * (q[i] * keys).sum(axis=-1, keepdims=True) * v[j]
        gate = sigmoid(row @ params["output"]["gate_down"]["kernel"] @ params["output"]["gate_up"]["kernel"])
        o = o.reshape(row.shape) * gate
        o = o / np.sqrt((o**2).mean(axis=-1, keepdims=True) + 1e-6) * params["output"]["norm_over_heads"]["scale"]
        expected.append(o @ params["output"]["out"]["kernel"].reshape(WIDTH, WIDTH))
    close(run(mixer, variables, x), np.stack(expected))


@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_is_the_sum_over_pairs(causal):
    mixer, variables, x = build(LinearAttention, causal=causal, relative=MDLRPE)
    params = variables["params"]
    q, k, v = np.moveaxis(np.einsum("bld,dphk->blphk", x, params["qkv"]["kernel"]), 2, 0)
    expected = []
    for b, row in enumerate(x):
        o = np.zeros_like(v[b])
        for h in range(HEADS):
            scores = lrpe_scores(silu(q[b, :, h]), silu(k[b, :, h]), np.arange(LENGTH)[:, None]).sum(axis=-1)
            o[:, h] = (np.tril(scores) if causal else scores) @ v[b, :, h]
        gate = sigmoid(row @ params["output"]["gate_down"]["kernel"] @ params["output"]["gate_up"]["kernel"])
        o = o.reshape(row.shape) * gate
        o = o / np.sqrt((o**2).mean(axis=-1, keepdims=True) + 1e-6) * params["output"]["norm_over_heads"]["scale"]
        expected.append(o @ params["output"]["out"]["kernel"].reshape(WIDTH, WIDTH))
    close(run(mixer, variables, x), np.stack(expected))


@pytest.mark.parametrize("relative", [MDLRPE, Rotary])
def test_softmax_attention_with_relative_positions(relative):
    mixer, variables, x = build(SoftmaxAttention, relative=relative)
    params = variables["params"]
    q, k, v = np.moveaxis(np.einsum("bld,dphk->blphk", x, params["qkv"]["kernel"]), 2, 0)
    places = np.arange(LENGTH)[:, None]
    o = np.zeros_like(v)
    for b in range(2):
        for h in range(HEADS):
            if relative is MDLRPE:
                scores = lrpe_scores(q[b, :, h], k[b, :, h], places).sum(axis=-1)
            else:
                turn = np.exp(1j * places * np.array([1.0, 0.01]))
                left, right = ((z[b, :, h, :2] + 1j * z[b, :, h, 2:]) * turn for z in (q, k))
                scores = (left @ right.conj().T).real
            scores = np.where(np.tri(LENGTH) > 0, scores / np.sqrt(SIZE), -np.inf)
            weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            o[b, :, h] = weights @ v[b, :, h]
    # JAX's attention has its softmax in single precision.
    close(run(mixer, variables, x), np.einsum("blhk,hkd->bld", o, params["out"]["kernel"]), 1e-6)


def test_tokens_so_far_do_not_change_whatever_follows():
    """Within a chunk of the fast form up to rounding; that no gradient comes back is exact, see the contract."""
    mixer, variables, x = build(LightNetAttention, relative=MDLRPE)
    changed = x.copy()
    changed[:, 4:] = 30 * x[:, :2] + 7
    close(run(mixer, variables, changed)[:, :4], run(mixer, variables, x)[:, :4])


@pytest.mark.parametrize(("position", "activation"), [("before", nn.sigmoid), ("after", nn.silu)])
def test_the_scale_of_queries_is_lost_in_the_norm(position, activation):
    options = {"gate_position": position, "gate_activation": activation, "activation": lambda q: q}
    mixer, variables, x = build(ORDER_FREE, **options)
    scaled = jax.tree.map(np.copy, variables)
    scaled["params"]["qkv"]["kernel"][:, 0] *= 10
    expected = run(mixer, variables, x)
    assert difference(run(mixer, scaled, x), expected) < 1e-3


def test_states_and_sums_are_single_precision_where_the_rest_is_half():
    with jax.enable_x64(False):
        mixer, variables, x = build(LightNetAttention, scale=0.3, length=64, dtype=jnp.bfloat16, relative=MDLRPE)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables)
        x = jnp.asarray(x, jnp.bfloat16)
        y, state = jax.jit(mixer.apply)(variables, x)
        recurrence = state.recurrence
        assert y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in (*recurrence, *mixer.init_state(2).recurrence)} == {jnp.dtype(jnp.float32)}
        single = mixer.clone(dtype=jnp.float32)
        expected, exact = jax.jit(single.apply)(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (variables, x)))
        # One rounding to bfloat16 is 2^-9; projections, gate, norm and output round in turn, independently.
        assert difference(np.asarray(y, np.float32), expected) < 2e-2
        ours, theirs = (s.state / jnp.concatenate([s.total] * 2, 2)[..., None] for s in (recurrence, exact.recurrence))
        assert difference(ours, theirs) < 5e-3


def test_states_of_rows_can_be_reordered():
    mixer, variables, x = build(LightNetAttention, relative=MDLRPE, conv_width=3)
    _, state = jax.jit(mixer.apply)(variables, x)
    swapped = jax.tree.map(lambda leaf: leaf[np.array([1, 0])], state)
    step = jax.jit(partial(mixer.apply, method="step"))
    token = np.random.default_rng(1).standard_normal((2, WIDTH))
    close(step(variables, token[::-1], swapped)[0], step(variables, token, state)[0][::-1])


@pytest.mark.parametrize("options", [{}, {"decay": "vector", "normalised": False}])
def test_padding_alone_leaves_a_state_as_it_is(options):
    mixer, variables, x = build(LightNetAttention, relative=MDLRPE, conv_width=3, **options)
    _, state = jax.jit(mixer.apply)(variables, x)
    nothing = jnp.zeros((2, LENGTH), bool)
    for before in (state, mixer.init_state(2)):
        y, after = jax.jit(partial(mixer.apply, mask=nothing))(variables, jnp.nan * x, before)
        assert np.all(np.asarray(y) == 0)
        jax.tree.map(np.testing.assert_array_equal, after, before)


def test_tokens_of_zeros_have_finite_gradients():
    mixer, variables, x = build(LightNetAttention)
    gradient = jax.jit(jax.grad(lambda v, x: jnp.sum(jnp.sin(mixer.apply(v, x)[0])), argnums=(0, 1)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(variables, 0 * x)))


@pytest.mark.parametrize(
    ("mixer_class", "options", "extra"),
    [
        (LightNetAttention, {}, 0),
        (LightNetAttention, {"decay": "vector"}, 2 * WIDTH * SIZE),
        (LightNetAttention, {"decay": "scalar"}, WIDTH * HEADS),
        (LightNetAttention, {"conv_width": 4}, 4 * 3 * WIDTH),
        (LightNetAttention, {"gate_rank": 7}, 2 * WIDTH * (7 - SIZE)),
        (LinearAttention, {}, 0),
        (MultiplicativeDecay, {"num_scans": 2}, 0),
    ],
)
def test_parameters_are_those_of_the_formula(mixer_class, options, extra):
    # 4 D^2 of the projections, 2 D r of the gate, D of the norm.
    _, variables, _ = build(mixer_class, **options)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 4 * WIDTH**2 + 2 * WIDTH * SIZE + WIDTH + extra


def test_taps_start_between_plus_and_minus_one_over_the_root_of_their_number():
    mixer = LightNetAttention(width=48, num_heads=2, conv_width=4)
    variables = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, 48))))
    taps = np.asarray(variables["params"]["conv"])
    assert np.abs(taps).max() <= 0.5 and np.std(taps) == pytest.approx(0.5 / np.sqrt(3), rel=0.05)


def test_scans_keep_extra_tokens_at_their_ends():
    orders = scan_orders(7, 4, GRID, num_extra=1)
    assert orders[0].tolist() == [0, 1, 2, 3, 4, 5, 6] and orders[2].tolist() == [0, 1, 4, 2, 5, 3, 6]
    np.testing.assert_array_equal(orders[1::2], orders[::2, ::-1])
    assert scan_orders(8, 6, (2, 2, 2)).shape == (6, 8)


@pytest.mark.parametrize(
    ("mixer_class", "options", "message"),
    [
        (LightNetAttention, {"decay": "matrix"}, "decay: got 'matrix', expected one of shared, vector, scalar"),
        (LightNetAttention, {"normalised": False}, "normalised: got False with decay 'shared'"),
        (ORDER_FREE, {"conv_width": 4}, "conv_width: got 4, expected 0: without an order there is no past"),
        (ORDER_FREE, {"phantom_logit": 0.0}, "phantom_logit: got 0.0, expected None"),
        (ORDER_FREE, {"normalised": False, "decay": "scalar"}, "normalised: got False, expected True"),
        (ORDER_FREE, {"grid": (2, 2)}, r"x: got 6 tokens, expected 4: 0 and \(2, 2\)"),
        (LightNetAttention, {"gate_position": "inside"}, "gate_position: got 'inside', expected before or after"),
        (LightNetAttention, {"num_heads": 5}, "num_heads: got 5, expected a divisor of the width 12"),
        (MultiplicativeDecay, {"num_scans": 4}, "num_scans: got 4, expected one of 1, 2 on a sequence"),
        (MultiplicativeDecay, {"num_scans": 3, "grid": GRID}, "num_scans: got 3, expected one of 1, 2, 4 on a grid"),
    ],
)
def test_bad_switches_are_named(mixer_class, options, message):
    with pytest.raises(ValueError, match=message):
        build(mixer_class, **options)


def test_what_has_no_order_refuses_what_needs_one():
    mixer, variables, x = build(ORDER_FREE)
    with pytest.raises(ValueError, match="LightNetAttention: segments not supported; it supports mask"):
        mixer.apply(variables, jnp.asarray(x), segment_ids=jnp.zeros((2, LENGTH), int))
    with pytest.raises(ValueError, match="LightNetAttention: state not supported"):
        mixer.init_state(2)
