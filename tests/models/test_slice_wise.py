"""Networks of images on volumes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.inference import Inference
from models import create_model
from models.slice_wise import SliceWise
from models.trial import try_out
from tests.helpers.networks import trained

UNET = {"widths": [3, 4], "kernel_size": 3, "convs_per_level": 1}


def slice_wise(conv: str | dict = "standard", unet: dict | None = None, **options) -> SliceWise:
    torch.manual_seed(0)
    options = {"in_channels": 2, "num_classes": 3, **options}
    return trained(
        create_model("slice_wise", conv, network="unet", network_options={**UNET, **(unet or {})}, **options)
    )


def volume(*size: int) -> Tensor:
    return torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_slice_is_an_image(axis):
    network, volumes = slice_wise(axis=axis), volume(5, 6, 7)
    with torch.no_grad():
        logits = network(volumes)
        assert logits.shape == (2, 3, 5, 6, 7)
        for i in range(volumes.shape[2 + axis]):
            expected = network.network(volumes.select(2 + axis, i))
            torch.testing.assert_close(logits.select(2 + axis, i), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_slices_are_channels(axis):
    """So that a convolution of images over them is one of volumes, which pads with zeros."""
    network = slice_wise(slices=5, axis=axis)
    network.network = torch.nn.Conv2d(10, 3, 3, padding=1)
    volumes = volume(5, 6, 7)
    weight = network.network.weight.unflatten(1, (2, 5)).movedim(2, 2 + axis)
    padding = [1, 1, 1]
    padding[axis] = 2
    expected = F.conv3d(volumes, weight, network.network.bias, padding=padding)
    torch.testing.assert_close(network(volumes), expected, rtol=1e-5, atol=1e-5)


def test_batches_of_slices_change_nothing_and_training_sees_all_at_once():
    few, many = slice_wise(slices=3, batch_size=2), slice_wise(slices=3, batch_size=100)
    many.load_state_dict(few.state_dict())
    seen = []
    few.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        torch.testing.assert_close(few(volume(8, 6, 5)), many(volume(8, 6, 5)))
    assert seen == [2, 2, 2, 2, 2]
    few.train()(volume(8, 6, 5)).sum().backward()
    assert seen[5:] == [10]
    assert all(parameter.grad is not None for parameter in few.parameters())


@pytest.mark.parametrize("slices", [1, 3])
def test_without_padding_volumes_lose_the_margin_along_all_axes(slices):
    network = slice_wise(unet={"padding": "valid"}, slices=slices)
    margin = network.network.margin
    assert network.margin == margin > 0
    side = next(n for n in range(4, 100) if network.fits(n))
    volumes = volume(side + 2 * margin, side + 2 * margin, 3 + 2 * margin)
    with torch.no_grad():
        logits = network(volumes)
        assert logits.shape == (2, 3, side, side, 3)
        seen = volumes[..., margin : margin + slices].movedim(-1, 2).flatten(1, 2)
        torch.testing.assert_close(logits[..., slices // 2], network.network(seen), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_whole_volumes_in_tiles(padding):
    """Without padding tiles equal the whole; with it they do in the slices' plane where the tile has all slices."""
    network = slice_wise(unet={"padding": padding}, slices=3)
    volumes = volume(9, 12, 5)[:1]
    unpadded = {"margin": network.margin, "fits": network.fits} if network.margin else {}
    whole = Inference(average="logits")(network, volumes, **unpadded)
    assert whole.shape == (1, 3, 9, 12, 5)
    side = next(n for n in range(6, 100) if network.fits(n))
    tiles = Inference(tile_size=side, overlap=0.3, align=network.multiple, average="logits")
    tiled = tiles(network, volumes, **unpadded)
    assert tiled.shape == whole.shape
    if network.margin:
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("conv", ["standard", {"name": "octave", "alpha": 0.5}])
def test_variants_and_a_trial_pass(conv):
    network = slice_wise(conv, slices=3, axis=0)
    assert network(volume(3, 16, 16)).shape == (2, 3, 3, 16, 16)
    example = torch.empty(1, *network.image_shape, device="meta")
    assert try_out(network, example).shape == (1, 3, *example.shape[2:])


def test_networks_that_know_no_margin():
    network = create_model(
        "slice_wise", network="sunet_64", in_channels=1, num_classes=2, network_options={"head": "segment"}
    )
    assert network.margin == 0
    assert network.fits(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": 2}, "slices must be odd and positive, one and as many on both sides; got 2"),
        ({"axis": 3}, "axis must be 0, 1 or 2, got 3"),
        ({"batch_size": 0}, "batch_size must be at least 1 slice, got 0"),
        ({"slices": 99, "unet": {"padding": "valid"}}, r"slices 99 reach 49 to each side, and 'unet' loses \d+ voxels"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        slice_wise(**options)


def test_what_is_no_volume_is_refused():
    with pytest.raises(ValueError, match=r"slice_wise takes volumes \(N, C, X, Y, Z\), got shape \(1, 2, 8, 8\)"):
        slice_wise()(torch.zeros(1, 2, 8, 8))
    network = slice_wise(unet={"padding": "valid"})
    with pytest.raises(ValueError, match=rf"needs more than {2 * network.margin} slices, got 3"):
        network(torch.zeros(1, 2, 60, 60, 3))
