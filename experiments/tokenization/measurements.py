"""What the claims of `dictionary_size` measure, from the rows of its two sweeps.

One number per seed; but where a theorem or an identity leaves no room for an exception, the worst over the seeds, since
a mean could hide the one that violates it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.sources.switching import SwitchingSource
from experiments.tokenization.theory import CONSTANT, block_loss, smallest_transition

Row = dict[str, Any]
_SLOW = {"order": 1, "p": 0.05, "q": 0.05}
_FAST = {"order": 1, "p": 0.8, "q": 0.8}
_SECOND_ORDER = {"order": 2, "p": 0.8, "q": 0.8}


class NotMeasured(LookupError):
    """The sweep does not contain the source or the size that a claim speaks of."""


def measure(seeds: Sequence[int], on_sources: list[Row], on_text: list[Row]) -> dict[str, list[float]]:
    """The values of each claim.

    Args:
        seeds: in the order of the values.
        on_sources: rows of `source_rows`.
        on_text: rows of `text_rows`, with the column `seed`.

    Returns:
        claim id -> one value per seed, or the worst of them if the claim admits no exception; a claim whose sizes or
        sources were not run is left out.

    Example:
        >>> measure([0], [], [])
        {}
    """
    measured = {}
    for quantities, rows in ((_ON_SOURCES, on_sources), (_ON_TEXT, on_text)):
        for claim, quantity in quantities.items():
            try:
                values = [quantity(where(rows, seed=seed)) for seed in seeds]
            except NotMeasured:
                continue
            worst = _WITHOUT_EXCEPTION.get(claim)
            measured[f"tokenization/{claim}"] = values if worst is None else [worst(values)]
    return measured


def where(rows: list[Row], **values: Any) -> list[Row]:
    """The rows that have the given values.

    Args:
        rows: any.
        values: column=value pairs.

    Returns:
        The matching rows, at least one.

    Raises:
        NotMeasured: if there is none.
    """
    found = [row for row in rows if all(row[name] == value for name, value in values.items())]
    if not found:
        raise NotMeasured(values)
    return found


def _excess(rows: list[Row], bound: str, tokenizers: set[str]) -> float:
    """Largest unigram loss minus bound, where the bound applies."""
    applies = [row for row in rows if row["tokenizer"] in tokenizers and row[bound] is not None]
    found = [row["unigram"] - row[bound] for row in applies]
    if not found:
        raise NotMeasured(bound)
    return max(found)


def _lzw_bound(rows: list[Row]) -> float:
    positive = [row for row in rows if smallest_transition(_source(row)) >= 0.1 - 1e-12]
    return _excess(positive, "bound_4_5", {"LZW, d symbols"})


def _greedy_reduction(rows: list[Row]) -> float:
    return _excess(rows, "bound_4_3", {"LZW", "LZW, d symbols"})


def _closed_form(rows: list[Row]) -> float:
    blocks = where(rows, tokenizer="blocks")
    return max(abs(row["unigram"] - block_loss(_source(row), round(math.log2(row["size"])))) for row in blocks)


def _above_entropy_rate(rows: list[Row]) -> float:
    if not rows:
        raise NotMeasured("rows")
    return min(row["redundancy"] for row in rows)


def _lzw_minus_blocks(rows: list[Row]) -> float:
    """The largest blocks, and the largest LZW dictionary that has no more tokens."""
    blocks = max(where(rows, tokenizer="blocks", **_SLOW), key=_size)
    smaller = [row for row in where(rows, tokenizer="LZW", **_SLOW) if row["size"] <= blocks["size"]]
    if not smaller:
        raise NotMeasured("an LZW dictionary no larger than the largest blocks")
    return max(smaller, key=_size)["unigram"] - blocks["unigram"]


def _heavy_hitting(rows: list[Row]) -> float:
    row = where(rows, tokenizer="LZW, d symbols", size=500, **_FAST)[0]
    return row["cross_entropy"] - CONSTANT * math.log(500)


def _bump(rows: list[Row]) -> float:
    row = where(rows, tokenizer="BPE", size=4, **_SECOND_ORDER)[0]
    return row["unigram"] - _source(row).unigram_entropy()


def _bpe_unigram(tokenizer: str) -> Callable[[list[Row]], float]:
    return lambda rows: where(rows, tokenizer=tokenizer, size=10, **_SECOND_ORDER)[0]["unigram"]


def _lzw_minus_bpe(rows: list[Row]) -> float:
    lzw, bpe = (where(rows, tokenizer=name, size=1000, **_SLOW)[0]["unigram"] for name in ("LZW", "BPE"))
    return lzw - bpe


def _minus_bigram(tokenizer: str, size: int) -> Callable[[list[Row]], float]:
    def difference(rows: list[Row]) -> float:
        bigram = where(rows, tokenizer="characters, 2-gram")[0]
        return where(rows, tokenizer=tokenizer, size=size)[0]["held_out"] - bigram["held_out"]

    return difference


def _bpe_minus_lzw(rows: list[Row]) -> float:
    pairs = zip(where(rows, tokenizer="BPE"), where(rows, tokenizer="LZW"), strict=True)
    return max(bpe["held_out"] - lzw["held_out"] for bpe, lzw in pairs)


def _largest_rise(rows: list[Row]) -> float:
    curves = [[row["in_sample"] for row in where(rows, tokenizer=name)] for name in ("BPE", "LZW")]
    if len(curves[0]) < 2:
        raise NotMeasured("a second size")
    return float(max(np.diff(curve).max() for curve in curves))


def _minus_trigram(rows: list[Row]) -> float:
    trigram = where(rows, tokenizer="characters, 3-gram")[0]
    fitting = [row for row in where(rows, tokenizer="BPE") if row["size"] <= trigram["size"]]
    if not fitting:
        raise NotMeasured("a dictionary no larger than the number of trigrams")
    return max(fitting, key=_size)["held_out"] - trigram["held_out"]


def _size(row: Row) -> int:
    return row["size"]


def _source(row: Row) -> SwitchingSource:
    return SwitchingSource(row["order"], row["p"], row["q"])


_ON_SOURCES: dict[str, Callable[[list[Row]], float]] = {
    "Th1-lzw-bound": _lzw_bound,
    "Thm43-greedy-reduction": _greedy_reduction,
    "Th1-toy-closed-form": _closed_form,
    "Th1-above-entropy-rate": _above_entropy_rate,
    "Th1-lzw-beats-blocks": _lzw_minus_blocks,
    "Th1-heavy-hitting-not-reached": _heavy_hitting,
    "Th1-small-dictionary-bump": _bump,
    "Th1-bpe-unigram": _bpe_unigram("BPE, rows of 512"),
    "Th1-bpe-unigram-uncut": _bpe_unigram("BPE"),
    "Th1-lzw-overtakes-bpe": _lzw_minus_bpe,
}

_ON_TEXT: dict[str, Callable[[list[Row]], float]] = {
    "F7-bpe-beats-char-bigram": _minus_bigram("BPE", 500),
    "F7-lzw-late": _minus_bigram("LZW", 500),
    "F7-lzw-beats-char-bigram": _minus_bigram("LZW", 8000),
    "F7-bpe-below-lzw": _bpe_minus_lzw,
    "F7-loss-falls-with-size": _largest_rise,
    "Fig7-character-k-grams": _minus_trigram,
}

_WITHOUT_EXCEPTION: dict[str, Callable[[list[float]], float]] = {
    "Th1-lzw-bound": max,
    "Thm43-greedy-reduction": max,
    "Th1-toy-closed-form": max,
    "Th1-above-entropy-rate": min,
}
