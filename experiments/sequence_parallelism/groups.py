"""Training steps of one sequence on groups of virtual devices, timed; run by `length_aware` in a process of its own.

Virtual devices share the cores of this machine, so that the wall time of a group is that of all its work. Its time on
devices of its own is taken to be its CPU time over its devices, which all do the same. Groups run one after another;
that they would run side by side, the slowest deciding, is composed from their times.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from experiments.sequence_parallelism.assignment import Cost, Group, MicroBatch, fitted, predicted, step_plan


@dataclass
class Timed:
    """Forward and backward passes of a small bidirectional transformer, compiled once per length and degree.

    Attributes:
        width: channels.
        num_heads: heads.
        programs: that are compiled, with their arguments, by (length, degree).
    """

    width: int
    num_heads: int
    programs: dict[tuple[int, int], tuple[Any, tuple]] = field(default_factory=dict)

    def program(self, length: int, degree: int) -> tuple[Any, tuple]:
        """Of one sequence on the first devices."""
        if (length, degree) not in self.programs:
            self.programs[length, degree] = self._compiled(length, degree)
        return self.programs[length, degree]

    def seconds(self, lengths: Sequence[int], degree: int, repeats: int) -> float:
        """Of a group for its sequences, each once; the median of the repeats."""
        work = [self.program(length, degree) for length in lengths]
        return statistics.median(_cpu(work) / degree for _ in range(repeats))

    def _compiled(self, length: int, degree: int) -> tuple[Any, tuple]:
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        from experiments.mixers import mixer
        from experiments.training.config import MeshConfig
        from experiments.training.mesh import make_mesh
        from lightnet.backbone import Backbone

        model = Backbone(
            mixer=partial(mixer("softmax", causal=False), num_heads=self.num_heads), num_layers=1, width=self.width
        )

        def loss(variables: Any, x: Any) -> Any:
            return (model.apply(variables, x)[0] ** 2).mean()

        mesh = make_mesh(MeshConfig(data=1, sequence=degree), jax.devices()[:degree])
        x = np.random.default_rng(0).standard_normal((1, length, self.width)).astype(np.float32)
        with jax.set_mesh(mesh):
            variables = jax.jit(model.init, out_shardings=NamedSharding(mesh, PartitionSpec()))(
                jax.random.key(0), jnp.zeros((1, degree, self.width))
            )
            tokens = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "sequence")))
            compiled = jax.jit(jax.grad(loss)).lower(variables, tokens).compile()
        jax.block_until_ready(compiled(variables, tokens))
        return compiled, (variables, tokens)


def _cpu(work: Sequence[tuple[Any, tuple]]) -> float:
    import jax

    start = time.process_time()
    for compiled, arguments in work:
        jax.block_until_ready(compiled(*arguments))
    return time.process_time() - start


def measured(plan: Sequence[MicroBatch], timed: Timed, repeats: int) -> float:
    """Seconds of a step, every group of it executed: of the slowest group of each micro-batch."""
    return sum(max(timed.seconds(group.lengths, group.degree, repeats) for group in part) for part in plan)


def degrees(devices: int) -> list[int]:
    """Sizes of groups: the powers of two.

    Example:
        >>> degrees(8)
        [1, 2, 4, 8]
    """
    return [2**power for power in range(devices.bit_length())]


def static_plans(lengths: Sequence[int], cost: Cost, capacity: int, devices: int) -> dict[int, list[MicroBatch]]:
    """By their degree, the plans of groups of one size with which all sequences fit."""
    plans = {degree: step_plan(lengths, cost, capacity, devices, (degree,)) for degree in degrees(devices)}
    return {degree: plan for degree, plan in plans.items() if plan is not None}


def compared(given: dict[str, Any]) -> dict[str, Any]:
    """Fit the cost, plan each batch both ways, and execute the plans.

    Args:
        given: settings of `length_aware`, "limits" of the buckets and "batches" of lengths that are such limits.

    Returns:
        Tables: "calibration", of single sequences, and "steps", and the groups of every step.
    """
    devices, capacity, repeats = given["devices"], given["capacity"], given["repeats"]
    timed = Timed(given["width"], given["num_heads"])
    grid = [(s, d) for s in given["limits"] for d in degrees(devices) if s <= capacity * d]
    seconds = [timed.seconds([length], degree, given["calibrations"]) for length, degree in grid]
    cost = fitted([length for length, _ in grid], [degree for _, degree in grid], seconds)
    told = [cost.seconds(*point) for point in grid]
    steps = [_step(lengths, cost, timed, capacity, devices, repeats) for lengths in given["batches"]]
    return {
        "cost": cost._asdict(),
        "calibration": {
            "length": [length for length, _ in grid],
            "degree": [degree for _, degree in grid],
            "seconds": seconds,
            "fitted": told,
        },
        "steps": steps,
    }


def _step(
    lengths: Sequence[int], cost: Cost, timed: Timed, capacity: int, devices: int, repeats: int
) -> dict[str, Any]:
    """One batch: the best static plan, and the length-aware one."""
    static = static_plans(lengths, cost, capacity, devices)
    degree = min(static, key=lambda degree: predicted(static[degree], cost))
    aware = step_plan(lengths, cost, capacity, devices, degrees(devices))
    assert aware is not None, "what fits with groups of one size fits"
    found: dict[str, Any] = {"static degree": degree, "fit": sorted(static)}
    for name, plan in (("static", static[degree]), ("aware", aware)):
        found[f"{name} predicted"] = predicted(plan, cost)
        found[f"{name} measured"] = measured(plan, timed, repeats)
        found[f"{name} groups"] = [[_told(group) for group in part] for part in plan]
    return found


def _told(group: Group) -> list[Any]:
    return [group.degree, list(group.lengths)]
