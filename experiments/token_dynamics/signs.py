"""What the parameterisations of the input-output matrix do to models: signs, sizes, dead weights, symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.token_dynamics.text_models import SizeConfig, build

if TYPE_CHECKING:
    from numpy.typing import NDArray


def input_output_matrix(kernel: Any, states: int) -> NDArray[np.float64]:
    """M = S_C^T S_B of a layer.

    Args:
        kernel: that the mixer multiplies with, (E, R + 2 N): columns for r, B and C.
        states: N.

    Returns:
        (E, E).

    Example:
        >>> input_output_matrix(np.array([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]), 1).tolist()
        [[2.0, 6.0], [4.0, 12.0]]
    """
    S_B, S_C = np.split(np.asarray(kernel, np.float64).T[-2 * states :], 2)
    return S_C.T @ S_B


def raw_kernels(params: Any) -> list[Any]:
    """The parameter of each layer's selection (E, R + 2 N), layer by layer.

    Args:
        params: of a language model.

    Returns:
        The kernels.
    """
    blocks = params["params"]["backbone"]
    count = sum(name.startswith("blocks_") for name in blocks)
    return [blocks[f"blocks_{i}"]["mix"]["x_proj"]["kernel"] for i in range(count)]


def smallest_factor(params: Any, states: int) -> float:
    """The smallest entry of the diagonal factor over the layers of a positive model.

    Args:
        params: of the model.
        states: N.

    Returns:
        The entry; 0 if M of some layer is not symmetric, of rank N and with N positive eigenvalues, up to rounding.
    """
    from ssm.refinements import signed_diagonal, signed_kernel

    smallest = np.inf
    for raw in raw_kernels(params):
        M = input_output_matrix(signed_kernel(raw, states, "positive"), states)
        rounding = len(M) * np.finfo(np.float32).eps * np.abs(M).max()
        eigenvalues = np.linalg.eigvalsh((M + M.T) / 2)
        signs = [(eigenvalues > rounding).sum(), (eigenvalues < -rounding).sum()]
        if np.abs(M - M.T).max() > rounding or signs != [states, 0]:
            return 0.0
        smallest = min(smallest, float(signed_diagonal(raw[0, -states:], "positive").min()))
    return smallest


def eigenvalue_ratios(size: SizeConfig, vocabulary: int, length: int, seeds: Sequence[int]) -> list[float]:
    """At initialisation: the smallest nonzero eigenvalue of M if positive, over the largest modulus if free.

    Args:
        size: of the models.
        vocabulary: tokens V.
        length: of the sequence of tokens that gradients are taken on.
        seeds: one pair of models each.

    Returns:
        The ratio of each seed; 0 if not exactly N (E - 1) + N (N + 1) / 2 weights of each layer's selection have no
        gradient in the positive model.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from ssm.refinements import signed_kernel

    states, inner = size.states, 2 * size.width
    free, positive = build(size, vocabulary), build(size, vocabulary, scenario="positive")
    tokens = jax.random.randint(jax.random.key(0), (2, length), 0, vocabulary)
    init = jax.jit(lambda key: nn.unbox(free.init(key, tokens)))  # both have the same parameters
    logits: Any = positive.apply
    gradient = jax.jit(jax.grad(lambda variables: jnp.sum(jnp.sin(logits(variables, tokens)))))
    found = []
    for seed in seeds:
        params = init(jax.random.key(seed))
        dead = [states * 2 * inner - int((raw[:, -2 * states :] != 0).sum()) for raw in raw_kernels(gradient(params))]
        smallest, largest = np.inf, 0.0
        for raw in raw_kernels(params):
            largest = max(largest, np.abs(np.linalg.eigvals(input_output_matrix(raw, states))).max())
            signed = input_output_matrix(signed_kernel(raw, states, "positive"), states)
            smallest = min(smallest, np.linalg.eigvalsh(signed)[-states])
        expected = states * (inner - 1) + states * (states + 1) // 2
        found.append(float(smallest / largest) if set(dead) == {expected} else 0.0)
    return found


def sign_asymmetry(size: SizeConfig, length: int, seed: int) -> float:
    """How far `negative` is from `positive` with skip and output projection turned, over the largest output.

    Args:
        size: of the mixer.
        length: of the sequence.
        seed: of parameters and input, all of them standard normal, those of the recurrence smaller.

    Returns:
        The largest distance over the largest output.
    """
    import flax.linen as nn
    import jax

    from ssm import RefinedMamba

    negative, positive = (RefinedMamba(size.width, size.states, scenario=sign) for sign in ("negative", "positive"))
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, length, size.width), np.float32)
    shapes = nn.unbox(jax.eval_shape(negative.init, jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda leaf: 0.3 * random.standard_normal(leaf.shape, np.float32), shapes)
    turned = {**params, "D": -params["D"], "out_proj": {"kernel": -params["out_proj"]["kernel"]}}
    y, _ = jax.jit(negative.apply)({"params": params}, x)
    other, _ = jax.jit(positive.apply)({"params": turned}, x)
    return float(np.abs(y - other).max() / np.abs(y).max())
