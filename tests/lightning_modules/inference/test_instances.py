"""Objects of a foreground."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.inference.instances import label_objects


def discs(*circles, shape=(40, 60)):
    """bool: inside of any of the circles (centre row, centre column ..., radius)."""
    places = np.indices(shape)
    inside = np.zeros(shape, bool)
    for *centre, radius in circles:
        squares = (np.array(centre).reshape(-1, *[1] * len(shape)) - places) ** 2
        inside |= squares.sum(0) <= radius**2
    return inside


TOUCHING = discs((20, 18, 10), (20, 36, 10))


def test_components_touch_with_their_sides():
    foreground = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]], bool)
    labels = label_objects(foreground)
    assert labels.dtype == np.int32
    assert labels.tolist() == [[1, 1, 0, 0], [0, 0, 2, 0], [3, 0, 2, 0]]


@pytest.mark.parametrize("method", ["components", "watershed"])
def test_small_objects_go_and_numbers_have_no_gaps(method):
    foreground = np.array([[1, 0, 1, 1, 0, 1, 1, 1]], bool)
    assert label_objects(foreground, method=method).tolist() == [[1, 0, 2, 2, 0, 3, 3, 3]]
    assert label_objects(foreground, method=method, min_size=2).tolist() == [[0, 0, 1, 1, 0, 2, 2, 2]]
    assert label_objects(foreground, method=method, min_size=9).max() == 0


def test_touching_objects_are_split_where_they_touch():
    assert label_objects(TOUCHING).max() == 1
    labels = label_objects(TOUCHING, method="watershed")
    assert labels.max() == 2
    np.testing.assert_array_equal(labels > 0, TOUCHING)
    left, right = labels[20, 18], labels[20, 36]
    assert (labels[:, :27][TOUCHING[:, :27]] == left).all()
    assert (labels[:, 28:][TOUCHING[:, 28:]] == right).all()


@pytest.mark.parametrize(
    "whole",
    [
        discs((20, 30, 15)),
        discs(*((20, column, 8) for column in np.linspace(15, 45, 61))),  # all along its axis it is as wide
        discs(*((20, column, 8 - abs(column - 30) / 5) for column in np.linspace(15, 45, 61))),
        discs((20, 22, 10), (20, 30, 10)),  # a waist, but not narrow enough
    ],
    ids=["disc", "capsule", "spindle", "peanut"],
)
def test_one_object_stays_one(whole):
    assert label_objects(whole, method="watershed").max() == 1


def test_prominence_says_how_narrow_a_waist_must_be():
    peanut = discs((20, 20, 10), (20, 32, 10))
    numbers = [label_objects(peanut, method="watershed", prominence=p).max() for p in (0.5, 1, 3)]
    assert numbers == [2, 2, 1]


def test_probability_makes_valleys():
    slab = np.zeros((20, 40), bool)
    slab[4:16, 4:36] = True
    probability = np.where(np.abs(np.arange(40) - 20) < 2, 0.55, 0.95) * slab
    assert label_objects(slab, method="watershed").max() == 1
    assert label_objects(slab, probability, method="watershed").max() == 2
    assert label_objects(slab, probability).max() == 1


def test_every_component_has_an_object_and_no_object_has_two():
    draw = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.7):
        foreground = draw.random((50, 50)) < share
        components, labels = label_objects(foreground), label_objects(foreground, method="watershed")
        np.testing.assert_array_equal(labels > 0, foreground)
        for number in range(1, labels.max() + 1):
            assert len(np.unique(components[labels == number])) == 1


@pytest.mark.parametrize("method", ["components", "watershed"])
@pytest.mark.parametrize("value", [False, True])
def test_nothing_and_everything(method, value):
    labels = label_objects(np.full((7, 9), value), np.full((7, 9), 0.5), method=method, min_size=3)
    np.testing.assert_array_equal(labels, np.full((7, 9), int(value)))


def test_volumes():
    balls = discs((10, 10, 10, 6), (10, 10, 20, 6), shape=(20, 20, 30))
    assert label_objects(balls).max() == 1
    assert label_objects(balls, method="watershed").max() == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"foreground": np.ones((2, 2))}, TypeError, "foreground must be bool, got float64"),
        ({"method": "voronoi"}, ValueError, "'components' or 'watershed', got 'voronoi'"),
        ({"probability": np.ones((2, 3))}, ValueError, r"probability has shape \(2, 3\), foreground \(2, 2\)"),
        ({"min_size": -1}, ValueError, "min_size must be 0"),
        ({"prominence": 0}, ValueError, "prominence must be above 0"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        label_objects(**{"foreground": np.ones((2, 2), bool), **options})
