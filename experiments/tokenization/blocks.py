"""The toy tokenizer of arXiv 2404.08335, section 3: blocks of r symbols."""

import math
from itertools import product

import numpy as np
from numpy.typing import NDArray

from experiments.tokenization.tokenizer import Ids, Tokenizer

LARGEST_DICTIONARY = 2**20


class BlockTokenizer(Tokenizer):
    """Cuts a sequence over 0..A-1 into blocks of r symbols; what is left over at the end becomes single symbols.

    The dictionary holds the A**r blocks and, for r > 1, the A single symbols.

    Args:
        alphabet: A.
        block: r.

    Raises:
        ValueError: if either is no integer, 1 or more, or there are more than 2**20 blocks.

    Example:
        >>> tokenizer = BlockTokenizer(alphabet=2, block=2)
        >>> tokenizer.encode([0, 1, 1, 1, 1]).tolist(), tokenizer.decode([1, 3, 5]).tolist()
        ([1, 3, 5], [0, 1, 1, 1, 1])
    """

    def __init__(self, alphabet: int, block: int) -> None:
        """List the dictionary."""
        for name, value in (("alphabet", alphabet), ("block", block)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}: got {value}; expected an integer, 1 or more")
        if block * math.log(alphabet) > math.log(LARGEST_DICTIONARY) + 1e-9:
            raise ValueError(f"block: got {block} with {alphabet} symbols; expected 2**20 blocks at most")
        singles = product(range(alphabet)) if block > 1 else ()
        super().__init__([*product(range(alphabet), repeat=block), *singles])
        self.block = block

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        size = len(self.alphabet)
        whole = len(sequence) - len(sequence) % self.block
        weights = size ** np.arange(self.block - 1, -1, -1)
        ids = sequence[:whole].reshape(-1, self.block) @ weights
        return np.concatenate([ids, size**self.block + sequence[whole:]]).astype(np.int32)
