"""Images decoded once into a memory map: data sets that hand out whole batches of it, and their data module."""

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BaseDataModule, Split, SplitDataset
from datamodules.folders import cache_folder
from datamodules.images.crop import Crop, CroppedFolder, SquareCrop
from datamodules.images.decoding import decode_in_blocks
from datamodules.images.image_folder import DamagedFileError
from datamodules.images.memory_map import MemoryMap, Record
from datamodules.listing import Listing
from datamodules.sampling import Key, generator_for, process_place
from datamodules.splits import random_split, stratified_split

PARTITIONS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
"""The number of each split; those of CelebA's list_eval_partition.txt."""
DAMAGED_NAMED = 10  # in a message
MAP_VERSION = 1  # raised when the same files, crop and size are to give other pixels


class MappedImages(SplitDataset):
    """Batches of `image` uint8 (N, C, H, W), channels last in memory, and `index` int64 (N,), the position in the map.

    Where the images have labels, batches hold `label` int64 (N,) too. A copy in another process maps the file again and
    carries no image.

    Args:
        memory_map: The images, written already.
        members: int64 (M,), the positions that belong to the data set, in order.
        flip_seed: Mirror half of the images of each epoch left to right, f(seed, epoch, index); None: none.
            Evaluation, which draws by `index` alone, is never mirrored.
        labels: int64, of every image in the map; None: there are none.
    """

    def __init__(
        self, memory_map: MemoryMap, members: Tensor, flip_seed: int | None = None, labels: Tensor | None = None
    ) -> None:
        self.memory_map = memory_map
        self.members = members
        self.flip_seed = flip_seed
        self.labels = labels
        self.images, self.record = memory_map.open()
        self._flips: tuple[int, Tensor] | None = None  # (epoch, bool of every image in the map)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        """A whole batch; in training all keys are of one epoch."""
        drawn = torch.tensor(keys).view(len(keys), -1)
        index = self.members[drawn[:, -1]]
        images = self.images.index_select(0, index)
        if self.flip_seed is not None and drawn.shape[1] == 2:
            flipped = self._flipped(int(drawn[0, 0]))[index]
            images[flipped] = images[flipped].flip(2)
        batch = {"image": images.permute(0, 3, 1, 2), "index": index}
        return batch if self.labels is None else {**batch, "label": self.labels[index]}

    def digest(self) -> str:
        content = self.record.digest.encode() + self.members.numpy().tobytes()
        if self.labels is not None:
            content += self.labels[self.members].numpy().tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def _flipped(self, epoch: int) -> Tensor:
        """Which images of the map are mirrored in `epoch`: one draw an epoch is much faster than one an image."""
        if self._flips is None or self._flips[0] != epoch:
            draws = torch.rand(len(self.images), generator=generator_for("flip", self.flip_seed or 0, epoch))
            self._flips = epoch, draws < 0.5
        return self._flips[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("images", "record", "_flips")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _flips=None)
        self.images, self.record = self.memory_map.open()


class NamedImages(Dataset):
    """A data set as prediction wants it: `image`, and `file`, the name of the image's file.

    Args:
        dataset: The images.
        files: The name that belongs to each `index`.
    """

    def __init__(self, dataset: SplitDataset, files: Sequence[str]) -> None:
        self.dataset = dataset
        self.files = files

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        batch = self.dataset.__getitems__(keys)
        return {"image": batch["image"], "file": [self.files[index] for index in batch["index"].tolist()]}


@dataclass(frozen=True)
class Catalogue:
    """All images of a data set, and what is known of each before it is read.

    Attributes:
        listing: The files.
        partition: int64 (N,), which split each belongs to, as in `PARTITIONS`; any other number: to none.
        labels: int64 (N,), or None where there are no labels.
    """

    listing: Listing
    partition: Tensor
    labels: Tensor | None = None


class MappedDataModule(BaseDataModule):
    """A data module whose images are cut to squares of one size and decoded once, into a `MemoryMap`.

    The map lies in `cache_root` and may be deleted at any time. It is named after the names, sizes and times of change
    of the image files, the crop and the image size, so a change of any makes another one. `index` is the position in
    the list of the data set's images.

    A subclass sets `cache_folder` and implements `list_images`.

    Args:
        root: These up to `drop_last` as in `BaseDataModule`.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead.
        train_size: Number of training images.
        val_size: Number of validation images taken from the training images; None: see `validation_size`.
        seed: Seed of subsets, order and mirroring.
        predict_root: Folder of images to predict; they are cut like the others.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.
        image_size: Height and width of the square, in pixels.
        crop: What becomes the square, see `SquareCrop`.
        enlarge: Allow images whose crop is smaller than `image_size`. Otherwise they are an error.
        flip: Mirror half of the training images of each epoch left to right, f(seed, epoch, index).
        skip_damaged: Leave out images that cannot be decoded, with a warning that names them.
        cache_root: Where memory maps are kept; default $CONVSUITE_CACHE, else ~/.cache/convsuite.

    Raises:
        ValueError: A value is out of range.
    """

    cache_folder: str  # below cache_root
    counts_damaged = False  # decode everything before damaged files are refused, so that the message counts them

    def __init__(
        self,
        root: str | None,
        batch_size: int,
        num_workers: int,
        train_size: int | None,
        val_size: int | None,
        seed: int | None,
        predict_root: str | None,
        drop_last: bool,
        image_size: int,
        crop: Crop,
        enlarge: bool,
        flip: bool,
        skip_damaged: bool,
        cache_root: str | None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last)
        self.square = SquareCrop(crop if isinstance(crop, str) else float(crop), image_size, enlarge)
        self.image_size = image_size
        self.flip = flip
        self.skip_damaged = skip_damaged
        self.cache_root = cache_folder(cache_root)
        self._prepared: tuple[MemoryMap, Catalogue] | None = None  # damaged images are in no split of it

    @abstractmethod
    def list_images(self) -> Catalogue:
        """All images of the data set, found without reading any.

        Raises:
            FileNotFoundError: Files are missing; the message says what is expected where.
            DamagedFileError: A file is not what was published.
            ValueError: A size does not fit the data.
        """

    def prepare_data(self) -> None:
        """Decode all images into the memory map, if there is no intact one and the stage needs it.

        Raises:
            FileNotFoundError: Images are missing.
            DamagedFileError: An image cannot be decoded (without `skip_damaged`), or a file is not what was published.
            ValueError: An image is too small, or a size does not fit the data.
            CacheError: The memory map cannot be written.
        """
        if not self.predicts_folder:
            self._prepare()

    def setup(self, stage: str) -> None:
        """Open the memory map, after `prepare_data` where one process works alone and has not called it."""
        if stage == "predict" and self.predict_root is not None and self.predict_dataset is None:
            self.predict_dataset = CroppedFolder(self.predict_root, self.square)
        super().setup(stage)

    def fingerprint(self, split: Split) -> str:
        # The crop too: images of one colour are the same in every crop.
        key = f"{super().fingerprint(split)}/{self.square.crop}"
        return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()

    def validation_size(self, available: int) -> int:
        """How many of the `available` training images become validation images.

        Without a `val_size` it is none, and the validation set is the published one.
        """
        return self.val_size or 0

    def make_train_and_val(self) -> tuple[MappedImages, MappedImages | None]:
        memory_map, catalogue = self._open()
        shared = self._positions("train")
        if not len(shared):
            raise ValueError(self.how_to_fill("train"))
        val_size = self.validation_size(len(shared))
        if catalogue.labels is None:
            kept, carved = random_split(len(shared), self.train_size, val_size, self.seed)
        else:
            kept, carved = stratified_split(catalogue.labels[shared], self.train_size, val_size, self.seed)
        train = MappedImages(memory_map, shared[kept], self.seed if self.flip else None, catalogue.labels)
        if self.val_size == 0:
            return train, None
        val = shared[carved] if val_size else self._positions("val")
        return train, MappedImages(memory_map, val, labels=catalogue.labels)

    def make_test(self) -> MappedImages:
        memory_map, catalogue = self._open()
        return MappedImages(memory_map, self._positions("test"), labels=catalogue.labels)

    def make_predict(self) -> Dataset:
        test = self.make_test()
        self._filled("test", test)
        return NamedImages(test, self._open()[1].listing.files)

    def _memory_map(self, listing: Listing) -> MemoryMap:
        key = hashlib.blake2b(f"{MAP_VERSION}/{self.square}/{listing.digest()}".encode(), digest_size=8).hexdigest()
        size = self.image_size
        return MemoryMap(self.cache_root / self.cache_folder / f"{size}px-{key}.npy", (len(listing), size, size, 3))

    def _prepare(self) -> None:
        catalogue = self.list_images()
        memory_map = self._memory_map(catalogue.listing)
        skip_damaged = self.skip_damaged or self.counts_damaged
        decode = partial(
            decode_in_blocks, catalogue.listing.paths, self.square.read, memory_map.shape[1:], skip_damaged
        )
        with warnings.catch_warnings():
            # Broken metadata of a photo whose pixels can be decoded.
            warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
            record = memory_map.prepare(decode)
        self._check_damaged(record)
        self._prepared = memory_map, _without_damaged(catalogue, record)

    def _check_damaged(self, record: Record) -> None:
        """Refuse or report images that are black in the map because they could not be decoded."""
        reasons = list(record.damaged.values())
        if not reasons:
            return
        if not self.skip_damaged:
            raise DamagedFileError(f"{reasons[0]} skip_damaged: true leaves such images ({len(reasons):,} here) out.")
        if len(reasons) == record.shape[0]:
            raise DamagedFileError(f"None of the {len(reasons):,} images can be decoded. The first: {reasons[0]}")
        more = f" and {len(reasons) - DAMAGED_NAMED:,} more" if len(reasons) > DAMAGED_NAMED else ""
        rank_zero_warn(
            f"Skipped {len(reasons):,} of {record.shape[0]:,} images: {' '.join(reasons[:DAMAGED_NAMED])}{more}"
        )

    def _open(self) -> tuple[MemoryMap, Catalogue]:
        """The memory map, and what is in it; damaged images are in no split."""
        if self._prepared is None and process_place()[0] == 1:
            self._prepare()
        if self._prepared is None:  # another process has prepared
            catalogue = self.list_images()
            memory_map = self._memory_map(catalogue.listing)
            self._prepared = memory_map, _without_damaged(catalogue, memory_map.open()[1])
        return self._prepared

    def _positions(self, split: Split) -> Tensor:
        """The positions (int64) in the memory map of a split's images, as the data set is published."""
        return torch.nonzero(self._open()[1].partition == PARTITIONS[split]).flatten()


def _without_damaged(catalogue: Catalogue, record: Record) -> Catalogue:
    """`catalogue` with images that could not be decoded in no split."""
    kept = catalogue.partition.clone()
    kept[list(record.damaged)] = -1
    return Catalogue(catalogue.listing, kept, catalogue.labels)
