"""Octave convolutions in networks that were built for tensors: timm's by name, and any by pattern."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from lightning_modules.commands.describe import layer_type
from models import create_model
from models.analysis import analyse
from models.convs import OctaveConv2d, OctavePair, build_variant
from models.convs.octave import OctaveNorm, get_betas, set_betas
from models.replace import replace_convs


def names_of(network: nn.Module, kind: type) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is kind]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def assert_trains(network: nn.Module, x: torch.Tensor) -> None:
    network(x).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


# Convolutions that stay plain: gates of squeeze-and-excitation, convolutions behind the global pooling.
FAMILIES = {
    "resnet18": 0,
    "resnext50_32x4d": 0,
    "seresnet18": 16,
    "mobilenetv3_small_100": 19,
    "efficientnet_b0": 32,
    "densenet121": 0,
    "vgg11_bn": 2,
}


@pytest.mark.parametrize(("name", "plain"), FAMILIES.items())
def test_families_of_timm(name, plain):
    with torch.device("meta"):
        network = create_model(f"timm/{name}", conv="octave", num_classes=3)
        reference = timm.create_model(name, num_classes=3)
        assert_trains(network, torch.randn(2, 3, 33, 47))
    assert count(network) == count(reference)
    assert len(names_of(network, nn.Conv2d)) == plain
    octaves = names_of(network, OctaveConv2d)
    assert {*octaves, *names_of(network, nn.Conv2d)} == {*names_of(reference, nn.Conv2d)}
    inner = [network.get_submodule(name) for name in octaves[1:]]
    assert all(layer.alpha_in and layer.alpha_out for layer in inner)


def test_resnet_keeps_its_batch_norms_values():
    network = create_model("timm/resnet18", conv="octave")
    assert len(names_of(network, OctaveNorm)) == 20
    assert network.layer1[0].bn2.high.weight.sum() == 0  # timm starts residual branches at zero
    assert network.bn1.low.weight.sum() == 32
    assert get_betas(network) == (1, 1)
    set_betas(network, 0.7, 0.3)
    assert network(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("alpha", [0, 0.125, 1])
def test_other_alphas(alpha):
    network = create_model("timm/mobilenetv3_small_050", conv={"name": "octave", "alpha": alpha}, num_classes=3)
    assert count(network) == count(timm.create_model("mobilenetv3_small_050", num_classes=3))
    assert bool(names_of(network, OctaveConv2d)) == (alpha > 0)
    assert_trains(network, torch.randn(2, 3, 40, 40))


def test_a_network_with_octaves_copies_pickles_and_compiles():
    network = replace_convs(Borders(), build_variant("octave"), ["first", "last"])
    x = torch.randn(1, 3, 7, 9)
    expected = network(x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), expected)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    "patterns", ["conv1", "layer2.*", "layer1.0.conv1", "layer1.0.conv2", ["layer1.1.*", "layer4.1.conv2"]]
)
def test_borders_of_a_pattern(patterns):
    network = create_model("timm/resnet18", conv="octave", conv_layers=patterns, num_classes=3)
    assert count(network) == count(timm.create_model("resnet18", num_classes=3))
    assert_trains(network, torch.randn(2, 3, 37, 32))
    keys = timm.create_model("resnet18", num_classes=3).state_dict().keys()
    assert {key for key in network.state_dict() if "conv" in key} == {key for key in keys if "conv" in key}


def test_a_pattern_in_a_dense_network_gives_back_tensors():
    pattern = "features.denseblock2.denselayer[12].conv2"
    network = create_model("timm/densenet121", conv="octave", conv_layers=pattern, num_classes=3)
    assert len(names_of(network, OctaveConv2d)) == 2
    assert_trains(network, torch.randn(2, 3, 32, 32))


class Borders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.middle = nn.Conv2d(4, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.middle(self.first(x))))


def test_tensors_become_pairs_and_pairs_tensors():
    network = replace_convs(Borders(), build_variant("octave"), "middle")
    x = torch.randn(2, 3, 7, 8)
    assert type(network.last) is nn.Conv2d
    # Called by the network, layers convert what they are given; their own forward takes pairs.
    taken = OctavePair.from_tensor(network.first(x), 2)
    given = torch.relu(network.middle.forward(taken))
    torch.testing.assert_close(network(x), network.last.forward(given.to_tensor()))
    assert (network.middle.alpha_in, network.middle.alpha_out) == (0.5, 0.5)


def test_where_a_network_would_return_a_pair_its_last_layer_is_an_exit():
    network = replace_convs(Borders(), build_variant({"name": "octave", "kernel_size": 5}))
    assert [layer.alpha_in for layer in network.children()] == [0, 0.5, 0.5]
    assert [layer.alpha_out for layer in network.children()] == [0.5, 0.5, 0]
    assert [layer.kernel_size[0] for layer in network.children()] == [1, 5, 5]
    assert network(torch.randn(2, 3, 7, 8)).shape == (2, 5, 7, 8)


def test_modes_and_random_state_stay():
    network = Borders()
    network.middle.eval()
    torch.manual_seed(0)
    replace_convs(network, build_variant("octave"), "last")
    assert [layer.training for layer in network.children()] == [True, False, True]
    assert not network.first._forward_pre_hooks
    assert not network.first._forward_hooks


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_atto", r"layer 'stem.1' \(LayerNorm2d\): permute has no meaning"),
        ("res2net50_26w_4s", r"layer 'layer1.0' \(Bottle2neck\): split has no meaning"),
        ("inception_v3", r"layer 'Conv2d_1a_3x3.conv' \(Conv2d\): .*here 1 x 1; got padding.*conv_layers"),
        ("ghostnet_050", r"layer 'blocks.0.0.ghost1' \(GhostModule\): .*cannot be sliced"),
    ],
)
def test_families_that_cannot_say_which_layer(name, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(f"timm/{name}", conv="octave")


def test_groups_that_do_not_fit_name_the_layer():
    with pytest.raises(ValueError, match=r"layer 'layer1.0.conv2' \(Conv2d\): groups \(32\) must divide"):
        create_model("timm/resnext50_32x4d", conv={"name": "octave", "alpha": 0.4})


@pytest.mark.parametrize("name", ["dcgan_generator", "dcgan_discriminator"])
@pytest.mark.parametrize("patterns", ["*", "convs.1"])
def test_networks_of_the_suite_by_pattern(name, patterns):
    network = create_model(name, conv="octave", conv_layers=patterns, image_size=32, base_width=4)
    by_name = create_model(name, conv="octave", image_size=32, base_width=4)
    assert count(network) == count(by_name)
    assert network(torch.randn(2, 100) if name == "dcgan_generator" else torch.randn(2, 3, 32, 32)).isfinite().all()
    if patterns == "*":
        assert str(network) == str(by_name)


# What analyse and describe say of them.


def test_analysis_of_an_octave_network():
    octave, plain = (analyse(create_model("timm/resnet18", conv=conv)) for conv in ("octave", "standard"))
    assert octave.parameters == plain.parameters
    assert 2 < plain.macs / octave.macs < 2.29
    assert octave.output_stride == 32
    assert octave.receptive_field > plain.receptive_field
    assert octave.ended_by == "mean"
    assert sum(layer.macs for layer in octave.layers) == octave.macs
    layer = next(layer for layer in octave.layers if layer.name == "layer1.0.conv1")
    assert layer.output_shapes == ((1, 32, 56, 56), (1, 32, 28, 28))
    assert layer.macs == (32 * 32 * 9) * (56**2 + 3 * 28**2)
    assert layer_type(layer.module) == "OctaveConv2d(kernel_size=3, alpha_in=0.5, alpha_out=0.5)"


@pytest.mark.parametrize(("alpha", "stride"), [(0.5, 1), (1, 2)])
def test_receptive_fields_by_hand(alpha, stride):
    variant = build_variant({"name": "octave", "alpha": alpha})
    network = nn.Sequential(
        variant.conv(3, 4, 3, padding=1, position="entry"), variant.conv(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)
    )
    # A low value sees 3 low ones after the first convolution and 5 after the second, each of two pixels.
    analysis = analyse(network, (1, 3, 33, 33))
    assert analysis.receptive_field == (10, 10)
    assert analysis.output_stride == stride


def test_analysis_of_a_network_of_latents():
    network = create_model("dcgan_generator", conv="octave", image_size=32, base_width=4)
    analysis = analyse(network, (2, 100))
    assert analysis.parameters == count(network)
    assert (analysis.receptive_field, analysis.output_stride) == (None, None)
    assert analysis.macs == sum(layer.macs for layer in analysis.layers) > 0
