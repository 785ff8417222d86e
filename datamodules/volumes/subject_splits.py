"""Which subjects are trained, validated and tested on: by name, or by number as a function of the seed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from datamodules.base import Split
from datamodules.listing import first_ten
from datamodules.sampling import generator_for
from datamodules.volumes.files import SubjectFiles


@dataclass(frozen=True)
class SubjectSplit:
    """What a set is made of.

    Attributes:
        name: Of the set.
        subjects: Names; None: `size` patients of those that no set names.
        size: Number of patients; None: see `deal_subjects`.

    Raises:
        ValueError: Names and size are both given, or a name twice.
    """

    name: Split
    subjects: Sequence[str] | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.subjects is None:
            return
        if self.size is not None:
            raise ValueError(f"{self.name}_subjects and {self.name}_size both say what to take: set one of them.")
        if len(set(self.subjects)) < len(self.subjects):
            raise ValueError(f"{self.name}_subjects names a subject twice: {', '.join(self.subjects)}.")

    @property
    def is_open(self) -> bool:
        """Whether nothing is said."""
        return self.subjects is None and self.size is None


def deal_subjects(
    files: Sequence[SubjectFiles], splits: Mapping[Split, SubjectSplit], seed: int
) -> dict[Split, list[SubjectFiles]]:
    """The subjects of training, validation and test, in the order of `files`. No patient is in two sets.

    Sets that do not name their subjects share the patients of whom no subject is named. Validation takes a tenth and
    test a quarter of these, rounded up, where no size is given, and training all others. All is a function of the seed;
    for one seed a smaller training set is contained in a larger one.

    Args:
        files: All subjects.
        splits: What each set is made of.
        seed: Seed of the order in which patients are dealt out.

    Raises:
        ValueError: There is no such subject, one or its patient is in two sets, or sizes do not fit; names them.
    """
    owners = _named(files, splits)
    unnamed = sorted({one.patient for one in files} - set(owners))
    owners.update(_dealt(unnamed, splits, seed))
    named = {name for wanted in splits.values() for name in wanted.subjects or ()}
    return {
        split: [
            one
            for one in files
            if owners.get(one.patient) == split and (wanted.subjects is None or one.subject in named)
        ]
        for split, wanted in splits.items()
    }


def _named(files: Sequence[SubjectFiles], splits: Mapping[Split, SubjectSplit]) -> dict[str, Split]:
    """The set of each patient of whom a subject is named."""
    patients = {one.subject: one.patient for one in files}
    owners: dict[str, Split] = {}
    for split, wanted in splits.items():
        for name in wanted.subjects or ():
            if name not in patients:
                nearest = difflib.get_close_matches(name, patients, n=1, cutoff=0.5)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(
                    f"{split}_subjects: there is no subject {name!r}.{hint} The subjects are "
                    f"{first_ten(list(patients))}."
                )
            owner = owners.setdefault(patients[name], split)
            if owner != split:
                raise ValueError(
                    f"{owner}_subjects and {split}_subjects share a patient, {patients[name]} (subject {name}): a "
                    "measure on who was trained or tuned on says nothing of others. Take the subject off one list."
                )
    return owners


def _dealt(patients: Sequence[str], splits: Mapping[Split, SubjectSplit], seed: int) -> dict[str, Split]:
    """The set of each of these patients, whom no set names; those who are in none are left out."""
    count = len(patients)
    least: dict[Split, int] = {"train": 1, "val": math.ceil(count / 10), "test": math.ceil(count / 4)}
    sizes = {
        split: 0 if wanted.subjects is not None else least[split] if wanted.size is None else wanted.size
        for split, wanted in splits.items()
    }
    if sum(sizes.values()) > count:
        asked = ", ".join(f"{size} for {split}" for split, size in sizes.items() if size)
        raise ValueError(
            f"There are {count} patients that no list of subjects names, too few for {asked}: set train_size, val_size "
            "and test_size (the last two may be 0), or name subjects."
        )
    order = torch.randperm(count, generator=generator_for("split", seed)).tolist()
    rest = count - sizes["test"]
    kept = rest - sizes["val"]
    trained = order[:kept] if splits["train"].is_open else order[: sizes["train"]]
    places: dict[Split, list[int]] = {"train": trained, "val": order[kept:rest], "test": order[rest:]}
    return {patients[place]: split for split, members in places.items() for place in members}
