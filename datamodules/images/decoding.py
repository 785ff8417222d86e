"""Many image files decoded to arrays of one size, by all cores, in order."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.images.image_folder import DamagedFileError

SHOW_PROGRESS_FROM = 10_000  # images: a few seconds


@dataclass(frozen=True)
class Decoded:
    """Consecutive images.

    Attributes:
        images: uint8 (n, H, W, C).
        damaged: Position (in all files) of each file that could not be decoded, and why; its image is black.
    """

    images: NDArray[np.uint8]
    damaged: dict[int, str]


def decode_in_blocks(
    files: Sequence[Path],
    decode: Callable[[Path], NDArray[np.uint8]],
    shape: tuple[int, int, int],
    skip_damaged: bool,
    block: int,
) -> Iterator[Decoded]:
    """Decode `files` in threads, `block` at a time: decoders and resizing let other threads run meanwhile.

    Args:
        files: The image files.
        decode: A file's image, uint8 of `shape`; raises `DamagedFileError` where there is none.
        shape: (H, W, C).
        skip_damaged: Report what cannot be decoded in place of raising.
        block: Images a block.

    Raises:
        DamagedFileError: The first file that cannot be decoded, without `skip_damaged`.
    """

    def decode_block(start: int) -> Decoded:
        paths = files[start : start + block]
        images = np.zeros((len(paths), *shape), dtype=np.uint8)
        damaged = {}
        for row, path in enumerate(paths):
            try:
                images[row] = decode(path)
            except DamagedFileError as error:
                if not skip_damaged:
                    raise DamagedFileError(f"{error} skip_damaged: true leaves such images out.") from error
                damaged[start + row] = str(error)
        return Decoded(images, damaged)

    cores = usable_cores()
    starts = range(0, len(files), block)
    with ThreadPoolExecutor(cores) as pool:
        yield from _with_progress(_in_order(pool, decode_block, starts, 2 * cores), len(starts), len(files))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], Decoded], starts: Iterable[int], ahead: int
) -> Iterator[Decoded]:
    """Like `pool.map`, but no more than `ahead` results wait for who takes them: memory is not for all of it."""
    waiting: deque[Future[Decoded]] = deque()
    try:
        for start in starts:
            waiting.append(pool.submit(function, start))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _with_progress(blocks: Iterator[Decoded], count: int, images: int) -> Iterable[Decoded]:
    if images < SHOW_PROGRESS_FROM or not sys.stderr.isatty():
        return blocks
    from rich.console import Console
    from rich.progress import track

    return track(blocks, f"Decoding {images:,} images", count, console=Console(stderr=True), transient=True)
