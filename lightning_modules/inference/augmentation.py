"""Test-time augmentation: mirror images, turned images, and other sizes, each with the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

REFLECTIONS = {"horizontal": -1, "vertical": -2, "depth": -3}
"""Name to the axis that is reversed: columns, rows, slices."""

DIAGONAL = "diagonal"


@dataclass(frozen=True)
class Flip:
    """A symmetry of the pixel grid: an exchange of height and width, or none, then reflections of axes.

    Args:
        diagonal: Whether rows and columns are exchanged.
        axes: The axes that are reversed then.
    """

    diagonal: bool = False
    axes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, name: str) -> Flip:
        """The flip that has this name: reflections joined by "+".

        "horizontal" reverses columns, "vertical" rows, "depth" the slices of volumes; "diagonal" exchanges rows and
        columns first, however the name is written. "horizontal+vertical" is half a turn, "diagonal+vertical" a quarter
        turn to the left, "diagonal+horizontal" one to the right.

        Raises:
            ValueError: A part is unknown, or stands twice.
        """
        parts = name.split("+")
        known = [*REFLECTIONS, DIAGONAL]
        if len(set(parts)) < len(parts) or not set(parts) <= set(known):
            raise ValueError(f"flips: {name!r} is not one of {', '.join(known)}, nor several of them joined by '+'")
        return cls(DIAGONAL in parts, tuple(axis for part, axis in REFLECTIONS.items() if part in parts))

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) or (N, C, D, H, W), flipped.

        Raises:
            ValueError: A flip of the depth meets images that have none.
        """
        if REFLECTIONS["depth"] in self.axes and images.ndim != 5:
            raise ValueError(
                f"flips: 'depth' is for volumes (N, C, D, H, W), got images of shape {tuple(images.shape)}"
            )
        images = images.transpose(-1, -2) if self.diagonal else images
        return images.flip(self.axes) if self.axes else images

    def undo(self, maps: Tensor) -> Tensor:
        """Maps of flipped images as maps of the images themselves."""
        maps = maps.flip(self.axes) if self.axes else maps
        return maps.transpose(-1, -2) if self.diagonal else maps


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images or maps (N, C, H, W) or (N, C, D, H, W) resampled to `size`, linearly along each axis.

    Pixels are areas (corners are not aligned), and where the size shrinks the filter widens with the step
    (antialiasing), as PIL and torchvision's transforms of training images do it. An axis that keeps its length keeps
    its values; probabilities stay probabilities.
    """
    if tuple(size) == tuple(images.shape[2:]):
        return images
    if images.ndim == 4:
        return F.interpolate(images, size=tuple(size), mode="bilinear", antialias=True)
    depth, height, width = size  # the filter is separable: slices first, then the depth
    slices = resize(images.flatten(1, 2), (height, width))
    columns = resize(slices.view(*images.shape[:3], -1), (depth, height * width))
    return columns.view(*images.shape[:2], depth, height, width)
