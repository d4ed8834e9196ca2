"""How long a call keeps the device, not the host.

Calls are put into the device's queue one after the other, on operands that take turns, so that none finds its own in
the cache. The queue is kept busy while they are put there, by other work in front of them (the plug): the host is then
ahead of the device, and what it needs for a call does not count as long as it needs less than the device. The time of
one call is the difference between many and few calls, which takes away the plug, the start and the wait for the end.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SPAN = 0.04  # seconds that the many calls should take
MOST = 20  # calls in the queue; with those of the plug fewer than the 32 after which JAX makes the host wait
LONG = 0.2  # seconds of a call beside which start and end do not matter
ROUNDS = 15


@dataclass(frozen=True)
class DeviceTime:
    """Of one call, in milliseconds: the median, and the quartiles.

    Attributes:
        ms: median of all rounds.
        low: first quartile.
        high: third quartile.
        rounds: how many there were.
    """

    ms: float
    low: float
    high: float
    rounds: int


def device_time(
    start: Callable[[int], object], finish: Callable[[], object], plug: Callable[[], object], seconds: float
) -> DeviceTime:
    """Time one call.

    Args:
        start: puts the call with this number into the queue and comes back; it was compiled before.
        finish: waits for all that was put there.
        plug: puts a few milliseconds of other work there.
        seconds: that all of this should take; three rounds are made at least.

    Returns:
        The time.
    """

    def elapsed(calls: int, *, plugged: bool = True) -> float:
        finish()
        before = time.perf_counter()
        if plugged:
            plug()
        for number in range(calls):
            start(number)
        finish()
        return time.perf_counter() - before

    once = min(elapsed(1, plugged=False) for _ in range(2))
    if once > LONG:
        return summary([elapsed(1, plugged=False) for _ in range(3)])
    many = max(4, min(MOST, round(SPAN / once)))
    few = many // 4
    first = elapsed(many) + elapsed(few)
    rounds = max(3, min(ROUNDS, int(seconds / first)))
    times = [(elapsed(many) - elapsed(few)) / (many - few) for _ in range(rounds)]
    if statistics.median(times) <= 0:  # a call so short that it is lost in the noise
        times = [elapsed(many, plugged=False) / many for _ in range(rounds)]
    return summary(times)


def summary(seconds: Sequence[float]) -> DeviceTime:
    """Median and quartiles of the seconds of one call.

    Args:
        seconds: two at least.

    Returns:
        The time.

    Example:
        >>> summary([0.001, 0.003, 0.002])
        DeviceTime(ms=2.0, low=1.5, high=2.5, rounds=3)
    """
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return DeviceTime(1e3 * middle, 1e3 * low, 1e3 * high, len(seconds))
