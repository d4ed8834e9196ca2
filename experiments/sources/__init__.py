"""Generated and embedded data shared by several papers: Markov sources, text without a download, digit images.

Names are imported on first use, so that reading a text corpus does not import JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.sources.digits import Digits, load_digits
    from experiments.sources.markov import MarkovSource
    from experiments.sources.switching import SwitchingSource
    from experiments.sources.text import Corpus, documentation, read_folder, standard_library

__all__ = [
    "Corpus",
    "Digits",
    "MarkovSource",
    "SwitchingSource",
    "documentation",
    "load_digits",
    "read_folder",
    "standard_library",
]

_MODULE_OF = {
    "Corpus": "text",
    "Digits": "digits",
    "MarkovSource": "markov",
    "SwitchingSource": "switching",
    "documentation": "text",
    "load_digits": "digits",
    "read_folder": "text",
    "standard_library": "text",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
