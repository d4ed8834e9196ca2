"""Which architectures need the tokenizer? The barrier and its escape time for LightNet, Mamba and S5.

Our addition to figure 2 of arXiv 2404.08335: the order-2 switching source, p = q = 0.8, on characters and on ten BPE
tokens. All models are the transformer of that figure with another mixer in place of attention: same embedding, learned
positions, MLP, width and training. Nothing else is made equal; the table has the number of parameters.

Attention has to learn where to look before it learns anything, hence the plateau. What is expected of the others, each
expectation a claim that was written before any of these trainings: a mixer that sees the last few symbols in separate
places when it is initialised has no barrier, so Mamba (its short convolution has four taps) and S5 (its states forget
at many rates) leave the plateau sooner, while LightNet, whose memory begins as a mean over the past, keeps it. Two
controls for the convolution: Mamba with one tap, and the source of order 6, whose symbol lies outside of four.

A model leaves the plateau when its loss falls below the middle between H(pi) and H_inf; one that never does counts as
leaving at its last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import results
from experiments.registry import unknown
from experiments.results import About, Claim, Result, StoredResult
from experiments.tokenization.rows_config import RowsConfig
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 2, other architectures (ours)",
    minutes={"smoke": 0.3, "cpu": 6},
)

# label -> mixer of `experiments.mixers` and its options
ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "transformer": ("softmax", {}),
    "LightNet": ("lightnet", {}),
    "Mamba": ("mamba", {}),
    "Mamba, one tap": ("mamba", {"conv_width": 1}),
    "S5": ("s5", {}),
}


@dataclass(frozen=True)
class Config(results.Config):
    """The architectures, the sources, the model and its training."""

    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    """what replaces attention"""
    settings: tuple[tuple[int, int], ...] = ((2, 2), (2, 10), (6, 2))
    """(order of the switching source, dictionary size); two tokens are the characters"""
    p: float = 0.8
    """probability of 0 -> 1"""
    q: float = 0.8
    """probability of 1 -> 0"""
    length: int = 256
    """characters per row"""
    rows: RowsConfig = field(default_factory=RowsConfig)
    """how much text"""
    layers: int = 1
    """blocks"""
    width: int = 20
    """channels"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch_size=16, eval_every=10))
    """of every model"""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("the number of architectures", len(self.architectures), 1)
        for name in self.architectures:
            if name not in ARCHITECTURES:
                raise ValueError(f"architectures: {unknown('architecture', name, ARCHITECTURES)}")
        require("the number of settings", len(self.settings), 1)
        for order, size in self.settings:
            require("each order of settings", order, 1, 12)
            require("each dictionary size of settings", size, 2, 10_000)
        for name in ("p", "q"):
            require(name, getattr(self, name), 1e-3, below=1)
        for name in ("length", "layers", "width"):
            require(name, getattr(self, name), 1)
        require("train.eval_every", self.train.eval_every, 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        architectures=("S5",),
        settings=((2, 4),),
        length=16,
        rows=RowsConfig(tokenizer_characters=500, pool=8, reference=8, evaluation=4),
        width=8,
        train=TrainConfig(steps=2, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "tokenization/A-mamba-no-barrier",
        "characters, order 2: step at which Mamba leaves the plateau minus that of the transformer",
        "below",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/A-s5-no-barrier",
        "characters, order 2: step at which S5 leaves the plateau minus that of the transformer",
        "below",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/A-lightnet-barrier",
        "LightNet, order 2: step at which the plateau is left on characters minus that on ten tokens",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "tokenization/A-convolution",
        "Mamba on characters, order 2: step at which the plateau is left with one tap minus that with four",
        "above",
        0.0,
        kind="control",
    ),
    Claim(
        "tokenization/A-beyond-convolution",
        "Mamba on characters: step at which the plateau is left at order 6, out of reach of four taps, minus order 2",
        "above",
        0.0,
        kind="control",
    ),
    Claim(
        "tokenization/A-tokens-help-all",
        "ten tokens, order 2: last loss of the worst architecture minus the middle of H(pi) and H_inf "
        "(nats per character)",
        "below",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every architecture in every setting with every seed."""
    from experiments.source_training import escape_steps
    from experiments.sources import SwitchingSource
    from experiments.tokenization.scoring import columns
    from experiments.tokenization.token_training import token_texts, train_on_tokens
    from experiments.tokenization.transformer import sequence_model
    from experiments.training.together import number_of_parameters

    rows, references, series = [], [], {}
    for order, size in config.settings:
        source = SwitchingSource(order, config.p, config.q)
        texts = token_texts(
            source,
            size,
            seeds=config.seeds,
            length=config.length,
            batch_size=config.train.batch_size,
            rows=config.rows,
        )
        references.append({"order": order, "size": size, **texts.references})
        for name in config.architectures:
            model = sequence_model(constructor(name), size, texts.longest, layers=config.layers, width=config.width)
            folder = run_dir / "training" / _folder(name, order, size)
            curves = train_on_tokens(config.train, model, texts, folder, seeds=config.seeds)
            loss = curves.metrics["loss"]
            series[label(name, order, size)] = {"step": curves.step, "loss": loss}
            escapes = escape_steps(curves.step, loss, source.unigram_entropy(), source.entropy_rate())
            parameters = number_of_parameters(curves.params, len(config.seeds))
            for seed, escape, last in zip(config.seeds, escapes.tolist(), loss[:, -1].tolist(), strict=True):
                row = {"architecture": name, "order": order, "size": size, "seed": seed, "parameters": parameters}
                rows.append({**row, "escape": escape, "last_loss": last})
    tables = {"models": columns(rows), "references": columns(references)}
    return Result(measured={**measure(config, rows, references)}, tables=tables, series=series)


def label(architecture: str, order: int, size: int) -> str:
    """Name of a series.

    Args:
        architecture: one of ARCHITECTURES.
        order: of the source.
        size: of the dictionary.

    Returns:
        The name.

    Example:
        >>> label("S5", 2, 10)
        'S5, order 2, 10 tokens'
    """
    return f"{architecture}, order {order}, {size} tokens"


def _folder(architecture: str, order: int, size: int) -> str:
    return label(architecture, order, size).replace(", ", "-").replace(" ", "")


def constructor(architecture: str) -> Callable[..., Any]:
    """Constructor of the mixer, to be called as `Backbone` calls it.

    Args:
        architecture: one of ARCHITECTURES.

    Returns:
        The constructor.

    Example:
        >>> constructor("Mamba, one tap")(width=8).conv_width
        1
    """
    from functools import partial

    from experiments.mixers import mixer

    kind, options = ARCHITECTURES[architecture]
    return partial(mixer(kind, causal=True, **options), num_heads=1)


def measure(config: Config, rows: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of the claims, as far as their models were trained.

    Args:
        config: seeds.
        rows: of the table `models`.
        references: of the table `references`.

    Returns:
        claim id -> one value per seed.
    """
    at = {(row["architecture"], row["order"], row["size"], row["seed"]): row for row in rows}

    def later(one: tuple[str, int, int], other: tuple[str, int, int]) -> list[float]:
        return [float(at[*one, seed]["escape"] - at[*other, seed]["escape"]) for seed in config.seeds]

    compared = {
        "A-mamba-no-barrier": (("Mamba", 2, 2), ("transformer", 2, 2)),
        "A-s5-no-barrier": (("S5", 2, 2), ("transformer", 2, 2)),
        "A-lightnet-barrier": (("LightNet", 2, 2), ("LightNet", 2, 10)),
        "A-convolution": (("Mamba, one tap", 2, 2), ("Mamba", 2, 2)),
        "A-beyond-convolution": (("Mamba", 6, 2), ("Mamba", 2, 2)),
    }
    known = {key[:3] for key in at}
    measured = {f"tokenization/{id}": later(*pair) for id, pair in compared.items() if set(pair) <= known}
    if {(name, 2, 10) for name in ARCHITECTURES} <= known:
        (line,) = (row for row in references if (row["order"], row["size"]) == (2, 10))
        middle = (line["unigram_entropy"] + line["entropy_rate"]) / 2
        measured["tokenization/A-tokens-help-all"] = [
            max(at[name, 2, 10, seed]["last_loss"] for name in ARCHITECTURES) - middle for seed in config.seeds
        ]
    return measured


def plot(result: StoredResult) -> Figure:
    """Loss against updates, one panel per setting, one colour per architecture, one line per seed."""
    from matplotlib import pyplot as plt

    settings, names = result.config["settings"], result.config["architectures"]
    lines = result.tables["references"]
    figure, axes = plt.subplots(
        1, len(settings), figsize=(4.3 * len(settings), 3.6), layout="constrained", squeeze=False
    )
    colours = dict(zip(ARCHITECTURES, ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7"), strict=True))
    styles = {"unigram_entropy": ("H(pi)", "--"), "token_unigram": ("token unigram", "-.")}
    styles |= {"token_bigram": ("token bigram", ":"), "entropy_rate": ("entropy rate", "-")}
    for i, (axis, (order, size)) in enumerate(zip(axes[0], settings, strict=True)):
        for name in names:
            curve = result.series[label(name, order, size)]
            axis.plot(curve["step"], curve["loss"].T, color=colours[name], linewidth=1)[0].set_label(name)
        for column, (title, style) in styles.items():
            axis.axhline(lines[column][i], color="black", linestyle=style, linewidth=0.8, label=title)
        what = "characters" if size == 2 else f"{size} BPE tokens"
        axis.set(xlabel="updates", ylabel="nats per character", title=f"order {order}, {what}")
        axis.legend(fontsize=6)
    return figure
