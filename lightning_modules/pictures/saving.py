"""Pictures of a run: drawn in one style, written to the run folder, shown to whichever loggers are on."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers with any colour vision can tell apart.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#767676"
DIVERGING = "RdBu_r"
SEQUENTIAL = "Blues"

_STYLE = {
    "figure.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 9,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "image.interpolation": "nearest",
}


def media_folder(trainer: Trainer) -> Path:
    """Where the pictures of this run lie."""
    return Path(trainer.default_root_dir) / "media"


def is_writing(trainer: Trainer) -> bool:
    """Whether this process writes files: the first one does, except in a `fast_dev_run`, which leaves nothing."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs the end of an epoch: while fitting the last one, counted from 0."""
    steps = trainer.fit_loop.epoch_loop._batches_that_stepped
    return max(steps - 1, 0) if trainer.state.fn == "fit" else steps


@contextmanager
def dispensable(name: str) -> Iterator[None]:
    """Make `name` within this block; an error becomes a warning, for no picture is worth a run."""
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{name} could not be made, the run goes on without: {type(error).__name__}: {error}")


@contextmanager
def in_style() -> Iterator[None]:
    """Draw within this block in the suite's style."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Draw the picture `name` within this block, in the suite's style; it is `dispensable`."""
    with dispensable(f"picture {name!r}"), in_style():
        yield


def save_picture(trainer: Trainer, name: str, picture: Figure | np.ndarray) -> None:
    """Write `<run folder>/media/<name>.png` and show the same pixels to every logger that takes pictures.

    Does nothing on processes other than the first, nor in a `fast_dev_run`. A file of that name is replaced; loggers
    keep the older pictures under their steps.

    Args:
        trainer: Names the run folder, the loggers and the step.
        name: Becomes the file's name, and `media/<name>` in the loggers.
        picture: A matplotlib figure, or an image (H, W) or (H, W, 3), uint8, or float in [0, 1].
    """
    if not is_writing(trainer):
        return
    from PIL import Image

    png = _png(picture)
    write_whole(media_folder(trainer) / f"{name}.png", png)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for logger in trainer.loggers:
        show_picture(logger, f"media/{name}", pixels, logged_step(trainer))


@singledispatch
def show_picture(logger: Logger, key: str, pixels: np.ndarray, step: int) -> None:
    """Show uint8 `pixels` (H, W, 3) under `key` in `logger`; a logger of a class not registered here takes none.

    `@show_picture.register(MyLogger)` adds a class of loggers.
    """


@show_picture.register(WandbLogger)
def _(logger: WandbLogger, key: str, pixels: np.ndarray, step: int) -> None:
    # The step goes in as the value `trainer/global_step`, as for metrics: W&B's own counter must never be set by hand.
    logger.log_image(key, [pixels], step=step)


@show_picture.register(TensorBoardLogger)
def _(logger: TensorBoardLogger, key: str, pixels: np.ndarray, step: int) -> None:
    logger.experiment.add_image(key, pixels, step, dataformats="HWC")


@dataclass(frozen=True)
class MaskedImage:
    """An image, and masks that a logger may lay over it.

    Args:
        pixels: uint8 (H, W, 3).
        masks: Names to classes, uint8 (H, W).
        caption: What is written beneath it.
    """

    pixels: np.ndarray
    masks: Mapping[str, np.ndarray]
    caption: str


@singledispatch
def show_masks(logger: Logger, key: str, images: Sequence[MaskedImage], class_names: Sequence[str], step: int) -> None:
    """Show images with masks to switch on and off; a logger of a class not registered here shows none.

    `class_names` are those of all classes that the masks hold.
    """


@show_masks.register(WandbLogger)
def _(logger: WandbLogger, key: str, images: Sequence[MaskedImage], class_names: Sequence[str], step: int) -> None:
    if len(class_names) > 128:  # W&B keeps masks as int8
        return
    labels = dict(enumerate(class_names))
    logger.log_image(
        key,
        [image.pixels for image in images],
        step=step,
        caption=[image.caption for image in images],
        masks=[
            {name: {"mask_data": mask, "class_labels": labels} for name, mask in image.masks.items()}
            for image in images
        ],
    )


def _png(picture: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=picture.dpi)
        return buffer.getvalue()
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
