"""MDCS on digits with a long tail: experts with different priors, and consistency between two views of an image.

Of the digits there are 72 of the most frequent class and 4 of the rarest; which class is how frequent is drawn by the
seed, so that hard digits are not always the rare ones. Three experts, linear heads on one perceptron, are trained with
the priors of MDCS for many, all and few images; a prediction is the mean of their logits. The consistency is between a
weak view, moved by up to a pixel, and a strong one, with a patch of 3 x 3 pixels blanked and noise besides; its weight
grows over the first tenth of the updates to the published 0.6. Labels are learned from both views, as published.

Beside it: the three experts all with plain cross-entropy, all with the prior that balances the classes, the diverse
ones without consistency, and with consistency on all images instead of those of which an expert is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import results
from experiments.distillation.digits import CLASSES, FitConfig, digit_parts, long_tail, read_network, schedule
from experiments.distillation.tables import cell_columns, difference, draw_cells, seed_columns
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="MDCS (arXiv 2308.09922)",
    source="ablation of diversity and consistency, on digits with a long tail (ours)",
    minutes={"smoke": 0.2, "cpu": 3},
)
EXPERTS = (-0.5, 1.0, 2.5)
MANY, FEW = 3, 3


class Variant(NamedTuple):
    """How experts are trained: their exponents, whether views shall agree, and whether on chosen images only."""

    taus: tuple[float, ...]
    consistent: bool = False
    chosen: bool = True


VARIANTS = {
    "plain": Variant((0.0, 0.0, 0.0)),
    "balanced": Variant((1.0, 1.0, 1.0)),
    "diverse": Variant(EXPERTS),
    "diverse, consistent": Variant(EXPERTS, consistent=True),
    "diverse, consistent on all": Variant(EXPERTS, consistent=True, chosen=False),
}
MDCS = "diverse, consistent"
GROUPS = ("many", "medium", "few")
MEASURES = ("accuracy", *GROUPS, *(f"expert {tau:g}, {group}" for tau in EXPERTS for group in ("many", "few")))


@dataclass(frozen=True)
class Config(results.Config):
    """The tail, the experts and their training."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One draw of the images and one network of each variant per seed."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Names in `VARIANTS`, "diverse" among them."""
    network: str = "mlp-64"
    """Kind and widths of what the experts share."""
    most: int = 72
    """Images of the most frequent class."""
    imbalance: float = 20.0
    """Of the most frequent class to the rarest."""
    weight: float = 0.6
    """Largest weight of the consistency."""
    noise: float = 0.1
    """Standard deviation of the noise of a strong view; pixels are from 0 to 1."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Training of every network."""

    def __post_init__(self) -> None:
        """Check the names and ranges."""
        super().__post_init__()
        read_network(self.network, "network")
        require("most", self.most, 1, 73)
        require("imbalance", self.imbalance, 1)
        require("weight", self.weight, 0)
        require("noise", self.noise, 0)
        if not {"diverse"} <= set(self.variants) <= set(VARIANTS):
            raise ValueError(f"variants: got {self.variants}, expected diverse and any of {', '.join(VARIANTS)}")


PRESETS = {
    "smoke": Config(seeds=(0,), variants=("diverse", MDCS), network="mlp-8", fit=FitConfig(steps=3, batch_size=8)),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "distillation/mdcs-diverse-experts",
        "smaller of: accuracy on rare classes of the expert with exponent 2.5 minus that with -0.5, and on frequent "
        "classes of that with -0.5 minus that with 2.5, without consistency, percentage points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/mdcs-consistency-helps",
        "test accuracy of MDCS minus the better of diversity alone and of consistency on all images, percentage points",
        "above",
        0.0,
    ),
    Claim(
        "distillation/mdcs-over-balanced",
        "test accuracy of MDCS minus that of three experts with the prior that balances the classes, percentage points",
        "above",
        0.0,
        kind="control",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train the experts of every variant and seed."""
    from experiments.runs import record_data

    parts = digit_parts()
    data = {"digits": parts.sha256}
    record_data(run_dir, data)
    drawn = [long_tail(parts.train.labels, config.most, config.imbalance, seed) for seed in config.seeds]
    found = {}
    for name in config.variants:
        logits = train_experts(config, VARIANTS[name], drawn)
        each = [measured_of(z, parts.test.labels, counts) for z, (_, counts) in zip(logits, drawn, strict=True)]
        found[name] = {measure: np.array([one[measure] for one in each]) for measure in MEASURES}
    tables = {"cells": cell_columns(found, MEASURES), "seeds": seed_columns(found, config.seeds, MEASURES)}
    return Result(measured=_measured(found), tables=tables, data=data)


def train_experts(config: Config, variant: Variant, drawn: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Logits of the experts on the test images.

    Args:
        config: the network and its training.
        variant: how the experts are trained.
        drawn: rows and counts of each seed.

    Returns:
        (seeds, experts, n, classes).
    """
    import jax
    import jax.numpy as jnp

    from experiments.distillation.networks import network
    from experiments.distillation.teachers import arrays, initial
    from experiments.training.update import random_stream

    net = network(config.network)
    keys = [jnp.stack([random_stream(seed, name) for seed in config.seeds]) for name in ("initialisation", "views")]
    width = net.widths[-1]
    heads = jax.vmap(lambda key: jax.random.normal(key, (len(EXPERTS), width, CLASSES)) / width**0.5)(keys[0])
    start = {"net": initial(net, keys[0]), "heads": heads}
    orders = jnp.stack([schedule(rows, config.fit, seed) for (rows, _), seed in zip(drawn, config.seeds, strict=True)])
    counts = jnp.stack([jnp.asarray(counts, jnp.float32) for _, counts in drawn])
    given = (start, orders, counts, keys[1], arrays(digit_parts()))
    return np.asarray(_trained(*given, net=net, variant=variant, config=config))


def _trained(
    start: Any, orders: Any, counts: Any, keys: Any, parts: Any, *, net: Any, variant: Variant, config: Config
) -> Any:
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.networks import say
    from experiments.distillation.teachers import fit
    from experiments.training.together import mapped

    def experts(params: Any, images: jax.Array) -> jax.Array:
        features = say(net, params["net"], images).features
        return jnp.einsum("bh,khc->kbc", features.mean(axis=tuple(range(1, features.ndim - 1))), params["heads"])

    def one(start: Any, order: Any, counts: Any, key: Any) -> jax.Array:
        images, labels = parts["train"]

        def loss(params: Any, update: Any) -> jax.Array:
            rows, step = update
            pair = views(images[rows], jax.random.fold_in(key, step), config.noise)
            weak, strong = (experts(params, view) for view in pair)
            both = [kd.mdcs_diversity(z, labels[rows], counts, taus=variant.taus) for z in (weak, strong)]
            total = both[0] + both[1]
            if variant.consistent:
                ramp = jnp.minimum(10 * step / config.fit.steps, 1.0)
                total += config.weight * ramp * consistency(weak, strong, labels[rows], variant.chosen)
            return total

        params = fit(loss, start, (order, jnp.arange(config.fit.steps)), config.fit.learning_rate)
        return experts(params, parts["test"][0])

    return jax.jit(mapped(one, 1))(start, orders, counts, keys)


def consistency(weak: jax.Array, strong: jax.Array, labels: jax.Array, chosen: bool) -> jax.Array:
    """MDCS's consistency, or the same on all images.

    Args:
        weak: logits (experts, B, classes).
        strong: the same.
        labels: (B,).
        chosen: whether only images count of which an expert is right.

    Returns:
        One number.
    """
    import kd

    if chosen:
        return kd.mdcs_consistency(weak, strong, labels)
    return kd.token_divergence("forward_kl", strong, weak).mean(axis=1).sum()


def views(images: jax.Array, key: jax.Array, noise: float) -> tuple[jax.Array, jax.Array]:
    """A weak and a strong view of each image.

    Args:
        images: (B, height, width, 1).
        key: random key.
        noise: standard deviation.

    Returns:
        Moved by up to a pixel; moved otherwise, with 3 x 3 pixels blanked and noise.
    """
    import jax
    import jax.numpy as jnp

    from experiments.sources.shifts import shifted

    first, second, third, fourth = jax.random.split(key, 4)
    corner = jax.random.randint(third, (len(images), 2), 0, images.shape[1] - 2)
    place = jnp.arange(images.shape[1])[None]
    inside = [(place >= c[:, None]) & (place < c[:, None] + 3) for c in corner.T]
    blank = (inside[0][:, :, None] & inside[1][:, None])[..., None]
    strong = jnp.where(blank, 0.0, shifted(images, second, 1))
    return shifted(images, first, 1), strong + noise * jax.random.normal(fourth, images.shape)


def measured_of(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Accuracy of the mean of the experts and of each expert, on all and on frequent and rare classes, %.

    Args:
        logits: (experts, n, classes).
        labels: (n,).
        counts: training images of each class.

    Returns:
        Measure -> value.
    """
    order = np.argsort(-counts, kind="stable")
    classes = dict(zip(GROUPS, (order[:MANY], order[MANY : CLASSES - FEW], order[CLASSES - FEW :]), strict=True))
    of = {group: np.isin(labels, which) for group, which in classes.items()}
    right = logits.mean(axis=0).argmax(axis=-1) == labels
    found = {"accuracy": 100.0 * right.mean(), **{group: 100.0 * right[own].mean() for group, own in of.items()}}
    for tau, z in zip(EXPERTS, logits, strict=True):
        alone = z.argmax(axis=-1) == labels
        found |= {f"expert {tau:g}, {group}": 100.0 * alone[of[group]].mean() for group in ("many", "few")}
    return {name: float(value) for name, value in found.items()}


def _measured(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    diverse = found["diverse"]
    first, last = (f"expert {tau:g}" for tau in (EXPERTS[0], EXPERTS[-1]))
    rare = difference(diverse[f"{last}, few"], diverse[f"{first}, few"])
    frequent = difference(diverse[f"{first}, many"], diverse[f"{last}, many"])
    measured = {"distillation/mdcs-diverse-experts": np.minimum(rare, frequent)}
    against = {"consistency-helps": ("diverse", "diverse, consistent on all"), "over-balanced": ("balanced",)}
    for id, others in against.items():
        if {MDCS, *others} <= set(found):
            accuracies = [found[name]["accuracy"] for name in (MDCS, *others)]
            measured[f"distillation/mdcs-{id}"] = difference(*accuracies)
    return measured


def plot(result: StoredResult) -> Figure:
    """Accuracy of each variant on all, frequent, medium and rare classes."""
    from matplotlib import pyplot as plt

    cells = result.tables["cells"]
    figure, axes = plt.subplots(1, 4, figsize=(12, 0.9 + 0.3 * len(cells["student"])), layout="constrained")
    for number, (axis, measure) in enumerate(zip(axes, ("accuracy", *GROUPS), strict=True)):
        draw_cells(axis, cells, measure, None if number == 0 else [""] * len(cells["student"]))
        axis.set(xlabel="test accuracy, %", title="all classes" if number == 0 else f"{measure} images")
    return figure
