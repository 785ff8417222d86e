"""`convsuite reproduce`: what it runs, what it skips, and what a run leaves in the tracked files."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from torch import nn

from lightning_modules.commands import reproduce
from lightning_modules.commands.reproduce import CellError, Outcome
from lightning_modules.grids.grid import Cell, Grid
from lightning_modules.grids.results import Curves, Results
from tests.helpers.commands import tiny
from tests.helpers.grids import CURVES, MEASURES, VALUES, result_row, write_grid

DIGITS = """
title: Digits
config: base.yaml
command: fit
metric: val/accuracy
rows:
  digits: {label: Digits}
columns:
  plain: {label: Plain, overrides: {trainer.max_epochs: 2}}
curves:
  file: docs/curves.csv
  metrics:
    val/accuracy: {label: accuracy}
    val/loss: {label: loss, log: true, table: true}
    val/absent: {label: what no run has}
figures:
  accuracy: {kind: curves, metrics: [val/accuracy, val/loss]}
images: docs
results: docs/results.csv
page: docs/page.md
"""


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Names of the cells that ran, each for a moment and with the value 0.8; those of seed 1 and `wide` fail."""
    names = []

    def run_cell(grid: Grid, cell: Cell, threads: int) -> Outcome:
        if cell.column == "wide" and cell.seed == 1:
            raise CellError("broken")
        names.append(cell.name)
        epochs = [{"epoch": "1", "val/fid": "5"}] if grid.curves else []
        return Outcome({**result_row(cell, 0.8), "minutes": "0.1"}, epochs)

    monkeypatch.setattr(reproduce, "_run_cell", run_cell)
    return names


@pytest.fixture
def grid(tmp_path, monkeypatch) -> Grid:
    monkeypatch.chdir(tmp_path)
    return write_grid(tmp_path, VALUES)


def test_runs_what_is_missing_and_skips_the_rest(grid, ran, capsys):
    assert reproduce.run([str(grid.path), "--rows", "100"]) == 1
    assert ran == ["100-plain-seed0", "100-wide-seed0", "100-plain-seed1"]
    assert capsys.readouterr().err.splitlines() == ["[4/4] broken", "error: broken"]
    assert reproduce.run([str(grid.path), "--rows", "100", "--columns", "plain"]) == 0
    assert len(ran) == 3
    assert reproduce.run([str(grid.path), "--table-only"]) == 0
    assert len(ran) == 3


def test_it_says_what_is_finished_and_what_is_not(grid, ran, capsys):
    def counts(*args):
        reproduce.run([str(grid.path), *args])
        return capsys.readouterr().out.partition(": ")[2].partition(", results in")[0]

    assert counts("--rows", "1000", "--columns", "plain") == "1 cell chosen, 0 finished, 1 to run"
    assert counts("--rows", "1000", "--columns", "plain") == "1 cell chosen, 1 finished, 0 to run"
    assert counts("--columns", "plain", "--table-only") == "3 cells chosen, 1 finished, 2 not finished"
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("Seed set to 0\nerror: there is no file\n", "there is no file"),
        ("usage: convsuite\nerror: unrecognised --a\nDid you mean --b?\n", "unrecognised --a Did you mean --b?"),
        ("Traceback:\n  File\nMemoryError\n\n", "MemoryError"),
        ("", "it wrote nothing"),
        (f"error: {'word ' * 1000}", "word word ..."),
    ],
)
def test_a_failed_cell_says_what_its_log_ends_with(grid, monkeypatch, log, said):
    def fail(command, stdout, **options):
        stdout.write(log)
        stdout.flush()
        return subprocess.CompletedProcess(command, 1)

    cell = next(grid.cells())
    path = grid.run_folder(cell).with_suffix(".log")
    path.parent.mkdir(parents=True)
    path.write_text("error: of an earlier run\n")
    monkeypatch.setattr(reproduce.subprocess, "run", fail)
    with pytest.raises(CellError) as error:
        reproduce._run_cell(grid, cell, threads=1)
    assert f"{said}; see {path}" in str(error.value)
    assert str(error.value).startswith(f"100-plain-seed0 ended with exit code 1: {said[:9]}")
    assert len(str(error.value)) < 700


def test_first_seeds_run_before_second_ones(grid, ran):
    reproduce.run([str(grid.path), "--columns", "plain"])
    assert ran == ["100-plain-seed0", "1000-plain-seed0", "100-plain-seed1"]


def test_curves_and_figures_come_with_the_results(tmp_path, monkeypatch, ran, capsys):
    monkeypatch.chdir(tmp_path)
    grid = write_grid(tmp_path, CURVES)
    assert reproduce.run([str(grid.path), "--columns", "plain"]) == 0
    assert ran == ["one-plain-seed0", "two-plain-seed0"]
    assert "runs/table/curves.png: drawn" in capsys.readouterr().out
    assert len((grid.folder / "curves.csv").read_text().splitlines()) == 3
    (grid.folder / "curves.csv").unlink()
    assert reproduce.run([str(grid.path), "--columns", "plain"]) == 0
    assert len(ran) == 4
    assert reproduce.run([str(grid.path), "--columns", "plain", "--results", "other.csv"]) == 0
    assert len(ran) == 6
    assert Path("other_curves.csv").is_file()


def test_a_page_without_a_place_is_refused_before_anything_runs(grid, ran):
    grid.path.write_text(f"{VALUES}page: page.md\n")
    Path("page.md").write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no place for the table"):
        reproduce.run([str(grid.path)])
    assert not ran


def test_unknown_grids():
    with pytest.raises(ValueError, match="there is no config file 'nothing'"):
        reproduce.run(["nothing"])


def test_a_cell_that_another_process_runs_is_left_alone(grid):
    cell = next(grid.cells())
    log = grid.run_folder(cell).with_suffix(".log")
    log.parent.mkdir(parents=True)
    with log.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CellError, match="100-plain-seed0 is being run by another process"):
            reproduce._run_cell(grid, cell, threads=1)


def test_epochs_hold_the_last_value_of_each_metric():
    rows = [
        {"epoch": "0", "step": "1", "val/fid": "0.12345678", "val/kid": "2"},
        {"epoch": "0", "step": "2", "val/fid": "", "val/kid": "3"},
        {"epoch": "1", "step": "4", "val/fid": "", "val/kid": ""},
        {"epoch": "2", "step": "6", "val/fid": "1.0", "val/kid": ""},
    ]
    assert reproduce._epochs(rows, ["val/fid", "val/kid", "val/absent"]) == [
        {"epoch": "1", "val/fid": "0.123457", "val/kid": "3"},
        {"epoch": "3", "val/fid": "1"},
    ]


@pytest.fixture
def digits(tmp_path, monkeypatch) -> Grid:
    """A cell that really trains, for two epochs of three steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    grid = write_grid(tmp_path, DIGITS)
    overrides = dict(argument.removeprefix("--").split("=", 1) for argument in tiny())
    values = {key: yaml.safe_load(value) for key, value in overrides.items() if key != "trainer.max_epochs"}
    grid.path.write_text(DIGITS.replace("label: Digits", f"label: Digits, overrides: {values}"))
    Path("docs").mkdir()
    Path("docs/page.md").write_text("<!-- table: table --><!-- end table -->")
    return Grid.read(grid.path)


def test_a_training_becomes_rows_a_table_and_a_figure(digits):
    assert reproduce.run([str(digits.path)]) == 0
    results, curves = Results(Path("docs/results.csv")), Curves(Path("docs/curves.csv"), digits.curves.metrics)
    (cell,) = digits.cells()
    row = results.find(cell)
    epochs, accuracies = curves.course(cell, "val/accuracy")
    assert epochs.tolist() == [1, 2]
    assert float(row["value"]) == accuracies[-1]
    assert row["steps"] == "6"
    assert [len(curves.course(cell, metric)[0]) for metric in ("val/loss", "val/absent")] == [2, 0]
    assert "| Digits | Plain | 1 |" in Path("docs/page.md").read_text()
    assert Path("docs/accuracy.png").is_file()

    # The files are lost, the run folder is not: it is read again, and nothing is trained.
    Path("docs/results.csv").unlink()
    Path("docs/curves.csv").unlink()
    assert reproduce.run([str(digits.path)]) == 0
    assert "trained already" in digits.run_folder(cell).with_suffix(".log").read_text()
    assert Results(Path("docs/results.csv")).find(cell) == row


@pytest.mark.parametrize(
    ("metric", "message"),
    [("val/acuracy", "Did you mean 'val/accuracy'"), ("val/loss", "val/loss has no finite value")],
)
def test_a_metric_that_no_run_measures_is_named(tmp_path, metric, message):
    grid = dataclasses.replace(write_grid(tmp_path, VALUES), metric=metric)
    with pytest.raises(ValueError, match=message):
        reproduce._read_run(tmp_path, grid, [{"epoch": "0", "step": "1", "val/accuracy": "0.5", "val/loss": "nan"}])


def test_measures_come_from_the_log_and_from_the_run_itself(tmp_path, monkeypatch):
    grid = write_grid(tmp_path, MEASURES.replace("test/iou: IoU", "minutes: minutes"))
    session = {"precision": "32", "versions": {"torch": "2", "lightning": "2"}, "git": {"commit": "c", "dirty": False}}
    sessions = [{**session, "stage": stage, "minutes": 1.25} for stage in ("fit", "fit", "test")]
    (tmp_path / "environment.json").write_text(json.dumps({"sessions": sessions}))
    monkeypatch.setattr("lightning_modules.runs.load_run", lambda folder: nn.Linear(2, 1))
    metrics = [{"epoch": "0", "step": "1", "test/accuracy": "0.5"}]
    found = reproduce._read_run(tmp_path, grid, metrics)
    assert {name: found[name] for name in grid.measures} == {"test/accuracy": "0.5", "minutes": "2.5"}
    grid.measures["minute"] = grid.measures.pop("minutes")
    with pytest.raises(ValueError, match=r"unknown measure 'minute'\. Did you mean 'minutes'"):
        reproduce._read_run(tmp_path, grid, metrics)
