"""Masks and mistakes painted over images."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lightning_modules.pictures.overlays import (
    FOREGROUND,
    IGNORED,
    MISSED,
    RIGHT,
    WRONG,
    SegmentedImage,
    draw_overlays,
    error_colours,
    overlay_colours,
    paint_classes,
    paint_errors,
    voc_colour_map,
)

GREY = np.full((7, 7, 3), 100, np.uint8)


def segmented(height=7, width=7, name="a.png", accuracy=0.5, truth=0, prediction=0):
    image = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    masks = (np.full((height, width), value, np.uint8) for value in (truth, prediction))
    return SegmentedImage(0, name, image, *masks, accuracy)


def contains(picture, image):
    rows, columns = image.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(picture, image.shape)[:, :, 0]
    return int((windows == image).all(axis=(2, 3, 4)).sum()) if picture.shape[0] >= rows <= columns else 0


def test_colours_are_those_of_pascal_voc():
    colours = voc_colour_map()
    assert colours.shape == (256, 3)
    assert colours.dtype == np.uint8
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {number: tuple(colours[number].tolist()) for number in published} == published
    assert len(np.unique(colours, axis=0)) == 256
    np.testing.assert_array_equal(voc_colour_map(21), colours[:21])


def test_classes_are_filled_faintly_within_full_contours():
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = 1
    painted = paint_classes(GREY, mask, overlay_colours(2))
    assert (painted[mask == 0] == 100).all()
    inside = np.zeros((7, 7), bool)
    inside[2:5, 2:5] = True
    assert (painted[(mask == 1) & ~inside] == FOREGROUND).all()
    fill = painted[inside]
    assert (fill == fill[0]).all()
    assert (np.abs(fill[0].astype(int) - 100) < np.abs(np.array(FOREGROUND) - 100)).all()


def test_touching_classes_have_contours_and_without_background_all_are_painted():
    mask = np.array([[0, 0, 0, 2, 2, 2]] * 6, np.uint8)
    colours = voc_colour_map(3)
    painted = paint_classes(GREY[:6, :6], mask, colours, background=None)
    assert (painted[:, 2] == colours[0]).all()
    assert (painted[:, 3] == colours[2]).all()
    assert not (painted == 100).all(axis=2).any()


def test_ignored_pixels_have_their_own_colour_and_no_class():
    mask = np.array([[255, 255, 255, 1, 1, 1]] * 6, np.uint8)
    painted = paint_classes(GREY[:6, :6], mask, overlay_colours(2))
    assert (painted[:, :3] == painted[0, 0]).all()
    np.testing.assert_allclose(painted[0, 0], (np.array(IGNORED) + 100) / 2, atol=0.5)
    assert (painted[:, 3] == FOREGROUND).all()


def nearest(colour):
    """Which of the colours of mistakes a tint on grey is made of; None for grey itself."""
    tint = colour.astype(float) - colour.mean()
    if not tint.any():
        return None
    candidates = [np.array(c) - np.mean(c) for c in (RIGHT, WRONG, MISSED, IGNORED)]
    return (RIGHT, WRONG, MISSED, IGNORED)[int(np.argmax([tint @ c / np.linalg.norm(c) for c in candidates]))]


def test_mistakes_of_two_classes():
    truth, prediction = np.array([[0, 1, 0, 1, 255, 255]]), np.array([[0, 1, 1, 0, 0, 1]])
    painted = paint_errors(GREY[:1, :6], prediction, truth, num_classes=2)
    assert [nearest(pixel) for pixel in painted[0]] == [None, RIGHT, WRONG, MISSED, IGNORED, IGNORED]
    assert painted[0, 2:4].tolist() == [list(WRONG), list(MISSED)]
    assert painted[0, 0, 0] > 180  # pale


@pytest.mark.parametrize(("background", "first"), [(0, None), (None, RIGHT)])
def test_mistakes_of_many_classes(background, first):
    truth, prediction = np.array([[0, 2, 0, 1, 1, 255]]), np.array([[0, 2, 1, 0, 2, 1]])
    painted = paint_errors(GREY[:1, :6], prediction, truth, num_classes=3, background=background)
    assert [nearest(pixel) for pixel in painted[0]] == [first, RIGHT, WRONG, WRONG, WRONG, IGNORED]


def test_the_legend_names_what_can_be_seen():
    assert list(error_colours(2)) == ["true positive", "false positive", "false negative", "ignored"]
    assert list(error_colours(21)) == ["right", "wrong", "ignored"]


@pytest.mark.parametrize(("classes", "kinds"), [(2, 3), (3, 2)])
def test_swatches_are_painted_as_areas_are(classes, kinds):
    names = ["background", "a", "b"][:classes]
    truth, prediction = np.zeros((2, 40, 40), np.uint8)
    truth[10:30, 10:30] = prediction[15:35, 10:30] = 1
    truth[:, 35:] = 255
    grey = np.full((40, 40, 3), 128, np.uint8)
    picture = draw_overlays([SegmentedImage(0, "a.png", grey, truth, prediction, 0.5)], names)
    top = 12 + 2 * 28 + 40  # the legend is below
    legend = {tuple(colour) for colour in picture[top:].reshape(-1, 3).tolist()}
    painted = paint_errors(grey, prediction, truth, classes)
    errors = {tuple(painted[y, x].tolist()) for y, x in ((20, 20), (32, 20), (12, 20), (20, 37))}
    assert len(errors) == kinds + 1
    assert errors <= legend
    areas = paint_classes(grey, prediction, overlay_colours(classes))
    assert {tuple(areas[25, 20].tolist()), tuple(areas[15, 20].tolist())} <= legend
    assert RIGHT not in legend


def test_a_pixel_of_an_image_is_a_pixel_of_the_picture():
    images = [segmented(20, 50, truth=1), segmented(30, 40, prediction=1)]
    picture = draw_overlays(images, ["background", "nucleus"])
    assert picture.dtype == np.uint8
    for image in images:
        assert contains(picture, image.image) == 1 + (image.truth.max() == 0) + (image.prediction.max() == 0)
    assert (picture[:3] == 255).all()
    assert (picture[-3:] == 255).all()
    assert (picture[:, -3:] == 255).all()


def test_other_images_of_the_place_are_shown_beside_the_first():
    image = segmented(20, 30, truth=1, prediction=1)
    other = 255 - image.image
    both = dataclasses.replace(image, others=(other,))
    picture = draw_overlays([both], ["background", "nucleus"], titles=["t1", "flair"])
    assert contains(picture, image.image) == contains(picture, other) == 1
    assert picture.shape[1] > draw_overlays([image], ["background", "nucleus"]).shape[1]


def test_a_legend_too_long_for_a_line_goes_on_in_the_next():
    names = [f"a class with a long name {i}" for i in range(30)]
    image = segmented(64, 64)
    image.truth.flat[:30] = range(30)
    few, many = (draw_overlays([image], n) for n in ([*names[:30]], [n[:2] for n in names]))
    assert few.shape[1] == many.shape[1]
    assert few.shape[0] > many.shape[0]


def test_an_image_without_a_known_pixel_has_no_accuracy():
    known, unknown = (draw_overlays([segmented(64, 64, accuracy=a)], ["background", "x"]) for a in (0.5, math.nan))
    assert (known != unknown).any()
    assert known.shape == unknown.shape
