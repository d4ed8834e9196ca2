"""The loss of packed rows is that of their documents alone, and a training goes through a folder of records."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language_models import LanguageModel, load
from experiments.packed_language import packed_nats, packed_task, train_on_rows
from experiments.records.order import in_training_order, widened
from experiments.records.source import Records
from experiments.records.tokens import Tokenization, pack
from experiments.records.writing import write
from experiments.training.config import CheckpointConfig, TrainConfig
from tests.experiments.records.conftest import byte_rows


class Bigram:
    """A table of logits, which sees the token before and nothing else."""

    def init(self, key, tokens):
        """Random."""
        return {"table": jax.random.normal(key, (256, 256))}

    def apply(self, params, tokens, segment_ids, rngs=None):
        """Logits of the next token."""
        return params["table"][tokens]


def packed(texts, length):
    rows = [widened(row) for row in pack(Tokenization(None).encode(texts), length, np.dtype(np.uint8))]
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def test_only_tokens_that_follow_one_of_their_segment_count():
    batch = packed(("abc", "d", "efghij"), 8)  # row 1: abc d efgh; row 2: ij
    table = np.asarray(Bigram().init(jax.random.key(0), None)["table"], np.float64)
    log_probabilities = table - np.log(np.exp(table).sum(axis=1, keepdims=True))

    def nats(pairs):
        return -sum(log_probabilities[ord(one), ord(two)] for one, two in pairs)

    logits = jnp.asarray(table, jnp.float32)[batch["tokens"][:, :-1]]
    found, count = packed_nats(logits.at[1, 1:].set(jnp.nan), batch["tokens"], batch["segment_ids"])
    np.testing.assert_allclose(found, [nats(["ab", "bc", "ef", "fg", "gh"]), nats(["ij"])], rtol=1e-5)
    assert count.tolist() == [5, 1]


@pytest.mark.slow
def test_the_evaluation_is_nats_over_tokens_of_all_rows():
    batch = packed(("abc", "d", "efghij", "kl"), 5)
    rows = grain.MapDataset.source(
        [{name: column[i] for name, column in batch.items()} for i in range(len(batch["tokens"]))]
    )
    task = packed_task(Bigram(), rows, 2)
    params = task.init(jax.random.key(1))
    value, _, _, weight = task.loss(params, batch, jax.random.key(2))
    assert task.evaluate is not None
    assert task.evaluate(params)["held_out"] == pytest.approx(float(value), rel=1e-6)
    assert int(weight) == packed_nats(jnp.zeros((3, 4, 256)), batch["tokens"], batch["segment_ids"])[1].sum()


@pytest.mark.slow
def test_documents_of_a_row_do_not_see_each_other():
    described = LanguageModel(256, mixer="softmax", positions="none", num_layers=1, width=8, num_heads=1, hidden=8)
    model = described.build()
    texts = ("abcab", "xyzzyx", "ab")
    task = packed_task(model, grain.MapDataset.range(1), 1)
    params = task.init(jax.random.key(0))
    together = packed(texts, 13)
    alone = [packed((text,), 13) for text in texts]
    assert together["tokens"].shape == (1, 13) and len(alone) == 3
    value, _, _, weight = task.loss(params, together, jax.random.key(1))
    sums = [task.loss(params, one, jax.random.key(1)) for one in alone]
    # Rounding of sums of a dozen terms in float32, whose order differs.
    assert float(value * weight) == pytest.approx(float(sum(loss.value * loss.weight for loss in sums)), rel=1e-5)
    assert int(weight) == 10


@pytest.mark.slow
def test_three_updates_from_a_folder_and_the_same_after_an_interruption(tmp_path):
    write(tmp_path / "rows", byte_rows(length=16))
    model = LanguageModel(256, mixer="softmax", positions="none", num_layers=1, width=8, num_heads=1, hidden=8)
    held_out = grain.MapDataset.source(Records(tmp_path / "rows", [3])).map(widened)

    def trained(folder, steps):
        data = in_training_order(tmp_path / "rows", seed=0, batch_size=4, lanes=2, shards=[0, 1])
        config = TrainConfig(steps=3, batch_size=4, eval_every=3, checkpoint=CheckpointConfig(every=1))
        if steps < 3:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("experiments.training.loop.Loop._is_last", lambda self, now: now.step == steps)
                return train_on_rows(config, model, data, held_out, tmp_path / folder, seed=0)
        return train_on_rows(config, model, data, held_out, tmp_path / folder, seed=0)

    whole = trained("whole", 3)
    trained("interrupted", 2)
    again = trained("interrupted", 3)
    assert np.isfinite(whole.train["loss"]).all() and len(whole.train["loss"]) == 3
    np.testing.assert_array_equal(whole.train["loss"], again.train["loss"])
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    assert load(tmp_path / "whole").language_model == model
