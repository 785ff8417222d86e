"""What data modules for segmentation share: masks, whole images one a batch, prediction at native size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import BaseDataModule, SplitDataset
from datamodules.images.image_folder import ImageFolder
from datamodules.sampling import Key


@dataclass(frozen=True)
class AnnotatedImage:
    """An image in memory, and what is known of its pixels.

    Attributes:
        file: Its name, relative to the folder of the data set.
        group: What it shares with images that resemble it: the patient, for tissue.
        image: uint8 (H, W, C).
        mask: uint8 (H, W): the class of each pixel, or 255 for pixels to be ignored.
        instances: int32 (H, W): which object each pixel belongs to, 0 for none; None: objects were not annotated.
    """

    file: str
    group: str
    image: Tensor
    mask: Tensor
    instances: Tensor | None = None


class SegmentationDataModule(BaseDataModule):
    """Images with a class for every pixel.

    Batches of training hold `image` uint8 (N, C, h, w), `mask` uint8 (N, h, w), the class of each pixel or 255 for
    ignored ones, and `index` int64 (N,). Those of validation and test hold `file` (list of str) too, and where objects
    are annotated `instances` int32 (N, h, w): the number of the object in its image that each pixel belongs to, 0 for
    none. Batches of prediction hold `image` and `file`.

    A data set with a true attribute `native_size` has images of different sizes: evaluation gives them one a batch.
    Folders of images (`predict_root`) are predicted so.

    `on_after_batch_transfer` normalises `image`, as in every data module, and makes `mask` int64.
    """

    num_classes: int

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.predict_root is not None and self.predict_dataset is None:
            self.predict_dataset = ImageFolder(self.predict_root, self.in_channels, image_size=None)
        super().setup(stage)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {**batch, "mask": batch["mask"].long()} if "mask" in batch else batch

    def _evaluation_loader(self, dataset: Dataset, batch_size: int | None = None) -> DataLoader:
        return super()._evaluation_loader(dataset, 1 if getattr(dataset, "native_size", False) else batch_size)


class WithoutMasks(Dataset):
    """A data set of annotated images as prediction wants it: batches of `image` and `file`."""

    def __init__(self, dataset: SplitDataset) -> None:
        self.dataset = dataset
        self.native_size = getattr(dataset, "native_size", False)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        batch = self.dataset.__getitems__(keys)
        return {"image": batch["image"], "file": batch["file"]}
