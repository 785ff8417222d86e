"""OctaveConv2d and OctaveConvTranspose2d against four plain convolutions, and what they promise beside."""

from __future__ import annotations

import copy
import io
import pickle
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.convs import OctaveConv2d, OctaveConvTranspose2d, OctavePair

ALPHAS = [0, 0.25, 0.5, 0.99, 1]
MIXED = [alphas for alphas in product(ALPHAS, ALPHAS) if alphas != (0, 0)]
SIZES = [(1, 1), (2, 3), (7, 7), (8, 5), (10, 8)]


def input_of(layer: nn.Module, size: tuple[int, int], batch: int = 2, **options):
    """What a layer takes: a tensor or a pair."""
    x = torch.randn(batch, layer.in_channels, *size, **options)
    return OctavePair.from_tensor(x, layer.in_split[1]) if layer.alpha_in else x


def members(x) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (x, None) if isinstance(x, torch.Tensor) else tuple(x)


def total(x) -> torch.Tensor:
    return sum(member.square().sum() for member in members(x) if member is not None)


def paths(layer: nn.Module, input_dim: int) -> dict[str, torch.Tensor]:
    """The four kernels by name, cut out of the weight without the layer's help."""
    weights = {}
    for o, i in product("hl", "hl"):
        bounds = [
            (0, parts[0]) if side == "h" else (parts[0], sum(parts))
            for side, parts in ((i, layer.in_split), (o, layer.out_split))
        ]
        weights[i + o] = layer.weight.narrow(input_dim, bounds[0][0], bounds[0][1] - bounds[0][0]).narrow(
            1 - input_dim, bounds[1][0], bounds[1][1] - bounds[1][0]
        )
    return weights


def average(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Block averages, one by one; blocks at the border may be cut."""
    rows = [
        torch.stack([x[:, :, i : i + height, j : j + width].mean((2, 3)) for j in range(0, x.shape[3], width)], -1)
        for i in range(0, x.shape[2], height)
    ]
    return torch.stack(rows, -2)


def repeat(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]


def add(*terms: torch.Tensor | None) -> torch.Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present) if present else None


@pytest.mark.parametrize(("alpha_in", "alpha_out"), MIXED)
@pytest.mark.parametrize("geometry", [{}, {"stride": 2}, {"dilation": 2}, {"stride": (3, 1)}])
def test_octave_convolution_is_four_convolutions(alpha_in, alpha_out, geometry):
    dilation, stride = geometry.get("dilation", 1), geometry.get("stride", 1)
    layer = OctaveConv2d(8, 12, 3, alpha_in=alpha_in, alpha_out=alpha_out, padding=dilation, **geometry).double()
    plain = nn.Conv2d(8, 12, 3, padding=dilation, **geometry).double()
    window = (stride, stride) if isinstance(stride, int) else stride
    weights, bias = paths(layer, input_dim=1), layer.bias.split(layer.out_split)

    def conv(name: str, member: torch.Tensor | None) -> torch.Tensor | None:
        if member is None or weights[name].numel() == 0:
            return None
        return F.conv2d(member, weights[name], None, 1, dilation, dilation)

    for size in SIZES:
        x = input_of(layer, size, dtype=torch.float64)
        full = plain(torch.zeros(1, 8, *size, dtype=torch.float64)).shape[2:]
        high, low = (None if member is None else average(member, *window) for member in members(x))
        coarse = conv("lh", low)
        expected_high = add(conv("hh", high), None if coarse is None else repeat(coarse, full))
        expected_low = add(conv("ll", low), conv("hl", None if high is None else average(high, 2, 2)))
        found = layer(x)
        assert isinstance(found, OctavePair if alpha_out else torch.Tensor)
        assert found.shape == (2, 12, *full)
        for member, expected, b in zip(members(found), (expected_high, expected_low), bias, strict=True):
            assert (member is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(member, expected + b[:, None, None])


@pytest.mark.parametrize("geometry", [{"stride": 2}, {"padding": 4, "dilation": 3}, {"groups": 4}, {"bias": False}])
@pytest.mark.parametrize("transposed", [False, True])
def test_alpha_0_on_both_sides_is_the_plain_convolution(transposed, geometry):
    octave, plain = (OctaveConvTranspose2d, nn.ConvTranspose2d) if transposed else (OctaveConv2d, nn.Conv2d)
    torch.manual_seed(0)
    layer = octave(8, 12, 5, alpha_in=0, alpha_out=0, **geometry)
    torch.manual_seed(0)
    reference = plain(8, 12, 5, **geometry)
    for (name, value), (expected_name, expected) in zip(
        layer.state_dict().items(), reference.state_dict().items(), strict=True
    ):
        assert name == expected_name
        assert torch.equal(value, expected)
    x = torch.randn(2, 8, 17, 15)
    assert torch.equal(layer(x), reference(x))


@pytest.mark.parametrize(("alpha_in", "alpha_out"), [(0, 0), *MIXED])
def test_parameters_are_those_of_conv2d(alpha_in, alpha_out):
    layer = OctaveConv2d(8, 16, 3, alpha_in=alpha_in, alpha_out=alpha_out, padding=1)
    plain = nn.Conv2d(8, 16, 3)
    assert {name: p.shape for name, p in layer.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    total(layer(input_of(layer, (6, 5)))).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().gt(0).all(), name


def test_splits_are_floors_computed_once():
    layer = OctaveConv2d((9, 9), 10, 3, alpha_in=0.5, alpha_out=0.25, padding=1)
    assert (layer.in_channels, layer.in_split, layer.out_split) == (18, (10, 8), (8, 2))
    parts = [OctavePair.from_tensor(torch.randn(1, 9, 5, 5), 4) for _ in range(2)]
    assert layer(torch.cat(parts, 1)).channels == (8, 2)
    exact = OctaveConv2d(49, 49, 1, alpha_in=Fraction(1, 49), alpha_out=0)
    assert exact.in_split == (48, 1)


def test_too_few_channels_for_a_low_member():
    layer = OctaveConv2d(1, 1, 3, padding=1)
    high, low = layer((torch.randn(1, 1, 4, 4), None))
    assert high.shape == (1, 1, 4, 4)
    assert low is None


def test_plain_tuples_are_taken_and_returned():
    layer = OctaveConv2d(4, 6, 3, padding=1)
    high, low = layer((torch.randn(1, 2, 7, 7), torch.randn(1, 2, 4, 4)))
    assert (high.shape, low.shape) == ((1, 3, 7, 7), (1, 3, 4, 4))


@pytest.mark.parametrize("layer_class", [OctaveConv2d, OctaveConvTranspose2d])
def test_inputs_of_the_wrong_kind(layer_class):
    x = torch.randn(1, 4, 6, 6)
    with pytest.raises(TypeError, match="takes an OctavePair or"):
        layer_class(4, 4, 3, padding=1)(x)
    for alpha_out in (0, 0.5):
        with pytest.raises(TypeError, match="takes a tensor, since its alpha_in is 0"):
            layer_class(4, 4, 3, alpha_in=0, alpha_out=alpha_out, padding=1)(OctavePair.from_tensor(x, 2))
    with pytest.raises(ValueError, match=r"takes \(2, 2\) \(high, low\) channels, got \(3, 1\)"):
        layer_class(4, 4, 3, padding=1)(OctavePair.from_tensor(x, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_in": 1.5}, r"alpha_in.*must lie in \[0, 1\], got 1.5"),
        ({"alpha_out": -0.1}, r"alpha_out.*must lie in \[0, 1\]"),
        ({"alpha_out": float("nan")}, "alpha_out"),
        ({"padding": 0}, "padding = dilation.*here 1 x 1; got padding 0"),
        ({"padding": 1, "dilation": 2}, "here 2 x 2"),
        ({"kernel_size": 4, "padding": 1}, "here 1.5 x 1.5"),
        ({"padding": 0, "alpha_in": 0}, "here 1 x 1"),
        ({"padding": 0, "alpha_in": 1, "alpha_out": 1}, "here 1 x 1"),
        ({"groups": 3}, r"in_channels \(8\) must be a positive multiple of groups"),
        ({"groups": 8, "alpha_out": 0.25}, r"groups \(8\) must divide the high and low channels of the input \(4, 4\)"),
        ({"groups": 4, "alpha_in": 0.25}, r"of the input \(6, 2\) and of the output"),
    ],
)
def test_what_cannot_be_is_an_error_at_construction(options, message):
    arguments = {"kernel_size": 3, "padding": 1, **options}
    with pytest.raises(ValueError, match=message):
        OctaveConv2d(8, 16, **arguments)


# Groups.


def test_groups_act_inside_each_path():
    layer = OctaveConv2d(8, 12, 3, padding=1, groups=2)
    x = input_of(layer, (6, 6))
    found = layer(x)
    for group in range(2):
        one = OctaveConv2d(4, 6, 3, padding=1)
        rows = [*range(3 * group, 3 * group + 3), *range(6 + 3 * group, 6 + 3 * group + 3)]
        one.load_state_dict({"weight": layer.weight[rows], "bias": layer.bias[rows]})
        part = OctavePair(x.high[:, 2 * group : 2 * group + 2], x.low[:, 2 * group : 2 * group + 2])
        for member, expected in zip(found, one(part), strict=True):
            torch.testing.assert_close(member[:, 3 * group : 3 * group + 3], expected)


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [8, 9])
def test_depthwise_keeps_each_channel_on_its_side(channels, stride, multiple):
    if channels == 9 and multiple == 2:
        with pytest.raises(ValueError, match="depthwise"):
            OctaveConv2d(9, 18, 3, padding=1, groups=9)
        return
    layer = OctaveConv2d(channels, channels * multiple, 3, stride=stride, padding=1, groups=channels)
    x = input_of(layer, (7, 6))
    found = layer(x)
    pooled = [member if stride == 1 else average(member, 2, 2) for member in x]
    weights, biases = layer.weight.split(layer.out_split), layer.bias.split(layer.out_split)
    for member, source, weight, bias in zip(found, pooled, weights, biases, strict=True):
        torch.testing.assert_close(member, F.conv2d(source, weight, bias, padding=1, groups=source.shape[1]))


# The transposed convolution.

TRANSPOSED = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "stride": 2, "output_padding": 1},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "output_padding": 1},
    {"kernel_size": 3, "stride": 3},
    {"kernel_size": 3, "stride": 1, "padding": 2, "dilation": 2},
    {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": (1, 0)},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "output_padding": 1},
]


@pytest.mark.parametrize("geometry", TRANSPOSED, ids=str)
@pytest.mark.parametrize(("alpha_in", "alpha_out"), [(0.5, 0.5), (0, 0.5), (0.25, 0), (1, 1), (1, 0), (0.5, 1)])
def test_transposed_sizes_are_those_of_conv_transpose2d(alpha_in, alpha_out, geometry):
    layer = OctaveConvTranspose2d(8, 6, alpha_in=alpha_in, alpha_out=alpha_out, **geometry)
    plain = nn.ConvTranspose2d(8, 6, **geometry)
    assert {name: p.shape for name, p in layer.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    for size in SIZES:
        y = layer(input_of(layer, size))
        assert y.shape == plain(torch.randn(2, 8, *size)).shape
        if alpha_out not in (0, 1):
            assert y.high.shape[2:] == y.full_size
    total(y).backward()
    assert all(parameter.grad.abs().gt(0).any() for parameter in layer.parameters())


@pytest.mark.parametrize("geometry", TRANSPOSED, ids=str)
def test_transposed_octave_convolution_is_four_transposed_convolutions(geometry):
    layer = OctaveConvTranspose2d(8, 6, **geometry).double()
    x = input_of(layer, (6, 8), dtype=torch.float64)
    weights, bias = paths(layer, input_dim=0), layer.bias.split(layer.out_split)
    found = layer(x)

    def conv(name: str, member: torch.Tensor) -> torch.Tensor:
        options = {k: v for k, v in geometry.items() if k in ("stride", "padding", "dilation")}
        y = F.conv_transpose2d(member, weights[name], **options)
        missing = [b - a for a, b in zip(y.shape[2:], members(found)[name[1] == "l"].shape[2:], strict=True)]
        if name == "lh":
            missing = [b - a for a, b in zip(y.shape[2:], found.low.shape[2:], strict=True)]
        assert all(m >= 0 for m in missing)
        return F.conv_transpose2d(member, weights[name], output_padding=tuple(missing), **options)

    high = conv("hh", x.high) + repeat(conv("lh", x.low), found.full_size) + bias[0][:, None, None]
    low = conv("ll", x.low) + conv("hl", average(x.high, 2, 2)) + bias[1][:, None, None]
    torch.testing.assert_close(found.high, high)
    torch.testing.assert_close(found.low, low)


def test_transposed_depthwise_and_groups():
    for groups in (2, 8):
        layer = OctaveConvTranspose2d(8, 16, 2, stride=2, groups=groups)
        assert layer.weight.shape == nn.ConvTranspose2d(8, 16, 2, 2, groups=groups).weight.shape
        y = layer(input_of(layer, (5, 4)))
        assert [tuple(member.shape) for member in y] == [(2, 8, 10, 8), (2, 8, 5, 4)]
        total(y).backward()
        assert layer.weight.grad.abs().gt(0).all()


@pytest.mark.parametrize("geometry", [{"padding": 0}, {"padding": 0, "stride": 2}, {"padding": 2, "stride": 2}])
def test_transposed_padding_that_cannot_be(geometry):
    with pytest.raises(ValueError, match=r"padding = dilation \* \(kernel_size - 1\) / 2"):
        OctaveConvTranspose2d(4, 4, 3, **geometry)
    OctaveConvTranspose2d(4, 4, 3, alpha_in=0, alpha_out=0, **geometry)


# What every layer of the suite promises.

LAYERS = [
    pytest.param(lambda: OctaveConv2d(4, 6, 3, padding=1), id="conv"),
    pytest.param(lambda: OctaveConv2d(4, 6, 3, padding=1, stride=2, alpha_in=0), id="entry"),
    pytest.param(lambda: OctaveConv2d(4, 6, 3, padding=1, alpha_out=0), id="exit"),
    pytest.param(lambda: OctaveConv2d(4, 6, 1, alpha_in=0.25), id="pointwise"),
    pytest.param(lambda: OctaveConv2d(4, 4, 3, padding=1, groups=4), id="depthwise"),
    pytest.param(lambda: OctaveConv2d(4, 8, 3, padding=1, groups=2), id="groups"),
    pytest.param(lambda: OctaveConv2d(4, 4, 3, padding=1, alpha_in=1, alpha_out=1), id="low only"),
    pytest.param(lambda: OctaveConvTranspose2d(4, 6, 4, stride=2, padding=1), id="transposed"),
]
every_layer = pytest.mark.parametrize("make", LAYERS)


@every_layer
def test_gradients_of_first_and_second_order(make):
    layer = make().double()
    x = input_of(layer, (3, 3), batch=1, dtype=torch.float64)
    given = [member.detach().requires_grad_() for member in members(x) if member is not None]
    parameters = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}

    def function(*values):
        inputs = values[: len(given)]
        if isinstance(x, OctavePair):
            high = inputs[0] if x.high is not None else None
            inputs = [OctavePair(high, inputs[-1] if x.low is not None else None, x.full_size)]
        found = torch.func.functional_call(layer, dict(zip(parameters, values[len(given) :], strict=True)), inputs[0])
        return tuple(member for member in members(found) if member is not None)

    inputs = (*given, *parameters.values())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@every_layer
def test_bfloat16_autocast_and_other_dtypes(make):
    layer = make()
    x = input_of(layer, (6, 7))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    for member, expected in zip(members(y), members(layer(x)), strict=True):
        if member is not None:
            torch.testing.assert_close(member.float(), expected, rtol=0.05, atol=0.1)
    total(y).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    for dtype in (torch.bfloat16, torch.float64):
        assert layer.to(dtype)(input_of(layer, (6, 7), dtype=dtype)).dtype == dtype


@every_layer
def test_channels_last_stays(make):
    layer = make()
    x = input_of(layer, (8, 6))
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    for member, value in zip(members(y), members(expected), strict=True):
        torch.testing.assert_close(member, value, rtol=1e-4, atol=1e-5)


@every_layer
def test_copies_pickles_and_state_dicts(make):
    layer, other = make(), make()
    x = input_of(layer, (5, 5))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for member, expected in zip(members(twin(x)), members(layer(x)), strict=True):
            assert (member is None and expected is None) or torch.equal(member, expected)


@every_layer
def test_samples_do_not_depend_on_their_batch(make):
    layer = make().double()
    x = input_of(layer, (9, 9), batch=5, dtype=torch.float64)
    alone = x[3:4] if isinstance(x, torch.Tensor) else OctavePair(*(m if m is None else m[3:4] for m in x), x.full_size)
    for member, expected in zip(members(layer(x)), members(layer(alone)), strict=True):
        if member is not None:
            torch.testing.assert_close(member[3:4], expected)


def test_paths_start_as_the_convolutions_that_they_are():
    torch.manual_seed(0)
    layer = OctaveConv2d(64, 64, 3, alpha_in=0.25, alpha_out=0.5, padding=1)
    for name, kernel in paths(layer, input_dim=1).items():
        bound = 1 / (kernel.shape[1] * 9) ** 0.5
        assert kernel.abs().max().item() == pytest.approx(bound, rel=0.01), name
        assert kernel.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
    assert layer.bias.abs().max() <= 1 / (64 * 9) ** 0.5


def test_strides_keep_both_grids_aligned():
    """Shifting the image by a stride of all grids shifts the maps by a pixel, away from borders."""
    network = nn.Sequential(
        OctaveConv2d(2, 8, 3, alpha_in=0, stride=2, padding=1), OctaveConv2d(8, 8, 3, stride=2, padding=1)
    ).double()
    x = torch.randn(1, 2, 80, 80, dtype=torch.float64)
    near, shifted = network(x[..., :72, :72]), network(x[..., 8:, 8:])
    torch.testing.assert_close(near.high[..., 8:-5, 8:-5], shifted.high[..., 6:-7, 6:-7])
    torch.testing.assert_close(near.low[..., 4:-3, 4:-3], shifted.low[..., 3:-4, 3:-4])


def test_a_small_network_compiles_into_one_graph():
    network = nn.Sequential(
        OctaveConv2d(3, 8, 3, alpha_in=0, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        OctaveConv2d(8, 8, 3, padding=1, groups=8),
        nn.Upsample(scale_factor=2),
        OctaveConvTranspose2d(8, 8, 4, stride=2, padding=1),
        nn.MaxPool2d(2),
        OctaveConv2d(8, 2, 1, alpha_out=0),
    )
    x = torch.randn(2, 3, 9, 11)
    expected = network(x)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    layer = OctaveConv2d(3, 8, 3, alpha_in=0, padding=1)
    pair = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert isinstance(pair, OctavePair)
    assert torch.equal(pair.low, layer(x).low)


def test_a_gradient_penalty_reaches_every_weight():
    critic = nn.Sequential(
        OctaveConv2d(3, 8, 3, alpha_in=0, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        OctaveConv2d(8, 8, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        OctaveConv2d(8, 1, 3, alpha_out=0, padding=1),
    )
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    (gradient.flatten(1).norm(dim=1) - 1).square().mean().backward()
    for name, parameter in critic.named_parameters():
        if name.endswith("weight"):
            assert parameter.grad.abs().sum() > 0, name
