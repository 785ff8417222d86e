"""What would stop the test of `fit_test` is found before the training."""

from __future__ import annotations

import pytest

from datamodules import DigitsDataModule
from lightning_modules.cli import main
from lightning_modules.commands import training
from tests.helpers.commands import tiny, tiny_gan
from tests.helpers.data import write_celeba


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "default_callbacks", lambda task: [])
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path / "cache"))


def gan_of_a_folder(tmp_path, *options) -> list[str]:
    """A folder has training images only."""
    write_celeba(tmp_path, train=24, size=(16, 16))
    folder = ["--data=CelebADataModule", f"--data.folder={tmp_path / 'celeba'}", "--trainer.max_epochs=1"]
    measured = ["--model.extractor=contrastive", "--model.num_generated=12"]
    return ["fit_test", *tiny_gan(tmp_path / "run", *folder, *measured, *options)]


def test_generated_images_need_no_test_images(tmp_path, capsys):
    assert main(gan_of_a_folder(tmp_path)) == 0
    assert "test/fid_contrastive_12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.reference_split=test", "has no test images"),
        ("--model.extractor=null", r"model\.extractor is null: nothing is measured\. .* convsuite fit$"),
    ],
)
def test_generated_images_that_cannot_be_measured(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        main(gan_of_a_folder(tmp_path, option))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [tiny, tiny_gan])
def test_test_data_that_cannot_be_opened(tmp_path, monkeypatch, arguments):
    def missing(data):
        raise FileNotFoundError("no test file")

    monkeypatch.setattr(DigitsDataModule, "make_test", missing)
    measured = ["--model.extractor=contrastive", "--model.num_generated=12"] if arguments is tiny_gan else []
    with pytest.raises(FileNotFoundError, match="no test file"):
        main(["fit_test", *arguments(tmp_path / "run", *measured)])
    assert not (tmp_path / "run").exists()
