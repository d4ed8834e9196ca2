"""SIGMA as released and corrected, without each of its parts, on users with short and with long histories.

The abstract and the ablation of SIGMA (arXiv 2408.11451) say that a partly flipped direction, a selective gate and a
GRU each help a Mamba to recommend, the GRU above all where histories are short. Its released code does something else,
see `ssm.sigma`: of a short history the flipped direction sees nothing but padding. So both are trained here, and both
without each part, on sessions of a Markov chain of second order over items: the published data need a download.

As in the published setting most histories are shorter than the window, one item in ten is not flipped, a model is
trained on every prefix of every user's session, by cross-entropy over all items, and the last item of each user is the
test. Its law is known here, so that HR, NDCG and MRR at ten are expectations over that item. Short histories are those
of which the released flipped direction sees nothing. Every seed has a chain, sessions and initial values of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.recommendation.data import MARKOV, REFERENCES, Generated, drawn, law_of_last, recipe, reference_scores
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.sources.sessions import Sessions
    from ssm.sigma import SIGMA

ABOUT = About(
    paper="SIGMA (arXiv 2408.11451)",
    source="ablation, and the released code against a corrected one",
    minutes={"smoke": 0.1, "cpu": 7},
)
RELEASED, CORRECTED = "as released", "corrected"
NO_GATE, NO_FLIP, NO_GRU = (f"{CORRECTED}, no {part}" for part in ("gate", "flip", "GRU"))
RELEASED_NO_FLIP = f"{RELEASED}, no flip"
KINDS: Mapping[str, Mapping[str, Any]] = {
    RELEASED: {"mode": "faithful"},
    RELEASED_NO_FLIP: {"mode": "faithful", "flip": False},
    CORRECTED: {},
    NO_GATE: {"gate": False},
    NO_FLIP: {"flip": False},
    NO_GRU: {"recurrent": False},
}
GROUPS = ("all", "short", "long")


@dataclass(frozen=True)
class Config(results.Config):
    """The sessions, the size of the models, and their training."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One chain, set of sessions and model of each kind each."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Of SIGMA: as released or corrected, and what is left out."""
    sessions: Generated = field(default_factory=Generated)
    """The sessions; the window is as long as the longest."""
    kept: int = 2
    """Last items that are not flipped."""
    width: int = 32
    """Channels."""
    state_size: int = 4
    """Of Mamba."""
    train: TrainConfig = field(default_factory=lambda: recipe(300, 96))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("width", "state_size"):
            require(name, getattr(self, name), 1)
        require("kept", self.kept, 0, self.sessions.longest)
        if unknown := set(self.kinds).difference(KINDS):
            raise ValueError(f"kinds: got {min(unknown)!r}, expected some of {'; '.join(KINDS)}")
        shortest, bound = self.sessions.shortest - 1, self.unseen
        if not shortest <= bound < self.sessions.longest - 1:
            raise ValueError(f"kept: with {self.kept} histories of at most {bound} items are short, and none are")

    @property
    def unseen(self) -> int:
        """Items of a history of which the released flipped direction sees nothing but padding, at most."""
        return (self.sessions.longest - self.kept) // 2


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        kinds=(RELEASED,),
        sessions=Generated(users=6, items=12, shortest=4, longest=8),
        width=4,
        state_size=2,
        train=recipe(1, 4),
    ),
    "cpu": Config(),
}


def _claim(id: str, quantity: str, test: Any = "above", expected: float = 0.0, **more: Any) -> Claim:
    return Claim(f"recommendation/sigma-{id}", quantity, test, expected, **more)


_ALL, _SHORT = "NDCG@10 of all users, %: ", "NDCG@10 of users with short histories, %: "
# claim -> what is better than what, and for whom
COMPARED: Mapping[str, tuple[str, str, str]] = {
    "gate": (CORRECTED, NO_GATE, "all"),
    "flip": (CORRECTED, NO_FLIP, "all"),
    "flip-released": (RELEASED, RELEASED_NO_FLIP, "all"),
    "gru": (CORRECTED, NO_GRU, "short"),
    "corrected": (CORRECTED, RELEASED, "short"),
    "above-markov": (CORRECTED, MARKOV, "all"),
}
CLAIMS = (
    _claim("gate", f"{_ALL}corrected minus corrected without gates"),
    _claim("flip", f"{_ALL}corrected minus corrected without the flipped direction"),
    _claim("flip-released", f"{_ALL}as released minus as released without the flipped direction"),
    _claim("gru", f"{_SHORT}corrected minus corrected without convolution and GRU"),
    _claim("corrected", f"{_SHORT}corrected minus as released", kind="ours"),
    _claim(
        "step-size-init",
        "initial step of Mamba, mean over its channels, as released",
        "within",
        float(np.log(2)),
        tolerance=0.01,
        kind="ours",
        deterministic=True,
    ),
    _claim("above-markov", f"{_ALL}corrected minus a Markov chain of first order that counts", kind="control"),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every kind with every seed."""
    from experiments.runs import record_data
    from experiments.training.data import fingerprint

    laws, sessions = zip(*(drawn(config.sessions, seed) for seed in config.seeds), strict=True)
    data = {"sessions": fingerprint([own.items for own in sessions])}
    record_data(run_dir, data)
    law = np.stack([law_of_last(*own) for own in zip(laws, sessions, strict=True)])
    lengths = sessions[0].kept(1, config.sessions.longest).lengths
    table: dict[str, list] = {name: [] for name in ("model", "seed", "histories", "HR", "NDCG", "MRR")}
    for kind, scores in _all_scores(config, list(sessions), law, run_dir):
        for seed, own_scores, own_law in zip(config.seeds, scores, law, strict=True):
            for group, values in _by_length(own_scores, own_law, lengths, config.unseen).items():
                row = (kind, seed, group, *values)
                for column, entry in zip(table.values(), row, strict=True):
                    column.append(entry)
    return Result(_measured(config, table), {"metrics": table}, data=data)


def _all_scores(config: Config, sessions: list[Sessions], law: np.ndarray, run_dir: Path) -> Any:
    """Name and scores (seeds, users, items) of each, those of references first."""
    from experiments.recommendation.recommenders import last_of_prefixes, trained_scores

    yield from reference_scores(sessions, law).items()
    for kind in config.kinds:
        model = last_of_prefixes(model_of(config, kind), config.sessions.longest)
        folder = run_dir / "training" / kind.replace(", ", "-").replace(" ", "-")
        scores, _, _ = trained_scores(config.train, model, sessions, folder, seeds=config.seeds, label=kind)
        yield kind, scores


def model_of(config: Config, kind: str) -> SIGMA:
    """SIGMA of a kind.

    Args:
        config: of its size.
        kind: one of KINDS.

    Returns:
        The module.
    """
    from ssm import SIGMA

    size: dict[str, Any] = {"width": config.width, "state_size": config.state_size, "kept": config.kept}
    return SIGMA(config.sessions.items, **size | dict(KINDS[kind]))


def _by_length(scores: Any, law: Any, lengths: np.ndarray, unseen: int) -> dict[str, list[float]]:
    """Group of users -> HR, NDCG and MRR, %."""
    import jax

    from experiments.recommendation.ranking import METRICS, expected

    values = jax.tree.map(np.asarray, jax.jit(expected)(scores, law))
    short = lengths <= unseen
    groups = dict(zip(GROUPS, (np.ones_like(short), short, ~short), strict=True))
    return {name: [100 * float(values[metric][own].mean()) for metric in METRICS] for name, own in groups.items()}


def initial_step(config: Config) -> float:
    """Mean over channels of the step with which Mamba starts as released, on no input."""
    import jax
    import jax.numpy as jnp

    model = model_of(config, RELEASED)
    params: Any = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.ones(1, jnp.int32))
    (bias,) = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "dt_bias" in str(path)]
    return float(jax.nn.softplus(bias).mean())


def _measured(config: Config, table: Mapping[str, list]) -> dict[str, Any]:
    """The claims."""

    def ndcg(model: str, group: str) -> np.ndarray:
        rows = zip(table["model"], table["histories"], table["NDCG"], strict=True)
        return np.array([value for *row, value in rows if row == [model, group]])

    there = set(table["model"])
    found = {
        id: ndcg(one, group) - ndcg(other, group)
        for id, (one, other, group) in COMPARED.items()
        if there.issuperset((one, other))
    }
    if RELEASED in there:
        found["step-size-init"] = np.array([initial_step(config)])
    return {f"recommendation/sigma-{id}": values.tolist() for id, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """NDCG@10 of each kind, a dot per seed and a line at the mean, for short and for long histories."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["metrics"].items()}
    models = list(dict.fromkeys(table["model"].tolist()))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    for axis, group in zip(axes, ("short", "long"), strict=True):
        for place, model in enumerate(models):
            values = table["NDCG"][(table["model"] == model) & (table["histories"] == group)]
            colour = "#D55E00" if model.startswith(RELEASED) else "#777777" if model in REFERENCES else "#0072B2"
            axis.plot(values, np.full(len(values), place), "o", color=colour, markerfacecolor="none", markersize=4)
            axis.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2)
        axis.set(xlabel="NDCG@10, %", title=f"{group} histories", yticks=range(len(models)))
    axes[0].set_yticklabels(models, fontsize=8)
    axes[0].invert_yaxis()
    return figure
