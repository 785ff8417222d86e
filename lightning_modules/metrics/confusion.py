"""What one confusion matrix says of a labelling: overlap and accuracy of each class, and their means.

A confusion matrix is int64 (C, C), rows the truth, columns the prediction. Counts are added up over the whole data set
before anything is divided, so images of all sizes and any number of processes give the same values.

A measure of a class is undefined, 0/0, and NaN here, where the class is absent: IoU and Dice of a class that neither
truth nor prediction holds, recall of a class that the truth does not hold. `class_mean` says what then becomes of it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

Absent = Literal["skip", "one", "zero"]


class PixelConfusion(MulticlassConfusionMatrix):
    """The confusion matrix of all pixels whose truth is not `ignore_index`, exact under any number of processes.

    It counts in memory of a few times the number of pixels. The counting that it replaces needs a table of pixels
    times cells as soon as torch's deterministic algorithms are asked for.

    Args:
        num_classes: C, at least 2.
        ignore_index: The value of ignored pixels in the truth; it may be the number of a class.
    """

    ignore_index: int

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__(num_classes, ignore_index=ignore_index)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count predictions against the truth, pixel by pixel.

        Args:
            prediction: Classes, of any integer type, (N, ...).
            truth: Classes, or `ignore_index`, int64 (N, ...).
        """
        is_ignored = truth == self.ignore_index
        spare = self.num_classes**2  # where ignored pixels go: picking the others would have to wait for a GPU
        cells = (truth * self.num_classes + prediction).masked_fill(is_ignored, spare).flatten()
        counts = cells.new_zeros(spare + 1).scatter_add_(0, cells, torch.ones_like(cells))  # bincount would wait, too
        self.confmat += counts[:spare].view_as(self.confmat)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union, TP / (TP + FP + FN), of each class, float64 (C,)."""
    hits, truth, predicted = _counts(confusion)
    return hits / (truth + predicted - hits)


def dice(confusion: Tensor) -> Tensor:
    """Dice's coefficient, 2 TP / (2 TP + FP + FN), of each class, float64 (C,)."""
    hits, truth, predicted = _counts(confusion)
    return 2 * hits / (truth + predicted)


def recall(confusion: Tensor) -> Tensor:
    """The accuracy within each class, TP / (TP + FN), float64 (C,)."""
    hits, truth, _ = _counts(confusion)
    return hits / truth


def accuracy(confusion: Tensor) -> Tensor:
    """The share of all samples (or pixels) that are right, float64 scalar; NaN where there are none."""
    hits, truth, _ = _counts(confusion)
    return hits.sum() / truth.sum()


def class_mean(values: Tensor, absent: Absent = "skip") -> Tensor:
    """The mean of a measure over classes.

    Args:
        values: Of each class, (C,), NaN where undefined.
        absent: What becomes of an undefined value: "skip" leaves it out (NaN where nothing is left), "one" and "zero"
            put this number in its place.
    """
    if absent == "skip":
        return values.nanmean()
    return values.nan_to_num(1.0 if absent == "one" else 0.0).mean()


def segmentation_measures(
    confusion: Tensor, ignore_index: int, absent: Absent = "skip"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Measures of the whole data set, and those of each class.

    Args:
        confusion: int64 (C, C).
        ignore_index: A class of this number is ignored in the truth. It counts where it is predicted in place of
            another, but has no measure of its own: it is in no mean, and NaN.
        absent: As in `class_mean`.

    Returns:
        "miou", "dice", "class_accuracy" (means over the classes) and "pixel_accuracy", float64 scalars; and of each
        class "iou" and "dice", float64 (C,), NaN where undefined.
    """
    counts = torch.arange(len(confusion)) != ignore_index
    by_class = {"iou": iou(confusion), "dice": dice(confusion)}
    means = {
        "miou": class_mean(by_class["iou"][counts], absent),
        "dice": class_mean(by_class["dice"][counts], absent),
        "pixel_accuracy": accuracy(confusion),
        "class_accuracy": class_mean(recall(confusion)[counts], absent),
    }
    return means, {name: values.where(counts, torch.nan) for name, values in by_class.items()}


def _counts(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class: what is right, how often it is true, how often it is predicted; float64 (C,)."""
    confusion = confusion.double()
    return confusion.diagonal(), confusion.sum(1), confusion.sum(0)
