"""s'' of equation (6): which patches are cut out of a subject's volume, and what surrounds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datamodules.draws import numbers_for
from datamodules.images.masks import IGNORE_INDEX
from datamodules.images.tiles import tile_starts
from datamodules.listing import first_ten
from datamodules.volumes.volume import Volume

Centres = Literal["uniform", "grid", "class_balanced", "foreground"]
Padding = Literal["image", "zeros", "reflect"]
Place = tuple[int, ...]

GOLDEN = (math.sqrt(5) - 1) / 2


class PatchSampling:
    """Chooses where patches lie, f(seed, epoch, index).

    - "uniform": every place of the volume is as likely as the others.
    - "grid": the places of the fewest patches that cover the volume, evenly spaced from border to border. A subject's
      patches of an epoch are different places of it until all have been taken; with which they begin is drawn.
    - "class_balanced": the patch is centred on a voxel of a class, every class that the subject has being as likely as
      the others, and every voxel within the class.
    - "foreground": with probability `foreground_fraction` the patch is centred on a voxel of any class but 0, all being
      as likely; otherwise on a voxel of class 0.

    A patch of even length p has p / 2 voxels before its centre. One that would reach beyond the volume is moved inside:
    it still holds the voxel that was drawn, but not in its centre.

    Voxels are drawn exactly uniformly, from counts of each class in each layer of the volume (along its first axis),
    which take little memory; the layer that holds the voxel is searched.

    Args:
        seed: Seed of all draws.
        patch_size: Voxels along each axis.
        num_classes: Classes of the masks.
        centres: How patches are chosen, see above.
        foreground_fraction: See above, for "foreground" alone; default: 0.5.
        smaller_volumes: Volumes that are smaller than a patch are allowed: they lie in its middle.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    def __init__(
        self,
        seed: int,
        patch_size: Sequence[int],
        num_classes: int,
        centres: Centres = "uniform",
        foreground_fraction: float | None = None,
        smaller_volumes: bool = False,
    ) -> None:
        if centres not in get_args(Centres):
            raise ValueError(f"patch_centres must be one of {', '.join(get_args(Centres))}, got {centres!r}.")
        if foreground_fraction is not None and centres != "foreground":
            raise ValueError(f"foreground_fraction is for patch_centres: foreground, and that is {centres}.")
        self.foreground_fraction = 0.5 if foreground_fraction is None else foreground_fraction
        if not 0 <= self.foreground_fraction <= 1:
            raise ValueError(f"foreground_fraction must be 0 to 1, got {foreground_fraction}.")
        self.seed = seed
        self.patch_size = tuple(patch_size)
        self.num_classes = num_classes
        self.centres = centres
        self.smaller_volumes = smaller_volumes
        self._counts: dict[str, np.ndarray] = {}

    def check(self, volumes: Iterable[Volume]) -> None:
        """Refuse subjects of which a patch could not be drawn. Voxels are counted here where draws need their number.

        Args:
            volumes: With masks.

        Raises:
            ValueError: Some are smaller than a patch, or have no voxel to be drawn; the message names them.
        """
        refused: dict[tuple[str, str], list[str]] = {}
        for volume in volumes:
            obstacle = self._obstacle(volume)
            if obstacle is not None:
                refused.setdefault(obstacle, []).append(f"{volume.subject} ({_by(volume.size)})")
        if refused:
            (what, mend), subjects = next(iter(refused.items()))
            raise ValueError(f"{what} {first_ten(subjects)}. {mend}")

    def start(self, volume: Volume, epoch: int, index: int, number: int) -> Place:
        """The first voxel of a patch; negative where the volume is smaller than the patch.

        Args:
            volume: What it is cut out of.
            epoch: The epoch.
            index: Which of the epoch's patches it is.
            number: Which of the subject's patches of the epoch it is.

        Raises:
            ValueError: The volume is smaller than a patch, or has no voxel to be drawn; the message names it.
        """
        self.check([volume])
        if self.centres == "grid":
            return self._on_grid(volume, epoch, number)
        first, *others = numbers_for(index, "patches", self.seed, epoch).random(1 + len(self.patch_size)).tolist()
        if self.centres == "uniform":
            return tuple(
                int(draw * (size - patch + 1)) if size >= patch else -((patch - size) // 2)
                for draw, size, patch in zip(others, volume.size, self.patch_size, strict=True)
            )
        return self._around(volume, self._drawn_voxel(volume, first, others[0]))

    def _on_grid(self, volume: Volume, epoch: int, number: int) -> Place:
        starts = [
            tile_starts(size, patch) if size >= patch else [-((patch - size) // 2)]
            for size, patch in zip(volume.size, self.patch_size, strict=True)
        ]
        count = math.prod(map(len, starts))
        offset = int(numbers_for(0, "grid", self.seed, epoch, volume.subject).random() * count)
        # Any few in succession are spread over the volume; coprime, so that none comes twice before all have come.
        step = next(step for step in range(max(round(GOLDEN * count), 1), 2 * count + 1) if math.gcd(step, count) == 1)
        place = np.unravel_index((offset + number * step) % count, [len(along) for along in starts])
        return tuple(along[int(i)] for along, i in zip(starts, place, strict=True))

    def _drawn_voxel(self, volume: Volume, which: float, where: float) -> Place:
        """A voxel by two draws from [0, 1): of the class, and among its voxels."""
        assert volume.mask is not None
        counts = self._class_counts(volume)
        low, high = self._drawn_classes(counts.sum(0), which)
        ends = counts[:, low:high].sum(1).cumsum()
        number = int(where * ends[-1])
        layer = int(np.searchsorted(ends, number, side="right"))
        classes = volume.mask[layer].numpy()
        found = np.flatnonzero(((classes >= low) & (classes < high)).ravel())
        place = found[number - (ends[layer - 1] if layer else 0)]
        return layer, *(int(i) for i in np.unravel_index(place, classes.shape))

    def _drawn_classes(self, totals: np.ndarray, draw: float) -> tuple[int, int]:
        """The class to draw a voxel of, or the classes: from the first to before the second."""
        if self.centres == "class_balanced":
            present = np.flatnonzero(totals)
            chosen = int(present[int(draw * len(present))])
            return chosen, chosen + 1
        return (1, self.num_classes) if draw < self.foreground_fraction else (0, 1)

    def _around(self, volume: Volume, centre: Place) -> Place:
        return tuple(
            min(max(voxel - patch // 2, 0), size - patch) if size >= patch else -((patch - size) // 2)
            for voxel, size, patch in zip(centre, volume.size, self.patch_size, strict=True)
        )

    def _class_counts(self, volume: Volume) -> np.ndarray:
        """Voxels of each class in each layer, int64 (layers, num_classes); counted once."""
        if volume.subject not in self._counts:
            assert volume.mask is not None
            layers = [np.bincount(layer.numpy().ravel(), minlength=256) for layer in volume.mask]
            self._counts[volume.subject] = np.stack(layers)[:, : self.num_classes]
        return self._counts[volume.subject]

    def _obstacle(self, volume: Volume) -> tuple[str, str] | None:
        """What keeps patches from being drawn, to stand before the subject's name, and the mend; None: nothing."""
        if len(volume.size) != len(self.patch_size):
            return (
                f"patch_size {list(self.patch_size)} has another number of axes than",
                "Give one number for each spatial axis.",
            )
        if not self.smaller_volumes and any(map(int.__lt__, volume.size, self.patch_size)):
            return (
                f"A patch of {_by(self.patch_size)} voxels is larger than",
                "These are the sizes of the volumes as they are used (after spacing and crop_foreground, where these "
                "are set). Choose a smaller patch_size, or patch_padding: zeros or reflect, which continue the volume.",
            )
        return self._missing_class(volume) if self.centres in ("class_balanced", "foreground") else None

    def _missing_class(self, volume: Volume) -> tuple[str, str] | None:
        ground, *classes = self._class_counts(volume).sum(0)
        omit = "Set the weights of these subjects in subject_weights to 0"
        if not ground and not any(classes):
            return "There is no class at all in the mask of", f"All their voxels are to be ignored. {omit}."
        if self.centres == "class_balanced":
            return None
        if not any(classes) and self.foreground_fraction > 0:
            return (
                "There is no foreground, of which patch_centres: foreground takes voxels, in",
                f"{omit}, or choose patch_centres: class_balanced, which takes the classes that are there.",
            )
        if not ground and self.foreground_fraction < 1:
            return "There is no background to sample from in", f"{omit}, or foreground_fraction to 1."
        return None


@dataclass(frozen=True)
class PatchCutter:
    """Cuts a patch with its surroundings out of a volume.

    Attributes:
        patch_size: Voxels of the mask along each axis.
        context: Voxels that the image has beyond the mask at each border.
        padding: What these hold. "image": the image around the patch, and zeros beyond the volume. "zeros": zeros.
            "reflect": the patch, mirrored in its outermost voxels as often as it takes. With the last two, what a patch
            has beyond a smaller volume is filled likewise.
    """

    patch_size: Place
    context: int = 0
    padding: Padding = "image"

    def __post_init__(self) -> None:
        if self.padding not in get_args(Padding):
            raise ValueError(f"patch_padding must be one of {', '.join(get_args(Padding))}, got {self.padding!r}.")
        if self.context < 0:
            raise ValueError(f"context must be 0 or more voxels, got {self.context}.")

    @property
    def input_size(self) -> Place:
        """Voxels of the image along each axis."""
        return tuple(side + 2 * self.context for side in self.patch_size)

    def cut(self, volume: Volume, start: Place, image: Tensor, mask: Tensor) -> None:
        """Write the patch at `start` into `image` (C, *input_size) and `mask` (*patch_size); 255 beyond the volume."""
        assert volume.mask is not None
        first = tuple(voxel - self.context for voxel in start)
        inside = [
            (max(voxel, 0), min(voxel + side, size))
            for voxel, side, size in zip(start, self.patch_size, volume.size, strict=True)
        ]
        known = [(0, size) for size in volume.size] if self.padding == "image" else inside
        _copy(volume.mask, mask, start, inside, IGNORE_INDEX)
        if self.padding == "reflect":
            image.copy_(_reflected(volume.image, first, self.input_size, known))
        else:
            _copy(volume.image, image, first, known, 0)


def _copy(source: Tensor, target: Tensor, start: Place, known: Sequence[tuple[int, int]], fill: int) -> None:
    """Write what `source` (..., *size) holds from `start` on into `target`; `fill` where it is not within `known`."""
    sides = target.shape[-len(start) :]
    low = [max(first, begin) for first, (begin, _) in zip(start, known, strict=True)]
    high = [min(first + side, end) for first, side, (_, end) in zip(start, sides, known, strict=True)]
    lengths = [end - begin for begin, end in zip(low, high, strict=True)]
    if lengths != list(sides):
        target.fill_(fill)
    channels = (slice(None),) * (target.ndim - len(start))
    taken = tuple(map(slice, low, high))
    placed = tuple(slice(begin - first, begin - first + n) for begin, first, n in zip(low, start, lengths, strict=True))
    target[channels + placed] = source[channels + taken]


def _reflected(image: Tensor, start: Place, sides: Place, known: Sequence[tuple[int, int]]) -> Tensor:
    """The voxels of an image (C, *size) from `start` on, mirrored in the outermost ones within `known`."""
    for axis, (first, side, (low, high)) in enumerate(zip(start, sides, known, strict=True), 1):
        period = max(2 * (high - low - 1), 1)
        steps = (torch.arange(first, first + side) - low) % period
        image = image.index_select(axis, low + torch.minimum(steps, period - steps))
    return image


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
