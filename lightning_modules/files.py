"""Files that are written whole or not at all, and checkpoints that are read without running what is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read; the message names the file and the mend."""


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write into, which takes the place of `path` when the block ends without an error.

    A reader, a crash or a full disk finds the old content or the new one, never a part of it: the file grows beside its
    target, so that no other file system is involved, is forced to disk and renamed. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        with partial.open("rb+") as file:  # the block may have closed it
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _force_rename_to_disk(path.parent)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, whole or not at all: see `written_whole`."""
    with written_whole(path) as file:
        file.write(content)


def _force_rename_to_disk(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's tensors (on the CPU) and plain data; nothing in the file is executed.

    Raises:
        CheckpointError: The file is missing, truncated, no checkpoint, or holds more than tensors and plain data.
    """
    checkpoint = read_torch_file(Path(path), "checkpoint")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is a file of torch, but no checkpoint of a run: it has no 'state_dict'")
    return checkpoint


def read_torch_file(path: Path, kind: str) -> Any:
    """What torch saved to `path`, its tensors on the CPU; nothing in the file is executed. `kind` is for messages.

    Raises:
        CheckpointError: The file is missing, truncated, none of torch's, or holds more than tensors and plain data.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(f"there is no {kind} {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no {kind}, or holds more than tensors and plain data, which is never loaded. If you trust its "
            f"source, save what is wanted of it anew: torch.save(torch.load({path.name!r}, weights_only=False)"
            "['state_dict'], 'weights.pth')"
        ) from error
    except Exception as error:  # arbitrary bytes raise arbitrary errors in there
        raise CheckpointError(
            f"{path} is truncated, damaged or no {kind} ({_first_line(error)}); use another {kind}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
