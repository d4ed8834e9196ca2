"""The pictures of the Long Range Arena, one pixel a token: CIFAR-10 in grey from TFDS, and Pathfinder's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from experiments.errors import UserError
from experiments.long_memory.arena_texts import LAYOUT, existing
from experiments.training.data import Rows, tfds_source

CIFAR10 = "cifar10"
SIDE = 32
HARD = "curv_contour_length_14"
PARTS = (0.8, 0.9)
# TensorFlow's `rgb_to_grayscale`; its way back to whole numbers rounds down behind a multiplication by 255.5.
GREY = (0.2989, 0.5870, 0.1140)
_ELSEWHERE = (
    "scikit-learn's digits in state_spaces/digits_sequence; to prepare it, with TensorFlow installed: "
    "tfds build cifar10 --file_format=array_record, which downloads cifar-10-binary.tar.gz"
)


def grey(images: np.ndarray) -> np.ndarray:
    """Colours to grey.

    Args:
        images: (..., 3) uint8.

    Returns:
        (...) uint8.

    Example:
        >>> grey(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 0]], np.uint8)).tolist()
        [255, 76, 0]
    """
    shades = (images.astype(np.float32) * np.float32(1 / 255)) @ np.array(GREY, np.float32)
    return (shades * np.float32(255.5)).astype(np.uint8)


def images(split: str, data_dir: str | None) -> Rows:
    """CIFAR-10 in grey.

    Args:
        split: of TFDS; the released one trains on nine tenths of "train".
        data_dir: where TFDS's data sets are prepared; None is TFDS's default.

    Returns:
        Rows of 1,024 pixels.

    Raises:
        UserError: the data set is neither prepared nor downloadable, or it has other pictures.
    """
    source = tfds_source(CIFAR10, split, data_dir, embedded=_ELSEWHERE)
    read = [(np.asarray(example["image"]), int(example["label"])) for example in source]
    for image, label in read:
        if image.dtype != np.uint8 or image.shape != (SIDE, SIDE, 3) or not 0 <= label < 10:
            got = f"{image.dtype}{list(image.shape)} with label {label}"
            raise UserError(f"{CIFAR10} ({split}): got {got}, expected uint8[32, 32, 3] with a label below 10")
    tokens = np.stack([grey(image).ravel() for image, _ in read])
    lengths = np.full((len(read), 1), SIDE * SIDE, np.int32)
    return Rows({"tokens": tokens, "lengths": lengths, "label": np.array([label for _, label in read], np.int32)})


class Pictures:
    """Pictures that are read when they are asked for: those of Path-X are 3 GB of pixels."""

    def __init__(self, folder: Path, names: np.ndarray, labels: np.ndarray, side: int) -> None:
        """Keep where they are.

        Args:
            folder: of all of them.
            names: of the files below it, (N,).
            labels: (N,).
            side: pixels along each side.
        """
        self.columns = {"name": names, "label": labels}
        self._folder, self._side = folder, side

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.columns["name"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One of them, row by row.

        Raises:
            UserError: the file is no picture of grey values of this size.
        """
        pixels = self._read(self._folder / str(self.columns["name"][index]))
        label = np.int32(self.columns["label"][index])
        return {"tokens": pixels.ravel(), "lengths": np.array([pixels.size], np.int32), "label": np.asarray(label)}

    def _read(self, file: Path) -> np.ndarray:
        try:
            with Image.open(existing(file)) as image:
                if image.mode != "L" or image.size != (self._side, self._side):
                    got, side = f"mode {image.mode} and size {list(image.size)}", self._side
                    raise UserError(f"{file}: got {got}, expected mode L (8-bit grey) and size [{side}, {side}]")
                return np.asarray(image)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # what Pillow says of a damaged PNG
            raise UserError(f"{file}: cannot be read as a picture; expected a PNG file") from error


def paths(folder: Path, side: int) -> tuple[Pictures, Pictures, Pictures]:
    """Pathfinder's pictures of the longest contours: whether the two marked ends belong to one path.

    Four fifths are trained on, a tenth is to validate and a tenth to test. Which ones is ours: in the released code it
    depends on the order in which TFDS writes files, in S4's on a generator of another library.

    Args:
        folder: pathfinder32 or pathfinder128, with curv_contour_length_14/metadata/*.npy, which are text, and the
            pictures that these name below curv_contour_length_14.
        side: pixels along each side.

    Returns:
        Three parts.

    Raises:
        UserError: a file is missing, or has another format.
    """
    place = existing(folder / HARD)
    found = [entry for file in _metadata(place) for entry in _entries(place, file)]
    order = np.random.default_rng(0).permutation(len(found))
    names, labels = np.array([name for name, _ in found])[order], np.array([label for _, label in found])[order]
    cuts = [int(share * len(found)) for share in PARTS]
    if not 0 < cuts[0] < cuts[1] < len(found):
        raise UserError(f"{place}: got {len(found)} pictures, expected enough for parts of 80, 10 and 10 %")
    first, second, third = zip(np.split(names, cuts), np.split(labels, cuts), strict=True)
    train, held_out, test = (Pictures(place, *part, side) for part in (first, second, third))
    held_out[0]
    return train, held_out, test


def _metadata(place: Path) -> list[Path]:
    files = [file for file in existing(place / "metadata").glob("*.npy") if file.stem.isdecimal()]
    if not files:
        raise UserError(f"{place / 'metadata'}: got no file such as 0.npy; {LAYOUT}")
    return sorted(files, key=lambda file: int(file.stem))


def _entries(place: Path, file: Path) -> Iterator[tuple[str, int]]:
    """Name and label of each picture that a file lists; empty pictures are left out, as in the released code."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: got binary data, expected text, in spite of its name") from error
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if len(fields) < 4 or fields[3] not in ("0", "1"):
            expected = "folder, file, number, label 0 or 1"
            raise UserError(f"{file}, line {number}: got {line[:60]!r}, expected {expected}")
        name = f"{fields[0]}/{fields[1]}"
        if existing(place / name).stat().st_size:
            yield name, int(fields[3])
