"""How much each token contributes to the gradient of a layer's weights.

The weights of a layer of Mamba act on one token at a time, o_l = W i_l, so that the gradient of any loss is a sum of
outer products, one per token:

    dL / dW = sum_l g_l i_l^T,    g_l = dL / do_l,    |g_l i_l^T| = |g_l| |i_l|                            (ours)

The norm on the right, over its sum over the tokens of a sequence, is the token's share. It needs no gradient of a
weight: g_l is the gradient of the loss with respect to a zero that is added to o_l.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import CausalLM
from lightnet.typing import Array
from ssm.mamba import at_least_float32


class Contribution(NamedTuple):
    """Both factors of what tokens contribute to the gradient of one matrix.

    Attributes:
        inputs: i, what the matrix is applied to, (B, L, I).
        cotangents: g, the gradient with respect to the output, (B, L, O); several axes of outputs are one here.
    """

    inputs: Array
    cotangents: Array

    @property
    def norms(self) -> Array:
        """|g_l i_l^T| of each token, (B, L)."""
        return jnp.linalg.norm(self.inputs, axis=-1) * jnp.linalg.norm(self.cotangents, axis=-1)


def contributions(
    model: CausalLM,
    variables: Any,
    tokens: Array | np.ndarray,
    loss: Callable[[Array], Array],
    name: str = "x_proj",
) -> tuple[Contribution, ...]:
    """What every token contributes to the gradient of the loss, for one matrix of every layer. May be compiled.

    Args:
        model: a causal language model of Mamba or Mamba-2.
        variables: its parameters.
        tokens: (B, L) ids.
        loss: logits (B, L, V) -> scalar, a sum of what sequences give by themselves.
        name: of the matrix in the mixer: "in_proj", "x_proj" (S_B, S_C and S_Delta's first factor), "dt_proj" or
            "out_proj". Of a matrix that is parameterised, the one that acts is meant.

    Returns:
        One per layer, float32 at least.

    Raises:
        ValueError: the mixer has no such matrix.

    Example:
        >>> from ssm import Mamba
        >>> from ssm.models import Architecture, mamba_lm
        >>> model = mamba_lm(Architecture(Mamba(width=4, state_size=3), vocab_size=7, num_layers=1))
        >>> tokens = jnp.array([[1, 2, 3, 4, 5]])
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> compiled = jax.jit(lambda v, t: contributions(model, v, t, lambda logits: jnp.square(logits).sum()))
        >>> (layer,) = compiled(variables, tokens)
        >>> layer.inputs.shape, layer.cotangents.shape, layer.norms.shape
        ((1, 5, 8), (1, 5, 7), (1, 5))
    """
    # What a block computes again for its gradient could not be taken out of it.
    plain, variables = model.clone(backbone=model.backbone.clone(remat="none")), nn.meta.unbox(variables)

    def probed(probes: list[Array] | None) -> tuple[Array, tuple[list[Array], list[Array]]]:
        logits, inputs, outputs = _with_probes(plain, variables, tokens, name, probes)
        return loss(logits), (inputs, outputs)

    _, (_, shapes) = jax.eval_shape(lambda: probed(None))
    if len(shapes) != model.backbone.num_layers:
        raise ValueError(f"name: got {name!r}, expected a matrix of the mixer, such as 'x_proj'")
    zeros = [jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in shapes]
    cotangents, (inputs, _) = jax.grad(probed, has_aux=True)(zeros)
    pairs = zip(inputs, cotangents, strict=True)
    return tuple(Contribution(i, g.reshape(*tokens.shape, -1)) for i, g in pairs)


def _with_probes(
    model: CausalLM, variables: Any, tokens: Array | np.ndarray, name: str, probes: list[Array] | None
) -> tuple[Any, list[Array], list[Array]]:
    """Logits, and inputs and outputs of the matrix in every layer, to whose outputs the probes are added."""
    inputs: list[Array] = []
    outputs: list[Array] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name != "__call__" or context.module.name != name:
            return output
        inputs.append(at_least_float32(args[0]))
        outputs.append(output)
        return output if probes is None else output + probes[len(outputs) - 1].astype(output.dtype)

    with nn.intercept_methods(record):
        logits = model.apply(variables, jnp.asarray(tokens))
    return logits, inputs, outputs


def shares(norms: Array) -> Array:
    """The share of each token: its norm over the sum over the sequence.

    Args:
        norms: (..., L), not all zero.

    Returns:
        (..., L), with sum 1.

    Example:
        >>> shares(jnp.array([1.0, 3.0])).tolist()
        [0.25, 0.75]
    """
    return norms / norms.sum(axis=-1, keepdims=True)
