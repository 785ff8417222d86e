"""Who was trained and validated on, as checkpoints keep it, and what then must not be done with whom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import Split
from datamodules.volume_files import SubjectFiles

SAMPLED = 2**16  # bytes from the middle of a file: its beginning may be a header and air, alike in many
NAMED = 5  # in a message


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
        differ = [f"{how} {_first(names)}" for how, names in changes.items() if names]
        if differ:
            raise ValueError(
                f"The checkpoint is of a training on other subjects: for {split}, these data are {'; '.join(differ)}. "
                "To go on with it, put root back to its data, or the files to where they were. To train on these, "
                "choose another run folder (--trainer.default_root_dir), which may start from its weights (init_from)."
            )


def check_unseen_subjects(seen: Iterable[SubjectRecord], evaluated: Sequence[SubjectRecord], split: Split) -> None:
    """Refuse to measure on who was trained on, or tuned on: for them, a measure says nothing of others.

    A subject with the name of one that was seen, but with other files, is taken for somebody else, with a warning.

    Raises:
        ValueError: A subject, or another of its patient, was seen; names the first.
    """
    known = {one.subject: one for one in seen}
    patients = {one.patient for one in known.values()}
    namesakes = [one.subject for one in evaluated if known.get(one.subject, one).content != one.content]
    met = [
        one.subject
        for one in evaluated
        if one.subject not in namesakes and (one.subject in known or one.patient in patients)
    ]
    if met:
        raise ValueError(
            f"{len(met)} of the {len(evaluated)} subjects for {split} are among those (or of the patients) that the "
            f"training has used: {_first(met)}. Name others with {split}_subjects; whom a run was to be measured on "
            "stands in its splits.csv."
        )
    if namesakes:
        rank_zero_warn(
            f"{len(namesakes)} of the {len(evaluated)} subjects for {split} have the names of subjects that the "
            f"training has used, but other files: {_first(namesakes)}. They are taken for other people. If they are "
            "the same, in files that were written anew, this measures what was trained on."
        )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, (size - SAMPLED) // 2))
        content = file.read(SAMPLED)
    return hashlib.blake2b(content + str(size).encode(), digest_size=8).hexdigest()
