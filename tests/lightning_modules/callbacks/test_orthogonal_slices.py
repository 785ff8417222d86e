"""Three slices of volumes beside their true and their predicted masks."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.callbacks import OrthogonalSlices, SegmentationOverlays
from lightning_modules.callbacks.orthogonal_slices import axes_to_ras, largest_cross_sections
from tests.helpers.patches import TinyPatches
from tests.helpers.tiny_masks import IGNORED, TinyMasks, tiny_segmentation
from tests.helpers.tiny_runs import tiny_trainer

SIZE = (6, 5, 4)
# A point within a patient, in voxels: far right, far anterior, far superior.
RIGHT, ANTERIOR, SUPERIOR = 5, 4, 3


def data(**attributes):
    return SimpleNamespace(**{"in_channels": 1, **attributes})


def shown(image, truth, prediction, affine=None, callback=None, **batch):
    """The rows of a volume: axial, coronal, sagittal."""
    batch |= {"image": image[None]} | ({} if affine is None else {"affine": affine[None]})
    outputs = {"prediction": prediction[None], "mask": truth[None], "index": torch.tensor([7])}
    (rows,) = (callback or OrthogonalSlices(max_side=max(SIZE))).rows(data(), IGNORED, outputs, batch, 3)
    return rows


def volume():
    """Grey values that differ from voxel to voxel, and a truth whose largest slices are known."""
    image = torch.arange(math.prod(SIZE), dtype=torch.float32).view(1, *SIZE)
    truth = torch.zeros(SIZE, dtype=torch.uint8)
    truth[2, 1:4, 1:3] = 1
    truth[1:4, 2, 2] = 2
    truth[5] = IGNORED
    return image, truth


def test_largest_cross_sections():
    _, truth = volume()
    assert largest_cross_sections((truth > 0) & (truth != IGNORED)) == [2, 2, 2]
    assert largest_cross_sections(torch.zeros(SIZE, dtype=torch.bool)) == [3, 2, 2]


def test_planes_lie_as_radiologists_see_them():
    image, truth = volume()
    prediction = torch.zeros(SIZE, dtype=torch.uint8)
    prediction[RIGHT, ANTERIOR] = 1  # a column, seen from above in the corner, and in no other slice that is shown
    axial, coronal, sagittal = shown(image, truth, prediction)
    assert axial.prediction.shape == axial.image.shape[:2] == (5, 6)
    assert coronal.truth.shape == (4, 6)
    assert sagittal.truth.shape == (4, 5)
    assert np.argwhere(axial.prediction).tolist() == [[0, 0]]  # the patient's right is on the left, anterior is up
    np.testing.assert_array_equal(axial.truth, truth[:, :, 2].numpy().T[::-1, ::-1])
    np.testing.assert_array_equal(coronal.truth, truth[:, 2, :].numpy().T[::-1, ::-1])
    np.testing.assert_array_equal(sagittal.truth, truth[2].numpy().T[::-1, ::-1])
    prediction = torch.zeros(SIZE, dtype=torch.uint8)
    prediction[RIGHT, :, SUPERIOR] = 1
    assert np.argwhere(shown(image, truth, prediction)[1].prediction).tolist() == [[0, 0]]
    prediction = torch.zeros(SIZE, dtype=torch.uint8)
    prediction[:, ANTERIOR, SUPERIOR] = 1
    assert np.argwhere(shown(image, truth, prediction)[2].prediction).tolist() == [[0, 0]]


def test_grey_values_are_those_of_the_slices():
    image, truth = volume()
    rows = shown(image, truth, truth)
    for row, plane in zip(rows, (image[0, :, :, 2], image[0, :, 2], image[0, 2]), strict=True):
        ranks = plane.numpy().T[::-1, ::-1].ravel().argsort()
        assert (np.diff(row.image[..., 0].ravel()[ranks].astype(int)) >= 0).all()
        assert (row.image == row.image[..., :1]).all()
    assert (min(row.image.min() for row in rows), max(row.image.max() for row in rows)) == (0, 255)
    flat = shown(torch.full_like(image, 3), truth, truth)
    assert all(row.image.max() == 0 for row in flat)


def test_voxels_are_shown_as_large_as_they_are():
    image, truth = volume()
    affine = torch.diag(torch.tensor([-1.0, 2.0, 0.5, 1.0], dtype=torch.float64))
    axial, coronal, sagittal = shown(image, truth, truth, affine, OrthogonalSlices(max_side=20))
    assert [row.truth.shape for row in (axial, coronal, sagittal)] == [(20, 12), (4, 12), (4, 20)]
    enlarged = shown(image, truth, truth, affine, OrthogonalSlices())
    assert [row.truth.shape for row in enlarged] == [(240, 144), (48, 144), (48, 240)]
    shrunk = shown(image, truth, truth, affine, OrthogonalSlices(max_side=10))
    assert [row.image.shape for row in shrunk] == [(10, 6, 3), (2, 6, 3), (2, 10, 3)]


def turned(angle):
    """A rotation by `angle` degrees about an oblique axis, float64 (3, 3)."""
    x, y, z = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), dim=0)
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(math.radians(angle) * generator)


@pytest.mark.parametrize("angle", [0, 20])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "IPR", "SLA"])
def test_every_orientation_gives_the_same_picture(codes, angle):
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    affine = torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64))
    affine[:3, :3] = turned(angle) @ affine[:3, :3]
    image, truth = volume()
    prediction = torch.zeros_like(truth)
    prediction[RIGHT, ANTERIOR], prediction[2, 1, SUPERIOR] = 1, 2
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    other = affine @ torch.from_numpy(inv_ornt_aff(change, SIZE))
    volumes = (torch.from_numpy(apply_orientation(array.numpy(), change).copy()) for array in (truth, prediction))
    grey = torch.from_numpy(apply_orientation(image[0].numpy(), change).copy())[None]
    assert (codes == "RAS") == (axes_to_ras(other) == ([0, 1, 2], []))
    expected = shown(image, truth, prediction, affine)
    for found, row in zip(shown(grey, *volumes, other), expected, strict=True):
        assert found.name == row.name
        for picture in ("image", "truth", "prediction"):
            np.testing.assert_array_equal(getattr(found, picture), getattr(row, picture))


def test_an_oblique_volume_takes_each_axis_once():
    """Two axes of the array are nearest to the patient's left and right: the one that is farther goes elsewhere."""
    steps = torch.tensor([[0.9, -0.7, 0.0], [0.43, 0.6, 0.3], [0.0, -0.39, 0.95]])
    affine = torch.eye(4)
    affine[:3, :3] = steps
    assert axes_to_ras(affine) == ([0, 1, 2], [])


def test_names():
    image, truth = volume()
    rows = shown(image, truth, truth, file=["patient"])
    assert [row.name for row in rows] == [
        "patient (Dice of the foreground 1.000), axial, slice 3 of 4",
        "patient (Dice of the foreground 1.000), coronal, slice 3 of 5",
        "patient (Dice of the foreground 1.000), sagittal, slice 3 of 6",
    ]
    assert {row.index for row in rows} == {7}
    nothing = torch.zeros_like(truth)
    assert shown(image, nothing, nothing)[0].name == "#7, axial, slice 3 of 4"


def test_every_modality_is_shown():
    image, truth = volume()
    rows = shown(torch.cat([image, -image, image**2]), truth, truth)
    assert all(len(row.others) == 2 for row in rows)
    assert rows[0].image.argmax() != rows[0].others[0].argmax()
    titles = OrthogonalSlices().titles
    assert titles(data()) == ("Image",)
    assert titles(data(in_channels=2)) == ("Channel 0", "Channel 1")
    assert titles(data(in_channels=2, modalities=("t1", "flair"))) == ("t1", "flair")


def test_volumes_are_drawn_and_images_are_left_to_the_overlays(tmp_path):
    network = {"dimensions": 3, "widths": [2, 4], "kernel_size": 3}
    of_volumes = tiny_segmentation(model_options=network, in_channels=2, num_classes=3)
    runs = {"volumes": (of_volumes, TinyPatches()), "images": (tiny_segmentation(), TinyMasks())}
    for name, (task, samples) in runs.items():
        trainer = tiny_trainer(tmp_path / name, [OrthogonalSlices(), SegmentationOverlays()])
        trainer.test(task, datamodule=samples, verbose=False)
    assert [path.name for path in (tmp_path / "volumes" / "media").iterdir()] == ["slices_test.png"]
    assert [path.name for path in (tmp_path / "images" / "media").iterdir()] == ["overlays_test.png"]
    with Image.open(tmp_path / "volumes" / "media" / "slices_test.png") as picture:
        assert picture.height > 6 * 200  # two subjects, three planes of 240 pixels or a little less


@pytest.mark.parametrize("option", ["count", "every_n_epochs", "max_side"])
def test_impossible_options(option):
    with pytest.raises(ValueError, match=f"{option} must be 1 or more, got 0"):
        OrthogonalSlices(**{option: 0})
