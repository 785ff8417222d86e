"""What is reached in each class, as a table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lightning_modules.callbacks.class_table import ClassTable, as_csv, class_rows
from tests.helpers.tiny_masks import TinyMasks, tiny_segmentation
from tests.helpers.tiny_runs import tiny_trainer

# Rows are the truth: class 0 has 8 pixels, 1 has 4, of which 3 are right, 2 is nowhere in truth, 3 is nowhere at all.
CONFUSION = torch.tensor([[7, 0, 1, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
NAMES = ["road", "car", "bus", "train, long"]


def read(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def test_measures_of_each_class():
    assert list(csv.reader(as_csv(class_rows(CONFUSION, NAMES, 255)).splitlines())) == [
        ["class", "IoU", "Dice", "accuracy", "pixels of truth"],
        ["road", f"{7 / 9:.6f}", f"{14 / 16:.6f}", f"{7 / 8:.6f}", "8"],
        ["car", f"{3 / 4:.6f}", f"{6 / 7:.6f}", f"{3 / 4:.6f}", "4"],
        ["bus", "0.000000", "0.000000", "", "0"],
        ["train, long", "", "", "", "0"],
    ]


def test_an_ignored_class_has_no_measures():
    road, *_ = class_rows(CONFUSION, NAMES, 0)
    assert all(value != value for value in road.measures)


def test_after_a_test_and_after_validate(tmp_path, capsys):
    task, data = tiny_segmentation(num_classes=3), TinyMasks(num_classes=3, ignored=True)
    trainer = tiny_trainer(tmp_path, [ClassTable()], max_epochs=1)
    trainer.fit(task, datamodule=data)
    assert not list(tmp_path.glob("per_class_*"))
    (result,) = trainer.test(task, datamodule=data, verbose=False)
    header, *rows = read(tmp_path / "per_class_test.csv")
    assert [row[0] for row in rows] == ["background", "disc", "coin"]
    for name, iou, dice, _, _ in rows:
        assert float(iou) == pytest.approx(result[f"test/iou_{name}"], abs=1e-6)
        assert float(dice) == pytest.approx(result[f"test/dice_{name}"], abs=1e-6)
    assert sum(int(row[-1]) for row in rows) == 5 * 14 * 16  # two rows of each image are ignored
    shown = capsys.readouterr().out
    assert "test, each class (%)" in shown
    assert f"{100 * result['test/miou']:.2f}" in shown
    trainer.validate(task, datamodule=data, verbose=False)
    assert read(tmp_path / "per_class_val.csv")[0] == header


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    trainer = tiny_trainer(tmp_path, [ClassTable()], fast_dev_run=True)
    trainer.test(tiny_segmentation(), datamodule=TinyMasks(), verbose=False)
    assert not list(tmp_path.iterdir())
