"""Grids of images under titles, pixel for pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN, _BETWEEN, _TITLE, _AFTER_NAMES = 12, 28, 36, 12  # pixels


def draw_panels(panels: Mapping[str, np.ndarray], row_names: Sequence[str] = ()) -> Figure:
    """Images uint8 (H, W, 3) side by side, each under its title; a pixel of an image is a pixel of the figure.

    Args:
        panels: Titles to images.
        row_names: Names of the rows, of equal height, of which every panel consists; written on the left.
    """
    import matplotlib
    from matplotlib.figure import Figure

    left = _MARGIN + max((_text_width(name) + _AFTER_NAMES for name in row_names), default=0)
    slots = [max(image.shape[1], _text_width(title, weight="bold")) + _BETWEEN for title, image in panels.items()]
    height = _TITLE + max(len(image) for image in panels.values()) + _MARGIN
    width = left + sum(slots) - _BETWEEN + _MARGIN
    dpi = matplotlib.rcParams["figure.dpi"]
    figure = Figure(figsize=(width / dpi, height / dpi))
    figure.set_layout_engine("none")  # the places below are exact
    for (title, image), slot in zip(panels.items(), slots, strict=True):
        rows, columns = image.shape[:2]
        bottom = height - _TITLE - rows
        axes = figure.add_axes((left / width, bottom / height, columns / width, rows / height))
        axes.imshow(image, interpolation="none", aspect="auto")
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontweight="bold", pad=4)
        left += slot
    for place, name in enumerate(row_names):
        middle = _TITLE + (place + 0.5) * (height - _TITLE - _MARGIN) / len(row_names)
        figure.text(_MARGIN / width, 1 - middle / height, name, va="center", fontsize="medium")
    return figure


def _text_width(text: str, weight: str = "normal") -> int:
    """Pixels that a title or a row's name takes."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(size=matplotlib.rcParams["font.size"], weight=weight)
    points = TextPath((0, 0), text, prop=font).get_extents().x1
    return math.ceil(points * matplotlib.rcParams["figure.dpi"] / 72)
