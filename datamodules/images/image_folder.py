"""A folder of images without labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL import Image

BITS_PER_SAMPLE = 258  # of TIFF's tags
ORIENTATION = 274  # of EXIF's and TIFF's tags
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class DamagedFileError(OSError):
    """A file that is there but is not what it should be."""


class ImageFolder(Dataset):
    """All images below a folder, sorted by path, each resized to a square (its proportions are not kept), or as it is.

    Items are dictionaries with `image` uint8 (C, H, W) and `file`, the path relative to the folder. Hidden files and
    folders are left out; a photo is turned the way its EXIF orientation says.

    Args:
        root: The folder; sub-folders are searched too.
        in_channels: 1 (grey) or 3 (RGB); images are converted.
        image_size: Height and width in pixels; None: the native size of each image, so that a batch can hold only one.

    Attributes:
        native_size: Whether sizes differ from image to image.

    Raises:
        FileNotFoundError: The folder is missing or holds no image.
        DamagedFileError: On reading, an image cannot be decoded or has no 8-bit channels.
    """

    def __init__(self, root: str | Path, in_channels: int, image_size: int | None) -> None:
        self.root = Path(root).expanduser()
        self.mode = {1: "L", 3: "RGB"}[in_channels]
        self.image_size = image_size
        self.native_size = image_size is None
        self.files = find_images(self.root, "predict_root")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from torchvision.transforms.v2 import functional

        image = read_image(self.root / self.files[index], self.mode)
        if self.image_size is not None:
            image = functional.resize(image, [self.image_size, self.image_size], antialias=True)
        return {"image": image, "file": self.files[index]}


def find_images(root: Path, key: str) -> list[str]:
    """Paths, relative to `root`, of all images below it, sorted; hidden files and folders are left out.

    Raises:
        FileNotFoundError: The folder is missing or holds no image; the message names it and `key`, which set it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{key} is not a folder: {root}")
    files = sorted(_image_names(root))
    if not files:
        raise FileNotFoundError(f"{key} holds no image ({' '.join(EXTENSIONS)}): {root}")
    return files


def read_image(path: Path | BinaryIO, mode: str) -> Tensor:
    """Decode an image file to uint8 (C, H, W), as `open_image` does."""
    from torchvision.transforms.v2 import functional

    return functional.pil_to_tensor(open_image(path, mode))


def open_image(path: Path | BinaryIO, mode: str, annotated: bool = False) -> Image.Image:
    """Decode an image file to `mode`, PIL's "L" or "RGB", turned the way its EXIF orientation says.

    Grey and palette images become RGB and the other way round; an alpha channel is left out, as torchvision's loader
    does, so transparent pixels show the colour that is stored under them.

    Args:
        path: The file.
        mode: "L" or "RGB".
        annotated: Refuse what leaves open where pixels lie or what they show: images that are to be turned, as their
            annotations are not, and pixels that are not opaque.

    Raises:
        DamagedFileError: The file cannot be decoded, has more than 8 bits a channel, or is not fit to be `annotated`;
            the message names it.
    """
    from PIL import ImageOps

    with opened_image(path, "image") as image:
        deep, turned = more_than_8_bits(image), image.getexif().get(ORIENTATION, 1) != 1
        upright = ImageOps.exif_transpose(image)
        if "transparency" in upright.info:  # of a palette; dropping it without a detour makes PIL warn
            upright = upright.convert("RGBA")
        transparent = "A" in upright.getbands() and upright.getchannel("A").getextrema() != (255, 255)
        converted = upright.convert(mode)
    if deep:  # converting would cut everything above 255
        raise DamagedFileError(f"The image {path} has more than 8 bits a channel: convert it to 8 bits first.")
    if annotated and turned:
        raise DamagedFileError(
            f"The image {path} is to be turned, as its orientation tag says, and its annotations have no such tag. "
            "Save it the way it is to be seen, without the tag."
        )
    if annotated and transparent:
        raise DamagedFileError(
            f"The image {path} has an alpha channel with transparent pixels: what their colour is to be is not known. "
            "Save it without the alpha channel."
        )
    return converted


@contextmanager
def opened_image(path: Path | BinaryIO, kind: str) -> Iterator[Image.Image]:
    """An image file to decode within the block.

    Raises:
        DamagedFileError: Whatever goes wrong within the block; the message names the file, and says what `kind` it is.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise DamagedFileError(f"Cannot read the {kind} {path}: {error}. Repair or remove it.") from error


def more_than_8_bits(image: Image.Image) -> bool:
    """Whether an image that was opened, and not decoded yet, has more than 8 bits a channel.

    PIL has no mode for colours of 16 bits and cuts them to 8 without a word: only the way in which pixels lie in the
    file tells.
    """
    if image.mode.startswith(("I", "F")):
        return True
    if max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)), default=8) > 8:
        return True
    layouts = [tile[3] if isinstance(tile[3], str) else (tile[3] or [""])[0] for tile in getattr(image, "tile", [])]
    return any(re.search(";16[BLN]$", str(layout)) for layout in layouts)  # not BGR;16: that is 16 bits a pixel


def _image_names(folder: str | Path, prefix: str = "") -> Iterator[str]:
    # Not pathlib's rglob: it asks the file system about every file, which takes long for hundreds of thousands.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _image_names(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                yield prefix + entry.name
