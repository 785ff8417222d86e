"""Normalisation of a subject's scans by their own voxels."""

import numpy as np
import pytest
import torch

from datamodules.volumes.intensity import check_intensity, normalise_intensity


def image() -> torch.Tensor:
    """Two channels of other scales; a third of the first is 0."""
    channels = torch.from_numpy(np.random.default_rng(0).uniform(10, 20, (2, 9, 8, 7)).astype(np.float32))
    channels[0, :3] = 0
    channels[1] *= 1000
    return channels


def test_zscore_of_all_voxels():
    found = normalise_intensity(image(), "zscore")
    assert found.mean((1, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert found.std((1, 2, 3), correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_zscore_of_what_is_not_0_leaves_the_rest_0():
    found = normalise_intensity(image(), "zscore_nonzero")
    inside = found[0, 3:]
    assert (inside.mean().item(), inside.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-5)
    assert not found[0, :3].any()
    assert torch.allclose(found[1], normalise_intensity(image(), "zscore")[1])


def test_percentiles_become_0_and_1():
    for intensity, voxels in (("percentiles", image()[0]), ("percentiles_nonzero", image()[0, 3:])):
        low, high = np.percentile(voxels.numpy(), (0.5, 99.5))
        found = normalise_intensity(image(), intensity)
        expected = ((image()[0] - low) / (high - low)).clamp(0, 1)
        assert torch.allclose(found[0, 3:], expected[3:], atol=1e-6)
        assert (found.min().item(), found.max().item()) == (0, 1)
    assert not found[0, :3].any()


@pytest.mark.parametrize("intensity", ["zscore", "zscore_nonzero", "percentiles", "percentiles_nonzero"])
def test_channels_without_contrast_become_0(intensity):
    channels = torch.stack([torch.zeros(3, 3, 3), torch.full((3, 3, 3), 7.0)])
    assert not normalise_intensity(channels, intensity).any()


def test_none_changes_nothing():
    assert torch.equal(normalise_intensity(image(), "none"), image())


def test_the_ends_of_a_window_become_0_and_1():
    image = torch.tensor([-1000.0, -160, 40, 240, 3000]).view(1, 5, 1, 1).expand(2, 5, 1, 1).clone()
    found = normalise_intensity(image, (-160, 240))
    assert found.dtype == torch.float32
    assert found.flatten(1).tolist() == [[0, 0, 0.5, 1, 1]] * 2


def test_what_normalises_is_a_name_or_a_window():
    assert check_intensity("percentiles") == "percentiles"
    assert check_intensity([-160, 240]) == (-160.0, 240.0)


@pytest.mark.parametrize("intensity", ["minmax", [240, -160], [0, 0], [0, 1, 2], [float("nan"), 1], [0, float("inf")]])
def test_other_normalisations_are_refused(intensity):
    with pytest.raises(ValueError, match=r"intensity must be one of zscore_nonzero, .* or a window .* \[-160, 240\]"):
        check_intensity(intensity)
