"""Which subjects a run was trained, validated and tested on, as a file that also keeps its results its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.files import write_whole
from lightning_modules.pictures.saving import is_writing

FILE = "splits.csv"
SPLITS = ("train", "val", "test")
HEADER = ("split", "subject", "patient", "site", "content")
NAMED = 5  # in a message

Row = dict[str, str]


class SplitTable(Callback):
    """Writes `<run folder>/splits.csv` at the start of a fit: a line for each subject of training, validation and test.

    `content` is a digest of a sample of the subject's first image, since other data sets may have subjects of the same
    name. Of data modules without `subjects_of` nothing is written. A training needs no test subjects: where their files
    cannot be read, a warning says so, and the table has none of them.

    An evaluation whose subjects are not those of the table is refused, so that it does not take the place of results on
    others. Where the table has none of its split, as in a folder of an evaluation, its subjects are added.

    Raises:
        ValueError: At the start of an evaluation, see above.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _names_subjects(trainer):
            return
        # In all processes, though one writes: an error in one alone leaves the others waiting.
        table = {split: _rows(trainer, split) for split in ("train", "val")} | {"test": _rows_of_test(trainer)}
        if is_writing(trainer):
            _write(trainer, table)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._check(trainer, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, "test")

    def _check(self, trainer: Trainer, split: str) -> None:
        if not _names_subjects(trainer):
            return
        table, rows = _read(_path(trainer)), _rows(trainer, split)
        kept = table.get(split)
        if kept and _identities(kept) != _identities(rows):
            alike = [row["subject"] for row in kept] == [row["subject"] for row in rows]
            raise ValueError(
                f"{_path(trainer)} says that this folder is for results on {_first(kept)} ({split}), and this "
                f"evaluation is of {'other files of these names' if alike else _first(rows)}. Write it to a folder of "
                "its own: name the checkpoint (--ckpt_path) and the folder (--trainer.default_root_dir)."
            )
        if not kept and is_writing(trainer):
            _write(trainer, {**table, split: rows})


def _names_subjects(trainer: Trainer) -> bool:
    return hasattr(trainer.datamodule, "subjects_of")  # type: ignore[attr-defined]


def _rows(trainer: Trainer, split: str) -> list[Row]:
    records: Sequence[Any] = trainer.datamodule.subjects_of(split)  # type: ignore[attr-defined]
    return [{"split": split, **{name: getattr(one, name) or "" for name in HEADER[1:]}} for one in records]


def _rows_of_test(trainer: Trainer) -> list[Row]:
    try:
        return _rows(trainer, "test")
    except OSError as error:
        rank_zero_warn(f"{FILE} does not name the subjects for test, which cannot be read ({error}): a test will fail.")
        return []


def _identities(rows: Sequence[Row]) -> set[tuple[str, str]]:
    return {(row["subject"], row["content"]) for row in rows}


def _first(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - NAMED:,} more" if len(rows) > NAMED else ""
    return ", ".join(row["subject"] for row in rows[:NAMED]) + more


def _path(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / FILE


def _read(path: Path) -> dict[str, list[Row]]:
    """The lines of each split; none where there is no file."""
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


def _write(trainer: Trainer, table: Mapping[str, Sequence[Row]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for split in SPLITS for row in table[split])
    write_whole(_path(trainer), text.getvalue().encode())
