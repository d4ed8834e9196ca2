"""Every function in float32 against its definition in float64, with gates and logits of every kind.

At most 2e-6 for outputs and final states of 4,096 tokens and 1e-5 for all gradients; 5e-4 where logits
are extreme; 1e-2 in bfloat16; 2e-5 over 262,144 tokens. All are relative Frobenius norms.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightnet.scan as core
from lightnet.scan.fade import fade

GATES = ("mild", "sigmoid", "strong", "resets", "near zero", "mixture")
LOGITS = ("normal", "wide", "alike", "resets", "mixture")
STRESS = ("ramp up", "ramp down", "deviation 50", "deviation 1000")


def log_decays(kind, shape, random):
    uniform, normal = random.random(shape), random.standard_normal(shape)
    found = {
        "mild": -0.1 * uniform,
        "sigmoid": -np.logaddexp(0, -normal),
        "strong": -20 * uniform,
        "resets": np.where(random.random(shape) < 0.05, -np.inf, -0.1 * uniform),
        "near zero": -1e-6 * uniform,
        "constant": np.full(shape, -1.3e-5),
        "still": np.full(shape, -1.3e-7),
    }
    if kind == "mixture":
        return np.choose(random.integers(0, 5, shape), list(found.values())[:5])
    return found[kind]


def logits(kind, shape, random):
    normal, ramp = random.standard_normal(shape), 200 * np.linspace(0, 1, shape[1])[None, :, None, None]
    found = {
        "normal": normal,
        "wide": 10 * normal,
        "alike": 0 * normal,
        "resets": np.where(random.random(shape) < 0.05, -np.inf, normal),
        "ramp up": ramp + normal,
        "ramp down": normal - ramp,
        "deviation 50": 50 * normal,
        "deviation 1000": 1000 * normal,
    }
    if kind == "mixture":
        return np.choose(random.integers(0, 4, shape), list(found.values())[:4])
    return found[kind]


def linear(length, kind, random, *, turned=False, constant=False):
    shape = (2, length, 16)
    a = np.exp(log_decays(kind, (1, 1, 16) if constant else shape, random))
    b, state = random.standard_normal(shape), random.standard_normal((2, 16))
    if turned:
        a = a * np.exp(1j * random.standard_normal(shape))
        b, state = b + 1j * random.standard_normal(shape), state * 1j
    return dict(a=a, b=b, initial_state=state)


def diagonal(length, kind, random):
    shape = (8, 4)
    size = {"mild": np.exp(-random.uniform(1e-3, 1, shape)), "slow": np.exp(-random.uniform(1e-6, 1e-4, shape))}
    turn = np.exp(1j * random.uniform(-np.pi, np.pi, shape))
    a, b, c = size.get(kind, 1) * turn, random.standard_normal(shape) * turn, random.standard_normal(shape) / turn
    state = random.standard_normal((2, *shape)) * turn
    return dict(x=random.standard_normal((2, length, 8)), a=a, b=b, c=c, initial_state=state)


def selective(length, kind, random):
    shape, rates = (2, length, 8), -np.exp(random.standard_normal((8, 4)))
    dt = np.minimum(-log_decays(kind, shape, random), 1e4)
    if kind in ("near zero", "constant"):  # not from the step: then nothing would enter the state either
        dt, rates = dt / dt.max(), rates * dt.max()
    x, z, (B, C) = (
        random.standard_normal(shape),
        random.standard_normal(shape),
        random.standard_normal((2, 2, length, 4)),
    )
    state = random.standard_normal((2, 8, 4))
    return dict(x=x, dt=dt, A=rates, B=B, C=C, D=random.standard_normal(8), z=z, initial_state=state)


def gated(length, kind, random, *, scalar=False):
    (q, k), v = random.standard_normal((2, 2, length, 1, 5)), random.standard_normal((2, length, 2, 3))
    log_decay = log_decays(kind, (2, length, 2, 1 if scalar else 5), random)
    return dict(q=q, k=k, v=v, log_decay=log_decay, initial_state=random.standard_normal((2, 2, 5, 3)))


def additive(length, kind, random, *, factors=0):
    keys = (2, length, 2, 5)
    found = dict(
        q=random.standard_normal((*keys[:3], 5 * max(factors, 1))),
        key_logits=logits(kind, keys, random),
        v=random.standard_normal((*keys[:3], 3)),
    )
    return {**found, "key_factor": random.standard_normal((1, length, 1, factors, 5))} if factors else found


def convolution(length, kind, random):
    w, bias = random.standard_normal((4, 8)), random.standard_normal(8)
    return dict(x=random.standard_normal((2, length, 8)), w=w, bias=bias)


CASES = {
    "linear": (core.linear_scan, linear, (*GATES, "constant", "still")),
    "linear, complex": (core.linear_scan, partial(linear, turned=True), (*GATES, "constant")),
    "linear, constant": (core.linear_scan, partial(linear, constant=True), ("mild", "near zero", "still")),
    "diagonal": (core.diagonal_ssm, diagonal, ("mild", "slow", "turning")),
    "selective": (core.selective_scan, selective, (*GATES, "constant")),
    "gated": (core.gated_linear_attention, gated, GATES),
    "gated, scalar": (core.gated_linear_attention, partial(gated, scalar=True), GATES),
    "additive": (core.additive_recurrence, additive, (*LOGITS, *STRESS)),
    "additive, factors": (core.additive_recurrence, partial(additive, factors=2), ("mixture", "ramp up")),
    "global": (core.additive_global, additive, (*LOGITS, *STRESS)),
    "convolution": (core.causal_conv, convolution, ("",)),
}
ALL = [(name, kind) for name, (_, _, kinds) in CASES.items() for kind in kinds]


def arguments(name, kind, length):
    """In float32 or complex64; NumPy's, so that they can be widened."""
    found = CASES[name][1](length, kind, np.random.default_rng(length + len(kind)))
    return {n: v.astype(np.complex64 if np.iscomplexobj(v) else np.float32) for n, v in found.items()}


def wide(tree):
    return jax.tree.map(lambda v: v.astype(np.complex128 if np.iscomplexobj(v) else np.float64), tree)


def definition(name, length):
    """That of `additive_global` writes out all pairs of tokens; its fast form is the same to the last digits."""
    return "xla" if name == "global" and length > 1000 else "reference"


@partial(jax.jit, static_argnames=("name", "implementation"))
def forward(given, *, name, implementation):
    return CASES[name][0](**given, implementation=implementation)


@partial(jax.jit, static_argnames=("name", "implementation"))
def backward(given, cotangent, *, name, implementation):
    return jax.vjp(lambda g: CASES[name][0](**g, implementation=implementation), given)[1](cotangent)[0]


def cotangents(out):
    """Random, of outputs and final state. A running maximum is a unit: what it gets, the rest of the state decides."""
    random = np.random.default_rng(5)

    def draw(x):
        found = random.standard_normal(x.shape)
        return (found + 1j * random.standard_normal(x.shape) if np.iscomplexobj(x) else found).astype(x.dtype)

    found = jax.tree.map(draw, out)
    if isinstance(out, tuple) and isinstance(out[1], core.AdditiveState):
        final, bar = out[1], found[1]
        inner = (final.state * bar.state).sum(axis=-1).reshape(*final.total.shape[:2], -1, final.total.shape[2])
        found = (found[0], bar._replace(maximum=final.total * bar.total + inner.sum(axis=2)))
    return found


def difference(found, expected, scale=0.0):
    found, expected = (np.asarray(x).astype(np.complex128) for x in (found, expected))
    assert np.isfinite(found).all()
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), scale, 1e-30)


def check(name, given, tolerances, length, small=1e-6):
    """Values and gradients; a gradient smaller than that part of the largest one is held against that part.

    What a saturated softmax gives its logits is a difference of two sums of the size of the other gradients.
    """
    low = jax.tree.map(np.asarray, forward(given, name=name, implementation="xla"))
    bars = cotangents(jax.tree.map(lambda x: np.asarray(x, np.float32) if x.dtype == jnp.bfloat16 else x, low))
    slopes = backward(
        given, jax.tree.map(lambda c, x: jnp.asarray(c, x.dtype), bars, low), name=name, implementation="xla"
    )
    with jax.enable_x64(True):
        exact, options = wide(jax.tree.map(np.asarray, given)), dict(name=name, implementation=definition(name, length))
        out = jax.tree.map(np.asarray, forward(exact, **options))
        expected = jax.tree.map(np.asarray, backward(exact, wide(bars), **options))
    for x, y in zip(jax.tree.leaves(low), jax.tree.leaves(out), strict=True):
        assert difference(x, y) < tolerances[0]
    largest = max(np.linalg.norm(y) for y in jax.tree.leaves(expected))
    for argument, y in expected.items():
        assert difference(slopes[argument], y, small * largest) < tolerances[1], argument


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_values_and_gradients_of_4096_tokens(name, kind):
    given = arguments(name, kind, 4096)
    check(name, given, *(((5e-4, 5e-4), 4096, 1e-3) if kind in STRESS else ((2e-6, 1e-5), 4096)))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 1000])
@pytest.mark.parametrize("name", list(CASES))
def test_values_and_gradients_of_other_lengths(name, length):
    check(name, arguments(name, CASES[name][2][-1], length), (2e-6, 1e-5), length)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_values_of_262144_tokens(name):
    kind = CASES[name][2][-1]
    given = {n: v[:1] if len(v) == 2 else v for n, v in arguments(name, kind, 1 << 18).items()}
    low = forward(given, name=name, implementation="xla")
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, forward(wide(given), name=name, implementation=definition(name, 1 << 18)))
    for x, y in zip(jax.tree.leaves(low), jax.tree.leaves(expected), strict=True):
        assert difference(x, y) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("linear, complex", "diagonal")])
def test_values_and_gradients_in_bfloat16(name):
    given = arguments(name, CASES[name][2][0], 4096)
    kept = ("A", "D", "initial_state")
    check(name, {n: v if n in kept else jnp.asarray(v, jnp.bfloat16) for n, v in given.items()}, (1e-2, 1e-2), 4096)


def test_fading_by_next_to_nothing_does_not_drift():
    random, steps = np.random.default_rng(0), 4096
    x = jnp.asarray(-np.exp(random.uniform(np.log(1e-7), np.log(1e-3), 200)), jnp.float32)
    inputs = random.standard_normal((steps, 200)).astype(np.float32)
    exact = np.zeros(200)
    for b in inputs:
        exact = np.exp(np.asarray(x, np.float64)) * exact + b
    found, _ = jax.lax.scan(lambda h, b: (fade(x, h, b), None), jnp.zeros(200), inputs)
    drifting, _ = jax.lax.scan(lambda h, b: (jnp.exp(x) * h + b, None), jnp.zeros(200), inputs)
    assert difference(found, exact) < 2e-6 < difference(drifting, exact)


@pytest.mark.parametrize("x", [-np.inf, -1e4, -80.0, -1.0, -0.004, -0.003, 0.0, 0.003, 1.0])
def test_fading_by_much_is_the_exponential(x):
    found = fade(jnp.float32(x), jnp.float32(3.0), jnp.float32(0.5))
    np.testing.assert_allclose(found, np.exp(np.float64(np.float32(x))) * 3 + 0.5, rtol=3e-7)
