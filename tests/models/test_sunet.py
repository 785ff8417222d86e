"""SUNet: Table 1, the dilated and strided forms against an independent reading, any image size, every variant."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.sync_batch_norm import synchronise
from models import create_model
from models.analysis import analyse
from models.convs import OctaveConv2d, OctavePair, list_convs
from models.convs.registry import build_variant
from models.sunet import SUNet, load_official_state_dict
from models.sunet.network import Level, _Encoder
from tests.helpers.sunet_weights import fill, official_shapes

FILTERS, DEPTHS, WIDTHS = 4, (1, 2, 1, 1), (8, 10, 12, 14)
TINY = {"filters": FILTERS, "block_depths": DEPTHS, "block_widths": WIDTHS, "num_classes": 5}
FORMS = [
    {},
    {"output_stride": 16},
    {"output_stride": 8},
    {"output_stride": 16, "multigrid": False},
    {"output_stride": 8, "multigrid": False},
    {"output_stride": 8, "multigrid": False, "strided_dilation": True},
]

every_form = pytest.mark.parametrize("form", FORMS, ids=str)
every_variant = pytest.mark.parametrize("conv", list_convs())


def sunet(conv="standard", **options) -> SUNet:
    return create_model("sunet_64", conv, **{**TINY, **options})


def images(height: int = 64, width: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def filled(network: nn.Module) -> nn.Module:
    """The network in eval mode, with weights and statistics as after a training."""
    network.load_state_dict(fill({name: tuple(value.shape) for name, value in network.state_dict().items()}))
    return network.eval()


# Table 1.


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("sunet_64", {}, 6_910_248),
        ("sunet_128", {}, 24_704_360),
        ("sunet_7_128", {}, 39_113_832),
        ("sunet_7_128", {"block_widths": [512, 1280, 1792, 2304]}, 37_731_944),
        # 35.4 million in the paper: 21 classes in place of 1000.
        ("sunet_7_128", {"block_widths": [512, 1280, 1792, 2304], "head": "segment", "num_classes": 21}, 35_475_349),
    ],
)
def test_parameters_of_the_paper(name, options, parameters):
    with torch.device("meta"):
        assert count(create_model(name, **options)) == parameters


@pytest.mark.parametrize(("name", "layers"), [("sunet_64", 110), ("sunet_7_128", 170)])
def test_maps_and_layers_of_table_1(name, layers):
    with torch.device("meta"):
        network = create_model(name)
        analysis = analyse(network)
    sizes = {layer.name: layer.output_shapes[0] for layer in analysis.layers}
    assert sizes["stem"] == (1, 64, 112, 112)
    assert sizes["residual.conv2"] == (1, 128, 56, 56)
    for index, (side, width) in enumerate(zip((56, 28, 14, 7), network.table_1.block_widths, strict=True)):
        assert sizes[f"blocks.{index}.0.expand"] == (1, width, side, side)
        assert sizes[f"blocks.{index}.0.encoders.0.conv2"][2] == (side + 1) // 2
    weighted = [layer for layer in analysis.layers if hasattr(layer.module, "kernel_size") or layer.name == "linear"]
    past = [layer for layer in weighted if layer.name.endswith(("skip", "shortcut"))]
    assert (len(weighted) - len(past), len(past)) == (layers, 5)
    assert (analysis.output_stride, analysis.ended_by) == (32, "mean")


@pytest.mark.parametrize("multigrid", [True, False])
@pytest.mark.parametrize(("stem", "finest"), [("imagenet", 8), ("small", 4)])
def test_output_strides(stem, finest, multigrid):
    for stride in (finest, 2 * finest, 4 * finest):
        network = sunet(stem=stem, output_stride=stride, multigrid=multigrid, block_depths=(1, 1, 1, 1))
        analysis = analyse(network, (1, 3, 64, 96))
        assert analysis.output_stride == stride == network.output_stride
        assert analysis.layers[-2].output_shapes == ((1, 14, 64 // stride, 96 // stride),)
    assert sunet(stem=stem).output_stride == 4 * finest


def test_a_small_stem_keeps_the_resolution():
    network = sunet(stem="small")
    assert (network.stem.kernel_size, network.stem.stride) == ((3, 3), (1, 1))
    shapes = [{(name, *value.shape) for name, value in x.state_dict().items()} for x in (network, sunet())]
    assert shapes[0] ^ shapes[1] == {("stem.weight", 64, 3, 3, 3), ("stem.weight", 64, 3, 7, 7)}


# Forms.


@every_form
def test_forms_share_their_weights(form):
    weights = {name: value.shape for name, value in sunet().state_dict().items()}
    assert {name: value.shape for name, value in sunet(**form).state_dict().items()} == weights


class Reading:
    """The network as FACTS of the paper put it, in eval mode: functions of the authors' tensors, by their names."""

    def __init__(self, weights: dict[str, Tensor], dilations: tuple[int, ...], stride: int, pools: int) -> None:
        self.weights, self.dilations, self.stride, self.pools = weights, dilations, stride, pools

    def rectified(self, x: Tensor, name: str) -> Tensor:
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(self.weights[f"{name}.{kind}"] for kind in kinds)))

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        padding = dilation * (weight.shape[2] // 2)
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], stride, padding, dilation)

    def deconv(self, x: Tensor, name: str, stride: int, dilation: int, size: torch.Size) -> Tensor:
        missing = [(length - 1) % stride for length in size]
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv_transpose2d(x, weight, bias, stride, dilation, missing, 1, dilation)

    def module(self, x: Tensor, name: str, levels: int, dilation: int) -> Tensor:
        has_expansion = f"{name}.upsample.conv0.weight" in self.weights
        activated = self.rectified(x, f"{name}.bn.bn0" if has_expansion else f"{name}.down.0.bn0")
        past = self.conv(activated, f"{name}.upsample.conv0") if has_expansion else x
        x = self.conv(activated, f"{name}.down.0.conv0")
        stride = self.stride if dilation else 2
        forms = []
        for level in range(levels):
            first = dilation * 2**level if stride == 1 else dilation or 1
            forms.append((first, 2 * first if stride == 1 else first))
        taken = []
        for level, (first, second) in enumerate(forms):
            taken.append(x)
            x = self.conv(self.rectified(x, f"{name}.down.{level}.bn1"), f"{name}.down.{level}.conv1", stride, first)
            x = self.conv(self.rectified(x, f"{name}.down.{level}.bn2"), f"{name}.down.{level}.conv2", 1, second)
        for level, (first, second) in reversed([*enumerate(forms)]):
            up = f"{name}.up.{level}"
            x = torch.cat([x, taken[level + 1]], 1) if level + 1 < levels else x
            x = self.deconv(self.rectified(x, f"{up}.bn0"), f"{up}.deconv0", stride, second, taken[level].shape[2:])
            x = self.conv(self.rectified(x, f"{up}.bn1"), f"{up}.deconv1", 1, first)
        return self.conv(self.rectified(x, f"{name}.up.0.bn2"), f"{name}.up.0.conv2") + past

    def features(self, x: Tensor) -> Tensor:
        x = self.rectified(self.conv(x, "features.conv1", 2), "features.residual1.bn.0")
        past = self.conv(x, "features.residual1.shortcut.0", 2)
        x = self.rectified(self.conv(x, "features.residual1.conv.0", 2), "features.residual1.conv.2")
        x = self.conv(x, "features.residual1.conv.4") + past
        for block, (depth, dilation) in enumerate(zip(DEPTHS, self.dilations, strict=True), start=1):
            if 1 < block <= 1 + self.pools:
                x = F.avg_pool2d(x, 2)
            for index in range(depth):
                x = self.module(x, f"features.unet{block}_{index}", 1 if block == 4 else 2, dilation)
        return self.rectified(x, "features.bn2")


@pytest.mark.parametrize(
    ("form", "reading"),
    [
        (FORMS[0], {"dilations": (0, 0, 0, 0), "stride": 2, "pools": 3}),
        (FORMS[1], {"dilations": (0, 0, 0, 2), "stride": 1, "pools": 2}),
        (FORMS[2], {"dilations": (0, 0, 2, 4), "stride": 1, "pools": 1}),
        (FORMS[3], {"dilations": (0, 0, 0, 0), "stride": 2, "pools": 2}),
        (FORMS[4], {"dilations": (0, 0, 0, 0), "stride": 2, "pools": 1}),
        (FORMS[5], {"dilations": (0, 0, 2, 4), "stride": 2, "pools": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(64, 64), (61, 75), (29, 94)])
def test_forms_by_an_independent_reading(form, reading, size):
    network, weights = sunet(**form).eval(), fill(official_shapes(FILTERS, DEPTHS, WIDTHS, 5))
    load_official_state_dict(network, weights)
    x = images(*size, count=1)
    expected = Reading(weights, **reading).features(x)
    with torch.no_grad():
        torch.testing.assert_close(network.forward_features(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            network(x), F.linear(expected.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])
        )


def test_twice_the_dilation_is_the_same_on_every_second_pixel():
    """Each of the four phases of a map goes through a module of twice the dilation by itself, borders included."""
    coarse, fine = filled(sunet(output_stride=16)).blocks[3][0], filled(sunet(output_stride=8)).blocks[3][0]
    x = torch.randn(1, WIDTHS[2], 18, 22)
    with torch.no_grad():
        y = fine(x)
        for rows in (0, 1):
            for columns in (0, 1):
                phase = slice(rows, None, 2), slice(columns, None, 2)
                torch.testing.assert_close(y[:, :, *phase], coarse(x[:, :, *phase]))


# Image sizes.


@pytest.mark.parametrize("conv", ["standard", "octave"])
@every_form
def test_any_size(conv, form):
    network = sunet(conv, head="segment", **form).eval()
    pools = {32: 3, 16: 2, 8: 1}[network.output_stride]
    for height, width in ((0, 33), (5, 18), (30, 3)):
        size = network.smallest + height, network.smallest + width
        with torch.no_grad():
            features = network.forward_features(images(*size, count=1))
            assert features.shape[2:] == tuple(((side + 3) // 4) >> pools for side in size)
            assert network.segmentation_head(features, size).shape == (1, 5, *size)


@pytest.mark.parametrize(
    ("options", "smallest", "times"),
    [
        ({}, 29, 5),
        ({"output_stride": 8}, 5, 3),
        ({"stem": "small"}, 15, 4),
        ({"stem": "small", "output_stride": 4}, 3, 2),
    ],
)
def test_images_that_are_too_small(options, smallest, times):
    network = sunet(**options).eval()
    assert network(images(smallest, smallest)).isfinite().all()
    with pytest.raises(
        ValueError,
        match=f"halves an image {times} times and takes images of {smallest} pixels .* got {smallest - 1}x64",
    ):
        network(images(smallest - 1, 64))


# Heads.


@pytest.mark.parametrize("degridding", [False, True])
def test_segmentation_heads(degridding):
    network = filled(sunet(head="segment", degridding=degridding, output_stride=8))
    x = images(66, 41)
    features = network.forward_features(x)
    logits = network(x)
    assert logits.shape == (2, 5, 66, 41)
    torch.testing.assert_close(logits, network.segmentation_head(features, (66, 41)))
    weights = network.segmentation_head.state_dict()
    if degridding:
        for layer, dilation in (("1", 2), ("2", 1)):
            features = F.conv2d(
                features, weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"], 1, dilation, dilation
            )
            kinds = ("running_mean", "running_var", "weight", "bias")
            features = F.relu(F.batch_norm(features, *(weights[f"norm{layer}.{kind}"] for kind in kinds)))
        assert features.shape[1] == 512
    small = F.conv2d(features, weights["conv.weight"], weights["conv.bias"])
    torch.testing.assert_close(logits, F.interpolate(small, (66, 41), mode="bilinear", align_corners=False))
    others = {name for name in network.state_dict() if not name.startswith("segmentation_head.")}
    assert others | {"linear.weight", "linear.bias"} == {*sunet().state_dict()}


# Variants.


@every_variant
@pytest.mark.parametrize("options", [{}, {"head": "segment", "degridding": True, "output_stride": 16}], ids=str)
def test_a_step_reaches_every_parameter(conv, options):
    network = sunet(conv, **options)
    logits = network(images(45, 53))
    assert logits.shape == ((2, 5, 45, 53) if options else (2, 5))
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("conv", ["standard", "octave"])
def test_a_step_in_bfloat16_and_channels_last(conv):
    network = sunet(conv, head="segment", output_stride=8).to(memory_format=torch.channels_last)
    x = images(61, 69).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert logits.is_contiguous(memory_format=torch.channels_last)
    logits.float().square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.isfinite().all()] == []


@pytest.mark.parametrize("alpha", [0.25, 1])
def test_octaves(alpha):
    network = sunet({"name": "octave", "alpha": alpha}, filters=9)
    assert count(network) == count(sunet(filters=9))
    parts = network.blocks[0][0].decoders[0].deconv.in_split
    assert parts == (18 - 2 * int(9 * alpha), 2 * int(9 * alpha))
    features = network.forward_features(images(61, 47))
    assert isinstance(features, OctavePair)
    assert features.shape == (2, 14, 2, 1)
    network(images(61, 47)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("pattern", ["*", "blocks.1.*", ["stem", "blocks.*.encoders.*", "*head*"]])
def test_octave_layers_chosen_by_pattern(pattern):
    network = sunet("octave", conv_layers=pattern, head="segment")
    assert any(isinstance(module, OctaveConv2d) for module in network.modules())
    logits = network(images(47, 61))
    assert isinstance(logits, Tensor)
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_layers_chosen_by_pattern_keep_the_initial_weights_of_their_variant():
    network = sunet("rfnn", conv_layers="blocks.*.encoders.*")
    kinds = {type(encoder.conv1).__name__ for block in network.blocks for m in block for encoder in m.encoders}
    assert kinds == {"RFNNConv2d"}
    assert network.blocks[0][0].encoders[0].conv1.dense_weight().abs().sum() > 0
    assert type(network.blocks[0][0].decoders[0].conv) is nn.Conv2d


def test_initial_weights():
    torch.manual_seed(0)
    with torch.no_grad():
        network = create_model("sunet_64", block_depths=[1, 1, 1, 1])
        separable = create_model("sunet_64", "depthwise_separable", block_depths=[1, 1, 1, 1])
    for layer, fan_out in (("stem", 49 * 64), ("residual.conv1", 9 * 128), ("blocks.0.0.decoders.0.deconv", 9 * 128)):
        weight = network.get_parameter(f"{layer}.weight")
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), layer
        assert network.get_parameter(f"{layer}.bias").abs().max() == 0
    assert network.linear.weight.abs().max() <= 1024**-0.5
    assert network.linear.bias.abs().max() == 0
    assert separable.residual.conv2.depthwise.weight.std().item() == pytest.approx(1 / 3, rel=0.1)


# Training, copies, graphs.


@pytest.mark.parametrize("conv", ["standard", "gaussian"])
def test_gradients_in_bfloat16_on_maps_that_are_one_value_wide(conv):
    """There torch's own gradient of strided filters is garbage, what memory held before, on CPUs."""
    torch.manual_seed(0)
    encoder = _Encoder(build_variant(conv), 16, Level(stride=2, outer=1, inner=1))
    x = torch.randn(2, 16, 5, 1)
    parameters = dict(encoder.named_parameters())
    expected = torch.autograd.grad(encoder(x).square().sum(), list(parameters.values()))
    tolerance = 0.02 * max(value.abs().max().item() for value in expected)
    for _ in range(20):
        _garbage = torch.full((1 << 14,), 3e37)
        del _garbage
        with torch.autocast("cpu", torch.bfloat16):
            y = encoder(x)
        assert y.shape == (2, 16, 3, 1)
        found = torch.autograd.grad(y.float().square().sum(), list(parameters.values()))
        for name, gradient, value in zip(parameters, found, expected, strict=True):
            torch.testing.assert_close(gradient, value, rtol=0, atol=tolerance, msg=name)


def test_an_explicit_zero_of_the_padding_changes_no_value():
    encoder = filled(_Encoder(build_variant("standard"), 4, Level(stride=2, outer=1, inner=1)))
    x = torch.randn(2, 4, 5, 1)
    with torch.no_grad():
        expected = encoder.conv2(F.relu(encoder.norm2(encoder.conv1(F.relu(encoder.norm1(x))))))
        torch.testing.assert_close(encoder(x), expected)


@pytest.mark.parametrize(
    ("conv", "device"), [("standard", None), ("octave", None), ("standard", "cpu"), ("standard", "cuda")]
)
def test_recomputed_activations_change_nothing(conv, device):
    """With batch norms that are synchronised on devices of a kind, too, which one process need not have."""
    plain = sunet(conv, block_depths=(1, 1, 1, 1))
    again = sunet(conv, block_depths=(1, 1, 1, 1), checkpointing=True)
    again.load_state_dict(plain.state_dict())
    if device is not None:
        synchronise(again, torch.device(device))
    x = images(47, 50)
    for _ in range(2):
        for network in (plain, again):
            network(x).square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(again.get_parameter(name).grad, parameter.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("conv", ["standard", "octave"])
def test_copies_and_pickles(conv):
    network, x = filled(sunet(conv, head="segment", checkpointing=True)), images(29, 34, count=1)
    with torch.no_grad():
        expected = network(x)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(x), expected)
            nn.init.zeros_(twin.stem.weight)
            assert not torch.equal(twin(x), expected)
        assert torch.equal(network(x), expected)


@torch.no_grad()
def test_compiles_without_graph_breaks():
    network, x = filled(sunet(block_depths=(1, 1, 1, 1), output_stride=16)), images(29, 34, count=1)
    expected = network(x)
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(network(x), expected)


@torch.no_grad()
def test_a_module_of_octaves_compiles_without_graph_breaks():
    module = sunet("octave").eval().blocks[3][0]
    x = OctavePair(torch.randn(1, 6, 5, 3), torch.randn(1, 6, 3, 2))
    expected = module(x)
    module.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(module(x).to_tensor(), expected.to_tensor())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, r"output_stride must be one of \[32, 16, 8\] with this stem, got 4"),
        ({"output_stride": 32, "stem": "small"}, r"one of \[16, 8, 4\] with this stem, got 32"),
        ({"stem": "smal"}, "Did you mean 'small'"),
        ({"head": "segmnt"}, "Did you mean 'segment'"),
        ({"degridding": True}, "degridding belongs to the head 'segment'"),
        ({"strided_dilation": True}, "set multigrid to false as well"),
        ({"block_widths": [8, 16, 24]}, r"block_widths must be 4 positive numbers, one a block, got \[8, 16, 24\]"),
        ({"block_depths": [1, 0, 1, 1]}, "block_depths must be 4 positive numbers"),
        ({"filters": 0}, "filters must be 1 or more, got 0"),
        ({"conv": {"name": "gaussian", "num_bases": 3}}, r"num_bases \(3\) must divide out_channels"),
        ({"width": 8}, "Did you mean 'block_widths'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        sunet(**options)
