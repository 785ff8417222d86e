"""Measures of subjects against hand-computed values, and against MONAI's on uncropped volumes."""

from __future__ import annotations

import math

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_modules.metrics.subjects import (
    HEADER,
    MeasuredSubject,
    RegionMeasures,
    SubjectMeasures,
    as_csv,
    of_all_processes,
    subject_means,
)
from models.names import UnknownNameError

IGNORED = 255
SPACING = (1.0, 2.0, 3.0)
AFFINE = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
ALL = {"all": [1]}


def boxes(size, *corners):
    """A mask with class 1 in boxes, each given by slices."""
    mask = torch.zeros(size, dtype=torch.uint8)
    for corner in corners:
        mask[corner] = 1
    return mask


def measured(prediction, truth, affine=AFFINE, regions=ALL, **options):
    call = {name: options.pop(name) for name in ("ignore_index", "with_surfaces") if name in options}
    return SubjectMeasures(**options)(prediction, truth, affine, regions, **call)


def blobs(seed, size=(14, 12, 10)):
    """Classes 0 to 3 in smooth random areas that touch the borders."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(1, 4, *size, generator=generator)
    return torch.nn.functional.avg_pool3d(values, 5, 1, 2).argmax(1)[0].byte()


def test_single_voxels():
    """Two voxels apart along the axis of 3 mm: 6 mm; a voxel is 6 cubic millimetres."""
    truth, prediction = boxes((5, 5, 5), (2, 2, 1)), boxes((5, 5, 5), (2, 2, 3))
    far = measured(prediction, truth, surface_tolerance=5.9)["all"]
    assert (far.dice, far.surface_dice) == (0, 0)
    assert far.hd95 == pytest.approx(6)
    assert far.true_volume == far.predicted_volume == pytest.approx(0.006)
    assert (far.volume_difference, far.relative_volume_difference) == (0, 0)
    assert measured(prediction, truth, surface_tolerance=6.1)["all"].surface_dice == 1


def test_a_plane_beside_a_plane():
    """3x3 voxels, and the same with the next plane: of 9 and 18 surface voxels, 9 and 9 lie on the other surface."""
    truth = boxes((7, 7, 7), (slice(2, 5), slice(2, 5), 2))
    prediction = boxes((7, 7, 7), (slice(2, 5), slice(2, 5), slice(2, 4)))
    found = measured(prediction, truth)["all"]
    assert found.dice == pytest.approx(2 * 9 / 27)
    assert found.surface_dice == pytest.approx(18 / 27)
    assert found.hd95 == pytest.approx(3)
    assert found.volume_difference == pytest.approx(0.054)
    assert found.relative_volume_difference == pytest.approx(1)
    smaller = measured(truth, prediction)["all"]
    assert smaller.volume_difference == pytest.approx(-0.054)
    assert smaller.relative_volume_difference == pytest.approx(-0.5)


def test_percentile_leaves_out_outliers():
    """Of 100 voxels in a row 4 lie beyond the truth: the 95th percentile is 0, and 6 that do make it 1 mm."""
    truth = boxes((110, 3, 3), (slice(0, 96), 1, 1))
    assert measured(boxes((110, 3, 3), (slice(0, 100), 1, 1)), truth)["all"].hd95 == 0
    assert measured(boxes((110, 3, 3), (slice(0, 102), 1, 1)), truth)["all"].hd95 > 0


def test_spacing_is_that_of_turned_axes():
    truth, prediction = boxes((5, 5, 5), (2, 2, 1)), boxes((5, 5, 5), (2, 2, 3))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    affine = AFFINE.clone()
    affine[:3, :3] = turn @ AFFINE[:3, :3]
    affine[:3, 3] = torch.tensor([100.0, -20, 3])
    found = measured(prediction, truth, affine)["all"]
    assert found.hd95 == pytest.approx(6)
    assert found.true_volume == pytest.approx(0.006)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # of MONAI's functions, for each other
def test_regions_are_those_of_monai_on_whole_volumes():
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    regions = {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    prediction, truth = blobs(0), blobs(1)
    found = measured(prediction, truth, regions=regions, surface_tolerance=2.0)
    assert list(found) == list(regions)
    for name, classes in regions.items():
        pair = [sum(mask == number for number in classes).float()[None, None] for mask in (prediction, truth)]
        options = {"include_background": True, "spacing": list(SPACING)}
        assert found[name].dice == pytest.approx(compute_dice(*pair).item())
        assert found[name].hd95 == pytest.approx(compute_hausdorff_distance(*pair, percentile=95, **options).item())
        surface = compute_surface_dice(*pair, class_thresholds=[2.0], **options)
        assert found[name].surface_dice == pytest.approx(surface.item())
        assert 0 < found[name].surface_dice < 1


def test_images_of_two_axes():
    """In pixels of 1 mm, without an affine; areas are in square centimetres."""
    truth, prediction = boxes((8, 8), (slice(1, 5), slice(1, 5))), boxes((8, 8), (slice(1, 5), slice(3, 7)))
    found = measured(prediction, truth, affine=None)["all"]
    assert (found.dice, found.hd95) == (0.5, 2)
    assert found.true_volume == pytest.approx(0.16)


def test_ignored_voxels_belong_to_no_region():
    truth, prediction = boxes((5, 5, 5), (2, 2, 1)), boxes((5, 5, 5), (2, 2, 1), (4,))
    truth[4] = IGNORED
    found = measured(prediction, truth)["all"]
    assert (found.dice, found.hd95, found.volume_difference) == (1, 0, 0)
    truth[truth == IGNORED] = 7
    assert measured(prediction, truth, ignore_index=7)["all"] == found


def test_a_region_that_is_missed_or_invented_costs_the_diagonal():
    nothing, something = boxes((240, 240, 155)), boxes((240, 240, 155), (3, 3, 3))
    missed = measured(nothing, something, affine=torch.eye(4))["all"]
    assert (missed.dice, missed.surface_dice, missed.relative_volume_difference) == (0, 0, -1)
    assert missed.hd95 == pytest.approx(373.128, abs=1e-3)
    invented = measured(something, nothing)["all"]
    assert (invented.dice, invented.surface_dice) == (0, 0)
    assert invented.hd95 == pytest.approx(math.hypot(240, 480, 465))
    assert math.isnan(invented.relative_volume_difference)
    assert invented.volume_difference == pytest.approx(0.006)


def test_the_distance_of_a_missed_region_may_be_given():
    """Then it does not depend on how a subject is cropped; a region that is found keeps its distance."""
    truth, prediction = boxes((5, 5, 5), (2, 2, 1)), boxes((5, 5, 5), (2, 2, 3))
    for size in ((4, 4, 4), (8, 8, 8)):
        nothing, something = boxes(size), boxes(size, (3, 3, 3))
        for pair in ((nothing, something), (something, nothing)):
            assert measured(*pair, missing_distance=373.13)["all"].hd95 == 373.13
    assert measured(prediction, truth, missing_distance=373.13) == measured(prediction, truth)


def test_a_region_that_is_nowhere():
    nothing = boxes((4, 4, 4))
    skipped = measured(nothing, nothing)["all"]
    assert all(map(math.isnan, (skipped.dice, skipped.hd95, skipped.surface_dice)))
    assert (skipped.true_volume, skipped.volume_difference) == (0, 0)
    perfect = measured(nothing, nothing, both_empty="perfect")["all"]
    assert (perfect.dice, perfect.hd95, perfect.surface_dice) == (1, 0, 1)


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"with_surfaces": False}, {"hd95", "surface_dice"}),
        ({"hausdorff": False}, {"hd95"}),
        ({"surface_dice": False}, {"surface_dice"}),
    ],
)
@pytest.mark.parametrize("predicted", [boxes((5, 5, 5), (2, 2, 3)), boxes((5, 5, 5))])
def test_what_is_not_asked_for_is_not_measured(options, absent, predicted):
    found = measured(predicted, boxes((5, 5, 5), (2, 2, 1)), **options)["all"]
    assert {name for name, value in found.compared.items() if math.isnan(value)} == absent


def subject(index, **regions):
    return MeasuredSubject(index, f"s{index}", {name: RegionMeasures(*values) for name, values in regions.items()})


def test_means_leave_out_what_is_undefined_and_count_the_rest():
    subjects = [
        subject(0, core=(0.5, 4.0, 0.25, 2.0, 1.0), edge=(math.nan, math.nan, math.nan, 0.0, 0.0)),
        subject(1, core=(1.0, 0.0, 1.0, 1.0, 1.5), edge=(math.nan, math.nan, math.nan, 0.0, 0.0)),
        subject(2, core=(0.0, 8.0, 0.0, 0.0, 3.0), edge=(0.8, 2.0, 0.5, 1.0, 1.0)),
    ]
    means = subject_means(subjects)
    assert means == pytest.approx(
        {
            "subject_dice_core": 0.5,
            "hd95_core": 4.0,
            "surface_dice_core": 1.25 / 3,
            "volume_difference_core": (1 + 0.5 + 3) / 3,
            "relative_volume_difference_core": 0.5,
            "subjects_core": 3,
            "subject_dice_edge": 0.8,
            "hd95_edge": 2.0,
            "surface_dice_edge": 0.5,
            "volume_difference_edge": 0.0,
            "relative_volume_difference_edge": 0.0,
            "subjects_edge": 1,
            "subject_dice": 0.65,
        }
    )
    nowhere = subject_means([subject(0, edge=(math.nan, math.nan, math.nan, 0.0, 0.0))])
    assert nowhere == {"volume_difference_edge": 0, "subjects_edge": 0}
    assert subject_means([]) == {}


def test_table():
    subjects = [subject(0, core=(0.5, 4.0, 0.25, 2.0, 1.0), edge=(math.nan, math.nan, math.nan, 0.0, 0.0))]
    assert as_csv(subjects).splitlines() == [
        ",".join(HEADER),
        "s0,core,0.500000,4.000000,0.250000,2.000000,1.000000,-1.000000,-0.500000",
        "s0,edge,,,,0.000000,0.000000,0.000000,",
    ]


def test_one_process_orders_its_subjects():
    assert [found.index for found in of_all_processes([subject(2), subject(0)])] == [0, 2]


def test_default_regions_are_the_classes_but_the_first():
    assert SubjectMeasures().regions_of(["background", "core", "edge"]) == {"core": [1], "edge": [2]}
    assert SubjectMeasures({"both": [1, 2]}).regions_of(["background", "core", "edge"]) == {"both": [1, 2]}


def test_from_yaml_by_the_short_name():
    parser = ArgumentParser()
    parser.add_argument("--measures", type=SubjectMeasures | None, default=None)
    options = {"regions": {"core": [1, 3], "enhancing": [3]}, "both_empty": "perfect"}
    config = parser.parse_object({"measures": {"class_path": "SubjectMeasures", "init_args": options}})
    measures = parser.instantiate_classes(parser.parse_string(parser.dump(config))).measures
    assert measures.regions == options["regions"]
    assert measures.both_empty == "perfect"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": {}}, "regions is empty"),
        ({"regions": {"core": []}}, "region 'core' must name classes by their numbers"),
        ({"regions": {"core": [1, 1]}}, r"each once, got \[1, 1\]"),
        ({"regions": {"core": [-1]}}, "region 'core' must name classes"),
        ({"surface_tolerance": -1.0}, "surface_tolerance must be 0 mm or more"),
        ({"surface_tolerance": math.nan}, "surface_tolerance must be 0 mm or more"),
        ({"missing_distance": 0.0}, "missing_distance must be above 0 mm, or null, got 0.0"),
        ({"missing_distance": math.inf}, "missing_distance must be above 0 mm"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        SubjectMeasures(**options)


def test_without_monai(monkeypatch):
    monkeypatch.setattr("lightning_modules.metrics.subjects.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs MONAI: pip install convsuite\[medical\]"):
        SubjectMeasures()


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"unknown both_empty 'skipped'\. Did you mean 'skip'"):
        SubjectMeasures(both_empty="skipped")
    with pytest.raises(ValueError, match="region 'core' holds class 3, and the last one is 2"):
        SubjectMeasures({"core": [1, 3]}).check_classes(3)
