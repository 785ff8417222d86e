"""Networks that pad nothing, on images and volumes: whole and in tiles."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.inference import Inference
from models import create_model
from models.analysis import analyse
from models.patch_sizes import output_sides
from tests.helpers.networks import trained

MARGIN = 3
VOLUME_FLIPS = ["+".join(names) for n in (1, 2, 3) for names in combinations(("horizontal", "vertical", "depth"), n)]


def stack(axes: int, *, padded: bool) -> nn.Module:
    """A 3 and a 5 wide convolution of the same weights, whether they pad or not."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
    with torch.random.fork_rng():
        torch.manual_seed(axes)
        layers = [conv(1, 4, 3, padding=int(padded)), nn.ReLU(), conv(4, 3, 5, padding=2 * int(padded))]
    return nn.Sequential(*layers).eval()


def image(*size: int) -> Tensor:
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))


def logits(network: nn.Module, images: Tensor, lost: int = 0, fits=None, **options) -> Tensor:
    return Inference(average="logits", **options)(network, images, lost, fits)


@pytest.mark.parametrize("size", [(14, 17), (9, 12, 10)])
def test_one_pass_covers_the_image(size):
    images = image(*size)
    network = stack(len(size), padded=False)
    with torch.no_grad():
        expected = network(F.pad(images, [MARGIN] * (2 * len(size))))
    assert torch.equal(logits(network, images, MARGIN), expected)
    with torch.no_grad():
        expected = network(F.pad(images, [MARGIN] * (2 * len(size)), mode="reflect"))
    assert torch.equal(logits(network, images, MARGIN, border="mirror"), expected)
    assert torch.equal(Inference(border="mirror")(network, images, MARGIN), expected.log_softmax(1))


@pytest.mark.parametrize("size", [(14, 17), (9, 12, 10)])
def test_padded_and_unpadded_agree_inside_the_margin(size):
    inner = (..., *[slice(MARGIN, -MARGIN)] * len(size))
    padded = logits(stack(len(size), padded=True), image(*size))
    for border in ("zeros", "mirror"):
        unpadded = logits(stack(len(size), padded=False), image(*size), MARGIN, border=border)
        torch.testing.assert_close(unpadded[inner], padded[inner], rtol=0, atol=1e-5)
        assert (unpadded - padded).abs().max() > 1e-2


@pytest.mark.parametrize("border", ["zeros", "mirror"])
@pytest.mark.parametrize("seed", range(8))
def test_tiles_equal_the_whole_everywhere(seed, border):
    """Of any size and overlap, also larger than the image, mirrored too; no pixel of a tile needs to be left out."""
    rng = random.Random(seed)
    axes = 2 + seed % 2
    size = [rng.randint(7, 26 if axes == 2 else 13) for _ in range(axes)]
    network = stack(axes, padded=False)
    options = {"flips": rng.sample(["horizontal", "vertical", "diagonal"], 2) if seed > 3 else [], "border": border}
    whole = logits(network, image(*size), MARGIN, **options)
    tiled = logits(
        network,
        image(*size),
        MARGIN,
        tile_size=rng.choice((8, [rng.randint(3, 10) for _ in range(axes)])),
        overlap=rng.choice((0, 0.25, 0.5)),
        window=rng.choice(("uniform", "hann", "gaussian")),
        batch_size=rng.randint(1, 6),
        **options,
    )
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_small_images_in_the_middle_of_tiles():
    network = stack(2, padded=False)
    tiled = logits(network, image(7, 20), MARGIN, tile_size=10, padding="mean")
    torch.testing.assert_close(tiled, logits(network, image(7, 20), MARGIN), rtol=0, atol=1e-5)


def test_scales():
    """Each scale is continued by the margin, after it was resized."""
    network, images = stack(2, padded=False), image(16, 12)
    enlarged = F.interpolate(images, scale_factor=2, mode="bilinear", antialias=True)
    expected = F.interpolate(logits(network, enlarged, MARGIN), size=(16, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(logits(network, images, MARGIN, scales=[2]), expected)


# ------------------------------------------------------------------------------------------------ the suite's networks

NETWORKS = {
    "unet": {"widths": [3, 4], "kernel_size": 3, "convs_per_level": 1},
    "fcn": {"widths": [3, 4], "output_stride": 2},
    "deepmedic": {"widths": [3, 3], "classifier_widths": [4]},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_tiles_of_unpadded_networks_equal_the_whole(name, dimensions):
    torch.manual_seed(0)
    network = trained(create_model(name, dimensions=dimensions, in_channels=1, padding="valid", **NETWORKS[name]))
    tile = min(side for side in output_sides(network, 8, 5) if side >= 2 * network.multiple)
    images = image(*(tile + 5, tile + 3, 4)[:dimensions])
    whole = logits(network, images, network.margin, network.fits)
    assert whole.shape == (1, 2, *images.shape[2:])
    options = {"tile_size": tile, "overlap": 0.3, "align": network.multiple}
    tiled = logits(network, images, network.margin, network.fits, **options)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_tiles_of_a_padded_volume_network_equal_the_whole():
    torch.manual_seed(0)
    network = trained(create_model("unet", dimensions=3, in_channels=1, padding="same", **NETWORKS["unet"]))
    field = analyse(network, (1, 1, 32, 32, 32)).receptive_field
    assert field is not None
    margin = max(field) // 2 + network.multiple
    tile = 3 * margin + margin % 2
    images = image(tile + 4, tile + 6, tile)
    options = {"tile_size": tile, "overlap": 0.67, "align": network.multiple}
    whole = logits(network, images)
    assert (logits(network, images, **options) - whole).abs().max() > 1e-3
    torch.testing.assert_close(logits(network, images, **options, margin=margin), whole, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ volumes


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("tile_size", [None, 6])
def test_all_mirrors_make_volumes_symmetric(padded, tile_size):
    network, images = stack(3, padded=padded), image(8, 10, 6)
    inference = Inference(flips=VOLUME_FLIPS, tile_size=tile_size)
    margin = 0 if padded else MARGIN
    result = inference(network, images, margin)
    for axes in ((2,), (3,), (4,), (2, 4), (2, 3, 4)):
        torch.testing.assert_close(inference(network, images.flip(axes), margin), result.flip(axes))


# ---------------------------------------------------------------------------------------------------------- bad input


def test_tiles_that_a_network_cannot_give_are_named_with_their_neighbours():
    def fits(side: int) -> bool:
        return side % 4 == 2

    network, images = stack(2, padded=False), image(12, 12)
    with pytest.raises(ValueError, match="no tile of tile_size 9 along an axis: the nearest are 6 or 10"):
        Inference(tile_size=9)(network, images, MARGIN, fits)
    with pytest.raises(ValueError, match=r"no tile of tile_size 1 along an axis: the nearest are 2$"):
        Inference(tile_size=[6, 1])(network, images, MARGIN, fits)
    with pytest.raises(ValueError, match="no output of 12 to 4107 pixels a side"):
        Inference()(network, images, MARGIN, lambda side: False)


def test_another_margin_is_told():
    with pytest.raises(ValueError, match=r"maps of 12x12 for images of 18x18 .* less its margin of 2 at each border"):
        Inference()(stack(2, padded=False), image(14, 14), margin=2)


def test_an_unknown_border_is_named():
    with pytest.raises(ValueError, match="border must be one of zeros, mirror, got 'reflect'"):
        Inference(border="reflect")
