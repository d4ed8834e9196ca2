"""Rows of fixed length from token documents, packed before the order is made.

Packing is done offline and its rows are what is shuffled. A packer behind the shuffle would make a row depend on all
documents before it, and a batch would no longer be a function of its index.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import grain
import numpy as np

Strategy = Literal["concat_then_split", "first_fit", "best_fit"]


def pack(
    documents: Iterable[Sequence[int] | np.ndarray],
    length: int,
    *,
    strategy: Strategy = "concat_then_split",
    num_packing_bins: int = 256,
    pad_id: int = 0,
) -> dict[str, np.ndarray]:
    """Pack documents into rows of `length` tokens, in their order, by Grain's packers.

    Args:
        documents: token ids, each document 1-D; one without tokens is left out.
        length: tokens per row.
        strategy: concat_then_split fills every row but the last and cuts documents at its end; first_fit and best_fit
            keep documents whole and pad: a document goes into the first, or into the fullest, open row with room.
        num_packing_bins: rows open at once for first_fit and best_fit; all are closed when a document fits into none.
        pad_id: token where there is no document.

    Returns:
        Columns (N, length): "tokens"; "segment_ids" 1, 2, ... within each row, 0 at padding; "positions" within the
        segment, int32; and "mask", true at real tokens. A document that was cut begins a new segment in the next row.

    Raises:
        ValueError: no tokens at all, documents that are not 1-D or not of integers, one longer than a row where it
            must stay whole, or a size below 1.

    Example:
        >>> rows = pack([[1, 2, 3], [4, 5], [6]], 4)
        >>> rows["tokens"].tolist(), rows["segment_ids"].tolist()
        ([[1, 2, 3, 4], [5, 6, 0, 0]], [[1, 1, 1, 2], [1, 2, 0, 0]])
        >>> pack([[1, 2, 3], [4, 5], [6]], 4, strategy="first_fit")["tokens"].tolist()
        [[1, 2, 3, 6], [4, 5, 0, 0]]
    """
    for name, value in (("length", length), ("num_packing_bins", num_packing_bins)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    arrays = _checked(documents, None if strategy == "concat_then_split" else length)
    source = grain.MapDataset.source([{"tokens": array} for array in arrays])
    # One thread: the packer, not the reading, is what takes time.
    parent = source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    packed = list(_packer(parent, length, strategy, num_packing_bins))
    columns = {name: np.stack([row[key] for row in packed]) for name, key in _KEYS.items()}
    mask = columns["segment_ids"] > 0
    return {**columns, "tokens": np.where(mask, columns["tokens"], columns["tokens"].dtype.type(pad_id)), "mask": mask}


_KEYS = {"tokens": "tokens", "segment_ids": "tokens_segment_ids", "positions": "tokens_positions"}


def _packer(parent: grain.IterDataset, length: int, strategy: Strategy, num_packing_bins: int) -> grain.IterDataset:
    lengths = {"tokens": length}
    if strategy == "concat_then_split":
        return grain.experimental.ConcatThenSplitIterDataset(parent, length_struct=lengths)
    packers = {
        "first_fit": grain.experimental.FirstFitPackIterDataset,
        "best_fit": grain.experimental.BestFitPackIterDataset,
    }
    if strategy not in packers:
        raise ValueError(f"strategy: got {strategy!r}, expected concat_then_split, first_fit or best_fit")
    # The bins keep their order: the shuffle over all rows comes later.
    return packers[strategy](parent, length_struct=lengths, num_packing_bins=num_packing_bins, shuffle_bins=False)


def _checked(documents: Iterable[Sequence[int] | np.ndarray], longest: int | None) -> list[np.ndarray]:
    """Documents with tokens, of one integer type: Grain takes that of the first one and would cut the others down."""
    arrays = []
    for index, document in enumerate(documents):
        array = np.asarray(document)
        if array.ndim != 1:
            raise ValueError(f"documents[{index}]: got shape {array.shape}, expected one axis")
        if not array.size:
            continue
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"documents[{index}]: got {array.dtype}, expected integers")
        if longest is not None and array.size > longest:
            raise ValueError(
                f"documents[{index}]: got {array.size} tokens, expected at most {longest}, the length of a row; "
                "concat_then_split cuts documents"
            )
        arrays.append(array)
    if not arrays:
        raise ValueError("documents: got no tokens, expected at least one")
    common = np.result_type(*{array.dtype for array in arrays})
    return [array.astype(common, copy=False) for array in arrays]
