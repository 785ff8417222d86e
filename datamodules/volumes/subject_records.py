"""Who was trained and validated on, as checkpoints keep it, and what then must not be done with whom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import Split
from datamodules.listing import first_ten
from datamodules.volumes.files import SubjectFiles

SAMPLED = 2**16  # bytes from the middle of a file: its beginning may be a header and air, alike in many


class SubjectRecord(NamedTuple):
    """Who a subject is, wherever its files lie.

    Attributes:
        subject: Its name.
        patient: Who was scanned.
        site: Where it was acquired, where that is known.
        content: A hex digest of a sample of its first image: other data sets have subjects of the same name.
    """

    subject: str
    patient: str
    site: str | None
    content: str

    @classmethod
    def of(cls, files: SubjectFiles) -> SubjectRecord:
        """Reads no more than a sample of one file."""
        return cls(files.subject, files.patient, files.site, _sampled(next(iter(files.images.values()))))


def check_same_subjects(
    before: Mapping[Split, Sequence[SubjectRecord]], now: Mapping[Split, Sequence[SubjectRecord]]
) -> None:
    """Refuse to go on with a training on other subjects.

    Raises:
        ValueError: A split of `before` differs; names the first subjects, and the mend.
    """
    for split, records in before.items():
        old, new = ({one.subject: one.content for one in side} for side in (records, now[split]))
        changes = {
            "without": [name for name in old if name not in new],
            "with": [name for name in new if name not in old],
            "with other files of": [name for name in old if new.get(name, old[name]) != old[name]],
        }
        differ = [f"{how} {first_ten(names)}" for how, names in changes.items() if names]
        if differ:
            raise ValueError(
                f"The checkpoint is of a training on other subjects: for {split}, these data are {'; '.join(differ)}. "
                "To go on with it, put root back to its data, or the files to where they were. To train on these, "
                "leave --ckpt_path out and choose another run folder (--trainer.default_root_dir), or start from its "
                "weights (model.init_from)."
            )


def check_unseen_subjects(
    seen: Iterable[SubjectRecord],
    evaluated: Sequence[SubjectRecord],
    split: Split,
    at_hand: Iterable[SubjectRecord] = (),
) -> None:
    """Refuse to measure on who was trained on, or tuned on: for them, a measure says nothing of others.

    Two hospitals may give different people one name, or number their patients alike; files tell them apart. So what is
    done with an evaluated subject depends on whether it comes from the data set of the training:

    | what was seen of it      | from that data set | from another one |
    | ------------------------ | ------------------ | ---------------- |
    | its content              | refused            | refused          |
    | only its name or patient | refused            | a warning        |
    | nothing                  | measured           | measured         |

    It comes from there if its data set still holds, under the same name, a content that was seen. Where none of it is
    left, or all files were written anew, the two cannot be told apart: hence the warning.

    Args:
        seen: Who was trained on, or tuned on.
        evaluated: Who is to be measured.
        split: What these are called.
        at_hand: Others of their data set, among whom those that were seen are found if they are there.

    Raises:
        ValueError: See above; the message names the first.
    """
    known = list(seen)
    names, patients = {one.subject for one in known}, {one.patient for one in known}
    contents = {one.content: one.subject for one in known}
    identities = {(one.subject, one.content) for one in known}
    copies = {one.subject: contents[one.content] for one in evaluated if one.content in contents}
    others = [one for one in evaluated if one.subject not in copies]
    alike = [one for one in others if one.subject in names or one.patient in patients]
    is_same_data = any((one.subject, one.content) in identities for one in (*evaluated, *at_hand))
    met = [name if name == before else f"{name} (there as {before})" for name, before in copies.items()]
    met += [one.subject for one in alike] if is_same_data else []
    if met:
        by_patient = is_same_data and any(one.subject not in names for one in alike)
        raise ValueError(
            f"{len(met)} of the {len(evaluated)} subjects for {split} are among those (or of the patients) that the "
            f"training has used: {first_ten(met)}. Name others with {split}_subjects; whom a run was to be measured on "
            "stands in its splits.csv."
            + (" If only the numbers of patients are alike, change patient_pattern." if by_patient else "")
        )
    if alike:
        rank_zero_warn(
            f"{len(alike)} of the {len(evaluated)} subjects for {split} have the names of subjects (or of patients) "
            f"that the training has used, but other files: {first_ten([one.subject for one in alike])}. They are taken "
            "for other people, of another data set. If they are the same, scanned again or in files that were written "
            "anew, this measures what was trained on."
        )


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, (size - SAMPLED) // 2))
        content = file.read(SAMPLED)
    return hashlib.blake2b(content + str(size).encode(), digest_size=8).hexdigest()
