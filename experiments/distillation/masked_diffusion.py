"""DiDi-Instruct: a masked diffusion model with an exact teacher is taught to sample in few steps, and what that takes.

Sequences are those of a Markov source, so short that every partly masked state has a number (`masked_states.py`). The
teacher is the exact denoiser; with few evaluations it still errs, because it draws several positions at once. The
student begins as the teacher, a table over all states. A path is sampled from it: all masked, a state at a time t, a
sequence; that is masked anew, and a discriminator that tells the student's from the source's gives the reward, from
which `kd.didi_loss` has the step. Student and discriminator step together. In the end the law of the student's samples
is computed exactly at every number of evaluations.

What is added arm by arm: the second step of the path (the decomposition of the score; without it all is drawn at once
from the masked state), one time for the path and the reward (else two), omega(t), the density pi(t) of the times, and a
regulariser, the mean of both KLs to the teacher at the states on the path. The paper's omega, pi and regulariser were
not available: here omega is that of the bound on the likelihood, 1 / t, pi is the same, and the weight was not tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="DiDi-Instruct (arXiv 2509.25035)",
    source="its ablation and its curve over evaluations, on a Markov source",
    minutes={"smoke": 0.05, "cpu": 10},
)
# as in `masked_paths.Arm`: decomposed, one_time, weighted, dense, regularised
ARMS = {
    "baseline": (0, 0, 0, 0, 0),
    "decomposition": (1, 0, 0, 0, 0),
    "one time": (1, 1, 0, 0, 0),
    "weight": (1, 1, 1, 0, 0),
    "density": (1, 1, 1, 1, 0),
    "whole": (1, 1, 1, 1, 1),
    "without decomposition": (0, 1, 1, 1, 1),
}
TEACHER, WHOLE, WITHOUT = "teacher", "whole", "without decomposition"
MEASURES = ("reverse", "forward", "entropy")
FEW, MANY = 2, 8  # evaluations that claims are about


@dataclass(frozen=True)
class Config(results.Config):
    """The sources and the trainings."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One source and one training each."""
    symbols: int = 3
    """Of the source."""
    concentration: float = 0.3
    """Of the Dirichlet law of its rows."""
    uniform: float = 0.05
    """Part of every row that is uniform, so that no sequence is impossible."""
    length: int = 6
    """Of the sequences."""
    evaluations: tuple[int, ...] = (1, FEW, 4, MANY)
    """Of the samplers."""
    groups: int = 64
    """Of a step; samples of a group have one time."""
    group: int = 4
    """Samples of a group."""
    earliest: float = 0.05
    """The least time."""
    regularisation: float = 0.1
    """Weight of the regulariser."""
    steps: int = 2000
    """Of student and discriminator, by Adam."""
    rate: float = 0.005
    """Of the student's first step; it falls to 0."""
    discriminator_rate: float = 0.05
    """Of the discriminator's; ten times the student's, as in the paper."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("symbols", "length", "group"):
            require(name, getattr(self, name), 2)
        for name in ("groups", "steps"):
            require(name, getattr(self, name), 1)
        for name in ("concentration", "uniform", "earliest", "rate", "discriminator_rate"):
            require(name, getattr(self, name), 1e-6)
        if self.earliest >= 1 or self.uniform >= 1:
            raise ValueError(f"earliest, uniform: got {self.earliest}, {self.uniform}, expected numbers below 1")
        if not {FEW, MANY} <= set(self.evaluations):
            raise ValueError(f"evaluations: got {self.evaluations}, expected {FEW} and {MANY} among them")


PRESETS = {
    "smoke": Config(seeds=(0,), symbols=2, length=2, evaluations=(FEW, MANY), groups=2, group=2, steps=2),
    "cpu": Config(),
}


def _claim(id: str, quantity: str, test: Any, expected: float = 0.0, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/didi-{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim("toy", "KL(student, source), whole method, 8 evaluations minus 2, nats", "below", kind="ours"),
    _claim(
        "score-decomposition",
        "KL(student, source) at 8 evaluations, whole method minus that without the decomposition, nats",
        "below",
    ),
    _claim(
        "without-decomposition",
        "KL(student, source) at 8 evaluations, whole method without the decomposition minus the teacher, nats",
        "above",
        kind="ours",
    ),
    _claim(
        "ablation",
        "largest change of KL(student, source) at 8 evaluations from one arm to the next, up to the whole, nats",
        "below",
    ),
    _claim(
        "decomposition-alone",
        "KL(student, source) at 8 evaluations, decomposition alone over the baseline",
        "above",
        0.75,
    ),
    _claim(
        "few-evaluations",
        "KL(student, source) at 2 evaluations, whole method over the teacher",
        "below",
        1.0,
        kind="ours",
    ),
    _claim(
        "toy-beats-teacher",
        "KL(student, source), whole method at 2 evaluations minus the teacher at 8, nats",
        "below",
        kind="ours",
    ),
    _claim("entropy", "entropy of the samples at 8 evaluations, whole method over the source", "above", 0.95),
)


def source_law(config: Config, seed: int) -> np.ndarray:
    """Probabilities of the sequences of a Markov source, an axis for each position.

    Example:
        >>> law = source_law(Config(length=3), 0)
        >>> law.shape, round(float(law.sum()), 6), bool((law > 0).all())
        ((3, 3, 3), 1.0, True)
    """
    from experiments.sources import MarkovSource

    rows = np.random.default_rng(seed).dirichlet(np.full(config.symbols, config.concentration), config.symbols)
    rows = (1 - config.uniform) * rows + config.uniform / config.symbols
    source = MarkovSource(rows)
    law = np.asarray(source.stationary)
    for _ in range(config.length - 1):
        law = law[..., None] * source.kernel
    return law


@cache
def _program(config: Config) -> Any:
    """(teachers, sums of the sources' probabilities, seeds) -> students (seeds, arms, S, L, A)."""
    import jax
    import jax.numpy as jnp

    from experiments.distillation.masked_paths import Arm, trained

    arms = Arm(*jnp.array(list(ARMS.values()), jnp.float32).T)

    def of_seed(teacher: Any, cumulative: Any, seed: Any) -> Any:
        return jax.vmap(lambda arm: trained(config, teacher, cumulative, arm, jax.random.key(seed)))(arms)

    return jax.jit(jax.vmap(of_seed))


def measured_laws(laws: np.ndarray, source: np.ndarray) -> np.ndarray:
    """KL(law, source), KL(source, law) and entropy of laws (..., N), nats.

    Returns:
        (3, ...).

    Example:
        >>> measured_laws(np.array([0.5, 0.5]), np.array([0.9, 0.1])).round(4).tolist()
        [0.5108, 0.3681, 0.6931]
    """
    log_q, log_p = np.log(np.maximum(laws, 1e-300)), np.log(source)
    return np.stack(
        [(laws * (log_q - log_p)).sum(-1), (source * (log_p - log_q)).sum(-1), -(laws * log_q).sum(-1)],
    )


def run(config: Config, run_dir: Path) -> Result:
    """Train every arm on every source, and compute what its samplers give."""
    from experiments.distillation.masked_states import all_moves, exact_denoiser, sampled_laws

    sources = [source_law(config, seed) for seed in config.seeds]
    teachers = np.stack([exact_denoiser(law) for law in sources])
    sums = np.stack([law.ravel().cumsum() for law in sources])
    given = teachers.astype(np.float32), sums.astype(np.float32), np.array(config.seeds, np.uint32)
    students = np.asarray(_program(config)(*given), np.float64)
    moves = all_moves(config.symbols, config.length)
    found = np.zeros((len(MEASURES), len(config.seeds), len(ARMS) + 1, len(config.evaluations)))
    for row, (law, teacher) in enumerate(zip(sources, teachers, strict=True)):
        for place, each in enumerate((*students[row], teacher)):
            laws = sampled_laws(each, moves, config.evaluations)
            found[:, row, place] = measured_laws(laws, law.ravel())
    entropy = np.array([-(law * np.log(law)).sum() for law in sources])
    claimed = compared(config, found, entropy)
    table: dict[str, list] = {name: [] for name in ("arm", "evaluations", "seed", *MEASURES)}
    for (row, place, column), _ in np.ndenumerate(found[0]):
        entry = ((*ARMS, TEACHER)[place], config.evaluations[column], config.seeds[row])
        for cells, value in zip(table.values(), (*entry, *found[:, row, place, column].tolist()), strict=True):
            cells.append(value)
    return Result({f"distillation/didi-{id}": x.tolist() for id, x in claimed.items()}, {"samplers": table})


def compared(config: Config, found: np.ndarray, entropy: np.ndarray) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed.

    Args:
        config: of the run.
        found: MEASURES (3, seeds, arms and the teacher, evaluations).
        entropy: of the sources (seeds).

    Returns:
        Claim, without its folder and prefix -> (seeds).
    """
    few, many = (config.evaluations.index(number) for number in (FEW, MANY))
    names = (*ARMS, TEACHER)
    at = {name: found[0, :, place] for place, name in enumerate(names)}
    ladder = np.stack([at[name][:, many] for name in ARMS if name != WITHOUT])
    return {
        "toy": at[WHOLE][:, many] - at[WHOLE][:, few],
        "score-decomposition": at[WHOLE][:, many] - at[WITHOUT][:, many],
        "without-decomposition": at[WITHOUT][:, many] - at[TEACHER][:, many],
        "ablation": np.diff(ladder, axis=0).max(0),
        "decomposition-alone": at["decomposition"][:, many] / at["baseline"][:, many],
        "few-evaluations": at[WHOLE][:, few] / at[TEACHER][:, few],
        "toy-beats-teacher": at[WHOLE][:, few] - at[TEACHER][:, many],
        "entropy": found[2, :, names.index(WHOLE), many] / entropy,
    }


def plot(result: StoredResult) -> Figure:
    """Both KLs and the entropy over the evaluations, a line per arm; the teacher in black."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["samplers"].items()}
    evaluations = np.unique(table["evaluations"])
    labels = ("KL(student, source), nats", "KL(source, student), nats", "entropy, nats")
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(13, 4), layout="constrained")
    for axis, name, label in zip(axes, MEASURES, labels, strict=True):
        for number, arm in enumerate((*ARMS, TEACHER)):
            rows = [(table["arm"] == arm) & (table["evaluations"] == n) for n in evaluations]
            color = "k" if arm == TEACHER else f"C{number}"
            axis.plot(evaluations, [table[name][row].mean() for row in rows], "o-", color=color, label=arm)
        axis.set(xlabel="evaluations", ylabel=label)
        axis.set_xscale("log", base=2)
        if name != "entropy":
            axis.set_yscale("log")
    axes[0].legend(fontsize=7)
    return figure
