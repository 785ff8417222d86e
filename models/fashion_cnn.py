"""`fashion_cnn`: the four-layer network of Table 1 of the Gaussian derivative paper."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs import Variant
from models.heads import Head, SegmentationHead
from models.names import check_name
from models.registry import register_model


@register_model("fashion_cnn")
class FashionCNN(nn.Module):
    """Four convolutions, global average pooling, one dense layer.

    Maps images (N, in_channels, H, W), 8 pixels or more a side, to logits (N, num_classes); with the head "segment" to
    (N, num_classes, H, W). Maps are halved at each convolution but the last. The paper pins the batch norms' gamma,
    mean and variance to 1, 0 and 1, so that beta alone is left: `norm="bias"` writes that as what it is, the bias of
    the convolution. `norm="batch"` is ordinary batch norm. The paper gives neither widths nor where and how maps
    shrink: docs/gaussian.md shows both ways.

    Args:
        widths: Output channels of the four convolutions.
        kernel_size: Side of the filters, odd; a `conv` spec may say otherwise for its own layers.
        norm: "bias" or "batch".
        downsample: "pool", by max pooling after the convolution, or "stride", by the convolution's stride of 2.
        head: "classify", or "segment", a `SegmentationHead` in place of pooling and dense layer.
    """

    def __init__(
        self,
        *,
        conv: Variant,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128, 128),
        kernel_size: int = 3,
        norm: str = "bias",
        downsample: str = "pool",
        head: Head = "classify",
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"widths must name four layers, got {list(widths)}")
        if min(widths) < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"widths must be positive and kernel_size odd, got {list(widths)} and {kernel_size}")
        if norm not in ("bias", "batch"):
            raise ValueError(f"norm must be 'bias' or 'batch', got {norm!r}")
        if downsample not in ("pool", "stride"):
            raise ValueError(f"downsample must be 'pool' or 'stride', got {downsample!r}")
        check_name("head", head, get_args(Head))
        first, second, third, fourth = widths
        layer = partial(conv.conv, kernel_size=kernel_size, padding=kernel_size // 2, bias=norm == "bias")
        norm_layer = partial(conv.norm, kind="none" if norm == "bias" else norm)
        stride = 2 if downsample == "stride" else 1
        self.pool = nn.MaxPool2d(2) if downsample == "pool" else nn.Identity()
        self.conv1 = layer(in_channels, first, stride=stride, position="entry")
        self.norm1 = norm_layer(first, position="entry")
        self.conv2 = layer(first, second, stride=stride)
        self.norm2 = norm_layer(second)
        self.conv3 = layer(second, third, stride=stride)
        self.norm3 = norm_layer(third)
        self.conv4 = layer(third, fourth, position="exit")
        self.norm4 = norm_layer(fourth, position="exit")
        self.num_features = widths[-1]
        if head == "classify":
            self.fc = nn.Linear(self.num_features, num_classes)
        else:
            self.segmentation_head = SegmentationHead(self.num_features, num_classes)
        self.head = head
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """He initialisation and zero biases for free-form filters, as the structured ones start."""
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, widths[3], H / 8, W / 8), rounded down by pooling and up by strides."""
        # Max pooling commutes with the rectifier, which then has a quarter of the values to go through.
        x = F.relu(self.pool(self.norm1(self.conv1(x))))
        x = F.relu(self.pool(self.norm2(self.conv2(x))))
        x = F.relu(self.pool(self.norm3(self.conv3(x))))
        return F.relu(self.norm4(self.conv4(x)))

    def forward(self, x: Tensor) -> Tensor:
        features = self.forward_features(x)
        if self.head == "segment":
            return self.segmentation_head(features, x.shape[2:])
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))
