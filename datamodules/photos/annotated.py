"""Photos and their masks in files, decoded one by one when they are drawn."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

import torch
from torch import Tensor

from datamodules.base import SplitDataset
from datamodules.images.image_folder import opened_image
from datamodules.images.masks import check_same_size
from datamodules.listing import first_ten, list_paths
from datamodules.photos.joint_augmentation import JointAugmentation, resize_image, resize_mask
from datamodules.sampling import Key


class Masks(Protocol):
    """The masks of some photos, by the position of each."""

    def read(self, position: int) -> Tensor:
        """uint8 (H, W): the class of each pixel, 255 where it is to be ignored.

        Raises:
            DamagedFileError: There is no such mask in the file.
        """

    def source(self, position: int) -> Path:
        """The file that a mask is read from, for messages."""

    def digest(self) -> str:
        """A hex digest that changes with the masks."""


@dataclass(frozen=True)
class MaskFiles:
    """Masks of which each is a file.

    Attributes:
        root: Their folder.
        files: Paths relative to it, or absolute.
        decode: Reads one.
    """

    root: Path
    files: Sequence[str]
    decode: Callable[[Path], Tensor]

    def read(self, position: int) -> Tensor:
        return self.decode(self.source(position))

    def source(self, position: int) -> Path:
        return self.root / self.files[position]

    def digest(self) -> str:
        return list_paths(self.root, list(self.files)).digest()


@dataclass(frozen=True)
class Photos:
    """The photos of a split, in the order of their data set.

    Attributes:
        root: Their folder.
        files: Paths relative to it.
        masks: Their masks; None: they have none, or these are not wanted.
    """

    root: Path
    files: Sequence[str]
    masks: Masks | None = None

    def read(self, position: int) -> tuple[Tensor, Tensor | None]:
        """An image, uint8 (3, H, W), and its mask, uint8 (H, W).

        The image has the pixels as they are stored, whatever its EXIF orientation says: so the masks were drawn.

        Raises:
            DamagedFileError: A file cannot be read, or the two are of different sizes.
        """
        from torchvision.transforms.v2 import functional

        path = self.root / self.files[position]
        with opened_image(path, "image") as file:
            image = functional.pil_to_tensor(file.convert("RGB"))
        if self.masks is None:
            return image, None
        mask = self.masks.read(position)
        check_same_size(path, image.shape[1:], self.masks.source(position), mask.shape)
        return image, mask


class AnnotatedPhotos(SplitDataset):
    """Photos of their own sizes, as batches of dictionaries: see `SegmentationDataModule`.

    Draws by `(epoch, index)` are augmented, and come in one size; draws by `index` alone are whole photos with their
    `file`, one a batch. `index` in a batch is the position in `photos`.

    Args:
        photos: What is published.
        members: int64 (M,), the positions that belong to the data set, in order; default: all.
        resize: The longer side of every image and mask in pixels, to which they are resized before anything else;
            None: as they are.
        augmentation: What is done in training; None: evaluation only.
    """

    native_size = True

    def __init__(
        self,
        photos: Photos,
        members: Tensor | None = None,
        resize: int | None = None,
        augmentation: JointAugmentation | None = None,
    ) -> None:
        self.photos = photos
        self.members = torch.arange(len(photos.files)) if members is None else members
        self.resize = resize
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.members)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """A whole batch.

        Raises:
            DamagedFileError: A file cannot be read, or an image and its mask are of different sizes.
            ValueError: Several photos are to be one batch without being cropped.
        """
        if isinstance(keys[0], int) and len(keys) > 1:
            raise ValueError(
                f"{len(keys)} photos of different sizes cannot be one batch: only training crops them. Evaluate with "
                "a batch size of 1, as the data module's own loaders do (overfit_batches replaces them)."
            )
        samples = [self._sample(key) for key in keys]
        batch: dict[str, Any] = {
            name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "file"
        }
        return {**batch, "file": [sample["file"] for sample in samples]} if "file" in samples[0] else batch

    def digest(self) -> str:
        files = [self.photos.files[position] for position in self.members.tolist()]
        masks = "" if self.photos.masks is None else self.photos.masks.digest()
        content = (self.resize, list_paths(self.photos.root, files).digest(), masks)
        return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()

    def _sample(self, key: Key) -> dict[str, Any]:
        epoch, place = (None, key) if isinstance(key, int) else key
        index = int(self.members[place])
        image, mask = self.photos.read(index)
        if self.resize is not None:
            factor = self.resize / max(image.shape[1:])
            image = resize_image(image, factor)
            mask = None if mask is None else resize_mask(mask, factor)
        if epoch is not None and self.augmentation is not None and mask is not None:
            image, mask = self.augmentation(image, mask, epoch, index)
        sample: dict[str, Any] = {"image": image, "index": torch.tensor(index)}
        if mask is not None:
            sample["mask"] = mask
        return sample if epoch is not None else {**sample, "file": self.photos.files[index]}


def check_present(root: Path, files: Sequence[str], what: str) -> None:
    """Refuse files that are not there; each folder is read once.

    Args:
        root: Their folder.
        files: Paths relative to it.
        what: Completes "lacks 3 of the 10 ...".

    Raises:
        FileNotFoundError: Counts what is missing, and names the first ten.
    """
    folders = {str(PurePath(file).parent) for file in files}
    present = {folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else set() for folder in folders}
    missing = [file for file in files if PurePath(file).name not in present[str(PurePath(file).parent)]]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks {len(missing):,} of the {len(files):,} {what}: {first_ten(missing)}. Fetch what is missing, "
            "or take it off the list."
        )
