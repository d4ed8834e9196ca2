"""Training from a teacher's stored 64 largest log probabilities: what it costs in time and on disk, and what it loses.

Python's documentation is cut into tokens of byte-level BPE, a teacher is trained on it and its outputs are written once
(`data teacher`). A student then learns from them, or from the text alone. Both updates read every batch as the training
loop does, shuffled and handed to the device, and take turns on the same machine; times are processor time, of the
reading threads too. The student is that of `lightnet/prepared_text` at preset `cpu`: the smaller it is, the larger the
share of whatever the teacher's outputs cost.

The gradient by the student's logits is compared with that of the live teacher cut to the same entries. Rounding x = log
p to float16 moves it by r = max(2^-11 |x|, 2^-25) at most, and since the mass of all entries is restored, the gradient
of forward KL with a bucket by at most 2 e^(3 max r) sum p r in the L1 norm of a token (`rounding_bound`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.language import BYTES, ModelConfig
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel, Trained

ABOUT = About(
    paper="Sparse teachers (offline log probabilities)",
    source="training from a teacher's stored outputs (ours)",
    minutes={"smoke": 0.05, "cpu": 3},
)
FLOAT32 = 2.0**-16  # two programs compute the same logits, of about 16, in some ten roundings each
LABELS, TEACHER = LOSSES = ("cross-entropy", "cached teacher")


@dataclass(frozen=True)
class Config(results.Config):
    """The rows, the two models and the measurement. A seed decides initial values and order."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One teacher each."""
    source: str = "documentation"
    """Whose text: standard_library or documentation."""
    vocabulary: int = 2048
    """Tokens of byte-level BPE; 256 takes bytes."""
    length: int = 128
    """Tokens per row."""
    shards: int = 4
    """Of the rows; the last one is held out."""
    evaluated: int = 256
    """Most rows of it that the teacher is evaluated on."""
    top_k: int = 64
    """Stored log probabilities of a token."""
    mixer: str = "lightnet+both"
    """Of both models: mixer and positions, joined by +."""
    teacher: ModelConfig = field(default_factory=lambda: ModelConfig(width=128, hidden=256))
    """Its size."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the student."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=100,
            batch_size=8,
            eval_every=100,
            optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine"),
            checkpoint=CheckpointConfig(every=0),
        )
    )
    """The training of the teacher; batch and optimizer are those of the updates that are timed."""
    repeats: int = 20
    """Timed updates."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("vocabulary", self.vocabulary, BYTES)
        require("top_k", self.top_k, 1, self.vocabulary)
        for name, least in (("length", 2), ("shards", 2), ("evaluated", 1), ("repeats", 1)):
            require(name, getattr(self, name), least)
        read_model(self.mixer, "mixer", "causal text")


_TINY = ModelConfig(num_layers=1, width=8, num_heads=1, hidden=16)
PRESETS = {
    "smoke": Config(
        seeds=(0,),
        vocabulary=BYTES,
        length=256,
        evaluated=8,
        top_k=8,
        mixer="softmax+none",
        teacher=_TINY,
        model=_TINY,
        train=TrainConfig(steps=2, batch_size=4, eval_every=2),
        repeats=4,
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/cached-teacher-speed",
        "tokens per second of processor time that a student trains on from stored outputs over those from labels, "
        "reading included",
        "above",
        0.9,
        kind="ours",
    ),
    Claim(
        "distillation/cached-teacher-size",
        "stored outputs on disk, MB per million tokens of the text",
        "below",
        400.0,
        kind="ours",
    ),
    Claim(
        "distillation/cached-teacher-gradient",
        "L1 distance between the gradients by a token's logits from the stored and from the live teacher, over the "
        "bound of the rounding, the largest of all tokens",
        "below",
        1.0,
        kind="control",
    ),
)


def rounding_bound(log_p: np.ndarray) -> np.ndarray:
    """Most that float16 changes the gradient of forward KL with a bucket by a token's logits, in the L1 norm.

    Args:
        log_p: log probabilities before they are rounded (..., K).

    Returns:
        (...).

    Example:
        >>> print(f"{rounding_bound(np.log([0.5, 0.25])):.6f}")
        0.000694
    """
    r = np.maximum(2.0**-11 * np.abs(log_p), 2.0**-25)
    return 2 * np.exp(3 * r.max(-1)) * (np.exp(log_p) * r).sum(-1) + FLOAT32


def run(config: Config, run_dir: Path) -> Result:
    """Prepare the rows; for every seed train a teacher, write its outputs, and compare updates and gradients."""
    from experiments.language_models import load
    from experiments.records.source import Records
    from experiments.records.teacher import TeacherOutputs
    from experiments.records.writing import write
    from experiments.runs import record_data

    folder = _prepared(config, run_dir / "rows")
    rows = Records(folder).manifest
    record_data(run_dir, {rows.name: rows.sha256})
    updates: dict[str, list] = {"loss": [], "seed": [], "cpu_ms": [], "wall_ms": [], "tokens_per_cpu_second": []}
    stored: dict[str, list] = {"seed": [], "held_out": [], "mb_per_million": [], "bytes_in_memory": []}
    compared: dict[str, list] = {"seed": [], "logits": [], "parameters": []}
    for seed in config.seeds:
        place, outputs = run_dir / "teacher" / f"seed{seed}", run_dir / "outputs" / f"seed{seed}"
        nats = _trained(config, folder, place, seed)
        teacher = load(place)
        manifest = write(outputs, TeacherOutputs(teacher, folder, config.top_k), part=(0, 1))
        assert manifest is not None
        size = sum(shard.bytes for shard in manifest.shards) / rows.counts["tokens"]
        memory = sum(array.nbytes for array in Records(outputs, check=False)[0].values()) / config.length
        _append(stored, seed, nats, size, memory)
        for loss, timing in zip(LOSSES, _timings(config, folder, outputs, seed), strict=True):
            speed = 1e3 * config.train.batch_size * config.length / timing.cpu_ms
            _append(updates, loss, seed, timing.cpu_ms, timing.wall_ms, speed)
        _append(compared, seed, *_gradients(config, teacher, folder, outputs, seed))
    speeds = np.array(updates["tokens_per_cpu_second"]).reshape(len(config.seeds), 2)
    return Result(
        {
            "distillation/cached-teacher-speed": (speeds[:, 1] / speeds[:, 0]).tolist(),
            "distillation/cached-teacher-size": stored["mb_per_million"],
            "distillation/cached-teacher-gradient": compared["logits"],
        },
        tables={"updates": updates, "stored outputs": stored, "gradients": compared},
        data={rows.name: rows.sha256},
    )


def _prepared(config: Config, folder: Path) -> Path:
    from experiments import language
    from experiments.records.documents import EmbeddedText
    from experiments.records.tokens import Tokenization, TokenRows
    from experiments.records.writing import write
    from experiments.sources import text

    tokenizer = language.vocabulary(config.vocabulary, getattr(text, config.source)()).tokenizer
    documents, tokenization = EmbeddedText(config.source), Tokenization(tokenizer)
    write(folder, TokenRows(config.source, documents, tokenization, config.length, config.shards), part=(0, 1))
    return folder


def _described(config: Config, size: ModelConfig, folder: Path) -> LanguageModel:
    from experiments.language_models import LanguageModel
    from experiments.records.manifest import read_manifest
    from experiments.records.tokens import prepared_tokenizer

    about = read_manifest(folder).about
    mixer, positions = read_model(config.mixer, "mixer", "causal text")
    return LanguageModel(
        about["vocab_size"],
        mixer=mixer,
        positions=positions,
        num_layers=size.num_layers,
        width=size.width,
        num_heads=size.num_heads,
        hidden=size.hidden,
        length=about["length"],
        tokenizer=prepared_tokenizer(folder, about),
    )


def _trained(config: Config, folder: Path, place: Path, seed: int) -> float:
    """Train a teacher on all shards but the last; nats per token of that one."""
    import grain

    from experiments.packed_language import train_on_rows
    from experiments.records.order import in_training_order, widened
    from experiments.records.source import Records

    *trained, last = range(config.shards)
    data = in_training_order(folder, seed=seed, batch_size=config.train.batch_size, shards=trained, check=False)
    held_out = grain.MapDataset.source(Records(folder, [last], check=False)).map(widened)[: config.evaluated]
    teacher = _described(config, config.teacher, folder)
    outcome = train_on_rows(config.train, teacher, data, held_out, place, seed=seed)
    return float(outcome.evaluation["held_out"][-1])


def _timings(config: Config, folder: Path, outputs: Path, seed: int) -> list[Any]:
    """Of an update from labels and of one from the stored outputs, each with a batch that it reads."""
    from experiments.distillation.cached_task import cached_task
    from experiments.packed_language import packed_task
    from experiments.records.order import in_training_order
    from experiments.scan_benchmark.measure import take_turns
    from experiments.step_time import update_program

    model, size = _described(config, config.model, folder).build(), config.train.batch_size
    calls = []
    with ExitStack() as reading:
        for teacher, task_of in ((None, packed_task), (outputs, cached_task)):
            data = in_training_order(folder, seed=seed, batch_size=size, teacher=teacher, check=False)
            batches = reading.enter_context(_batches(config, data))
            calls.append(update_program(task_of(model, data[:1], 1), config.train.optimizer, batches))
        for (
            call
        ) in calls:  # the first update left its parameters on the batch's mesh: it is compiled once more for that
            call()
        return take_turns(calls, config.repeats)


def _batches(config: Config, data: Any) -> Any:
    """Batches on the device, as the training loop reads them; a context that ends the reading."""
    from contextlib import contextmanager

    from experiments.training.data import DeviceBatches
    from experiments.training.mesh import batch_sharding, make_mesh

    @contextmanager
    def opened() -> Iterator[Iterator[Any]]:
        sharding = batch_sharding(make_mesh(config.train.mesh))
        with closing(DeviceBatches(data, config.train.batch_size, sharding, workers=config.train.workers)) as batches:
            yield iter(batches.__next__, None)

    return opened()


def _gradients(config: Config, teacher: Trained, folder: Path, outputs: Path, seed: int) -> tuple[float, float]:
    """How far the gradients from the stored and the live teacher are apart on one batch.

    Returns:
        By the logits, over the bound, the largest of all tokens; by the parameters, relative to the gradient's norm.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.cached_task import restored
    from experiments.records.order import in_training_order
    from experiments.records.teacher import IDS, LOG_PROBABILITIES, LOG_REST
    from experiments.scan_benchmark.measure import relative_error

    data = in_training_order(folder, seed=seed, batch_size=config.train.batch_size, teacher=outputs, check=False)
    batch = jax.tree.map(lambda *rows: np.stack(rows), *(data[row] for row in range(config.train.batch_size)))
    tokens, segments, ids = batch["tokens"][:, :-1], batch["segment_ids"][:, :-1], batch[IDS].astype(np.int32)
    model = _described(config, config.model, folder).build()
    params = nn.unbox(jax.jit(model.init)(jax.random.key(seed), tokens))

    @jax.jit
    def live(variables: Any) -> jax.Array:
        logits: Any = teacher.model.apply(variables, tokens, segment_ids=segments)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), ids, axis=-1)

    @jax.jit
    def gradients(params: Any, log_p: jax.Array) -> tuple[jax.Array, Any]:
        logits, back = jax.vjp(lambda params: model.apply(params, tokens, segment_ids=segments), params)
        by_logits = jax.grad(lambda s: kd.sparse_divergence("forward_kl", s, ids, log_p, mask=segments > 0).sum())(
            logits
        )
        return by_logits, back(by_logits)[0]

    log_p = live(teacher.variables)
    expected = gradients(params, log_p)
    found = gradients(params, restored(jnp.asarray(batch[LOG_PROBABILITIES]), jnp.asarray(batch[LOG_REST])))
    distance = np.abs(np.asarray(found[0]) - np.asarray(expected[0])).sum(-1)
    by_parameters, by_live = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(each[1])]) for each in (found, expected)
    )
    return float((distance / rounding_bound(np.asarray(log_p, np.float64))).max()), relative_error(
        by_parameters, by_live
    )


def _append(table: dict[str, list], *row: Any) -> None:
    for column, entry in zip(table.values(), row, strict=True):
        column.append(entry)


def plot(result: StoredResult) -> Figure:
    """Processor time of an update, a point per seed; and what is stored."""
    from matplotlib import pyplot as plt

    table, stored = result.tables["updates"], result.tables["stored outputs"]
    figure, axis = plt.subplots(figsize=(6, 2), layout="constrained")
    axis.plot(table["cpu_ms"], [LOSSES.index(loss) for loss in table["loss"]], "o", color="#0072B2")
    axis.set_yticks(range(2), LOSSES)
    axis.set_xlim(left=0)
    axis.margins(y=0.4)
    axis.set_xlabel("processor time of an update, reading included, ms")
    axis.set_title(f"{np.mean(stored['mb_per_million']):.0f} MB per million tokens", fontsize=9)
    return figure
