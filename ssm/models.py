"""Causal language models of Mamba and Mamba-2, as they were published.

    x_0 = embedding[token]
    x_i = x_{i-1} + mixer_i(norm_i(x_{i-1}))        i = 1, ..., number of layers
    logits = W norm(x_n)

There is no MLP. Norms are RMSNorm, and W is the embedding if the model is tied.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import flax.linen as nn

from lightnet.backbone import Backbone, CausalLM
from ssm.initializers import uniform_init
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2

MIXERS = (Mamba, Mamba2)
BY_THE_BACKBONE = {"width", "out_scale", "dtype", "parent", "name"}  # what a mixer is not given by `mamba_lm`
# Not compared: constructors, whose modules are; and what has no effect on what given parameters compute.
CONSTRUCTORS = {"backbone", "mixer", "channel_mixer", "norm"}
WITHOUT_EFFECT = {"parent", "name", "dtype", "param_dtype", "remat", "out_scale", "scale_init", "activation"}
WITHOUT_EFFECT |= {"dt_min", "dt_max", "A_range", "out_init"}


@dataclass(frozen=True)
class Architecture:
    """What a language model of Mamba or Mamba-2 computes, but for its parameters.

    Attributes:
        mixer: of each block; its width is the model's.
        vocab_size: tokens V, padding of the vocabulary included.
        num_layers: blocks.
        norm_eps: epsilon of the norms before the mixers and before the logits.
        float32_residual: whether the sum over blocks is float32 at least, whatever the precision of the rest.
        tied: whether the output kernel is the embedding.

    Example:
        >>> Architecture(Mamba(width=768), vocab_size=50280, num_layers=24).tied
        True
    """

    mixer: Mamba | Mamba2
    vocab_size: int
    num_layers: int
    norm_eps: float = 1e-5
    float32_residual: bool = True
    tied: bool = True


def mamba_lm(architecture: Architecture, dtype: Any = None) -> CausalLM:
    """A causal language model with the published initial values; `ssm.pretrained.save_pretrained` can write it.

    Args:
        architecture: its sizes.
        dtype: of the computation, see `lightnet.backbone.Backbone`.

    Returns:
        The model, called with tokens (B, L).

    Example:
        >>> model = mamba_lm(Architecture(Mamba(width=4, state_size=3), vocab_size=7, num_layers=2))
        >>> model.backbone.num_layers, model.backbone.mixer(width=4).state_size
        (2, 3)
    """
    a = architecture
    options = {field.name: getattr(a.mixer, field.name) for field in fields(a.mixer)}
    # U(-1 / sqrt(E), 1 / sqrt(E)) over the root of the number of layers, as in mamba_ssm.
    options["out_init"] = a.mixer.out_init or uniform_init((a.mixer.inner * a.num_layers) ** -0.5)
    backbone = Backbone(
        mixer=partial(type(a.mixer), **{name: options[name] for name in options.keys() - BY_THE_BACKBONE}),
        num_layers=a.num_layers,
        width=a.mixer.width,
        mlp_ratio=0,
        norm=partial(nn.RMSNorm, epsilon=a.norm_eps),
        float32_residual=a.float32_residual,
        dtype=dtype,
    )
    return CausalLM(backbone, vocab_size=a.vocab_size, tied=a.tied)


def architecture_of(model: CausalLM) -> Architecture:
    """The architecture with which `mamba_lm` makes a model.

    Args:
        model: a causal language model.

    Returns:
        The architecture.

    Raises:
        ValueError: `mamba_lm` makes no such model; the message names a field that differs.

    Example:
        >>> a = Architecture(Mamba2(width=4, state_size=3, head_size=2), vocab_size=7, num_layers=2)
        >>> architecture_of(mamba_lm(a)) == a
        True
    """
    found = _parts(model)
    for name, kinds in (("mixer", MIXERS), ("norm", (nn.RMSNorm,))):
        if type(found.get(name)) not in kinds:  # a subclass computes something else
            only = " and ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"model: {name} is {type(found.get(name)).__name__}, this layout has {only} only")
    architecture = Architecture(
        mixer=found["mixer"].clone(out_init=None),
        vocab_size=model.vocab_size,
        num_layers=model.backbone.num_layers,
        norm_eps=found["norm"].epsilon,
        float32_residual=model.backbone.float32_residual,
        tied=model.tied,
    )
    for name, expected in _parts(mamba_lm(architecture)).items():
        for field in sorted({field.name for field in fields(expected)} - CONSTRUCTORS - WITHOUT_EFFECT):
            given, only = getattr(found[name], field), getattr(expected, field)
            if given != only:
                raise ValueError(f"model: {name}.{field} is {given!r}, this layout has {only!r} only")
    if model.backbone.channel_mixer is not None:
        raise ValueError("model: it has a channel_mixer, this layout has none")
    return architecture


def _parts(model: CausalLM) -> dict[str, Any]:
    """The modules that a model is made of."""
    backbone = model.backbone
    parts = {"model": model, "backbone": backbone, "mixer": backbone.mixer(width=backbone.width)}
    if backbone.norm is not None:
        parts["norm"] = backbone.norm()
    return parts
