"""A subject's volume, and what hands volumes out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Volume:
    """One subject: its image, its mask and its place in the world. Of two or three spatial axes.

    Attributes:
        subject: Its name.
        site: Where it was acquired, where that is known.
        image: float32 (C, *size), normalised. It may be a memory map, or shared: read it, never write into it.
        mask: uint8 (*size), a class for each voxel, 255 where it is to be ignored; None: it has none.
        affine: float64 (d + 1, d + 1), from an index (i, j, k) of a voxel's centre to its place in the world in mm,
            nibabel's convention; the world is RAS+.
    """

    subject: str
    site: str | None
    image: Tensor
    mask: Tensor | None
    affine: Tensor

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each spatial axis."""
        return tuple(self.image.shape[1:])

    def digest(self) -> str:
        """A hex digest of all that it holds."""
        tensors = [tensor for tensor in (self.image, self.mask, self.affine) if tensor is not None]
        described = (self.subject, self.site, [(str(tensor.dtype), tuple(tensor.shape)) for tensor in tensors])
        digest = hashlib.blake2b(repr(described).encode(), digest_size=16)
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


class VolumeStore(Protocol):
    """The volumes of some subjects, as sampling and evaluation read them.

    Attributes:
        subjects: The name of each, in order.
        sites: Where each was acquired; None where that is not known.
    """

    subjects: Sequence[str]
    sites: Sequence[str | None]

    def __len__(self) -> int:
        """Number of subjects."""

    def __getitem__(self, index: int) -> Volume:
        """A subject by its position, in bounded memory."""

    def affine(self, index: int) -> Tensor:
        """The affine of a subject's volume, for who needs no voxels."""
        return self[index].affine

    def digest(self) -> str:
        """A hex digest that changes with the subjects, their order and what is read of them."""


class InMemoryVolumes(VolumeStore):
    """Volumes that are held as they are."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = list(volumes)
        self.subjects = [volume.subject for volume in self.volumes]
        self.sites = [volume.site for volume in self.volumes]

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Volume:
        return self.volumes[index]

    def digest(self) -> str:
        return digest_of(volume.digest() for volume in self.volumes)


def digest_of(digests: Iterable[str]) -> str:
    """One hex digest for several, in order."""
    return hashlib.blake2b("/".join(digests).encode(), digest_size=16).hexdigest()
