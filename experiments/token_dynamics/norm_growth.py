"""Does the residual stream grow with depth, and what do convolution, gate and norms have to do with it?

The analysis of arXiv 2410.03292 leaves out convolution, gate, norms and the skip D, and in its divergent scenarios
tokens grow from layer to layer. A trained Mamba has all of these parts. Small causal language models are trained here
with all of them, without each of the first three, and without all four, which leaves the layer analysed between two
projections. What is measured is the mean over tokens of ln|x_i| - ln|x_0|, x_0 being the embedded token and x_i the
residual stream behind block i, of the trained model and of its initial values, on held-out text.

Growth by itself does not tell scenarios apart: the stream of a model that nothing is known of grows too. So there are
whole models with a positive input-output matrix, the divergent scenario, and with a negative one, the convergent; the
former should grow more if the scenario is what makes them grow.

Without the convolution there is no SiLU behind it either, and without norms there is none before the logits. Gradients
are clipped, updates that are not finite are skipped and counted, and every model has the same recipe, that of the whole
model: a part's absence may cost more at this recipe than at one of its own. Rows of 64 bytes; the losses are in the
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.token_dynamics.scenarios import check_variants
from experiments.token_dynamics.text_models import SizeConfig, TextConfig, append_row, check_kept, recipe
from experiments.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from lightnet.backbone import CausalLM

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="analysis of trained models (ours)",
    minutes={"smoke": 0.5, "cpu": 7},
)
WHOLE, BARE = "whole", "bare"
VARIANTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "positive": {"scenario": "positive"},
    "negative": {"scenario": "negative"},
    "no convolution": {"convolution": False},
    "no gate": {"gate": False},
    "no norm": {"norm": False},
    BARE: {"convolution": False, "gate": False, "norm": False, "skip": False},
}
COLOURS = ("black", "#CC79A7", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00")


@dataclass(frozen=True)
class Config(results.Config):
    """The text, the models and their training. A seed decides initial values, order and held-out documents."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Models, by what is left out of them."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text."""
    size: SizeConfig = field(default_factory=lambda: SizeConfig(layers=4))
    """Of the models."""
    train: TrainConfig = field(default_factory=lambda: recipe(400, 1))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        check_kept(self.train)
        check_variants(self.variants, VARIANTS)


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        variants=(WHOLE, BARE),
        text=TextConfig(folds=40, length=16, analysed=4),
        size=SizeConfig(layers=2, width=8, states=3),
        train=recipe(4, 1, batch_size=4),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "token_dynamics/norm-growth-with-depth",
        "trained whole model: mean over tokens of ln|x_n| - ln|x_0|, x_n behind the last block, x_0 embedded",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/norm-growth-bare",
        "trained model without convolution, gate, norms and skip: mean over tokens of ln|x_n| - ln|x_0|",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/norm-growth-scenario",
        "mean over tokens of ln|x_n| - ln|x_0| of trained positive models minus that of negative ones",
        "above",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every variant with every seed, and measure norms before and after."""
    from experiments.runs import record_data
    from experiments.token_dynamics.text_models import build, read_texts, train_kept

    texts, data = read_texts(config.text, config.seeds)
    record_data(run_dir, data)
    rows: dict[str, list] = {"variant": [], "seed": [], "updates": [], "depth": [], "growth": []}
    losses: dict[str, list] = {"variant": [], "seed": [], "nats per byte": [], "skipped updates": []}
    for name in config.variants:
        model = build(config.size, config.text.vocabulary, remat=config.train.remat, **VARIANTS[name])
        growth = growing(model)
        for seed, text in texts.items():
            folder = run_dir / "training" / f"{name.replace(' ', '-')}-seed{seed}"
            kept = train_kept(config.train, model, text, folder, seed=seed)
            append_row(losses, name, seed, float(kept.losses[-1]), kept.skipped)
            for step, variables in zip(kept.steps, kept.states, strict=True):
                for depth, value in enumerate(growth(variables, text.analysed[:, :-1])):
                    append_row(rows, name, seed, int(step), depth, float(value))
    return Result(_measured(config, rows), {"growth": rows, "losses": losses}, {}, data)


def growing(model: CausalLM) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A function of variables and tokens (B, L): the mean over tokens of ln|x_i| - ln|x_0|, (n + 1,).

    Args:
        model: a language model of Mamba.

    Returns:
        The function, which is compiled once.
    """
    import jax
    import jax.numpy as jnp

    from ssm.dynamics.analysis import activations

    @jax.jit
    def growth(variables: Any, tokens: Any) -> Any:
        logs = jnp.log(activations(model, variables, tokens).residual)
        return (logs - logs[:1]).mean(axis=(1, 2))

    return lambda variables, tokens: np.asarray(growth(variables, tokens))


def grown(config: Config, rows: Mapping[str, list], variant: str) -> np.ndarray:
    """Growth over the whole depth of the trained models of a variant, one value per seed.

    Args:
        config: the seeds.
        rows: the table "growth".
        variant: which.

    Returns:
        (seeds,).
    """
    columns = {name: np.array(values) for name, values in rows.items()}
    wanted = (columns["variant"] == variant) & (columns["depth"] == columns["depth"].max())
    wanted &= columns["updates"] == columns["updates"].max()
    return np.array([columns["growth"][wanted & (columns["seed"] == seed)].item() for seed in config.seeds])


def _measured(config: Config, rows: Mapping[str, list]) -> dict[str, Any]:
    """The claims of those variants that are there."""
    claimed = {WHOLE: "token_dynamics/norm-growth-with-depth", BARE: "token_dynamics/norm-growth-bare"}
    found = {id: grown(config, rows, name) for name, id in claimed.items() if name in config.variants}
    if {"positive", "negative"} <= set(config.variants):
        growth = [grown(config, rows, name) for name in ("positive", "negative")]
        found["token_dynamics/norm-growth-scenario"] = growth[0] - growth[1]
    return found


def plot(result: StoredResult) -> Figure:
    """Growth against depth, initial values left and trained models right; thin lines are seeds, thick ones means."""
    from matplotlib import pyplot as plt

    table = {name: np.array(values) for name, values in result.tables["growth"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, step in zip(axes, (0, table["updates"].max()), strict=True):
        for name, colour in zip(VARIANTS, COLOURS, strict=True):
            chosen = (table["variant"] == name) & (table["updates"] == step)
            curves = [table["growth"][chosen & (table["seed"] == seed)] for seed in np.unique(table["seed"][chosen])]
            for curve in curves:
                axis.plot(curve, color=colour, alpha=0.3, linewidth=1)
            if curves:
                axis.plot(np.mean(curves, axis=0), color=colour, marker="o", markersize=3, label=name)
        axis.axhline(0, color="0.8", linewidth=1, zorder=0)
        axis.set(title=f"after {step} updates" if step else "initial values", xlabel="blocks")
    axes[0].set(ylabel=r"mean of $\ln|x_i| - \ln|x_0|$")
    axes[1].legend(fontsize=8)
    return figure
