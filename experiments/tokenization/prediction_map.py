"""Is the transformer on tokens a unigram model? Its predictions against their average.

Figure 4 of arXiv 2404.08335: the predictions along one text look nearly constant, "essentially unigram". Measured over
fresh texts of the order-2 switching source, p = q = 0.8, with 20 BPE tokens: how far a prediction is from the average
one in total variation, and what the average itself would lose. Only the average is the token unigram; the model is far
better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 4",
    minutes={"smoke": 0.4, "cpu": 0.5},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the dictionary, the model and its training."""

    order: int = 2
    """order of the switching source"""
    p: float = 0.8
    """probability of 0 -> 1"""
    q: float = 0.8
    """probability of 1 -> 0"""
    dictionary_size: int = 20
    """BPE tokens"""
    tokenizer_characters: int = 10_000
    """characters that BPE is trained on"""
    length: int = 512
    """characters per row"""
    layers: int = 2
    """blocks"""
    width: int = 20
    """channels"""
    evaluation_rows: int = 64
    """fresh rows whose predictions are looked at"""
    reference_rows: int = 2000
    """rows that the n-gram references are fitted on; they are scored on the evaluation rows"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, batch_size=16, eval_every=50))
    """of the model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("order", self.order, 1)
        for name in ("p", "q"):
            require(name, getattr(self, name), 1e-3, below=1)
        require("dictionary_size", self.dictionary_size, 3, 10_000)
        require("tokenizer_characters", self.tokenizer_characters, 2 * self.dictionary_size)
        for name in ("length", "layers", "width", "evaluation_rows", "reference_rows"):
            require(name, getattr(self, name), 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        dictionary_size=5,
        tokenizer_characters=1000,
        length=32,
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
        "tokenization/F4-predictions-nearly-constant",
        "mean total variation between a prediction and the average prediction",
        "below",
        0.05,
    ),
    Claim(
        "tokenization/F4-total-variation",
        "mean total variation between a prediction and the average prediction",
        "within",
        0.26,
        0.05,
        kind="ours",
    ),
    Claim(
        "tokenization/F4-average-is-token-unigram",
        "loss of the average prediction minus that of the held-out token unigram (nats per character)",
        "within",
        0.0,
        0.002,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per seed and look at its predictions."""
    from experiments.tokenization.scoring import columns

    rows, maps = [], []
    for seed in config.seeds:
        row, first = _looked_at(config, seed, run_dir)
        rows.append({"seed": seed, **row})
        maps.append(first)
    variation = [row["total_variation"] for row in rows]
    return Result(
        measured={
            "tokenization/F4-predictions-nearly-constant": variation,
            "tokenization/F4-total-variation": variation,
            "tokenization/F4-average-is-token-unigram": [row["average"] - row["token_unigram"] for row in rows],
        },
        tables={"predictions": columns(rows)},
        series={"first text": {f"seed {seed}": one for seed, one in zip(config.seeds, maps, strict=True)}},
    )


def _looked_at(config: Config, seed: int, run_dir: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Losses and total variation of one model, and its predictions along the first text (tokens, V)."""
    from experiments.sources import SwitchingSource
    from experiments.tokenization.losses import held_out_loss
    from experiments.tokenization.token_rows import binary_tokenizer, draw_rows
    from experiments.tokenization.transformer import language_modelling, pad_rows, transformer
    from experiments.training.data import examples
    from experiments.training.loop import train

    source = SwitchingSource(config.order, config.p, config.q)
    counts = {
        "tokenizer": -(-config.tokenizer_characters // config.length),
        "training": config.train.steps * config.train.batch_size,
        "evaluation": config.evaluation_rows,
        "reference": config.reference_rows,
    }
    rows = draw_rows(source, seed, counts, config.length)
    tokenizer = binary_tokenizer(rows["tokenizer"], config.tokenizer_characters, config.dictionary_size)
    fit, fresh, reference = (tokenizer.encode_batch(rows[part]) for part in ("training", "evaluation", "reference"))
    model = transformer(len(tokenizer), config.length, layers=config.layers, width=config.width, heads=1)
    padded = pad_rows(fresh)
    task = language_modelling(model, padded, config.length)
    data = examples(pad_rows(fit), seed=seed, shuffle=False)
    outcome = train(config.train, task, data, run_dir / "training" / f"seed-{seed}", seed=seed, label=f"seed {seed}")
    laws = predictions(model, outcome.params, padded["tokens"])
    symbols = config.evaluation_rows * config.length
    unigram, bigram = (
        held_out_loss(reference, fresh, size=len(tokenizer), order=order, alpha=1.0, symbols=symbols)
        for order in (1, 2)
    )
    return {
        **compare(laws, padded["tokens"], padded["mask"], symbols),
        "token_unigram": unigram,
        "token_bigram": bigram,
        "unigram_entropy": source.unigram_entropy(),
        "entropy_rate": source.entropy_rate(),
    }, laws[0][padded["mask"][0]]


def predictions(model: Any, variables: Any, tokens: np.ndarray) -> np.ndarray:
    """The law of each token given those before it.

    Args:
        model: from `transformer`.
        variables: its parameters.
        tokens: (B, L).

    Returns:
        (B, L, V) float64.
    """
    import jax
    import jax.numpy as jnp

    start = np.full((len(tokens), 1), model.vocab_size, tokens.dtype)
    inputs = jnp.asarray(np.concatenate([start, tokens[:, :-1]], axis=1))
    laws = jax.jit(lambda variables, inputs: jax.nn.softmax(model.apply(variables, inputs)))(variables, inputs)
    return np.asarray(laws, np.float64)


def compare(laws: np.ndarray, tokens: np.ndarray, mask: np.ndarray, symbols: int) -> dict[str, float]:
    """Losses of the predictions and of their average, and how far they are apart.

    Args:
        laws: predictions (B, L, V).
        tokens: what came (B, L).
        mask: true at real tokens (B, L).
        symbols: source symbols of all rows.

    Returns:
        "model" and "average", nats per source symbol; "total_variation", the mean over tokens.

    Example:
        >>> laws = np.array([[[1.0, 0.0], [0.5, 0.5]]])
        >>> found = compare(laws, np.array([[0, 1]]), np.array([[True, True]]), symbols=2)
        >>> found["total_variation"], round(found["model"], 4), round(found["average"], 4)
        (0.25, 0.3466, 0.837)
    """
    real, chosen = laws[mask], tokens[mask]
    average = real.mean(axis=0)
    return {
        "model": -float(np.log(real[np.arange(len(chosen)), chosen]).sum()) / symbols,
        "average": -float(np.log(average[chosen]).sum()) / symbols,
        "total_variation": float(np.abs(real - average).sum(axis=-1).mean() / 2),
    }


def plot(result: StoredResult) -> Figure:
    """Left: predictions along one text, as published. Right: losses of the model and of its average, references."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(1.6, 1))
    first = result.series["first text"][f"seed {result.seeds[0]}"]
    image = axes[0].imshow(first.T, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes[0].set(xlabel="tokens read", ylabel="token", title="predicted probability of each token")
    figure.colorbar(image, ax=axes[0])
    table = result.tables["predictions"]
    names = ("unigram_entropy", "average", "token_unigram", "token_bigram", "model", "entropy_rate")
    colours = ("#0072B2", "#CC79A7", "#D55E00", "#009E73", "#E69F00", "black")
    axes[1].bar(range(len(names)), [np.mean(table[name]) for name in names], color=colours)
    axes[1].set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=7)
    variation = np.mean(table["total_variation"])
    axes[1].set(ylabel="nats per character", title=f"mean total variation to the average {variation:.2f}")
    return figure
