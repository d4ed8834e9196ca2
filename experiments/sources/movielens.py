"""MovieLens-1M through TensorFlow Datasets: who watched what after what, filtered and numbered.

TFDS downloads ml-1m.zip and prepares it once, which needs TensorFlow, in any environment:

    tfds build movielens/1m-ratings --file_format=array_record --data_dir=DIR

Reading it needs no TensorFlow. Every rating counts as an interaction, whatever its stars. Users rate many films within
one second, and TFDS does not keep the order of the file, so that among equal times the order is that of the films' ids.
"""

import importlib

import numpy as np

from experiments.errors import UserError
from experiments.sources.sessions import FEWEST, Sessions
from experiments.training.data import tfds_source

NAME = "movielens/1m-ratings"
EXAMPLES = 1_000_209
FIELDS = ("user_id", "movie_id", "timestamp")
_ELSEWHERE = (
    "generated sessions in recommendation/next_item; to prepare it, with TensorFlow installed: "
    "tfds build movielens/1m-ratings --file_format=array_record, which downloads ml-1m.zip"
)


def load_movielens(data_dir: str | None = None) -> dict[str, np.ndarray]:
    """All ratings: who, what and when.

    Args:
        data_dir: where TFDS's data sets are prepared; None is TFDS's default.

    Returns:
        "user_id", "movie_id" and "timestamp", each (n,) int64.

    Raises:
        UserError: the data set is not there, or it is not the whole MovieLens-1M.
    """
    # TFDS by itself knows this builder only where TensorFlow is installed
    importlib.import_module("tensorflow_datasets.structured.movielens")
    source = tfds_source(NAME, "train", data_dir, embedded=_ELSEWHERE)
    if len(source) != EXAMPLES:
        raise UserError(f"{NAME}: got {len(source)} ratings, expected {EXAMPLES}; prepare it again")
    columns: dict[str, list[int]] = {name: [] for name in FIELDS}
    for rating in source:
        try:
            for name, column in columns.items():
                column.append(int(rating[name]))
        except (KeyError, ValueError) as error:
            raise UserError(f"{NAME}: got a rating with {sorted(rating)}, expected numbers in {FIELDS}") from error
    return {name: np.array(column, np.int64) for name, column in columns.items()}


def in_sessions(ratings: dict[str, np.ndarray], fewest: int = 5) -> Sessions:
    """Films of each user in the order of time, without users and films that occur seldom.

    Both are left out until every user and every film that is left occurs often enough (the "5-core").

    Args:
        ratings: of `load_movielens`.
        fewest: interactions of a user and of a film that are left.

    Returns:
        Sessions of users in the order of their ids; films are numbered in the order of theirs.

    Raises:
        ValueError: `fewest` is less than a session needs, or nothing is left.

    Example:
        >>> ratings = {"user_id": np.repeat([7, 8, 5, 6], 4), "movie_id": np.tile([3, 1, 2, 9], 4)}
        >>> in_sessions(ratings | {"timestamp": np.tile([5, 5, 1, 9], 4)}, fewest=4).items[:4].tolist()
        [1, 0, 2, 3]
    """
    if fewest < FEWEST:
        raise ValueError(f"fewest: got {fewest}, expected at least {FEWEST}")
    users, films, times = (ratings[name] for name in FIELDS)
    while True:
        often = [np.unique(ids, return_inverse=True, return_counts=True)[1:] for ids in (users, films)]
        left = np.logical_and(*(counts[place] >= fewest for place, counts in often))
        if left.all():
            break
        users, films, times = users[left], films[left], times[left]
    if not len(users):
        raise ValueError(f"fewest: with {fewest} no ratings are left")
    order = np.lexsort((films, times, users))
    _, numbers = np.unique(films[order], return_inverse=True)
    _, counts = np.unique(users[order], return_counts=True)
    return Sessions(numbers.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))
