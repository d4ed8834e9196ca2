"""State space models on the scan core: S4, S4D, S5, Mamba and Mamba-2, and pre-trained checkpoints of the last two.

| mixer | transition | depends on the token | trained as | state of a layer |
|---|---|---|---|---|
| `S4` | diagonal plus low rank, complex | no | a convolution by FFT | (B, D, N / 2), complex |
| `S4D` | diagonal, complex or real | no | a scan | (B, D, N / 2), complex; (B, D, N) if real |
| `S5` | diagonal, complex; all channels share the states | no | a scan, one way or both | (B, N / 2), complex |
| `Mamba` | diagonal, real | yes | a scan | (B, E, N) and a window |
| `RefinedMamba` | as `Mamba`; a sign of its projections chosen, or tokens reordered | yes | a scan | as `Mamba` |
| `Mamba2` | one real decay per head | yes | a scan by chunks | (B, H, N, P) and a window |

`HiSS` puts any mixer within chunks of samples under any mixer of the chunks. `SIGMA` is a recommender around Mamba:
scores of the next item from the items before, as released and corrected. The theory of tokens in deep stacks is
`ssm.dynamics`. Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssm import dynamics
    from ssm.hiss import HiSS, HiSSState
    from ssm.mamba import Mamba
    from ssm.mamba2 import Mamba2
    from ssm.models import Architecture, mamba_lm
    from ssm.pretrained import load_pretrained, save_pretrained
    from ssm.refinements import RefinedMamba, TokenOrder
    from ssm.s4 import S4
    from ssm.s4d import S4D
    from ssm.s5 import S5
    from ssm.sigma import SIGMA

__all__ = [
    "S4",
    "S4D",
    "S5",
    "SIGMA",
    "Architecture",
    "HiSS",
    "HiSSState",
    "Mamba",
    "Mamba2",
    "RefinedMamba",
    "TokenOrder",
    "dynamics",
    "load_pretrained",
    "mamba_lm",
    "save_pretrained",
]

_MODULE_OF = {
    "Architecture": "models",
    "HiSS": "hiss",
    "HiSSState": "hiss",
    "S4": "s4",
    "S4D": "s4d",
    "S5": "s5",
    "SIGMA": "sigma",
    "Mamba": "mamba",
    "Mamba2": "mamba2",
    "RefinedMamba": "refinements",
    "TokenOrder": "refinements",
    "load_pretrained": "pretrained",
    "mamba_lm": "models",
    "save_pretrained": "pretrained",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` (PEP 562)."""
    if name == "dynamics":
        return import_module("ssm.dynamics")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return __all__
