"""KL-Top, full KL and cross-entropy for calibrating a language model in 4 bits, with little and with more text.

The unquantised model is a random network that reads two tokens: two embeddings, a hidden layer, a head with Zipf's
biases; a few channels are much larger than the others, as in large models. It is the source of the text, so that the
excess cross-entropy of the quantised model is KL, computed over the whole vocabulary on other contexts.

Weights (rows) and activations (tokens) of both layers are rounded to 4 bits. Before rounding each layer's input is
scaled by a diagonal and rotated, x -> R^T x / d and W -> W d R, which changes nothing without rounding; d and the
skew-symmetric matrix of R (Cayley's transform) are trained through the rounding (straight-through), by Adam on a
calibration text, against its own next tokens, or against the unquantised model's probabilities: all, or the largest k.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="OSTQuant (arXiv 2501.13987)",
    source="its objective, at a size of our own",
    minutes={"smoke": 0.1, "cpu": 19},
)
CROSS_ENTROPY, FULL, TOP = OBJECTIVES = ("cross-entropy", "full KL", "KL-Top")
ROUNDED = "none"


@dataclass(frozen=True)
class Config(results.Config):
    """The network, its rounding and its calibration."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One network and its texts each."""
    vocabulary: int = 256
    """Tokens."""
    width: int = 32
    """Of an embedding."""
    hidden: int = 96
    """Units."""
    outliers: int = 4
    """Channels of each layer's input that are larger."""
    outlier: float = 8.0
    """How much."""
    bits: int = 4
    """Of weights and activations."""
    k: int = 16
    """Of KL-Top."""
    sequences: tuple[int, int] = (32, 128)
    """Of a small and of a large calibration text."""
    length: int = 8
    """Tokens of a sequence that are predicted."""
    steps: int = 100
    """Of Adam, each with the whole text."""
    rate: float = 0.01
    """Of its first step."""
    test: int = 2000
    """Contexts on which KL is measured."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("width", "hidden", "outliers", "length", "steps", "test"):
            require(name, getattr(self, name), 1)
        require("bits", self.bits, 2, 8)
        require("k", self.k, 1, self.vocabulary)
        require("sequences: the smaller", self.sequences[0], 1, below=self.sequences[1])


PRESETS = {
    "smoke": Config(
        seeds=(0,), vocabulary=20, width=4, hidden=8, outliers=1, k=4, sequences=(2, 4), length=4, steps=3, test=50
    ),
    "cpu": Config(),
}


def _claim(name: str, quantity: str, test: Any, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/ostquant-{name}", quantity, test, 0.0, kind=kind)


CLAIMS = (
    _claim("kl-top", "KL on other contexts after KL-Top minus after cross-entropy, 32 sequences, nats", "below"),
    _claim("kl-top-full", "KL on other contexts after KL-Top minus after full KL, 32 sequences, nats", "below"),
    _claim(
        "overfit", "KL after cross-entropy minus after KL-Top, 32 sequences, minus the same of 128", "above", "ours"
    ),
    _claim("calibrated", "KL after KL-Top with 32 sequences minus without calibration, nats", "below", "control"),
)


class Model(NamedTuple):
    """The unquantised network.

    Attributes:
        embeddings: of the token before and the one before it (2, V, D).
        kernels: (2 D, H) and (H, V).
        bias: of the logits (V,).
    """

    embeddings: np.ndarray
    kernels: tuple[np.ndarray, np.ndarray]
    bias: np.ndarray


def model(config: Config, seed: int) -> Model:
    """A random network whose logits have a standard deviation of about 2 around Zipf's biases.

    Example:
        >>> model(Config(), 0).kernels[1].shape
        (96, 256)
    """
    random = np.random.default_rng(seed)
    size, width, hidden = config.vocabulary, config.width, config.hidden
    gains = []
    for channels in (2 * width, hidden):
        gain = np.ones(channels)
        gain[random.permutation(channels)[: config.outliers]] = config.outlier
        gains.append(gain)
    embeddings = random.standard_normal((2, size, width)) * gains[0].reshape(2, 1, width)
    first = random.standard_normal((2 * width, hidden)) / np.linalg.norm(gains[0]) * gains[1][None]
    second = 2 * 2**0.5 * random.standard_normal((hidden, size)) / np.linalg.norm(gains[1])
    bias = -np.log(1 + random.permutation(size))
    kernels = first.astype(np.float32), second.astype(np.float32)
    return Model(embeddings.astype(np.float32), kernels, bias.astype(np.float32))


def rounded(x: jax.Array, bits: int, axis: int) -> jax.Array:
    """To 2^bits - 1 values, symmetric around 0, with one scale along the axis; the gradient passes as if not rounded.

    Args:
        x: any shape.
        bits: of a value.
        axis: along which all share a scale.

    Returns:
        Of that shape.

    Example:
        >>> import jax.numpy as jnp
        >>> rounded(jnp.array([1.0, 0.2, -0.8]), 2, 0).tolist()
        [1.0, 0.0, -1.0]
    """
    import jax
    import jax.numpy as jnp

    levels = 2 ** (bits - 1) - 1
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axis, keepdims=True), 1e-9) / levels
    return x + jax.lax.stop_gradient(jnp.round(x / scale) * scale - x)


def rotation(A: jax.Array) -> jax.Array:
    """Cayley's transform of A - A^T, an orthogonal matrix; the identity at 0."""
    import jax.numpy as jnp

    skew, eye = A - A.T, jnp.eye(len(A))
    return jnp.linalg.solve(eye + skew, eye - skew)


def layer(config: Config, x: jax.Array, kernel: Any, transform: Any) -> jax.Array:
    """x kernel, both rounded behind the scaling and the rotation; exact where there is no transform."""
    import jax.numpy as jnp

    if transform is None:
        return jnp.matmul(x, kernel, precision="highest")
    log_d, A = transform
    d, R = jnp.exp(log_d), rotation(A)
    x = rounded((x / d[None]) @ R, config.bits, 1)
    return x @ rounded(R.T @ (d[:, None] * kernel), config.bits, 0)


def logits(config: Config, net: Model, contexts: Any, transforms: Any = (None, None)) -> jax.Array:
    """Logits (N, V) of the next token.

    Args:
        config: of the rounding.
        net: the network.
        contexts: the token before and the one before it (N, 2).
        transforms: of both layers; None rounds nothing.

    Returns:
        The logits.
    """
    import jax
    import jax.numpy as jnp

    x = jnp.concatenate([net.embeddings[0][contexts[:, 0]], net.embeddings[1][contexts[:, 1]]], axis=1)
    h = jax.nn.relu(layer(config, x, net.kernels[0], transforms[0]))
    return layer(config, h, net.kernels[1], transforms[1]) + net.bias[None]


def text(config: Config, net: Model, key: jax.Array, sequences: int) -> tuple[jax.Array, jax.Array]:
    """Contexts (N, 2) and next tokens (N,) of sequences that start at random tokens, without their first eight."""
    import jax
    import jax.numpy as jnp

    start = jax.random.randint(jax.random.fold_in(key, 0), (sequences, 2), 0, config.vocabulary)

    def step(contexts: jax.Array, key: jax.Array) -> Any:
        token = jax.random.categorical(key, logits(config, net, contexts))
        return jnp.stack([token, contexts[:, 0]], axis=1), (contexts, token)

    keys = jax.random.split(key, config.length + 8)
    _, (contexts, tokens) = jax.lax.scan(step, start, keys)
    return contexts[8:].reshape(-1, 2), tokens[8:].ravel()


def calibrated(config: Config, net: Model, key: jax.Array) -> dict[tuple[str, int], jax.Array]:
    """KL on other contexts after every calibration: (objective, sequences) -> nats per token."""
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted

    others, _ = text(config, net, jax.random.fold_in(key, 1), -(-config.test // config.length))
    exact = logits(config, net, others)

    def error(transforms: Any) -> jax.Array:
        return kd.token_divergence("forward_kl", logits(config, net, others, transforms), exact).mean()

    def loss(objective: str, contexts: Any, tokens: Any, t: Any) -> Any:
        def of(transforms: Any, _: Any) -> jax.Array:
            s = logits(config, net, contexts, transforms)
            if objective == CROSS_ENTROPY:
                return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(s), tokens[:, None], 1))
            if objective == FULL:
                return kd.token_divergence("forward_kl", s, t).mean()
            return kd.kl_top(s, t, k=config.k)

        return of

    sizes = 2 * config.width, config.hidden
    start = tuple((jnp.zeros(size), jnp.zeros((size, size))) for size in sizes)
    found = {(ROUNDED, 0): error(start)}
    for sequences in config.sequences:
        contexts, tokens = text(config, net, jax.random.fold_in(key, 2), sequences)
        t = logits(config, net, contexts)
        for objective in OBJECTIVES:
            of = loss(objective, contexts, tokens, t)
            found[objective, sequences] = error(fitted(of, start, steps=config.steps, rate=config.rate)[0])
    return found


@cache
def _program(config: Config) -> Any:
    import jax

    return jax.jit(lambda net, key: list(calibrated(config, net, key).values()))


def run(config: Config, run_dir: Path) -> Result:
    """Calibrate every network with every objective and both texts."""
    import jax

    names = [(ROUNDED, 0), *((objective, n) for n in config.sequences for objective in OBJECTIVES)]
    table: dict[str, list] = {name: [] for name in ("seed", "objective", "sequences", "kl")}
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    for seed in config.seeds:
        values = _program(config)(model(config, seed), jax.random.key(seed))
        found = {name: float(value) for name, value in zip(names, values, strict=True)}
        for (objective, sequences), value in found.items():
            for column, entry in zip(table.values(), (seed, objective, sequences, value), strict=True):
                column.append(entry)
        for claim, number in zip(CLAIMS, compared(config, found), strict=True):
            measured[claim.id].append(number)
    return Result(measured, {"calibrations": table})


def compared(config: Config, found: dict[tuple[str, int], float]) -> tuple[float, ...]:
    """What the claims are about, of one network."""
    small, large = config.sequences
    advantage = {n: found[CROSS_ENTROPY, n] - found[TOP, n] for n in config.sequences}
    return (
        -advantage[small],
        found[TOP, small] - found[FULL, small],
        advantage[small] - advantage[large],
        found[TOP, small] - found[ROUNDED, 0],
    )


def plot(result: StoredResult) -> Figure:
    """KL after every calibration, one point per network."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["calibrations"].items()}
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    names = list(dict.fromkeys(zip(table["objective"], table["sequences"].tolist(), strict=True)))
    for place, (objective, sequences) in enumerate(names):
        here = (table["objective"] == objective) & (table["sequences"] == sequences)
        axis.plot(np.full(here.sum(), place), table["kl"][here], "o", markersize=4, alpha=0.6)
    labels = [f"{objective}\n{sequences} sequences" if sequences else "rounded\nonly" for objective, sequences in names]
    axis.set_xticks(range(len(names)), labels, fontsize=8)
    axis.set(ylabel="KL(unquantised, 4 bits), nats", yscale="log")
    return figure
