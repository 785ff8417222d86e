"""What the segmentation networks share: features are extracted, then every voxel is classified; padding and its grid.

J. Bertels, D. Robben, R. Lemmens and D. Vandermeulen, "Convolutional neural networks for medical image segmentation".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs import Variant
from models.names import check_name
from models.patch_sizes import check_output_side, output_sides
from models.trial import IMAGE_SIDE

Padding = Literal["same", "valid", "mirror"]


class VoxelwiseNetwork(nn.Module, ABC):
    """A network m = m_c o m_e that extracts features and then classifies each voxel by its own (eq. 5 of the paper).

    Maps images (N, in_channels, H, W), with `dimensions` 3 volumes (N, in_channels, X, Y, Z), to logits of their size
    or, where nothing is padded, of what is left of it. Voxels stand for pixels too.

    - "same": every convolution pads its maps with zeros. Any size is taken, and the logits have it.
    - "valid": nothing is padded, and each logit rests on image data alone. The logits are smaller than the image by
      `margin` voxels at every border. Inputs must fit the grid (`fits`, and `models.patch_sizes`).
    - "mirror": as "valid" on an image that is continued by its mirror image, so that the logits have its size. Any size
      above the voxels that are mirrored is taken.

    Pooling lays a grid over the image: features of a coarse map are the same for all voxels of a block. Images that the
    blocks do not divide are enlarged for "same" and "mirror", at the end of each axis by repeating the last voxels, and
    the logits are cropped. With the same weights all three agree where no border is in sight, provided that their
    blocks coincide: a valid network whose first output voxel stands at t of an image has the blocks of the padded one
    on the whole image if t + grid_start is a multiple of `multiple`, and so have two tiles whose starts differ by one.

    Attributes:
        dimensions: 2 or 3.
        padding: "same", "valid" or "mirror".
        margin: Voxels that the logits are smaller than the image at every border; 0 unless the padding is "valid".
        mirrored: Voxels of the mirror image at every border; 0 unless the padding is "mirror".
        multiple: Side of the grid's largest block: shifting an image by it shifts the logits (twice that with octave
            pairs, whose low members halve the maps once more).
        grid_start: Voxels from the first of the output to the first block that begins there or behind it.
        smallest: The output's longest side must have so many voxels.
        image_shape: (in_channels, *sides) of an input that fits.
    """

    def __init__(
        self,
        *,
        dimensions: int,
        in_channels: int,
        padding: Padding,
        lost: int,
        multiple: int,
        grid_start: int = 0,
        smallest: int = 1,
    ) -> None:
        """`lost` are the voxels that unpadded layers lose at each border, 0 with padding "same"."""
        super().__init__()
        check_name("padding", padding, get_args(Padding))
        self.dimensions = dimensions
        self.padding = padding
        self.margin = lost if padding == "valid" else 0
        self.mirrored = lost - self.margin
        self.multiple = multiple
        self.grid_start = grid_start % multiple
        self.smallest = smallest
        side = output_sides(self, max(IMAGE_SIDE, self.mirrored + 1), 1)[0] + 2 * self.margin
        self.image_shape = (in_channels, *[side] * dimensions)

    @abstractmethod
    def extract(self, x: Tensor) -> Any:
        """m_e: the image's features, at each voxel of what its neighbourhood, the receptive field, shows."""

    @abstractmethod
    def classify(self, features: Any) -> Tensor:
        """m_c: features to logits."""

    @abstractmethod
    def pathways(self) -> dict[str, nn.Module]:
        """Modules behind which each path through the image's scales ends, before it joins the others, by name."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classify(self.extract(x))
        return logits if self.padding == "valid" else window(logits, 0, x.shape[2:])

    def fits(self, output_side: int) -> bool:
        """Whether an output can have so many voxels along an axis: any number of them unless the padding is "valid"."""
        return output_side > 0 and (self.padding != "valid" or (output_side - 2 * self.grid_start) % self.multiple == 0)

    def continued(self, x: Tensor) -> Tensor:
        """The image, with its mirrored border, and with its last voxels repeated until its blocks are whole.

        Raises:
            ValueError: Another number of axes, or sides that are too small or do not fit the grid.
        """
        sides = x.shape[2:]
        self._check_sides(sides)
        if self.padding == "valid":
            return x
        if self.mirrored:
            x = F.pad(x, [self.mirrored] * (2 * len(sides)), mode="reflect")
        missing = [(2 * self.grid_start - side) % self.multiple for side in sides]
        if any(missing):
            x = F.pad(x, [pad for side in reversed(missing) for pad in (0, side)], mode="replicate")
        return x

    def _check_sides(self, sides: Sequence[int]) -> None:
        name, output = type(self).__name__, [side - 2 * self.margin for side in sides]
        if len(sides) != self.dimensions:
            raise ValueError(
                f"this {name} takes inputs (N, C, {'H, W' if self.dimensions == 2 else 'X, Y, Z'}), got "
                f"{len(sides)} spatial axes: set its option dimensions to {len(sides)}, or change the data"
            )
        for side in output:
            check_output_side(self, side)
        if min(sides) <= self.mirrored:
            raise ValueError(
                f"this {name} with padding 'mirror' mirrors {self.mirrored} voxels at each border: it takes images of "
                f"{self.mirrored + 1} or more a side, got {tuple(sides)}"
            )
        if max(output) < self.smallest:
            raise ValueError(
                f"this {name} takes images with a side of {self.smallest + 2 * self.margin} or more, since instance "
                f"norm needs more than one value in the coarsest map, got {tuple(sides)}"
            )


MAX_POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def window(x: Tensor, start: int, size: Sequence[int]) -> Tensor:
    """As many values as `size` says along each spatial axis, from index `start` on."""
    if x.shape[2:] == size:
        return x
    for dim, length in enumerate(size, start=2):
        x = torch.narrow(x, dim, start, length)
    return x


def centre(x: Tensor, lost: int) -> Tensor:
    """All but the first and the last `lost` values along each spatial axis."""
    return window(x, lost, [side - 2 * lost for side in x.shape[2:]]) if lost else x


def check_kernel_size(kernel_size: int, conv: Variant, padding: Padding) -> None:
    """Raise `ValueError` for an even kernel size, or one that the conv spec would change where nothing may pad."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if padding != "same" and conv.kernel_size not in (None, kernel_size):
        raise ValueError(
            f"kernel_size {conv.kernel_size} of the conv spec would pad where padding {padding!r} must not: give it as "
            "the network's kernel_size"
        )


@contextmanager
def naming_padding(padding: Padding) -> Iterator[None]:
    """Around the making of layers: what a variant refuses without padding is told with the option that asked for it."""
    try:
        yield
    except ValueError as error:
        if padding == "same":
            raise
        raise ValueError(f"padding {padding!r} (with 'same' the convolutions pad): {error}") from error
