"""From a network's range to bytes, and images laid out as a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_modules.pictures.images import GAP, image_grid, to_uint8


def test_every_level_comes_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)


def test_values_are_rounded_to_the_nearest_level_and_clipped():
    values = torch.tensor([-1.2, -1.0, -1 + 0.6 / 127.5, 1 - 0.6 / 127.5, 1.0, 1.2])
    assert to_uint8(values).tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(dtype):
    assert to_uint8(torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)).tolist() == [0, 128, 255]


def test_bytes_are_refused():
    with pytest.raises(TypeError, match=r"floating type, got torch\.uint8"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_row_by_row_with_white_between_and_where_none_is(channels):
    images = torch.randint(0, 255, (5, channels, 70, 64), dtype=torch.uint8)
    grid = image_grid(images, 3)
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * 70 + GAP, 3 * 64 + 2 * GAP, 3)
    for i, image in enumerate(images):
        top, left = (70 + GAP) * (i // 3), (64 + GAP) * (i % 3)
        expected = image.permute(1, 2, 0).expand(-1, -1, 3)
        np.testing.assert_array_equal(grid[top : top + 70, left : left + 64], expected)
        grid[top : top + 70, left : left + 64] = 255
    assert (grid == 255).all()


def test_small_images_are_enlarged_by_whole_factors():
    image = torch.randint(0, 255, (1, 1, 24, 30), dtype=torch.uint8)
    grid = image_grid(image, 1)
    assert grid.shape == (72, 90, 3)
    np.testing.assert_array_equal(grid[::3, ::3, 0], image[0, 0])
    np.testing.assert_array_equal(grid[2::3, 2::3, 0], image[0, 0])


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8, dtype=torch.uint8)])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match=r"must be uint8 \(N, 1 or 3, H, W\)"):
        image_grid(images, 1)
