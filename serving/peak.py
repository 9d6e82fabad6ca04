"""Finds the highest rate that holds: doubles or halves until one holds and one does not, and divides between them.

Of many rates near the limit, the highest that held may have been lucky: so it counts when it holds a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

_CLOSE = 1.05  # a rate that held, and one so many times as high that did not, are near enough
_LOWEST = 1 / 8  # of the first rate


class Peak(NamedTuple):
    """The highest rate that was seen to hold.

    Args:
        rate: None where none did, or none a second time.
        confirmed: whether it held twice; otherwise there was no time for that.
    """

    rate: float | None
    confirmed: bool


def highest_rate(holds: Callable[[float, int], bool], start: float, in_time: Callable[[float, int], bool]) -> Peak:
    """Try rates until the limit is known to 5%, or the time is over, and the highest that held once more.

    Args:
        holds: tries a rate; its second argument is 0, and 1 where a rate is tried once more.
        start: the first rate, at which the target has little to do: it gives up below an eighth of that.
        in_time: whether there is time for so many more tries at a rate: one must be left for the second time.
    """
    held: list[float] = []
    lost = math.inf
    while True:
        best = max(held, default=0.0)
        rate = _between(best, lost) or start
        if best and (lost / best <= _CLOSE or not in_time(rate, 2)):
            if not in_time(best, 1):
                return Peak(best, False)
            if holds(best, 1):
                return Peak(best, True)
            held.remove(best)
            lost = best
        elif rate < start * _LOWEST or not in_time(rate, 2):
            return Peak(None, False)
        elif holds(rate, 0):
            held.append(rate)
        else:
            lost = rate


def _between(best: float, lost: float) -> float:
    """The next rate to try; 0 where nothing is known."""
    if lost == math.inf:
        return 2 * best
    return math.sqrt(best * lost) if best else lost / 2
