"""Tokenizers, losses and bounds of "Toward a Theory of Tokenization in LLMs" (arXiv 2404.08335).

Names are imported on first use: reading a result file imports neither JAX nor a tokenizer library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.tokenization.blocks import BlockTokenizer
    from experiments.tokenization.bpe import BPETokenizer
    from experiments.tokenization.characters import CharacterTokenizer
    from experiments.tokenization.dictionaries import longest_run, memorising_dictionary, run_dictionary
    from experiments.tokenization.greedy import GreedyTokenizer
    from experiments.tokenization.lattice import LatticeTokenizer, MinimalTokenizer, ViterbiTokenizer
    from experiments.tokenization.lzw import LZWTokenizer
    from experiments.tokenization.sequential_bpe import SequentialBPETokenizer
    from experiments.tokenization.split import SplitTokenizer
    from experiments.tokenization.tokenizer import Tokenizer
    from experiments.tokenization.unigram import UnigramTokenizer
    from experiments.tokenization.wordpiece import WordPieceTokenizer

__all__ = [
    "BPETokenizer",
    "BlockTokenizer",
    "CharacterTokenizer",
    "GreedyTokenizer",
    "LZWTokenizer",
    "LatticeTokenizer",
    "MinimalTokenizer",
    "SequentialBPETokenizer",
    "SplitTokenizer",
    "Tokenizer",
    "UnigramTokenizer",
    "ViterbiTokenizer",
    "WordPieceTokenizer",
    "longest_run",
    "memorising_dictionary",
    "run_dictionary",
]

_MODULE_OF = {
    "BPETokenizer": "bpe",
    "BlockTokenizer": "blocks",
    "CharacterTokenizer": "characters",
    "GreedyTokenizer": "greedy",
    "LZWTokenizer": "lzw",
    "LatticeTokenizer": "lattice",
    "MinimalTokenizer": "lattice",
    "SequentialBPETokenizer": "sequential_bpe",
    "SplitTokenizer": "split",
    "Tokenizer": "tokenizer",
    "UnigramTokenizer": "unigram",
    "ViterbiTokenizer": "lattice",
    "WordPieceTokenizer": "wordpiece",
    "longest_run": "dictionaries",
    "memorising_dictionary": "dictionaries",
    "run_dictionary": "dictionaries",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
