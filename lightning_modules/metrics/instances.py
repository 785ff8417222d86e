"""How well objects are found: aggregated Jaccard index, panoptic quality and average precision of label maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

PERCENTS = tuple(range(50, 100, 5))
"""Thresholds of the intersection over union (IoU) at which average precision is taken."""

# Quotients are summed as whole numbers of this part of 1: sums are exact in any order and over any processes, and need
# no float64, which Apple's GPUs lack. 2^63 of them are more than a hundred million objects.
_PARTS = 2**36

LabelMap = np.ndarray | Tensor


class InstanceMetrics(Metric):
    """Agreement of predicted objects with true ones, over images that come one by one.

    - `aji`: aggregated Jaccard index (Kumar et al. 2017), see `aggregated_jaccard`; mean over images.
    - `pq`, `sq`, `rq`: panoptic, segmentation and recognition quality (Kirillov et al. 2019), pooled: a match has an
      IoU above 1/2, and TP, FP, FN and the IoU of matches are summed over all images first.

          pq = sq rq,   sq = sum of IoU / TP,   rq = TP / (TP + FP / 2 + FN / 2)

    - `ap`: average precision as the Data Science Bowl 2018 defines it, TP / (TP + FP + FN) of an image where a match
      has an IoU above t, averaged over t = 0.5, 0.55 ... 0.95 and over images; `ap_50` and `ap_75`: at one t.

    All lie in [0, 1], and 1 is best. An image with neither true nor predicted objects counts nowhere; where there is no
    other, all values are NaN. Where objects are there but none is matched, `sq` is 0. Values are equal to the last bit
    for any order of images and any number of processes. Papers differ in how `pq` is averaged: many on nuclei take its
    mean over images, in which large images with many nuclei weigh no more than others.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    num_images: Tensor
    jaccard: Tensor
    precision: Tensor
    iou: Tensor
    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("num_images", "jaccard", "iou", "true_positives", "false_positives", "false_negatives"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("precision", torch.zeros(len(PERCENTS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: LabelMap, truth: LabelMap, ignored: LabelMap | None = None) -> None:
        """Take in one image.

        Args:
            prediction: The number of the predicted object at each pixel, 0 for none, integers (H, W) (or another number
                of dimensions). Numbers may have gaps, and an object may be in pieces.
            truth: The same of the true objects.
            ignored: bool (H, W): pixels that belong to no object, whatever the maps hold there. A predicted object that
                has more than half of its pixels there is no mistake where it matches nothing.

        Raises:
            TypeError: A map does not hold integers.
            ValueError: Shapes differ, or a number is negative.
        """
        overlaps = Overlaps.between(prediction, truth, ignored)
        if not (len(overlaps.truth) or overlaps.counts.any()):
            return
        matches = [overlaps.match(percent) for percent in PERCENTS]
        self.num_images += 1
        self.jaccard += _in_parts(aggregated_jaccard(overlaps))
        self.precision += torch.tensor([_in_parts(match.precision) for match in matches], device=self.device)
        self.iou += _in_parts(matches[0].iou)
        self.true_positives += matches[0].true_positives
        self.false_positives += matches[0].false_positives
        self.false_negatives += matches[0].false_negatives

    def compute(self) -> dict[str, Tensor]:
        """The measures, float32 scalars."""
        precision = self.precision / self.num_images / _PARTS
        iou = self.iou / _PARTS
        objects = 2 * self.true_positives + self.false_positives + self.false_negatives  # true and predicted ones
        return {
            "aji": self.jaccard / self.num_images / _PARTS,
            "pq": 2 * iou / objects,
            "sq": torch.where(objects > 0, iou / self.true_positives.clamp(min=1), torch.nan),
            "rq": 2 * self.true_positives / objects,
            "ap_50": precision[PERCENTS.index(50)],
            "ap_75": precision[PERCENTS.index(75)],
            "ap": precision.mean(),
        }


@dataclass(frozen=True)
class Match:
    """Objects of one image that are matched at a threshold of the IoU; `iou` is the sum of theirs."""

    true_positives: int
    false_positives: int
    false_negatives: int
    iou: float

    @property
    def precision(self) -> float:
        """TP / (TP + FP + FN)."""
        return self.true_positives / (self.true_positives + self.false_positives + self.false_negatives)


@dataclass(frozen=True)
class Overlaps:
    """The objects of two label maps, and where they overlap; all numbers are pixels.

    Attributes:
        truth: Areas of the n true objects, int64 (n,).
        prediction: Areas of the m predicted ones, (m,).
        counts: Whether a predicted object that matches nothing is a mistake, bool (m,).
        pairs: Places of a true and a predicted object that overlap, in the arrays above, int64 (2, p).
        intersection: Of each pair, (p,).
    """

    truth: np.ndarray
    prediction: np.ndarray
    counts: np.ndarray
    pairs: np.ndarray
    intersection: np.ndarray

    @classmethod
    def between(cls, prediction: LabelMap, truth: LabelMap, ignored: LabelMap | None = None) -> Overlaps:
        """Those of two label maps; see `InstanceMetrics.update` for arguments and errors."""
        predicted, true = _without_gaps(_labels(prediction, "prediction")), _labels(truth, "truth")
        asked = np.ones_like(true, bool) if ignored is None else ~_array(ignored).astype(bool)
        if not predicted.shape == true.shape == asked.shape:
            shapes = f"prediction {predicted.shape}, truth {true.shape}, ignored {asked.shape}"
            raise ValueError(f"the maps of an image have different shapes: {shapes}")
        predicted_areas = np.bincount(predicted.ravel())
        predicted, true = predicted * asked, _without_gaps(true * asked)
        true_areas = np.bincount(true.ravel())
        asked_areas = np.bincount(predicted.ravel(), minlength=len(predicted_areas))
        both = (predicted > 0) & (true > 0)
        shape = len(true_areas), len(asked_areas)
        codes, intersection = np.unique(np.ravel_multi_index((true[both], predicted[both]), shape), return_counts=True)
        return cls(
            truth=true_areas[1:],
            prediction=asked_areas[1:],
            counts=(2 * asked_areas >= predicted_areas)[1:],
            pairs=np.stack(np.unravel_index(codes, shape)) - 1,
            intersection=intersection,
        )

    @property
    def union(self) -> np.ndarray:
        """Of each pair, int64 (p,)."""
        return self.truth[self.pairs[0]] + self.prediction[self.pairs[1]] - self.intersection

    def match(self, percent: int) -> Match:
        """Match objects whose IoU is above `percent` / 100, at least a half: then an object has no two matches."""
        is_match = 100 * self.intersection > percent * self.union  # whole numbers: exact
        unmatched = self.counts.copy()
        unmatched[self.pairs[1, is_match]] = False
        true_positives = int(is_match.sum())
        return Match(
            true_positives=true_positives,
            false_positives=int(unmatched.sum()),
            false_negatives=len(self.truth) - true_positives,
            iou=float((self.intersection / self.union)[is_match].sum()),
        )


def aggregated_jaccard(overlaps: Overlaps) -> float:
    """Aggregated Jaccard index of one image that has objects (Kumar et al. 2017, algorithm 1).

    Each true object takes the predicted one with which its IoU is greatest, the first of equal ones. The index is the
    sum of their intersections over the sum of their unions plus the areas of all predicted objects that none took. As
    published, several true objects may take the same predicted one. A true object that none overlaps adds its own area
    alone.
    """
    union = overlaps.union
    true, predicted = overlaps.pairs
    by_iou = np.lexsort((predicted, -overlaps.intersection / union, true))
    found, first = np.unique(true[by_iou], return_index=True)
    taken = by_iou[first]
    alone = np.ones(len(overlaps.truth), bool)
    alone[found] = False
    unused = overlaps.counts.copy()
    unused[predicted[taken]] = False
    total = union[taken].sum() + overlaps.truth[alone].sum() + overlaps.prediction[unused].sum()
    return float(overlaps.intersection[taken].sum() / total)


def _labels(values: LabelMap, name: str) -> np.ndarray:
    labels = _array(values)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} must hold numbers of objects (integers), got {labels.dtype}")
    if labels.size and labels.min() < 0:
        raise ValueError(f"{name} holds {labels.min()}: objects are numbered from 1, and 0 is the background")
    return labels


def _without_gaps(labels: np.ndarray) -> np.ndarray:
    from skimage.segmentation import relabel_sequential

    return relabel_sequential(labels)[0]


def _array(values: LabelMap) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _in_parts(value: float) -> int:
    return round(value * _PARTS)
