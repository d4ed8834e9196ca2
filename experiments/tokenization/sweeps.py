"""Loss against dictionary size: one sweep over a generated source, one over a text.

Every function returns rows (dictionaries with the same keys), which `dictionary_size` joins into tables.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.sources.switching import SwitchingSource
from experiments.sources.text import Corpus
from experiments.tokenization.blocks import BlockTokenizer
from experiments.tokenization.bpe import BPETokenizer
from experiments.tokenization.characters import CharacterTokenizer
from experiments.tokenization.exact import exact_losses
from experiments.tokenization.greedy import GreedyTokenizer
from experiments.tokenization.losses import held_out_loss, plug_in_loss
from experiments.tokenization.lzw import LZWTokenizer
from experiments.tokenization.theory import (
    log_probability,
    theorem_4_3_bound,
    theorem_4_5_bound,
    token_cross_entropy,
)
from experiments.tokenization.tokenizer import Tokenizer

Row = dict[str, Any]
_ROW_LENGTH = 27_720  # symbols per encoded sequence: long against a token, and divisible by many block lengths
_SHORT_ROW = 512  # sequence length of the paper's transformers; the tokens cut at both ends cost about 0.01 nats
_BLANK = {"cross_entropy": None, "bound_4_3": None, "bound_4_5": None}


def source_rows(
    source: SwitchingSource,
    seed: int,
    *,
    sizes: Sequence[int],
    tokenizer_symbols: int,
    loss_symbols: int,
    block_symbols: int,
    alpha: float,
) -> list[Row]:
    """Losses of LZW, BPE and block tokenizers on one switching source.

    LZW losses are exact; the others are held out: the n-grams are fitted on one text and scored on another, neither of
    them the tokenizer's training text. `redundancy` is the loss minus the code length that the source itself gives to
    the same test text (minus the entropy rate where the loss is exact): test noise mostly cancels in it. The bounds of
    theorems 4.3 and 4.5 are None where their hypotheses fail.

    Args:
        source: order, p and q.
        seed: seed of the three texts.
        sizes: dictionary sizes d.
        tokenizer_symbols: length of the tokenizers' training text.
        loss_symbols: length of each of the other two texts for BPE; 0 leaves BPE out.
        block_symbols: the same for blocks.
        alpha: pseudo-count of the n-grams.

    Returns:
        One row per tokenizer and size.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    train = np.asarray(source.sample(keys[0], (1, tokenizer_symbols)))
    rows = [row for size in sizes for row in _lzw_rows(source, train, size)]
    texts = [_text(source, key, block_symbols) for key in keys[1:]]
    blocks = range(1, int(math.log2(max(sizes))) + 1)
    rows += [_block_row(block, source, texts, alpha) for block in blocks]
    if loss_symbols:
        texts = [_text(source, key, loss_symbols) for key in keys[1:]]
        short = [_text(source, key, loss_symbols, _SHORT_ROW) for key in keys[1:]]
        for size in sizes:
            bpe = BPETokenizer.train(train, size, alphabet=2)
            rows.append(_held_out_row("BPE", size, bpe, source, texts, alpha))
            rows.append(_held_out_row("BPE, rows of 512", size, bpe, source, short, alpha))
            rows.append(_held_out_row("BPE, greedy", size, GreedyTokenizer(bpe.vocabulary), source, texts, alpha))
    return [{"order": source.order, "p": source.p, "q": source.q, "seed": seed, **row} for row in rows]


def _text(source: SwitchingSource, key: jax.Array, symbols: int, length: int = _ROW_LENGTH) -> NDArray[np.int32]:
    length = min(symbols, length)
    return np.asarray(source.sample(key, (symbols // length, length)))


def _lzw_rows(source: SwitchingSource, train: NDArray[np.int32], size: int) -> list[Row]:
    """LZW with a budget of `size` tokens, and LZW on a text of `size` symbols, which is what theorem 4.5 speaks of."""
    budget = LZWTokenizer.train(train, size, alphabet=2)
    short = LZWTokenizer.train(train[:, :size], size, alphabet=2)
    return [_exact_row("LZW", size, budget, source, math.inf), _exact_row("LZW, d symbols", size, short, source, size)]


def _exact_row(name: str, size: int, tokenizer: LZWTokenizer, source: SwitchingSource, text: float) -> Row:
    losses = exact_losses(tokenizer, source)
    cross_entropy = token_cross_entropy(losses.frequencies, tokenizer.vocabulary, source)
    return {
        "tokenizer": name,
        "size": size,
        "vocabulary": len(tokenizer),
        "estimate": "exact",
        "unigram": losses.unigram,
        "bigram": losses.bigram,
        "redundancy": min(losses.unigram, losses.bigram) - source.entropy_rate(),
        "symbols_per_token": losses.symbols_per_token,
        "cross_entropy": cross_entropy,
        "bound_4_3": _or_none(theorem_4_3_bound, source, cross_entropy),
        "bound_4_5": _or_none(theorem_4_5_bound, source, size, text),
    }


def _or_none(bound: Callable[..., float], source: SwitchingSource, *arguments: float) -> float | None:
    """A bound, or None where its hypothesis fails."""
    try:
        return bound(source, *arguments)
    except ValueError:
        return None


def _block_row(block: int, source: SwitchingSource, texts: list[NDArray[np.int32]], alpha: float) -> Row:
    """Rows are cut to whole blocks: symbols left over at their ends would be tokens that the closed form lacks."""
    whole = [text[:, : text.shape[1] // block * block] for text in texts]
    return _held_out_row("blocks", 2**block, BlockTokenizer(2, block), source, whole, alpha)


def _held_out_row(
    name: str,
    size: int,
    tokenizer: Tokenizer,
    source: SwitchingSource,
    texts: list[NDArray[np.int32]],
    alpha: float,
) -> Row:
    fit, test = (tokenizer.encode_batch(text) for text in texts)
    symbols = texts[1].size
    unigram, bigram = (
        held_out_loss(fit, test, size=len(tokenizer), order=order, alpha=alpha, symbols=symbols) for order in (1, 2)
    )
    oracle = -float(log_probability(source, texts[1]).sum()) / symbols
    return {
        "tokenizer": name,
        "size": size,
        "vocabulary": len(tokenizer),
        "estimate": "held out",
        "unigram": unigram,
        "bigram": bigram,
        "redundancy": min(unigram, bigram) - oracle,
        "symbols_per_token": symbols / sum(map(len, test)),
        **_BLANK,
    }


def text_rows(
    tokenizer_text: Corpus, fit: Corpus, test: Corpus, alphabet: str, *, sizes: Sequence[int], orders: int, alpha: float
) -> list[Row]:
    """Losses on real text: a unigram over LZW or BPE tokens, and k-grams over characters.

    Args:
        tokenizer_text: what the tokenizers are trained on.
        fit: what the n-grams are fitted on; also the text of the in-sample loss.
        test: what they are scored on.
        alphabet: all characters of the three texts, sorted.
        sizes: dictionary sizes d.
        orders: largest k of the character k-grams.
        alpha: pseudo-count of all models in the held-out loss.

    Returns:
        One row per tokenizer and size, and one per k, in which `size` is the number of distinct k-grams in `fit`.
    """
    train, *texts = (text.characters(alphabet) for text in (tokenizer_text, fit, test))
    characters = CharacterTokenizer.train([], alphabet=len(alphabet))
    rows = [_text_row(f"characters, {k}-gram", characters, texts, k, alpha) for k in range(1, orders + 1)]
    for row, k in zip(rows, range(1, orders + 1), strict=True):
        row["size"] = len(set().union(*({text[i : i + k] for i in range(len(text) - k + 1)} for text in fit.documents)))
    for size in sizes:
        for name, kind in (("LZW", LZWTokenizer), ("BPE", BPETokenizer)):
            tokenizer = kind.train(train, size, alphabet=len(alphabet))
            rows.append({**_text_row(name, tokenizer, texts, 1, alpha), "size": size})
    return rows


def _text_row(name: str, tokenizer: Tokenizer, texts: list, order: int, alpha: float) -> Row:
    fit, test = (tokenizer.encode_batch(text) for text in texts)
    fit_symbols, test_symbols = (sum(map(len, text)) for text in texts)
    size = len(tokenizer)
    return {
        "tokenizer": name,
        "size": size,
        "vocabulary": size,
        "held_out": held_out_loss(fit, test, size=size, order=order, alpha=alpha, symbols=test_symbols),
        "in_sample": plug_in_loss(fit, size=size, order=order, symbols=fit_symbols),
        "symbols_per_token": test_symbols / sum(map(len, test)),
    }
