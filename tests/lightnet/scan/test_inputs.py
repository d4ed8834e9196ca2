"""What every public function takes and refuses, all in the same way."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet import scan
from lightnet.scan import AdditiveState

# The axes of every argument of the sequence forms; the steps have no L.
ATTENTION = {"key_logits": "BLHK", "q": "BLHK", "v": "BLHV", "key_factor": "BLHFK"}
SEQUENCES = {
    scan.linear_scan: {"b": "BLD", "a": "BLD", "initial_state": "BD"},
    scan.diagonal_ssm: {"x": "BLD", "a": "DN", "b": "DN", "c": "DN", "initial_state": "BDN"},
    scan.selective_scan: {
        **{"x": "BLD", "dt": "BLD", "A": "DN", "B": "BLN", "C": "BLN", "D": "D", "z": "BLD"},
        "initial_state": "BDN",
    },
    scan.gated_linear_attention: {"v": "BLHV", "q": "BLGK", "k": "BLGK", "log_decay": "BLHK", "initial_state": "BHKV"},
    scan.additive_recurrence: {**ATTENTION, "initial_state": AdditiveState("BHK", "BHK", "BHKV")},
    scan.additive_global: ATTENTION,
    scan.causal_conv: {"x": "BLD", "w": "WD", "bias": "D", "initial_state": "BSD"},
}
STEPS = {
    scan.linear_scan: scan.linear_step,
    scan.diagonal_ssm: scan.diagonal_step,
    scan.selective_scan: scan.selective_step,
    scan.gated_linear_attention: scan.gated_linear_step,
    scan.additive_recurrence: scan.additive_step,
    scan.causal_conv: scan.causal_conv_step,
}
SIZES = dict(B=2, L=4, D=5, N=3, H=6, G=2, K=3, V=4, F=1, W=4, S=3)
OPTIONAL = ("D", "z", "bias", "key_factor", "initial_state", "state")
FORMS = [*SEQUENCES, *STEPS.values()]


def arguments(function):
    """Valid ones, of NumPy and in float32."""
    step = function not in SEQUENCES
    sequence = next(s for s, f in STEPS.items() if f is function) if step else function

    def draw(axes):
        shape = [SIZES[axis] for axis in axes if not (step and axis == "L")]
        return np.abs(np.random.default_rng(0).standard_normal(shape)).astype(np.float32)

    found = jax.tree.map(draw, SEQUENCES[sequence])
    if "log_decay" in found:
        found["log_decay"] = -found["log_decay"]
    if step:
        return {"state" if name == "initial_state" else name: x for name, x in found.items()}
    rows = (SIZES["B"], SIZES["L"])
    return {**found, "segment_ids": np.zeros(rows, np.int64), "mask": np.ones(rows, bool)}


def shapes(function, given):
    """Of what it returns. Its checks run on the arrays themselves, and nothing is compiled."""
    return jax.eval_shape(partial(function, **given))


def change(argument, f):
    return jax.tree.map(f, argument)


every_form = pytest.mark.parametrize("function", FORMS, ids=[f.__name__ for f in FORMS])


def test_arrays_of_numpy_and_of_jax_are_the_same():
    for function in FORMS:
        given = arguments(function)
        expected = shapes(function, change(given, jnp.asarray))
        assert shapes(function, given) == expected
        double = change(given, lambda x: x.astype(np.float64) if x.dtype == np.float32 else x)
        assert shapes(function, double) == expected
        with jax.enable_x64(True):
            assert {x.dtype for x in jax.tree.leaves(shapes(function, double))} == {np.dtype(np.float64)}


def refusals(function):
    """Of each argument all that is wrong, as (what is wrong, name, value)."""
    for name, x in arguments(function).items():
        yield "a list", name, jax.tree.map(np.ndarray.tolist, x)
        if not isinstance(x, tuple):  # the annotation of a state is checked before the function is entered, here
            yield "a string", name, "x"
        yield "too many axes", name, change(x, lambda x: x[None])
        yield "nothing in it", name, change(x, lambda x: x[:0])
        if name != "segment_ids":
            yield "whole numbers", name, change(x, lambda x: x.astype(np.int32))
        if name in ("segment_ids", "mask", "initial_state", "state"):
            yield "another dtype", name, change(x, lambda x: x.astype(np.float16))
        elif name not in OPTIONAL:
            yield "nothing", name, None


@every_form
def test_an_argument_that_does_not_fit_is_refused_by_its_name_in_one_line(function):
    given = arguments(function)
    for wrong, name, value in refusals(function):
        with pytest.raises(ValueError, match=rf"^{name}(\.\w+)?: got .*, expected .*") as caught:
            shapes(function, {**given, name: value})
        assert "\n" not in str(caught.value), (wrong, name)


@every_form
def test_sizes_that_do_not_fit_together_are_refused_with_the_name_of_an_argument(function):
    given = arguments(function)
    for name, x in given.items():
        wider = change(x, lambda x: np.repeat(x, 3, axis=-1))
        if name not in ("v", "w") or "initial_state" in given or "state" in given:
            with pytest.raises(ValueError, match=rf"^({'|'.join(given)})(\.\w+)?: got .*, expected .*\d"):
                shapes(function, {**given, name: wider})


@pytest.mark.parametrize(
    ("function", "name", "bound"),
    [
        (scan.selective_scan, "dt", "at least 0"),
        (scan.selective_step, "dt", "at least 0"),
        (scan.gated_linear_attention, "log_decay", "at most 0"),
        (scan.gated_linear_step, "log_decay", "at most 0"),
    ],
)
def test_values_out_of_range_are_refused_where_they_are_known(function, name, bound):
    given = arguments(function)
    for bad in (-given[name], np.full_like(given[name], np.nan)):
        with pytest.raises(ValueError, match=rf"^{name}: got .* at \[0, .*\], expected values of {bound}"):
            function(**{**given, name: bad})
        jax.eval_shape(lambda x: function(**{**given, name: x}), bad)


@pytest.mark.parametrize("function", list(SEQUENCES), ids=[f.__name__ for f in SEQUENCES])
def test_an_unknown_implementation_is_refused_with_the_known_ones(function):
    for name in ("fast", "XLA"):
        with pytest.raises(ValueError, match=rf"implementation: got {name!r}, expected None or one of reference, xla"):
            shapes(function, {**arguments(function), "implementation": name})


@pytest.mark.parametrize(
    "step",
    [
        lambda x: scan.linear_step(x, x, None),
        lambda x: scan.diagonal_step(x, *(jnp.ones((3, 2)),) * 3, None),
        lambda x: scan.selective_step(x, x**2, jnp.ones((3, 2)), *(jnp.ones((2, 2)),) * 2, None, None),
        lambda x: scan.gated_linear_step(*(x[:, None],) * 3, -(x[:, None] ** 2), None),
        lambda x: scan.additive_step(*(x[:, None],) * 3, None),
        lambda x: scan.causal_conv_step(x, jnp.ones((4, 3)), None, None),
    ],
)
def test_a_step_needs_a_state(step):
    with pytest.raises(ValueError, match="state: got NoneType, expected"):
        step(jnp.ones((2, 3)))


def test_a_number_of_segments_is_no_switch():
    x = jnp.ones((1, 2, 1, 3))
    with pytest.raises(ValueError, match="num_segments: got True, expected an integer"):
        scan.additive_global(x, x, x, num_segments=True)
