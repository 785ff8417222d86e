"""The way from one latent to another."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.callbacks import LatentInterpolation
from lightning_modules.callbacks.latent_interpolation import interpolate_on_sphere


def test_a_quarter_of_a_circle_in_equal_angles():
    way = interpolate_on_sphere(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 4)
    angles = torch.arange(4) * math.pi / 6
    torch.testing.assert_close(way, torch.stack([2 * angles.cos(), 2 * angles.sin()], 1)[None])


def test_the_ends_are_the_latents_and_lengths_stay_between_theirs():
    a, b = torch.randn(2, 7, 100, generator=torch.Generator().manual_seed(0))
    way = interpolate_on_sphere(a, b, 9)
    assert way.shape == (7, 9, 100)
    torch.testing.assert_close(way[:, 0], a)
    torch.testing.assert_close(way[:, -1], b)
    lengths = way.norm(dim=2)
    assert (lengths > 0.95 * lengths[:, [0, -1]].amin(1, keepdim=True)).all()
    assert (lengths < 1.05 * lengths[:, [0, -1]].amax(1, keepdim=True)).all()


def test_from_a_latent_to_itself():
    a = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(interpolate_on_sphere(a, a, 5), a[:, None].expand(-1, 5, -1))


@pytest.mark.parametrize("options", [{"rows": 0}, {"columns": 1}])
def test_impossible_grids(options):
    with pytest.raises(ValueError, match="rows must be 1 or more and columns 2 or more"):
        LatentInterpolation(**options)
