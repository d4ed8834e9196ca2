"""The assigner against every possible assignment of small batches."""

from itertools import combinations, product

import numpy as np
import pytest

from experiments.sequence_parallelism.assignment import (
    GAP,
    Cost,
    assigned,
    bucket_limits,
    micro_batches,
    predicted,
    step_plan,
)

COST = Cost(1e-3, 0.1, 0.02, 0.3, 0.2)


def partitions(devices, degrees):
    """All tuples of group sizes that fit the devices, decreasing."""
    found = {()}
    for _ in range(devices):
        more = {(*sizes, d) for sizes, d in product(found, degrees) if sum(sizes) + d <= devices}
        found |= {tuple(sorted(sizes, reverse=True)) for sizes in more}
    return found


def best_of_all(lengths, capacity, devices, degrees):
    best = np.inf
    for sizes in partitions(devices, degrees):
        for places in product(range(len(sizes)), repeat=len(lengths)):
            groups = [[s for s, place in zip(lengths, places, strict=True) if place == p] for p in range(len(sizes))]
            if all(sum(group) <= capacity * d for group, d in zip(groups, sizes, strict=True)):
                times = [sum(COST.seconds(s, d) for s in group) for group, d in zip(groups, sizes, strict=True)]
                best = min(best, max(times))
    return best


@pytest.mark.parametrize("degrees", [(1, 2, 4), (2,), (4,)])
def test_the_fastest_of_all_assignments(degrees):
    random = np.random.default_rng(0)
    for _ in range(4):
        lengths = random.choice([3, 7, 20, 31], size=5, p=[0.4, 0.3, 0.2, 0.1]).tolist()
        found = assigned(lengths, COST, 16, 4, degrees)
        best = best_of_all(lengths, 16, 4, degrees)
        if found is None:
            assert best == np.inf, lengths
            continue
        assert sorted(s for group in found for s in group.lengths) == sorted(lengths)
        assert sum(group.degree for group in found) <= 4
        assert all(sum(group.lengths) <= 16 * group.degree for group in found)
        assert best <= predicted([found], COST) * (1 + 1e-9) <= best * (1 + GAP + 1e-9) * (1 + 1e-6), (lengths, best)


def test_what_does_not_fit():
    assert assigned([65], COST, 16, 4, (1, 2, 4)) is None
    assert assigned([33], COST, 16, 4, (1, 2)) is None
    assert step_plan([33, 3], COST, 16, 4, (1, 2)) is None


def test_groups_of_more_sizes_are_never_slower():
    lengths = [40, 20, 7, 7, 3, 3, 3, 3]
    static = step_plan(lengths, COST, 16, 4, (4,))
    aware = step_plan(lengths, COST, 16, 4, (1, 2, 4))
    assert predicted(aware, COST) < predicted(static, COST)
    for plan in (static, aware):
        assert sorted(s for part in plan for group in part for s in group.lengths) == sorted(lengths)


def test_buckets_add_the_fewest_tokens():
    lengths = [1, 1, 2, 5, 6, 6, 9, 15, 16, 40]

    def added(limits):
        return sum(min(limit for limit in limits if limit >= length) - length for length in lengths)

    for count in range(1, 6):
        best = min(added((*some, 40)) for some in combinations(sorted(set(lengths) - {40}), count - 1))
        found = bucket_limits(lengths, count)
        assert len(found) <= count and found[-1] == 40 and added(found) == best
    assert bucket_limits(lengths, 99) == sorted(set(lengths))


def test_micro_batches_have_the_longest_first():
    parts = micro_batches([5, 1, 9, 2, 2, 1], 3)
    assert [length for part in parts for length in part] == [9, 5, 2, 2, 1, 1] and len(parts) == 3
