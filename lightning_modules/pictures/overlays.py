"""Class masks and mistakes, painted over the images that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

Colour = tuple[int, int, int]

# No stain, skin or sky has this green: two classes are told apart on any image.
FOREGROUND: Colour = (60, 255, 60)
# Okabe and Ito's bluish green, vermillion, blue and yellow.
RIGHT: Colour = (0, 158, 115)
WRONG: Colour = (213, 94, 0)
MISSED: Colour = (0, 114, 178)
IGNORED: Colour = (240, 228, 66)

_FILL = 0.25  # opacity of the inside of a class; its contour is opaque
_GREY_LEVELS = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
_PALE = 0.65  # share of white in the image beneath mistakes
_RIGHT_FILL, _IGNORED_FILL = 0.4, 0.5
_MID_GREY = 128  # the image beneath the swatches of the legend

_TITLES = ("Truth", "Prediction", "Errors")
_RIGHT = "{:.1f} % of pixels right"
_MARGIN, _GAP, _LINE, _SWATCH, _TEXT, _TITLE = 12, 8, 28, 14, 16, 20  # pixels
_INK, _FAINT = "#1a1a1a", "#5a5a5a"


@dataclass(frozen=True)
class SegmentedImage:
    """An image with its masks, all of one size.

    Attributes:
        index: Its place in the data.
        name: Its file, or its place.
        image: uint8 (H, W, 3).
        truth: Classes, uint8 (H, W), or the number of what is ignored.
        prediction: Classes, uint8 (H, W).
        accuracy: Share of right pixels, of the whole image where the picture shows a part; NaN where all are ignored.
        others: Further images of the same place, uint8 (H, W, 3): other modalities.
    """

    index: int
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    accuracy: float
    others: tuple[np.ndarray, ...] = ()


def voc_colour_map(count: int = 256) -> np.ndarray:
    """The colours of the classes 0 to `count` - 1 in PASCAL VOC's masks, uint8 (count, 3); `count` is at most 256.

    Bits 0, 1 and 2 of a class are the highest bits of red, green and blue, bits 3, 4 and 5 the next lower ones, and so
    on: 0 is black, 1 (128, 0, 0), 8 (64, 0, 0), and 255, the border around objects, (224, 224, 192).
    """
    classes = np.arange(count, dtype=np.uint8)[:, None]
    colours = np.zeros((count, 3), np.uint8)
    for place in range(3):
        bits = classes >> (3 * place + np.arange(3, dtype=np.uint8)) & 1
        colours |= bits << (7 - place)
    return colours


def overlay_colours(num_classes: int) -> np.ndarray:
    """What classes are painted in, uint8 (K, 3): bright green for the second of two, else PASCAL VOC's colours."""
    return np.array([(0, 0, 0), FOREGROUND], np.uint8) if num_classes == 2 else voc_colour_map(num_classes)


def error_colours(num_classes: int) -> dict[str, Colour]:
    """Names and colours of what `paint_errors` shows."""
    if num_classes == 2:
        return {"true positive": RIGHT, "false positive": WRONG, "false negative": MISSED, "ignored": IGNORED}
    return {"right": RIGHT, "wrong": WRONG, "ignored": IGNORED}


def paint_classes(
    image: np.ndarray, mask: np.ndarray, colours: np.ndarray, background: int | None = 0, ignore_index: int = 255
) -> np.ndarray:
    """`image` with each class of `mask` as a translucent area and an opaque contour, of one pixel, inside of it.

    Args:
        image: uint8 (H, W, 3).
        mask: Classes (H, W), integers.
        colours: Of the classes, uint8 (K, 3).
        background: The class that is not painted; None: all are.
        ignore_index: Where `mask` holds this, `IGNORED` is painted, without a contour.
    """
    from skimage.segmentation import find_boundaries

    ignored = mask == ignore_index
    is_class = ~ignored if background is None else ~ignored & (mask != background)
    contour = find_boundaries(mask, mode="thick") & is_class
    colour = colours[np.where(ignored, 0, mask)]
    colour[ignored] = IGNORED
    return _blend(image, colour, np.select([contour, is_class, ignored], [1.0, _FILL, _IGNORED_FILL]))


def paint_errors(
    image: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    background: int | None = 0,
    ignore_index: int = 255,
) -> np.ndarray:
    """Where `prediction` is right and where it is wrong, over a pale grey `image`, in `error_colours`.

    Args:
        image: uint8 (H, W, 3).
        prediction: Classes (H, W), integers.
        truth: Classes (H, W), integers, or `ignore_index`.
        num_classes: Of two classes the second is what is looked for.
        background: Where this class is rightly predicted, the image stays grey; None: there is no such class.
        ignore_index: What `truth` holds where nothing is asked.
    """
    ignored = truth == ignore_index
    wrong = (prediction != truth) & ~ignored
    missed = wrong & (truth == 1) & (num_classes == 2)
    right = ~wrong & ~ignored & (truth != (0 if num_classes == 2 else background))
    colour = np.full((*truth.shape, 3), IGNORED, np.uint8)
    for where, its_colour in ((right, RIGHT), (wrong, WRONG), (missed, MISSED)):
        colour[where] = its_colour
    pale = _paled(image @ np.array(_GREY_LEVELS))
    return _blend(pale[..., None], colour, np.select([wrong, right, ignored], [1.0, _RIGHT_FILL, _IGNORED_FILL]))


def _paled(grey: np.ndarray) -> np.ndarray:
    return 255 - (1 - _PALE) * (255 - grey)


def _blend(image: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """`colour` (H, W, 3) of `opacity` (H, W) over `image` (H, W, 3 or 1): uint8 (H, W, 3)."""
    opacity = opacity[..., None]
    return ((1 - opacity) * image + opacity * colour).round().astype(np.uint8)


def draw_overlays(
    images: Sequence[SegmentedImage],
    names: Sequence[str],
    ignore_index: int = 255,
    titles: Sequence[str] = ("Image",),
) -> np.ndarray:
    """A row for each image: itself, its true classes, its predicted ones, its mistakes; uint8 (height, width, 3).

    Args:
        images: One or more, with the same number of `others`; a pixel of each is one of the picture.
        names: Of the classes. The first is not painted if it is called "background", or has no name but its number.
        ignore_index: What the truth holds where nothing is asked.
        titles: Of the image and its `others`.
    """
    # Not by matplotlib, which resamples what must not be, and takes several times as long.
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT)
    slot = max(*(image.image.shape[1] for image in images), round(font.getlength(_RIGHT.format(100)))) + _GAP
    titles = (*titles, *_TITLES)
    lefts = [_MARGIN + place * slot for place in range(len(titles))]
    width = lefts[-1] + slot - _GAP + _MARGIN
    legend = _legend(images, names, ignore_index)
    places = _legend_places(legend, font, width)
    tops = np.cumsum([_MARGIN + _LINE, *(_LINE + len(image.image) for image in images)]).tolist()
    picture = Image.new("RGB", (width, tops[-1] + places[-1][1] + _LINE + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)

    for title, left in zip(titles, lefts, strict=True):
        draw.text((left, _MARGIN + _LINE // 2), title, _INK, ImageFont.load_default(_TITLE), anchor="lm")
    for image, top in zip(images, tops, strict=False):
        name = _shortened(image.name, font, lefts[-1] - lefts[0] - _GAP)
        draw.text((lefts[0], top + _LINE // 2), name, _FAINT, font, anchor="lm")
        if not np.isnan(image.accuracy):
            text = _RIGHT.format(100 * image.accuracy)
            draw.text((lefts[-1], top + _LINE // 2), text, _FAINT, font, anchor="lm")
        for panel, left in zip(_panels(image, names, ignore_index), lefts, strict=True):
            picture.paste(Image.fromarray(panel), (left, top + _LINE))
    for (name, swatch), (left, line) in zip(legend.items(), places, strict=True):
        middle = tops[-1] + line + _MARGIN + _LINE // 2
        picture.paste(Image.fromarray(swatch), (left, middle - _SWATCH // 2))
        draw.text((left + _SWATCH + _GAP, middle), name, _INK, font, anchor="lm")
    return np.asarray(picture)


def _shortened(name: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """The end of a name, where all of it is wider than `width` pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength("..." + name) > width:
        name = name[1:]
    return "..." + name


def _panels(image: SegmentedImage, names: Sequence[str], ignore_index: int) -> list[np.ndarray]:
    count, background = len(names), _background(names)
    colours = overlay_colours(count)
    return [
        image.image,
        *image.others,
        paint_classes(image.image, image.truth, colours, background, ignore_index),
        paint_classes(image.image, image.prediction, colours, background, ignore_index),
        paint_errors(image.image, image.prediction, image.truth, count, background, ignore_index),
    ]


def _background(names: Sequence[str]) -> int | None:
    return 0 if names[0] in ("background", "0") else None


def _legend(images: Sequence[SegmentedImage], names: Sequence[str], ignore_index: int) -> dict[str, np.ndarray]:
    """The classes that are to be seen, and the mistakes, each with its swatch, uint8 (_SWATCH, _SWATCH, 3)."""
    shown = set().union(*(np.unique(mask).tolist() for image in images for mask in (image.truth, image.prediction)))
    colours = overlay_colours(len(names))
    painted = sorted(shown - {ignore_index, _background(names)})
    errors = error_colours(len(names))
    if ignore_index not in shown:
        del errors["ignored"]
    return {names[number]: _class_swatch(colours[number]) for number in painted} | {
        name: _error_swatch(colour) for name, colour in errors.items()
    }


def _class_swatch(colour: np.ndarray) -> np.ndarray:
    """A class as it is painted on a mid-grey image: a translucent square in its opaque contour."""
    mask = np.pad(np.ones((_SWATCH, _SWATCH), np.uint8), 1)
    grey = np.full((*mask.shape, 3), _MID_GREY, np.uint8)
    return paint_classes(grey, mask, np.stack([colour, colour]))[1:-1, 1:-1]


def _error_swatch(colour: Colour) -> np.ndarray:
    """A kind of mistake as it is painted on a mid-grey image, which is pale beneath it."""
    opacity = np.full((_SWATCH, _SWATCH), {RIGHT: _RIGHT_FILL, IGNORED: _IGNORED_FILL}.get(colour, 1.0))
    return _blend(_paled(np.full((_SWATCH, _SWATCH, 1), _MID_GREY)), np.array(colour), opacity)


def _legend_places(names: Iterable[str], font: FreeTypeFont | ImageFont, width: int) -> list[tuple[int, int]]:
    """Where the swatches of a legend go, (left, top) in pixels; lines are full at `width`."""
    places, left, top = [], _MARGIN, 0
    for name in names:
        taken = _SWATCH + _GAP + round(font.getlength(name))
        if left > _MARGIN and left + taken > width - _MARGIN:
            left, top = _MARGIN, top + _LINE
        places.append((left, top))
        left += taken + 3 * _GAP
    return places
