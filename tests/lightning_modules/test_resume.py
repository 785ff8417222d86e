"""A training that is killed and resumed is, to the last bit, the training that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_modules.cli import main
from lightning_modules.commands import training
from lightning_modules.files import read_checkpoint
from lightning_modules.metrics_file import MetricsFile, read_metrics
from lightning_modules.runs import Run
from tests.helpers.commands import STEPS_AN_EPOCH, save_every, tiny, tiny_gan

PLATEAU = [
    "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
    *("--model.lr_scheduler.monitor=val/loss", "--model.lr_scheduler.patience=0", "--model.lr_scheduler.threshold=9"),
]
EARLY = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
# What Lightning does between two steps differs in each of these.
SETTINGS = {
    "epochs": [],
    "steps": save_every(2),
    "max_steps": ["--trainer.max_epochs=-1", "--trainer.max_steps=8", *save_every(2)],
    "validation within an epoch": ["--trainer.val_check_interval=2", *save_every(1)],
    "accumulated gradients": ["--trainer.accumulate_grad_batches=2", *save_every(1)],
    "sparse logging": ["--trainer.log_every_n_steps=2", *save_every(1)],
    "no validation": ["--data.val_size=0", *save_every(2)],
    "a schedule over all steps": ["--model.lr_scheduler=CosineDecay", *save_every(2)],
    "a schedule by validation": ["--trainer.max_epochs=3", *PLATEAU],
    "early stopping": [
        "--trainer.max_epochs=5",
        *EARLY,
        "--trainer.callbacks.patience=1",
        "--trainer.callbacks.min_delta=9",
    ],
}
# Those of GANs: counters, moving averages, betas and the metrics' best must come back as well.
GANS = {
    "gan": save_every(1),
    "gan, critic steps over epochs": ["--model.n_critic=4", "--model.loss=wgan", *save_every(1)],
    "gan, moving average and betas": ["--model.ema_decay=0.9", "--model.beta_schedule=ramp", *save_every(2)],
    "gan, partial batches": ["--data.train_size=21", "--model.reuse_fakes=true", *save_every(2)],
    "gan, metrics": ["--model.extractor=contrastive", "--model.num_generated=20", "--trainer.max_epochs=3"],
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved on the way out."""


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr(training, "default_callbacks", lambda task: [])


@pytest.fixture
def kill(monkeypatch):
    """Ends the process, so to speak, when metrics.csv is written for the n-th time; returns the number of times."""
    add = MetricsFile.add

    def run(args, at=None):
        count = 0

        def counted(self, step, values):
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            add(self, step, values)

        monkeypatch.setattr(MetricsFile, "add", counted)
        try:
            main(args)
        except Killed:
            assert at is not None
        return count

    return run


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("name", [*SETTINGS, *GANS])
def test_killed_anywhere_it_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, kill, name):
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path / "cache"))

    def command(folder):
        if name in GANS:
            return ["fit", *tiny_gan(tmp_path / folder, *GANS[name])]
        return ["fit", *tiny(tmp_path / folder, *SETTINGS[name])]

    writes = kill(command("whole"))
    whole = Run(tmp_path / "whole")
    for at in sorted({writes // 3, 2 * writes // 3, writes}):
        kill(command(f"killed{at}"), at)
        killed = Run(tmp_path / f"killed{at}")
        assert not killed.is_finished
        main(command(f"killed{at}"))
        assert_equal(killed, whole)


def assert_equal(run, whole):
    assert by_name(run) == by_name(whole)
    last, expected = read_checkpoint(run.last_checkpoint), read_checkpoint(whole.last_checkpoint)
    assert last["global_step"] == expected["global_step"]
    for name, weight in expected["state_dict"].items():
        assert torch.equal(last["state_dict"][name], weight), name
    if whole.best_checkpoint.exists():
        assert (
            read_checkpoint(run.best_checkpoint)["global_step"] == read_checkpoint(whole.best_checkpoint)["global_step"]
        )


def by_name(run):
    """Columns come in the order in which they were first measured, which a killed run may change."""
    return [dict(sorted(row.items())) for row in read_metrics(run.metrics_file)]


@pytest.mark.usefixtures("without_pictures")
def test_a_best_checkpoint_moves_with_its_run(tmp_path):
    """Its score still counts: a worse validation does not replace it."""
    command = tiny(tmp_path / "run", "--trainer.max_epochs=3", *save_every(1))
    main(["fit", *tiny(tmp_path / "whole", "--trainer.max_epochs=3")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsFile, "add", kill_after(MetricsFile.add, step=STEPS_AN_EPOCH + 1))
        with pytest.raises(Killed):
            main(["fit", *command])
    shutil.move(tmp_path / "run", tmp_path / "moved")
    moved = [arg.replace(str(tmp_path / "run"), str(tmp_path / "moved")) for arg in command]
    main(["fit", *moved])
    assert_equal(Run(tmp_path / "moved"), Run(tmp_path / "whole"))
    assert not (tmp_path / "run").exists()


def kill_after(add, step):
    def killing(self, at, values):
        if at > step:
            raise Killed
        add(self, at, values)

    return killing


REAL = ["--trainer.max_epochs=30", "--data.num_workers=1", *save_every(2)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    main(["fit", *tiny(folder, *REAL)])
    return Run(folder)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_real_signals(tmp_path, uninterrupted, signum):
    """SIGKILL leaves what there is; the others leave a message, the last step, and the shell's exit code."""
    command = ["fit", *tiny(tmp_path / "run", *REAL)]
    run = Run(tmp_path / "run")
    process = start(command)
    wait_for_step(process, run.metrics_file, random.randrange(5, 20))
    if signum == signal.SIGKILL:
        process.send_signal(signum)
    else:  # as a terminal or a scheduler does, to data-loader workers too
        os.killpg(process.pid, signum)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), output
    assert not run.is_finished
    if signum != signal.SIGKILL:
        assert signum.name in output
        assert "To go on:\n  convsuite fit --model=ClassificationTask" in output
    if "is done and saved" in output:  # otherwise SIGTERM met a worker that had only just begun
        saved = read_checkpoint(run.last_checkpoint)["global_step"]
        assert str(saved - 1) == read_metrics(run.metrics_file)[-1]["step"]

    main(command)
    assert_equal(run, uninterrupted)


def test_a_killed_gan_goes_on_to_the_bit(tmp_path):
    def command(folder):
        changes = ["--model.n_critic=2", "--model.ema_decay=0.9", "--model.beta_schedule=ramp"]
        return ["fit", *tiny_gan(tmp_path / folder, "--trainer.max_epochs=8", *changes, *save_every(2))]

    process = start(command("run"))
    wait_for_step(process, Run(tmp_path / "run").metrics_file, random.randrange(4, 12))
    process.kill()
    process.communicate(timeout=200)
    assert not Run(tmp_path / "run").is_finished
    main(command("run"))
    main(command("whole"))
    assert_equal(Run(tmp_path / "run"), Run(tmp_path / "whole"))


def start(command):
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_modules.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(process, file: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and len(file.read_text().splitlines()) > step:
            return
        time.sleep(0.01)
    pytest.fail(f"never came to step {step}: {process.communicate()[0]}")
