"""What `test_chunked` runs in a process of its own: eight virtual devices, split over batch, sequence, vocabulary."""

import jax
import numpy as np
from jax.sharding import AxisType

import kd

RANDOM = np.random.default_rng(2)
B, T, V, H = 4, 6, 8, 3
OPERANDS = tuple(RANDOM.normal(size=shape) for shape in ((B, T, H), (V, H), (B, T, H + 1), (V, H + 1)))
MASK, Y = RANDOM.random((B, T)) < 0.7, RANDOM.integers(0, V, (B, T))
AXES = ("data", "sequence", "tensor")
MESHES = [(1, 1, 8), (2, 1, 4), (2, 2, 2), (1, 3, 1), (8, 1, 1)]

LOSSES = {
    "jsd, tiled": lambda *x: kd.chunked_divergence("jsd", *x, MASK, token_chunk=2, vocab_chunk=3, beta=0.3),
    "reverse_kl": lambda *x: kd.chunked_divergence("reverse_kl", *x, MASK, token_chunk=2),
    "cross-entropy": lambda h, W, *_: kd.chunked_cross_entropy(h, W, Y, MASK, token_chunk=2, vocab_chunk=1),
}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    for name, loss in LOSSES.items():
        # compiled anew for every mesh
        want = jax.jit(jax.value_and_grad(lambda *x, f=loss: f(*x), (0, 1)))(*OPERANDS)
        for shape in MESHES:
            for kind in (AxisType.Auto, AxisType.Explicit) if shape == (2, 2, 2) else (AxisType.Auto,):
                devices = jax.devices()[: int(np.prod(shape))]
                with jax.set_mesh(jax.make_mesh(shape, AXES, axis_types=(kind,) * 3, devices=devices)):
                    have = jax.jit(jax.value_and_grad(lambda *x, f=loss: f(*x), (0, 1)))(*OPERANDS)
                for x, y in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
                    message = f"{name}, {shape}, {kind}"
                    np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-10, atol=1e-14, err_msg=message)


if __name__ == "__main__":
    main()
    print("ok")
