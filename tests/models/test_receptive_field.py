"""Dependence maps against the truth: which input rows have a gradient on each output row."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.convs import build_variant
from models.receptive_field import Ended, FeatureMap, SpatialTracer

MARGIN = 40  # rows this near to a border may see it


def trace(network, x):
    tracer = SpatialTracer()
    with torch.no_grad(), tracer:
        tracer.watch(x)
        return tracer.note(network(x))


def true_interval(output, x, row):
    (gradient,) = torch.autograd.grad(output[:, :, row].sum(), x, retain_graph=True)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    return (int(rows[0]), int(rows[-1])) if len(rows) else None


def assert_map_is_true(network, rows=144, columns=8, channels=4):
    """Every interior row's interval, to the pixel."""
    network = network.double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)  # positive: nothing cancels, no rectifier is closed
    x = torch.rand(1, channels, rows, columns, dtype=torch.double, requires_grad=True)
    output = network(x)
    note = trace(network, x.detach())
    assert isinstance(note, FeatureMap)
    axis_map = note.axis_maps[0]
    checked = 0
    for row in range(output.shape[2]):
        expected = axis_map[row]
        if expected is not None and (expected[0] < MARGIN or expected[1] >= rows - MARGIN):
            continue
        assert true_interval(output, x, row) == expected, row
        checked += 1
    assert checked >= len(axis_map.intervals)


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Sum(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return sum(branch(x) for branch in self.branches)


def conv(kernel_size=3, channels=4, **geometry):
    return nn.Conv2d(channels, 4, (kernel_size, 1), **geometry)


def space_to_depth(x):
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, c * 4, h // 2, w // 2)


def depth_to_space(x):
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, h * 2, w * 2)


def rows_by_unfold(x):
    n, c, h, w = x.shape
    return F.unfold(x, (5, 1), padding=(4, 0), dilation=(2, 1)).view(n, c, 5, h, w).sum(2)


CASES = {
    "convolution": conv(5, stride=(2, 1), padding=(2, 0), dilation=(3, 1)),
    "same": conv(4, padding="same", dilation=(2, 2)),
    "average pool": nn.AvgPool2d((3, 2), (2, 2), (1, 0), ceil_mode=True),
    "lp pool": nn.LPPool2d(2, (3, 1)),
    "dilated after nearest": nn.Sequential(nn.Upsample(scale_factor=2), conv(dilation=(2, 1))),
    "transposed k2s2": nn.ConvTranspose2d(4, 4, 2, 2),
    "transposed k4s2": nn.ConvTranspose2d(4, 4, 4, 2, 1),
    "transposed k3s2": nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1, dilation=1),
    "transposed dilated": nn.ConvTranspose2d(4, 4, (3, 1), (2, 1), dilation=(3, 1)),
    "transposed with holes": nn.ConvTranspose2d(4, 4, (2, 1), (3, 1)),
    "nearest 3/2": nn.Upsample(scale_factor=1.5),
    "nearest exact": nn.Upsample(scale_factor=3, mode="nearest-exact"),
    "nearest down": Do(lambda x: F.interpolate(x, scale_factor=0.5)),
    "bilinear 2": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear 3": nn.Upsample(scale_factor=3, mode="bilinear"),
    "bilinear 4/3": nn.Upsample(scale_factor=(4 / 3, 1), mode="bilinear"),
    "bilinear down": nn.Upsample(scale_factor=0.5, mode="bilinear"),
    "bilinear antialiased": Do(lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)),
    "bicubic 2": nn.Upsample(scale_factor=2, mode="bicubic"),
    "bicubic 3": nn.Upsample(scale_factor=3, mode="bicubic"),
    "bicubic antialiased": Do(lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)),
    "pixel shuffle": nn.Sequential(nn.PixelShuffle(2), conv(channels=1)),
    "pixel unshuffle": nn.PixelUnshuffle(2),
    "depth to space": nn.Sequential(Do(depth_to_space), conv(channels=1)),
    "space to depth": nn.Sequential(Do(space_to_depth), conv(channels=16)),
    "repeat interleave": nn.Sequential(Do(lambda x: x.repeat_interleave(3, 2)), conv()),
    "unfold": Do(rows_by_unfold),
    "tensor unfold": Do(lambda x: x.unfold(2, 5, 2).sum(-1)),
    "reflection": nn.ReflectionPad2d((0, 0, 3, 1)),
    "replication": nn.Sequential(nn.ReplicationPad2d((0, 0, 3, 1)), conv(5)),
    "crops": Do(lambda x: x[:, :, 3:-2] + x[:, :, :-5] + x[:, :, 5:]),
    "every third": Do(lambda x: x[:, :, 1::3]),
    "flipped": Do(lambda x: F.avg_pool2d(x.flip(2), (4, 1), 1).flip(2)),
    "rolled": Do(lambda x: x + x.roll(2, 2)),
    "channels last linear": nn.Sequential(
        conv(),
        Do(lambda x: x.permute(0, 2, 3, 1)),
        nn.LayerNorm(4),
        nn.Linear(4, 6),
        Do(lambda x: x.permute(0, 3, 1, 2)),
    ),
    "positions merged": Do(lambda x: (torch.ones(3, 4).double() @ x.flatten(2)).unflatten(2, x.shape[2:])),
    "einsum": Do(lambda x: torch.einsum("oc,nchw->nohw", torch.ones(3, 4).double(), x)),
    "channel shuffle": Do(lambda x: x.view(1, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)),
    "split and joined": Do(lambda x: torch.cat([*x.chunk(2, 1), torch.stack(x.unbind(1), 1)[:, [0, 2]]], 1)),
    "channel statistics": Do(lambda x: torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)),
    "response norm": nn.LocalResponseNorm(3),
    "pointwise": nn.Sequential(nn.BatchNorm2d(4).eval(), nn.PReLU(), nn.Hardswish(), nn.GLU(1)),
    "written in place": Do(lambda x: F.relu_(F.avg_pool2d(x, (3, 1), 1, (1, 0)).add_(x))),
}


@pytest.mark.parametrize("name", CASES)
def test_every_interval_is_the_true_one(name):
    assert_map_is_true(CASES[name])


def random_layer(draw):
    size, dilation = draw.randint(1, 5), draw.randint(1, 3)
    return draw.choice(
        [
            lambda: conv(size, padding=(draw.randint(0, size), 0), dilation=(dilation, 1)),
            lambda: conv(size, stride=(2, 1), padding=(size // 2, 0)),
            lambda: nn.AvgPool2d((2, 1)),
            lambda: nn.AvgPool2d((3, 1), (2, 1), (1, 0)),
            lambda: nn.ConvTranspose2d(4, 4, (draw.randint(1, 4), 1), (2, 1), (draw.randint(0, 1), 0)),
            lambda: nn.Upsample(scale_factor=(2, 1), mode=draw.choice(["nearest", "bilinear"])),
            lambda: Sum(nn.Identity(), conv(5, padding=(2, 0))),
            # An octave's exchange: full and half resolution, merged.
            lambda: nn.Sequential(
                Do(lambda x: x[:, :, : x.shape[2] // 2 * 2]),
                Sum(
                    conv(3, padding=(1, 0)),
                    nn.Sequential(nn.AvgPool2d((2, 1)), conv(3, padding=(1, 0)), nn.Upsample(scale_factor=(2, 1))),
                ),
            ),
        ]
    )()


@pytest.mark.parametrize("seed", range(25))
def test_random_networks(seed):
    draw = random.Random(seed)
    network = nn.Sequential(*(random_layer(draw) for _ in range(draw.randint(2, 5))))
    assert_map_is_true(network, rows=360, columns=1)


class Pyramid(nn.Module):
    """Three levels down and up again, onto the sizes that were, whether or not they halve."""

    def __init__(self, mode):
        super().__init__()
        self.down = nn.ModuleList([conv(padding=(1, 0)) for _ in range(3)])
        self.up = nn.ModuleList([conv(padding=(1, 0), channels=8) for _ in range(2)])
        self.mode = mode

    def forward(self, x):
        maps = []
        for level in self.down:
            maps.append(level(x))
            x = F.avg_pool2d(maps[-1], (2, 1), ceil_mode=True)
        x = maps.pop()
        for level in self.up:
            skip = maps.pop()
            x = level(torch.cat([F.interpolate(x, skip.shape[2:], mode=self.mode), skip], 1))
        return x


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_encoder_decoder(mode):
    assert_map_is_true(Pyramid(mode))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 9, 21, 30, 31, 33, 143])
def test_encoder_decoder_is_the_same_at_any_size(mode, rows):
    network = Pyramid(mode).double()
    usual, odd = (trace(network, torch.zeros(1, 4, size, 1).double()) for size in (144, rows))
    assert odd.axis_maps[0] == usual.axis_maps[0]


def octave_network(conv):
    """Pairs that exchange, are halved by a stride and by pooling, doubled by both upsamplings, and end as a tensor."""
    return nn.Sequential(
        conv.conv(4, 4, 3, padding=1, position="entry"),
        conv.norm(4, "group"),
        nn.ReLU(),
        conv.conv(4, 4, 3, stride=2, padding=1),
        {2: nn.MaxPool2d, 3: nn.MaxPool3d}[conv.dimensions](2),
        conv.conv(4, 4, 3, padding=1),
        nn.Upsample(scale_factor=2),
        conv.conv_transpose(4, 4, 4, stride=2, padding=1),
        conv.conv(4, 4, 1, position="exit"),
    )


FACTORISED = {"name": "gaussian", "separated": True, "order": 0}
OF_VARIANTS = {
    "octave": ("octave", octave_network),
    "octave, low alone": ({"name": "octave", "alpha": 1.0}, octave_network),
    "convolution": ("standard", lambda conv: conv.conv(4, 4, 5, stride=2, padding=2, dilation=3)),
    "gaussian": ("gaussian", lambda conv: conv.conv(4, 4, 5, padding=2)),
    "gaussian, factorised": (FACTORISED, lambda conv: conv.conv(4, 64, 5, padding=2)),
    "depthwise separable": ("depthwise_separable", lambda conv: conv.conv(4, 4, 3)),
    "transposed k2s2": ("standard", lambda conv: conv.conv_transpose(4, 4, 2, stride=2)),
    "transposed k3s2": ("standard", lambda conv: conv.conv_transpose(4, 4, 3, stride=2, padding=1, output_padding=1)),
    "nearest": ("standard", lambda conv: nn.Sequential(nn.Upsample(scale_factor=3), conv.conv(4, 4, 3))),
    "linear": (
        "standard",
        lambda conv: nn.Upsample(scale_factor=2, mode={2: "bilinear", 3: "trilinear"}[conv.dimensions]),
    ),
}


@pytest.mark.parametrize("name", OF_VARIANTS)
def test_volumes_are_seen_as_images_are(name):
    spec, make = OF_VARIANTS[name]
    conv = build_variant(spec)
    of_images = trace(make(conv), torch.zeros(1, 4, 16, 16)).axis_maps
    of_volumes = trace(make(conv.in_dimensions(3)), torch.zeros(1, 4, 16, 16, 16)).axis_maps
    assert of_images[0] == of_images[1]
    assert of_volumes == (of_images[0],) * 3


def test_octave_volumes_to_the_voxel():
    """Each output's interval along each axis, by gradients."""
    variant = build_variant("octave").in_dimensions(3)
    network = nn.Sequential(
        variant.conv(1, 2, 3, padding=1, position="entry"),
        variant.conv(2, 2, 3, padding=1),
        variant.conv(2, 1, 1, position="exit"),
    ).double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.rand(1, 1, 18, 20, 22, dtype=torch.double, requires_grad=True)
    output = network(x)
    maps = trace(network, x.detach()).axis_maps
    for voxel in ((8, 9, 10), (9, 10, 11), (8, 10, 11)):
        (gradient,) = torch.autograd.grad(output[0, 0][voxel], x, retain_graph=True)
        seen = gradient[0, 0].nonzero()
        found = [*zip(seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True)]
        assert found == [maps[axis][index] for axis, index in enumerate(voxel)]


def gate(x):
    return x * x.mean((2, 3), keepdim=True).sigmoid()


def context(x):
    weights = x.mean(1).flatten(1).softmax(1).unsqueeze(2)
    return x + (x.flatten(2) @ weights).unsqueeze(3)


def image_branch(x):
    pooled = F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:], mode="bilinear")
    return torch.cat([x, pooled], 1)


@pytest.mark.parametrize(
    "function", [gate, context, image_branch, nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Softmax(2)]
)
def test_what_is_computed_from_the_whole_image_does_not_count(function):
    note = trace(nn.Sequential(conv(), Do(function)), torch.rand(2, 4, 16, 12))
    assert [axis_map.extent for axis_map in note.axis_maps] == [3, 1]


def attention(x):
    tokens = x.flatten(2).transpose(1, 2)
    mixed = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
    return x + mixed.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    ("function", "by", "pooled"),
    [
        (lambda x: x.mean((2, 3)), "mean", True),
        (lambda x: x.mean(2), "mean", True),
        (lambda x: x.std(), "std", True),
        (lambda x: F.adaptive_max_pool2d(x, 1).flatten(1), "adaptive_max_pool2d", True),
        (lambda x: F.linear(x.flatten(1), torch.ones(5, x[0].numel())), ("addmm", "mm"), False),
        (attention, "bmm", False),
        (
            lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3),
            ("bmm", "scaled_dot_product"),
            False,
        ),
        (lambda x: x + x.transpose(2, 3), "add", False),
        (lambda x: x + x.flip(2), "add", False),
        (lambda x: x[:, :, 0], "select", False),
        (lambda x: x.cumsum(2), "cumsum", False),
        (lambda x: x + torch.fft.fft(x).real, "fft_r2c", False),
        (lambda x: F.grid_sample(x, torch.zeros(2, 3, 3, 2), align_corners=False), "grid_sampler_2d", False),
        (lambda x: torch.cat([x, x], 2), "cat", False),
        (lambda x: x.roll(1), "roll", False),
    ],
)
def test_where_the_spatial_part_ends(function, by, pooled):
    note = trace(nn.Sequential(conv(), Do(function)), torch.rand(2, 4, 12, 10))
    assert isinstance(note, Ended)
    assert note.pooled is pooled
    (reason,) = note.by
    assert reason.startswith(by)
    assert {tuple(axis_map.extent for axis_map in maps) for maps in note.last_maps} == {(3, 1)}


def test_what_no_image_reached_has_no_note():
    weight = torch.ones(4, 4, 3, 3)
    tracer = SpatialTracer()
    with tracer:
        tracer.watch(torch.zeros(1, 4, 8, 8))
        assert tracer.note(torch.exp(weight) @ weight) is None


def test_factories_take_no_values():
    note = trace(Do(lambda x: torch.zeros_like(x) + x.new_ones(4, 1, 1)), torch.rand(1, 4, 8, 8))
    assert note is None


def test_inference_mode_is_seen_through():
    network = nn.Sequential(conv(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    tracer = SpatialTracer()
    with torch.inference_mode(), tracer:
        x = torch.rand(1, 4, 16, 16)
        tracer.watch(x)
        note = tracer.note(network(x))
    ((rows, _),) = note.last_maps
    assert rows.extent == 4
