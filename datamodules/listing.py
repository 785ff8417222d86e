"""Which image files a data set has, found without reading any."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.images.image_folder import find_images

NAMED = 10  # in a message


@dataclass(frozen=True)
class Listing:
    """Image files in the order of their data set.

    Attributes:
        root: Their folder.
        files: Paths relative to it.
        stamps: Size in bytes and time of the last change in nanoseconds of each.
    """

    root: Path
    files: list[str]
    stamps: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> list[Path]:
        return [self.root / file for file in self.files]

    def digest(self) -> str:
        """A hex digest that changes when a file is added, removed, renamed or written to, not when all are moved."""
        digest = hashlib.blake2b(digest_size=16)
        for file, (size, changed) in zip(self.files, self.stamps, strict=True):
            digest.update(f"{file}\0{size}\0{changed}\n".encode())
        return digest.hexdigest()


def list_folder(root: Path, key: str) -> Listing:
    """All images below `root`, sorted by path.

    Raises:
        FileNotFoundError: The folder is missing or holds no image; the message names `key`, which set it.
    """
    return list_paths(root, find_images(root, key))


def list_paths(root: Path, files: list[str]) -> Listing:
    """Files below `root` that are known to exist, by their paths relative to it."""
    return Listing(root, files, [_stamp((root / file).stat()) for file in files])


def list_named(root: Path, files: list[str]) -> Listing:
    """The images of these names directly in `root`.

    Raises:
        FileNotFoundError: Some are missing; the message says how many, and names the first.
    """
    # One pass over the folder: hundreds of thousands of single questions take long on a network's file system.
    with os.scandir(root) as entries:
        present = {entry.name: _stamp(entry.stat()) for entry in entries}
    missing = [file for file in files if file not in present]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks {len(missing):,} of the {len(files):,} listed images, {missing[0]} first."
        )
    return Listing(root, files, [present[file] for file in files])


def first_ten(names: Sequence[str]) -> str:
    """The names for a message: the first ten, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
