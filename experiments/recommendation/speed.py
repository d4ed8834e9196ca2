"""Seconds per epoch and per user of recommenders, with as many users and items as MovieLens-1M has.

SASRec's abstract says that it is an order of magnitude faster than convolutional and recurrent models; we know that
from memory. Here it is timed against a GRU of the same stack, with its published objective, one sampled item against
each right one, and by cross-entropy over all items, whose scores are taken in chunks and never held together. An epoch
is one update for every batch of users. Models take turns, each repetition of which is a seed of the config. Claims are
about CPU time, all threads together, which other work on the machine disturbs least: an epoch of 60 such seconds takes
no longer than that on two free cores. Times do not repeat bit for bit. SIGMA is trained on every prefix of every
history, one by one, so that only its scores are timed.
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
    minutes={"smoke": 0.1, "cpu": 8},
)
SASREC, SASREC_ALL, RECURRENT = "SASRec", "SASRec, all items", "GRU"
EPOCHS = (SASREC, SASREC_ALL, RECURRENT)
SCORED = (SASREC, RECURRENT, "SIGMA")


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

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("window", "width", "layers", "batch", "token_chunk"):
            require(name, getattr(self, name), 1)
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
    from experiments.runs import record_data
    from experiments.scan_benchmark.measure import clocked
    from experiments.training.data import fingerprint

    _, sessions = drawn(config.sessions, 0)
    data = {"sessions": fingerprint(sessions.items)}
    record_data(run_dir, data)
    epochs, scores = epoch_programs(config, sessions), score_programs(config, sessions)
    for program in scores.values():
        program()  # compiles
    table: dict[str, list] = {name: [] for name in ("model", "repetition", "cpu_seconds", "wall_seconds")}
    scored: dict[str, list] = {name: [] for name in ("model", "repetition", "cpu_ms_per_user")}
    for seed in config.seeds:
        for name, epoch in epochs.items():
            seconds, _ = clocked(epoch)
            for column, entry in zip(table.values(), (name, seed, seconds.cpu, seconds.wall), strict=True):
                column.append(entry)
        for name, program in scores.items():
            seconds, _ = clocked(program)
            for column, entry in zip(scored.values(), (name, seed, 1e3 * seconds.cpu / config.batch), strict=True):
                column.append(entry)
    return Result(_measured(table), {"epochs": table, "scores": scored}, data=data)


def epoch_programs(config: Config, sessions: Sessions) -> dict[str, Callable[[], Any]]:
    """One epoch of each model as a function, compiled, whose parameters go on from call to call.

    Args:
        config: of models and batches.
        sessions: of all users.

    Returns:
        By name.
    """
    from experiments.step_time import update_program
    from experiments.training.config import OptimizerConfig

    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant", b2=0.98, weight_decay=0.0)
    updates = -(-config.sessions.users // config.batch)

    def batches() -> Any:
        rng = np.random.default_rng(0)
        while True:
            # the last batch is filled up from the next order, so that all have the same shape
            order = np.concatenate([rng.permutation(config.sessions.users) for _ in range(2)])
            for update in range(updates):
                yield {"rows": order[update * config.batch : (update + 1) * config.batch]}

    def epoch(name: str) -> Callable[[], Any]:
        update = update_program(task_of(config, sessions, name), optimizer, batches())
        return lambda: [update() for _ in range(updates)]

    return {name: epoch(name) for name in config.models}


def task_of(config: Config, sessions: Sessions, name: str) -> Any:
    """A model with its loss on rows of users.

    Args:
        config: of the model.
        sessions: of all users.
        name: one of EPOCHS.

    Returns:
        A `experiments.training.task.Task`.
    """
    import jax.numpy as jnp

    import kd
    from experiments.baselines.recommenders import hidden_states, items_mask
    from experiments.sources.sessions import read
    from experiments.training.task import Task
    from ssm.sigma import real_items

    model = _model(config, name)
    items = jnp.asarray(sessions.items)
    start, stop = (jnp.asarray(places) for places in sessions.trained(config.window))

    def loss(params: Any, batch: Any, key: Any) -> Any:
        first, last = start[batch["rows"]], stop[batch["rows"]]
        history, following = read(items, first, last, config.window)
        mask, real = items_mask(model, last - first, config.window), real_items(last - first, config.window)
        h, W = hidden_states(model, params, history, mask=mask, rngs={"dropout": key})
        if name == SASREC_ALL:
            return kd.chunked_cross_entropy(h, W, following, real, token_chunk=config.token_chunk), {}
        return sampled_loss(h, W, following, real, key), {}

    return Task(lambda key: model.init(key, jnp.zeros((1, config.window), jnp.int32)), loss)


def sampled_loss(h: Any, W: Any, following: Any, real: Any, key: Any) -> Any:
    """Mean over places of -log sigmoid(s_right) - log(1 - sigmoid(s_other)), SASRec's loss with one other item each.

    The other item is any, where the published code takes one that the user has not had.

    Args:
        h: states (B, T, D).
        W: of all items (V, D).
        following: right items (B, T).
        real: (B, T), places that count.
        key: random key of the other items.

    Returns:
        A number.
    """
    import jax
    import jax.numpy as jnp

    others = jax.random.randint(key, following.shape, 0, len(W))
    right, other = (jnp.einsum("btd,btd->bt", h, W[ids]) for ids in (following, others))
    losses = jax.nn.softplus(-right) + jax.nn.softplus(other)
    return jnp.sum(jnp.where(real, losses, 0.0)) / real.sum()


def _model(config: Config, name: str) -> Any:
    from experiments.baselines.recommenders import Size, attention_recommender, recurrent_recommender

    size = Size(config.sessions.items, config.width, config.layers, heads=1)
    return recurrent_recommender(size) if name == RECURRENT else attention_recommender(size, config.window, causal=True)


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

    from experiments.recommendation.recommenders import last_of_prefixes, next_items
    from experiments.sources.sessions import read
    from ssm import SIGMA

    made = {name: next_items(_model(config, name), config.window) for name in (SASREC, RECURRENT)}
    made["SIGMA"] = last_of_prefixes(SIGMA(config.sessions.items, width=config.width), config.window)
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
    """Left: CPU seconds per epoch. Right: CPU milliseconds to score all items for one user."""
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
        axis.barh(names, [values[models == name].mean() for name in names], color="#0072B2", alpha=0.4)
        axis.plot(values, models, "o", color="#0072B2", markersize=4)
        axis.set(xlabel=label, xlim=(0, None))
        axis.invert_yaxis()
    return figure
