"""Into working space and back: 200 random chains of transforms, files as nibabel reads them, and patches."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai import transforms
from monai.data import MetaTensor
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional as F

from datamodules.volumes.augmentation import VolumeAugmentation
from datamodules.volumes.geometry import NativeSpace, native_transforms, put_back, to_native

RAS = (("L", "R"), ("P", "A"), ("I", "S"))
CLASSES = 3


def random_affine(rng: np.random.Generator, *, oblique: bool) -> np.ndarray:
    """Axes in any order and direction, turned by up to 17 degrees where `oblique`; float32, as in files."""
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    if oblique:
        axes = Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix() @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes * rng.uniform(0.8, 1.6, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine.astype(np.float32).astype(np.float64)


def ellipsoids(rng: np.random.Generator, size: tuple[int, ...], radius: float) -> np.ndarray:
    """One ellipsoid of class 1 with one of class 2 within it: radii of 1 to 1.25, and 0.6 to 0.75 times `radius`."""
    classes = np.zeros(size, np.uint8)
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    for number, factor in ((1, 1), (2, 0.6)):
        radii = radius * factor * rng.uniform(1, 1.25, 3)
        centre = np.array(size) / 2 + rng.uniform(-1, 1, 3)
        classes[(((voxels - centre) / radii) ** 2).sum(-1) <= 1] = number
    return classes


def random_size(rng: np.random.Generator, least: int) -> tuple[int, ...]:
    return tuple(rng.integers(least, least + 6, 3).tolist())


def native_space(classes: np.ndarray, affine: np.ndarray) -> NativeSpace:
    return NativeSpace(classes.shape, torch.from_numpy(affine))


def one_hot(classes: np.ndarray) -> Tensor:
    return F.one_hot(torch.from_numpy(classes).long(), CLASSES).movedim(-1, 0).float()


def places(size: tuple[int, ...], affine: Tensor) -> Tensor:
    """Where voxels are in the world: (3, *size) mm."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"))
    return torch.einsum("ij,j...->i...", affine[:3, :3], grid) + affine[:3, 3, None, None, None]


def with_places(classes: np.ndarray, affine: np.ndarray) -> MetaTensor:
    """Probabilities of the classes, and the world's coordinates, as channels of a volume that knows its affine."""
    native = torch.from_numpy(affine)
    return MetaTensor(torch.cat([one_hot(classes), places(classes.shape, native).float()]), affine=native)


def is_labelled(channels: Tensor) -> Tensor:
    return channels[1:CLASSES].sum(0, keepdim=True) > 0


def random_exact(rng: np.random.Generator) -> transforms.Transform:
    some = [int(i) for i in range(3) if rng.random() < 0.5] or [0]
    axcodes = "".join(rng.permutation([rng.choice(list(ends)) for ends in ("LR", "PA", "IS")]))
    plane = tuple(rng.permutation(3)[:2].tolist())
    return [
        lambda: transforms.Orientation(axcodes, labels=RAS),
        lambda: transforms.Flip(some),
        lambda: transforms.Rotate90(int(rng.integers(1, 4)), plane),
        lambda: transforms.CropForeground(
            is_labelled, margin=rng.integers(0, 5, 3).tolist(), allow_smaller=bool(rng.integers(2))
        ),
        lambda: transforms.BorderPad(rng.integers(0, 5, 6).tolist()),
        lambda: transforms.SpatialPad(rng.integers(20, 50, 3).tolist()),
    ][rng.integers(6)]()


def random_resampling(rng: np.random.Generator) -> transforms.Transform:
    """Voxels 0.7 to 1.4 times as long, or turned by up to 17 degrees about each axis.

    Beyond the border is nothing: MONAI's default would draw out a structure that a crop left at the border.
    """
    return [
        lambda: transforms.Spacing(rng.uniform(0.8, 1.6, 3).tolist(), padding_mode="zeros", align_corners=True),
        lambda: transforms.Rotate(
            rng.uniform(-0.3, 0.3, 3).tolist(), keep_size=False, padding_mode="zeros", align_corners=True
        ),
        lambda: transforms.Zoom(rng.uniform(0.7, 1.4, 3).tolist(), keep_size=False, mode="trilinear"),
        lambda: transforms.Resize(rng.integers(44, 56, 3).tolist(), mode="trilinear"),
    ][rng.integers(4)]()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """That of the class that agrees least."""
    return min(2 * ((a == c) & (b == c)).sum() / ((a == c).sum() + (b == c).sum()) for c in range(1, CLASSES))


# --------------------------------------------------------------------------------------------------------- the chains


@pytest.mark.parametrize("seed", range(10))
def test_exact_chains_come_back_voxel_for_voxel(seed):
    for case in range(10):
        rng = np.random.default_rng([seed, case])
        classes = ellipsoids(rng, random_size(rng, 16), 5)
        affine = random_affine(rng, oblique=case % 2 == 1)
        chain = transforms.Compose([random_exact(rng) for _ in range(rng.integers(1, 7))])
        warped = chain(with_places(classes, affine))
        label = warped[:CLASSES].as_tensor().argmax(0).to(torch.uint8)
        for prediction in (label, warped[:CLASSES].as_tensor()):
            found, found_affine, _ = to_native(prediction, warped.affine, native_space(classes, affine))
            np.testing.assert_array_equal(found, classes)
            np.testing.assert_allclose(found_affine, affine, rtol=0, atol=1e-6)
        there = label > 0
        is_at = warped[CLASSES:].as_tensor()[:, there].double()
        torch.testing.assert_close(is_at, places(label.shape, warped.affine)[:, there], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_resampling_chains_come_back_with_a_dice_of_more_than_98_percent(seed):
    """Of one or two resamplings among two exact transforms; probabilities, as a network gives them."""
    for case in range(10):
        rng = np.random.default_rng([seed, case])
        classes = ellipsoids(rng, random_size(rng, 32), 12)
        affine = random_affine(rng, oblique=case % 2 == 1)
        steps = [random_resampling(rng) for _ in range(rng.integers(1, 3))] + [random_exact(rng) for _ in range(2)]
        warped = transforms.Compose(rng.permutation(np.array(steps, object)).tolist())(with_places(classes, affine))
        found, found_affine, _ = to_native(warped[:CLASSES].as_tensor(), warped.affine, native_space(classes, affine))
        assert dice(found, classes) > 0.98
        np.testing.assert_allclose(found_affine, affine, rtol=0, atol=1e-6)
        there = warped[1:CLASSES].as_tensor().sum(0) > 0.9999  # of the outermost voxels some are the border's, repeated
        there &= F.pad(torch.ones([n - 4 for n in there.shape], dtype=torch.bool), [2] * 6)
        is_at = warped[CLASSES:].as_tensor()[:, there].double()
        torch.testing.assert_close(is_at, places(there.shape, warped.affine)[:, there], rtol=0, atol=0.01)


def test_monai_inverts_to_the_same():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        classes = ellipsoids(rng, random_size(rng, 16), 5)
        affine = random_affine(rng, oblique=True)
        chain = transforms.Compose([random_exact(rng) for _ in range(4)])
        warped = chain(with_places(classes, affine))
        inverted = chain.inverse(warped)[:CLASSES].argmax(0).as_tensor().numpy()
        label = warped[:CLASSES].as_tensor().argmax(0)
        np.testing.assert_array_equal(to_native(label, warped.affine, native_space(classes, affine))[0], inverted)


def test_classes_without_probabilities_lose_more():
    """Labels resampled by the nearest value, one by one and a third coarser at most: what they can keep."""
    of_classes, of_probabilities = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        classes = ellipsoids(rng, random_size(rng, 36), 13)
        affine = random_affine(rng, oblique=False)
        spacing = (np.linalg.norm(affine[:3, :3], axis=0) * rng.uniform(0.75, 1.33, 3)).tolist()
        native = native_space(classes, affine)
        label = MetaTensor(torch.from_numpy(classes)[None].float(), affine=native.affine)
        label = transforms.Spacing(spacing, mode="nearest", align_corners=True)(label)
        smooth = transforms.Spacing(spacing, align_corners=True)(MetaTensor(one_hot(classes), affine=native.affine))
        of_classes.append(dice(to_native(label[0].as_tensor().to(torch.uint8), label.affine, native)[0], classes))
        of_probabilities.append(dice(to_native(smooth.as_tensor(), smooth.affine, native)[0], classes))
    assert min(of_classes) > 0.95
    assert min(of_probabilities) > 0.99
    assert all(a < b for a, b in zip(of_classes, of_probabilities, strict=True))


# ---------------------------------------------------------------------------------------------------------- the files


def write_subject(folder: Path, rng: np.random.Generator) -> tuple[dict[str, Path], np.ndarray, np.ndarray]:
    """Images that hold their voxels' own x, y and z in mm where the mask is, 0 elsewhere; and that mask."""
    classes = ellipsoids(rng, random_size(rng, 16), 5)
    affine = random_affine(rng, oblique=True)
    coordinates = places(classes.shape, torch.from_numpy(affine)).numpy() * (classes > 0)
    paths = {name: folder / f"{name}.nii.gz" for name in ("x", "y", "z", "mask")}
    for path, values in zip(paths.values(), [*coordinates.astype(np.float32), classes], strict=True):
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return paths, classes, affine


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", None])
@pytest.mark.parametrize("crop_foreground", [False, True])
def test_files_are_where_they_say_they_are(tmp_path, orientation, crop_foreground):
    paths, classes, affine = write_subject(tmp_path, np.random.default_rng(0))
    read = native_transforms(["x", "y", "z"], "mask", orientation, crop_foreground=crop_foreground)(paths)
    image, mask = read["image"].as_tensor(), read["mask"].as_tensor()
    assert image.dtype == torch.float32
    assert mask.shape == (1, *image.shape[1:])
    there = mask[0] > 0
    expected = places(there.shape, read["image"].affine)[:, there]
    torch.testing.assert_close(image[:, there].double(), expected, rtol=0, atol=1e-4)
    if orientation is not None:
        assert "".join(nibabel.aff2axcodes(read["image"].affine.numpy())) == orientation
    if crop_foreground:
        assert there.shape == tuple((there.nonzero().amax(0) - there.nonzero().amin(0) + 1).tolist())
    native = NativeSpace.of(paths["mask"])
    assert native.size == classes.shape
    found, found_affine, _ = to_native(mask[0].to(torch.uint8), read["mask"].affine, native)
    np.testing.assert_array_equal(found, classes)
    np.testing.assert_allclose(found_affine, nibabel.load(paths["x"]).affine, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found_affine, affine, rtol=0, atol=1e-6)


def test_orientation_is_nibabels(tmp_path):
    paths, _, _ = write_subject(tmp_path, np.random.default_rng(1))
    read = native_transforms(["x"], "mask", "RAS")(paths)
    canonical = nibabel.as_closest_canonical(nibabel.load(paths["mask"]))
    np.testing.assert_array_equal(read["mask"].as_tensor()[0].numpy(), np.asarray(canonical.dataobj))
    np.testing.assert_allclose(read["mask"].affine.numpy(), canonical.affine, rtol=0, atol=1e-6)


def test_spacing_keeps_places(tmp_path):
    paths, _, _ = write_subject(tmp_path, np.random.default_rng(2))
    read = native_transforms(["x", "y", "z"], "mask", "RAS", (0.9, 1.1, 1.3))(paths)
    affine = read["image"].affine
    np.testing.assert_allclose(affine[:3, :3].norm(dim=0).numpy(), (0.9, 1.1, 1.3), rtol=0, atol=1e-6)
    inner = F.max_pool3d((read["mask"].as_tensor() == 0).float(), 5, 1, 2)[0] == 0  # no background is interpolated
    assert inner.sum() > 50
    is_at = read["image"].as_tensor()[:, inner].double()
    torch.testing.assert_close(is_at, places(inner.shape, affine)[:, inner], rtol=0, atol=1e-3)
    assert set(read["mask"].as_tensor().unique().tolist()) == {0, 1, 2}


@pytest.mark.real_data("brats_2018")
def test_a_real_subject_comes_back(tmp_path):
    case = Path(os.environ["CONVSUITE_DATA"]) / "brats_2018" / "case_1"
    paths = {"FLAIR": case / "FLAIR.nii.gz", "mask": case / "GT_W.nii.gz"}
    read = native_transforms(["FLAIR"], "mask", "RAS", crop_foreground=True)(paths)
    native = NativeSpace.of(paths["mask"])
    found, _, _ = to_native(read["mask"].as_tensor()[0].to(torch.uint8), read["mask"].affine, native)
    np.testing.assert_array_equal(found, np.asarray(nibabel.load(paths["mask"]).dataobj))


# -------------------------------------------------------------------------------------------------- putting values back


def test_resampled_values_are_nibabels():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(9, 11, 7)).astype(np.float32)
    affine, target_affine = random_affine(rng, oblique=True), random_affine(rng, oblique=True)
    middle = np.array([4, 5, 3, 1])
    target_affine[:3, 3] += (affine @ middle - target_affine @ [10, 10, 10, 1])[:3]
    expected = resample_from_to(
        nibabel.Nifti1Image(values, affine), ((20, 20, 20), target_affine), order=1, cval=np.nan
    )
    target = torch.full((20, 20, 20), torch.nan)
    put_back(torch.from_numpy(values), torch.from_numpy(affine), target, torch.from_numpy(target_affine))
    expected = torch.from_numpy(expected.get_fdata()).float()
    is_between = ~expected.isnan()  # nibabel knows nothing beyond the outermost centres
    assert is_between.sum() > 100
    torch.testing.assert_close(target[is_between], expected[is_between], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_patches_are_put_back_by_their_affines(seed):
    """Cut anywhere, beyond the border too, mirrored, and with their axes exchanged: together they are the volume."""
    rng = np.random.default_rng(seed)
    classes = torch.from_numpy(rng.integers(0, 9, (10, 12, 9)).astype(np.uint8))
    affine = torch.from_numpy(random_affine(rng, oblique=True))
    around = F.pad(classes, [3] * 6)
    mirror = VolumeAugmentation(seed, flips=(0, 1, 2))
    found = torch.full_like(classes, 255)
    for start in np.ndindex(3, 3, 3):
        first = torch.tensor(start) * 5 - 3
        patch = around[*(slice(i + 3, i + 8) for i in first.tolist())]
        place = affine.clone()
        place[:3, 3] += affine[:3, :3] @ first.double()
        _, patch, place = mirror(patch[None].float(), patch, place, 0, int(np.ravel_multi_index(start, (3, 3, 3))))
        order = rng.permutation(3).tolist()
        place[:, :3] = place[:, order]
        put_back(patch.permute(order), place, found, affine)
    np.testing.assert_array_equal(found.numpy(), classes.numpy())


def test_turned_patches_go_where_they_belong():
    """To a patch that was turned, the volume's own values are put back, but for what interpolation blurs."""
    affine = torch.diag(torch.tensor([1.0, 1.2, 0.9, 1.0], dtype=torch.float64))
    smooth = places((24, 24, 24), affine).sum(0).float()
    turn = VolumeAugmentation(0, rotation=40)
    patch, _, place = turn(smooth[None], torch.zeros(24, 24, 24, dtype=torch.uint8), affine, 0, 0)
    found = torch.full((24, 24, 24), torch.nan)
    put_back(patch[0], place, found, affine)
    inner = (slice(8, 16),) * 3
    assert not found[inner].isnan().any()
    torch.testing.assert_close(found[inner], smooth[inner], rtol=0, atol=1e-3)


def test_images_of_two_axes_come_back():
    classes = torch.arange(12, dtype=torch.uint8).view(3, 4)
    affine = torch.tensor([[0.0, 2, 1], [-1, 0, 5], [0, 0, 1]], dtype=torch.float64)
    cropped = affine.clone()
    cropped[:2, 2] += affine[:2, :2] @ torch.tensor([1.0, 1], dtype=torch.float64)
    found, _, header = to_native(classes[1:, 1:], cropped, NativeSpace((3, 4), affine))
    assert found.tolist() == [[0, 0, 0, 0], [0, 5, 6, 7], [0, 9, 10, 11]]
    assert header is None


def test_a_prediction_beyond_the_subject_is_cut():
    affine = torch.eye(4, dtype=torch.float64)
    far = affine.clone()
    far[0, 3] = 50
    for place in (far, far * torch.tensor([1.3, 1.3, 1.3, 1])):
        found, _, _ = to_native(torch.ones(4, 4, 4, dtype=torch.uint8), place, NativeSpace((5, 5, 5), affine))
        assert not found.any()


def test_another_number_of_axes_is_named():
    native = NativeSpace((4, 4, 4), torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 4, 4\) and torch.uint8 does not fit a subject of 3 axes"):
        to_native(torch.zeros(2, 4, 4, 4, dtype=torch.uint8), native.affine, native)
