"""Loading checkpoints in a process of its own: on several devices, and its peak memory."""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.training.config import MeshConfig
from experiments.training.mesh import make_mesh, state_shardings
from lightnet.backbone.files import write_files
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.models import Architecture
from ssm.pretrained import load_pretrained, write_config
from ssm.pretrained.tensors import entries_of


def shards(folder: Path) -> None:
    """Parameters lie where their logical axes belong, and are what one device has."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    for mixer in (Mamba(width=8, state_size=3, dt_rank=2), Mamba2(width=8, state_size=3, head_size=4)):
        write(folder, Architecture(mixer, vocab_size=12, num_layers=1), np.random.default_rng(0).standard_normal)
        _, expected = load_pretrained(folder)
        _, split = load_pretrained(folder, shardings=partial(state_shardings, mesh=mesh))
        jax.tree.map(np.testing.assert_array_equal, split, expected)
        mix = split["params"]["backbone"]["blocks_0"]["mix"]
        parts = {"in_proj": (4, 2, 4), "out_proj": (4, 4)}
        for name, shape in parts.items():
            found = [shard.data.shape for shard in mix[name]["kernel"].addressable_shards]
            assert found == [shape] * 8, (name, found)
        assert mix["A_log"].addressable_shards[0].data.shape[0] == mix["A_log"].shape[0] // 4
        _, whole = load_pretrained(folder, shardings=NamedSharding(mesh, PartitionSpec()))
        assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(whole))
        jax.tree.map(np.testing.assert_array_equal, whole, expected)
    print("ok")


def write(folder: Path, architecture: Architecture, values: Callable[[tuple[int, ...]], np.ndarray]) -> None:
    """A checkpoint with these values in each tensor."""
    entries = entries_of(architecture, "huggingface")
    tensors = {entry.keys[0]: values(entry.stored).astype(np.float32) for entry in entries}
    write_files(folder, tensors, write_config(architecture, "huggingface"))


def make(folder: Path, vocab_size: str, width: str, num_layers: str) -> None:
    """A checkpoint of Mamba, and its size."""
    a = Architecture(Mamba(width=int(width)), vocab_size=int(vocab_size), num_layers=int(num_layers))
    write(folder, a, np.ones)
    print(json.dumps({"bytes": (folder / "model.safetensors").stat().st_size}))


def memory(folder: Path) -> None:
    """Seconds that loading takes, and the most memory that it needs beyond what libraries take for themselves."""
    load_pretrained(Path(__file__).parent / "checkpoints" / "mamba-tied")
    before, begun = resident("VmRSS"), time.perf_counter()
    _, variables = load_pretrained(folder)
    seconds = time.perf_counter() - begun
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    print(json.dumps({"extra": resident("VmHWM") - before, "held": held, "seconds": seconds}))


def resident(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


if __name__ == "__main__":
    jobs = {"shards": shards, "make": make, "memory": memory}
    jobs[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
