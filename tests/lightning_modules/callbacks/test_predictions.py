"""predictions.csv."""

from __future__ import annotations

import csv

import pytest
import torch

from lightning_modules.callbacks import PredictionWriter
from tests.helpers.tiny_runs import tiny_data, tiny_task, tiny_trainer


def read(folder):
    header, *rows = csv.reader((folder / "predictions.csv").read_text().splitlines())
    return header, rows


def predict(folder, **options):
    trainer = tiny_trainer(folder, [PredictionWriter()], **options)
    return trainer.predict(tiny_task(), datamodule=tiny_data(), return_predictions=True)


def test_a_row_a_file_in_their_order(tmp_path):
    batches = predict(tmp_path)
    header, rows = read(tmp_path)
    assert header == ["file", "class", *"0123456789"]
    assert [row[0] for row in rows] == [name for batch in batches for name in batch["file"]]
    probabilities = torch.cat([batch["probabilities"] for batch in batches])
    written = torch.tensor([[float(cell) for cell in row[2:]] for row in rows])
    torch.testing.assert_close(written, probabilities, rtol=1e-5, atol=0)
    assert [int(row[1]) for row in rows] == probabilities.argmax(1).tolist()


def test_processes_hold_the_rows_in_turn(tmp_path, monkeypatch):
    """Five files on two processes: the first holds files 0, 2, 4."""
    table = torch.eye(5)
    parts = [(["0", "2", "4"], table[[0, 2, 4]]), (["1", "3"], table[[1, 3]])]
    monkeypatch.setattr("lightning_modules.callbacks.predictions.gather_on_first", lambda part: parts)
    predict(tmp_path, limit_predict_batches=1)
    assert [row[:2] for row in read(tmp_path)[1]] == [[str(i), str(i)] for i in range(5)]


def test_a_table_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    predict(tmp_path)
    before = (tmp_path / "predictions.csv").read_bytes()
    monkeypatch.setattr("lightning_modules.callbacks.predictions.class_names", lambda *_: ["too few"])
    with pytest.raises(IndexError):
        predict(tmp_path)
    assert (tmp_path / "predictions.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    predict(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.iterdir())
