"""Two marks in a small volume: on which side of B is A? A task that a bag of voxels cannot solve."""

from __future__ import annotations

from itertools import product

import numpy as np

SIDES = ("left", "right", "above", "below", "front", "behind")


def placements(side: int) -> tuple[np.ndarray, np.ndarray]:
    """All placements of two marks that differ in one coordinate, with the side on which A is of B.

    Each of the six sides has as many placements as each other, and all have the same voxels in another order: without
    positions no answer is better than another.

    Args:
        side: voxels along each of the three axes.

    Returns:
        Coordinates (n, 2, 3) of A and B, and labels (n,): twice the axis, plus 1 where A's coordinate is the larger.

    Example:
        >>> where, label = placements(2)
        >>> where.shape, np.bincount(label).tolist()
        ((24, 2, 3), [4, 4, 4, 4, 4, 4])
    """
    where, labels = [], []
    for axis, (a, b) in product(range(3), product(range(side), repeat=2)):
        for others in product(range(side), repeat=2):
            if a != b:
                where.append([np.insert(others, axis, a), np.insert(others, axis, b)])
                labels.append(2 * axis + int(a > b))
    return np.array(where, np.int32), np.array(labels, np.int32)


def volumes(where: np.ndarray, side: int) -> np.ndarray:
    """Volumes with a 1 in channel 0 at A and in channel 1 at B.

    Args:
        where: (n, 2, 3).
        side: voxels along each axis.

    Returns:
        (n, side, side, side, 2) float32.

    Example:
        >>> volumes(np.array([[[0, 0, 1], [1, 0, 0]]]), 2)[0, 0, 0, 1].tolist()
        [1.0, 0.0]
    """
    out = np.zeros((len(where), side, side, side, 2), np.float32)
    for channel in range(2):
        out[(np.arange(len(where)), *where[:, channel].T, channel)] = 1.0
    return out


def split(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Random placements to train on and to test on, the same everywhere, and as many of each label as of each other.

    So whoever knows nothing is right once in as many times as there are labels, whatever the answer.

    Args:
        labels: (n,), each as often as each other.
        share: of the test.

    Returns:
        Indices of the two parts.

    Example:
        >>> train, test = split(np.repeat([0, 1], 5), 0.2)
        >>> len(train), len(test), (test < 5).tolist()
        (8, 2, [True, False])
    """
    generator = np.random.default_rng(1)
    orders = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    held_out = round(share * len(orders[0]))
    train, test = [order[held_out:] for order in orders], [order[:held_out] for order in orders]
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
