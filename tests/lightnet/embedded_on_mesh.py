"""Rows of a table on a mesh of eight virtual devices, in a process of its own: what they sum to, and what is sent."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.planning.collectives import collectives
from experiments.planning.hlo import parse
from lightnet.backbone.language_model import embedded
from lightnet.scan.placement import spread

VOCABULARY, WIDTH, BATCH, LENGTH = 512, 256, 16, 128


def main(look_up) -> None:
    """Print the loss and the norm of its gradients, on one device and on the mesh, and the bytes that each sends."""

    def loss(table, kernel, tokens):
        x = jnp.tanh(spread(look_up(table, tokens), "B L W") @ kernel)
        return jax.nn.logsumexp(x @ table.T, -1).mean()

    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((VOCABULARY, WIDTH), (WIDTH, WIDTH))]
    arrays.append(rng.integers(0, VOCABULARY, (BATCH, LENGTH)))
    step = jax.value_and_grad(loss, argnums=(0, 1))
    alone, expected = jax.jit(step)(*arrays)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    specs = [("tensor", "fsdp"), ("fsdp", "tensor"), (("data", "fsdp"),)]
    shardings = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
    with jax.set_mesh(mesh):
        shared = jax.jit(step, in_shardings=shardings, out_shardings=(None, tuple(shardings[:2])))
        compiled = shared.lower(*arrays).compile()
        together, found = compiled(*map(jax.device_put, arrays, shardings))
    off = [float(jnp.abs(x - y).max() / jnp.abs(y).max()) for x, y in zip(found, expected, strict=True)]
    sent = sum(row.bytes for row in collectives(parse(compiled.as_text()), [0] * 8))
    print(json.dumps({"losses": [float(alone), float(together)], "off": max(off), "sent": sent}))


if __name__ == "__main__":
    main(embedded if "gathered" in sys.argv else lambda table, tokens: table[tokens])
