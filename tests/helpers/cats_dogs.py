"""Tiny copies of Cats and Dogs in its three layouts: noisy photos of different sizes, reddish cats and bluish dogs."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"cat": (200, 90, 40), "dog": (40, 90, 200)}


def write_photo(path: Path, kind: str, seed: int) -> None:
    """Write a photo of a cat or a dog, 24-40 pixels high and wide; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, *kind.encode()])
    height, width = generator.integers(24, 41, 2)
    noise = generator.integers(-40, 41, (height, width, 3))
    Image.fromarray((np.array(COLOURS[kind]) + noise).clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=95)


def write_class_folders(
    root: Path, train: int = 10, test: int = 4, folder: str = "cats_dogs", names: tuple[str, str] = ("cat", "dog")
) -> Path:
    """Write `<root>/<folder>/{train,test}/{cat,dog}/cat.0.jpg`, ...

    Args:
        root: What a data module takes as `root`.
        train: Training images a class.
        test: Test images a class; 0: no test folder.
        folder: Name of the data set's folder.
        names: Names of the folders of cats and of dogs.

    Returns:
        The data set's folder.
    """
    for part, numbers in (("train", range(train)), ("test", range(train, train + test))):
        for kind, name in zip(COLOURS, names, strict=True):
            for number in numbers:
                write_photo(root / folder / part / name / f"{kind}.{number}.jpg", kind, number)
    return root / folder


def write_kaggle(root: Path, count: int = 10, unlabelled: int = 3, folder: str = "dogs-vs-cats") -> Path:
    """Write `<root>/<folder>/train/{cat,dog}.0.jpg`, ... and `test1/1.jpg`, ..., whose classes nobody knows.

    Args:
        root: What a data module takes as `root`.
        count: Labelled images a class.
        unlabelled: Images in test1.
        folder: Name of the data set's folder.

    Returns:
        The data set's folder.
    """
    for kind in COLOURS:
        for number in range(count):
            write_photo(root / folder / "train" / f"{kind}.{number}.jpg", kind, number)
    for number in range(1, unlabelled + 1):
        write_photo(root / folder / "test1" / f"{number}.jpg", "cat", number)
    (root / folder / "sampleSubmission.csv").write_text("id,label\n1,0\n")
    return root / folder


def write_microsoft(root: Path, count: int = 10) -> Path:
    """Write `<root>/PetImages/{Cat,Dog}/0.jpg`, ... with what is odd in the archive.

    That is: the two empty files, `Thumbs.db`, and among the cats a GIF (1.jpg), a BMP (2.jpg), a grey photo (3.jpg) and
    one with broken metadata (4.jpg).

    Args:
        root: What a data module takes as `root`.
        count: Images a class that can be decoded, at least 5.

    Returns:
        PetImages.
    """
    archive = root / "PetImages"
    for kind in COLOURS:
        folder = archive / kind.capitalize()
        for number in range(count):
            write_photo(folder / f"{number}.jpg", kind, number)
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    for name in ("Cat/666.jpg", "Dog/11702.jpg"):
        (archive / name).write_bytes(b"")
    cat = Image.new("RGB", (30, 26), COLOURS["cat"])
    cat.quantize(4).save(archive / "Cat/1.jpg", "GIF")
    cat.save(archive / "Cat/2.jpg", "BMP")
    cat.convert("L").save(archive / "Cat/3.jpg", "JPEG")
    metadata = Image.Exif()
    metadata[0x010E] = "a description of which the end is missing"
    cat.save(archive / "Cat/4.jpg", "JPEG", exif=metadata.tobytes()[:30])
    return archive
