import pytest
import torch
from torch import Tensor

from lightning_modules.metrics.contrastive import (
    ContrastiveExtractor,
    ContrastiveNetwork,
    _with_swapped_patches,
    corrupted,
    random_views,
    train_contrastive,
)
from lightning_modules.metrics.distances import frechet_distance
from lightning_modules.metrics.extractors import weights_sha256
from tests.helpers.tiny_images import blob_images

IMAGES = blob_images(90)


@pytest.fixture(scope="module")
def network() -> ContrastiveNetwork:
    return train_contrastive(IMAGES)


def test_training_is_a_function_of_images_and_seed(network):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with torch.inference_mode():
            again = train_contrastive(IMAGES)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert weights_sha256(again) == weights_sha256(network)
    assert weights_sha256(train_contrastive(IMAGES, seed=1)) != weights_sha256(network)


def test_training_within_autocast_is_the_same(network):
    """Which keeps casted weights for as long as its outermost context lasts, unless told otherwise."""
    with torch.autocast("cpu", enabled=False):
        assert weights_sha256(train_contrastive(IMAGES)) == weights_sha256(network)


def test_features_are_standardised_and_of_one_length(network):
    features = network(IMAGES / 127.5 - 1)
    torch.testing.assert_close(features.mean(0), torch.zeros(128), rtol=0, atol=1e-4)
    torch.testing.assert_close(features.std(0), torch.ones(128), rtol=0, atol=1e-2)
    extracted = ContrastiveExtractor(network)(IMAGES)
    torch.testing.assert_close(extracted.norm(dim=1), torch.full((90,), 128**0.5))


def distance(extractor: ContrastiveExtractor, images: Tensor) -> float:
    real, generated = extractor(IMAGES).double(), extractor(images).double()
    return float(frechet_distance(real.mean(0), real.T.cov(), generated.mean(0), generated.T.cov()))


def test_distance_rises_with_noise_displacement_and_dropped_modes(network):
    extractor = ContrastiveExtractor(network)
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(IMAGES + level * noise).round().clamp(0, 255).to(torch.uint8) for level in (5, 25, 60)]
    displaced = [IMAGES.roll(pixels, 3) for pixels in (1, 4, 8)]
    fewer = [IMAGES[torch.arange(90) % modes] for modes in (45, 9, 1)]
    fresh = distance(extractor, blob_images(90, seed=1))
    for series in (noisy, displaced, fewer):
        distances = [distance(extractor, images) for images in series]
        assert distances == sorted(distances)
        assert distances[-1] > 3 * fresh


@pytest.mark.parametrize("images", [IMAGES[:1], blob_images(4, size=15)])
def test_too_little_to_learn_from(images):
    with pytest.raises(ValueError, match="2 images or more of 16 pixels or more"):
        train_contrastive(images)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [16, 19, 33])
@pytest.mark.parametrize("count", [2, 9])
def test_views_keep_the_shape_and_are_drawn_an_image(channels, size, count):
    image = blob_images(1, channels, size) / 127.5 - 1
    same = image.repeat(count, 1, 1, 1)
    for make in (random_views, corrupted):
        views = make(same, torch.Generator().manual_seed(0))
        assert views.shape == same.shape
        assert views.isfinite().all()
        if make is random_views:
            assert len(views.flatten(1).unique(dim=0)) == count
        assert torch.equal(views, make(same, torch.Generator().manual_seed(0)))


def test_every_kind_of_corruption_changes_images():
    images = blob_images(16) / 127.5 - 1
    changed = (corrupted(images, torch.Generator().manual_seed(3)) != images).flatten(1).any(1)
    assert changed.sum() >= 15  # swapped patches may be equal


def test_patches_are_moved_and_not_altered():
    images = torch.randn(5, 3, 33, 35)
    moved = _with_swapped_patches(images, torch.Generator().manual_seed(0))
    assert not torch.equal(moved, images)
    assert torch.equal(moved.flatten(1).sort().values, images.flatten(1).sort().values)
    assert torch.equal(moved[:, :, 32:], images[:, :, 32:])


def test_two_images_are_enough():
    network = train_contrastive(blob_images(2))
    assert all(value.isfinite().all() for value in network.state_dict().values())
