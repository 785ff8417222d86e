"""Who was trained on, as checkpoints keep it: what is gone on with, and who may be measured."""

from pathlib import Path

import pytest

from datamodules.subject_records import SubjectRecord, check_same_subjects, check_unseen_subjects
from datamodules.volume_files import SubjectFiles


def records(*names: str, content: str = "x") -> list[SubjectRecord]:
    """Subjects whose names begin with those of their patients."""
    return [SubjectRecord(name, name.partition("-")[0], None, content) for name in names]


def recorded(path: Path, content: bytes) -> SubjectRecord:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return SubjectRecord.of(SubjectFiles("a", "p", "Rome", {"t1": path, "t2": Path("missing")}, None, {}))


def test_a_subject_is_known_by_its_files_wherever_they_are(tmp_path):
    content = bytes(100) + b"grey values" + bytes(100)
    one = recorded(tmp_path / "here" / "a.nii", content)
    assert one[:3] == ("a", "p", "Rome")
    assert recorded(tmp_path / "there" / "b.nii", content) == one
    others = [recorded(tmp_path / "a.nii", other) for other in (content + b"0", content.replace(b"y", b"x"), b"")]
    assert len({one.content, *(other.content for other in others)}) == 4


def test_a_training_goes_on_with_its_subjects():
    before = {"train": records("a", "b"), "val": records("c")}
    check_same_subjects(before, {"train": records("b", "a"), "val": records("c"), "test": records("d")})
    check_same_subjects({}, {})


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (records("a"), records("c"), "for train, these data are without b. "),
        (records("a", "b", "d"), records("c"), "for train, these data are with d. "),
        (records("a", "b"), records("d"), "for val, these data are without c; with d. "),
        (records("a", "b", content="y"), records("c"), "for train, these data are with other files of a, b. "),
        (records(*"abdefghi"), records("c"), "with d, e, f, g, h and 1 more. .* root .*default_root_dir.*init_from"),
    ],
)
def test_a_training_does_not_go_on_with_others(train, val, message):
    with pytest.raises(ValueError, match=message):
        check_same_subjects({"train": records("a", "b"), "val": records("c")}, {"train": train, "val": val})


def test_others_may_be_measured():
    check_unseen_subjects(records("p1-a", "p2-a"), records("p3-a", "p4-a"), "test")


@pytest.mark.parametrize("seen", ["p1-a", "p1-b"])
def test_who_was_trained_on_is_not_measured_nor_another_scan_of_the_patient(seen):
    with pytest.raises(ValueError, match=r"1 of the 2 subjects for test .*: p1-a\. Name others with test_subjects"):
        check_unseen_subjects(records(seen), records("p1-a", "p2-a"), "test")


def test_a_subject_of_the_same_name_is_somebody_else_with_a_warning():
    with pytest.warns(UserWarning, match="1 of the 2 subjects for val have the names of .* other files: a. They are"):
        check_unseen_subjects(records("a"), records("a", "b", content="y"), "val")
