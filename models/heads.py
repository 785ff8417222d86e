"""What stands on a backbone's features, by the task: a classifier of images (its own), or `SegmentationHead`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs import Variant

Head = Literal["classify", "segment"]
"""What a backbone ends in: one vector of logits an image, or one a pixel."""

DEGRIDDING_WIDTH = 512


class SegmentationHead(nn.Module):
    """A 1x1 convolution to classes, then bilinear upsampling (between pixel centres, `align_corners=False`),
    which is done in float32 at least, whatever the features are.

    Maps features (N, in_features, h, w) and the image's size (H, W) to logits (N, num_classes, H, W).

    Args:
        conv: The variant that made the features, where they are what only its layers take (octave pairs).
    """

    def __init__(self, in_features: int, num_classes: int, conv: Variant | None = None) -> None:
        super().__init__()
        self.conv = (
            nn.Conv2d(in_features, num_classes, 1)
            if conv is None
            else conv.conv(in_features, num_classes, 1, position="exit")
        )

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        logits = self.conv(features)
        # bfloat16 has so few values that between steep logits two classes would tie in about one pixel of a hundred.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


class DegriddingHead(SegmentationHead):
    """Two 3x3 convolutions of dilation 2 and 1, each with batch norm and ReLU, in front of a `SegmentationHead`.

    They smooth the grid that dilated layers leave in their output (Yu, Koltun and Funkhouser, CVPR 2017; section 5.3
    of the SUNet paper, whose width of 512 is kept). Shapes as in `SegmentationHead`.
    """

    def __init__(self, in_features: int, num_classes: int, conv: Variant) -> None:
        super().__init__(DEGRIDDING_WIDTH, num_classes, conv)
        self.conv1 = conv.conv(in_features, DEGRIDDING_WIDTH, 3, padding=2, dilation=2)
        self.norm1 = conv.norm(DEGRIDDING_WIDTH)
        self.conv2 = conv.conv(DEGRIDDING_WIDTH, DEGRIDDING_WIDTH, 3, padding=1)
        self.norm2 = conv.norm(DEGRIDDING_WIDTH)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        features = F.relu(self.norm1(self.conv1(features)))
        features = F.relu(self.norm2(self.conv2(features)))
        return super().forward(features, size)
