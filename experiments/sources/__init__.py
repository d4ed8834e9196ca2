"""Generated and embedded data shared by several papers: Markov sources, tasks in context, embedded text, digit images.

Names are imported on first use, so that reading a text corpus does not import JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.sources.digits import Digits, load_digits
    from experiments.sources.dirichlet import clipped_dirichlet_source
    from experiments.sources.in_context import InContextChains
    from experiments.sources.markov import MarkovSource
    from experiments.sources.mixture_sequences import MixtureSequences
    from experiments.sources.source import Source
    from experiments.sources.switching import SwitchingSource
    from experiments.sources.text import Corpus, documentation, read_folder, standard_library
    from experiments.sources.three_state import ThreeStateSource

__all__ = [
    "Corpus",
    "Digits",
    "InContextChains",
    "MarkovSource",
    "MixtureSequences",
    "Source",
    "SwitchingSource",
    "ThreeStateSource",
    "clipped_dirichlet_source",
    "documentation",
    "load_digits",
    "read_folder",
    "standard_library",
]

_MODULE_OF = {
    "Corpus": "text",
    "Digits": "digits",
    "InContextChains": "in_context",
    "MarkovSource": "markov",
    "MixtureSequences": "mixture_sequences",
    "Source": "source",
    "SwitchingSource": "switching",
    "ThreeStateSource": "three_state",
    "clipped_dirichlet_source": "dirichlet",
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
