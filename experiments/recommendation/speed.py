"""Seconds per epoch and per user of recommenders, with as many users and items as MovieLens-1M has.

SASRec's abstract says that it is an order of magnitude faster than convolutional and recurrent models; we know that
from memory. Here it is timed against a GRU of the same stack, with its published objective, one sampled item against
each right one, and by cross-entropy over all items, whose scores are taken in chunks and never held together. An epoch
is one update for every batch of users. Models take turns, each repetition of which is a seed of the config. Claims are
about CPU time, all threads together, which other work on the machine disturbs least: an epoch of 60 such seconds takes
no longer than that on two free cores. Times do not repeat bit for bit. BERT4Rec hides items and is asked for these, by
cross-entropy over all items. SIGMA is trained on every prefix of every history, one by one: of its many thousand
updates, all of the same shape, `timed` are run and their time is taken as many times as an epoch has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.recommendation.data import Generated, drawn
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.sources.sessions import Sessions

ABOUT = About(
    paper="SASRec (arXiv 1808.09781)",
    source="abstract and table of training times (from memory)",
    minutes={"smoke": 0.1, "cpu": 12},
)
SASREC, SASREC_ALL, RECURRENT, BERT4REC, OF_PREFIXES = "SASRec", "SASRec, all items", "GRU", "BERT4Rec", "SIGMA"
EPOCHS = (SASREC, SASREC_ALL, RECURRENT, BERT4REC, OF_PREFIXES)
SCORED = (SASREC, RECURRENT, BERT4REC, OF_PREFIXES)


@dataclass(frozen=True)
class Config(results.Config):
    """The sessions, the models, and what is timed."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One repetition each."""
    models: tuple[str, ...] = EPOCHS
    """Whose epochs are timed."""
    scored: tuple[str, ...] = SCORED
    """Whose scores are timed."""
    sessions: Generated = field(default_factory=lambda: Generated(users=6000, items=3400, shortest=20, longest=310))
    """Sessions; MovieLens-1M has 6,040 users with 165 ratings on average and 3,416 films that occur five times."""
    window: int = 200
    """Newest items of a history that are read."""
    width: int = 50
    """Channels."""
    layers: int = 2
    """Blocks."""
    batch: int = 128
    """Users of an update, and users that are scored at once."""
    token_chunk: int = 1600
    """Places whose scores of all items are held at once."""
    hidden: float = 0.3
    """Share of the items that BERT4Rec hides."""
    timed: int = 47
    """Updates of an epoch that are run at most; an epoch of all users has 47."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("window", "width", "layers", "batch", "token_chunk", "timed"):
            require(name, getattr(self, name), 1)
        require("hidden", self.hidden, 0.01, 0.99)
        require("batch", self.batch, 1, self.sessions.users)
        for field_name, known in (("models", EPOCHS), ("scored", SCORED)):
            if unknown := set(getattr(self, field_name)).difference(known):
                raise ValueError(f"{field_name}: got {min(unknown)!r}, expected some of {', '.join(known)}")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        models=(SASREC,),
        scored=(SASREC,),
        sessions=Generated(users=4, items=12, shortest=4, longest=6),
        window=5,
        width=4,
        layers=1,
        batch=2,
        token_chunk=10,
    ),
    "cpu": Config(),
}


def _claim(id: str, quantity: str, test: Any, expected: float, kind: Any) -> Claim:
    return Claim(f"recommendation/{id}", quantity, test, expected, kind=kind)


_SIZE = "6,000 users, 3,400 items, 200 places"
CLAIMS = (
    _claim("sasrec-efficiency", f"CPU seconds per epoch of a GRU over SASRec's, {_SIZE}", "above", 10.0, "paper"),
    _claim("sasrec-epoch", f"CPU seconds per epoch of SASRec, published objective, {_SIZE}", "below", 60.0, "ours"),
    _claim("sasrec-epoch-all-items", f"the same by cross-entropy over all items, {_SIZE}", "below", 60.0, "ours"),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time epochs and scores of all models in turn, in every repetition."""
    from experiments.recommendation.epochs import epoch_programs
    from experiments.runs import record_data
    from experiments.scan_benchmark.measure import clocked
    from experiments.training.data import fingerprint

    _, sessions = drawn(config.sessions, 0)
    data = {"sessions": fingerprint(sessions.items)}
    record_data(run_dir, data)
    epochs, scores = epoch_programs(config, sessions), score_programs(config, sessions)
    for program in scores.values():
        program()  # compiles
    columns = ("model", "repetition", "cpu_seconds", "wall_seconds", "updates", "timed")
    table: dict[str, list] = {name: [] for name in columns}
    scored: dict[str, list] = {name: [] for name in ("model", "repetition", "cpu_ms_per_user")}
    for seed in config.seeds:
        for name, epoch in epochs.items():
            seconds, _ = clocked(epoch.run)
            times = epoch.updates / epoch.timed
            row = (name, seed, times * seconds.cpu, times * seconds.wall, epoch.updates, epoch.timed)
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
        for name, program in scores.items():
            seconds, _ = clocked(program)
            for column, entry in zip(scored.values(), (name, seed, 1e3 * seconds.cpu / config.batch), strict=True):
                column.append(entry)
    return Result(_measured(table), {"epochs": table, "scores": scored}, data=data)


def score_programs(config: Config, sessions: Sessions) -> dict[str, Callable[[], Any]]:
    """Scores of all items for the first users, as functions.

    Args:
        config: of models and batches.
        sessions: of all users.

    Returns:
        By name.
    """
    import jax
    import jax.numpy as jnp

    from experiments.recommendation.epochs import model_of
    from experiments.recommendation.recommenders import cloze, last_of_prefixes, next_items
    from experiments.sources.sessions import read

    made = {name: next_items(model_of(config, name), config.window) for name in (SASREC, RECURRENT)}
    made[BERT4REC] = cloze(model_of(config, BERT4REC), config.sessions.items, config.window, config.hidden)
    made[OF_PREFIXES] = last_of_prefixes(model_of(config, OF_PREFIXES), config.window)
    start, stop = (jnp.asarray(places[: config.batch]) for places in sessions.kept(1, config.window))
    history, _ = read(jnp.asarray(sessions.items), start, stop, config.window)

    def program(model: Any) -> Callable[[], Any]:
        params, scores = jax.jit(model.init)(jax.random.key(0)), jax.jit(model.scores)
        return lambda: jax.block_until_ready(scores(params, history, stop - start))

    return {name: program(made[name]) for name in config.scored}


def _measured(table: Mapping[str, list]) -> dict[str, Any]:
    """The claims, one value per repetition."""

    def seconds(name: str) -> np.ndarray:
        rows = zip(table["model"], table["cpu_seconds"], strict=True)
        return np.array([value for model, value in rows if model == name])

    there = set(table["model"])
    found = {id: seconds(name) for id, name in (("", SASREC), ("-all-items", SASREC_ALL)) if name in there}
    found = {f"sasrec-epoch{id}": values for id, values in found.items()}
    if there.issuperset((SASREC, RECURRENT)):
        found["sasrec-efficiency"] = seconds(RECURRENT) / seconds(SASREC)
    return {f"recommendation/{id}": values.tolist() for id, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """Left: CPU seconds per epoch, on a logarithmic axis. Right: CPU milliseconds to score all items for one user."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    for axis, (table, column, label) in zip(
        axes,
        (("epochs", "cpu_seconds", "CPU seconds per epoch"), ("scores", "cpu_ms_per_user", "CPU ms per user")),
        strict=True,
    ):
        rows = result.tables[table]
        models, values = np.array(rows["model"]), np.array(rows[column])
        names = list(dict.fromkeys(rows["model"]))
        means = [values[models == name].mean() for name in names]
        axis.plot(values, models, "o", color="#0072B2", markerfacecolor="none", markersize=5)
        axis.plot(means, names, "|", color="#0072B2", markersize=14)
        axis.set(xlabel=label, xscale="log" if table == "epochs" else "linear")
        axis.grid(axis="x", color="0.92")
        axis.margins(x=0.08, y=0.15)
        axis.invert_yaxis()
    axes[1].set_xlim(left=0)
    return figure
