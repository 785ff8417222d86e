"""Who was trained on, as checkpoints keep it: what is gone on with, and who may be measured."""

from pathlib import Path

import pytest

from datamodules.volumes.files import SubjectFiles
from datamodules.volumes.subject_records import SubjectRecord, check_same_subjects, check_unseen_subjects


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
        (
            records(*"abdefghijklmn"),
            records("c"),
            "with d, e, f, .*, m and 1 more. .* root .*ckpt_path.*default_root_dir.*model.init_from",
        ),
    ],
)
def test_a_training_does_not_go_on_with_others(train, val, message):
    with pytest.raises(ValueError, match=message):
        check_same_subjects({"train": records("a", "b"), "val": records("c")}, {"train": train, "val": val})


def of(text: str) -> list[SubjectRecord]:
    """Subjects with a content each, such as "p1-a=x": `p1` is the patient."""
    return [one for item in text.split() for one in records(item.split("=")[0], content=item.split("=")[1])]


@pytest.mark.parametrize("at_hand", ["", "p1-a=x"])
@pytest.mark.filterwarnings("error")
def test_others_may_be_measured(at_hand):
    check_unseen_subjects(of("p1-a=x p2-a=y"), of("p3-a=v p4-a=w"), "test", of(at_hand))


@pytest.mark.parametrize(
    ("seen", "evaluated", "at_hand", "named"),
    [
        ("p1-a=x", "p1-a=x p2-a=z", "", "p1-a"),
        ("case_a=x", "test_07=x p2-a=z", "", r"test_07 \(there as case_a\)"),
        ("p1-b=y", "p1-a=x p2-a=z", "p1-b=y", "p1-a"),
        ("p1-a=x p1-b=y", "p1-a=z p2-a=w", "p1-a=z p1-b=y", "p1-a"),
        ("a=x b=y", "a=z c=w", "a=z b=y", "a"),
    ],
    ids=["itself", "under another name", "another scan", "a scan anew", "a file written anew"],
)
def test_who_was_trained_on_is_not_measured(seen, evaluated, at_hand, named):
    with pytest.raises(ValueError, match=rf"1 of the 2 subjects for test .*: {named}\. Name others with test_subjects"):
        check_unseen_subjects(of(seen), of(evaluated), "test", of(at_hand))


@pytest.mark.parametrize(
    ("seen", "evaluated", "at_hand", "named"),
    [
        ("a=x", "a=y b=z", "a=y", "a"),
        ("p1-rome=x", "p1-bern=y p2-bern=z", "", "p1-bern"),
        ("p1-a=x p1-b=y", "p1-a=z p2-a=w", "", "p1-a"),
    ],
    ids=["name", "patient", "both"],
)
def test_of_another_data_set_who_is_called_alike_is_somebody_else_with_a_warning(seen, evaluated, at_hand, named):
    with pytest.warns(
        UserWarning, match=f"1 of the 2 subjects for val have the names .* other files: {named}. They are"
    ):
        check_unseen_subjects(of(seen), of(evaluated), "val", of(at_hand))


@pytest.mark.parametrize(("subject", "mend"), [("p1-b", "change patient_pattern"), ("p1-a", r"splits\.csv\.$")])
def test_numbers_of_patients_that_are_alike_have_a_mend_of_their_own(subject, mend):
    with pytest.raises(ValueError, match=mend):
        check_unseen_subjects(of("p1-a=x"), of(f"{subject}=y"), "test", of("p1-a=x"))
