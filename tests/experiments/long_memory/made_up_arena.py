"""A few generated examples of each task of the Long Range Arena, in the formats of the release and of TFDS."""

import io

import numpy as np
import pytest
from PIL import Image

LISTS = {
    "train": [("( ( ( [MAX 4 ) ( ( ( [MIN 1 ) 5 ) ] ) ) ] )", 4), ("( ( ( [SM 7 ) 8 ) ] )", 5)],
    "val": [("( ( ( [MED 7 ) 8 ) ] )", 7)],
    "test": [("( ( ( ( [SM 1 ) 2 ) 3 ) ] )", 6), ("( ( ( [MIN 7 ) 0 ) ] )", 0), ("( ( ( [MAX 9 ) 0 ) ] )", 9)],
}
PAPERS = [b'A "quoted" start', b"caf\xc3\xa9, with bytes beyond ASCII", b"b'as Python shows bytes\\n'", b"x" * 5000]
REVIEWS = {"train": 12, "test": 4}
PICTURES = {"train": 20, "test": 4}


def write_listops(folder, lists=LISTS):
    place = folder / "listops-1000"
    place.mkdir(parents=True)
    for part, rows in lists.items():
        lines = ["Source\tTarget", *(f"{source}\t{target}" for source, target in rows), ""]
        (place / f"basic_{part}.tsv").write_bytes("\r\n".join(lines).encode())
    return folder


def pair(number):
    """Label, ids and texts of a line."""
    first, second = PAPERS[number % 4], PAPERS[(number + 1) % 4]
    return [b"%.1f" % (number % 2), b"P%02d-1000" % number, b"W%02d-2000" % number, first, second]


def write_pairs(folder, counts=(6, 2, 3)):
    place = folder / "tsv_data"
    place.mkdir(parents=True)
    for part, count in zip(("train", "eval", "test"), counts, strict=True):
        lines = [b"\t".join(pair(number)) + b"\n" for number in range(count)]
        (place / f"new_aan_pairs.{part}.tsv").write_bytes(b"".join(lines))
    return folder


def contour(number, side):
    """Random pixels that depend on the number alone."""
    return np.random.default_rng(number).integers(0, 256, (side, side), dtype=np.uint8)


def write_paths(folder, side, count=12, files=2):
    """Pictures in folders of their own, each listed in the text that its folder has; half are of each label."""
    place = folder / f"pathfinder{side}" / "curv_contour_length_14"
    (place / "metadata").mkdir(parents=True)
    for file in range(files):
        (place / "imgs" / str(file)).mkdir(parents=True)
        lines = []
        for own in range(count // files):
            number = file * (count // files) + own
            Image.fromarray(contour(number, side)).save(place / "imgs" / str(file) / f"sample_{own}.png")
            lines.append(f"imgs/{file} sample_{own}.png {own} {number % 2} 1.0 14 4 5 2 0.5\n")
        (place / "metadata" / f"{file}.npy").write_text("".join(lines))
    return folder


def review(split, number):
    return f"{split} {number}: " + "caf\u00e9 " * (number + 1)


def picture(split, number):
    return np.random.default_rng([len(split), number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def prepare(folder):
    """IMDB's reviews and CIFAR-10 in a folder, without TensorFlow and without a download."""
    import tensorflow_datasets as tfds

    def reviews(split, count):
        for i in range(count):
            yield i, {"text": review(split, i), "label": i % 2}

    def pictures(split, count):
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(picture(split, i)).save(file, "PNG")
            file.seek(0)
            yield i, {"id": f"{split}_{i:05d}", "image": file, "label": i % 10}

    for name, counts, generated in (("imdb_reviews", REVIEWS, reviews), ("cifar10", PICTURES, pictures)):
        builder = tfds.builder_cls(name)
        with pytest.MonkeyPatch.context() as patch:
            # All but where the examples come from is the real builder's.
            splits = {split: generated(split, count) for split, count in counts.items()}
            patch.setattr(builder, "_split_generators", lambda self, *_, splits=splits: splits)
            builder(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")
    return str(folder)
