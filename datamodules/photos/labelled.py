"""Labelled photos of any size, decoded whenever they are drawn: data sets too large to be decoded once."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.base import Split, SplitDataset
from datamodules.images.image_folder import ImageFolder, read_image
from datamodules.listing import list_paths
from datamodules.photos.augmentation import PhotoAugmentation, ResizedCentre
from datamodules.sampling import Key


class PhotoSource(Protocol):
    """Image files, wherever they lie."""

    @property
    def files(self) -> NDArray[Any]:
        """Their names, see `packed_names`."""

    def content(self, index: int) -> bytes:
        """What the file at this position holds, compressed as it was published.

        Raises:
            OSError: It cannot be read.
        """

    def place(self, index: int) -> str:
        """What messages call the file at this position."""

    def digest(self, members: Tensor) -> str:
        """A hex digest of the files at these positions (int64), in their order, found without decoding any."""


@dataclass(frozen=True)
class PhotoFiles:
    """Image files in a folder.

    Attributes:
        root: The folder.
        files: Their paths relative to it.
    """

    root: Path
    files: NDArray[Any]

    def content(self, index: int) -> bytes:
        return (self.root / self.files[index]).read_bytes()

    def place(self, index: int) -> str:
        return str(self.root / self.files[index])

    def digest(self, members: Tensor) -> str:
        """Of paths, sizes and times of change: asking for them takes a while where there are a million."""
        return list_paths(self.root, [self.files[index] for index in members.tolist()]).digest()


@dataclass(frozen=True)
class Part:
    """A published part of a data set.

    Attributes:
        photos: The images.
        labels: int64 (N,), their classes.
    """

    photos: PhotoSource
    labels: Tensor


@dataclass(frozen=True)
class LabelledPhotos:
    """A data set as it was found.

    Attributes:
        place: What messages call it.
        classes: What the data set calls each class, in the order of labels.
        class_names: What people call it.
        parts: `train`, and where they are there `val` and `test`.
    """

    place: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    parts: dict[Split, Part]


def packed_names(names: Sequence[str]) -> NDArray[Any]:
    """Strings as one array, to be indexed like a list.

    Every worker would copy a list of a million strings bit by bit, as it counts references to them.
    """
    return np.array(names, dtype=np.dtypes.StringDType())


class PhotoDataset(SplitDataset):
    """Batches of `image` uint8 (N, 3, H, W), channels last in memory, `label` int64 (N,) and `index` int64 (N,).

    Draws by `(epoch, index)` are augmented, draws by `index` alone are cut for evaluation.

    Args:
        part: Images and labels; `index` is a position in it.
        members: int64 (M,), the positions that belong to the data set, in order.
        cut: What evaluation makes of an image.
        augmentation: What training makes of it, of the same size; None: what evaluation does.
    """

    def __init__(
        self, part: Part, members: Tensor, cut: ResizedCentre, augmentation: PhotoAugmentation | None = None
    ) -> None:
        self.part = part
        self.members = members
        self.cut = cut
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        """A whole batch; in training all keys are of one epoch."""
        drawn = torch.tensor(keys).view(len(keys), -1)
        epoch = int(drawn[0, 0]) if drawn.shape[1] == 2 else None
        index = self.members[drawn[:, -1]]
        shape = (len(keys), 3, self.cut.image_size, self.cut.image_size)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        for row, position in enumerate(index.tolist()):
            images[row] = self._read(position, epoch)
        return {"image": images, "label": self.part.labels[index], "index": index}

    def digest(self) -> str:
        photos, labels = self.part.photos.digest(self.members), self.part.labels[self.members].tolist()
        return hashlib.blake2b(repr((photos, labels, self.cut)).encode(), digest_size=16).hexdigest()

    def _read(self, position: int, epoch: int | None) -> Tensor:
        photos = self.part.photos
        image = decode_photo(photos.content(position), photos.place(position))
        if epoch is None or self.augmentation is None:
            return self.cut(image)
        return self.augmentation(image, epoch, position)


class CutFolder(ImageFolder):
    """An `ImageFolder` of RGB images that are cut as evaluation cuts them, in place of being squashed."""

    def __init__(self, root: str | Path, cut: ResizedCentre) -> None:
        super().__init__(root, 3, None)
        self.native_size = False
        self.cut = cut

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        return {**item, "image": self.cut(item["image"])}


def decode_photo(content: bytes, place: str) -> Tensor:
    """What an image file holds as RGB uint8 (3, H, W).

    Raises:
        DamagedFileError: It cannot be decoded, or has more than 8 bits a channel; the message says `place`.
    """
    with warnings.catch_warnings():
        # Broken metadata of a photo whose pixels can be decoded.
        warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
        return read_image(_NamedContent(content, place), "RGB")


class _NamedContent(io.BytesIO):
    """A file in memory, which messages call by the place that it was read from."""

    def __init__(self, content: bytes, place: str) -> None:
        super().__init__(content)
        self.place = place

    def __str__(self) -> str:
        return self.place
