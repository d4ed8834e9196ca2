"""One optimizer update: accumulation, precision, rematerialisation, average, and a guard over the whole state."""

import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from experiments.errors import UserError
from experiments.training.config import TrainConfig
from experiments.training.mesh import state_shardings
from experiments.training.optimizer import Labels
from experiments.training.task import Batch, Loss, Metrics, Task, Variables

Params = Any


class TrainState(NamedTuple):
    """Everything that an update changes; all of it is in a checkpoint.

    Attributes:
        step: completed updates, skipped ones included: what the batch and the random key of the next depend on.
        params: float32.
        collections: mutable collections of the model, by name.
        optimizer: of optax.
        ema: average of the parameters, {} if none is kept.
        skipped: updates that were skipped because something was not finite.
        skipped_in_a_row: of these, the ones since the last good update.
    """

    step: jax.Array
    params: Params
    collections: Mapping[str, Any]
    optimizer: optax.OptState
    ema: Params
    skipped: jax.Array
    skipped_in_a_row: jax.Array


class Report(NamedTuple):
    """What an update says about itself.

    Attributes:
        metrics: scalars to log, "loss" among them.
        bad_leaf: -1 after a good update, else which of `leaf_names` was the first not to be finite.
        skipped_in_a_row: as in the state.
    """

    metrics: Metrics
    bad_leaf: Any
    skipped_in_a_row: Any


def random_stream(seed: int, name: str) -> jax.Array:
    """A random key for one purpose, so that no two purposes of a seed share their random numbers.

    Args:
        seed: of the training.
        name: of the purpose; "steps" and "initialisation" are the loop's own.

    Returns:
        The key.

    Example:
        >>> bool(random_stream(0, "data") == random_stream(0, "steps"))
        False
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def initial_state(variables: Variables, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first update.

    Args:
        variables: what `Task.init` returns.
        optimizer: of optax.
        ema: whether an average of the parameters is kept.

    Returns:
        The state.

    Raises:
        ValueError: a parameter is no float, or one in lower precision than float32.

    Example:
        >>> state = initial_state({"params": {"w": jnp.ones(2)}, "batch_stats": {}}, optax.sgd(0.1), ema=False)
        >>> sorted(state.params), sorted(state.collections)
        (['params'], ['batch_stats'])
    """
    split = isinstance(variables, Mapping) and "params" in variables
    params = {"params": variables["params"]} if split else variables
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name}: got parameters in {dtype}, expected float32; train.precision lowers a copy")
    collections = {name: value for name, value in variables.items() if name != "params"} if split else {}
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # donated, so not one array three times
    average = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(step, params, collections, optimizer.init(params), average, skipped, in_a_row)


def variables_of(params: Params, collections: Mapping[str, Any]) -> Variables:
    """What `Task.loss` and `Task.evaluate` take."""
    return {**params, **collections} if collections else params


def parts_of_a_batch(config: TrainConfig, mesh: Mesh | AbstractMesh) -> int:
    """Parts of a batch that the devices take one after the other.

    Args:
        config: the batch, and how much of it a device takes at once.
        mesh: of the devices.

    Returns:
        Their number.

    Raises:
        UserError: the devices cannot share the batch.
    """
    copies = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % copies:
        raise UserError(
            f"train.batch_size: got {config.batch_size}, expected a multiple of {copies}, "
            "the number of devices along the mesh axes data and fsdp"
        )
    share = config.batch_size // copies
    largest = min(config.device_batch or share, share)
    # Parts of equal size: the fewest that fit.
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= largest)


def initializer(
    task: Task, optimizer: optax.GradientTransformation, config: TrainConfig, seed: int, mesh: Mesh | AbstractMesh
) -> tuple[Callable[[], TrainState], Any, Any]:
    """How to create the first state right into its shardings.

    Args:
        task: what is trained.
        optimizer: of optax.
        config: whether an average is kept.
        seed: of the initial values.
        mesh: that the state is spread over.

    Returns:
        The function that creates it, its shardings, and its shapes.
    """

    def create() -> TrainState:
        return initial_state(task.init(random_stream(seed, "initialisation")), optimizer, config.ema_decay > 0)

    boxed = jax.eval_shape(create)
    shardings = state_shardings(boxed, mesh)
    jitted = jax.jit(lambda: nn.meta.unbox(create()), out_shardings=shardings)
    return jitted, shardings, nn.meta.unbox(boxed)


def evaluated(state: TrainState) -> Variables:
    """The variables to evaluate: the averaged parameters if there is an average."""
    return variables_of(state.ema or state.params, state.collections)


def lowered(params: Params, labels: Labels, precision: str) -> Params:
    """The parameters as the loss sees them: in `precision`, but for the group "ssm", which stays in float32.

    A step size or a decay in bfloat16 has eight bits: over a long sequence its powers are wrong from the first digit.

    Example:
        >>> from experiments.training.optimizer import parameter_labels
        >>> tree = {"kernel": jnp.ones(1), "A_log": jnp.ones(1)}
        >>> {name: str(leaf.dtype) for name, leaf in lowered(tree, parameter_labels, "bfloat16").items()}
        {'A_log': 'float32', 'kernel': 'bfloat16'}
    """
    if precision == "float32":
        return params

    def lower(x: jax.Array, label: str) -> jax.Array:
        return x.astype(precision) if x.dtype == jnp.float32 and label != "ssm" else x

    return jax.tree.map(lower, params, labels(params))


def make_update(
    task: Task,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    seed: int,
    *,
    microbatches: int = 1,
    shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Report]]:
    """One jitted optimizer update, its state donated.

    An update whose loss, gradient or new state is not finite anywhere changes nothing but the counters: no parameter,
    moment, average or collection. (`optax.apply_if_finite` guards the optimizer alone, and gives in after a while.)

    Args:
        task: loss, its weights and the parameter groups.
        optimizer: an optax transformation.
        config: precision, rematerialisation and average.
        seed: of the keys given to the loss; step n's key depends on (seed, n) alone.
        microbatches: parts into which each batch is cut, one after the other; their gradients are averaged.
        shardings: pytree of shardings of the new state; None leaves them to the compiler.

    Returns:
        (state, batch) -> (state, report).

    Example:
        >>> task = Task(lambda key: jnp.zeros(2), lambda w, batch, key: (jnp.sum((w - batch) ** 2), {}))
        >>> optimizer = optax.sgd(0.25)
        >>> update = make_update(task, optimizer, TrainConfig(), seed=0)
        >>> state, report = update(initial_state(jnp.zeros(2), optimizer, ema=False), jnp.ones(2))
        >>> state.params.tolist(), float(report.metrics["loss"])
        ([0.5, 0.5], 2.0)
    """
    differentiate, advanced = _differentiate(task, config), partial(_advanced, optimizer, config.ema_decay)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Report]:
        key = jax.random.fold_in(random_stream(seed, "steps"), state.step)
        gradient, metrics, collections = _accumulated(differentiate, state, batch, key, microbatches)
        finite = _finite(metrics["loss"], gradient, advanced(state, gradient, collections))
        good = finite.all()
        # Computed once to be looked at, which stores nothing, and once to be kept, in the memory of the old state: a
        # select between the two states would hold both.
        after = jax.lax.cond(good, advanced, lambda before, *_: before, state, gradient, collections)
        skipped, in_a_row = state.skipped + ~good, jnp.where(good, 0, state.skipped_in_a_row + 1)
        after = after._replace(step=state.step + 1, skipped=skipped, skipped_in_a_row=in_a_row)
        bad_leaf = jnp.where(good, -1, jnp.argmin(finite))
        metrics = {**metrics, "gradient_norm": optax.tree.norm(gradient), "skipped": skipped}
        return after, Report(metrics, bad_leaf, in_a_row)

    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))


def _advanced(
    optimizer: optax.GradientTransformation,
    decay: float,
    state: TrainState,
    gradient: Params,
    collections: Mapping[str, Any],
) -> TrainState:
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1 - decay) if decay else {}
    return state._replace(params=params, collections=collections, optimizer=opt_state, ema=ema)


def leaf_names(state: TrainState) -> list[str]:
    """Names of all that the guard looks at, in its order; `Report.bad_leaf` is an index into them.

    Example:
        >>> leaf_names(initial_state({"w": jnp.zeros(2)}, optax.sgd(0.1), ema=False))
        ['loss', 'gradient/w', 'params/w']
    """
    leaves = [leaf for leaf in _looked_at(jnp.zeros(()), state.params, state) if _is_float(leaf[1])]
    return [jax.tree_util.keystr(path, simple=True, separator="/").partition("/")[2] for path, _ in leaves]


def _finite(loss: jax.Array, gradient: Params, after: TrainState) -> jax.Array:
    """Whether each of `leaf_names` is finite everywhere."""
    leaves = [leaf for _, leaf in _looked_at(loss, gradient, after) if _is_float(leaf)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def _looked_at(loss: jax.Array, gradient: Params, after: TrainState) -> list[tuple[Any, Any]]:
    """Paths and leaves in the order of their computation: the first bad one is the nearest to the cause."""
    parts = ("collections", "optimizer", "params", "ema")
    order = [{"loss": loss}, {"gradient": gradient}, *({name: getattr(after, name)} for name in parts)]
    return jax.tree_util.tree_leaves_with_path(order)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _differentiate(task: Task, config: TrainConfig) -> Callable:
    """(params, collections, batch, key, step) -> (gradient, (weight, metrics, collections))."""

    def objective(params: Params, collections: Any, batch: Batch, key: jax.Array, step: jax.Array) -> Any:
        seen = lowered(params, task.labels, config.precision)
        if config.remat != "none":
            _require_remat(task, variables_of(seen, collections), batch, key)
        loss = Loss(*task.loss(variables_of(seen, collections), batch, key))
        total, metrics = _total(task, loss, step)
        if unknown := set(loss.collections) - set(collections):
            raise ValueError(f"collections: got {sorted(unknown)}, expected collections of init, {sorted(collections)}")
        collections = {**collections, **loss.collections}
        return total, (jnp.asarray(loss.weight, jnp.float32), metrics, collections)

    def differentiate(params: Params, *arguments: Any) -> Any:
        (_, aux), gradient = jax.value_and_grad(objective, has_aux=True)(params, *arguments)
        return gradient, aux

    return differentiate


def _require_remat(task: Task, variables: Variables, batch: Batch, key: jax.Array) -> None:
    """Refuse a setting that would do nothing: the model, not the loop, knows what its blocks are."""
    if not re.search(r"\b(remat2?|checkpoint)\[", str(jax.make_jaxpr(task.loss)(variables, batch, key))):
        raise ValueError(
            "train.remat: nothing in the loss is rematerialised, expected a model such as Backbone(remat=...)"
        )


def _total(task: Task, loss: Loss, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The objective in float32, and everything to log."""
    heads = dict(loss.value) if isinstance(loss.value, Mapping) else {}
    if unknown := set(task.weights) - set(heads):
        raise ValueError(f"weights: got {sorted(unknown)}, expected heads of the loss, {sorted(heads)}")
    metrics = {**{f"loss/{name}": value for name, value in heads.items()}, **loss.metrics}
    if taken := {"loss", "gradient_norm", "skipped"} & set(metrics):
        raise ValueError(f"metric {min(taken)}: the name is taken by the loop, expected another one")
    for name, value in {**metrics, **({} if heads else {"loss": loss.value})}.items():
        if jnp.ndim(value):
            raise ValueError(f"metric {name}: got shape {jnp.shape(value)}, expected a scalar")
    total: Any = 0.0 if heads else loss.value
    for name, value in heads.items():
        weight = task.weights.get(name, 1.0)
        total += (weight(step) if callable(weight) else weight) * jnp.asarray(value, jnp.float32)
    total = jnp.asarray(total, jnp.float32)
    return total, {"loss": total, **metrics}


def _accumulated(differentiate: Callable, state: TrainState, batch: Batch, key: jax.Array, parts: int) -> Any:
    """Gradient and metrics averaged over the parts of a batch by weight, collections handed from part to part."""
    if parts == 1:
        gradient, (_, metrics, collections) = differentiate(state.params, state.collections, batch, key, state.step)
        return gradient, metrics, collections

    # Traced once, though asked for its shapes first.
    differentiate = jax.jit(differentiate, inline=True)
    # Part m takes the rows m, m + parts, ...: each device cuts its own rows, and none is sent to another.
    cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry: Any, part: Any) -> Any:
        collections, total, sums = carry
        index, rows = part
        arguments = (collections, rows, jax.random.fold_in(key, index), state.step)
        gradient, (weight, metrics, collections) = differentiate(state.params, *arguments)
        # A part without weight, nothing but padding, has a mean of nothing: 0 / 0.
        sums = jax.tree.map(lambda s, x: s + jnp.where(weight > 0, weight * x, 0), sums, (gradient, metrics))
        return (collections, total + weight, sums), None

    first = jax.tree.map(lambda x: x[0], cut)
    shapes = jax.eval_shape(differentiate, state.params, state.collections, first, key, state.step)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.result_type(x, jnp.float32)), (shapes[0], shapes[1][1]))
    start = (state.collections, jnp.zeros(()), zeros)
    (collections, total, sums), _ = jax.lax.scan(add, start, (jnp.arange(parts), cut))
    gradient, metrics = jax.tree.map(lambda x: x / total, sums)
    return gradient, metrics, collections
