"""Generated images as files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from lightning_modules.callbacks.folder_writer import FolderWriter


class SampleWriter(FolderWriter):
    """Writes `<run folder>/samples/000000.png`, `000001.png` ... when `predict` runs: an image a file, by its index.

    See `FolderWriter`. Reads "image", uint8 (N, C, H, W) with one or three channels, and "index" (N,) from what
    `predict_step` returns.
    """

    folder = "samples"
    pattern = r"\d{6,}\.png"

    def files(self, outputs: Any) -> Iterator[tuple[str, bytes]]:
        from PIL import Image

        pixels = outputs["image"].cpu().permute(0, 2, 3, 1).numpy()
        for index, image in zip(outputs["index"].tolist(), pixels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(png, format="png")
            yield f"{index:06d}.png", png.getvalue()
