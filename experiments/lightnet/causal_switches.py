"""What closes the gap between LightNet and a multiplicative decay in causal language modelling, switch by switch.

LightNet with both encodings, changed in one switch at a time, at equal parameters and tokens: where its decay comes
from, a short convolution, a phantom logit, the place of the gate, the rank of TPE, the frequencies of LRPE, a rotary
encoding instead of both; beside it multiplicative decay. LightNet itself has TPE of rank 8 and LRPE on the high
frequencies. Last comes LightNet with the best setting of every switch, chosen by the mean loss on files that are
neither trained on nor reported.

The bytes, the files and the models are those of `causal_lm`, with a shorter training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.language import BYTES, ModelConfig, TextConfig
from experiments.lightnet.switches import BASE, COMBINED, VARIANTS, Variant, combined, described
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="ablations (known from reviews only), and Elucidating the Design Space of Decay (arXiv 2509.05282)",
    minutes={"smoke": 0.2, "cpu": 15},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The text, the models and their training. A seed decides initial values, order and held-out files."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """Models by name; LightNet itself must be among them."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the models."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=250,
            batch_size=8,
            eval_every=250,
            optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine"),
            checkpoint=CheckpointConfig(every=0),
        )
    )
    """The training of every model."""
    phantom_tokens: tuple[int, ...] = (0, 1, 8, 511)
    """Tokens at which the outputs with and without the phantom logit are compared."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("train.eval_every", self.train.eval_every, 1)
        require("the smallest of phantom_tokens", min(self.phantom_tokens, default=-1), 0, 10_000)
        for name in self.variants:
            if name not in VARIANTS:
                raise ValueError(f"variants: got {name!r}, expected some of {', '.join(map(repr, VARIANTS))}")
        if BASE not in self.variants:
            raise ValueError(f"variants: got none named {BASE!r}, which the others are compared with")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        variants=(BASE,),
        text=TextConfig(every=100, folds=4, length=16),
        model=ModelConfig(num_layers=1, width=8, num_heads=1, hidden=16),
        train=TrainConfig(steps=4, batch_size=4, eval_every=4),
        phantom_tokens=(0, 8),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "lightnet/ablation-parameter-sharing",
        "loss with the keys' projection as decay minus loss with a projection of its own, nats per byte",
        "below",
        0.0,
    ),
    Claim(
        "lightnet/R5-additive-or-multiplicative",
        "loss of LightNet minus loss of multiplicative decay, nats per byte",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "lightnet/R7-short-convolution",
        "loss of LightNet minus its loss with a short convolution of 4, nats per byte",
        "above",
        0.0,
        kind="ours",
    ),
    Claim(
        "lightnet/phantom-logit",
        "relative change of the recurrence's output at t = 511 by a phantom logit of 0, logits N(0, 1)",
        "within",
        0.001,
        tolerance=0.0005,
        kind="ours",
    ),
    Claim(
        "lightnet/decay-vector-over-scalar",
        "loss with a vector decay minus loss with a scalar decay, both with normalised keys, nats per byte",
        "below",
        0.0,
    ),
    Claim(
        "lightnet/decay-rope-no-gain",
        "multiplicative decay: loss without positions minus loss with a rotary encoding, over the former",
        "within",
        0.0,
        tolerance=0.01,
    ),
    Claim(
        "lightnet/high-frequency-lrpe",
        "loss with LRPE on the low-frequency half of the channels minus loss with it on the other half, nats per byte",
        "above",
        0.0,
    ),
)

# claim: the loss of the first minus that of the second
DIFFERENCES = {
    "lightnet/ablation-parameter-sharing": (BASE, "vector decay"),
    "lightnet/R5-additive-or-multiplicative": (BASE, "multiplicative"),
    "lightnet/R7-short-convolution": (BASE, "short convolution of 4"),
    "lightnet/decay-vector-over-scalar": ("vector decay", "scalar decay"),
    "lightnet/decay-rope-no-gain": ("multiplicative, no positions", "multiplicative, rotary only"),
    "lightnet/high-frequency-lrpe": ("LRPE, low frequencies", BASE),
}


def run(config: Config, run_dir: Path) -> Result:
    """Train every variant for every seed, and then the combination of the best ones."""
    from experiments.runs import record_data

    vocabulary = language.Vocabulary(None, np.ones(BYTES, np.float32))
    texts = {seed: _three_parts(config, seed) for seed in config.seeds}
    data = {f"{name}, seed {seed}": part.sha256 for seed in config.seeds for name, part in texts[seed].items()}
    record_data(run_dir, data)
    rows = {
        seed: {
            name: language.rows(vocabulary.encode(part.documents), config.text.length)
            for name, part in texts[seed].items()
        }
        for seed in config.seeds
    }
    variants = {name: VARIANTS[name] for name in config.variants}
    trained = {name: _train(config, name, variant, rows, run_dir) for name, variant in variants.items()}
    best = combined(variants, {name: float(np.mean(entry["validation"])) for name, entry in trained.items()})
    trained[COMBINED] = trained[BASE] if best == VARIANTS[BASE] else _train(config, COMBINED, best, rows, run_dir)
    effect = [phantom_effect(seed, config.phantom_tokens) for seed in config.seeds]
    losses = {name: entry["test"] for name, entry in trained.items()}
    return Result(
        measured=_measured(config, losses, effect),
        tables={
            "losses": _losses(config.seeds, trained),
            "switches": _summary(trained),
            "best": {
                "of": ["mixer", "positions"],
                "options": [str(dict(best.mixer_options)), str(dict(best.position_options))],
            },
            "phantom": {
                "token": list(config.phantom_tokens) * len(effect),
                "seed": [seed for seed in config.seeds for _ in config.phantom_tokens],
                "relative_change": [float(value) for values in effect for value in values],
            },
        },
        series={},
        data=data,
    )


def _three_parts(config: Config, seed: int) -> dict[str, Any]:
    """Training, validation and test part, whole files each."""
    rest, test = language.parts(config.text, seed)
    train, validation = rest.split(seed % config.text.folds, config.text.folds)
    return {"train": train, "validation": validation, "test": test}


def _train(config: Config, name: str, variant: Variant, rows: Mapping[int, Any], run_dir: Path) -> dict[str, Any]:
    """Train a variant with every seed: its size, and "validation" and "test" losses in nats per byte."""
    model = described(config.model, variant)
    label = name.replace(",", "").replace(" ", "-")
    found: dict[str, Any] = {
        "parameters": language.count_parameters(model.build()),
        "hidden": model.hidden,
        "validation": [],
        "test": [],
    }
    for seed in config.seeds:
        parts = dict(rows[seed])
        folder = run_dir / "training" / f"{label}-seed{seed}"
        lengths = np.ones(BYTES, np.float32)
        outcome = language.train_language_model(
            config.train, model, parts.pop("train"), parts, lengths, folder, seed=seed
        )
        for part in parts:
            found[part].append(float(outcome.evaluation[part][-1]))
    return found


def phantom_effect(seed: int, tokens: Sequence[int], width: int = 32) -> np.ndarray:
    """Relative change of a recurrence's output by an empty token with logit 0 before the sequence.

    Queries, logits and values are N(0, 1), as in a layer whose projections keep the scale of its normed inputs.

    Args:
        seed: of the operands.
        tokens: at which tokens.
        width: channels of keys and values.

    Returns:
        (len(tokens),): norm of the difference over norm of the output without it, over 64 sequences.
    """
    import jax
    import jax.numpy as jnp

    from experiments.training.update import random_stream
    from lightnet.scan import additive_recurrence

    shape = (64, max(tokens) + 1, 1, width)
    q, logits, v = jax.random.normal(random_stream(seed, "phantom"), (3, *shape))
    without, _ = additive_recurrence(q, logits, v)
    begun = [jnp.pad(operand, ((0, 0), (1, 0), (0, 0), (0, 0))) for operand in (q, logits, v)]
    change = additive_recurrence(*begun)[0][:, 1:] - without
    squares = [np.square(np.asarray(x)[:, list(tokens)]).sum(axis=(0, 2, 3)) for x in (change, without)]
    return np.sqrt(squares[0] / squares[1])


def _measured(config: Config, losses: Mapping[str, Sequence[float]], effect: Iterable[np.ndarray]) -> dict[str, Any]:
    """One value per seed of each claim whose models were trained."""
    from experiments.statistics import paired_differences

    measured: dict[str, Any] = {
        claim: paired_differences(losses[first], losses[second])
        for claim, (first, second) in DIFFERENCES.items()
        if {first, second} <= losses.keys()
    }
    if (rope := "lightnet/decay-rope-no-gain") in measured:
        measured[rope] = np.array(measured[rope]) / np.array(losses["multiplicative, no positions"])
    if 511 in config.phantom_tokens:
        at = config.phantom_tokens.index(511)
        measured["lightnet/phantom-logit"] = [float(values[at]) for values in effect]
    return measured


def _losses(seeds: Sequence[int], trained: Mapping[str, Mapping[str, Any]]) -> dict[str, list]:
    return {
        "model": [name for name in trained for _ in seeds],
        "seed": [seed for _ in trained for seed in seeds],
        "validation": [loss for entry in trained.values() for loss in entry["validation"]],
        "test": [loss for entry in trained.values() for loss in entry["test"]],
    }


def _summary(trained: Mapping[str, Mapping[str, Any]]) -> dict[str, list]:
    """A row per model: mean loss, mean difference to LightNet, and the share that this closes of the gap to the best
    model with multiplicative decay."""
    loss = {name: float(np.mean(entry["test"])) for name, entry in trained.items()}
    peers = [loss[name] for name in loss if name.startswith("multiplicative")]
    gap = loss[BASE] - min(peers) if peers else None
    return {
        "model": list(trained),
        "parameters": [entry["parameters"] for entry in trained.values()],
        "hidden": [entry["hidden"] for entry in trained.values()],
        "loss": list(loss.values()),
        "minus_lightnet": [value - loss[BASE] for value in loss.values()],
        "share_of_gap": [None if gap is None else (loss[BASE] - value) / gap for value in loss.values()],
    }


def plot(result: StoredResult) -> Figure:
    """Paired differences of the test loss to LightNet: a point per seed, a bar at the mean, a line at the reference."""
    from matplotlib import pyplot as plt

    table = result.tables["losses"]
    models = list(dict.fromkeys(table["model"]))
    loss = np.array(table["test"]).reshape(len(models), -1)
    difference = loss - loss[models.index(BASE)]
    order = np.argsort(-difference.mean(axis=1))
    figure, axis = plt.subplots(figsize=(7, 1 + 0.27 * len(models)), layout="constrained")
    for row, i in enumerate(order):
        axis.plot(difference[i], [row] * difference.shape[1], "o", color="#0072B2", markersize=4, alpha=0.6)
        axis.plot(difference[i].mean(), row, "|", color="black", markersize=12)
    axis.axvline(0, color="black", linewidth=1)
    peers = [float(difference[i].mean()) for i, name in enumerate(models) if name.startswith("multiplicative")]
    if peers:
        label = "multiplicative decay at its best"
        axis.axvline(min(peers), color="#D55E00", linewidth=1, linestyle="--", label=label)
        axis.legend(loc="best", fontsize=8)
    axis.set_yticks(range(len(models)), [models[i] for i in order])
    axis.set_xlabel("test loss minus LightNet's, nats per byte")
    axis.grid(axis="x", color="0.9")
    return figure
