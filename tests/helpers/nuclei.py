"""Tiny sets of stained nuclei, written in the layouts of the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TISSUE, NUCLEUS = (224, 168, 208), (104, 64, 144)

TRAIN_SLIDES = (
    "TCGA-A7-A13E-01Z-00-DX1",
    "TCGA-A7-A13F-01Z-00-DX1",
    "TCGA-AR-A1AK-01Z-00-DX1",
    "TCGA-E2-A14V-01Z-00-DX1",
)
TEST_SLIDES = ("TCGA-AC-A2FO-01A-01-TS1", "TCGA-AO-A0J2-01A-01-BSA")


def tissue(size: tuple[int, int], nuclei: int, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """An image uint8 (H, W, 3) of rectangular nuclei on noise, and which of them covers each pixel, int32 (H, W).

    Nuclei lie in columns of their own, so that none touches another.
    """
    height, width = size
    numbers = np.zeros(size, dtype=np.int32)
    step = width // (nuclei + 1)
    for number in range(1, nuclei + 1):
        top = int(generator.integers(0, height // 2))
        numbers[top : top + height // 3, step * number : step * number + step // 2] = number
    colours = np.where(numbers[..., None] > 0, NUCLEUS, TISSUE)
    return (colours + generator.integers(-20, 21, (height, width, 3))).astype(np.uint8), numbers


def write_tnbc(root: Path, images: Sequence[int] = (3, 2, 2, 1), size: int = 32, seed: int = 0) -> dict[str, NDArray]:
    """Write `<root>/TNBC_NucleiSegmentation` like Naylor's: RGBA images in `Slide_XX/`, masks of 0 and 255 in `GT_XX/`.

    Args:
        root: What a data module takes as `root`.
        images: How many images each patient has; the real ones have 3 to 8.
        size: Height and width; the real ones have 512.
        seed: Of the images.

    Returns:
        The mask, uint8 (H, W) of 0 and 1, for each image name relative to the folder.
    """
    generator = np.random.default_rng(seed)
    home, masks = root / "TNBC_NucleiSegmentation", {}
    for patient, count in enumerate(images, start=1):
        for kind in ("Slide", "GT"):
            (home / f"{kind}_{patient:02d}").mkdir(parents=True)
        for number in range(1, count + 1):
            image, numbers = tissue((size, size), 4, generator)
            name = f"{patient:02d}_{number}.png"
            opaque = np.full((size, size, 1), 255, dtype=np.uint8)
            Image.fromarray(np.concatenate([image, opaque], axis=2)).save(home / f"Slide_{patient:02d}" / name)
            mask = masks[f"Slide_{patient:02d}/{name}"] = (numbers > 0).astype(np.uint8)
            Image.fromarray(255 * mask).save(home / f"GT_{patient:02d}" / name)
    (home / "Slide_01" / "._01_1.png").write_bytes(b"what macOS leaves beside 01_1.png")
    (home / ".DS_Store").write_bytes(b"macOS")
    return masks


def write_monuseg(root: Path, official: bool, size: tuple[int, int] = (40, 48), seed: int = 0) -> dict[str, NDArray]:
    """Write `<root>/monuseg` with four training and two test images (TIFF).

    Args:
        root: What a data module takes as `root`.
        official: Outlines in Aperio's XML, in the folders of the published archives. Otherwise `train/` and `test/`
            with `tissue_images/` and `masks/`, PNG of mode LA.
        size: Height and width; the real ones have 1000.
        seed: Of the images.

    Returns:
        The objects, int32 (H, W), for each image name relative to the folder.
    """
    generator = np.random.default_rng(seed)
    home, objects = root / "monuseg", {}
    for part, names in (("train", TRAIN_SLIDES), ("test", TEST_SLIDES)):
        images, annotations = _monuseg_folders(part, official)
        for folder in (images, annotations):
            (home / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            image, numbers = tissue(size, 4, generator)
            objects[f"{images}/{name}.tif"] = numbers
            Image.fromarray(image).save(home / images / f"{name}.tif")
            if official:
                (home / annotations / f"{name}.xml").write_text(aperio_xml(numbers))
            else:
                mask = (255 * (numbers > 0)).astype(np.uint8)
                alpha = Image.new("L", size[::-1], 200)  # of which nothing is to be read
                Image.merge("LA", [Image.fromarray(mask), alpha]).save(home / annotations / f"{name}.png")
    return objects


def _monuseg_folders(part: str, official: bool) -> tuple[str, str]:
    if not official:
        return f"{part}/tissue_images", f"{part}/masks"
    if part == "test":
        return "MoNuSegTestData", "MoNuSegTestData"
    return "MoNuSeg 2018 Training Data/Tissue Images", "MoNuSeg 2018 Training Data/Annotations"


def aperio_xml(numbers: NDArray) -> str:
    """Outlines of rectangular objects (H, W), as Aperio's ImageScope saves them."""
    regions = []
    for number in range(1, numbers.max() + 1):
        rows, columns = np.nonzero(numbers == number)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        vertices = "".join(f'<Vertex X="{x:.6f}" Y="{y:.6f}" Z="0.000000"/>' for x, y in corners)
        regions.append(
            f'<Region Id="{number}" Type="0" Zoom="1" NegativeROA="0" DisplayId="{number}">'
            f"<Attributes/><Vertices>{vertices}</Vertices></Region>"
        )
    return (
        '<Annotations MicronsPerPixel="0.252000"><Annotation Id="1" Name="" Type="4" LineColor="65280">'
        '<Attributes><Attribute Name="Description" Id="0" Value=""/></Attributes>'
        f"<Regions><RegionAttributeHeaders/>{''.join(regions)}</Regions><Plots/></Annotation></Annotations>"
    )


def write_dsb2018(
    root: Path, sizes: Sequence[tuple[int, int]] = ((32, 32), (32, 40), (48, 32), (32, 32)), seed: int = 0
) -> dict[str, NDArray]:
    """Write `<root>/dsb2018/stage1_train` with an RGBA image and a mask an object in each folder.

    Args:
        root: What a data module takes as `root`.
        sizes: Height and width of each image; the real ones have 256x256 pixels and more.
        seed: Of the images.

    Returns:
        The objects, int32 (H, W), for each image name relative to the folder.
    """
    generator = np.random.default_rng(seed)
    home, objects = root / "dsb2018", {}
    for index, size in enumerate(sizes):
        image, numbers = tissue(size, 3, generator)
        identity = f"{index:02d}{'abc' * 20}"
        folder = home / "stage1_train" / identity
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        Image.fromarray(image).convert("RGBA").save(folder / "images" / f"{identity}.png")
        for number in range(1, 4):
            Image.fromarray((255 * (numbers == number)).astype(np.uint8)).save(
                folder / "masks" / f"{number}f{index}.png"
            )
        objects[f"stage1_train/{identity}/images/{identity}.png"] = numbers
    return objects
