"""Reading the file that an offline W&B run leaves: the package itself only uploads it."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_HEADER, _BLOCK, _RECORD_HEADER = 7, 32 * 1024, 7
_FULL, _LAST = 1, 4


def isolate_wandb(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No network, no words, and whatever W&B keeps outside of a run goes to `folder`."""
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(folder / kind.lower()))


class WandbFile:
    """What one offline run (`.../wandb/offline-run-*`) would upload.

    Attributes:
        history: The logged rows.
        summary: The last summary, nested keys joined by dots.
        config: The last configuration.
    """

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("*.wandb")
        self.id = path.stem.removeprefix("run-")
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        for record in _records(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.history.append(_values(record.history.item))
            elif kind == "summary":
                self.summary |= _values(record.summary.update)
            elif kind in ("config", "run"):
                self.config |= _values((record.config if kind == "config" else record.run.config).update)

    def points(self, name: str) -> list[tuple[int, Any]]:
        """(`trainer/global_step`, value) of a metric."""
        return [(row["trainer/global_step"], row[name]) for row in self.history if name in row]


def offline_runs(folder: Path) -> list[WandbFile]:
    """The finished runs under `folder`, oldest first. W&B's own process writes them, a little later when it is busy."""
    runs = sorted(folder.glob("wandb/offline-run-*"))
    deadline = time.monotonic() + 60
    while not all(_is_complete(run) for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [WandbFile(run) for run in runs]


def _is_complete(run: Path) -> bool:
    (path,) = run.glob("*.wandb")
    return any(record.WhichOneof("record_type") == "exit" for record in _records(path.read_bytes()))


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[Any]:
    """The format of LevelDB's log: records in fragments that never cross a block's border."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, parts = _HEADER, b""
    while position + _RECORD_HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + _RECORD_HEADER])
        position += _RECORD_HEADER
        parts += content[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)
            parts = b""
