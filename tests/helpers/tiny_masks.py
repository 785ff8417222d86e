"""Discs on a dark ground with their masks, in memory, and a network that learns them in a second."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import SplitDataset
from datamodules.sampling import Key
from datamodules.segmentation import SegmentationDataModule, WithoutMasks
from lightning_modules.segmentation import SegmentationTask

IGNORED = 255
DISCS = 4


def disc_sample(index: int, num_classes: int = 2, height: int = 16, width: int = 16) -> dict[str, Any]:
    """One image of noise and discs, whose colours tell their classes, 1 and more; some discs touch or hide others.

    `image` uint8 (3, height, width), `mask` uint8 and `instances` int32 (height, width).
    """
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(0, 60, (3, height, width), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(height, width, dtype=torch.uint8)
    instances = torch.zeros(height, width, dtype=torch.int32)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for number in range(1, DISCS + 1):
        y, x, size = torch.rand(3, generator=generator).tolist()
        inside = (rows - y * height) ** 2 + (columns - x * width) ** 2 <= (1.5 + 2 * size) ** 2
        kind = 1 + (index + number) % (num_classes - 1)
        image[:, inside] = image[:, inside] % 60 + torch.tensor([120, 30 * kind, 0], dtype=torch.uint8)[:, None]
        mask[inside], instances[inside] = kind, number
    return {"image": image, "mask": mask, "instances": instances}


class DiscDataset(SplitDataset):
    """`count` samples from number `first` on; of various sizes, one a batch, where `native_size`."""

    def __init__(self, first: int, count: int, evaluated: bool, **options: Any) -> None:
        self.first, self.count, self.evaluated = first, count, evaluated
        self.num_classes, self.size = options["num_classes"], options["image_size"]
        self.has_objects, self.has_ignored = options["objects"], options["ignored"]
        self.native_size = evaluated and options["native_size"]

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        indices = [self.first + (key if isinstance(key, int) else key[1]) for key in keys]
        samples = [self._sample(index) for index in indices]
        batch: dict[str, Any] = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        batch["index"] = torch.tensor(indices)
        if self.evaluated:
            batch["file"] = [f"images/{index}.png" for index in indices]
        return batch

    def _sample(self, index: int) -> dict[str, Tensor]:
        more = 4 * (index % 3) if self.native_size else 0
        sample = disc_sample(index, self.num_classes, self.size + more, self.size + 2 * more)
        if self.has_ignored:
            sample["mask"][:2] = IGNORED
        if not (self.evaluated and self.has_objects):
            del sample["instances"]
        return sample

    def digest(self) -> str:
        return f"{self.first} {self.count}"


class TinyMasks(SegmentationDataModule):
    """Discs for training, validation and test; the latter two are `evaluated` images each, an odd number.

    Args:
        num_classes: 2, or more for discs of several classes.
        image_size: Pixels; evaluated images are larger where `native_size`.
        batch_size: Images a batch.
        train: Images to train on.
        evaluated: Images of the validation, and of the test.
        native_size: Evaluated images differ in size, and come one a batch.
        objects: Evaluation batches hold `instances`.
        ignored: The first two rows of every mask are to be ignored.
    """

    in_channels = 3
    mean = (0.25, 0.15, 0.1)
    std = (0.2, 0.1, 0.1)

    def __init__(
        self,
        num_classes: int = 2,
        image_size: int = 16,
        batch_size: int = 4,
        train: int = 12,
        evaluated: int = 5,
        native_size: bool = False,
        objects: bool = False,
        ignored: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, val_size=None)
        self.num_classes = num_classes
        self.class_names = ("background", *("disc", "coin", "moon", "ball", "ring", "spot")[: num_classes - 1])
        self.image_size = image_size
        self.train, self.evaluated = train, evaluated
        self.options = {
            "num_classes": num_classes,
            "image_size": image_size,
            "native_size": native_size,
            "objects": objects,
            "ignored": ignored,
        }

    def make_train_and_val(self) -> tuple[DiscDataset, DiscDataset]:
        train = DiscDataset(0, self.train, False, **self.options)
        return train, DiscDataset(1000, self.evaluated, True, **self.options)

    def make_test(self) -> DiscDataset:
        return DiscDataset(2000, self.evaluated, True, **self.options)

    def make_predict(self) -> Dataset:
        return WithoutMasks(self.make_test())


def tiny_segmentation(**options: Any) -> SegmentationTask:
    torch.manual_seed(0)
    options = {"model_options": {"widths": [4, 8], "kernel_size": 3}, **options}
    return SegmentationTask("unet", optimizer=partial(torch.optim.Adam, lr=0.02), **options)
