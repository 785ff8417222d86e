"""What stands on a backbone's features, by the task: a classifier of images (its own), or `SegmentationHead`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Head = Literal["classify", "segment"]
"""What a backbone ends in: one vector of logits an image, or one a pixel."""


class SegmentationHead(nn.Module):
    """A 1x1 convolution to classes, then bilinear upsampling (between pixel centres, `align_corners=False`).

    Maps features (N, in_features, h, w) and the image's size (H, W) to logits (N, num_classes, H, W).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_features, num_classes, 1)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(self.conv(features), size=tuple(size), mode="bilinear", align_corners=False)
