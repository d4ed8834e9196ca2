"""SIGMA, as released and corrected, SASRec and BERT4Rec on MovieLens-1M: test metrics of a third-party reproduction.

Only the published setting is here, and **it has not been run**: a test runs two updates of it, with few channels, on
generated ratings that TFDS reads as MovieLens-1M. `recommendation/sigma` and `recommendation/next_item` are the same
comparisons on generated sessions. The data must be prepared first, see `experiments.sources.movielens`.

Width 64, one layer, 32 states, windows of 200 items, Adam at 1e-3 with batches of 2048 prefixes for at most 200 epochs,
ended by ten evaluations without a better validation NDCG@10; the test metrics are those of the best evaluation. Users
and films with at least five ratings are kept; all films are ranked, those of the history too. **What we know of the
setting is a description of the code**: how many of 200 items it flips we do not know, and take all but five as for
windows of 50; and the reproduction may have kept other users.

SASRec and BERT4Rec, of two blocks and two heads, have the same width, window, recipe and evaluation, but are trained on
whole histories, 128 users an update; they are the models of `recommendation/next_item`, with that one's differences
from the published ones. BERT4Rec hides 20 % of the items, which is known from memory.

    python -m experiments run recommendation/movielens --preset paper --config.models faithful SASRec
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.recommendation.recommenders import Recommender
    from experiments.sources.sessions import Sessions

ABOUT = About(
    paper="SIGMA (arXiv 2408.11451)",
    source="a third-party reproduction on ML-1M",
    # A guess: 12 trainings of up to 96,000 updates.
    minutes={"paper": 3000},
)
SASREC, BERT4REC = "SASRec", "BERT4Rec"
COLOURS = {"faithful": "#D55E00", "corrected": "#0072B2", SASREC: "#009E73", BERT4REC: "#CC79A7"}
MODELS = tuple(COLOURS)
EPOCH = 480  # updates: 981,491 prefixes of 6,040 users, by 2048
PUBLISHED = {"HR": 0.3083, "NDCG": 0.1814, "MRR": 0.1424}


@dataclass(frozen=True)
class Config(results.Config):
    """The models and their training."""

    models: tuple[str, ...] = MODELS
    """SIGMA as released, "faithful", or "corrected"; and the others."""
    window: int = 200
    """Newest items of a history that are read."""
    kept: int = 5
    """Last items that are not flipped."""
    width: int = 64
    """Channels."""
    state_size: int = 32
    """Of Mamba."""
    fewest: int = 5
    """Ratings of a user and of a film that are kept."""
    layers: int = 2
    """Blocks of SASRec and BERT4Rec."""
    heads: int = 2
    """Of their attention."""
    hidden: float = 0.2
    """Share of the items that a Cloze hides."""
    users: int = 128
    """Histories of an update of what is trained on whole ones."""
    scored: int = 512
    """Users that are scored at once."""
    data_dir: str = ""
    """Where TFDS's data sets are prepared; empty: its default, ~/tensorflow_datasets."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=200 * EPOCH,
            batch_size=2048,
            eval_every=EPOCH,
            stop_metric="1 - validation NDCG",
            patience=10,
            optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", b2=0.999, weight_decay=0.0),
            checkpoint=CheckpointConfig(every=EPOCH),
        )
    )
    """The training of every model, SIGMA's with batches of prefixes."""

    def __post_init__(self) -> None:
        """Check the names and ranges."""
        super().__post_init__()
        for name in ("window", "width", "state_size", "layers", "heads", "users", "scored"):
            require(name, getattr(self, name), 1)
        require("kept", self.kept, 0, self.window)
        require("fewest", self.fewest, 4)
        require("train.eval_every", self.train.eval_every, 1)
        require("hidden", self.hidden, 0.01, 0.99)
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of the width, {self.width}")
        for model in self.models:
            if model not in MODELS:
                raise ValueError(f"models: got {model!r}, expected some of {', '.join(MODELS)}")


PRESETS = {"paper": Config()}
CLAIMS = (
    Claim(
        "recommendation/sigma-movielens",
        "test NDCG@10 on MovieLens-1M, as released",
        "within",
        PUBLISHED["NDCG"],
        tolerance=0.01,
    ),
    Claim(
        "recommendation/movielens-bert4rec-beats-sasrec",
        "test NDCG@10 on MovieLens-1M: BERT4Rec minus SASRec",
        "above",
        0.0,
    ),
    Claim(
        "recommendation/movielens-sigma-beats-attention",
        "test NDCG@10 on MovieLens-1M: SIGMA as released minus the better of SASRec and BERT4Rec",
        "above",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    from experiments.recommendation.ranking import METRICS
    from experiments.runs import record_data
    from experiments.sources.movielens import NAME, in_sessions, load_movielens
    from experiments.training.data import data_hash

    ratings = load_movielens(config.data_dir or None)
    data = {NAME: data_hash(ratings)}
    record_data(run_dir, data)
    sessions = in_sessions(ratings, config.fewest)
    table: dict[str, list] = {name: [] for name in ("model", "seed", "step", *METRICS)}
    curves: dict[str, dict[str, np.ndarray]] = {}
    for model in config.models:
        for seed in config.seeds:
            found = trained(config, model, sessions, run_dir, seed)
            best = int(np.argmin(found[config.train.stop_metric])) if config.train.stop_metric else -1
            row = (model, seed, int(found["step"][best]), *(float(found[f"test {name}"][best]) for name in METRICS))
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
            curves[f"{model} {seed}"] = {"step": found["step"], "test NDCG": found["test NDCG"]}
    return Result(_measured(table), {"metrics": table}, curves, data)


def _measured(table: Mapping[str, list]) -> dict[str, Any]:
    """The claims whose models are there."""

    def ndcg(model: str) -> np.ndarray:
        rows = zip(table["model"], table["NDCG"], strict=True)
        return np.array([value for name, value in rows if name == model])

    there, found = set(table["model"]), {}
    if "faithful" in there:
        found["sigma-movielens"] = ndcg("faithful")
    if there.issuperset((SASREC, BERT4REC)):
        found["movielens-bert4rec-beats-sasrec"] = ndcg(BERT4REC) - ndcg(SASREC)
        if "faithful" in there:
            found["movielens-sigma-beats-attention"] = ndcg("faithful") - np.maximum(ndcg(SASREC), ndcg(BERT4REC))
    return {f"recommendation/{id}": values.tolist() for id, values in found.items()}


def recommender_of(config: Config, model: Any, films: int) -> Recommender:
    """A model with its task.

    Args:
        config: of its size.
        model: one of MODELS.
        films: that are left.

    Returns:
        The recommender.
    """
    from experiments.baselines.recommenders import Size, attention_recommender
    from experiments.recommendation.recommenders import cloze, last_of_prefixes, next_items
    from ssm import SIGMA

    if model in (SASREC, BERT4REC):
        size = Size(films, config.width, config.layers, config.heads)
        attention = attention_recommender(size, config.window + 1, causal=model == SASREC)
        if model == SASREC:
            return next_items(attention, config.window)
        return cloze(attention, films, config.window, config.hidden)
    sizes: dict[str, Any] = {"width": config.width, "state_size": config.state_size, "kept": config.kept}
    return last_of_prefixes(SIGMA(films, mode=model, **sizes), config.window)


def trained(config: Config, model: str, sessions: Sessions, run_dir: Path, seed: int) -> Mapping[str, np.ndarray]:
    """Train one model.

    Args:
        config: of everything.
        model: one of MODELS.
        sessions: of all users.
        run_dir: for checkpoints and metrics.
        seed: of everything.

    Returns:
        Metrics of every evaluation.
    """
    import jax.numpy as jnp

    from experiments.training.loop import train
    from experiments.training.task import Task

    recommender = recommender_of(config, model, int(sessions.items.max()) + 1)
    items = jnp.asarray(sessions.items)
    examples = recommender.examples(sessions)
    columns, of_rows = {"row": np.arange(len(examples.stop), dtype=np.int32)}, recommender.loss_of_rows(examples)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return of_rows(params, batch["row"], key, items), {}

    task = Task(recommender.init, loss, _evaluation(config, recommender, sessions))
    folder = run_dir / "training" / f"{model}-{seed}"
    recipe = replace(config.train, batch_size=config.users) if model in (SASREC, BERT4REC) else config.train
    return train(recipe, task, columns, folder, seed=seed, label=f"{model}, seed {seed}").evaluation


def _evaluation(config: Config, recommender: Recommender, sessions: Sessions) -> Callable[[Any], dict[str, float]]:
    """Parameters -> metrics of the items that are kept for validation and for the test."""
    import jax.numpy as jnp

    from experiments.recommendation.ranking import measured
    from experiments.sources.sessions import Stretches
    from experiments.training.validation import validation

    items = jnp.asarray(sessions.items)

    def metrics(params: Any, batch: Any) -> Mapping[str, Any]:
        scores = recommender.scores_of(params, items, Stretches(batch["start"], batch["stop"]))
        return measured(scores, items[batch["stop"]])

    means = {}
    for part, from_end in (("validation", 2), ("test", 1)):
        asked = sessions.kept(from_end, config.window)._asdict()
        means[part] = validation(metrics, {name: x.astype(np.int32) for name, x in asked.items()}, config.scored)

    def evaluate(params: Any) -> dict[str, float]:
        found = {f"{part} {name}": value for part, mean in means.items() for name, value in mean(params).items()}
        return found | {"1 - validation NDCG": 1 - found["validation NDCG"]}

    return evaluate


def plot(result: StoredResult) -> Figure:
    """Test NDCG@10 during training, and that of the reproduction."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for name, curve in result.series.items():
        model, _, _ = name.rpartition(" ")
        axis.plot(curve["step"], curve["test NDCG"], color=COLOURS[model], label=name)
    axis.axhline(PUBLISHED["NDCG"], color="black", linestyle="--", linewidth=1)
    axis.set(xlabel="updates", ylabel="test NDCG@10")
    axis.legend(fontsize=7)
    return figure
