"""What the benchmarks share: where rows are measured, tables of them, and the command line that prints these."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import Step, Timings, machine, take_turns

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

WIDTH = 120  # columns, where the output is no terminal

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where and how long a row is measured."""

    device: torch.device
    seconds: float

    def time(self, steps: Mapping[str, Step]) -> Timings:
        return take_turns(steps, seconds=self.seconds, device=self.device)

    def in_precision(self, precision: str, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`forward` under autocast, entered for each pass as a Trainer does: its cache of casts lasts that long."""
        dtype = PRECISIONS[precision]

        def cast(x: Tensor) -> Any:
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
                return forward(x)

        return cast


Measure = Callable[[Bench], Iterator[Row]]


def render(title: str, rows: list[Row]) -> Table:
    """A table of `rows`; numbers to the right, three decimals for times and ratios."""
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def run(module: str, description: str, tables: Mapping[str, Measure]) -> None:
    """The command line of a benchmark: measure and print every table of `tables`, titles to measurements."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu (default), cuda, cuda:1 ...")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU; one on a machine with other work")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for every row; longer is steadier")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE too")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    about = machine(arguments.device)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    if about["load"] is not None and about["load"] > 0.5:
        console.print("[yellow]The machine is busy: times and ratios mislead (--threads 1 suffers least).[/yellow]")
    bench = Bench(arguments.device, arguments.seconds)
    measured: dict[str, list[Row]] = {}
    for title, measure in tables.items():
        measured[title] = list(measure(bench))
        console.print(render(title, measured[title]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "tables": measured}, default=str, indent=1) + "\n")
