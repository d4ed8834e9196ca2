"""Predicting the next element: counting, hidden Markov models and four networks on the same sources and on text.

One table, nats per symbol. Each row is predicted from its own beginning, the first symbol included. All models see the
same training rows: k-grams count them, hidden Markov models are fitted to them by Baum and Welch's method, and the
networks, one block each around an LSTM, attention, LightNet or Mamba, see as many of them as their updates take, drawn
at random. The sources: a switching source of order 2, a random chain of order 4, chains in context (each row has a
chain of its own, so that nothing can be known before it is read) and characters of Python's documentation.

Seeds share the training rows. They differ in the initial values and in the rows that are scored, on the text disjoint
parts of the documents that are held out. The best k of the k-grams is chosen on the scored rows, in their favour. Where
the best possible prediction is known, it stands in the table: the source itself, or the counts of Bayes' rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="other models on its sources (ours)",
    minutes={"smoke": 0.3, "cpu": 5},
)
SWITCHING, CHAIN, IN_CONTEXT, TEXT = "switching, order 2", "random chain, order 4", "chains in context", "text"
SOURCES = (SWITCHING, CHAIN, IN_CONTEXT, TEXT)
NETWORKS = {"LSTM": None, "transformer": "softmax", "LightNet": "lightnet", "Mamba": "mamba"}
HIDDEN, BEST = "hidden Markov", "best possible"


@dataclass(frozen=True)
class Config(results.Config):
    """Sources, models and training."""

    sources: tuple[str, ...] = SOURCES
    """what is predicted"""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """which networks"""
    length: int = 128
    """symbols per row"""
    pool_rows: int = 2048
    """training rows of each source; a text has as many as it fills, up to this"""
    evaluation_rows: int = 128
    """rows that each seed scores; a text has as many as it fills, up to this"""
    text_characters: int = 1_000_000
    """most characters of the documentation"""
    folds: int = 4
    """one of so many parts of the documents is held out"""
    orders: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """k of the k-grams"""
    alpha: float = 0.1
    """pseudo-count of the k-grams"""
    states: int = 16
    """of the hidden Markov models"""
    iterations: int = 40
    """of Baum and Welch's method"""
    width: int = 32
    """channels of the networks"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch_size=16, eval_every=50))
    """of every network"""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        for field_name, known in (("sources", SOURCES), ("networks", tuple(NETWORKS))):
            given = getattr(self, field_name)
            require(f"the number of {field_name}", len(given), 1)
            if list(given) != [name for name in known if name in given]:
                raise ValueError(f"{field_name}: got {given}, expected some of {', '.join(known)}, in this order")
        for name in ("length", "pool_rows", "evaluation_rows", "text_characters", "states", "iterations", "width"):
            require(name, getattr(self, name), 1)
        require("folds", self.folds, 2)
        require("the smallest of orders", min(self.orders, default=0), 1)
        require("alpha", self.alpha, 1e-9)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        sources=(SWITCHING,),
        networks=("LSTM",),
        length=16,
        pool_rows=16,
        evaluation_rows=4,
        states=2,
        iterations=2,
        width=8,
        train=TrainConfig(steps=2, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/N-counting-is-enough",
        "best k-gram minus the source's own code length of the same rows: the larger of switching and random chain "
        "(nats per symbol)",
        "below",
        0.005,
        kind="control",
    ),
    Claim(
        "tokenization/N-hidden-markov",
        "switching source of order 2, which is a hidden Markov model of 4 states: fitted model minus the source's own "
        "code length (nats per symbol)",
        "below",
        0.02,
        kind="ours",
    ),
    Claim(
        "tokenization/N-in-context",
        "chains in context: worst of the four networks minus the best k-gram (nats per symbol)",
        "below",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/N-text",
        "text after 400 updates: best of the four networks minus the best k-gram (nats per character)",
        "above",
        0.0,
        kind="ours",
    ),
)


@dataclass(frozen=True)
class Rows:
    """Rows of one source.

    Attributes:
        alphabet: number of symbols.
        fit: training rows (N, L).
        scored: rows of each seed (M, L).
        best: nats per symbol of the best possible prediction of each seed's rows; None where it is not known.
    """

    alphabet: int
    fit: NDArray[np.int32]
    scored: list[NDArray[np.int32]]
    best: list[float] | None


def run(config: Config, run_dir: Path) -> Result:
    """All models on all sources."""
    from experiments.runs import record_data
    from experiments.tokenization.scoring import columns
    from experiments.training.data import fingerprint

    texts = {name: prepare(config, name) for name in config.sources}
    data = {name: fingerprint({"fit": rows.fit}) for name, rows in texts.items()}
    record_data(run_dir, data)
    table, series = [], {}
    for name, rows in texts.items():
        losses = {f"{k}-gram": _counted(config, rows, k) for k in config.orders}
        losses[HIDDEN] = _hidden_markov(config, rows)
        for network in config.networks:
            folder = run_dir / "training" / f"{name}-{network}".replace(", ", "-").replace(" ", "-")
            step, curve = _trained(config, network, rows, folder)
            series[f"{network} on {name}"] = {"step": step, "loss": curve}
            losses[network] = curve[:, -1].tolist()
        if rows.best is not None:
            losses[BEST] = rows.best
        table += [
            {"source": name, "model": model, "seed": seed, "loss": loss}
            for model, found in losses.items()
            for seed, loss in zip(config.seeds, found, strict=True)
        ]
    return Result(measured={**measure(config, table)}, tables={"losses": columns(table)}, series=series, data=data)


def prepare(config: Config, name: str) -> Rows:
    """Training rows and scored rows of a source.

    Args:
        config: how many.
        name: one of SOURCES.

    Returns:
        The rows.
    """
    if name == TEXT:
        return _text_rows(config)
    if name == IN_CONTEXT:
        return _chains_in_context(config)
    from experiments.source_training import evaluation_texts
    from experiments.tokenization.theory import log_probability
    from experiments.training.update import random_stream

    source = _source(name)
    fit = np.asarray(source.sample(random_stream(0, "training"), (config.pool_rows, config.length)))
    texts = evaluation_texts(source.sample, config.seeds, config.evaluation_rows, config.length)
    scored = [np.asarray(each) for each in texts]
    best = [-float(log_probability(source, each).sum()) / each.size for each in scored]
    return Rows(source.alphabet, fit, scored, best)


def _source(name: str) -> Any:
    import jax

    from experiments.sources import SwitchingSource, clipped_dirichlet_source

    return SwitchingSource(2, 0.8, 0.8) if name == SWITCHING else clipped_dirichlet_source(jax.random.key(0), 4)


def _chains_in_context(config: Config) -> Rows:
    """Two symbols; the best prediction is that of the counts so far, with pseudo-count 1."""
    import jax.numpy as jnp

    from experiments.sources import InContextChains
    from experiments.sources.predictors import kgram_predictions
    from experiments.training.update import random_stream

    chains = InContextChains(2)
    fit = chains.sample(random_stream(0, "training"), (config.pool_rows, config.length)).symbols
    shape = (config.evaluation_rows, config.length)
    scored = [np.asarray(chains.sample(random_stream(seed, "evaluation"), shape).symbols) for seed in config.seeds]
    laws = [np.asarray(kgram_predictions(jnp.asarray(each), 2, 1)) for each in scored]
    picked = [np.take_along_axis(law, each[..., None], axis=-1) for law, each in zip(laws, scored, strict=True)]
    return Rows(2, np.asarray(fit), scored, [-float(np.log(p).mean()) for p in picked])


def _text_rows(config: Config) -> Rows:
    """Whole rows of the documents joined, those held out dealt to the seeds in turn."""
    from experiments.errors import UserError
    from experiments.sources import documentation

    corpus = documentation().head(config.text_characters)
    pieces = []
    for part in corpus.split(0, config.folds):
        text = np.concatenate(part.characters(corpus.alphabet))
        pieces.append(text[: len(text) // config.length * config.length].reshape(-1, config.length))
    seeds = len(config.seeds)
    scored = [pieces[1][i::seeds][: config.evaluation_rows] for i in range(seeds)]
    fewest = min(map(len, scored))
    if not len(pieces[0]) or not fewest:
        raise UserError(f"text_characters: got {config.text_characters}, too few for rows of {config.length}")
    return Rows(len(corpus.alphabet), pieces[0][: config.pool_rows], [rows[:fewest] for rows in scored], None)


def _counted(config: Config, rows: Rows, order: int) -> list[float]:
    """Losses of the k-gram."""
    from experiments.tokenization.losses import NGram

    model = NGram.fit(rows.fit, rows.alphabet, order, config.alpha)
    return [-model.log_probability(each) / each.size for each in rows.scored]


def _hidden_markov(config: Config, rows: Rows) -> list[float]:
    """Losses of the hidden Markov models."""
    import jax.numpy as jnp

    from experiments.baselines.hidden_markov import baum_welch, log_likelihood, random_model
    from experiments.training.update import random_stream

    losses = []
    for seed, scored in zip(config.seeds, rows.scored, strict=True):
        first = random_model(random_stream(seed, "initialisation"), config.states, rows.alphabet)
        model, _ = baum_welch(first, jnp.asarray(rows.fit), config.iterations)
        losses.append(-float(log_likelihood(model, jnp.asarray(scored)).sum()) / scored.size)
    return losses


def mixer_of(network: str) -> Callable[..., Any]:
    """Constructor of a network's mixer, to be called as `Backbone` calls it.

    Args:
        network: one of NETWORKS.

    Returns:
        The constructor.

    Example:
        >>> mixer_of("Mamba")(width=8).expand
        2
    """
    from functools import partial

    from experiments.baselines.lstm import LSTM
    from experiments.mixers import mixer

    kind = NETWORKS[network]
    return LSTM if kind is None else partial(mixer(kind, causal=True), num_heads=1)


def _trained(config: Config, network: str, rows: Rows, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and losses at them (seeds, T)."""
    import jax
    import jax.numpy as jnp

    from experiments.source_training import train_on_source
    from experiments.tokenization.transformer import negative_log_likelihood, sequence_model

    pool = jnp.asarray(rows.fit)
    model = sequence_model(mixer_of(network), rows.alphabet, config.length, layers=1, width=config.width)

    def loss(params: Any, symbols: Any) -> Any:
        batch = {"tokens": symbols, "mask": jnp.ones(symbols.shape, bool)}
        return negative_log_likelihood(model, params, batch).mean()

    curves = train_on_source(
        config.train,
        lambda key: model.init(key, pool[:1]),
        loss,
        lambda key: pool[jax.random.randint(key, (config.train.batch_size,), 0, len(pool))],
        folder,
        seeds=config.seeds,
        label=folder.name,
        evaluation=[jnp.asarray(each) for each in rows.scored],
        measure=lambda params, symbols: {"loss": loss(params, symbols)},
    )
    return curves.step, curves.metrics["loss"]


def measure(config: Config, table: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims, as far as their sources and models were run.

    Args:
        config: seeds, sources and networks.
        table: rows of the table `losses`.

    Returns:
        claim id -> one value per seed.
    """
    at = {name: {row["model"]: np.zeros(0) for row in table if row["source"] == name} for name in config.sources}
    for name, models in at.items():
        for model in models:
            found = [row["loss"] for row in table if (row["source"], row["model"]) == (name, model)]
            models[model] = np.array(found)

    def counting(name: str) -> np.ndarray:
        return np.min([at[name][f"{k}-gram"] for k in config.orders], axis=0)

    measured = {}
    if {SWITCHING, CHAIN} <= set(at):
        gaps = [counting(name) - at[name][BEST] for name in (SWITCHING, CHAIN)]
        measured["N-counting-is-enough"] = np.max(gaps, axis=0)
    if SWITCHING in at:
        measured["N-hidden-markov"] = at[SWITCHING][HIDDEN] - at[SWITCHING][BEST]
    if config.networks == tuple(NETWORKS):
        if IN_CONTEXT in at:
            worst = np.max([at[IN_CONTEXT][network] for network in NETWORKS], axis=0)
            measured["N-in-context"] = worst - counting(IN_CONTEXT)
        if TEXT in at:
            measured["N-text"] = np.min([at[TEXT][network] for network in NETWORKS], axis=0) - counting(TEXT)
    return {f"tokenization/{id}": values.tolist() for id, values in measured.items()}


def plot(result: StoredResult) -> Figure:
    """The table of means over seeds, coloured within each source from the best (dark) to the worst model."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["losses"].items()}
    models, sources = (list(dict.fromkeys(table[name].tolist())) for name in ("model", "source"))
    means = np.full((len(models), len(sources)), np.nan)
    for i, model in enumerate(models):
        for j, source in enumerate(sources):
            here = (table["model"] == model) & (table["source"] == source)
            means[i, j] = table["loss"][here].mean() if here.any() else np.nan
    low, high = np.nanmin(means, axis=0), np.nanmax(means, axis=0)
    figure, axis = plt.subplots(figsize=(1.6 * len(sources) + 2, 0.36 * len(models) + 1), layout="constrained")
    axis.imshow((means - low) / np.maximum(high - low, 1e-9), cmap="YlGnBu_r", vmin=-1.2, aspect="auto")
    for (i, j), value in np.ndenumerate(means):
        axis.text(j, i, "" if np.isnan(value) else f"{value:.3f}", ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(sources)), sources, fontsize=8)
    axis.set_yticks(range(len(models)), models, fontsize=8)
    axis.set_title("nats per symbol, means over seeds", fontsize=9)
    return figure
