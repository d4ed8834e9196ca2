"""Language models that teach each other: Mamba a smaller LightNet, and back, on the standard library's sources.

A teacher learns next tokens. Three smaller students of another kind then see the same rows in the same
order: one learns next tokens too, one the teacher's distributions on the text, and one learns these on half of its rows
from continuations that it draws itself (GKD, arXiv 2306.13649). All are evaluated on held-out text, and the KL to the
teacher is taken along each student's own continuations of it, which is where a student generates.

A teacher may be the folder of a trained model: a run or an export of this project, or a Mamba, Mamba-2 or LightNet in
the layouts of others. The tokens are then its own.

    python -m experiments run distillation/text_pairs --config.teachers FOLDER --config.students lightnet+both
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.distillation.sequence_config import SequenceDistillation
from experiments.language import BYTES, ModelConfig, TextConfig
from experiments.mixers import read_model
from experiments.registry import unknown
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel, Trained

ABOUT = About(
    paper="Generalised knowledge distillation (arXiv 2306.13649)",
    source="main claims, between recurrent language models (ours)",
    minutes={"smoke": 0.2, "cpu": 21, "gpu": 40},
)
LABELS, TEXT, OWN = "labels", "teacher on text", "teacher on own"
KINDS = (LABELS, TEXT, OWN)
PAIRS = (("mamba+none", "lightnet+both"), ("lightnet+both", "mamba+none"))
MEASURED_ROWS = 32  # continuations along which the KL is taken


def _recipe(steps: int, rate: float = 4e-3, batch_size: int = 16) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        eval_every=steps,
        optimizer=OptimizerConfig(learning_rate=rate, schedule="cosine"),
        checkpoint=CheckpointConfig(every=0),
    )


@dataclass(frozen=True)
class Config(results.Config):
    """The pairs, the text and the trainings. A seed decides initial values, order and held-out files."""

    teachers: tuple[str, ...] = tuple(teacher for teacher, _ in PAIRS)
    """Mixer and positions of each teacher, joined by +; or the folder of a trained model."""
    students: tuple[str, ...] = tuple(student for _, student in PAIRS)
    """Mixer and positions of the student of each teacher."""
    learns: tuple[str, ...] = KINDS
    """What the students learn: "labels", "teacher on text", "teacher on own"."""
    vocabulary: int = BYTES
    """Tokens of the teachers that are trained here: 256 are the bytes, more are byte-level BPE."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text."""
    teacher_model: ModelConfig = field(default_factory=lambda: ModelConfig(2, 64, 2, 128))
    """Size of the teachers."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(1, 48, 2, 96))
    """Size of the students."""
    distillation: SequenceDistillation = field(default_factory=lambda: SequenceDistillation(on_policy_fraction=0.5))
    """The objective; the student that never draws has no rows of its own."""
    teacher_train: TrainConfig = field(default_factory=lambda: _recipe(400))
    """The training of the teachers."""
    train: TrainConfig = field(default_factory=lambda: _recipe(300))
    """The training of the students."""
    calls: int = 20
    """Updates that are timed of each kind; 0 times none."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        if len(self.teachers) != len(self.students):
            raise ValueError(f"students: got {len(self.students)} for {len(self.teachers)} teachers, expected as many")
        for name, models in (("teachers", self.teachers), ("students", self.students)):
            for model in models:
                if name == "students" or not is_folder(model):
                    read_model(model, name, "causal text")
        for kind in self.learns:
            if kind not in KINDS:
                raise ValueError(f"learns: {unknown('kind', kind, KINDS)}")
        require("vocabulary", self.vocabulary, BYTES)
        require("calls", self.calls, 0)
        require("train.eval_every", self.train.eval_every, 1)
        self.distillation.check_rows(self.train.batch_size, self.text.length + 1)


def is_folder(teacher: str) -> bool:
    """Whether a teacher is a folder, and not mixer and positions.

    Example:
        >>> is_folder("mamba+none"), is_folder("checkpoints/mamba-130m"), is_folder("./c++")
        (False, True, True)
    """
    return "+" not in teacher or "/" in teacher


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        teachers=("linear+none",),
        students=("linear+none",),
        learns=(OWN,),
        text=TextConfig(every=100, folds=4, length=12),
        teacher_model=ModelConfig(1, 8, 1, 16),
        model=ModelConfig(1, 8, 1, 8),
        distillation=SequenceDistillation(on_policy_fraction=0.5, prompt=4),
        teacher_train=_recipe(2, batch_size=4),
        train=_recipe(2, batch_size=4),
        calls=0,
    ),
    "cpu": Config(),
    # Teachers of 28 M parameters on 13 M tokens, as the causal language models are at this preset.
    "gpu": Config(
        vocabulary=16_384,
        text=TextConfig(every=1, folds=20, length=1024),
        teacher_model=ModelConfig(6, 512, 8, 1408),
        model=ModelConfig(3, 256, 4, 704),
        distillation=SequenceDistillation(on_policy_fraction=0.5, prompt=128),
        teacher_train=replace(_recipe(800, 2e-3), precision="bfloat16"),
        train=replace(_recipe(800, 2e-3), precision="bfloat16"),
    ),
}

CLAIMS = (
    *(
        Claim(
            f"distillation/pair-{teacher}-to-{student}",
            f"held-out loss of a {student} student that learns next tokens minus that of one that learns the "
            f"distributions of a {teacher} teacher on the same text, nats per byte",
            "above",
            0.0,
            kind="ours",
        )
        for teacher, student in (("mamba", "lightnet"), ("lightnet", "mamba"))
    ),
    Claim(
        "distillation/pair-own-samples",
        "KL(student || teacher) along the student's own continuations: the student taught on text minus the one taught "
        "on its own samples too, nats per token, the smaller of both pairs",
        "above",
        0.0,
    ),
    Claim(
        "distillation/on-policy-throughput",
        "tokens per second of updates on the student's own samples alone over those on text, teacher included in both, "
        "from CPU time, the smaller of both pairs",
        "above",
        0.5,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every teacher and its three students with every seed, then time the updates."""
    from experiments.runs import record_data

    texts = {seed: language.parts(config.text, seed) for seed in config.seeds}
    data = {f"training text, seed {seed}": train.sha256 for seed, (train, _) in texts.items()}
    record_data(run_dir, data)
    columns = ("teacher", "student", "seed", "learns", "parameters", "loss", "divergence")
    table: dict[str, list] = {name: [] for name in columns}
    speeds: dict[str, list] = {name: [] for name in ("teacher", "student", "seed", "ratio, half own", "ratio, all own")}
    for teacher, student in zip(config.teachers, config.students, strict=True):
        for seed in config.seeds:
            pair = _Pair(config, teacher, student, seed, texts[seed], run_dir)
            for row in pair.rows():
                _append(table, teacher, student, seed, *row)
            if config.calls:
                _append(speeds, teacher, student, seed, *pair.ratios())
    return Result(_measured(config, table, speeds), tables={"models": table, "updates": speeds}, series={}, data=data)


class _Pair:
    """A teacher with a seed, and its students."""

    def __init__(self, config: Config, teacher: str, student: str, seed: int, texts: Any, run_dir: Path) -> None:
        self.config, self.seed, self.folder = config, seed, run_dir / "training"
        self.label = f"{Path(teacher).name}-to-{student}"
        self.texts = texts
        self.teacher = self._loaded(teacher) if is_folder(teacher) else self._trained(teacher)
        described = self.teacher.language_model
        self._read(language.of_tokenizer(described.tokenizer, described.vocab_size))
        self.student = _described(student, "students", config.model, self.vocabulary, config.text.length)

    def _read(self, vocabulary: language.Vocabulary) -> None:
        self.vocabulary = vocabulary
        streams = [vocabulary.encode(text.documents) for text in self.texts]
        self.train_rows, self.held_out = (language.rows(stream, self.config.text.length) for stream in streams)

    def _loaded(self, folder: str) -> Trained:
        from experiments.language_models import load

        return load(folder)

    def _trained(self, name: str) -> Trained:
        from experiments.language_models import Trained

        config = self.config
        self._read(language.vocabulary(config.vocabulary, self.texts[0]))
        model = _described(name, "teachers", config.teacher_model, self.vocabulary, config.text.length)
        outcome = language.train_language_model(
            config.teacher_train,
            model,
            self.train_rows,
            {"held_out": self.held_out},
            self.vocabulary.lengths,
            self.folder / f"{name}-seed{self.seed}",
            seed=self.seed,
        )
        return Trained(model, model.build(), outcome.params)

    def rows(self) -> list[tuple[str, int, float, float]]:
        """What each model learns from, its parameters, held-out loss and divergence from the teacher."""
        taught = language.next_token_task(
            self.teacher.model, {"held_out": self.held_out}, self.vocabulary.lengths, 4 * self.config.train.batch_size
        )
        assert taught.evaluate is not None
        found = [("the teacher", _size(self.teacher), float(taught.evaluate(self.teacher.variables)["held_out"]), 0.0)]
        for kind in self.config.learns:
            params, loss = self._student(kind)
            found.append((kind, language.count_parameters(self.student.build()), loss, self._divergence(params)))
        return found

    def _student(self, kind: str) -> tuple[Any, float]:
        """Variables and held-out loss of a student."""
        from experiments.initial_values import for_narrow_models
        from experiments.language_models import describe
        from experiments.training.loop import train

        folder = self.folder / f"{self.label}-{kind.replace(' ', '-')}-seed{self.seed}"
        task = self.task(objective(self.config.distillation, kind), self.config.train.batch_size)
        created = task.init

        def init(key: Any) -> Any:
            variables = created(key)
            return {**variables, "params": for_narrow_models(variables["params"], self.student.width)}

        describe(folder, self.student)
        outcome = train(
            self.config.train, replace(task, init=init), self.train_rows, folder, seed=self.seed, label=folder.name
        )
        return {"params": outcome.params["params"]}, float(outcome.evaluation["held_out"][-1])

    def task(self, config: SequenceDistillation, batch_size: int) -> Any:
        """The training of a student."""
        from experiments.distillation.sequence_task import sequence_task

        held_out = {"held_out": self.held_out}
        return sequence_task(self.student, self.teacher, config, held_out, self.vocabulary.lengths, batch_size)

    def _divergence(self, params: Any) -> float:
        from experiments.distillation.sequence_task import divergence_of_own
        from experiments.training.update import random_stream

        rows, key = self.held_out["tokens"][:MEASURED_ROWS], random_stream(self.seed, "continuations")
        return divergence_of_own(self.student, params, self.teacher, rows, self.config.distillation, key)

    def ratios(self) -> tuple[float, float]:
        """Tokens per second with half and with all rows the student's own, over those on text."""
        from experiments.scan_benchmark.measure import take_turns
        from experiments.step_time import update_program

        size = self.config.train.batch_size
        batch = {"tokens": self.train_rows["tokens"][:size]}
        settings = [replace(self.config.distillation, on_policy_fraction=x) for x in (0.0, 0.5, 1.0)]
        tasks = [self.task(each, size) for each in settings]
        programs = [update_program(task, self.config.train.optimizer, batch) for task in tasks]
        text, half, own = (found.cpu_ms for found in take_turns(programs, self.config.calls))
        return text / half, text / own


def objective(config: SequenceDistillation, kind: str) -> SequenceDistillation:
    """What one of the three students learns.

    Args:
        config: of the student that draws.
        kind: one of KINDS.

    Returns:
        Its objective.

    Example:
        >>> objective(SequenceDistillation(on_policy_fraction=0.5), LABELS).label_weight
        1.0
    """
    if kind == OWN:
        return config
    return replace(config, on_policy_fraction=0.0, label_weight=1.0 if kind == LABELS else config.label_weight)


def _described(name: str, field: str, size: ModelConfig, vocabulary: language.Vocabulary, length: int) -> LanguageModel:
    from experiments.language_models import LanguageModel

    mixer, positions = read_model(name, field, "causal text")
    return LanguageModel(
        len(vocabulary.lengths),
        mixer=mixer,
        positions=positions,
        num_layers=size.num_layers,
        width=size.width,
        num_heads=size.num_heads,
        hidden=size.hidden,
        length=length,
        tokenizer=vocabulary.tokenizer,
    )


def _size(trained: Trained) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"]))


def _append(table: dict[str, list], *row: Any) -> None:
    for column, entry in zip(table.values(), row, strict=True):
        column.append(entry)


def _measured(config: Config, table: dict[str, list], speeds: dict[str, list]) -> dict[str, Any]:
    """The claims whose pairs were trained, one value per seed."""

    def column(pair: tuple[str, str], name: str, learns: str) -> np.ndarray:
        rows = zip(table["teacher"], table["student"], table["learns"], table[name], strict=True)
        return np.array([value for *of, kind, value in rows if (*of, kind) == (*pair, learns)])

    measured: dict[str, Any] = {}
    pairs = list(dict.fromkeys(zip(config.teachers, config.students, strict=True)))
    if {LABELS, TEXT} <= set(config.learns):
        for pair in set(pairs) & set(PAIRS):
            teacher, student = (name.partition("+")[0] for name in pair)
            gain = column(pair, "loss", LABELS) - column(pair, "loss", TEXT)
            measured[f"distillation/pair-{teacher}-to-{student}"] = gain
    if {TEXT, OWN} <= set(config.learns):
        gains = [column(pair, "divergence", TEXT) - column(pair, "divergence", OWN) for pair in pairs]
        measured["distillation/pair-own-samples"] = np.minimum.reduce(gains)
    if config.calls:
        ratios = np.reshape(speeds["ratio, all own"], (len(config.teachers), -1))
        measured["distillation/on-policy-throughput"] = ratios.min(axis=0)
    return measured


def plot(result: StoredResult) -> Figure:
    """Held-out loss and divergence of every model, one point per seed, a row per model and a column per measure."""
    from matplotlib import pyplot as plt

    table = result.tables["models"]
    columns = (table[name] for name in ("teacher", "student", "learns"))
    names = [f"{of} to {to}: {kind}" for of, to, kind in zip(*columns, strict=True)]
    order = list(dict.fromkeys(names))
    figure, axes = plt.subplots(1, 2, figsize=(9, 1 + 0.35 * len(order)), sharey=True, layout="constrained")
    labels = {"loss": "held-out loss, nats per byte", "divergence": "KL(student || teacher) on own samples, nats"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        axis.plot(table[name], [order.index(each) for each in names], "o", color="#0072B2", markersize=4, alpha=0.6)
        axis.set_xlabel(label)
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    return figure
