"""Pictures of samples in a run folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_modules.grids.samples import crop_grid, find_samples
from lightning_modules.pictures.images import image_grid
from tests.helpers.grids import write_samples


def test_found_by_their_epoch(tmp_path):
    write_samples(tmp_path, [1, 9, 10])
    (tmp_path / "media/samples/epoch_0099.png.partial").write_bytes(b"")
    assert find_samples(tmp_path, 9).epoch == 9
    assert find_samples(tmp_path, "last").epoch == 10
    assert find_samples(tmp_path, 2) is None
    assert find_samples(tmp_path / "elsewhere", "last") is None


@pytest.mark.parametrize("size", [(64, 64), (128, 70), (32, 32)])
def test_cropped_to_the_first_images(size):
    images = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1).expand(12, 3, *size)
    expected = image_grid(images[[0, 1, 4, 5]], 2)
    np.testing.assert_array_equal(crop_grid(image_grid(images, 4), 2), expected)


def test_images_with_white_in_them_are_not_cut():
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 10:20, :60] = 255
    assert crop_grid(image_grid(images, 2), 1).shape == (64, 64, 3)


def test_a_picture_without_gaps_stays_whole():
    picture = np.zeros((30, 40, 3), np.uint8)
    assert crop_grid(picture, 2).shape == (30, 40, 3)
    assert crop_grid(picture, 1).shape == (30, 40, 3)
