"""Measures of objects against hand-computed cases, published algorithms written as loops, and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality

from lightning_modules.metrics.instances import PERCENTS, InstanceMetrics

# Two true objects of four pixels.
TWO = [[1, 1, 0, 2, 2], [1, 1, 0, 2, 2]]
NOTHING = np.zeros((2, 5), int)


def measure(*images):
    metrics = InstanceMetrics()
    for image in images:
        metrics.update(*(np.asarray(labels) for labels in image))
    return {name: value.item() for name, value in metrics.compute().items()}


def random_maps(seed, size=24, objects=9):
    """Two maps of rectangles that hide one another in part; the second resembles the first. Numbers have gaps."""
    draw = np.random.default_rng(seed)
    maps = np.zeros((2, size, size), np.int64)
    for number in draw.permutation(40)[:objects] + 1:
        top, left = draw.integers(0, size - 4, 2)
        height, width = draw.integers(2, 9, 2)
        maps[0, top : top + height, left : left + width] = number
        top, left = np.maximum(np.array([top, left]) + draw.integers(-1, 2, 2), 0)
        if draw.random() < 0.8:
            maps[1, top : top + height, left : left + width] = 50 - number
    return maps[1], maps[0]


PERFECT = {"aji": 1, "pq": 1, "sq": 1, "rq": 1, "ap_50": 1, "ap_75": 1, "ap": 1}
ZERO = dict.fromkeys(PERFECT, 0)
CASES = {
    "perfect": (TWO, TWO, PERFECT),
    "other numbers": ([[7, 7, 0, 3, 3], [7, 7, 0, 3, 3]], TWO, PERFECT),
    "no prediction": (NOTHING, TWO, ZERO),
    "no truth": (TWO, NOTHING, ZERO),
    "neither": (NOTHING, NOTHING, dict.fromkeys(PERFECT, math.nan)),
    "one missed": ([[1, 1, 0, 0, 0]] * 2, TWO, {"aji": 4 / 8, "pq": 2 / 3, "sq": 1, "rq": 2 / 3, "ap": 1 / 2}),
    "one invented": (TWO, [[1, 1, 0, 0, 0]] * 2, {"aji": 4 / 8, "pq": 2 / 3, "sq": 1, "rq": 2 / 3, "ap": 1 / 2}),
    # IoU of a half is no match.
    "half": ([[1, 1, 0, 2, 2], [0, 0, 0, 2, 2]], TWO, {"aji": 6 / 8, "pq": 1 / 2, "ap_50": 1 / 3, "ap": 1 / 3}),
    # IoU of 3/4 matches at 0.5 to 0.7, not at 0.75: five of ten thresholds.
    "three quarters": (
        [[1, 1, 0, 2, 2], [1, 0, 0, 2, 2]],
        TWO,
        {"aji": 7 / 8, "pq": 7 / 8, "sq": 7 / 8, "rq": 1, "ap_50": 1, "ap_75": 1 / 3, "ap": (5 + 5 / 3) / 10},
    ),
    # A strip of five in pieces of three and two: the smaller is left over.
    "split": (
        [[1, 1, 1, 2, 2]],
        [[1, 1, 1, 1, 1]],
        {"aji": 3 / (5 + 2), "pq": 0.6 / 1.5, "sq": 0.6, "rq": 1 / 1.5, "ap_50": 1 / 2, "ap_75": 0, "ap": 2 / 20},
    ),
    # Both true objects take the one that covers them: 3 + 2 of 5 + 5.
    "merged": (
        [[1, 1, 1, 1, 1]],
        [[1, 1, 1, 2, 2]],
        {"aji": 5 / 10, "pq": 0.6 / 1.5, "sq": 0.6, "rq": 1 / 1.5, "ap_50": 1 / 2, "ap_75": 0, "ap": 2 / 20},
    ),
    "in pieces": ([[1, 0, 1, 0, 1]], [[4, 0, 4, 0, 4]], PERFECT),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case):
    prediction, truth, expected = CASES[case]
    measured = measure((prediction, truth))
    assert {name: measured[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_over_images():
    split, perfect, nothing = (CASES[name][:2] for name in ("split", "perfect", "neither"))
    both = measure(split, nothing, perfect)
    assert both["aji"] == pytest.approx((3 / 7 + 1) / 2)  # means over images that have objects
    assert both["ap"] == pytest.approx((0.1 + 1) / 2)
    assert both["sq"] == pytest.approx((0.6 + 2) / 3)  # pooled: three matches, one false positive
    assert both["rq"] == pytest.approx(3 / 3.5)
    assert both["pq"] == pytest.approx(both["sq"] * both["rq"])


def ious(prediction, truth):
    """Intersections and unions, (true, predicted)."""
    true, predicted = ([labels == number for number in np.unique(labels[labels > 0])] for labels in (truth, prediction))
    pairs = np.array([[[(a & b).sum(), (a | b).sum()] for b in predicted] for a in true])
    return pairs[..., 0], pairs[..., 1], [b.sum() for b in predicted]


@pytest.mark.parametrize("seed", range(8))
def test_aji_is_the_published_loop(seed):
    prediction, truth = random_maps(seed)
    intersection, union, areas = ious(prediction, truth)
    above, below, used = 0, 0, set()
    for i in range(len(intersection)):
        best = int((intersection[i] / union[i]).argmax())
        if intersection[i, best]:
            above, below = above + intersection[i, best], below + union[i, best]
            used.add(best)
        else:
            below += union[i, best] - areas[best]
    below += sum(area for number, area in enumerate(areas) if number not in used)
    assert measure((prediction, truth))["aji"] == pytest.approx(above / below)


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_the_published_loop(seed):
    prediction, truth = random_maps(seed)
    intersection, union, _ = ious(prediction, truth)
    values = []
    for percent in PERCENTS:
        hits = (100 * intersection > percent * union).sum()
        values.append(hits / (sum(intersection.shape) - hits))
    measured = measure((prediction, truth))
    assert 0 < measured["ap"] < 0.9
    expected = {"ap_50": values[0], "ap_75": values[5], "ap": np.mean(values)}
    assert {name: measured[name] for name in expected} == pytest.approx(expected)


def test_panoptic_quality_is_that_of_torchmetrics():
    draw = np.random.default_rng(0)
    ours, theirs = InstanceMetrics(), PanopticQuality({1}, {0}, return_sq_and_rq=True, return_per_class=True)
    for seed in range(20):
        prediction, truth = random_maps(seed)
        ignored = np.zeros_like(truth, bool)
        top, left = draw.integers(0, 16, 2)
        ignored[top : top + 8, left : left + 8] = seed % 2
        ours.update(prediction, truth, ignored)
        category = np.where(ignored, 255, truth > 0)
        pairs = [np.stack([prediction > 0, prediction], -1), np.stack([category, truth], -1)]
        theirs.update(*(torch.from_numpy(pair)[None] for pair in pairs))
    expected = theirs.compute()[0]  # of things; those of stuff come after
    measured = ours.compute()
    assert [measured[name].item() for name in ("pq", "sq", "rq")] == pytest.approx(expected.tolist())


def test_what_is_ignored_is_no_mistake():
    truth, prediction = [[1, 1, 1, 0, 0, 0]], [[1, 1, 1, 2, 2, 2]]
    assert measure((prediction, truth))["rq"] == pytest.approx(2 / 3)
    assert measure((prediction, truth, [[0, 0, 0, 0, 1, 1]])) == pytest.approx(PERFECT)
    assert measure((prediction, truth, [[0, 0, 0, 0, 0, 1]]))["rq"] == pytest.approx(2 / 3)  # most of it is not
    assert measure(([[1, 1, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 1, 0]])) == pytest.approx(PERFECT)
    assert math.isnan(measure(([[0, 0, 1]], [[0, 0, 2]], [[0, 0, 1]]))["aji"])


def test_any_order_and_any_share_give_the_same_bits():
    images = [random_maps(seed) for seed in range(30)]
    expected = measure(*images)
    assert measure(*images[::-1]) == expected
    parts = [InstanceMetrics(), InstanceMetrics()]
    for place, image in enumerate(images):
        parts[place % 3 == 0].update(*image)
    for name in parts[0]._defaults:
        setattr(parts[0], name, getattr(parts[0], name) + getattr(parts[1], name))
    assert {name: value.item() for name, value in parts[0].compute().items()} == expected


def test_reset_and_checkpoint():
    metrics = InstanceMetrics()
    metrics.update(np.array(TWO), np.array(TWO))
    metrics.reset()
    metrics.update(NOTHING, np.array(TWO))
    assert metrics.compute()["pq"] == 0
    assert not metrics.state_dict()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_tensors(kind):
    metrics = InstanceMetrics()
    metrics.update(torch.tensor(TWO, dtype=kind), torch.tensor(TWO, dtype=kind), torch.zeros(2, 5, dtype=torch.bool))
    values = metrics.compute()
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert {name: value.item() for name, value in values.items()} == PERFECT


def test_volumes():
    volumes = np.array(TWO)[None].repeat(3, 0)
    assert measure((volumes, volumes)) == PERFECT


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ((np.zeros((2, 3)), NOTHING), TypeError, "prediction must hold numbers of objects"),
        ((NOTHING, NOTHING > 0), TypeError, "truth must hold numbers of objects .*bool"),
        ((NOTHING, NOTHING - 1), ValueError, "truth holds -1"),
        ((NOTHING, NOTHING.T), ValueError, r"different shapes: prediction \(2, 5\), truth \(5, 2\)"),
        ((NOTHING, NOTHING, NOTHING[:1]), ValueError, r"different shapes: .*ignored \(1, 5\)"),
    ],
)
def test_maps_that_cannot_be_compared(images, error, message):
    with pytest.raises(error, match=message):
        InstanceMetrics().update(*images)
