"""Masked language modelling of WikiText-103: LightNet without an order against other mixers at equal parameters.

Only the published setting is here, models of BERT's base size and 50,000 updates of 512 rows of 512 tokens, and **it
has not been run**: tests run two steps of it, with one block, on generated articles in the format of the files.
`lightnet/masked_lm` compares on the standard library's sources, at equal time. The text and GPT-2's tokenizer, which is
RoBERTa's too, are files that must be there, see `experiments.sources.wikitext`.

The recipe is that of the same group's TNN, RoBERTa's way on this text, which LightNet may have reused; unconfirmed, as
the size is. What differs from it: AdamW's epsilon is 1e-8 (1e-6 there), dropout is on embedded tokens and on what
blocks add, and weight decay acts on kernels of dense layers alone. Of the 15 % of the tokens that are to be told, 80 %
are masked, 10 % are another token drawn uniformly, and 10 % are left (Devlin et al., arXiv 1810.04805), drawn anew at
every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.lightnet import wikitext103
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from experiments.training.task import Task

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="bidirectional language modelling table (known from a review only)",
    # A guess: twelve trainings of 8e18 operations, 28 hours each at 8e13 a second.
    minutes={"paper": 20_000},
)
LIGHTNET, TWO_SCANS = "lightnet+both", "multiplicative-2+both"


@dataclass(frozen=True)
class Config(results.Config):
    """The models, the text and the training."""

    models: tuple[str, ...] = (LIGHTNET, "linear+both", "softmax+lrpe", TWO_SCANS)
    """Mixer and positions, joined by +."""
    scan_layers: bool = False
    """Compile one block and loop over all; takes more memory and traffic where blocks are not computed again."""
    num_layers: int = 12
    """Blocks; width and heads are those of `lightnet.models.MASKED_LMS["base"]`."""
    rate: float = 0.15
    """Share of the tokens that is to be told."""
    dropout: float = 0.1
    """Rate, see `lightnet.backbone.Backbone`."""
    text: wikitext103.Config = field(default_factory=wikitext103.Config)
    """The files and the length of a row; its models and training are not used."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=50_000,
            batch_size=512,
            device_batch=32,  # the logits of 32 rows are 3.3 GB
            precision="bfloat16",
            eval_every=5000,
            optimizer=OptimizerConfig(
                learning_rate=5e-4, schedule="linear", warmup=3000 / 50_000, b2=0.98, weight_decay=0.2, clip_norm=1.0
            ),
            checkpoint=CheckpointConfig(every=1000),
        )
    )
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("num_layers", self.num_layers, 1)
        require("rate", self.rate, 1e-3, 1)
        require("dropout", self.dropout, 0, below=1)
        require("train.eval_every", self.train.eval_every, 1)
        for model in self.models:
            read_model(model, "models", "text")


PRESETS = {"paper": Config()}

CLAIMS = (
    Claim(
        "lightnet/wikitext103-masked-over-two-scans",
        "test loss of LightNet with both encodings minus that of two multiplicative scans, nats per token to be told",
        "below",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    import hashlib

    from experiments.equal_size import count_parameters
    from experiments.runs import record_data
    from experiments.sources.wikitext import read_wikitext
    from experiments.training.loop import train

    parts = read_wikitext(config.text.text_dir)
    text = wikitext103.tokens(config.text, parts)
    data = {corpus.name: corpus.sha256 for corpus in parts.values()}
    data["tokenizer"] = hashlib.sha256(str(text.vocabulary.tokenizer).encode()).hexdigest()
    record_data(run_dir, data)
    rows = {part: {"tokens": found["tokens"][:, :-1]} for part, found in text.rows.items()}
    table: dict[str, list] = {"model": [], "seed": [], "part": [], "nats": [], "perplexity": [], "parameters": []}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in config.models}
    for name, model in models_of(config, len(text.vocabulary.lengths)).items():
        parameters = count_parameters(model, np.zeros((1, 8), np.int32))
        for seed in config.seeds:
            task = masked_task(config, model, {part: rows[part] for part in ("valid", "test")})
            folder = run_dir / "training" / f"{name}-seed{seed}"
            found = train(config.train, task, rows["train"], folder, seed=seed, label=folder.name).evaluation
            for part in ("valid", "test"):
                nats = float(found[part][-1])
                for column, entry in zip(
                    table.values(), (name, seed, part, nats, np.exp(nats), parameters), strict=True
                ):
                    column.append(entry)
            curves[name].append(found["valid"])
            steps = found["step"]
    series = {name: {"step": steps, "nats": np.stack(losses)} for name, losses in curves.items()}
    return Result(measured=_measured(table), tables={"losses": table}, series=series, data=data)


def models_of(config: Config, vocab_size: int) -> dict[str, Any]:
    """The models of a configuration by name, all with as many parameters as LightNet with both encodings.

    Args:
        config: names and sizes.
        vocab_size: tokens without the mask, whose id it is.

    Returns:
        name -> model.
    """
    from experiments.equal_size import count_parameters, hidden_for
    from experiments.mixers import mixer, positions
    from lightnet.models import MASKED_LMS, masked_lm

    size, tokens = replace(MASKED_LMS["base"], num_layers=config.num_layers), np.zeros((1, 8), np.int32)

    def build(name: str, hidden: int) -> Any:
        kind, encodings = read_model(name, "models", "text")
        return masked_lm(
            replace(size, hidden=hidden),
            vocab_size,
            mixer=mixer(kind, causal=False),
            remat=config.train.remat,
            dropout=config.dropout,
            scan_layers=config.scan_layers,
            **positions(encodings, length=config.text.length),
        )

    parameters = count_parameters(build(LIGHTNET, size.glu), tokens)

    def of_equal_size(name: str) -> Any:
        make = partial(build, name)
        return make(hidden_for(lambda hidden: count_parameters(make(hidden), tokens), parameters))

    return {name: of_equal_size(name) for name in config.models}


def corrupted(tokens: jax.Array, key: jax.Array, rate: float, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """What a model reads, and which tokens it is to tell.

    Args:
        tokens: (B, L).
        key: random key.
        rate: share of the tokens to be told.
        vocab_size: number of tokens, and the id of the mask.

    Returns:
        Tokens (B, L), of those to be told 80 % masked, 10 % drawn uniformly and 10 % as they are; and (B, L), true at
        tokens to be told.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> read, told = corrupted(jnp.zeros((2, 500), int), jax.random.key(0), 0.15, 7)
        >>> bool((read == 0)[~told].all()), bool(0.1 < told.mean() < 0.2)
        (True, True)
    """
    import jax
    import jax.numpy as jnp

    choosing, changing, drawing = jax.random.split(key, 3)
    told = jax.random.bernoulli(choosing, rate, tokens.shape)
    share = jax.random.uniform(changing, tokens.shape)
    drawn = jax.random.randint(drawing, tokens.shape, 0, vocab_size, tokens.dtype)
    changed = jnp.where(share < 0.8, vocab_size, jnp.where(share < 0.9, drawn, tokens))
    return jnp.where(told, changed, tokens), told


def masked_task(config: Config, model: Any, held_out: dict[str, dict[str, np.ndarray]]) -> Task:
    """The mean loss per token to be told.

    Args:
        config: the share, and how many rows are computed at once.
        model: a `lightnet.heads.MaskedLM`.
        held_out: "tokens" (N, L) of the parts to evaluate on, each row with the same places to be told at all times.

    Returns:
        The task.
    """
    import jax
    import jax.numpy as jnp

    from experiments.training.task import Loss, Task
    from experiments.training.validation import validation

    def per_row(variables: Any, tokens: Any, read: Any, told: Any, **dropping: Any) -> dict[str, Any]:
        logits = model.apply(variables, read, **dropping)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        return {"nats": jnp.where(told, -picked, 0).sum(axis=1), "told": told.sum(axis=1)}

    def loss(variables: Any, batch: Any, key: Any) -> Loss:
        corrupting, dropping = jax.random.split(key)
        read, told = corrupted(batch["tokens"], corrupting, config.rate, model.vocab_size)
        found = per_row(variables, batch["tokens"], read, told, rngs={"dropout": dropping})
        count = found["told"].sum()
        return Loss(found["nats"].sum() / jnp.maximum(count, 1), weight=count)

    def evaluated(part: dict[str, np.ndarray]) -> Any:
        tokens = part["tokens"]
        read, told = corrupted(jnp.asarray(tokens), jax.random.key(0), config.rate, model.vocab_size)
        rows = {"tokens": tokens, "read": np.asarray(read), "told": np.asarray(told)}
        at_once = config.train.device_batch or config.train.batch_size
        return validation(lambda variables, batch: per_row(variables, **batch), rows, at_once)

    means = {part: evaluated(rows) for part, rows in held_out.items()}

    def evaluate(variables: Any) -> dict[str, float]:
        found = {part: mean(variables) for part, mean in means.items()}
        return {part: sums["nats"] / sums["told"] for part, sums in found.items()}

    return Task(init=lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32)), loss=loss, evaluate=evaluate)


def _measured(table: dict[str, list]) -> dict[str, Any]:
    """The claim, if both of its models were trained: one value per seed."""
    rows = list(zip(table["model"], table["part"], table["nats"], strict=True))
    ours, theirs = (
        np.array([nats for name, part, nats in rows if (name, part) == (model, "test")])
        for model in (LIGHTNET, TWO_SCANS)
    )
    if not (len(ours) and len(theirs)):
        return {}
    return {"lightnet/wikitext103-masked-over-two-scans": ours - theirs}


def plot(result: StoredResult) -> Figure:
    """Loss on the validation part over the training: a line per seed, a style per model."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    styles = (("#D55E00", "-"), ("#0072B2", "--"), ("#009E73", "-."), ("black", ":"))
    for number, (name, curve) in enumerate(result.series.items()):
        colour, style = styles[number % len(styles)]
        for seed, nats in enumerate(curve["nats"]):
            axis.plot(curve["step"], nats, style, color=colour, label=None if seed else name)
    axis.set(xlabel="updates", ylabel="validation loss, nats per token to be told")
    axis.legend()
    axis.grid(color="0.9")
    return figure
