"""A recommender with half of the layers of its teacher: which of SLMRec's losses of hidden states help.

Sessions come from a source in which the next of 200 items depends on the last two, through logits of low rank. A
teacher of eight layers learns them; students of four are trained on the same sessions, on labels and on the teacher's
states after each of four blocks. As the source is known, HR@1 and MRR are expectations: of each context the item that
the model puts first has a known probability. All positions count, not only the last of a session.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import flax.linen as nn
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="SLMRec (ICLR 2025)",
    source="ablation of its losses, on a synthetic recommender",
    minutes={"smoke": 0.05, "cpu": 1},
)
BLOCKS = 4
TEACHER = "teacher"
LABELS, COSINE, NORM, SUPERVISED, ALL, RELEASED = STUDENTS = (
    "labels",
    "cosine",
    "cosine, norm",
    "cosine, supervision",
    "all",
    "all, as released",
)
# of cosine, norm and supervision, with means and squares as in the paper; then with sums and plain norms as released
WEIGHTS = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 0.1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0.1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0.1, 1],
    ]
)


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the models and their training."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One source, teacher and set of sessions each."""
    items: int = 200
    """That are recommended."""
    rank: int = 8
    """Of the source's logits."""
    sharpness: float = 4.0
    """Standard deviation of the source's logits."""
    sessions: int = 1500
    """That are trained on."""
    tests: int = 200
    """Sessions in which models are measured."""
    length: int = 8
    """Contexts of a session."""
    width: int = 32
    """Of teacher and students."""
    layers: tuple[int, int] = (8, 4)
    """Of the teacher and of a student; whole numbers of layers to a block."""
    batch: int = 32
    """Sessions of a step."""
    teacher_steps: int = 600
    """Of Adam, the teacher."""
    steps: int = 300
    """Of Adam, a student."""
    rate: float = 5e-3
    """Of the first step; it falls to 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("items", self.items, 2)
        for name in ("rank", "sessions", "tests", "length", "batch", "teacher_steps", "steps"):
            require(name, getattr(self, name), 1)
        require("width", self.width, 2)
        if self.width % 2 or any(number < BLOCKS or number % BLOCKS for number in self.layers):
            raise ValueError(f"layers: got {self.layers} of width {self.width}, expected multiples of {BLOCKS}, even")
        require("sharpness", self.sharpness, 0)
        require("rate", self.rate, 1e-6)


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        items=7,
        sessions=4,
        tests=3,
        length=3,
        width=4,
        layers=(4, 4),
        batch=2,
        teacher_steps=2,
        steps=2,
    ),
    "cpu": Config(),
}


def _claim(id: str, quantity: str, test: Any, expected: float = 0.0, kind: Any = "paper", **more: Any) -> Claim:
    return Claim(f"distillation/slmrec-{id}", quantity, test, expected, kind=kind, **more)


CLAIMS = (
    _claim("distillation", "HR@1, the student of all losses minus that of labels, percentage points", "above"),
    _claim("ablation", "HR@1, cosine and norm minus cosine, percentage points", "above"),
    _claim("ablation-supervision", "HR@1, cosine and supervision minus cosine, percentage points", "above"),
    _claim("ablation-best", "HR@1, cosine and supervision minus all losses, percentage points", "above"),
    _claim(
        "paper-and-code",
        "ln of the losses of hidden states with sums and plain norms over those with means and squares, on the same "
        "states",
        "above",
        float(np.log(2)),
        "ours",
    ),
    _claim(
        "readings",
        "HR@1, all losses as released minus as in the paper, percentage points",
        "within",
        kind="ours",
        tolerance=0.5,
    ),
    _claim("capacity", "HR@1, the teacher minus the student of labels, percentage points", "above", kind="ours"),
)


@cache
def recommender(config: Config, layers: int) -> nn.Module:
    """A causal transformer; called with items (B, L) it gives states and logits of each block.

    Those are (blocks, B L, width) and (blocks, B L, items). The last logits are those of the model; the others are of
    the states after a projection, with the same table of items.
    """
    import flax.linen as nn
    import jax.numpy as jnp

    from lightnet.backbone import Backbone
    from lightnet.mixers import SoftmaxAttention

    class Part(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: None) -> tuple[Any, Any]:
            mixer = partial(SoftmaxAttention, num_heads=2)
            for block in Backbone(mixer=mixer, num_layers=layers // BLOCKS, width=config.width, mlp_ratio=2).blocks:
                x, _ = block(x)
            return x, x

    class Recommender(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> tuple[Any, Any]:
            table = nn.Embed(config.items, config.width)
            places = nn.Embed(tokens.shape[1], config.width)
            x = table(tokens) + places(jnp.arange(tokens.shape[1]))[None]
            loop: dict[str, Any] = {"length": BLOCKS, "metadata_params": {nn.PARTITION_NAME: "layers"}}
            parts = nn.scan(Part, variable_axes={"params": 0}, split_rngs={"params": True}, **loop)
            _, states = parts()(x, None)
            states = states.reshape(BLOCKS, -1, config.width)
            shape = BLOCKS - 1, config.width, config.width
            early = self.param("early", nn.initializers.lecun_normal(batch_axis=(0,)), shape)
            read = jnp.concatenate([jnp.einsum("bnd,bde->bne", states[:-1], early), nn.LayerNorm()(states[-1:])])
            return states, table.attend(read)

    return Recommender()


def hidden_losses(logits: Any, h_s: Any, h_t: Any, y: Any) -> jax.Array:
    """Cosine, norm and supervision as in the paper, and then as released (6).

    Args:
        logits: of the blocks (blocks, N, items).
        h_s: states of the student (blocks, N, width).
        h_t: of the teacher.
        y: next items (N).

    Returns:
        Six numbers.
    """
    import jax.numpy as jnp

    import kd

    return jnp.stack(
        [
            loss
            for reduction, squared in (("mean", True), ("sum", False))
            for loss in (
                kd.hidden_cosine(h_s, h_t, reduction=reduction),
                kd.hidden_norm(h_s, h_t, squared=squared, reduction=reduction),
                kd.block_cross_entropy(logits[:-1], y, reduction=reduction),
            )
        ]
    )


def measures(logits: Any, log_law: Any) -> jax.Array:
    """Expected HR@1 and MRR, both in percent, and the mean KL from the source in nats (3).

    Example:
        >>> law = np.log(np.array([[0.5, 0.3, 0.2]]))
        >>> [round(float(x), 3) for x in measures(np.array([[0.0, 2.0, 1.0]]), law)[:2]]
        [30.0, 56.667]
    """
    import jax
    import jax.numpy as jnp

    logits, log_law = jnp.asarray(logits), jnp.asarray(log_law)
    law = jnp.exp(log_law)
    rank = 1 + jnp.argsort(jnp.argsort(-logits, axis=1), axis=1)
    first = jnp.sum(law * (rank == 1), axis=1)
    distance = jnp.sum(law * (log_law - jax.nn.log_softmax(logits)), axis=1)
    return jnp.stack([100 * first.mean(), 100 * jnp.sum(law / rank, axis=1).mean(), distance.mean()])


@cache
def _program(config: Config) -> Any:
    """Keys -> measures (seeds, teacher and students, 3); ln of the released hidden losses over the paper's (seeds)."""
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted
    from experiments.sources.sessions import sampled_sessions, second_order_items

    deep, small = (recommender(config, layers) for layers in config.layers)

    def batch(given: Any, key: Any) -> tuple[Any, Any]:
        rows = given[jax.random.randint(key, (config.batch,), 0, len(given))]
        return rows[:, :-1], rows[:, 2:].ravel()

    def after_two(each: Any) -> Any:
        # the first item alone says less than the source's two
        return each.reshape(*each.shape[:-2], -1, config.length + 1, each.shape[-1])[..., 1:, :].reshape(
            *each.shape[:-2], -1, each.shape[-1]
        )

    def outputs(model: Any, params: Any, tokens: Any) -> tuple[Any, Any]:
        return tuple(after_two(x) for x in model.apply(params, tokens))

    def one(key: Any) -> tuple[Any, Any]:
        keys = jax.random.split(key, 7)
        law = second_order_items(keys[0], config.items, config.rank, config.sharpness)
        given, test = (
            sampled_sessions(key, law, number, config.length)
            for key, number in zip(keys[1:3], (config.sessions, config.tests), strict=True)
        )
        log_law = law.log_law(test[:, :-2], test[:, 1:-1]).reshape(-1, config.items)

        def teacher_loss(params: Any, key: Any) -> Any:
            tokens, y = batch(given, key)
            return -jnp.take_along_axis(jax.nn.log_softmax(outputs(deep, params, tokens)[1][-1]), y[:, None], 1).mean()

        fit = partial(fitted, rate=config.rate)
        teacher, _ = fit(teacher_loss, deep.init(keys[3], given[:1, :-1]), steps=config.teacher_steps, key=keys[4])

        def student(weights: Any) -> tuple[Any, Any]:
            def loss(params: Any, key: Any) -> Any:
                tokens, y = batch(given, key)
                h_s, logits = outputs(small, params, tokens)
                hidden = hidden_losses(logits, h_s, outputs(deep, teacher, tokens)[0], y)
                return kd.block_cross_entropy(logits[-1:], y) + weights @ hidden

            params, _ = fit(loss, small.init(keys[5], given[:1, :-1]), steps=config.steps, key=keys[6])
            h_s, logits = outputs(small, params, test[:, :-1])
            hidden = hidden_losses(logits, h_s, h_t, test[:, 2:].ravel())
            return measures(logits[-1], log_law), hidden

        h_t, of_teacher = outputs(deep, teacher, test[:, :-1])
        found, hidden = jax.vmap(student)(jnp.asarray(WEIGHTS, jnp.float32))
        here = hidden[STUDENTS.index(ALL)]
        ratio = jnp.log((here[3] + 0.1 * here[4]) / (here[0] + 0.1 * here[1]))
        return jnp.concatenate([measures(of_teacher[-1], log_law)[None], found]), ratio

    return jax.jit(lambda keys: jax.lax.map(one, keys))


def run(config: Config, run_dir: Path) -> Result:
    """Train a teacher and all students for every seed."""
    import jax
    import jax.numpy as jnp

    # other generators take many times as long to compile as all else here
    keys = jnp.stack([jax.random.key(seed, impl="rbg") for seed in config.seeds])
    each, ratio = jax.tree.map(np.asarray, _program(config)(keys))
    each = each.swapaxes(0, 1)
    table: dict[str, list] = {name: [] for name in ("model", "seed", "HR@1", "MRR", "KL")}
    for name, rows in zip((TEACHER, *STUDENTS), each, strict=True):
        for seed, row in zip(config.seeds, rows, strict=True):
            for column, entry in zip(table.values(), (name, seed, *(float(x) for x in row)), strict=True):
                column.append(entry)
    hits = dict(zip((TEACHER, *STUDENTS), each[..., 0], strict=True))
    found = compared(hits) | {"paper-and-code": ratio}
    measured = {f"distillation/slmrec-{id}": x.tolist() for id, x in found.items()}
    return Result({claim.id: measured[claim.id] for claim in CLAIMS}, {"models": table})


def compared(hits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Differences that claims are about, one per seed, from model -> HR@1 (seeds).

    Example:
        >>> found = compared({name: np.array([float(place)]) for place, name in enumerate((TEACHER, *STUDENTS))})
        >>> {name: float(x[0]) for name, x in found.items()}["distillation"]
        4.0
    """
    return {
        "distillation": hits[ALL] - hits[LABELS],
        "ablation": hits[NORM] - hits[COSINE],
        "ablation-supervision": hits[SUPERVISED] - hits[COSINE],
        "ablation-best": hits[SUPERVISED] - hits[ALL],
        "readings": hits[RELEASED] - hits[ALL],
        "capacity": hits[TEACHER] - hits[LABELS],
    }


def plot(result: StoredResult) -> Figure:
    """HR@1 and MRR, one point per seed and a bar at the mean."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["models"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    names = (TEACHER, *STUDENTS)
    for axis, measure in zip(axes, ("HR@1", "MRR"), strict=True):
        for place, name in enumerate(names):
            values = table[measure][table["model"] == name]
            axis.plot(np.full(len(values), place), values, "o", markersize=3)
            axis.plot(place, values.mean(), "k_", markersize=16)
        axis.set(ylabel=f"{measure}, %", xticks=range(len(names)))
        axis.set_xticklabels([name.replace(", ", "\n") for name in names], fontsize=7)
    return figure
