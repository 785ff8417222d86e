"""Annotated objects of an image, outlined in an XML file or drawn in a file each, as one map of object numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images.image_folder import DamagedFileError
from datamodules.images.masks import check_same_size, read_foreground


def read_outlines(path: Path, size: tuple[int, int]) -> Tensor:
    """Objects that an Aperio XML file outlines, one a `Region`: int32 (H, W), numbered from 1 in order, 0 for none.

    X runs to the right and Y down, in pixels from the image's upper left corner: the centre of the first pixel is at
    (0.5, 0.5). A pixel belongs to a region when its centre lies inside, and to the first of several, as in MoNuSeg's
    own conversion (whose masks lie half a pixel further up and left, because MATLAB counts pixels from 1). What lies
    outside the image is cut off.

    Args:
        path: The XML file.
        size: (H, W) of the image.

    Raises:
        DamagedFileError: The file is no XML of annotations, a vertex has no coordinates, or no region covers any pixel
            of the image; the message names the file.
    """
    from skimage.draw import polygon

    numbers = np.zeros(size, dtype=np.int32)
    count = 0
    for count, outline in enumerate(_outlines(path), start=1):
        if len(outline):  # a region without vertices is a slip of the hand
            _claim(numbers, polygon(outline[:, 1] - 0.5, outline[:, 0] - 0.5, size), count)
    if count and not numbers.any():
        raise DamagedFileError(
            f"{path}: none of its {count} regions covers a pixel of the image ({size[0]}x{size[1]} pixels): it belongs "
            "to another image, or to a slide that the image is a part of."
        )
    return torch.from_numpy(numbers)


def read_object_masks(folder: Path, size: tuple[int, int]) -> Tensor:
    """Objects drawn in a PNG file each: int32 (H, W), numbered from 1 in order of file names, 0 for none.

    A pixel that several files claim belongs to the first of them.

    Args:
        folder: Holds the files, of values 0 and 255 (or 1).
        size: (H, W) of the image.

    Raises:
        DamagedFileError: A file cannot be read, holds another value or has another size.
    """
    numbers = np.zeros(size, dtype=np.int32)
    for number, path in enumerate(visible_files(folder, ".png"), start=1):
        mask = read_foreground(path).numpy()
        check_same_size(folder.parent, size, path, mask.shape)
        _claim(numbers, np.nonzero(mask), number)
    return torch.from_numpy(numbers)


def visible_files(folder: Path, *suffixes: str) -> list[Path]:
    """Files with one of these endings, in any case, directly in `folder`, sorted; hidden ones are left out."""
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)


def _claim(numbers: NDArray[np.int32], pixels: tuple[NDArray[np.intp], ...], number: int) -> None:
    """Give those of the pixels (rows, columns) to object `number` that belong to none."""
    numbers[pixels] = np.where(numbers[pixels] == 0, number, numbers[pixels])


def _outlines(path: Path) -> Iterator[NDArray[np.float64]]:
    """X and Y of the vertices (V, 2) of each region."""
    try:
        annotations = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DamagedFileError(
            f"Cannot read the annotations {path}: {error}. Repair the file or fetch it again."
        ) from error
    if annotations.tag != "Annotations":
        raise DamagedFileError(f"{path} holds {annotations.tag!r} in place of Aperio's 'Annotations'.")
    for place, region in enumerate(annotations.iter("Region"), start=1):
        vertices = [_coordinates(vertex, path, place) for vertex in region.iter("Vertex")]
        yield np.array(vertices, dtype=np.float64).reshape(-1, 2)


def _coordinates(vertex: ElementTree.Element, path: Path, region: int) -> tuple[float, float]:
    try:
        x, y = float(vertex.get("X", "")), float(vertex.get("Y", ""))
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise DamagedFileError(
            f"{path}: a vertex of region {region} has X={vertex.get('X')!r} and Y={vertex.get('Y')!r} in place of two "
            "numbers. Repair the file or fetch it again."
        )
    return x, y
