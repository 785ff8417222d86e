"""The norms of pairs, and the beta weighting that rides on them."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from models.convs import OctavePair, build_variant
from models.convs.octave import BetaWeighting, OctaveNorm, get_betas, set_betas
from models.convs.variant import group_count


def make_pair(high: int = 3, low: int = 2, size: int = 8) -> OctavePair:
    return OctavePair.from_tensor(torch.randn(4, high + low, size, size), low)


def batch_norm(high: int = 3, low: int = 2, **options) -> OctaveNorm:
    return OctaveNorm(*(nn.BatchNorm2d(channels, **options) if channels else None for channels in (high, low)))


NORMS = {
    "batch": batch_norm,
    "batch without gains": lambda: batch_norm(affine=False),
    "group": lambda: OctaveNorm(nn.GroupNorm(1, 3), nn.GroupNorm(1, 2)),
    "instance": lambda: OctaveNorm(*(nn.InstanceNorm2d(channels, affine=True) for channels in (3, 2))),
}


def trained(norm: nn.Module, high: int = 3, low: int = 2) -> nn.Module:
    """A norm with gains, shifts and statistics of its own."""
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for _ in range(3):
        norm(make_pair(high, low))
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [(3, 2), (0, 2), (3, 0)])
def test_each_member_has_a_batch_norm_of_its_own(channels, training):
    norm = trained(batch_norm(*channels, eps=1e-3), *channels).train(training)
    x = make_pair(*channels)
    parts = copy.deepcopy((norm.high, norm.low))
    expected = [None if part is None else part(member) for part, member in zip(parts, x, strict=True)]
    for found, value in zip(norm(x), expected, strict=True):
        assert (found is None and value is None) or torch.equal(found, value)
    assert norm(x).full_size == x.full_size


def test_a_tensor_is_refused():
    with pytest.raises(TypeError, match="takes an OctavePair, got Tensor"):
        batch_norm()(torch.randn(2, 5, 4, 4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", NORMS)
def test_betas_weight_the_members(kind, training):
    norm = trained(NORMS[kind]()).train(training)
    weighted = copy.deepcopy(norm)
    set_betas(weighted, 0.7, 0.3)
    x = make_pair()
    expected, found = norm(x), weighted(x)
    torch.testing.assert_close(found.high, 0.7 * expected.high)
    torch.testing.assert_close(found.low, 0.3 * expected.low)
    for (name, value), other in zip(norm.named_buffers(), weighted.buffers(), strict=True):
        assert name.startswith("beta") or torch.equal(value, other), name
    set_betas(weighted, 1, 1)
    for member, value in zip(weighted(x), norm(x), strict=True):
        assert torch.equal(member, value)


@pytest.mark.parametrize("kind", ["batch", "group", "instance"])
def test_gains_and_shifts_learn_through_the_weighting(kind):
    norm = NORMS[kind]()
    set_betas(norm, 0.5, 0)
    high, low = norm(make_pair())
    (high.square().sum() + low.square().sum()).backward()
    assert norm.high.weight.grad.abs().gt(0).all()
    assert norm.low.weight.grad.abs().sum() == norm.low.bias.grad.abs().sum() == 0


def test_where_there_is_no_norm_the_betas_weight_the_maps():
    weighting = BetaWeighting()
    x = make_pair()
    assert weighting(x) is x
    set_betas(weighting, 0.25, 2)
    assert torch.equal(weighting(x).high, x.high / 4)
    assert torch.equal(weighting(x).low, x.low * 2)
    assert weighting(OctavePair(None, x.low)).channels == (0, 2)


def octave_network(norm: str = "batch") -> nn.Module:
    variant = build_variant("octave")
    return nn.Sequential(
        variant.conv(3, 4, 3, padding=1, position="entry"),
        variant.norm(4, norm, position="entry"),
        variant.conv(4, 4, 3, padding=1),
        variant.norm(4, norm),
        variant.conv(4, 1, 3, padding=1, position="exit"),
        variant.norm(1, norm, position="exit"),
    )


@pytest.mark.parametrize("kind", ["batch", "group", "instance", "none"])
def test_checkpoints_carry_the_betas(kind):
    network, other = octave_network(kind).eval(), octave_network(kind).eval()
    assert get_betas(network) == (1, 1)
    set_betas(network, 0.75, 0.25)
    assert get_betas(network) == (0.75, 0.25)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert get_betas(other) == (0.75, 0.25)
    x = torch.randn(2, 3, 9, 9)
    average = AveragedModel(network)
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network)), average):
        assert torch.equal(twin(x), network(x))
    set_betas(average, 1, 1)
    assert get_betas(network) == (0.75, 0.25)
    assert not torch.equal(average(x), network(x))


def test_networks_without_octave_norms_have_no_betas():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    set_betas(network, 0.5, 0.5)
    assert get_betas(network) is None
    variant = build_variant({"name": "octave", "alpha": 0})
    assert get_betas(nn.Sequential(variant.conv(3, 4, 1), variant.norm(4))) is None


@pytest.mark.parametrize("kind", ["batch", "group", "instance", "none"])
def test_a_change_of_betas_reaches_a_compiled_network(kind):
    torch._dynamo.reset()  # how often it may compile anew is counted over all networks of one class
    network = octave_network(kind).eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 8, 8)
    for betas in ((1, 1), (0.7, 0.3), (0.5, 0.5), (1, 1)):
        set_betas(network, *betas)
        torch.testing.assert_close(compiled(x), network(x))


def test_bfloat16_stays_under_autocast():
    for affine in (True, False):
        norm = batch_norm(affine=affine)
        set_betas(norm, 0.7, 0.3)
        assert norm(make_pair().bfloat16()).dtype == torch.bfloat16
    weighting = BetaWeighting()
    set_betas(weighting, 0.7, 0.3)
    assert weighting(make_pair().bfloat16()).dtype == torch.bfloat16


def test_a_trained_norm_is_split_with_its_values():
    norm = nn.BatchNorm2d(5, eps=1e-3, momentum=0.2)
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(norm.running_var)
    x = make_pair(size=2)
    split = OctaveNorm.from_norm(norm, (3, 2)).eval()
    norm.eval()
    same = torch.cat([x.high, x.low.expand(-1, -1, 2, 2)], 1)
    torch.testing.assert_close(split(x).to_tensor(), norm(same))
    assert (split.low.eps, split.low.momentum, split.low.num_features) == (1e-3, 0.2, 2)
    assert OctaveNorm.from_norm(norm, (0, 5)).high is None
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in norm.parameters())


def test_norms_without_statistics_are_split_too():
    instance = nn.InstanceNorm2d(5, affine=True)
    group = nn.GroupNorm(4, 20)
    for norm in (instance, group):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = make_pair()
    split = OctaveNorm.from_norm(instance, (3, 2))
    torch.testing.assert_close(split(x).high, instance(torch.cat([x.high, x.high], 1)[:, :5])[:, :3])
    assert torch.equal(split.low.bias, instance.bias[3:])

    split = OctaveNorm.from_norm(group, (12, 8))
    assert [(part.num_groups, part.num_channels) for part in (split.high, split.low)] == [(4, 12), (4, 8)]
    assert torch.equal(split.low.weight, group.weight[12:])
    x = make_pair(12, 8)
    torch.testing.assert_close(split(x).high, F.group_norm(x.high, 4, group.weight[:12], group.bias[:12]))
    assert OctaveNorm.from_norm(nn.GroupNorm(1, 8), (4, 4)).high.num_groups == 1  # a norm over all channels stays one


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (9, 3), (18, 9), (36, 18), (37, 1), (64, 32), (256, 32)]
)
def test_group_norms_divide_their_channels(channels, groups):
    assert group_count(channels) == groups
    assert build_variant("standard").norm(channels, "group").num_groups == groups


def test_kinds_of_norms_for_tensors():
    variant = build_variant("standard")
    assert type(variant.norm((4, 5), "instance")) is nn.InstanceNorm2d
    kinds = {kind: sum(p.numel() for p in variant.norm((4, 5), kind).parameters()) for kind in ("batch", "group")}
    assert kinds == {"batch": 18, "group": 18}
    assert variant.norm(9, "instance").weight.numel() == 9
    with pytest.raises(ValueError, match=r"Did you mean 'group'\? Valid: batch, group, instance, none"):
        variant.norm(9, "grup")
