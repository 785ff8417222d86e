"""`metrics.csv` of a run: one row a step, written as it happens."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_modules.files import write_whole

Row = dict[str, str]
FIRST_COLUMNS = ("epoch", "step")


class MetricsFile:
    """A CSV file with the columns `epoch`, `step` and one a metric; what was not measured is an empty cell.

    What comes in for one step is merged into one row. The row of the running step is written in place, so a new value
    costs one small write; the file is written anew only for a new column and for a value of an earlier step. At any
    moment the file on disk is whole: a process may be killed at any point.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._last: Row | None = None
        self._last_begins = 0  # where the last row stands in the file, in bytes
        self._loaded = False

    def add(self, step: int, values: Mapping[str, str]) -> None:
        """Merge `values` (column to text) into the row of `step`."""
        self._load()
        row = {"step": str(step), **values}
        new_columns = [name for name in row if name not in self._columns]
        if new_columns or (self._last is not None and int(self._last["step"]) > step):
            self._merge_anew(row, new_columns)
        elif self._last is not None and self._last["step"] == row["step"]:
            self._write_last({**self._last, **row}, self._last_begins)
        else:
            self._write_last(row, self.path.stat().st_size)

    def add_to_last_step(self, values: Mapping[str, str]) -> bool:
        """Merge `values` into the last row, whose epoch stays; False where there is none."""
        self._load()
        if self._last is None:
            return False
        self.add(int(self._last["step"]), {**values, "epoch": self._last.get("epoch", "")})
        return True

    def drop_from(self, step: int) -> None:
        """Remove the rows of `step` and later ones: a resumed run measures them again."""
        self._load()
        if self._last is not None and int(self._last["step"]) >= step:
            self._write_all([row for row in read_metrics(self.path) if int(row["step"]) < step])

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        if not self.path.is_file():
            return
        rows = read_metrics(self.path)
        self._columns = list(rows[0]) if rows else []
        # Written anew, in case that a power failure left half a line.
        self._write_all(rows)

    def _merge_anew(self, row: Row, new_columns: Iterable[str]) -> None:
        self._columns = list(dict.fromkeys([*FIRST_COLUMNS, *self._columns, *new_columns]))
        rows = {old["step"]: old for old in read_metrics(self.path)} if self.path.is_file() else {}
        rows[row["step"]] = {**rows.get(row["step"], {}), **row}
        self._write_all(sorted(rows.values(), key=lambda old: int(old["step"])))

    def _write_all(self, rows: list[Row]) -> None:
        head = _line(self._columns) + b"".join(self._encode(row) for row in rows[:-1])
        self._last = rows[-1] if rows else None
        self._last_begins = len(head)
        write_whole(self.path, head + (self._encode(rows[-1]) if rows else b""))

    def _write_last(self, row: Row, begins: int) -> None:
        line = self._encode(row)
        is_shorter = (
            self._last is not None and begins == self._last_begins and len(line) < len(self._encode(self._last))
        )
        self._last, self._last_begins = row, begins
        if is_shorter:  # in place it would leave the end of the old line
            self._write_all([*[old for old in read_metrics(self.path) if old["step"] != row["step"]], row])
            return
        # One unbuffered write: a process that is killed has written the whole line or nothing of it.
        with self.path.open("r+b", buffering=0) as file:
            file.seek(begins)
            if file.write(line) != len(line):
                raise OSError(f"could not write {self.path}: the disk is full")

    def _encode(self, row: Row) -> bytes:
        return _line([row.get(name, "") for name in self._columns])


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.csv, every column in every row; half a line, left by a power failure, is left out."""
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    columns, *lines = csv.reader(whole_lines) if whole_lines else [[]]
    return [dict(zip(columns, line, strict=True)) for line in lines if len(line) == len(columns)]


def last_values(rows: Iterable[Row]) -> dict[str, float]:
    """For each metric the value that was measured last."""
    values = {name: text for row in rows for name, text in row.items() if text and name not in FIRST_COLUMNS}
    return {name: float(text) for name, text in values.items()}


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
