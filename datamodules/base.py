"""What every data module shares: loaders that resume, normalisation on the device, prediction on a folder of images."""

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.folders import data_folder
from datamodules.images.image_folder import ImageFolder
from datamodules.sampling import EpochSampler, EvaluationSampler, Key, ResumableDataLoader, process_place
from datamodules.splits import check_split
from datamodules.worker_signals import leave_signals_to_main

Split = Literal["train", "val", "test"]
Opened = TypeVar("Opened", bound=Dataset)


class SplitDataset(Dataset[dict[str, Any]], ABC):
    """One split of a data set. Keys are what a sampler yields: `index`, or `(epoch, index)` to augment."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """A whole batch, collated."""

    @abstractmethod
    def digest(self) -> str:
        """A hex digest of the images, before augmentation, in their order."""


class BaseDataModule(LightningDataModule, ABC):
    """Images, as batches of plain dictionaries.

    Batches of training, validation and test hold `image` uint8 (N, C, H, W), `index` int64 (N,), the sample's position
    in the published data set, and where the data have labels `label` int64 (N,). Batches of prediction hold `image` and
    `file` (list of str). `on_after_batch_transfer` turns `image` into normalised float32 on the device.

    Training draws by `(epoch, index)` in an order f(seed, epoch), so a data set that augments can do it as
    f(seed, epoch, index); evaluation draws by `index` alone: every sample once, in order.

    A subclass sets the class attributes below, which describe the data before any file is read, and implements
    `make_train_and_val`, `make_test` and `make_predict`.

    Args:
        root: Folder that holds the data sets, each in a folder of its own; default $CONVSUITE_DATA, else ./data.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead. Data sets held in memory are fastest with 0.
        train_size: Number of training samples, a stratified subset f(seed); default: all outside `val_size`.
        val_size: Number of validation samples, taken from the training set and disjoint from it; 0: no validation;
            None: the published validation set, where there is one.
        seed: Seed of subsets and order; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict, searched recursively; default: predict the test set.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Raises:
        ValueError: A size is out of range.
    """

    in_channels: int
    num_classes: int | None = None  # None: there are no labels
    class_names: tuple[str, ...] = ()
    image_size: int  # height and width in pixels
    mean: tuple[float, ...]  # a channel, of values in [0, 1]
    std: tuple[float, ...]
    train_samples: int | None = None  # number of samples that train_size and val_size share, where it is published

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int | None = 0,
        seed: int | None = None,
        predict_root: str | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {num_workers}.")
        check_split(train_size, val_size or 0, self.train_samples)
        # A checkpoint names its data; loggers get the whole config from the command line.
        self.save_hyperparameters(logger=False)
        self.root = data_folder(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_size = train_size
        self.val_size = val_size
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.predict_root = predict_root
        self.drop_last = drop_last
        self.train_dataset: SplitDataset | None = None
        self.val_dataset: SplitDataset | None = None
        self.test_dataset: SplitDataset | None = None
        self.predict_dataset: Dataset | None = None
        self._scale_and_shift: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def make_train_and_val(self) -> tuple[SplitDataset, SplitDataset | None]:
        """The training set and the validation set (None where `val_size` is 0)."""

    @abstractmethod
    def make_test(self) -> SplitDataset:
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
            ValueError: A size does not fit the data.
        """
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

    def check_test(self) -> None:
        """Open the test set, which is then kept, so that what would stop a test shows before the training.

        Raises:
            FileNotFoundError, DamagedFileError, ValueError: As `setup`; `ValueError` also where it is empty.
        """
        self._split("test")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the seed by which its training samples were chosen."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with a checkpoint's training, or to evaluate it, on data that it says are the wrong ones.

        Raises:
            ValueError: See `check_training_set` and `check_unseen`.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage == "fit":
            self.check_training_set(state_dict)
        elif stage in ("validate", "test"):
            self.check_unseen(state_dict, "test" if stage == "test" else "val")

    def check_training_set(self, state_dict: dict[str, Any]) -> None:
        """Refuse to take a training on other data for one on these, before `setup` too, which may read for long.

        Does nothing where checkpoints do not name what was trained on.

        Args:
            state_dict: What a checkpoint of that training keeps of its data.

        Raises:
            ValueError: The training sets differ; the message says how.
        """

    def check_unseen(self, state_dict: dict[str, Any], split: Split) -> None:
        """Refuse to evaluate a checkpoint on subsets of another seed, which may hold what it was trained on.

        Args:
            state_dict: What the checkpoint keeps of its data.
            split: What is evaluated, "val" or "test".

        Raises:
            ValueError: The seeds differ; the message names both.
        """
        trained = state_dict["seed"]
        if trained != self.seed:
            raise ValueError(
                f"The checkpoint was trained on subsets of data seed {trained}, and this evaluation has {self.seed}: "
                f"it could be measured on what it was trained on. Set --data.seed {trained}."
            )

    def train_dataloader(self) -> DataLoader:
        dataset = self._filled("train", _opened(self.train_dataset, "fit"))
        sampler = EpochSampler(dataset, self.seed, drop_last=self.drop_last)
        if self.drop_last and len(sampler) < self.batch_size:
            raise ValueError(
                f"drop_last leaves nothing to train on: batch_size is {self.batch_size}, and there are {len(sampler)} "
                "training samples a process. Use a smaller batch_size, or drop_last: false."
            )
        return ResumableDataLoader(
            dataset, batch_size=self.batch_size, sampler=sampler, drop_last=self.drop_last, **self._loading(dataset)
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.val_size == 0 and not (self.trainer and self.trainer.state.fn == "validate"):
            # Lightning then skips validation, and warns of what was asked for.
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            return []
        _opened(self.train_dataset, "validate")  # the two are opened together
        return self._evaluation_loader(self._filled("val", self.val_dataset))

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._filled("test", _opened(self.test_dataset, "test")))

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(_opened(self.predict_dataset, "predict"))

    def evaluation_loader(self, split: Split) -> DataLoader:
        """A whole split for measuring something: every sample once over all processes, in order, not augmented.

        Works after `setup` of any stage and opens what that has not.

        Args:
            split: "train", "val" or "test". The training split is what is trained on: `train_size` samples.

        Raises:
            ValueError: There is no such split, or it is empty; the message says how to get one.
        """
        return self._evaluation_loader(self._split(split))

    def fingerprint(self, split: Split) -> str:
        """16 hex digits that name what `evaluation_loader(split)` reads: another split, subset, image or size, others.

        Raises:
            ValueError: As `evaluation_loader`.
        """
        key = (type(self).__name__, split, self.image_size, self._split(split).digest())
        return hashlib.blake2b(repr(key).encode(), digest_size=8).hexdigest()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """`image` as float32, channels_last, normalised by `mean` and `std`. A batch without images stays as it is."""
        if "image" not in batch:
            return batch
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

    def _split(self, split: Split) -> SplitDataset:
        """The samples of `split`, opened if they are not yet."""
        if split not in get_args(Split):
            raise ValueError(f"There is no split {split!r}: choose one of {', '.join(get_args(Split))}.")
        self.setup("test" if split == "test" else "fit")
        return self._filled(split, getattr(self, f"{split}_dataset"))

    def _filled(self, split: Split, dataset: SplitDataset | None) -> SplitDataset:
        """`dataset`, which must hold something."""
        if dataset is None or not len(dataset):
            raise ValueError(self.how_to_fill(split))
        return dataset

    def how_to_fill(self, split: Split) -> str:
        """The message for who asks for a split without samples."""
        if split == "val" and self.val_size == 0:
            return "val_size is 0: there is nothing to validate. Set val_size, or use another split."
        return f"{type(self).__name__} has no {split} samples."

    def _evaluation_loader(self, dataset: Dataset, batch_size: int | None = None) -> DataLoader:
        processes, samples = process_place()[0], len(dataset)  # type: ignore[arg-type]
        if samples < processes:
            raise ValueError(
                f"{samples} samples cannot be dealt out to {processes} processes, none of which may be left without: "
                f"evaluate on {samples} device(s) or fewer (--trainer.devices)."
            )
        sampler = EvaluationSampler(dataset)
        batch_size = batch_size or self.batch_size
        return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **self._loading(dataset))

    def _loading(self, dataset: Dataset) -> dict[str, Any]:
        # Batches wait in shared memory: a data set whose batches are large says how many may.
        ahead = getattr(dataset, "batches_ahead", None)
        workers = self.num_workers if ahead is None else min(self.num_workers, ahead)
        return {
            "collate_fn": _as_it_is if hasattr(dataset, "__getitems__") else None,
            "num_workers": workers,
            "prefetch_factor": None if ahead is None or not workers else 1,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": leave_signals_to_main,
            # Its own, because making an iterator draws a number: training noise must not depend on it.
            "generator": torch.Generator(),
        }


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate nothing: `__getitems__` returns whole batches."""
    return batch


def _opened(dataset: Opened | None, stage: str) -> Opened:
    if dataset is None:
        raise RuntimeError(f"Call setup({stage!r}) before asking for its loader; a Trainer does it by itself.")
    return dataset
