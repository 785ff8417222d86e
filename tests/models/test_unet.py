"""U-Net: published parameters, any image size, unpadded convolutions by an independent reading, every variant."""

from __future__ import annotations

import copy
import io
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import create_model
from models.analysis import analyse
from models.convs import GaussianDerivativeConv2d, OctaveConv2d, OctaveConvTranspose2d, list_convs
from models.patch_sizes import input_side
from tests.helpers.networks import trained

SMALL = {"in_channels": 3, "num_classes": 4, "widths": (4, 6, 8), "kernel_size": 3}
GAUSSIAN = {"name": "gaussian", "order": 3, "num_bases": 9, "separated": True, "trainable": ["sigma", "mu"]}

every_variant = pytest.mark.parametrize("conv", list_convs())


def unet(conv="standard", **options) -> nn.Module:
    return create_model("unet", conv, **{**SMALL, **options})


def images(height: int = 20, width: int = 16, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Sizes of the network.


@pytest.mark.parametrize("conv", ["standard", "octave", {"name": "octave", "alpha": 0.25}])
@pytest.mark.parametrize(("in_channels", "parameters"), [(1, 97_202), (3, 97_652)])
def test_the_classical_network_of_table_3(conv, in_channels, parameters):
    assert count(create_model("unet", conv, in_channels=in_channels)) == parameters


@pytest.mark.parametrize(
    ("conv", "one_channel", "three_channels"),
    [
        (GAUSSIAN, 24_707, 24_887),
        ({"name": "gaussian", "order": 2, "num_bases": 9, "separated": True}, 16_895, 17_003),
        ("depthwise_separable", 11_862, 11_930),
    ],
)
def test_networks_of_fewer_parameters(conv, one_channel, three_channels):
    """The Gaussian U-Net of Table 3 has 25,298."""
    networks = [create_model("unet", conv, in_channels=channels) for channels in (1, 3)]
    assert [count(network) for network in networks] == [one_channel, three_channels]
    assert max(one_channel, three_channels) < 25_298


def parameters_by_hand(
    in_channels: int, num_classes: int, widths: tuple[int, ...], kernel: int, convs: int, transposed: bool, norm: bool
) -> int:
    def level(before: int, width: int) -> int:
        weights = kernel**2 * width * (before + (convs - 1) * width)
        return weights + convs * width * (3 if norm else 1)

    encoder = sum(level(before, width) for before, width in pairwise((in_channels, *widths)))
    up = sum((4 if transposed else 1) * below * width + width for width, below in pairwise(widths))
    return encoder + up + sum(level(2 * width, width) for width in widths[:-1]) + num_classes * (widths[0] + 1)


@pytest.mark.parametrize("upsampling", ["transposed", "interpolate"])
@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
@pytest.mark.parametrize(
    ("widths", "kernel", "convs", "padding"),
    [((4, 6), 3, 1, "same"), ((4, 8, 16), 5, 2, "valid"), ((2, 2, 3, 4), 1, 2, "same")],
)
def test_options_count_their_parameters(widths, kernel, convs, padding, norm, upsampling):
    network = unet(
        widths=widths, kernel_size=kernel, convs_per_level=convs, padding=padding, norm=norm, upsampling=upsampling
    )
    by_hand = parameters_by_hand(3, 4, widths, kernel, convs, upsampling == "transposed", norm != "none")
    assert count(network) == by_hand


def test_positions_of_octave_layers():
    network = unet("octave")
    layers = [module for module in network.modules() if isinstance(module, OctaveConv2d | OctaveConvTranspose2d)]
    assert len(layers) == 13
    assert [layer.alpha_in for layer in layers] == [0] + [0.5] * 12
    assert [layer.alpha_out for layer in layers] == [0.5] * 12 + [0]
    assert network.decoder[0].convs[0].in_split == (4, 4)  # twice 4 channels


def test_cost_and_receptive_field():
    analysis = analyse(create_model("unet"), (1, 1, 128, 128))
    by_hand = (
        25 * (9 + 81) + 25 * (162 + 81) + 18  # the full resolution: encoder, decoder, classifier
        + (25 * (162 + 324) + 25 * (648 + 324)) / 4 + 18 * 9  # an upsampled pixel has one pixel's inputs
        + 25 * (648 + 1296) / 16 + 36 * 18 / 4
    )  # fmt: skip
    assert analysis.macs == by_hand * 128**2
    # Two convolutions of 5x5 a level see 8 pixels of the level more, on both ways; pooling and the grids add 4.
    assert analysis.receptive_field == (84, 84) == (8 * (1 + 2 + 4 + 2 + 1) + 4,) * 2
    assert (analysis.output_stride, analysis.ended_by) == (1, "output")
    assert sum(layer.macs for layer in analysis.layers) == analysis.macs


@pytest.mark.parametrize("options", [{"upsampling": "interpolate"}, {"padding": "mirror"}, {"norm": "instance"}])
@pytest.mark.parametrize("size", [(64, 64), (59, 50)])
def test_receptive_field_of_other_forms(options, size):
    network = unet(**options)
    assert analyse(network, (1, 3, *size)).receptive_field == (44, 44)


def test_receptive_field_of_a_valid_network():
    network = unet(padding="valid")
    analysis = analyse(network, (1, 3, input_side(network, 24), input_side(network, 8)))
    assert analysis.receptive_field == (44, 44)


def test_receptive_field_of_volumes():
    network = unet(dimensions=3, padding="valid", widths=(2, 2))
    assert analyse(network, (1, 3, *[input_side(network, 4)] * 3)).receptive_field == (18, 18, 18)


def test_receptive_field_of_pairs():
    assert analyse(unet("octave", norm="group"), (1, 3, 61, 50)).receptive_field == (88, 88)


# Image sizes.


@pytest.mark.parametrize("upsampling", ["transposed", "interpolate"])
@pytest.mark.parametrize("conv", ["standard", "octave", {"name": "octave", "alpha": 1}])
@pytest.mark.parametrize("size", [(16, 12), (13, 11), (7, 30), (2, 3), (1, 1)])
def test_any_size(conv, size, upsampling):
    network = unet(conv, upsampling=upsampling).eval()
    logits = network(images(*size))
    assert logits.shape == (2, 4, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("conv", ["standard", "octave"])
def test_odd_sizes_are_crops_of_repeated_borders(conv):
    network = trained(unet(conv))
    x = images(13, 18)
    repeated = torch.cat([x, *[x[:, :, -1:]] * 3], 2)
    repeated = torch.cat([repeated, *[repeated[..., -1:]] * 2], 3)
    assert repeated.shape[2:] == (16, 20)
    torch.testing.assert_close(network(x), network(repeated)[:, :, :13, :18])


@pytest.mark.parametrize(("conv", "margin"), [("standard", 22), ("octave", 44)])
def test_borders_matter_inside_the_receptive_field_only(conv, margin):
    network = trained(unet(conv)).double()
    x = images(112, 104).double()
    whole, part = network(x), network(x[:, :, :101, :97])
    inside = slice(margin, -margin - 3)
    torch.testing.assert_close(whole[:, :, :101, :97][:, :, inside, inside], part[:, :, inside, inside])


# Without padding.


@pytest.mark.parametrize("dimensions", [2, 3])
def test_valid_convolutions_by_an_independent_reading(dimensions):
    network = trained(unet(dimensions=dimensions, padding="valid", widths=(4, 6), norm="none"))
    x, w = torch.randn(2, 3, *(42, 38, 34)[:dimensions]), network.state_dict()
    convolve, transpose, pool = {
        2: (F.conv2d, F.conv_transpose2d, F.max_pool2d),
        3: (F.conv3d, F.conv_transpose3d, F.max_pool3d),
    }[dimensions]

    def level(x: Tensor, name: str) -> Tensor:
        for i in range(2):
            x = F.relu(convolve(x, w[f"{name}.convs.{i}.weight"], w[f"{name}.convs.{i}.bias"]))
        return x

    assert network.margin == 8
    skip = level(x, "encoder.0")
    below = level(pool(skip, 2), "encoder.1")
    up = transpose(below, w["upconvs.0.weight"], w["upconvs.0.bias"], stride=2)
    joined = torch.cat([skip[(..., *[slice(4, -4)] * dimensions)], up], 1)
    logits = convolve(level(joined, "decoder.0"), w["classifier.weight"], w["classifier.bias"])
    assert logits.shape[2:] == (26, 22, 18)[:dimensions]
    torch.testing.assert_close(network(x), logits)


def test_an_odd_mirrored_image_ends_with_its_repeated_last_row():
    mirror, valid = (unet(padding=padding, widths=(4, 6)) for padding in ("mirror", "valid"))
    valid.load_state_dict(trained(mirror).state_dict())
    x = images(26, 21)
    # 21 + 16 + 1 is even after two convolutions, as the pooling wants it.
    enlarged = F.pad(F.pad(x, [8, 8, 8, 8], mode="reflect"), [0, 1, 0, 0], mode="replicate")
    torch.testing.assert_close(mirror(x), valid.eval()(enlarged)[..., :26, :21])


@pytest.mark.parametrize("upsampling", ["transposed", "interpolate"])
@pytest.mark.parametrize("conv", ["standard", "depthwise_separable"])
def test_mirror_is_same_inside_the_margin(conv, upsampling):
    """The halved grids of both networks coincide: the margin is 40 pixels, and 36 of them are left at the pooling."""
    options = {"kernel_size": 5, "upsampling": upsampling}
    same, mirror = unet(conv, **options), unet(conv, padding="mirror", **options)
    trained(same).double()
    mirror.load_state_dict(same.state_dict())
    mirror.double().eval()
    x = images(96, 91).double()
    inside = slice(42, -45)
    torch.testing.assert_close(mirror(x)[:, :, inside, inside], same(x)[:, :, inside, inside])
    assert not torch.allclose(mirror(x), same(x))


@pytest.mark.parametrize(("padding", "side"), [("valid", 572), ("mirror", 388)])
def test_the_original_tile(padding, side):
    """Ronneberger, Fischer and Brox, Fig. 1: five levels of 3x3 convolutions map 572 pixels to 388."""
    with torch.device("meta"):
        network = unet(padding=padding, widths=(1,) * 5)
        sizes = []
        network.encoder[0].register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[2:]))
        network.encoder[4].register_forward_hook(lambda module, args, output: sizes.append(output.shape[2:]))
        assert network(images(side, side)).shape[2:] == (388, 388)
    assert network.margin + network.mirrored == (572 - 388) / 2
    assert sizes == [(572, 572), (28, 28)]


@pytest.mark.parametrize("options", [{"convs_per_level": 1}, {"kernel_size": 5}, {"widths": (2, 3, 4, 5)}])
def test_mirror_takes_every_size_above_its_margin(options):
    network = unet(padding="mirror", **options).eval()
    for extra in range(1, 10):
        size = network.mirrored + extra, network.mirrored + 10 - extra
        assert network(images(*size, count=1)).shape[2:] == size
    with pytest.raises(ValueError, match=f"images of {network.mirrored + 1} or more a side, got"):
        network(images(network.mirrored, 100))


# Training.


@every_variant
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_step_reaches_every_parameter(conv, memory_format):
    network = unet(conv).to(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images().to(memory_format=memory_format))
    assert logits.shape == (2, 4, 20, 16)
    assert memory_format is torch.contiguous_format or logits.is_contiguous(memory_format=memory_format)
    F.cross_entropy(logits.float(), torch.randint(4, (2, 20, 16))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.dim() == 1 or parameter.grad.abs().sum() > 0, name  # a norm takes back a bias before it


@pytest.mark.parametrize("conv", ["standard", "octave"])
@pytest.mark.parametrize(
    "options",
    [
        {"norm": "group"},
        {"norm": "instance", "upsampling": "interpolate"},
        {"norm": "none", "convs_per_level": 1},
        {"widths": (8, 12), "norm": "group"},
    ],
)
def test_other_forms_train(conv, options):
    network = unet(conv, **options)
    F.cross_entropy(network(images(21, 17)), torch.randint(4, (2, 21, 17))).backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.isfinite().all()] == []


def test_original_start():
    torch.manual_seed(0)
    network = create_model("unet", widths=(32, 64))
    assert network.encoder[1].convs[0].weight.std().item() == pytest.approx((2 / (25 * 32)) ** 0.5, rel=0.05)
    assert network.upconvs[0].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert all(
        parameter.abs().max() == 0 for name, parameter in network.named_parameters() if name.endswith("s.0.bias")
    )
    separable = create_model("unet", "depthwise_separable", widths=(32, 64)).encoder[1].convs[0]
    assert separable.depthwise.weight.std().item() == pytest.approx(1 / 5, rel=0.1)


@pytest.mark.parametrize("conv", ["standard", "octave"])
def test_compiles_without_graph_breaks(conv):
    torch.compiler.reset()
    network, x = trained(unet(conv, widths=(2, 4), convs_per_level=1)), images(13, 16)
    expected = copy.deepcopy(network)(x)
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(network(x), expected)


@every_variant
def test_weights_go_through_a_file(conv):
    network, other = trained(unet(conv)), unet(conv).eval()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = images(9, 14)
    torch.testing.assert_close(other(x), network(x), rtol=0, atol=0)


# Variants by pattern, and errors.


def test_layers_chosen_by_pattern():
    network = unet({"name": "gaussian", "num_bases": 2}, conv_layers=["encoder.0.*", "decoder.1.convs.1"])
    names = [name for name, module in network.named_modules() if isinstance(module, GaussianDerivativeConv2d)]
    assert names == ["encoder.0.convs.0", "encoder.0.convs.1", "decoder.1.convs.1"]
    assert network(images()).shape == (2, 4, 20, 16)


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("pattern", ["*", "encoder.*", "decoder.0.convs.0"])
def test_octave_layers_chosen_by_pattern(pattern, norm):
    network = unet("octave", conv_layers=pattern, norm=norm)
    assert count(network) == count(unet(norm=norm))
    network(images(17, 15)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [8]}, "widths must name two levels or more"),
        ({"widths": [8, 0]}, "all positive"),
        ({"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        ({"convs_per_level": 3}, "convs_per_level must be 1 or 2, got 3"),
        ({"padding": "vaild"}, "Did you mean 'valid'"),
        ({"upsampling": "transpose"}, "Did you mean 'transposed'"),
        ({"norm": "bacth"}, "Did you mean 'batch'"),
        (
            {"conv": "octave", "padding": "valid"},
            "padding 'valid' .* an octave convolution keeps its two grids aligned",
        ),
        ({"conv": "octave", "conv_layers": "*", "padding": "mirror"}, "do not fit UNet: narrow has no meaning"),
        ({"conv": {"name": "standard", "kernel_size": 5}, "padding": "valid"}, "give it as the network's kernel_size"),
        ({"conv": {"name": "gaussian", "num_bases": 3}}, r"num_bases \(3\) must divide out_channels \(4\)"),
        ({"width": 8}, "Did you mean 'widths'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        unet(**options)


def test_valid_takes_an_octave_spec_without_low_channels():
    network = unet({"name": "octave", "alpha": 0}, padding="valid").eval()
    assert network(images(44, 48)).shape[2:] == (4, 8)


@pytest.mark.parametrize("conv", ["standard", "octave"])
def test_instance_norm_needs_more_than_a_pixel(conv):
    network = unet(conv, norm="instance")
    assert network(images(9, 1)).shape[2:] == (9, 1)
    with pytest.raises(ValueError, match=r"with a side of 9 or more.*got \(8, 8\)"):
        network(images(8, 8))
