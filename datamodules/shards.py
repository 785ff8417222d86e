"""A data set of photos in few large files, for clusters whose file systems are slow with a million small ones.

`python -m datamodules.shards OUTPUT --folder ILSVRC2012` writes them, `ImageNetDataModule(shards=OUTPUT)` reads them.
The format is that of litdata (extra `streaming`): any photo can be read by itself, so order and augmentation are those
of the folder, to the bit. The photos are stored as they were published, and `catalogue/` holds names, classes and
checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images.image_folder import DamagedFileError
from datamodules.layouts.imagenet import find_copy, list_photos
from datamodules.photos.labelled import LabelledPhotos, Part, PhotoSource, packed_names

CATALOGUE = "catalogue"
CHUNK_BYTES = 64_000_000


@dataclass(eq=False)
class ShardedPhotos:
    """Photos in shards. Every process opens them for itself.

    Attributes:
        url: Where the shards lie: a folder, where they are read in place, or what litdata fetches from (s3://...).
        files: The names that the photos had.
        checksums: int64 (N,), CRC-32 of each photo's bytes.
    """

    url: str
    files: NDArray[Any]
    checksums: Tensor
    _opened: tuple[int, Any] | None = None  # (process, data set)

    def content(self, index: int) -> bytes:
        """The bytes of a photo.

        Raises:
            DamagedFileError: They are not what was written.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), _open(self.url)
        content = bytes(self._opened[1][index])
        if zlib.crc32(content) != self.checksums[index]:
            raise DamagedFileError(f"{self.place(index)} is not what was written: make or copy the shards again.")
        return content

    def place(self, index: int) -> str:
        return f"{self.files[index]} in the shards {self.url}"

    def digest(self, members: Tensor) -> str:
        names = [self.files[index] for index in members.tolist()]
        return hashlib.blake2b(repr((names, self.checksums[members].tolist())).encode(), digest_size=16).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}


def write_shards(photos: LabelledPhotos, output: Path) -> None:
    """Write all parts of a data set to shards of 64 MB in the folder `output`, whole or not at all.

    It takes about as long as copying the files: nothing is decoded.

    Raises:
        FileExistsError: There is something at `output`.
        OSError: A photo cannot be read, or the shards cannot be written.
    """
    if output.exists():
        raise FileExistsError(f"There is a {output} already: choose another place for the shards, or remove it.")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    catalogue: dict[str, Any] = {"classes": photos.classes, "class_names": photos.class_names, "parts": {}}
    try:
        for name, part in photos.parts.items():
            checksums: list[int] = []
            _write(partial / name, _contents(part.photos, name, checksums))
            files, labels = part.photos.files.tolist(), part.labels.tolist()
            catalogue["parts"][name] = {"files": files, "labels": labels, "checksums": checksums}
        _write(partial / CATALOGUE, [json.dumps(catalogue).encode()])
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_shards(url: str) -> LabelledPhotos:
    """What `write_shards` wrote to `url`.

    Raises:
        FileNotFoundError: There are no complete shards.
        ImportError: litdata is not installed.
    """
    url = os.path.expanduser(url).rstrip("/")
    try:
        catalogue = json.loads(bytes(_open(f"{url}/{CATALOGUE}")[0]))
    except ImportError:
        raise
    except Exception as error:  # each kind of storage has its own
        raise FileNotFoundError(
            f"There are no complete shards at {url} ({error}). `python -m datamodules.shards` writes them; with "
            "shards: null the images are read from their folders."
        ) from error
    parts = {
        name: Part(
            ShardedPhotos(f"{url}/{name}", packed_names(part["files"]), torch.tensor(part["checksums"])),
            torch.tensor(part["labels"]),
        )
        for name, part in catalogue["parts"].items()
    }
    return LabelledPhotos(url, tuple(catalogue["classes"]), tuple(catalogue["class_names"]), parts)


def _contents(photos: PhotoSource, name: str, checksums: list[int]) -> Iterable[bytes]:
    """What each photo holds; its checksum is appended."""
    from rich.console import Console
    from rich.progress import track

    positions = range(len(photos.files))
    console = Console(stderr=True)
    for index in track(positions, f"Writing {name}", console=console, disable=not sys.stderr.isatty()):
        content = photos.content(index)
        checksums.append(zlib.crc32(content))
        yield content


def _write(folder: Path, items: Iterable[bytes]) -> None:
    writer = _litdata().Cache(str(folder), chunk_bytes=CHUNK_BYTES)
    for index, item in enumerate(items):
        writer[index] = item
    writer.done()
    writer.merge()


def _open(url: str) -> Any:
    """What `_write` wrote, to be indexed. What has to be fetched is kept with the other caches."""
    cache = Path(os.environ.get("CONVSUITE_CACHE") or "~/.cache/convsuite").expanduser() / "shards"
    return _litdata().StreamingDataset(url, cache_dir=str(cache))


def _litdata() -> ModuleType:
    # Photos are drawn in random order: reading the rest of a shard ahead would be in vain.
    os.environ.setdefault("LITDATA_POSIX_WILLNEED", "0")
    try:
        from litdata import streaming
    except ImportError as error:
        raise ImportError("Shards need litdata: pip install convsuite[streaming].") from error
    return streaming


def main(args: Sequence[str] | None = None) -> None:
    """Write shards from the command line; the options are arguments of `ImageNetDataModule`."""
    parser = argparse.ArgumentParser(prog="python -m datamodules.shards", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="a folder that is not there yet")
    parser.add_argument("--root", type=Path, default=os.environ.get("CONVSUITE_DATA", "data"))
    parser.add_argument("--folder", help="the data set's folder in root, where there are several")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--classes", default="listed")
    options = parser.parse_args(args)
    copy = find_copy(options.root, options.folder, options.layout)
    write_shards(list_photos(copy, options.classes), options.output)


if __name__ == "__main__":
    main()
