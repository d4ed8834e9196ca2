"""Long context: 131,072 bytes in one row on eight devices, and plans for 1,048,576 on up to 32 chips of v5p.

LightNet and Mamba, two blocks of width 64 each, are trained for three steps on one row of the standard library's
source. Every device has a stretch of the row; blocks are computed again in the backward pass, and the loss goes through
the tokens in chunks, so that the logits of the row never exist. The devices are virtual ones of one process, begun for
each training, whose memory is that of all eight. Of a shorter row, loss and gradients are compared with those of one
device.

The plans are the same update for a longer row, compiled for TPUs that are not here: a chip's temporaries, which are the
activations and what the collectives need, should halve with twice the chips. Without `libtpu` there are no plans.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.errors import UserError
from experiments.language import BYTES, ModelConfig, TextConfig
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, MeshConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel
    from experiments.planning.plan import Plan
    from experiments.training.task import Task

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="linear memory in the length (ours)",
    minutes={"smoke": 0.1, "cpu": 30, "paper": 10},
)
GIB = 2**30


def _recipe(steps: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=1,
        remat="nothing_saveable",
        max_skipped=0,
        eval_every=0,
        optimizer=OptimizerConfig(schedule="constant"),
        checkpoint=CheckpointConfig(every=0),
        mesh=MeshConfig(data=1, sequence=-1),
    )


@dataclass(frozen=True)
class Config(results.Config):
    """The rows, the models, and the devices that share a row."""

    seeds: tuple[int, ...] = (0,)
    """One training of each model per seed; its memory does not depend on it."""
    models: tuple[str, ...] = ("lightnet+both", "mamba+none")
    """Mixers with their positions."""
    virtual_devices: int = 8
    """CPU devices of the process that is begun for a training; 0 trains in this one, on the devices that it has."""
    compared: int = 4096
    """Tokens of the row whose loss and gradients are compared with those of one device, where there are several."""
    token_chunk: int = 2048
    """Tokens of a device whose logits exist at once."""
    planned: int = 2**20
    """Tokens of the rows that are planned for."""
    topologies: tuple[str, ...] = ("v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4")
    """Chips that are planned for, the fewest first."""
    text: TextConfig = field(default_factory=lambda: TextConfig(length=2**17))
    """The text, and the length of a row."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(num_heads=1))
    """Size of both models."""
    train: TrainConfig = field(default_factory=lambda: _recipe(3))
    """The training of both."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        require("virtual_devices", self.virtual_devices, 0)
        for name in ("compared", "token_chunk", "planned"):
            require(name, getattr(self, name), 1)
        for name in self.models:
            read_model(name, "models", "causal text")


PRESETS = {
    "smoke": Config(
        models=("lightnet+none",),
        virtual_devices=0,
        compared=8,
        token_chunk=6,
        topologies=(),
        text=TextConfig(every=64, length=16),
        model=ModelConfig(num_layers=1, width=8, num_heads=1, hidden=8),
        train=_recipe(1),
    ),
    "cpu": Config(),
    "paper": Config(virtual_devices=0, topologies=(), text=TextConfig(every=1, length=2**20)),
}

CLAIMS = (
    Claim(
        "lightnet/long-context-memory",
        "most memory of the process that trains on 131,072 tokens on eight virtual devices, GiB, the larger model's",
        "below",
        16.0,
        kind="ours",
        deterministic=True,
    ),
    Claim(
        "lightnet/long-context-equal",
        "distance of loss and gradients on eight devices from those on one, relative to their norms, the largest",
        "below",
        1e-5,
        kind="control",
        deterministic=True,
    ),
    Claim(
        "lightnet/long-context-plan",
        "a v5p chip's temporaries for 1,048,576 tokens over those with twice the chips, what is farthest from 2",
        "within",
        2.0,
        tolerance=0.2,
        kind="ours",
        deterministic=True,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train, compare and plan."""
    from experiments.training.recording import recorder

    table: dict[str, list] = {name: [] for name in ("model", "seed", "losses", "peak_bytes", "seconds", "error")}
    for name in config.models:
        for seed in config.seeds:
            found = _trained_or_read(config, name, seed, run_dir)
            for column, values in table.items():
                values.append({"model": name, "seed": seed, **found}[column])
    tables = {"trainings": table}
    if config.topologies and recorder() is None:
        tables["plans"] = _plan_all(config, run_dir / "plans")
    return Result(_measured(tables), tables)


def _trained_or_read(config: Config, name: str, seed: int, run_dir: Path) -> dict[str, Any]:
    """Train here, or in a process of its own unless an earlier one of this run has done so."""
    from experiments.files import make_folder, read_json, write_json
    from experiments.training.recording import recorder
    from experiments.virtual_devices import on_virtual_devices

    label = f"{name}-seed{seed}"
    if not config.virtual_devices or recorder() is not None:
        return trained(config, name, seed, run_dir / "training" / label)
    path = make_folder(run_dir / "trainings") / f"{label}.json"
    if not path.exists():
        write_json(path, on_virtual_devices(config.virtual_devices, trained_alone, config, name, seed))
    return read_json(path)


def language_model(config: Config, name: str) -> LanguageModel:
    """One of the models.

    Args:
        config: of its size.
        name: of its mixer and positions.

    Returns:
        Its description.
    """
    from experiments.language_models import LanguageModel

    mixer, positions = read_model(name, "models", "causal text")
    size = config.model
    return LanguageModel(
        BYTES,
        mixer=mixer,
        positions=positions,
        num_layers=size.num_layers,
        width=size.width,
        num_heads=size.num_heads,
        hidden=size.hidden,
    )


def task_of(config: Config, name: str) -> Task:
    """Prediction of the next byte without the logits of all.

    Args:
        config: of the model and the chunks of the loss.
        name: of the model.

    Returns:
        The task, of batches of "tokens" and "next" (B, L).
    """
    import jax.numpy as jnp

    import kd
    from experiments.initial_values import for_narrow_models
    from experiments.training.task import Task
    from lightnet.scan.placement import spread

    model = language_model(config, name).build(remat=config.train.remat)

    def loss(variables: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        # A batch comes with whole rows: from here on each device has its stretch.
        tokens, labels = (spread(batch[column], "B L").astype(jnp.int32) for column in ("tokens", "next"))
        h, W = model.apply(variables, tokens, method="logit_factors")
        return kd.chunked_cross_entropy(h, W, labels, token_chunk=config.token_chunk), {}

    def init(key: Any) -> Any:
        return for_narrow_models(model.init(key, jnp.zeros((1, 8), jnp.int32)), config.model.width)

    return Task(init, loss)


def rows_of(config: Config, seed: int, length: int) -> dict[str, np.ndarray]:
    """Rows of the training part of the text.

    Args:
        config: which text.
        seed: decides what is held out.
        length: of a row.

    Returns:
        "tokens" and "next" (N, L), one byte each.
    """
    text, _ = language.parts(config.text, seed)
    stream = language.vocabulary(BYTES, text).encode(text.documents)
    both = language.rows(stream, length)["tokens"].astype(np.uint8)
    return {"tokens": both[:, :-1], "next": both[:, 1:]}


def trained(config: Config, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train a model on the devices of this process.

    Args:
        config: of model and training.
        name: of the model.
        seed: of initial values, order and text.
        folder: of the training.

    Returns:
        "losses", "seconds" with compiling, "error" against one device or None where there is no other or there are
        several processes, and as "peak_bytes" None: the process may have done other things.
    """
    import jax

    from experiments.language_models import describe
    from experiments.training.loop import train

    describe(folder, language_model(config, name))
    rows = rows_of(config, seed, config.text.length)
    outcome = train(config.train, task_of(config, name), rows, folder, seed=seed, label=folder.name)
    # Of several processes none sees the gradients of all.
    error = distance_of(config, name, seed) if jax.process_count() == 1 < jax.device_count() else None
    losses = np.asarray(outcome.train["loss"], float).tolist()
    return {"losses": losses, "seconds": outcome.seconds, "error": error, "peak_bytes": None}


def trained_alone(config: Config, name: str, seed: int) -> dict[str, Any]:
    """`trained` as all that this process does, from the start even if an earlier run was interrupted.

    Args:
        config: of model and training.
        name: of the model.
        seed: see `trained`.

    Returns:
        The same, with the peak of the process's memory.
    """
    from experiments.virtual_devices import peak_memory

    with TemporaryDirectory() as folder:
        found = trained(config, name, seed, Path(folder) / f"{name}-seed{seed}")
    return {**found, "peak_bytes": peak_memory()}


def distance_of(config: Config, name: str, seed: int) -> float:
    """How far loss and gradients of a shorter row on the mesh are from those on one device.

    Args:
        config: of the model, the mesh and the length of the row.
        name: of the model.
        seed: of the initial values and the text.

    Returns:
        See `experiments.lightnet.equal_on_devices.distance`.
    """
    from experiments.lightnet.equal_on_devices import distance_from_one_device

    rows = rows_of(config, seed, config.compared)
    batch = {column: values[: config.train.batch_size] for column, values in rows.items()}
    return distance_from_one_device(task_of(config, name), batch, config.train.mesh, seed)


def planned(config: Config, name: str, topology: str, folder: Path | None = None) -> Plan:
    """The update of a model for a longer row, on chips that are not here.

    Args:
        config: of the model, its training and the length of the row.
        name: of the model.
        topology: of the chips, all of which share the row.
        folder: of plans that are kept, or None.

    Returns:
        The plan.

    Raises:
        UserError: there is no compiler for them, or the update does not fit.
    """
    from experiments.planning import hardware
    from experiments.planning.plan import plan
    from experiments.planning.trainings import Training, shapes_of

    chips, task = hardware.topology(topology), task_of(config, name)
    row = np.zeros(config.planned, np.uint8)
    training = Training(config.train, task, {"tokens": row, "next": row}, name, shapes_of(task))
    return plan("lightnet/long_context", f"{config.planned} tokens", training, 1, chips, folder)


def _plan_all(config: Config, folder: Path) -> dict[str, list]:
    """A row per model and topology; none where there is no compiler, which is said."""
    from experiments.planning import hardware

    columns = ("model", "topology", "chips", "temporaries", "arguments", "needed", "compile_seconds")
    table: dict[str, list] = {name: [] for name in columns}
    try:
        hardware.topology(config.topologies[0])
    except UserError as error:
        print(f"lightnet/long_context: nothing is planned, and its claim not tested: {error}", file=sys.stderr)
        return table
    for name in config.models:
        for topology in config.topologies:
            found = planned(config, name, topology, folder)
            memory = [found.memory[kind] for kind in ("temporaries", "arguments", "needed")]
            row = (name, topology, found.chips, *memory, found.compile_seconds)
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
    return table


def ratios(plans: dict[str, list]) -> list[float]:
    """Temporaries of a chip over those with twice the chips: exactly 2 where they fall as 1 / chips.

    Args:
        plans: a row per model and topology, with the columns "model", "chips" and "temporaries".

    Returns:
        One per model and two topologies beside each other, scaled to twice where they differ by another factor.

    Example:
        >>> ratios({"model": ["a", "a", "b"], "chips": [2, 4, 2], "temporaries": [30, 20, 5]})
        [1.5]
    """
    rows = list(zip(plans["model"], plans["chips"], plans["temporaries"], strict=True))
    beside = [(few, many) for few, many in pairwise(rows) if few[0] == many[0]]
    return [2 * (few[1] * few[2]) / (many[1] * many[2]) for few, many in beside]


def _measured(tables: dict[str, dict[str, list]]) -> dict[str, Any]:
    measured = {}
    peaks, errors = ([x for x in tables["trainings"][name] if x is not None] for name in ("peak_bytes", "error"))
    if peaks:
        measured["lightnet/long-context-memory"] = [max(peaks) / GIB]
    if errors:
        measured["lightnet/long-context-equal"] = [max(errors)]
    if found := ratios(tables["plans"]) if "plans" in tables else []:
        measured["lightnet/long-context-plan"] = [max(found, key=lambda ratio: abs(ratio - 2))]
    return measured


def plot(result: StoredResult) -> Figure:
    """Losses of the steps, and temporaries of a chip against the number of chips, with lines that fall as 1 / chips."""
    from matplotlib import pyplot as plt

    trainings = result.tables["trainings"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, losses in zip(trainings["model"], trainings["losses"], strict=True):
        axes[0].plot(range(1, len(losses) + 1), losses, "o-", markersize=4, label=name)
    tokens = result.config["text"]["length"]
    axes[0].set(xlabel="step", ylabel="loss before it, nats per byte", title=f"{tokens:,} bytes in a row")
    axes[0].legend()
    plans = {name: np.array(column) for name, column in result.tables.get("plans", {}).items()}
    for name in dict.fromkeys(plans.get("model", ())):
        chips, size = (plans[column][plans["model"] == name] for column in ("chips", "temporaries"))
        (line,) = axes[1].loglog(chips, size / GIB, "o", label=name)
        axes[1].loglog(chips, size[0] / GIB * chips[0] / chips, "--", color=line.get_color(), linewidth=1)
    axes[1].set(xlabel="chips (v5p)", ylabel="temporaries of a chip, GiB", title=f"{result.config['planned']:,} bytes")
    return figure
