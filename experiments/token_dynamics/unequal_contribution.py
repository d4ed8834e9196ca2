"""Do tokens that should grow faster contribute more to the gradient during training?

The abstract of arXiv 2410.03292 says that in the divergent scenario tokens diverge at different rates and therefore
contribute unequally to the updates in training. What is measured was written down before anything was trained, but
for the two quantities that are named so:

- **Models**: small causal language models of Mamba, with free projections and with those of refinement 1 that make the
  input-output matrix positive, the only divergent scenario that a layer of Mamba has (a free one is always mixed).
- **When**: after a quarter, half, three quarters and all of the training; the initial values are shown beside them.
- **Share of the gradient**: the gradient of a sequence's loss with respect to the kernel of `x_proj` (S_B, S_C and the
  first factor of S_Delta, as they act, the weights of the analysis) is a sum over tokens of outer products g_l x_l^T.
  A token's share is |g_l| |x_l| over the sum of these over the sequence. All layers; held-out sequences, which are to
  a training of less than an epoch what its next batch is.
- **Predicted rate**: d ln|x_l| / dt of the continuous limit that starts from the layer's own tokens, that is
  <x_l, y_l> / |x_l|^2 with y the recurrence's output, from the layer's own S_B, S_C, S_Delta and A. The paper's
  importance is beside it: S_Delta x_l, here its mean over channels.
- **Agreement**: Spearman's rank correlation over the tokens of a sequence; mean over sequences, layers and the four
  checkpoints. "Ordered alike" asks for 0.1 at least, by convention a small effect.
- **Controls**: the predicted rates permuted among the tokens of the sequence, which must give 0, and those of another
  sequence at the same positions, which gives what position alone explains: late tokens have more before them, and
  early ones have an effect on more losses. Two plain predictors are in the table: the token's norm, which is a factor
  of its share, and its position. Added after trials with seeds that are not reported: the correlation with the rate
  while the norm is held fixed, and that with the size of the rate, as those trials had large shares at both ends.

Rates at fixed weights do not have to carry over to gradients: the paper's "therefore" is what is tested here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.token_dynamics.text_models import SizeConfig, TextConfig, append_row, check_kept, recipe
from experiments.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from lightnet.backbone import CausalLM

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="abstract",
    minutes={"smoke": 0.3, "cpu": 3},
)
MODELS: dict[str, dict[str, Any]] = {"free": {}, "positive": {"scenario": "positive"}}
PREDICTORS = ("rate", "size of rate", "importance", "norm", "position")
CONTROLS = ("rate, norm fixed", "rate of another", "shuffled rate")
COLOURS = ("#D55E00", "#CC79A7", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#777777", "black")
BINS = 8


@dataclass(frozen=True)
class Config(results.Config):
    """The text, the models and their training. A seed decides initial values, order and held-out documents."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text."""
    size: SizeConfig = field(default_factory=SizeConfig)
    """Of the models."""
    train: TrainConfig = field(default_factory=lambda: recipe(400, 4))
    """The training of every model; its kept checkpoints are what is looked into."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_kept(self.train)


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        text=TextConfig(folds=40, length=16, analysed=4),
        size=SizeConfig(layers=1, width=8, states=3),
        train=recipe(4, 2, batch_size=4),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "token_dynamics/abstract-unequal-contribution",
        "positive model: rank correlation of a token's share of the gradient and its predicted rate, minus that with "
        "shuffled rates",
        "above",
        0.1,
    ),
    Claim(
        "token_dynamics/unequal-contribution-free",
        "free model: rank correlation of a token's share of the gradient and its predicted rate, minus that with "
        "shuffled rates",
        "above",
        0.1,
        kind="ours",
    ),
    Claim(
        "token_dynamics/unequal-contribution-position",
        "positive model: rank correlation of a token's share of the gradient and its predicted rate, minus that with "
        "the rates of another sequence at the same positions",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/unequal-contribution-norm",
        "positive model: partial rank correlation of a token's share of the gradient and its predicted rate, its norm "
        "held fixed",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/unequal-contribution-shuffled",
        "rank correlation of a token's share of the gradient and shuffled rates, mean of both models",
        "within",
        0.0,
        tolerance=0.02,
        kind="control",
    ),
    Claim(
        "token_dynamics/importance-rate",
        "positive model: rank correlation of a token's importance S_Delta x and its predicted rate, minus that with "
        "shuffled rates",
        "above",
        0.1,
    ),
    Claim(
        "token_dynamics/importance-gradient",
        "positive model: rank correlation of a token's share of the gradient and its importance S_Delta x",
        "above",
        0.1,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed, and look into its checkpoints."""
    from experiments.runs import record_data
    from experiments.token_dynamics.text_models import build, read_texts, train_kept

    texts, data = read_texts(config.text, config.seeds)
    record_data(run_dir, data)
    rows: dict[str, list] = {"model": [], "seed": [], "updates": [], "layer": [], "tokens": [], "predictor": []}
    rows["correlation"] = []
    shares: dict[str, list] = {"model": [], "seed": [], "updates": [], "layer": [], "share of the first tenth": []}
    losses: dict[str, list] = {"model": [], "seed": [], "updates": [], "nats per byte": []}
    by_rate: dict[str, np.ndarray] = {}
    for name, options in MODELS.items():
        model = build(config.size, config.text.vocabulary, remat=config.train.remat, **options)
        look, curves = looking(model), []
        for seed, text in texts.items():
            kept = train_kept(config.train, model, text, run_dir / "training" / f"{name}-seed{seed}", seed=seed)
            for step, loss, variables in zip(kept.steps, kept.losses, kept.states, strict=True):
                append_row(losses, name, seed, int(step), float(loss))
                layers = look(variables, text.analysed)
                for layer, found in enumerate(layers):
                    place = (name, seed, int(step), layer)
                    append_row(shares, *place, float(largest(found["share"], 0.1).mean()))
                    for pair, value in correlations(found, np.random.default_rng([seed, int(step), layer])).items():
                        append_row(rows, *place, *pair, value)
            curves.append(np.mean([in_bins(found["rate"], found["share"], BINS) for found in layers], axis=0))
        by_rate[name] = np.stack(curves)
    tables = {"correlations": rows, "shares": shares, "losses": losses}
    return Result(_measured(config, rows), tables, {"relative share by rate": by_rate}, data)


def looking(model: CausalLM) -> Callable[[Any, np.ndarray], list[dict[str, np.ndarray]]]:
    """A function of variables and rows of tokens (n, L + 1): for each layer what there is of each token, (n, L) each.

    Args:
        model: a language model of Mamba.

    Returns:
        The function, which is compiled once: "share" of the gradient, predicted "rate", "importance" and "norm".
    """
    import jax
    import jax.numpy as jnp

    from ssm.dynamics.analysis import activations, growth_rates, importance
    from ssm.dynamics.contributions import contributions, shares

    @jax.jit
    def found(variables: Any, tokens: Any) -> list[dict[str, Any]]:
        inputs, targets = tokens[:, :-1], tokens[:, 1:, None]

        def loss(logits: Any) -> Any:
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets, axis=-1).sum()

        layers = activations(model, variables, inputs).layers
        parts = contributions(model, variables, inputs, loss)
        return [
            {
                "share": shares(part.norms),
                "rate": growth_rates(layer),
                "importance": importance(layer),
                "norm": jnp.linalg.norm(part.inputs, axis=-1),
            }
            for layer, part in zip(layers, parts, strict=True)
        ]

    return lambda variables, tokens: jax.tree.map(np.asarray, found(variables, tokens))


def correlations(found: Mapping[str, np.ndarray], random: np.random.Generator) -> dict[tuple[str, str], float]:
    """Mean rank correlations of what there is of the tokens of a layer.

    Args:
        found: "share", "rate", "importance" and "norm", (n, L) each.
        random: permutes.

    Returns:
        ("share", name) for all PREDICTORS and CONTROLS, and importance with the rate and shuffled rates -> mean.
    """
    rate = found["rate"]
    # Neighbouring rows are of the same document.
    others = {
        "size of rate": np.abs(rate),
        "position": np.broadcast_to(np.arange(rate.shape[1]), rate.shape),
        "shuffled rate": random.permuted(rate, axis=1),
        "rate of another": np.roll(rate, len(rate) // 2, axis=0),
    }
    pairs = {("share", name): values for name, values in {**found, **others}.items() if name != "share"}
    pairs |= {("importance", "rate"): rate, ("importance", "shuffled rate"): others["shuffled rate"]}
    by_pair = {pair: rank_correlation(found[pair[0]], values) for pair, values in pairs.items()}
    with_norm = rank_correlation(rate, found["norm"])
    by_pair["share", "rate, norm fixed"] = partial(by_pair["share", "rate"], by_pair["share", "norm"], with_norm)
    return {pair: float(values.mean()) for pair, values in by_pair.items()}


def partial(first_second: np.ndarray, first_third: np.ndarray, second_third: np.ndarray) -> np.ndarray:
    """The correlation of two quantities with a third held fixed, from the three correlations.

    Args:
        first_second: of the two.
        first_third: of the first and the third.
        second_third: of the second and the third.

    Returns:
        (r_12 - r_13 r_23) / sqrt((1 - r_13^2) (1 - r_23^2)).

    Example:
        >>> partial(np.array(0.5), np.array(0.5), np.array(0.8)).round(4).tolist()  # nearly all by the third
        0.1925
    """
    explained = first_third * second_third
    return (first_second - explained) / np.sqrt((1 - first_third**2) * (1 - second_third**2))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; equal values share their mean rank.

    Args:
        a: (..., L).
        b: (..., L).

    Returns:
        (...), between -1 and 1; NaN where all values of one are equal.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.0, 5.0, 1.0])).round(6).tolist()
        0.5
    """
    from scipy.stats import rankdata

    left, right = (rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (a, b))
    with np.errstate(invalid="ignore"):
        return (left * right).sum(axis=-1) / np.sqrt(np.square(left).sum(axis=-1) * np.square(right).sum(axis=-1))


def largest(shares: np.ndarray, part: float) -> np.ndarray:
    """What the tokens with the largest shares have together.

    Args:
        shares: (..., L).
        part: of the tokens, rounded up to whole ones.

    Returns:
        (...); equal shares give the part itself.

    Example:
        >>> largest(np.array([0.1, 0.6, 0.2, 0.1]), 0.5).round(6).tolist()
        0.8
    """
    count = math.ceil(part * shares.shape[-1])
    return np.sort(shares, axis=-1)[..., -count:].sum(axis=-1)


def in_bins(rate: np.ndarray, share: np.ndarray, bins: int) -> np.ndarray:
    """Mean share, relative to that of equal shares, of the tokens of a sequence in the order of their rates.

    Args:
        rate: (n, L).
        share: (n, L).
        bins: of about as many tokens each, the slowest first.

    Returns:
        (bins,).

    Example:
        >>> in_bins(np.array([[3.0, 1.0, 2.0, 4.0]]), np.array([[0.3, 0.1, 0.2, 0.4]]), 2).round(6).tolist()
        [0.6, 1.4]
    """
    ordered = np.take_along_axis(share, np.argsort(rate, axis=1), axis=1) * share.shape[1]
    return np.array([part.mean() for part in np.array_split(ordered, bins, axis=1)])


def _measured(config: Config, rows: Mapping[str, list]) -> dict[str, Any]:
    """One value per seed: means over layers and over what was kept of the training but its start."""
    columns = {name: np.array(column) for name, column in rows.items()}

    def mean(model: str, tokens: str, predictor: str) -> np.ndarray:
        wanted = (columns["model"] == model) & (columns["tokens"] == tokens) & (columns["predictor"] == predictor)
        wanted &= columns["updates"] > 0
        return np.array([columns["correlation"][wanted & (columns["seed"] == seed)].mean() for seed in config.seeds])

    rate = {name: mean(name, "share", "rate") for name in MODELS}
    shuffled = {name: mean(name, "share", "shuffled rate") for name in MODELS}
    importance = mean("positive", "importance", "rate") - mean("positive", "importance", "shuffled rate")
    found = {
        "abstract-unequal-contribution": rate["positive"] - shuffled["positive"],
        "unequal-contribution-free": rate["free"] - shuffled["free"],
        "unequal-contribution-position": rate["positive"] - mean("positive", "share", "rate of another"),
        "unequal-contribution-norm": mean("positive", "share", "rate, norm fixed"),
        "unequal-contribution-shuffled": (shuffled["positive"] + shuffled["free"]) / 2,
        "importance-rate": importance,
        "importance-gradient": mean("positive", "share", "importance"),
    }
    return {f"token_dynamics/{name}": values for name, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """Rank correlation of each predictor with the share of the gradient, and the share in the order of the rates."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["correlations"].items()}
    colours = dict(zip((*PREDICTORS, *CONTROLS), COLOURS, strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    for axis, model in zip(axes, MODELS, strict=False):
        wanted = (table["model"] == model) & (table["tokens"] == "share")
        steps = np.unique(table["updates"])
        for name in colours:
            chosen = wanted & (table["predictor"] == name)
            means = [table["correlation"][chosen & (table["updates"] == step)].mean() for step in steps]
            axis.plot(steps, means, "-" if name in PREDICTORS else "--", color=colours[name], label=name)
        axis.axhline(0, color="0.8", linewidth=1, zorder=0)
        axis.set(title=f"{model} projections", xlabel="updates", ylim=(-0.5, 0.75))
    axes[0].set(ylabel="rank correlation with the share")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=8, fontsize=8)
    by_rate = result.series["relative share by rate"]
    for (name, curves), colour in zip(by_rate.items(), ("#0072B2", "#D55E00"), strict=True):
        axes[2].plot(np.arange(1, BINS + 1), curves.T, color=colour, alpha=0.25, linewidth=1)
        axes[2].plot(np.arange(1, BINS + 1), curves.mean(axis=0), color=colour, marker="o", markersize=3, label=name)
    axes[2].axhline(1, color="0.8", linewidth=1, zorder=0)
    axes[2].set(xlabel=f"tokens by predicted rate, {BINS} parts", ylabel="share of the gradient, 1 is equal")
    axes[2].legend(fontsize=8)
    return figure
