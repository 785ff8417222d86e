"""Stain jitter: exact where it changes nothing, and what the law of Beer and Lambert says elsewhere."""

import numpy as np
import pytest
import torch

from datamodules.images.stain import STAINS, jitter_stains

NO_SCALE, NO_SHIFT = torch.ones(1, 3), torch.zeros(1, 3)


def test_no_change_gives_every_colour_back_exactly():
    values = torch.arange(0, 256, 5)
    colours = torch.cartesian_prod(values, values, values).to(torch.uint8)[None, None]
    assert torch.equal(jitter_stains(colours, NO_SCALE, NO_SHIFT), colours)


def test_images_are_changed_as_the_equation_says():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 5, 7, 3), generator=generator, dtype=torch.uint8)
    scale = 1 + 0.4 * (torch.rand(3, 3, generator=generator) - 0.5)
    shift = 0.4 * (torch.rand(3, 3, generator=generator) - 0.5)
    matrix = np.array(STAINS)
    for image, alpha, beta, changed in zip(images, scale, shift, jitter_stains(images, scale, shift), strict=True):
        concentrations = -np.log10((image.double().numpy() + 1) / 256) @ np.linalg.inv(matrix)
        absorbance = (concentrations * alpha.double().numpy() + beta.double().numpy()) @ matrix
        expected = np.clip(256 * 10**-absorbance - 1, 0, 255)
        assert np.abs(changed.numpy() - expected).max() <= 0.501


def test_the_stains_are_those_of_scikit_image():
    rgb_from_hed = pytest.importorskip("skimage.color").rgb_from_hed
    np.testing.assert_allclose(np.array(STAINS), rgb_from_hed)


def test_more_haematoxylin_darkens_what_holds_it():
    purple, white = torch.tensor([104, 64, 144]), torch.tensor([255, 255, 255])
    image = torch.stack([purple, white]).to(torch.uint8).view(1, 1, 2, 3)
    changed = jitter_stains(image, torch.tensor([[1.3, 1.0, 1.0]]), NO_SHIFT)
    assert (changed[0, 0, 0] < image[0, 0, 0]).all()
    assert torch.equal(changed[0, 0, 1], image[0, 0, 1])
