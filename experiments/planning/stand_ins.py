"""What the loaders of data sets give while a training is planned: examples of the true number, size and type.

No pixel or word is real, and no training sees one: they are given only where `experiments.training.recording` has every
training written down instead of done. Of a text there are a few articles, as a plan depends on the length of a row and
not on how many rows there are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.errors import UserError

_ARTICLE = " = Title = \n\n" + " word , word <unk> . \n" * 500
_ARTICLES = {"train": 24, "valid": 2, "test": 2}
_SEQUENCES = 4
# Of the sets of HiSS: recordings to train on, seconds, channels, targets. Numbers and lengths of the first three are
# what is said of them, and the seconds of RoNIN the cut of the released code; the rest is our guess.
_RECORDINGS = {
    "marker_writing": (800, 30, 30, 2),
    "intrinsic_slip": (880, 30, 30, 3),
    "joystick_control": (800, 40, 1104, 3),
    "ronin": (120, 240, 6, 2),
    "vector": (14, 120, 6, 3),
    "total_capture": (37, 90, 117, 63),
}


class Examples:
    """Random access to one example, so many times."""

    def __init__(self, count: int, example: Mapping[str, Any]) -> None:
        """Keep it."""
        self._count, self._example = count, dict(example)

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One of them."""
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return dict(self._example)


def _cifar100(split: str) -> Examples:
    from experiments.sources.cifar100 import EXAMPLES, SIDE

    return Examples(EXAMPLES[split], {"image": np.zeros((SIDE, SIDE, 3), np.uint8), "label": np.int64(0)})


def _imagenet(split: str) -> Examples:
    from experiments.sources.imagenet import EXAMPLES

    # A common size: what a training sees is cropped from it.
    example = {"image": np.zeros((375, 500, 3), np.uint8), "label": np.int64(0), "file_name": b""}
    return Examples(EXAMPLES[split], example)


class Ratings(Examples):
    """As many as MovieLens-1M has, of as many users and films, each of which occurs often."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One of them."""
        example = super().__getitem__(index)
        ids = {"user_id": b"%d" % (index % 6040), "movie_id": b"%d" % (index * 7919 % 3416)}
        return example | ids | {"timestamp": np.int64(index)}


def _movielens(split: str) -> Examples:
    from experiments.sources.movielens import EXAMPLES

    return Ratings(EXAMPLES, {"user_rating": np.float32(0)})


_DATA_SETS: Mapping[str, Callable[[str], Examples]] = {
    "cifar100": _cifar100,
    "imagenet2012": _imagenet,
    "movielens/1m-ratings": _movielens,
}


def data_set(name: str, split: str) -> Examples:
    """In place of a data set of TensorFlow Datasets.

    Args:
        name: as TFDS calls it.
        split: of it.

    Returns:
        A source with random access.

    Raises:
        UserError: no result that trains on it was planned before.
    """
    if name not in _DATA_SETS:
        raise UserError(f"nothing stands in for the data set {name!r}; there is: {', '.join(_DATA_SETS)}")
    return _DATA_SETS[name](split)


def wikitext() -> dict[str, str]:
    """In place of the three parts of WikiText-103: text of a few articles each."""
    return {part: _ARTICLE * count for part, count in _ARTICLES.items()}


def sequences(texts: int, length: int) -> dict[str, np.ndarray]:
    """In place of a task of the Long Range Arena: a few sequences of its length, all answered alike.

    Args:
        texts: read for one answer.
        length: tokens of each.

    Returns:
        Columns as `experiments.long_memory.arena_data` has them.
    """
    lengths = np.full((_SEQUENCES, texts), length, np.int32)
    tokens, label = np.zeros((_SEQUENCES, texts * length), np.uint8), np.zeros(_SEQUENCES, np.int32)
    return {"tokens": tokens, "lengths": lengths, "label": label}


def recordings(name: str) -> list[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """In place of a set of sensors: one recording without motion, as often as there are some.

    Args:
        name: of the set.

    Returns:
        Of the part to train on and the one that is held out: how often, and samples at 50 Hz and targets at 5 Hz.
    """
    count, seconds, channels, targets = _RECORDINGS[name]
    arrays = np.zeros((50 * seconds, channels), np.float32), np.zeros((5 * seconds, targets), np.float32)
    return [(count, arrays), (1, arrays)]


def gpt2_tokenizer() -> str:
    """In place of GPT-2's tokenizer: as many tokens, of which a text uses those of single bytes.

    Returns:
        Its JSON, in the format of Hugging Face's tokenizers.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from experiments.sources.wikitext import END_OF_TEXT, GPT2_TOKENS

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"token {number}" for number in range(GPT2_TOKENS - len(pieces) - 1)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*pieces, END_OF_TEXT])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()
