"""Pictures that were made one after the other, as one moving picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_modules.files import written_whole

if TYPE_CHECKING:
    from PIL.Image import Image

# All frames are in memory when they are written.
MAX_FRAMES = 60
MILLISECONDS, LAST_MILLISECONDS = 160, 2000
_HEADER, _MARGIN, _BAR = 30, 8, 3  # pixels


def write_animation(path: Path, pictures: Sequence[Path], captions: Sequence[str]) -> None:
    """Write `pictures`, PNG files of one size, as an endless animated WebP, each under its caption.

    WebP has all colours where GIF has 256 a frame, at a third of the size. A bar shows how far along a frame is. Of
    more than 60 pictures an even choice is shown, the first and the last always.

    Raises:
        ValueError: There are no pictures, or they differ in size.
    """
    if not pictures:
        raise ValueError("an animation needs at least one picture")
    shown = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), MAX_FRAMES)).round().astype(int))
    first, *others = _frames([pictures[i] for i in shown], [captions[i] for i in shown])
    durations = [MILLISECONDS] * len(others) + [LAST_MILLISECONDS]
    with written_whole(path) as file:
        first.save(file, format="webp", save_all=True, append_images=others, duration=durations, loop=0, quality=85)


def _frames(pictures: Sequence[Path], captions: Sequence[str]) -> Iterator[Image]:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    size = None
    for place, (path, caption) in enumerate(zip(pictures, captions, strict=True), start=1):
        with Image.open(path) as picture:
            size = size or picture.size
            if picture.size != size:
                raise ValueError(f"{path} is of {picture.size} pixels, the pictures before it of {size}")
            frame = Image.new("RGB", (size[0] + 2 * _MARGIN, size[1] + _HEADER + _MARGIN), "white")
            frame.paste(picture, (_MARGIN, _HEADER))
        draw = ImageDraw.Draw(frame)
        draw.text((_MARGIN, 3), caption, fill="black", font=font)
        top, right = _HEADER - _BAR - 4, _MARGIN + size[0] - 1
        draw.rectangle((_MARGIN, top, right, top + _BAR - 1), fill="#e4e4e4")
        reached = _MARGIN + math.ceil(size[0] * place / len(pictures)) - 1
        draw.rectangle((_MARGIN, top, reached, top + _BAR - 1), fill="#0072B2")
        yield frame
