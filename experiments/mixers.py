"""The mixers and encodings that experiments compare, by the names that their configs have for them.

Importing this module imports no JAX, so that a config can check its names.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from experiments.registry import unknown

STATE_SPACES = ("s4", "s4d", "s5", "s5-bidirectional", "mamba", "mamba2", "mamba-refined")
MIXERS = ("lightnet", "linear", "softmax", "multiplicative", "multiplicative-2", "multiplicative-4", *STATE_SPACES)
ORDER_FREE_ONLY = ("multiplicative-2", "multiplicative-4", "s5-bidirectional")
CAUSAL_ONLY = ("multiplicative", *(name for name in STATE_SPACES if name not in ORDER_FREE_ONLY))
POSITIONS = ("none", "lrpe", "tpe", "both", "rotary", "learned", "seqpe")
Task = Literal["causal text", "text", "pictures"]
_OUT_OF_PLACE = {
    "causal text": (ORDER_FREE_ONLY, "scans both ways and would see the future"),
    "text": (("multiplicative-4",), "scans two axes, and text has one"),
    "pictures": (STATE_SPACES, "scans one axis, and pictures have two"),
}


def read_model(name: str, field: str, task: Task) -> tuple[str, str]:
    """The mixer and the positions of a model that a config names "mixer+positions".

    Args:
        name: for example "lightnet+both".
        field: of the config, for the message.
        task: what the model is for, which some mixers are not.

    Returns:
        (mixer, positions).

    Raises:
        ValueError: one of the two does not exist, or the mixer is not for the task.

    Example:
        >>> read_model("multiplicative-2+lrpe", "models", "pictures")
        ('multiplicative-2', 'lrpe')
    """
    if "+" not in name:
        raise ValueError(f"{field}: got {name!r}, expected a mixer and its positions, such as lightnet+both")
    kind, _, encoding = name.partition("+")
    check_model(kind, encoding, field, task)
    return kind, encoding


def check_model(kind: str, encoding: str, field: str, task: Task) -> None:
    """Refuse a model that does not exist, before anything is trained.

    Args:
        kind: name of the mixer.
        encoding: name of the positions.
        field: of the config, for the message.
        task: what the model is for.

    Raises:
        ValueError: one of the two does not exist, or the mixer is not for the task.

    Example:
        >>> check_model("mamba", "none", "variants", "pictures")
        Traceback (most recent call last):
        ...
        ValueError: variants: got mamba with none, but mamba scans one axis, and pictures have two
    """
    if kind not in MIXERS:
        raise ValueError(f"{field}: got {kind} with {encoding}: {unknown('mixer', kind, MIXERS)}")
    if encoding not in POSITIONS:
        raise ValueError(f"{field}: got {kind} with {encoding}: {unknown('positions', encoding, POSITIONS)}")
    refused, reason = _OUT_OF_PLACE[task]
    if kind in refused:
        raise ValueError(f"{field}: got {kind} with {encoding}, but {kind} {reason}")


def mixer(name: str, *, causal: bool, **options: Any) -> Callable[..., Any]:
    """Constructor of a mixer, to be called with `num_heads`, `relative` and what `Backbone` gives it.

    Args:
        name: one of MIXERS; "multiplicative-2" scans both ways, "multiplicative-4" the four ways of a picture.
        causal: whether tokens see only those before them. What is in CAUSAL_ONLY always does, so that asking it for
            less is a comparison with a model that cannot see ahead; what is in ORDER_FREE_ONLY never does.
        **options: further fields of the mixer. "mamba-refined" takes its `order` as a mapping too; with one it sees
            all tokens.

    Returns:
        The constructor.

    Raises:
        ValueError: an unknown name, or a mixer that scans both ways shall be causal.

    Example:
        >>> mixer("lightnet", causal=False)(width=8, num_heads=2).causal
        False
    """
    from lightnet.mixers import LightNetAttention, LinearAttention, MultiplicativeDecay, SoftmaxAttention

    if name not in MIXERS:
        raise ValueError(f"mixer: got {name!r}, expected one of {', '.join(MIXERS)}")
    if causal and name in ORDER_FREE_ONLY:
        raise ValueError(f"mixer: got {name!r} for a causal model, whose scans go both ways")
    if name in STATE_SPACES:
        return _state_space(name, options)
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


def _state_space(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    from ssm.mamba import Mamba
    from ssm.mamba2 import Mamba2
    from ssm.refinements import RefinedMamba
    from ssm.s4 import S4
    from ssm.s4d import S4D
    from ssm.s5 import S5

    if name == "mamba2":
        return partial(_inner_heads, Mamba2, **options)
    if name == "mamba-refined":
        return partial(_refined, RefinedMamba, **options)
    if name == "s5-bidirectional":
        options = {"bidirectional": True, **options}
    kinds: dict[str, Any] = {"s4": S4, "s4d": S4D, "s5": S5, "s5-bidirectional": S5, "mamba": Mamba}
    return partial(_headless, kinds[name], **options)


def _headless(kind: Callable[..., Any], *, num_heads: int, relative: Any = None, **options: Any) -> Any:
    """A mixer without heads and without relative encodings."""
    del num_heads, relative
    return kind(**options)


def _refined(kind: Callable[..., Any], *, order: Any = None, **options: Any) -> Any:
    """Mamba with its refinements, whose order may be given as a description has it."""
    from ssm.refinements import TokenOrder

    return _headless(kind, order=TokenOrder(**order) if isinstance(order, Mapping) else order, **options)


def _inner_heads(kind: Callable[..., Any], *, width: int, num_heads: int, relative: Any = None, **options: Any) -> Any:
    """A mixer with the size of its heads given: as many share its inner channels, which are 2 D without `expand`.

    The published size, 64, does not divide the channels of a narrow model.
    """
    del relative
    inner = options.get("expand", 2) * width
    return kind(**{"width": width, "head_size": max(1, inner // num_heads), **options})
