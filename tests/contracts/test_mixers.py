"""The contract of every mixer, on all that are found in `lightnet` and `ssm`: a new mixer is tested by existing."""

import importlib
import inspect
import pkgutil
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightnet
import ssm
from lightnet.backbone import Mixer
from lightnet.mixers import GatedMixer
from lightnet.positions import MDLRPE, Rotary
from ssm.refinements import TokenOrder

BATCH, LENGTH, WIDTH = 3, 11, 12
BASES = (Mixer, GatedMixer)

# 11 tokens that are no sequence: one extra token and the cells of a grid.
ON_GRID = {"grid": (2, 5), "num_extra": 1, "relative": partial(MDLRPE, axes=2)}
# Steps near 1, so that much of a state is new and little of it is lost.
STEPS = {"dt_min": 0.3, "dt_max": 1.0}
GATE_BEHIND_THE_NORM = {"gate_position": "after", "gate_activation": nn.silu, "gate_rank": 2}
# How to build each mixer, smallest first; a class that is not here fails the test below.
VARIANTS = {
    "SoftmaxAttention": [
        {"num_heads": 3, "max_length": 16},
        {"num_heads": 1, "max_length": 16, "use_bias": True, "relative": MDLRPE},
        {"num_heads": 2, "causal": False},
        {"num_heads": 2},
        {"num_heads": 2, "causal": False, **ON_GRID},
    ],
    "LightNetAttention": [
        {"num_heads": 3},
        {"num_heads": 2, "relative": MDLRPE, "conv_width": 3, "use_bias": True},
        {"num_heads": 3, "decay": "vector", "relative": Rotary, "phantom_logit": 0.5},
        {"num_heads": 2, "decay": "scalar", "normalised": False, "phantom_logit": 0.0, **GATE_BEHIND_THE_NORM},
        {"num_heads": 2, "decay": "vector", "normalised": False, "relative": MDLRPE},
        {"num_heads": 3, "causal": False, "relative": MDLRPE, "max_segments": 4},
        {"num_heads": 2, "causal": False, "decay": "vector", **ON_GRID},
    ],
    "LinearAttention": [
        {"num_heads": 3},
        {"num_heads": 2, "relative": MDLRPE, "use_bias": True},
        {"num_heads": 2, "causal": False, **ON_GRID},
    ],
    "MultiplicativeDecay": [
        {"num_heads": 3},
        {"num_heads": 2, "relative": MDLRPE, "use_bias": True},
        {"num_heads": 3, "num_scans": 2, "relative": Rotary},
        {"num_heads": 2, "num_scans": 4, **ON_GRID},
    ],
    "Mamba": [
        {"state_size": 3, "out_scale": 0.4, **STEPS},
        {"expand": 1, "conv_width": 2, "dt_rank": 2, "use_bias": True, "out_scale": 0.4, **STEPS},
    ],
    "RefinedMamba": [
        {"state_size": 3, "scenario": "mixed", "skip_init": -1.0, "out_scale": 0.4, **STEPS},
        {"state_size": 3, "convolution": False, "gate": False, "skip": False, "out_scale": 0.4, **STEPS},
        {"state_size": 3, "order": TokenOrder(), "out_scale": 0.4, **STEPS},
        {"state_size": 3, "order": TokenOrder(tau=0.5, permute_gate=True, unsort=True), "out_scale": 0.4, **STEPS},
    ],
    "Mamba2": [
        {"state_size": 3, "head_size": 8, "out_scale": 0.4, **STEPS},
        {"head_size": 3, "num_groups": 2, "conv_width": 2, "dt_limit": (0.4, 0.9), "use_bias": True, "out_scale": 0.4},
    ],
    "S4": [
        {"state_size": 6, "out_scale": 0.4, **STEPS},
    ],
    "S4D": [
        {"state_size": 6, "out_scale": 0.4, **STEPS},
        {"state_size": 3, "transitions": "real", "output_activation": "half_glu2", **STEPS},
    ],
    "S5": [
        {"state_size": 4, **STEPS},
        {"state_size": 6, "num_blocks": 3, "bidirectional": True, **STEPS},
        {"state_size": 3, "conj_sym": False, "output_activation": "full_glu", **STEPS},
    ],
}


def discovered():
    """All mixer classes of the two packages."""
    found = {}
    for package in (lightnet, ssm):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            module = importlib.import_module(info.name)
            for name, item in inspect.getmembers(module, inspect.isclass):
                if issubclass(item, Mixer) and item not in BASES:
                    found[name] = item
    return found


MIXERS = discovered()
# The others take a minute or two of compilation in all.
QUICK = ("SoftmaxAttention-0", "SoftmaxAttention-2", "SoftmaxAttention-3", "LightNetAttention-0")
QUICK_BY_TOKEN = (*QUICK, "Mamba-0", "Mamba2-0", "S4-0")  # in the tests of steps, segments and masks


def of_ssm(mixer_class):
    """Whether it is of that package, not of `lightnet`."""
    return mixer_class.__module__.startswith("ssm.")


def cases(quick=QUICK):
    """All mixers as configured above."""
    return [
        pytest.param(MIXERS[name], options, id=case, marks=[pytest.mark.slow] * (case not in quick))
        for name in MIXERS
        for i, options in enumerate(VARIANTS[name])
        for case in [f"{name}-{i}"]
    ]


CASES = cases()
FIRST = [case for case in CASES if case.id.endswith("-0")]
FIRST_OF_SSM = [pytest.param(*case.values, id=case.id) for case in FIRST if of_ssm(case.values[0])]
# One of each kind of state: a cache, normalised keys and a convolution, decays by themselves, matrices, both of Mamba,
# all three of Mamba-2, complex numbers.
KINDS_OF_STATE = (
    "SoftmaxAttention-0",
    "LightNetAttention-1",
    "LightNetAttention-4",
    "LinearAttention-0",
    "Mamba-0",
    "Mamba2-0",
    "S5-0",
)
# A Fourier transform gives what is exactly 0 the rounding of the rest.
FOURIER = ("S4",)


def build(mixer_class, options):
    """A mixer with its parameters, and an input of standard normal entries."""
    mixer = mixer_class(width=WIDTH, **options)
    return mixer, *drawn(mixer)


@cache
def drawn(mixer):
    """Parameters and an input, shared by the tests: making them is compiled as well."""
    x = np.random.default_rng(0).standard_normal((BATCH, LENGTH, WIDTH), np.float32)
    params = jax.jit(mixer.init)(jax.random.key(0), x)
    # Initial kernels of scale 0.02 make softmax nearly uniform; larger ones make the tests sensitive; those of ssm are.
    scale = 1 if of_ssm(type(mixer)) else 20
    return jax.tree.map(lambda w: scale * w, params), jnp.asarray(x)


@cache
def compiled(mixer, method):
    """`mixer.apply` as one program for each kind of arguments, shared by the tests."""
    return jax.jit(partial(mixer.apply, method=method))


def apply(mixer, *arguments, method=None, **options):
    """`mixer.apply`, compiled: one program is much faster to make than its operations one by one."""
    return compiled(mixer, method)(*arguments, **options)


def only(capability, quick=QUICK):
    """The cases that have a capability."""
    able = [case.values[0](width=WIDTH, **case.values[1]).capabilities for case in CASES]
    return [case for case, can in zip(cases(quick), able, strict=True) if getattr(can, capability)]


def close(actual, expected, tolerance=2e-5):
    """Equal up to float32 rounding."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def close_sums(actual, expected):
    """The same relative to the largest: sums of either sign cancel, and rounding is relative to what is summed up.

    The weights of LightNet's are exponentials, whose rounding is that of logits up to 50 here: 4e-6 of the weight.
    """
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5 * max(1, np.abs(expected).max()))


def test_every_mixer_has_a_variant():
    assert set(MIXERS) == set(VARIANTS)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mixer_class", "options"), FIRST)
def test_a_batch_is_its_rows_each_by_itself(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    y, _ = apply(mixer, params, x)
    close(jax.jit(jax.vmap(lambda row: mixer.apply(params, row[None])[0][0]))(x), y)
    assert np.abs(y).max() > 1e-2


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(("mixer_class", "options"), FIRST)
def test_jit_changes_nothing(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    close(mixer.apply(params, x)[0], apply(mixer, params, x)[0])


@pytest.mark.parametrize(("mixer_class", "options"), CASES)
def test_future_tokens_have_no_gradient_exactly_if_causal(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(mixer.apply(params, x)[0][:, 4]))))(x)
    future = np.abs(gradient[:, 5:]).max()
    assert np.abs(gradient[:, :5]).min(axis=2).max() > 0
    rounding = 1e-6 * np.abs(gradient).max() if mixer_class.__name__ in FOURIER else 0
    assert (future <= rounding) == mixer.capabilities.causal


@pytest.mark.parametrize(("mixer_class", "options"), only("step", QUICK_BY_TOKEN))
def test_steps_equal_the_whole_sequence(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    expected, _ = apply(mixer, params, x)
    state = mixer.init_state(BATCH)
    for t in range(LENGTH):
        y, state = apply(mixer, params, x[:, t], state, method="step")
        close(y, expected[:, t])


@pytest.mark.parametrize(("mixer_class", "options"), only("state"))
def test_a_sequence_in_two_parts_equals_the_whole(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    # Behind the state of the first variant of each a single token follows.
    split = LENGTH - 1 if options is VARIANTS[mixer_class.__name__][0] else 4
    expected, whole = apply(mixer, params, x)
    first, state = apply(mixer, params, x[:, :split])
    second, end = apply(mixer, params, x[:, split:], state)
    close(np.concatenate([first, second], 1), expected)
    jax.tree.map(close_sums, end, whole)


@pytest.mark.parametrize(("mixer_class", "options"), only("segments", QUICK_BY_TOKEN))
def test_packed_segments_equal_separate_sequences(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    ids = np.tile(np.array([5, 5, 5, 5, 5, 0, 5, 5, 5, 5, 5]), (BATCH, 1))
    tolerance = 1e-6 if of_ssm(mixer_class) and mixer_class.__name__ not in FOURIER else 2e-5
    packed, state = apply(mixer, params, x, segment_ids=ids)
    for start, stop in [(0, 5), (5, 6), (6, 11)]:
        alone, last = apply(mixer, params, x[:, start:stop])
        close(packed[:, start:stop], alone, tolerance)
    if mixer.capabilities.step:
        token = np.ones((BATCH, WIDTH), np.float32)
        y, alone = (apply(mixer, params, token, behind, method="step")[0] for behind in (state, last))
        close(y, alone, tolerance)


@pytest.mark.parametrize(("mixer_class", "options"), [case for case in only("state") if case in FIRST])
def test_a_state_enters_the_first_segment_only(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    _, state = apply(mixer, params, x[:, :4])
    ids = np.tile(np.array([1, 1, 2, 2, 2, 2, 2]), (BATCH, 1))
    y, _ = apply(mixer, params, x[:, 4:], state, segment_ids=ids)
    close(y[:, :2], apply(mixer, params, x[:, :6])[0][:, 4:])
    close(y[:, 2:], apply(mixer, params, x[:, 6:])[0])


@pytest.mark.parametrize(("mixer_class", "options"), only("mask", QUICK_BY_TOKEN))
def test_masked_tokens_do_not_exist(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    real = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0], bool)
    poisoned = jnp.where(real[:, None], x, jnp.nan)
    mask = jnp.asarray(np.tile(real, (BATCH, 1)))

    def loss(x):
        y, state = mixer.apply(params, x, mask=mask)
        return jnp.sum(jnp.sin(y)), (y, state)

    (_, (y, state)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(poisoned)
    if getattr(mixer, "grid", None) is None:
        alone, short = apply(mixer, params, x[:, real])
        close(y[:, real], alone)
    else:  # a grid has no less cells: what stands in them does not matter
        close(y, apply(mixer, params, x, mask=mask)[0])
    assert np.all(np.asarray(y)[:, ~real] == 0)
    assert np.all(np.asarray(gradient)[:, ~real] == 0) and np.all(np.isfinite(gradient))
    if mixer.capabilities.step:
        token = np.ones((BATCH, WIDTH), np.float32)
        close(
            apply(mixer, params, token, state, method="step")[0], apply(mixer, params, token, short, method="step")[0]
        )


@pytest.mark.parametrize(("mixer_class", "options"), FIRST_OF_SSM)
def test_bad_input_is_refused_by_name(mixer_class, options):
    mixer, x = mixer_class(width=WIDTH, **options), jnp.zeros((BATCH, LENGTH, WIDTH))
    params = jax.eval_shape(mixer.init, jax.random.key(0), x)
    state, alien, ones = mixer.init_state(BATCH), mixer.init_state(BATCH + 1), jnp.ones((BATCH, LENGTH), int)
    calls = [  # none of which is compiled
        ("x", (x[..., :1],), {}),
        ("x", (x[:, :0],), {}),
        ("x", (x[0],), {}),
        ("state", (x, alien), {}),
        ("mask", (x,), {"mask": ones[:1] > 0}),
        ("mask", (x,), {"mask": ones}),
        ("segment_ids", (x,), {"segment_ids": ones[:1]}),
        ("segment_ids", (x,), {"segment_ids": ones / 1}),
        ("x", (x[:, 0, :1], state), {"method": "step"}),
        ("x", (x[:, :1], state), {"method": "step"}),
        ("state", (x[:, 0], alien), {"method": "step"}),
    ]
    for name, arguments, keywords in calls:
        with pytest.raises(ValueError, match=rf"^{name}(\.\w+)?: got .*, expected "):
            jax.eval_shape(partial(mixer.apply, **keywords), params, *arguments)


@pytest.mark.parametrize(("mixer_class", "options"), CASES)
def test_what_is_not_supported_raises(mixer_class, options):
    mixer, params, x = build(mixer_class, options)
    able = mixer.capabilities
    refused = [name for name in able._fields if not getattr(able, name)]
    for name in refused:
        with pytest.raises(ValueError, match=f"{mixer_class.__name__}: {name} not supported; it supports .*mask"):
            mixer.require(**{name: True})
    if not able.state:
        state = mixer_class(width=WIDTH, **VARIANTS[mixer_class.__name__][0]).init_state(BATCH)
        with pytest.raises(ValueError, match="state not supported"):
            mixer.init_state(BATCH)
        with pytest.raises(ValueError, match="state not supported"):
            apply(mixer, params, x, state)
        with pytest.raises(ValueError, match="step not supported"):
            apply(mixer, params, x[:, 0], state, method="step")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "x64"), [(jnp.bfloat16, False), (jnp.float32, True), (jnp.float64, True)])
@pytest.mark.parametrize(("mixer_class", "options"), [case for case in CASES if case.id in KINDS_OF_STATE])
def test_an_empty_state_can_be_stepped_in_every_precision(mixer_class, options, precision, x64):
    mixer, params, x = build(mixer_class, options)
    with jax.enable_x64(x64):
        params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, precision), (params, x))
        whole, end = apply(mixer, params, x)
        token = jnp.moveaxis(x, 1, 0)

        def steps(state):
            return jax.lax.scan(lambda state, x: mixer.apply(params, x, state, method="step")[::-1], state, token)

        _, y = jax.jit(steps)(mixer.init_state(BATCH))
        if not hasattr(mixer, "max_length"):  # a cache would be full
            jax.jit(steps)(end)
        tolerance = {jnp.bfloat16: 0.1, jnp.float32: 2e-5, jnp.float64: 1e-11}[precision]
        assert y.dtype == whole.dtype == precision
        np.testing.assert_allclose(
            jnp.moveaxis(y, 0, 1).astype(float),
            whole.astype(float),
            rtol=tolerance,
            atol=tolerance * np.abs(whole).max(),
        )
