"""SIGMA: its parts against loops, what padding can change in either mode, and where it starts from."""

from math import erf

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm import SIGMA, Mamba
from ssm.sigma import GatedMamba, centred_convolution, gated, gru, mixed, partial_flip, selective_gate

ITEMS, WIDTH, PLACES = 11, 4, 9
SIZES = {"width": WIDTH, "state_size": 3, "kept": 2}
FAITHFUL = GatedMamba(mode="faithful", **SIZES)
CORRECTED = GatedMamba(mode="corrected", **SIZES)
LENGTHS = jnp.array([3, 6, 9, 1])
RECURRENT = ("conv_kernel", "conv_bias", "gru_input_kernel", "gru_state_kernel")


def histories(seed=0, width=WIDTH):
    drawn = np.random.default_rng(seed).standard_normal((len(LENGTHS), PLACES, width))
    return jnp.asarray(drawn, jnp.float32)


def params_of(module, *inputs, scale=0.3):
    """All parameters random, so that none hides behind a zero or a one."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [scale * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return {"params": jax.tree.unflatten(tree, drawn)}


def test_the_prefix_is_reversed_and_the_rest_stays():
    x = np.arange(2 * PLACES).reshape(2, PLACES)
    found = np.asarray(partial_flip(jnp.asarray(x), 3, jnp.array([7, 2])))
    assert found.tolist() == [[3, 2, 1, 0, 4, 5, 6, 7, 8], x[1].tolist()]
    assert partial_flip(jnp.asarray(x), 3)[1].tolist() == [*x[1, 5::-1], *x[1, 6:]]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("kept", [0, 2, 9])
def test_flipped_twice_is_what_it_was(lengths, kept):
    x = histories()
    once = partial_flip(x, kept, lengths)
    assert (partial_flip(once, kept, lengths) == x).all()
    assert bool((once == x).all()) == (kept == 9)


def by_hand(params, items, mode, kept, layers):
    """Scores of one history without padding behind it, row by row of the module's equations."""
    mambas = [params[f"layers_{layer}"]["mix"]["mamba"] for layer in range(layers)]
    params = jax.tree.map(np.asarray, params)
    apply = jax.jit(Mamba(WIDTH, state_size=SIZES["state_size"]).apply)

    def norm(x, name, own):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * own[name]["scale"] + own[name]["bias"]

    def dense(x, name, own):
        return x @ own[name]["kernel"] + own[name]["bias"]

    def gate(a, b, own):
        sigmoid_a, sigmoid_b = (1 / (1 + np.exp(-x)) for x in (a, b))
        return dense(a * sigmoid_a, "gate_silu", own) + dense(sigmoid_b, "gate_sigmoid", own)

    def mixer(x, own, mamba):
        end = len(x) - kept
        flipped = np.concatenate([x[:end][::-1], x[end:]])
        u, v = x + dense(x, "forward_input", own), flipped + dense(flipped, "flipped_input", own)
        first = gate(u, u, own)
        second = gate(v, first if mode == "faithful" else v, own)
        y, y_f = (np.asarray(apply({"params": mamba}, h[None])[0][0]) for h in (x, flipped))
        y, y_f = y + y * first, y_f + y_f * second
        if mode == "corrected":
            y_f = np.concatenate([y_f[:end][::-1], y_f[end:]])
        taps, bias, *kernels = (jnp.asarray(own[name]) for name in RECURRENT)
        recurrent = np.asarray(gru(centred_convolution(jnp.asarray(x[None]), taps, bias), *kernels))[0]
        w = own["mix"] if mode == "faithful" else np.exp(own["mix"]) / np.exp(own["mix"]).sum()
        return dense(w[0] * recurrent + w[1] * y_f + w[2] * y, "out", own)

    x = norm(params["embedding"][items], "norm", params)
    for layer, mamba in enumerate(mambas):
        own = params[f"layers_{layer}"]
        z = mixer(x, own["mix"], mamba)
        z = norm(z + x if layers > 1 else z, "mix_norm", own)
        h = dense(z, "up", own)
        h = h * 0.5 * (1 + np.vectorize(erf)(h / np.sqrt(2)))
        x = norm(dense(h, "down", own) + z, "norm", own)
    return x[-1] @ params["embedding"][:-1].T


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "layers"), [("corrected", 1), ("faithful", 2)])
def test_scores_are_those_of_the_equations(mode, layers):
    """As released with a history that fills the window, or else with padding, which the equations do not know."""
    items = np.random.default_rng(2).integers(0, ITEMS, (2, PLACES))
    lengths = np.array([PLACES, PLACES if mode == "faithful" else 6])
    model = SIGMA(ITEMS, mode=mode, num_layers=layers, **SIZES)
    variables = params_of(model, items, lengths)
    scores = jax.jit(model.apply)(variables, items, lengths)
    for row, length, found in zip(items, lengths, scores, strict=True):
        expected = by_hand(variables["params"], row[:length], mode, SIZES["kept"], layers)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_with_all_items_kept_both_directions_are_the_same():
    """r = T: Y_f = Y, so that the mixture depends on the sum of their weights alone; gates left out."""
    block, x = CORRECTED.clone(kept=PLACES, gate=False, recurrent=False), histories()
    variables = params_of(block, x, LENGTHS)
    one = jax.jit(block.apply)(variables, x, LENGTHS)
    variables["params"]["mix"] = jnp.array([5.0, -3.0])
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x, LENGTHS), one, atol=1e-6)
    flipped = jax.jit(block.clone(kept=2).apply)(variables, x, LENGTHS)
    assert np.abs(flipped - one)[1].max() > 1e-3


def test_a_gate_of_zero_lets_everything_pass():
    y = histories()
    assert (gated(y, jnp.zeros_like(y)) == y).all()
    found = selective_gate(jnp.array([1.0]), jnp.array([0.0]), lambda x: 3 * x, lambda x: x + 1)
    np.testing.assert_allclose(found, [3 / (1 + np.exp(-1)) + 1.5], rtol=1e-6)


def test_zero_gate_weights_are_no_gate():
    x = histories()
    variables = params_of(CORRECTED, x, LENGTHS)
    for name in ("gate_silu", "gate_sigmoid"):
        variables["params"][name] = jax.tree.map(jnp.zeros_like, variables["params"][name])
    without = CORRECTED.clone(gate=False)
    names = params_of(without, x, LENGTHS)["params"]
    kept = {"params": {name: variables["params"][name] for name in names}}
    np.testing.assert_allclose(
        jax.jit(CORRECTED.apply)(variables, x, LENGTHS), jax.jit(without.apply)(kept, x, LENGTHS), rtol=0, atol=1e-6
    )


def test_gru_and_convolution_are_loops_over_time():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, taps, bias = (jnp.asarray(rng.normal(size=shape)) for shape in ((2, 5, 3), (3, 3, 4), (4,)))
        padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (0, 0)))
        slow = np.stack(
            [sum(padded[:, t + j] @ np.asarray(taps[j]) for j in range(3)) for t in range(5)], axis=1
        ) + np.asarray(bias)
        np.testing.assert_allclose(centred_convolution(x, taps, bias), slow, rtol=1e-12)
        W, U = (jnp.asarray(rng.normal(size=shape)) for shape in ((3, 3, 2), (2, 3, 2)))
        h, states = np.zeros((2, 2)), []
        for t in range(5):
            r, z = (1 / (1 + np.exp(-(x[:, t] @ W[:, i] + h @ U[:, i]))) for i in (0, 1))
            h = z * h + (1 - z) * np.tanh(x[:, t] @ W[:, 2] + r * (h @ U[:, 2]))
            states.append(h)
        np.testing.assert_allclose(gru(x, W, U), np.stack(states, axis=1), rtol=1e-12)


def test_weights_are_normalised_in_the_corrected_mode_only():
    y, w = [jnp.array([1.0]), jnp.array([3.0])], jnp.array([2.0, 2.0])
    assert mixed(y, w, normalised=True).item() == 2 and mixed(y, w, normalised=False).item() == 8
    for block, logarithm in ((FAITHFUL, False), (CORRECTED, True)):
        weights = block.init(jax.random.key(0), histories(), LENGTHS)["params"]["mix"]
        np.testing.assert_allclose(jnp.exp(weights) if logarithm else weights, [0.1, 0.1, 0.8], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("switches", [{}, {"gate": False}, {"flip": False}, {"recurrent": False}])
def test_padding_changes_nothing_in_the_corrected_mode(switches):
    """Nor do gradients see it; a history alone, without padding, gives the same."""
    block, x = CORRECTED.clone(**switches), histories()
    variables = params_of(block, x, LENGTHS)
    real = jnp.arange(PLACES)[None] < LENGTHS[:, None]
    poisoned = jnp.where(real[..., None], x, jnp.nan)

    @jax.jit
    def outputs(variables, x):
        def total(variables):
            z = jax.jit(block.apply)(variables, x, LENGTHS)
            return jnp.sum(z**2), z

        gradients, z = jax.grad(total, has_aux=True)(variables)
        return z, gradients

    (z, gradients), (z_poisoned, gradients_poisoned) = outputs(variables, x), outputs(variables, poisoned)
    assert (z == z_poisoned).all() and (z[~real] == 0).all()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), gradients, gradients_poisoned))
    alone = jax.jit(block.apply)(variables, x[1:2, :6], LENGTHS[1:2])
    np.testing.assert_allclose(z[1:2, :6], alone, rtol=0, atol=1e-6)


def test_padding_is_read_in_the_faithful_mode():
    """What is read out of the flipped direction of a short history depends on nothing but padding."""
    x = histories()
    block = FAITHFUL.clone(recurrent=False, gate=False)
    variables = params_of(block, x, LENGTHS)
    variables["params"]["mix"] = jnp.array([1.0, 0.0])  # the flipped direction alone
    items, padding = x.at[0, :3].add(1.0), x.at[0, 3:7].add(1.0)
    last = [np.asarray(jax.jit(block.apply)(variables, changed, LENGTHS))[0, 2] for changed in (x, items, padding)]
    assert (last[0] == last[1]).all()  # a history of 3 of 9 places, of which 7 are flipped
    assert np.abs(last[2] - last[0]).max() > 1e-3


def test_the_second_gate_sees_the_first_in_the_faithful_mode():
    """A change of x_0, which the flipped input has in place 6, reaches the gate of place 0 through the first gate."""
    x, whole = histories()[:1], jnp.array([PLACES])
    other, seen = x.at[0, 0].add(1.0), {}
    for block in (FAITHFUL, CORRECTED):
        block = block.clone(recurrent=False)
        variables = params_of(block, x, whole)
        variables["params"]["mix"] = jnp.array([1.0, 0.0] if block.mode == "faithful" else [50.0, 0.0])
        a, b = (np.asarray(jax.jit(block.apply)(variables, each, whole))[0] for each in (x, other))
        seen[block.mode] = np.flatnonzero(np.abs(a - b).max(axis=-1) > 1e-6).tolist()
    # x_0 stands at place 6 of the flipped input; its output is read there, or, flipped back, at place 0
    assert seen == {"faithful": [0, 6, 7, 8], "corrected": [0, 7, 8]}


@pytest.mark.slow
def test_scores_do_not_depend_on_padding_ids_and_faithful_ones_on_the_window():
    items = jnp.asarray(np.random.default_rng(0).integers(0, ITEMS, (len(LENGTHS), PLACES)))
    real = jnp.arange(PLACES)[None] < LENGTHS[:, None]
    wider = jnp.pad(items, ((0, 0), (0, 4)), constant_values=-7)
    for mode in ("faithful", "corrected"):
        model = SIGMA(num_items=ITEMS, mode=mode, num_layers=2, **SIZES)
        variables = params_of(model, items, LENGTHS)
        scores = jax.jit(model.apply)(variables, items, LENGTHS)
        np.testing.assert_array_equal(jax.jit(model.apply)(variables, jnp.where(real, items, 10**6), LENGTHS), scores)
        same = np.abs(jax.jit(model.apply)(variables, wider, LENGTHS) - scores).max() < 1e-5
        assert same == (mode == "corrected")


def test_steps_start_at_ln_2_as_released_and_as_in_mamba_when_corrected():
    x = jnp.zeros((1, 3, 64))
    for mode, low, high in (("faithful", np.log(2), np.log(2)), ("corrected", 1e-3, 1e-1)):
        block = GatedMamba(width=64, mode=mode)
        params = nn.unbox(jax.jit(block.init)(jax.random.key(0), x, jnp.array([3])))["params"]
        steps = jax.nn.softplus(params["mamba"]["dt_bias"])
        assert low * 0.999 < steps.min() and steps.max() < high * 1.001
        kernel = params["mamba"]["in_proj"]["kernel"]
        assert abs(float(kernel.std()) / (0.02 if mode == "faithful" else 64**-0.5 / 3**0.5) - 1) < 0.05
        # PyTorch's, uniform up to one over the root of what is summed
        for name, summed in zip(RECURRENT, (3 * 64, 3 * 64, 64, 64), strict=True):
            assert 0.9 < jnp.abs(params[name]).max() * summed**0.5 < 1.001, name


def test_the_embedding_of_padding_is_seen_as_released_and_never_changes():
    items, lengths = jnp.array([[1, 2, 3, 0, 0, 0]]), jnp.array([3])
    for mode in ("faithful", "corrected"):
        model = SIGMA(num_items=ITEMS, mode=mode, **SIZES)
        variables = params_of(model, items, lengths)
        total = jax.jit(
            jax.value_and_grad(lambda variables, model=model: (model.apply(variables, items, lengths) ** 2).sum())
        )
        other = jax.tree.map(jnp.array, variables)
        other["params"]["embedding"] = other["params"]["embedding"].at[-1].add(jnp.arange(WIDTH))
        (before, gradient), (after, _) = total(variables), total(other)
        assert (gradient["params"]["embedding"][-1] == 0).all() and (before != after) == (mode == "faithful")


def test_dropout_acts_where_there_are_random_numbers():
    model = SIGMA(num_items=ITEMS, **SIZES)
    items, lengths = jnp.ones((2, 4), int), jnp.array([4, 2])
    variables = model.init(jax.random.key(0), items, lengths)
    plain = jax.jit(model.apply)(variables, items, lengths)
    dropped = jax.jit(model.apply)(variables, items, lengths, rngs={"dropout": jax.random.key(1)})
    assert (plain == jax.jit(model.apply)(variables, items, lengths)).all() and not np.allclose(
        plain, dropped, atol=1e-4
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"items": jnp.zeros((2, 3))}, r"items: got float32\[2, 3\], expected an integer array"),
        ({"lengths": jnp.array([1])}, r"lengths: got int32\[1\], expected integers \[2\]"),
        ({"lengths": jnp.array([0, 3])}, "lengths: got 0 to 3, expected 1 to 3"),
        ({"lengths": jnp.array([1, 4])}, "lengths: got 1 to 4, expected 1 to 3"),
        ({"items": jnp.full((2, 3), ITEMS)}, "items: got ids from 11 to 11, expected 0 to 10"),
        ({"mode": "both"}, "mode: got 'both', expected one of faithful, corrected"),
        ({"kept": -1}, "kept: got -1, expected at least 0"),
    ],
)
def test_what_is_refused(changed, message):
    inputs = {"items": jnp.zeros((2, 3), int), "lengths": jnp.array([3, 2])}
    fields = {name: value for name, value in changed.items() if name not in inputs}
    inputs |= {name: value for name, value in changed.items() if name in inputs}
    with pytest.raises(ValueError, match=message):
        SIGMA(num_items=ITEMS, **SIZES | fields).init(jax.random.key(0), **inputs)
