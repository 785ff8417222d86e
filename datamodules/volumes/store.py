"""Subjects that are read once: held in memory where they fit, else in files that are mapped, or kept nowhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.images.decoding import usable_cores
from datamodules.images.memory_map import CacheError, written_whole
from datamodules.sampling import process_place
from datamodules.volumes.files import Header, SubjectFiles, not_opened, read_header
from datamodules.volumes.reader import VolumeReader
from datamodules.volumes.volume import InMemoryVolumes, Volume, VolumeStore, digest_of

CACHE_VERSION = 1  # raised when the same files and settings are to give other voxels
SHOW_PROGRESS_FROM = 20  # subjects: some seconds
GIB = 2**30
READING_LIMIT = 8 * GIB  # of a machine
COPIES, BYTES_A_VOXEL = 4, 64
"""What reading takes at its peak, measured for 1 to 4 scans, for all types of voxels, ways to normalise and spacings:
so many copies of the subject, and for one scan at a time the positions of its voxels or the grid it is resampled on."""
MAPPED_AT_ONCE = 64
"""Subjects that a process maps: maps cost it page tables of 1/512 of their size, and no file descriptors."""


def open_volumes(
    files: Sequence[SubjectFiles],
    reader: VolumeReader,
    memory_limit: float,
    cache_root: Path | None,
    processes: int = 1,
) -> VolumeStore:
    """Read and check subjects once, as many at a time as there are cores and memory for.

    Those that take at most `memory_limit` together, in all `processes`, are held in memory. Worker processes share it:
    what a process holds when it forks is not copied; where workers are started anew (spawn, forkserver), torch moves it
    to shared memory, which takes room in /dev/shm, and file descriptors (`ulimit -n`) for each subject. Larger sets are
    written below `cache_root`, by all processes together, and mapped, which takes neither, however workers are started:
    then the system's file cache is the memory, shared by all processes of a machine and given back when it is needed.

    Reading takes 64 bytes a voxel and four times the subject for a moment: 1.2 GB for four scans of BraTS, 13 GB for a
    CT of 512x512x600 voxels. So many are read at once as 8 GiB allow, but one in each process at least.

    Args:
        files: The subjects.
        reader: How they are read.
        memory_limit: GiB, before cropping.
        cache_root: Where larger sets are kept; may be deleted at any time. None: nowhere. They are checked now, and
            read anew, by a loader's workers, whenever they are drawn, which suits what is drawn once.
        processes: How many processes of this machine do the same.

    Raises:
        FileNotFoundError: A file is missing.
        DamagedFileError: A file is not what it should be; the message names it and the mend.
        CacheError: The cache cannot be written.
    """
    headers = [read_header(one.paths[0]) for one in files]
    peak = max(_peak(one, header, reader) for one, header in zip(files, headers, strict=True))
    threads = max(1, min(usable_cores(), READING_LIMIT // processes // peak))
    if sum(map(reader.bytes_of, files, headers)) * processes > memory_limit * GIB:
        if cache_root is None:
            return StreamedVolumes(files, reader, threads)
        return MappedVolumes(files, reader, cache_root / "volumes", threads)
    with ThreadPoolExecutor(threads) as pool:
        return InMemoryVolumes(list(_with_progress(pool.map(reader.read, files), len(files))))


class StreamedVolumes(VolumeStore):
    """Volumes that are read whenever they are drawn, and kept nowhere.

    Each is read once at the start too, so that a bad file shows before the first prediction, and a blank scan is named
    once; of that, its affine stays.
    The processes of a job share this work: each checks the subjects that an `EvaluationSampler` gives it.

    Args:
        files: The subjects.
        reader: How they are read.
        threads: How many subjects are checked at once.

    Raises:
        FileNotFoundError: A file is missing.
        DamagedFileError: A file is not what it should be.
    """

    def __init__(self, files: Sequence[SubjectFiles], reader: VolumeReader, threads: int = 1) -> None:
        self.subjects = [one.subject for one in files]
        self.sites = [one.site for one in files]
        self._files = list(files)
        self._reader = reader
        processes, rank = process_place()
        own = range(rank, len(files), processes)
        with ThreadPoolExecutor(threads) as pool:
            affines = list(_with_progress(pool.map(self._checked_affine, own), len(own)))
        self._affines = dict(zip(own, affines, strict=True))

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> Volume:
        return self._reader.read(self._files[index], names_blank=False)

    def affine(self, index: int) -> Tensor:
        return self._affines[index] if index in self._affines else super().affine(index)

    def digest(self) -> str:
        return digest_of(_key(one, self._reader) for one in self._files)

    def _checked_affine(self, index: int) -> Tensor:
        return replace(self._reader, intensity="none").read(self._files[index]).affine


class MappedVolumes(VolumeStore):
    """Volumes that are read once and then mapped from files of plain arrays.

    Of each subject there are `<name>-<key>.image.npy`, where it has one `.mask.npy`, and `.json`, the record. They are
    written whole, the record last, under a lock of their own, so that processes share the work and a crash leaves
    nothing that looks complete. The key stands for names, sizes and times of change of the subject's files and for all
    settings of the reader: files under other keys stay until somebody deletes them.

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
        self._volumes: dict[int, Volume] = {}  # the one that was used last comes last
        missing = [one for one, record in zip(files, self._records, strict=True) if not record.exists()]
        if missing:
            rank_zero_info(
                f"Writing {len(missing):,} subjects to {folder}, {sum(map(reader.bytes_of, missing)) / 1e9:.2f} GB or "
                "less. What other data and settings have left there may be deleted."
            )
        self._write_missing(files, reader, threads)

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> Volume:
        volume = self._volumes.pop(index, None) or _mapped(self._records[index])
        if volume is None:
            raise CacheError(f"{self._records[index]} and its arrays were deleted or damaged: start again.")
        self._volumes[index] = volume
        if len(self._volumes) > MAPPED_AT_ONCE:  # whoever still uses the first keeps it mapped
            del self._volumes[next(iter(self._volumes))]
        return volume

    def digest(self) -> str:
        return digest_of(json.loads(record.read_text())["digest"] for record in self._records)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_volumes": {}}  # another process maps the files itself: a pickled map is a copy

    def _write_missing(self, files: Sequence[SubjectFiles], reader: VolumeReader, threads: int) -> None:
        """What another process is writing is left to it, and waited for in the end."""

        def write(index: int, wait: bool = False) -> bool:
            return _write_if_missing(self._records[index], files[index], reader, wait)

        with ThreadPoolExecutor(threads) as pool:
            done = list(_with_progress(pool.map(write, range(len(files))), len(files)))
            left = [index for index, is_done in enumerate(done) if not is_done]
            list(pool.map(partial(write, wait=True), left))


def _peak(files: SubjectFiles, header: Header, reader: VolumeReader) -> int:
    """Bytes that reading takes, see `COPIES`: of the subject as stored or as resampled, whichever is larger."""
    size = max(one.bytes_of(files, header) for one in (reader, replace(reader, spacing=None)))
    voxels = size // (4 * len(files.images) + (files.mask is not None))
    return COPIES * size + BYTES_A_VOXEL * voxels


def _key(files: SubjectFiles, reader: VolumeReader) -> str:
    content = f"{CACHE_VERSION}/{reader}/{files.site}/{files.digest()}"
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _write_if_missing(record: Path, files: SubjectFiles, reader: VolumeReader, wait: bool) -> bool:
    """Whether there is a record now; False: another process is writing it, for which this one did not `wait`."""
    if _mapped(record) is not None:
        return True
    lock = FileLock(record.with_suffix(".lock"))
    with _explaining(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=-1 if wait else 0)
    if not lock.is_locked:
        return False
    try:
        if _mapped(record) is None:  # otherwise a process came first
            volume = reader.read(files)
            with _explaining(record):
                _write(record, volume)
    finally:
        lock.release()
    return True


def _write(record: Path, volume: Volume) -> None:
    record.unlink(missing_ok=True)
    for kind, tensor in (("image", volume.image), ("mask", volume.mask)):
        if tensor is not None:
            with written_whole(record.with_suffix(f".{kind}.npy")) as file:
                np.save(file, np.ascontiguousarray(tensor.numpy()))
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
    """The volume that a record describes; None: there is no record, or its arrays are not what it says.

    Raises:
        OSError: The system does not let one of the files be read, which says nothing of what it is; names the file.
    """
    try:
        fields = json.loads(record.read_text())
        image = _map(record.with_suffix(".image.npy"), torch.float32)
        mask = _map(record.with_suffix(".mask.npy"), torch.uint8) if fields["has_mask"] else None
        affine = torch.tensor(fields["affine"], dtype=torch.float64)
        volume = Volume(fields["subject"], fields["site"], image, mask, affine)
        size = tuple(fields["size"])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, EOFError):
        return None
    except OSError as error:
        raise not_opened(Path(error.filename or record), error) from error
    return volume if volume.size == size and (mask is None or mask.shape == size) else None


def _map(path: Path, dtype: torch.dtype) -> Tensor:
    """A .npy file as a tensor; who writes into it does not reach the file.

    A map of numpy's keeps its file open, and one of torch does not; but torch knows nothing of the format.

    Raises:
        OSError: The file cannot be opened or mapped; has its name.
        ValueError: It is not whole, or not of this type.
    """
    try:
        array = np.load(path, mmap_mode="r")
        if array.dtype != torch.empty(0, dtype=dtype).numpy().dtype or not array.flags.c_contiguous:
            raise ValueError(f"{path} holds {array.dtype}")
        content = torch.from_file(str(path), shared=False, size=array.offset + array.nbytes, dtype=torch.uint8)
    except OSError as error:  # which has no name where a file can be opened, but not mapped
        raise OSError(error.errno, error.strerror, str(path)) from error
    except RuntimeError as error:
        raise _of_the_system(path, error) from error
    return content[array.offset :].view(dtype).view(array.shape)


def _of_the_system(path: Path, error: RuntimeError) -> OSError:
    """What torch says in words, such as "unable to open file </a.npy> ...: Too many open files (24)"."""
    number = re.search(r"\((\d+)\)$", str(error))
    if number is None:
        return OSError(errno.EIO, str(error), str(path))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


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
