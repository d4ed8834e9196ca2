"""Files of tokens: the rows that are cut from them, and files that are none."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.sources.token_files import read_token_files
from experiments.training.recording import recording


def write(folder, **parts):
    for part, tokens in parts.items():
        np.asarray(tokens, "<u2").tofile(folder / f"{part}.bin")
    return folder


def test_rows_predict_each_token_but_the_first_once(tmp_path):
    stream = np.random.default_rng(0).integers(0, 50_000, 24)
    found = read_token_files(write(tmp_path, train=stream, valid=stream[:8]), 7, 50_257)
    assert (len(found["train"]), len(found["valid"])) == (3, 1)
    rows = [found["train"][i]["tokens"] for i in range(3)]
    assert {row.dtype for row in rows} == {np.dtype(np.int32)} and {row.shape for row in rows} == {(8,)}
    np.testing.assert_array_equal(np.concatenate([row[1:] for row in rows]), stream[1:22])
    np.testing.assert_array_equal([row[0] for row in rows], stream[:15:7])
    np.testing.assert_array_equal(found["train"][-1]["tokens"], rows[2])
    with pytest.raises(IndexError):
        found["train"][3]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"train": range(9)}, r"no file .*valid\.bin"),
        ({"train": range(9), "valid": range(4)}, r"valid\.bin: got 8 bytes, .* more than 4 tokens"),
        ({"train": [*range(8), 9], "valid": range(9)}, r"train\.bin: got the token 9, expected tokens from 0 to 8"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, parts, told):
    with pytest.raises(UserError, match=told):
        read_token_files(write(tmp_path, **parts), 4, 9)


def test_half_a_token_is_refused(tmp_path):
    (tmp_path / "train.bin").write_bytes(bytes(21))
    with pytest.raises(UserError, match="got 21 bytes"):
        read_token_files(tmp_path, 4, 9)


def test_while_trainings_are_written_down_no_file_is_needed(tmp_path):
    with recording(lambda *_, **__: None):
        found = read_token_files(tmp_path, 5, 9)
    assert {part: (len(rows), rows[0]["tokens"].shape) for part, rows in found.items()} == {
        "train": (2, (6,)),
        "valid": (2, (6,)),
    }
