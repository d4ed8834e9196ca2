"""Memory and time of a divergence over a large vocabulary: dense, rematerialised, in chunks of tokens, in tiles.

Forward KL of two heads with its gradients by the student's hidden states and head, in four forms:

- dense: both logits of all tokens, as one would write it;
- remat: a scan over chunks of tokens whose body is computed again in the backward pass;
- chunked: `kd.chunked_divergence`, gradients complete at the end of the forward pass;
- tiled: the same with the vocabulary in tiles too, whose logits are computed three times.

Memory is what the compiler reserves beside arguments and results, of programs that are compiled and not run, so that
the large sizes need none. Times are CPU times in turns, where the dense form fits; the values and gradients of the
forms are compared first. Each seed is a repetition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Liger kernel's chunked losses, in JAX (speed and memory: ours)",
    source="no logits of all tokens",
    minutes={"smoke": 0.1, "cpu": 2},
)
DENSE, REMAT, CHUNKED, TILED = FORMS = ("dense", "remat", "chunked", "tiled")


@dataclass(frozen=True)
class Config(results.Config):
    """Sizes that are compiled, and sizes that are timed."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Repetitions."""
    tokens: int = 2048
    """Of the programs whose memory is compared; also compiled with four times as many."""
    vocabularies: tuple[int, ...] = (8192, 32768, 151936)
    """Of them; claims are about the largest."""
    width: int = 512
    """Of the hidden states."""
    token_chunk: int = 64
    """Tokens at once, in the chunked and the rematerialised form."""
    tile: tuple[int, int] = (256, 8192)
    """Tokens and entries of the vocabulary at once, in the tiled form."""
    timed_tokens: int = 1024
    """Of the programs that are timed."""
    timed_vocabularies: tuple[int, ...] = (8192, 32768)
    """Of them; claims are about the largest."""
    calls: int = 3
    """Of each program in a repetition."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("tokens", "width", "token_chunk", "timed_tokens", "calls"):
            require(name, getattr(self, name), 1)
        for name in ("vocabularies", "timed_vocabularies", "tile"):
            require(f"the smallest of {name}", min(getattr(self, name), default=0), 1)
        for name in ("tokens", "timed_tokens"):
            if getattr(self, name) % min(self.token_chunk, getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a multiple of token_chunk")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        tokens=64,
        vocabularies=(500,),
        width=8,
        token_chunk=8,
        tile=(16, 100),
        timed_tokens=32,
        timed_vocabularies=(100,),
        calls=1,
    ),
    "cpu": Config(),
}


def _claim(name: str, quantity: str, threshold: float, kind: Any = "ours", deterministic: bool = True) -> Claim:
    return Claim(f"distillation/{name}", quantity, "below", threshold, kind=kind, deterministic=deterministic)


CLAIMS = (
    _claim("chunked-memory", "temporaries of 8,192 tokens over those of 2,048, minus 1, chunked", 0.01, "paper"),
    _claim("chunked-memory-tiled", "temporaries of 8,192 tokens over those of 2,048, minus 1, tiled", 0.01),
    _claim("chunked-memory-dense", "temporaries of the chunked form over the dense one's, vocabulary 151,936", 0.05),
    _claim("tiled-memory-dense", "temporaries of the tiled form over the dense one's, vocabulary 151,936", 0.05),
    _claim(
        "chunked-equal",
        "distance of value and gradients of both forms from the dense ones, relative to their norms, the largest",
        1e-6,
        "control",
    ),
    _claim(
        "chunked-time", "CPU time of the chunked form over the dense one's, vocabulary 32,768", 1.3, deterministic=False
    ),
    _claim(
        "tiled-time", "CPU time of the tiled form over the dense one's, vocabulary 32,768", 2.2, deterministic=False
    ),
)


def loss(config: Config, form: str) -> Callable[..., jax.Array]:
    """Token mean of forward KL.

    Args:
        config: of the chunks.
        form: one of FORMS.

    Returns:
        (h_s (T, H), W_s (V, H), h_t (T, H), W_t (V, H)) -> scalar.
    """
    import jax
    import jax.numpy as jnp

    import kd

    def dense(h_s: Any, W_s: Any, h_t: Any, W_t: Any) -> jax.Array:
        s, t = (jnp.matmul(h, W.T, precision="highest") for h, W in ((h_s, W_s), (h_t, W_t)))
        return kd.reduce_tokens(kd.token_divergence("forward_kl", s, t))

    def remat(h_s: Any, W_s: Any, h_t: Any, W_t: Any) -> jax.Array:
        size = min(config.token_chunk, len(h_s))
        chunks = tuple(h.reshape(-1, size, h.shape[1]) for h in (h_s, h_t))

        @jax.checkpoint
        def body(total: Any, chunk: Any) -> Any:
            return total + dense(chunk[0], W_s, chunk[1], W_t), None

        return jax.lax.scan(body, jnp.zeros(()), chunks)[0] / len(chunks[0])

    def chunked(*operands: Any) -> jax.Array:
        return kd.chunked_divergence("forward_kl", *operands, token_chunk=config.token_chunk)

    def tiled(*operands: Any) -> jax.Array:
        tokens, vocabulary = config.tile
        return kd.chunked_divergence("forward_kl", *operands, token_chunk=tokens, vocab_chunk=vocabulary)

    return {DENSE: dense, REMAT: remat, CHUNKED: chunked, TILED: tiled}[form]


def compiled(config: Config, form: str, tokens: int, vocabulary: int) -> Any:
    """The loss with its gradients by the student's operands, compiled for these sizes."""
    import jax

    shapes = [(tokens, config.width), (vocabulary, config.width)] * 2
    operands = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return jax.jit(jax.value_and_grad(loss(config, form), (0, 1))).lower(*operands).compile()


def operands(config: Config, tokens: int, vocabulary: int) -> list[np.ndarray]:
    """Random hidden states and heads, of which logits have a standard deviation of 2."""
    random = np.random.default_rng(0)
    shapes = [(tokens, config.width), (vocabulary, config.width)] * 2
    scales = (1.0, 2 / config.width**0.5) * 2
    drawn = [scale * random.standard_normal(shape) for scale, shape in zip(scales, shapes, strict=True)]
    return [x.astype(np.float32) for x in drawn]


def run(config: Config, run_dir: Path) -> Result:
    """Compile all sizes, compare values, and time."""
    memory = temporaries(config)
    error, times = compared(config)
    return Result(_measured(config, memory, error, times), {"memory": memory, "times": times})


def temporaries(config: Config) -> dict[str, list]:
    """Bytes beside arguments and results: a row per form and size."""
    table: dict[str, list] = {"form": [], "tokens": [], "vocabulary": [], "bytes": []}
    for vocabulary in config.vocabularies:
        for tokens in (config.tokens, 4 * config.tokens):
            for form in FORMS:
                analysis = compiled(config, form, tokens, vocabulary).memory_analysis()
                row = (form, tokens, vocabulary, int(analysis.temp_size_in_bytes))
                for column, entry in zip(table.values(), row, strict=True):
                    column.append(entry)
    return table


def compared(config: Config) -> tuple[float, dict[str, list]]:
    """The largest error of the chunked forms, and CPU times of all in turns."""
    import jax

    from experiments.scan_benchmark.measure import relative_error, take_turns

    times: dict[str, list] = {"form": [], "vocabulary": [], "repetition": [], "cpu_ms": [], "wall_ms": []}
    error = 0.0
    for vocabulary in config.timed_vocabularies:
        arrays = [jax.device_put(x) for x in operands(config, config.timed_tokens, vocabulary)]
        programs = {form: compiled(config, form, config.timed_tokens, vocabulary) for form in FORMS}
        found = {form: jax.tree.leaves(program(*arrays)) for form, program in programs.items()}
        for form in (CHUNKED, TILED):
            error = max(error, *map(relative_error, found[form], found[DENSE]))
        del found
        calls = [partial(_finished, program, arrays) for program in programs.values()]
        for seed in config.seeds:
            for form, timing in zip(programs, take_turns(calls, config.calls), strict=True):
                row = (form, vocabulary, seed, timing.cpu_ms, timing.wall_ms)
                for column, entry in zip(times.values(), row, strict=True):
                    column.append(entry)
    return error, times


def _finished(program: Any, arrays: list[Any]) -> Any:
    import jax

    return jax.block_until_ready(program(*arrays))


def _measured(config: Config, memory: dict[str, list], error: float, times: dict[str, list]) -> dict[str, Any]:
    def of(form: str, tokens: int) -> int:
        rows = zip(*memory.values(), strict=True)
        return next(b for f, t, v, b in rows if (f, t, v) == (form, tokens, config.vocabularies[-1]))

    def cpu(form: str) -> np.ndarray:
        rows = zip(times["form"], times["vocabulary"], times["cpu_ms"], strict=True)
        return np.array([ms for f, v, ms in rows if (f, v) == (form, config.timed_vocabularies[-1])])

    tokens = config.tokens
    values: dict[str, Any] = {
        "chunked-memory": [of(CHUNKED, 4 * tokens) / of(CHUNKED, tokens) - 1],
        "chunked-memory-tiled": [of(TILED, 4 * tokens) / of(TILED, tokens) - 1],
        "chunked-memory-dense": [of(CHUNKED, tokens) / of(DENSE, tokens)],
        "tiled-memory-dense": [of(TILED, tokens) / of(DENSE, tokens)],
        "chunked-equal": [error],
        "chunked-time": (cpu(CHUNKED) / cpu(DENSE)).tolist(),
        "tiled-time": (cpu(TILED) / cpu(DENSE)).tolist(),
    }
    return {f"distillation/{name}": value for name, value in values.items()}


def plot(result: StoredResult) -> Figure:
    """Temporaries and times against the vocabulary."""
    from matplotlib import pyplot as plt

    memory, times = ({k: np.array(v) for k, v in result.tables[name].items()} for name in ("memory", "times"))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for number, form in enumerate(FORMS):
        for tokens, style in zip(np.unique(memory["tokens"]), ("-", "--"), strict=True):
            here = (memory["form"] == form) & (memory["tokens"] == tokens)
            label = f"{form}, {tokens:,} tokens"
            axes[0].plot(
                memory["vocabulary"][here], memory["bytes"][here] / 2**20, "o" + style, color=f"C{number}", label=label
            )
        here = times["form"] == form
        axes[1].plot(times["vocabulary"][here], times["cpu_ms"][here], "o", color=f"C{number}", label=form)
    axes[0].set(xscale="log", yscale="log", xlabel="vocabulary", ylabel="temporaries, MiB")
    axes[1].set(xscale="log", yscale="log", xlabel="vocabulary", ylabel="CPU time, ms")
    for axis in axes:
        axis.legend(fontsize=7)
    return figure
