"""The pictures of samples that a generator's training has left in its run folder, epoch by epoch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_modules.grids.grid import LAST
from lightning_modules.pictures.images import GAP


@dataclass(frozen=True)
class SamplePicture:
    """A grid of samples, uint8 (H, W, 3), and the number of epochs trained for it."""

    epoch: int
    pixels: np.ndarray


def find_samples(run_folder: Path, epoch: int | str, crop: int | None = None) -> SamplePicture | None:
    """The samples after `epoch` epochs ("last": the latest that were drawn), None where the run folder has none.

    Args:
        run_folder: Holds `media/samples/epoch_0001.png` and so on.
        epoch: Number of epochs trained, or "last".
        crop: Of the grid, take the first so many rows and columns.
    """
    found = ((re.fullmatch(r"epoch_(\d+)\.png", path.name), path) for path in run_folder.glob("media/samples/*.png"))
    pictures = {int(match[1]): path for match, path in found if match}
    number = max(pictures, default=0) if epoch == LAST else int(epoch)
    if number not in pictures:
        return None
    from PIL import Image

    with Image.open(pictures[number]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return SamplePicture(number, pixels if crop is None else crop_grid(pixels, crop))


def crop_grid(pixels: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows and columns of a picture (H, W, 3) that `images.image_grid` made.

    Images are told apart by the white between them; a picture without is returned as it is.
    """
    height, width = (_first_gap((pixels == 255).all(axis=(1 - axis, 2))) for axis in (0, 1))
    return pixels[: count * (height + GAP) - GAP, : count * (width + GAP) - GAP]


def _first_gap(is_white: np.ndarray) -> int:
    """Where the first `GAP` white lines in a row begin; the number of lines where there are none."""
    gaps = np.convolve(is_white, np.ones(GAP), mode="valid") == GAP
    return int(gaps.argmax()) if gaps.any() else len(is_white)
