"""Data sets small enough to be held in memory, which hand out whole batches by indexing."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BaseDataModule
from datamodules.splits import stratified_split

Key = int | tuple[int, int]
"""What a sampler yields: `index` (evaluation) or `(epoch, index)` (training)."""


class InMemoryDataset(Dataset):
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
        return {"image": self.images[index], "label": self.labels[index], "index": index}

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

    def __init__(self, dataset: InMemoryDataset, folder: str) -> None:
        self.dataset = dataset
        self.folder = folder

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        batch = self.dataset.__getitems__(keys)
        return {"image": batch["image"], "file": [f"{self.folder}/{index:06d}" for index in batch["index"].tolist()]}


class InMemoryDataModule(BaseDataModule):
    """A data module whose data sets are `InMemoryDataset`s; a subclass implements `read_train` and `read_test`."""

    @abstractmethod
    def read_train(self) -> InMemoryDataset:
        """Everything that training and validation share."""

    @abstractmethod
    def read_test(self) -> InMemoryDataset:
        """The test set."""

    def make_train_and_val(self) -> tuple[InMemoryDataset, InMemoryDataset | None]:
        shared = self.read_train()
        train, val = stratified_split(shared.targets(), self.train_size, self.val_size, self.seed)
        return shared.subset(train), shared.subset(val) if self.val_size else None

    def make_test(self) -> InMemoryDataset:
        return self.read_test()

    def make_predict(self) -> Unlabelled:
        return Unlabelled(self.read_test(), "test")
