"""What every data module shares: loaders that resume, normalisation on the device, prediction on a folder of images."""

import os
import signal
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.image_folder import ImageFolder
from datamodules.sampling import EpochSampler, EvaluationSampler, ResumableDataLoader
from datamodules.splits import check_split


class BaseDataModule(LightningDataModule, ABC):
    """Images with labels, as batches of plain dictionaries.

    Batches of training, validation and test hold `image` uint8 (N, C, H, W), `label` int64 (N,) and `index` int64
    (N,), the sample's position in the published data set. Batches of prediction hold `image` and `file` (list of str).
    `on_after_batch_transfer` turns `image` into normalised float32 on the device.

    Training draws by `(epoch, index)` in an order f(seed, epoch), so a data set that augments can do it as
    f(seed, epoch, index); evaluation draws by `index` alone: every sample once, in order.

    A subclass sets the class attributes below, which describe the data before any file is read, and implements
    `make_train_and_val`, `make_test` and `make_predict`.

    Args:
        root: Folder that holds the data sets, each in a folder of its own; default $CONVSUITE_DATA, else ./data.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead. Data sets held in memory are fastest with 0.
        train_size: Number of training samples, a stratified subset f(seed); default: all outside `val_size`.
        val_size: Number of validation samples, taken from the training set and disjoint from it; 0: no validation.
        seed: Seed of subsets and order; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict, searched recursively; default: predict the test set.

    Raises:
        ValueError: A size is out of range.
    """

    in_channels: int
    num_classes: int
    class_names: tuple[str, ...]
    image_size: int  # height and width in pixels
    mean: tuple[float, ...]  # a channel, of values in [0, 1]
    std: tuple[float, ...]
    train_samples: int  # published number of samples that train_size and val_size share

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int = 0,
        seed: int | None = None,
        predict_root: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {num_workers}.")
        check_split(train_size, val_size, self.train_samples)
        # A checkpoint names its data; loggers get the whole config from the command line.
        self.save_hyperparameters(logger=False)
        self.root = os.path.expanduser(root or os.environ.get("CONVSUITE_DATA") or "data")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_size = train_size
        self.val_size = val_size
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.predict_root = predict_root
        self.train_dataset: Dataset | None = None
        self.val_dataset: Dataset | None = None
        self.test_dataset: Dataset | None = None
        self.predict_dataset: Dataset | None = None
        self._scale_and_shift: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def make_train_and_val(self) -> tuple[Dataset, Dataset | None]:
        """The training set and the validation set (None where `val_size` is 0)."""

    @abstractmethod
    def make_test(self) -> Dataset:
        """The test set."""

    @abstractmethod
    def make_predict(self) -> Dataset:
        """The test set with `image` and `file` only."""

    @property
    def predicts_folder(self) -> bool:
        """Whether the running stage needs none of the published data: `predict` on a folder of images."""
        return self.predict_root is not None and self.trainer is not None and self.trainer.predicting

    def setup(self, stage: str) -> None:
        """Open what `stage` (fit, validate, test or predict) needs, once.

        Raises:
            FileNotFoundError: Data are missing.
            DamagedFileError: A file is not what was published, or cannot be read.
            ValueError: A size does not fit the data, or there is nothing to validate.
        """
        if stage == "validate" and self.val_size == 0:
            raise ValueError("val_size is 0: there is nothing to validate. Set val_size, or use test.")
        if stage in ("fit", "validate") and self.train_dataset is None:
            self.train_dataset, self.val_dataset = self.make_train_and_val()
        if stage == "test" and self.test_dataset is None:
            self.test_dataset = self.make_test()
        if stage == "predict" and self.predict_dataset is None:
            self.predict_dataset = (
                self.make_predict()
                if self.predict_root is None
                else ImageFolder(self.predict_root, self.in_channels, self.image_size)
            )

    def train_dataloader(self) -> DataLoader:
        dataset = _opened(self.train_dataset, "fit")
        sampler = EpochSampler(dataset, self.seed)
        return ResumableDataLoader(dataset, batch_size=self.batch_size, sampler=sampler, **self._loading(dataset))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.val_size == 0:
            # Lightning then skips validation, and warns of what was asked for.
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            return []
        return self._evaluation_loader(_opened(self.val_dataset, "validate"))

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(_opened(self.test_dataset, "test"))

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(_opened(self.predict_dataset, "predict"))

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """`image` as float32, channels_last, with mean 0 and standard deviation 1 over the training set."""
        images = batch["image"]
        scale, shift = self._normalisation(images.device)
        images = images.to(torch.float32, memory_format=torch.channels_last).mul_(scale).add_(shift)
        if self.trainer is not None:  # `precision: 64-true` and its like want their own type
            images = self.trainer.precision_plugin.convert_input(images)
        return {**batch, "image": images}

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised images (..., C, H, W) as values in [0, 1], for pictures."""
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images.float() * std + mean).clamp(0, 1)

    def _normalisation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C, 1, 1): image * scale + shift is normalised. Kept, because copying to a GPU waits."""
        if device not in self._scale_and_shift:
            mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.mean, self.std))
            self._scale_and_shift[device] = (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
        return self._scale_and_shift[device]

    def _evaluation_loader(self, dataset: Dataset) -> DataLoader:
        sampler = EvaluationSampler(dataset)
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, **self._loading(dataset))

    def _loading(self, dataset: Dataset) -> dict[str, Any]:
        return {
            "collate_fn": _as_it_is if hasattr(dataset, "__getitems__") else None,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": _leave_signals_to_main,
            # Its own, because making an iterator draws a number: training noise must not depend on it.
            "generator": torch.Generator(),
        }


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate nothing: `__getitems__` returns whole batches."""
    return batch


def _leave_signals_to_main(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach every process; the main one decides what they mean.

    SIGTERM stays as torch sets it: it is how the main process ends a worker.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # Windows lacks the last two
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _opened(dataset: Dataset | None, stage: str) -> Dataset:
    if dataset is None:
        raise RuntimeError(f"Call setup({stage!r}) before asking for its loader; a Trainer does it by itself.")
    return dataset
