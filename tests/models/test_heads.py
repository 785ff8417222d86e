"""The heads of backbones: nothing changes for classification, and a map of logits for segmentation."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import create_model
from models.analysis import analyse
from models.convs import OctaveConv2d, list_convs
from models.heads import SegmentationHead

TINY = "timm/test_resnet"  # timm's network for tests, 0.4 million parameters

every_variant = pytest.mark.parametrize("conv", list_convs())


def assert_trains(network: nn.Module, logits: Tensor) -> None:
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_the_head_is_linear_in_each_pixel_and_bilinear_between_them():
    head = SegmentationHead(5, 3)
    features = torch.randn(2, 5, 4, 6)
    linear = torch.einsum("nchw,kc->nkhw", features, head.conv.weight[:, :, 0, 0]) + head.conv.bias[:, None, None]
    torch.testing.assert_close(head(features, (4, 6)), linear)
    logits = head(features, torch.Size((8, 18)))
    assert logits.shape == (2, 3, 8, 18)
    torch.testing.assert_close(logits[:, :, 0, 0], linear[:, :, 0, 0])  # the border repeats
    torch.testing.assert_close(logits[:, :, 0, 4], linear[:, :, 0, 1])  # a third of a pixel: centres fall together
    between = linear[:, :, 1:3, 1].mul(torch.tensor([0.75, 0.25])).sum(-1)
    torch.testing.assert_close(logits[:, :, 3, 4], between)


def test_logits_between_pixels_are_not_rounded_to_bfloat16():
    """Steep steps leave few bfloat16 values between two pixels, so that many would have two best classes."""
    head = SegmentationHead(8, 21)
    features = 40 * torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        best_two = head(features, (96, 96)).topk(2, dim=1).values
    assert best_two.dtype == torch.float32
    assert (best_two[:, 0] == best_two[:, 1]).float().mean() < 1e-3
    assert head.double()(features.double(), (12, 12)).dtype == torch.float64


# fashion_cnn.


def test_classification_is_what_it_was():
    torch.manual_seed(0)
    network = create_model("fashion_cnn", in_channels=1)
    torch.manual_seed(0)
    chosen = create_model("fashion_cnn", in_channels=1, head="classify")
    layers = [f"conv{i}.{kind}" for i in (1, 2, 3, 4) for kind in ("weight", "bias")]
    assert list(network.state_dict()) == list(chosen.state_dict()) == [*layers, "fc.weight", "fc.bias"]
    assert all(torch.equal(value, chosen.state_dict()[name]) for name, value in network.state_dict().items())
    x = torch.randn(2, 1, 28, 28)
    pooled = network.forward_features(x).mean((2, 3))
    torch.testing.assert_close(chosen(x), F.linear(pooled, network.fc.weight, network.fc.bias))


@every_variant
@pytest.mark.parametrize("size", [(28, 28), (13, 9)])
def test_fashion_cnn_segments(conv, size):
    network = create_model("fashion_cnn", conv=conv, in_channels=1, num_classes=3, head="segment")
    x = torch.randn(2, 1, *size)
    logits = network(x)
    assert logits.shape == (2, 3, *size)
    torch.testing.assert_close(logits, network.segmentation_head(network.forward_features(x), size))
    assert_trains(network, logits)
    classifier = create_model("fashion_cnn", conv=conv, in_channels=1)
    assert {*network.state_dict()} ^ {*classifier.state_dict()} == {
        "fc.weight",
        "fc.bias",
        "segmentation_head.conv.weight",
        "segmentation_head.conv.bias",
    }


@pytest.mark.parametrize(("patterns", "exit_layer"), [("*", "segmentation_head.conv"), ("conv[12]", "conv2")])
def test_octave_layers_by_pattern_end_in_front_of_the_logits(patterns, exit_layer):
    network = create_model("fashion_cnn", conv="octave", conv_layers=patterns, in_channels=1, head="segment")
    octaves = [name for name, module in network.named_modules() if isinstance(module, OctaveConv2d)]
    assert octaves[-1] == exit_layer
    logits = network(torch.randn(2, 1, 17, 20))
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 10, 17, 20)
    assert_trains(network, logits)


# timm.


@every_variant
def test_timm_networks_segment(conv):
    network = create_model(TINY, conv=conv, num_classes=3, head="segment")
    x = torch.randn(2, 3, 37, 50)
    logits = network(x)
    assert logits.shape == (2, 3, 37, 50)
    assert network.forward_features(x).shape == (2, network.num_features, 2, 2)
    assert_trains(network, logits)


def test_timm_networks_keep_the_names_of_their_layers():
    segmenter = create_model(TINY, num_classes=3, head="segment")
    classifier = create_model(TINY, num_classes=3)
    head = {"segmentation_head.conv.weight", "segmentation_head.conv.bias"}
    assert {*segmenter.state_dict()} ^ {*classifier.state_dict()} == head | {"fc.weight", "fc.bias"}
    assert analyse(segmenter, (1, 3, 64, 64)).output_stride == 1
    by_pattern = create_model(TINY, conv="rfnn", conv_layers="layer1.*", head="segment")
    assert type(by_pattern.layer1[0].conv2).__name__ == "RFNNConv2d"
    assert type(by_pattern.segmentation_head.conv) is nn.Conv2d


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", 0),
        ("vgg11_bn", 119_545_856),  # the two dense layers of 4,096
        ("mobilenetv3_small_100", 590_848),  # the convolution behind the pooling
        ("convnext_atto", 640),  # a norm behind the pooling
        ("efficientnet_b0", 0),
    ],
)
def test_layers_behind_the_features_give_way(name, head):
    """A network must not carry parameters that get no gradient; `head` counts those besides the classifier."""
    with torch.device("meta"):
        network = create_model(f"timm/{name}", num_classes=3, head="segment")
        pooled = timm.create_model(name, num_classes=0)
        logits = network(torch.randn(2, 3, 65, 70))
        assert logits.shape == (2, 3, 65, 70)
        assert_trains(network, logits)
    parameters = [sum(p.numel() for p in module.parameters()) for module in (pooled, network)]
    assert parameters[0] - head == parameters[1] - 3 * (network.num_features + 1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("test_vit", r"\(2, 101, 64\)"), ("swin_tiny_patch4_window7_224", r"\(2, 7, 7, 768\)")],
)
def test_networks_without_feature_maps_are_refused(name, shape):
    with torch.device("meta"), pytest.raises(ValueError, match=f"timm model {name!r} gives features {shape}: choose"):
        create_model(f"timm/{name}", head="segment")


@pytest.mark.parametrize("conv", ["standard", "octave"])
def test_segmenting_timm_networks_copy_and_pickle(conv):
    network = create_model(TINY, conv=conv, num_classes=3, head="segment").eval()
    x = torch.randn(1, 3, 33, 40)
    expected = network(x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), expected)
        nn.init.zeros_(twin.segmentation_head.conv.weight)
        assert not torch.equal(twin(x), expected)
    assert torch.equal(network(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).isfinite().all()


def test_segmenting_timm_networks_compile():
    network = create_model(TINY, num_classes=3, head="segment").eval()
    x = torch.randn(1, 3, 33, 40)
    expected = network(x)
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(network(x), expected)
