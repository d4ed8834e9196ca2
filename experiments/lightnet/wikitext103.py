"""Causal language modelling of WikiText-103: LightNet against other mixers at equal parameters and tokens.

Only the published setting is here, 45.7 M parameters and 50,000 updates of 128 rows of 512 tokens, and **it has not
been run**: tests run two steps of it, with one block, on generated articles in the format of the files.
`lightnet/causal_lm` is the same comparison on the standard library's sources. The text and GPT-2's tokenizer are
files that must be there, see `experiments.sources.wikitext`.

The recipe is that of the same group's HGRN2, which LightNet very probably reuses; unconfirmed, as the size is. What
differs from it: dropout is on embedded tokens and on what blocks add, and weight decay acts on kernels of dense layers
alone. Of the two encodings each mixer has those of `lightnet/causal_lm`, and its number of parameters is LightNet's, by
the width of the GLU.

Perplexities are per word, as usual for this text: exp(nats of all tokens over the number of words), `<unk>` and the
end of a line being words. Rows do not overlap, so the first tokens of a row are predicted from few others; what does
not fill a row at the end is left out. The text is encoded at the start of a run, which takes some minutes (0.3 s per
MB on one core).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="autoregressive language modelling table (known from a review only)",
    # A guess: fifteen trainings of 9e17 operations, three hours each at 8e13 a second.
    minutes={"paper": 2700},
)
LIGHTNET, MAMBA = "lightnet+both", "mamba+none"
_AT_ONCE = 500
"""Articles that are encoded together: a tokenizer's own record of a token takes about a hundred bytes."""


@dataclass(frozen=True)
class Config(results.Config):
    """The models, the text and the training."""

    models: tuple[str, ...] = (LIGHTNET, "softmax+lrpe", "multiplicative+both", "multiplicative+none", MAMBA)
    """Mixer and positions, joined by +."""
    num_layers: int = 6
    """Blocks; width and heads are those of `lightnet.models.CAUSAL_LMS["44m"]`."""
    scan_layers: bool = False
    """Compile one block and loop over all; takes more memory and traffic where blocks are not computed again."""
    length: int = 512
    """Tokens per row."""
    dropout: float = 0.1
    """Rate, see `lightnet.backbone.Backbone`."""
    text_dir: str = "data/wikitext-103"
    """Folder with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens."""
    tokenizer: str = "data/gpt2/tokenizer.json"
    """GPT-2's tokenizer.json; empty: byte-level BPE of as many tokens is trained on the training part."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=50_000,
            batch_size=128,
            device_batch=32,  # the logits of 32 rows are 3.3 GB
            precision="bfloat16",
            eval_every=5000,
            optimizer=OptimizerConfig(
                learning_rate=5e-4, schedule="rsqrt", warmup=4000 / 50_000, b2=0.98, weight_decay=0.1, clip_norm=1.0
            ),
            checkpoint=CheckpointConfig(every=1000),
        )
    )
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("num_layers", self.num_layers, 1)
        require("length", self.length, 1)
        require("dropout", self.dropout, 0, below=1)
        require("train.eval_every", self.train.eval_every, 1)
        for model in self.models:
            read_model(model, "models", "causal text")


PRESETS = {"paper": Config()}

CLAIMS = (
    # The margin is that of lightnet/causal-matches-mamba.
    Claim(
        "lightnet/wikitext103-matches-mamba",
        "test loss, nats per word: LightNet with both encodings minus Mamba, over Mamba's",
        "within",
        0.0,
        tolerance=0.02,
        kind="ours",
    ),
)


@dataclass(frozen=True)
class Tokens:
    """The text as tokens.

    Attributes:
        vocabulary: what they are.
        rows: part -> "tokens" (N, L + 1).
        bytes_per_word: part -> mean.
        tokens_per_word: part -> mean.
    """

    vocabulary: language.Vocabulary
    rows: dict[str, dict[str, np.ndarray]]
    bytes_per_word: dict[str, float]
    tokens_per_word: dict[str, float]


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    import hashlib

    from experiments.runs import record_data
    from experiments.sources.wikitext import read_wikitext

    parts = read_wikitext(config.text_dir)
    text = tokens(config, parts)
    data = {corpus.name: corpus.sha256 for corpus in parts.values()}
    data["tokenizer"] = hashlib.sha256(str(text.vocabulary.tokenizer).encode()).hexdigest()
    record_data(run_dir, data)
    table: dict[str, list] = {"model": [], "seed": [], "part": [], "nats per word": [], "perplexity per word": []}
    table |= {"perplexity per token": [], "parameters": [], "hidden": []}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in config.models}
    for name, model in described(config, text.vocabulary).items():
        for seed in config.seeds:
            evaluation = _train(config, model, text, run_dir / "training" / f"{name}-seed{seed}", seed)
            size = [language.count_parameters(model.build()), model.hidden]
            for part in ("valid", "test"):
                nats = float(evaluation[part][-1]) * text.bytes_per_word[part]
                row = [name, seed, part, nats, np.exp(nats), np.exp(nats / text.tokens_per_word[part]), *size]
                for column, entry in zip(table.values(), row, strict=True):
                    column.append(entry)
            curves[name].append(evaluation["valid"] * text.bytes_per_word["valid"])
            steps = evaluation["step"]
    series = {name: {"step": steps, "nats per word": np.stack(found)} for name, found in curves.items()}
    return Result(measured=_measured(table), tables={"losses": table}, series=series, data=data)


def tokens(config: Config, parts: Any) -> Tokens:
    """Encode the three parts.

    Args:
        config: which tokenizer, and the length of a row.
        parts: of `read_wikitext`.

    Returns:
        Rows of tokens, and what a word is made of.
    """
    from experiments.sources.wikitext import count_words

    vocabulary = _vocabulary(config.tokenizer, parts["train"])
    rows, bytes_per_word, tokens_per_word = {}, {}, {}
    for part, corpus in parts.items():
        documents = corpus.documents
        pieces = [vocabulary.encode(documents[i : i + _AT_ONCE]) for i in range(0, len(documents), _AT_ONCE)]
        stream, words = np.concatenate(pieces), count_words(corpus)
        rows[part] = language.rows(stream, config.length)
        bytes_per_word[part] = float(vocabulary.lengths[stream].sum(dtype=np.float64)) / words
        tokens_per_word[part] = len(stream) / words
    return Tokens(vocabulary, rows, bytes_per_word, tokens_per_word)


def _vocabulary(path: str, text: Any) -> language.Vocabulary:
    """GPT-2's tokens, or as many of our own."""
    from experiments.sources.wikitext import GPT2_TOKENS, read_gpt2_tokenizer
    from experiments.training.recording import recorder

    # While a training is planned there is not the text to train a tokenizer on, and GPT-2's has as many tokens.
    if not path and recorder() is None:
        return language.vocabulary(GPT2_TOKENS, text)
    from tokenizers import Tokenizer

    description = read_gpt2_tokenizer(path)
    lengths = np.zeros(GPT2_TOKENS, np.float32)
    for token, i in Tokenizer.from_str(description).get_vocab().items():
        lengths[i] = len(token)  # a byte-level token is written with one character per byte
    return language.Vocabulary(description, lengths)


def described(config: Config, vocabulary: language.Vocabulary) -> dict[str, LanguageModel]:
    """The models of a configuration by name, of the size of LightNet with both encodings.

    Args:
        config: names and blocks.
        vocabulary: of the tokens.

    Returns:
        name -> description.
    """
    from experiments.language_models import LanguageModel
    from lightnet.models import CAUSAL_LMS

    size = CAUSAL_LMS["44m"]
    reference = LanguageModel(
        len(vocabulary.lengths),
        num_layers=config.num_layers,
        width=size.width,
        num_heads=size.num_heads,
        hidden=size.glu,
        length=config.length,
        tokenizer=vocabulary.tokenizer,
        scan_layers=config.scan_layers,
    )
    parameters, models = language.count_parameters(reference.build()), {}
    for name in config.models:
        mixer, positions = read_model(name, "models", "causal text")
        models[name] = language.at_equal_size(replace(reference, mixer=mixer, positions=positions), parameters)
    return models


def _train(config: Config, model: LanguageModel, text: Tokens, folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Evaluations of one training: nats per byte of the two held-out parts."""
    from experiments.language_models import describe
    from experiments.training.loop import train

    describe(folder, model)
    held_out = {part: text.rows[part] for part in ("valid", "test")}
    at_once = config.train.device_batch or config.train.batch_size
    module = model.build(remat=config.train.remat, dropout=config.dropout)
    task = language.next_token_task(module, held_out, text.vocabulary.lengths, at_once)
    return train(config.train, task, text.rows["train"], folder, seed=seed, label=folder.name).evaluation


def _measured(table: dict[str, list]) -> dict[str, Any]:
    """The claim, if both of its models were trained: one value per seed."""
    rows = list(zip(table["model"], table["part"], table["nats per word"], strict=True))
    lightnet, mamba = (
        np.array([nats for name, part, nats in rows if (name, part) == (model, "test")]) for model in (LIGHTNET, MAMBA)
    )
    if not (len(lightnet) and len(mamba)):
        return {}
    return {"lightnet/wikitext103-matches-mamba": (lightnet - mamba) / mamba}


def plot(result: StoredResult) -> Figure:
    """Perplexity per word on the validation part over the training: a line per seed, a style per model."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    styles = (("#D55E00", "-"), ("#0072B2", "--"), ("#009E73", "-."), ("black", ":"))
    for number, (name, curve) in enumerate(result.series.items()):
        colour, style = styles[number % len(styles)]
        for seed, nats in enumerate(curve["nats per word"]):
            axis.plot(curve["step"][1:], np.exp(nats[1:]), style, color=colour, label=None if seed else name)
    axis.set(xlabel="updates", ylabel="perplexity per word, validation part", yscale="log")
    axis.legend()
    axis.grid(color="0.9", which="both")
    return figure
