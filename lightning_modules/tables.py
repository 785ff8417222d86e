"""A grid's finished cells as a table: in the terminal, and in a Markdown page between two marks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from lightning_modules.files import written_whole
from lightning_modules.grid import Grid, Summary

Summaries = dict[tuple[str, str], Summary]
BELOW = "▼"  # marks a cell below the published value
MISSING = "–"


def table_rows(grid: Grid, summaries: Summaries) -> list[list[str]]:
    """Header, parameters, then per row of the grid ours and, beneath it, the published values; cells as text."""
    lines = [["", *(axis.label for axis in grid.columns.values())]]
    parameters = {column: summary.parameters for (_, column), summary in summaries.items()}
    lines.append(["parameters", *(f"{parameters[c]:,}" if c in parameters else MISSING for c in grid.columns)])
    for row, axis in grid.rows.items():
        published = grid.published.get(row, {})
        counts = {len(summary.values) for (r, _), summary in summaries.items() if r == row}
        cells = []
        for column in grid.columns:
            summary = summaries.get((row, column))
            below = summary is not None and round(summary.mean, 1) < published.get(column, 0)
            count = f" ({_seeds(len(summary.values))})" if summary is not None and len(counts) > 1 else ""
            cells.append(f"{summary or MISSING}{count}{' ' + BELOW if below else ''}")
        lines.append([axis.label + (f", {_seeds(*counts)}" if len(counts) == 1 else ""), *cells])
        if published:
            lines.append(["published", *(f"{published.get(column, MISSING)}" for column in grid.columns)])
    return lines


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def verdicts(grid: Grid, summaries: Summaries) -> list[str]:
    """One sentence per row and published order: whether it holds in the means of our cells."""
    sentences = []
    for row, axis in grid.rows.items():
        for order in grid.orders:
            means = [summaries[row, column].mean for column in order if (row, column) in summaries]
            if len(means) < len(order):
                continue
            holds = all(low < high for low, high in pairwise(means))
            labels = " < ".join(grid.columns[column].label for column in order)
            sentences.append(f"{axis.label}: {labels} {'holds' if holds else 'does not hold'}.")
    return sentences


def print_table(grid: Grid, summaries: Summaries) -> None:
    """Show the table and the verdicts in the terminal."""
    from rich.console import Console
    from rich.table import Table

    header, *lines = table_rows(grid, summaries)
    table = Table(title=grid.title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", min_width=len("published") if i == 0 else None)
    for line in lines:
        table.add_row(*line, style="dim" if line[0] == "published" else None)
    console = Console()
    console.print(table)
    for sentence in verdicts(grid, summaries):
        console.print(sentence)


def write_table(grid: Grid, summaries: Summaries, page: Path) -> None:
    """Write the table into `page`, between `<!-- table: NAME -->` and `<!-- end table -->`.

    Raises:
        ValueError: The page has no such marks.
    """
    start, end = f"<!-- table: {grid.name} -->", "<!-- end table -->"
    before, mark, rest = page.read_text().partition(start)
    _, end_mark, after = rest.partition(end)
    if not (mark and end_mark):
        raise ValueError(f"{page} has no place for the table: put the lines '{start}' and '{end}' where it belongs")
    header, *lines = table_rows(grid, summaries)
    markdown = [_markdown(header), _markdown(["---", *["---:"] * (len(header) - 1)])]
    markdown += [_markdown([f"*{cell}*" for cell in line] if line[0] == "published" else line) for line in lines]
    markdown += ["", *(f"- {sentence}" for sentence in verdicts(grid, summaries))]
    text = "\n".join([before + start, *markdown, end]) + after
    with written_whole(page) as file:
        file.write(text.encode())


def _markdown(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
