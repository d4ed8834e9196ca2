"""Which sequences go to which groups of devices: a cost model, buckets of lengths, and a mixed-integer program.

After FlexSP (Wang et al., arXiv 2412.01523), as its abstract and summaries describe it: sequences of similar length
share a bucket, a step is cut into micro-batches, and in each of them groups of devices of different sizes work side by
side, each splitting its sequences over all of its devices. Its text was not read beyond that; the cost of a ring and
the cut into micro-batches are ours. Static scattering is the same program with groups of one size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp, nnls
from scipy.sparse import lil_array

GAP, PATIENCE = 0.01, 2.0  # relative to the best bound, and seconds, after which the solver may stop


class Cost(NamedTuple):
    """Seconds that a group of d devices takes for a sequence of s tokens.

    t(s, d) = (square s^2 + linear s) / d + sent s (d - 1) / d + hop (d - 1) + call: products of pairs and of tokens,
    keys and values that each device sends around the ring, and what each hop and each call cost whatever is sent.
    """

    square: float
    linear: float
    sent: float
    hop: float
    call: float

    def seconds(self, length: float, degree: int) -> float:
        """Of one sequence.

        Example:
            >>> Cost(0.0, 2.0, 0.0, 1.0, 0.5).seconds(8, 4)
            7.5
        """
        return float(np.dot(_features(length, degree), self))


class Group(NamedTuple):
    """Devices that work together, and the lengths of the sequences that they work on one after the other."""

    degree: int
    lengths: tuple[int, ...]

    def seconds(self, cost: Cost) -> float:
        """That it takes."""
        return sum(cost.seconds(length, self.degree) for length in self.lengths)


MicroBatch = tuple[Group, ...]


def fitted(lengths: Sequence[float], degrees: Sequence[int], seconds: Sequence[float]) -> Cost:
    """The cost with the least squares of relative errors, no part of it below 0.

    Args:
        lengths: of the sequences that were timed.
        degrees: devices that each was split over.
        seconds: that each took.

    Returns:
        The cost.

    Example:
        >>> true, points = Cost(1e-8, 1e-6, 0.0, 1e-4, 1e-3), [(s, d) for s in (64, 512, 4096) for d in (1, 2, 8)]
        >>> found = fitted(*zip(*points), [true.seconds(*point) for point in points])
        >>> bool(np.allclose(found, true))
        True
    """
    measured = np.asarray(seconds)
    rows = np.array([_features(*point) for point in zip(lengths, degrees, strict=True)]) / measured[:, None]
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1
    return Cost(*(nnls(rows / scale, np.ones(len(measured)))[0] / scale).tolist())


def bucket_limits(lengths: Sequence[int], count: int) -> list[int]:
    """Upper limits of buckets such that rounding every length up to its limit adds the fewest tokens.

    Args:
        lengths: of sequences.
        count: of buckets, at most.

    Returns:
        Limits, increasing; each is one of the lengths.

    Example:
        >>> bucket_limits([1, 2, 3, 100, 101], 2)
        [3, 101]
    """
    values, times = np.unique(np.asarray(lengths), return_counts=True)
    most, tokens = np.cumsum(times), np.cumsum(times * values)
    size = len(values)

    def added(first: int, last: int) -> float:
        before = (most[first - 1], tokens[first - 1]) if first else (0, 0)
        return float(values[last] * (most[last] - before[0]) - (tokens[last] - before[1]))

    best = np.array([added(0, last) for last in range(size)])
    cuts: list[list[int]] = [[-1] * size]
    for _ in range(min(count, size) - 1):
        options = [[best[cut] + added(cut + 1, last) for cut in range(last)] + [best[last]] for last in range(size)]
        chosen = [int(np.argmin(row)) for row in options]
        best = np.array([row[cut] for row, cut in zip(options, chosen, strict=True)])
        cuts.append(chosen)
    limits, last = [], size - 1
    for chosen in reversed(cuts):
        limits.append(int(values[last]))
        if (before := chosen[last]) == -1:
            break
        if before == last:
            limits.pop()
        last = before
    return sorted(limits)


def micro_batches(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The sequences, the longest first, cut where each part has as many tokens as the others.

    Example:
        >>> micro_batches([1, 4, 1, 2], 2)
        [[4], [2, 1, 1]]
    """
    ordered = sorted(lengths, reverse=True)
    middles = np.cumsum(ordered) - np.array(ordered) / 2
    place = np.minimum((middles / sum(ordered) * count).astype(int), count - 1)
    parts = [[length for length, where in zip(ordered, place, strict=True) if where == part] for part in range(count)]
    return [part for part in parts if part]


def assigned(
    lengths: Sequence[int], cost: Cost, capacity: int, devices: int, degrees: Sequence[int]
) -> MicroBatch | None:
    """The groups, and the sequences of each, with which the slowest group of a micro-batch is fastest.

    min C over C, m_p in {0, 1} and integers A_kp >= 0, with sum_k t(s_k, d_p) A_kp <= C and sum_k s_k A_kp <= E d_p m_p
    of each possible group p, sum_p A_kp = n_k of each bucket k, and sum_p d_p m_p <= devices.

    Args:
        lengths: of the sequences, few different ones.
        cost: of a sequence.
        capacity: tokens that a device can hold, E.
        devices: there are.
        degrees: sizes that groups may have.

    Returns:
        The groups that have sequences; None if they do not fit, or the solver found nothing in time.

    Example:
        >>> by_token = Cost(0.0, 1.0, 0.0, 1.0, 0.0)
        >>> assigned([8, 2, 2, 2], by_token, capacity=4, devices=4, degrees=(1, 2))
        (Group(degree=1, lengths=(2,)), Group(degree=1, lengths=(2, 2)), Group(degree=2, lengths=(8,)))
    """
    sizes, counts = np.unique(np.asarray(lengths), return_counts=True)
    groups = [degree for degree in sorted(degrees) for _ in range(devices // degree)]
    kinds, places = len(sizes), len(groups)
    a, m = 1, 1 + kinds * places  # where A and m begin behind C
    rows = lil_array((2 * places + kinds + 1, m + places))
    low, high = np.full(rows.shape[0], -np.inf), np.zeros(rows.shape[0])
    for p, degree in enumerate(groups):
        own = slice(a + p * kinds, a + (p + 1) * kinds)
        rows[2 * p, own] = [cost.seconds(size, degree) for size in sizes]
        rows[2 * p, 0] = -1
        rows[2 * p + 1, own], rows[2 * p + 1, m + p] = sizes, -capacity * degree
        rows[-1, m + p] = degree
    for k in range(kinds):
        rows[2 * places + k, [a + p * kinds + k for p in range(places)]] = 1
    low[2 * places : -1] = high[2 * places : -1] = counts
    high[-1] = devices
    upper = np.concatenate([[np.inf], np.tile(counts, places), np.ones(places)])
    found = milp(
        np.eye(1, m + places)[0],
        integrality=np.concatenate([[0], np.ones(m + places - 1)]),
        bounds=Bounds(np.zeros(m + places), upper),
        constraints=LinearConstraint(rows.tocsr(), low, high),
        options={"mip_rel_gap": GAP, "time_limit": PATIENCE},
    )
    if found.x is None:
        return None
    shares = np.rint(found.x[a:m]).astype(int).reshape(places, kinds)
    pairs = [(degree, share) for degree, share in zip(groups, shares, strict=True) if share.any()]
    given = [Group(degree, tuple(np.repeat(sizes, share).tolist())) for degree, share in pairs]
    return tuple(sorted(given))


def step_plan(
    lengths: Sequence[int], cost: Cost, capacity: int, devices: int, degrees: Sequence[int], more: int = 3
) -> list[MicroBatch] | None:
    """Micro-batches of a whole step: as few as hold its tokens, or a few more if that is faster.

    Args:
        lengths: of the sequences.
        cost: of a sequence.
        capacity: tokens that a device can hold.
        devices: there are.
        degrees: sizes that groups may have.
        more: numbers of micro-batches that are tried, from the first with which all sequences fit.

    Returns:
        The plan with the least predicted time, or None if there is none.
    """
    if max(lengths) > capacity * max(degrees):
        return None
    fewest = -(-sum(lengths) // (capacity * devices))
    plans: list[list[MicroBatch]] = []
    for count in range(fewest, len(lengths) + 1):
        plan: list[MicroBatch] = []
        for part in micro_batches(lengths, count):
            if (groups := assigned(part, cost, capacity, devices, degrees)) is None:
                break
            plan.append(groups)
        else:
            plans.append(plan)
        if len(plans) == more:
            break
    return min(plans, key=lambda plan: predicted(plan, cost), default=None)


def predicted(plan: Sequence[MicroBatch], cost: Cost) -> float:
    """Seconds of a step: of the slowest group of each micro-batch."""
    return sum(max(group.seconds(cost) for group in part) for part in plan)


def _features(length: float, degree: int) -> list[float]:
    shared = length * (degree - 1) / degree
    return [length**2 / degree, length / degree, shared, degree - 1.0, 1.0]
