import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models import create_model
from models.analysis import analyse, latency
from models.convs import build_variant


def on_meta(builder, *args, **kwargs):
    """A network without memory: enough to analyse it."""
    with torch.device("meta"):
        return builder(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "receptive_field", "stride"),
    [("alexnet", 195, 32), ("vgg16", 212, 32), ("resnet18", 435, 32), ("inception_v3", 1311, 32)],
)
def test_published_receptive_fields(name, receptive_field, stride):
    """Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks" (Distill, 2019)."""
    options = {"init_weights": False} if name == "inception_v3" else {}
    analysis = analyse(on_meta(getattr(torchvision.models, name), **options), (1, 3, 299, 299))
    assert analysis.receptive_field == (receptive_field, receptive_field)
    assert analysis.output_stride == stride


@pytest.mark.parametrize(("name", "receptive_field"), [("mobilenetv1_100", 315), ("inception_v4", 2071)])
def test_published_receptive_fields_of_timm_networks(name, receptive_field):
    assert analyse(on_meta(timm.create_model, name)).receptive_field == (receptive_field, receptive_field)


def test_resnet50_with_strides_in_its_1x1_convolutions_is_the_published_one():
    network = on_meta(torchvision.models.resnet50)
    assert analyse(network).receptive_field == (427, 427)
    for module in network.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    assert analyse(network).receptive_field == (483, 483)


def test_vgg16_layer_by_layer():
    analysis = analyse(on_meta(torchvision.models.vgg16))
    by_name = {layer.name: layer for layer in analysis.layers}
    assert by_name["features.29"].receptive_field == (196, 196)
    assert by_name["features.30"].receptive_field == (212, 212)
    assert by_name["features.30"].output_shapes == ((1, 512, 7, 7),)
    assert by_name["features.30"].output_stride == 32
    assert by_name["classifier.0"].receptive_field is None
    assert analysis.parameters == 138_357_544
    assert analysis.ended_by == "adaptive_avg_pool2d"


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "convnext_atto", "seresnet18", "densenet121"])
def test_receptive_field_is_the_same_at_any_size(name):
    network = on_meta(timm.create_model, name)
    usual, small = analyse(network, (1, 3, 225, 225)), analyse(network, (1, 3, 32, 32))
    assert usual.receptive_field == small.receptive_field
    assert usual.output_stride == small.output_stride == 32
    assert usual.ended_by == "mean"


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_counts_are_those_of_torch_and_layers_sum_up(name):
    network = timm.create_model(name).eval()
    analysis = analyse(network, (2, 3, 224, 224))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, 224, 224))
    assert analysis.macs == counter.get_total_flops() / 2
    assert analysis.parameters == sum(p.numel() for p in network.parameters())
    assert sum(layer.parameters for layer in analysis.layers) == analysis.parameters
    assert sum(layer.macs for layer in analysis.layers) == analysis.macs


def test_transformer_layers_of_torch_are_counted():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Transposed(), layer)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 16, 16))
    assert analyse(network, (1, 3, 16, 16)).macs == counter.get_total_flops() / 2
    assert torch.backends.mha.get_fastpath_enabled()


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_stack_of_3x3(depth):
    network = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(depth)))
    analysis = analyse(network, (1, 2, 4, 4))
    assert analysis.receptive_field == (2 * depth + 1, 2 * depth + 1)
    assert (analysis.output_stride, analysis.ended_by) == (1, "output")


def test_dilated_stack_and_unequal_axes():
    network = nn.Sequential(*(nn.Conv2d(1, 1, (3, 5), (1, 2), dilation=(2**n, 1)) for n in range(3)))
    analysis = analyse(network, (1, 1, 64, 64))
    assert analysis.receptive_field == (1 + 2 * 7, 1 + 4 * 7)
    assert analysis.output_stride == (1, 8)


@pytest.mark.parametrize(
    ("upsampling", "receptive_field"),
    [
        (nn.Upsample(scale_factor=2), 4),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3)), 8),
        (nn.ConvTranspose2d(1, 1, 2, 2), 4),
        (nn.ConvTranspose2d(1, 1, 4, 2, 1), 8),
    ],
)
def test_down_and_up(upsampling, receptive_field):
    analysis = analyse(nn.Sequential(nn.AvgPool2d(4), upsampling), (1, 1, 64, 64))
    assert analysis.receptive_field == (receptive_field, receptive_field)
    assert analysis.output_stride == 2


def test_enlarging_network_has_a_stride_below_one():
    analysis = analyse(nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2)), (1, 1, 8, 8))
    assert analysis.output_stride == 0.5


class Octave(nn.Module):
    """Full- and half-resolution maps that exchange twice, then pooled together or returned."""

    def __init__(self, pooled):
        super().__init__()
        self.entry = nn.Conv2d(1, 2, 3, 2, 1)
        names = [f"{source}{target}" for source in "hl" for target in "hl"]
        self.convolutions = nn.ModuleDict({name: nn.Conv2d(2, 2, 3, padding=1) for name in names})
        self.pooled = pooled

    def forward(self, x):
        high = self.entry(x)
        low = F.avg_pool2d(high, 2, ceil_mode=True)
        for _ in range(2):
            up = F.interpolate(self.convolutions["lh"](low), high.shape[2:])
            down = F.avg_pool2d(high, 2, ceil_mode=True)
            high, low = (
                self.convolutions["hh"](high) + up,
                self.convolutions["ll"](low) + self.convolutions["hl"](down),
            )
        if not self.pooled:
            return high
        return torch.cat([F.adaptive_avg_pool2d(part, 1) for part in (high, low)], 1).flatten(1)


@pytest.mark.parametrize("size", [33, 64, 101])
def test_two_resolutions(size):
    # Over two 3x3 convolutions a low value sees 5 low ones: 10 of the entry's, 2 pixels apart, that see 3 pixels each.
    assert analyse(Octave(pooled=True), (1, 1, size, size)).receptive_field == (21, 21)
    assert analyse(Octave(pooled=False), (1, 1, size, size)).output_stride == 2
    assert analyse(Octave(pooled=True), (1, 1, size, size)).output_stride == 2


def test_average_pooling_over_the_whole_map_is_the_global_pooling():
    body = nn.Conv2d(3, 4, 3, 2, 1)
    network = nn.Sequential(body, nn.ReLU(), nn.AvgPool2d(8), nn.Conv2d(4, 2, 1), nn.Flatten())
    analysis = analyse(network, (1, 3, 16, 16))
    assert (analysis.receptive_field, analysis.ended_by) == ((3, 3), "avg_pool")
    followed = nn.Sequential(body, nn.AvgPool2d(8), nn.Conv2d(4, 2, 3, padding=1), nn.Flatten())
    assert analyse(followed, (1, 3, 16, 16)).receptive_field == (17 + 32, 17 + 32)


class Several(nn.Module):
    def __init__(self, container):
        super().__init__()
        self.small, self.large = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 5, 2)
        self.container = container

    def forward(self, x):
        return self.container(self.small(x), self.large(x))


@pytest.mark.parametrize(
    "container", [lambda a, b: (a, b), lambda a, b: [b, a], lambda a, b: {"out": a, "aux": {"deep": b}}]
)
def test_several_outputs_count_with_the_largest_field(container):
    analysis = analyse(Several(container), (1, 1, 16, 16))
    assert analysis.receptive_field == (5, 5)
    assert analysis.output_stride == 2


def test_volumes():
    network = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 3)), nn.MaxPool3d(2), nn.Conv3d(2, 2, 3), nn.AdaptiveAvgPool3d(1))
    analysis = analyse(network, (1, 1, 16, 16, 16))
    assert analysis.receptive_field == (2 + 4, 4 + 4, 4 + 4)
    assert analysis.output_stride == 2


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 6)])
def test_octave_volumes(size):
    variant = build_variant("octave").in_dimensions(3)
    network = nn.Sequential(
        variant.conv(1, 4, 3, padding=1, position="entry"), variant.conv(4, 2, 3, padding=1, position="exit")
    )
    analysis = analyse(network, (1, 1, *size))
    # A low value sees 3 low ones after the first convolution and 5 after the second, each of two voxels.
    assert analysis.receptive_field == (10, 10, 10)
    assert (analysis.output_stride, analysis.ended_by) == (1, "output")
    high, low = math.prod(size), math.prod((side + 1) // 2 for side in size)
    entry, last = analysis.layers
    assert entry.output_shapes == ((1, 2, *size), (1, 2, *((side + 1) // 2 for side in size)))
    assert entry.macs == 27 * 2 * (high + low)
    assert last.macs == 27 * 4 * (high + low)


class Synthesised(nn.Module):
    """Kernel computed from parameters, then factorised into 1x1, depthwise and 1x1."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = 3, 8, (5, 5)
        self.sigma = nn.Parameter(torch.ones(4))
        self.mix = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        offsets = torch.arange(-2, 3, dtype=x.dtype)
        profile = torch.exp(-0.5 * (offsets / self.sigma[:, None]) ** 2)
        kernels = torch.einsum("ni,nj->nij", profile, profile)
        blurred = F.conv2d(self.mix(x), kernels[:, None], padding=2, groups=4)
        return F.conv2d(blurred, kernels.flatten(1).repeat(2, 1)[:, :4, None, None])


def test_synthesised_kernels_do_not_disturb():
    analysis = analyse(nn.Sequential(Synthesised(), nn.ReLU()), (1, 3, 16, 16))
    assert analysis.receptive_field == (5, 5)
    layer = analysis.layers[0]
    assert isinstance(layer.module, Synthesised)
    assert (layer.parameters, layer.macs, layer.receptive_field) == (4 + 16, analysis.macs, (5, 5))
    assert [layer.name for layer in analysis.layers] == ["0", "1"]


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Conv2d(2, 2, 1, bias=False)
        self.tied = nn.Conv2d(2, 2, 1, bias=False)
        self.tied.weight = self.head.weight

    def forward(self, x):
        return self.tied(self.head(self.conv(self.conv(x)))) * self.scale


def test_layers_that_are_shared_unused_or_no_leaf():
    network = Shared()
    network.conv.requires_grad_(False)
    analysis = analyse(network, (1, 2, 4, 4))
    layers = analysis.layers
    assert [layer.name for layer in layers] == ["", "conv", "conv", "head", "tied", "unused"]
    assert [layer.macs for layer in layers[1:3]] == [16 * 2 * 2 * 9] * 2
    assert [layer.receptive_field for layer in layers[1:3]] == [(3, 3), (5, 5)]
    assert layers[-1].output_shapes == ()
    assert [layer.parameters for layer in layers] == [1, 38, 0, 4, 0, 16]
    assert [layer.calls for layer in layers] == [1, 1, 1, 1, 1, 0]
    assert analysis.parameters == 59
    assert analysis.trainable_parameters == 59 - 38


def test_calls_that_differ_in_nothing_but_the_batch_are_one_layer():
    network = create_model("slice_wise", network="unet", network_options={"widths": [2, 4]}, batch_size=3)
    analysis = analyse(network, (1, 1, 8, 8, 7))
    assert {layer.calls for layer in analysis.layers} == {3}  # slices 0 to 2, 3 to 5, and 6
    assert len({layer.name for layer in analysis.layers}) == len(analysis.layers)
    assert sum(layer.macs for layer in analysis.layers) == analysis.macs


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, [
        m.training for m in network.modules()
    ]


def test_nothing_is_left_behind():
    network = torchvision.models.resnet18(num_classes=3)
    network.layer1.eval()
    tensors, flags = state_of(network)
    attributes, random_state = set(network.__dict__), torch.get_rng_state()
    analyse(network, (2, 3, 64, 64))
    latency(network, (2, 3, 32, 32), repeats=1)
    after_tensors, after_flags = state_of(network)
    assert flags == after_flags
    assert all(torch.equal(tensors[name], after_tensors[name]) for name in tensors)
    assert all(parameter.grad is None for parameter in network.parameters())
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert set(network.__dict__) == attributes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_noise_in_the_network_leaves_the_random_state():
    network = nn.Sequential(nn.Conv2d(1, 1, 3), Noisy())
    state = torch.get_rng_state()
    assert analyse(network, (1, 1, 8, 8)).receptive_field == (3, 3)
    assert torch.equal(torch.get_rng_state(), state)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_own_dtype():
    assert analyse(nn.Conv2d(1, 1, 3).to(torch.bfloat16), (1, 1, 8, 8)).macs == 36 * 9


def test_too_small_input():
    network = torchvision.models.squeezenet1_1()
    with pytest.raises(ValueError, match=r"SqueezeNet cannot take input_size \(1, 3, 4, 4\).*too small") as error:
        analyse(network, (1, 3, 4, 4))
    assert isinstance(error.value.__cause__, RuntimeError)
    assert not any(module._forward_hooks for module in network.modules())
    assert network.training


def test_wrong_channels():
    with pytest.raises(ValueError, match=r"input_size \(1, 1, 8, 8\)"):
        analyse(nn.Conv2d(3, 1, 3), (1, 1, 8, 8))


@pytest.mark.parametrize("input_size", [(3, 224, 224), (224,), 224, (1, 3, 0, 8), (1, 3, 8.0, 8), (1,) * 6])
def test_no_input_size(input_size):
    with pytest.raises(ValueError, match=r"input_size must be \(batch, channels, height, width\)"):
        analyse(nn.Conv2d(3, 1, 3), input_size)


def test_latents_have_no_receptive_field():
    network = nn.Sequential(nn.Linear(5, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 3, 2, 2))
    analysis = analyse(network, (7, 5))
    assert analysis.macs == 7 * (5 * 16 + 4 * 3 * 4 * 4)
    assert (analysis.receptive_field, analysis.output_stride) == (None, None)
    assert [layer.output_shapes for layer in analysis.layers][-1] == ((7, 3, 4, 4),)
    with pytest.raises(ValueError, match=r"Sequential cannot take input_size \(7, 6\)"):
        analyse(network, (7, 6))


def test_latency():
    milliseconds = latency(nn.Conv2d(3, 4, 3), (1, 3, 16, 16), repeats=3)
    assert 0 < milliseconds < math.inf
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        latency(nn.Conv2d(3, 4, 3), (1, 3, 16, 16), repeats=0)
    with pytest.raises(ValueError, match="input_size"):
        latency(nn.Conv2d(3, 4, 3), (1, 3, 2, 2))
