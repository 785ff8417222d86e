"""Augmented patches: image, mask and affine move together, and all draws are f(seed, epoch, index)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.volumes.augmentation import INTERVALS, VolumeAugmentation, _deformation, _inverse, _spline_field
from datamodules.volumes.geometry import put_back

ALL = {"flips": (0, 1), "rotation": 20.0, "elastic": 1.0, "intensity": 0.2, "noise": 0.1}


def sample(size: tuple[int, ...] = (12, 10, 8), context: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """An image of two channels that are the place of each voxel along the first two axes, in mm, and its mask."""
    axes = len(size)
    affine = torch.diag(torch.tensor([*(1.5, 1.0, 2.0)[:axes], 1.0], dtype=torch.float64))
    around = [torch.arange(-context, n + context, dtype=torch.float64) for n in size]
    grid = torch.stack(torch.meshgrid(*around, indexing="ij"))
    image = (affine[:2, :2] @ grid[:2].flatten(1)).view(2, *grid.shape[1:]).float()
    inner = image[0][(slice(context, -context or None),) * axes]
    return image, (inner > inner.mean()).to(torch.uint8), affine


def middle(image: Tensor, size: torch.Size) -> Tensor:
    return image[:, *(slice((n - m) // 2, (n + m) // 2) for n, m in zip(image.shape[1:], size, strict=True))]


@pytest.mark.parametrize("size", [(12, 10, 8), (16, 14)])
@pytest.mark.parametrize("options", [{"flips": (0, 1)}, {"rotation": 15.0}, {"flips": (0, 1), "rotation": 15.0}])
def test_the_affine_says_where_voxels_are(size, options):
    """The image holds its own places: each voxel must hold the one that its new affine gives it."""
    image, mask, affine = sample(size, context=6)
    for index in range(4):
        moved, _, place = VolumeAugmentation(0, **options)(image, mask, affine, 0, index)
        grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"))
        expected = torch.einsum("ij,j...->i...", place[:2, :-1], grid) + place[:2, -1].view(2, *[1] * len(size))
        torch.testing.assert_close(middle(moved, mask.shape).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(12, 10, 8), (16, 14)])
@pytest.mark.parametrize("context", [2, 5])
@pytest.mark.parametrize("elastic", [0.0, 1.0])
def test_mask_and_image_move_together(size, context, elastic):
    image, mask, affine = sample(size, context)
    threshold = middle(image, mask.shape)[0].mean()
    augment = VolumeAugmentation(0, flips=(0, 1), rotation=15, elastic=elastic)
    for index in range(4):
        moved, mask_moved, _ = augment(image, mask, affine, 0, index)
        known = mask_moved != 255
        value = middle(moved, mask.shape)[0]
        clear = known & ((value - threshold).abs() > 1.5)  # a voxel is 1.5 mm long, and masks take the nearest
        assert clear.float().mean() > 0.4
        assert torch.equal(value[clear] > threshold, mask_moved[clear].bool())
        assert set(mask_moved.unique().tolist()) <= {0, 1, 255}


def test_what_comes_in_is_ignored():
    image, mask, affine = torch.ones(1, 9, 9, 9), torch.ones(9, 9, 9, dtype=torch.uint8), torch.eye(4).double()
    moved, mask, _ = VolumeAugmentation(1, rotation=45)(image, mask, affine, 0, 0)
    assert (mask == 255).any()
    assert torch.equal(mask == 255, F.max_pool3d((moved < 0.5).float(), 1)[0] > 0)


def test_flips_are_exact_and_half_of_all():
    image, mask, affine = sample(context=2)
    drawn = [VolumeAugmentation(0, flips=(0, 1))(image, mask, affine, 0, index) for index in range(200)]
    of_axes = {(): 0, (0,): 0, (1,): 0, (0, 1): 0}
    for moved, turned, _ in drawn:
        (axes,) = [axes for axes in of_axes if torch.equal(moved, image.flip([1 + axis for axis in axes]))]
        assert torch.equal(turned, mask.flip(axes))
        of_axes[axes] += 1
    assert min(of_axes.values()) > 30


def test_draws_are_a_function_of_seed_epoch_and_index():
    arguments = sample()
    state = torch.get_rng_state()
    first = VolumeAugmentation(3, **ALL)(*arguments, 1, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = VolumeAugmentation(3, **ALL)(*arguments, 1, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, epoch, index in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
        assert not torch.equal(VolumeAugmentation(seed, **ALL)(*arguments, epoch, index)[0], first[0])


def test_nothing_asked_is_nothing_done_and_nothing_given_is_changed():
    arguments = sample()
    copies = [tensor.clone() for tensor in arguments]
    for a, b in zip(VolumeAugmentation(0)(*arguments, 0, 0), arguments, strict=True):
        assert torch.equal(a, b)
    VolumeAugmentation(0, **ALL)(*arguments, 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


def test_grey_values_change_within_bounds():
    image, mask, affine = sample()
    for index in range(20):
        moved, same_mask, same_affine = VolumeAugmentation(0, intensity=0.2)(image, mask, affine, 0, index)
        for before, after in zip(image, moved, strict=True):
            gain = (after.max() - after.min()) / (before.max() - before.min())
            assert 0.8 <= gain <= 1.2
            assert (after - gain * before).abs().max() <= 0.2 + 1e-4
        assert torch.equal(same_mask, mask)
        assert torch.equal(same_affine, affine)
    noisy, _, _ = VolumeAugmentation(0, noise=0.5)(image, mask, affine, 0, 0)
    assert (noisy - image).std() == pytest.approx(0.5, rel=0.05)


def test_deformations_are_smooth_and_as_large_as_they_say():
    torch.manual_seed(0)
    fields = torch.stack([_spline_field(torch.randn(2, *[INTERVALS + 3] * 2), (32, 24)) for _ in range(200)])
    assert fields.shape == (200, 32, 24, 2)
    # The mean over places of the sum of squared weights of B-splines, 151/315, along both axes.
    assert fields.square().mean() == pytest.approx((151 / 315) ** 2, rel=0.1)
    assert fields.diff(dim=1).abs().max() < 4.5 * INTERVALS / 32 * 1.5


def random_ellipsoid(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of semi-axes of .25 to .3 of the patch, near its middle; and an affine with unequal spacing, .8 to 1.6 mm."""
    axes = len(size)
    voxels = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1)
    extent = torch.tensor(size)
    centre, radii = (extent - 1) / 2 + 2 * torch.rand(axes) - 1, extent * (0.25 + 0.05 * torch.rand(axes))
    affine = torch.diag(torch.cat([0.8 + 0.8 * torch.rand(axes), torch.ones(1)]).double())
    affine[:-1, -1] = torch.randn(axes) * 50
    return (((voxels - centre) / radii).square().sum(-1) <= 1).to(torch.uint8), affine


def put_into(values: Tensor, affine: Tensor, mask: Tensor, mask_affine: Tensor) -> Tensor:
    """Classes on the mask's grid, of probabilities or classes."""
    if not values.is_floating_point():
        return put_back(values, affine, torch.zeros_like(mask), mask_affine)
    target = torch.stack([torch.ones(mask.shape), torch.zeros(mask.shape)])
    return put_back(values, affine, target, mask_affine).argmax(0)


def dice(a: Tensor, b: Tensor) -> float:
    return (2 * (a * b).sum() / (a.sum() + b.sum())).item()


def one_hot(mask: Tensor) -> Tensor:
    return F.one_hot(mask.long(), 2).movedim(-1, 0).float()


@pytest.mark.parametrize(("size", "context", "chains"), [((24, 20, 22), 3, 50), ((48, 40), 0, 20)])
def test_deformed_patches_come_back(size, context, chains):
    """Chains of flips, a turn and a deformation: probabilities are those of the mask, moved as an image is."""
    torch.manual_seed(0)
    augment = VolumeAugmentation(5, flips=range(len(size)), rotation=15, elastic=1.5)
    undone, left = [], []
    for index in range(chains):
        mask, affine = random_ellipsoid(size)
        image = F.pad(one_hot(mask), (context,) * 2 * len(size))
        moved, _, place = augment(image, mask, affine, 0, index)
        deformed = middle(moved, mask.shape)
        probabilities, undeformed_place = augment.undeformed(deformed, image.shape[1:], affine, 0, index)
        assert torch.equal(undeformed_place, place)
        undone.append(dice(put_into(probabilities, place, mask, affine), mask))
        left.append(dice(put_into(deformed, place, mask, affine), mask))
    assert min(undone) > 0.98
    assert all(before < after for before, after in zip(left, undone, strict=True))
    assert sum(left) / chains < 0.96  # deformations are not so small that all this would not matter


@pytest.mark.parametrize("as_values", [one_hot, torch.clone])
def test_sharp_masks_come_back(as_values):
    """Masks take the nearest value when deformed, which costs half a voxel: objects must be large to lose little."""
    torch.manual_seed(0)
    augment = VolumeAugmentation(6, flips=(0, 1), rotation=15, elastic=3)
    for index in range(10):
        mask, affine = random_ellipsoid((96, 80))
        _, moved, place = augment(mask[None].float(), mask, affine, 0, index)
        values, _ = augment.undeformed(as_values(moved * (moved != 255)), mask.shape, affine, 0, index)
        assert dice(put_into(values, place, mask, affine), mask) > 0.98


@pytest.mark.parametrize(("size", "image_size"), [((16, 12, 14), (20, 16, 18)), ((40, 36), (40, 36))])
@pytest.mark.parametrize("intervals", [0.1, 0.25])
def test_inverse_is_exact_to_a_hundredth_of_a_voxel(size, image_size, intervals):
    """Against the field as the augmentation samples it: each voxel is sent where it goes, and must come back."""
    torch.manual_seed(0)
    length = min(image_size) / INTERVALS
    coefficients = intervals * length * torch.randn(len(size), *[INTERVALS + 3] * len(size), dtype=torch.float64)
    places, is_found = _inverse(coefficients, size, image_size)
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij"), -1)
    extents = torch.tensor(size).double(), torch.tensor(image_size).double()
    displacement, jacobian = _deformation(coefficients, places[is_found], *extents)
    assert is_found.double().mean() > 0.5
    assert (places[is_found] + displacement - voxels[is_found]).abs().max() < 0.01
    at_voxels, _ = _deformation(coefficients, voxels.flatten(0, -2), *extents)
    regions = [slice((n - m) // 2, (n + m) // 2) for n, m in zip(image_size, size, strict=True)]
    sampled = _spline_field(coefficients.float(), image_size)[*regions].double()
    torch.testing.assert_close(at_voxels.view(*size, -1), sampled, rtol=0, atol=1e-5)
    nudged, _ = _deformation(coefficients, places[is_found] + 1e-6, *extents)
    torch.testing.assert_close((nudged - displacement) / 1e-6 + 1, jacobian.sum(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"flips": (0, 1)}, {"flips": (0, 1), "rotation": 15.0}])
def test_without_elastic_nothing_is_undone(options):
    image, mask, affine = sample()
    augment = VolumeAugmentation(0, **options)
    _, moved, place = augment(image, mask, affine, 0, 3)
    values, same_place = augment.undeformed(moved, image.shape[1:], affine, 0, 3)
    assert torch.equal(values, moved)
    assert torch.equal(same_place, place)


def test_what_left_the_patch_is_background():
    _, mask, affine = sample()
    augment = VolumeAugmentation(0, rotation=10, elastic=1)
    known, _ = augment.undeformed(torch.ones_like(mask), mask.shape, affine, 0, 0)
    probabilities, _ = augment.undeformed(one_hot(torch.ones_like(mask)), mask.shape, affine, 0, 0)
    assert set(known.unique().tolist()) == {0, 1}
    torch.testing.assert_close(probabilities, one_hot(known))


def test_folds_and_values_that_do_not_fit_are_named():
    _, mask, affine = sample()
    with pytest.raises(ValueError, match=r"patch \(12, 10, 8\) folds, so that it has no inverse: give a lower elastic"):
        VolumeAugmentation(0, elastic=10).undeformed(mask, mask.shape, affine, 0, 0)
    with pytest.raises(
        ValueError, match=r"values of shape \(12, 10, 8\) and torch.float32 do not fit an affine of 3 axes"
    ):
        VolumeAugmentation(0, elastic=1).undeformed(mask.float(), mask.shape, affine, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flips": (3,)}, r"flips must be different axes, of 0, 1 and 2; got \[3\]"),
        ({"flips": (1, 1)}, "flips must be different axes"),
        ({"rotation": -1}, "rotation must be 0 .* got -1"),
        ({"elastic": -1}, "elastic must be 0"),
        ({"intensity": 1}, "intensity must be at least 0 .* got 1"),
        ({"noise": float("nan")}, "noise must be 0"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VolumeAugmentation(0, **options)


def test_samples_that_do_not_fit_are_named():
    image, mask, affine = sample()
    with pytest.raises(ValueError, match=r"image \(17, 16, 14\) is no mask \(12, 10, 8\) with as much context"):
        VolumeAugmentation(0)(image[:, 1:], mask, affine, 0, 0)
    flat = sample((8, 8))
    with pytest.raises(ValueError, match=r"flips \[2\] name an axis that patches of 2 axes do not have"):
        VolumeAugmentation(0, flips=(2,))(*flat, 0, 0)
