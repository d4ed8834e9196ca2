"""The Long Range Arena from files in the released formats: every number that is read, every line that is refused."""

import sys

import cloudpickle
import grain
import numpy as np
import pytest
from PIL import Image

from experiments.errors import UserError
from experiments.long_memory.arena_data import LISTOPS_FILES, load
from experiments.long_memory.arena_generated import parenthesised, write_listops
from experiments.long_memory.arena_pictures import grey
from experiments.long_memory.arena_tasks import TASKS
from experiments.long_memory.arena_texts import listops, pairs
from experiments.planning.stand_ins import sequences
from experiments.sources.listops import SYMBOLS, evaluate
from tests.experiments.long_memory import made_up_arena as made


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    return made.prepare(tmp_path_factory.mktemp("tfds"))


def real(example, texts=1):
    """What is read of an example, and that there is nothing behind it."""
    rows = example["tokens"].reshape(texts, -1)
    assert all((row[length:] == 0).all() for row, length in zip(rows, example["lengths"], strict=True))
    return [row[:length].tobytes() for row, length in zip(rows, example["lengths"], strict=True)]


def test_listops_are_read_without_parentheses(tmp_path):
    parts = load("listops", made.write_listops(tmp_path))
    for part, rows in zip(parts, made.LISTS.values(), strict=True):
        assert len(part) == len(rows)
        for example, (source, target) in zip(part, rows, strict=True):
            assert example["tokens"].shape == (2000,) and example["tokens"].dtype == np.uint8
            (ids,) = real(example)
            tokens = [SYMBOLS[id] for id in ids]
            assert tokens == source.replace("(", "").replace(")", "").split()
            assert evaluate(tokens) == target == example["label"] and max(ids) < TASKS["listops"].vocabulary
    assert parts.train.columns["label"].dtype == np.int32


def test_what_is_drawn_for_small_runs_is_written_as_the_release_is(tmp_path):
    """The release nests pairs to the left; the generator's own list of tokens must come back."""
    for part in ("train", "val"):
        for source, _ in made.LISTS[part]:
            assert parenthesised(source.replace("(", "").replace(")", "").split()) == source
    parts = load("listops", write_listops(tmp_path, (9, 3, 4)), longest=32)
    assert [len(part) for part in parts] == [9, 3, 4]
    for example in parts.train:
        tokens = [SYMBOLS[id] for id in real(example)[0]]
        assert evaluate(tokens) == example["label"] and 8 <= len(tokens) <= 30


def test_what_is_longer_loses_its_end(tmp_path):
    made.write_listops(made.write_pairs(tmp_path))
    assert load("listops", tmp_path, longest=3).train[0]["tokens"].tolist() == [11, 4, 10]  # [MAX 4 [MIN
    longest = load("retrieval", tmp_path).train[2]
    assert longest["lengths"].tolist() == [len(made.PAPERS[2]), 4000] and longest["tokens"].shape == (8000,)


def test_pairs_are_read_byte_by_byte(tmp_path):
    parts = load("retrieval", made.write_pairs(tmp_path), longest=50)
    assert [len(part) for part in parts] == [6, 2, 3]
    for number, example in enumerate(parts.train):
        label, _, _, first, second = made.pair(number)
        assert real(example, 2) == [first[:50], second[:50]] and example["label"] == float(label)
    assert example["tokens"].shape == (100,) and example["lengths"].dtype == np.int32


def test_an_empty_text_counts_as_one_token(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_bytes(b"1\ta\tb\t\tword\n")
    assert real(pairs(file, 9)[0], 2) == [b"\0", b"word"]


@pytest.mark.slow
def test_reviews_and_grey_pictures_come_from_tfds(tfds_folder, tmp_path):
    parts = load("text", tmp_path / "no such folder", data_dir=tfds_folder, longest=30)
    assert parts.validation is None and "tensorflow" not in sys.modules
    for split, part in (("train", parts.train), ("test", parts.test)):
        expected = {made.review(split, i).encode()[:30]: i % 2 for i in range(made.REVIEWS[split])}
        assert {real(example)[0]: int(example["label"]) for example in part} == expected
    parts = load("image", tmp_path / "no such folder", data_dir=tfds_folder)
    assert [len(part) for part in parts] == [18, 2, 4]
    held_in = {grey(made.picture("train", i)).tobytes(): i % 10 for i in range(20)}
    found = {real(example)[0]: int(example["label"]) for part in parts[:2] for example in part}
    assert found == held_in and parts.train[0]["tokens"].shape == (1024,)


def test_grey_is_that_of_television():
    """The weights of ITU-R BT.601, which rounding moves by less than one shade; grey stays as it is."""
    colours = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    expected = colours @ np.array([0.2989, 0.5870, 0.1140])
    assert np.abs(grey(colours) - expected).max() < 1
    shades = np.repeat(np.arange(256)[:, None], 3, axis=1).astype(np.uint8)
    assert grey(shades).tolist() == list(range(256))


@pytest.mark.parametrize(("name", "side"), [("pathfinder", 32), ("path_x", 128)])
def test_pictures_of_paths_are_read_when_they_are_asked_for(name, side, tmp_path):
    parts = load(name, made.write_paths(tmp_path, side))
    assert [len(part) for part in parts] == [9, 1, 2]
    sent = [cloudpickle.loads(cloudpickle.dumps(part)) for part in parts]  # as a worker gets them
    found = {real(example)[0]: int(example["label"]) for part in sent for example in part_of(part)}
    assert found == {made.contour(number, side).tobytes(): number % 2 for number in range(12)}
    example = parts.train[0]
    assert example["tokens"].shape == (side * side,) and example["tokens"].dtype == np.uint8
    again = load(name, tmp_path)
    assert [part.columns["name"].tolist() for part in again] == [part.columns["name"].tolist() for part in parts]


def part_of(part):
    return grain.MapDataset.source(part)


def test_metadata_are_read_in_the_order_of_their_numbers_and_empty_pictures_are_left_out(tmp_path):
    made.write_paths(tmp_path, 32, count=24, files=12)
    place = tmp_path / "pathfinder32" / "curv_contour_length_14"
    (place / "imgs/0/sample_0.png").write_bytes(b"")
    (place / "metadata/combined.npy").write_bytes(b"\x93NUMPY")  # of another tool, and not numbered
    names = np.concatenate([part.columns["name"] for part in load("pathfinder", tmp_path)])
    listed = [f"imgs/{file}/sample_{own}.png" for file in range(12) for own in range(2)][1:]
    assert names.tolist() == [listed[i] for i in np.random.default_rng(0).permutation(23)]


@pytest.mark.parametrize("name", ["listops", "retrieval", "pathfinder", "path_x"])
def test_what_is_missing_is_told_by_its_path(name, tmp_path):
    first = {"listops": LISTOPS_FILES[0], "retrieval": "tsv_data/new_aan_pairs.train.tsv"}
    first |= {"pathfinder": "pathfinder32/curv_contour_length_14", "path_x": "pathfinder128/curv_contour_length_14"}
    with pytest.raises(UserError) as told:
        load(name, tmp_path)
    expected = f"{tmp_path / first[name]}: not there; the layout is in experiments/long_memory/README.md"
    assert str(told.value) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Source,Target\n[MAX 1 2 ],2\n", r"got the columns \['Source,Target'\], expected Source, Target by tabs"),
        ("", r"got the columns \[\]"),
        ("Source\tTarget\n", "got no examples"),
        ("Source\tTarget\n[MAX 1 2 ]\n", "line 2: got 1 fields, expected 2 by tabs"),
        ("Source\tTarget\n[MAX 1 2 X\t2\n", "line 2: got 'X', expected tokens of 0 1 2"),
        ("Source\tTarget\n( )\t2\n", "line 2: got 'no token'"),
        ("Source\tTarget\n[MAX 1 2 ]\t2\n[MAX 1 2 ]\t10\n", "line 3: got the label '10', expected one from 0 to 9"),
        ("Source\tTarget\n[MAX 1 2 ]\ttwo\n", "line 2: got the label 'two'"),
        ("Source\tTarget\n[MAX 1 2 ]\t0.5\n", "line 2: got the label '0.5'"),
        ("Source\tTarget\n[MAX 1 2 ]\tnan\n", "line 2: got the label 'nan'"),
        (b"\x93NUMPY\xff\x00", "got the columns"),
        ("Source\tTarget\n" + 200_000 * "( ", "line 2: field larger than field limit"),
    ],
)
def test_another_format_of_listops_is_refused(text, message, tmp_path):
    file = tmp_path / "basic_train.tsv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(message, file, lambda: listops(file, 2000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "got no examples"),
        (b"1.0\tP1\tP2\n", "line 1: got 3 fields, expected 5 by tabs: label, two ids, two texts"),
        (b"label\tid1\tid2\ttext1\ttext2\n", "line 1: got the label 'label', expected one from 0 to 1"),
        (b"1\ta\tb\tc\td\n\n", "line 2: got 1 fields"),
        (b"\xff\xfe\ta\tb\tc\td\n", "line 1: got the label"),
    ],
)
def test_another_format_of_pairs_is_refused(text, message, tmp_path):
    file = tmp_path / "new_aan_pairs.train.tsv"
    file.write_bytes(text)
    refused(message, file, lambda: pairs(file, 4000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\x93NUMPY\x01\x00\xff", "got binary data, expected text"),
        (
            b"imgs/0 sample_0.png 0\n",
            "line 1: got 'imgs/0 sample_0.png 0', expected folder, file, number, label 0 or 1",
        ),
        (b"imgs/0 sample_0.png 0 2 1.0\n", "line 1: got 'imgs/0 sample_0.png 0 2 1.0'"),
        (b"imgs/0 sample_9.png 0 1\n", "sample_9.png: not there"),
        (b"", "got 1 pictures, expected enough for parts of 80, 10 and 10 %"),
    ],
)
def test_another_format_of_metadata_is_refused(text, message, tmp_path):
    made.write_paths(tmp_path, 32)
    place = tmp_path / "pathfinder32" / "curv_contour_length_14"
    file = place / "metadata/1.npy"
    file.write_bytes(text)
    (place / "metadata/0.npy").write_text("imgs/0 sample_0.png 0 1\n")
    refused(message, place, lambda: load("pathfinder", tmp_path))


def test_pictures_of_another_kind_are_refused_by_their_name(tmp_path):
    made.write_paths(tmp_path, 32)
    place = tmp_path / "pathfinder32" / "curv_contour_length_14"
    part = load("pathfinder", tmp_path).train
    file = place / part.columns["name"][4]
    whole = file.read_bytes()
    for content, message in (
        (lambda: Image.new("RGB", (32, 32)).save(file), "got mode RGB and size"),
        (lambda: Image.new("L", (64, 32)).save(file), r"size \[64, 32\], expected mode L \(8-bit grey\) and size"),
        (lambda: file.write_text("no picture"), "cannot be read as a picture; expected a PNG file"),
        (lambda: file.write_bytes(whole[: len(whole) // 2]), "cannot be read as a picture"),
        (file.unlink, "not there"),
    ):
        content()
        refused(message, file, lambda: part[4])
    for missing in (place / "metadata").iterdir():
        missing.unlink()
    refused("got no file such as 0.npy", place, lambda: load("pathfinder", tmp_path))


def refused(message, file, read):
    """One line that begins with the file, or with what lies in its folder."""
    with pytest.raises(UserError, match=message) as told:
        read()
    line = str(told.value)
    assert line.startswith(str(file)) and "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
def test_stand_ins_have_the_form_of_what_is_read(name, tmp_path, tfds_folder):
    """A plan sees what a training would."""
    for write in (made.write_listops, made.write_pairs):
        write(tmp_path)
    for side in (32, 128):
        made.write_paths(tmp_path, side)
    task = TASKS[name]
    example = load(name, tmp_path, data_dir=tfds_folder).train[0]
    instead = sequences(task.texts, task.length)
    assert set(example) == set(instead)
    for column, values in example.items():
        assert np.shape(values) == instead[column].shape[1:] and values.dtype == instead[column].dtype, column
