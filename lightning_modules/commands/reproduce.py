"""`convsuite reproduce`: run the cells of a grid that are not finished yet, write its table and draw its figures."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lightning_modules.commands.config_files import find_config
from lightning_modules.grids.grid import RUN_MEASURES, Cell, Grid, argument
from lightning_modules.grids.results import Curves, Results, measured, summarise
from lightning_modules.grids.stability import summarise_courses
from lightning_modules.grids.tables import (
    Table,
    check_page,
    measure_table,
    print_table,
    stability_table,
    value_table,
    write_table,
)
from lightning_modules.metrics_file import FIRST_COLUMNS, Row, last_values, read_metrics
from models.names import check_name

LONGEST_ERROR = 500  # characters of a cell's error that are shown; its log has all


class CellError(RuntimeError):
    """A cell whose command failed; the message names its log."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a cell: its row of the results, and its epochs, where the grid keeps curves."""

    row: dict[str, Any]
    epochs: list[Row]


def run(arguments: list[str]) -> int:
    """Run the command. Returns 0 when every chosen cell is finished, 1 when some failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be 1 or more")
    grid = Grid.read(find_config(options.grid))
    page = Path(grid.page) if grid.page and Path(grid.page).is_file() else None
    if page is not None:
        check_page(grid.name, page)
    results, curves = _files(grid, options.results)
    cells = list(grid.cells(options.rows, options.columns, options.seeds))
    missing = [cell for cell in cells if not _is_finished(cell, results, curves)]
    chosen = f"{len(cells)} cell{'' if len(cells) == 1 else 's'} chosen, {len(cells) - len(missing)} finished"
    ahead = f"{len(missing)} {'not finished' if options.table_only else 'to run'}"
    print(f"{grid.title}: {chosen}, {ahead}, results in {results.path}", flush=True)

    failures = [] if options.table_only else _run_cells(grid, missing, results, curves, options.jobs)
    table = _table(grid, results, curves)
    print_table(grid.title, table)
    if page is not None:
        write_table(grid.name, table, page)
        print(f"The table stands in {page}.")
    if grid.figures:
        from lightning_modules.grids.figures import draw_figures

        for line in draw_figures(grid, results, curves):
            print(line)
    print(f"Runs, with their pictures in media/: {grid.folder}/")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convsuite reproduce", description=__doc__)
    parser.add_argument("grid", help="a grid file, or its name among the packaged configs (grids/gaussian_table1.yaml)")
    parser.add_argument("--rows", nargs="+", help="rows to run; all by default")
    parser.add_argument("--columns", nargs="+", help="columns to run; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to run, in place of those that the grid names")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, sharing the processor's cores")
    parser.add_argument("--results", help="the CSV file of finished cells, in place of the grid's")
    parser.add_argument("--table-only", action="store_true", help="run nothing, show what is finished")
    return parser


def _files(grid: Grid, named: str | None) -> tuple[Results, Curves | None]:
    """The finished cells. The curves of results that are named on the command line lie beside them."""
    results = Path(named or grid.results or grid.folder / "results.csv")
    if grid.curves is None:
        return Results(results, grid.measures), None
    curves = (
        results.with_name(f"{results.stem}_curves.csv") if named else grid.curves.file or grid.folder / "curves.csv"
    )
    return Results(results), Curves(Path(curves), grid.curves.metrics)


def _is_finished(cell: Cell, results: Results, curves: Curves | None) -> bool:
    return results.find(cell) is not None and (curves is None or curves.has(cell))


def _table(grid: Grid, results: Results, curves: Curves | None) -> Table:
    if curves is not None:
        return stability_table(grid, summarise_courses(grid, results, curves))
    summaries = summarise(grid, results)
    return measure_table(grid, summaries, measured(grid, results)) if grid.measures else value_table(grid, summaries)


def _run_cells(grid: Grid, cells: list[Cell], results: Results, curves: Curves | None, jobs: int) -> list[CellError]:
    """Run the cells, the first seed of each before any second one, so that a grid cut short is even."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        order = sorted(cells, key=lambda cell: cell.seed)
        futures = {pool.submit(_run_cell, grid, cell, threads): cell for cell in order}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                cell = futures[future]
                try:
                    outcome = future.result()
                except CellError as failure:  # said now, since the others may take days, and once more in the end
                    print(f"[{done}/{len(cells)}] {failure}", file=sys.stderr, flush=True)
                    failures.append(failure)
                    continue
                if curves is not None:  # first: a cell is finished once it has its row of the results
                    curves.add(cell, outcome.epochs)
                results.add(outcome.row)
                shown = f"{grid.scale * float(outcome.row['value']):.{grid.digits + 1}f}"
                print(f"[{done}/{len(cells)}] {cell.name}: {shown} in {outcome.row['minutes']} min", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failures


def _run_cell(grid: Grid, cell: Cell, threads: int) -> Outcome:
    """Train one cell in a process of its own. An interrupted cell goes on where its run folder stands."""
    folder = grid.run_folder(cell)
    path = folder.with_suffix(".log")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lightning_modules.cli", grid.command, *cell.arguments()]
    command += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with path.open("a") as log:
        _claim(log, cell)
        before = log.tell()
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        raise CellError(f"{cell.name} ended with exit code {code}: {_last_error(path, before)}; see {path}")
    try:
        metrics = read_metrics(folder / "metrics.csv")
        epochs = [] if grid.curves is None else _epochs(metrics, grid.curves.metrics)
        return Outcome({**_read_run(folder, grid, metrics), **_describe(cell)}, epochs)
    except Exception as error:  # one cell's results are not worth those of the others
        raise CellError(f"{cell.name} ran, but {folder} cannot be read: {type(error).__name__}: {error}") from error


def _last_error(log: Path, start: int) -> str:
    """What a failed command wrote last, from the byte `start` of the log: its error where it could say one."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    said = " ".join(line.strip() for line in (lines[errors[-1] :] if errors else lines[-1:])).removeprefix("error: ")
    return textwrap.shorten(said, LONGEST_ERROR, placeholder=" ...") or "it wrote nothing"


def _claim(log: IO[str], cell: Cell) -> None:
    """Keep the log locked as long as the run writes to it: two processes in one run folder would spoil it.

    The run inherits the lock, so that it holds even where this process is killed and the run goes on.
    """
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CellError(f"{cell.name} is being run by another process, which writes {log.name}") from error


def _describe(cell: Cell) -> dict[str, Any]:
    overrides = " ".join(f"{key}={argument(value)}" for key, value in cell.overrides)
    return {
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        "settings": cell.settings,
        "overrides": overrides,
    }


def _epochs(metrics: list[Row], wanted: Iterable[str]) -> list[Row]:
    """One row for each epoch, counted from 1, with the last value that each of the `wanted` metrics has in it."""
    epochs: dict[int, Row] = {}
    for row in metrics:
        measured = {name: f"{float(row[name]):.6g}" for name in wanted if row.get(name)}
        if measured:
            epochs.setdefault(int(row["epoch"]) + 1, {}).update(measured)
    return [{"epoch": str(epoch), **values} for epoch, values in sorted(epochs.items())]


def _read_run(folder: Path, grid: Grid, metrics: list[Row]) -> dict[str, Any]:
    """What a finished run says of itself: the metric, the measures, the steps, the parameters, what it ran with."""
    from lightning_modules.runs import load_run

    named = [row for row in metrics if row.get(grid.metric)]
    if not any(math.isfinite(float(row[grid.metric])) for row in named):
        check_name("metric", grid.metric, {name for row in metrics for name in row} - set(FIRST_COLUMNS))
        raise ValueError(f"{grid.metric} has no finite value in metrics.csv")
    last, values = named[-1], last_values(metrics)
    logged = [name for name in grid.measures if name not in RUN_MEASURES]
    for name in logged:
        check_name("measure", name, {*values, *RUN_MEASURES})
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    session = sessions[-1]
    return {
        "value": f"{values[grid.metric]:.6g}",
        **{name: f"{values[name]:.6g}" for name in logged},
        "steps": int(last["step"]) + 1,
        "minutes": f"{sum(s['minutes'] for s in sessions if s['stage'] == 'fit'):.1f}",
        "parameters": sum(parameter.numel() for parameter in load_run(folder).parameters()),
        "precision": session["precision"],
        "torch": session["versions"]["torch"],
        "lightning": session["versions"]["lightning"],
        "commit": f"{session['git']['commit']}{'+dirty' if session['git']['dirty'] else ''}",
    }
