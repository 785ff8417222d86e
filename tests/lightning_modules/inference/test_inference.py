"""`Inference`: exact where it may be, the composition of tiles, flips and scales, and what it refuses."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.inference import Inference
from lightning_modules.inference.tiling import tile_axis
from models import create_model
from models.analysis import analyse

MIRRORS = ["horizontal", "vertical", "horizontal+vertical"]


def tiny_network(classes: int = 3, seed: int = 0) -> nn.Module:
    """Convolutions around one pooling and one upsampling; its downsampling factor is 2."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 5, padding=2),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 6, 2, stride=2),
            nn.Conv2d(6, classes, 3, padding=1),
        ).eval()


def identity(images: Tensor) -> Tensor:
    return images


# ------------------------------------------------------------------------------------------------- one pass, identity


def test_one_pass_is_the_network_itself():
    network, images = tiny_network(), torch.randn(2, 1, 18, 24)
    with torch.no_grad():
        logits = network(images)
    assert torch.equal(Inference(average="logits")(network, images), logits)
    assert torch.equal(Inference()(network, images), logits.log_softmax(1))


@pytest.mark.parametrize("seed", range(40))
def test_identity_comes_back(seed):
    """Whatever the tiles and flips: the logits themselves, or their log-softmax."""
    rng = random.Random(seed)
    axes = rng.choice((2, 3))
    flips = [*MIRRORS, "diagonal", "diagonal+vertical", *(["depth", "depth+horizontal"] if axes == 3 else [])]
    average = rng.choice(("probabilities", "logits"))
    inference = Inference(
        tile_size=rng.choice((None, rng.randint(2, 9), [rng.randint(2, 9) for _ in range(axes)])),
        overlap=rng.choice((0, 0.3, 0.5)),
        window=rng.choice(("uniform", "hann", "gaussian")),
        flips=rng.sample(flips, rng.randint(0, 3)),
        merge_flips=rng.choice(("average", "mean_logits")),
        batch_size=rng.randint(1, 5),
        average=average,
    )
    logits = torch.randn(rng.randint(1, 2), 4, *(rng.randint(1, 15) for _ in range(axes)))
    result = inference(identity, logits)
    torch.testing.assert_close(result, logits.log_softmax(1) if average == "probabilities" else logits)


def test_scales_of_a_constant_image_are_the_constant():
    logits = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 13, 17)
    result = Inference(tile_size=8, scales=[0.5, 1, 1.7], flips=["vertical"])(identity, logits)
    torch.testing.assert_close(result, logits.log_softmax(1))


# --------------------------------------------------------------------------------------------------- tiles and wholes


def difference_to_whole(side: int, network: nn.Module | None = None, **options) -> Tensor:
    """Largest difference over classes (side, side) between tiled logits and those of the whole image."""
    network = network or tiny_network()
    images = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(1))
    tiled = Inference(average="logits", **options)(network, images)
    return (tiled - Inference(average="logits")(network, images)).abs().amax((0, 1))


def margin_of(network: nn.Module, downsampling: int) -> int:
    field = analyse(network, (1, 1, 64, 64)).receptive_field
    assert field is not None
    return max(field) // 2 + downsampling


def test_tiles_equal_the_whole_inside_the_receptive_field():
    """Nine tiles without overlap: they differ from the whole at their inner borders only."""
    margin = margin_of(tiny_network(), 2)
    difference = difference_to_whole(288, tile_size=96, overlap=0, align=2)
    pixels = torch.arange(288)
    inside = torch.stack([(pixels - border + 0.5).abs() > margin for border in (96, 192)]).all(0)
    assert inside.sum() == 288 - 4 * margin
    assert difference[inside][:, inside].max() < 1e-5
    assert difference[~inside].max() > 1e-3


@pytest.mark.parametrize("window", ["uniform", "hann", "gaussian"])
@pytest.mark.parametrize("side", [304, 302])
def test_with_a_margin_tiles_equal_the_whole_everywhere(window, side):
    margin = margin_of(tiny_network(), 2)
    difference = difference_to_whole(side, tile_size=96, overlap=0.4, window=window, margin=margin, align=2)
    assert difference.max() < 1e-5


def test_tiles_off_the_grid_are_another_function():
    """Of a network that downsamples: pooling windows begin at the tile's corner, so an odd start shifts them."""
    margin = margin_of(tiny_network(), 2)
    options = {"tile_size": 96, "overlap": 0.4, "margin": margin}
    odd = difference_to_whole(302, align=1, **options)  # 302 - 96 = 206 in four steps: the second starts at 51
    assert odd.max() > 1e-2
    same_size_filters = nn.Conv2d(1, 3, 5, padding=2).eval()
    assert difference_to_whole(302, same_size_filters, align=1, **options).max() < 1e-5


@pytest.mark.slow
def test_a_large_image_in_tiles_equals_the_whole():
    margin = margin_of(tiny_network(), 2)
    difference = difference_to_whole(1000, tile_size=256, overlap=0.25, margin=margin, align=2)
    assert difference.max() < 1e-4


@pytest.mark.slow
def test_a_large_image_in_tiles_of_the_unet_equals_the_whole():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = create_model("unet", in_channels=1, num_classes=2, widths=(9, 18, 36), kernel_size=5).eval()
    margin = margin_of(unet, 4)
    difference = difference_to_whole(1000, unet, tile_size=256, overlap=0.5, margin=margin, align=4)
    assert difference.max() < 1e-4


# -------------------------------------------------------------------------------------------------- flips and scales


@pytest.mark.parametrize("merge_flips", ["average", "mean_logits"])
def test_all_mirrors_make_the_result_symmetric(merge_flips):
    network, images = tiny_network(), torch.randn(1, 1, 20, 28)
    inference = Inference(flips=MIRRORS, merge_flips=merge_flips)
    result = inference(network, images)
    for axes in ((3,), (2,), (2, 3)):
        torch.testing.assert_close(inference(network, images.flip(axes)), result.flip(axes))
    plain = Inference()
    assert (plain(network, images.flip(3)) - plain(network, images).flip(3)).abs().max() > 1e-2


def test_what_flips_are_merged_to():
    network, images = tiny_network(), torch.randn(2, 1, 20, 28)
    with torch.no_grad():
        a, b = network(images), network(images.flip(3)).flip(3)

    def merged(**options) -> Tensor:
        return Inference(flips=["horizontal"], **options)(network, images)

    torch.testing.assert_close(merged(), ((a.softmax(1) + b.softmax(1)) / 2).log())
    torch.testing.assert_close(merged(merge_flips="mean_logits"), ((a + b) / 2).log_softmax(1))
    torch.testing.assert_close(merged(merge_flips="sum_logits"), (a + b).log_softmax(1))
    torch.testing.assert_close(merged(average="logits"), (a + b) / 2)
    torch.testing.assert_close(merged(average="logits", merge_flips="sum_logits"), a + b)


def stacked_unets_protocol(network: nn.Module, image: Tensor, tile: int, scales: list[float]) -> Tensor:
    """Probabilities (K, H, W), step by step: tiles with 2/3 stride, logits of image and mirror summed, softmax, tiles
    averaged, resized to the image, averaged over scales. For scaled images between one and two tiles a side."""
    size = image.shape[2:]
    of_scales = []
    for scale in scales:
        height, width = (round(scale * n) for n in size)
        scaled = F.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
        total, count = torch.zeros(1, 3, height, width), torch.zeros(1, 1, height, width)
        for y in {0, height - tile}:
            for x in {0, width - tile}:
                part = scaled[:, :, y : y + tile, x : x + tile]
                logits = network(part) + network(part.flip(3)).flip(3)
                total[:, :, y : y + tile, x : x + tile] += logits.softmax(1)
                count[:, :, y : y + tile, x : x + tile] += 1
        of_scales.append(F.interpolate(total / count, size=size, mode="bilinear", antialias=True))
    return torch.stack(of_scales).mean(0)


def test_the_protocol_of_stacked_unets():
    scales = [0.8, 1, 1.25]
    inference = Inference(
        tile_size=32,
        overlap=1 / 3,
        window="uniform",
        flips=["horizontal"],
        merge_flips="sum_logits",
        scales=scales,
        average="probabilities",
    )
    network, image = tiny_network(), torch.randn(1, 1, 40, 42)
    with torch.no_grad():
        expected = stacked_unets_protocol(network, image, 32, scales)
    torch.testing.assert_close(inference(network, image), expected.log(), rtol=1e-5, atol=1e-5)


def published_protocol(network: nn.Module, image: Tensor, tile: int, scales: list[float], shorter_side: int) -> Tensor:
    """Probabilities (K, H, W) as the authors' code has them, step by step.

    The image's shorter side has so many pixels, times the scale; smaller images lie in the middle of a tile; tiles
    start at every multiple of ceil(2/3 tile), and what reaches beyond the end is pushed back.
    """
    size, stride = image.shape[2:], -(-2 * tile // 3)
    of_scales = []
    for scale in scales:
        shorter = int(scale * shorter_side)
        scaled_size = [shorter * n // min(size) for n in size]
        scaled = F.interpolate(image, size=scaled_size, mode="bilinear", antialias=True)
        sides = [max(n, tile) for n in scaled_size]
        top, left = ((side - n) // 2 for side, n in zip(sides, scaled_size, strict=True))
        canvas = torch.zeros(*image.shape[:2], *sides)
        canvas[:, :, top : top + scaled_size[0], left : left + scaled_size[1]] = scaled
        total, count = torch.zeros(1, 3, *sides), torch.zeros(1, 1, *sides)
        for row in range(-(-(sides[0] - tile) // stride) + 1):
            for column in range(-(-(sides[1] - tile) // stride) + 1):
                y, x = min(row * stride, sides[0] - tile), min(column * stride, sides[1] - tile)
                part = canvas[:, :, y : y + tile, x : x + tile]
                logits = network(part) + network(part.flip(3)).flip(3)
                total[:, :, y : y + tile, x : x + tile] += logits.softmax(1)
                count[:, :, y : y + tile, x : x + tile] += 1
        mean = (total / count)[:, :, top : top + scaled_size[0], left : left + scaled_size[1]]
        of_scales.append(F.interpolate(mean, size=size, mode="bilinear", antialias=True))
    return torch.stack(of_scales).mean(0)


def test_the_protocol_of_stacked_unets_as_published():
    """From a side of half a tile to one of four strides."""
    scales = [0.5, 1, 1.5]
    inference = Inference(
        tile_size=32,
        overlap=10 / 32,
        window="uniform",
        flips=["horizontal"],
        merge_flips="sum_logits",
        scales=scales,
        spacing="fixed",
        padding="mean",
        shorter_side=32,
    )
    network, image = tiny_network(), torch.randn(1, 1, 21, 50)
    with torch.no_grad():
        expected = published_protocol(network, image, 32, scales, 32)
    torch.testing.assert_close(inference(network, image), expected.log(), rtol=1e-5, atol=1e-5)


def test_the_stride_of_512_pixels():
    """ceil(2/3 512) = 342, as published; the whole share that one third of overlap allows is 341."""
    for overlap, stride in ((0.332, 342), (1 / 3, 341)):
        tiles = Inference(tile_size=512, overlap=overlap, spacing="fixed").tiles
        assert tiles is not None
        assert tiles.layouts[0].step == stride
        assert tile_axis(2048, tiles.layouts[0], "uniform", torch.device("cpu")).starts == (
            *(i * stride for i in range(5)),
            1536,
        )


# ------------------------------------------------------------------------------------------------- what comes back


def test_the_result_serves_argmax_softmax_and_cross_entropy():
    images, target = torch.randn(1, 1, 40, 40), torch.randint(3, (1, 40, 40))
    result = Inference(tile_size=16, flips=MIRRORS)(tiny_network(), images)
    torch.testing.assert_close(result.softmax(1), result.exp())
    torch.testing.assert_close(F.cross_entropy(result, target), F.nll_loss(result, target))


def test_hopeless_classes_have_finite_log_probabilities():
    logits = torch.tensor([0.0, 500.0]).view(1, 2, 1, 1).expand(1, 2, 20, 20)
    result = Inference(tile_size=8)(identity, logits)
    assert torch.isfinite(result).all()
    assert (result <= 0).all()


def test_no_gradient_and_tiles_usable_outside_inference_mode():
    network, images = tiny_network(), torch.randn(1, 1, 39, 41)
    inference = Inference(tile_size=18)
    with torch.inference_mode():
        first = inference(network, images)
    second = inference(network, images)
    assert not second.requires_grad
    assert torch.equal(first, second)


@pytest.mark.parametrize("images_type", [torch.float32, torch.bfloat16])
def test_reduced_precision_gives_float32(images_type):
    network, images = tiny_network(), torch.randn(1, 1, 40, 40)
    network = network.to(images_type)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Inference(tile_size=16, scales=[0.5, 1])(network, images.to(images_type))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.exp().sum(1), torch.ones(1, 40, 40))


# ------------------------------------------------------------------------------------------------------ bad input


def test_a_network_that_changes_the_size_is_told_both_sizes():
    unpadded = nn.Conv2d(1, 2, 5)
    with pytest.raises(ValueError, match="maps of 12x20 for images of 16x24"):
        Inference()(unpadded, torch.zeros(1, 1, 16, 24))
    with pytest.raises(ValueError, match="maps of 4x4 for images of 8x8"):
        Inference(tile_size=8)(unpadded, torch.zeros(1, 1, 16, 24))


def test_one_map_has_no_probabilities():
    network = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(ValueError, match=r"logits \(0, x\) of two classes, or average logits"):
        Inference()(network, torch.zeros(1, 1, 8, 8))
    assert Inference(average="logits")(network, torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8)])
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match="images must be"):
        Inference(tile_size=4)(identity, torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "votes"}, "average must be one of probabilities, logits, got 'votes'"),
        ({"merge_flips": "max"}, "merge_flips must be one of average, mean_logits, sum_logits, got 'max'"),
        ({"spacing": "odd", "tile_size": 8}, "spacing must be one of even, fixed, got 'odd'"),
        ({"padding": "zero"}, "padding must be one of mirror, mean, got 'zero'"),
        ({"shorter_side": 0}, "shorter_side must be at least 1 pixel, got 0"),
        ({"scales": []}, "scales must be positive"),
        ({"scales": [1, 0]}, r"scales must be positive .* got \[1, 0\]"),
        ({"scales": [float("inf")]}, "scales must be positive"),
        ({"flips": ["left"]}, "flips: 'left' is not one of"),
        ({"flips": ["vertical+horizontal", "horizontal+vertical"]}, "flips must differ"),
        ({"tile_size": 10, "overlap": 0.95}, "overlap 0.95 makes no progress"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Inference(**options)


# -------------------------------------------------------------------------------------------------- from a config


def test_from_yaml():
    parser = ArgumentParser()
    parser.add_argument("--inference", type=Inference | None, default=None)
    options = {"tile_size": [64, 32], "flips": ["horizontal"], "scales": [0.5, 1], "window": "uniform"}
    config = parser.parse_object(
        {"inference": {"class_path": "lightning_modules.inference.Inference", "init_args": options}}
    )
    dumped = parser.parse_string(parser.dump(config))
    assert dumped.inference.class_path == "lightning_modules.inference.Inference"
    inference = parser.instantiate_classes(dumped).inference
    assert inference.scales == (0.5, 1)
    assert [layout.tile_size for layout in inference.tiles.layouts] == [64, 32]


def test_the_package_is_light():
    script = "import lightning_modules.inference, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
