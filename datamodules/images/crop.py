"""The square that is cut out of an image, and its size in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.images.image_folder import ImageFolder, open_image

Crop = float | Literal["as_published"]


@dataclass(frozen=True)
class SquareCrop:
    """Cuts a square out of an image and resizes it, bilinear and antialiased (PIL's filter).

    Attributes:
        crop: The side of the central square, as a fraction of the image's shorter side, in (0, 1]. "as_published": the
            whole image, squashed to a square.
        image_size: Height and width in the end, in pixels.
        enlarge: Whether what is cut out may be smaller than `image_size`.

    Raises:
        ValueError: A value is out of range.
    """

    crop: Crop
    image_size: int
    enlarge: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}.")
        if self.crop != "as_published" and not (isinstance(self.crop, int | float) and 0 < self.crop <= 1):
            raise ValueError(
                "crop must be a fraction of the image's shorter side, above 0 and at most 1, or as_published (the "
                f"whole image, squashed to a square); got {self.crop!r}."
            )

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of what is cut out of an image of this size, in pixels."""
        if self.crop == "as_published":
            return 0, 0, width, height
        side = max(round(self.crop * min(width, height)), 1)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The square of an image file, uint8 (image_size, image_size, 3).

        Raises:
            DamagedFileError: The file cannot be decoded, or has more than 8 bits a channel.
            ValueError: The image is too small; both sizes are named.
        """
        from PIL import Image

        image = open_image(path, "RGB")
        left, top, right, bottom = self.box(*image.size)
        if min(right - left, bottom - top) < self.image_size and not self.enlarge:
            raise ValueError(
                f"{path} is too small: it has {image.width}x{image.height} pixels, and its crop of "
                f"{right - left}x{bottom - top} would have to be enlarged to {self.image_size}x{self.image_size}. "
                "Choose a smaller image_size or a larger crop, or set enlarge: true to enlarge it all the same."
            )
        size = (self.image_size, self.image_size)
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


class CroppedFolder(ImageFolder):
    """An `ImageFolder` of RGB images that are cut as `square` says, in place of being squashed.

    Raises:
        ValueError: On reading, an image is too small, see `SquareCrop.read`.
    """

    def __init__(self, root: str | Path, square: SquareCrop) -> None:
        super().__init__(root, 3, square.image_size)
        self.square = square

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.tensor(self.square.read(self.root / self.files[index]))
        return {"image": pixels.permute(2, 0, 1), "file": self.files[index]}
