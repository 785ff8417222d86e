"""Patches of volumes for training, drawn by the composite sampling scheme of equation (6); whole volumes else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Split, SplitDataset
from datamodules.sampling import Key
from datamodules.segmentation import SegmentationDataModule
from datamodules.volumes.augmentation import VolumeAugmentation
from datamodules.volumes.patch_sampling import Centres, Padding, PatchCutter, PatchSampling
from datamodules.volumes.subject_sampling import SubjectSampling
from datamodules.volumes.volume import Volume, VolumeStore

Augmentation = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor]]
"""Changes (image, mask, affine of the mask) of a sample by (epoch, index); sizes stay."""


class PatchDataset(SplitDataset):
    """`count` patches an epoch, f(seed, epoch, index): s' chooses the subject, s'' the patch.

    Batches hold

    - `image` float32 (N, C, *(patch + 2 * context)) and `mask` uint8 (N, *patch);
    - `index` int64 (N,): the position of the subject;
    - `start` int64 (N, d): the patch's first voxel in the subject, before augmentation;
    - `size` int64 (N, d): the subject's voxels along each axis;
    - `affine` float64 (N, d + 1, d + 1): from a voxel of `mask` to its place in the world in mm.

    Args:
        store: The subjects.
        count: Patches an epoch.
        subjects: s'.
        patches: s''.
        cutter: How patches are cut and padded.
        augmentation: Changes each sample; None: nothing does.
    """

    def __init__(
        self,
        store: VolumeStore,
        count: int,
        subjects: SubjectSampling,
        patches: PatchSampling,
        cutter: PatchCutter,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.store = store
        self.count = count
        self.subjects = subjects
        self.patches = patches
        self.cutter = cutter
        self.augmentation = augmentation

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        """A whole batch. Keys without an epoch (`overfit_batches`) are of epoch 0."""
        draws = [(0, key) if isinstance(key, int) else key for key in keys]
        dealt = [self.subjects.draw(epoch, index, self.count) for epoch, index in draws]
        volumes = [annotated(self.store[subject]) for subject, _ in dealt]
        starts = [
            self.patches.start(volume, epoch, index, number)
            for volume, (epoch, index), (_, number) in zip(volumes, draws, dealt, strict=True)
        ]
        batch = {
            "image": torch.empty(len(keys), len(volumes[0].image), *self.cutter.input_size),
            "mask": torch.empty(len(keys), *self.cutter.patch_size, dtype=torch.uint8),
            "index": torch.tensor([subject for subject, _ in dealt]),
            "start": torch.tensor(starts),
            "size": torch.tensor([volume.size for volume in volumes]),
        }
        batch["affine"] = shifted(torch.stack([volume.affine for volume in volumes]), batch["start"])
        for volume, start, image, mask in zip(volumes, starts, batch["image"], batch["mask"], strict=True):
            self.cutter.cut(volume, start, image, mask)
        if self.augmentation is not None:
            for i, (epoch, index) in enumerate(draws):
                sample = batch["image"][i], batch["mask"][i], batch["affine"][i]
                batch["image"][i], batch["mask"][i], batch["affine"][i] = self.augmentation(*sample, epoch, index)
        return batch

    def digest(self) -> str:
        return self.store.digest()


class VolumeDataset(SplitDataset):
    """Whole volumes.

    Batches hold `image` float32 (N, C, *size), `mask` uint8 (N, *size), `index` int64 (N,), the subject's position,
    `file`, its name, and `affine` float64 (N, d + 1, d + 1), from a voxel to its place in the world in mm.

    Args:
        store: The subjects.
        native_size: Volumes come one a batch, whatever their sizes; otherwise all must be of one size.
        with_masks: Whether they have masks; batches have no `mask` otherwise.

    Attributes:
        batches_ahead: Batches that the workers of one process may hold ready for it: volumes are large, and wait in
            shared memory (/dev/shm), which all processes of a machine share.
    """

    batches_ahead = 2

    def __init__(self, store: VolumeStore, native_size: bool = True, with_masks: bool = True) -> None:
        self.store = store
        self.native_size = native_size
        self.with_masks = with_masks

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """A whole batch; what is evaluated does not depend on the epoch."""
        index = [key if isinstance(key, int) else key[1] for key in keys]
        volumes = [self.store[i] for i in index]
        for volume in volumes[1:]:
            if volume.size != volumes[0].size:
                raise ValueError(
                    f"{volumes[0].subject} and {volume.subject} are of different sizes ({list(volumes[0].size)} and "
                    f"{list(volume.size)}) and cannot be evaluated in one batch: set batch_evaluation: false."
                )
        batch: dict[str, Any] = {
            "image": torch.stack([volume.image for volume in volumes]),
            "index": torch.tensor(index),
            "file": [volume.subject for volume in volumes],
            "affine": torch.stack([volume.affine for volume in volumes]),
        }
        if self.with_masks:
            batch["mask"] = torch.stack([annotated(volume).mask for volume in volumes])  # type: ignore[misc]
        return batch

    def digest(self) -> str:
        return self.store.digest()


class PatchDataModule(SegmentationDataModule):
    """Volumes, or images, of which training sees patches, and evaluation the whole.

    What training sees is the composite sampling scheme of equation (6): s' chooses subjects, s'' chooses patches of
    them, and what surrounds a patch: a training batch is a `PatchDataset`'s, one of validation and test a
    `VolumeDataset`'s. Patch `index` of an epoch is f(seed, epoch, index) in all that is drawn.

    `on_after_batch_transfer` makes `image` channels_last and of the trainer's type, and `mask` int64. Stores hand out
    normalised images, so nothing is normalised here.

    A subclass sets `in_channels`, `num_classes`, `class_names` and, if it is not 3, `dimensions`, before it calls this
    constructor, and implements `make_store`.

    Args:
        patch_size: Voxels of a patch, that is of the mask and of what the network gives, along each axis, or along all.
        context: Voxels of image beyond the patch at each border: the margin of a network without padding, or what a
            network with padding shall see besides.
        patch_padding: What these hold: "image", the image around the patch, zeros beyond the volume; "zeros"; or
            "reflect", the patch mirrored. With the last two, patches may be larger than a volume: what is beyond it is
            filled likewise, and ignored (255) in the mask.
        patches_per_epoch: Patches an epoch.
        patch_centres: "uniform", "grid", "class_balanced" or "foreground", see `PatchSampling`.
        foreground_fraction: Share of the patches that are centred on foreground, with `patch_centres: foreground`;
            default: 0.5.
        subject_weights: Weights of training subjects by name; those that are not named weigh 1.
        balance_sites: All sites give as many patches, however many subjects they have.
        bootstrap: Train on as many subjects drawn with replacement, once, f(seed).
        flips: Axes along which training patches are mirrored at random, 0 for the first.
        rotation: Training patches are turned by up to so many degrees.
        elastic: Standard deviation of their elastic deformation in mm.
        intensity_change: Their grey values are multiplied and shifted by up to so much, see `VolumeAugmentation`.
        noise: Standard deviation of noise that is added to them.
        batch_evaluation: Evaluate `batch_size` volumes at a time, which must then be of one size.
        root: These up to `drop_last` as in `BaseDataModule`.
        batch_size: Patches a batch and process.
        num_workers: Processes that load ahead. Whole volumes are loaded by two at most, a batch each: they wait in
            shared memory, so that /dev/shm needs room for three of them (of 512x512x600 voxels with mask 0.8 GB each)
            in every process of the machine. Batches of patches are small.
        train_size: Number of training subjects.
        val_size: Number of validation subjects; None: what `make_store` says.
        seed: Seed of subsets, order and all draws.
        predict_root: Folder to predict.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Attributes:
        image_size: Voxels of a training image along each axis: patch and context.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    dimensions: int = 3
    image_size: tuple[int, ...]  # type: ignore[assignment]

    def __init__(
        self,
        patch_size: int | list[int],
        context: int = 0,
        patch_padding: Padding = "image",
        patches_per_epoch: int = 256,
        patch_centres: Centres = "uniform",
        foreground_fraction: float | None = None,
        subject_weights: dict[str, float] | None = None,
        balance_sites: bool = False,
        bootstrap: bool = False,
        flips: list[int] | None = None,
        rotation: float = 0.0,
        elastic: float = 0.0,
        intensity_change: float = 0.0,
        noise: float = 0.0,
        batch_evaluation: bool = False,
        root: str | None = None,
        batch_size: int = 2,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int | None = None,
        seed: int | None = None,
        predict_root: str | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last)
        if patches_per_epoch < 1:
            raise ValueError(f"patches_per_epoch must be at least 1, got {patches_per_epoch}.")
        size = self._checked_size(patch_size)
        self.patches_per_epoch = patches_per_epoch
        self.cutter = PatchCutter(size, context, patch_padding)
        self.image_size = self.cutter.input_size
        self.patch_sampling = PatchSampling(
            self.seed, size, self.num_classes, patch_centres, foreground_fraction, patch_padding != "image"
        )
        self.subject_weights = subject_weights
        self.balance_sites = balance_sites
        self.bootstrap = bootstrap
        self.batch_evaluation = batch_evaluation
        augmentation = VolumeAugmentation(self.seed, tuple(flips or ()), rotation, elastic, intensity_change, noise)
        if any(axis >= self.dimensions for axis in augmentation.flips):
            raise ValueError(f"flips must name axes below {self.dimensions}, got {flips}.")
        changes = any((flips, rotation, elastic, intensity_change, noise))
        self.augmentation: Augmentation | None = augmentation if changes else None

    def _checked_size(self, patch_size: int | Sequence[int]) -> tuple[int, ...]:
        size = (patch_size,) * self.dimensions if isinstance(patch_size, int) else tuple(patch_size)
        if len(size) != self.dimensions or min(size) < 1:
            raise ValueError(
                f"patch_size must be one number of voxels, or one for each of {self.dimensions} axes, at least 1, got "
                f"{patch_size}."
            )
        return size

    @abstractmethod
    def make_store(self, split: Split) -> VolumeStore | None:
        """The subjects of a split; None: there are none."""

    def make_predict_store(self) -> VolumeStore | None:
        """The subjects to predict; those of the test, unless a subclass says otherwise. They need no masks."""
        return self.make_store("test")

    def make_train_and_val(self) -> tuple[PatchDataset, VolumeDataset | None]:
        """Training patches and whole validation volumes.

        Raises:
            ValueError: There is no training subject, or patches cannot be drawn of some; the message names them.
        """
        train, val = self.make_store("train"), self.make_store("val")
        if train is None or not len(train):
            raise ValueError(self.how_to_fill("train"))
        if val is None:
            self.val_size = 0  # which is how a Trainer knows
        subjects = SubjectSampling(
            self.seed, train.subjects, train.sites, self.subject_weights, self.balance_sites, self.bootstrap
        )
        # Now, not epochs later, when the subject is drawn for the first time.
        self.patch_sampling.check(annotated(train[i]) for i in np.flatnonzero(subjects.probabilities).tolist())
        patches = PatchDataset(
            train, self.patches_per_epoch, subjects, self.patch_sampling, self.cutter, self.augmentation
        )
        return patches, None if val is None else self._whole(val)

    def make_test(self) -> VolumeDataset:
        return self._whole(self._filled_store(self.make_store("test")))

    def make_predict(self) -> VolumeDataset:
        return self._whole(self._filled_store(self.make_predict_store()), with_masks=False)

    @property
    def training_subjects(self) -> Sequence[str]:
        """Names of the subjects that `index` of training batches counts."""
        return self.train_dataset.store.subjects if isinstance(self.train_dataset, PatchDataset) else ()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        layout = torch.channels_last if self.dimensions == 2 else torch.channels_last_3d
        image = batch["image"].to(memory_format=layout)
        if self.trainer is not None:
            image = self.trainer.precision_plugin.convert_input(image)
        batch = {**batch, "image": image}
        return {**batch, "mask": batch["mask"].long()} if "mask" in batch else batch

    def denormalise(self, images: Tensor) -> Tensor:
        """Images (..., C, *size) as values in [0, 1], for pictures: each channel from its least to its largest."""
        axes = tuple(range(-self.dimensions, 0))
        low, high = images.float().amin(axes, keepdim=True), images.float().amax(axes, keepdim=True)
        return (images.float() - low) / (high - low).clamp(min=1e-12)

    def _split(self, split: Split) -> SplitDataset:
        """What is measured of the training subjects is measured of whole volumes."""
        dataset = super()._split(split)
        return self._whole(dataset.store) if isinstance(dataset, PatchDataset) else dataset

    def _whole(self, store: VolumeStore, with_masks: bool = True) -> VolumeDataset:
        return VolumeDataset(store, native_size=not self.batch_evaluation, with_masks=with_masks)

    def _filled_store(self, store: VolumeStore | None) -> VolumeStore:
        if store is None or not len(store):
            raise ValueError(self.how_to_fill("test"))
        return store


def annotated(volume: Volume) -> Volume:
    """`volume`, which must have a mask.

    Raises:
        ValueError: It has none; the message names it.
    """
    if volume.mask is None:
        raise ValueError(f"{volume.subject} has no mask, without which it can only be predicted.")
    return volume


def shifted(affines: Tensor, starts: Tensor) -> Tensor:
    """Affines (N, d + 1, d + 1) of grids whose voxel 0 is voxel `starts` (N, d) of the given ones."""
    moved = affines.clone()
    moved[:, :-1, -1] += torch.einsum("nij,nj->ni", affines[:, :-1, :-1], starts.to(affines.dtype))
    return moved
