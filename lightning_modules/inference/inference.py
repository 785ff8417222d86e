"""How a network's logits of whole images come about: one pass, or the average over tiles, flips and scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.inference.augmentation import REFLECTIONS, Flip, resize
from lightning_modules.inference.tiling import Border, SlidingWindow, Spacing, Window, continued

Network = Callable[[Tensor], Tensor]
Fits = Callable[[int], bool]
Average = Literal["probabilities", "logits"]
MergeFlips = Literal["average", "mean_logits", "sum_logits"]
Padding = Literal["mirror", "mean"]

_LARGEST_GRID = 4096  # a network whose outputs fit no side among so many fits none


class Inference:
    """Predicts images (N, C, H, W) or volumes (N, C, D, H, W) of any size.

    By default one pass of the whole images. Otherwise, from the outside inwards: each scale resizes the image (bilinear
    with antialiasing), a window slides over it in tiles, and each tile goes through the network as it is and flipped.
    The flips of a tile are merged and turned back, overlapping tiles are averaged, the result of each scale is resized
    to the image's own size, and the scales are averaged with equal weights.

    The result serves `argmax`, `softmax` and `cross_entropy` over classes alike: log-probabilities where probabilities
    are averaged, logits where logits are. One pass gives exactly log_softmax(network(images)), or network(images). An
    average of probabilities below the smallest normal float32 counts as that, so that its logarithm is finite.

    The protocol of the Stacked U-Nets paper on PASCAL VOC is, as the paper describes it::

        Inference(tile_size=512, overlap=1 / 3, window="uniform", flips=["horizontal"], merge_flips="sum_logits",
                  scales=[0.5, 0.75, 1, 1.25], average="probabilities", padding="mean")

    In the published code tiles start every 342 pixels (the last one ends with the image), and the scales are factors of
    images whose shorter side has 512 pixels: the same but for::

        overlap=0.332, spacing="fixed", shorter_side=512

    A network that pads nothing loses `margin` pixels at each border (`__call__` is told). Images are continued by that,
    see `border`, and where its grid does not fit them further at their ends, so that its logits cover them. Tiles are
    then tiles of the result, each predicted from the image around it, and equal the whole without any margin of theirs.

    Args:
        tile_size: Pixels of a tile's sides, for all axes or for each; None: whole images. The network sees only tiles
            of this size; for smaller images see `padding`.
        overlap: Least share of a tile, along each axis, that the next one covers too, in [0, 1).
        window: Weights of a tile's pixels: "uniform", "hann" or "gaussian" (`SlidingWindow` has the equations).
        flips: Further views of each tile: "horizontal", "vertical", "depth" (of volumes), "diagonal" (height and width
            exchanged), and products of them such as "horizontal+vertical". The eight views of a square are the tile
            itself, "horizontal", "vertical", "diagonal" and the four products of these. Of volumes (X, Y, Z) "depth"
            reverses X, "vertical" Y and "horizontal" Z.
        scales: Factors of the image's size; 1 for the image itself, which is not included by itself.
        batch_size: Tiles in a pass. Whole images go through as they are given.
        average: What is averaged over tiles and scales.
        margin: Pixels at the inner borders of tiles that count nothing, for networks that pad. Half the receptive field
            (`convsuite describe` prints it) plus `align` makes the result of tiles that of the whole image (`tiling`
            says when and why).
        align: Tiles start at multiples of this; set it to the network's downsampling factor.
        merge_flips: "average": as tiles and scales are. "mean_logits": the mean of the logits, also where probabilities
            are averaged otherwise. "sum_logits": their sum, which makes a tile's probabilities sharper than each
            view's.
        spacing: Of tiles: "even", or "fixed", as far apart as `overlap` lets them, all but the last.
        padding: What makes a tile of a smaller image: "mirror" continues it at its end by its mirror image, "mean" puts
            it in the middle of zeros, the mean colour of normalised images.
        shorter_side: `scales` are factors of the image resized to this many pixels along its shortest axis; None: of
            the image itself.
        border: What a network that pads nothing sees beyond the image: "zeros", as it does in training on patches with
            the image around them, or the image's "mirror" image.

    Raises:
        ValueError: An option is out of its range; the message names it.
    """

    def __init__(
        self,
        tile_size: int | Sequence[int] | None = None,
        overlap: float = 0.5,
        window: Window = "hann",
        flips: Sequence[str] = (),
        scales: Sequence[float] = (1.0,),
        batch_size: int = 4,
        average: Average = "probabilities",
        margin: int = 0,
        align: int = 1,
        merge_flips: MergeFlips = "average",
        spacing: Spacing = "even",
        padding: Padding = "mirror",
        shorter_side: int | None = None,
        border: Border = "zeros",
    ) -> None:
        given = {
            "average": (average, Average),
            "merge_flips": (merge_flips, MergeFlips),
            "padding": (padding, Padding),
            "border": (border, Border),
        }
        for name, (value, choices) in given.items():
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if shorter_side is not None and shorter_side < 1:
            raise ValueError(f"shorter_side must be at least 1 pixel, got {shorter_side}")
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(f"scales must be positive factors of the image's size, one at least; got {scales}")
        views = [Flip(), *map(Flip.parse, flips)]
        if len(set(views)) < len(views):
            raise ValueError(f"flips must differ from each other, got {list(flips)}")
        self.views = views
        self.scales = tuple(scales)
        self.average = average
        self.merge_flips = merge_flips
        self.padding = padding
        self.shorter_side = shorter_side
        self.border: Border = border
        self.tiles: SlidingWindow | None = None
        if tile_size is not None:
            self.tiles = SlidingWindow(tile_size, overlap, window, margin, align, batch_size, spacing)

    @torch.no_grad()
    def __call__(self, network: Network, images: Tensor, margin: int = 0, fits: Fits | None = None) -> Tensor:
        """Log-probabilities or logits (N, K, *size), float32, of images (N, C, *size).

        Args:
            network: Maps images to logits, of the same spatial size or smaller by `margin`; a module must be in
                evaluation mode.
            images: As the network wants them, normalised and on its device.
            margin: Pixels that the logits are smaller than the network's input at each border.
            fits: Whether the network can give so many pixels along an axis; None: it can give any number.

        Raises:
            ValueError: `images` are no batch of images, the network's output does not fit them, or it can give no tiles
                of `tile_size`.
        """
        if images.ndim not in (4, 5) or 0 in images.shape:
            raise ValueError(f"images must be (N, C, H, W) or (N, C, D, H, W), got shape {tuple(images.shape)}")
        logits_of = partial(self._logits, network, margin)
        cover = partial(self._whole, margin, fits) if self.tiles is None else partial(self._in_tiles, margin, fits)
        if self.tiles is None and len(self.views) == 1 and set(self.scales) == {1} and self.shorter_side is None:
            logits = cover(logits_of, images)
            return F.log_softmax(logits, dim=1) if self.average == "probabilities" else logits
        predict = partial(cover, partial(self._merged_views, logits_of))
        mean = _mean((self._at_scale(predict, images, scale) for scale in self.scales), len(self.scales))
        if self.average == "logits":
            return mean
        return mean.clamp_(torch.finfo(mean.dtype).tiny, 1).log_()

    def check(self, dimensions: int | None, fits: Fits | None = None) -> None:
        """Refuse a network that cannot be shown what is to be shown, before the first image is.

        Args:
            dimensions: Spatial axes of its images; None: not known.
            fits: As in `__call__`.

        Raises:
            ValueError: `tile_size` or `flips` are for another number of axes, or it can give no tiles of `tile_size`.
        """
        if dimensions == 2 and any(REFLECTIONS["depth"] in view.axes for view in self.views):
            raise ValueError("flips: 'depth' is for volumes, and this network takes images: leave it out")
        if self.tiles is None:
            return
        if dimensions is not None:
            self.tiles.layouts_of(dimensions)
        if fits is not None:
            for layout in self.tiles.layouts:
                _check_tile_size(layout.tile_size, fits)

    def _at_scale(self, predict: Network, images: Tensor, scale: float) -> Tensor:
        size = images.shape[2:]
        scaled = resize(images.float(), self._scaled(size, scale)).to(images.dtype)
        return resize(predict(scaled), size)

    def _whole(self, margin: int, fits: Fits | None, predict: Network, images: Tensor) -> Tensor:
        """What `predict` says of whole images, continued so that its maps cover them."""
        size = images.shape[2:]
        covering = [n if fits is None else _fitting(n, fits) for n in size]
        if not margin and covering == [*size]:
            return predict(images)
        maps = predict(continued(images, covering, margin, self.border))
        return maps[:, :, *map(slice, size)]

    def _scaled(self, size: Sequence[int], scale: float) -> list[int]:
        if self.shorter_side is None:
            return [max(1, round(scale * n)) for n in size]
        side = max(1, int(scale * self.shorter_side))
        return [side * n // min(size) for n in size]  # rounded down, as torchvision's resizing of images does

    def _in_tiles(self, margin: int, fits: Fits | None, predict: Network, images: Tensor) -> Tensor:
        tiles = self.tiles
        assert tiles is not None
        self.check(images.ndim - 2, fits)
        border: Border = self.border if margin else "mirror"
        if self.padding == "mirror":
            return tiles(predict, images, margin, border)
        size = images.shape[2:]
        missing = [max(layout.tile_size - n, 0) for n, layout in zip(size, tiles.layouts_of(len(size)), strict=True)]
        borders = [border for m in reversed(missing) for border in (m // 2, m - m // 2)]  # of the last axis first
        maps = tiles(predict, F.pad(images, borders), margin, border)
        return maps[:, :, *(slice(m // 2, m // 2 + n) for n, m in zip(size, missing, strict=True))]

    def _merged_views(self, logits_of: Network, images: Tensor) -> Tensor:
        """Probabilities or logits of images or tiles, from all views of them."""
        if self.merge_flips == "average":
            return _mean(map(self._averaged, self._logits_of_views(logits_of, images)), len(self.views))
        logits = self._logits_of_views(logits_of, images)
        return self._averaged(_sum(logits) if self.merge_flips == "sum_logits" else _mean(logits, len(self.views)))

    def _logits_of_views(self, logits_of: Network, images: Tensor) -> Iterator[Tensor]:
        for view in self.views:
            yield view.undo(logits_of(view.apply(images)))

    def _logits(self, network: Network, margin: int, images: Tensor) -> Tensor:
        logits = network(images)
        if len(logits) != len(images) or [*logits.shape[2:]] != [n - 2 * margin for n in images.shape[2:]]:
            less = f" less its margin of {margin} at each border" if margin else ""
            raise ValueError(
                f"the network gave maps of {_sides(logits)} for images of {_sides(images)} (output shape "
                f"{tuple(logits.shape)} for input shape {tuple(images.shape)}): it must give one map a class at its "
                f"input's size{less}. Use padded convolutions, or a tile_size that the network keeps"
            )
        if self.average == "probabilities" and logits.shape[1] == 1:
            raise ValueError(
                "the network gave one map, whose softmax is 1 everywhere: turn the logit x of a foreground into the "
                "logits (0, x) of two classes, or average logits"
            )
        return logits.float()

    def _averaged(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1) if self.average == "probabilities" else logits


def _fitting(side: int, fits: Fits) -> int:
    """The least side of an output, `side` or more, that a network can give."""
    for candidate in range(side, side + _LARGEST_GRID):
        if fits(candidate):
            return candidate
    raise ValueError(f"the network can give no output of {side} to {side + _LARGEST_GRID - 1} pixels a side")


def _check_tile_size(side: int, fits: Fits) -> None:
    if fits(side):
        return
    nearest = [next((n for n in range(side, 0, -1) if fits(n)), None), _fitting(side, fits)]
    offered = " or ".join(str(n) for n in nearest if n is not None)
    raise ValueError(f"the network can give no tile of tile_size {side} along an axis: the nearest are {offered}")


def _sum(maps: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, maps)


def _mean(maps: Iterable[Tensor], count: int) -> Tensor:
    """The mean of `count` maps; of one that map itself, since a copy of a volume's would take as much again."""
    total = _sum(maps)
    return total if count == 1 else total.div_(count)


def _sides(images: Tensor) -> str:
    return "x".join(map(str, images.shape[2:]))
