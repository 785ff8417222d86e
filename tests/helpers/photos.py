"""Tiny copies of VOC 2012 with SBD, of Cityscapes and of COCO, in their real layouts: coloured rectangles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.layouts.coco_masks import VOC_NUMBERS
from lightning_modules.pictures.overlays import voc_colour_map

VOID = 255


def colours() -> NDArray[np.uint8]:
    """A colour for each value of a mask, (256, 3)."""
    return np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)


def rectangles(name: str, values: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """A mask (height, width) with three rectangles of random values on the first one, f(name)."""
    generator = np.random.default_rng([*name.encode()])
    mask = np.full((height, width), values[0], np.uint8)
    for value in generator.choice(values, 3):
        top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = value
    return mask


def write_photo(path: Path, mask: NDArray[np.uint8]) -> None:
    """A photo in which each value of the mask has its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours()[mask]).save(path, quality=95)


def write_palette(path: Path, mask: NDArray[np.uint8]) -> None:
    """A mask as VOC has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette(voc_colour_map().tobytes())
    image.save(path)


def write_grey(path: Path, mask: NDArray[np.uint8]) -> None:
    """A mask as Cityscapes and SegmentationClassAug have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def voc_names(kind: str, count: int) -> list[str]:
    """Names of photos in the order of VOC's lists."""
    year = {"train": 2007, "val": 2008, "test": 2009, "sbd": 2010}[kind]
    return [f"{year}_{number:06d}" for number in range(count)]


def voc_mask(name: str) -> NDArray[np.uint8]:
    """The mask that `write_voc` and `write_sbd` give a photo; sizes differ."""
    number = int(name[-2:])
    mask = rectangles(name, range(21), 30 + number % 3, 36 - 12 * (number % 2))
    mask[2] = VOID
    return mask


def write_voc(root: Path, train: int = 5, val: int = 3, test: int = 0) -> Path:
    """Write `VOCdevkit/VOC2012`; `test` photos come without masks, and 0 of them without their list.

    Returns:
        VOC2012.
    """
    home = root / "VOCdevkit" / "VOC2012"
    names = {"train": voc_names("train", train), "val": voc_names("val", val), "test": voc_names("test", test)}
    for name in sorted({*names["train"], *names["val"], *names["test"]}):
        write_photo(home / "JPEGImages" / f"{name}.jpg", voc_mask(name))
        if name not in names["test"]:
            write_palette(home / "SegmentationClass" / f"{name}.png", voc_mask(name))
    write_list(home, "train", names["train"])
    write_list(home, "val", names["val"])
    write_list(home, "trainval", sorted(names["train"] + names["val"]))
    if test:
        write_list(home, "test", names["test"])
    return home


def write_list(home: Path, split: str, names: Iterable[str]) -> None:
    """Write a list of photos, one a line."""
    path = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def sbd_names(own: int = 4) -> list[str]:
    """Photos that SBD annotates: `own` that VOC does not, two of VOC's train and one of its val."""
    return [*voc_names("train", 2), *voc_names("val", 1), *voc_names("sbd", own)]


def sbd_mask(name: str) -> NDArray[np.uint8]:
    """A mask as SBD has it: other than VOC's, and without void."""
    mask = voc_mask(name)[::-1].copy()
    mask[mask == VOID] = 0
    return mask


def write_sbd(root: Path, png: bool = False, own: int = 4) -> Path:
    """Write SBD's masks, and the photos that are not in `write_voc`: `.mat` files as published, or PNG files.

    Returns:
        The folder of the masks.
    """
    from scipy.io import savemat

    home = root / "VOCdevkit" / "VOC2012"
    folder = home / "SegmentationClassAug" if png else root / "benchmark_RELEASE" / "dataset" / "cls"
    folder.mkdir(parents=True)
    for name in sbd_names(own):
        if name in voc_names("sbd", own):
            write_photo(home / "JPEGImages" / f"{name}.jpg", sbd_mask(name))
        if png:
            write_grey(folder / f"{name}.png", sbd_mask(name))
        else:
            savemat(folder / f"{name}.mat", {"GTcls": {"Segmentation": sbd_mask(name), "CategoriesPresent": [[1]]}})
    return folder


def write_cityscapes(root: Path, train: int = 3, val: int = 2, test: int = 0, folder: str = "cityscapes") -> Path:
    """Write `leftImg8bit` and `gtFine`, masks both as label ids and as train ids.

    Returns:
        The folder that holds them.
    """
    from datamodules.cityscapes import CODINGS

    home = root / folder
    for part, cities, count in (
        ("train", ("aachen", "ulm"), train),
        ("val", ("munster",), val),
        ("test", ("bonn",), test),
    ):
        for number in range(count):
            city = cities[number % len(cities)]
            base = f"{part}/{city}/{city}_{number:06d}_000019"
            labels = rectangles(base, range(34), 24, 48)
            write_photo(home / "leftImg8bit" / f"{base}_leftImg8bit.png", labels)
            if part == "test":
                continue
            write_grey(home / "gtFine" / f"{base}_gtFine_labelIds.png", labels)
            to_train = np.array([CODINGS["label_ids"][1][value] for value in range(34)], np.uint8)
            write_grey(home / "gtFine" / f"{base}_gtFine_labelTrainIds.png", to_train[labels])
    return home


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A rectangle as one of COCO's polygons."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_coco(root: Path, objects: Sequence[Sequence[dict]], size: tuple[int, int] = (40, 50)) -> Path:
    """Write `coco/` with one photo for each sequence of objects, the same in train2017 and val2017.

    Args:
        root: What a data module takes as `root`.
        objects: Of each photo: `category` (a name), `segmentation` and, for a crowd, `iscrowd`.
        size: Height and width.

    Returns:
        The folder that holds `annotations/`.
    """
    home = root / "coco"
    categories = [*VOC_NUMBERS, "zebra"]
    ids = {name: 10 * number for number, name in enumerate(categories, 1)}
    for part in ("train2017", "val2017"):
        images, annotations = [], []
        for number, found in enumerate(objects):
            file = f"{number:012d}.jpg"
            write_photo(home / part / file, np.full(size, number, np.uint8))
            images.append({"id": 100 + number, "file_name": file, "height": size[0], "width": size[1]})
            annotations += [
                {"iscrowd": 0, **one, "image_id": 100 + number, "category_id": ids[one["category"]]} for one in found
            ]
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }
        path = home / "annotations" / f"instances_{part}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return home
