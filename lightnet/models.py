"""LightNet's named sizes: whole models for its four tasks.

**No size here is known to be the paper's.** Its tables were not at hand; the sizes are what its reviews and its group's
other papers, code and configurations for the same tasks have (`Size.source`). All are blocks of LightNet's mixer and a
GLU with RMSNorm before each, and a norm at the end, with MD-TPE behind the embedding and MD-LRPE in every layer:

    model = causal_lm(CAUSAL_LMS["160m"], vocab_size=50257)
    other = causal_lm(CAUSAL_LMS["160m"], vocab_size=50257, mixer=MultiplicativeDecay)
    plain = classifier(CLASSIFIERS["tiny"], image=(224, 224), patch=(16, 16), num_classes=1000, input_positions=None)

Each comparison is one argument: the mixer, a constructor with its own switches, and the two encodings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import flax.linen as nn

from lightnet.backbone import Backbone, CausalLM, Mixer
from lightnet.diffusion import DiffusionTransformer
from lightnet.feed_forward import GLU, glu_width
from lightnet.heads import Classifier, MaskedLM
from lightnet.mixers import LightNetAttention
from lightnet.mixers.parts import Relative
from lightnet.positions import MDLRPE, MDTPE

InputEncoding = Callable[..., nn.Module] | None
MixerConstructor = Callable[..., Mixer]
ORDER_FREE = partial(LightNetAttention, causal=False)
RMS_NORM = partial(nn.RMSNorm, epsilon=1e-6)


@dataclass(frozen=True)
class Size:
    """The size of a stack.

    Attributes:
        num_layers: blocks.
        width: channels D.
        num_heads: heads H.
        source: where the numbers are from.
        hidden: width of the GLU; None is 8/3 D rounded up to a multiple of 64.
        verified: whether the paper is known to have this size.

    Example:
        >>> Size(num_layers=2, width=32, num_heads=2, source="ours").glu
        128
    """

    num_layers: int
    width: int
    num_heads: int
    source: str
    hidden: int | None = None
    verified: bool = False

    @property
    def glu(self) -> int:
        """Hidden width of the GLU."""
        return self.hidden or glu_width(self.width)


_VIT = "unverified: DeiT's widths and depth, which the same group's models for ImageNet have"
_DIT = "unverified: DiT's depths, widths and heads (arXiv 2212.09748)"
_HGRN = "unverified: the first author's configurations of HGRN2, heads from the same place"
CLASSIFIERS: Mapping[str, Size] = MappingProxyType(
    {
        "tiny": Size(12, 192, 3, _VIT),
        "small": Size(12, 384, 6, _VIT),
        "base": Size(12, 768, 12, _VIT),
    }
)
DIFFUSION: Mapping[str, Size] = MappingProxyType(
    {
        "small": Size(12, 384, 6, _DIT),
        "base": Size(12, 768, 12, _DIT),
        "large": Size(24, 1024, 16, _DIT),
        "xl": Size(28, 1152, 16, _DIT),
    }
)
MASKED_LMS: Mapping[str, Size] = MappingProxyType({"base": Size(12, 768, 12, "unverified: BERT's base size")})
CAUSAL_LMS: Mapping[str, Size] = MappingProxyType(
    {
        "44m": Size(6, 512, 8, "unverified: about the size of the group's models for WikiText-103"),
        "160m": Size(12, 768, 12, _HGRN, hidden=2048),
        "380m": Size(24, 1024, 16, _HGRN, hidden=2816),
        "1.3b": Size(24, 2048, 16, _HGRN, hidden=5632),
    }
)


def stack(
    size: Size,
    mixer: MixerConstructor,
    *,
    dtype: Any = None,
    remat: str = "none",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    scan_layers: bool = False,
    **options: Any,
) -> Backbone:
    """The blocks of a size around a mixer: RMSNorm, mixer, RMSNorm, GLU.

    Args:
        size: of the stack.
        mixer: constructor of mixers.
        dtype: see `Backbone`.
        remat: see `Backbone`.
        dropout: see `Backbone`.
        drop_path: see `Backbone`.
        scan_layers: see `Backbone`.
        **options: further fields of the mixer, such as `relative`.

    Returns:
        The backbone.

    Example:
        >>> stack(CAUSAL_LMS["44m"], LightNetAttention, relative=MDLRPE).width
        512
    """
    return Backbone(
        mixer=partial(mixer, num_heads=size.num_heads, **options),
        num_layers=size.num_layers,
        width=size.width,
        dtype=dtype,
        remat=remat,
        channel_mixer=partial(GLU, hidden=size.glu),
        norm=RMS_NORM,
        dropout=dropout,
        drop_path=drop_path,
        scan_layers=scan_layers,
    )


def causal_lm(
    size: Size,
    vocab_size: int,
    *,
    mixer: MixerConstructor = LightNetAttention,
    relative: Relative = MDLRPE,
    input_positions: InputEncoding = MDTPE,
    tied: bool = True,
    **stack_options: Any,
) -> CausalLM:
    """A causal language model.

    Args:
        size: of the stack.
        vocab_size: tokens V.
        mixer: constructor of causal mixers.
        relative: constructor of relative encodings, or None.
        input_positions: constructor of an encoding of embedded tokens, or None.
        tied: whether the output kernel is the embedding.
        **stack_options: see `stack`.

    Returns:
        The model, called with tokens (B, L).

    Example:
        >>> causal_lm(CAUSAL_LMS["44m"], vocab_size=256).backbone.num_layers
        6
    """
    backbone = stack(size, mixer, relative=relative, **stack_options)
    return CausalLM(backbone, vocab_size=vocab_size, tied=tied, input_positions=input_positions)


def masked_lm(
    size: Size,
    vocab_size: int,
    *,
    mixer: MixerConstructor = ORDER_FREE,
    relative: Relative = MDLRPE,
    input_positions: InputEncoding = MDTPE,
    tied: bool = True,
    **stack_options: Any,
) -> MaskedLM:
    """A masked language model, with one id, `vocab_size`, for the mask.

    Args:
        size: of the stack.
        vocab_size: tokens V without the mask.
        mixer: constructor of mixers that see all tokens.
        relative: constructor of relative encodings, or None.
        input_positions: constructor of an encoding of embedded tokens, or None.
        tied: whether the output kernel is the embedding.
        **stack_options: see `stack`.

    Returns:
        The model, called with tokens (B, L).

    Example:
        >>> masked_lm(MASKED_LMS["base"], vocab_size=256).num_input_only
        1
    """
    backbone = stack(size, mixer, relative=relative, **stack_options)
    return MaskedLM(backbone, vocab_size=vocab_size, tied=tied, input_positions=input_positions)


def classifier(
    size: Size,
    image: tuple[int, ...],
    patch: tuple[int, ...],
    num_classes: int,
    *,
    mixer: MixerConstructor = ORDER_FREE,
    relative: Relative = MDLRPE,
    input_positions: InputEncoding = MDTPE,
    pool: str = "mean",
    **stack_options: Any,
) -> Classifier:
    """A classifier of images, or of grids with any number of axes.

    Args:
        size: of the stack.
        image: size along each axis.
        patch: size of a patch along each axis.
        num_classes: number of logits.
        mixer: constructor of mixers.
        relative: constructor of relative encodings, called with the number of axes too, or None.
        input_positions: constructor of an encoding of embedded tokens, called with the grid too, or None.
        pool: "mean" or "token".
        **stack_options: see `stack`.

    Returns:
        The model, called with images (B, n_1, ..., n_A, C).

    Raises:
        ValueError: the patch does not divide the image.

    Example:
        >>> classifier(CLASSIFIERS["tiny"], image=(32, 32), patch=(8, 8), num_classes=10).patch
        (8, 8)
    """
    layout: dict[str, Any] = {"grid": _grid(image, patch), "num_extra": int(pool == "token")}
    backbone = stack(size, mixer, relative=_on_axes(relative, image), **layout, **stack_options)
    positions = None if input_positions is None else partial(input_positions, **layout)
    return Classifier(backbone, num_classes=num_classes, patch=patch, input_positions=positions, pool=pool)


def diffusion(
    size: Size,
    image: tuple[int, ...],
    patch: tuple[int, ...],
    num_classes: int = 0,
    *,
    mixer: MixerConstructor = ORDER_FREE,
    relative: Relative = MDLRPE,
    input_positions: InputEncoding = MDTPE,
    channels_out: int | None = None,
    dtype: Any = None,
) -> DiffusionTransformer:
    """A diffusion transformer with adaLN-zero.

    Args:
        size: of the stack.
        image: size along each axis, of the image or of its latents.
        patch: size of a patch along each axis.
        num_classes: classes of the condition; 0 has none.
        mixer: constructor of mixers that see all tokens.
        relative: constructor of relative encodings, called with the number of axes too, or None.
        input_positions: constructor of an encoding of embedded tokens, called with the grid too, or None.
        channels_out: see `DiffusionTransformer`.
        dtype: of the computation.

    Returns:
        The model, called with noisy images (B, n_1, ..., n_A, C), times (B,) and labels (B,).

    Raises:
        ValueError: the patch does not divide the image.

    Example:
        >>> diffusion(DIFFUSION["small"], image=(32, 32), patch=(2, 2), num_classes=1000).width
        384
    """
    grid = _grid(image, patch)
    return DiffusionTransformer(
        mixer=partial(mixer, num_heads=size.num_heads, relative=_on_axes(relative, image), grid=grid),
        num_layers=size.num_layers,
        width=size.width,
        patch=patch,
        num_classes=num_classes,
        input_positions=None if input_positions is None else partial(input_positions, grid=grid),
        channel_mixer=partial(GLU, hidden=size.glu),
        channels_out=channels_out,
        dtype=dtype,
    )


def _grid(image: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    if len(image) != len(patch) or any(p < 1 or n % p for n, p in zip(image, patch, strict=True)):
        raise ValueError(f"patch: got {patch}, expected a divisor of each of {image}")
    return tuple(n // p for n, p in zip(image, patch, strict=True))


def _on_axes(relative: Relative, image: tuple[int, ...]) -> Relative:
    return None if relative is None else partial(relative, axes=len(image))
