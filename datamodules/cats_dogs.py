"""Photos of cats and dogs, in the layouts that they are published in."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from datamodules.base import Split
from datamodules.images.crop import Crop
from datamodules.images.image_folder import DamagedFileError, find_images
from datamodules.images.mapped_images import PARTITIONS, Catalogue, MappedDataModule
from datamodules.listing import list_paths
from datamodules.splits import stratified_split

Layout = Literal["auto", "class_folders", "kaggle", "microsoft"]

CLASSES = ("cat", "dog")
FOLDERS = ("cats_dogs", "cats_and_dogs", "dogs-vs-cats", "dogs_vs_cats", "dogs-vs-cats-redux-kernels-edition")
"""Where `train/` is looked for, below the root."""
ARCHIVE_FOLDERS = ("kagglecatsanddogs_5340", "kagglecatsanddogs_3367a")
"""Where `PetImages/` is looked for below the root, besides the root itself and `FOLDERS`."""
KNOWN_CORRUPT = ("PetImages/Cat/666.jpg", "PetImages/Dog/11702.jpg")
"""Files of 0 bytes in the Microsoft archive."""
PUBLISHED_AT = "https://www.kaggle.com/c/dogs-vs-cats and https://www.microsoft.com/download/details.aspx?id=54765"


class CatsDogsDataModule(MappedDataModule):
    """25,000 photos of cats and dogs from Kaggle's Dogs vs. Cats (Asirra; Elson, Douceur, Howell and Saul, 2007).

    Three layouts are found by themselves below `root`:

    - `class_folders`: `cats_dogs/train/{cat,dog}/` and, as the test set, `cats_dogs/test/{cat,dog}/`;
    - `kaggle`: `dogs-vs-cats/train/cat.0.jpg`, ... as in Kaggle's zip, whose own test images have no labels (set
      `predict_root` to `dogs-vs-cats/test1` to classify them);
    - `microsoft`: `PetImages/{Cat,Dog}/`, the public archive. Two of its files are empty and always left out.

    Folders of classes may be named in the plural or with capitals; `FOLDERS` and `ARCHIVE_FOLDERS` list the names that
    are accepted for the data set's folder. Where there is no test folder, test images are taken from the training
    images. All subsets are stratified, and functions of the seed.

    `prepare_data` decodes, cuts and resizes all images once, into a `MemoryMap` in `cache_root`: 3.8 GB for 25,000
    images at 224 pixels. Batches hold `image` uint8 (N, 3, H, W), `label` int64 (N,) (0 cat, 1 dog) and `index` (N,),
    the position in the list: training images before test images, each in the order of their paths. On the device images
    are normalised by the mean and standard deviation of ImageNet. Batches of prediction hold `image` and `file`, the
    path below the data set's folder (or below `predict_root`).

    Files are decoded by their content, whatever their name says; images of any mode become RGB.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead; 0 is fastest here.
        train_size: Number of training images, a stratified subset f(seed); default: all outside `val_size`. With one
            seed a smaller subset is part of a larger one.
        val_size: Number of validation images taken from the training images, f(seed); 0: no validation; default
            (null): a tenth of the training images, rounded up.
        test_size: Number of test images taken from all images, f(seed), where the layout has no test folder; default
            (null): a tenth, rounded up. With a test folder it must stay null.
        seed: Seed of subsets, order and mirroring; default: that of `seed_everything`, else 0.
        layout: `class_folders`, `kaggle` or `microsoft` where several are there; default: the one that is.
        image_size: Height and width of the square, in pixels.
        crop: What becomes the square. A fraction, above 0 and at most 1: the central square whose side is this fraction
            of the image's shorter side. 1 (default) is the largest square; 0.875 is the usual evaluation on ImageNet
            (shorter side 256, centre 224). `as_published`: the whole image, squashed.
        enlarge: Enlarge images whose crop is smaller than `image_size`, as about a tenth of them are at 224 pixels.
            Otherwise they are an error.
        flip: Mirror half of the training images of each epoch left to right, f(seed, epoch, index).
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.
        predict_root: Folder of images to predict, searched recursively; they are cut like the others. Default: predict
            the test set.
        skip_damaged: Leave out images that cannot be decoded, with a warning that names them. Otherwise they are an
            error that names the first and counts them.
        cache_root: Where memory maps are kept; default $CONVSUITE_CACHE, else ~/.cache/convsuite.

    Raises:
        ValueError: A value is out of range.
    """

    in_channels = 3
    num_classes = len(CLASSES)
    class_names = CLASSES
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    cache_folder = "cats_dogs"
    counts_damaged = True

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int | None = None,
        test_size: int | None = None,
        seed: int | None = None,
        layout: Layout = "auto",
        image_size: int = 224,
        crop: Crop = 1.0,
        enlarge: bool = True,
        flip: bool = True,
        drop_last: bool = False,
        predict_root: str | None = None,
        skip_damaged: bool = False,
        cache_root: str | None = None,
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            train_size=train_size,
            val_size=val_size,
            seed=seed,
            predict_root=predict_root,
            drop_last=drop_last,
            image_size=image_size,
            crop=crop,
            enlarge=enlarge,
            flip=flip,
            skip_damaged=skip_damaged,
            cache_root=cache_root,
        )
        if test_size is not None and test_size < 0:
            raise ValueError(f"test_size must be 0 (no test images) or more, got {test_size}.")
        if layout not in get_args(Layout):
            raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}.")
        self.test_size = test_size
        self.layout = layout

    def list_images(self) -> Catalogue:
        copy = find_copy(Path(self.root), self.layout)
        files: list[str] = []
        labels: list[int] = []
        splits: list[int] = []
        for part in copy.parts:
            found, classes = copy.images(part)
            files += found
            labels += classes
            splits += [PARTITIONS["test" if part == "test" else "train"]] * len(found)
        if copy.layout == "microsoft" and self._prepared is None:  # said once
            corrupt = [file for file in KNOWN_CORRUPT if (copy.folder / file).exists()]
            rank_zero_info(f"Corrupt as published, and left out of {copy.folder}: {', '.join(corrupt) or 'none'}.")
        partition = torch.tensor(splits)
        if "test" not in copy.parts:
            partition[self._carved_test(torch.tensor(labels))] = PARTITIONS["test"]
        elif self.test_size is not None:
            raise ValueError(
                f"test_size ({self.test_size}) is for layouts without a test folder: the test set is "
                f"{copy.folder / 'test'}. Leave test_size null."
            )
        return Catalogue(list_paths(copy.folder, files), partition, torch.tensor(labels))

    def validation_size(self, available: int) -> int:
        return _tenth(available) if self.val_size is None else self.val_size

    def how_to_fill(self, split: Split) -> str:
        if split == "test" and self.test_size == 0:
            return "test_size is 0: there is nothing to test. Set test_size, or use another split."
        return super().how_to_fill(split)

    def _carved_test(self, labels: Tensor) -> Tensor:
        """Positions (int64) of the images that are for the test."""
        test_size = _tenth(len(labels)) if self.test_size is None else self.test_size
        if test_size >= len(labels):
            raise ValueError(
                f"test_size ({test_size}) leaves no training images: there are {len(labels)} images in all. Choose a "
                "smaller one."
            )
        return stratified_split(labels, None, test_size, self.seed)[1]


def _class_of_folder(file: str) -> int | None:
    """By the first folder of the path: cat, cats, Cat, ..."""
    name = file.split("/")[0].lower().removesuffix("s")
    return CLASSES.index(name) if name in CLASSES else None


def _class_of_name(file: str) -> int | None:
    """By the name of the file: cat.0.jpg."""
    match = re.fullmatch(r"(cat|dog)\.\d+\.\w+", file.split("/")[-1])
    return CLASSES.index(match[1]) if match else None


_NAMING: dict[Layout, tuple[Callable[[str], int | None], str]] = {
    "class_folders": (_class_of_folder, "the folders cat/ and dog/"),
    "kaggle": (_class_of_name, "cat.0.jpg, dog.0.jpg, ..."),
    "microsoft": (_class_of_folder, "the folders Cat/ and Dog/"),
}
"""How a path tells the class, and how users read of it."""


@dataclass(frozen=True)
class Copy:
    """The data set as it lies on disk.

    Attributes:
        layout: What it looks like.
        folder: Its folder.
        parts: The sub-folders with labelled images: `train`, and where there is one `test`; or `PetImages`.
    """

    layout: Layout
    folder: Path
    parts: tuple[str, ...]

    def images(self, part: str) -> tuple[list[str], list[int]]:
        """Paths (below `folder`, sorted) and classes of the images in a part, without `KNOWN_CORRUPT`.

        Raises:
            FileNotFoundError: There is no image at all, or none of a class.
            DamagedFileError: A file belongs to no class; the first is named, and all are counted.
        """
        class_of, expected = _NAMING[self.layout]
        place = f"{self.folder / part} (layout {self.layout})"
        names = [name for name in find_images(self.folder / part, part) if f"{part}/{name}" not in KNOWN_CORRUPT]
        labels = [class_of(name) for name in names]
        strangers = [name for name, label in zip(names, labels, strict=True) if label is None]
        if strangers:
            raise DamagedFileError(
                f"{self.folder / part / strangers[0]} belongs to no class ({len(strangers):,} such files in all): "
                f"expected {expected} in {place}. Rename or remove them."
            )
        for number, name in enumerate(CLASSES):
            if number not in labels:
                raise FileNotFoundError(f"There is no image of a {name}: expected {expected} in {place}.")
        return [f"{part}/{name}" for name in names], [label for label in labels if label is not None]


def find_copy(root: Path, layout: Layout) -> Copy:
    """The copy of the data set below `root` in this layout ("auto": in any).

    Raises:
        FileNotFoundError: There is none; the message lists what was looked for.
        ValueError: There are several.
    """
    found = [copy for copy in _copies(root) if layout in ("auto", copy.layout)]
    if not found:
        raise FileNotFoundError(
            f"There are no cats and dogs{'' if layout == 'auto' else f' in the layout {layout}'} in {root.absolute()}. "
            f"Looked for train/ with {_NAMING['kaggle'][1]} (kaggle) or with {_NAMING['class_folders'][1]} "
            f"(class_folders) in {', '.join(FOLDERS)}; and for PetImages/ (microsoft) there, in root itself, and in "
            f"{', '.join(ARCHIVE_FOLDERS)}. "
            "Set root or CONVSUITE_DATA to the folder that holds one of these, all zip files unpacked (published at "
            f"{PUBLISHED_AT})."
        )
    if len(found) > 1:
        places = ", ".join(f"{copy.folder} ({copy.layout})" for copy in found)
        raise ValueError(
            f"There are several copies of cats and dogs: {places}. Choose one with layout, or move the others out of "
            f"{root.absolute()}."
        )
    return found[0]


def _copies(root: Path) -> Iterator[Copy]:
    for folder in (root / name for name in FOLDERS):
        if not (folder / "train").is_dir():
            continue
        # Names first: asking the file system about each of 25,000 files takes long.
        if not any(_class_of_folder(path.name) is not None and path.is_dir() for path in (folder / "train").iterdir()):
            yield Copy("kaggle", folder, ("train",))
        else:
            yield Copy("class_folders", folder, ("train", "test") if (folder / "test").is_dir() else ("train",))
    for folder in (root, *(root / name for name in (*ARCHIVE_FOLDERS, *FOLDERS))):
        if (folder / "PetImages").is_dir():
            yield Copy("microsoft", folder, ("PetImages",))


def _tenth(count: int) -> int:
    """Rounded up, so that a small data set has one too."""
    return -(-count // 10)
