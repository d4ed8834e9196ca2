"""The sign of the input-output matrix at the published size: Mamba of 130 M parameters on WikiText-103.

Only the published setting is here, 25 passes of 128 rows of 1024 tokens, and **it has not been run**: tests run two
updates of it, with one block, on generated articles in the format of the files. `token_dynamics/scenario_text` is the
same comparison on embedded text. The text and GPT-2's tokenizer are files that must be there, see
`experiments.sources.wikitext`.

The recipe is that of the authors' configuration files. What differs from it: no dropout (0.3 on the last hidden state
there), the learning rate falls to 0 and not to a tenth, weight decay acts on kernels of dense layers alone, and the
precision is bfloat16 where theirs is float16. Perplexities are per token; rows do not overlap, and what does not fill a
row at the end is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.results import About, Claim, Result, StoredResult
from experiments.token_dynamics.scenarios import COLOURS, check_variants, train_variant
from experiments.token_dynamics.text_models import SizeConfig
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.sources import Corpus

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="WikiText-103 table",
    # A guess: twelve trainings of 2.3e18 operations, eight hours each at 8e13 a second.
    minutes={"paper": 5800},
)
VOCABULARY = 50_264
"""GPT-2's tokens, padded to a multiple of 8."""
_AT_ONCE = 500
"""Articles that are encoded together: a tokenizer's own record of a token takes about a hundred bytes."""


@dataclass(frozen=True)
class Config(results.Config):
    """The variants, the text and the training."""

    variants: tuple[str, ...] = ("free", "positive", "mixed", "negative")
    """Of `experiments.token_dynamics.scenarios`."""
    size: SizeConfig = field(default_factory=lambda: SizeConfig(layers=24, width=768, states=16))
    """Of the models."""
    scan_layers: bool = True
    """Compile one block and loop over all; each is computed again in the backward pass anyway."""
    length: int = 1024
    """Tokens per row."""
    text_dir: str = "data/wikitext-103"
    """Folder with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens."""
    tokenizer: str = "data/gpt2/tokenizer.json"
    """GPT-2's tokenizer.json."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=22_500,
            batch_size=128,
            device_batch=8,  # the logits of 8 rows are 1.6 GB
            precision="bfloat16",
            remat="nothing_saveable",
            eval_every=2250,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, schedule="cosine", warmup=0.01, b2=0.999, weight_decay=0.25, clip_norm=1.0
            ),
            checkpoint=CheckpointConfig(every=500),
        )
    )
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        check_variants(self.variants)
        require("length", self.length, 1)
        require("train.eval_every", self.train.eval_every, 1)


PRESETS = {"paper": Config()}

CLAIMS = (
    Claim(
        "token_dynamics/wt103-positive-best",
        "test loss: the smaller of mixed minus positive and negative minus mixed, nats per token",
        "above",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every variant with every seed."""
    import hashlib

    from experiments.runs import record_data
    from experiments.sources.wikitext import read_gpt2_tokenizer, read_wikitext

    parts, tokenizer = read_wikitext(config.text_dir), read_gpt2_tokenizer(config.tokenizer)
    data = {corpus.name: corpus.sha256 for corpus in parts.values()}
    data["tokenizer"] = hashlib.sha256(tokenizer.encode()).hexdigest()
    record_data(run_dir, data)
    rows = {part: encoded(corpus, tokenizer, config.length) for part, corpus in parts.items()}
    held_out = {part: rows[part] for part in ("valid", "test")}
    table: dict[str, list] = {"variant": [], "seed": [], "part": [], "nats per token": [], "perplexity": []}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in config.variants}
    for name in config.variants:
        for seed in config.seeds:
            outcome = train_variant(
                config.train,
                name,
                config.size,
                rows["train"],
                held_out,
                np.ones(VOCABULARY, np.float32),
                run_dir / "training" / f"{name}-seed{seed}",
                seed=seed,
                embedding=0.02,
                scan_layers=config.scan_layers,
            )
            for part in held_out:
                nats = float(outcome.evaluation[part][-1])
                for column, entry in zip(table.values(), (name, seed, part, nats, np.exp(nats)), strict=True):
                    column.append(entry)
            curves[name].append(outcome.evaluation["valid"])
    updates = {"updates": np.asarray(outcome.evaluation["step"])}
    series = {"valid": updates | {name: np.stack(found) for name, found in curves.items()}}
    return Result(measured=_measured(table), tables={"losses": table}, series=series, data=data)


def encoded(corpus: Corpus, tokenizer: str, length: int) -> dict[str, np.ndarray]:
    """A part of the text as rows of tokens.

    Args:
        corpus: the part.
        tokenizer: JSON of GPT-2's.
        length: predicted tokens per row.

    Returns:
        "tokens" (n, length + 1).
    """
    vocabulary = language.Vocabulary(tokenizer, np.ones(VOCABULARY, np.float32))
    documents = corpus.documents
    pieces = [vocabulary.encode(documents[i : i + _AT_ONCE]) for i in range(0, len(documents), _AT_ONCE)]
    return language.rows(np.concatenate(pieces), length)


def _measured(table: Mapping[str, list]) -> dict[str, Any]:
    """The claim, if its three variants were trained: one value per seed."""
    rows = list(zip(table["variant"], table["part"], table["nats per token"], strict=True))
    positive, mixed, negative = (
        np.array([nats for variant, part, nats in rows if (variant, part) == (name, "test")])
        for name in ("positive", "mixed", "negative")
    )
    if not (len(positive) and len(mixed) and len(negative)):
        return {}
    return {"token_dynamics/wt103-positive-best": np.minimum(mixed - positive, negative - mixed)}


def plot(result: StoredResult) -> Figure:
    """Perplexity per token on the validation part over the training: a line per seed, a colour per variant."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    curves = result.series["valid"]
    for name in (name for name in curves if name != "updates"):
        for seed, nats in enumerate(curves[name]):
            axis.plot(curves["updates"][1:], np.exp(nats[1:]), color=COLOURS[name], label=None if seed else name)
    axis.set(xlabel="updates", ylabel="perplexity per token, validation part", yscale="log")
    axis.legend()
    axis.grid(color="0.9", which="both")
    return figure
