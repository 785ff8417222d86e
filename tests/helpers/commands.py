"""Command lines that train for a second on the digits."""

from __future__ import annotations

from pathlib import Path

STEPS_AN_EPOCH = 3
TINY_NETWORK = "{widths: [4, 4, 4, 4]}"


def tiny(folder: Path | str | None = None, *arguments: str) -> list[str]:
    """What stands behind `fit` and the like: two epochs of three steps, validated on 51 images; `arguments` win."""
    place = [] if folder is None else [f"--trainer.default_root_dir={folder}"]
    return [
        "--model=ClassificationTask",
        "--model.model=fashion_cnn",
        f"--model.model_options={TINY_NETWORK}",
        "--model.optimizer=Adam",
        "--model.optimizer.lr=0.01",
        "--data=DigitsDataModule",
        "--data.batch_size=20",
        f"--data.train_size={20 * STEPS_AN_EPOCH}",
        "--data.val_size=51",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        *place,
        *arguments,
    ]


def tiny_gan(folder: Path | str, *arguments: str) -> list[str]:
    """What stands behind `fit`: an octave GAN of 16 pixels, two epochs of three steps; `arguments` win."""
    return [
        "--model=GANTask",
        "--model.model_options={base_width: 4}",
        "--model.conv={name: octave, alpha: 0.5}",
        "--model.latent_dim=5",
        "--model.extractor=null",
        "--model.optimizer=Adam",
        "--model.optimizer.lr=0.002",
        "--data=DigitsDataModule",
        "--data.image_size=16",
        "--data.batch_size=8",
        f"--data.train_size={8 * STEPS_AN_EPOCH}",
        "--data.val_size=0",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={folder}",
        *arguments,
    ]


def save_every(steps: int) -> list[str]:
    """Arguments that write last.ckpt after every so many steps, besides every epoch."""
    return ["--trainer.callbacks+=LastCheckpoint", f"--trainer.callbacks.every_n_train_steps={steps}"]
