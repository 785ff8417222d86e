"""The toy problem of "CNNs for medical image segmentation", Figure 5: of several equal lesions one is looked for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.base import Split
from datamodules.images.masks import IGNORE_INDEX
from datamodules.sampling import Key, generator_for
from datamodules.volumes.patch_sampling import Centres, Padding
from datamodules.volumes.patches import PatchDataModule, VolumeDataset
from datamodules.volumes.volume import InMemoryVolumes, Volume, VolumeStore

CLEARANCE = 4
"""Pixels between every lesion and the image's border: what sees no farther than this never sees the border."""
INSIDE, CUT, ELSEWHERE = 0, 1, 255
"""What `LesionScenes.regions` tells apart."""


@dataclass(frozen=True)
class LesionScenes:
    """Images of equal round lesions at the corners of a square (of a cube, in three dimensions), in white noise.

    The ground is 0, a lesion 1, and normal noise is added. Each corner is displaced by whole pixels, so that all
    lesions have the same pixels; where the square lies is random. Lesions differ in nothing but where the others are.

    Attributes:
        dimensions: d, 2 or 3.
        image_size: Pixels of each side.
        distance: Pixels between the centres of neighbouring corners, before they are displaced.
        jitter: The largest displacement of a corner along each axis, in pixels.
        radius: Of a lesion, in pixels.
        noise: Standard deviation of the noise.

    Raises:
        ValueError: A value out of range, lesions that touch, or an image too small for them; the message names it.
    """

    dimensions: int
    image_size: int
    distance: int
    jitter: int
    radius: float
    noise: float

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3):
            raise ValueError(f"dimensions must be 2 (images) or 3 (volumes), got {self.dimensions}.")
        for name, value, least in (("jitter", self.jitter, 0), ("radius", self.radius, 0), ("noise", self.noise, 0)):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}.")
        if (apart := self.distance - 2 * self.jitter) <= (width := 2 * self._reach + 1):
            raise ValueError(
                f"lesions would touch: distance {self.distance} and jitter {self.jitter} leave {apart} pixels between "
                f"centres, and a lesion of radius {self.radius} is {width} wide. Raise distance."
            )
        if self.image_size < (least := self.distance + 2 * self._border + 1):
            raise ValueError(f"image_size must be at least {least} for these lesions, got {self.image_size}.")

    @property
    def _reach(self) -> int:
        """Whole pixels from a lesion's centre to its end."""
        return int(self.radius)

    @property
    def _border(self) -> int:
        """Pixels from the image's border to the nearest corner before it is displaced."""
        return CLEARANCE + self._reach + self.jitter

    @property
    def corners(self) -> Tensor:
        """The corners of the unit square, int64 (2^d, d); the labelled one is the first: top right.

        Top is the start of the first axis, right the end of the others.
        """
        labelled = (0, *[1] * (self.dimensions - 1))
        others = [corner for corner in itertools.product((0, 1), repeat=self.dimensions) if corner != labelled]
        return torch.tensor([labelled, *others])

    def centres(self, *key: str | int) -> Tensor:
        """The pixels at the centres of the lesions of the scene `key`, int64 (2^d, d), in the order of `corners`."""
        return self._drawn(generator_for("toy lesions", *key))

    def volume(self, *key: str | int) -> Volume:
        """The scene `key`: image (1, *size), mask (*size) with 1 at the top-right lesion, the identity as affine."""
        generator = generator_for("toy lesions", *key)
        lesions = self.discs(self._drawn(generator))
        noise = torch.randn(lesions.shape[1:], generator=generator)
        return Volume(
            subject="/".join(map(str, key)),
            site=None,
            image=(self.noise * noise + lesions.any(0)).unsqueeze(0),
            mask=lesions[0].byte(),
            affine=torch.eye(self.dimensions + 1, dtype=torch.float64),
        )

    def _drawn(self, generator: torch.Generator) -> Tensor:
        most = self.image_size - self._border - self.distance
        first = torch.randint(self._border, most, (self.dimensions,), generator=generator)
        displaced = torch.randint(
            -self.jitter, self.jitter + 1, (2**self.dimensions, self.dimensions), generator=generator
        )
        return first + self.distance * self.corners + displaced

    def discs(self, centres: Tensor) -> Tensor:
        """The pixels of each lesion, bool (2^d, *size)."""
        squared = [
            (torch.arange(self.image_size) - centres[:, axis, None])
            .square()
            .view(len(centres), *_along(axis, self.dimensions))
            for axis in range(self.dimensions)
        ]
        return sum(squared) <= self.radius**2  # type: ignore[return-value]

    def regions(self, centres: Tensor, tile_size: int) -> Tensor:
        """Where isolated tiles hold what tells the lesions apart, uint8 (*size).

        The image is cut into tiles of `tile_size`, from its start on. Along each axis a lesion has a neighbour on one
        side, and none on the other. A tile that holds the place of either (that is, `distance` from the lesion's
        centre) shows which of the two sides it is. A lesion's pixels in tiles that do so along every axis are `INSIDE`,
        its other ones `CUT`. Pixels that are no lesion's are `ELSEWHERE`.
        """
        tile = torch.arange(self.image_size) // tile_size
        is_shown = torch.ones(len(centres), *[self.image_size] * self.dimensions, dtype=torch.bool)
        for axis in range(self.dimensions):
            places = centres[:, axis, None] + torch.tensor([-self.distance, self.distance])
            is_there = (tile == (places // tile_size)[..., None]).any(1)
            is_shown &= is_there.view(len(centres), *_along(axis, self.dimensions))
        lesions = self.discs(centres)
        regions = torch.full(lesions.shape[1:], ELSEWHERE, dtype=torch.uint8)
        regions[(lesions & ~is_shown).any(0)] = CUT
        regions[(lesions & is_shown).any(0)] = INSIDE
        return regions


def _along(axis: int, dimensions: int) -> list[int]:
    """The shape of a vector that lies along one of several axes."""
    return [-1 if other == axis else 1 for other in range(dimensions)]


class LesionStore(InMemoryVolumes):
    """The scenes of a split.

    Args:
        scenes: What they show.
        keys: Of each scene.
        ignored_border: The mask is `IGNORE_INDEX` in so many pixels at each border.

    Attributes:
        centres: Of each scene, see `LesionScenes.centres`.
    """

    def __init__(self, scenes: LesionScenes, keys: Sequence[tuple[str | int, ...]], ignored_border: int = 0) -> None:
        self.scenes = scenes
        self.centres = [scenes.centres(*key) for key in keys]
        super().__init__([_without_border(scenes.volume(*key), ignored_border) for key in keys])


def _without_border(volume: Volume, width: int) -> Volume:
    assert volume.mask is not None
    inner = tuple(slice(width, side - width) for side in volume.size)
    mask = torch.full_like(volume.mask, IGNORE_INDEX)
    mask[inner] = volume.mask[inner]
    return dataclasses.replace(volume, mask=mask)


class LesionDataset(VolumeDataset):
    """Whole scenes, with `region` uint8 (N, *size), see `LesionScenes.regions`, of tiles of `tile_size`."""

    store: LesionStore

    def __init__(self, store: LesionStore, tile_size: int) -> None:
        super().__init__(store, native_size=False)
        self.tile_size = tile_size

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        batch = super().__getitems__(keys)
        scenes, centres = self.store.scenes, self.store.centres
        regions = [scenes.regions(centres[index], self.tile_size) for index in batch["index"].tolist()]
        return {**batch, "region": torch.stack(regions)}


class ToyLesionDataModule(PatchDataModule):
    """Figure 5's toy problem: `LesionScenes`, in which only the top-right lesion is of class 1, `lesion`.

    Generated, so it needs no files. Nothing but its place among the others tells that lesion apart: what sees single
    pixels, or no farther than to the next lesion, can do no better than to take all lesions or none. All lesions have a
    Dice of 2 / (1 + 2^d) with the labelled one: 2/5 in two dimensions, 2/9 in three.

    Training scenes are f(seed), those of the test are the same for every seed. Batches are those of `PatchDataModule`.
    Batches of evaluation hold `region` uint8 (N, *size) besides: where isolated tiles of `tile_size` hold what tells
    lesions apart (0, "inside"), and where they do not (1, "cut"), both on lesions alone (255 elsewhere);
    `LesionScenes.regions` has the rule, `RegionDice` the measure.

    Args:
        patch_size: Pixels of a training patch, along each axis or along all.
        context: Pixels of image around the patch at each border: the margin of a valid network.
        patch_padding: What these hold: "image", "zeros" or "reflect".
        patch_centres: How patches are chosen, see `PatchSampling`.
        patches_per_epoch: Patches an epoch.
        ignore_border: The outer `context` pixels of images are ignored (255): all that is labelled has its context
            within the image, as where a valid network sees images without any padding.
        tile_size: Of the isolated tiles that `region` is about.
        dimensions: 2 for images, 3 for volumes.
        image_size: These up to `noise` as in `LesionScenes`.
        distance: Between neighbouring lesions.
        jitter: The largest displacement of a lesion along each axis.
        radius: Of a lesion.
        noise: Standard deviation; lesions are brighter than the ground by 1.
        train_size: Number of training scenes.
        val_size: Number of validation scenes; 0: no validation.
        test_size: Number of test scenes.
        batch_size: Patches a batch and process; scenes in evaluation.
        num_workers: Processes that load ahead; 0 is fastest here.
        seed: Seed of scenes, order and patches; default: that of `seed_everything`, else 0.
        root: Not used; every data module takes it.
        predict_root: Not used: the test scenes are predicted.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    in_channels = 1
    num_classes = 2
    class_names = ("background", "lesion")
    region_names = ("inside", "cut")

    def __init__(
        self,
        patch_size: int | list[int] = 64,
        context: int = 0,
        patch_padding: Padding = "image",
        patch_centres: Centres = "uniform",
        patches_per_epoch: int = 512,
        ignore_border: bool = False,
        tile_size: int = 16,
        dimensions: int = 2,
        image_size: int = 64,
        distance: int = 12,
        jitter: int = 1,
        radius: float = 2.5,
        noise: float = 0.125,
        train_size: int = 512,
        val_size: int = 0,
        test_size: int = 512,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
        predict_root: str | None = None,
        drop_last: bool = False,
    ) -> None:
        self.dimensions = dimensions
        self.scenes = LesionScenes(dimensions, image_size, distance, jitter, radius, noise)
        super().__init__(
            patch_size,
            context,
            patch_padding,
            patches_per_epoch,
            patch_centres,
            batch_evaluation=True,
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            train_size=train_size,
            val_size=val_size,
            seed=seed,
            predict_root=predict_root,
            drop_last=drop_last,
        )
        if test_size < 0:
            raise ValueError(f"test_size must be 0 (no test) or more, got {test_size}.")
        if tile_size < 1:
            raise ValueError(f"tile_size must be at least 1 pixel, got {tile_size}.")
        if ignore_border and 2 * context >= image_size:
            raise ValueError(
                f"ignore_border leaves nothing of images of {image_size} pixels with a context of {context}: lower it."
            )
        self.ignored_border = context if ignore_border else 0
        self.tile_size = tile_size
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}

    def make_store(self, split: Split) -> LesionStore | None:
        own = (split,) if split == "test" else (split, self.seed)
        keys = [(*own, index) for index in range(self.sizes[split])]
        return LesionStore(self.scenes, keys, self.ignored_border) if keys else None

    def denormalise(self, images: Tensor) -> Tensor:
        """Images as values in [0, 1]: the ground is at 1/4, a lesion at 3/4, whatever else an image shows."""
        return (images.float() / 2 + 0.25).clamp(0, 1)

    def _whole(self, store: VolumeStore, with_masks: bool = True) -> VolumeDataset:
        if not with_masks:
            return super()._whole(store, with_masks)
        assert isinstance(store, LesionStore)
        return LesionDataset(store, self.tile_size)
