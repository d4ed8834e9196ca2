"""The encodings of embedded tokens: what they have in common, MD-TPE's parameters, and learned absolute positions."""

from functools import partial
from unittest.mock import Mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.mixers import SoftmaxAttention
from lightnet.positions import MDTPE, LearnedAbsolute, SeqPE, toeplitz_matrix
from lightnet.positions.inputs import check_positions

BATCH, WIDTH = 2, 6
ATTENTION = partial(SoftmaxAttention, num_heads=2)

ON_SEQUENCES = {
    "tpe": MDTPE(WIDTH),
    "tpe-tied": MDTPE(WIDTH, kind="tied", num_heads=3, residual=False),
    "tpe-two-directional": MDTPE(WIDTH, bidirectional=True, rank=3),
    "absolute": LearnedAbsolute(WIDTH, length=20),
    "seqpe": SeqPE(WIDTH, mixer=ATTENTION, num_digits=2, num_layers=1),
}
ON_GRIDS = {
    "tpe": MDTPE(WIDTH, grid=(2, 3), num_extra=1),
    "tpe-two-directional": MDTPE(WIDTH, grid=(2, 3), num_extra=1, bidirectional=True),
    "absolute": LearnedAbsolute(WIDTH, grid=(2, 3), num_extra=1),
    "seqpe": SeqPE(WIDTH, mixer=ATTENTION, grid=(2, 3), num_extra=1, num_digits=1, num_layers=1),
}
# Both have vectors for 10 positions.
LIMITED = {
    "absolute": LearnedAbsolute(WIDTH, length=10),
    "seqpe": SeqPE(WIDTH, mixer=ATTENTION, num_digits=1, num_layers=1),
}
SLOW = ("tpe-tied", "tpe-two-directional", "seqpe")


def quickly(names):
    """As parameters of a test; those that take long to compile are slow."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in names])


WITH_STATE = [name for name in ON_SEQUENCES if name != "tpe-two-directional"]


def build(positions, length, seed=0):
    """Parameters that are not all alike, and standard normal tokens."""
    x = jnp.asarray(np.random.default_rng(seed).standard_normal((BATCH, length, WIDTH)), jnp.float32)
    variables = nn.unbox(jax.jit(positions.init)(jax.random.key(seed), x))
    noise = np.random.default_rng(seed + 1)
    variables = jax.tree.map(lambda w: w + 0.3 * jnp.asarray(noise.standard_normal(w.shape), w.dtype), variables)
    return variables, x


def apply(positions, *arguments, method=None, **options):
    return jax.jit(partial(positions.apply, method=method))(*arguments, **options)


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@quickly(ON_SEQUENCES)
def test_packed_and_padded_sequences_are_the_sequences_alone(name):
    positions = ON_SEQUENCES[name]
    variables, x = build(positions, 11)
    ids = np.tile([5, 5, 5, 5, 0, 0, 5, 5, 5, 5, 5], (BATCH, 1))
    real = np.array([0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0], bool)
    poisoned, mask = jnp.where(real[:, None], x, jnp.nan), np.tile(real, (BATCH, 1))

    run = partial(apply, positions, variables, segment_ids=ids, mask=mask)
    y, state = run(poisoned)
    assert np.all(np.asarray(y)[:, ~real] == 0)
    # Alone, each run stands at the start of a row; what is behind it is cut off.
    for start, stop in [(1, 4), (4, 6), (6, 10)]:
        kept = np.arange(start, stop)[real[start:stop]]
        alone = jnp.zeros((BATCH, 3, WIDTH)).at[:, : len(kept)].set(x[:, kept])
        until = np.tile(np.arange(3) < len(kept), (BATCH, 1))
        alone, last = apply(positions, variables, alone, mask=until)
        close(y[:, kept], alone[:, : len(kept)])
    if name in WITH_STATE:
        close(state, last)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(run(x)[0]))))(poisoned)
    assert np.all(np.asarray(gradient)[:, ~real] == 0) and np.all(np.isfinite(gradient))


@quickly(WITH_STATE)
def test_parts_and_steps_are_the_whole_sequence(name):
    positions = ON_SEQUENCES[name]
    variables, x = build(positions, 8)
    expected, final = apply(positions, variables, x)
    first, state = apply(positions, variables, x[:, :4])
    second, _ = apply(positions, variables, x[:, 4:], state)
    close(np.concatenate([first, second], axis=1), expected)
    step = jax.jit(partial(positions.apply, method="step"))
    for t in range(4, 8):
        y, state = step(variables, x[:, t], state)
        close(y, expected[:, t])
    close(state, final)
    y, _ = step(variables, x[:, 0], positions.init_state(BATCH))
    close(y, expected[:, 0])


@quickly(ON_GRIDS)
def test_extra_tokens_pass_and_cells_differ(name):
    positions = ON_GRIDS[name]
    variables, x = build(positions, 7)
    y, state = apply(positions, variables, x)
    assert state is None
    assert np.array_equal(y[:, 0], x[:, 0])
    moved = np.asarray(y - x)[:, 1:]
    assert np.abs(moved[:, :, None] - moved[:, None]).max(axis=-1)[:, ~np.eye(6, dtype=bool)].min() > 1e-3
    # A masked cell and a masked extra token give 0 and get no gradient, whatever they contain.
    real = np.array([0, 1, 1, 0, 1, 1, 0], bool)
    poisoned, mask = jnp.where(real[:, None], x, jnp.nan), np.tile(real, (BATCH, 1))
    run = partial(apply, positions, variables, mask=mask)
    assert np.all(np.asarray(run(poisoned)[0])[:, ~real] == 0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(run(x)[0]))))(poisoned)
    assert np.all(np.asarray(gradient)[:, ~real] == 0) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("bidirectional", "residual"), [(True, False), pytest.param(False, True, marks=pytest.mark.slow)]
)
def test_md_tpe_is_a_sum_of_norm_and_projection_of_toeplitz_matrices(bidirectional, residual):
    positions = MDTPE(WIDTH, grid=(2, 3), bidirectional=bidirectional, residual=residual, rank=4)
    variables, x = build(positions, 6)
    impulse_response = jax.jit(partial(positions.apply, method="impulse_response"), static_argnums=(1, 2, 3))
    expected, on_grid = residual * np.asarray(x), np.asarray(x).reshape(BATCH, 2, 3, WIDTH)
    for r, rule in enumerate(["dsm,bmjd->bsjd", "dsm,bjmd->bjsd"]):
        kernels = [
            np.asarray(impulse_response(variables, r, on_grid.shape[r + 1], direction))
            for direction in ["forward", "backward"][: 1 + bidirectional]
        ]
        y = np.einsum(rule, toeplitz_matrix(*kernels), on_grid)
        axis = jax.tree.map(np.asarray, variables["params"][f"axis_{r}"])
        normed = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6) * axis["norm"]["scale"]
        expected = expected + (normed @ axis["out"]["kernel"]).reshape(BATCH, 6, WIDTH)
    close(apply(positions, variables, x)[0], expected)


@pytest.mark.slow
def test_one_axis_is_a_sequence():
    sequence, grid = MDTPE(WIDTH), MDTPE(WIDTH, grid=(7,))
    variables, x = build(sequence, 7)
    close(apply(grid, variables, x)[0], apply(sequence, variables, x)[0], 1e-6)


def test_the_tied_form_is_a_weighted_moving_sum_for_each_head():
    positions = ON_SEQUENCES["tpe-tied"]
    variables, _ = build(positions, 5)
    axis = jax.tree.map(np.asarray, variables["params"]["axis_0"])
    kernel = positions.apply(variables, 0, 5, method="impulse_response")
    for head in range(3):
        channels = slice(2 * head, 2 * head + 2)
        weight = axis["forward_query"][channels] @ axis["forward_key"][channels]
        decay = 1 / (1 + np.exp(-axis["forward_decay"][head]))
        close(kernel[:, channels], np.tile((weight * decay ** np.arange(5))[:, None], 2))


@pytest.mark.parametrize(("axes", "rank", "width"), [(1, 8, 6), (2, 8, 6), (3, 5, 4)])
def test_md_tpe_has_the_parameters_of_its_formula(axes, rank, width):
    positions = MDTPE(width, grid=(2,) * axes, rank=rank)
    shapes = jax.eval_shape(positions.init, jax.random.key(0), jnp.zeros((1, 2**axes, width)))
    total = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert total == axes * (width * rank + rank + width + width**2)


@pytest.mark.slow
def test_initial_decays_reach_from_one_token_to_about_thirty():
    positions = MDTPE(64)
    variables = nn.unbox(jax.jit(positions.init)(jax.random.key(0), jnp.zeros((1, 2, 64))))
    p = variables["params"]["axis_0"]["forward_decay"]
    close([np.exp(-p[0]), np.exp(-p[-1])], [1 / 0.03, 1.0])
    spread = np.std(variables["params"]["axis_0"]["forward_weights"])
    assert 0.4 < spread < 0.6


def test_tokens_of_zeros_have_finite_gradients():
    positions = MDTPE(WIDTH, grid=(2, 3))
    variables, x = build(positions, 6)
    loss = jax.jit(jax.grad(lambda v, x: jnp.sum(positions.apply(v, x)[0] ** 2 + positions.apply(v, x)[0]), (0, 1)))
    for zeros in (0 * x, x.at[:, :3].set(0.0)):
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(loss(variables, zeros)))


@pytest.mark.slow
def test_half_precision_keeps_the_state_in_single():
    positions = MDTPE(WIDTH, dtype=jnp.bfloat16)
    variables, x = build(positions, 9)
    y, state = apply(positions, variables, x)
    assert y.dtype == jnp.bfloat16 and state.dtype == positions.init_state(BATCH).dtype == jnp.float32
    expected, _ = apply(MDTPE(WIDTH), variables, x)
    assert np.linalg.norm(np.float32(y) - expected) < 1e-2 * np.linalg.norm(expected)


def test_learned_positions_are_rows_of_the_table():
    variables, x = build(LearnedAbsolute(WIDTH, length=20), 5)
    table = variables["params"]["table"]
    close(apply(LearnedAbsolute(WIDTH, length=20), variables, x)[0], x + table[None, :5], 1e-6)
    grid = LearnedAbsolute(WIDTH, grid=(2, 3, 2))
    variables, x = build(grid, 12)
    close(apply(grid, variables, x)[0], x + variables["params"]["table"][None], 1e-6)


@quickly(LIMITED)
@pytest.mark.parametrize("before", [None, 9])
def test_too_many_tokens_raise_and_are_nan_under_jit(name, before):
    positions, fits = LIMITED[name], 10 - (before or 0)
    variables, x = build(positions, fits + 2)
    state = None if before is None else jnp.full(BATCH, before, jnp.int32)
    # The first token is masked, so that all but one of the others have a place.
    mask = jnp.tile(jnp.arange(fits + 2) > 0, (BATCH, 1))
    for place, options in ((11, {}), (10, {"mask": mask})):
        with pytest.raises(ValueError, match=f"x: got a token at position {place}, expected positions below 10"):
            positions.apply(variables, x, state, **options)
        y = np.asarray(apply(positions, variables, x, state, **options)[0])
        end = fits + len(options)
        assert np.all(np.isfinite(y[:, :end])) and np.all(np.isnan(y[:, end:]))


@quickly(LIMITED)
def test_masked_tokens_behind_the_last_place_are_no_tokens_too_many(name):
    positions = LIMITED[name]
    variables, x = build(positions, 13)
    mask = jnp.tile(jnp.arange(13) < 10, (BATCH, 1))
    expected, _ = apply(positions, variables, x[:, :10])
    for run in (positions.apply, partial(apply, positions)):
        y, state = run(variables, x, mask=mask)
        close(y[:, :10], expected)
        assert np.all(y[:, 10:] == 0) and state.tolist() == [10] * BATCH


def test_positions_on_the_devices_of_other_processes_are_not_read():
    elsewhere = Mock(spec=jax.Array, is_fully_addressable=False)
    elsewhere.max.side_effect = RuntimeError("spans non-addressable devices")
    check_positions(elsewhere, 10)
    elsewhere.max.assert_not_called()


def precisions(positions, variables, x):
    """Of a sequence, its state, and a step behind it from the empty state."""
    sequence = apply(positions, variables, x)
    step = apply(positions, variables, x[:, 0], positions.init_state(BATCH), method="step")
    return [y.dtype for y, _ in (sequence, step)], [state.dtype for _, state in (sequence, step)]


@quickly(["tpe", "tpe-tied", "absolute", "seqpe"])
def test_the_result_has_the_precision_of_the_parameters_unless_told(name):
    positions = ON_SEQUENCES[name]
    variables, x = build(positions, 3)
    for given, dtype, expected in [
        (jnp.float32, None, jnp.float32),
        (jnp.bfloat16, None, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32, jnp.float32),
    ]:
        lowered = jax.tree.map(partial(jnp.asarray, dtype=given), variables)
        for tokens in (x, x.astype(jnp.bfloat16)):
            results, states = precisions(positions.clone(dtype=dtype), lowered, tokens)
            assert results == [expected] * 2
            assert states == [jnp.float32 if name.startswith("tpe") else jnp.int32] * 2


@pytest.mark.parametrize("dtype", [None, jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.float64])
@pytest.mark.parametrize("parameters", ["as initialised", jnp.float32])
def test_the_state_under_x64_has_the_precision_of_the_empty_one(dtype, parameters):
    with jax.enable_x64(True):
        positions = MDTPE(WIDTH, dtype=dtype)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, 3, WIDTH)))
        variables = nn.unbox(jax.jit(positions.init)(jax.random.key(0), x))
        if parameters != "as initialised":
            variables = jax.tree.map(partial(jnp.asarray, dtype=parameters), variables)
        result = dtype or (jnp.float64 if parameters == "as initialised" else parameters)
        state = positions.init_state(BATCH).dtype
        assert state == (jnp.float64 if dtype is None else jnp.promote_types(dtype, jnp.float32))
        assert precisions(positions, variables, x) == ([result] * 2, [state] * 2)
        again = apply(positions, variables, x, positions.init_state(BATCH))
        assert again[1].dtype == state


@pytest.mark.parametrize("name", ["tpe", "absolute"])
def test_steps_and_states_are_checked(name):
    positions = ON_SEQUENCES[name]
    variables, x = build(positions, 3)
    step, state = partial(positions.apply, variables, method="step"), positions.init_state(BATCH)
    for bad in (x[:, 0, :1], x[:, :1], x[0, 0]):
        with pytest.raises(ValueError, match=r"x: got float32.*, expected a float array \(B, D\) = \(.*6\)"):
            step(bad, state)
    for bad in (state[:1], state[:, None], state[0], state.astype(jnp.bfloat16)):
        for call in (partial(step, x[:, 0]), partial(positions.apply, variables, x)):
            with pytest.raises(
                ValueError, match=r"state: got .*, expected (float32\[2, 6, 8\]|an integer array \(2,\))"
            ):
                call(bad)


@pytest.mark.parametrize(
    ("positions", "length", "options", "message"),
    [
        (ON_SEQUENCES["tpe"], 0, {}, r"x: got float32\[2, 0, 6\], expected a float array \(B, L, D\)"),
        (MDTPE(5), 4, {}, r"x: got float32\[2, 4, 6\], expected a float array .*5"),
        (ON_GRIDS["tpe"], 6, {}, r"x: got 6 tokens, expected 7: 1 and \(2, 3\)"),
        (MDTPE(WIDTH, num_extra=1), 6, {}, "num_extra: got 1 without a grid, expected 0"),
        (MDTPE(WIDTH, grid=(0,)), 6, {}, r"grid: got \(0,\), expected one positive integer or more"),
        (ON_GRIDS["absolute"], 7, {"segment_ids": jnp.ones((2, 7), int)}, "segment_ids: got an array, expected None"),
        (ON_GRIDS["seqpe"], 7, {"state": jnp.zeros(2, jnp.int32)}, "state: SeqPE has no state and no step on a grid"),
        (ON_GRIDS["tpe"], 7, {"state": jnp.zeros((2, 6, 8))}, "state: MDTPE has no state and no step on a grid"),
        (
            ON_SEQUENCES["tpe-two-directional"],
            3,
            {"state": jnp.zeros((2, 6, 3))},
            "state: a bidirectional MDTPE has no state",
        ),
        (ON_SEQUENCES["absolute"], 21, {}, "x: got a token at position 20, expected positions below 20"),
        (LearnedAbsolute(WIDTH, grid=(0, 3)), 3, {}, r"grid: got \(0, 3\), expected one positive integer or more"),
        (
            SeqPE(WIDTH, mixer=ATTENTION, num_digits=10),
            3,
            {},
            "num_digits: got 10 in base 10, expected 1 or more .* 2.31",
        ),
        (SeqPE(WIDTH, mixer=ATTENTION, num_digits=0), 3, {}, "num_digits: got 0 in base 10, expected 1 or more"),
        (LearnedAbsolute(WIDTH), 3, {}, "length: got 0, expected at least 1 position"),
        (MDTPE(WIDTH, kind="fast"), 3, {}, "kind: got 'fast', expected one of general, tied"),
        (MDTPE(WIDTH, kind="tied", num_heads=4), 3, {}, "num_heads: got 4, expected a divisor of the width 6"),
        (SeqPE(WIDTH), 3, {}, "mixer: got None, expected a constructor"),
        (
            ON_SEQUENCES["absolute"],
            3,
            {"mask": jnp.ones((2, 4), bool)},
            r"mask: got bool\[2, 4\], expected bool\[2, 3\]",
        ),
    ],
)
def test_bad_arguments_are_named(positions, length, options, message):
    with pytest.raises(ValueError, match=message):
        positions.init(jax.random.key(0), jnp.zeros((BATCH, length, WIDTH)), **options)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (ON_SEQUENCES["tpe-two-directional"], "state: a bidirectional MDTPE has no state and no step, only one with"),
        (ON_GRIDS["absolute"], "state: LearnedAbsolute has no state and no step on a grid, only on a sequence"),
    ],
)
def test_what_has_no_state_says_so(positions, message):
    with pytest.raises(ValueError, match=message):
        positions.init_state(2)
