"""SeqPE's two auxiliary losses, on digits: what they do to the positions of a LightNet classifier, and to its accuracy.

SeqPE reads a position digit by digit. Its authors train it on two losses besides the task's: of some positions the
closest to another shall have the vector most like it, and positions far away shall be to each other as those that are
trained on. Both are on positions up to ten along each axis, of which the images have four. The models, their recipe and
the images are those of `lightnet/classification`, whose table has SeqPE without these losses beside other encodings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.digit_classification import standardised_parts
from experiments.lightnet import classification
from experiments.results import About, Claim, Result, StoredResult
from experiments.statistics import paired_differences
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="ablation of positions: SeqPE (arXiv 2506.13277)",
    minutes={"smoke": 0.2, "cpu": 4},
)
VARIANT = ("lightnet", "seqpe", "shared")


@dataclass(frozen=True)
class Config(results.Config):
    """The weights to compare, and the model."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One model with each weight per seed, trained together."""
    weights: tuple[float, ...] = (0.0, 0.1)
    """Of each of the two losses beside the cross-entropy; 0.1 is the authors'."""
    extent: int = 10
    """Positions along each axis up to which they are to be known, twice those of the images at least."""
    pivots: int = 8
    """Positions of the first loss per update, with as many candidates each; more would cost more than the images."""
    blocks: int = 2
    """Grids of unfamiliar positions of the second loss per update."""
    images: classification.Config = field(default_factory=classification.Config)
    """The model, the images and the training; its seeds and variants are not used."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("pivots", "blocks"):
            require(name, getattr(self, name), 1)
        require("extent", self.extent, 2 * 8 // self.images.patch)
        require("the smallest of weights", min(self.weights, default=-1.0), 0)
        if len(set(self.weights)) < len(self.weights):
            raise ValueError("weights: expected each of them once")


PRESETS = {
    "smoke": Config(seeds=(0,), weights=(0.1,), images=classification.PRESETS["smoke"]),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "lightnet/seqpe-losses-cost-no-accuracy",
        "test accuracy of SeqPE with its two auxiliary losses minus without, percentage points",
        "above",
        -1.0,
        kind="ours",
    ),
    Claim(
        "lightnet/seqpe-losses-order-positions",
        "unfamiliar positions: rank correlation of distance and dot product, with the losses minus without",
        "below",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train the models with each weight."""
    from experiments.runs import record_data

    train, test, sha256 = standardised_parts(config.images.test_images)
    data = {"digits": sha256}
    record_data(run_dir, data)
    rows: dict[str, list] = {"weight": [], "seed": [], "accuracy": [], "order": [], "parameters": [], "seconds": []}
    for weight in config.weights:
        besides = partial(_of_positions, config, weight) if weight else None
        folder = run_dir / f"weight-{weight:g}"
        found = classification.train_variant(config.images, VARIANT, config.seeds, train, test, folder, besides=besides)
        orders = order_of_positions(config, found.model, found.params)
        for seed, accuracy, order in zip(config.seeds, found.accuracies, orders, strict=True):
            row = (weight, seed, float(accuracy), float(order), found.parameters, found.seconds)
            for column, entry in zip(rows.values(), row, strict=True):
                column.append(entry)
    return Result(measured=_measured(config, rows), tables={"models": rows}, data=data)


def _of_positions(config: Config, weight: float, model: Any, params: Any, key: jax.Array) -> jax.Array:
    """The two auxiliary losses of one model, on random positions."""
    import jax

    from lightnet.positions import auxiliary_losses

    grid = (8 // config.images.patch,) * 2
    sizes = {"num_pivots": config.pivots, "num_candidates": config.pivots, "num_blocks": config.blocks}
    embed = partial(_embedded, model, params)
    key = jax.random.fold_in(key, 1)  # the images are shifted by the key itself
    contrastive, distillation = auxiliary_losses(embed, key, grid, (config.extent,) * 2, **sizes)
    return weight * (contrastive + distillation)


def _embedded(model: Any, params: Any, coordinates: jax.Array) -> jax.Array:
    return model.apply({"params": params}, coordinates, method=lambda module, at: module.places.embed(at))


def order_of_positions(config: Config, model: Any, params: Any) -> np.ndarray:
    """How positions that no image has are ordered: rank correlation of their distances and their dot products.

    Args:
        config: of everything.
        model: the classifier.
        params: of stacked models.

    Returns:
        (models,); -1 where the closer of two pairs always has the larger product.
    """
    import jax
    from scipy.stats import spearmanr

    from lightnet.positions import grid_coordinates, squared_distance

    at = grid_coordinates((config.extent,) * 2)
    at = at[(at >= 8 // config.images.patch).any(axis=1)]
    pairs = np.triu_indices(len(at), 1)
    distances = np.asarray(squared_distance(at[:, None], at[None]))[pairs]
    vectors = np.asarray(jax.lax.map(lambda own: _embedded(model, own, at), params), np.float64)
    products = np.einsum("mid,mjd->mij", vectors, vectors)
    return np.array([spearmanr(distances, of_one[pairs]).statistic for of_one in products])


def _measured(config: Config, rows: dict[str, list]) -> dict[str, Any]:
    """Differences of the authors' weight and none, seed by seed, if both are there."""
    if not {0.0, 0.1} <= set(config.weights):
        return {}

    def difference(column: str) -> list[float]:
        of = {w: [v for v, own in zip(rows[column], rows["weight"], strict=True) if own == w] for w in (0.0, 0.1)}
        return paired_differences(of[0.1], of[0.0])

    return {
        "lightnet/seqpe-losses-cost-no-accuracy": difference("accuracy"),
        "lightnet/seqpe-losses-order-positions": difference("order"),
    }


def plot(result: StoredResult) -> Figure:
    """Accuracy and order of unfamiliar positions, a dot per seed and a line per pair."""
    from matplotlib import pyplot as plt

    table, weights = result.tables["models"], result.config["weights"]
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    labels = {"accuracy": "test accuracy, %", "order": "rank correlation of distance\nand dot product"}
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        values = np.reshape(table[column], (len(weights), -1))
        axis.plot(range(len(weights)), values, "o-", color="#0072B2", markersize=4, alpha=0.6)
        axis.set(
            ylabel=label,
            xlabel="weight of the auxiliary losses",
            xticks=range(len(weights)),
            xlim=(-0.4, len(weights) - 0.6),
        )
        axis.set_xticklabels([f"{weight:g}" for weight in weights])
    return figure
