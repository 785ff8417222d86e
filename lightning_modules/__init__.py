"""Tasks, the command line, and what only training needs. Names resolve on first use: importing this is light."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "BaseTask": "lightning_modules.base",
    "ClassificationTask": "lightning_modules.classification",
    "GANTask": "lightning_modules.gan",
    "SegmentationTask": "lightning_modules.segmentation",
    "load_run": "lightning_modules.runs",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
