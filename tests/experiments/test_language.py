"""Rows, vocabularies, the task and equal sizes of the language modelling results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.language import TextConfig, Vocabulary
from experiments.sources import Corpus


class Bigram:
    """A table of logits."""

    def init(self, key, tokens):
        """Untrained, it guesses uniformly."""
        return {"table": jnp.zeros((256, 256))}

    def apply(self, params, tokens, rngs=None):
        """Logits of the next token."""
        return params["table"][tokens]


def test_rows_predict_every_token_but_the_first_once():
    stream = np.arange(100, 130, dtype=np.int32)
    tokens = language.rows(stream, 7)["tokens"]
    assert tokens.shape == (4, 8)
    np.testing.assert_array_equal(tokens[:, 1:].ravel(), stream[1:29])
    np.testing.assert_array_equal(tokens[:, :-1].ravel(), stream[:28])


def test_a_text_shorter_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"text.length: got 5, expected fewer than the 5 tokens"):
        language.rows(np.arange(5, dtype=np.int32), 5)


def test_bpe_lengths_count_the_bytes_of_the_text_and_training_repeats():
    text = Corpus("words", ("the café in the town\n" * 30, "a naïve 北京 über-token\n" * 20))
    found = language.vocabulary(300, text)
    stream = found.encode(text.documents)
    assert len(found.lengths) <= 300 and stream.max() < len(found.lengths)
    assert found.lengths[stream].sum() == sum(len(document.encode()) for document in text.documents)
    assert found.tokenizer == language.vocabulary(300, text).tokenizer
    # Text that BPE was not trained on has no unknown characters.
    other = ("Ωμέγα \x00 tab\t",)
    assert found.lengths[found.encode(other)].sum() == len(other[0].encode())


def test_seeds_hold_out_other_files_and_none_is_trained_on():
    config = TextConfig(every=50, folds=4)
    parts = [language.parts(config, seed) for seed in (0, 1, 4)]
    held_out = [set(test.documents) for _, test in parts]
    assert not held_out[0] & held_out[1] and held_out[0] == held_out[2]
    assert all(not set(train.documents) & set(test.documents) for train, test in parts)


def test_the_evaluation_is_nats_over_bytes_of_each_part():
    params = {"table": jax.random.normal(jax.random.key(0), (256, 256))}
    random = np.random.default_rng(0)
    held_out = {name: {"tokens": random.integers(0, 256, (n, 9))} for name, n in (("a", 5), ("b", 3))}
    lengths = random.integers(1, 9, 256).astype(np.float32)
    evaluate = language.next_token_task(Bigram(), held_out, lengths, batch_size=4).evaluate
    assert evaluate is not None
    found = evaluate(params)
    for name, rows in held_out.items():
        tokens = rows["tokens"]
        log_probabilities = np.asarray(jax.nn.log_softmax(params["table"][tokens[:, :-1]]), np.float64)
        nats = -np.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1).sum()
        assert found[name] == pytest.approx(nats / lengths[tokens[:, 1:]].sum(), rel=1e-6)


def test_the_loss_is_per_token_and_the_metric_per_byte():
    rows = {"tokens": jnp.arange(34).reshape(2, 17)}
    task = language.next_token_task(Bigram(), {"a": rows}, np.full(256, 4.0), 2)
    loss, metrics = task.loss(task.init(jax.random.key(1)), rows, jax.random.key(2))
    assert float(loss) == pytest.approx(np.log(256), rel=1e-6)
    assert float(metrics["nats_per_byte"]) == pytest.approx(np.log(256) / 4, rel=1e-6)


def test_bytes_are_those_of_utf8():
    assert Vocabulary(None, np.ones(256, np.float32)).encode(("é", "a")).tolist() == [0xC3, 0xA9, 97]
