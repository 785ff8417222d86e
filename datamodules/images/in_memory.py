"""Data sets small enough to be held in memory, which hand out whole batches by indexing."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BaseDataModule, SplitDataset
from datamodules.sampling import Key
from datamodules.splits import stratified_split

Normalisation = Literal["standardised", "symmetric"]


class InMemoryDataset(SplitDataset):
    """Images and labels as tensors, or some of them without copying.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        members: int64 (M,), the positions in `images` that belong to the data set; default: all.
    """

    def __init__(self, images: Tensor, labels: Tensor, members: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self.members = members

    def __len__(self) -> int:
        return len(self.images if self.members is None else self.members)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        """A whole batch: `image`, `label`, `index`. Nothing is augmented, so the epoch is not used."""
        index = torch.tensor(keys).view(len(keys), -1)[:, -1]
        if self.members is not None:
            index = self.members[index]
        return {"image": self.images.index_select(0, index), "label": self.labels[index], "index": index}

    def digest(self) -> str:
        images = self.images if self.members is None else self.images[self.members]
        return hashlib.blake2b(images.contiguous().numpy().data, digest_size=16).hexdigest()

    def targets(self) -> Tensor:
        """Labels of the members, int64 (M,)."""
        return self.labels if self.members is None else self.labels[self.members]

    def subset(self, positions: Tensor) -> "InMemoryDataset":
        """The members at these positions (int64). All of them is the data set itself: no indices to look up."""
        if len(positions) == len(self):
            return self
        members = positions if self.members is None else self.members[positions]
        return InMemoryDataset(self.images, self.labels, members)


class Unlabelled(Dataset):
    """A data set as prediction wants it: `image`, and `file`, a name like test/000123."""

    def __init__(self, dataset: SplitDataset, folder: str) -> None:
        self.dataset = dataset
        self.folder = folder

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        batch = self.dataset.__getitems__(keys)
        return {"image": batch["image"], "file": [f"{self.folder}/{index:06d}" for index in batch["index"].tolist()]}


class InMemoryDataModule(BaseDataModule):
    """A data module whose data sets are `InMemoryDataset`s; a subclass implements `read_train` and `read_test`.

    Args:
        root: These up to `drop_last` as in `BaseDataModule`.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead.
        train_size: Number of training samples.
        val_size: Number of validation samples.
        seed: Seed of subsets and order.
        predict_root: Folder of images to predict.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.
        normalisation: "standardised": the training set has mean 0 and standard deviation 1, by the class's `mean` and
            `std`. "symmetric": values lie in [-1, 1], as a generator that ends in tanh makes them.

    Raises:
        ValueError: There is no such normalisation, or a size is out of range.
    """

    def __init__(
        self,
        root: str | None,
        batch_size: int,
        num_workers: int,
        train_size: int | None,
        val_size: int,
        seed: int | None,
        predict_root: str | None,
        drop_last: bool,
        normalisation: Normalisation,
    ) -> None:
        super().__init__(root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last)
        if normalisation not in get_args(Normalisation):
            raise ValueError(f"normalisation must be one of {', '.join(get_args(Normalisation))}, got {normalisation}.")
        if normalisation == "symmetric":
            self.mean = self.std = (0.5,) * self.in_channels

    @abstractmethod
    def read_train(self) -> InMemoryDataset:
        """Everything that training and validation share."""

    @abstractmethod
    def read_test(self) -> InMemoryDataset:
        """The test set."""

    def make_train_and_val(self) -> tuple[InMemoryDataset, InMemoryDataset | None]:
        shared = self.read_train()
        train, val = stratified_split(shared.targets(), self.train_size, self.val_size or 0, self.seed)
        return shared.subset(train), shared.subset(val) if self.val_size else None

    def make_test(self) -> InMemoryDataset:
        return self.read_test()

    def make_predict(self) -> Unlabelled:
        return Unlabelled(self.read_test(), "test")
