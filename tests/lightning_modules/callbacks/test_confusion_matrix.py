"""The confusion matrix, as numbers and as a picture."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from lightning_modules.callbacks import ConfusionMatrix
from lightning_modules.callbacks.confusion_matrix import draw_confusion
from lightning_modules.pictures.saving import drawing
from tests.helpers.tiny_runs import tiny_data, tiny_task, tiny_trainer


def read(path):
    header, *rows = csv.reader(path.read_text().splitlines())
    counts = [[int(cell) for cell in row[1:-1]] for row in rows]
    return header, counts, [row[-1] for row in rows]


def test_test_and_last_validation_are_written(tmp_path):
    task, data = tiny_task(), tiny_data()
    trainer = tiny_trainer(tmp_path, [ConfusionMatrix()])
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    assert sorted(path.name for path in (tmp_path / "media").iterdir()) == [
        f"confusion_{stage}.{kind}" for stage in ("test", "val") for kind in ("csv", "png")
    ]
    for stage, total in (("test", 360), ("val", 50)):
        header, counts, accuracies = read(tmp_path / "media" / f"confusion_{stage}.csv")
        assert header[1:] == [*"0123456789", "accuracy"]
        assert counts == task.confusion[stage].tolist()
        assert sum(map(sum, counts)) == total
        for i, (row, accuracy) in enumerate(zip(counts, accuracies, strict=True)):
            assert float(accuracy) == pytest.approx(row[i] / sum(row), abs=1e-6)


def test_the_sanity_check_is_no_validation(tmp_path):
    trainer = tiny_trainer(tmp_path, [ConfusionMatrix()], max_epochs=1, check_val_every_n_epoch=2)
    trainer.fit(tiny_task(), datamodule=tiny_data())
    assert not (tmp_path / "media").exists()


def test_the_validate_command_draws_at_once(tmp_path):
    tiny_trainer(tmp_path, [ConfusionMatrix()]).validate(tiny_task(), datamodule=tiny_data(), verbose=False)
    assert (tmp_path / "media" / "confusion_val.png").is_file()


@pytest.mark.parametrize("classes", [2, 25, 100])
def test_any_number_of_classes(classes):
    counts = np.random.default_rng(0).integers(0, 5, (classes, classes)) + 50 * np.eye(classes, dtype=int)
    with drawing("confusion"):
        figure = draw_confusion(counts, [f"class {i}" for i in range(classes)], "Test")
        figure.draw_without_rendering()
    cells = figure.axes[0]
    assert (cells.get_yticklabels()[0].get_text() == "class 0") == (classes < 100)
    assert bool(cells.texts) == (classes == 2)


def test_a_class_without_samples_has_no_accuracy():
    with drawing("confusion"):
        figure = draw_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"], "Test")
    assert figure.get_suptitle() == "Test: 75.00 % of 4 right"
    assert [text.get_text() for text in figure.axes[1].texts] == ["75.0", "none"]
