"""Small volumes in memory, and a data module that trains on patches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from datamodules.base import Split
from datamodules.volumes.patches import PatchDataModule
from datamodules.volumes.volume import InMemoryVolumes, Volume, VolumeStore


def tiny_volume(number: int, size: Sequence[int] = (12, 10, 9), channels: int = 2) -> Volume:
    """Noise about `number`, a box of class 1 and one voxel of class 2, voxels of 1, 2 (and 3) mm, of site a, b or c."""
    generator = torch.Generator().manual_seed(number)
    mask = torch.zeros(tuple(size), dtype=torch.uint8)
    mask[tuple(slice(2, 5) for _ in size)] = 1
    mask[tuple(side // 2 for side in size)] = 2
    affine = torch.diag(torch.tensor([*range(1, len(size) + 1), 1], dtype=torch.float64))
    affine[:-1, -1] = torch.tensor([10.0 * number, -5, 7][: len(size)])
    image = number + torch.randn(channels, *size, generator=generator)
    return Volume(f"subject_{number}", "abc"[number % 3], image, mask, affine)


class TinyPatches(PatchDataModule):
    """Patches of so many subjects for training, others for validation, and others for the test.

    Args:
        sizes: Of each training subject.
        evaluated: Number of validation subjects, and of test subjects, of the first size.
        options: As in `PatchDataModule`.
    """

    in_channels = 2
    num_classes = 3
    class_names = ("ground", "box", "dot")

    def __init__(
        self,
        sizes: Sequence[Sequence[int]] = ((12, 10, 9), (9, 10, 12), (10, 10, 10)),
        evaluated: int = 2,
        **options: Any,
    ) -> None:
        self.dimensions = len(sizes[0])
        super().__init__(**{"patch_size": 4, "patches_per_epoch": 12, "seed": 3, **options})
        self.volumes = [tiny_volume(number, size) for number, size in enumerate(sizes)]
        self.others = [tiny_volume(100 + number, sizes[0]) for number in range(2 * evaluated)]
        self.evaluated = evaluated

    def make_store(self, split: Split) -> VolumeStore | None:
        parts = {
            "train": self.volumes,
            "val": self.others[: self.evaluated],
            "test": self.others[self.evaluated :],
        }
        return InMemoryVolumes(parts[split]) if parts[split] else None
