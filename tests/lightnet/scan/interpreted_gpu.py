"""Kernels for Hopper, interpreted by JAX on a CPU: memory, copies, barriers and races between threads, but no layouts.

What the interpreter lacks is given here by its definition: products whose first factor is in registers or that go on
from other sums, and, before JAX 0.11, layouts and transposed factors. It also refuses to read behind the end of an
array then, which the device fills with 0: so lengths are whole there. Pipelines that write it refuses in every release:
`stand_in_gpu` is for the kernels that have some.
"""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams, force_gpu_interpret_mode
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper

OLD = jax.__version_info__ < (0, 11)


class Transposed:
    """A reference with its axes exchanged."""

    def __init__(self, ref):
        self.ref, self.shape = ref, ref.shape[::-1]

    def __getitem__(self, index):
        return self.ref[index].T


@contextmanager
def interpreted(patch):
    """Run kernels here that use the tensor cores by `lightnet.scan.hopper`; an error if threads race."""
    on_tensor_cores = hopper.product

    def product(x, *ys):
        if not OLD and not isinstance(x, jax.Array):
            return on_tensor_cores(x, *ys)
        return sum(jnp.dot(x[...], y[...], preferred_element_type=jnp.float32) for y in ys)

    def add_product(total, x, y):
        return total + product(x, y)

    def indices(dtype, shape, axis, **_):
        return lax.broadcasted_iota(dtype, shape, axis)

    with patch.context() as inner:
        inner.setattr(hopper, "add_product", add_product)
        inner.setattr(hopper, "load_anywhere", lambda ref: ref[...])
        inner.setattr(plgpu, "layout_cast", lambda x, layout: x)
        inner.setattr(plgpu, "broadcasted_iota", indices)
        inner.setattr(hopper, "product", product)
        if OLD:
            inner.setattr(hopper, "transposed", Transposed)
        with force_gpu_interpret_mode(InterpretGPUParams(detect_races=True)):
            yield
        assert not interpret_pallas_call.get_races().races_found
