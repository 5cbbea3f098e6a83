"""Axes of the plots: positions in percent of the plot's width or height, so that text keeps its size on any screen."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, both finite and different; above 0 where it is logarithmic."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1; values beyond the ends lie at the ends."""
        if math.isnan(value):
            return 0.0
        clamped = min(max(value, self.low), self.high)
        low, high, at = (math.log(v) for v in (self.low, self.high, clamped)) if self.log else self._plain(clamped)
        return (at - low) / (high - low)

    def ticks(self, count: int = 5) -> tuple[float, ...]:
        """Round values within the axis, about `count` of them."""
        if self.log:
            for steps in ((1, 2, 5), (1,)):
                exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [s * 10.0**e for e in exponents for s in steps if self.low <= s * 10.0**e <= self.high]
                if 1 < len(found) <= count + 1:
                    return tuple(found)
            if len(found) > count:
                return tuple(found[:: math.ceil(len(found) / count)])
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(i * step for i in range(first, last + 1))

    def _plain(self, at: float) -> tuple[float, float, float]:
        return self.low, self.high, at


def around(values: Iterable[float], *, padding: float = 0.1, log: bool = False, cap: float = math.inf) -> Scale | None:
    """The axis that holds all finite values (all positive ones where logarithmic); None where there is none.

    Args:
        values: what is drawn.
        padding: room at both ends, as a share of the axis.
        log: whether the axis is logarithmic.
        cap: the largest value that may be shown.
    """
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    if log:
        room = max(math.log(high / low) * padding, math.log(1.25))
        return Scale(low / math.exp(room), high * math.exp(room), log=True)
    room = (high - low) * padding or max(abs(high) * 0.1, 1e-6)
    top = min(high + room, cap) if high < cap else high
    return Scale(low - room, top)
