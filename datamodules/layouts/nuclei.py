"""Where the published sets of stained nuclei keep images and annotations, and how these are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.images.image_folder import open_image
from datamodules.images.masks import check_same_size, read_foreground
from datamodules.layouts.nuclei_objects import read_object_masks, read_outlines, visible_files
from datamodules.segmentation import AnnotatedImage

Part = Literal["train", "test"]

MISSING_NAMED = 10  # in a message
TNBC_FOLDER = "TNBC_NucleiSegmentation"
MONUSEG_PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "MoNuSeg 2018 Training Data", "MoNuSegTrainingData"),
    "test": ("test", "MoNuSegTestData"),
}
"""Names of the folder of each part."""


@dataclass(frozen=True)
class AnnotatedFile:
    """An image file and its annotation.

    Attributes:
        name: The image's path relative to the data set's folder.
        patient: Whose tissue it shows.
        image: The image file.
        annotation: A mask, an XML file of outlines, or a folder of masks of single objects.
        read_objects: Reads the objects of `annotation`, given (H, W); None: it is a mask of all nuclei together.
    """

    name: str
    patient: str
    image: Path
    annotation: Path
    read_objects: Callable[[Path, tuple[int, int]], Tensor] | None = None

    def read(self) -> AnnotatedImage:
        """Decode both: nuclei are class 1.

        Raises:
            DamagedFileError: A file cannot be read or is not what it should be, an image has transparent pixels or more
                than 8 bits a channel, or the two differ in size.
        """
        image = torch.from_numpy(np.array(open_image(self.image, "RGB", annotated=True)))
        height, width, _ = image.shape
        if self.read_objects is not None:
            instances = self.read_objects(self.annotation, (height, width))
            return AnnotatedImage(self.name, self.patient, image, (instances > 0).to(torch.uint8), instances)
        mask = read_foreground(self.annotation)
        check_same_size(self.image, (height, width), self.annotation, mask.shape)
        return AnnotatedImage(self.name, self.patient, image, mask)


Parts = dict[Part, list[AnnotatedFile]]


@dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on disk.

    Attributes:
        title: The data set.
        expected: What there should be below the root.
        find: The data set's folder below a root; None where there is none.
        list_parts: The images in that folder, by published part, sorted by name.
    """

    title: str
    expected: str
    find: Callable[[Path], Path | None]
    list_parts: Callable[[Path], Parts]


def find_tnbc(root: Path) -> Path | None:
    return next((home for home in (root / TNBC_FOLDER, root) if any(home.glob("Slide_*"))), None)


def list_tnbc(home: Path) -> Parts:
    """`Slide_XX/*.png` and, under the same names, `GT_XX/*.png`; a slide is a patient."""
    images, masks = (
        {
            f"{folder.name.removeprefix(prefix)}/{path.name}": path
            for folder in home.glob(f"{prefix}*")
            for path in visible_files(folder, ".png")
        }
        for prefix in ("Slide_", "GT_")
    )
    pairs = paired(images, masks, home)
    return {"train": [AnnotatedFile(_name(image, home), image.parent.name, image, mask) for image, mask in pairs]}


def find_monuseg(root: Path) -> Path | None:
    return next((home for home in (_folder(root, "monuseg"), root) if home and _monuseg_parts(home)), None)


def list_monuseg(home: Path) -> Parts:
    """Images (TIFF) and XML files, or masks (PNG), of the same names.

    A part is `Tissue Images/` beside `Annotations/` or, where that is absent, `masks/`; or all files in one folder. A
    patient is the first three fields of a name such as TCGA-A7-A13E-01Z-00-DX1.
    """
    return {part: _list_monuseg_part(folder, home) for part, folder in _monuseg_parts(home).items()}


def find_dsb2018(root: Path) -> Path | None:
    names = ("dsb2018", "data-science-bowl-2018")
    homes = (*(_folder(root, name) for name in names), root)
    return next((home for home in homes if home and (home / "stage1_train").is_dir()), None)


def list_dsb2018(home: Path) -> Parts:
    """`stage1_train/<id>/images/<id>.png` and the PNG files in `stage1_train/<id>/masks/`; an id is a patient."""
    folders = [folder for folder in (home / "stage1_train").glob("[!.]*") if folder.is_dir()]
    images = {path.stem: path for folder in folders for path in visible_files(folder / "images", ".png")}
    masks = {folder.name: folder / "masks" for folder in folders if visible_files(folder / "masks", ".png")}
    pairs = paired(images, masks, home / "stage1_train")
    return {
        "train": [
            AnnotatedFile(_name(image, home), image.stem, image, mask, read_object_masks) for image, mask in pairs
        ]
    }


LAYOUTS = {
    "tnbc": Layout(
        "Naylor's TNBC (https://zenodo.org/records/2579118)",
        f"{TNBC_FOLDER}/Slide_XX/*.png and GT_XX/*.png",
        find_tnbc,
        list_tnbc,
    ),
    "monuseg": Layout(
        "MoNuSeg (https://monuseg.grand-challenge.org/Data)",
        "monuseg/MoNuSeg 2018 Training Data/{Tissue Images/*.tif, Annotations/*.xml} and monuseg/MoNuSegTestData/"
        "{*.tif, *.xml}, or monuseg/{train,test}/{tissue_images/*.tif, masks/*.png}",
        find_monuseg,
        list_monuseg,
    ),
    "dsb2018": Layout(
        "Data Science Bowl 2018 (https://bbbc.broadinstitute.org/BBBC038)",
        "dsb2018/stage1_train/<id>/{images/<id>.png, masks/*.png}",
        find_dsb2018,
        list_dsb2018,
    ),
}


def paired(images: Mapping[str, Path], annotations: Mapping[str, Path], home: Path) -> list[tuple[Path, Path]]:
    """Images and annotations of the same keys, sorted by key.

    Raises:
        FileNotFoundError: Some have no partner, or there is none at all; the message names the first ten.
    """
    complaints = [
        f"{len(alone)} {what}: {', '.join(alone[:MISSING_NAMED])}{' ...' if len(alone) > MISSING_NAMED else ''}"
        for what, alone in (
            ("without annotation", sorted(images.keys() - annotations.keys())),
            ("without image", sorted(annotations.keys() - images.keys())),
        )
        if alone
    ]
    if complaints or not images:
        found = "; ".join(complaints) or "there are none"
        raise FileNotFoundError(f"Images and annotations in {home} do not go together: {found}. Complete the data set.")
    return [(images[key], annotations[key]) for key in sorted(images)]


def _monuseg_parts(home: Path) -> dict[Part, Path]:
    """The folder of each part that is there. An archive unpacked into a folder of its own name is found, too."""
    parts: dict[Part, Path] = {}
    for part, names in MONUSEG_PARTS.items():
        outer = [folder for name in names if (folder := _folder(home, name))]
        inner = [folder for parent in outer for name in names if (folder := _folder(parent, name))]
        if holding := [folder for folder in outer + inner if _holds_tissue(folder)]:
            parts[part] = holding[0]
    return parts


def _holds_tissue(folder: Path) -> bool:
    """Whether a folder has tissue images in a folder of their own, or among their annotations."""
    has_pairs = bool(visible_files(folder, ".tif", ".tiff") and visible_files(folder, ".xml"))
    return has_pairs or _folder(folder, "tissue images") is not None


def _list_monuseg_part(folder: Path, home: Path) -> list[AnnotatedFile]:
    images = _folder(folder, "tissue images") or folder
    read_objects = None
    if outlines := folder if images == folder else _folder(folder, "annotations"):
        annotations, read_objects = visible_files(outlines, ".xml"), read_outlines
    elif masks := _folder(folder, "masks"):
        annotations = visible_files(masks, ".png")
    else:
        raise FileNotFoundError(f"{folder} holds tissue images, but neither Annotations/ nor masks/.")
    pairs = paired(_by_stem(visible_files(images, ".tif", ".tiff")), _by_stem(annotations), folder)
    return [
        AnnotatedFile(_name(image, home), "-".join(image.stem.split("-")[:3]), image, annotation, read_objects)
        for image, annotation in pairs
    ]


def _folder(parent: Path, name: str) -> Path | None:
    """The folder of this name in `parent`; capitals, spaces and underscores make no difference."""

    def simple(text: str) -> str:
        return text.lower().replace(" ", "").replace("_", "")

    if not parent.is_dir():
        return None
    return next(
        (path for path in sorted(parent.iterdir()) if simple(path.name) == simple(name) and path.is_dir()), None
    )


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    return {path.stem: path for path in paths}


def _name(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix()
