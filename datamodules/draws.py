"""Draws for each sample of an epoch, cheap to begin: what `sampling.generator_for` is to whole epochs."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np


def numbers_for(index: int, *key: str | int) -> np.random.Generator:
    """A generator whose `random()` depends on the arguments alone, e.g. `numbers_for(index, "patches", seed, epoch)`.

    The key names a stream of numbers (Philox), which is hashed once; the index is a place in it, 2^192 numbers from the
    next. A generator of torch would take as long to seed as a patch takes to be cut.

    Args:
        index: 0 to 2^63 - 1.
        key: What else the draws depend on.
    """
    return np.random.Generator(np.random.Philox(key=_hashed(*key), counter=np.array([0, 0, 0, index], np.uint64)))


@lru_cache(maxsize=64)
def _hashed(*key: str | int) -> np.ndarray:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)
