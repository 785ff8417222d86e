"""`vgg16`: VGG-16 (Simonyan and Zisserman, 2015), configuration D, with torchvision's names for its layers."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from models.convs import Position, Variant
from models.convs.variant import is_plain_conv
from models.heads import Head, SegmentationHead
from models.names import check_name
from models.registry import register_model

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; max pooling behind each
SMALLEST_IMAGE = 2 ** len(STAGES)  # pixels a side
PUBLISHED_HEAD = {"head_width": 4096, "pool_size": 7}
PUBLISHED_CLASSES = 1000


@register_model("vgg16")
class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, each halved by max pooling; two hidden dense layers and an output.

    Maps images (N, in_channels, H, W), 32 pixels or more a side, to logits: (N, num_classes) where `head` is
    "classify", (N, num_classes, H, W) where it is "segment". State dicts interchange with those of
    `torchvision.models.vgg16` and `vgg16_bn` (`features.N`, `classifier.N`), so that their files load. Weights are
    drawn as there: He's for the fan-out of convolutions, N(0, 0.01) in dense layers, zeros for biases; the layers of
    a variant draw their own.

    Args:
        head: "classify", or "segment", a `SegmentationHead` in place of pooling and dense layers.
        batch_norm: Batch norm behind every convolution, `vgg16_bn` of torchvision.
        pretrained: Start from torchvision's weights for ImageNet (in_channels 3), downloaded and checked. Layers that
            are not the published ones keep their own initialisation: those of a variant, convolutions of another kernel
            size, the last dense layer where there are not 1000 classes. Of another head (`head_width`, `pool_size`,
            "segment") nothing is loaded, of `features` everything is.
        dropout: Behind both hidden dense layers.
        head_width: Width of the hidden dense layers. With (512, pool_size 1) the network has 15.2 million parameters
            for 10 classes in place of 134.3.
        pool_size: Side of the maps that the dense layers take, by adaptive average pooling.

    Raises:
        ValueError: An unknown head, sizes below 1, pretrained weights for another number of channels; in the forward
            pass an image smaller than 32 pixels.
        OSError: The pretrained weights cannot be had; the message says what to do.
    """

    def __init__(
        self,
        *,
        conv: Variant,
        in_channels: int = 3,
        num_classes: int = PUBLISHED_CLASSES,
        head: Head = "classify",
        batch_norm: bool = False,
        pretrained: bool = False,
        dropout: float = 0.5,
        head_width: int = PUBLISHED_HEAD["head_width"],
        pool_size: int = PUBLISHED_HEAD["pool_size"],
    ) -> None:
        super().__init__()
        check_name("head", head, get_args(Head))
        if head_width < 1 or pool_size < 1:
            raise ValueError(f"head_width ({head_width}) and pool_size ({pool_size}) must be 1 or more")
        if pretrained and in_channels != 3:
            raise ValueError(f"pretrained weights are for 3 channels, not {in_channels}: set pretrained to false")
        self.head = head
        self.features = _features(conv, in_channels, batch_norm)
        self.num_features = STAGES[-1][0]
        if head == "segment":
            self.segmentation_head = SegmentationHead(self.num_features, num_classes)
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(pool_size)
            self.classifier = nn.Sequential(
                nn.Linear(self.num_features * pool_size**2, head_width),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(head_width, head_width),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(head_width, num_classes),
            )
        self.reset_parameters()
        if pretrained:
            has_published_head = {"head_width": head_width, "pool_size": pool_size} == PUBLISHED_HEAD
            published = self._published_names(has_published_head and head == "classify", num_classes)
            weights = download_weights(batch_norm)
            # Files of before torch 0.4.1 lack a batch norm's count of batches.
            self.load_state_dict({name: weights[name] for name in published if name in weights}, strict=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights of plain convolutions and dense layers anew."""
        for layer in (*self.features, *getattr(self, "classifier", ())):
            if is_plain_conv(layer):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
            else:
                continue
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, 512, H / 32, W / 32), rounded down."""
        height, width = x.shape[-2:]
        if min(height, width) < SMALLEST_IMAGE:
            raise ValueError(
                f"vgg16 halves an image {len(STAGES)} times and needs {SMALLEST_IMAGE} pixels a side, got "
                f"{height}x{width}: enlarge the images, or choose a network for small ones"
            )
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        features = self.forward_features(x)
        if self.head == "segment":
            return self.segmentation_head(features, x.shape[-2:])
        return self.classifier(self.avgpool(features).flatten(1))

    def _published_names(self, has_published_head: bool, num_classes: int) -> list[str]:
        """What of the state dict the published weights are for."""
        published = [layer for layer in self.features if _is_published(layer)]
        if has_published_head:
            published += list(self.classifier)
            if num_classes != PUBLISHED_CLASSES:
                del published[-1]
        return [
            f"{name}.{key}" for name, layer in self.named_modules() if layer in published for key in layer.state_dict()
        ]


def download_weights(batch_norm: bool) -> dict[str, Tensor]:
    """torchvision's weights of VGG-16 for ImageNet, from torch's hub folder or, checked by their hash, the network.

    Raises:
        OSError: They are neither here nor there.
    """
    from torchvision.models import VGG16_BN_Weights, VGG16_Weights  # slow to import, and only wanted here

    url = (VGG16_BN_Weights if batch_norm else VGG16_Weights).IMAGENET1K_V1.url
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # a wrong hash is a RuntimeError
        name, folder = url.rpartition("/")[2], f"{torch.hub.get_dir()}/checkpoints"
        raise OSError(
            f"the pretrained weights of vgg16 could not be had from {url} ({error}). Fetch {name} elsewhere and put it "
            f"into {folder}, or name it in init_from in place of pretrained; or set pretrained to false"
        ) from error


def _features(conv: Variant, in_channels: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    count = sum(depth for _, depth in STAGES)
    made = 0
    for width, depth in STAGES:
        for _ in range(depth):
            made += 1
            position: Position = "entry" if made == 1 else "exit" if made == count else "inner"
            layers.append(conv.conv(in_channels, width, 3, padding=1, position=position))
            if batch_norm:
                layers.append(conv.norm(width, position=position))
            layers.append(nn.ReLU(inplace=True))
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _is_published(layer: nn.Module) -> bool:
    return type(layer) is nn.BatchNorm2d or (is_plain_conv(layer) and layer.kernel_size == (3, 3))
