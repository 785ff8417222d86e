"""s'': where patches lie, and what is around them."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.volumes.patch_sampling import PatchCutter, PatchSampling
from tests.helpers.patches import tiny_volume

SIZE = (12, 10, 9)


def starts(centres: str, draws: int, volume=None, patch=(3, 3, 3), epoch: int = 0, **options) -> list[tuple[int, ...]]:
    sampling = PatchSampling(0, patch, 3, centres, **options)
    volume = tiny_volume(0, SIZE) if volume is None else volume
    return [sampling.start(volume, epoch, index, index) for index in range(draws)]


def centre_classes(places: list[tuple[int, ...]], mask: torch.Tensor, patch: int = 3) -> Counter:
    return Counter(int(mask[tuple(first + patch // 2 for first in place)]) for place in places)


def test_uniform_patches_begin_everywhere_alike():
    found = Counter(starts("uniform", 2400, tiny_volume(0, (8, 7, 6)), patch=(6, 6, 6)))
    assert set(found) == {(x, y, z) for x in range(3) for y in range(2) for z in range(1)}
    assert all(abs(count - 400) < 80 for count in found.values())


def test_a_grid_covers_the_volume_before_it_begins_anew():
    count = 3 * 3 * 3  # of 12, 10 and 9 voxels in fours
    for epoch in range(3):
        found = starts("grid", 2 * count, patch=(4, 4, 4), epoch=epoch)
        assert len(set(found[:count])) == count
        assert found[count:] == found[:count]
        seen = torch.zeros(SIZE, dtype=torch.bool)
        for place in found:
            seen[tuple(slice(first, first + 4) for first in place)] = True
        assert seen.all()


def test_a_grid_begins_elsewhere_in_another_epoch():
    assert len({starts("grid", 1, patch=(4, 4, 4), epoch=epoch)[0] for epoch in range(30)}) > 10


def test_classes_are_balanced_over_those_that_are_there():
    volume = tiny_volume(0, SIZE)
    found = centre_classes(starts("class_balanced", 900, volume, patch=(1, 1, 1)), volume.mask, 1)
    assert all(abs(found[number] - 300) < 60 for number in range(3))
    without_dot = dataclasses.replace(volume, mask=volume.mask * (volume.mask < 2))
    found = centre_classes(starts("class_balanced", 900, without_dot, patch=(1, 1, 1)), without_dot.mask, 1)
    assert all(abs(found[number] - 450) < 80 for number in range(2))


def test_every_voxel_of_a_class_is_as_likely():
    volume = tiny_volume(0, SIZE)
    found = Counter(starts("foreground", 2800, volume, patch=(1, 1, 1), foreground_fraction=1.0))
    assert set(found) == {tuple(place) for place in volume.mask.nonzero().tolist()}
    assert all(abs(count - 100) < 50 for count in found.values())  # 27 voxels of a box, one dot
    ground = Counter(starts("foreground", 400, volume, patch=(1, 1, 1), foreground_fraction=0.0))
    assert centre_classes(list(ground), volume.mask, 1).keys() == {0}


@pytest.mark.parametrize("fraction", [None, 0.8])
def test_a_fraction_of_the_patches_is_centred_on_foreground(fraction):
    volume = tiny_volume(0, SIZE)
    found = centre_classes(starts("foreground", 1000, volume, (1, 1, 1), foreground_fraction=fraction), volume.mask, 1)
    assert (found[1] + found[2]) / 1000 == pytest.approx(fraction or 0.5, abs=0.05)


@pytest.mark.parametrize("patch", [(5, 4, 9), (12, 10, 9)])
def test_patches_hold_their_voxel_and_stay_within_the_volume(patch):
    mask = torch.full(SIZE, 255, dtype=torch.uint8)
    for voxel in [(0, 0, 0), (11, 9, 8), (6, 5, 4)]:
        mask[voxel] = 2
    volume = dataclasses.replace(tiny_volume(0, SIZE), mask=mask)
    for place in starts("class_balanced", 50, volume, patch):  # voxels to be ignored are of no class
        window = tuple(slice(first, first + side) for first, side in zip(place, patch, strict=True))
        assert mask[window].shape == patch
        assert (mask[window] == 2).any()


def test_images_have_patches_too():
    volume = tiny_volume(0, (12, 10))
    assert centre_classes(starts("class_balanced", 50, volume, (1, 1)), volume.mask, 1).keys() == {0, 1, 2}


def test_draws_depend_on_seed_epoch_and_index_alone():
    volume, drawn = tiny_volume(0, SIZE), []
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        sampling = PatchSampling(seed, (3, 3, 3), 3)
        order = range(20) if len(drawn) < 3 else reversed(range(20))
        drawn.append({index: sampling.start(volume, epoch, index, 0) for index in order})
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_a_patch_larger_than_the_volume_needs_to_be_continued():
    message = (
        r"4x11x4 voxels is larger than subject_0 \(12x10x9\)\. .*after spacing and crop_foreground.*smaller patch_size"
    )
    with pytest.raises(ValueError, match=message):
        starts("uniform", 1, patch=(4, 11, 4))
    for centres in ("uniform", "grid", "class_balanced", "foreground"):
        assert {place[1] for place in starts(centres, 20, patch=(4, 14, 4), smaller_volumes=True)} == {-2}


def test_patches_need_as_many_axes_as_the_volume():
    with pytest.raises(ValueError, match=r"patch_size \[4, 4\] has another number of axes than subject_0 \(12x10x9\)"):
        starts("uniform", 1, patch=(4, 4))


def test_what_is_sampled_must_be_there():
    volume = tiny_volume(7, SIZE)
    empty = dataclasses.replace(volume, mask=torch.zeros_like(volume.mask))
    with pytest.raises(ValueError, match=r"no foreground.* in subject_7 .*in subject_weights to 0"):
        starts("foreground", 1, empty)
    with pytest.raises(ValueError, match="no background to sample from in subject_7"):
        starts("foreground", 20, dataclasses.replace(volume, mask=torch.ones_like(volume.mask)))
    with pytest.raises(ValueError, match="no class at all in the mask of subject_7"):
        starts("class_balanced", 1, dataclasses.replace(volume, mask=torch.full_like(volume.mask, 255)))
    starts("foreground", 20, empty, foreground_fraction=0.0)
    starts("class_balanced", 20, empty)


def test_all_subjects_are_checked_before_the_first_draw():
    volumes = [tiny_volume(number, SIZE) for number in range(14)]
    empty = [volumes[0], *(dataclasses.replace(v, mask=torch.zeros_like(v.mask)) for v in volumes[1:])]
    sampling = PatchSampling(0, (3, 3, 3), 3, "foreground")
    sampling.check(volumes[:1])
    with pytest.raises(ValueError, match=r"in subject_1 \(12x10x9\), subject_2 .*, subject_10 .* and 3 more\. Set the"):
        PatchSampling(0, (3, 3, 3), 3, "foreground").check(empty)
    PatchSampling(0, (3, 3, 3), 3, "class_balanced").check(empty)
    PatchSampling(0, (3, 3, 3), 3, "uniform").check(empty)
    ignored = [dataclasses.replace(v, mask=torch.full_like(v.mask, 255)) for v in volumes[:2]]
    for centres in ("class_balanced", "foreground"):
        with pytest.raises(ValueError, match=r"no class at all in the mask of subject_0 .*, subject_1 "):
            PatchSampling(0, (3, 3, 3), 3, centres).check(ignored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centres": "middle"}, "patch_centres must be one of uniform, grid, class_balanced, foreground, got 'middle'"),
        ({"foreground_fraction": 0.3}, "foreground_fraction is for patch_centres: foreground, and that is uniform"),
        ({"centres": "foreground", "foreground_fraction": 1.2}, "foreground_fraction must be 0 to 1, got 1.2"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        PatchSampling(0, (3, 3, 3), 3, **options)


def cut(volume, start, patch, context, padding) -> tuple[np.ndarray, np.ndarray]:
    cutter = PatchCutter(patch, context, padding)
    image, mask = torch.full((2, *cutter.input_size), torch.nan), torch.full(patch, 77, dtype=torch.uint8)
    cutter.cut(volume, start, image, mask)
    return image.numpy(), mask.numpy()


@pytest.mark.parametrize("context", [0, 2, 7])
@pytest.mark.parametrize(("size", "start", "patch"), [(SIZE, (0, 3, 5), (4, 5, 4)), ((7, 6), (1, 5), (5, 1))])
def test_what_a_patch_holds_and_what_is_around_it(size, start, patch, context):
    volume = tiny_volume(0, size)
    window = tuple(slice(first, first + side) for first, side in zip(start, patch, strict=True))
    inner = volume.image.numpy()[:, *window]
    around = ((0, 0), *[(context, context)] * len(size))
    larger = tuple(slice(first, first + side + 2 * context) for first, side in zip(start, patch, strict=True))
    expected = {
        "image": np.pad(volume.image.numpy(), around)[:, *larger],
        "zeros": np.pad(inner, around),
        "reflect": np.pad(inner, around, mode="reflect"),
    }
    for padding, values in expected.items():
        image, mask = cut(volume, start, patch, context, padding)
        np.testing.assert_array_equal(image, values)
        np.testing.assert_array_equal(mask, volume.mask.numpy()[window])


def test_a_smaller_volume_lies_in_the_middle_of_a_patch():
    volume = tiny_volume(0, (5, 4, 6))
    outside, around = ((1, 2), (0, 0), (0, 0)), ((0, 0), (3, 4), (2, 2), (2, 2))
    for padding, mode in {"zeros": "constant", "reflect": "reflect"}.items():
        image, mask = cut(volume, (-1, 0, 0), (8, 4, 6), 2, padding)
        np.testing.assert_array_equal(image, np.pad(volume.image.numpy(), around, mode=mode))
        np.testing.assert_array_equal(mask, np.pad(volume.mask.numpy(), outside, constant_values=255))


def test_contexts_that_cannot_be():
    with pytest.raises(ValueError, match="patch_padding must be one of image, zeros, reflect, got 'mirror'"):
        PatchCutter((3, 3), 1, "mirror")
    with pytest.raises(ValueError, match="context must be 0 or more voxels, got -1"):
        PatchCutter((3, 3), -1)
