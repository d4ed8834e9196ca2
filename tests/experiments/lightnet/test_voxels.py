"""The three-dimensional task: what its labels mean, and that a bag of voxels says nothing."""

import numpy as np

from experiments.lightnet.voxels import SIDES, placements, split, volumes


def test_labels_say_along_which_axis_and_in_which_direction():
    where, labels = placements(4)
    assert len(labels) == 3 * 16 * 12 and len(np.unique(where.reshape(len(where), -1), axis=0)) == len(where)
    difference = where[:, 0] - where[:, 1]
    assert ((difference != 0).sum(axis=1) == 1).all()
    np.testing.assert_array_equal(difference[np.arange(len(labels)), labels // 2] > 0, labels % 2 == 1)
    assert np.bincount(labels).tolist() == [96] * len(SIDES)


def test_all_volumes_have_the_same_voxels():
    where, labels = placements(3)
    grids = volumes(where, 3)
    bags = np.sort(grids.reshape(len(labels), -1, 2) @ [1.0, 2.0], axis=1)
    assert (bags == bags[0]).all() and bags[0].sum() == 3
    for grid, (a, b) in zip(grids, where, strict=True):
        assert grid[(*a, 0)] == 1 and grid[(*b, 1)] == 1


def test_tested_placements_are_not_trained_on():
    labels = placements(4)[1]
    train, test = split(labels, 0.25)
    assert len(test) == 144 and sorted([*train, *test]) == list(range(576))
    assert np.bincount(labels[test]).tolist() == [24] * len(SIDES)
