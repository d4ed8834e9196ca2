"""LRPE, MD-LRPE and rotary: what scores depend on, and what happens to it in LightNet's recurrence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.positions import (
    MDLRPE,
    Rotary,
    axial_angles,
    cosine_features,
    frequencies,
    grid_coordinates,
    phase_factor,
    rotary_angles,
    rotate,
    token_coordinates,
)
from lightnet.scan import AdditiveState, additive_global, additive_recurrence, additive_step, gated_linear_attention

ENCODINGS = {
    "lrpe": MDLRPE(head_size=5, kind="full"),
    "lrpe-high": MDLRPE(head_size=6),
    "lrpe-2d": MDLRPE(head_size=7, axes=2),
    "lrpe-3d": MDLRPE(head_size=8, axes=3),
    "rotary": Rotary(head_size=6),
    "rotary-2d": Rotary(head_size=6, axes=2),
}
QUICK = ("lrpe-high", "lrpe-3d", "rotary-2d")
each_encoding = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in ENCODINGS]
)
# In LightNet's recurrences all have one size, so that each of them is compiled once.
OF_ONE_SIZE = {
    "lrpe": MDLRPE(head_size=6),
    "lrpe-2d": MDLRPE(head_size=6, axes=2),
    "rotary": Rotary(head_size=6),
    "rotary-2d": Rotary(head_size=6, axes=2),
}


@jax.jit
def causal(q, logits, v, factor):
    return additive_recurrence(q, logits, v, key_factor=factor, implementation="reference")


@jax.jit
def order_free(q, logits, v, factor):
    return additive_global(q, logits, v, key_factor=factor)


@jax.jit
def gated(q, k, v, decay):
    return gated_linear_attention(q, k, v, decay, implementation="reference")[0]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def example(encoding, length=9, heads=2, seed=0):
    """Random coordinates, queries, logits and values."""
    random = np.random.default_rng(seed)
    coordinates = random.integers(0, 30, (1, length, encoding.axes))
    sizes = encoding.head_size, encoding.head_size, 3
    return coordinates, *(jnp.asarray(random.standard_normal((2, length, heads, size))) for size in sizes)


def scores(q, k):
    return np.einsum("bihc,bjhc->bhij", q, k)


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def difference(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def shift(axes):
    return np.array([1000, -70, 3])[:axes]


@each_encoding
def test_scores_depend_on_differences_of_coordinates(name):
    encoding = ENCODINGS[name]
    coordinates, q, k, _ = example(encoding)
    here, there = (encoding.apply({}, c) for c in (coordinates, coordinates + shift(encoding.axes)))
    expected = scores(*encoding.pair(q, k, here))
    close(scores(*encoding.pair(q, k, there)), expected)
    close(scores(encoding.queries(q, there), encoding.keys(k, there)), expected)
    assert difference(expected, scores(q, k)) > 0.1


@pytest.mark.parametrize("name", ["lrpe-2d", "lrpe-3d", "rotary-2d"])
def test_axes_are_told_apart(name):
    encoding = ENCODINGS[name]
    coordinates, q, k, _ = example(encoding)
    here, turned = (encoding.apply({}, c) for c in (coordinates, coordinates[..., ::-1]))
    assert difference(scores(*encoding.pair(q, k, turned)), scores(*encoding.pair(q, k, here))) > 0.1


def test_angles_are_blocks_of_axes_that_share_their_frequencies_and_are_cut():
    theta = np.array([1.0, 0.1, 0.01])
    angles = axial_angles(np.array([[2, 5, 7]]), theta, 8)
    close(angles, [[[2, 0.2, 0.02, 5, 0.5, 0.05, 7, 0.7]]])
    per_head = axial_angles(np.array([[2, 5, 7]]), np.stack([theta, 2 * theta]), 8)
    close(per_head, np.stack([angles[:, 0], 2 * angles[:, 0]], axis=1))


@pytest.mark.parametrize(("head_size", "axes"), [(5, 1), (7, 3), (2, 3)])
def test_lrpe_doubles_the_channels_and_keeps_the_norm(head_size, axes):
    encoding = MDLRPE(head_size=head_size, axes=axes, kind="geometric")
    coordinates, q, _, _ = example(encoding)
    features = encoding.queries(q, encoding.apply({}, coordinates))
    assert features.shape == (*q.shape[:-1], 2 * head_size)
    close(np.linalg.norm(features, axis=-1), np.linalg.norm(q, axis=-1))


@pytest.mark.parametrize("name", ["rotary", "rotary-2d"])
def test_rotary_turns_pairs(name):
    encoding = ENCODINGS[name]
    coordinates, q, _, _ = example(encoding)
    turned, _ = encoding.pair(q, q, encoding.apply({}, coordinates))
    theta = frequencies(-(-3 // encoding.axes))
    angle = np.concatenate([coordinates[..., r, None] * np.asarray(theta) for r in range(encoding.axes)], axis=-1)[
        ..., None, :3
    ]
    as_complex = (np.asarray(q[..., :3]) + 1j * np.asarray(q[..., 3:])) * np.exp(1j * angle)
    close(turned, np.concatenate([as_complex.real, as_complex.imag], axis=-1))


@each_encoding
def test_extra_tokens_have_no_phase(name):
    encoding = ENCODINGS[name]
    grid = (2, 3, 2)[: encoding.axes]
    factor = encoding.apply({}, grid_coordinates(grid, num_extra=2)[None])
    assert np.all(np.asarray(factor)[:, :2, :, 0] == 1) and np.all(np.asarray(factor)[:, :2, :, 1] == 0)
    q = np.ones((1, 2 + np.prod(grid), 1, encoding.head_size))
    extra = encoding.keys(q, factor)[:, :2]
    close(extra, np.concatenate([q[:, :2], 0 * q[:, :2]], axis=-1))


def test_frequencies():
    close(frequencies(4), 10000.0 ** -(np.arange(4) / 4))
    close(frequencies(4, "full", 100.0), 100.0 ** -(np.arange(4) / 2))
    for size in (4, 5):
        full, high, low = (np.asarray(frequencies(size, kind)) for kind in ("full", "high", "low"))
        close(high + low, full)
        assert np.all(high[np.arange(size) >= size / 2] == 0) and np.all(low[np.arange(size) < size / 2] == 0)
    # The common table of RoPE.
    close(rotary_angles(np.array([3]), frequencies(3), 6)[0, :3], 3 * 10000.0 ** (-2 * np.arange(3) / 6))


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_lightnet_depends_on_differences_of_coordinates(name):
    """Behind the normalisation, causal or not; and in the logits not."""
    encoding = OF_ONE_SIZE[name]
    coordinates, q, logits, v = example(encoding)
    results = []
    for c in (coordinates, coordinates + shift(encoding.axes)):
        factor = encoding.apply({}, c)
        given = (encoding.queries(q, factor), logits, v)
        none = jnp.ones((1, 9, 1, 1, 12))
        in_logits = order_free(encoding.queries(q, factor), encoding.keys(logits, factor), v, none)
        results.append((causal(*given, factor)[0], order_free(*given, factor), in_logits))
    (before, without_order, broken), (before_there, without_order_there, broken_there) = results
    close(before_there, before)
    close(without_order_there, without_order)
    assert difference(broken_there, broken) > 0.01
    still = encoding.apply({}, 0 * coordinates)
    assert difference(before, causal(encoding.queries(q, still), logits, v, still)[0]) > 0.1


@pytest.mark.parametrize("name", ["rotary", "rotary-2d"])
def test_rotary_in_the_factor_form_is_rotation_of_normalised_keys(name):
    encoding = OF_ONE_SIZE[name]
    coordinates, q, logits, v = example(encoding)
    factor = encoding.apply({}, coordinates)
    keys = rotate(jax.nn.softmax(logits, axis=1), factor)
    expected = jnp.einsum("bihc,bjhc,bjhe->bihe", rotate(q, factor), keys, v)
    close(order_free(encoding.queries(q, factor), logits, v, factor), expected)


def gated_with_rotary(tied, offset):
    """LightNet's causal form as gated linear attention, with keys that are rotated in place."""
    encoding = Rotary(head_size=6)
    _, q, logits, v = example(encoding)
    logits = jnp.concatenate([logits[..., :3]] * 2, axis=-1) if tied else logits
    factor = encoding.apply({}, jnp.arange(9)[None, :, None] + offset)
    z = jax.lax.cumlogsumexp(logits, axis=1)
    decay = jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :-1] - z[:, 1:]], axis=1)
    return gated(rotate(q, factor), rotate(jnp.exp(logits - z), factor), v, decay)


def test_rotary_in_place_loses_the_relative_property_unless_decays_of_a_pair_agree():
    close(gated_with_rotary(True, 1000), gated_with_rotary(True, 0))
    assert difference(gated_with_rotary(False, 1000), gated_with_rotary(False, 0)) > 0.01


def test_cosine_with_duplicated_decays_is_the_key_factor():
    """What a mixer with multiplicative decays does, and what LightNet's recurrence does by itself."""
    encoding = OF_ONE_SIZE["lrpe"]
    coordinates, q, logits, v = example(encoding)
    factor = encoding.apply({}, coordinates)
    z = jax.lax.cumlogsumexp(logits, axis=1)
    decay = jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :-1] - z[:, 1:]], axis=1)
    keys, decays = encoding.keys(jnp.exp(logits - z), factor), jnp.concatenate([decay] * 2, axis=-1)
    expected = gated(encoding.queries(q, factor), keys, v, decays)
    close(causal(encoding.queries(q, factor), logits, v, factor)[0], expected)


@pytest.mark.parametrize("name", ["lrpe-2d", "rotary-2d"])
def test_order_does_not_matter_if_coordinates_are_carried_along(name):
    """Also row by row or column by column: nothing but the coordinates knows of the flattening."""
    encoding = OF_ONE_SIZE[name]
    _, q, logits, v = example(encoding, length=6)
    coordinates = np.asarray(grid_coordinates((2, 3)))[None]

    def run(order, carried):
        factor = encoding.apply({}, coordinates[:, carried])
        return order_free(encoding.queries(q[:, order], factor), logits[:, order], v[:, order], factor)

    by_rows = np.arange(6)
    expected = run(by_rows, by_rows)
    by_columns = by_rows.reshape(2, 3).T.ravel()
    for order in (np.random.default_rng(0).permutation(6), by_columns):
        close(run(order, order), expected[:, order])
    left_behind = run(by_columns, by_rows)
    assert difference(left_behind, expected[:, by_columns]) > 0.1


def test_packed_and_padded_positions_are_those_of_the_sequences_alone():
    coordinates = jax.jit(partial(token_coordinates, 7))
    ids = np.array([[5, 5, 5, 5, 2, 2, 5], [1, 1, 1, 1, 1, 1, 1]])
    mask = np.array([[0, 1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1, 1]], bool)
    positions = coordinates(segment_ids=ids, mask=mask, offset=np.array([3, 0]))[..., 0]
    assert np.asarray(positions)[0, [1, 2, 3, 5, 6]].tolist() == [3, 4, 5, 0, 0]
    assert np.asarray(positions)[1, [0, 1, 4, 5, 6]].tolist() == [0, 1, 2, 3, 4]
    assert (positions[:, -1] + mask[:, -1]).tolist() == [1, 5]
    assert token_coordinates(4).shape == (1, 4, 1)
    assert token_coordinates(2, offset=jnp.array([1, 9]))[..., 0].tolist() == [[1, 2], [9, 10]]


def test_places_in_a_whole_row_are_counted_without_running_sums():
    counted = partial(token_coordinates, 7)
    offset, ones = np.array([3, 0]), np.ones((2, 7), bool)
    np.testing.assert_array_equal(counted(offset=offset), counted(offset=offset, mask=ones))
    assert "cum" in str(jax.make_jaxpr(lambda mask: counted(mask=mask))(ones))
    assert "cum" not in str(jax.make_jaxpr(lambda offset: counted(offset=offset))(offset))


def test_steps_are_the_sequence():
    encoding = OF_ONE_SIZE["lrpe"]
    _, q, logits, v = example(encoding)
    factor = encoding.apply({}, token_coordinates(9))
    expected, final = causal(encoding.queries(q, factor), logits, v, factor)

    @jax.jit
    def step(t, q, logits, v, state):
        now = encoding.apply({}, jnp.full((2, 1), t))
        return additive_step(encoding.queries(q, now), logits, v, state, key_factor=now)

    state = AdditiveState(jnp.full((2, 2, 6), -jnp.inf), jnp.zeros((2, 2, 6)), jnp.zeros((2, 2, 12, 3)))
    for t in range(9):
        o, state = step(t, q[:, t], logits[:, t], v[:, t], state)
        close(o, expected[:, t])
    jax.tree.map(close, state, final)


def test_learned_frequencies_start_where_the_fixed_ones_are_and_get_gradients():
    encoding = MDLRPE(head_size=6, axes=2, learned=True, num_heads=2)
    coordinates, q, logits, v = example(encoding)
    factor, variables = encoding.init_with_output(jax.random.key(0), coordinates)
    fixed = MDLRPE(head_size=6, axes=2).apply({}, coordinates)
    close(factor, np.broadcast_to(fixed, factor.shape))

    def loss(variables):
        factor = encoding.apply(variables, coordinates)
        return jnp.sum(jnp.sin(order_free(encoding.queries(q, factor), logits, v, factor)))

    gradient = jax.jit(jax.grad(loss))(variables)["params"]["frequencies"]
    assert gradient.shape == (2, 3) and np.all(np.abs(gradient) > 1e-6)


def test_angles_are_single_precision_at_least():
    with jax.enable_x64(False):
        factor = MDLRPE(head_size=4).apply({}, jnp.full((1, 1, 1), 4097))
        q = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
        assert factor.dtype == jnp.float32 and MDLRPE.queries(q, factor).dtype == jnp.bfloat16
        assert abs(factor[0, 0, 0, 0, 0] - np.cos(4097.0)) < 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frequencies(4, "cosine"), "kind: got 'cosine', expected one of geometric, full, high, low"),
        (
            lambda: axial_angles(np.zeros((1, 2)), np.ones(3), 4),
            r"theta: got float64\[3\], expected \(2,\) or \(H, 2\)",
        ),
        (lambda: axial_angles(np.zeros(()), np.ones(3), 4), r"coordinates: got float64\[\], expected \(..., A\)"),
        (lambda: rotary_angles(np.zeros((1, 1)), np.ones(2), 5), "size: got 5, expected an even number"),
        (
            lambda: cosine_features(np.ones((2, 3, 1, 4)), phase_factor(np.ones((3, 1, 4)))),
            r"factor: got float64\[3, 1, 2, 4\], expected \[2, 3, 1, 2, 4\]",
        ),
        (
            lambda: MDLRPE(head_size=4, axes=2).apply({}, jnp.zeros((3, 1))),
            r"coordinates: got float64\[3, 1\], expected",
        ),
        (lambda: grid_coordinates(()), r"grid: got \(\), expected one positive integer or more"),
        (lambda: token_coordinates(3, mask=np.ones((2, 4), bool)), r"mask: got bool\[2, 4\], expected bool\[2, 3\]"),
        (
            lambda: token_coordinates(3, segment_ids=jnp.array(3)),
            r"segment_ids: got int64\[\], expected integer\[1, 3\]",
        ),
        (lambda: token_coordinates(3, mask=np.array(True)), r"mask: got bool\[\], expected bool\[1, 3\]"),
        (lambda: token_coordinates(3, offset=np.zeros((2, 1), int)), r"offset: got int64\[2, 1\], expected an integer"),
        (
            lambda: token_coordinates(3, mask=np.ones((2, 3), bool), offset=np.zeros(3, int)),
            r"offset: got int32\[3\], expected an integer array \(2,\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
