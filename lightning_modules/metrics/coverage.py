"""How much of each subject's volume patches have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

CELLS = 2**12
"""Of a volume, at most: up to 16 along each of three axes, 64 along each of two."""


class Coverage:
    """The share of the voxels that were in a patch, measured at the voxel in the middle of each of up to `CELLS` cells.

    So a subject takes 4 kilobytes at most, and an eighth of it in a checkpoint, whatever its size. Volumes that have no
    more voxels along an axis than there may be cells are measured exactly.
    """

    def __init__(self) -> None:
        self._seen: dict[int, np.ndarray] = {}

    def add(self, subject: int, start: Sequence[int], patch: Sequence[int], size: Sequence[int]) -> None:
        """A patch of `patch` voxels from `start` on was seen of a subject of `size` voxels."""
        most = round(CELLS ** (1 / len(size)))
        cells = [min(side, most) for side in size]
        seen = self._seen.setdefault(subject, np.zeros(cells, bool))
        window = []
        for first, length, side, count in zip(start, patch, size, cells, strict=True):
            middles = (2 * np.arange(count) + 1) * side // (2 * count)
            window.append(slice(*np.searchsorted(middles, [first, first + length]).tolist()))
        seen[tuple(window)] = True

    def share(self, subjects: int) -> float:
        """The mean share over so many subjects, of which those that were never seen have 0."""
        return sum(float(seen.mean()) for seen in self._seen.values()) / subjects

    def subjects(self) -> int:
        """How many subjects were seen."""
        return len(self._seen)

    def state(self) -> dict[int, dict[str, Any]]:
        """Plain data and tensors, for a checkpoint."""
        return {
            subject: {"cells": list(seen.shape), "bits": torch.from_numpy(np.packbits(seen))}
            for subject, seen in self._seen.items()
        }

    def load(self, state: dict[int, dict[str, Any]]) -> None:
        """Go on from `state`."""
        self._seen = {
            subject: np.unpackbits(saved["bits"].numpy(), count=math.prod(saved["cells"]))
            .astype(bool)
            .reshape(saved["cells"])
            for subject, saved in state.items()
        }
