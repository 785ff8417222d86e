"""How a Trainer writes and reads checkpoints."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from lightning_modules.files import CheckpointError, read_checkpoint, read_torch_file, write_whole


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints on a local (or mounted) disk: whole or absent, and read with `weights_only=True`, always.

    Lightning's own stages a checkpoint in the system's temporary folder and moves it, which is neither atomic between
    file systems nor safe against a full temporary folder.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any | None = None
    ) -> None:
        """Replace `path` by the checkpoint.

        Raises:
            CheckpointError: It could not be written; what stood at `path` before is still there.
        """
        # In memory first: then only plain writes can fail on the way to the disk, and they say why.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_whole(Path(path), buffer.getbuffer())
        except OSError as error:
            raise CheckpointError(
                f"could not write {path}: {error.strerror or error}. The checkpoint before it is untouched: "
                "make room or name another folder, then run the same command again."
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `read_checkpoint`; `map_location` and `weights_only` change nothing: CPU, and True."""
        if Path(path).name == ".temp.ckpt":  # weights alone, which strategies that fork bring back from their processes
            return read_torch_file(Path(path), "checkpoint")
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        Path(path).unlink(missing_ok=True)
