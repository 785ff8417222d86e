"""Random numbers that are functions of where they are used, and touch no global generator."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

BLOCK = 64  # evaluation draws that share a generator


def generator_for(*key: str | int) -> torch.Generator:
    """A generator on the CPU that depends on the key alone; keys that look alike give unrelated draws."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def indexed_normal(indices: Tensor, size: int, *key: str | int) -> Tensor:
    """Standard normal rows (len(indices), size), row i = f(key, indices[i]), whatever else is asked for with it."""
    blocks = indices // BLOCK
    rows = torch.empty(len(indices), size)
    for block in blocks.unique().tolist():
        chosen = blocks == block
        rows[chosen] = torch.randn(BLOCK, size, generator=generator_for(*key, block))[indices[chosen] % BLOCK]
    return rows
