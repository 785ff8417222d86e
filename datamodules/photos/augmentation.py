"""What training and evaluation make of a photo: a square of one size, uint8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from datamodules.sampling import draws_for

RGB_EIGENVALUES = (0.2175, 0.0188, 0.0045)
RGB_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Of the covariance of ImageNet's pixels, RGB in [0, 1]: a row a channel, a column an eigenvector."""


@dataclass(frozen=True)
class ResizedCentre:
    """Resizes the shorter side, bilinear and antialiased, and cuts out the central square: torchvision's evaluation.

    Attributes:
        image_size: Height and width in the end, in pixels.
        resize_size: The shorter side before the square is cut out, in pixels.

    Raises:
        ValueError: A size is out of range.
    """

    image_size: int
    resize_size: int

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}.")
        if self.resize_size < self.image_size:
            raise ValueError(
                f"resize_size ({self.resize_size}) must be at least image_size ({self.image_size}), which is cut out "
                "of what it makes; null stands for image_size."
            )

    def __call__(self, image: Tensor) -> Tensor:
        """An image uint8 (3, H, W) of any size as uint8 (3, image_size, image_size)."""
        from torchvision.transforms.v2 import functional

        resized = functional.resize(image, [self.resize_size], antialias=True)
        return functional.center_crop(resized, [self.image_size, self.image_size])


@dataclass(frozen=True)
class PhotoAugmentation:
    """The augmentation that ResNets are trained on ImageNet with, f(seed, epoch, index) for each image.

    A crop of random area and aspect ratio, resized (Szegedy et al., 2015); a mirror image for one in two; changes of
    brightness, contrast and saturation, in random order; `Lighting`.

    Attributes:
        seed: Seed of all draws.
        image_size: Height and width in the end, in pixels.
        crop_scale: Smallest and largest area of the crop, as fractions of the image's. Its aspect ratio is 3/4 to 4/3.
        flip: Whether to mirror left to right.
        colour_jitter: c: brightness, contrast and saturation are each multiplied by a number in [1 - c, 1 + c].
        lighting: Standard deviation in `Lighting`.

    Raises:
        ValueError: A value is out of range.
    """

    seed: int
    image_size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    colour_jitter: float = 0.4
    lighting: float = 0.1

    def __post_init__(self) -> None:
        smallest, largest = self.crop_scale
        if not 0 < smallest <= largest <= 1:
            raise ValueError(
                "crop_scale must be the smallest and the largest area of a crop, as fractions of the image's: two "
                f"numbers in order, above 0 and at most 1; got {list(self.crop_scale)}."
            )
        if not 0 <= self.colour_jitter <= 1:
            raise ValueError(f"colour_jitter must be 0 (off) to 1, got {self.colour_jitter}.")
        if self.lighting < 0:
            raise ValueError(f"lighting must be 0 (off) or more, got {self.lighting}.")

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """An image uint8 (3, H, W) of any size as uint8 (3, image_size, image_size)."""
        with draws_for("augment", self.seed, epoch, index):
            return self._transform(image)

    @cached_property
    def _transform(self) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2

        steps: list[Callable[[Tensor], Tensor]] = [
            v2.RandomResizedCrop(self.image_size, tuple(self.crop_scale), antialias=True)
        ]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.colour_jitter:
            steps.append(v2.ColorJitter(self.colour_jitter, self.colour_jitter, self.colour_jitter))
        if self.lighting:
            steps.append(Lighting(self.lighting))
        return v2.Compose(steps)


@dataclass(frozen=True)
class Lighting:
    """Noise along the principal axes of colour, the same for all pixels of an image (Krizhevsky et al., 2012, 4.1).

    sum_i alpha_i lambda_i p_i is added to the RGB values, which count from 0 to 1, with alpha_i ~ N(0, std) and the
    eigenvalues lambda_i and eigenvectors p_i of the covariance of ImageNet's pixels.

    Attributes:
        std: Standard deviation of alpha; 0.1 as published.
    """

    std: float

    def __call__(self, image: Tensor) -> Tensor:
        """`image` uint8 (3, H, W) with the noise, rounded and clipped to 0 and 255."""
        strength = self.std * torch.randn(3) * torch.tensor(RGB_EIGENVALUES)
        shift = (255 * torch.tensor(RGB_EIGENVECTORS) @ strength).round().to(torch.int16)
        return (image.to(torch.int16) + shift[:, None, None]).clamp_(0, 255).to(torch.uint8)
