"""Plans made in a process of its own, which loads the compiler for TPUs; prints what was found as JSON.

Beside them, on as many virtual CPU devices: the bytes of the state and of a batch before and after a step of the loop's
own update.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.errors import UserError
from experiments.planning.collectives import collectives
from experiments.planning.hardware import topology
from experiments.planning.hlo import parse
from experiments.planning.plan import plan
from experiments.planning.trainings import Training, shapes_of
from experiments.training.config import MeshConfig, TrainConfig
from experiments.training.mesh import batch_sharding, make_mesh
from experiments.training.optimizer import make_optimizer
from experiments.training.task import Task
from experiments.training.update import initializer, make_update, parts_of_a_batch
from lightnet.models import Size, causal_lm

VOCABULARY, LENGTH, BATCH, WIDTH, HIDDEN, LAYERS = 512, 128, 16, 256, 512, 1
TURNS, ROWS = 7, 256
LOOPED, STATES = 3, 16


def training(batch: int = BATCH, kind: str = "softmax", looped: bool = False, **mesh: int) -> Training:
    """A small model, its sizes those of the tiles of a TPU, so that nothing is padded.

    Args:
        batch: rows.
        kind: name of the mixer.
        looped: whether it has several blocks in a loop, each of them computed again.
        **mesh: sizes of axes.
    """
    from experiments.mixers import mixer

    size = Size(LOOPED if looped else LAYERS, WIDTH, 4, "of this test", hidden=HIDDEN)
    remat = "nothing_saveable" if looped else "none"
    model = causal_lm(
        size,
        VOCABULARY,
        mixer=mixer(kind, causal=True),
        relative=None,
        input_positions=None,
        scan_layers=looped,
        remat=remat,
    )
    config = TrainConfig(steps=10, batch_size=batch, remat=remat, mesh=MeshConfig(**mesh))

    def loss(variables, rows, key):
        logits = model.apply(variables, rows["tokens"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows["tokens"]).mean(), {}

    task = Task(lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32)), loss)
    label = "transformer" if kind == "softmax" else kind
    return Training(config, task, {"tokens": np.zeros(LENGTH, np.int32)}, label, shapes_of(task))


def executed(training: Training) -> dict[str, int]:
    """Bytes of the first device before and after a step on virtual devices."""
    config, task = training.config, training.task
    mesh, optimizer = make_mesh(config.mesh), make_optimizer(config.optimizer, config.steps, task.labels)
    with jax.set_mesh(mesh):
        create, shardings, _ = initializer(task, optimizer, config, 0, mesh)
        parts = parts_of_a_batch(config, mesh)
        update = make_update(task, optimizer, config, 0, microbatches=parts, shardings=shardings)
        rows = {"tokens": np.zeros((config.batch_size, LENGTH), np.int32)}
        before = create(), jax.device_put(rows, batch_sharding(mesh))
        arguments = _bytes(before)
        return {"arguments": arguments, "outputs": _bytes(update(*before))}


def _bytes(tree) -> int:
    first = jax.devices()[0]
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.device == first]
    return sum(shard.data.nbytes for shard in shards)


def summed(name: str) -> list[list]:
    """Collectives of a loop that sums a product over four chips, each with a quarter of what is contracted."""
    chips = topology(name)
    mesh = make_mesh(MeshConfig(1, 1, 4), chips.devices)

    def body(x, w):
        def turn(y, _):
            return jax.lax.psum(y[:, : ROWS // 4] @ w, "tensor") / ROWS, None

        return jax.lax.scan(turn, x, length=TURNS)[0]

    spec = PartitionSpec("tensor", None)
    shared = jax.shard_map(
        body, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec(), check_vma=False
    )
    given = [
        jax.ShapeDtypeStruct((ROWS, ROWS), "float32", sharding=NamedSharding(mesh, each))
        for each in (PartitionSpec(), spec)
    ]
    compiled = jax.jit(shared).lower(*given).compile(compiler_options=dict(chips.options) or None)
    program = parse(compiled.as_text())
    return [list(row) for row in collectives(program, [0] * 4)]


def refused(training: Training, name: str, folder: Path) -> str:
    """What a plan that is not possible says."""
    try:
        plan("transformer", "test", training, 1, topology(name), folder)
    except UserError as error:
        return str(error)
    return "nothing"


def formula() -> int:
    """Operations of the transformer: six for each number of a matrix and token, and the scores of attention."""
    return BATCH * LENGTH * (6 * (LAYERS * _block() + VOCABULARY * WIDTH) + 12 * LAYERS * LENGTH * WIDTH)


def formula_of_loops() -> int:
    """Of the looped one, whose blocks are computed a second time but for the last product, on which nothing depends."""
    blocks = LOOPED * (8 * _block() - 2 * WIDTH * HIDDEN + 16 * LENGTH * WIDTH)
    return BATCH * LENGTH * (blocks + 6 * VOCABULARY * WIDTH)


def formula_of_mamba() -> int:
    """Of Mamba: into twice 2 D channels, from these to the step of rank D / 16 and to B and C, and back to D."""
    inner, rank = 2 * WIDTH, WIDTH // 16
    mixer = WIDTH * 2 * inner + inner * (rank + 2 * STATES) + rank * inner + inner * WIDTH
    return BATCH * LENGTH * 6 * (LAYERS * (mixer + 3 * WIDTH * HIDDEN) + VOCABULARY * WIDTH)


def _block() -> int:
    """Numbers in the matrices of a block with attention."""
    return 4 * WIDTH**2 + 3 * WIDTH * HIDDEN


def on_gpus(folder: Path) -> None:
    """Print what is planned for four H100, and for two machines with two each."""
    found = {"summed": summed("h100:4"), "formula": formula()}
    for label, chips in (("machine", topology("h100:4")), ("machines", topology("h100:2", 2))):
        planned = plan("transformer", "test", training(data=4), 1, chips, folder)
        found[label] = dataclasses.asdict(planned)
    found["refused"] = refused(training(batch=2**18, data=4), "h100:4", folder)
    print(json.dumps(found))


def main(folder: Path) -> None:
    """Print what is planned and executed."""
    name, found = "v5e:2x2", {}
    found["summed"] = summed(name)
    found["smaller than a host"] = [len(topology(shape).devices) for shape in ("v5e:1x1", "v5p:2x1x1", "tpu7x:1x1x1")]
    found["torus"] = make_mesh(MeshConfig(64, 1, 2), topology("v5p:4x4x8").devices).devices.shape
    for sizes in ({"data": 4}, {"data": 1, "fsdp": 2, "tensor": 2}):
        one = training(**sizes)
        planned = plan("transformer", "test", one, 3, topology(name), folder)
        found[" ".join(f"{axis} {size}" for axis, size in sizes.items())] = {
            "plan": dataclasses.asdict(planned),
            "executed": executed(one),
        }
    for label, other, expected in (
        ("looped", training(looped=True, data=2, fsdp=2), formula_of_loops()),
        ("mamba", training(kind="mamba", data=2, fsdp=2), formula_of_mamba()),
    ):
        planned_too = plan(label, "test", other, 1, topology(name), None)
        found[label] = {"plan": dataclasses.asdict(planned_too), "executed": executed(other), "formula": expected}
    found["kept"] = plan("transformer", "test", one, 3, topology(name), folder) == planned
    for label, chips, sizes in (
        ("two slices", topology(name, 2), {"data": 2, "fsdp": 4}),
        ("two devices per chip", topology("tpu7x:2x2x1"), {"data": 8}),
    ):
        found[label] = dataclasses.asdict(plan("transformer", "test", training(**sizes), 1, chips, None))
    found["refused"] = [
        refused(training(batch=6, data=4), name, folder),
        refused(training(data=3), name, folder),
        refused(training(batch=2**18, data=4), name, folder),
        refused(training(data=9), "v5e:3x3", folder),
    ]
    found["formula"] = formula()
    print(json.dumps(found))


if __name__ == "__main__":
    (on_gpus if "h100" in sys.argv else main)(Path(sys.argv[1]))
