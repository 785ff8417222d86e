"""create_model: names, options, and variants put into networks by pattern."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import create_model, list_models, register_model
from models.convs import GaussianDerivativeConv2d, RFNNConv2d, list_convs
from models.registry import network_options

BACKBONES = [name for name in list_models() if "head" in network_options(name)]
GAUSSIAN = {"name": "gaussian", "num_bases": 2, "order": 1}


def test_listing_is_sorted_and_names_build():
    assert list_models() == sorted(list_models())
    assert "fashion_cnn" in list_models()


LARGE = {"vgg16", "sunet_64", "sunet_128", "sunet_7_128"}  # they have tests of their own


@pytest.mark.parametrize("conv", list_convs())
@pytest.mark.parametrize("name", sorted({*BACKBONES} - LARGE))
def test_every_classifier_takes_every_variant(name, conv):
    network = create_model(name, conv=conv, in_channels=1, num_classes=10)
    logits = network(torch.randn(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
    assert network.forward_features(torch.randn(2, 1, 28, 28)).shape[1] == network.num_features


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fashion_cn"}, "Did you mean 'fashion_cnn'"),
        ({"name": "fashion_cnn", "widhts": [1, 2, 3, 4]}, "Did you mean 'widths'"),
        ({"name": "fashion_cnn", "conv": "gausian"}, "Did you mean 'gaussian'"),
        ({"name": "fashion_cnn", "conv": {"order": 2}}, "needs the key 'name'"),
        ({"name": "timm/resnet18x"}, "Did you mean 'resnet18"),
        ({"name": "timm/resnet18", "widths": [1]}, "does not take these options.*model_options: null"),
        ({"name": "fashion_cnn", "kernel_size": 4}, "kernel_size odd"),
        ({"name": "fashion_cnn", "downsample": "max"}, "downsample must be 'pool' or 'stride'"),
        ({"name": "fashion_cnn", "head": "segmnt"}, "Did you mean 'segment'"),
        ({"name": "timm/resnet18", "head": "classfy"}, "Did you mean 'classify'"),
        ({"name": "unet", "head": "segment"}, "unknown option of model 'unet' 'head'"),
    ],
)
def test_wrong_names_offer_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


def test_backbones_say_that_they_take_a_head():
    assert "fashion_cnn" in BACKBONES
    assert "head" in network_options("timm/resnet18")
    assert {"unet", "dcgan_generator", "dcgan_discriminator"}.isdisjoint(BACKBONES)


def test_none_options_are_left_out():
    assert (
        create_model("fashion_cnn", in_channels=1, widths=None).num_features == create_model("fashion_cnn").num_features
    )


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="registered already"):
        register_model("fashion_cnn")(nn.Identity)


def kinds(network: nn.Module, kind: type) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


def test_conv_layers_choose_by_pattern():
    network = create_model("fashion_cnn", conv=GAUSSIAN, conv_layers="conv[13]", in_channels=1)
    assert kinds(network, GaussianDerivativeConv2d) == ["conv1", "conv3"]
    assert network(torch.randn(1, 1, 28, 28)).isfinite().all()


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [("conv1", ["conv1"]), (["conv1", "layer1.0.*"], ["conv1", "layer1.0.conv1", "layer1.0.conv2"])],
)
def test_timm_networks_take_variants_by_pattern(patterns, expected):
    network = create_model("timm/resnet18", conv=GAUSSIAN, conv_layers=patterns, num_classes=5)
    assert kinds(network, GaussianDerivativeConv2d) == expected
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_timm_networks_take_variants_everywhere_but_in_pointwise_layers():
    network = create_model("timm/resnet18", conv=GAUSSIAN, in_channels=1, num_classes=5)
    assert len(kinds(network, GaussianDerivativeConv2d)) == 17
    assert all(network.get_submodule(name).kernel_size == (1, 1) for name in kinds(network, nn.Conv2d))
    assert network(torch.randn(1, 1, 64, 64)).shape == (1, 5)


def test_the_first_layer_is_the_entry():
    network = create_model("timm/resnet18", conv="rfnn")
    scales = {name: network.get_submodule(name).sigma.unique().item() for name in kinds(network, RFNNConv2d)}
    assert scales.pop("conv1") == pytest.approx(1.5)
    assert list(scales.values()) == pytest.approx([1.0] * 16)


def test_the_standard_variant_leaves_layers_as_they_are():
    network = create_model("timm/resnet18", conv={"name": "standard", "kernel_size": 5}, conv_layers="layer1.*")
    assert network.layer1[0].conv1.kernel_size == (5, 5)
    assert network.conv1.kernel_size == (7, 7)


def test_a_pattern_without_a_match_lists_the_layers():
    with pytest.raises(ValueError, match=r"match no convolution of this network\. Its convolutions: conv1, layer1"):
        create_model("timm/resnet18", conv=GAUSSIAN, conv_layers="convolution1")


def test_a_layer_that_cannot_be_replaced_is_named():
    with pytest.raises(ValueError, match=r"layer 'conv1': num_bases \(7\) must divide out_channels \(64\)"):
        create_model("timm/resnet18", conv={"name": "gaussian", "num_bases": 7})
