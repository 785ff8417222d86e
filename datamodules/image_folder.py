"""A folder of images without labels."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class DamagedFileError(OSError):
    """A file that is there but is not what it should be."""


class ImageFolder(Dataset):
    """All images below a folder, sorted by path, each resized to a square (its proportions are not kept).

    Items are dictionaries with `image` uint8 (C, H, W) and `file`, the path relative to the folder. Hidden files and
    folders are left out; a photo is turned the way its EXIF orientation says.

    Args:
        root: The folder; sub-folders are searched too.
        in_channels: 1 (grey) or 3 (RGB); images are converted.
        image_size: Height and width in pixels.

    Raises:
        FileNotFoundError: The folder is missing or holds no image.
        DamagedFileError: On reading, an image cannot be decoded or has no 8-bit channels.
    """

    def __init__(self, root: str | Path, in_channels: int, image_size: int) -> None:
        self.root = Path(root).expanduser()
        self.mode = {1: "L", 3: "RGB"}[in_channels]
        self.image_size = image_size
        if not self.root.is_dir():
            raise FileNotFoundError(f"predict_root is not a folder: {self.root}")
        self.files = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if _is_image(path))
        self.files = [file for file in self.files if not any(part.startswith(".") for part in file.split("/"))]
        if not self.files:
            raise FileNotFoundError(f"predict_root holds no image ({' '.join(EXTENSIONS)}): {self.root}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from torchvision.transforms.v2 import functional

        image = read_image(self.root / self.files[index], self.mode)
        return {
            "image": functional.resize(image, [self.image_size, self.image_size], antialias=True),
            "file": self.files[index],
        }


def read_image(path: Path, mode: str) -> Tensor:
    """Decode an image file to uint8 (C, H, W); `mode` is PIL's, "L" or "RGB".

    Raises:
        DamagedFileError: Names the file.
    """
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith(("I", "F"))
            converted = ImageOps.exif_transpose(image).convert(mode)
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise DamagedFileError(f"Cannot read the image {path}: {error}. Repair or remove it.") from error
    if deep:  # converting would cut everything above 255
        raise DamagedFileError(f"The image {path} has more than 8 bits a channel: convert it to 8 bits first.")
    return functional.pil_to_tensor(converted)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()
