"""Tables of values and of stability, in the terminal and in a page."""

from __future__ import annotations

import pytest

from lightning_modules.grids.results import Curves, Results, measured, summarise
from lightning_modules.grids.stability import summarise_courses
from lightning_modules.grids.tables import measure_table, print_table, stability_table, value_table, write_table
from tests.helpers.grids import CURVES, MEASURES, VALUES, finish, result_row, write_grid

FOUND = {"100-plain-seed0": 0.70, "100-plain-seed1": 0.72, "100-wide-seed0": 0.8, "1000-plain-seed0": 0.9}


def values(grid, folder, **of_the_last):
    """`of_the_last`: what else the last cell, of the row "many", has measured."""
    results = Results(folder / "results.csv")
    for cell in grid.cells():
        if cell.name in FOUND:
            others = of_the_last if cell.row == "1000" else {}
            results.add({**result_row(cell, FOUND[cell.name]), **others})
    return value_table(grid, summarise(grid, results))


def test_values_show_mean_spread_published_and_what_fell_below(tmp_path):
    table = values(write_grid(tmp_path, VALUES), tmp_path)
    assert [table.header, *table.lines] == [
        ["", "Plain", "Wide"],
        ["parameters", "1,234", "1,234"],
        ["few", "71.0 ± 1.4 (2 seeds)", "80.0 (1 seed) ▼"],
        ["published", "70.0", "90.0"],
        ["many, 1 seed", "90.0", "–"],
    ]
    assert table.sentences == ["few: Plain < Wide holds."]


def test_parameters_that_differ_between_rows_stand_beneath_each(tmp_path):
    table = values(write_grid(tmp_path, VALUES), tmp_path, parameters=5678)
    assert [line[:2] for line in table.lines] == [
        ["few", "71.0 ± 1.4 (2 seeds)"],
        ["parameters", "1,234"],
        ["published", "70.0"],
        ["many, 1 seed", "90.0"],
        ["parameters", "5,678"],
    ]


def test_plain_numbers_of_which_low_ones_are_good(tmp_path):
    grid = write_grid(tmp_path, VALUES + "scale: 1\ndigits: 3\nbetter: lower\n")
    grid.published["100"].update(plain=0.5, wide=0.9)
    table = values(grid, tmp_path)
    assert table.lines[1:3] == [
        ["few", "0.710 ± 0.014 (2 seeds) ▲", "0.800 (1 seed)"],
        ["published", "0.5", "0.9"],
    ]


def measures(grid, folder):
    """Three finished cells, one of which lacks a measure."""
    results = Results(folder / "results.csv", grid.measures)
    found = {"plain-seed0": (0.90, 0.5), "plain-seed1": (0.92, 0.6), "wide-seed0": (0.91, "")}
    for cell in grid.cells():
        if (values := found.get(cell.name.removeprefix("one-"))) is not None:
            results.add({**result_row(cell, values[0]), **dict(zip(grid.measures, values, strict=True))})
    return measure_table(grid, summarise(grid, results), measured(grid, Results(results.path)))


def test_measures_side_by_side_and_against_a_reference(tmp_path):
    table = measures(write_grid(tmp_path, MEASURES), tmp_path)
    assert table.labels == 2
    assert [table.header, *table.lines] == [
        ["", "", "seeds", "parameters", "accuracy", "IoU"],
        ["One", "Plain", "2", "1,234", "91.0 ± 1.4", "55.0 ± 7.1"],
        ["published", "", "", "", "90.0", ""],
        ["One", "Wide", "1", "1,234", "91.0", "–"],
    ]
    assert table.sentences == ["One, Wide less Plain, 1 seed: accuracy +1.00."]


def test_a_measure_has_its_own_scale_and_digits(tmp_path):
    """Those of the grid where it names none, and what the results know of every run is not percent."""
    own = (
        "  test/iou: {label: HD95 (mm), scale: 1, digits: 2}\n  minutes: minutes\n  steps: {label: steps, digits: 0}\n"
    )
    grid = write_grid(tmp_path, MEASURES.replace("  test/iou: IoU\n", own))
    results = Results(tmp_path / "results.csv", grid.measures)
    for cell, distance, minutes in zip(grid.cells(), (43.909, 46.5, 40.0), (5.0, 5.9, 2.5), strict=False):
        found = {"test/accuracy": 0.9, "test/iou": distance, "minutes": minutes, "steps": 200}
        results.add({**result_row(cell, 0.9), **found})
    table = measure_table(grid, summarise(grid, results), measured(grid, Results(results.path, grid.measures)))
    assert table.header[4:] == ["accuracy", "HD95 (mm)", "minutes", "steps"]
    assert table.lines[0][4:] == ["90.0 ± 0.0", "41.95 ± 2.76", "3.8 ± 1.8", "200 ± 0"]
    assert table.lines[2][4:] == ["90.0", "46.50", "5.9", "200"]
    assert table.sentences == [
        "One, Wide less Plain, 1 seed: accuracy +0.00, HD95 (mm) +2.591, minutes +0.90, steps +0.0."
    ]


def curves_table(grid, folder, epochs=12):
    """Plain turns, from 4 to 8, with a jump to 3; of wide one seed stays at 5 and one rises from 2 to 3."""
    results, curves = Results(folder / "results.csv"), Curves(folder / "curves.csv", grid.curves.metrics)
    fids = [[9.0, 3.0] + [4.0] * 5 + [8.0] * 5, [9.0] + [5.0] * 11, [9.0] + [2.0] * 6 + [3.0] * 5]
    for cell, fid, last in zip(grid.cells(["one"]), fids, (0.25, 0.5, 0.6), strict=True):
        finish(cell, results, curves, fid[:epochs], coverage=[0.1, *[last] * (epochs - 1)])
    return stability_table(grid, summarise_courses(grid, results, curves))


def test_stability_over_the_seeds(tmp_path):
    table = curves_table(write_grid(tmp_path, CURVES), tmp_path)
    assert table.labels == 2
    assert table.header[3:8] == ["best FID", "after epoch", "lowest median", "last median", "rise (%)"]
    assert table.header[8:] == ["turns", "last median coverage"]
    assert table.lines == [
        ["One", "Plain", "1", "3.0", "2", "4.0", "8.0", "100", "1 of 1", "0.250"],
        ["One", "Wide", "2", "3.5 ± 2.1", "2, 2", "3.5 ± 2.1", "4.0 ± 1.4", "0, 50", "0 of 2", "0.550 ± 0.071"],
        ["Two", "Plain", "0", *["–"] * 7],
        ["Two", "Wide", "0", *["–"] * 7],
    ]
    # Of the seed that both have: 5 and 3, 5 and 8, 0 and 100 %.
    assert table.sentences == [
        "One, Wide < Plain: best in 0 of 1 seed, last median in 1 of 1 seed, rise in 1 of 1 seed."
    ]


def test_of_a_metric_that_is_to_be_high_the_fall_is_shown(tmp_path):
    table = curves_table(write_grid(tmp_path, CURVES.replace("better: lower", "better: higher")), tmp_path)
    assert table.header[5:8] == ["highest median", "last median", "fall (%)"]
    assert table.lines[1][3:9] == ["9.0 ± 0.0", "1, 1", "4.0 ± 1.4", "4.0 ± 1.4", "0, 0", "0 of 2"]
    assert table.sentences == ["One, Wide < Plain: best in 0 of 1 seed, last median in 1 of 1 seed."]


def test_short_curves_have_no_turn(tmp_path):
    table = curves_table(write_grid(tmp_path, CURVES), tmp_path, epochs=9)
    assert table.lines[1][3:9] == ["3.5 ± 2.1", "2, 2", "–, –", "3.5 ± 2.1", "–, –", "–"]
    assert table.sentences == ["One, Wide < Plain: best in 0 of 1 seed, last median in 0 of 1 seed."]


def test_a_seed_that_diverged_is_shown_beside_the_others(tmp_path):
    grid = write_grid(tmp_path, CURVES)
    results, curves = Results(tmp_path / "results.csv"), Curves(tmp_path / "curves.csv", grid.curves.metrics)
    _, wide, again, *_ = grid.cells()
    finish(wide, results, curves, [4.0] * 10)
    finish(again, results, curves, [4.0] * 7 + [float("nan")] * 3)
    table = stability_table(grid, summarise_courses(grid, results, curves))
    assert table.lines[1][3:9] == ["4.0 ± 0.0", "1, 1", "4.0 ± 0.0", "4.0, inf", "0, inf", "1 of 2"]


def test_a_log_shows_everything_in_whole_lines(tmp_path, capsys):
    print_table("Curves", curves_table(write_grid(tmp_path, CURVES), tmp_path))
    shown = capsys.readouterr().out
    assert "│ Wide  │     2 │ 3.5 ± 2.1 │" in shown
    assert "rise in 1 of 1 seed." in shown


def test_page_keeps_what_surrounds_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: table -->\nold\n<!-- end table -->\nafter\n")
    table = values(write_grid(tmp_path, VALUES), tmp_path)
    write_table("table", table, page)
    write_table("table", table, page)
    assert page.read_text().splitlines() == [
        "before",
        "<!-- table: table -->",
        "|  | Plain | Wide |",
        "| --- | ---: | ---: |",
        "| parameters | 1,234 | 1,234 |",
        "| few | 71.0 ± 1.4 (2 seeds) | 80.0 (1 seed) ▼ |",
        "| *published* | *70.0* | *90.0* |",
        "| many, 1 seed | 90.0 | – |",
        "",
        "- few: Plain < Wide holds.",
        "<!-- end table -->",
        "after",
    ]
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no place for the table"):
        write_table("table", table, page)
