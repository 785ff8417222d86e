"""What training does to a photo and its mask together: scaled, cropped, mirrored and turned, one sample at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.images.masks import IGNORE_INDEX
from datamodules.sampling import draws_for

if TYPE_CHECKING:
    from torchvision.transforms import v2


@dataclass(frozen=True)
class JointAugmentation:
    """The augmentation of Stacked U-Nets (appendix B of the paper), f(seed, epoch, index) for each sample.

    In this order, which the paper leaves open and its published code settles:

    1. both sides are multiplied by one factor, uniform in `scale`;
    2. what is smaller than the crop is padded to it, evenly on both sides;
    3. a square of `crop_size` is cut out, all places being as likely;
    4. it is mirrored left to right with probability 1/2;
    5. it is turned about its centre by an angle uniform in [-rotation, rotation] degrees.

    Images are interpolated bilinearly, antialiased where they shrink (the published code turns them bicubically). What
    padding and turning bring in has the mean colour, which is 0 once it is normalised. Masks take the nearest value, so
    no class appears that was not there, and 255 where the image shows nothing.

    Attributes:
        seed: Seed of all draws.
        crop_size: Height and width of the result, in pixels.
        mean_colour: Red, green and blue, 0 to 255.
        scale: Smallest and largest factor; None: not scaled.
        flip: Whether to mirror.
        rotation: Largest angle, in degrees; 0: not turned.

    Raises:
        ValueError: A value is out of range.
    """

    seed: int
    crop_size: int
    mean_colour: tuple[int, int, int]
    scale: tuple[float, float] | None = (0.5, 2.0)
    flip: bool = True
    rotation: float = 10.0

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ValueError(f"crop_size must be at least 1 pixel, got {self.crop_size}.")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two factors above 0, the smaller first, or null, got {self.scale}.")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be 0 (off) to 180 degrees, got {self.rotation}.")

    def __call__(self, image: Tensor, mask: Tensor, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """`image` uint8 (3, H, W) and `mask` uint8 (H, W) as (3, crop_size, crop_size) and (crop_size, crop_size)."""
        from torchvision import tv_tensors

        with draws_for("augment", self.seed, epoch, index):
            if self.scale is not None:
                factor = torch.empty(()).uniform_(*self.scale).item()
                image, mask = resize_image(image, factor), resize_mask(mask, factor)
            image, mask = self._padded(image, mask)
            image, mask = self._cropped(tv_tensors.Image(image), tv_tensors.Mask(mask))
            image, mask = image.as_subclass(Tensor), mask.as_subclass(Tensor)
            return self._turned(image, mask) if self.rotation else (image, mask)

    def _padded(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2 import functional

        height, width = mask.shape
        down, across = max(self.crop_size - height, 0), max(self.crop_size - width, 0)
        if not (down or across):
            return image, mask
        padding = [across // 2, down // 2, across - across // 2, down - down // 2]
        return (
            functional.pad(image, padding, fill=list(self.mean_colour)),
            functional.pad(mask[None], padding, fill=IGNORE_INDEX)[0],
        )

    @cached_property
    def _cropped(self) -> v2.Compose:
        from torchvision.transforms import v2

        transforms: list[v2.Transform] = [v2.RandomCrop(self.crop_size)]
        return v2.Compose([*transforms, v2.RandomHorizontalFlip()] if self.flip else transforms)

    def _turned(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        angle = torch.empty(()).uniform_(-self.rotation, self.rotation).item()
        # What comes in is 0 here. Given a colour to fill with, torchvision darkens the seam by up to a quarter: it has
        # black in its interpolation already when the colour is blended in.
        mean = torch.tensor(self.mean_colour, dtype=torch.float32)[:, None, None]
        image = functional.rotate(image - mean, angle, InterpolationMode.BILINEAR) + mean
        mask = functional.rotate(mask[None] - float(IGNORE_INDEX), angle, InterpolationMode.NEAREST)[0] + IGNORE_INDEX
        return image.round().to(torch.uint8), mask.to(torch.uint8)


def resize_image(image: Tensor, factor: float) -> Tensor:
    """An image uint8 (C, H, W) with both sides `factor` times as long, bilinear and antialiased."""
    from torchvision.transforms.v2 import functional

    return functional.resize(image, _scaled(image, factor), antialias=True)


def resize_mask(mask: Tensor, factor: float) -> Tensor:
    """A mask uint8 (H, W) with both sides `factor` times as long, the nearest value for each pixel."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    # The nearest to the centre of the new pixel, where a resized image has its values, too: plain "nearest", which
    # tv_tensors.Mask gets, takes the upper left corner, 1.5 pixels away where a side becomes a quarter.
    return functional.resize(mask[None], _scaled(mask, factor), interpolation=InterpolationMode.NEAREST_EXACT)[0]


def _scaled(pixels: Tensor, factor: float) -> list[int]:
    return [max(round(factor * length), 1) for length in pixels.shape[-2:]]
