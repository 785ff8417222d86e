"""Image and mask are augmented together, each by its own key: geometry, labels, padding, and what is drawn."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.photos.joint_augmentation import JointAugmentation, resize_image, resize_mask
from tests.helpers.photos import colours

MEAN_COLOUR = (124, 116, 104)
PLAIN = {"scale": None, "flip": False, "rotation": 0.0}


def augmentation(crop_size: int, **options) -> JointAugmentation:
    return JointAugmentation(**{"seed": 0, "crop_size": crop_size, "mean_colour": MEAN_COLOUR, **options})


def coloured(mask: Tensor) -> Tensor:
    """The image (3, H, W) in which every label has its colour, and 255 the mean colour."""
    table = torch.from_numpy(colours())
    table[255] = torch.tensor(MEAN_COLOUR)
    return table[mask.long()].permute(2, 0, 1)


def blocks(height: int, width: int, side: int = 12) -> Tensor:
    mask = torch.randint(0, 21, (height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return mask.repeat_interleave(side, 0).repeat_interleave(side, 1)


def inside(mask: Tensor) -> Tensor:
    """Pixels whose neighbours up to two away have their label: interpolation changes no colour there."""
    values = F.pad(mask.float()[None], (2, 2, 2, 2), value=-1)
    return (F.max_pool2d(values, 5, 1) == -F.max_pool2d(-values, 5, 1))[0]


def test_image_and_mask_move_together_and_labels_stay_what_they_were():
    mask = blocks(6, 8)
    image = coloured(mask)
    augment = augmentation(80)
    seen = set()
    for index in range(20):
        new_image, new_mask = augment(image, mask, 1, index)
        assert (new_image.shape, new_mask.shape) == ((3, 80, 80), (80, 80))
        assert new_image.dtype == new_mask.dtype == torch.uint8
        assert type(new_image) is type(new_mask) is Tensor
        assert set(new_mask.unique().tolist()) <= {*mask.unique().tolist(), 255}
        sure = inside(new_mask)
        assert sure.float().mean() > 0.05
        assert (new_image.int() - coloured(new_mask).int()).abs()[:, sure].max() <= 1
        seen.add(tuple(new_mask.flatten()[::97].tolist()))
    assert len(seen) == 20


def test_small_photos_are_padded_evenly_with_the_mean_colour_and_255():
    image, mask = torch.zeros(3, 10, 13, dtype=torch.uint8), torch.full((10, 13), 7, dtype=torch.uint8)
    new_image, new_mask = augmentation(20, **PLAIN)(image, mask, 0, 0)
    expected = torch.full((20, 20), 255, dtype=torch.uint8)
    expected[5:15, 3:16] = 7
    assert torch.equal(new_mask, expected)
    assert torch.equal(new_image[:, 5:15, 3:16], image)
    padded = new_image[:, new_mask == 255]
    assert torch.equal(padded, torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None].expand_as(padded))


def test_what_turning_brings_in_has_the_mean_colour_and_255_without_a_seam():
    mask = torch.zeros(60, 60, dtype=torch.uint8)
    mean = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None].expand(3, 60, 60)
    augment = augmentation(60, scale=None, flip=False, rotation=45.0)
    drawn = [augment(mean, mask, 0, index) for index in range(3)]
    assert all(torch.equal(image, mean) for image, _ in drawn)
    assert any(turned[0, 0] == 255 for _, turned in drawn)
    assert all(turned[30, 30] == 0 for _, turned in drawn)


def test_half_are_mirrored():
    mask = torch.arange(16, dtype=torch.uint8).view(4, 4)
    augment = augmentation(4, **{**PLAIN, "flip": True})
    drawn = [augment(coloured(mask), mask, 0, index) for index in range(200)]
    flipped = [torch.equal(new, mask.flip(1)) for _, new in drawn]
    assert all(flip or torch.equal(new, mask) for flip, (_, new) in zip(flipped, drawn, strict=True))
    assert all(torch.equal(image, coloured(new)) for image, new in drawn)
    assert 75 < sum(flipped) < 125


def test_crops_lie_anywhere_and_scales_are_between_the_two_factors():
    mask = torch.arange(100, dtype=torch.uint8).view(10, 10)
    augment = augmentation(4, **PLAIN)
    corners = {augment(coloured(mask), mask, 0, index)[1][0, 0].item() for index in range(400)}
    assert corners == {10 * row + column for row in range(7) for column in range(7)}
    square = torch.zeros(40, 40, dtype=torch.uint8)
    augment = augmentation(100, **{**PLAIN, "scale": (0.5, 2.0)})
    sides = [(augment(coloured(square), square, 0, index)[1][50] == 0).sum().item() for index in range(80)]
    assert min(sides) in range(20, 26)
    assert max(sides) in range(75, 81)


def test_draws_depend_on_seed_epoch_and_index_alone():
    mask = blocks(5, 5)
    image = coloured(mask)
    augment = augmentation(40)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = augment(image, mask, 2, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = pickle.loads(pickle.dumps(augment))(image, mask, 2, 7)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for other in (augment(image, mask, 3, 7), augment(image, mask, 2, 8), augmentation(40, seed=1)(image, mask, 2, 7)):
        assert not torch.equal(first[1], other[1])


def test_with_everything_off_a_photo_of_the_crop_s_size_stays_as_it_is():
    mask = blocks(2, 2)
    image, same = augmentation(24, **PLAIN)(coloured(mask), mask, 0, 0)
    assert torch.equal(same, mask)
    assert torch.equal(image, coloured(mask))


def test_resized_masks_lie_where_resized_images_do():
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:, 29:] = 1  # three of the four columns that become column 7
    image = (255 * mask).expand(3, 64, 64)
    small = resize_mask(mask, 0.25)
    assert small.shape == (16, 16)
    assert torch.equal(small, (resize_image(image, 0.25)[0] > 127).to(torch.uint8))
    assert resize_mask(mask, 0.001).shape == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "crop_size must be at least 1"),
        ({"scale": (2.0, 0.5)}, "scale must be two factors above 0, the smaller first"),
        ({"scale": (0.0, 1.0)}, "scale must be two factors above 0"),
        ({"rotation": -1.0}, "rotation must be 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        augmentation(**{"crop_size": 8, **options})
