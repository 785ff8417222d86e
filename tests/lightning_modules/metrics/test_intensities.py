"""Counted grey values and classes against numpy."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.metrics.intensities import (
    BINS,
    VOXELS,
    SampleStatistics,
    class_distance,
    grey_value_distance,
)


def counted(images: torch.Tensor, masks: torch.Tensor | None = None) -> SampleStatistics:
    statistics = SampleStatistics(3)
    statistics.update(images, torch.zeros(1, 1, 1).byte() if masks is None else masks)
    return statistics


def test_moments_and_quantiles_of_each_channel():
    images = (
        torch.randn(4, 2, 30, 31) * torch.tensor([1.0, 200.0])[:, None, None]
        + torch.tensor([0.0, 700.0])[:, None, None]
    )
    found, values = counted(images), images.transpose(0, 1).flatten(1).numpy()
    scale = values.std(1)
    np.testing.assert_allclose(found.mean().numpy(), values.mean(1), atol=1e-3 * scale.max())
    np.testing.assert_allclose(found.std().numpy(), scale, rtol=1e-3)
    for level in (0.05, 0.5, 0.95):
        error = np.abs(found.quantile(level).numpy() - np.quantile(values, level, axis=1, method="inverted_cdf"))
        assert (error < 0.02 * scale).all()


def test_zero_is_exact_and_large_values_do_not_get_lost():
    images = torch.tensor([0.0, 0.0, 0.0, 1e9, -1e9, float("nan")]).view(1, 1, 2, 3)
    found = counted(images)
    assert found.quantile(0.5) == 0
    assert found.quantile(1.0) == pytest.approx(1e4)
    assert found.counts[3:].sum() == 6
    assert len(found.counts) == 3 + BINS


def test_parts_add_up_to_the_whole():
    images, masks = torch.randn(4, 2, 9, 8, 7), torch.randint(0, 3, (4, 5, 5, 5))
    whole = counted(images, masks).counts
    parts = counted(images[:1], masks[:1]).counts + counted(images[1:], masks[1:]).counts
    assert torch.equal(whole, parts)


def test_classes_are_counted_without_ignored_voxels():
    masks = torch.tensor([[[0, 0, 1, 255], [2, 0, 255, 255]]])
    torch.testing.assert_close(
        counted(torch.zeros(1, 1, 4, 6), masks).frequencies(), torch.tensor([0.6, 0.2, 0.2]).double()
    )


def test_large_images_are_thinned_out_evenly():
    # A step that divides the sides would take a few planes only.
    image = torch.arange(64.0).expand(1, 1, 64, 64, 64)
    found = counted(image)
    assert VOXELS / 2 < found.counts[3:].sum() <= VOXELS
    assert found.mean().item() == pytest.approx(31.5, rel=2e-3)
    assert found.std().item() == pytest.approx(image.std().item(), rel=2e-3)


def test_distances_are_those_of_the_distributions():
    images = torch.rand(2, 1, 50, 50)
    one, other = counted(images), counted(images + 0.25)
    assert (grey_value_distance(one, other) * other.std()).item() == pytest.approx(0.25, abs=2e-3)
    assert grey_value_distance(one, one).item() == 0
    flat, raised = counted(torch.zeros(1, 1, 3, 3)), counted(torch.ones(1, 1, 3, 3))
    assert (grey_value_distance(flat, flat).item(), grey_value_distance(raised, flat).item()) == (0, math.inf)
    masks = [torch.tensor([[[0, 0, 1, 2]]]), torch.tensor([[[0, 1, 1, 1]]])]
    assert class_distance(*(counted(images, mask) for mask in masks)).item() == pytest.approx(0.5)
