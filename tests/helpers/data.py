"""Tiny data sets, written in the layouts of the real ones."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def write_fashion_mnist(root: Path, train: int = 200, test: int = 51, unpacked: bool = False, seed: int = 0) -> Path:
    """Write `<root>/FashionMNIST/raw` with images that a network can learn: a random pattern a class, and noise.

    Args:
        root: What a data module takes as `root`.
        train: Number of training images, classes in turn.
        test: Number of test images.
        unpacked: Write plain idx files, which are read without a checksum (needed in another process, where
            `trust_fashion_mnist` does not reach). Otherwise the four `.gz` archives.
        seed: Of patterns and noise.

    Returns:
        The folder that holds the files.
    """
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    patterns = generator.integers(0, 200, (10, 28, 28))
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = patterns[labels] + generator.integers(0, 56, (count, 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            path = folder / f"{part}-{kind}-ubyte"
            if unpacked:
                path.write_bytes(content)
            else:
                path.with_suffix(".gz").write_bytes(gzip.compress(content, mtime=0))
    return folder


def idx_bytes(array: NDArray[np.integer]) -> bytes:
    """An array of values 0-255 as an idx file."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def trust_fashion_mnist(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the archives that now lie in `folder` the published ones, for this process."""
    from torchvision.datasets import FashionMNIST

    archives = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.glob("*.gz"))]
    monkeypatch.setattr(FashionMNIST, "resources", archives)


def write_image_folder(folder: Path, size: tuple[int, int] = (40, 30)) -> list[str]:
    """Write five images of different formats and modes, in sub-folders, beside files that are none.

    Args:
        folder: Is created.
        size: Width and height.

    Returns:
        The images' paths relative to `folder`, sorted.
    """
    images = {
        "a.png": "RGB",
        "b/c.JPG": "RGB",
        "b/d.tiff": "L",
        "b/e/palette.gif": "P",
        "z with space.png": "RGBA",
    }
    for index, (name, mode) in enumerate(images.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40 * index, 100, 200)).convert(mode).save(path)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "thumbnail.png").write_bytes(b"not an image")
    (folder / "._a.png").write_bytes(b"what macOS leaves beside a.png")
    return sorted(images)


def write_celeba(
    root: Path, train: int = 20, val: int = 5, test: int = 4, size: tuple[int, int] = (22, 27), seed: int = 0
) -> Path:
    """Write `<root>/celeba` in the official layout: 000001.jpg, ... of smooth random colours, and their partition.

    Args:
        root: What a data module takes as `root`.
        train: Number of training images (partition 0), which come first.
        val: Number of validation images (partition 1).
        test: Number of test images (partition 2).
        size: Width and height; the real ones have 178x218 pixels.
        seed: Of the colours.

    Returns:
        The folder that holds the images.
    """
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    partition = [0] * train + [1] * val + [2] * test
    names = [f"{number:06d}.jpg" for number in range(1, len(partition) + 1)]
    for name in names:
        corners = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        corners.resize(size, Image.Resampling.BILINEAR).save(folder / name, quality=95)
    lines = [f"{name} {part}\n" for name, part in zip(names, partition, strict=True)]
    (folder.parent / "list_eval_partition.txt").write_text("".join(lines))
    return folder
