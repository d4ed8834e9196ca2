"""Generation speed: models with a state of fixed size against softmax attention, with a cache and without.

Language models of bytes with random weights, which do not matter here, generate one sequence: the same stack, a mixer
and a GLU in each block, with the same channels and blocks, and the width of the GLU with which all have about as many
parameters. State space models and LightNet go from token to token by their recurrence. Softmax attention does so with
a cache of its keys and values, as long as the generated text; or without, by a pass over all tokens so far for each
token. Of these passes a few are timed, at lengths evenly spread below the whole one, and their mean is the time per
token: that no pass is longer than it has to be favours attention.

S4's abstract (arXiv 2111.00396) says that it generates 60 times faster than a transformer. We know that from memory
only, and neither the size of the models nor whether that transformer had a cache; so both are measured. The longest
text here, 3,072 tokens, has as many as a picture of CIFAR-10 has bytes. All that is compared takes turns within a
repetition, of which each seed of the config is one. Times are wall time on the machine that runs this, with one
sequence at a time, and do not repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel

ABOUT = About(
    paper="S4 (arXiv 2111.00396), S4D, S5, Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060)",
    source="abstract of S4 (from memory)",
    minutes={"smoke": 0.2, "cpu": 3},
)
BYTES = 256
RECURRENT = ("s4+none", "s4d+none", "s5+none", "mamba+none", "mamba2+none", "lightnet+both")
SOFTMAX = "softmax+learned"
CACHED, UNCACHED = "softmax, cache", "softmax, no cache"


@dataclass(frozen=True)
class Config(results.Config):
    """The models, what they generate, and how often that is timed."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    models: tuple[str, ...] = RECURRENT
    """Mixer and positions of those with a state of fixed size, beside softmax attention."""
    lengths: tuple[int, ...] = (192, 768, 3072)
    """Tokens to generate, the shortest first."""
    passes: int = 4
    """Lengths at which attention without a cache is timed, for each number of tokens to generate."""
    calls: int = 3
    """Measured generations in a repetition, of which the median counts."""
    width: int = 128
    """Channels."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Heads of the mixers that have any."""
    hidden: int = 384
    """Width of softmax attention's GLU; other models get that with which they have as many parameters."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        for name in ("passes", "calls", "width", "layers", "heads", "hidden"):
            require(name, getattr(self, name), 1)
        for name in self.models:
            if read_model(name, "models", "causal text")[0] == "softmax":
                raise ValueError(f"models: got {name}, which is compared with anyway")
        if len(self.lengths) < 2 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths: got {self.lengths}, expected at least two, the shortest first")
        if any(length % (2 * self.passes) or not length for length in self.lengths):
            raise ValueError(f"lengths: got {self.lengths}, expected multiples of twice the passes, {self.passes}")


PRESETS = {
    "smoke": Config(
        seeds=(0,), models=("mamba+none",), lengths=(4, 8), passes=1, calls=1, width=8, layers=1, heads=2, hidden=8
    ),
    "cpu": Config(),
}


def _ratio(id: str, what: str, threshold: float, kind: Any, test: Any = "above") -> Claim:
    return Claim(f"long_memory/{id}", what, test, threshold, kind=kind)


CLAIMS = (
    _ratio(
        "s4-generation-60x",
        "tokens per second of S4 over those of softmax attention without a cache, 3,072 tokens",
        60.0,
        "paper",
    ),
    _ratio(
        "s4-generation-60x-cache",
        "tokens per second of S4 over those of softmax attention with a cache, 3,072 tokens",
        60.0,
        "paper",
    ),
    _ratio(
        "generation-faster-than-cache",
        "tokens per second of the slowest model with a state of fixed size over those of softmax attention with a "
        "cache, 3,072 tokens",
        1.0,
        "ours",
    ),
    _ratio(
        "generation-constant-time",
        "time per token of 3,072 over that of 192, the largest of the models with a state of fixed size",
        1.2,
        "ours",
        "below",
    ),
    _ratio(
        "generation-cache-grows",
        "time per token of 3,072 over that of 192 with softmax attention and a cache",
        1.2,
        "control",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time all models at every length, in every repetition."""
    models = described(config)
    columns: dict[str, list] = {
        "model": [],
        "tokens": [],
        "repetition": [],
        "us_per_token": [],
        "tokens_per_second": [],
    }
    for (name, length), times in _times(config, models).items():
        for seed, microseconds in zip(config.seeds, times, strict=True):
            row = (name, length, seed, microseconds, 1e6 / microseconds)
            for column, entry in zip(columns.values(), row, strict=True):
                column.append(entry)
    tables = {"speed": columns, "models": _sizes(config, models)}
    return Result(measured=_measured(config, columns), tables=tables, series={})


def described(config: Config) -> dict[str, LanguageModel]:
    """The models by name, softmax attention first.

    Args:
        config: their size.

    Returns:
        Descriptions, of about as many parameters each.
    """
    from experiments.equal_size import count_parameters, hidden_for
    from experiments.language_models import LanguageModel

    tokens = np.zeros((1, 8), np.int32)

    def model(name: str, hidden: int) -> LanguageModel:
        kind, _, encoding = name.partition("+")
        return LanguageModel(
            BYTES,
            mixer=kind,
            positions=encoding,
            num_layers=config.layers,
            width=config.width,
            num_heads=config.heads,
            hidden=hidden,
            length=config.lengths[-1] + 1 if encoding == "learned" else 0,
        )

    def parameters(name: str, hidden: int) -> int:
        return count_parameters(model(name, hidden).build(), tokens)

    # Without the positions, of which one token needs one.
    target = parameters("softmax+none", config.hidden)
    found = {SOFTMAX: model(SOFTMAX, config.hidden)}
    return found | {name: model(name, hidden_for(partial(parameters, name), target)) for name in config.models}


def _times(config: Config, models: Mapping[str, LanguageModel]) -> dict[tuple[str, int], list[float]]:
    """Microseconds per token of each model and number of tokens, in every repetition."""
    from experiments.scan_benchmark.measure import take_turns

    calls = {key: call for length in config.lengths for key, call in _programs(config, models, length).items()}
    every = [call for mine in calls.values() for call in mine]
    for call in every:
        call()  # compiles
    times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for _ in config.seeds:
        found = iter(take_turns(every, config.calls))
        for (name, length), mine in calls.items():
            milliseconds = float(np.mean([next(found).wall_ms for _ in mine]))
            times[name, length].append(1e3 * milliseconds / (1 if name == UNCACHED else length))
    return times


def _programs(
    config: Config, models: Mapping[str, LanguageModel], length: int
) -> dict[tuple[str, int], list[Callable[[], Any]]]:
    """What is timed for a number of tokens: one program that generates all, or several that draw one."""
    middles = [(2 * i + 1) * length // (2 * config.passes) for i in range(config.passes)]
    found = {(name, length): [generation(model, length)] for name, model in models.items() if name != SOFTMAX}
    found[CACHED, length] = [generation(models[SOFTMAX], length)]
    found[UNCACHED, length] = [whole_pass(models[SOFTMAX], middle) for middle in middles]
    return found


def _with_weights(model: LanguageModel, length: int) -> tuple[Any, Any]:
    """The model, with room for so many tokens behind a first one, and random variables."""
    import jax
    from flax import linen as nn

    built = model.build(cache=length + 1)
    return built, nn.unbox(jax.jit(built.init)(jax.random.key(0), np.zeros((1, 2), np.int32)))


def generation(model: LanguageModel, length: int) -> Callable[[], Any]:
    """A program that generates behind one token, step by step, in one compiled loop.

    Args:
        model: with a step.
        length: tokens to generate.

    Returns:
        () -> tokens (length, 1).
    """
    import jax
    import jax.numpy as jnp

    built, params = _with_weights(model, length)
    state = jax.jit(partial(built.apply, method="init_state"), static_argnums=1)(params, 1)

    @jax.jit
    def tokens(params: Any, state: Any, key: jax.Array) -> jax.Array:
        def one(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Any]:
            token, state = carry
            logits, state = built.apply(params, token, state, method="step")
            token = jax.random.categorical(key, logits)
            return (token, state), token

        first = jnp.zeros(1, jnp.int32)
        return jax.lax.scan(one, (first, state), jax.random.split(key, length))[1]

    return lambda: jax.block_until_ready(tokens(params, state, jax.random.key(0)))


def whole_pass(model: LanguageModel, length: int) -> Callable[[], Any]:
    """A program that draws one token behind so many, from a pass over all of them.

    Args:
        model: any causal one.
        length: tokens before.

    Returns:
        () -> token (1,).
    """
    import jax

    _, params = _with_weights(model, length)
    built, before = model.build(), np.zeros((1, length), np.int32)

    @jax.jit
    def token(params: Any, before: jax.Array, key: jax.Array) -> jax.Array:
        logits: Any = built.apply(params, before)
        return jax.random.categorical(key, logits[:, -1])

    return lambda: jax.block_until_ready(token(params, before, jax.random.key(0)))


def _sizes(config: Config, models: Mapping[str, LanguageModel]) -> dict[str, list]:
    """Parameters of each model, the width of its GLU, and the bytes of its state at the longest text."""
    import jax

    columns: dict[str, list] = {"model": [], "parameters": [], "hidden": [], "state_bytes": []}
    for name, model in models.items():
        built, params = _with_weights(model, config.lengths[-1])
        state = jax.eval_shape(lambda params, built=built: built.apply(params, 1, method="init_state"), params)
        columns["model"].append(CACHED if name == SOFTMAX else name)
        columns["parameters"].append(sum(leaf.size for leaf in jax.tree.leaves(params)))
        columns["hidden"].append(model.hidden)
        columns["state_bytes"].append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)))
    return columns


def _measured(config: Config, speed: Mapping[str, list]) -> dict[str, Any]:
    """Ratios of each repetition."""
    shortest, longest = config.lengths[0], config.lengths[-1]

    def time(name: str, length: int) -> np.ndarray:
        rows = zip(speed["model"], speed["tokens"], speed["us_per_token"], strict=True)
        return np.array([us for model, tokens, us in rows if (model, tokens) == (name, length)])

    def growth(name: str) -> np.ndarray:
        return time(name, longest) / time(name, shortest)

    cached, uncached = time(CACHED, longest), time(UNCACHED, longest)
    found = {
        "generation-faster-than-cache": cached / np.max([time(name, longest) for name in config.models], axis=0),
        "generation-constant-time": np.max([growth(name) for name in config.models], axis=0),
        "generation-cache-grows": growth(CACHED),
    }
    if "s4+none" in config.models:
        s4 = time("s4+none", longest)
        found |= {"s4-generation-60x": uncached / s4, "s4-generation-60x-cache": cached / s4}
    return {f"long_memory/{id}": values for id, values in found.items()}


def plot(result: StoredResult) -> Figure:
    """Left: tokens per second against the length of the text. Right: bytes that each model carries along."""
    from matplotlib import pyplot as plt

    speed, sizes = result.tables["speed"], result.tables["models"]
    names = list(dict.fromkeys(speed["model"]))
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", width_ratios=(3, 2))
    lengths = np.array(sorted(set(speed["tokens"])))
    colours = ("#000000", "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7", "#777777", "#777777")
    markers = "osv^D*sX"
    rows = list(zip(speed["model"], speed["tokens"], speed["tokens_per_second"], strict=True))
    for number, name in enumerate(names):
        medians = [np.median([rate for row, tokens, rate in rows if (row, tokens) == (name, n)]) for n in lengths]
        line = "--" if name in (CACHED, UNCACHED) else "-"
        axes[0].plot(lengths, medians, line, marker=markers[number % 8], color=colours[number % 8], label=name)
    axes[0].set(xscale="log", yscale="log", xlabel="tokens generated", ylabel="tokens per second")
    axes[0].set_xticks(lengths, [f"{n:,}" for n in lengths], minor=False)
    axes[0].minorticks_off()
    axes[0].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[1].barh(sizes["model"], np.array(sizes["state_bytes"]) / 1024, color="#0072B2")
    axes[1].set(xscale="log", xlabel=f"KiB of state or cache at {lengths[-1]:,} tokens")
    axes[1].tick_params(axis="y", labelsize=7)
    axes[1].invert_yaxis()
    return figure
