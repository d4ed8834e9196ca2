"""MovieLens-1M as TFDS prepares it, read through the real pipeline from generated ratings, and made into sessions."""

import sys
from collections import Counter

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.planning import stand_ins
from experiments.sources import movielens
from experiments.sources.movielens import FIELDS, NAME, in_sessions, load_movielens
from tests.experiments.sources.made_up_movielens import prepare, ratings

MADE = ratings()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"), MADE)


def test_ratings_are_read_without_tensorflow(folder, monkeypatch):
    monkeypatch.setattr(movielens, "EXAMPLES", len(MADE["user_id"]))
    found = load_movielens(folder)
    assert "tensorflow" not in sys.modules
    rows = [sorted(zip(*(columns[name].tolist() for name in FIELDS), strict=True)) for columns in (found, MADE)]
    assert rows[0] == rows[1]


def test_a_part_of_the_data_set_is_refused(folder):
    with pytest.raises(UserError, match="movielens/1m-ratings: got 96 ratings, expected 1000209; prepare it again"):
        load_movielens(folder)


def test_a_data_set_that_is_not_there_names_what_can_be_used(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("tensorflow_datasets.builder", fails)
    with pytest.raises(UserError, match="no network.*generated sessions in recommendation/next_item"):
        load_movielens(str(tmp_path))


def test_sessions_are_in_the_order_of_time_and_then_of_ids():
    sessions = in_sessions(MADE, fewest=4)
    films = np.unique(MADE["movie_id"])
    for number, user in enumerate(np.unique(MADE["user_id"])):
        own = MADE["user_id"] == user
        rows = sorted(zip(MADE["timestamp"][own].tolist(), MADE["movie_id"][own].tolist(), strict=True))
        found = sessions.items[sessions.offsets[number] : sessions.offsets[number + 1]]
        assert films[found].tolist() == [film for _, film in rows]


def test_what_is_seldom_is_left_out_until_nothing_is():
    """The first extra user has enough ratings until a film that nobody else saw is gone."""
    extra = {
        "user_id": np.array([*[900] * 5, *[901] * 4]),
        "movie_id": np.array([1, 8, 15, 22, 500, 1, 8, 501, 502]),
        "timestamp": np.arange(9),
    }
    together = {name: np.concatenate([MADE[name], extra[name]]) for name in FIELDS}
    kept = in_sessions(together, fewest=5)
    users, films = MADE["user_id"], MADE["movie_id"]
    assert min(Counter(films.tolist()).values()) >= 5
    assert len(kept.lengths) == len(np.unique(users)) and len(kept.items) == len(users)
    np.testing.assert_array_equal(kept.items, in_sessions(MADE, fewest=5).items)
    with pytest.raises(ValueError, match="fewest: with 50 no ratings are left"):
        in_sessions(MADE, fewest=50)
    with pytest.raises(ValueError, match="fewest: got 3, expected at least 4"):
        in_sessions(MADE, fewest=3)


def test_what_stands_in_for_it_while_a_training_is_planned_has_its_size_and_fields():
    source = stand_ins.data_set(NAME, "train")
    assert len(source) == movielens.EXAMPLES
    drawn = {name: np.array([int(source[i][name]) for i in range(0, len(source), 17)]) for name in FIELDS}
    assert len(np.unique(drawn["user_id"])) == 6040 and len(np.unique(drawn["movie_id"])) == 3416
