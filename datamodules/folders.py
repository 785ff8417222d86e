"""Where data sets lie and caches are kept, unless an argument says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder(root: str | None) -> str:
    """`root`, by default $CONVSUITE_DATA, else ./data: the folder that holds the data sets, each in one of its own."""
    return os.path.expanduser(root or os.environ.get("CONVSUITE_DATA") or "data")


def cache_folder(cache_root: str | None) -> Path:
    """`cache_root`, by default $CONVSUITE_CACHE, else ~/.cache/convsuite."""
    return Path(cache_root or os.environ.get("CONVSUITE_CACHE") or "~/.cache/convsuite").expanduser()
