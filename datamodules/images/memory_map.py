"""Images decoded once into a file on disk, which is then read at the speed of memory."""

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images.decoding import Decoded, usable_cores

ROWS_A_BLOCK = 256
"""Images under one checksum: 3 MiB at 64x64 pixels."""

Shape = tuple[int, int, int, int]


class CacheError(OSError):
    """A memory map that cannot be written, or is not there; the message names the file and the mend."""


@dataclass(frozen=True)
class Record:
    """What stands beside the images, as JSON.

    Attributes:
        shape: (N, H, W, C).
        checksums: CRC-32 of every `ROWS_A_BLOCK` images.
        damaged: Position of each image that could not be decoded, and why; it is black in the map.
    """

    shape: Shape
    checksums: tuple[int, ...]
    damaged: dict[int, str]

    @property
    def digest(self) -> str:
        """A hex digest of all images."""
        return hashlib.blake2b(repr((self.shape, self.checksums)).encode(), digest_size=16).hexdigest()


class MemoryMap:
    """A `.npy` file of images, uint8 (N, H, W, C), and a `.json` file beside it that says what must be in it.

    Channels come last because a network in channels_last wants its batch so: a batch is a copy of whole rows, without
    a transposition between the disk and the first convolution.

    Both files are written beside their targets, forced to disk and renamed, the record last: a crash, a full disk or
    a kill leaves no record, and so no map. A lock makes a second process wait for the first in place of decoding too.

    `prepare` reads and checks every byte. That is cheap (CRC-32 runs at gigabytes a second and thread: about a second
    for all of CelebA at 64 pixels), and fills the memory that the first epoch reads from. `open` trusts it and checks
    names, sizes and shapes, so that of many processes on a machine one has to read everything.

    Args:
        path: The `.npy` file. Its name must depend on everything that its content depends on.
        shape: (N, H, W, C).
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path = path
        self.shape = shape
        self._record_path = path.with_suffix(".json")

    def prepare(self, decode: Callable[[int], Iterable[Decoded]]) -> Record:
        """Write the map if there is no intact one.

        Args:
            decode: Called with `ROWS_A_BLOCK`, gives that many images at a time, in order; the last may be fewer.

        Raises:
            CacheError: The disk is full, or the folder cannot be written. Nothing half is left.
        """
        record = self._intact_record()
        if record is not None:
            return record
        with self._explaining(), self._locked():
            record = self._intact_record()  # of a process that came first
            return self._write(decode(ROWS_A_BLOCK)) if record is None else record

    def open(self) -> tuple[Tensor, Record]:
        """The images, uint8 (N, H, W, C), mapped and not yet read, and their record.

        Raises:
            CacheError: There is no map of this shape.
        """
        record, images = self._read_record(), self._map()
        if record is None or images is None:
            raise CacheError(f"There is no complete {self.path}: call prepare_data() first, as a Trainer does.")
        return torch.from_numpy(images), record

    def _intact_record(self) -> Record | None:
        """The record, if the file beside it holds exactly what it says."""
        record, images = self._read_record(), self._map()
        if record is None or images is None or checksums(images) != record.checksums:
            return None
        return record

    def _read_record(self) -> Record | None:
        try:
            content = json.loads(self._record_path.read_text())
            fields = content["record"]
            if content["checksum"] != _checksum_of(fields):
                return None
            damaged = {int(position): reason for position, reason in fields["damaged"].items()}
            record = Record(tuple(fields["shape"]), tuple(fields["checksums"]), damaged)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return record if record.shape == self.shape else None

    def _map(self) -> NDArray[np.uint8] | None:
        """The file as an array; None where it is missing, or its header or its length is not what it should be."""
        try:
            # Copy on write: torch wants to be allowed to write, and whoever does must not reach the file.
            images = np.load(self.path, mmap_mode="c")
            size = self.path.stat().st_size
        except (OSError, ValueError, EOFError):
            return None
        if images.dtype != np.uint8 or images.shape != self.shape or images.offset + images.nbytes != size:
            return None
        return images

    def _write(self, blocks: Iterable[Decoded]) -> Record:
        self._record_path.unlink(missing_ok=True)
        if shutil.disk_usage(self.path.parent).free < prod(self.shape):  # better now than after an hour of decoding
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sums: list[int] = []
        damaged: dict[int, str] = {}
        with written_whole(self.path) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(block.images.data)
                sums.append(zlib.crc32(block.images.data))
                damaged.update(block.damaged)
        record = Record(self.shape, tuple(sums), damaged)
        fields = json.loads(json.dumps(asdict(record)))  # as it will be read: keys are strings there
        with written_whole(self._record_path) as file:
            file.write(json.dumps({"record": fields, "checksum": _checksum_of(fields)}).encode())
        if self._intact_record() is None:
            raise CacheError(f"{self.path} does not hold what was written to it: check the disk, or set cache_root.")
        return record

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            from lightning.pytorch.utilities.rank_zero import rank_zero_info

            rank_zero_info(f"Another process is writing {self.path}: waiting for it.")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say what a full disk, or a folder that cannot be written, means here."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(
                    f"The disk is full: no room for {self.path}, which takes {prod(self.shape) / 1e9:.2f} GB. Free "
                    "some space, or set cache_root (or CONVSUITE_CACHE) to a folder on a larger disk."
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise CacheError(
                    f"Cannot write {self.path}: {error.strerror}. Set cache_root (or CONVSUITE_CACHE) to a folder that "
                    "can be written."
                ) from error
            raise


def checksums(images: NDArray[np.uint8]) -> tuple[int, ...]:
    """CRC-32 of every `ROWS_A_BLOCK` images, on all cores."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        blocks = range(0, len(images), ROWS_A_BLOCK)
        return tuple(pool.map(lambda start: zlib.crc32(images[start : start + ROWS_A_BLOCK].data), blocks))


def _checksum_of(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that becomes `path` in the end, or leaves nothing.

    A lock that the caller holds must make the name of the partial file its own.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
