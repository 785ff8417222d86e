"""Images of any size in tiles of one size: where the tiles lie, what they weigh, and the average where they overlap.

A tile's result equals that of the whole image where two things hold, for a network without statistics over positions
(group or instance norm, global pooling):

- The tile starts at a multiple of the network's downsampling factor (4 for three levels of a U-Net, and twice that with
  octave convolutions). Pooling and strided convolutions compute on a grid that begins at the tile's corner: on another
  grid the network is another function, everywhere in the tile and not only at its border. With flips the tile's size
  should be such a multiple too, since they exchange its corners.
- The pixel is farther from the tile's inner borders than the network sees: half its receptive field, and one
  downsampling factor more, since the field is not centred on every pixel.

`align` and `margin` see to them. With both the average is the result of the whole image, the image's own borders
included; this is the overlap-tile strategy of the original U-Net. (Where the image's size is no multiple of `align`, it
is continued by a few pixels: within the receptive field of its end, whole images differ by what the network does then.)

A network that pads nothing gives less than it is shown. Its tiles are tiles of the result, and each is predicted from a
larger part of the image, or of what continues it: the second of the two conditions is met by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Window = Literal["uniform", "hann", "gaussian"]
Spacing = Literal["even", "fixed"]
Border = Literal["zeros", "mirror"]

_ROUNDING = 1e-6  # 10 * (1 - 0.9) is a little below 1


class SlidingWindow:
    """The average of what a function says about overlapping tiles of images.

    Along each axis tiles start at multiples of `align`, at most tile_size * (1 - overlap) apart; the first starts with
    the image and the last ends with it. They are evenly spaced, or all but the last are that far apart. Where no
    multiple of `align` lets the last tile end with the image, and where the image is smaller than a tile, the image is
    continued at its end by its mirror image and the result is cut back: the function always sees tiles of `tile_size`.
    An axis whose tile_size is 1 is taken pixel by pixel: overlap, margin and align are for the others.

    A pixel's result is the average over the tiles that hold it, weighted by the window, the product of one-dimensional
    windows w(x), x = i + 1/2 for i = 0 ... n - 1:

    - uniform: 1
    - hann: sin^2(pi x / n)
    - gaussian: exp(-(x - n/2)^2 / (2 sigma^2)), sigma = n / 8

    All are positive everywhere. Weights are divided by their sum before they are used, in float64, so that a pixel in
    one tile only keeps its value to the last bit.

    Memory: the result, a batch of tiles and what the function needs for it. The image's size adds nothing else, but for
    a copy of the images where they are continued.

    Args:
        tile_size: Pixels, for all axes or for each.
        overlap: Least share of a tile, along each axis, that the next one covers too, in [0, 1).
        window: Weights of a tile's pixels.
        margin: Pixels at a tile's inner borders (not those of the image) that count nothing.
        align: Tiles start at multiples of this many pixels.
        batch_size: Tiles that go through the function at once; those of several images may share a batch.
        spacing: "even", or "fixed": as far apart as `overlap` lets them, but for the last.

    Raises:
        ValueError: An option is out of its range, tiles would not advance, or the margin leaves gaps between them.
    """

    def __init__(
        self,
        tile_size: int | Sequence[int],
        overlap: float = 0.5,
        window: Window = "hann",
        margin: int = 0,
        align: int = 1,
        batch_size: int = 4,
        spacing: Spacing = "even",
    ) -> None:
        sizes = [tile_size] if isinstance(tile_size, int) else list(tile_size)
        if not sizes or any(size < 1 for size in sizes):
            raise ValueError(f"tile_size must be at least 1 pixel along each axis, got {tile_size}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be a fraction of the tile, at least 0 and below 1, got {overlap}")
        for name, choice, choices in (("window", window, Window), ("spacing", spacing, Spacing)):
            if choice not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {choice!r}")
        for name, value, least in (("margin", margin, 0), ("align", align, 1), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.layouts = [_layout(size, overlap, margin, align, spacing) for size in sizes]
        self.window: Window = window
        self.align = align
        self.batch_size = batch_size

    def __call__(
        self, predict: Callable[[Tensor], Tensor], images: Tensor, lost: int = 0, border: Border = "mirror"
    ) -> Tensor:
        """The averages (N, K, *size) for images (N, C, *size).

        Args:
            predict: Maps (B, C, *(tile_size + 2 * lost)), B at most `batch_size`, to float32 maps (B, K, *tile_size).
            images: (N, C, H, W), or (N, C, D, H, W).
            lost: Pixels around a tile that `predict` needs besides, at each border.
            border: What continues the images, see `continued`.

        Raises:
            ValueError: `tile_size` has another number of axes than the images.
        """
        axes = self._axes(images)
        images_around = continued(images, [axis.end for axis in axes], lost, border)
        tiles = list(_tiles(len(images), axes))
        result: Tensor | None = None
        for first in range(0, len(tiles), self.batch_size):
            batch = tiles[first : first + self.batch_size]
            parts = [images_around[tile.image : tile.image + 1, :, *_enlarged(tile.region, lost)] for tile in batch]
            values = predict(torch.cat(parts))
            if result is None:
                result = values.new_zeros(len(images), values.shape[1], *images.shape[2:])
            for tile, value in zip(batch, values, strict=True):
                part = result[tile.image][:, *tile.region]
                inside = [slice(n) for n in part.shape[1:]]  # tiles may reach beyond the image
                part += (value * reduce(_outer, tile.weights))[:, *inside]
        assert result is not None, "images hold no image"
        return result

    def layouts_of(self, axes: int) -> list[Layout]:
        """How tiles lie along each of so many axes.

        Raises:
            ValueError: `tile_size` has another number of axes.
        """
        layouts = self.layouts * axes if len(self.layouts) == 1 else self.layouts
        if len(layouts) != axes:
            raise ValueError(
                f"tile_size has {len(layouts)} numbers and the images have {axes} axes: give one number for each axis, "
                "or one for all"
            )
        return layouts

    def _axes(self, images: Tensor) -> list[TiledAxis]:
        sizes = zip(images.shape[2:], self.layouts_of(images.ndim - 2), strict=True)
        return [tile_axis(n, layout, self.window, images.device) for n, layout in sizes]


class Layout(NamedTuple):
    """How tiles lie along an axis: `step` is the largest distance of their starts, a multiple of `align`."""

    tile_size: int
    step: int
    margin: int
    align: int
    spacing: Spacing = "even"


def _layout(tile_size: int, overlap: float, margin: int, align: int, spacing: Spacing) -> Layout:
    if tile_size == 1:
        return Layout(tile_size=1, step=1, margin=0, align=1)
    step = int(tile_size * (1 - overlap) + _ROUNDING) // align * align
    if step < 1:
        raise ValueError(
            f"overlap {overlap} makes no progress: tiles of tile_size {tile_size} would start every "
            f"{tile_size * (1 - overlap):.3g} pixels, and align is {align}. Lower the overlap"
        )
    if 2 * margin >= tile_size:
        raise ValueError(f"margin {margin} at both borders leaves nothing of tile_size {tile_size}: lower the margin")
    if step > tile_size - 2 * margin:
        raise ValueError(
            f"margin {margin} at both borders of tile_size {tile_size} leaves gaps between tiles that start every "
            f"{step} pixels. Raise the overlap to {math.ceil(2000 * margin / tile_size) / 1000} or lower the margin"
        )
    return Layout(tile_size, step, margin, align, spacing)


@dataclass(frozen=True)
class TiledAxis:
    """The tiles along one axis.

    Args:
        starts: The tiles' first pixels, rising from 0.
        weights: Weights (tiles, tile_size) of the tiles' pixels; for each pixel of the axis they sum to one.
    """

    starts: tuple[int, ...]
    weights: Tensor

    @property
    def tile_size(self) -> int:
        return self.weights.shape[1]

    @property
    def end(self) -> int:
        """Pixels from the start of the first to the end of the last tile: the axis' own length, or more."""
        return self.starts[-1] + self.tile_size


@lru_cache(maxsize=256)  # a data set has few sizes, and an axis takes a few kB
def tile_axis(size: int, layout: Layout, window: Window, device: torch.device) -> TiledAxis:
    """The tiles of an axis of `size` pixels, as `SlidingWindow` describes them."""
    tile_size, step, margin, align, spacing = layout
    last = math.ceil(max(size - tile_size, 0) / align)  # starts are counted in multiples of `align`
    intervals = math.ceil(last * align / step)
    if spacing == "fixed":
        starts = tuple(min(i * step, last * align) for i in range(intervals + 1))
    else:
        starts = (0, *(last * i // intervals * align for i in range(1, intervals + 1)))

    weights = _window(window, tile_size).repeat(len(starts), 1)
    weights[1:, :margin] = 0
    weights[:-1, tile_size - margin :] = 0
    pixels = torch.tensor(starts)[:, None] + torch.arange(tile_size)
    sums = torch.zeros(starts[-1] + tile_size, dtype=weights.dtype).index_put((pixels,), weights, accumulate=True)
    return TiledAxis(starts, (weights / sums[pixels]).float().to(device))


def _window(name: Window, size: int) -> Tensor:
    x = torch.arange(size, dtype=torch.float64) + 0.5
    if name == "hann":
        return torch.sin(math.pi * x / size) ** 2
    if name == "gaussian":
        return torch.exp(-(((x - size / 2) / (size / 8)) ** 2) / 2)
    return torch.ones_like(x)


class _Tile(NamedTuple):
    image: int
    region: tuple[slice, ...]
    weights: tuple[Tensor, ...]  # along each axis


def _tiles(images: int, axes: Sequence[TiledAxis]) -> Iterator[_Tile]:
    for image, *numbers in product(range(images), *(range(len(axis.starts)) for axis in axes)):
        chosen = list(zip(axes, numbers, strict=True))
        region = tuple(slice(axis.starts[i], axis.starts[i] + axis.tile_size) for axis, i in chosen)
        yield _Tile(image, region, tuple(axis.weights[i] for axis, i in chosen))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., None] * b


def _enlarged(region: Sequence[slice], lost: int) -> list[slice]:
    """A region with what is around it, in images that begin `lost` pixels earlier."""
    return [slice(along.start, along.stop + 2 * lost) for along in region]


def continued(images: Tensor, size: Sequence[int], lost: int, border: Border) -> Tensor:
    """Images (N, C, *smaller or equal) continued at the end of each axis to `size`, then at all ends by `lost` pixels.

    With zeros, or as `continue_mirrored` does.
    """
    if border == "mirror":
        return continue_mirrored(images, size, lost)
    added = [(lost, lost + new - old) for old, new in zip(images.shape[2:], size, strict=True)]
    return F.pad(images, [pixels for ends in reversed(added) for pixels in ends])


def continue_mirrored(images: Tensor, size: Sequence[int], lost: int = 0) -> Tensor:
    """Images (N, C, *smaller or equal) continued at the end of each axis to `size`, then at all ends by `lost` pixels.

    They are mirrored at their last pixel, which is not repeated, and at their first, as often as it takes; an axis of
    one pixel repeats it.
    """
    for axis, (old, new) in enumerate(zip(images.shape[2:], size, strict=True), start=2):
        if new > old or lost:
            period = max(2 * (old - 1), 1)
            place = torch.arange(-lost, new + lost, device=images.device).abs() % period
            images = images.index_select(axis, torch.minimum(place, period - place))
    return images
