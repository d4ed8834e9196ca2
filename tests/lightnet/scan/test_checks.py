"""What a refusal says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.checks import as_arrays, check_array, check_per_token, check_values, got


def test_arrays_of_jax_and_numpy_become_arrays_of_jax():
    x, y, nothing = as_arrays(x=np.ones(2, np.float32), y=jnp.ones(3, jnp.bfloat16), nothing=None)
    assert isinstance(x, jax.Array)
    assert y.dtype == jnp.bfloat16
    assert nothing is None


@pytest.mark.parametrize("x", [[1.0], (1.0,), 1.0, np.float32(1), "1", {"x": 1}])
def test_anything_else_is_refused_by_name(x):
    with pytest.raises(ValueError, match=f"b: got {type(x).__name__}.*, expected an array of JAX or NumPy"):
        as_arrays(a=np.ones(1), b=x)


def test_a_traced_array_is_an_array():
    assert jax.jit(lambda x: as_arrays(x=x)[0])(1.0) == 1


def test_sizes_are_learnt_once_and_hold():
    sizes = {}
    check_array("x", jnp.zeros((2, 3)), "B L", sizes)
    check_array("y", jnp.zeros((1, 3)), "1|B L", sizes)
    assert sizes == {"B": 2, "L": 3}
    with pytest.raises(ValueError, match=r"y: got float32\[3, 3\], expected .*\(1 or B, L\) = \(1 or 2, 3\)"):
        check_array("y", jnp.zeros((3, 3)), "1|B L", sizes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float8_e4m3fn])
def test_every_float_is_a_float(dtype):
    check_array("x", jnp.zeros(2, dtype), "B", {})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(2, np.int32), r"x: got int32\[2\], expected a float array \(B\) with at least one element"),
        (np.zeros(2, np.complex64), r"x: got complex64\[2\], expected a float array"),
        (np.zeros(0, np.float32), r"x: got float32\[0\], expected a float array \(B\) with at least one element"),
        (np.zeros((2, 2), np.float32), r"x: got float32\[2, 2\], expected a float array \(B\)"),
        ([0.0], "x: got list, expected a float array"),
    ],
)
def test_another_kind_size_or_rank_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        check_array("x", x, "B", {})


def test_complex_numbers_where_they_are_allowed():
    check_array("x", jnp.zeros(2, jnp.complex64), "B", {}, complex_allowed=True)


def test_segment_ids_are_integers_and_masks_are_booleans():
    sizes = {"B": 2, "L": 3}
    check_per_token(sizes, jnp.zeros((2, 3), jnp.int8), jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"mask: got int32\[2, 3\], expected bool\[2, 3\]"):
        check_per_token(sizes, None, jnp.ones((2, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"segment_ids: got int32\[3, 2\], expected integer\[2, 3\]"):
        check_per_token(sizes, jnp.zeros((3, 2), jnp.int32), None)


@pytest.mark.parametrize("bound", [0, 0.0, np.float64(0)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_out_of_range_are_named_with_their_place(bound, dtype):
    x = jnp.array([[-1.0, 0.5]], dtype)
    with pytest.raises(ValueError, match=r"x: got 0.5 at \[0, 1\], expected values of at most 0"):
        check_values("x", x, at_most=bound)
    with pytest.raises(ValueError, match=r"x: got -1 at \[0, 0\], expected values of at least 0"):
        check_values("x", x, at_least=bound)
    check_values("x", jnp.array([[-jnp.inf, 0.0]], dtype), at_most=bound)


def test_values_at_masked_tokens_and_of_traced_arrays_are_not_looked_at():
    x = jnp.array([[[-1.0], [jnp.nan]]])
    check_values("x", x, at_most=0, mask=jnp.array([[True, False]]))
    jax.jit(lambda x: check_values("x", x, at_most=-5))(x)
    jax.jit(lambda mask: check_values("x", x, at_most=-5, mask=mask))(jnp.ones((1, 2), bool))


def test_got_names_what_is_no_array_by_its_type():
    assert got([1]) == "list"
    assert got(np.zeros((2, 1), np.int8)) == "int8[2, 1]"
