"""Generated images as pixels: from a network's range to bytes, and many of them as one picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Pixels between the images of a grid.
GAP = 2
# Smaller images are enlarged for the eye.
LEAST_SIDE = 64


def to_uint8(images: Tensor) -> Tensor:
    """Images of any floating type in [-1, 1] as uint8, rounded to the nearest of 256 levels; same shape and device.

    What lies outside of the range is clipped. Bytes b that were spread to b / 127.5 - 1 come back exactly, if they were
    kept in float32.

    Raises:
        TypeError: `images` are of an integer type: they are bytes already, or not in [-1, 1].
    """
    if not images.is_floating_point():
        raise TypeError(f"images in [-1, 1] are of a floating type, got {images.dtype}")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images uint8 (N, C, H, W), C of 1 or 3, row by row on white: uint8 (height, width, 3), on the CPU.

    Images smaller than 64 pixels are enlarged by the least whole factor that makes them as large, so every pixel shows.

    Raises:
        ValueError: `images` are not uint8 of one or three channels.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}")
    factor = -(-LEAST_SIDE // min(images.shape[2:]))
    enlarged = images.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = -(-len(images) // columns)
    _, _, height, width = enlarged.shape
    tiles = enlarged.new_full((rows * columns, 3, height + GAP, width + GAP), 255)
    tiles[: len(images), :, :height, :width] = enlarged
    grid = tiles.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return grid[:-GAP, :-GAP].contiguous().numpy()
