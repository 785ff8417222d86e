"""Predicted class masks as images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from lightning_modules.callbacks.folder_writer import FolderWriter
from lightning_modules.overlays import voc_colour_map


class MaskWriter(FolderWriter):
    """Writes `<run folder>/predictions/<path of the input>.png` when `predict` runs, see `FolderWriter`.

    Palette images of the size of the prediction: values are the class numbers, colours those of PASCAL VOC. Sub-folders
    of the input are kept, its ending becomes `.png`. Reads "file", N relative paths, and "prediction", uint8 (N, H, W),
    from what `predict_step` returns.

    Raises:
        FileExistsError: While predicting: the paths of two inputs differ in no more than their ending.
        ValueError: While predicting: a path is not relative, or leaves its folder.
    """

    folder = "predictions"
    pattern = r".+\.png"

    def files(self, outputs: Any) -> Iterator[tuple[str, bytes]]:
        masks = outputs["prediction"].cpu().numpy()
        for file, mask in zip(outputs["file"], masks, strict=True):
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"the mask of {file} would lie outside of {self.folder}: give a relative path")
            yield str(path.with_suffix(".png")), palette_png(mask)


def palette_png(mask: np.ndarray) -> bytes:
    """A PNG file whose pixels are the class numbers of `mask`, uint8 (H, W), shown in PASCAL VOC's colours."""
    from PIL import Image

    image = Image.fromarray(mask)
    image.putpalette(voc_colour_map().tobytes())
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()
