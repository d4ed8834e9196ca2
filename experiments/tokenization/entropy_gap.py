"""Without a tokenizer a transformer stays at the unigram entropy; with one it comes close to the entropy rate.

Order-2 switching source, p = q = 0.8 (Figure 2 of arXiv 2404.08335). On raw characters the loss sits on the plateau
H(pi) = 0.693 nats per character; on ten BPE tokens the same architecture comes near H_inf = 0.500. Two more lines
belong in the figure: the best unigram over the tokens, which the transformer beats, and the best bigram, which it
reaches.

The plateau is not an impossibility: its length grows with the length of the sequences, and a longer training escapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.sources import SwitchingSource
    from experiments.tokenization import Tokenizer

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 2",
    minutes={"smoke": 0.5, "cpu": 5, "gpu": 10, "paper": 40},
    headline=True,
)


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the tokenizer, the models and their training."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each: of the tokenizer, the data and the training."""
    order: int = 2
    """Order of the switching source."""
    p: float = 0.8
    """Probability that a 0 is followed by a 1, `order` symbols later."""
    q: float = 0.8
    """Probability that a 1 is followed by a 0, `order` symbols later."""
    length: int = 512
    """Characters per row."""
    dictionary_size: int = 10
    """BPE tokens, the two characters included."""
    tokenizer_characters: int = 10_000
    """Characters that BPE is trained on."""
    layers: tuple[int, ...] = (1, 2)
    """Depths to train."""
    widths: tuple[int, ...] = (20,)
    """Widths to train."""
    heads: int = 1
    """Attention heads."""
    evaluation_rows: int = 256
    """Fresh rows that the losses are measured on, the same in all evaluations of a seed."""
    reference_rows: int = 2000
    """Rows that the n-gram references are fitted on, and as many that they are scored on."""
    character_steps: int = 150
    """Updates on characters; `train.steps` counts those on tokens."""
    plateau: tuple[int, int] = (25, 130)
    """First and last update of the plateau on characters."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, eval_every=5))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("order", "length", "heads", "evaluation_rows", "reference_rows", "character_steps"):
            require(name, getattr(self, name), 1)
        require("p", self.p, 0, 1)
        require("q", self.q, 0, 1)
        require("p + q", self.p + self.q, 1e-6)
        require("dictionary_size", self.dictionary_size, 2, 10_000)
        require("tokenizer_characters", self.tokenizer_characters, 2 * self.dictionary_size)
        require("train.eval_every", self.train.eval_every, 1)
        for name in ("layers", "widths"):
            require(f"the smallest of {name}", min(getattr(self, name), default=0), 1)
        for width in self.widths:
            if width % self.heads:
                raise ValueError(f"heads: got {self.heads}, expected a divisor of each width, {width} among them")
        first, last = self.plateau
        require("the first step of plateau", first, 0, last)
        steps = max(self.train.steps, self.character_steps)
        require(
            "characters to train on (steps x batch size x length)", steps * self.train.batch_size * self.length, 1, 4e9
        )


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        length=64,
        dictionary_size=5,
        tokenizer_characters=2000,
        layers=(1,),
        widths=(8,),
        evaluation_rows=16,
        reference_rows=100,
        character_steps=10,
        plateau=(5, 10),
        train=TrainConfig(steps=10, batch_size=4, eval_every=5),
    ),
    "cpu": Config(),
    "gpu": Config(layers=(1, 2, 3, 4), evaluation_rows=1024, reference_rows=10_000, character_steps=200),
    "paper": Config(
        layers=(1, 2, 4, 8),
        widths=(10, 20, 30, 40),
        evaluation_rows=1024,
        reference_rows=10_000,
        character_steps=200,
    ),
}

CHUNK_ROWS = 1024

CLAIMS = (
    Claim(
        "tokenization/F2a-plateau",
        "characters: largest distance of the best model's loss from H(pi) on the plateau, nats per character",
        "below",
        0.004,
    ),
    Claim(
        "tokenization/F2a-above-entropy-rate",
        "characters: smallest loss of the best model on the plateau minus H_inf, nats per character",
        "above",
        0.18,
    ),
    Claim(
        "tokenization/F2b-entropy-rate",
        "BPE tokens: last loss of the best model minus H_inf, nats per character",
        "below",
        0.015,
    ),
    Claim(
        "tokenization/F2b-below-token-unigram",
        "BPE tokens: last loss of the best model minus the held-out unigram over tokens, nats per character",
        "below",
        -0.03,
        kind="ours",
    ),
    Claim(
        "tokenization/F2b-token-bigram",
        "BPE tokens: last loss of the best model minus the held-out bigram over tokens, nats per character",
        "within",
        0.0,
        tolerance=0.01,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model on characters and on tokens, for every seed."""
    from experiments.runs import record_data
    from experiments.sources import SwitchingSource
    from experiments.training.data import fingerprint

    source = SwitchingSource(config.order, config.p, config.q)
    data = {f"switching source, seed {seed}": fingerprint(_rows(source, config, seed)) for seed in config.seeds}
    record_data(run_dir, data)
    references = {
        "unigram entropy": [source.unigram_entropy()] * len(config.seeds),
        "entropy rate": [source.entropy_rate()] * len(config.seeds),
        "token unigram": [],
        "token bigram": [],
    }
    curves: dict[str, list[np.ndarray]] = {"characters": [], "BPE": []}
    steps: dict[str, np.ndarray] = {}
    for seed in config.seeds:
        rows, training_rows = _rows(source, config, seed), _training_rows(source, config, seed)
        tokenizers = _tokenizers(rows, config)
        references["token unigram"].append(_n_gram_loss(rows, config, tokenizers["BPE"], order=1))
        references["token bigram"].append(_n_gram_loss(rows, config, tokenizers["BPE"], order=2))
        for name, tokenizer in tokenizers.items():
            fit, fresh = tokenizer.encode_batch(training_rows), tokenizer.encode_batch(rows["evaluation"])
            steps[name], losses = _train_all(config, seed, name, len(tokenizer), fit, fresh, run_dir)
            curves[name].append(losses)
    stacked = {name: np.stack(losses) for name, losses in curves.items()}
    return Result(
        measured=_measured(config, steps, stacked, {name: np.array(line) for name, line in references.items()}),
        tables={"references": {"seed": list(config.seeds), **references}, "final losses": _final(config, stacked)},
        series={name: {"step": steps[name], "loss": stacked[name]} for name in stacked},
        data=data,
    )


def _rows(source: SwitchingSource, config: Config, seed: int) -> dict[str, np.ndarray]:
    """Rows of characters (N, length) of each part but the training's, from random numbers of their own."""
    from experiments.training.update import random_stream

    counts = {
        "tokenizer": -(-config.tokenizer_characters // config.length),
        "evaluation": config.evaluation_rows,
        "reference": 2 * config.reference_rows,
    }
    return {
        part: np.asarray(source.sample(random_stream(seed, part), (count, config.length)))
        for part, count in counts.items()
    }


def _training_rows(source: SwitchingSource, config: Config, seed: int) -> np.ndarray:
    """Fresh rows for every update; a longer training begins with the rows of a shorter one."""
    import jax

    from experiments.training.update import random_stream

    count = max(config.train.steps, config.character_steps) * config.train.batch_size
    keys = [jax.random.fold_in(random_stream(seed, "training"), i) for i in range(-(-count // CHUNK_ROWS))]
    return np.concatenate([source.sample(key, (CHUNK_ROWS, config.length)) for key in keys])[:count]


def _tokenizers(rows: dict[str, np.ndarray], config: Config) -> dict[str, Tokenizer]:
    from experiments.tokenization import BPETokenizer, CharacterTokenizer

    text = rows["tokenizer"].reshape(1, -1)[:, : config.tokenizer_characters]
    bpe = BPETokenizer.train(text, config.dictionary_size, alphabet=2)
    return {"characters": CharacterTokenizer.train(text, alphabet=2), "BPE": bpe}


def _n_gram_loss(rows: dict[str, np.ndarray], config: Config, tokenizer: Tokenizer, order: int) -> float:
    """Held-out loss of the n-gram over tokens, each row tokenized by itself as the transformer sees it."""
    from experiments.tokenization.losses import held_out_loss

    tokens = tokenizer.encode_batch(rows["reference"])
    fit, score = tokens[: config.reference_rows], tokens[config.reference_rows :]
    symbols = config.reference_rows * config.length
    return held_out_loss(fit, score, size=len(tokenizer), order=order, alpha=1.0, symbols=symbols)


def _train_all(
    config: Config, seed: int, name: str, size: int, fit: list[np.ndarray], fresh: list[np.ndarray], run_dir: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) and evaluation losses (models, T) of all depths and widths on the tokens of one tokenizer."""
    from experiments.tokenization.transformer import language_modelling, pad_rows, transformer
    from experiments.training.data import examples
    from experiments.training.loop import train

    # The rows are independent: there is nothing to shuffle, and more steps go on with the same order.
    data = examples(pad_rows(fit), seed=seed, shuffle=False)
    steps = config.character_steps if name == "characters" else config.train.steps
    losses = []
    for layers, width in models(config):
        # A row has at most as many tokens as characters, whatever rows are drawn.
        model = transformer(
            size, config.length, layers=layers, width=width, heads=config.heads, remat=config.train.remat
        )
        task = language_modelling(model, pad_rows(fresh), config.length)
        label = f"{name}, {layers} layers, width {width}, seed {seed}"
        folder = run_dir / "training" / label.replace(", ", "-").replace(" ", "")
        outcome = train(replace(config.train, steps=steps), task, data, folder, seed=seed, label=label)
        losses.append(outcome.evaluation["per_symbol"])
    return outcome.evaluation["step"], np.stack(losses)


def models(config: Config) -> list[tuple[int, int]]:
    """(layers, width) of every model of a configuration."""
    return [(layers, width) for layers in config.layers for width in config.widths]


def _measured(
    config: Config, steps: dict[str, np.ndarray], losses: dict[str, np.ndarray], lines: dict[str, np.ndarray]
) -> dict[str, Any]:
    """One value per claim and seed, all of the model that is best at the time, as in the figure."""
    best = {name: values.min(axis=1) for name, values in losses.items()}
    first, last = config.plateau
    plateau = best["characters"][:, (steps["characters"] >= first) & (steps["characters"] <= last)]
    final = best["BPE"][:, -1]
    measured = {
        "tokenization/F2b-entropy-rate": final - lines["entropy rate"],
        "tokenization/F2b-below-token-unigram": final - lines["token unigram"],
        "tokenization/F2b-token-bigram": final - lines["token bigram"],
    }
    if plateau.size:  # otherwise no evaluation fell on it, and its claims are not tested
        distance = np.abs(plateau - lines["unigram entropy"][:, None])
        measured["tokenization/F2a-plateau"] = distance.max(axis=1)
        measured["tokenization/F2a-above-entropy-rate"] = plateau.min(axis=1) - lines["entropy rate"]
    return measured


def _final(config: Config, losses: dict[str, np.ndarray]) -> dict[str, list]:
    columns: dict[str, list] = {"tokenizer": [], "layers": [], "width": [], "seed": [], "loss": []}
    for name, values in losses.items():
        for s, seed in enumerate(config.seeds):
            for m, (layers, width) in enumerate(models(config)):
                row = (name, layers, width, seed, float(values[s, m, -1]))
                for column, entry in zip(columns.values(), row, strict=True):
                    column.append(entry)
    return columns


def plot(result: StoredResult) -> Figure:
    """Loss against updates, characters left and tokens right: the best model's mean, a band over seeds, four lines."""
    from matplotlib import pyplot as plt

    panels = {"characters": "raw characters", "BPE": f"{result.config['dictionary_size']} BPE tokens"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        step, best = result.series[name]["step"], result.series[name]["loss"].min(axis=1)
        axis.fill_between(step, best.min(axis=0), best.max(axis=0), color="#CC79A7", alpha=0.4, linewidth=0)
        axis.plot(step, best.mean(axis=0), color="#CC79A7", linewidth=2)
        axis.set(title=f"transformer on {title}", xlabel="updates", xlim=(0, step[-1]))
        _reference_lines(axis, result, label=axis is axes[1])
    axes[0].set(ylabel="loss, nats per character", ylim=(0.48, 0.73))
    note = f"mean and range of {len(result.seeds)} seeds, best model"
    axes[0].text(0.02, 0.03, note, transform=axes[0].transAxes, color="#CC79A7", fontsize=8)
    return figure


def _reference_lines(axis: Axes, result: StoredResult, label: bool) -> None:
    # The two lowest lines nearly touch: one label above its line, the other below.
    styles = {
        "unigram entropy": ("#0072B2", "center"),
        "token unigram": ("#D55E00", "center"),
        "token bigram": ("#009E73", "bottom"),
        "entropy rate": ("black", "top"),
    }
    for line, (colour, side) in styles.items():
        level = float(np.mean(result.tables["references"][line]))
        axis.axhline(level, color=colour, linewidth=1, linestyle="--")
        if label:
            axis.annotate(
                f"{line} {level:.3f}",
                (1.01, level),
                xycoords=("axes fraction", "data"),
                color=colour,
                va=side,
                fontsize=8,
            )
