"""Records as bytes: every dtype and shape comes back, whatever the layout in memory; what is no record is refused."""

import ml_dtypes
import numpy as np
import pytest

from experiments.records.encoding import decode, encode

DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOATS])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 3), (2, 0, 3)])
def test_arrays_come_back(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = decode(encode({"a": array, "b": np.arange(3)}))
    assert list(found) == ["a", "b"] and found["a"].dtype == array.dtype and found["a"].shape == shape
    np.testing.assert_array_equal(found["a"], array)


def test_the_layout_in_memory_and_the_order_of_names_do_not_matter():
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    for view in (array.T, array[::2], array[:, ::-1], array.astype(">i4"), np.asfortranarray(array)):
        np.testing.assert_array_equal(decode(encode({"x": view}))["x"], view)
    one, two = {"a": array, "b": array[0]}, {"b": array[0].copy(), "a": np.asfortranarray(array)}
    assert encode(one) == encode(two) != encode({"a": array, "b": array[1]})


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": np.array(["text"])},
        {"a": np.array([None])},
        {"a": np.array([1j])},
        {"a": np.ones(2, ml_dtypes.bfloat16)},
    ],
)
def test_what_is_no_record_is_refused(value):
    with pytest.raises(ValueError, match="^record"):
        encode(value)


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 64, encode({"a": np.arange(9)})[:-1]])
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match=f"data: got {len(data)} bytes that are no record"):
        decode(data)
