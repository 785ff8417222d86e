"""Images with their true and their predicted masks, and where the two differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lightning_modules.callbacks.first_images import FirstImages, resampled, shown_scale
from lightning_modules.pictures.overlays import SegmentedImage


class SegmentationOverlays(FirstImages):
    """Draws `overlays_<stage>.png`: some images beside their true mask, their predicted mask and the mistakes.

    `FirstImages` says when. Volumes are left to `OrthogonalSlices`.

    Reads "prediction" (N, H, W), "mask" (N, H, W) and "index" (N,) from what `validation_step` and `test_step` return;
    `image` and `file`, if there is one, from the batch; `denormalise` and `class_names` from the data module.

    Args:
        count: How many images to draw.
        every_n_epochs: Also draw while training, after so many epochs; None: for the last validation alone.
        max_side: Pixels of the longer side to which larger images are shrunk.
        crop: Only the central square of so many pixels is shown of larger images; None: all.
    """

    picture = "overlays"
    masks = "masks"

    def __init__(
        self, count: int = 4, every_n_epochs: int | None = 10, max_side: int = 512, crop: int | None = None
    ) -> None:
        super().__init__(count, every_n_epochs, max_side=max_side, crop=crop)
        self.max_side = max_side
        self.crop = crop

    def rows(self, data: Any, ignore_index: int, outputs: Any, batch: Any, count: int) -> list[list[SegmentedImage]]:
        if batch["image"].ndim != 4:
            return []
        images = data.denormalise(batch["image"][:count])
        indices = outputs["index"].tolist()
        names = batch.get("file") or [f"#{index}" for index in indices]
        samples = zip(indices, names, images, outputs["mask"], outputs["prediction"], strict=False)
        return [[self._as_shown(*sample, ignore_index=ignore_index)] for sample in samples]

    def _as_shown(
        self, index: int, name: str, image: Tensor, truth: Tensor, prediction: Tensor, ignore_index: int
    ) -> SegmentedImage:
        asked = truth != ignore_index
        right = (prediction == truth) & asked
        colours = image if len(image) == 3 else image[:1].expand(3, -1, -1)
        return SegmentedImage(
            index=index,
            name=name,
            image=self._fitted((255 * colours.permute(1, 2, 0)).round()),
            truth=self._fitted(truth),
            prediction=self._fitted(prediction),
            accuracy=float(right.sum() / asked.sum()),
        )

    def _fitted(self, values: Tensor) -> np.ndarray:
        """An image (H, W, 3), or a mask (H, W), as it is shown: cropped, and resized; uint8."""
        pixels = values.byte().cpu().numpy()
        if self.crop is not None:
            top, left = (max(side - self.crop, 0) // 2 for side in pixels.shape[:2])
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        scale = shown_scale(max(pixels.shape[:2]), self.max_side)
        height, width = (max(round(scale * side), 1) for side in pixels.shape[:2])
        return resampled(pixels, height, width)
