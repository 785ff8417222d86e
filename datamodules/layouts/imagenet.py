"""ImageNet as it lies on disk: official folders, Tiny ImageNet, any tree of class folders; found, listed, labelled."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from datamodules.base import Split
from datamodules.images.image_folder import DamagedFileError, find_images
from datamodules.layouts.class_folders import list_class_folders, subfolders
from datamodules.listing import first_ten
from datamodules.photos.labelled import LabelledPhotos, Part, PhotoFiles, packed_names

Layout = Literal["auto", "official", "tiny_imagenet", "class_folders"]
Classes = Literal["listed", "present"]
Labelled = dict[str, list[str]]
"""The files of each class, by the class."""

FOLDERS = ("ILSVRC2012", "imagenet", "ImageNet", "imagenet-1k", "ILSVRC/Data/CLS-LOC", "tiny-imagenet-200")
"""Where `train/` is looked for, below the root."""
EXPECTED = {
    "official": "train/<wnid>/, and val/<wnid>/ or val/ beside the devkit or Kaggle's LOC_val_solution.csv",
    "tiny_imagenet": "wnids.txt, train/<wnid>/images/, val/images/ and val/val_annotations.txt",
    "class_folders": "train/<class>/, and val/<class>/ or test/<class>/",
}
PUBLISHED_AT = (
    "https://image-net.org/download-images (ILSVRC 2012, tasks 1 and 2) and "
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
)
DEVKIT_FOLDERS = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data")
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE_LABELS = "LOC_val_solution.csv"
WORDS = (("LOC_synset_mapping.txt", " "), ("words.txt", "\t"))
"""Files that say what a wnid stands for, and what separates the two on each line."""


@dataclass(frozen=True)
class Copy:
    """The data set as it lies on disk.

    Attributes:
        layout: What it looks like.
        folder: Its folder.
    """

    layout: Layout
    folder: Path

    def find(self, name: str) -> Path | None:
        """A file that comes with the images: in the data set's folder, the devkit's, or where Kaggle's zip has it."""
        places = [self.folder, *(self.folder / devkit for devkit in DEVKIT_FOLDERS)]
        if self.folder.parts[-3:] == ("ILSVRC", "Data", "CLS-LOC"):
            places.append(self.folder.parents[2])
        return next((place / name for place in places if (place / name).is_file()), None)


def find_copy(root: Path, folder: str | None, layout: Layout) -> Copy:
    """The copy of the data set in `root/folder` (None: in one of `FOLDERS`) in this layout ("auto": in any).

    Raises:
        FileNotFoundError: There is none; the message lists what was looked for.
        ValueError: There are several, or there is no such layout.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}.")
    if folder is not None and layout != "auto" and (root / folder / "train").is_dir():
        return Copy(layout, root / folder)
    names = FOLDERS if folder is None else (folder,)
    found = [copy for copy in _copies(root, names) if layout in ("auto", copy.layout)]
    if not found:
        wanted = EXPECTED if layout == "auto" else {layout: EXPECTED[layout]}
        expected = "; ".join(f"{name}: {what}" for name, what in wanted.items())
        is_one = (
            " It holds a train/ itself: set --data.folder . if it is the data set." if (root / "train").is_dir() else ""
        )
        raise FileNotFoundError(
            f"There is no ImageNet{'' if layout == 'auto' else f' in the layout {layout}'} in {root.absolute()}: "
            f"looked for train/ in {', '.join(names)}. Set root or CONVSUITE_DATA to the folder that holds one of "
            f"these, or folder to its name.{is_one} Expected: {expected}. Published at {PUBLISHED_AT}."
        )
    if len(found) > 1:
        places = ", ".join(f"{copy.folder.relative_to(root)} ({copy.layout})" for copy in found)
        raise ValueError(
            f"There are several copies of ImageNet in {root.absolute()}: choose one with folder: {places}."
        )
    return found[0]


def list_photos(copy: Copy, classes: Classes) -> LabelledPhotos:
    """All images of a copy, with labels; labels count the sorted names of the classes.

    Args:
        copy: Where they lie.
        classes: "listed": every class that wnids.txt lists (without it: that train/ has a folder for) must have
            training images, and the other parts must have images of just these. "present": the classes that have
            training images; images of others in the other parts are left out.

    Raises:
        FileNotFoundError: Files are missing, or a class has no training images; the first ten are named.
        DamagedFileError: A file with annotations is not what was published, or an image belongs to no class.
        ValueError: The classes of two parts differ, or there is no such choice of `classes`.
    """
    if classes not in get_args(Classes):
        raise ValueError(f"classes must be one of {', '.join(get_args(Classes))}, got {classes!r}.")
    train = list_class_folders(copy.folder, "train")
    if classes == "listed":
        _check_listed(copy, train)
    names = tuple(name for name, files in train.items() if files)
    if not names:
        raise FileNotFoundError(f"{copy.folder / 'train'} has no class folder with images.")
    listed: dict[Split, Labelled] = {"train": train}
    if (copy.folder / "val").is_dir():
        listed["val"] = _validation(copy)
    if copy.layout == "class_folders" and (copy.folder / "test").is_dir():
        listed["test"] = list_class_folders(copy.folder, "test")
    if classes == "listed":
        for part, files in listed.items():
            _check_same_classes(copy.folder / part, files, names)
    return LabelledPhotos(
        place=str(copy.folder),
        classes=names,
        class_names=_class_names(copy, names),
        parts={part: _labelled(copy, files, names) for part, files in listed.items()},
    )


def _copies(root: Path, names: Iterable[str]) -> Iterator[Copy]:
    seen: set[tuple[int, int]] = set()  # one folder under two names: a link, or capitals that do not count
    for folder in (root / name for name in names):
        if not (folder / "train").is_dir():
            continue
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if (folder / "wnids.txt").is_file():
            yield Copy("tiny_imagenet", folder)
        elif any(re.fullmatch(r"n\d{8}", name) for name in subfolders(folder / "train")):
            yield Copy("official", folder)
        else:
            yield Copy("class_folders", folder)


def _check_listed(copy: Copy, train: Labelled) -> None:
    """Refuse classes without training images, and folders of classes that are not listed."""
    wnids = copy.folder / "wnids.txt"
    place = copy.folder / "train"
    listed, source = list(train), f"folders in {place}"
    if copy.layout == "tiny_imagenet" and wnids.is_file():
        listed, source = wnids.read_text().split(), f"classes that {wnids} lists"
    empty = [name for name in listed if not train.get(name)]
    if empty:
        raise FileNotFoundError(
            f"{len(empty):,} of the {len(listed):,} {source} have no training images in {place}: {first_ten(empty)}. "
            "Fetch them, or set classes: present to do without these classes."
        )
    if strangers := sorted(train.keys() - set(listed)):
        raise ValueError(
            f"{len(strangers):,} class folders in {place} are not among the {source}: {first_ten(strangers)}. Remove "
            "them, or set classes: present to take every class that has training images."
        )


def _check_same_classes(place: Path, files: Labelled, names: Sequence[str]) -> None:
    """Refuse a part that lacks images of a class, or has images of another."""
    present = {name for name, images in files.items() if images}
    lacking, strange = [name for name in names if name not in present], sorted(present - set(names))
    if not lacking and not strange:
        return
    told = [f"{len(lacking):,} have no images in {place} ({first_ten(lacking)})"] * bool(lacking)
    told += [f"{place} has images of {len(strange):,} others ({first_ten(strange)})"] * bool(strange)
    raise ValueError(
        f"The classes differ: of the {len(names):,} classes in {place.parent / 'train'} {', and '.join(told)}. Repair "
        "the folders, or set classes: present to leave out images of other classes, and measure what there is."
    )


def _labelled(copy: Copy, files: Labelled, names: Sequence[str]) -> Part:
    labels = {name: label for label, name in enumerate(names)}
    pairs = sorted((file, labels[name]) for name, images in files.items() if name in labels for file in images)
    return Part(
        PhotoFiles(copy.folder, packed_names([file for file, _ in pairs])),
        torch.tensor([label for _, label in pairs], dtype=torch.int64),
    )


def _validation(copy: Copy) -> Labelled:
    place = copy.folder / "val"
    if copy.layout == "tiny_imagenet":
        annotations = place / "val_annotations.txt"
        return _annotated(copy, "val/images", _read_tiny_annotations(annotations), annotations)
    if copy.layout == "class_folders" or subfolders(place):
        return list_class_folders(copy.folder, "val")
    if solution := copy.find(KAGGLE_LABELS):
        return _annotated(copy, "val", _read_kaggle_labels(solution), solution)
    truth, meta = copy.find(GROUND_TRUTH), copy.find(META)
    if truth and meta:
        return _annotated(copy, "val", _read_ground_truth(truth, meta), truth)
    raise FileNotFoundError(
        f"The images in {place} have no labels: put Kaggle's {KAGGLE_LABELS}, or the devkit's {GROUND_TRUTH} and "
        f"{META} (of ILSVRC2012_devkit_t12.tar.gz, unpacked), into {copy.folder}, or move the images into a folder for "
        f"each wnid. Published at {PUBLISHED_AT}."
    )


def _annotated(copy: Copy, part: str, wnids: dict[str, str], source: Path) -> Labelled:
    """The images in `part`, by the class that `source` gives them."""
    place = copy.folder / part
    present = set(find_images(place, part))
    if missing := [file for file in wnids if file not in present]:
        raise FileNotFoundError(
            f"{source} names {len(missing):,} images that are not in {place}: {first_ten(missing)}. Fetch them, or "
            "remove their lines."
        )
    if unnamed := sorted(present - wnids.keys()):
        raise DamagedFileError(
            f"{source} does not name {len(unnamed):,} of the images in {place}: {first_ten(unnamed)}. Fetch the file "
            "again, or remove the images."
        )
    files: Labelled = {}
    for file, wnid in wnids.items():
        files.setdefault(wnid, []).append(f"{part}/{file}")
    return files


def _read_tiny_annotations(path: Path) -> dict[str, str]:
    """val_annotations.txt: name, wnid and a box on each line, separated by tabs."""
    fields = _fields(path, "\t", "val_0.JPEG<tab>n03444034<tab>and a box")
    return {file: wnid for file, wnid, *_ in fields}


def _read_kaggle_labels(path: Path) -> dict[str, str]:
    """LOC_val_solution.csv: an image and its boxes on each line, after the first; each box begins with the wnid."""
    fields = _fields(path, ",", "ILSVRC2012_val_00048981,n03995372 and boxes")
    return {f"{image}.JPEG": boxes.split()[0] for image, boxes, *_ in fields if image != "ImageId"}


def _read_ground_truth(path: Path, meta: Path) -> dict[str, str]:
    """The devkit's labels: on line i the number that meta.mat gives to the class of ILSVRC2012_val_0000000i.JPEG."""
    wnids = {number: wnid for number, (wnid, _) in _read_synsets(meta).items()}
    lines = path.read_text(errors="replace").split()
    unknown = next((number for number, line in enumerate(lines, 1) if line not in wnids), None)
    if unknown is not None:
        raise DamagedFileError(
            f"{path}, line {unknown}: expected the number of a class in {meta}, got {lines[unknown - 1]!r}. Fetch the "
            "devkit again."
        )
    return {f"ILSVRC2012_val_{number:08d}.JPEG": wnids[line] for number, line in enumerate(lines, 1)}


def _read_synsets(path: Path) -> dict[str, tuple[str, str]]:
    """meta.mat: the wnid and the words of each class, by its number; groups of classes are left out."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return {
            str(synset["ILSVRC2012_ID"]): (str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if synset["num_children"] == 0
        }
    except Exception as error:  # the reader raises whatever broken bytes lead it to
        raise DamagedFileError(f"Cannot read {path}: {error}. Fetch the devkit again.") from error


def _class_names(copy: Copy, classes: Sequence[str]) -> tuple[str, ...]:
    """The first word for each class, with the wnid where two share it; the class itself where there is no word."""
    words = _words(copy)
    names = [words.get(name, name).split(",")[0].strip() or name for name in classes]
    shared = Counter(name.lower() for name in names)
    return tuple(
        f"{name} ({wnid})" if shared[name.lower()] > 1 else name for name, wnid in zip(names, classes, strict=True)
    )


def _words(copy: Copy) -> dict[str, str]:
    """What wnids stand for, if a file says it."""
    for name, separator in WORDS:
        if path := copy.find(name):
            return {wnid: words for wnid, words, *_ in _fields(path, separator, f"a wnid{separator}words", 1)}
    if copy.layout == "official" and (meta := copy.find(META)):
        return dict(_read_synsets(meta).values())
    return {}


def _fields(path: Path, separator: str, expected: str, splits: int = -1) -> Iterator[list[str]]:
    """The fields, two or more, of every line that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Fetch the data set again.")
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = line.split(separator, splits)
        if len(fields) >= 2 and fields[0] and fields[1].strip():
            yield fields
        elif line.strip():
            raise DamagedFileError(f"{path}, line {number}: expected {expected}, got {line!r}. Fetch the file again.")
