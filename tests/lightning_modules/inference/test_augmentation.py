"""Flips are the symmetries of the grid and have a way back; resizing keeps what it may not change."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.inference.augmentation import Flip, resize


def products(parts: list[str]) -> list[str]:
    return ["+".join(chosen) for n in range(1, len(parts) + 1) for chosen in combinations(parts, n)]


def test_all_views_of_a_square_are_there_once():
    square = torch.arange(16.0).view(1, 1, 4, 4)
    names = products(["horizontal", "vertical", "diagonal"])
    views = [square, *(Flip.parse(name).apply(square) for name in names)]
    turns = [torch.rot90(image, k, (2, 3)) for image in (square, square.flip(3)) for k in range(4)]
    assert {tuple(view.flatten().tolist()) for view in views} == {tuple(turn.flatten().tolist()) for turn in turns}


@pytest.mark.parametrize("name", products(["horizontal", "vertical", "depth", "diagonal"]))
def test_undo_is_the_way_back(name):
    volume = torch.randn(2, 3, 4, 5, 6)
    flip = Flip.parse(name)
    flipped = flip.apply(volume)
    assert torch.equal(flip.undo(flipped), volume)
    assert flipped.shape == ((2, 3, 4, 6, 5) if "diagonal" in name else volume.shape)
    assert flipped.shape != volume.shape or not torch.equal(flipped, volume)


def test_names_mean_what_they_say():
    image = torch.randn(1, 1, 3, 5)
    turned = Flip.parse("diagonal+vertical").apply(image)
    assert torch.equal(turned, torch.rot90(image, 1, (2, 3)))
    assert torch.equal(Flip.parse("diagonal+horizontal").apply(image), torch.rot90(image, -1, (2, 3)))
    assert torch.equal(Flip.parse("horizontal").apply(image), image.flip(3))
    assert Flip.parse("vertical+horizontal") == Flip.parse("horizontal+vertical")


@pytest.mark.parametrize("name", ["sideways", "", "horizontal+", "horizontal+horizontal"])
def test_unknown_flips_are_named(name):
    with pytest.raises(ValueError, match=f"flips: '{name}' is not one of horizontal, vertical".replace("+", r"\+")):
        Flip.parse(name)


def test_depth_needs_volumes():
    with pytest.raises(ValueError, match=r"'depth' is for volumes .* got images of shape \(1, 3, 4, 4\)"):
        Flip.parse("depth").apply(torch.zeros(1, 3, 4, 4))


def test_resized_as_torch_does():
    images = torch.randn(2, 3, 12, 9)
    assert resize(images, (12, 9)) is images
    assert resize(images, torch.Size((12, 9))) is images
    enlarged = F.interpolate(images, size=(15, 20), mode="bilinear")
    torch.testing.assert_close(resize(images, (15, 20)), enlarged, rtol=1e-5, atol=1e-5)
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 1, 16, 16)  # finer than the small grid: antialiasing
    assert (resize(stripes, (4, 4)) - 0.5).abs().max() < 0.15


def test_volumes_are_resized_slice_by_slice_and_along_the_depth():
    volume = torch.randn(2, 3, 6, 8, 10)
    slices = torch.stack([resize(volume[:, :, i], (5, 12)) for i in range(6)], dim=2)
    torch.testing.assert_close(resize(volume, (6, 5, 12)), slices)
    enlarged = F.interpolate(volume, size=(9, 11, 13), mode="trilinear")
    torch.testing.assert_close(resize(volume, (9, 11, 13)), enlarged, rtol=1e-5, atol=1e-5)
    assert resize(volume[:, :, :1], (1, 4, 5)).shape == (2, 3, 1, 4, 5)


@pytest.mark.parametrize("size", [(3, 4), (8, 30)])
def test_probabilities_stay_probabilities(size):
    probabilities = torch.randn(1, 5, 7, 9).softmax(1)
    resized = resize(probabilities, size)
    assert (resized >= 0).all()
    torch.testing.assert_close(resized.sum(1), torch.ones(1, *size))
