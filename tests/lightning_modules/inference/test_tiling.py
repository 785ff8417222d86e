"""Tiles: where they lie, what they weigh, and that their average is the function's own result."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.inference.tiling import SlidingWindow, continue_mirrored, continued
from models.memory import PeakMemory

WINDOWS = ("uniform", "hann", "gaussian")


def random_case(seed: int) -> tuple[SlidingWindow, Tensor]:
    """A window and images of 2 or 3 spatial axes; every case is another draw, some of axes of one pixel."""
    rng = random.Random(seed)
    axes = rng.choice((2, 2, 3))
    longest = 24 if axes == 2 else 9
    tile_size = [rng.randint(1, longest) for _ in range(axes)]
    align = rng.choice((1, 1, 2, 3))
    while True:
        try:
            window = SlidingWindow(
                tile_size if rng.random() < 0.7 else tile_size[0],
                overlap=rng.choice((0.0, 0.25, 1 / 3, 0.5, rng.random() * 0.8)),
                window=rng.choice(WINDOWS),
                margin=rng.choice((0, 0, 1, 2)),
                align=align,
                batch_size=rng.randint(1, 6),
            )
            break
        except ValueError:
            tile_size = [rng.randint(1, longest) for _ in range(axes)]
    size = [rng.choice((1, 2, rng.randint(1, 2 * longest))) for _ in range(axes)]
    return window, torch.randn(rng.randint(1, 3), 2, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(60))
def test_identity_comes_back(seed):
    window, images = random_case(seed)
    result = window(lambda tiles: tiles, images)
    assert result.shape == images.shape
    torch.testing.assert_close(result, images, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_tiles_of_one_size_cover_the_image_evenly_in_batches(seed):
    window, images = random_case(seed)
    shapes = []
    window(lambda tiles: shapes.append(tuple(tiles.shape)) or tiles, images)
    axes = window._axes(images)
    assert {shape[2:] for shape in shapes} == {tuple(axis.tile_size for axis in axes)}
    assert max(shape[0] for shape in shapes) <= window.batch_size
    assert sum(shape[0] for shape in shapes) == len(images) * math.prod(len(axis.starts) for axis in axes)
    layouts = window.layouts * len(axes) if len(window.layouts) == 1 else window.layouts
    for size, axis, layout in zip(images.shape[2:], axes, layouts, strict=True):
        assert axis.starts[0] == 0
        steps = np.diff(axis.starts)
        assert all(start % layout.align == 0 for start in axis.starts)
        assert all(0 < step <= layout.step for step in steps)
        assert len(steps) == 0 or steps.max() - steps.min() <= layout.align
        assert 0 <= axis.end - max(size, layout.tile_size) < layout.align


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tile_size", [1, 2, 5, 512, 4096])
def test_weights_are_positive_and_sum_to_one(window, tile_size):
    size = 3 * tile_size + 1
    (axis,) = SlidingWindow(tile_size, 0.5 if tile_size > 1 else 0.0, window)._axes(torch.empty(1, 1, size))
    assert (axis.weights > 0).all()
    sums = torch.zeros(size)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        sums[start : start + tile_size] += weights
    torch.testing.assert_close(sums, torch.ones(size), rtol=1e-6, atol=0)


def reference(predict, images: Tensor, size: int, starts: tuple[list[int], ...], weight: Tensor, order: random.Random):
    """The weighted average by its definition, in float64: sum of w f over sum of w, tiles in random order."""
    values = torch.zeros(images.shape, dtype=torch.float64)
    weights = torch.zeros(images.shape[2:], dtype=torch.float64)
    positions = list(product(*starts))
    order.shuffle(positions)
    for y, x in positions:
        values[:, :, y : y + size, x : x + size] += weight * predict(images[:, :, y : y + size, x : x + size]).double()
        weights[y : y + size, x : x + size] += weight
    return values / weights


@pytest.mark.parametrize("window", WINDOWS)
def test_the_average_is_the_one_defined_in_any_order(window):
    rows = torch.arange(8, dtype=torch.float64) + 0.5
    profile = {
        "uniform": torch.ones(8, dtype=torch.float64),
        "hann": torch.sin(math.pi * rows / 8) ** 2,
        "gaussian": torch.exp(-((rows - 4) ** 2) / 2),
    }[window]
    images = torch.randn(2, 3, 19, 14)

    def predict(tiles: Tensor) -> Tensor:  # depends on where in its tile a pixel lies
        return tiles.cumsum(2).flip(3).cumsum(3)

    starts = ([0, 3, 7, 11], [0, 3, 6])  # at most 4 apart, and the last ends with the image
    expected = reference(predict, images, 8, starts, torch.outer(profile, profile), random.Random(0))
    for batch_size in (1, 3, 100):
        result = SlidingWindow(8, 0.5, window, batch_size=batch_size)(predict, images)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_margin_counts_only_where_no_border_of_the_image_is():
    """A function that marks the outer pixels of each tile: with a margin they stay at the image's border only."""

    def border(tiles: Tensor) -> Tensor:
        marked = torch.ones_like(tiles)
        marked[:, :, 2:-2, 2:-2] = 0
        return marked

    images = torch.zeros(1, 1, 30, 23)
    expected = border(images)
    assert torch.equal(SlidingWindow(10, 0.4, margin=2)(border, images), expected)
    assert not torch.equal(SlidingWindow(10, 0.4, margin=1)(border, images), expected)


def test_overlap_is_kept_in_spite_of_rounding():
    (axis,) = SlidingWindow(10, 0.9)._axes(torch.empty(1, 1, 20))
    assert axis.starts == tuple(range(11))


def test_an_image_of_a_tile_is_one_tile_to_the_last_bit():
    images = torch.randn(1, 2, 16, 16)
    assert torch.equal(SlidingWindow(16, 0.5, "gaussian")(lambda tiles: tiles, images), images)


@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 5), (2, 9), (3, 4), (3, 20), (7, 7)])
def test_continued_as_numpy_does(old, new):
    images = torch.randn(2, 1, old, 3)
    expected = np.pad(images.numpy(), [(0, 0), (0, 0), (0, new - old), (0, 2)], mode="reflect")
    assert np.array_equal(continue_mirrored(images, (new, 5)).numpy(), expected)


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("mirror", "reflect")])
@pytest.mark.parametrize("lost", [0, 2, 7])
def test_continued_at_all_borders_as_numpy_does(border, mode, lost):
    images = torch.randn(2, 1, 4, 3, 5)
    ends = [(lost, lost + 2), (lost, lost), (lost, lost + 1)]
    expected = np.pad(images.numpy(), [(0, 0), (0, 0), *ends], mode=mode)
    assert np.array_equal(continued(images, (6, 3, 6), lost, border).numpy(), expected)


def test_tiles_stay_channels_last():
    images = torch.randn(2, 3, 20, 20).to(memory_format=torch.channels_last)

    def check(tiles: Tensor) -> Tensor:
        assert tiles.is_contiguous(memory_format=torch.channels_last)
        return tiles

    SlidingWindow(8)(check, images)


def test_memory_is_bounded_by_a_batch_and_the_result():
    """Ten times the image costs nothing but its result, whatever the tiles."""

    def predict(tiles: Tensor) -> Tensor:
        return tiles.repeat(1, 16, 1, 1).sum(1, keepdim=True)  # 16 maps, one of which is returned

    peaks = []
    for side in (64, 640):
        images = torch.zeros(1, 1, side, side)
        with PeakMemory() as memory:
            SlidingWindow(32, 0.5, batch_size=2)(predict, images)
        peaks.append(memory.peak - images.nbytes)  # the result is as large as the image
    batch = 2 * 32 * 32 * 4
    assert max(peaks) <= 21 * batch
    assert peaks[1] - peaks[0] < 20_000  # weights along the axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 0}, "tile_size must be at least 1"),
        ({"tile_size": [8, 0]}, "tile_size must be at least 1"),
        ({"tile_size": []}, "tile_size must be at least 1"),
        ({"overlap": 1.0}, "overlap must be a fraction .* got 1.0"),
        ({"overlap": -0.1}, "overlap must be a fraction"),
        ({"overlap": math.nan}, "overlap must be a fraction"),
        ({"overlap": 0.9}, "overlap 0.9 makes no progress: tiles of tile_size 8 would start every 0.8 pixels"),
        ({"align": 8}, "overlap 0.5 makes no progress: .* align is 8"),
        ({"window": "hamming"}, "window must be one of uniform, hann, gaussian, got 'hamming'"),
        ({"margin": -1}, "margin must be at least 0"),
        ({"margin": 4}, "margin 4 at both borders leaves nothing of tile_size 8"),
        ({"margin": 3}, "leaves gaps between tiles that start every 4 pixels. Raise the overlap to 0.75"),
        ({"align": 0}, "align must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindow(**{"tile_size": 8, **options})


def test_tile_size_for_other_axes_is_named():
    with pytest.raises(ValueError, match="tile_size has 3 numbers and the images have 2 axes: give one"):
        SlidingWindow((8, 8, 8))(lambda tiles: tiles, torch.zeros(1, 1, 20, 20))
