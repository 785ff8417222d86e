"""What is cut out of photos: the usual evaluation exactly, and training by the key alone."""

import dataclasses
import math

import pytest
import torch
from torchvision.transforms import v2

from datamodules.photos.augmentation import (
    RGB_EIGENVALUES,
    RGB_EIGENVECTORS,
    Lighting,
    PhotoAugmentation,
    ResizedCentre,
)
from datamodules.sampling import draws_for


def photo(height: int = 60, width: int = 80) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# Evaluation


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (33, 47), (9, 50)])
@pytest.mark.parametrize(("image_size", "resize_size"), [(24, 32), (32, 32), (31, 64)])
def test_evaluation_is_torchvisions(size, image_size, resize_size):
    expected = v2.Compose([v2.Resize(resize_size, antialias=True), v2.CenterCrop(image_size)])(photo(*size))
    assert torch.equal(ResizedCentre(image_size, resize_size)(photo(*size)), expected)


def test_pixels_are_kept_where_nothing_is_to_be_resized():
    image = photo(60, 80)
    assert torch.equal(ResizedCentre(60, 60)(image), image[:, :, 10:70])
    assert torch.equal(ResizedCentre(40, 60)(image), image[:, 10:50, 20:60])


@pytest.mark.parametrize(("sizes", "message"), [((0, 0), "image_size must"), ((64, 63), r"resize_size \(63\) must")])
def test_sizes_out_of_range(sizes, message):
    with pytest.raises(ValueError, match=message):
        ResizedCentre(*sizes)


# Training


def test_a_draw_depends_on_seed_epoch_and_index_alone():
    augment = PhotoAugmentation(seed=0, image_size=24)
    image = photo()
    first = augment(image, 1, 2)
    assert first.shape == (3, 24, 24)
    assert first.dtype == torch.uint8
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(augment(image, 1, 2), first)
    assert torch.equal(torch.get_rng_state(), state)
    others = (augment(image, 2, 2), augment(image, 1, 3), dataclasses.replace(augment, seed=1)(image, 1, 2))
    assert not any(torch.equal(other, first) for other in others)


def test_flips_and_colours_can_be_turned_off():
    plain = PhotoAugmentation(0, 60, crop_scale=(1.0, 1.0), flip=False, colour_jitter=0, lighting=0)
    image = photo(60, 60).float().mean(0, keepdim=True).expand(3, -1, -1).to(torch.uint8)
    drawn = [plain(image, 0, index) for index in range(4)]
    # The whole square, or a crop of 3/4 to 4/3 that does not fit and becomes the whole.
    assert any(torch.equal(other, image) for other in drawn)
    assert all(torch.equal(other[0], other[1]) for other in drawn)
    flipped = [dataclasses.replace(plain, flip=True)(image, 0, index) for index in range(12)]
    assert any(torch.equal(other, image.flip(2)) for other in flipped)


def test_crops_have_the_areas_asked_for():
    ramp = torch.arange(100, dtype=torch.uint8).expand(3, 100, 100)  # a pixel says its column
    widths = []
    for index in range(60):
        row = PhotoAugmentation(0, 50, (0.25, 0.5), False, 0, 0)(ramp, 0, index)[0, 0].float()
        widths.append((row[-1] - row[0]).item() * 50 / 49)
    assert min(widths) >= 100 * math.sqrt(0.25 * 3 / 4) - 3
    assert max(widths) <= 100 * math.sqrt(0.5 * 4 / 3) + 3
    assert max(widths) - min(widths) > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be"),
        ({"crop_scale": (0.5, 0.2)}, r"got \[0.5, 0.2\]"),
        ({"colour_jitter": 1.5}, "colour_jitter must be 0"),
        ({"lighting": -0.1}, "lighting must be 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PhotoAugmentation(0, 24, **options)


# Lighting


def test_lighting_is_noise_along_the_principal_axes():
    vectors = torch.tensor(RGB_EIGENVECTORS)
    assert torch.allclose(vectors.T @ vectors, torch.eye(3), atol=2e-3)
    grey = torch.full((3, 4, 4), 128, dtype=torch.uint8)
    shifts = []
    for index in range(300):
        with draws_for("test", index):
            lit = Lighting(0.1)(grey)
        assert lit.dtype == torch.uint8
        assert torch.equal(lit, lit[:, :1, :1].expand_as(lit))
        shifts.append(lit[:, 0, 0].float() - 128)
    along = torch.stack(shifts) @ vectors
    expected = 255 * 0.1 * torch.tensor(RGB_EIGENVALUES)
    assert along.std(0)[0] == pytest.approx(expected[0].item(), rel=0.15)
    assert (along.std(0)[1:] - expected[1:]).abs().max() < 0.3  # of rounding


def test_lighting_is_clipped_not_wrapped():
    extremes = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)
    with draws_for("test", 0):
        lit = Lighting(9.0)(extremes)
    with draws_for("test", 0):
        alpha = torch.randn(3) * 9.0
    shift = 255 * torch.tensor(RGB_EIGENVECTORS) @ (alpha * torch.tensor(RGB_EIGENVALUES))
    expected = (extremes + shift[:, None, None]).round().clamp(0, 255)
    assert (lit.float() - expected).abs().max() <= 1
    assert shift.abs().max() > 20
