"""Masks: image files whose pixels are numbers of classes, read with every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images.image_folder import DamagedFileError, more_than_8_bits, opened_image

IGNORE_INDEX = 255
"""The class of pixels that are left out of losses and metrics."""

FOREGROUND = {0: 0, 1: 1, 255: 1}
"""The class of each value of a binary mask, which is saved with either 1 or 255 for foreground."""

NOT_A_CLASS = -1


def class_values(num_classes: int, ignore_index: int = IGNORE_INDEX) -> dict[int, int]:
    """What `read_mask` takes for masks that hold the numbers of the classes, and `ignore_index` for void."""
    return {value: value for value in (*range(num_classes), ignore_index)}


def read_mask(path: Path, classes: Mapping[int, int]) -> Tensor:
    """The classes in a mask file, uint8 (H, W).

    A palette image's values are its palette indices, a bilevel image's 0 and 255. An alpha channel is left out; it must
    not be what tells the pixels apart.

    Args:
        path: An image file of palette or grey pixels, of 8 bits or fewer.
        classes: The class (0 to 255) for each value that may stand in the file: `class_values`, or a mapping that
            gathers or renames, such as {0: 0, 255: 1}.

    Raises:
        DamagedFileError: The file cannot be decoded, is a colour image, has more than 8 bits (or 2 or 4 grey ones,
            which decoders stretch), or holds a value that is not in `classes`; the message names the file, the value
            and where it first stands.
    """
    values = _read_values(path)
    table = np.full(256, NOT_A_CLASS, dtype=np.int16)
    table[list(classes)] = list(classes.values())
    present = np.bincount(values.reshape(-1), minlength=256) > 0
    if unknown := np.flatnonzero(present & (table == NOT_A_CLASS)).tolist():
        row, column = np.argwhere(values == unknown[0])[0].tolist()
        others = f" (and {len(unknown) - 1} more such values)" if len(unknown) > 1 else ""
        raise DamagedFileError(
            f"The mask {path} holds the value {unknown[0]} at row {row}, column {column}{others}, which is no class: "
            f"the values are {_in_words(classes)}. Repair the mask or fetch it again."
        )
    return torch.from_numpy(table.astype(np.uint8)[values])


def check_same_size(image_path: Path, image_size: tuple[int, ...], mask_path: Path, mask_size: tuple[int, ...]) -> None:
    """Refuse a mask that is not as large as its image. Sizes are (height, width).

    Raises:
        DamagedFileError: Names both files and both sizes.
    """
    if tuple(image_size) != tuple(mask_size):
        (height, width), (mask_height, mask_width) = image_size, mask_size
        raise DamagedFileError(
            f"The image {image_path} has {height}x{width} pixels (height x width), its mask {mask_path} "
            f"{mask_height}x{mask_width}. Put a pair of one size in their place."
        )


def _read_values(path: Path) -> NDArray[np.uint8]:
    with opened_image(path, "mask") as image:
        mode, deep = image.mode, more_than_8_bits(image)
        stretched = mode == "L" and any(str(tile[3]).startswith(("L;2", "L;4")) for tile in getattr(image, "tile", []))
        values = np.array(image.convert("L") if mode == "1" else image)
    if deep:
        raise DamagedFileError(f"The mask {path} has more than 8 bits a pixel: a mask has one of up to 256 values.")
    if mode not in ("1", "L", "LA", "P", "PA"):
        raise DamagedFileError(
            f"The mask {path} is a colour image (mode {mode}), not a palette or grey one: classes cannot be told from "
            "its colours. It may have been saved anew by a program that converts; fetch the original."
        )
    if stretched:
        raise DamagedFileError(f"The mask {path} has 2 or 4 bits a pixel, which are read as other values: use 8 bits.")
    if values.ndim == 2:
        return values
    values, alpha = values[..., 0], values[..., 1]
    if values.min() == values.max() and alpha.min() != alpha.max():
        raise DamagedFileError(f"The mask {path} has its values in the alpha channel: save them as grey ones.")
    return values


def read_foreground(path: Path) -> Tensor:
    """The foreground (1) of a binary mask file, whose values are 0 and 255 or 0 and 1; uint8 (H, W).

    Raises:
        DamagedFileError: As `read_mask`; or its palette shows 0, the background, brighter than the foreground: then
            the indices are likely to be the wrong way round, as programs that count colours leave them.
    """
    with opened_image(path, "mask") as image:
        palette = image.getpalette("RGB") if image.mode in ("P", "PA") else None
    mask = read_mask(path, FOREGROUND)
    if palette is not None and sum(palette[:3]) > sum(palette[3:6]):
        raise DamagedFileError(
            f"The mask {path} is a palette image that shows 0, the background, brighter than 1: it may be inverted. "
            "Save it as a grey image of 0 and 255."
        )
    return mask


def _in_words(values: Mapping[int, int]) -> str:
    """Sorted numbers with runs drawn together: "0 to 20, 255"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
