"""Results that are dear to make, kept on disk: verified when they are read, made anew where they are damaged."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_modules.files import written_whole
from lightning_modules.metrics.collectives import from_first
from lightning_modules.metrics.protocol import CacheKey

Content = dict[str, Tensor]
_DIGEST_LENGTH = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """$CONVSUITE_CACHE, else `~/.cache/convsuite`."""
    return Path(os.environ.get("CONVSUITE_CACHE") or "~/.cache/convsuite").expanduser()


class Cache:
    """Tensors on disk, a file `<kind>-<digest of the key>.pt` each: the SHA-256 of what follows, then torch's format.

    Args:
        root: The folder; default: `metrics` in `cache_folder()`.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = cache_folder() / "metrics" if root is None else Path(root).expanduser()

    def path(self, kind: str, key: CacheKey) -> Path:
        return self.root / f"{kind}-{key.digest}.pt"

    @contextmanager
    def locked(self, kind: str, key: CacheKey) -> Iterator[None]:
        """Runs that want the same file wait for each other here, so that one makes it and the others read it.

        The first process of a run holds the lock; all of its processes must enter. The system frees the lock of a run
        that dies.

        Raises:
            OSError: The folder cannot be written.
        """
        path = self.path(kind, key)
        lock = FileLock(path.with_suffix(".lock"))

        def acquire() -> None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _acquire(lock, path)
            except OSError as error:
                raise OSError(f"{path.parent} cannot be written ({error}); set CONVSUITE_CACHE to a folder") from error

        from_first(acquire)
        try:
            yield
        finally:
            lock.release()

    def load(self, kind: str, key: CacheKey) -> Content | None:
        """The content of the key's file, on the CPU; None where there is none, or none that can be trusted."""
        path = self.path(kind, key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, payload = content[:_DIGEST_LENGTH], content[_DIGEST_LENGTH:]
        if hashlib.sha256(payload).digest() != digest:
            warnings.warn(f"{path} is damaged or half-written: it is made anew", stacklevel=2)
            return None
        saved = torch.load(io.BytesIO(payload), weights_only=True)
        if saved["key"] != asdict(key):
            warnings.warn(f"{path} was made for something else ({saved['key']}): it is made anew", stacklevel=2)
            return None
        return saved["content"]

    def save(self, kind: str, key: CacheKey, content: Content) -> None:
        """Write the key's file, whole or not at all. The caller holds the lock."""
        buffer = io.BytesIO()
        torch.save({"key": asdict(key), "content": {name: value.cpu() for name, value in content.items()}}, buffer)
        payload = buffer.getvalue()
        with written_whole(self.path(kind, key)) as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        rank_zero_info(f"waiting for another run, which makes {path}")
        lock.acquire()
