"""Some of the images of a memory map as a data set that hands out whole batches."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.base import SplitDataset
from datamodules.memory_map import MemoryMap
from datamodules.sampling import Key, generator_for


class MappedImages(SplitDataset):
    """Batches of `image` uint8 (N, C, H, W), channels last in memory, and `index` int64 (N,), the position in the map.

    A copy in another process maps the file again and carries no image.

    Args:
        memory_map: The images, written already.
        members: int64 (M,), the positions that belong to the data set, in order.
        flip_seed: Mirror half of the images of each epoch left to right, f(seed, epoch, index); None: none.
            Evaluation, which draws by `index` alone, is never mirrored.
    """

    def __init__(self, memory_map: MemoryMap, members: Tensor, flip_seed: int | None = None) -> None:
        self.memory_map = memory_map
        self.members = members
        self.flip_seed = flip_seed
        self.images, self.record = memory_map.open()
        self._flips: tuple[int, Tensor] | None = None  # (epoch, bool of every image in the map)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        """A whole batch; in training all keys are of one epoch."""
        drawn = torch.tensor(keys).view(len(keys), -1)
        index = self.members[drawn[:, -1]]
        images = self.images.index_select(0, index)
        if self.flip_seed is not None and drawn.shape[1] == 2:
            flipped = self._flipped(int(drawn[0, 0]))[index]
            images[flipped] = images[flipped].flip(2)
        return {"image": images.permute(0, 3, 1, 2), "index": index}

    def digest(self) -> str:
        return hashlib.blake2b(self.record.digest.encode() + self.members.numpy().tobytes(), digest_size=16).hexdigest()

    def _flipped(self, epoch: int) -> Tensor:
        """Which images of the map are mirrored in `epoch`: one draw an epoch is much faster than one an image."""
        if self._flips is None or self._flips[0] != epoch:
            draws = torch.rand(len(self.images), generator=generator_for("flip", self.flip_seed or 0, epoch))
            self._flips = epoch, draws < 0.5
        return self._flips[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("images", "record", "_flips")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _flips=None)
        self.images, self.record = self.memory_map.open()
