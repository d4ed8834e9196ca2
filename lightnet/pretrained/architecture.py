"""The causal language models that flash-linear-attention's layout can hold."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import flax.linen as nn

from lightnet.backbone import Backbone, CausalLM
from lightnet.feed_forward import GLU, glu_width
from lightnet.mixers import LightNetAttention

GATED_NORM_EPS = 1e-6
# Not compared: constructors, whose modules are; and what has no effect on what given parameters compute.
CONSTRUCTORS = {"backbone", "mixer", "channel_mixer", "norm"}
WITHOUT_EFFECT = {"parent", "name", "dtype", "param_dtype", "remat", "out_scale", "scale_init"}


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint's configuration says about its model, by our names.

    Attributes:
        vocab_size: tokens V.
        width: channels D.
        num_layers: blocks.
        num_heads: heads H; a divisor of D.
        hidden: width of the GLU.
        gate_rank: of the mixer's gate.
        conv_width: taps of the short convolution; 0 has none.
        gated_norm_scale: whether the norm before the gate has a scale.
        norm_eps: epsilon of the other norms.
        tied: whether the output kernel is the embedding.

    Example:
        >>> Architecture(vocab_size=7, width=8, num_layers=1, num_heads=2, hidden=16, gate_rank=4).head_size
        4
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    hidden: int
    gate_rank: int
    conv_width: int = 0
    gated_norm_scale: bool = True
    norm_eps: float = 1e-6
    tied: bool = False

    @property
    def head_size(self) -> int:
        """Channels K of a head."""
        return self.width // self.num_heads


def lightnet_lm(architecture: Architecture) -> CausalLM:
    """The causal language model that flash-linear-attention calls LightNet; `save_pretrained` can write it.

    Args:
        architecture: its sizes.

    Returns:
        The model, called with tokens (B, L).

    Example:
        >>> model = lightnet_lm(Architecture(vocab_size=7, width=8, num_layers=1, num_heads=2, hidden=16, gate_rank=4))
        >>> model.backbone.width, model.tied
        (8, False)
    """
    a = architecture
    gated_norm = partial(nn.RMSNorm, epsilon=GATED_NORM_EPS * a.head_size, use_scale=a.gated_norm_scale)
    mixer = partial(
        LightNetAttention,
        num_heads=a.num_heads,
        conv_width=a.conv_width,
        gate_activation=nn.silu,
        gate_position="after",
        gate_rank=a.gate_rank,
        norm=gated_norm,
    )
    backbone = Backbone(
        mixer=mixer,
        num_layers=a.num_layers,
        width=a.width,
        channel_mixer=partial(GLU, hidden=a.hidden),
        norm=partial(nn.RMSNorm, epsilon=a.norm_eps),
    )
    return CausalLM(backbone, vocab_size=a.vocab_size, tied=a.tied)


def architecture_of(model: CausalLM) -> Architecture:
    """The architecture with which `lightnet_lm` makes a model.

    Args:
        model: a causal language model.

    Returns:
        The architecture.

    Raises:
        ValueError: `lightnet_lm` makes no such model; the message names a field that differs.

    Example:
        >>> a = Architecture(vocab_size=7, width=8, num_layers=1, num_heads=2, hidden=16, gate_rank=4)
        >>> architecture_of(lightnet_lm(a)) == a
        True
    """
    found = _parts(model)
    for name, kind in (("mixer", LightNetAttention), ("mixer.norm", nn.RMSNorm), ("mlp", GLU), ("norm", nn.RMSNorm)):
        if not isinstance(found.get(name), kind):
            raise ValueError(f"model: {name} is {type(found.get(name)).__name__}, this layout has {kind.__name__} only")
    mixer = found["mixer"]
    architecture = Architecture(
        vocab_size=model.vocab_size,
        width=model.backbone.width,
        num_layers=model.backbone.num_layers,
        num_heads=mixer.num_heads,
        hidden=found["mlp"].hidden,
        gate_rank=mixer.gate_rank,
        conv_width=mixer.conv_width,
        gated_norm_scale=found["mixer.norm"].use_scale,
        norm_eps=found["norm"].epsilon,
        tied=model.tied,
    )
    for name, expected in _parts(lightnet_lm(architecture)).items():
        for field in sorted({field.name for field in fields(expected)} - CONSTRUCTORS - WITHOUT_EFFECT):
            given, only = getattr(found[name], field), getattr(expected, field)
            if given != only:
                raise ValueError(f"model: {name}.{field} is {given!r}, this layout has {only!r} only")
    return architecture


def _parts(model: CausalLM) -> dict[str, Any]:
    """The modules that a model is made of, with sizes in the place of defaults."""
    backbone = model.backbone
    parts = {"model": model, "backbone": backbone}
    mixer = backbone.mixer(width=backbone.width, out_scale=0.02, dtype=None)
    if isinstance(mixer, LightNetAttention):
        parts["mixer.norm"] = mixer.norm()
        mixer = mixer.clone(gate_rank=mixer.gate_rank or mixer.width // mixer.num_heads)
    parts["mixer"] = mixer
    if backbone.channel_mixer is not None:
        mlp = backbone.channel_mixer(out_scale=0.02, dtype=None)
        parts["mlp"] = mlp.clone(hidden=mlp.hidden or glu_width(backbone.width)) if isinstance(mlp, GLU) else mlp
    if backbone.norm is not None:
        parts["norm"] = backbone.norm()
    return parts
