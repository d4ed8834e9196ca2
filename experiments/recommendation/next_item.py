"""The next item or a Cloze, left to right or both ways: SASRec and BERT4Rec beside a GRU and a Markov chain.

SASRec (arXiv 1808.09781) says that causal attention beats Markov chains and recurrent models on sparse and on dense
data, and that it looks at recent items on sparse and further back on dense data. BERT4Rec (arXiv 1904.06690) says that
attention in both directions with a Cloze does better, and that the Cloze has a part in it of its own. Of both only
the abstracts are known here, from memory. All neural models are one stack (`experiments.baselines.recommenders`), so
that causal or not and Cloze or next item can be crossed:

- SASRec: causal, every next item of a history at once. Here by cross-entropy over all items, not against one sampled
  item as published.
- BERT4Rec: both ways, hidden items. "both ways, next item" is the same model, of which only the item behind a history
  that ends anywhere is asked; "causal, Cloze" is SASRec's model with hidden items.

Sessions are those of a Markov chain of second order over items, a short one per user (sparse) or a long one (dense).
The last item of a user is the test, its law is known, and HR, NDCG and MRR at ten are expectations over it. How far
attention reaches is measured on the same number of last items in both, by the mean distance of what the last place
attends to. Positions are counted from the end of a history, as in the published models, so that the place that is asked
is one that was trained. Every seed has a chain, sessions and initial values of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.recommendation.data import (
    MARKOV,
    POPULARITY,
    Generated,
    drawn,
    law_of_last,
    recipe,
    reference_scores,
)
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.recommendation.recommenders import Recommender
    from experiments.sources.sessions import Sessions

ABOUT = About(
    paper="SASRec (arXiv 1808.09781) and BERT4Rec (arXiv 1904.06690)",
    source="abstracts, and BERT4Rec's ablation of the Cloze (from memory)",
    minutes={"smoke": 0.1, "cpu": 12},
)
GRU, SASREC, CAUSAL_CLOZE = "GRU", "SASRec", "causal, Cloze"
BOTH_WAYS, BERT4REC = "both ways, next item", "BERT4Rec"
MODELS = (GRU, SASREC, CAUSAL_CLOZE, BOTH_WAYS, BERT4REC)
EARLIER = (POPULARITY, MARKOV, GRU)
DENSITIES = ("sparse", "dense")
MAPPED = (SASREC, BERT4REC)


@dataclass(frozen=True)
class Config(results.Config):
    """The sessions, the size of the models, and their training."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One chain, and set of sessions and model of each kind, each."""
    models: tuple[str, ...] = MODELS
    """Neural models, beside popularity and a Markov chain."""
    sparse: Generated = field(default_factory=Generated)
    """Sessions of few items."""
    dense: Generated = field(default_factory=lambda: Generated(shortest=30, longest=40))
    """Sessions of many items."""
    width: int = 32
    """Channels."""
    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Of attention."""
    hidden: float = 0.3
    """Share of the items that a Cloze hides."""
    reach: int = 12
    """Last items of a history in which attention is measured."""
    train: TrainConfig = field(default_factory=lambda: recipe(1600, 64))
    """The training of every neural model."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("width", "layers", "heads"):
            require(name, getattr(self, name), 1)
        if not {SASREC} <= set(self.models) <= set(MODELS):
            raise ValueError(f"models: got {self.models}, expected {SASREC} and others of {', '.join(MODELS)}")
        require("hidden", self.hidden, 0.01, 0.99)
        require("reach", self.reach, 2, min(self.sparse.most, self.dense.most) - 1)
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of the width, {self.width}")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        models=(SASREC,),
        sparse=Generated(users=4, items=12, shortest=4, longest=6),
        dense=Generated(users=4, items=12, shortest=8, longest=8),
        width=4,
        layers=1,
        reach=2,
        train=recipe(1, 2),
    ),
    "cpu": Config(),
}

_GAIN = "NDCG@10, %: "
_LEAST = ", the smaller of sparse and dense"


def _claim(id: str, quantity: str, kind: Any = "paper") -> Claim:
    return Claim(f"recommendation/{id}", quantity, "above", 0.0, kind=kind)


CLAIMS = (
    _claim("sasrec-beats-earlier", f"{_GAIN}SASRec minus the best of popularity, Markov chain and GRU{_LEAST}"),
    _claim("sasrec-beats-earlier-sparse", f"{_GAIN}SASRec minus the best of these on sparse sessions", "ours"),
    _claim("sasrec-beats-earlier-dense", f"{_GAIN}SASRec minus the best of these on dense sessions", "ours"),
    _claim(
        "sasrec-attention-adapts",
        "mean distance of what SASRec's last place attends to in the same number of last items, dense minus sparse",
    ),
    _claim("bert4rec-beats-sasrec", f"{_GAIN}BERT4Rec minus SASRec{_LEAST}"),
    _claim("bert4rec-cloze-helps", f"{_GAIN}BERT4Rec minus the same model trained on the next item alone{_LEAST}"),
    _claim("bert4rec-both-ways", f"{_GAIN}BERT4Rec minus the same with causal attention{_LEAST}", "ours"),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every kind on sparse and on dense sessions, with every seed."""
    from experiments.runs import record_data
    from experiments.training.data import fingerprint

    given = {density: [drawn(getattr(config, density), seed) for seed in config.seeds] for density in DENSITIES}
    data = {name: fingerprint([own.items for _, own in pairs]) for name, pairs in given.items()}
    record_data(run_dir, data)
    columns = ("density", "model", "seed", "HR", "NDCG", "MRR", "seconds")
    table: dict[str, list] = {name: [] for name in columns}
    maps: dict[str, np.ndarray] = {}
    for density, pairs in given.items():
        law = np.stack([law_of_last(*own) for own in pairs])
        found, seen = _scores(config, density, [own for _, own in pairs], law, run_dir / "training" / density)
        maps |= {f"{name}, {density}": own for name, own in seen.items()}
        for name, (scores, seconds) in found.items():
            for seed, values in zip(config.seeds, _metrics(scores, law), strict=True):
                for column, entry in zip(table.values(), (density, name, seed, *values, seconds), strict=True):
                    column.append(entry)
    return Result(_measured(table, maps), {"metrics": table}, {"attention": maps}, data)


def recommenders(config: Config, density: str) -> dict[str, Recommender]:
    """The neural models, by name.

    Args:
        config: of their size.
        density: "sparse" or "dense".

    Returns:
        Models with what they are trained on.
    """
    from experiments.baselines.recommenders import recurrent_recommender
    from experiments.recommendation.recommenders import cloze, hidden_next, next_items

    sessions: Generated = getattr(config, density)
    window, hidden_id = sessions.longest - 1, sessions.items
    causal, both_ways = (_attention_model(config, density, causal=causal) for causal in (True, False))
    made = {
        GRU: next_items(recurrent_recommender(_size(config, density)), window),
        SASREC: next_items(causal, window),
        CAUSAL_CLOZE: cloze(causal, hidden_id, window, config.hidden),
        BOTH_WAYS: hidden_next(both_ways, hidden_id, window),
        BERT4REC: cloze(both_ways, hidden_id, window, config.hidden),
    }
    return {name: made[name] for name in config.models}


def _size(config: Config, density: str) -> Any:
    from experiments.baselines.recommenders import Size

    sessions: Generated = getattr(config, density)
    return Size(sessions.items, config.width, config.layers, config.heads)


def _attention_model(config: Config, density: str, *, causal: bool) -> Any:
    from experiments.baselines.recommenders import attention_recommender

    return attention_recommender(_size(config, density), getattr(config, density).longest, causal=causal)


def _scores(
    config: Config, density: str, sessions: list[Sessions], law: np.ndarray, folder: Path
) -> tuple[dict[str, tuple[np.ndarray, float]], dict[str, np.ndarray]]:
    """Scores (seeds, users, items) and seconds per seed of each model, and the maps of those in MAPPED."""
    from experiments.recommendation.attention import attention_maps
    from experiments.recommendation.recommenders import trained_scores

    maps: dict[str, np.ndarray] = {}

    found = {name: (scores, 0.0) for name, scores in reference_scores(sessions, law).items()}
    for number, (name, model) in enumerate(recommenders(config, density).items()):
        scores, params, seconds = trained_scores(
            config.train, model, sessions, folder / f"{number}", seeds=config.seeds, label=f"{density}, {name}"
        )
        found[name] = scores, seconds / len(config.seeds)
        if name in MAPPED:
            looks = _attention_model(config, density, causal=name == SASREC)
            behind = None if name == SASREC else getattr(config, density).items
            maps[name] = attention_maps(looks, params, sessions, config.reach, hidden_id=behind)
    return found, maps


def _metrics(scores: np.ndarray, law: np.ndarray) -> list[list[float]]:
    """HR, NDCG and MRR of each seed, %."""
    import jax

    from experiments.recommendation.ranking import METRICS, expected

    each = [jax.jit(expected)(*own) for own in zip(scores, law, strict=True)]
    return [[100 * float(values[name].mean()) for name in METRICS] for values in each]


def _measured(table: Mapping[str, list], maps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The claims."""
    from experiments.recommendation.attention import mean_distance

    def gain(model: str, *others: str) -> dict[str, np.ndarray]:
        return {own: ndcg(own, model) - np.max([ndcg(own, other) for other in others], axis=0) for own in DENSITIES}

    def ndcg(density: str, model: str) -> np.ndarray:
        rows = zip(table["density"], table["model"], table["NDCG"], strict=True)
        return np.array([value for *row, value in rows if row == [density, model]])

    def least(gains: dict[str, np.ndarray]) -> np.ndarray:
        return np.min(list(gains.values()), axis=0)

    distance = {density: mean_distance(maps[f"{SASREC}, {density}"]) for density in DENSITIES}
    there = set(table["model"])
    found = {"sasrec-attention-adapts": distance["dense"] - distance["sparse"]}
    if there.issuperset(EARLIER):
        earlier = gain(SASREC, *EARLIER)
        found |= {f"sasrec-beats-earlier-{density}": earlier[density] for density in DENSITIES}
        found["sasrec-beats-earlier"] = least(earlier)
    against = {"beats-sasrec": SASREC, "cloze-helps": BOTH_WAYS, "both-ways": CAUSAL_CLOZE}
    for id, other in against.items():
        if there.issuperset((BERT4REC, other)):
            found[f"bert4rec-{id}"] = least(gain(BERT4REC, other))
    return {f"recommendation/{id}": values.tolist() for id, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """Above: NDCG@10 of each model, and how far back SASRec's last place looks. Below: what attends to what."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["metrics"].items()}
    maps = result.series["attention"]
    figure = plt.figure(figsize=(12, 7.2), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=(11, 10))
    axes = panels[0].subplots(1, 3, width_ratios=(3, 3, 4))
    models = list(dict.fromkeys(table["model"].tolist()))
    for axis, density in zip(axes[:2], DENSITIES, strict=True):
        for place, model in enumerate(models):
            values = table["NDCG"][(table["density"] == density) & (table["model"] == model)]
            axis.plot(values, np.full(len(values), place), "o", color="#0072B2", markerfacecolor="none", markersize=4)
            axis.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color="#0072B2", linewidth=2)
        axis.set(xlabel="NDCG@10, %", title=density, yticks=range(len(models)))
        axis.set_yticklabels(models if axis is axes[0] else [], fontsize=8)
        axis.invert_yaxis()
    _plot_last(axes[2], maps)
    for axis, (name, own) in zip(panels[1].subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        image = axis.imshow(own.mean(axis=(0, 1)), vmin=0, vmax=0.5, cmap="viridis")
        axis.set(title=name, xlabel="place attended to")
        panels[1].colorbar(image, ax=axis, shrink=0.7)
    panels[1].axes[0].set_ylabel("place")
    return figure


def _plot_last(axis: Axes, maps: Mapping[str, np.ndarray]) -> None:
    for density, colour in zip(DENSITIES, ("#D55E00", "#0072B2"), strict=True):
        last = maps[f"{SASREC}, {density}"][:, :, -1, ::-1].mean(axis=0)
        for block, (own, style) in enumerate(zip(last, ("-", "--", ":", "-."), strict=False)):
            axis.plot(np.arange(len(own)), own, style, color=colour, label=f"{density}, block {block + 1}")
    axis.set(xlabel="items back from the last", ylabel="attention of SASRec's last place", yscale="log")
    axis.legend(fontsize=7)
