"""Signals, within one process; `test_resume.py` sends real ones to another."""

from __future__ import annotations

import os
import signal

import pytest

from lightning_modules import ClassificationTask
from lightning_modules.callbacks.graceful_stop import SIGNALS, GracefulStop, Stopped
from lightning_modules.callbacks.run_folder import RunFolder
from lightning_modules.cli import main
from lightning_modules.commands import training
from lightning_modules.files import read_checkpoint
from lightning_modules.metrics_file import read_metrics
from lightning_modules.runs import Run
from tests.helpers.commands import STEPS_AN_EPOCH, tiny


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Handlers as they were, whatever a test leaves."""
    monkeypatch.setattr(training, "default_callbacks", lambda task: [])
    before = {signum: signal.getsignal(signum) for signum in [*SIGNALS, signal.SIGCHLD]}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def at_step(monkeypatch, step, action, hook="training_step"):
    """Calls `action` within that step."""
    method = getattr(ClassificationTask, hook)

    def acting(self, batch, batch_idx):
        if self.global_step == step:
            action()
        return method(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, hook, acting)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_the_running_step_is_saved(tmp_path, monkeypatch, capsys, name, code):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), getattr(signal, name)))
    with pytest.raises(SystemExit) as exit:
        main(["fit", *tiny(tmp_path)])
    assert exit.value.code == code
    assert read_checkpoint(Run(tmp_path).last_checkpoint)["global_step"] == 2
    assert Run(tmp_path).sessions[-1]["outcome"] == "interrupted by Stopped"
    out = capsys.readouterr().out
    assert f"{name}: step 2 is done and saved, in {tmp_path}" in out
    assert "To go on:\n  convsuite fit " in out
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_the_validation_that_belongs_to_the_step_is_finished_first(tmp_path, monkeypatch, hook):
    step = {"training_step": STEPS_AN_EPOCH - 1, "validation_step": STEPS_AN_EPOCH}[hook]
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM), hook)
    with pytest.raises(SystemExit):
        main(["fit", *tiny(tmp_path)])
    assert len(read_metrics(tmp_path / "metrics.csv")) == STEPS_AN_EPOCH
    assert read_metrics(tmp_path / "metrics.csv")[-1]["val/accuracy"]
    assert read_checkpoint(Run(tmp_path).last_checkpoint)["global_step"] == STEPS_AN_EPOCH


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        main(["fit", *tiny(tmp_path)])
    assert read_checkpoint(Run(tmp_path).last_checkpoint)["global_step"] == STEPS_AN_EPOCH


def test_before_the_first_step_ctrl_c_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "setup", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        main(["fit", *tiny(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_worker_that_the_signal_ended_is_no_error():
    stop = GracefulStop()
    stop._receive(signal.SIGTERM, None)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        EOFError(),
        ConnectionResetError(104, "reset"),
    ],
    ids=["worker", "pin_memory", "end of file", "connection"],
)
def test_a_validation_without_its_workers_goes_back(tmp_path, monkeypatch, error):
    def lose_a_worker():
        os.kill(os.getpid(), signal.SIGTERM)
        raise error

    at_step(monkeypatch, 2 * STEPS_AN_EPOCH, lose_a_worker, "validation_step")
    with pytest.raises(Stopped) as stopped:
        main(["fit", *tiny(tmp_path)])
    assert stopped.value.code == 143
    assert "back to the last checkpoint" in stopped.value.how
    assert read_checkpoint(Run(tmp_path).last_checkpoint)["global_step"] == STEPS_AN_EPOCH
