"""Inference speed of Mamba-130M: its passes against their floors, and against the CPU path of transformers.

A model of the published shape with random weights, one sequence, float32.

- A forward pass has at least its products of matrices: those of the projections of all layers and of the head, in the
  same order and shapes, each of the output of the one before. What the pass takes beyond them is convolution, scan,
  gates and norms.
- A step reads every weight at least once: the floor is one program that sums all of them. The embedding is read too,
  as the head is tied to it.
- `MambaForCausalLM` of transformers without its CUDA kernels, if torch and transformers are installed (extra `parity`),
  given the same weights through a checkpoint, and the same number of threads; its logits must be ours.

Programs take turns within a repetition, of which each seed of the config is one. Ratios are of CPU time, in which two
threads that work count twice and waiting does not, and which another job on the machine disturbs less than wall time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from lightnet.backbone import CausalLM

ABOUT = About(
    paper="Mamba (arXiv 2312.00752)",
    source="the shape of its smallest model (speed: ours)",
    minutes={"smoke": 0.2, "cpu": 5},
)
TOLERANCE = 1e-4  # of logits, in units of the largest: both round in float32 through all layers
FORWARD, PRODUCTS, PEER = "forward", "its matrix products", "transformers"
STEP, READ = "one token", "reading the weights"


@dataclass(frozen=True)
class Config(results.Config):
    """The model, what it reads, and how often that is timed."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    length: int = 512
    """Tokens of the forward pass."""
    layers: int = 24
    """Blocks."""
    width: int = 768
    """Channels."""
    vocabulary: int = 50280
    """Tokens that there are."""
    calls: int = 4
    """Measured calls of a repetition, of which the median counts."""
    steps: int = 12
    """Measured steps of a repetition, of which the median counts."""
    peer: bool = True
    """Whether transformers is measured, if it is installed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("length", "layers", "width", "vocabulary", "calls", "steps"):
            require(name, getattr(self, name), 1)


PRESETS = {
    "smoke": Config(seeds=(0,), length=5, layers=1, width=8, vocabulary=11, calls=1, steps=1, peer=False),
    "cpu": Config(),
}
CLAIMS = (
    Claim(
        "long_memory/mamba-forward-near-products",
        "CPU time of a forward pass of 512 tokens over that of its matrix products alone",
        "below",
        1.6,
        kind="ours",
    ),
    Claim(
        "long_memory/mamba-faster-than-transformers",
        "CPU time of transformers' forward pass of 512 tokens over ours",
        "above",
        5.0,
        kind="ours",
    ),
    Claim(
        "long_memory/mamba-step-near-reading",
        "CPU time of a step over that of reading all weights once",
        "below",
        1.5,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time the passes and the steps in turns, in every repetition."""
    import jax
    from flax import linen as nn

    from experiments.scan_benchmark.measure import take_turns

    model = mamba(config)
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (1, config.length)).astype(np.int32)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens[:, :1]))
    passes = forward_programs(config, model, variables, tokens)
    steps = step_programs(model, variables)
    columns: dict[str, list] = {"program": [], "repetition": [], "cpu_ms": [], "wall_ms": []}
    for seed in config.seeds:
        for programs, calls in ((passes, config.calls), (steps, config.steps)):
            for name, timing in zip(programs, take_turns(list(programs.values()), calls), strict=True):
                row = (name, seed, timing.cpu_ms, timing.wall_ms)
                for column, entry in zip(columns.values(), row, strict=True):
                    column.append(entry)
    size = {
        "parameters": [sum(leaf.size for leaf in jax.tree.leaves(variables))],
        "transformers": [_version() if PEER in passes else "not measured"],
    }
    return Result(measured=_measured(columns), tables={"times": columns, "model": size}, series={})


def mamba(config: Config) -> CausalLM:
    """The model, as it was published for 24 layers of 768 channels."""
    from ssm.mamba import Mamba
    from ssm.models import Architecture, mamba_lm

    return mamba_lm(Architecture(Mamba(width=config.width), config.vocabulary, config.layers))


def forward_programs(
    config: Config, model: CausalLM, variables: Any, tokens: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """What reads a sequence.

    Args:
        config: whether transformers is asked for.
        model: ours.
        variables: of the model.
        tokens: (1, L).

    Returns:
        Programs by name.

    Raises:
        ValueError: transformers has other logits.
    """
    import jax

    forward, products = jax.jit(model.apply), jax.jit(partial(matrix_products, model))
    x = jax.random.normal(jax.random.key(1), (*tokens.shape, model.backbone.width))
    programs: dict[str, Callable[[], Any]] = {
        FORWARD: lambda: jax.block_until_ready(forward(variables, tokens)),
        PRODUCTS: lambda: jax.block_until_ready(products(variables, x)),
    }
    peer = transformers_program(model, variables, tokens) if config.peer else None
    if peer is not None:
        ours, theirs = np.asarray(programs[FORWARD]()), peer()
        if not np.abs(ours - theirs).max() < TOLERANCE * np.abs(ours).max():
            raise ValueError("transformers has other logits of the same weights and tokens")
        programs[PEER] = peer
    return programs


def matrix_products(model: CausalLM, variables: Any, x: jax.Array) -> jax.Array:
    """The products of matrices of a forward pass, and nothing else but sums that make them depend on each other.

    Args:
        model: of Mamba.
        variables: its parameters.
        x: (B, L, D), what the first layer reads.

    Returns:
        (B, L, V).
    """
    import jax.numpy as jnp

    params = variables["params"]
    for layer in range(model.backbone.num_layers):
        mix = params["backbone"][f"blocks_{layer}"]["mix"]
        u, z = jnp.unstack(jnp.einsum("bld,dpe->blpe", x, mix["in_proj"]["kernel"]), axis=2)
        selected = u @ mix["x_proj"]["kernel"]
        rank = mix["dt_proj"]["kernel"].shape[0]
        dt = selected[..., :rank] @ mix["dt_proj"]["kernel"]
        x = (z + dt + selected[..., rank:].sum(axis=-1, keepdims=True)) @ mix["out_proj"]["kernel"]
    return jnp.einsum("bld,vd->blv", x, params["embedding"])


def transformers_program(model: CausalLM, variables: Any, tokens: np.ndarray) -> Callable[[], np.ndarray] | None:
    """The same model in transformers.

    Args:
        model: ours.
        variables: its parameters.
        tokens: (1, L).

    Returns:
        () -> logits (1, L, V), or None where torch or transformers is not installed.
    """
    try:
        import torch
        from transformers import MambaForCausalLM
    except ImportError:
        return None
    from ssm.pretrained import save_pretrained

    with TemporaryDirectory() as folder:
        save_pretrained(folder, model, variables)
        peer = MambaForCausalLM.from_pretrained(folder).eval()
    given = torch.from_numpy(tokens.astype(np.int64))

    def forward() -> np.ndarray:
        with torch.no_grad():
            return peer(given).logits.numpy()

    return forward


def step_programs(model: CausalLM, variables: Any) -> dict[str, Callable[[], Any]]:
    """What reads one token, and what only reads the weights.

    Args:
        model: ours.
        variables: its parameters.

    Returns:
        Programs by name.
    """
    import jax
    import jax.numpy as jnp

    state = model.apply(variables, 1, method="init_state")
    token = np.ones(1, np.int32)
    step = jax.jit(partial(model.apply, method="step"))
    read = jax.jit(lambda variables: [jnp.sum(leaf) for leaf in jax.tree.leaves(variables)])
    return {
        STEP: lambda: jax.block_until_ready(step(variables, token, state)),
        READ: lambda: jax.block_until_ready(read(variables)),
    }


def _version() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def _measured(columns: dict[str, list]) -> dict[str, Any]:
    """Ratios of each repetition."""

    def time(name: str) -> np.ndarray:
        rows = zip(columns["program"], columns["cpu_ms"], strict=True)
        return np.array([cpu for program, cpu in rows if program == name])

    found = {
        "mamba-forward-near-products": time(FORWARD) / time(PRODUCTS),
        "mamba-step-near-reading": time(STEP) / time(READ),
    }
    if PEER in columns["program"]:
        found["mamba-faster-than-transformers"] = time(PEER) / time(FORWARD)
    return {f"long_memory/{id}": values for id, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """CPU time of each program, one point per repetition."""
    from matplotlib import pyplot as plt

    times = result.tables["times"]
    names = list(dict.fromkeys(times["program"]))
    figure, axis = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
    for place, name in enumerate(names):
        found = [cpu for program, cpu in zip(times["program"], times["cpu_ms"], strict=True) if program == name]
        floor = name in (PRODUCTS, READ)
        axis.plot(found, [place] * len(found), "D" if floor else "o", color="#777777" if floor else "#0072B2")
    axis.set_yticks(range(len(names)), names)
    axis.set(xscale="log", xlabel="CPU time, ms (grey: the floor of the one above)")
    axis.invert_yaxis()
    axis.grid(axis="x", which="both", alpha=0.3)
    return figure
