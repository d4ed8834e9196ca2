"""Where the kernels for TPUs run, and that they leave dtypes as the form does that runs elsewhere."""

from itertools import product

import jax
import jax.numpy as jnp
import pytest

from lightnet import scan
from lightnet.scan import explain, linear_scan

GATED = ("gated_linear_attention", "gated_linear_attention with one decay per head")


def test_the_kernel_is_what_runs_on_tpus_and_what_it_cannot_run_is_said():
    x = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
    assert explain("linear_scan", x, x).splitlines()[2] == "linear_scan on tpu: pallas (a kernel for this platform)"
    q, v, one = (jax.ShapeDtypeStruct((1, 2, 10, size), jnp.float32) for size in (64, 48, 1))
    assert "on tpu: pallas" in explain("gated_linear_attention", q, q, q, q)
    assert "on tpu: pallas" in explain("additive_global", q, q, q)
    assert "on tpu: pallas" in explain("additive_recurrence", q, q, q)
    factor = jax.ShapeDtypeStruct((1, 2, 1, 1, 64), jnp.float32)
    assert "on tpu: pallas" in explain("additive_recurrence", q, q, v, key_factor=factor)
    assert "on tpu: pallas" in explain("additive_global", q, q, v, key_factor=factor)
    assert "on tpu: pallas" in explain("gated_linear_attention", q, q, v, q)
    assert "on tpu: pallas" in explain("gated_linear_attention", q, q, v, one)
    half = jax.ShapeDtypeStruct((1, 2, 3), jnp.float16)
    assert "on tpu: xla (float16 is not a precision of the kernel)" in explain("linear_scan", half, half)
    program = jax.jit(linear_scan).trace(x, x).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in program
    assert "tpu_custom_call" not in jax.jit(linear_scan).trace(x, x).lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("dtypes", list(product((jnp.bfloat16, jnp.float32), repeat=3)))
@pytest.mark.parametrize("name", ["linear_scan", *GATED, "additive_recurrence", "additive_global"])
def test_kernel_and_xla_have_the_same_dtypes_whatever_is_mixed(name, dtypes):
    """Both are branches of one program, which is not made otherwise; nothing is computed here."""
    one, two, three = dtypes
    x = lambda dtype: jax.ShapeDtypeStruct((1, 12, 2, 128), dtype)  # noqa: E731
    y = lambda dtype: jax.ShapeDtypeStruct((1, 12, 256), dtype)  # noqa: E731
    arrays = {
        "linear_scan": (y(one), y(two)),
        GATED[0]: (x(one), x(two), x(three), x(jnp.float32)),
        GATED[1]: (x(one), x(two), x(three), jax.ShapeDtypeStruct((1, 12, 2, 1), jnp.float32)),
    }.get(name, (x(one), x(two), x(three)))

    def gradients(*arrays):
        outputs, pull = jax.vjp(getattr(scan, name.partition(" ")[0]), *arrays)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    _, found = jax.eval_shape(gradients, *arrays)
    assert [leaf.dtype for leaf in found] == [array.dtype for array in arrays]
