"""Tokenized pools: what is drawn is text of the source, seeds have rows of their own, references are right."""

import jax
import numpy as np
import pytest

from experiments.sources import SwitchingSource
from experiments.tokenization.rows_config import RowsConfig
from experiments.tokenization.token_rows import binary_tokenizer, draw_rows
from experiments.tokenization.token_training import token_texts

FEW = RowsConfig(tokenizer_characters=2000, pool=200, evaluation=3, reference=600)
SOURCE = SwitchingSource(2, 0.8, 0.8)


@pytest.mark.slow
def test_batches_decode_to_rows_of_the_pool_and_seeds_evaluate_others():
    texts = token_texts(SOURCE, 5, seeds=(0, 1), length=24, batch_size=7, rows=FEW)
    drawn = draw_rows(SOURCE, 0, {"tokenizer": 84, "pool": 200}, 24)
    tokenizer, pool = binary_tokenizer(drawn["tokenizer"], 2000, 5), {row.tobytes() for row in drawn["pool"]}
    batch, other = texts.draw(jax.random.key(0)), texts.draw(jax.random.key(1))
    assert batch["mask"].shape == (7, texts.longest) and not np.array_equal(batch["tokens"], other["tokens"])
    for tokens, mask in zip(*map(np.asarray, (batch["tokens"], batch["mask"])), strict=True):
        assert np.asarray(tokenizer.decode(tokens[mask]), np.int32).tobytes() in pool
    one, two = texts.evaluation
    assert one["tokens"].shape == two["tokens"].shape == (3, texts.longest) and texts.symbols == 72
    assert not np.array_equal(one["tokens"], two["tokens"])


@pytest.mark.slow
def test_references_on_characters_of_order_two_are_its_entropies():
    texts = token_texts(SOURCE, 2, seeds=(0,), length=60, batch_size=1, rows=FEW)
    line = texts.references
    # 36,000 scored symbols: a mean of log 2, of which a fit of one or three probabilities hardly moves.
    assert [line["token_unigram"], line["token_bigram"]] == pytest.approx([line["unigram_entropy"]] * 2, abs=1e-3)
    assert line["characters_per_token"] == 1 and line["entropy_rate"] == pytest.approx(0.500402, abs=1e-6)
