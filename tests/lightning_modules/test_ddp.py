"""Two processes, as the overlay makes them: in a process of their own, since they start `sys.argv` anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightning_modules.cli import main
from lightning_modules.commands import training
from lightning_modules.metrics_file import read_metrics
from lightning_modules.runs import Run
from tests.helpers.commands import TINY_NETWORK
from tests.helpers.data import write_fashion_mnist


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two processes on odd numbers of images."""
    folder = tmp_path_factory.mktemp("ddp")
    write_fashion_mnist(folder / "data", train=100, test=51, unpacked=True)
    command = [
        *("fit_test", "--config=trainer/ddp.yaml", "--trainer.accelerator=cpu"),
        *("--model=ClassificationTask", "--model.model=fashion_cnn", f"--model.model_options={TINY_NETWORK}"),
        *(
            "--model.optimizer=Adam",
            "--model.optimizer.lr=0.01",
            "--trainer.max_epochs=1",
            "--trainer.log_every_n_steps=1",
        ),
        *("--data=FashionMNISTDataModule", f"--data.root={folder / 'data'}", "--data.batch_size=10"),
        *("--data.train_size=40", "--data.val_size=33", f"--trainer.default_root_dir={folder / 'run'}"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_modules.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    return Run(folder / "run")


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_two_processes_measure_what_one_measures(run, monkeypatch, command, stage):
    monkeypatch.setattr(training, "default_callbacks", lambda task: [])
    two = run.metrics()
    alone = ["--trainer.strategy=auto", "--trainer.devices=1"]
    main([command, f"--ckpt_path={run.last_checkpoint}", *alone])
    one = run.metrics()
    names = [name for name in two if name.startswith(f"{stage}/")]
    assert f"{stage}/accuracy" in names
    for name in names:
        assert one[name] == pytest.approx(two[name], rel=1e-5), name
    assert one[f"{stage}/accuracy"] == two[f"{stage}/accuracy"]


def test_one_process_keeps_the_folder(run):
    rows = read_metrics(run.metrics_file)
    assert [row["step"] for row in rows] == ["0", "1"]
    assert rows[-1]["test/accuracy"]
    assert [session["processes"] for session in run.sessions[:2]] == [2, 2]
    assert run.is_finished
