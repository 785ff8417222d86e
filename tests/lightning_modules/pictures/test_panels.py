"""Images under titles, pixel for pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lightning_modules.pictures.panels import draw_panels
from lightning_modules.pictures.saving import drawing

TITLE, MARGIN = 36, 12


def drawn(panels, row_names=()):
    with drawing("panels"):
        figure = draw_panels(panels, row_names)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=figure.dpi)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture
def images():
    draw = np.random.default_rng(0).integers
    return {size: draw(0, 255, (*size, 3), dtype=np.uint8) for size in ((90, 400), (40, 31))}


def test_a_pixel_of_an_image_is_a_pixel_of_the_figure(images):
    first, second = images.values()
    figure = drawn({"one": first, "two": second})
    np.testing.assert_array_equal(figure[TITLE : TITLE + 90, MARGIN : MARGIN + 400], first)
    assert figure.shape[0] == TITLE + 90 + MARGIN
    inside = figure[TITLE : TITLE + 40]
    assert any(np.array_equal(inside[:, left : left + 31], second) for left in range(400, figure.shape[1] - 30))


def test_titles_and_names_of_rows_are_whole(images):
    small = images[40, 31]
    figure = drawn({"A title that is much wider than what it stands over": small}, ["a row", "a row with a long name"])
    ink = (figure < 255).any(2)
    assert not ink[:, -3:].any()
    assert not ink[:, :3].any()
    assert not ink[:3].any()
    (image_left,) = (x for x in range(figure.shape[1] - 30) if np.array_equal(figure[TITLE:-MARGIN, x : x + 31], small))
    assert not ink[TITLE:, image_left - 3 : image_left].any()
