"""OctavePair: what it is as an object, and what torch functions, methods and operators do to it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from models.convs import OctavePair
from models.convs.octave.pair import low_channels, pool_down, upsample


def pair_of(high: int = 3, low: int = 2, size: tuple[int, int] = (6, 5), batch: int = 2, **options) -> OctavePair:
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    return OctavePair(
        torch.randn(batch, high, *size, **options) if high else None,
        torch.randn(batch, low, *half, **options) if low else None,
        size,
    )


def assert_same(pair: OctavePair, high: torch.Tensor | None, low: torch.Tensor | None) -> None:
    assert isinstance(pair, OctavePair)
    for member, expected in zip(pair, (high, low), strict=True):
        assert (member is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(member, expected)


# The object.


def test_it_looks_like_one_tensor_and_unpacks_like_a_tuple():
    pair = pair_of(dtype=torch.float64)
    high, low = pair
    assert high is pair.high is pair[0]
    assert low is pair.low is pair[1]
    assert len(pair) == 2
    assert pair.shape == pair.size() == (2, 5, 6, 5)
    assert (pair.size(1), pair.ndim, pair.dim(), pair.dtype, pair.device) == (5, 4, 4, torch.float64, high.device)
    assert pair.channels == (3, 2)
    assert not pair.requires_grad
    assert repr(pair) == "OctavePair(high=(2, 3, 6, 5), low=(2, 2, 3, 3))"


def test_an_absent_member_is_none_and_the_full_size_is_known():
    low = torch.randn(1, 4, 3, 3)
    assert OctavePair(None, low, (5, 6)).shape == (1, 4, 5, 6)
    assert OctavePair(None, low).full_size == (6, 6)
    assert OctavePair(torch.randn(1, 4, 3, 3), None).channels == (4, 0)
    assert OctavePair(None, low, (5, 6)).to_tensor().shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None), "needs a high or a low member"),
        ((torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 2, 2)), r"has a low member of \(3, 3\).*got \(2, 2\)"),
        ((torch.zeros(1, 1, 5, 5), None, (6, 6)), "is not the size that was given"),
        ((None, torch.zeros(1, 1, 2, 2), (5, 5)), "half of it rounded up"),
    ],
)
def test_members_that_do_not_belong_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        OctavePair(*arguments)


def test_low_channels_are_floors_and_sums_of_floors():
    assert [low_channels(alpha, 10) for alpha in (0, 0.25, 0.5, 0.99, 1)] == [0, 2, 5, 9, 10]
    assert low_channels(0.5, (9, 9)) == 8
    assert low_channels(0.5, 18) == 9


@pytest.mark.parametrize("low", [0, 2, 5])
@pytest.mark.parametrize("size", [(1, 1), (5, 6), (7, 3)])
def test_from_a_tensor_and_back(size, low):
    x = torch.randn(2, 5, *size)
    pair = OctavePair.from_tensor(x, low)
    assert pair.shape == x.shape
    assert pair.channels == (5 - low, low)
    back = pair.to_tensor()
    assert torch.equal(back[:, : 5 - low], x[:, : 5 - low])
    # What was averaged once stays as it is.
    assert_same(OctavePair.from_tensor(back, low), *pair)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1001])
def test_upsampling_repeats_and_pooling_averages_blocks(size):
    low = torch.arange((size + 1) // 2.0)[None, None, :, None].repeat(1, 1, 1, (size + 1) // 2)
    high = upsample(low, (size, size))
    assert torch.equal(high[0, 0, :, 0], torch.arange(size).div(2, rounding_mode="floor").float())
    assert torch.equal(pool_down(high), low)


def test_it_is_a_pytree_node_and_copies_and_pickles():
    pair = pair_of(high=0, size=(5, 5))
    assert len(tree_leaves([pair, 1])) == 2
    assert tree_map(lambda leaf: leaf + 1, pair).full_size == (5, 5)
    assert tree_map(lambda leaf: "text", pair_of()).low == "text"
    for twin in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert_same(twin, *pair)
        assert twin.full_size == (5, 5)


# Functions of each member.


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        torch.relu,
        lambda x: x.relu(),
        lambda x: F.relu(x.clone(), inplace=True),
        lambda x: x.clone().relu_(),
        lambda x: F.leaky_relu(x, 0.2),
        nn.LeakyReLU(0.1, inplace=False),
        F.relu6,
        F.elu,
        F.selu,
        F.celu,
        F.gelu,
        F.silu,
        F.mish,
        F.hardswish,
        F.hardsigmoid,
        F.hardtanh,
        F.softplus,
        F.softsign,
        F.logsigmoid,
        F.tanhshrink,
        torch.sigmoid,
        torch.tanh,
        lambda x: x.sigmoid(),
        lambda x: x.clamp(-1, 0.5),
        torch.abs,
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: x.square().add(1).sqrt().log(),
        lambda x: x.detach().clone().contiguous(),
        lambda x: x.to(torch.float64),
        lambda x: x.float().double().half().bfloat16(),
        lambda x: -x * 3 + 1 - x / 2,
        lambda x: 2 - x,
        lambda x: 2 * x + 1,
        lambda x: x**2,
        lambda x: x.clone().mul_(0.5).add_(x),
        torch.zeros_like,
    ],
)
def test_elementwise_functions_act_on_both_members(function):
    pair = pair_of()
    assert_same(function(pair), function(pair.high), function(pair.low))
    low_only = pair_of(high=0, size=(5, 5))
    assert_same(function(low_only), None, function(low_only.low))
    assert function(low_only).full_size == (5, 5)


def test_dropout_draws_for_both_members():
    x = OctavePair(torch.ones(1, 50, 8, 8), torch.ones(1, 50, 4, 4))
    for dropout in (nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()):
        for member in dropout(x):
            assert 0 < member.ne(member.max()).float().mean() < 1


def test_prelu_splits_its_slopes():
    pair, slopes = pair_of(), torch.rand(5)
    assert_same(F.prelu(pair, slopes), F.prelu(pair.high, slopes[:3]), F.prelu(pair.low, slopes[3:]))
    assert_same(nn.PReLU()(pair), F.leaky_relu(pair.high, 0.25), F.leaky_relu(pair.low, 0.25))


def test_two_pairs():
    a, b = pair_of(), pair_of()
    assert_same(a + b, a.high + b.high, a.low + b.low)
    assert_same(torch.maximum(a, b), torch.maximum(a.high, b.high), torch.maximum(a.low, b.low))
    assert_same(a * OctavePair.from_tensor(torch.ones(2, 5, 1, 1), 2), a.high, a.low)
    a += b
    assert isinstance(a, OctavePair)
    with pytest.raises(ValueError, match="same channels"):
        a + pair_of(high=2, low=3)
    with pytest.raises(ValueError, match="same channels and sizes"):
        pair_of(high=0, size=(5, 5)) + pair_of(high=0, size=(6, 6))


@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (1, 5, 1, 1), (5, 1, 1)])
def test_a_gate_is_split_like_the_channels(shape):
    pair, gate = pair_of(), torch.rand(shape)
    high, low = gate.split((3, 2), dim=-3)
    assert_same(pair * gate, pair.high * high, pair.low * low)
    assert_same(gate * pair, pair.high * high, pair.low * low)
    assert_same(pair.mul(gate), pair.high * high, pair.low * low)


def test_tensors_of_one_value_or_of_full_size():
    pair = pair_of()
    keep = torch.rand(2, 1, 1, 1)  # stochastic depth
    assert_same(pair * keep, pair.high * keep, pair.low * keep)
    scale = torch.tensor(3.0)
    assert_same(scale * pair, pair.high * 3, pair.low * 3)
    plane = torch.rand(2, 1, 6, 5)
    assert_same(pair * plane, pair.high * plane, pair.low * pool_down(plane))
    skip = torch.randn(2, 5, 6, 5)
    assert_same(pair + skip, pair.high + skip[:, :3], pair.low + pool_down(skip[:, 3:]))
    assert_same(skip - pair, skip[:, :3] - pair.high, pool_down(skip[:, 3:]) - pair.low)
    assert_same(skip / pair, skip[:, :3] / pair.high, pool_down(skip[:, 3:]) / pair.low)
    total = skip.clone()
    total += pair
    assert_same(total, pair.high + skip[:, :3], pair.low + pool_down(skip[:, 3:]))


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 5, 6, 1), (2, 5, 3, 3), (5,), (1, 2, 5, 6, 5)])
def test_tensors_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="does not fit to an octave pair"):
        pair_of() * torch.rand(shape)


# Joining, resizing, pooling.


def test_cat_joins_members():
    a, b, low_only = pair_of(), pair_of(high=1, low=4), pair_of(high=0)
    for joined in (torch.cat([a, b], 1), torch.cat((a, b), dim=-3), torch.concat([a, b], dim=1)):
        assert_same(joined, torch.cat([a.high, b.high], 1), torch.cat([a.low, b.low], 1))
    assert torch.cat([a, low_only], 1).channels == (3, 4)
    assert_same(torch.cat([low_only, low_only], 1), None, torch.cat([low_only.low] * 2, 1))
    assert torch.cat([a, a]).shape == (4, 5, 6, 5)
    with pytest.raises(ValueError, match="same channels"):
        torch.cat([a, b])
    with pytest.raises(TypeError, match="not along dimension 2"):
        torch.cat([a, a], 2)


def test_cat_with_a_tensor_gives_a_tensor():
    pair, x = pair_of(), torch.randn(2, 1, 6, 5)
    assert torch.equal(torch.cat([x, pair], 1), torch.cat([x, pair.to_tensor()], 1))


@pytest.mark.parametrize("members", [(3, 2), (0, 2), (3, 0)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 6), (7, 7)])
@pytest.mark.parametrize(
    "arguments", [{"scale_factor": 2}, {"scale_factor": (1.5, 3.0)}, {"size": (9, 4)}, {"size": 5}]
)
def test_interpolate_doubles_both(arguments, size, members):
    pair = pair_of(*members, size=size)
    x = torch.randn(2, 5, *size)
    assert F.interpolate(pair, **arguments).full_size == F.interpolate(x, **arguments).shape[2:]
    assert nn.Upsample(**arguments)(pair).full_size == F.interpolate(x, **arguments).shape[2:]
    for mode in ("bilinear", "bicubic"):
        assert F.interpolate(pair, mode=mode, **arguments).full_size == F.interpolate(x, **arguments).shape[2:]


@pytest.mark.parametrize("members", [(3, 2), (0, 2), (3, 0)])
def test_narrow_keeps_the_first_rows_or_columns(members):
    pair = pair_of(*members, size=(6, 7))
    for dim, length in ((2, 6), (2, 5), (-2, 3), (3, 6), (3, 1)):
        x = torch.narrow(pair, dim, 0, length)
        assert x.full_size == torch.narrow(torch.empty(1, 1, 6, 7), dim, 0, length).shape[2:]
        for kept, member in zip(x.members, pair.members, strict=True):
            assert torch.equal(kept, member[:, :, : kept.shape[2], : kept.shape[3]])
    assert pair.narrow(3, 0, 4).full_size == (6, 4)


@pytest.mark.parametrize("size", [(1, 1), (5, 6), (7, 7)])
def test_nearest_upsampling_of_a_pair_is_that_of_its_tensor(size):
    pair = pair_of(size=size)
    assert torch.equal(F.interpolate(pair, scale_factor=2).to_tensor(), F.interpolate(pair.to_tensor(), scale_factor=2))


@pytest.mark.parametrize("members", [(3, 2), (0, 2), (3, 0)])
@pytest.mark.parametrize("size", [(2, 2), (3, 4), (5, 6), (7, 8), (9, 10), (16, 17)])
@pytest.mark.parametrize(
    "pooling",
    [
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1),
        nn.MaxPool2d((2, 1)),
    ],
)
def test_pooling_gives_the_sizes_of_the_plain_map(pooling, size, members):
    pair = pair_of(*members, size=size)
    pooled = pooling(pair)
    assert pooled.full_size == pooling(torch.randn(1, 1, *size)).shape[2:]
    assert pooled.channels == members
    if members[0]:
        assert torch.equal(pooled.high, pooling(pair.high))
    if members[1] and size == (16, 17) and pooling.stride == 2:
        assert torch.equal(pooled.low[..., :4, :4], pooling(pair.low)[..., :4, :4])


def test_max_pooling_commutes_with_relu():
    pair = pair_of(size=(7, 7))
    assert_same(F.relu(F.max_pool2d(pair, 2)), *F.max_pool2d(F.relu(pair), 2))


def test_a_window_that_shrinks_maps_by_more_than_its_stride():
    with pytest.raises(ValueError, match="pad the window"):
        F.max_pool2d(pair_of(size=(14, 14)), 5, 1)


# The way out.


@pytest.mark.parametrize("members", [(3, 2), (0, 2), (3, 0)])
def test_global_pooling_gives_a_tensor(members):
    pair = pair_of(*members, size=(7, 6))
    expected = torch.cat([member.mean((2, 3)) for member in pair.members], 1)
    for pooled in (
        F.adaptive_avg_pool2d(pair, 1).flatten(1),
        nn.AdaptiveAvgPool2d((1, 1))(pair)[:, :, 0, 0],
        pair.mean((2, 3)),
        pair.mean(dim=[-1, -2]),
        torch.mean(pair, (2, 3), keepdim=True).flatten(1),
    ):
        torch.testing.assert_close(pooled, expected)
    largest = torch.cat([member.amax((2, 3)) for member in pair.members], 1)
    assert torch.equal(F.adaptive_max_pool2d(pair, 1).flatten(1), largest)
    assert torch.equal(pair.amax((2, 3)), largest)
    assert F.adaptive_avg_pool2d(pair, (2, 3)).shape == (2, sum(members), 2, 3)


def test_a_pair_of_one_pixel_is_a_tensor_of_its_channels():
    pair = pair_of(size=(1, 1))
    expected = torch.cat([pair.high, pair.low], 1)
    assert torch.equal(pair.flatten(1), expected[..., 0, 0])
    assert torch.equal(nn.Flatten()(pair), expected[..., 0, 0])
    assert torch.equal(pair.view(2, -1), expected[..., 0, 0])
    assert torch.equal(pair.permute(0, 2, 3, 1), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.flatten(1), "flatten has no meaning for an octave pair"),
        (lambda x: x.permute(0, 2, 3, 1), "permute has no meaning"),
        (lambda x: x.mean(), "height and width together"),
        (lambda x: x.mean(1), "height and width together"),
        (lambda x: F.pad(x, (1, 1, 1, 1)), "pad has no meaning"),
        (lambda x: x.narrow(2, 1, 2), "narrow has no meaning for an octave pair along dimension 2 from 1 on"),
        (lambda x: torch.narrow(x, 1, 0, 2), "narrow has no meaning"),
        (lambda x: F.conv2d(x, torch.ones(1, 5, 1, 1)), "conv2d has no meaning.*to_tensor"),
        (nn.Conv2d(5, 4, 1), "conv2d has no meaning.*'exit'"),
        (nn.Linear(5, 5), "linear has no meaning"),
        (nn.BatchNorm2d(5), "batch_norm has no meaning"),
        (nn.PixelShuffle(2), "pixel_shuffle has no meaning"),
        (lambda x: x[:, :2], "cannot be sliced"),
        (lambda x: torch.stack([x, x]), "stack has no meaning"),
    ],
)
def test_what_has_no_meaning_is_a_type_error(function, message):
    with pytest.raises(TypeError, match=message):
        function(pair_of())


def test_methods_and_functions_inside_a_device_context():
    """A context of torch sees every function first and passes it on."""
    pair = pair_of()
    with torch.device("meta"):
        assert_same(pair.relu() + torch.relu(pair), 2 * pair.high.relu(), 2 * pair.low.relu())
        assert torch.zeros_like(pair).low.device.type == "cpu"


def test_an_unknown_attribute_is_named():
    with pytest.raises(AttributeError, match="no attribute 'cumsum'; to_tensor"):
        pair_of().cumsum(1)


def test_everything_compiles_into_one_graph():
    def function(x, y, gate):
        x = F.leaky_relu(x * gate + y, 0.2)
        x = F.max_pool2d(F.interpolate(x, scale_factor=2), 2)
        x = torch.cat([x, x.sigmoid().mul(2) - 1], 1)
        return x, x.mean((2, 3)), F.adaptive_avg_pool2d(x, 1), x.shape

    arguments = pair_of(size=(7, 5)), pair_of(size=(7, 5)), torch.rand(2, 5, 1, 1)
    expected = function(*arguments)
    found = torch.compile(function, backend="aot_eager", fullgraph=True)(*arguments)
    assert_same(found[0], *expected[0])
    torch.testing.assert_close(found[1:], expected[1:])
