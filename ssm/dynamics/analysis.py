"""A language model of Mamba, layer by layer, as the token dynamics see it: its weights, and what it does with a text.

The layer analysed (arXiv 2410.03292) acts on tokens x_l with

    step_l = softplus(S_Delta x_l + b),    B_l = S_B x_l,    C_l = S_C x_l,    M = S_C^T S_B

In a block of Mamba these tokens are not those of the residual stream but what its recurrence reads, E channels behind
the first projection, the convolution and its activation; S_B and S_C are rows of `x_proj`, S_Delta is `x_proj`'s other
rows and `dt_proj`, and A is a diagonal matrix instead of a multiple of one. Skip, gate and the last projection are left
out, as in the analysis. What the continuous limit predicts of the tokens x_l of a layer, were it repeated, is

    d ln|x_l| / dt = <x_l, y_l> / |x_l|^2,    y = the recurrence's output for the tokens x               (ours)

A text's activations are read by intercepting calls of modules, so that nothing that is computed changes.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import Block, CausalLM
from lightnet.scan import selective_scan
from lightnet.typing import Array
from ssm.dynamics.scenarios import eigenvalue_label, inertia, projection_scenario, spectrum, symmetric_spectrum
from ssm.mamba import Mamba, at_least_float32, step_sizes
from ssm.mamba2 import Mamba2

QUANTILES = (0.05, 0.5, 0.95)
RECORDED = ("x_proj", "dt_proj", "mix")  # modules of a block


class Projections(NamedTuple):
    """S_B and S_C of one layer, (N, E) each, float32 at least."""

    s_b: np.ndarray
    s_c: np.ndarray


class LayerSpectrum(NamedTuple):
    """What the input-output matrix M = S_C^T S_B of a layer has for eigenvalues.

    Attributes:
        eigenvalues: those of M that are not 0 by its rank, (N,), complex.
        symmetric: those of the symmetric part of M that are not 0 by its rank, (2 N,) or fewer.
        inertia: how many of the latter are positive and negative.
        scenario: by the symmetric part: "convergent", "divergent" or "mixed".
        label: by the eigenvalues, which is the paper's criterion.
    """

    eigenvalues: np.ndarray
    symmetric: np.ndarray
    inertia: tuple[int, int]
    scenario: str
    label: str


class LayerActivations(NamedTuple):
    """What a layer makes of a text.

    Attributes:
        scores: S_Delta x without the bias, (B, L, E); of Mamba-2 (B, L, H), for its heads.
        steps: softplus(scores + bias), like them.
        update: norm of what the block adds to a token, (B, L).
        tokens: x, what the recurrence reads, (B, L, E); None of Mamba-2, and so are the others below.
        A: (E, N), negative.
        B: (B, L, N).
        C: (B, L, N).
    """

    scores: Array
    steps: Array
    update: Array
    tokens: Array | None = None
    A: Array | None = None
    B: Array | None = None
    C: Array | None = None


class Activations(NamedTuple):
    """What a model makes of a text.

    Attributes:
        residual: norm of each token in the residual stream, before the first block and behind each, (n + 1, B, L).
        layers: of each block.
    """

    residual: Array
    layers: tuple[LayerActivations, ...]


class LayerAnalysis(NamedTuple):
    """A layer in numbers.

    Attributes:
        spectrum: of its input-output matrix; None of Mamba-2.
        step_quantiles: the quantiles QUANTILES of its step sizes over tokens and channels, (3,).
        positive_scores: share of tokens and channels with S_Delta x > 0.
        importance: see `importance`, (B, L).
        growth: see `growth_rates`, (B, L); None of Mamba-2.
        update: norm of what the block adds to a token, (B, L).
    """

    spectrum: LayerSpectrum | None
    step_quantiles: np.ndarray
    positive_scores: float
    importance: np.ndarray
    growth: np.ndarray | None
    update: np.ndarray


class Analysis(NamedTuple):
    """A model in numbers: its layers, and norms in the residual stream as in `Activations`."""

    layers: tuple[LayerAnalysis, ...]
    residual: np.ndarray


def projections(model: CausalLM, variables: Any) -> tuple[Projections, ...]:
    """S_B and S_C of every layer, those that act, however they are parameterised.

    Args:
        model: a causal language model of Mamba.
        variables: its parameters.

    Returns:
        One pair per layer.

    Raises:
        ValueError: the mixer is not Mamba. Mamba-2 has no input-output matrix: a convolution and an activation stand
            between its projections and B and C, and its B and C are not made of what its recurrence reads.

    Example:
        >>> from ssm.models import Architecture, mamba_lm
        >>> model = mamba_lm(Architecture(Mamba(width=4, state_size=3), vocab_size=7, num_layers=1))
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        >>> [pair.s_b.shape for pair in projections(model, variables)]
        [(3, 8)]
    """
    mixer = _mixer(model, with_matrix=True)
    with jax.default_matmul_precision("highest"):  # exact, as all but one term of each sum is 0
        rows = _rows(model, nn.meta.unbox(variables))
    both = [np.asarray(at_least_float32(found)).T for found in rows]
    return tuple(Projections(found[: mixer.state_size], found[mixer.state_size :]) for found in both)


def layer_spectrum(s_b: np.ndarray, s_c: np.ndarray) -> LayerSpectrum:
    """The eigenvalues of M = S_C^T S_B and of its symmetric part, and both criteria.

    Args:
        s_b: S_B (N, E).
        s_c: S_C (N, E).

    Returns:
        The spectrum.

    Example:
        >>> found = layer_spectrum(np.eye(2, 5), np.diag([1.0, 2.0]) @ np.eye(2, 5))
        >>> found.scenario, found.label, found.inertia
        ('divergent', 'divergent', (2, 0))
    """
    return LayerSpectrum(
        spectrum(s_b, s_c),
        symmetric_spectrum(s_b, s_c),
        inertia(s_b, s_c),
        projection_scenario(s_b, s_c),
        # N x N, with the eigenvalues of M that are not 0.
        eigenvalue_label(s_b.astype(np.float64) @ s_c.astype(np.float64).T),
    )


def activations(model: CausalLM, variables: Any, tokens: Array | np.ndarray) -> Activations:
    """What every layer makes of a text. May be compiled.

    Args:
        model: a causal language model of Mamba or Mamba-2.
        variables: its parameters.
        tokens: (B, L) ids.

    Returns:
        The activations, float32 at least.

    Raises:
        ValueError: the model has another mixer.
    """
    mixer, variables = _mixer(model), nn.meta.unbox(variables)
    streams: list[Array] = []
    calls: list[dict[str, tuple[Array, Any]]] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, Block):
            output = call(*args, **kwargs)
            if context.method_name == "__call__" and calls and module.name in RECORDED:
                calls[-1][module.name] = (at_least_float32(args[0]), output)
            return output
        if not streams:
            streams.append(args[0])
        calls.append({})
        output = call(*args, **kwargs)
        streams.append(output[0])
        return output

    # What a block computes again for its gradient could not be taken out of it.
    plain = model.clone(backbone=model.backbone.clone(remat="none"))
    with nn.intercept_methods(record):
        plain.apply(variables, jnp.asarray(tokens))
    blocks = variables["params"]["backbone"]
    layers = [_layer(mixer, blocks[f"blocks_{i}"]["mix"], found) for i, found in enumerate(calls)]
    return Activations(jnp.stack([_norm(stream) for stream in streams]), tuple(layers))


def growth_rates(layer: LayerActivations) -> Array:
    """What the continuous limit predicts of each token, were the layer repeated: d ln|x_l| / dt, ours, see the module.

    Args:
        layer: of a model of Mamba.

    Returns:
        (B, L). A token of zeros stays one; its rate is 0 here.

    Raises:
        ValueError: the layer is one of Mamba-2, whose tokens do not make its B and C.

    Example:
        >>> one = jnp.ones((1, 1, 1))
        >>> layer = LayerActivations(one, one, one[0], tokens=2 * one, A=-one[0], B=2 * one, C=6 * one)
        >>> growth_rates(layer).tolist()  # step B C, as A forgets nothing of a first token
        [[12.0]]
    """
    if layer.tokens is None:
        raise ValueError("layer: got one of Mamba-2, expected one of Mamba: Mamba-2's tokens do not make its B and C")
    y, _ = selective_scan(layer.tokens, layer.steps, layer.A, layer.B, layer.C)
    square = jnp.square(layer.tokens).sum(axis=-1)
    return (layer.tokens * y).sum(axis=-1) / jnp.where(square > 0, square, 1)


def layer_attention(layer: LayerActivations, channel: int) -> Array:
    """The hidden attention of a channel d of a layer of Mamba, with which its recurrence gives y_l = sum_j P_lj x_jd.

    P_lj = sum_n C_ln exp(A_dn sum_{k = j+1..l} step_kd) step_jd B_jn for j <= l (Ali et al., arXiv 2403.01590); with a
    scalar A it is `ssm.dynamics.hidden_attention`.

    Args:
        layer: of a model of Mamba.
        channel: d.

    Returns:
        (B, L, L), 0 above the diagonal.

    Raises:
        ValueError: the layer is one of Mamba-2.

    Example:
        >>> one = jnp.ones((1, 2, 1))
        >>> layer = LayerActivations(one, one, one[0], tokens=one, A=-jnp.ones((1, 1)), B=2 * one, C=3 * one)
        >>> [f"{weight:.4f}" for weight in layer_attention(layer, 0)[0, 1]]  # 6 / e and 6
        ['2.2073', '6.0000']
    """
    if layer.A is None or layer.B is None or layer.C is None:
        raise ValueError("layer: got one of Mamba-2, expected one of Mamba")
    steps = layer.steps[..., channel]
    passed = jnp.cumsum(steps, axis=1)
    between = jnp.maximum(passed[:, :, None] - passed[:, None, :], 0)  # it would overflow where j is later
    decay = jnp.exp(between[..., None] * layer.A[channel][None, None, None])
    weights = decay * layer.C[:, :, None] * (steps[..., None] * layer.B)[:, None]
    return jnp.tril(weights.sum(axis=-1))


def importance(layer: LayerActivations) -> Array:
    """The mean of S_Delta x over channels, the importance by which refinement 2 reorders with the same weight for each.

    Args:
        layer: of a model.

    Returns:
        (B, L).

    Example:
        >>> scores = jnp.array([[[1.0, 2.0], [0.0, -4.0]]])
        >>> importance(LayerActivations(scores, scores, scores[..., 0])).tolist()
        [[1.5, -2.0]]
    """
    return layer.scores.mean(axis=-1)


def analyse(model: CausalLM, variables: Any, tokens: Array | np.ndarray) -> Analysis:
    """A model's layers in numbers: spectra of its weights, steps, importance and rates of a text's tokens, and norms.

    Args:
        model: a causal language model of Mamba or Mamba-2, such as `ssm.load_pretrained` gives.
        variables: its parameters.
        tokens: (B, L) ids of a text.

    Returns:
        The numbers, in NumPy.

    Raises:
        ValueError: the model has another mixer.

    Example:
        >>> from ssm.models import Architecture, mamba_lm
        >>> model = mamba_lm(Architecture(Mamba(width=4, state_size=3), vocab_size=7, num_layers=1))
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        >>> found = analyse(model, variables, jnp.array([[1, 2, 3, 4, 5]]))
        >>> found.residual.shape, found.layers[0].growth.shape, found.layers[0].spectrum.inertia
        ((2, 1, 5), (1, 5), (3, 3))
    """
    spectra: list[LayerSpectrum | None] = [None] * model.backbone.num_layers
    if isinstance(_mixer(model), Mamba):
        spectra = [layer_spectrum(*pair) for pair in projections(model, variables)]
    residual, layers = jax.tree.map(np.asarray, _numbers(model, nn.meta.unbox(variables), tokens))
    for layer in layers:
        layer["positive_scores"] = float(layer["positive_scores"])
    return Analysis(tuple(LayerAnalysis(of, **layer) for of, layer in zip(spectra, layers, strict=True)), residual)


@partial(jax.jit, static_argnums=0)
def _numbers(model: CausalLM, variables: Any, tokens: Array) -> tuple[Array, list[dict[str, Any]]]:
    """Norms in the residual stream, and what `LayerAnalysis` has of activations."""
    found = activations(model, variables, tokens)
    return found.residual, [
        {
            "step_quantiles": jnp.quantile(layer.steps, jnp.array(QUANTILES)),
            "positive_scores": (layer.scores > 0).mean(),
            "importance": importance(layer),
            "growth": None if layer.tokens is None else growth_rates(layer),
            "update": layer.update,
        }
        for layer in found.layers
    ]


@partial(jax.jit, static_argnums=0)
def _rows(model: CausalLM, variables: Any) -> list[Array]:
    """What makes B and C of the tokens of each layer, (E, 2 N)."""
    mixer = _mixer(model, with_matrix=True)

    def of_units(bound: CausalLM) -> list[Array]:
        # B and C are linear in the tokens: their values at the unit vectors are the matrices.
        units = jnp.eye(mixer.inner)[None]
        return [block.mix.x_proj(units)[0, :, mixer.rank :] for block in bound.backbone.blocks]

    rows: Any = model.apply(variables, method=of_units)
    return rows


def _mixer(model: CausalLM, *, with_matrix: bool = False) -> Any:
    """The mixer of the blocks, without parameters."""
    mixer = model.backbone.mixer(width=model.backbone.width)
    if not isinstance(mixer, Mamba if with_matrix else (Mamba, Mamba2)):
        expected = "Mamba, whose tokens make its B and C" if with_matrix else "Mamba or Mamba-2"
        raise ValueError(f"model: got one of {type(mixer).__name__}, expected one of {expected}")
    return mixer


def _layer(mixer: Any, params: Any, calls: dict[str, tuple[Array, Any]]) -> LayerActivations:
    _, scores = calls["dt_proj"]
    steps, (_, (added, _)) = step_sizes(scores, params["dt_bias"]), calls["mix"]
    if isinstance(mixer, Mamba2):
        return LayerActivations(at_least_float32(scores), jnp.clip(steps, *mixer.dt_limit), _norm(added))
    tokens, selected = calls["x_proj"]
    B, C = jnp.split(at_least_float32(selected[..., mixer.rank :]), 2, axis=-1)
    A = -jnp.exp(at_least_float32(params["A_log"]))
    return LayerActivations(at_least_float32(scores), steps, _norm(added), tokens, A, B, C)


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(at_least_float32(x), axis=-1)
