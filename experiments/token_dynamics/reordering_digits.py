"""Reordering tokens by a learned importance, on digits as sequences of 64 pixels.

The authors sort the tokens of some Mamba layers of MambaVision by importance with SoftSort, and report a better
accuracy on ImageNet. Their code leaves the gate in the old order and never undoes the sort, so that what a token gets
is added to another one; and at its temperature of 1 SoftSort takes averages more than it sorts. Four forms are compared
on scikit-learn's digits, one pixel per token, the 8 rows one behind the other:

| variant | order of the recurrence | gate | what comes out |
|---|---|---|---|
| none | as read | as read | as read |
| released | SoftSort by importance | as read | stays sorted |
| mended | SoftSort by importance | sorted too | brought back by the transpose |
| random | SoftSort by normal scores of the places, one draw per seed | sorted too | brought back by the transpose |

All are two blocks of RMSNorm and Mamba's mixer, which all reorder, and the mean over all pixels at the end. Nothing
tells the models where a pixel is but the order. Initial values are for narrow models, see `experiments.initial_values`.
The recipe was chosen on variant "none" with 300 images split off the training part and a seed that is not reported. The
test images are the same for all seeds; what counts is their accuracy at the end, and that during the training, which
the figure shows, is not used for anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.digit_classification import CLASSES, accuracies, pixels, smoothed_loss, standardised_parts
from experiments.results import About, Claim, Result, StoredResult
from experiments.token_dynamics.scenarios import check_variants
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.sources.digits import Digits
    from experiments.training.loop import Outcome

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="ImageNet table (a small analogue), refinement 2",
    minutes={"smoke": 0.3, "cpu": 15, "gpu": 20},
)
NONE, RELEASED, MENDED, RANDOM = "none", "released", "mended", "random"
_BACK_AND_FORTH = {"permute_gate": True, "unsort": True}
VARIANTS: Mapping[str, Mapping[str, Any] | None] = {
    NONE: None,
    RELEASED: {},
    MENDED: _BACK_AND_FORTH,
    RANDOM: _BACK_AND_FORTH,
}
COLOURS = {NONE: "#000000", RELEASED: "#D55E00", MENDED: "#0072B2", RANDOM: "#999999"}


def _recipe(steps: int, eval_every: int, rate: float = 1.6e-2) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=32,
        eval_every=eval_every,
        optimizer=OptimizerConfig(learning_rate=rate, schedule="cosine", warmup=0.05, ssm_rate=0.5, weight_decay=0.1),
        checkpoint=CheckpointConfig(every=0),
    )


@dataclass(frozen=True)
class Config(results.Config):
    """The variants, the size of the models and their training."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each: of the initial values, the order of the images and the random order."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Names of VARIANTS."""
    tau: float = 1.0
    """Temperature of SoftSort."""
    test_images: int = 500
    """Images held out, the same for all seeds."""
    width: int = 32
    """Channels."""
    layers: int = 2
    """Blocks."""
    states: int = 16
    """States of each inner channel."""
    shift: int = 1
    """Most pixels by which an image is shifted in training, along each axis."""
    smoothing: float = 0.1
    """Probability of the labels that is spread over all classes in training."""
    at_once: int = 1
    """Seeds that are computed at the same time; one after the other is fastest on a CPU."""
    train: TrainConfig = field(default_factory=lambda: _recipe(1200, 100))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        for name in ("width", "layers", "states", "at_once"):
            require(name, getattr(self, name), 1)
        require("tau", self.tau, 1e-6)
        require("test_images", self.test_images, 1, 1796)
        require("shift", self.shift, 0, 4)
        require("smoothing", self.smoothing, 0, below=1)
        require("train.eval_every", self.train.eval_every, 1)
        check_variants(self.variants, VARIANTS)


PRESETS = {
    "smoke": Config(
        seeds=(0,), variants=(RELEASED, RANDOM), test_images=50, width=8, layers=1, states=3, train=_recipe(4, 4)
    ),
    "cpu": Config(),
    # 0.9 M parameters and twenty trainings of 3000 updates. 64 tokens of a row depend on each other, so that what takes
    # the time is the number of operations and not their size: 20 ms an update is a guess, and all seeds but those of
    # the random order are computed together.
    "gpu": Config(width=128, layers=8, at_once=5, train=_recipe(3000, 300, rate=2e-3)),
}

CLAIMS = (
    Claim(
        "token_dynamics/abstract-reordering-helps",
        "test accuracy with tokens reordered as in the released code minus that without, percentage points",
        "above",
        0.0,
    ),
    # Five test images of 500: about the deviation of one seed in an earlier trial.
    Claim(
        "token_dynamics/reordering-digits",
        "test accuracy with tokens reordered as in the released code minus that without, percentage points",
        "within",
        0.0,
        tolerance=1.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/reordering-digits-mended",
        "test accuracy with gate and output put in order minus that of the released form, percentage points",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/reordering-digits-importance",
        "mended form: test accuracy with learned importance minus that with random scores, percentage points",
        "above",
        0.0,
        kind="ours",
    ),
    # Below a half, a token is made of others more than of the one that the sort puts there.
    Claim(
        "token_dynamics/softsort-averages",
        "trained released models: the largest weight in a row of SoftSort, mean over rows, test images and blocks",
        "below",
        0.5,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every variant with every seed."""
    from experiments.runs import record_data
    from experiments.training.together import number_of_parameters, one_of

    train, test, sha256 = standardised_parts(config.test_images)
    data = {"digits": sha256}
    record_data(run_dir, data)
    table: dict[str, list] = {"variant": [], "seed": [], "accuracy": [], "parameters": [], "largest weight": []}
    table |= {"smallest column sum": [], "largest column sum": []}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in config.variants}
    for name in config.variants:
        for seeds in [(seed,) for seed in config.seeds] if name == RANDOM else [config.seeds]:
            outcome = train_variant(config, name, seeds, train, test, run_dir)
            for number, seed in enumerate(seeds):
                curves[name].append(outcome.evaluation[f"accuracy {seed}"])
                row = (name, seed, float(curves[name][-1][-1]), number_of_parameters(outcome.params, len(seeds)))
                sums = _softsort(model_of(config, name, seed), one_of(outcome.params, number), test)
                for column, entry in zip(table.values(), row + sums, strict=True):
                    column.append(entry)
    series = {"accuracy": {"updates": np.asarray(outcome.evaluation["step"])}}
    series["accuracy"] |= {name: np.stack(found) for name, found in curves.items()}
    return Result(measured=_measured(table), tables={"accuracy": table}, series=series, data=data)


def model_of(config: Config, name: str, seed: int) -> Any:
    """The classifier of sequences of a variant.

    Args:
        config: its size.
        name: of the variant.
        seed: of the random order, where there is one.

    Returns:
        The module, called with sequences (B, 64, 2).
    """
    from lightnet.backbone import Backbone
    from lightnet.heads import Classifier
    from lightnet.models import RMS_NORM
    from ssm import RefinedMamba, TokenOrder

    flags, order = VARIANTS[name], None
    if flags is not None:
        order = TokenOrder(tau=config.tau, random=seed if name == RANDOM else None, **flags)
    mixer = partial(RefinedMamba, state_size=config.states, order=order)
    backbone = Backbone(mixer, config.layers, config.width, mlp_ratio=0, norm=RMS_NORM, remat=config.train.remat)
    return Classifier(backbone, CLASSES, patch=(1,))


def train_variant(
    config: Config, name: str, seeds: tuple[int, ...], train: Digits, test: Digits, folder: Path
) -> Outcome:
    """Train a variant with some seeds.

    Args:
        config: of everything.
        name: of the variant.
        seeds: one model each; one only if the order is random.
        train: images to train on.
        test: images to evaluate on.
        folder: of the run.

    Returns:
        The outcome; its evaluation has "accuracy SEED" in %.
    """
    from experiments.initial_values import for_narrow_models
    from experiments.training.together import train_together

    model = model_of(config, name, seeds[0])
    label = name if len(seeds) == len(config.seeds) else f"{name}-seed{seeds[0]}"
    return train_together(
        config.train,
        lambda key: for_narrow_models(model.init(key, pixels(train.images[:1]))["params"], config.width),
        smoothed_loss(model, train, shift=config.shift, smoothing=config.smoothing, read=pixels),
        len(train),
        folder / "training" / label,
        seeds=seeds,
        label=label,
        at_once=config.at_once,
        evaluate=accuracies(model, test, seeds, pixels),
    )


def _softsort(model: Any, params: Any, test: Digits) -> tuple[float, float, float]:
    """SoftSort on the test images: the largest weight of a row, the smallest and the largest sum of a column.

    These are means over images, blocks and, of the first, rows. Without reordering they are those of the identity.
    """
    import jax

    @jax.jit
    def orders(params: Any) -> Any:
        _, found = model.apply({"params": params}, pixels(test.images), mutable=["intermediates"])
        columns = [P.sum(axis=-2) for P in jax.tree.leaves(found)]
        rows = [P.max(axis=-1).mean() for P in jax.tree.leaves(found)]
        return rows, [c.min(axis=-1).mean() for c in columns], [c.max(axis=-1).mean() for c in columns]

    largest, low, high = (float(np.mean(found)) if found else 1.0 for found in orders(params))
    return largest, low, high


def _measured(table: Mapping[str, list]) -> dict[str, Any]:
    """The claims whose variants were trained, one value per seed."""

    def of(name: str, column: str = "accuracy") -> np.ndarray:
        rows = zip(table["variant"], table[column], strict=True)
        return np.array([value for variant, value in rows if variant == name])

    differences = {
        "abstract-reordering-helps": (RELEASED, NONE),
        "reordering-digits": (RELEASED, NONE),
        "reordering-digits-mended": (MENDED, RELEASED),
        "reordering-digits-importance": (MENDED, RANDOM),
    }
    there = set(table["variant"])
    measured: dict[str, Any] = {
        f"token_dynamics/{claim}": of(first) - of(second)
        for claim, (first, second) in differences.items()
        if {first, second} <= there
    }
    if RELEASED in there:
        measured["token_dynamics/softsort-averages"] = of(RELEASED, "largest weight")
    return measured


def plot(result: StoredResult) -> Figure:
    """Left: test accuracy of each variant, a dot per seed and a bar at the mean. Right: accuracy in the training."""
    from matplotlib import pyplot as plt

    names, curves = result.config["variants"], result.series["accuracy"]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
    for number, name in enumerate(names):
        values = curves[name][:, -1]
        axes[0].plot(values, [number] * len(values), "o", color=COLOURS[name], markersize=4, markerfacecolor="none")
        axes[0].plot(np.mean(values), number, "|", color=COLOURS[name], markersize=16)
        axes[1].plot(curves["updates"], curves[name].mean(axis=0), color=COLOURS[name], label=name)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="test accuracy, %")
    axes[0].grid(axis="x", color="0.9")
    axes[1].set(xlabel="updates", ylabel="test accuracy, mean over seeds, %")
    axes[1].legend()
    axes[1].grid(color="0.9")
    return figure
