"""Two gloo processes: each writes its samples, the first alone draws, and nobody waits for it in vain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.callbacks import (
    GeneratedSamples,
    LatentInterpolation,
    OctaveContributions,
    RealAndGenerated,
    SampleWriter,
)
from tests.helpers.tiny_gans import OCTAVE, gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer

ROOT = Path(__file__).parents[3]
# Forked, which spares an import of everything, but not from pytest, whose threads would not survive it.
TWO = {"devices": 2, "strategy": "ddp_fork_find_unused_parameters_true"}


def predict(folder: Path, **options) -> None:
    """With the initial weights; 7 images, so that processes have different numbers of them."""
    task = tiny_gan(conv=OCTAVE, num_predicted=7)
    tiny_trainer(folder, [SampleWriter()], **options).predict(task, datamodule=gan_data(), return_predictions=False)


def train(folder: Path, **options) -> None:
    callbacks = [GeneratedSamples(2, 2), RealAndGenerated(), LatentInterpolation(), OctaveContributions()]
    tiny_trainer(folder, callbacks, **options).fit(tiny_gan(conv=OCTAVE), datamodule=gan_data(batch_size=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    predict(folder / "one")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(folder)]
    subprocess.run(command, check=True, env=environment, cwd=folder, timeout=300, capture_output=True)
    return folder


def test_two_processes_write_the_samples_of_one(folder):
    one, two = ({path.name: path.read_bytes() for path in (folder / n / "samples").iterdir()} for n in ("one", "two"))
    assert one.keys() == {f"{i:06d}.png" for i in range(7)}
    assert two == one
    assert [path.name for path in (folder / "two").iterdir()] == ["samples"]


def test_a_training_has_one_set_of_pictures(folder):
    media = folder / "trained" / "media"
    assert sorted(str(path.relative_to(media)) for path in media.rglob("*.*")) == [
        "interpolation.png",
        "octave_contributions.png",
        "real_and_generated.png",
        "samples.png",
        "samples.webp",
        "samples/epoch_0001.png",
        "samples/epoch_0002.png",
    ]


if __name__ == "__main__":
    predict(Path(sys.argv[1]) / "two", **TWO)
    train(Path(sys.argv[1]) / "trained", **TWO)
