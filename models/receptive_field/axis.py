"""Which input positions one index of a feature map depends on: exact arithmetic along one spatial axis.

An operation is described by the indices of its input that each output index reads (`Window`), a feature map by the
interval of network-input positions that each of its indices depends on (`AxisMap`). Axes have no borders here: padding
moves indices, it does not stop them, so what comes out is the theoretical receptive field, whatever the input's size.

Upsampling makes indices unlike one another (after a nearest x2 and a 3x3 convolution, even and odd rows see different
rows of the input), so both descriptions repeat with a period instead of being one interval per map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

Interval = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The input indices that each output index of an operation reads.

    `taps(i)` lists them; `taps(i + period)` is `taps(i)` moved by `advance`.
    """

    taps: Callable[[int], Iterable[int]]
    period: int = 1
    advance: int = 1

    @property
    def is_identity(self) -> bool:
        """Whether each index reads itself alone, as in a 1x1 convolution."""
        return self.period == self.advance == 1 and [*self.taps(0)] == [0]


@dataclass(frozen=True)
class AxisMap:
    """Interval of network-input positions behind each index of one axis of a feature map.

    Args:
        stride: input positions per index (1/2 after upsampling the input twice; negative on a flipped axis).
        intervals: (first, last) position behind indices 0 .. period - 1; index i + period depends on the same interval
            moved by stride * period, a whole number. None where an index depends on nothing, as between the taps of a
            transposed convolution whose stride exceeds its kernel.
    """

    stride: Fraction = Fraction(1)
    intervals: tuple[Interval | None, ...] = ((0, 0),)

    def __getitem__(self, index: int) -> Interval | None:
        turns, phase = divmod(index, len(self.intervals))
        interval = self.intervals[phase]
        if interval is None:
            return None
        moved = turns * int(self.stride * len(self.intervals))
        return interval[0] + moved, interval[1] + moved

    @property
    def extent(self) -> int:
        """Receptive field in input positions: the widest interval."""
        return max((last - first + 1 for first, last in filter(None, self.intervals)), default=0)

    def through(self, window: Window) -> AxisMap:
        """The map after an operation that reads this one through `window`."""
        repeats = len(self.intervals) // math.gcd(len(self.intervals), window.advance)
        period = window.period * repeats
        stride = self.stride * Fraction(window.advance, window.period)
        return AxisMap(stride, tuple(_hull(self[tap] for tap in window.taps(index)) for index in range(period)))

    def union(self, other: AxisMap) -> AxisMap:
        """The map of a value computed from both at the same index.

        Raises:
            ValueError: the strides differ, so no periodic map describes the union.
        """
        if self.stride != other.stride:
            raise ValueError(f"maps of strides {self.stride} and {other.stride} share no grid")
        period = math.lcm(len(self.intervals), len(other.intervals))
        return AxisMap(self.stride, tuple(_hull((self[index], other[index])) for index in range(period)))


def _hull(intervals: Iterable[Interval | None]) -> Interval | None:
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return None
    return min(first for first, _ in known), max(last for _, last in known)


def convolution(kernel_size: int, stride: int, padding: int, dilation: int = 1) -> Window:
    """Convolution or pooling."""

    def taps(index: int) -> range:
        first = index * stride - padding
        return range(first, first + kernel_size * dilation, dilation)

    return Window(taps, advance=stride)


def transposed_convolution(kernel_size: int, stride: int, padding: int, dilation: int = 1) -> Window:
    """Transposed convolution: input j reaches the outputs j * stride - padding + dilation * tap."""

    def taps(index: int) -> list[int]:
        origins = (index + padding - dilation * tap for tap in range(kernel_size))
        return [origin // stride for origin in origins if origin % stride == 0]

    return Window(taps, period=stride)


def crop(start: int, step: int = 1) -> Window:
    """Slicing; a negative `start` is padding."""
    return Window(lambda index: (start + index * step,), advance=step)


def flip(size: int) -> Window:
    """Reversal of an axis of `size` indices."""
    return Window(lambda index: (size - 1 - index,), advance=-1)


def repeat(times: int) -> Window:
    """Each index repeated in place (nearest upsampling by a whole factor, the rows of a pixel shuffle)."""
    return Window(lambda index: (index // times,), period=times)


def blocks(size: int) -> Window:
    """`size` neighbours taken together (the rows of a pixel unshuffle)."""
    return convolution(size, size, 0)


def nearest(factor: Fraction, centred: bool = False) -> Window:
    """Nearest interpolation to `factor` times the size; `centred` is torch's "nearest-exact"."""
    offset = Fraction(1, 2) if centred else Fraction(0)
    return Window(lambda index: (math.floor((index + offset) / factor),), factor.numerator, factor.denominator)


def interpolation(factor: Fraction, support: int, antialias: bool = False) -> Window:
    """Linear (`support` 1) or cubic (2) interpolation to `factor` times the size, between pixel centres.

    With corners aligned the sampling phase drifts over the image by an amount that depends on its size. At the centre
    it is the phase between pixel centres, which is what stands here for both.
    """
    reach = Fraction(support) * (max(Fraction(1), 1 / factor) if antialias else 1)

    def taps(index: int) -> range:
        centre = (index + Fraction(1, 2)) / factor - Fraction(1, 2)
        if centre.denominator == 1 and not antialias:
            return range(int(centre), int(centre) + 1)
        return range(math.floor(centre - reach) + 1, math.ceil(centre + reach))

    return Window(taps, factor.numerator, factor.denominator)
