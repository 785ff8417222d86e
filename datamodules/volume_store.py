"""Subjects that are read once: held in memory where they fit, else in files that are mapped into it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from datamodules.decoding import usable_cores
from datamodules.memory_map import CacheError, written_whole
from datamodules.volume_files import SubjectFiles
from datamodules.volume_reader import VolumeReader
from datamodules.volumes import InMemoryVolumes, Volume, VolumeStore, digest_of

CACHE_VERSION = 1  # raised when the same files and settings are to give other voxels
SHOW_PROGRESS_FROM = 20  # subjects: some seconds
GIB = 2**30
READING_LIMIT = 8 * GIB
COPIES = 4  # of a subject, while it is read


def open_volumes(
    files: Sequence[SubjectFiles], reader: VolumeReader, memory_limit: float, cache_root: Path
) -> VolumeStore:
    """Read and check subjects once, as many at a time as there are cores and memory for.

    Those that take at most `memory_limit` together are held in memory. Worker processes share it: what a process holds
    when it forks is not copied, and where workers are started anew torch moves it to shared memory. Larger sets are
    written below `cache_root`, by whichever process comes first, and mapped: then the system's file cache is the
    memory, shared by all processes of a machine and given back when it is needed.

    Args:
        files: The subjects.
        reader: How they are read.
        memory_limit: GiB, before cropping.
        cache_root: Where larger sets are kept; may be deleted at any time.

    Raises:
        FileNotFoundError: A file is missing.
        DamagedFileError: A file is not what it should be; the message names it and the mend.
        CacheError: The cache cannot be written.
    """
    sizes = [reader.bytes_of(one) for one in files]
    threads = max(1, min(usable_cores(), READING_LIMIT // (COPIES * max(sizes))))
    if sum(sizes) > memory_limit * GIB:
        return MappedVolumes(files, reader, cache_root / "volumes", threads)
    with ThreadPoolExecutor(threads) as pool:
        return InMemoryVolumes(list(_with_progress(pool.map(reader.read, files), len(files))))


class MappedVolumes(VolumeStore):
    """Volumes that are read once and then mapped from files of plain arrays.

    Of each subject there are `<name>-<key>.image.npy`, where it has one `.mask.npy`, and `.json`, the record. They are
    written whole, the record last, under a lock of their own, so that processes share the work and a crash leaves
    nothing that looks complete. The key stands for names, sizes and times of change of the subject's files and for all
    settings of the reader.

    Args:
        files: The subjects.
        reader: How they are read.
        folder: Of the arrays.
        threads: How many subjects are read at once.

    Raises:
        FileNotFoundError: A file is missing.
        DamagedFileError: A file is not what it should be.
        CacheError: An array cannot be written.
    """

    def __init__(self, files: Sequence[SubjectFiles], reader: VolumeReader, folder: Path, threads: int = 1) -> None:
        self.subjects = [one.subject for one in files]
        self.sites = [one.site for one in files]
        self._records = [folder / f"{one.subject}-{_key(one, reader)}.json" for one in files]
        self._volumes: dict[int, Volume] = {}
        with ThreadPoolExecutor(threads) as pool:
            written = pool.map(_write_if_missing, self._records, files, [reader] * len(files))
            list(_with_progress(written, len(files)))

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> Volume:
        if index not in self._volumes:
            volume = _mapped(self._records[index])
            if volume is None:
                raise CacheError(f"{self._records[index]} and its arrays were deleted or damaged: start again.")
            self._volumes[index] = volume
        return self._volumes[index]

    def digest(self) -> str:
        return digest_of(json.loads(record.read_text())["digest"] for record in self._records)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_volumes": {}}  # another process maps the files itself: a pickled map is a copy


def _key(files: SubjectFiles, reader: VolumeReader) -> str:
    content = f"{CACHE_VERSION}/{reader}/{files.site}/{files.digest()}"
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _write_if_missing(record: Path, files: SubjectFiles, reader: VolumeReader) -> None:
    if _mapped(record) is not None:
        return
    with _explaining(record):
        record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_suffix(".lock")):
        if _mapped(record) is not None:  # of a process that came first
            return
        volume = reader.read(files)
        with _explaining(record):
            _write(record, volume)


def _write(record: Path, volume: Volume) -> None:
    record.unlink(missing_ok=True)
    for kind, tensor in (("image", volume.image), ("mask", volume.mask)):
        if tensor is not None:
            with written_whole(record.with_suffix(f".{kind}.npy")) as file:
                np.save(file, tensor.numpy())
    fields = {
        "subject": volume.subject,
        "site": volume.site,
        "size": volume.size,
        "has_mask": volume.mask is not None,
        "affine": volume.affine.tolist(),
        "digest": volume.digest(),
    }
    with written_whole(record) as file:
        file.write(json.dumps(fields).encode())


def _mapped(record: Path) -> Volume | None:
    """The volume that a record describes; None: there is no record, or its arrays are not what it says."""
    try:
        fields = json.loads(record.read_text())
        arrays = [
            torch.from_numpy(np.load(record.with_suffix(f".{kind}.npy"), mmap_mode="c"))
            for kind in ("image", *(["mask"] if fields["has_mask"] else []))
        ]
        affine = torch.tensor(fields["affine"], dtype=torch.float64)
        volume = Volume(fields["subject"], fields["site"], arrays[0], arrays[1] if fields["has_mask"] else None, affine)
    except (OSError, ValueError, LookupError, TypeError, EOFError):
        return None
    return volume if all(array.shape[-3:] == tuple(fields["size"]) for array in arrays) else None


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Say what a full disk, or a folder that cannot be written, means here."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"Cannot write {path}: {error.strerror}. Set cache_root (or CONVSUITE_CACHE) to a folder that can be "
            "written and has room, or raise memory_limit to hold more in memory."
        ) from error


def _with_progress(steps: Iterator[Any], count: int) -> Iterable[Any]:
    if count < SHOW_PROGRESS_FROM or not sys.stderr.isatty():
        return steps
    from rich.console import Console
    from rich.progress import track

    return track(steps, f"Reading {count:,} subjects", count, console=Console(stderr=True), transient=True)
