"""Two layers with one head each on in-context chains of order 2: how near do they come to counting?

Row C1: figure 3 of "Transformers on Markov data: constant depth suffices" (arXiv 2407.17686), at small size. Every
sequence has a chain of its own, with rows from Dir(1, 1). The optimum is the conditional 2-gram of the context with
pseudo-count 1; the gap to it is measured by cross-entropies against the chains' own transition probabilities, on the
same sequences. The model is the GPT-2 of this folder with learned absolute positions. The published runs have 15,000
updates and also order 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.source_training import Curves

ABOUT = About(
    paper="Transformers on Markov data: constant depth suffices (arXiv 2407.17686)",
    source="Figure 3, order 2",
    minutes={"smoke": 0.3, "cpu": 3},
)


def _training(**changes: Any) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="cosine", weight_decay=1e-3)
    return TrainConfig(**{"steps": 3000, "batch_size": 16, "eval_every": 100, "optimizer": optimizer, **changes})


@dataclass(frozen=True)
class Config(results.Config):
    """The chains, the model and its training."""

    order: int = 2
    """of the chains, k"""
    length: int = 128
    """symbols that are read; as many are predicted"""
    layers: int = 2
    """blocks"""
    width: int = 32
    """channels"""
    evaluation_rows: int = 256
    """sequences that are evaluated"""
    train: TrainConfig = field(default_factory=_training)
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("order", self.order, 1, 8)
        require("length", self.length, 2)
        for name in ("layers", "width", "evaluation_rows"):
            require(name, getattr(self, name), 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        length=12,
        layers=1,
        width=8,
        evaluation_rows=4,
        train=_training(steps=4, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "markov_dynamics/C1-two-layers-one-head",
        "order 2: last cross-entropy minus that of the conditional 2-gram (nats per symbol)",
        "below",
        0.03,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per seed."""
    curves, references = _train(config, run_dir)
    last = curves.metrics["cross_entropy"][:, -1]
    gap = (last - np.array(references["optimal"])).tolist()
    return Result(
        measured={"markov_dynamics/C1-two-layers-one-head": gap} if config.order == 2 else {},
        tables={"last": {"seed": list(config.seeds), "cross_entropy": last.tolist(), "gap": gap, **references}},
        series={"training": {"step": curves.step, **curves.metrics}},
    )


def _train(config: Config, run_dir: Path) -> tuple[Curves, dict[str, list[float]]]:
    import jax
    import jax.numpy as jnp

    from experiments.markov_dynamics.chain_transformer import chain_transformer, next_symbol_loss
    from experiments.markov_dynamics.in_context_training import cross_entropy
    from experiments.source_training import train_on_source
    from experiments.sources import InContextChains

    chains = InContextChains(2, config.order)
    model = chain_transformer(config.length, layers=config.layers, width=config.width)
    loss = next_symbol_loss(model)
    sets = [evaluation_set(config, seed) for seed in config.seeds]

    def measure(params: Any, chosen: dict[str, Any]) -> dict[str, Any]:
        logits: Any = model.apply(params, chosen["symbols"][:, :-1])
        return {"cross_entropy": cross_entropy(jax.nn.log_softmax(logits), chosen["truth"])}

    curves = train_on_source(
        config.train,
        lambda key: model.init(key, jnp.zeros((1, config.length), jnp.int32)),
        lambda params, symbols: loss(params["params"], symbols),
        lambda key: chains.sample(key, (config.train.batch_size, config.length + 1)).symbols,
        run_dir / "training",
        seeds=config.seeds,
        label=f"order {config.order}",
        evaluation=sets,
        measure=measure,
    )
    names = ("unigram", "shorter", "optimal", "truth")
    references = {name: [float(cross_entropy(jnp.log(one[name]), one["truth"])) for one in sets] for name in names}
    return curves, references


def evaluation_set(config: Config, seed: int) -> dict[str, Any]:
    """Fixed sequences of a seed, and for all symbols but the first the laws of what they are compared with.

    Args:
        config: order, length and number of sequences.
        seed: of the random numbers.

    Returns:
        "symbols" (B, L + 1); laws (B, L, 2): "unigram", "shorter" and "optimal", the conditional (k-1)- and k-gram,
        and "truth".
    """
    from experiments.sources import InContextChains
    from experiments.sources.predictors import kgram_predictions, oracle_predictions
    from experiments.training.update import random_stream

    chains = InContextChains(2, config.order)
    shape = (config.evaluation_rows, config.length + 1)
    kernels, symbols = chains.sample(random_stream(seed, "evaluation"), shape)
    contexts = {"unigram": 0, "shorter": config.order - 1, "optimal": config.order}
    laws = {name: kgram_predictions(symbols, 2, context) for name, context in contexts.items()}
    laws["truth"] = oracle_predictions(kernels, symbols)
    return {"symbols": symbols, **{name: law[:, 1:] for name, law in laws.items()}}


def plot(result: StoredResult) -> Figure:
    """Cross-entropy against updates, one line per seed, with the counts of shorter contexts and the optimum."""
    from matplotlib import pyplot as plt

    curve, table = result.series["training"], result.tables["last"]
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    lines = axis.plot(curve["step"], curve["cross_entropy"].T, color="#D55E00", linewidth=1)
    lines[0].set_label(f"{result.config['layers']} layers, one head")
    order = result.config["order"]
    labels = {
        "unigram": ("#0072B2", "counts of symbols"),
        "shorter": ("#E69F00", f"counts after {order - 1} symbols"),
        "optimal": ("#009E73", f"counts after {order} symbols: optimal"),
        "truth": ("black", "the chains themselves"),
    }
    for name, (colour, label) in labels.items():
        axis.axhline(np.mean(table[name]), color=colour, linestyle="--", linewidth=1, label=label)
    axis.set(xlabel="updates", ylabel="nats per symbol", title=f"in-context chains of order {order}")
    axis.legend(fontsize=7)
    return figure
