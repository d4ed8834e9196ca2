"""Every function of the scan core compiled for real TPU chips, split over four of them, on a machine without any.

And programs for sizes that are none of a TPU's, which only the first part of the compiler sees.
"""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from lightnet import scan
from tests.lightnet.scan.calls import CALLS
from tests.lightnet.scan.test_sharded import in_a_process

WITHOUT_CHIPS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip that two processes could both want
}
# Continuous integration installs the compiler; elsewhere it comes with `make install EXTRA=tpu`.
without_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not os.environ.get("CI"), reason="libtpu is not installed"
)


@pytest.mark.slow
@without_compiler
@pytest.mark.parametrize("name", CALLS)
def test_forward_and_backward_compile_for_four_chips(name):
    in_a_process("tests.lightnet.scan.on_tpu_topology", "split", name, **WITHOUT_CHIPS)


WITH_KERNELS = [name for name in CALLS if name != "causal_conv"]


@without_compiler
@pytest.mark.slow
def test_all_kernels_compile_for_four_chips_though_heads_do_not_divide():
    in_a_process("tests.lightnet.scan.on_tpu_topology", "left_over_in_half", *WITH_KERNELS, **WITHOUT_CHIPS)


@without_compiler
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_kernels_compile_where_axes_of_the_mesh_are_left_over(name):
    in_a_process("tests.lightnet.scan.on_tpu_topology", "left_over", name, **WITHOUT_CHIPS)


@without_compiler
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["linear_scan", "gated_linear_attention"])
def test_kernels_compile_inside_another_shard_map(name):
    in_a_process("tests.lightnet.scan.on_tpu_topology", "inside_another_shard_map", name, **WITHOUT_CHIPS)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("gated_linear_attention", ((1, 64), (1, 64), (8, 64), (8, 1))),
        ("additive_global", ((8, 64), (8, 64), (8, 64), (1, 1, 64))),
        ("gated_linear_attention", ((1, 5), (1, 5), (3, 1), (3, 5))),
        ("additive_recurrence", ((1, 1), (1, 1), (1, 1))),
    ],
    ids=["a key of several programs", "a factor of several programs", "single numbers", "a single number"],
)
def test_gradients_of_which_a_tpu_would_have_no_block_are_lowered(name, shapes):
    def loss(*x):
        factor = {"key_factor": x[3]} if len(x) == 4 and "additive" in name else {}
        return jax.tree.leaves(getattr(scan, name)(*x[: len(x) - len(factor)], **factor))[0].astype(jnp.float32).sum()

    arrays = [jax.ShapeDtypeStruct((1, 8, *shape), jnp.bfloat16) for shape in shapes]
    run = jax.grad(loss, tuple(range(len(arrays))))
    assert "tpu_custom_call" in jax.jit(run).trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(("name", "most"), [("additive_recurrence", 256), ("additive_global", 640)])
def test_heads_that_leave_no_room_in_fast_memory_are_refused(name, most):
    """The compiler would run out of it, where nobody asked for the kernel."""
    x = lambda size: jax.ShapeDtypeStruct((1, 8, 2, size), jnp.bfloat16)  # noqa: E731
    for sizes, implementation in (((most, most), "pallas"), ((most + 128,) * 2, "xla"), ((32, 2048), "xla")):
        key, value = map(x, sizes)
        assert f"on tpu: {implementation}" in scan.explain(name, key, key, value)
    assert "heads of sizes 32 and 2048 leave no room" in scan.explain(name, key, key, value)
