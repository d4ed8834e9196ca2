"""What a result would train is written down, and nothing is trained."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.planning.stand_ins import data_set
from experiments.planning.trainings import chosen, recorded
from experiments.results import Config as BaseConfig
from experiments.training import loop
from experiments.training.config import OptimizerConfig, TrainConfig
from experiments.training.data import tfds_source
from experiments.training.recording import recorder, recording
from experiments.training.task import Task


@dataclasses.dataclass(frozen=True)
class Config(BaseConfig):
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(steps=20, batch_size=4, eval_every=8, optimizer=OptimizerConfig())
    )


def task(width):
    return Task(lambda key: {"kernel": jnp.ones((width, 2))}, lambda w, batch, key: (jnp.sum(w["kernel"] ** 2), {}))


def result(run):
    return SimpleNamespace(id="demo/planned", run=run)


def test_trainings_are_written_down_with_the_first_seed_and_answered(tmp_path):
    seen = []

    def run(config, run_dir):
        for width in (3, 5):
            data = {"tokens": np.zeros((7, 9), np.int32), "weight": np.ones(7, np.float32)}
            outcome = loop.train(
                config.train, task(width), data, run_dir / "here", seed=config.seeds[0], label=f"w{width}"
            )
            seen.append((config.seeds, outcome))
            assert not (run_dir / "here").exists()

    found = recorded(result(run), Config(seeds=(4, 5, 6)))
    assert [(one.label, one.parameters, one.tokens) for one in found.trainings] == [("w3", 6, 9), ("w5", 10, 9)]
    assert found.stopped == "" and recorder() is None
    seeds, outcome = seen[0]
    assert seeds == (4,)
    assert outcome.params["kernel"].shape == (3, 2) and not outcome.params["kernel"].any()
    assert outcome.train["loss"].shape == (20,) and outcome.evaluation["step"].tolist() == [0, 8, 16, 20]


def test_a_result_that_fails_on_zeros_is_planned_up_to_there():
    def run(config, run_dir):
        loop.train(config.train, task(3), {"x": np.zeros((4, 2))}, run_dir, seed=0)
        raise ZeroDivisionError("nothing was learned")

    found = recorded(result(run), Config())
    assert len(found.trainings) == 1 and found.stopped == "nothing was learned"
    assert found.trainings[0].tokens is None
    assert recorder() is None


def test_what_trains_nothing_is_refused():
    with pytest.raises(UserError, match="trains nothing"):
        recorded(result(lambda config, run_dir: None), Config())
    with pytest.raises(UserError, match="trains nothing"):
        recorded(result(None), BaseConfig())


def test_the_first_of_the_largest_is_chosen_or_the_one_that_is_named():
    sizes = {"small": 10, "large": 995, "as large": 1000, "small too": 11}
    trainings = [SimpleNamespace(label=label, parameters=size) for label, size in sizes.items()]
    assert chosen(trainings).label == "large"
    assert chosen(trainings, "small").label == "small"
    assert chosen(trainings, "too").label == "small too"
    with pytest.raises(UserError, match="unknown training 'smal1'; nearest: small"):
        chosen(trainings, "smal1")


@pytest.mark.parametrize(
    ("name", "split", "count", "shape"),
    [("cifar100", "test", 10_000, (32, 32, 3)), ("imagenet2012", "train", 1_281_167, (375, 500, 3))],
)
def test_a_data_set_has_a_stand_in_only_while_trainings_are_written_down(monkeypatch, name, split, count, shape):
    import tensorflow_datasets as tfds

    def absent(*_, **__):
        raise LookupError("not prepared")

    monkeypatch.setattr(tfds, "builder", absent)
    with recording(lambda *_, **__: None):
        source = tfds_source(name, split, embedded="digits")
    assert len(source) == count and source[count - 1]["image"].shape == shape
    with pytest.raises(IndexError):
        source[count]
    with pytest.raises(UserError, match="not prepared"):
        tfds_source(name, split, embedded="digits")


def test_a_data_set_without_a_stand_in_is_named():
    with pytest.raises(UserError, match="nothing stands in for the data set 'lm1b'"):
        data_set("lm1b", "train")


def test_the_stand_in_of_wikitext_has_the_true_vocabulary(tmp_path):
    from tokenizers import Tokenizer

    from experiments.sources.wikitext import GPT2_TOKENS, read_gpt2_tokenizer, read_wikitext

    with recording(lambda *_, **__: None):
        parts, tokenizer = read_wikitext(tmp_path), read_gpt2_tokenizer(tmp_path / "tokenizer.json")
    assert set(parts) == {"train", "valid", "test"} and len(parts["train"].documents) > 1
    known = Tokenizer.from_str(tokenizer)
    tokens = known.encode(parts["test"].documents[0]).ids
    assert known.get_vocab_size() == GPT2_TOKENS and max(tokens) < 256 and len(tokens) > 1024
    with pytest.raises(UserError, match="no file"):
        read_wikitext(tmp_path)
    with pytest.raises(UserError, match="no file"):
        read_gpt2_tokenizer(tmp_path / "tokenizer.json")
