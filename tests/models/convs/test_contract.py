"""The one contract that every convolution variant passes, on images and on volumes; a new one joins by registering."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle

import pytest
import torch
from torch import nn

from models.convs import (
    OctaveConv2d,
    OctaveConv3d,
    OctaveConvTranspose2d,
    OctaveConvTranspose3d,
    OctavePair,
    SynthesisedConv,
    Variant,
    build_variant,
    create_conv,
    list_convs,
    register_conv,
)
from models.convs.dimensions import CONVOLVE, CONVS, TRANSPOSED_CONVS
from models.convs.variant import SpatialVariant
from models.names import UnknownNameError

# Settings of a variant beyond its defaults that deserve the whole contract too.
SETTINGS = {
    "dau": [{"num_units": 3}, {"trainable": ("mu",)}],
    "gaussian": [
        {"order": 0},
        {"num_bases": 4, "order": 2},
        {"num_bases": 4, "separated": True},
        {"trainable": ("sigma",), "mu_init": 0.0, "theta_init": 0.0, "sigma_init": 1.0},
    ],
    "octave": [{"alpha": 0.25}, {"alpha": 0.0}, {"alpha": 1.0}],
    "rfnn": [{"order": 2, "sigma": 1.5}],
}
# Volumes share nearly all code with images, so that one setting of each form is enough.
SETTINGS_3D = {
    "gaussian": [{"order": 1, "num_bases": 2, "separated": True}, {"order": 1, "rotation": "none"}],
    "octave": [{"alpha": 0.25}, {"alpha": 0.0}],
}
CASES = [
    (name, options, dimensions)
    for dimensions, settings in ((2, SETTINGS), (3, SETTINGS_3D))
    for name in list_convs(dimensions)
    for options in [{}, *settings.get(name, [])]
]
IDS = [
    name + "".join(f"-{key}={value}" for key, value in options.items()) + ("-3d" if dimensions == 3 else "")
    for name, options, dimensions in CASES
]

pytestmark = pytest.mark.parametrize(("name", "options", "dimensions"), CASES, ids=IDS)

OCTAVES = (OctaveConv2d, OctaveConv3d)
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class OnTensors(nn.Module):
    """An octave convolution between tensors, whose last channels are what low members hold."""

    def __init__(self, layer: OctaveConv2d | OctaveConv3d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(OctavePair.from_tensor(x, self.layer.in_split[1]) if self.layer.alpha_in else x)
        return y.to_tensor() if isinstance(y, OctavePair) else y


def on_tensors(layer: nn.Module) -> nn.Module:
    return OnTensors(layer) if isinstance(layer, OCTAVES) else layer


def tensor_conv(name: str, *args, **options) -> nn.Module:
    return on_tensors(create_conv(name, *args, **options))


def variant_of(name: str, dimensions: int, **options) -> Variant:
    return build_variant({"name": name, **options}).in_dimensions(dimensions)


def maps(*shape: int, dimensions: int, **options) -> torch.Tensor:
    """Random maps of a shape that is written for volumes, with all of its spatial axes or all but the first."""
    return torch.randn(*shape[:2], *shape[-dimensions:], **options)


def first_group(channels: int, groups: int, layer: nn.Module, split: str) -> torch.Tensor:
    """Which channels are the first group's: those of both members, unless every channel is a group."""
    mask = torch.zeros(channels, dtype=torch.bool)
    octave = getattr(layer, "layer", None)
    parts = (channels, 0) if octave is None or octave.is_depthwise else getattr(octave, split)
    mask[: parts[0] // groups] = True
    mask[parts[0] : parts[0] + parts[1] // groups] = True
    return mask


def same_size(layer: nn.Module, x: torch.Tensor, **geometry: int) -> bool:
    reference = CONVS[x.ndim - 2](x.shape[1], 16, 5, **geometry)
    return layer(x).shape == reference(x).shape


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 2, 3), (2, 7, 7), (3, 8, 5), (4, 16, 16)])
def test_sizes_are_those_of_a_plain_conv_down_to_one_pixel(name, options, dimensions, size):
    layer = tensor_conv(name, 8, 16, 5, padding=2, dimensions=dimensions, **options)
    assert same_size(layer, maps(2, 8, *size, dimensions=dimensions), padding=2)


@pytest.mark.parametrize("geometry", [{"stride": 2, "padding": 2}, {"dilation": 2, "padding": 4}, {"stride": 3}, {}])
def test_stride_dilation_and_padding(name, options, dimensions, geometry):
    if name == "octave" and options.get("alpha") != 0 and "padding" not in geometry:
        with pytest.raises(ValueError, match="padding = dilation"):
            tensor_conv(name, 8, 16, 5, dimensions=dimensions, **geometry, **options)
        return
    layer = tensor_conv(name, 8, 16, 5, dimensions=dimensions, **geometry, **options)
    assert same_size(layer, maps(2, 8, 6, 13, 11, dimensions=dimensions), **geometry)


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_do_not_mix(name, options, dimensions, groups):
    layer = tensor_conv(name, 8, 16, 3, padding=1, groups=groups, dimensions=dimensions, **options).double()
    x = maps(1, 8, 3, 6, 6, dimensions=dimensions, dtype=torch.float64, requires_grad=True)
    layer(x)[:, first_group(16, groups, layer, "out_split")].square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.abs().transpose(0, 1).flatten(1).sum(1) > 0, first_group(8, groups, layer, "in_split"))


def test_bias_counts_once(name, options, dimensions):
    layer = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options)
    biases = [p for n, p in layer.named_parameters() if n.split(".")[-1] == "bias"]
    assert [p.shape for p in biases] == [(16,)]
    x = maps(1, 8, 3, 6, 6, dimensions=dimensions)
    before = layer(x)
    with torch.no_grad():
        biases[0] += 1.5
    torch.testing.assert_close(layer(x), before + 1.5)
    unbiased = create_conv(name, 8, 16, 3, padding=1, bias=False, dimensions=dimensions, **options)
    assert not any(n.endswith("bias") for n, _ in unbiased.named_parameters())


def test_every_parameter_gets_a_gradient(name, options, dimensions):
    layer = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options)
    layer(maps(2, 8, 3, 6, 6, dimensions=dimensions)).square().sum().backward()
    for n, p in layer.named_parameters():
        assert p.grad is not None, n
        assert p.grad.isfinite().all(), n
        assert p.grad.abs().sum() > 0, n


def test_gradcheck(name, options, dimensions):
    layer = tensor_conv(name, 2, 4, 3, padding=1, dimensions=dimensions, **options).double()
    x = maps(1, 2, 3, 3, 3, dimensions=dimensions, dtype=torch.float64, requires_grad=True)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    inputs = (x, *parameters.values())
    fast = dimensions == 3  # in one random direction: all of them took as long as all other cases together
    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


def test_bfloat16_autocast_is_close_and_trains(name, options, dimensions):
    layer = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options)
    x = maps(2, 8, 3, 6, 6, dimensions=dimensions)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.1)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_follows_the_module_to_another_dtype(name, options, dimensions, dtype):
    layer = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options).to(dtype)
    assert layer(maps(1, 8, 3, 6, 6, dimensions=dimensions, dtype=dtype)).dtype == dtype


def test_channels_last(name, options, dimensions):
    layer = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options)
    # On one thread torch's 1x1x1 convolutions give up the format for fewer volumes than these.
    x = maps(16, 8, 3, 6, 6, dimensions=dimensions)
    expected = layer(x)
    channels_last = CHANNELS_LAST[dimensions]
    y = layer.to(memory_format=channels_last)(x.to(memory_format=channels_last))
    assert y.is_contiguous(memory_format=channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_compiles_without_graph_breaks(name, options, dimensions):
    if dimensions == 3 and options:
        pytest.skip("takes seconds, for the same code")
    layer = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options)
    x = maps(2, 8, 3, 6, 6, dimensions=dimensions)
    expected = layer(x)
    layer.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(layer(x), expected)


def test_state_dict_copy_and_pickle_round_trips(name, options, dimensions):
    layer = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options)
    x = maps(1, 8, 3, 6, 6, dimensions=dimensions)
    expected = layer(x)
    other = tensor_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)


def test_same_seed_same_layer(name, options, dimensions):
    torch.manual_seed(3)
    first = create_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options).state_dict()
    torch.manual_seed(3)
    second = create_conv(name, 8, 16, 3, padding=1, dimensions=dimensions, **options).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_dense_weight_is_the_layer(name, options, dimensions):
    layer = create_conv(name, 8, 16, 5, stride=2, padding=2, dimensions=dimensions, **options)
    if not isinstance(layer, SynthesisedConv):
        pytest.skip("has no synthesised weight")
    for groups in (1, 4):
        layer = create_conv(name, 8, 16, 5, stride=2, padding=2, groups=groups, dimensions=dimensions, **options)
        x = maps(2, 8, 3, 9, 12, dimensions=dimensions)
        dense = CONVOLVE[dimensions](x, layer.dense_weight(), layer.bias, 2, 2, 1, groups)
        torch.testing.assert_close(layer(x), dense, rtol=1e-5, atol=1e-5)


def test_fuse_changes_nothing_but_the_cost(name, options, dimensions):
    layer = create_conv(name, 8, 16, 5, padding=2, dimensions=dimensions, **options)
    if not isinstance(layer, SynthesisedConv):
        pytest.skip("has no synthesised weight")
    x = maps(2, 8, 3, 9, 12, dimensions=dimensions)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    expected = layer(x)
    layer.eval()
    layer.fuse()
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-5)
    assert layer.state_dict().keys() == state.keys()

    other = create_conv(name, 8, 16, 5, padding=2, dimensions=dimensions, **options)
    layer.load_state_dict(other.state_dict())  # a fused layer follows what it loads
    torch.testing.assert_close(layer(x), other(x), rtol=1e-6, atol=1e-5)
    other.load_state_dict(state)
    layer.load_state_dict(state)
    layer.unfuse()
    assert torch.equal(layer(x), other(x))

    layer.fuse()
    layer.train()
    assert layer.fused_weight is None
    with pytest.raises(RuntimeError, match=r"call eval\(\) first"):
        layer.fuse()
    layer.eval()
    with torch.autocast("cpu", torch.bfloat16):
        layer.fuse()
    assert layer(x).dtype == torch.float32


def test_even_kernels_are_refused_or_plain(name, options, dimensions):
    if name == "octave" and options.get("alpha") != 0:
        with pytest.raises(ValueError, match="padding = dilation"):
            variant_of(name, dimensions, **options).conv(8, 16, 4, stride=2, padding=1)
        return
    layer = variant_of(name, dimensions, **options).conv(8, 16, 4, stride=2, padding=1)
    assert type(layer) is CONVS[dimensions]
    if name in ("standard", "depthwise_separable", "octave"):
        return
    with pytest.raises(ValueError, match="odd kernel_size"):
        tensor_conv(name, 8, 16, 4, dimensions=dimensions, **options)


def test_only_octave_takes_pointwise_and_transposed_layers(name, options, dimensions):
    variant = variant_of(name, dimensions, **options)
    takes_all = name == "octave" and options.get("alpha") != 0
    convs = {2: OctaveConv2d, 3: OctaveConv3d} if takes_all else CONVS
    transposed = {2: OctaveConvTranspose2d, 3: OctaveConvTranspose3d} if takes_all else TRANSPOSED_CONVS
    assert type(variant.conv(8, 16, 1)) is convs[dimensions]
    assert type(variant.conv_transpose(8, 16, 2, stride=2)) is transposed[dimensions]


@pytest.mark.parametrize("kernel_size", [(3, 1, 7), (1, 7, 1)])
def test_kernels_of_one_row_or_column(name, options, dimensions, kernel_size):
    kernel_size = kernel_size[-dimensions:]
    padding = tuple(size // 2 for size in kernel_size)
    layer = on_tensors(variant_of(name, dimensions, **options).conv(8, 16, kernel_size, padding=padding))
    x = maps(1, 8, 3, 6, 6, dimensions=dimensions)
    y = layer(x)
    assert y.shape == (1, 16, *x.shape[2:])
    assert y.isfinite().all()


def test_variant_kernel_size_keeps_output_sizes(name, options, dimensions):
    variant = variant_of(name, dimensions, kernel_size=7, **options)
    layer = on_tensors(variant.conv(8, 16, 3, stride=2, padding=2, dilation=2))
    x = maps(1, 8, 5, 15, 12, dimensions=dimensions)
    assert layer(x).shape == CONVS[dimensions](8, 16, 3, 2, 2, 2)(x).shape


def test_variant_adds_up_the_parts_of_a_concatenation(name, options, dimensions):
    layer = on_tensors(variant_of(name, dimensions, **options).conv((4, 4), 16, 3, padding=1))
    x = maps(1, 8, 3, 5, 5, dimensions=dimensions)
    assert layer(x).shape == (1, 16, *x.shape[2:])


def test_spec_round_trips_through_json(name, options, dimensions):
    variant = variant_of(name, dimensions, kernel_size=5, **options)
    again = build_variant(json.loads(json.dumps(variant.spec))).in_dimensions(dimensions)
    assert json.dumps(again.spec) == json.dumps(variant.spec)
    assert type(again) is type(variant)
    copied = pickle.loads(pickle.dumps(variant))
    assert (copied.spec, copied.dimensions) == (variant.spec, dimensions)


def test_unknown_option_names_the_nearest(name, options, dimensions):
    with pytest.raises(UnknownNameError, match="kernel_size"):
        build_variant({"name": name, "kernel_sise": 3, **options})


def test_duplicate_names_are_refused(name, options, dimensions):
    with pytest.raises(ValueError, match="registered already"):
        register_conv(name)(type("Other", (SpatialVariant,), {}))


def test_he_variance_of_the_dense_filters(name, options, dimensions):
    layer = create_conv(name, 64, 64, 5, padding=2, dimensions=dimensions, **options)
    if not isinstance(layer, SynthesisedConv):
        pytest.skip("has no synthesised weight")
    energy = layer.dense_weight().square().flatten(1).sum(1).mean().item()
    assert math.isclose(energy, 2, rel_tol=0.35)
