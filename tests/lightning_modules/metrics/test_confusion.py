"""Measures of confusion matrices against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.metrics.confusion import PixelConfusion, class_mean, segmentation_measures

IGNORED = 255
NAN = math.nan
# Name: (prediction, truth, matrix, IoU and Dice of each class, and means "skip", "one", "zero" of the IoU; pixel
# accuracy; class accuracy). Three classes.
CASES = {
    "mixed": (
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 2, 2, 1],
        [[2, 0, 0], [0, 1, 1], [0, 1, 1]],
        [1, 1 / 3, 1 / 3],
        [1, 1 / 2, 1 / 2],
        (5 / 9, 5 / 9, 5 / 9),
        4 / 6,
        2 / 3,
    ),
    "perfect": (
        [0, 1, 2, 2],
        [0, 1, 2, 2],
        [[1, 0, 0], [0, 1, 0], [0, 0, 2]],
        [1, 1, 1],
        [1, 1, 1],
        (1, 1, 1),
        1,
        1,
    ),
    "absent everywhere": (
        [0, 0, 1, 1],
        [0, 1, 1, 1],
        [[1, 0, 0], [1, 2, 0], [0, 0, 0]],
        [1 / 2, 2 / 3, NAN],
        [2 / 3, 4 / 5, NAN],
        (7 / 12, 13 / 18, 7 / 18),
        3 / 4,
        (1 + 2 / 3) / 2,
    ),
    "absent in the truth, but predicted": (
        [0, 2, 1, 1],
        [0, 1, 1, 1],
        [[1, 0, 0], [0, 2, 1], [0, 0, 0]],
        [1, 2 / 3, 0],
        [1, 4 / 5, 0],
        (5 / 9, 5 / 9, 5 / 9),
        3 / 4,
        (1 + 2 / 3) / 2,
    ),
    "ignored": (
        [0, 1, 1, 2, 2],
        [0, 1, IGNORED, IGNORED, 2],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [1, 1, 1],
        [1, 1, 1],
        (1, 1, 1),
        1,
        1,
    ),
    "predicted only where it is ignored": (
        [0, 1, 2, 2],
        [0, 1, IGNORED, IGNORED],
        [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
        [1, 1, NAN],
        [1, 1, NAN],
        (1, 1, 2 / 3),
        1,
        1,
    ),
    "all ignored": (
        [0, 1, 2],
        [IGNORED] * 3,
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [NAN, NAN, NAN],
        [NAN, NAN, NAN],
        (NAN, 1, 0),
        NAN,
        NAN,
    ),
    "one class only": (
        [1, 1, 1],
        [1, 1, 1],
        [[0, 0, 0], [0, 3, 0], [0, 0, 0]],
        [NAN, 1, NAN],
        [NAN, 1, NAN],
        (1, 1, 1 / 3),
        1,
        1,
    ),
    "all wrong": (
        [1, 0],
        [0, 1],
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
        [0, 0, NAN],
        [0, 0, NAN],
        (0, 1 / 3, 0),
        0,
        0,
    ),
}


def count(prediction: list[int], truth: list[int], ignore_index: int = IGNORED) -> torch.Tensor:
    metric = PixelConfusion(3, ignore_index)
    metric.update(torch.tensor([prediction]), torch.tensor([truth]))
    return metric.compute()


@pytest.mark.parametrize("name", CASES)
def test_hand_computed(name):
    prediction, truth, matrix, iou, dice, means, pixel_accuracy, class_accuracy = CASES[name]
    confusion = count(prediction, truth)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == matrix
    values, by_class = segmentation_measures(confusion, IGNORED)
    assert by_class["iou"].tolist() == pytest.approx(iou, nan_ok=True)
    assert by_class["dice"].tolist() == pytest.approx(dice, nan_ok=True)
    known = [value for value in dice if not math.isnan(value)]
    assert values["dice"].item() == pytest.approx(sum(known) / len(known) if known else NAN, nan_ok=True)
    assert values["pixel_accuracy"].item() == pytest.approx(pixel_accuracy, nan_ok=True)
    assert values["class_accuracy"].item() == pytest.approx(class_accuracy, nan_ok=True)
    for absent, mean in zip(("skip", "one", "zero"), means, strict=True):
        values, _ = segmentation_measures(confusion, IGNORED, absent)
        assert values["miou"].item() == pytest.approx(mean, nan_ok=True)


def test_an_ignored_class_has_no_measure_but_counts_where_it_is_wrong():
    confusion = count([0, 1, 2, 0, 1], [0, 0, 1, 1, 2], ignore_index=0)  # the first two are ignored
    assert confusion.tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 0]]
    confusion = count([0, 1, 0, 2], [0, 1, 1, 2], ignore_index=0)
    values, by_class = segmentation_measures(confusion, 0, "zero")
    assert by_class["iou"].tolist() == pytest.approx([NAN, 1 / 2, 1], nan_ok=True)
    assert values["miou"].item() == pytest.approx(3 / 4)
    assert values["class_accuracy"].item() == pytest.approx(3 / 4)
    assert values["pixel_accuracy"].item() == pytest.approx(2 / 3)


def test_batches_add_up():
    metric = PixelConfusion(3, IGNORED)
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(3, (5, 4, 6), generator=generator)
    truths = torch.randint(3, (5, 4, 6), generator=generator)
    for prediction, truth in zip(predictions, truths, strict=True):
        metric.update(prediction.unsqueeze(0), truth.unsqueeze(0))
    assert torch.equal(metric.compute(), count(predictions.flatten().tolist(), truths.flatten().tolist()))
    metric.reset()
    assert metric.confmat.sum() == 0


def test_the_mean_over_the_data_set_is_not_that_over_images():
    """Intersections and unions are summed before they are divided."""
    whole = count([0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1])
    first, second = count([0, 0, 0, 0], [0, 0, 0, 0]), count([1, 0], [1, 1])
    assert torch.equal(first + second, whole)
    means = [segmentation_measures(matrix, IGNORED)[0]["miou"].item() for matrix in (first, second, whole)]
    assert means == pytest.approx([1, 1 / 4, (4 / 5 + 1 / 2) / 2])


def test_class_mean_of_nothing_is_not_a_number():
    assert class_mean(torch.tensor([NAN, NAN])).isnan()
