"""Does MCMI estimate the Bayes class probabilities better, when temperature and entropy are allowed for?

Two sources whose conditional probabilities are known: ten Gaussian classes in 20 dimensions, and a Markov source of
order 2 over 16 symbols, of which the next is the class. A network is trained on the labels of a small sample (the
ordinary teacher), and from there fine-tuned by CE - lambda CMI (MCMI, its centroids computed once from the ordinary
teacher), by CE - lambda H(P), which raises the entropy and does nothing else, or by CE alone, which shows what more
updates do. The error is E KL(true, P), on other inputs.

A teacher's temperature is free: what it gives can be divided by any before a student sees it. So each error is there
twice, at temperature 1 and at the one with the least cross-entropy on a labelled validation sample; lambda is chosen on
that sample in the same way for both methods, at the temperature of the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.statistics import paired_differences
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="MCMI teachers: Bayes conditional distribution estimation (arXiv 2401.08732)",
    source="its central claim, where the true probabilities are known",
    minutes={"smoke": 0.1, "cpu": 1},
)
GAUSSIAN, MARKOV = SOURCES = ("Gaussian classes", "Markov source")
ORDINARY, LONGER, MCMI, ENTROPY = METHODS = ("ordinary", "longer", "MCMI", "entropy")
TEMPERATURES = np.geomspace(0.25, 16, 49)  # 1 is one of them


@dataclass(frozen=True)
class Config(results.Config):
    """The sources, the network and its trainings."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One source, sample and network each."""
    classes: int = 10
    """Gaussians."""
    dimension: int = 20
    """Of their space."""
    separation: float = 0.5
    """Standard deviation of the coordinates of their means, in widths of the classes."""
    sample: int = 400
    """Labelled inputs of the Gaussians to train on, and as many to validate on."""
    symbols: int = 16
    """Of the Markov source."""
    tokens: int = 4000
    """Labelled contexts of the Markov source to train on, and as many to validate on."""
    test: int = 4000
    """Inputs of the Gaussians on which errors are measured; the Markov source's are exact."""
    hidden: int = 64
    """Units of each of the two hidden layers."""
    steps: int = 500
    """Updates of the ordinary teacher, by Adam with the whole sample."""
    fine_steps: int = 50
    """Updates of the second stage: a tenth of the first, as in the paper."""
    rate: float = 3e-3
    """Of the first update; that of the second stage is half of it, and both fall to 0."""
    weight_decay: float = 3.0
    """Of AdamW, in both stages; 3 has the least validation loss of the ordinary teacher, on other seeds."""
    weights: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
    """Lambdas."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("classes", "symbols"):
            require(name, getattr(self, name), 2)
        for name in ("dimension", "sample", "tokens", "test", "hidden", "steps", "fine_steps"):
            require(name, getattr(self, name), 1)
        require("separation", self.separation, 1e-3)
        require("rate", self.rate, 1e-6)
        require("weight_decay", self.weight_decay, 0)
        require("weights: how many", len(self.weights), 1)
        require("the smallest of weights", min(self.weights), 1e-6)


SMALL: dict[str, Any] = {"sample": 40, "tokens": 60, "test": 100, "hidden": 8, "steps": 5, "fine_steps": 3}
PRESETS = {"smoke": Config(seeds=(0,), weights=(0.1,), **SMALL), "cpu": Config()}


def _claims(source: str, end: str) -> tuple[Claim, ...]:
    of = f"mean KL(true, P), nats, {source}: "

    def claim(name: str, what: str, test: Any = "below", kind: Any = "ours") -> Claim:
        return Claim(f"distillation/mcmi-{name}{end}", of + what, test, 0.0, kind=kind)

    return (
        claim("better-teacher", "MCMI minus the ordinary teacher, both at temperature 1", kind="paper"),
        claim("after-temperature", "MCMI minus the ordinary teacher, each at its best temperature"),
        claim("beyond-entropy", "MCMI minus raised entropy, each at its best temperature"),
        claim("beside-temperature", "MCMI at temperature 1 minus the ordinary teacher at its best one", "above"),
        claim("beyond-updates", "MCMI minus as many updates of cross-entropy, each at its best temperature"),
    )


CLAIMS = (*_claims(GAUSSIAN, ""), *_claims(MARKOV, "-markov"))


class Inputs(NamedTuple):
    """Inputs of one part.

    Attributes:
        x: features (N, D).
        y: labels (N,).
        true: probabilities of the labels (N, C).
        weight: (N,), summing to 1.
    """

    x: np.ndarray
    y: np.ndarray
    true: np.ndarray
    weight: np.ndarray


def gaussian_parts(config: Config, seed: int) -> list[Inputs]:
    """Training, validation and test inputs of Gaussian classes of width 1 with equal shares.

    Example:
        >>> train, validation, test = gaussian_parts(Config(test=7), 0)
        >>> train.x.shape, test.true.shape, round(float(test.true.sum()), 6)
        ((400, 20), (7, 10), 7.0)
    """
    random = np.random.default_rng([seed, 0])
    means = config.separation * random.standard_normal((config.classes, config.dimension))
    parts = []
    for count in (config.sample, config.sample, config.test):
        y = random.integers(0, config.classes, count)
        x = means[y] + random.standard_normal((count, config.dimension))
        squares = ((x[:, None] - means[None]) ** 2).sum(2)
        true = np.exp(-(squares - squares.min(1, keepdims=True)) / 2)
        parts.append(Inputs(x, y, true / true.sum(1, keepdims=True), np.full(count, 1 / count)))
    return parts


def markov_parts(config: Config, seed: int) -> list[Inputs]:
    """Contexts and next symbols of a source of order 2; the test part has every context once, weighed by its share.

    Example:
        >>> train, validation, test = markov_parts(Config(symbols=3, tokens=50), 0)
        >>> train.x.shape, test.x.shape, round(float(test.weight.sum()), 6)
        ((50, 6), (9, 6), 1.0)
    """
    import jax

    from experiments.sources import MarkovSource

    size = config.symbols
    source = MarkovSource.random(jax.random.key(seed), order=2, alphabet=size)
    text = np.asarray(source.sample(jax.random.key(seed + 2**30), (2, config.tokens + 2)))

    def inputs(first: np.ndarray, second: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Inputs:
        x = np.concatenate([np.eye(size)[first], np.eye(size)[second]], axis=1)
        return Inputs(x, y, source.kernel[first, second], weight)

    share = np.full(config.tokens, 1 / config.tokens)
    parts = [inputs(row[:-2], row[1:-1], row[2:], share) for row in text]
    first, second = (each.ravel() for each in np.indices((size, size)))
    return [*parts, inputs(first, second, np.zeros(size**2, int), source.stationary.ravel())]


def network(config: Config, features: int, classes: int, key: jax.Array) -> list[Any]:
    """Kernels and biases of three layers, as He et al. initialise them."""
    import jax
    import jax.numpy as jnp

    sizes = (features, config.hidden, config.hidden, classes)
    keys = jax.random.split(key, 3)
    scales = [(2 / fan_in) ** 0.5 for fan_in in sizes[:-1]]
    shapes = zip(keys, scales, sizes[:-1], sizes[1:], strict=True)
    return [(scale * jax.random.normal(key, (a, b)), jnp.zeros(b)) for key, scale, a, b in shapes]


def logits_of(params: list[Any], x: Any) -> jax.Array:
    """Logits (N, C) of the network."""
    import jax

    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None])
    kernel, bias = params[-1]
    return x @ kernel + bias[None]


def trained(config: Config, x: Any, y: Any, others: list[Any], key: jax.Array, classes: int) -> dict[str, Any]:
    """Logits of all teachers on other inputs.

    Args:
        config: of the network and the trainings.
        x: features to train on (N, D).
        y: labels (N,).
        others: features of other parts.
        key: of the initial values.
        classes: C.

    Returns:
        method -> for every part, (lambdas, N, C); the ordinary and the longer teacher have one.
    """
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted

    def cross_entropy(t: jax.Array) -> jax.Array:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(t), y[:, None], 1))

    def entropy(t: jax.Array) -> jax.Array:
        return -jnp.mean(jnp.sum(jax.nn.softmax(t) * jax.nn.log_softmax(t), 1))

    def plain(params: Any, _: Any) -> jax.Array:
        return cross_entropy(logits_of(params, x))

    start = network(config, x.shape[1], classes, key)
    ordinary, _ = fitted(plain, start, steps=config.steps, rate=config.rate, weight_decay=config.weight_decay)
    centroids = kd.class_centroids(jax.nn.softmax(logits_of(ordinary, x)), y, classes)
    losses: dict[str, Callable[[Any, Any], Any]] = {
        LONGER: lambda t, weight: cross_entropy(t),
        MCMI: lambda t, weight: kd.mcmi_teacher(t, y, centroids, weight=weight),
        ENTROPY: lambda t, weight: cross_entropy(t) - weight * entropy(t),
    }

    def tuned(loss: Any, weight: Any) -> Any:
        def of(params: Any, _: Any) -> jax.Array:
            return loss(logits_of(params, x), weight)

        args: dict[str, Any] = {"rate": config.rate / 2, "weight_decay": config.weight_decay}
        return fitted(of, ordinary, steps=config.fine_steps, **args)[0]

    found = {ORDINARY: jax.tree.map(lambda leaf: leaf[None], ordinary)}
    for name, loss in losses.items():
        weights = jnp.asarray((0.0,) if name == LONGER else config.weights)
        found[name] = jax.lax.map(lambda weight, loss=loss: tuned(loss, weight), weights)
    return {name: [jax.vmap(logits_of, (0, None))(p, other) for other in others] for name, p in found.items()}


class Errors(NamedTuple):
    """What one teacher is measured by.

    Attributes:
        plain: mean KL(true, P) at temperature 1.
        tempered: at the best temperature.
        temperature: that has the least cross-entropy on the validation part.
        validation: cross-entropies there, at temperature 1 and at the best.
        accuracy: on the test part, the most probable class of the true probabilities being right.
    """

    plain: float
    tempered: float
    temperature: float
    validation: tuple[float, float]
    accuracy: float


def errors(validation: Inputs, test: Inputs, on_validation: np.ndarray, on_test: np.ndarray) -> Errors:
    """Measure one teacher from its logits on both parts.

    Args:
        validation: the part that chooses the temperature.
        test: the part with the errors.
        on_validation: logits (N, C).
        on_test: logits (N, C).

    Returns:
        The errors.
    """
    rows = np.arange(len(validation.y))
    losses = [-_log_softmax(on_validation / tau)[rows, validation.y].mean() for tau in TEMPERATURES]
    one, best = int(np.abs(TEMPERATURES - 1).argmin()), int(np.argmin(losses))
    log_true = np.log(np.maximum(test.true, 1e-300))

    def error(tau: float) -> float:
        return float(test.weight @ (test.true * (log_true - _log_softmax(on_test / tau))).sum(1))

    right = on_test.argmax(1) == test.true.argmax(1)
    both = float(losses[one]), float(losses[best])
    return Errors(error(1.0), error(TEMPERATURES[best]), float(TEMPERATURES[best]), both, float(test.weight @ right))


def _log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def run(config: Config, run_dir: Path) -> Result:
    """Train all teachers on both sources, every seed."""
    columns = (
        "source",
        "seed",
        "method",
        "weight",
        *Errors._fields[:3],
        "validation",
        "validation tempered",
        "accuracy",
    )
    table: dict[str, list] = {name: [] for name in columns}
    measured: dict[str, Any] = {}
    for source, end, make in ((GAUSSIAN, "", gaussian_parts), (MARKOV, "-markov", markov_parts)):
        found = [measured_teachers(config, make(config, seed), seed) for seed in config.seeds]
        for seed, teachers in zip(config.seeds, found, strict=True):
            for method, each in teachers.items():
                weights = config.weights if method in (MCMI, ENTROPY) else (0.0,)
                for weight, e in zip(weights, each, strict=True):
                    row = (source, seed, method, weight, *e[:3], *e.validation, e.accuracy)
                    for column, entry in zip(table.values(), row, strict=True):
                        column.append(entry)
        measured |= {f"distillation/mcmi-{name}{end}": values for name, values in compared(found).items()}
    return Result(measured, {"teachers": table})


def measured_teachers(config: Config, parts: list[Inputs], seed: int) -> dict[str, list[Errors]]:
    """Errors of the teachers of one seed: method -> one per lambda."""
    import jax
    import jax.numpy as jnp

    train, validation, test = parts
    x, *others = (jnp.asarray(part.x, jnp.float32) for part in parts)
    found = _program(config, test.true.shape[1])(x, jnp.asarray(train.y), others, jax.random.key(seed))
    return {
        method: [errors(validation, test, *(np.asarray(on[i], np.float64) for on in both)) for i in range(len(both[0]))]
        for method, both in found.items()
    }


@cache
def _program(config: Config, classes: int) -> Any:
    import jax

    return jax.jit(lambda x, y, others, key: trained(config, x, y, others, key, classes))


def chosen(teachers: list[Errors], tempered: bool) -> float:
    """Error of the teacher whose lambda has the least cross-entropy on the validation part, at that temperature.

    Example:
        >>> one, two = Errors(3.0, 1.0, 2.0, (0.5, 0.4), 0.9), Errors(2.0, 1.5, 2.0, (0.6, 0.3), 0.9)
        >>> chosen([one, two], tempered=False), chosen([one, two], tempered=True)
        (3.0, 1.5)
    """
    best = min(teachers, key=lambda teacher: teacher.validation[tempered])
    return best.tempered if tempered else best.plain


def compared(found: list[dict[str, list[Errors]]]) -> dict[str, list[float]]:
    """The differences that claims are about, one per seed."""
    plain, best = (
        {method: [chosen(teachers[method], tempered) for teachers in found] for method in METHODS}
        for tempered in (False, True)
    )
    return {
        "better-teacher": paired_differences(plain[MCMI], plain[ORDINARY]),
        "after-temperature": paired_differences(best[MCMI], best[ORDINARY]),
        "beyond-entropy": paired_differences(best[MCMI], best[ENTROPY]),
        "beside-temperature": paired_differences(plain[MCMI], best[ORDINARY]),
        "beyond-updates": paired_differences(best[MCMI], best[LONGER]),
    }


def plot(result: StoredResult) -> Figure:
    """Errors against lambda at temperature 1 and at the best one, means over the seeds."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["teachers"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, source in zip(axes, SOURCES, strict=True):
        for number, method in enumerate(METHODS):
            here = (table["source"] == source) & (table["method"] == method)
            weights = np.unique(table["weight"][here])
            for column, style in (("plain", "-"), ("tempered", "--")):
                means = [table[column][here & (table["weight"] == weight)].mean() for weight in weights]
                label = f"{method}, {'temperature 1' if style == '-' else 'best temperature'}"
                if method in (ORDINARY, LONGER):
                    axis.axhline(means[0], color=f"C{number}", linestyle=style, linewidth=1, label=label)
                else:
                    axis.plot(weights, means, "o" + style, color=f"C{number}", markersize=3, linewidth=1, label=label)
        axis.set(xscale="log", yscale="log", xlabel="lambda", ylabel="mean KL(true, P), nats", title=source)
        axis.set_xticks(np.unique(table["weight"][table["weight"] > 0]), minor=False)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axes[0].legend(fontsize=7)
    return figure
