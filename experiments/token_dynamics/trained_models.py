"""What scenario trained Mambas are in: spectra, steps, importance and norms, layer by layer, against initialisation.

The paper's criterion looks at the eigenvalues of the input-output matrix M = S_C^T S_B of fixed weights, and neither
its text at hand nor its code has the statistics of any trained model. Small causal language models of Mamba are trained
here and analysed at initialisation and at evenly spaced checkpoints; `--config.checkpoint PATH` analyses any other
model beside them: a downloaded checkpoint of Mamba or Mamba-2, or a run or an export of this project.

Two criteria are applied to each layer. The paper's looks at the signs of the real parts of the N nonzero eigenvalues of
M. The rigorous one looks at the symmetric part of M: with untied projections and N at most half the channels it has
exactly N positive and N negative eigenvalues (Sylvester), so that neither training nor initialisation can make an
ordinary layer anything but mixed. What is left to measure is how far training moves the spectra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.token_dynamics.text_models import SizeConfig, TextConfig, append_row, check_kept, recipe
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssm.dynamics.analysis import Analysis

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="abstract; statistics of trained models (ours)",
    minutes={"smoke": 0.3, "cpu": 1.2, "gpu": 20},
)


SPECTRAL: tuple[str, ...] = (
    *("scenario", "label", "positive", "negative", "complex", "positive real part"),
    *("largest eigenvalue", "smallest real part", "largest real part", "trace", "definiteness"),
)


@dataclass(frozen=True)
class Config(results.Config):
    """The text, the models and their training. A seed decides initial values, order and held-out documents."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text."""
    size: SizeConfig = field(default_factory=SizeConfig)
    """Of the models."""
    drawn_layers: int = 256
    """Layers of the same size whose initial values are drawn for the spectra at random initialisation, per seed."""
    checkpoint: str = ""
    """Another model to analyse on the same text: a folder as `python -m experiments generate` takes it; empty: none."""
    train: TrainConfig = field(default_factory=lambda: recipe(400, 4))
    """The training of every model; its kept checkpoints are what is analysed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("drawn_layers", self.drawn_layers, 1)
        check_kept(self.train)


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        text=TextConfig(folds=40, length=16, analysed=4),
        size=SizeConfig(layers=2, width=8, states=3),
        drawn_layers=8,
        train=recipe(4, 2, batch_size=4),
    ),
    "cpu": Config(),
    # 11.5 M parameters and 2048 updates of 32 rows of 512 bytes: 34 MB, nearly three passes over the library.
    # 6 x parameters x tokens are 2.3e15 operations a training, a minute at 4e13 a second. The recurrences come on top,
    # and a guess for models this narrow is three times that; five trainings then take 20 minutes of an 80 GB card.
    "gpu": Config(
        text=TextConfig(corpus="standard library", folds=20, length=512),
        size=SizeConfig(layers=12, width=384, states=16),
        train=recipe(2048, 8, batch_size=32, precision="bfloat16"),
    ),
}

CLAIMS = (
    Claim(
        "token_dynamics/inertia-always-mixed",
        "share of layers, at initialisation and at every checkpoint, whose symmetric part of M has N positive and N "
        "negative eigenvalues",
        "above",
        1.0,
        kind="ours",
    ),
    Claim(
        "token_dynamics/pretrained-scenarios",
        "share of layers at the end of the training that have eigenvalues of M of both signs, the paper's mixed "
        "scenario",
        "above",
        0.95,
        kind="ours",
    ),
    Claim(
        "token_dynamics/random-spectra-complex",
        "random initialisation, N = 16: the larger of the distances of the share of complex eigenvalues of M from 0.77 "
        "and of the share with positive real part from 0.5",
        "below",
        0.03,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train a model with every seed, and analyse its checkpoints."""
    from experiments.runs import record_data
    from experiments.token_dynamics.text_models import build, read_texts, train_kept
    from ssm.dynamics.analysis import analyse

    texts, data = read_texts(config.text, config.seeds)
    other, others = _other(config)
    record_data(run_dir, data | others)
    model = build(config.size, config.text.vocabulary, remat=config.train.remat)
    layers: dict[str, list] = {}
    norms: dict[str, list] = {"seed": [], "updates": [], "depth": [], "norm": [], "nats per byte": []}
    eigenvalues: dict[str, list] = {"initial": [], "trained": []}
    for seed, text in texts.items():
        kept = train_kept(config.train, model, text, run_dir / "training" / f"seed{seed}", seed=seed)
        for step, loss, variables in zip(kept.steps, kept.losses, kept.states, strict=True):
            found = analyse(model, variables, text.analysed[:, :-1])
            _extend(layers, in_numbers(found), seed=seed, updates=int(step))
            for depth, norm in enumerate(found.residual.mean(axis=(1, 2))):
                append_row(norms, seed, int(step), depth, float(norm), float(loss))
            if step in (0, config.train.steps):
                spectra = [layer.spectrum.eigenvalues for layer in found.layers if layer.spectrum is not None]
                eigenvalues["trained" if step else "initial"].append(np.stack(spectra))
    drawn = {name: np.array(values) for name, values in _drawn(config).items()}
    tables = {"layers": layers, "norms": norms, "drawn": {"seed": list(config.seeds), **_plain(drawn)}}
    if other is not None:
        tables["checkpoint"] = in_numbers(other)
    series = {"eigenvalues": {name: np.stack(found) for name, found in eigenvalues.items()}}
    return Result(_measured(config, layers, drawn), tables, series, data | others)


def in_numbers(analysis: Analysis) -> dict[str, list]:
    """A row for each layer of an analysed model.

    Args:
        analysis: of the model.

    Returns:
        Column -> values. Without an input-output matrix, as in Mamba-2, its columns are empty text.
    """
    columns: dict[str, list] = {}
    for i, layer in enumerate(analysis.layers):
        low, middle, high = (float(value) for value in layer.step_quantiles)
        row = {
            "layer": i,
            **_of_spectrum(layer.spectrum),
            "step 5 %": low,
            "step median": middle,
            "step 95 %": high,
            "positive S_Delta x": layer.positive_scores,
            "deviation of importance": float(layer.importance.std(axis=-1).mean()),
            "rate": "" if layer.growth is None else float(layer.growth.mean()),
            "positive rates": "" if layer.growth is None else float((layer.growth > 0).mean()),
            "norm before": float(analysis.residual[i].mean()),
            "norm of update": float(layer.update.mean()),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _of_spectrum(spectrum: Any) -> dict[str, Any]:
    if spectrum is None:
        return dict.fromkeys(SPECTRAL, "")
    real = np.real(spectrum.eigenvalues)
    ends = (float(np.abs(spectrum.eigenvalues).max()), float(real.min()), float(real.max()), float(real.sum()))
    counts = (*spectrum.inertia, *shares(spectrum.eigenvalues))
    values = (spectrum.scenario, spectrum.label, *counts, *ends, definiteness(spectrum.symmetric))
    return dict(zip(SPECTRAL, values, strict=True))


def definiteness(eigenvalues: np.ndarray) -> float:
    """How much of a symmetric matrix is positive: the sum of its positive eigenvalues over that of all absolute values.

    The signs of a layer's eigenvalues cannot change, since there are always as many of either; their sizes can.

    Args:
        eigenvalues: of the matrix, not all 0.

    Returns:
        From 0, negative semi-definite, to 1, positive semi-definite.

    Example:
        >>> definiteness(np.array([3.0, -1.0]))
        0.75
    """
    return float(np.maximum(eigenvalues, 0).sum() / np.abs(eigenvalues).sum())


def shares(eigenvalues: np.ndarray) -> tuple[float, float]:
    """Share of the eigenvalues that are complex, and share with a positive real part.

    Args:
        eigenvalues: any number of them, those of real matrices.

    Returns:
        (complex, positive real part).

    Example:
        >>> shares(np.array([1 + 2j, 1 - 2j, -3, -4]))
        (0.5, 0.5)
    """
    return float((np.imag(eigenvalues) != 0).mean()), float((np.real(eigenvalues) > 0).mean())


def _drawn(config: Config) -> dict[str, list[float]]:
    """Both shares for each seed, over many layers at their initial values."""

    from experiments.training.update import random_stream
    from ssm.dynamics.scenarios import spectrum
    from ssm.initializers import uniform_init

    inner, states = 2 * config.size.width, config.size.states
    init = uniform_init(inner**-0.5)  # of `x_proj` in Mamba
    found: dict[str, list[float]] = {"complex": [], "positive real part": []}
    for seed in config.seeds:
        shape = (config.drawn_layers, 2, states, inner)
        pairs = np.asarray(init(random_stream(seed, "drawn layers"), shape), np.float64)
        values = np.concatenate([spectrum(*pair) for pair in pairs])
        for column, share in zip(found.values(), shares(values), strict=True):
            column.append(share)
    return found


def _other(config: Config) -> tuple[Analysis | None, dict[str, str]]:
    """The analysis of the model at `checkpoint`, on the first seed's held-out text, and the hash of its weights."""
    if not config.checkpoint:
        return None, {}
    import jax

    from experiments.errors import UserError
    from experiments.language import rows
    from experiments.language_models import load
    from experiments.token_dynamics.text_models import parts, spread
    from experiments.training.data import fingerprint
    from ssm.dynamics.analysis import analyse

    described, model, variables = load(config.checkpoint)
    text = "".join(parts(config.text, config.seeds[0])[1].documents)
    tokens = rows(np.array(described.encode(text), np.int32), config.text.length)["tokens"]
    try:
        analysis = analyse(model, variables, spread(tokens, config.text.analysed)[:, :-1])
    except ValueError as error:
        raise UserError(f"checkpoint: {error}") from None
    return analysis, {"checkpoint": fingerprint([np.asarray(leaf) for leaf in jax.tree.leaves(variables)])}


def _extend(table: dict[str, list], columns: Mapping[str, list], **same: Any) -> None:
    """Add rows, each with the same further values in front."""
    count = len(next(iter(columns.values())))
    for name, values in {**{name: [value] * count for name, value in same.items()}, **columns}.items():
        table.setdefault(name, []).extend(values)


def _plain(columns: Mapping[str, np.ndarray]) -> dict[str, list]:
    return {name: values.tolist() for name, values in columns.items()}


def _measured(config: Config, layers: Mapping[str, list], drawn: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One value per claim and seed."""
    columns = {name: np.array(values) for name, values in layers.items()}
    full = (columns["positive"] == config.size.states) & (columns["negative"] == config.size.states)
    last = columns["updates"] == columns["updates"].max()

    def per_seed(true: np.ndarray, among: np.ndarray) -> np.ndarray:
        return np.array([true[among & (columns["seed"] == seed)].mean() for seed in config.seeds])

    far = np.maximum(np.abs(drawn["complex"] - 0.77), np.abs(drawn["positive real part"] - 0.5))
    measured = {
        "token_dynamics/inertia-always-mixed": per_seed(full, np.ones_like(last)),
        "token_dynamics/pretrained-scenarios": per_seed(columns["label"] == "mixed", last),
    }
    # The share of complex eigenvalues depends on how many there are.
    return measured | ({"token_dynamics/random-spectra-complex": far} if config.size.states == 16 else {})


def plot(result: StoredResult) -> Figure:
    """Eigenvalues of M before and after training, their real parts' signs during it, and norms in the stream."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for name, colour in (("initial", "#777777"), ("trained", "#D55E00")):
        values = result.series["eigenvalues"][name].ravel()
        axes[0].plot(values.real, values.imag, ".", color=colour, markersize=4, alpha=0.6, label=name)
    axes[0].axvline(0, color="0.8", linewidth=1, zorder=0)
    axes[0].set(title="eigenvalues of M, all layers", xlabel="real part", ylabel="imaginary part")
    axes[0].legend(fontsize=8)
    layers = {name: np.array(values) for name, values in result.tables["layers"].items()}
    steps = np.unique(layers["updates"])
    for name, colour in (("complex", "#0072B2"), ("positive real part", "#D55E00"), ("positive rates", "#009E73")):
        means = [layers[name][layers["updates"] == step].mean() for step in steps]
        axes[1].plot(steps, means, marker="o", markersize=3, color=colour, label=name)
    axes[1].set(title="shares, mean over layers", xlabel="updates", ylim=(0, 1))
    axes[1].legend(fontsize=8)
    norms = {name: np.array(values) for name, values in result.tables["norms"].items()}
    for i, step in enumerate(steps):
        depths = np.unique(norms["depth"])
        means = [norms["norm"][(norms["updates"] == step) & (norms["depth"] == depth)].mean() for depth in depths]
        shade = plt.get_cmap("viridis")(i / max(1, len(steps) - 1))
        axes[2].plot(depths, means, marker="o", markersize=3, color=shade, label=f"{step} updates")
    axes[2].set(title="norm in the residual stream", xlabel="blocks before")
    axes[2].legend(fontsize=8)
    return figure
