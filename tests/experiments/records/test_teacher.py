"""A teacher's outputs: what is stored of logits, beside the right rows, whole or absent, refused beside other rows."""

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.language_models import LanguageModel, Trained, export
from experiments.records.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from experiments.records.order import in_training_order
from experiments.records.source import Records
from experiments.records.taught import TaughtRows
from experiments.records.teacher import TeacherOutputs, rounded, teacher_sha256, top_k_outputs
from experiments.records.tokens import Tokenization, TokenRows
from experiments.records.verify import verify
from experiments.records.writing import write
from experiments.training.data import data_hash
from experiments.virtual_devices import on_virtual_devices
from tests.experiments.records.conftest import Listed, byte_rows, texts

ROOT = Path(__file__).resolve().parents[3]
LENGTH, K, V = 9, 5, 256


@cache
def teacher(seed=0, **changes):
    """A small model of bytes, with weights so large that every token and segment matters."""
    described = LanguageModel(
        **{
            "vocab_size": V,
            "num_layers": 1,
            "width": 8,
            "num_heads": 2,
            "hidden": 8,
            "mixer": "softmax",
            "positions": "none",
            **changes,
        }
    )
    model, random = described.build(), np.random.default_rng(seed)
    two = jnp.ones((1, 2), jnp.int32)
    shapes = nn.meta.unbox(jax.eval_shape(partial(model.init, segment_ids=two), jax.random.key(0), two))
    return Trained(described, model, jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), shapes))


@cache
def outputs_for(rows, batch_size=7, **changes):
    """A job, of which the program is compiled once."""
    return TeacherOutputs(teacher(**changes), rows, K, batch_size)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three shards of different sizes, one of them empty."""
    folder = tmp_path_factory.mktemp("rows")
    job = TokenRows("demo", Listed(("", "", *texts(seed=1))), Tokenization(None), LENGTH, 3)
    write(folder, job, part=(0, 1))
    return folder


@pytest.fixture(scope="module")
def outputs(rows, tmp_path_factory):
    """What the teacher says to them."""
    folder = tmp_path_factory.mktemp("outputs")
    write(folder, outputs_for(rows), part=(0, 1))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_kept_of_logits_is_that_of_double_precision():
    z = 8 * np.random.default_rng(0).standard_normal((4, 3, 70)).astype(np.float32)
    z[0, 0, 3] = 60.0  # all other tokens together have a probability that 1 - p would lose
    outputs = jax.jit(top_k_outputs, static_argnums=1)
    kept = jax.device_get(outputs(z, K))
    wide = z.astype(np.float64)
    total = np.log(np.exp(wide).sum(-1))
    order = np.argsort(-wide, axis=-1)
    log_p = np.take_along_axis(wide, order, -1) - total[..., None]
    np.testing.assert_array_equal(kept["topk_ids"], order[..., :K])
    # Rounding of numbers of up to 64 in single precision, a few times.
    for name, expected in (
        ("topk_logprobs", log_p[..., :K]),
        ("log_rest", np.log(np.exp(log_p[..., K:]).sum(-1))),
        ("log_sum_exp", total),
    ):
        np.testing.assert_allclose(kept[name], expected, rtol=0, atol=4 * 64 * 2.0**-24)
    assert kept["log_rest"][0, 0] < -20
    assert (jax.device_get(outputs(z, 70))["log_rest"] == -np.inf).all()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_types_and_rounding_are_those_that_are_stated(vocab_size, dtype):
    random = np.random.default_rng(0)
    x = -np.exp(random.uniform(-25, 5, (1000, 4))).astype(
        np.float32
    )  # among them those that float16 has no exponent for
    ids = np.array([[0, 1, 2, vocab_size - 1]] * 1000)
    found = rounded({"topk_ids": ids, "topk_logprobs": x, "log_rest": x[:, 0], "log_sum_exp": x[:, 1]}, vocab_size)
    assert found["topk_ids"].dtype == dtype and (found["topk_ids"] == ids).all()
    assert found["topk_logprobs"].dtype == np.float16
    error = np.abs(found["topk_logprobs"].astype(np.float64) - x)
    assert (error <= np.maximum(2.0**-11 * np.abs(x), 2.0**-25)).all() and error.max() > 2.0**-5


def test_every_row_has_the_outputs_of_the_teacher_for_it(rows, outputs):
    """At a shuffled index, one row after the other; the batch that wrote them was of 7, and most were filled up."""
    data = in_training_order(rows, seed=3, batch_size=4, teacher=outputs)
    plain = in_training_order(rows, seed=3, batch_size=4)
    model = teacher().model
    apply = jax.jit(lambda t, s: jax.nn.log_softmax(model.apply(teacher().variables, t[:, :-1], segment_ids=s[:, :-1])))
    for index in range(2, 60, 3):
        row = data[index]
        np.testing.assert_array_equal(row["tokens"], plain[index]["tokens"])
        np.testing.assert_array_equal(row["segment_ids"], plain[index]["segment_ids"])
        expected = np.asarray(apply(row["tokens"][None], row["segment_ids"][None]))[0]
        assert row["topk_ids"].shape == row["topk_logprobs"].shape == (LENGTH - 1, K)
        at = np.take_along_axis(expected, row["topk_ids"].astype(int), -1)
        # Half a unit of float16 for numbers below 8 or 16, far above what single precision leaves open.
        np.testing.assert_allclose(row["topk_logprobs"].astype(np.float32), at, rtol=2.0**-11, atol=1e-4)
        np.testing.assert_allclose(at, -np.sort(-expected, axis=-1)[:, :K], rtol=0, atol=1e-4)


def test_documents_of_a_row_do_not_see_each_other(rows, outputs):
    """The same document behind another one gets the outputs of a row of its own."""
    data = TaughtRows(rows, outputs)
    row = next(row for row in (data[i] for i in range(len(data))) if {2, 3} <= set(row["segment_ids"].tolist()))
    own = np.flatnonzero(row["segment_ids"][:-1] == 2)
    tokens = jnp.asarray(row["tokens"][own].astype(np.int32))[None]
    model = teacher().model
    expected = jax.jit(lambda t: top_k_outputs(model.apply(teacher().variables, t, segment_ids=0 * t)[0], K))(tokens)
    np.testing.assert_allclose(row["log_sum_exp"][own], expected["log_sum_exp"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(row["log_rest"][own], expected["log_rest"], rtol=1e-4, atol=1e-5)


def test_the_manifest_says_whose_outputs_these_are_and_for_what(rows, outputs):
    about, made = read_manifest(outputs).about, read_manifest(rows)
    assert verify(outputs).records == made.records
    assert [shard.records for shard in read_manifest(outputs).shards] == [shard.records for shard in made.shards]
    assert about["data_sha256"] == made.sha256 and about["tokenizer_sha256"] == made.about["tokenizer_sha256"]
    assert about["teacher_sha256"] == teacher_sha256(teacher()) and (about["top_k"], about["vocab_size"]) == (K, V)
    same = Trained(*teacher()[:2], jax.tree.map(lambda x: x + 0, teacher().variables))
    described = replace(teacher().language_model, length=99)
    others = [teacher(seed=1), Trained(described, *teacher()[1:])]
    assert teacher_sha256(same) == about["teacher_sha256"]
    assert len({teacher_sha256(other) for other in (same, *others)}) == 3


@pytest.mark.slow
def test_the_order_is_told_apart_from_that_of_other_teachers(rows, outputs, tmp_path):
    write(tmp_path, outputs_for(rows, seed=1))
    hashes = {data_hash(in_training_order(rows, seed=0, batch_size=4, teacher=t)) for t in (None, outputs, tmp_path)}
    assert len(hashes) == 3


def test_only_what_is_missing_is_computed(rows, outputs, tmp_path):
    write(tmp_path, outputs_for(rows))
    assert contents(tmp_path) == contents(outputs)
    (tmp_path / "demo-teacher-00001-of-00003.array_record").unlink()
    lines = []
    write(tmp_path, outputs_for(rows), report=lines.append)
    assert [line.split(".")[0] for line in lines] == ["demo-teacher-00001-of-00003"]
    assert contents(tmp_path) == contents(outputs)
    with pytest.raises(UserError, match="was prepared with another teacher_sha256"):
        write(tmp_path, outputs_for(rows, seed=1))
    with pytest.raises(UserError, match="was prepared with another top_k: 5, not 4"):
        write(tmp_path, replace(outputs_for(rows), top_k=4))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (byte_rows(length=LENGTH + 1), "rows of another length of a row"),
        (byte_rows(length=LENGTH, shards=3, count=30), r"outputs for \d+ rows in 3 shards, and there are \d+ in 3"),
        (replace(byte_rows(length=LENGTH), shards=2), r"rows in 3 shards, and there are \d+ in 2"),
    ],
)
def test_outputs_for_other_rows_are_refused(outputs, tmp_path, job, message):
    write(tmp_path, job)
    with pytest.raises(UserError, match=message) as refused:
        in_training_order(tmp_path, seed=0, batch_size=4, teacher=outputs)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("tokenizer_sha256", "rows of another tokenizer"),
        ("vocab_size", "rows of another vocabulary"),
        ("source", "outputs for other rows: another SHA-256"),
        ("kind", "holds no outputs of a teacher"),
    ],
)
def test_what_differs_is_named(rows, outputs, tmp_path, field, message):
    """Rows that are as many and as long, and other ones."""
    made, told = read_manifest(rows), tmp_path / "rows"
    told.mkdir()
    if field == "kind":
        with pytest.raises(UserError, match=message):
            TaughtRows(rows, rows)
        return
    write_manifest(told, Manifest(made.name, {**made.about, field: "other"}, made.shards))
    with pytest.raises(UserError, match=message):
        TaughtRows(told, outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "{}"}, "the teacher's tokenizer is not the one that the rows"),
        ({"vocab_size": 255}, "the teacher has 255 tokens, and the rows 256"),
        ({"positions": "learned", "length": 7}, "the teacher reads 7 tokens at most, and a row has 9"),
    ],
)
def test_a_teacher_that_cannot_read_the_rows_is_refused(rows, changes, message):
    with pytest.raises(UserError, match=message):
        outputs_for(rows, **changes) if "tokenizer" not in changes else TeacherOutputs(
            Trained(replace(teacher().language_model, **changes), *teacher()[1:]), rows, K
        )


def test_more_entries_than_tokens_and_outputs_as_rows_are_refused(rows, outputs):
    with pytest.raises(UserError, match="top_k: got 257, expected 1 to 256"):
        TeacherOutputs(teacher(), rows, 257)
    with pytest.raises(UserError, match="holds no rows of tokens"):
        TeacherOutputs(teacher(), outputs, K)


@pytest.mark.slow
def test_a_teacher_that_says_nan_is_refused_and_leaves_nothing(rows, tmp_path):
    broken = Trained(*teacher()[:2], jax.tree.map(lambda x: x * jnp.nan, teacher().variables))
    with pytest.raises(UserError, match="the teacher's logits are not finite for rows from 0 on of shard 0"):
        write(tmp_path, TeacherOutputs(broken, rows, K))
    assert not list(tmp_path.glob("*.array_record")) and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_larger_vocabulary_of_the_teacher_is_cut(rows):
    """Entries that no text has, as many models have to make a round number, take no probability."""
    wide = outputs_for(rows, vocab_size=V + 8)
    record = next(iter(wide.records(0)))
    assert record["topk_ids"].max() < V
    mass = np.exp(record["topk_logprobs"].astype(float)).sum(-1) + np.exp(record["log_rest"])
    np.testing.assert_allclose(mass, 1, atol=2.0**-9)  # float16: 2^-11 times an entropy below 4


@pytest.mark.slow
def test_the_command(call, rows, outputs, tmp_path):
    export(tmp_path / "model", teacher())
    words = ("data", "teacher", tmp_path / "model", "--data", rows, "--out", tmp_path / "out", "--top_k", K)
    status, out, err = call(*words, "--batch_size", 7)
    assert (status, err) == (0, "") and f"{read_manifest(rows).records} rows, top 5, " in out
    assert contents(tmp_path / "out") == contents(outputs)
    assert call("data", "verify", tmp_path / "out")[0] == 0
    for wrong, message in (
        (("data", "teacher", tmp_path / "model"), "--data is missing"),
        (("data", "teacher", tmp_path / "model", "--data", rows), "--out is missing"),
        (("data", "teacher", tmp_path / "nothing", "--data", rows, "--out", tmp_path / "b"), "no trained language"),
        ((*words, "--top_k", 0), "--top_k: got 0, expected at least 1"),
    ):
        status, out, err = call(*wrong)
        assert (status, out, len(err.splitlines())) == (2, "", 1) and err.startswith(f"error: {message}")


@dataclass(frozen=True)
class Slow(TeacherOutputs):
    """A teacher that takes its time over the last shard, so that it is killed in the middle of it."""

    def records(self, shard):
        """The outputs; the second half of a shard takes longer than the test."""
        for number, record in enumerate(super().records(shard)):
            if shard == 2 and number == 5:
                time.sleep(60)
            yield record


@pytest.mark.slow
def test_a_killed_writer_leaves_no_half_shard_and_is_continued(rows, outputs, tmp_path):
    program = """
        import sys
        from experiments.records.writing import write
        from tests.experiments.records.test_teacher import K, Slow, teacher
        write(sys.argv[2], Slow(teacher(), sys.argv[1], K, 7), report=lambda line: print(line, flush=True))
    """
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(program), str(rows), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert [writer.stdout.readline()[:18] for _ in range(2)] == ["demo-teacher-00000", "demo-teacher-00001"]
        while not list(folder.glob(".*.tmp")):
            time.sleep(0.01)
        writer.kill()
    left = contents(folder)
    assert MANIFEST not in left and sorted(name for name in left if name.endswith(".array_record")) == [
        f"demo-teacher-0000{number}-of-00003.array_record" for number in range(2)
    ]
    with pytest.raises(UserError, match="is no finished folder of records"):
        TaughtRows(rows, folder)
    lines = []
    write(folder, outputs_for(rows), report=lines.append)
    assert len(lines) == 1 and contents(folder) == contents(outputs)


def written_on_all_devices(rows, folder):
    """For a process of its own: how many devices a batch was split over."""
    job = outputs_for(rows)
    write(folder, job)
    return jax.device_count(), job._batch_size


@pytest.mark.slow
def test_a_batch_is_split_over_all_devices(rows, outputs, tmp_path):
    assert on_virtual_devices(4, written_on_all_devices, rows, tmp_path) == (4, 8)
    one, four = Records(outputs), Records(tmp_path)
    assert len(one) == len(four)
    for index in range(len(one)):
        for name, expected in one[index].items():
            # Single precision in another order may round to the next float16.
            np.testing.assert_allclose(four[index][name].astype(float), expected.astype(float), rtol=2.0**-9, atol=1e-5)
