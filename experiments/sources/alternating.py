"""The training text that misleads byte-pair encoding: equation 4 of arXiv 2404.08335."""

import numpy as np
from numpy.typing import NDArray


def alternating_text(period: int, repeats: int) -> NDArray[np.int32]:
    """Blocks of (01)^r (10)^r, r = 1 / delta, repeated.

    On the order-2 switching source with p = q = delta a symbol equals the one two places before it 1 / delta times in a
    row on average, and so it does here; but no symbol occurs three times in a row, so that BPE learns no token for the
    runs 000.. and 111.. that the source has as often as 0101... A text of m symbols has m delta / 4 blocks.

    Args:
        period: r, 1 or more.
        repeats: number of blocks, 0 or more.

    Returns:
        symbols (4 r repeats,) int32.

    Raises:
        ValueError: if a number is too small.

    Example:
        >>> alternating_text(2, 1).tolist()
        [0, 1, 0, 1, 1, 0, 1, 0]
    """
    if period < 1 or repeats < 0:
        raise ValueError(f"period, repeats: got {period} and {repeats}; expected at least 1 and 0")
    return np.tile(np.array([0, 1] * period + [1, 0] * period, dtype=np.int32), repeats)
