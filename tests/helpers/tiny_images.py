"""Images without files, and what gives them to metrics as a data module does."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


def blob_images(count: int, channels: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    """uint8 (count, channels, size, size): a bright disc of random place, radius and colour on a dark ground each."""
    generator = torch.Generator().manual_seed(seed)
    place = size * (0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=generator))
    radius = size * (0.15 + 0.15 * torch.rand(count, 1, 1, generator=generator))
    colour = 100 + 155 * torch.rand(count, channels, 1, 1, generator=generator)
    axis = torch.arange(size)
    distance = ((axis[:, None] - place[:, 0]) ** 2 + (axis - place[:, 1]) ** 2).sqrt()
    inside = (radius - distance).sigmoid().unsqueeze(1)
    return (20 + inside * (colour - 20)).round().to(torch.uint8)


class TinyReference:
    """A data module as far as metrics need one; `reads` counts how often a split was read."""

    def __init__(self, images: Tensor, batch_size: int = 7) -> None:
        self.images = images
        self.in_channels, self.image_size = images.shape[1], images.shape[2]
        self.batch_size = batch_size
        self.reads = 0

    def evaluation_loader(self, split: str) -> DataLoader:
        self.reads += 1
        dataset = _Images(self.images)
        return DataLoader(dataset, self.batch_size, sampler=_Share(len(self.images)), generator=torch.Generator())

    def fingerprint(self, split: str) -> str:
        return f"{split} {int(self.images.long().sum())} {tuple(self.images.shape)}"


class _Images(Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index]}


class _Share(Sampler):
    """Process r of w has r, r + w, r + 2w, ..."""

    def __init__(self, count: int) -> None:
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.indices = range(rank, count, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self):
        return iter(self.indices)
