"""ImageNet-1k classified: LightNet against softmax attention and four multiplicative scans, by one recipe.

Only the published setting is here, 300 epochs at 224 x 224 pixels with patches of 16, and **it has not been run**:
tests run two steps of it, with fewer blocks, on generated pictures that TFDS reads as ImageNet.
`lightnet/classification` is the same comparison on digits. The data must be prepared first, see
`experiments.sources.imagenet`.

The recipe is that of the same group's HGRN2, which LightNet very probably reuses; unconfirmed, as the sizes are. What
differs from it: a learning rate from 0 and to 0 (1e-6 and 1e-5 there), examples that do not fill a batch are carried
into the next epoch, and one bit is left where posterising would leave none. It is the recipe of the size tiny; that of
small is

    --config.size small --config.train.batch_size 2048 --config.train.steps 187671
    --config.train.optimizer.learning_rate 3e-3 --config.train.optimizer.weight_decay 0.1
    --config.train.optimizer.warmup 0.0333

No number of the paper is known. "Similar" is taken to be at most one point of accuracy below the better of the two
others; the margin is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import results
from experiments.mixers import mixer, positions, read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from experiments.training.task import Task

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="Table 1, probably (known from a review only)",
    # A guess: nine trainings, limited by 32 processes that take 5 ms for a picture; 2.4 were measured for a small file.
    minutes={"paper": 9000},
)
IMAGE, PATCH = (224, 224), (16, 16)
LIGHTNET, SOFTMAX, SCANS = MODELS = ("lightnet+both", "softmax+learned", "multiplicative-4+lrpe")
EPOCH = 1_281_167


@dataclass(frozen=True)
class AugmentationConfig:
    """What is drawn for every picture, and for every batch."""

    operations: int = 2
    """Operations of RandAugment per picture."""
    probability: float = 0.5
    """Of each of them."""
    magnitude: float = 9.0
    """Mean magnitude, of 10."""
    deviation: float = 0.5
    """Standard deviation of the magnitude."""
    erasing: float = 0.25
    """Probability that a rectangle of a picture is erased."""
    mixup: float = 0.8
    """Parameter of mixup's Beta distribution; 0 has none."""
    cutmix: float = 1.0
    """Parameter of CutMix's Beta distribution; 0 has none. A coin decides between the two."""
    smoothing: float = 0.1
    """Probability of the labels that is spread over all classes."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("operations", "deviation", "mixup", "cutmix"):
            require(f"augmentation.{name}", getattr(self, name), 0)
        for name in ("probability", "erasing"):
            require(f"augmentation.{name}", getattr(self, name), 0, 1)
        require("augmentation.magnitude", self.magnitude, 0, 10)
        require("augmentation.smoothing", self.smoothing, 0, below=1)


@dataclass(frozen=True)
class Config(results.Config):
    """The models, the data and the training."""

    models: tuple[str, ...] = MODELS
    """Mixer and positions, joined by +."""
    size: Literal["tiny", "small"] = "tiny"
    """Width and heads, see `lightnet.models.CLASSIFIERS`."""
    num_layers: int = 12
    """Blocks."""
    scan_layers: bool = False
    """Compile one block and loop over all; takes more memory and traffic where blocks are not computed again."""
    drop_path: float = 0.1
    """Rate at which branches of the last block are dropped; it grows from 0 with depth."""
    data_dir: str = ""
    """Where TFDS's data sets are prepared; empty: its default, ~/tensorflow_datasets."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes of pictures and labels in training."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=round(300 * EPOCH / 1024),
            batch_size=1024,
            precision="bfloat16",
            eval_every=round(10 * EPOCH / 1024),
            workers=32,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, schedule="cosine", warmup=20 / 300, b2=0.999, weight_decay=0.05, clip_norm=5.0
            ),
            checkpoint=CheckpointConfig(every=1000),
        )
    )
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("num_layers", self.num_layers, 1)
        require("drop_path", self.drop_path, 0, below=1)
        require("train.eval_every", self.train.eval_every, 1)
        for model in self.models:
            read_model(model, "models", "pictures")


PRESETS = {"paper": Config()}

CLAIMS = (
    Claim(
        "lightnet/Table1-imagenet",
        "top-1 accuracy on the validation part: LightNet with both encodings minus the better of softmax attention and "
        "four multiplicative scans, percentage points",
        "above",
        -1.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    import grain

    from experiments.runs import record_data
    from experiments.sources.imagenet import NAME, load_imagenet
    from experiments.training.data import data_hash

    parts = {split: load_imagenet(split, config.data_dir or None) for split in ("train", "validation")}
    data = {f"{NAME} {split}, a sample": data_hash(grain.MapDataset.source(part)) for split, part in parts.items()}
    record_data(run_dir, data)
    table: dict[str, list] = {"model": [], "seed": [], "accuracy": [], "parameters": []}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in config.models}
    for name in config.models:
        for seed in config.seeds:
            outcome = _train(config, name, parts, run_dir, seed)
            curves[name].append(outcome.evaluation["accuracy"])
            row = (name, seed, float(outcome.evaluation["accuracy"][-1]), _parameters(outcome.params))
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
            step = outcome.evaluation["step"]
    series = {name: {"step": step, "accuracy": np.stack(found)} for name, found in curves.items()}
    return Result(measured=_measured(table), tables={"accuracy": table}, series=series, data=data)


def model_of(config: Config, name: str) -> Any:
    """The classifier of a name.

    Args:
        config: its size.
        name: mixer and positions, joined by +.

    Returns:
        The module, called with (B, 224, 224, 3).
    """
    from experiments.sources.imagenet import CLASSES
    from lightnet.models import CLASSIFIERS, classifier

    kind, encoding = read_model(name, "models", "pictures")
    return classifier(
        replace(CLASSIFIERS[config.size], num_layers=config.num_layers),
        IMAGE,
        PATCH,
        CLASSES,
        mixer=mixer(kind, causal=False),
        remat=config.train.remat,
        drop_path=config.drop_path,
        scan_layers=config.scan_layers,
        **positions(encoding),
    )


def _train(config: Config, name: str, parts: dict[str, Any], run_dir: Path, seed: int) -> Any:
    from experiments.sources.imagenet import Augmentation, training_examples
    from experiments.training.loop import train

    drawn = config.augmentation
    augment = Augmentation(IMAGE[0], drawn.operations, drawn.probability, drawn.magnitude, drawn.deviation)
    stream = training_examples(parts["train"], augment, seed=seed)
    task = classification_task(config, model_of(config, name), parts["validation"])
    label = f"{name}, seed {seed}"
    return train(config.train, task, stream, run_dir / "training" / f"{name}-seed{seed}", seed=seed, label=label)


def classification_task(config: Config, model: Any, validation_part: Any) -> Task:
    """Cross-entropy on erased and mixed pictures; accuracy, in %, on the middle of those that are held out.

    Args:
        config: the augmentation, the precision and the batch size.
        model: of `model_of`.
        validation_part: source of examples.

    Returns:
        The task.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.sources.imagenet import evaluation_examples, standardised
    from experiments.training.task import Task
    from experiments.training.validation import validation

    def loss(variables: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
        augmenting, dropping = jax.random.split(key)
        images, targets = training_batch(config.augmentation, batch, augmenting)
        logits = model.apply(variables, images.astype(config.train.precision), rngs={"dropout": dropping})
        return optax.softmax_cross_entropy(logits, targets).mean(), {}

    def metrics(variables: Any, batch: Any) -> dict[str, jax.Array]:
        right = model.apply(variables, standardised(batch["image"])).argmax(axis=-1) == batch["label"]
        return {"accuracy": 100.0 * right}

    held_out = validation(metrics, evaluation_examples(validation_part, IMAGE[0]), config.train.batch_size)
    return Task(init=lambda key: model.init(key, jnp.zeros((1, *IMAGE, 3))), loss=loss, evaluate=held_out)


def training_batch(config: AugmentationConfig, batch: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the model sees of a batch: standardised, erased and mixed pictures, and their smoothed and mixed labels.

    Args:
        config: how much.
        batch: "image" (B, 224, 224, 3) uint8 and "label" (B,).
        key: random key.

    Returns:
        Float32 pictures (B, 224, 224, 3) and probabilities (B, 1000).
    """
    import jax
    import optax

    from experiments.sources.imagenet import CLASSES, standardised
    from experiments.sources.mixing import erased, mixed

    erasing, mixing = jax.random.split(key)
    images = erased(standardised(batch["image"]), erasing, config.erasing)
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], CLASSES), config.smoothing)
    return mixed(images, targets, mixing, mixup=config.mixup, cutmix=config.cutmix)


def _parameters(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _measured(table: dict[str, list]) -> dict[str, Any]:
    """The claim, if all of its models were trained: one value per seed."""
    rows = list(zip(table["model"], table["accuracy"], strict=True))
    lightnet, *others = (np.array([accuracy for name, accuracy in rows if name == model]) for model in MODELS)
    if not (len(lightnet) and all(map(len, others))):
        return {}
    return {"lightnet/Table1-imagenet": lightnet - np.maximum(*others)}


def plot(result: StoredResult) -> Figure:
    """Accuracy over the training: a line per seed, a style per model."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    styles = (("#D55E00", "-"), ("#0072B2", "--"), ("black", ":"), ("#009E73", "-."))
    for number, (name, curve) in enumerate(result.series.items()):
        colour, style = styles[number % len(styles)]
        for seed, accuracy in enumerate(curve["accuracy"]):
            axis.plot(curve["step"], accuracy, style, color=colour, label=None if seed else name)
    axis.set(xlabel="updates", ylabel="top-1 accuracy on the validation part, %")
    axis.legend()
    axis.grid(color="0.9")
    return figure
