"""Kernels for Hopper GPUs with a channel per thread: step by step against the definition, and lowered by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan import by_channel, explain, hopper, linear_scan, selective_scan
from lightnet.scan.linear import pallas_gpu as linear_kernel
from lightnet.scan.linear.reference import linear_reference
from lightnet.scan.recurrence import Tokens, only_real, tokens_of
from lightnet.scan.selective import pallas_gpu as selective_kernel
from lightnet.scan.selective.chunk import Selective
from lightnet.scan.selective.reference import selective_reference
from tests.lightnet.scan.stand_in_gpu import instead_of_the_device
from tests.lightnet.scan.test_kernels import REGIMES, difference, packing
from tests.lightnet.scan.test_selective import operands as selective_operands

ALL_ALIKE = Tokens(None, None)


def arguments(shape, regime="usual", *, decays=None, complex_=False):
    """Decays of a regime, inputs and a state that enters."""
    random = np.random.default_rng(shape[1])
    a = np.exp(REGIMES[regime](random, decays or shape))
    b, state = random.standard_normal(shape), random.standard_normal((shape[0], shape[2]))
    if complex_:
        a, b, state = (x * np.exp(1j * random.standard_normal(x.shape)) for x in (a, b, state))
    kind = jnp.complex64 if complex_ else jnp.float32
    return [jnp.asarray(x, kind) for x in (a, b, state)]


def outputs_and_gradients(run, args, tokens, reverse):
    """Of the output and the last state, with cotangents that differ from token to token."""

    def call(a, b, state):
        return run((a, b), state, tokens, reverse=reverse)

    value, pull = jax.vjp(call, *args)
    random = np.random.default_rng(0)
    out = jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), value)
    if tokens.real is not None:  # the public function's outputs there are 0, and so are their cotangents
        out = (jnp.where(tokens.real[..., None], out[0], 0), out[1])
        value = (jnp.where(tokens.real[..., None], value[0], 0), value[1])
    return [*value, *pull(out)]


def check(args, tokens=ALL_ALIKE, *, reverse=False, tolerance=1e-5):
    got = outputs_and_gradients(linear_kernel.linear_gpu, args, tokens, reverse)
    expected = outputs_and_gradients(linear_reference, args, tokens, reverse)
    for x, y in zip(got, expected, strict=True):
        assert x.shape == y.shape
        assert difference(x, y) < tolerance


@pytest.fixture
def followed(monkeypatch):
    """The kernel in Python, with blocks so small that short sequences have several, and few channels."""
    instead_of_the_device(monkeypatch, hopper, by_channel, selective_kernel)
    for name, size in {"CHANNELS": 8, "TOKENS": 5, "ALIGNED": 2, "LEAST_BLOCKS": 2}.items():
        monkeypatch.setattr(by_channel, name, size)
    monkeypatch.setattr(linear_kernel, "GROUP", 3)
    monkeypatch.setattr(selective_kernel, "ROWS", 16)
    for module in (linear_kernel, selective_kernel):
        monkeypatch.setattr(module, "ENOUGH", 1)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("segments", [False, True])
def test_values_and_gradients_of_packed_sequences(followed, monkeypatch, segments, reverse):
    if segments:
        monkeypatch.setattr(linear_kernel, "ENOUGH", 1000)
        assert by_channel.tiling(2, 37, 11, 12, 1000).segments == 4
    given = packing(37)
    tokens = tokens_of(given["segment_ids"], given["mask"], reverse=reverse)
    check(arguments((2, 37, 11), "with resets"), tokens, reverse=reverse)


def lowered(args, **given):
    """As text, of the forward and the backward pass."""

    def both(a, b, state, out):
        return jax.vjp(lambda *x: linear_scan(*x, **given, implementation="pallas"), a, b, state)[1](out)

    a, b, state = args
    kind = jnp.result_type(a, b)
    out = (jax.ShapeDtypeStruct(b.shape, kind), jax.ShapeDtypeStruct(state.shape, state.dtype))
    checks = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    return jax.export.export(jax.jit(both), platforms=["cuda"], disabled_checks=checks)(*args, out).mlir_module()


def like(shape, kind, decays=None):
    state = jnp.result_type(kind, jnp.float32)
    shapes = ((decays or shape, kind), (shape, kind), ((shape[0], shape[2]), state))
    return [jax.ShapeDtypeStruct(*x) for x in shapes]


@pytest.mark.parametrize(
    ("kernels", "args", "packed"),
    [
        (2, like((2, 70, 130), jnp.bfloat16), True),
        (6, like((1, 2048, 128), jnp.float32), False),
        (2, like((2, 70, 3), jnp.complex64, (1, 1, 3)), True),
        (2, like((64, 64, 128), jnp.bfloat16, (1, 64, 128)), False),
        (1, like((1, 1, 1), jnp.float32), True),
    ],
)
def test_every_form_is_lowered(kernels, args, packed):
    program = lowered(args, **(packing(args[1].shape[1], args[1].shape[0]) if packed else {}))
    assert program.count("mosaic_gpu_v2") == kernels
    assert "triton" not in program


@pytest.mark.parametrize("case", [
    {"shape": (2, 1, 3)},
    {"shape": (1, 8, 8)},
    {"shape": (2, 19, 5), "complex_": True},
    {"shape": (2, 19, 5), "decays": (1, 19, 5)},
    {"shape": (2, 19, 5), "decays": (1, 1, 5), "complex_": True},
    {"shape": (2, 19, 5), "decays": (2, 1, 5)},
])  # fmt: skip
@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_shape(followed, case):
    check(arguments(**case))
    check(arguments(**case), reverse=True)


@pytest.mark.slow
def test_every_regime(followed):
    for regime in REGIMES:
        check(arguments((1, 21, 4), regime))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_half_precision_is_read_and_written_and_the_state_is_wide(followed):
    a, b, state = arguments((2, 37, 4))
    half = (a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    h, final = linear_kernel.linear_gpu(half, state, ALL_ALIKE, reverse=False)
    wide = (half[0].astype(jnp.float32), half[1].astype(jnp.float32))
    expected, last = linear_reference(wide, state, ALL_ALIKE, reverse=False)
    assert (h.dtype, final.dtype) == (jnp.bfloat16, jnp.float32)
    assert difference(h, expected) < 4e-3
    assert difference(final, last) < 2e-6


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_masked_token_may_contain_anything(followed):
    given, args = packing(37), arguments((2, 37, 4))
    tokens = tokens_of(given["segment_ids"], given["mask"])
    poisoned = [jnp.where(given["mask"][..., None], x, jnp.nan) for x in args[:2]]
    clean, got = (
        outputs_and_gradients(linear_kernel.linear_gpu, [*x, args[2]], tokens, False) for x in (args[:2], poisoned)
    )
    jax.tree.map(np.testing.assert_array_equal, clean, got)


def selective_values_and_gradients(run, given, tokens):
    """As the public function calls it: what is masked is 0."""
    *arrays, state = (given.get(name) for name in (*Selective._fields, "initial_state"))

    def call(arrays, state):
        x, dt, A, B, C, D, z = arrays
        x, dt, B, C, z = only_real(tokens, x, dt, B, C, z)
        y, final = run(Selective(x, dt, A, B, C, D, z), state, tokens)
        return only_real(tokens, y)[0], final

    value, pull = jax.vjp(call, arrays, state)
    random = np.random.default_rng(0)
    return [
        *value,
        *jax.tree.leaves(pull(jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), value))),
    ]


def check_selective(given, tokens=ALL_ALIKE, tolerance=1e-5):
    got = selective_values_and_gradients(selective_kernel.selective_gpu, given, tokens)
    expected = selective_values_and_gradients(selective_reference, given, tokens)
    for x, y in zip(got, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert difference(x, y) < tolerance


@pytest.mark.parametrize("segments", [False, True])
def test_selective_scan_of_packed_sequences(followed, monkeypatch, segments):
    if segments:
        monkeypatch.setattr(selective_kernel, "ENOUGH", 1000)
    given = packing(37)
    check_selective(selective_operands(37), tokens_of(given["segment_ids"], given["mask"]))


@pytest.mark.parametrize("left_out", [("D",), ("z",), ("D", "z"), ()])
def test_selective_scan_with_and_without_its_options(followed, left_out):
    given = selective_operands(17, channels=11)
    check_selective({name: x for name, x in given.items() if name not in left_out})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_selective_scan_in_half_precision(followed):
    given = selective_operands(20)
    half = {name: x if name in ("A", "initial_state") else x.astype(jnp.bfloat16) for name, x in given.items()}
    check_selective(half, tolerance=1e-2)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("left_out", [("D", "z"), ()])
def test_derivatives_of_second_order_of_selective_scan(followed, left_out):
    given = {name: x for name, x in selective_operands(13, channels=3).items() if name not in left_out}
    packed = packing(13)
    tokens = tokens_of(packed["segment_ids"], packed["mask"])

    def product(run):
        def loss(given):
            return sum((x**2).sum() for x in selective_values_and_gradients(run, given, tokens)[2:])

        return jax.grad(loss)(given)

    got, expected = product(selective_kernel.selective_gpu), product(selective_reference)
    for name, x in expected.items():
        assert difference(got[name], x) < 1e-5, name


def test_every_form_of_selective_scan_is_lowered():
    def both(given, ids, mask):
        def loss(given):
            options = {"segment_ids": ids, "mask": mask, "implementation": "pallas"}
            named = {name: given[name] for name in ("D", "z", "initial_state")}
            y, final = selective_scan(*(given[n] for n in ("x", "dt", "A", "B", "C")), **named, **options)
            return y.sum() + final.sum()

        return jax.grad(loss)(given)

    checks = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    given = selective_operands(2048)
    program = jax.export.export(jax.jit(both), platforms=["cuda"], disabled_checks=checks)(
        given, *packing(2048).values()
    )
    assert program.mlir_module().count("mosaic_gpu_v2") == 4


def test_what_runs_on_gpus_is_said():
    x = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
    assert "linear_scan on cuda: xla (the kernel, which implementation='pallas' runs, has not" in explain(
        "linear_scan", x, x
    )
    program = jax.jit(linear_scan).trace(x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" not in program
    x, A, of_token = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 2, 3), (3, 17), (1, 2, 17)))
    said = explain("selective_scan", x, x, A, of_token, of_token)
    assert "on cuda: xla (17 states per channel are more than the 16 of the kernel)" in said
