"""COCO's outlines of objects as masks of VOC's classes."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images.image_folder import DamagedFileError
from datamodules.images.masks import IGNORE_INDEX
from datamodules.images.memory_map import CacheError, written_whole

VOC_NUMBERS = {
    "airplane": 1,
    "bicycle": 2,
    "bird": 3,
    "boat": 4,
    "bottle": 5,
    "bus": 6,
    "car": 7,
    "cat": 8,
    "chair": 9,
    "cow": 10,
    "dining table": 11,
    "dog": 12,
    "horse": 13,
    "motorcycle": 14,
    "person": 15,
    "potted plant": 16,
    "sheep": 17,
    "couch": 18,
    "train": 19,
    "tv": 20,
}
"""VOC's number of each category of COCO that it has, too."""
FORMAT = 1  # raised when the same annotations are to give other masks


@dataclass(frozen=True)
class ObjectMasks:
    """The objects of VOC's classes in the images of an annotation file, run-length encoded, in flat arrays.

    Several hundred megabytes of JSON become some tens, which processes share.

    Attributes:
        path: The annotation file.
        files: str (N,), the name of each image, in the order of the annotation file.
        sizes: int32 (N, 2), height and width.
        labelled: int32 (N,), pixels of the 20 classes.
        first_object: int64 (N + 1,), where the objects of each image begin.
        classes: uint8 (M,), the class of each object, 255 for a crowd; those of an image in the order of painting.
        first_run: int64 (M + 1,), where the encoding of each object begins.
        runs: uint8 (R,), the encodings, as pycocotools compresses them.
    """

    path: Path
    files: NDArray[np.str_]
    sizes: NDArray[np.int32]
    labelled: NDArray[np.int32]
    first_object: NDArray[np.int64]
    classes: NDArray[np.uint8]
    first_run: NDArray[np.int64]
    runs: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.files)

    def paint(self, image: int) -> Tensor:
        """The mask of an image, uint8 (H, W)."""
        coco = mask_library()
        size = self.sizes[image].tolist()
        painted = np.zeros(size, np.uint8)
        for number in range(self.first_object[image], self.first_object[image + 1]):
            counts = self.runs[self.first_run[number] : self.first_run[number + 1]].tobytes()
            painted[coco.decode({"size": size, "counts": counts}).astype(bool)] = self.classes[number]
        return torch.from_numpy(painted)


ARRAYS = [field.name for field in fields(ObjectMasks) if field.name != "path"]


@dataclass(frozen=True)
class SelectedMasks:
    """Masks of some images, for `Photos`.

    Attributes:
        objects: Those of all images.
        images: int64 (n,), the numbers of the selected ones.
    """

    objects: ObjectMasks
    images: NDArray[np.int64]

    def read(self, position: int) -> Tensor:
        return self.objects.paint(int(self.images[position]))

    def source(self, position: int) -> Path:
        return self.objects.path

    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.objects.runs, self.objects.classes, self.images):
            digest.update(array.data)
        return digest.hexdigest()


def load_object_masks(path: Path, cache_root: Path) -> ObjectMasks:
    """The objects in an annotation file, encoded once and kept in `cache_root/coco`, which may be deleted.

    For COCO's training images encoding takes minutes and several gigabytes of memory, reading what is kept a second.

    Raises:
        DamagedFileError: The file is not what COCO publishes.
        CacheError: What was encoded cannot be kept.
        ImportError: pycocotools is not installed.
    """
    stamp = path.stat()
    key = hashlib.blake2b(f"{FORMAT}/{stamp.st_size}/{stamp.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    kept = cache_root / "coco" / f"{path.stem}-{key}.npz"
    with _explaining(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.with_suffix(".lock")):  # one process encodes, the others wait for it
            arrays = _read_arrays(kept)
            if arrays is None:
                arrays = encode_objects(path)
                with written_whole(kept) as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
    return ObjectMasks(path, **arrays)


def encode_objects(path: Path) -> dict[str, NDArray]:
    """The arrays of `ObjectMasks` for an annotation file, `instances_*.json`.

    Objects are painted from the largest to the smallest, so that what lies on something larger is seen. Crowds, which
    outline many objects together, come first, as 255: ignored where no single object is outlined. Objects of other
    categories are background.

    Raises:
        DamagedFileError: The file is not what COCO publishes.
        ImportError: pycocotools is not installed.
    """
    mask_library()
    images, objects = _read_annotations(path)
    labelled, first_object, classes, first_run, runs = [], [0], [], [0], bytearray()
    for image in images:
        try:
            encoded, pixels = _encode_image(objects[image["id"]], image["height"], image["width"])
        except Exception as error:  # outlines are free in form, and the encoder raises whatever they lead it to
            raise DamagedFileError(
                f"{path} has outlines in image {image['file_name']} that cannot be read ({error}). Unpack it again."
            ) from error
        for number, counts in encoded:
            classes.append(number)
            runs += counts
            first_run.append(len(runs))
        labelled.append(pixels)
        first_object.append(len(classes))
    return {
        "files": np.array([image["file_name"] for image in images], dtype=np.str_),
        "sizes": np.array([(image["height"], image["width"]) for image in images], dtype=np.int32).reshape(-1, 2),
        "labelled": np.array(labelled, dtype=np.int32),
        "first_object": np.array(first_object, dtype=np.int64),
        "classes": np.array(classes, dtype=np.uint8),
        "first_run": np.array(first_run, dtype=np.int64),
        "runs": np.frombuffer(bytes(runs), dtype=np.uint8),
    }


def mask_library() -> ModuleType:
    """pycocotools.mask.

    Raises:
        ImportError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("Outlines of COCO's objects need pycocotools: pip install convsuite[coco].") from error
    return mask


Annotation = tuple[int, bool, Any]
"""Class, whether it is a crowd, and outlines of an object."""


def _read_annotations(path: Path) -> tuple[list[dict[str, Any]], dict[int, list[Annotation]]]:
    """The images of an annotation file, and the objects of VOC's classes by the id of their image."""
    objects: defaultdict[int, list[Annotation]] = defaultdict(list)
    try:
        content = json.loads(path.read_bytes())
        names = {category["id"]: category["name"] for category in content["categories"]}
        for annotation in content["annotations"]:
            number = VOC_NUMBERS.get(names[annotation["category_id"]])
            if number is not None:
                outlined = number, bool(annotation["iscrowd"]), annotation["segmentation"]
                objects[annotation["image_id"]].append(outlined)
        images = [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in content["images"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedFileError(
            f"{path} is no file of COCO's objects ({type(error).__name__}: {error}). Unpack it again."
        ) from error
    if lacking := VOC_NUMBERS.keys() - set(names.values()):
        raise DamagedFileError(f"{path} is no file of COCO's objects: it has no category {', '.join(sorted(lacking))}.")
    return images, objects


def _encode_image(objects: Iterable[Annotation], height: int, width: int) -> tuple[list[tuple[int, bytes]], int]:
    """Class and encoding of each object, in the order of painting, and the number of pixels of the 20 classes."""
    coco = mask_library()
    encoded = [
        (number, crowd, _run_lengths(outlines, height, width)) for number, crowd, outlines in objects if outlines
    ]
    crowds = [(IGNORE_INDEX, runs["counts"]) for _, crowd, runs in encoded if crowd]
    single = [(number, runs) for number, crowd, runs in encoded if not crowd]
    single.sort(key=lambda item: int(coco.area(item[1])), reverse=True)
    labelled = int(coco.area(coco.merge([runs for _, runs in single]))) if single else 0
    return crowds + [(number, runs["counts"]) for number, runs in single], labelled


def _run_lengths(outlines: Any, height: int, width: int) -> dict[str, Any]:
    """The compressed encoding of polygons, or of run lengths that are compressed or not."""
    coco = mask_library()
    if isinstance(outlines, list):
        return coco.merge(coco.frPyObjects(outlines, height, width))
    if isinstance(outlines["counts"], list):
        return coco.frPyObjects(outlines, height, width)
    return {"size": [height, width], "counts": outlines["counts"].encode()}


def _read_arrays(kept: Path) -> dict[str, NDArray] | None:
    """What was kept; None: it is not there, or damaged (a zip file has checksums)."""
    try:
        with kept.open("rb") as file, np.load(file) as arrays:  # opened here, so that damage leaves nothing open
            return {name: arrays[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


@contextmanager
def _explaining(kept: Path) -> Iterator[None]:
    """Say what a full disk, or a folder that cannot be written, means here."""
    try:
        yield
    except DamagedFileError:
        raise
    except OSError as error:
        raise CacheError(
            f"Cannot write {kept}: {error.strerror}. Free some space, or set cache_root (or CONVSUITE_CACHE) to a "
            "folder that can be written."
        ) from error
