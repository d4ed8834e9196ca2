"""On random chains of order 2 and 4 the gap to the entropy rate falls as the dictionary grows, characters being worst.

Figures 3 and 6 of arXiv 2404.08335. The chain of each order is drawn once, its rows from Dir(1, 1) with no probability
below 0.05; the seeds draw texts and initial values. A gap is the loss minus the code length that the chain itself gives
to the same texts, so that most of their chance cancels. Training is shorter than the published 8000 updates: what is
compared is how far each dictionary gets in the same number of them.

The references beside the curves are the entropy of single characters, the best unigram and the best bigram over the
tokens (held out, in rows as the transformer sees them), and the chain's own code length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.sources import MarkovSource

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figures 3 and 6",
    minutes={"smoke": 0.5, "cpu": 7},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The chains, the dictionaries, the model and its training."""

    chain_seed: int = 0
    """which chain is drawn"""
    minimum: float = 0.05
    """smallest transition probability"""
    models: tuple[tuple[int, int], ...] = ((2, 2), (2, 10), (4, 2), (4, 4), (4, 7), (4, 10))
    """(order, dictionary size) of each model; two tokens are the characters"""
    length: int = 256
    """characters per row"""
    tokenizer_characters: int = 10_000
    """characters that BPE is trained on"""
    layers: int = 2
    """blocks"""
    width: int = 20
    """channels"""
    evaluation_rows: int = 64
    """fresh rows that are evaluated"""
    reference_rows: int = 1000
    """rows that the n-gram references are fitted on, and as many that they are scored on"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch_size=16, eval_every=20))
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("chain_seed", self.chain_seed, 0, 2**31 - 1)
        require("minimum", self.minimum, 1e-6, 0.5)
        require("the number of models", len(self.models), 1)
        for order, size in self.models:
            require("each order of models", order, 1, 12)
            require("each dictionary size of models", size, 2, 10_000)
        if list(self.models) != sorted(set(self.models)):
            raise ValueError(f"models: got {self.models}, expected rising pairs")
        for name in ("length", "layers", "width", "evaluation_rows", "reference_rows"):
            require(name, getattr(self, name), 1)
        require("tokenizer_characters", self.tokenizer_characters, 20)
        require("train.eval_every", self.train.eval_every, 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        models=((2, 2), (2, 10)),
        length=32,
        tokenizer_characters=1000,
        layers=1,
        width=8,
        evaluation_rows=4,
        reference_rows=20,
        train=TrainConfig(steps=4, batch_size=4, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/F3-order-2",
        "order 2: last gap with 10 tokens minus a third of that with characters (nats per character)",
        "below",
        0.0,
    ),
    Claim(
        "tokenization/F3-order-4",
        "order 4: last gap with 10 tokens minus a third of that with characters (nats per character)",
        "below",
        0.0,
    ),
    Claim(
        "tokenization/F6-gap-falls-with-dictionary",
        "order 4: least fall of the last gap from one dictionary size (2, 4, 7, 10) to the next (nats per character)",
        "above",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per dictionary and seed."""
    from experiments.runs import record_data
    from experiments.tokenization.scoring import columns
    from experiments.training.data import fingerprint

    sources = {order: chain(config, order) for order in dict(config.models)}
    data = {f"chain of order {order}": fingerprint({"kernel": one.kernel}) for order, one in sources.items()}
    record_data(run_dir, data)
    rows: list[dict[str, Any]] = []
    gaps: dict[tuple[int, int], list[np.ndarray]] = {model: [] for model in config.models}
    for seed in config.seeds:
        for order, size in config.models:
            step, gap, row = _trained(config, sources[order], order, size, seed, run_dir)
            gaps[order, size].append(gap)
            rows.append({"seed": seed, "order": order, "size": size, **row, "last_gap": float(gap[-1])})
    stacked = {model: np.stack(values) for model, values in gaps.items()}
    return Result(
        measured={**measure({model: values[:, -1] for model, values in stacked.items()})},
        tables={"models": columns(rows)},
        series={f"order {order}, {size} tokens": {"step": step, "gap": gap} for (order, size), gap in stacked.items()},
        data=data,
    )


def chain(config: Config, order: int) -> MarkovSource:
    """The chain of one order, the same for all seeds.

    Args:
        config: which one.
        order: k.

    Returns:
        The source.

    Example:
        >>> bool(chain(Config(), 3).kernel.min() >= 0.05)
        True
    """
    import jax

    from experiments.sources import clipped_dirichlet_source

    key = jax.random.fold_in(jax.random.key(config.chain_seed), order)
    return clipped_dirichlet_source(key, order, minimum=config.minimum)


def _trained(
    config: Config, source: MarkovSource, order: int, size: int, seed: int, run_dir: Path
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Steps, gaps at them, and the references of one model."""
    from experiments.tokenization.theory import log_probability
    from experiments.tokenization.token_rows import binary_tokenizer, draw_rows, n_gram_loss
    from experiments.tokenization.transformer import language_modelling, pad_rows, transformer
    from experiments.training.data import examples
    from experiments.training.loop import train

    counts = {
        "tokenizer": -(-config.tokenizer_characters // config.length),
        "training": config.train.steps * config.train.batch_size,
        "evaluation": config.evaluation_rows,
        "reference": 2 * config.reference_rows,
    }
    rows = draw_rows(source, seed, counts, config.length)
    tokenizer = binary_tokenizer(rows["tokenizer"], config.tokenizer_characters, size)
    fit, fresh = tokenizer.encode_batch(rows["training"]), tokenizer.encode_batch(rows["evaluation"])
    model = transformer(size, config.length, layers=config.layers, width=config.width, heads=1)
    task = language_modelling(model, pad_rows(fresh), config.length)
    label = f"order {order}, {size} tokens, seed {seed}"
    folder = run_dir / "training" / label.replace(", ", "-").replace(" ", "")
    # The rows are independent: there is nothing to shuffle.
    data = examples(pad_rows(fit), seed=seed, shuffle=False)
    outcome = train(config.train, task, data, folder, seed=seed, label=label)
    own = -float(log_probability(source, rows["evaluation"]).sum()) / rows["evaluation"].size
    references = {
        "own_code_length": own,
        "unigram_entropy": source.unigram_entropy(),
        "entropy_rate": source.entropy_rate(),
        "token_unigram": n_gram_loss(tokenizer, rows["reference"], 1),
        "token_bigram": n_gram_loss(tokenizer, rows["reference"], 2),
        "characters_per_token": rows["evaluation"].size / sum(map(len, fresh)),
    }
    return outcome.evaluation["step"], np.asarray(outcome.evaluation["per_symbol"]) - own, references


def measure(last: dict[tuple[int, int], np.ndarray]) -> dict[str, list[float]]:
    """The values of the claims, as far as their models were trained.

    Args:
        last: (order, dictionary size) -> last gaps (seeds,).

    Returns:
        claim id -> one value per seed.

    Example:
        >>> gaps = {(4, 2): [0.3], (4, 4): [0.2], (4, 7): [0.05], (4, 10): [0.04]}
        >>> found = measure({model: np.array(values) for model, values in gaps.items()})
        >>> [round(values[0], 3) for values in found.values()]
        [-0.06, 0.01]
    """
    measured = {}
    for order in (2, 4):
        if {(order, 2), (order, 10)} <= set(last):
            measured[f"tokenization/F3-order-{order}"] = (last[order, 10] - last[order, 2] / 3).tolist()
    sizes = [(4, size) for size in (2, 4, 7, 10)]
    if set(sizes) <= set(last):
        falls = [last[smaller] - last[larger] for smaller, larger in pairwise(sizes)]
        measured["tokenization/F6-gap-falls-with-dictionary"] = np.min(falls, axis=0).tolist()
    return measured


def plot(result: StoredResult) -> Figure:
    """Gap against updates, one panel per order, one colour per dictionary; dashed and dotted: token unigram, bigram."""
    from matplotlib import pyplot as plt

    models = [tuple(model) for model in result.config["models"]]
    orders = sorted({order for order, _ in models})
    table = {name: np.array(column) for name, column in result.tables["models"].items()}
    figure, axes = plt.subplots(1, len(orders), figsize=(5 * len(orders), 3.8), layout="constrained", squeeze=False)
    colours = {2: "#0072B2", 4: "#E69F00", 7: "#CC79A7", 10: "#009E73"}
    for axis, order in zip(axes[0], orders, strict=True):
        for size in [size for own, size in models if own == order]:
            curve, here = result.series[f"order {order}, {size} tokens"], (table["order"] == order)
            colour = colours.get(size, "#999999")
            label = "characters" if size == 2 else f"{size} BPE tokens"
            axis.plot(curve["step"], curve["gap"].mean(axis=0), color=colour, label=label)
            here &= table["size"] == size
            for name, style in {"token_unigram": "--", "token_bigram": ":"}.items():
                level = (table[name] - table["entropy_rate"])[here].mean()
                axis.axhline(level, color=colour, linestyle=style, linewidth=0.8)
        single = (table["unigram_entropy"] - table["entropy_rate"])[table["order"] == order].mean()
        axis.axhline(single, color="black", linewidth=0.8, label="H(pi)")
        axis.axhline(0, color="black", linewidth=1.2, label="entropy rate")
        axis.set(xlabel="updates", ylabel="gap, nats per character", title=f"random chain of order {order}")
        axis.set_ylim(top=1.3 * single)
        axis.legend(fontsize=7)
    return figure
