"""Figures of a grid, from its tracked files and its run folders."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lightning_modules.grids.figures import (
    _KINDS,
    Content,
    draw_curves,
    draw_curves_with_samples,
    draw_figures,
    draw_overlays,
    draw_samples,
)
from lightning_modules.grids.grid import FIGURE_KINDS, Grid
from lightning_modules.grids.results import Curves, Results
from lightning_modules.pictures.saving import drawing
from tests.helpers.grids import CURVES, finish, write_grid, write_overlays, write_samples


class Finished:
    """A grid with all cells of its first row finished, in the working directory."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.results = Results(grid.folder / "results.csv")
        self.curves = Curves(grid.folder / "curves.csv", grid.curves.metrics)
        for cell in grid.cells(["one"]):
            fid = [9.0, 3.0 - cell.seed, 4.0]
            finish(cell, self.results, self.curves, fid, coverage=[0.1, 0.2, 0.3])

    def content(self, name: str) -> Content:
        return Content.of(self.grid, self.grid.figures[name], self.results, self.curves)

    def draw(self) -> dict[str, str]:
        lines = draw_figures(self.grid, self.results, self.curves)
        return dict(line.removeprefix("runs/table/").split(".png: ") for line in lines)

    def write_samples(self, epochs: list[int]) -> None:
        for cell in self.grid.cells(["one"], seeds=[0]):
            write_samples(self.grid.run_folder(cell), epochs)


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Finished:
    monkeypatch.chdir(tmp_path)
    return Finished(write_grid(tmp_path, CURVES))


def lines(axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines]


def test_curves_show_the_mean_and_each_of_several_seeds_with_its_best(finished):
    later = list(finished.grid.cells(["one"], ["wide"]))[1]
    finish(later, finished.results, finished.curves, [9.0, 4.0, 2.0], coverage=[0.1, 0.2, 0.3])
    with drawing("curves"):
        one, two = draw_curves(finished.content("curves")).axes
    assert [axes.get_title(loc="left") for axes in (one, two)] == ["One", "Two"]
    plain = [[9, 3, 4], [3]]
    wide = [[9, 3, 4], [9, 4, 2], [9, 3.5, 3], [3], [2]]
    assert lines(one) == plain + wide
    dots = [line for line in one.lines if line.get_marker() == "o"]
    assert [dot.get_xdata().tolist() for dot in dots] == [[2], [2], [3]]
    assert one.get_yscale() == "log"
    assert not two.lines


def test_one_key_for_what_is_shown(finished):
    with drawing("key"):
        (legend,) = draw_curves(finished.content("both")).legends
    assert [text.get_text() for text in legend.get_texts()] == ["Plain", "Wide", "one seed", "best"]
    plain, wide, seed, best = (line.get_color() for line in legend.get_lines())
    assert len({plain, wide, seed}) == 3
    assert best == seed


def test_metrics_have_panels_of_their_own(finished):
    with drawing("both"):
        fid, coverage = draw_curves(finished.content("both")).axes
    assert [axes.get_ylabel() for axes in (fid, coverage)] == ["FID", "coverage"]
    assert [axes.get_yscale() for axes in (fid, coverage)] == ["log", "linear"]
    assert lines(coverage)[0] == [0.1, 0.2, 0.3]


def test_seeds_of_different_length_are_averaged_where_all_have_values(finished):
    wide = list(finished.grid.cells(["one"], ["wide"]))[1]
    finish(wide, finished.results, finished.curves, [1.0, 1.0], coverage=[1.0, 1.0])
    with drawing("mean"):
        panel, _ = draw_curves(finished.content("curves")).axes
    assert lines(panel)[4] == [5.0, 2.0]


def test_samples_of_epochs_stand_one_above_the_other(finished):
    finished.write_samples([1, 2, 3])
    with drawing("samples"):
        (axes,) = draw_samples(finished.content("samples")).axes
    pixels = np.asarray(axes.images[0].get_array())
    crop = 2 * 64 + 2
    assert pixels.shape[1] == crop
    np.testing.assert_array_equal(pixels[:crop], pixels[-crop:])
    assert [text.get_text() for text in axes.figure.texts] == ["epoch 1", "epoch 3"]


def test_samples_beneath_the_curves(finished):
    finished.write_samples([1, 3])
    with drawing("together"):
        figure = draw_curves_with_samples(finished.content("together"))
    panel, *pictures = figure.axes
    assert [axes.get_ylabel() for axes in pictures] == ["Plain", "", "Wide", ""]
    assert [axes.get_title() for axes in pictures[:2]] == ["epoch 1", "epoch 3"]
    assert lines(panel)[-2:] == [[0, 1], [0, 1]]  # upright at the epochs


def test_figures_are_files_that_need_no_run_folders(finished):
    assert finished.draw() == {
        "curves": "drawn",
        "both": "drawn",
        "samples": "nothing to show yet",
        "together": "drawn; no samples in the run folders of one-plain-seed0, one-wide-seed0",
        "overlays": "nothing to show yet",
    }
    with Image.open("runs/table/curves.png") as picture:
        assert picture.width > picture.height


def test_lost_samples_keep_the_figure_that_shows_them(finished):
    finished.write_samples([1, 2, 3])
    assert finished.draw()["together"] == "drawn"
    before = (finished.grid.folder / "together.png").read_bytes()
    (cell,) = finished.grid.cells(["one"], ["plain"])
    shutil.rmtree(finished.grid.run_folder(cell))
    assert finished.draw()["together"] == "stays as it is; no samples in the run folders of one-plain-seed0"
    assert (finished.grid.folder / "together.png").read_bytes() == before


def test_an_epoch_that_was_not_drawn_is_a_gap(finished):
    finished.write_samples([1, 2])
    content = finished.content("together")
    content = replace(content, settings=replace(content.settings, epochs=(2, 20)))
    with drawing("gap"):
        _, shown, gap, *_ = draw_curves_with_samples(content).axes
    assert (len(shown.images), len(gap.images)) == (1, 0)
    assert gap.get_title() == "epoch 20"


def test_overlays_of_rows_stand_one_above_the_other(finished):
    plain, wide = (next(iter(finished.grid.cells(["one"], [column]))) for column in ("plain", "wide"))
    write_overlays(finished.grid.run_folder(plain), (40, 60), grey=10)
    write_overlays(finished.grid.run_folder(wide), (50, 60), grey=20)
    with drawing("overlays"):
        panels = draw_overlays(finished.content("overlays")).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["Plain", "Wide"]
    for axes, height, grey in zip(panels, (40, 50), (10, 20), strict=True):
        pixels = np.asarray(axes.images[0].get_array())
        assert pixels.shape == (100, 60, 3)  # of row two no cell is finished
        assert (pixels[:height] == grey).all()
        assert (pixels[height:] == 255).all()
    assert [text.get_text() for text in panels[0].figure.texts] == ["One", "Two"]


def test_lost_overlays_keep_the_figure(finished):
    (plain,) = finished.grid.cells(["one"], ["plain"])
    write_overlays(finished.grid.run_folder(plain), (40, 60), grey=10)
    lost = "; no overlays in the run folders of one-wide-seed0"
    assert finished.draw()["overlays"] == f"drawn{lost}"
    assert finished.draw()["overlays"] == f"stays as it is{lost}"


def test_every_kind_of_figure_can_be_drawn():
    assert set(_KINDS) == set(FIGURE_KINDS)


def test_nothing_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = write_grid(tmp_path, CURVES)
    results, curves = Results(tmp_path / "results.csv"), Curves(tmp_path / "curves.csv", grid.curves.metrics)
    assert all(line.endswith("nothing to show yet") for line in draw_figures(grid, results, curves))
    assert not grid.folder.exists()
