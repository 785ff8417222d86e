"""Predicted class masks as images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from lightning_modules.callbacks.folder_writer import FolderWriter
from lightning_modules.pictures.overlays import voc_colour_map


class Submission(Protocol):
    """How a benchmark wants its predictions.

    Attributes:
        values: The value of each class in the files; None: its number.
    """

    values: tuple[int, ...] | None

    def path(self, file: str) -> str:
        """Where the mask of the input `file` goes, relative to the folder of predictions."""


class MaskWriter(FolderWriter):
    """Writes `<run folder>/predictions/<path of the input>.png` when `predict` runs, see `FolderWriter`.

    Palette images of the size of the prediction: values are the class numbers, colours those of PASCAL VOC. Sub-folders
    of the input are kept, its ending becomes `.png`. Where the data module has a `submission`, a `Submission`, that
    says the paths, and the values of the classes: grey images, if they are not the class numbers. Reads "file", N
    relative paths, and "prediction", uint8 (N, H, W), from what `predict_step` returns.

    Raises:
        FileExistsError: While predicting: the paths of two inputs differ in no more than their ending.
        ValueError: While predicting: a path is not relative, or leaves its folder.
    """

    folder = "predictions"
    pattern = r".+\.png"
    submission: Submission | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.submission = getattr(trainer.datamodule, "submission", None)  # type: ignore[attr-defined]
        super().on_predict_start(trainer, pl_module)

    def files(self, outputs: Any) -> Iterator[tuple[str, bytes]]:
        masks = outputs["prediction"].cpu().numpy()
        for file, mask in zip(outputs["file"], masks, strict=True):
            path = PurePosixPath(file if self.submission is None else self.submission.path(file))
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"the mask of {file} would lie outside of {self.folder}: give a relative path")
            values = None if self.submission is None else self.submission.values
            yield str(path.with_suffix(".png")), palette_png(mask) if values is None else grey_png(mask, values)


def palette_png(mask: np.ndarray) -> bytes:
    """A PNG file whose pixels are the class numbers of `mask`, uint8 (H, W), shown in PASCAL VOC's colours."""
    return _png(mask, voc_colour_map().tobytes())


def grey_png(mask: np.ndarray, values: Sequence[int]) -> bytes:
    """A grey PNG file whose pixels are `values[class]`, each at most 255, of the classes of `mask`, uint8 (H, W)."""
    return _png(np.asarray(values, np.uint8)[mask], None)


def _png(pixels: np.ndarray, palette: bytes | None) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()
