"""Labelled images in folders that are named after their classes, found without reading any."""

import os
from pathlib import Path

from datamodules.images.image_folder import EXTENSIONS, DamagedFileError, find_images
from datamodules.listing import first_ten


def subfolders(folder: Path) -> list[str]:
    """Names of the folders directly in `folder`, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_class_folders(home: Path, part: str) -> dict[str, list[str]]:
    """The images below each folder in `home/part`, by the folder's name; an empty list where there is none.

    A folder may be a symbolic link, as in subsets of ImageNet. Paths are relative to `home`; classes and the paths in
    each are sorted.

    Raises:
        DamagedFileError: An image lies in no class folder; the first ten are named.
    """
    with os.scandir(home / part) as entries:
        strays = sorted(entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS) and entry.is_file())
    if strays:
        raise DamagedFileError(
            f"{len(strays):,} images lie directly in {home / part}, in no folder of a class: {first_ten(strays)}. Move "
            "them into the folders of their classes, or remove them."
        )
    return {name: [f"{part}/{name}/{file}" for file in _images(home / part / name)] for name in subfolders(home / part)}


def _images(folder: Path) -> list[str]:
    try:
        return find_images(folder, "class folder")
    except FileNotFoundError:  # which classes are empty is for who knows all of them to say
        return []
