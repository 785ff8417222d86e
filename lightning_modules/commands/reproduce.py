"""`convsuite reproduce`: run the cells of a grid that are not finished yet, and write its table."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lightning_modules.commands.config_files import find_config
from lightning_modules.grid import Cell, Grid, Results, summarise
from lightning_modules.tables import print_table, write_table


class CellError(RuntimeError):
    """A cell whose command failed; the message names its log."""


def run(arguments: list[str]) -> int:
    """Run the command. Returns 0 when every chosen cell is finished, 1 when some failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be 1 or more")
    grid = Grid.read(find_config(options.grid))
    results = Results(Path(options.results or grid.results or f"runs/{grid.name}/results.csv"))
    cells = list(grid.cells(options.rows, options.columns, options.seeds))
    missing = [] if options.table_only else [cell for cell in cells if results.find(cell) is None]
    print(f"{grid.title}: {len(cells)} cells chosen, {len(missing)} to run, results in {results.path}", flush=True)

    failures = _run_cells(grid, missing, results, options.jobs)
    summaries = summarise(grid, results)
    print_table(grid, summaries)
    if grid.page and Path(grid.page).is_file():
        write_table(grid, summaries, Path(grid.page))
        print(f"The table stands in {grid.page}.")
    print(f"Runs, with their pictures in media/: runs/{grid.name}/")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convsuite reproduce", description=__doc__)
    parser.add_argument("grid", help="a grid file, or its name among the packaged configs (grids/gaussian_table1.yaml)")
    parser.add_argument("--rows", nargs="+", help="rows to run; all by default")
    parser.add_argument("--columns", nargs="+", help="columns to run; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to run, in place of those that the rows name")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, sharing the processor's cores")
    parser.add_argument("--results", help="the CSV file of finished cells, in place of the grid's")
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table of what is finished")
    return parser


def _run_cells(grid: Grid, cells: list[Cell], results: Results, jobs: int) -> list[CellError]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_run_cell, grid, cell, threads) for cell in cells]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                try:
                    row = future.result()
                except CellError as failure:
                    failures.append(failure)
                    continue
                results.add(row)
                name = f"{row['row']}-{row['column']}-seed{row['seed']}"
                print(
                    f"[{done}/{len(cells)}] {name}: {100 * float(row['value']):.2f} in {row['minutes']} min", flush=True
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failures


def _run_cell(grid: Grid, cell: Cell, threads: int) -> dict[str, Any]:
    """Train and test one cell in a process of its own. An interrupted cell goes on where its run folder stands."""
    folder = Path("runs") / grid.name / f"{cell.name}-{cell.settings}"
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lightning_modules.cli", "fit_test", *cell.arguments()]
    command += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        raise CellError(f"{cell.name} ended with exit code {code}; see {log}")
    return {**_read_run(folder, grid.metric), **_describe(cell)}


def _describe(cell: Cell) -> dict[str, Any]:
    overrides = " ".join(f"{key}={value}" for key, value in cell.overrides)
    return {
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        "settings": cell.settings,
        "overrides": overrides,
    }


def _read_run(folder: Path, metric: str) -> dict[str, Any]:
    """What a finished run says of itself: the metric, the steps, the parameters, and what it ran with."""
    from lightning_modules.runs import load_run

    with (folder / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row.get(metric)][-1]
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    session = sessions[-1]
    return {
        "value": f"{float(last[metric]):.4f}",
        "steps": int(last["step"]) + 1,
        "minutes": f"{sum(s['minutes'] for s in sessions if s['stage'] == 'fit'):.1f}",
        "parameters": sum(parameter.numel() for parameter in load_run(folder).parameters()),
        "precision": session["precision"],
        "torch": session["versions"]["torch"],
        "lightning": session["versions"]["lightning"],
        "commit": f"{session['git']['commit']}{'+dirty' if session['git']['dirty'] else ''}",
    }
