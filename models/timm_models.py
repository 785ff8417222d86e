"""timm's networks under the names `timm/<name>`."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from torch import Tensor, nn

from models.heads import Head, SegmentationHead
from models.names import check_name
from models.trial import example_input, try_out

TIMM_PREFIX = "timm/"


def create_timm_model(
    name: str, *, in_channels: int = 3, num_classes: int = 1000, head: Head = "classify", **options: Any
) -> nn.Module:
    """Build timm's network `name`, with random weights unless `pretrained=True` is among the options.

    With the head "segment" the layers that do not belong to `forward_features` give way to a `SegmentationHead`, named
    `segmentation_head`; all others keep their names, so that patterns and weights fit both heads.

    Raises:
        UnknownNameError: timm has no such network.
        ValueError: The network does not take these options, or gives no feature maps (N, C, H, W) to segment by.
    """
    import timm  # slow to import, and only wanted here

    check_name("head", head, get_args(Head))
    architecture = name.split(".")[0]  # timm appends the tag of the weights after a dot
    check_name("timm model", architecture, timm.list_models())
    classes = num_classes if head == "classify" else 0
    try:
        network = timm.create_model(name, in_chans=in_channels, num_classes=classes, **options)
    except TypeError as error:
        raise ValueError(
            f"timm model {name!r} does not take these options: {error}. "
            "`model_options: null` drops those of another network."
        ) from error
    return network if head == "classify" else _with_segmentation_head(network, name, num_classes)


def _with_segmentation_head(network: Any, name: str, num_classes: int) -> nn.Module:
    extractor = _FeatureExtractor(network)
    shape = tuple(try_out(extractor, example_input(network)).shape)
    if len(shape) != 4 or shape[1] != network.num_features:
        raise ValueError(
            f"head 'segment' needs feature maps (N, {network.num_features}, h, w), but timm model {name!r} gives "
            f"features {shape}: choose a convolutional network"
        )
    for child in extractor.unused:
        setattr(network, child, nn.Identity())
    network.segmentation_head = SegmentationHead(network.num_features, num_classes)
    network.forward = partial(_segment, network)  # a network around this one would change the names of all layers
    return network


def _segment(network: Any, images: Tensor) -> Tensor:
    return network.segmentation_head(network.forward_features(images), images.shape[2:])


class _FeatureExtractor(nn.Module):
    """`forward_features` of a network.

    Attributes:
        unused: The network's children that have parameters and did not run, nor anything inside them: its classifier.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.unused: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        ran: set[nn.Module] = set()
        handles = [
            module.register_forward_pre_hook(lambda module, _: ran.add(module)) for module in self.network.modules()
        ]
        features = self.network.forward_features(images)
        for handle in handles:
            handle.remove()
        self.unused = [
            name
            for name, child in self.network.named_children()
            if any(True for _ in child.parameters()) and ran.isdisjoint(child.modules())
        ]
        return features
