"""metrics.csv: one row a step, whole at any moment."""

from __future__ import annotations

import os

import pytest

from lightning_modules import metrics_file
from lightning_modules.metrics_file import MetricsFile, last_values, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def test_what_comes_in_for_a_step_is_one_row(path):
    file = MetricsFile(path)
    file.add(0, {"epoch": "0", "train/loss": "2.5"})
    file.add(0, {"epoch": "0", "val/accuracy": "0.1"})
    file.add(1, {"epoch": "0", "train/loss": "2.25"})
    assert path.read_text() == "epoch,step,train/loss,val/accuracy\n0,0,2.5,0.1\n0,1,2.25,\n"


def test_nothing_exists_before_the_first_metric(path):
    file = MetricsFile(path)
    file.drop_from(0)
    assert not file.add_to_last_step({"test/accuracy": "1"})
    assert not path.exists()


def test_known_columns_never_rewrite_the_file(path, monkeypatch):
    file = MetricsFile(path)
    file.add(0, {"epoch": "0", "loss": "1", "val": "2"})
    monkeypatch.setattr(metrics_file, "write_whole", None)
    for step in range(1, 100):
        file.add(step, {"epoch": "0", "loss": "1.5"})
        file.add(step, {"epoch": "0", "val": "2.5"})
    assert [row["val"] for row in read_metrics(path)[1:]] == ["2.5"] * 99


def test_a_shorter_value_leaves_nothing_of_the_longer_one(path):
    file = MetricsFile(path)
    file.add(0, {"loss": "1.23456"})
    file.add(1, {"loss": "1.23456"})
    file.add(1, {"loss": "1"})
    file.add(2, {"loss": "3"})
    assert [row["loss"] for row in read_metrics(path)] == ["1.23456", "1", "3"]


def test_an_earlier_step_finds_its_place(path):
    file = MetricsFile(path)
    for step in (0, 2, 4):
        file.add(step, {"loss": str(step)})
    file.add(1, {"loss": "1"})
    file.add(2, {"val": "20"})
    file.add(5, {"loss": "5"})
    assert [(row["step"], row["loss"], row["val"]) for row in read_metrics(path)] == [
        ("0", "0", ""),
        ("1", "1", ""),
        ("2", "2", "20"),
        ("4", "4", ""),
        ("5", "5", ""),
    ]


def test_a_resumed_file_goes_on_from_its_step(path):
    for first in (0, 3):
        file = MetricsFile(path)
        file.drop_from(first)
        for step in range(first, 5):
            file.add(step, {"loss": str(first)})
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [
        ("0", "0"),
        ("1", "0"),
        ("2", "0"),
        ("3", "3"),
        ("4", "3"),
    ]


def test_results_of_the_run_stand_in_its_last_row(path):
    file = MetricsFile(path)
    file.add(7, {"epoch": "2", "loss": "1"})
    assert MetricsFile(path).add_to_last_step({"epoch": "0", "test/accuracy": "0.5"})
    assert read_metrics(path) == [{"epoch": "2", "step": "7", "loss": "1", "test/accuracy": "0.5"}]


@pytest.mark.parametrize("cut", range(1, 6))
def test_half_a_line_is_left_out_and_written_over(path, cut):
    file = MetricsFile(path)
    file.add(0, {"loss": "1.5"})
    file.add(1, {"loss": "2.5"})
    os.truncate(path, path.stat().st_size - cut)
    assert [row["loss"] for row in read_metrics(path)] == ["1.5"]
    MetricsFile(path).add(1, {"loss": "2.5"})
    assert [row["loss"] for row in read_metrics(path)] == ["1.5", "2.5"]


def test_names_with_commas_survive(path):
    MetricsFile(path).add(0, {"test/accuracy_T-shirt, top": "0.5"})
    assert last_values(read_metrics(path)) == {"test/accuracy_T-shirt, top": 0.5}


def test_last_values_skip_what_was_not_measured():
    rows = [{"epoch": "0", "step": "0", "a": "1", "b": "2"}, {"epoch": "0", "step": "1", "a": "", "b": "nan"}]
    values = last_values(rows)
    assert values["a"] == 1
    assert values["b"] != values["b"]
    assert set(values) == {"a", "b"}
