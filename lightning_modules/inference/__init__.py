"""How whole images are predicted (in tiles, flipped, at several scales), and objects found. Names resolve lazily."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Inference": "lightning_modules.inference.inference",
    "label_objects": "lightning_modules.inference.instances",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
