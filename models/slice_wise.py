"""`slice_wise`: a network of images for volumes: slice by slice (2-D), or with neighbouring slices (2.5-D)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs import Variant
from models.registry import create_model, register_model
from models.trial import IMAGE_SIDE


@register_model("slice_wise")
class SliceWise(nn.Module):
    """Maps volumes (N, in_channels, X, Y, Z) to logits (N, num_classes, X, Y, Z), each slice by a network of images.

    A slice is seen with its neighbours: the `slices` nearest ones along `axis` are channels of one image, those of the
    first modality in order, then those of the second and so on. With one slice that is 2-D, with more what is called
    2.5-D. Beyond the ends of a volume slices are zero, as a padded convolution has them.

    A network without padding makes slices smaller at all their borders by `margin`. The volume then loses as many
    slices, so that volumes lose the same along each axis, and neighbours are always image data.

    Args:
        network: The name of a network of images.
        network_options: Options of that network.
        slices: Slices that are seen at once, odd.
        axis: Across which slices lie: 0, 1 or 2 for X, Y or Z.
        batch_size: Slices in a pass in evaluation, which bounds memory. In training all go at once.

    Attributes:
        dimensions: 3.
        margin: Voxels that the logits are smaller than the volume at each border.
        multiple: Shifting a volume by so many voxels shifts the logits.
        image_shape: (in_channels, X, Y, Z) of an input that fits.

    Raises:
        ValueError: An option is out of range, or a network without padding loses less than the neighbours take. When
            called, the input is no volume, or too small.
    """

    dimensions = 3

    def __init__(
        self,
        *,
        conv: Variant,
        network: str,
        in_channels: int = 1,
        num_classes: int = 2,
        network_options: dict[str, Any] | None = None,
        slices: int = 1,
        axis: int = 2,
        batch_size: int = 16,
    ) -> None:
        super().__init__()
        if slices < 1 or slices % 2 == 0:
            raise ValueError(f"slices must be odd and positive, one and as many on both sides; got {slices}")
        if axis not in (0, 1, 2):
            raise ValueError(f"axis must be 0, 1 or 2, got {axis}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 slice, got {batch_size}")
        self.slices = slices
        self.axis = axis
        self.batch_size = batch_size
        self.network = create_model(
            network, conv, in_channels=in_channels * slices, num_classes=num_classes, **(network_options or {})
        )
        self.margin: int = getattr(self.network, "margin", 0)
        self.multiple: int = getattr(self.network, "multiple", 1)
        if 0 < self.margin < slices // 2:
            raise ValueError(
                f"slices {slices} reach {slices // 2} to each side, and {network!r} loses {self.margin} voxels: choose "
                f"at most {2 * self.margin + 1} slices, or a padded network"
            )
        _, *sides = getattr(self.network, "image_shape", (in_channels, IMAGE_SIDE, IMAGE_SIDE))
        sides.insert(axis, 2 * self.margin + 1)
        self.image_shape = (in_channels, *sides)

    def fits(self, output_side: int) -> bool:
        """Whether the logits can have so many voxels along an axis."""
        fits = getattr(self.network, "fits", None)
        return fits is None or fits(output_side)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5:
            raise ValueError(f"slice_wise takes volumes (N, C, X, Y, Z), got shape {tuple(x.shape)}")
        images = self._images(x.movedim(2 + self.axis, 1))
        parts = [images] if self.training else images.split(self.batch_size)
        logits = torch.cat([self.network(part) for part in parts])
        return logits.unflatten(0, (len(x), -1)).movedim(1, 2 + self.axis)

    def _images(self, x: Tensor) -> Tensor:
        """Slices (N, S, C, H, W) with their neighbours as images (N * S', C * slices, H, W)."""
        reach = self.slices // 2
        if self.margin:
            surplus = self.margin - reach
            if x.shape[1] <= 2 * self.margin:
                raise ValueError(f"slice_wise needs more than {2 * self.margin} slices, got {x.shape[1]}")
            x = x.narrow(1, surplus, x.shape[1] - 2 * surplus)
        else:
            x = F.pad(x, [0] * 6 + [reach] * 2)
        return x.unfold(1, self.slices, 1).movedim(-1, 3).flatten(2, 3).flatten(0, 1)
