"""Axes of figures: range, ticks, and positions on the page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    label: quantity and unit.
    low, high: the ends, low < high.
    ticks: values of the ticks.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float, start: float, end: float) -> float:
        """The position of a value, between start (of `low`) and end (of `high`)."""
        return start + (end - start) * (value - self.low) / (self.high - self.low)

    def tick_text(self, value: float) -> str:
        """The text of a tick, with the decimals that the step between ticks needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        if abs(value) >= 10_000 and value == round(value):
            return f"{value / 1000:g}k"
        digits = next((d for d in range(5) if math.isclose(step * 10**d, round(step * 10**d))), None)
        text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
        return text.replace("-", "−")


def fitted(label: str, values: Iterable[float], *, ticks: int = 4) -> Axis:
    """An axis with round ticks that encloses the finite values; 0 to 1 if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return fixed(label, first * step, last * step, step)


def fixed(label: str, low: float, high: float, step: float) -> Axis:
    """An axis with a tick at every step from `low`."""
    count = round((high - low) / step)
    return Axis(label, low, high, tuple(round(low + i * step, 12) for i in range(count + 1)))


def spanning(label: str, values: Iterable[float], *, ticks: int = 4) -> Axis:
    """An axis from the smallest to the largest value, with round ticks."""
    finite = [value for value in values if math.isfinite(value)]
    around = fitted(label, finite, ticks=ticks)
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if low == high:
        return around
    return Axis(label, low, high, tuple(tick for tick in around.ticks if low <= tick <= high))


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))
