"""What is measured of each subject: overlap, distances of surfaces and volume, by region.

A subject counts once, however large it is, where a confusion matrix of the whole data set counts voxels.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from statistics import fmean
from typing import Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_modules.metrics.collectives import process_place
from models.names import check_name

BothEmpty = Literal["skip", "perfect"]
Regions = Mapping[str, Sequence[int]]

HEADER = (
    "subject",
    "region",
    "dice",
    "hd95",
    "surface_dice",
    "true_volume",
    "predicted_volume",
    "volume_difference",
    "relative_volume_difference",
)
_PERCENTILE = 95
_MM_A_CM = 10


@dataclass(frozen=True)
class RegionMeasures:
    """What is measured of a region of a subject; NaN is what is undefined, or was not asked for.

    Attributes:
        dice: Dice's coefficient.
        hd95: The 95th percentile of the Hausdorff distance in mm.
        surface_dice: The share of both surfaces that lies within the tolerance of the other.
        true_volume: In ml.
        predicted_volume: In ml.
    """

    dice: float
    hd95: float
    surface_dice: float
    true_volume: float
    predicted_volume: float

    @property
    def volume_difference(self) -> float:
        """Predicted less true volume in ml."""
        return self.predicted_volume - self.true_volume

    @property
    def relative_volume_difference(self) -> float:
        """The difference as a share of the true volume; NaN where the truth is empty."""
        return self.volume_difference / self.true_volume if self.true_volume else math.nan

    @property
    def compared(self) -> dict[str, float]:
        """The values whose means over subjects are reported, under their names; differences without their sign."""
        return {
            "subject_dice": self.dice,
            "hd95": self.hd95,
            "surface_dice": self.surface_dice,
            "volume_difference": abs(self.volume_difference),
            "relative_volume_difference": abs(self.relative_volume_difference),
        }


@dataclass(frozen=True)
class MeasuredSubject:
    """A subject's measures by region, its name, and its place in the data."""

    index: int
    subject: str
    regions: Mapping[str, RegionMeasures]


class SubjectMeasures:
    """Measures predicted volumes (*size) of two or three axes against their truth, region by region.

    - Dice's coefficient, 2 |P T| / (|P| + |T|).
    - HD95: the larger of the 95th percentiles of the distances from P's surface to T's and from T's to P's, in mm.
    - Surface Dice (Nikolov et al. 2018): the share of the voxels of both surfaces that are at most
      `surface_tolerance` from the other surface.
    - Volume difference, predicted less true, in ml, and as a share of the true volume.

    MONAI computes Dice and the distances, once for both measures, on the bounding box of prediction and truth. Surfaces
    are the voxels of a region with a neighbour, across one of their sides, that is not in it; distances are those of
    voxels' centres, with the spacing of the affine, whose axes are taken to be orthogonal. Of images of two axes what
    is called ml is cm^2. Voxels that are to be ignored belong to no region.

    Where a region is empty in the truth or in the prediction, but not in both, Dice and surface Dice are 0, and HD95 is
    `missing_distance`: a missed region must not make a mean better. `both_empty` says what becomes of a region that is
    empty in both. Where the truth is empty, the relative volume difference is undefined.

    Args:
        regions: Names to the classes that a region consists of, `{whole: [1, 2, 3], core: [1, 3]}`; default: each class
            but the first, by its name.
        surface_tolerance: In mm.
        hausdorff: Whether HD95 is measured.
        surface_dice: Whether surface Dice is measured.
        surfaces_in_validation: Measure HD95 and surface Dice in validation too. They take long where a network, early
            in its training, scatters its classes over the whole volume.
        both_empty: "skip": Dice, HD95 and surface Dice are undefined and in no mean; "perfect": they are 1, 0 and 1.
        missing_distance: HD95 in mm of a region that is missed or invented. None: the diagonal of the volume that is
            measured, the greatest distance in it, which shrinks with a subject that is cropped. For all subjects alike
            name that of their own grid: 373.13 for BraTS's 240x240x155 voxels of 1 mm, as its organisers have it.

    Raises:
        ValueError: An option out of range, a region without classes or with one twice.
        ImportError: MONAI is not installed.
    """

    def __init__(
        self,
        regions: dict[str, list[int]] | None = None,
        surface_tolerance: float = 1.0,
        hausdorff: bool = True,
        surface_dice: bool = True,
        surfaces_in_validation: bool = False,
        both_empty: BothEmpty = "skip",
        missing_distance: float | None = None,
    ) -> None:
        if find_spec("monai") is None:  # now, not after an epoch
            raise ImportError("SubjectMeasures needs MONAI: pip install convsuite[medical]")
        if not (surface_tolerance >= 0 and math.isfinite(surface_tolerance)):
            raise ValueError(f"surface_tolerance must be 0 mm or more, got {surface_tolerance}")
        if missing_distance is not None and not (missing_distance > 0 and math.isfinite(missing_distance)):
            raise ValueError(f"missing_distance must be above 0 mm, or null, got {missing_distance}")
        check_name("both_empty", both_empty, get_args(BothEmpty))
        if regions is not None and not regions:
            raise ValueError("regions is empty: name one, or leave it out for each class by itself")
        for name, classes in (regions or {}).items():
            if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
                raise ValueError(f"region {name!r} must name classes by their numbers, each once, got {classes}")
        self.regions = regions
        self.surface_tolerance = surface_tolerance
        self.hausdorff = hausdorff
        self.surface_dice = surface_dice
        self.surfaces_in_validation = surfaces_in_validation
        self.both_empty = both_empty
        self.missing_distance = missing_distance

    def check_classes(self, num_classes: int) -> None:
        """Raise `ValueError` where a region holds a number that is no class."""
        for name, classes in (self.regions or {}).items():
            if max(classes) >= num_classes:
                raise ValueError(f"region {name!r} holds class {max(classes)}, and the last one is {num_classes - 1}")

    def regions_of(self, class_names: Sequence[str]) -> Regions:
        """The regions, where the classes are called `class_names`."""
        return self.regions or {name: [number] for number, name in enumerate(class_names) if number > 0}

    def __call__(
        self,
        prediction: Tensor,
        truth: Tensor,
        affine: Tensor | None,
        regions: Regions,
        ignore_index: int = 255,
        with_surfaces: bool = True,
    ) -> dict[str, RegionMeasures]:
        """The measures of a subject.

        Args:
            prediction: Classes, integers (*size) of two or three axes.
            truth: Classes, or `ignore_index`, integers (*size).
            affine: (d + 1, d + 1), from indices of voxels to mm; None: voxels are 1 mm wide.
            regions: Names to classes.
            ignore_index: The value of ignored voxels in the truth.
            with_surfaces: Whether HD95 and surface Dice are measured, as far as they are asked for.
        """
        affine = torch.eye(truth.ndim + 1) if affine is None else affine
        axes = affine.double().cpu()[:-1, :-1]
        is_known = truth != ignore_index
        measured = {}
        for name, classes in regions.items():
            numbers = torch.tensor(classes, device=truth.device)
            predicted, true = (torch.isin(classes, numbers) & is_known for classes in (prediction, truth))
            measured[name] = self._measure(predicted, true, axes, with_surfaces)
        return measured

    def _measure(self, predicted: Tensor, true: Tensor, axes: Tensor, with_surfaces: bool) -> RegionMeasures:
        """`axes` (d, d): the steps from voxel to voxel along each axis, as columns, in mm."""
        spacing = axes.norm(dim=0)
        ml = float(axes.det().abs()) / _MM_A_CM ** len(axes)
        counts = int(true.sum()), int(predicted.sum())
        if all(counts):
            overlap = self._overlap(predicted, true, spacing.tolist(), with_surfaces)
        elif any(counts):
            diagonal = float((spacing * torch.tensor(true.shape)).norm())
            overlap = (0.0, diagonal if self.missing_distance is None else self.missing_distance, 0.0)
        else:
            overlap = (1.0, 0.0, 1.0) if self.both_empty == "perfect" else (math.nan, math.nan, math.nan)
        dice, hd95, surface_dice = overlap
        return RegionMeasures(
            dice=dice,
            hd95=hd95 if self.hausdorff and with_surfaces else math.nan,
            surface_dice=surface_dice if self.surface_dice and with_surfaces else math.nan,
            true_volume=counts[0] * ml,
            predicted_volume=counts[1] * ml,
        )

    def _overlap(
        self, predicted: Tensor, true: Tensor, spacing: list[float], with_surfaces: bool
    ) -> tuple[float, float, float]:
        """Dice, HD95 and surface Dice of regions that are not empty; NaN without surfaces."""
        from monai.metrics import compute_dice

        box = _bounding_box(predicted | true)
        predicted, true = (mask[box].cpu() for mask in (predicted, true))
        dice = float(compute_dice(predicted[None, None].float(), true[None, None].float()))
        if not (with_surfaces and (self.hausdorff or self.surface_dice)):
            return dice, math.nan, math.nan
        distances = _surface_distances(predicted, true, spacing)
        hd95 = max(float(np.percentile(some, _PERCENTILE)) for some in distances)
        return dice, hd95, float((np.concatenate(distances) <= self.surface_tolerance).mean())


def of_all_processes(measured: Sequence[MeasuredSubject]) -> list[MeasuredSubject]:
    """What all processes have measured, by the subjects' place in the data. Every process must call this."""
    world, _ = process_place()
    parts = [measured] * world
    if world > 1:
        dist.all_gather_object(parts, measured)
    return sorted(chain.from_iterable(parts), key=lambda subject: subject.index)


def subject_means(subjects: Sequence[MeasuredSubject]) -> dict[str, float]:
    """Means over subjects: `subject_dice_<region>`, `hd95_<region>` and the others of `RegionMeasures.compared`.

    What is undefined for a subject is left out of a mean, and a mean of nothing is left out altogether.
    `subjects_<region>` is the number of subjects of which the mean of Dice is made. `subject_dice` is the mean of the
    regions' means of Dice.
    """
    means: dict[str, float] = {}
    of_regions = []
    for region in subjects[0].regions if subjects else ():
        compared = [subject.regions[region].compared for subject in subjects]
        for name in compared[0]:
            values = [measures[name] for measures in compared if not math.isnan(measures[name])]
            if values:
                means[f"{name}_{region}"] = fmean(values)
            if name == "subject_dice":
                means[f"subjects_{region}"] = len(values)
                of_regions += [fmean(values)] if values else []
    return means | ({"subject_dice": fmean(of_regions)} if of_regions else {})


def as_csv(subjects: Sequence[MeasuredSubject]) -> str:
    """A row for each subject and region beneath `HEADER`; mm, ml and fractions; empty where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for subject in subjects:
        for region, measures in subject.regions.items():
            values = (getattr(measures, name) for name in HEADER[2:])
            cells = ("" if math.isnan(value) else f"{value:.6f}" for value in values)
            writer.writerow([subject.subject, region, *cells])
    return text.getvalue()


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """The smallest part of a mask (*size) that holds all that is true in it."""
    box = []
    for axis in range(mask.ndim):
        others = [other for other in range(mask.ndim) if other != axis]
        places = mask.any(others).nonzero()
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _surface_distances(predicted: Tensor, true: Tensor, spacing: list[float]) -> list[np.ndarray]:
    """Distances in mm of the voxels of each surface, the predicted and the true one, to the other; none is empty."""
    from monai.metrics.utils import get_edge_surface_distance

    with warnings.catch_warnings():
        # One of its functions calls another with an argument that it calls deprecated.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        _, distances, _ = get_edge_surface_distance(predicted, true, spacing=spacing, symmetric=True)
    return [some.numpy() for some in distances]
