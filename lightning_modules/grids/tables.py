"""A grid's finished cells as a table: in the terminal, and in a Markdown page between two marks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lightning_modules.files import write_whole
from lightning_modules.grids.grid import Grid
from lightning_modules.grids.results import Measures, Summary, spread
from lightning_modules.grids.stability import TURN, Course, Stability
from lightning_modules.terminal import terminal

Summaries = dict[tuple[str, str], Summary]
Courses = dict[tuple[str, str], dict[int, Course]]
BELOW, ABOVE = "▼", "▲"  # mark a cell that is worse than the published value
MISSING = "–"
PUBLISHED = "published"


@dataclass(frozen=True)
class Table:
    """Cells as text: a header, lines, of which the first `labels` cells are labels, and sentences beneath."""

    header: list[str]
    lines: list[list[str]]
    sentences: list[str]
    labels: int = 1


def value_table(grid: Grid, summaries: Summaries) -> Table:
    """Per row of the grid what was measured and, beneath it, the published values; a column for each column.

    Parameters come first, or beneath each row if they are not the same in all of them.
    """
    in_all = {column: summary.parameters for (_, column), summary in summaries.items()}
    alike = all(summary.parameters == in_all[column] for (_, column), summary in summaries.items())
    lines = [_parameters(grid, in_all)] if alike else []
    for row, axis in grid.rows.items():
        published = grid.published.get(row, {})
        counts = {len(summary.values) for (r, _), summary in summaries.items() if r == row}
        cells = [_value(grid, summaries.get((row, c)), published.get(c), len(counts) > 1) for c in grid.columns]
        lines.append([axis.label + (f", {_seeds(*counts)}" if len(counts) == 1 else ""), *cells])
        if not alike:
            own = {column: summary.parameters for (r, column), summary in summaries.items() if r == row}
            lines.append(_parameters(grid, own))
        if published:
            lines.append([PUBLISHED, *(f"{published.get(column, MISSING)}" for column in grid.columns)])
    header = ["", *(axis.label for axis in grid.columns.values())]
    return Table(header, lines, _verdicts(grid, summaries))


def _parameters(grid: Grid, counts: Mapping[str, int]) -> list[str]:
    return ["parameters", *(f"{counts[column]:,}" if column in counts else MISSING for column in grid.columns)]


def _value(grid: Grid, summary: Summary | None, published: float | None, with_count: bool) -> str:
    if summary is None:
        return MISSING
    count = f" ({_seeds(len(summary.values))})" if with_count else ""
    mark = ""
    if published is not None:
        better, mean = grid.better, round(summary.mean, grid.digits)
        mark = f" {BELOW}" if better == "higher" and mean < published else mark
        mark = f" {ABOVE}" if better == "lower" and mean > published else mark
    return f"{summary}{count}{mark}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _verdicts(grid: Grid, summaries: Summaries) -> list[str]:
    """One sentence per row and published order: whether it holds in the means of our cells."""
    sentences = []
    for row, axis in grid.rows.items():
        for order in grid.orders:
            means = [summaries[row, column].mean for column in order if (row, column) in summaries]
            if len(means) == len(order):
                holds = "holds" if _is_rising(means) else "does not hold"
                sentences.append(f"{axis.label}: {_order(grid, order)} {holds}.")
    return sentences


def _order(grid: Grid, order: Sequence[str]) -> str:
    return " < ".join(grid.columns[column].label for column in order)


def _is_rising(values: Iterable[float]) -> bool:
    return all(low < high for low, high in pairwise(values))


def measure_table(grid: Grid, summaries: Summaries, measures: Measures) -> Table:
    """A line for each row and column of the grid: the parameters, and the mean of each measure, ± standard deviation.

    Beneath it, for each row, the measures of the columns less those of the reference, over the seeds that both have.
    """
    header = ["", "", "seeds", "parameters", *(measure.label for measure in grid.measures.values())]
    lines = []
    for row, row_axis in grid.rows.items():
        for column, axis in grid.columns.items():
            summary, seeds = summaries.get((row, column)), measures.get((row, column), {})
            cells = []
            for name, measure in grid.measures.items():
                values = [seed[name] for seed in seeds.values() if name in seed]
                cells.append(spread(values, measure.digits) if values else MISSING)
            parameters = f"{summary.parameters:,}" if summary else MISSING
            lines.append([row_axis.label, axis.label, str(len(seeds)), parameters, *cells])
            if column in grid.published.get(row, {}):
                shown = [f"{grid.published[row][column]}" if name == grid.metric else "" for name in grid.measures]
                lines.append([PUBLISHED, "", "", "", *shown])
    return Table(header, lines, _differences(grid, measures), labels=2)


def _differences(grid: Grid, measures: Measures) -> list[str]:
    """One sentence for each row and column besides the reference."""
    sentences = []
    for row, column in measures:
        reference = measures.get((row, grid.reference or ""), {})
        own = measures[row, column]
        seeds = sorted(own.keys() & reference.keys())
        if column == grid.reference or not seeds:
            continue
        parts = []
        for name, measure in grid.measures.items():
            pairs = [(own[s][name], reference[s][name]) for s in seeds if name in own[s] and name in reference[s]]
            if pairs:
                difference = spread([a - b for a, b in pairs], measure.digits + 1, signed=True)
                parts.append(f"{measure.label} {difference}")
        labels = f"{grid.columns[column].label} less {grid.columns[grid.reference or ''].label}"
        sentences.append(f"{grid.rows[row].label}, {labels}, {_seeds(len(seeds))}: {', '.join(parts)}.")
    return sentences


def stability_table(grid: Grid, courses: Courses) -> Table:
    """A line for each row and column of the grid: the best value of its curves, and how far they turn after it.

    Values and medians are means over the seeds, ± standard deviation where there are several; what a mean would hide,
    the epoch of the best value and how far a curve turns, is shown of each seed. See `Stability`.
    """
    assert grid.curves is not None
    label = grid.curves.metrics[grid.metric].label
    others = {name: metric.label for name, metric in grid.curves.metrics.items() if metric.table}
    best_median = "lowest median" if grid.better == "lower" else "highest median"
    header = ["", "", "seeds", f"best {label}", "after epoch"]
    header += [best_median, "last median", f"{_turn(grid)} (%)", "turns"]
    header += [f"last median {name}" for name in others.values()]
    lines = []
    for row, row_axis in grid.rows.items():
        for column, axis in grid.columns.items():
            found = list(courses.get((row, column), {}).values())
            cells = _course_cells(grid, found, others) if found else [MISSING] * (len(header) - 3)
            lines.append([row_axis.label, axis.label, str(len(found)), *cells])
    return Table(header, lines, _stability_verdicts(grid, courses), labels=2)


def _turn(grid: Grid) -> str:
    return "rise" if grid.better == "lower" else "fall"


def _course_cells(grid: Grid, courses: Sequence[Course], others: Iterable[str]) -> list[str]:
    curves = [course.stability for course in courses]
    turns = [curve.worsening for curve in curves if not math.isnan(curve.worsening)]
    cells = [
        _spread([curve.best for curve in curves], grid.digits),
        ", ".join(str(curve.best_epoch) for curve in curves),
        _spread([curve.best_median for curve in curves], grid.digits),
        _spread([curve.last_median for curve in curves], grid.digits),
        ", ".join(_number(100 * curve.worsening, 0) for curve in curves),
        f"{sum(turn > TURN for turn in turns)} of {len(turns)}" if turns else MISSING,
    ]
    for metric in others:
        values = [course.last_medians[metric] for course in courses if metric in course.last_medians]
        cells.append(_spread(values, 3) if values else MISSING)
    return cells


def _spread(values: Sequence[float], digits: int) -> str:
    """As `spread`, but value by value where one is not finite and the mean would say nothing."""
    if all(map(math.isfinite, values)):
        return spread(values, digits)
    return ", ".join(_number(value, digits) for value in values)


def _number(value: float, digits: int) -> str:
    return MISSING if math.isnan(value) else f"{value:.{digits}f}"


def _stability_verdicts(grid: Grid, courses: Courses) -> list[str]:
    """One sentence per row and published order: in how many of the seeds that all its columns have it holds."""
    quantities: dict[str, Callable[[Stability], float]] = {
        "best": lambda curve: curve.best,
        "last median": lambda curve: curve.last_median,
    }
    if grid.better == "lower":  # otherwise a good curve falls little but ends high: the order would be another
        quantities[_turn(grid)] = lambda curve: curve.worsening
    sentences = []
    for row, axis in grid.rows.items():
        for order in grid.orders:
            of_order = [courses.get((row, column), {}) for column in order]
            seeds = set.intersection(*map(set, of_order))
            if not seeds:
                continue
            verdicts = []
            for name, quantity in quantities.items():
                by_seed = [[quantity(of_column[seed].stability) for of_column in of_order] for seed in seeds]
                known = [values for values in by_seed if not any(map(math.isnan, values))]
                if known:
                    verdicts.append(f"{name} in {sum(map(_is_rising, known))} of {_seeds(len(known))}")
            sentences.append(f"{axis.label}, {_order(grid, order)}: {', '.join(verdicts)}.")
    return sentences


def print_table(title: str, table: Table) -> None:
    """Show the table and the sentences in the terminal."""
    from rich.table import Table as TerminalTable

    shown = TerminalTable(title=title)
    for i, name in enumerate(table.header):
        least = len(PUBLISHED) if i == 0 else None
        shown.add_column(name, justify="left" if i < table.labels else "right", min_width=least)
    for line in table.lines:
        shown.add_row(*line, style="dim" if line[0] == PUBLISHED else None)
    console = terminal()
    console.print(shown)
    for sentence in table.sentences:
        console.print(sentence, soft_wrap=True)


def check_page(name: str, page: Path) -> None:
    """Raise `ValueError` where `page` has no place for the table `name`."""
    _split(name, page)


def write_table(name: str, table: Table, page: Path) -> None:
    """Write the table into `page`, between `<!-- table: NAME -->` and `<!-- end table -->`.

    Raises:
        ValueError: The page has no such marks.
    """
    before, after = _split(name, page)
    markdown = [_markdown(table.header)]
    markdown.append(_markdown([*["---"] * table.labels, *["---:"] * (len(table.header) - table.labels)]))
    markdown += [
        _markdown([cell and f"*{cell}*" for cell in line] if line[0] == PUBLISHED else line) for line in table.lines
    ]
    markdown += ["", *(f"- {sentence}" for sentence in table.sentences)]
    write_whole(page, "\n".join([before, *markdown, after]).encode())


def _split(name: str, page: Path) -> tuple[str, str]:
    """What stands before and after the table, marks included."""
    start, end = f"<!-- table: {name} -->", "<!-- end table -->"
    before, mark, rest = page.read_text().partition(start)
    _, end_mark, after = rest.partition(end)
    if not (mark and end_mark):
        raise ValueError(f"{page} has no place for the table: put the lines '{start}' and '{end}' where it belongs")
    return before + mark, end_mark + after


def _markdown(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
