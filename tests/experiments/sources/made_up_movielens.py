"""A few generated ratings that TFDS reads as MovieLens-1M: its own builder, features, file format and version."""

import numpy as np
import pytest


def ratings(users=12, films=9, each=8, seed=0):
    """Numbers of users, films and times, shuffled; each user rates so many films, of which some times are equal."""
    rng = np.random.default_rng(seed)
    rows = [
        (10 * user + 3, int(film) * 7 + 1, 1000 + int(rng.integers(0, 5)))
        for user in range(users)
        for film in rng.permutation(films)[:each]
    ]
    columns = np.array(rows, np.int64)[rng.permutation(len(rows))]
    return dict(zip(("user_id", "movie_id", "timestamp"), columns.T, strict=True))


def prepare(folder, columns):
    """Prepare the data set in a folder, without TensorFlow and without a download."""
    from tensorflow_datasets.structured.movielens import Movielens as builder

    def generated():
        for i in range(len(columns["user_id"])):
            yield (
                i,
                {
                    "user_id": str(columns["user_id"][i]),
                    "movie_id": str(columns["movie_id"][i]),
                    "timestamp": int(columns["timestamp"][i]),
                    "user_rating": 1.0 + i % 5,
                    "movie_title": f"Film {i} (1999)",
                    "movie_genres": ["Drama", "Film-Noir"][: 1 + i % 2],
                    "user_gender": bool(i % 2),
                    "bucketized_user_age": 25.0,
                    "user_occupation_label": "writer",
                    "user_occupation_text": "writer",
                    "user_zip_code": "00000",
                },
            )

    with pytest.MonkeyPatch.context() as patch:
        # All but where the ratings come from is the real builder's.
        patch.setattr(builder, "_split_generators", lambda self, _: {"train": generated()})
        made = builder(config="1m-ratings", data_dir=folder, file_format="array_record")
        made.download_and_prepare(file_format="array_record")
    return str(folder)
