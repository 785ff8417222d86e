"""Subjects dealt out to training, validation and test."""

from itertools import chain
from pathlib import Path

import pytest

from datamodules.volumes.files import SubjectFiles
from datamodules.volumes.subject_splits import SubjectSplit, deal_subjects

NAMES = ("train", "val", "test")


def subjects(count: int, scans: int = 1) -> list[SubjectFiles]:
    return [
        SubjectFiles(f"p{patient:02d}-{scan}", f"p{patient:02d}", None, {"t1": Path("t1.nii")}, None, {})
        for patient in range(count)
        for scan in range(scans)
    ]


def dealt(files: list[SubjectFiles], seed: int = 0, **options) -> dict[str, list[str]]:
    """Names of the subjects of each set."""
    splits = {name: SubjectSplit(name, options.get(f"{name}_subjects"), options.get(f"{name}_size")) for name in NAMES}
    return {name: [one.subject for one in found] for name, found in deal_subjects(files, splits, seed).items()}


def test_the_default_deals_out_all_once():
    found = dealt(subjects(12))
    assert {name: len(members) for name, members in found.items()} == {"train": 7, "val": 2, "test": 3}
    assert sorted(chain.from_iterable(found.values())) == [one.subject for one in subjects(12)]
    assert all(members == sorted(members) for members in found.values())
    assert dealt(subjects(12)) == found
    assert dealt(subjects(12), seed=1) != found


def test_sizes_count_patients_and_no_patient_is_in_two_sets():
    found = dealt(subjects(6, scans=2), train_size=3, val_size=1, test_size=2)
    assert {name: len(members) for name, members in found.items()} == {"train": 6, "val": 2, "test": 4}
    patients = [{subject.split("-")[0] for subject in members} for members in found.values()]
    assert sum(map(len, patients)) == 6


def test_a_smaller_training_set_is_contained_in_a_larger_one():
    sets = [dealt(subjects(20), train_size=size, val_size=3, test_size=4) for size in (2, 8, 13)]
    assert set(sets[0]["train"]) < set(sets[1]["train"]) < set(sets[2]["train"])
    assert all(found["val"] == sets[0]["val"] and found["test"] == sets[0]["test"] for found in sets)


def test_subjects_can_be_named_and_the_rest_dealt_out():
    found = dealt(subjects(6), test_subjects=["p05-0", "p01-0"], val_size=1)
    assert found["test"] == ["p01-0", "p05-0"]
    assert len(found["val"]) == 1
    assert sorted(found["train"] + found["val"]) == ["p00-0", "p02-0", "p03-0", "p04-0"]
    found = dealt(subjects(2), train_subjects=["p00-0"], test_subjects=["p01-0"])
    assert found == {"train": ["p00-0"], "val": [], "test": ["p01-0"]}


def test_other_scans_of_a_named_patient_are_left_out():
    found = dealt(subjects(3, scans=2), train_subjects=["p00-1"], val_size=0, test_size=2)
    assert found["train"] == ["p00-1"]
    assert found["test"] == ["p01-0", "p01-1", "p02-0", "p02-1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_subjects": ["p1-0"]}, "train_subjects: there is no subject 'p1-0'. Did you mean 'p0"),
        ({"train_subjects": ["p00-0"], "test_subjects": ["p00-1"]}, r"share a patient, p00 \(subject p00-1\)"),
        ({"val_subjects": ["p00-0"], "val_size": 1}, "val_subjects and val_size both say what to take"),
        ({"val_subjects": ["p00-0", "p00-0"]}, "val_subjects names a subject twice"),
        ({"val_size": 2, "test_size": 2}, "There are 4 patients .* too few for 1 for train, 2 for val, 2 for test"),
    ],
)
def test_lists_and_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dealt(subjects(4, scans=2), **options)
