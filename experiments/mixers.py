"""The mixers and encodings that experiments compare, by the names that their configs have for them.

Importing this module imports no JAX, so that a config can check its names.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

MIXERS = ("lightnet", "linear", "softmax", "multiplicative", "multiplicative-2", "multiplicative-4", "mamba")
CAUSAL_ONLY, ORDER_FREE_ONLY = ("multiplicative", "mamba"), ("multiplicative-2", "multiplicative-4")
POSITIONS = ("none", "lrpe", "tpe", "both", "rotary", "learned", "seqpe")


def mixer(name: str, *, causal: bool, **options: Any) -> Callable[..., Any]:
    """Constructor of a mixer, to be called with `num_heads`, `relative` and what `Backbone` gives it.

    Args:
        name: one of MIXERS; "multiplicative-2" scans both ways, "multiplicative-4" the four ways of a picture.
        causal: whether tokens see only those before them. One multiplicative scan and Mamba always do, so that asking
            them for less is a comparison with a model that cannot see ahead; two and four scans never do.
        **options: further fields of the mixer.

    Returns:
        The constructor.

    Raises:
        ValueError: an unknown name, or two or four scans shall be causal.

    Example:
        >>> mixer("lightnet", causal=False)(width=8, num_heads=2).causal
        False
    """
    from lightnet.mixers import LightNetAttention, LinearAttention, MultiplicativeDecay, SoftmaxAttention
    from ssm.mamba import Mamba

    if name not in MIXERS:
        raise ValueError(f"mixer: got {name!r}, expected one of {', '.join(MIXERS)}")
    if causal and name in ORDER_FREE_ONLY:
        raise ValueError(f"mixer: got {name!r} for a causal model, whose scans go both ways")
    if name == "mamba":
        return partial(_headless, Mamba, **options)
    if name.startswith("multiplicative"):
        return partial(MultiplicativeDecay, num_scans=int(name.partition("-")[2] or 1), **options)
    kinds = {"lightnet": LightNetAttention, "linear": LinearAttention, "softmax": SoftmaxAttention}
    return partial(kinds[name], causal=causal, **options)


def positions(name: str, *, length: int = 0) -> dict[str, Any]:
    """The two arguments `relative` and `input_positions` of `lightnet.models`.

    Args:
        name: one of POSITIONS. "lrpe" is MD-LRPE, "tpe" MD-TPE, "both" these two, "rotary" an axial rotary encoding of
            queries and keys, "learned" and "seqpe" are added to the embedded tokens.
        length: positions of a sequence, for "learned"; a grid needs none.

    Returns:
        The arguments; None where there is no such encoding.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> positions("none")
        {'relative': None, 'input_positions': None}
    """
    from lightnet.mixers import SoftmaxAttention
    from lightnet.positions import MDLRPE, MDTPE, LearnedAbsolute, Rotary, SeqPE

    if name not in POSITIONS:
        raise ValueError(f"positions: got {name!r}, expected one of {', '.join(POSITIONS)}")
    relative = {"lrpe": MDLRPE, "both": MDLRPE, "rotary": Rotary}.get(name)
    added: dict[str, Any] = {
        "tpe": MDTPE,
        "both": MDTPE,
        "learned": partial(LearnedAbsolute, length=length),
        "seqpe": partial(SeqPE, mixer=partial(SoftmaxAttention, num_heads=2)),
    }
    return {"relative": relative, "input_positions": added.get(name)}


def _headless(kind: Callable[..., Any], *, num_heads: int, relative: Any = None, **options: Any) -> Any:
    """A mixer without heads and without relative encodings."""
    del num_heads, relative
    return kind(**options)
