"""Tokenizers, losses and bounds of "Toward a Theory of Tokenization in LLMs" (arXiv 2404.08335).

Names are imported on first use: reading a result file imports neither JAX nor a tokenizer library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.tokenization.blocks import BlockTokenizer
    from experiments.tokenization.bpe import BPETokenizer
    from experiments.tokenization.characters import CharacterTokenizer
    from experiments.tokenization.greedy import GreedyTokenizer
    from experiments.tokenization.lzw import LZWTokenizer
    from experiments.tokenization.tokenizer import Tokenizer

__all__ = ["BPETokenizer", "BlockTokenizer", "CharacterTokenizer", "GreedyTokenizer", "LZWTokenizer", "Tokenizer"]

_MODULE_OF = {
    "BPETokenizer": "bpe",
    "BlockTokenizer": "blocks",
    "CharacterTokenizer": "characters",
    "GreedyTokenizer": "greedy",
    "LZWTokenizer": "lzw",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
