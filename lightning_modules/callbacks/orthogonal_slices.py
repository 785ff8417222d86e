"""Volumes with their true and their predicted masks, in three planes."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.callbacks.first_images import FirstImages, resampled, shown_scale
from lightning_modules.pictures.overlays import SegmentedImage

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Name to the axis of a RAS+ volume that a plane stands upright on."""
_WINDOW = (0.005, 0.995)  # quantiles of grey values, of which the first is black and the last white


class OrthogonalSlices(FirstImages):
    """Draws `slices_<stage>.png`: three slices of some volumes in every modality, the truth, the prediction, mistakes.

    `FirstImages` says when. Of each plane that slice is shown in which the truth has the most foreground (all classes
    but 0), of volumes without foreground the middle one. Slices are seen as radiologists do: the patient's right is on
    the left, anterior and superior are up. Volumes of any orientation are brought to the RAS+ that is nearest by their
    affine, in which slices are counted too. A voxel is as wide and as high as its spacing says. Grey values run from
    the 0.5th to the 99.5th percentile of a modality in the three slices.

    Reads "prediction" (N, X, Y, Z), "mask" (N, X, Y, Z) and "index" (N,) from what `validation_step` and `test_step`
    return; `image` (N, C, X, Y, Z) and, where they are there, `file` and `affine` from the batch; `class_names` and
    `modalities`, the names of the channels, from the data module. Images of two axes are for `SegmentationOverlays`.

    Args:
        count: How many volumes to draw.
        every_n_epochs: Also draw while training, after so many epochs; None: for the last validation alone.
        max_side: Pixels of the longest side to which larger volumes are shrunk.
    """

    picture = "slices"
    masks = "slice_masks"

    def __init__(self, count: int = 2, every_n_epochs: int | None = 10, max_side: int = 320) -> None:
        super().__init__(count, every_n_epochs, max_side=max_side)
        self.max_side = max_side

    def titles(self, data: Any) -> tuple[str, ...]:
        names = tuple(getattr(data, "modalities", None) or ())
        if len(names) == data.in_channels:
            return names
        return ("Image",) if data.in_channels == 1 else tuple(f"Channel {i}" for i in range(data.in_channels))

    def rows(self, data: Any, ignore_index: int, outputs: Any, batch: Any, count: int) -> list[list[SegmentedImage]]:
        if batch["image"].ndim != 5:
            return []
        indices = outputs["index"].tolist()[:count]
        names = batch.get("file") or [f"#{index}" for index in indices]
        affines = batch.get("affine", [torch.eye(4)] * len(indices))
        volumes = zip(indices, names, affines, batch["image"], outputs["mask"], outputs["prediction"], strict=False)
        return [self._slices(ignore_index, *volume) for volume in volumes]

    def _slices(
        self, ignore_index: int, index: int, name: str, affine: Tensor, image: Tensor, truth: Tensor, prediction: Tensor
    ) -> list[SegmentedImage]:
        # Arrays are as their files have them where the data module leaves the orientation alone, say LPS or ASR, and
        # planes and sides would be named and turned wrongly: from here on all is RAS+, whatever it was.
        order, flipped = axes_to_ras(affine)
        image, truth, prediction = (_reoriented(volume, order, flipped) for volume in (image, truth, prediction))
        asked = truth != ignore_index
        foreground = (truth > 0) & asked
        places = largest_cross_sections(foreground)
        spacing = affine[:-1, order].float().norm(dim=0).tolist()
        sides = [n * width / min(spacing) for n, width in zip(truth.shape, spacing, strict=True)]
        scale = shown_scale(max(sides), self.max_side)
        sizes = [max(round(scale * side), 1) for side in sides]
        dice = _dice((prediction > 0) & asked, foreground)
        subject = name if math.isnan(dice) else f"{name} (Dice of the foreground {dice:.3f})"
        greys = _as_bytes([_upright(image.float(), axis, places[axis]) for axis in PLANES.values()])
        rows = []
        for (plane, axis), grey in zip(PLANES.items(), greys, strict=True):
            width, height = (size for other, size in enumerate(sizes) if other != axis)
            shown, *others = (resampled(channel, height, width) for channel in grey)
            true, predicted = (
                resampled(_upright(mask, axis, places[axis]).byte().cpu().numpy(), height, width)
                for mask in (truth, prediction)
            )
            where = f"{subject}, {plane}, slice {places[axis] + 1} of {truth.shape[axis]}"
            rows.append(SegmentedImage(index, where, shown, true, predicted, math.nan, tuple(others)))
        return rows


def largest_cross_sections(foreground: Tensor) -> list[int]:
    """Along each axis of a mask, bool (*size), the first slice with the most foreground; the middle one without any."""
    places = []
    for axis, side in enumerate(foreground.shape):
        areas = foreground.sum([other for other in range(foreground.ndim) if other != axis])
        places.append(int(areas.argmax()) if areas.any() else side // 2)
    return places


def axes_to_ras(affine: Tensor) -> tuple[list[int], list[int]]:
    """How an array comes nearest to RAS+, for `affine` (d + 1, d + 1), from indices of voxels to mm.

    Returns:
        The array's axes in the order that they are to have, and those that are to be reversed, by their new places.
    """
    steps = affine[:-1, :-1].double().cpu()
    cosines = (steps / steps.norm(dim=0)).tolist()
    places = range(len(cosines))
    order = max(permutations(places), key=lambda axes: sum(abs(cosines[place][axes[place]]) for place in places))
    return list(order), [place for place in places if cosines[place][order[place]] < 0]


def _reoriented(volume: Tensor, order: list[int], flipped: list[int]) -> Tensor:
    """A volume (..., *size) with its axes as `axes_to_ras` says; not copied unless one is reversed."""
    dimensions = len(order)
    volume = volume.movedim([axis - dimensions for axis in order], list(range(-dimensions, 0)))
    return volume.flip([place - dimensions for place in flipped]) if flipped else volume


def _upright(volume: Tensor, axis: int, place: int) -> Tensor:
    """A slice of a RAS+ volume (..., X, Y, Z) as rows and columns: the last axis upwards, the first to the left."""
    return volume.select(axis - 3, place).transpose(-1, -2).flip(-1, -2)


def _as_bytes(slices: list[Tensor]) -> list[np.ndarray]:
    """Slices (C, H, W) of several planes as grey values uint8 (C, H, W, 3), each channel in a window of its own."""
    values = torch.cat([plane.flatten(1) for plane in slices], 1)
    low, high = (values.quantile(q, dim=1)[:, None, None] for q in _WINDOW)
    greys = [((plane - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) for plane in slices]
    return [(255 * grey).round().byte().unsqueeze(-1).expand(-1, -1, -1, 3).cpu().numpy() for grey in greys]


def _dice(predicted: Tensor, true: Tensor) -> float:
    return float(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
