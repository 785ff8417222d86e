"""Squares cut out of images: which part, which size, and what is refused."""

import re

import numpy as np
import pytest
from PIL import Image

from datamodules.images.crop import SquareCrop
from datamodules.images.image_folder import DamagedFileError


@pytest.mark.parametrize(
    ("crop", "size", "box"),
    [
        (1.0, (178, 218), (0, 20, 178, 198)),
        (1.0, (89, 109), (0, 10, 89, 99)),  # the same part at half the resolution
        (140 / 178, (178, 218), (19, 39, 159, 179)),
        (108 / 178, (178, 218), (35, 55, 143, 163)),
        (0.5, (200, 100), (75, 25, 125, 75)),  # wider than high
        ("as_published", (178, 218), (0, 0, 178, 218)),
        (0.001, (8, 8), (3, 3, 4, 4)),
    ],
)
def test_the_box_is_central(crop, size, box):
    assert SquareCrop(crop, 64).box(*size) == box


def test_a_crop_of_the_final_size_keeps_every_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(SquareCrop(1.0, 8).read(tmp_path / "a.png"), pixels[2:10])
    assert np.array_equal(SquareCrop(0.5, 4).read(tmp_path / "a.png"), pixels[4:8, 2:6])


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    small = SquareCrop(1.0, 16).read(tmp_path / "a.png")
    assert np.abs(small.astype(int) - 127).max() < 40  # without antialiasing all 0 or 255


def test_as_published_squashes_the_whole_image(tmp_path):
    pixels = np.zeros((40, 20, 3), dtype=np.uint8)
    pixels[:4] = 255  # outside of every central square
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert SquareCrop("as_published", 20).read(tmp_path / "a.png")[0].min() > 200
    assert SquareCrop(1.0, 20).read(tmp_path / "a.png").max() == 0


@pytest.mark.parametrize("crop", [1.0, "as_published"])
def test_images_smaller_than_the_crop_are_enlarged_only_knowingly(tmp_path, crop):
    Image.new("RGB", (10, 12), "red").save(tmp_path / "small.png")
    message = r"small\.png is too small: it has 10x12 pixels, .* enlarged to 16x16\..*enlarge: true"
    with pytest.raises(ValueError, match=message):
        SquareCrop(crop, 16).read(tmp_path / "small.png")
    enlarged = SquareCrop(crop, 16, enlarge=True).read(tmp_path / "small.png")
    assert enlarged.shape == (16, 16, 3)
    assert (enlarged == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "a.png")
    image = SquareCrop(1.0, 8).read(tmp_path / "a.png")
    assert image.shape == (8, 8, 3)
    assert image.min() == 255


def test_alpha_is_left_out(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "transparent.png")
    assert (SquareCrop(1.0, 8).read(tmp_path / "transparent.png") == (10, 20, 30)).all()
    palette = Image.new("RGB", (8, 8), (10, 20, 30)).quantize(2)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    assert (SquareCrop(1.0, 8).read(tmp_path / "palette.png") == (10, 20, 30)).all()


def test_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DamagedFileError, match=r"deep\.png has more than 8 bits"):
        SquareCrop(1.0, 8).read(tmp_path / "deep.png")


@pytest.mark.parametrize("crop", [0, -0.5, 1.01, 178.0, float("nan"), "squash"])
def test_a_crop_is_a_fraction_or_as_published(crop):
    with pytest.raises(ValueError, match=rf"crop must be a fraction .*got {re.escape(repr(crop))}"):
        SquareCrop(crop, 64)


def test_a_size_is_at_least_a_pixel():
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, got 0"):
        SquareCrop(1.0, 0)
