"""GANs of 16 pixels and a few channels, trained for a second on the digits, without the command line."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from datamodules import DigitsDataModule
from lightning_modules import GANTask

BATCHES_AN_EPOCH = 3
OCTAVE = {"name": "octave", "alpha": 0.5}


def gan_data(**options: Any) -> DigitsDataModule:
    options = {"train_size": 8 * BATCHES_AN_EPOCH, "val_size": 0, "normalisation": "symmetric", **options}
    return DigitsDataModule(**{"batch_size": 8, "image_size": 16, **options})


def tiny_gan(**options: Any) -> GANTask:
    torch.manual_seed(0)
    options = {
        "model_options": {"base_width": 4},
        "in_channels": 1,
        "image_size": 16,
        "latent_dim": 5,
        "extractor": None,
        "optimizer": partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999)),
        **options,
    }
    return GANTask(**options)
