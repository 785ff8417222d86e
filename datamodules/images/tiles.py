"""Images in memory, cut into tiles: where they lie, how they are handed out, and what training does to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from datamodules.base import SplitDataset
from datamodules.images.stain import jitter_stains
from datamodules.sampling import Key, generator_for
from datamodules.segmentation import AnnotatedImage


def tile_starts(length: int, tile: int) -> list[int]:
    """Where the fewest tiles that cover `length` pixels begin: evenly spaced, the first at 0, the last at the end.

    Neighbours touch where `tile` divides `length` (128 in 512: 0, 128, 256, 384) and overlap elsewhere (128 in 1000:
    eight tiles, which share 3 or 4 pixels).

    Raises:
        ValueError: `length` is smaller than `tile`.
    """
    if length < tile:
        raise ValueError(f"{length} pixels are fewer than a tile of {tile}.")
    count = -(-length // tile)
    return [round(step * (length - tile) / max(count - 1, 1)) for step in range(count)]


def tile_places(images: Sequence[AnnotatedImage], tile: int | None) -> Tensor:
    """The place of every tile, image after image and row by row: int64 (T, 3) of image number, top and left.

    Args:
        images: What is cut.
        tile: Height and width in pixels; None: each image is one tile.

    Raises:
        ValueError: An image is smaller than a tile; the message names it.
    """
    places = []
    for number, image in enumerate(images):
        height, width = image.mask.shape
        if tile is None:
            places.append((number, 0, 0))
            continue
        if min(height, width) < tile:
            raise ValueError(
                f"{image.file} has {height}x{width} pixels (height x width), fewer than a tile of {tile}x{tile}: "
                "choose a smaller tile_size, or leave the image out."
            )
        places += [(number, top, left) for top in tile_starts(height, tile) for left in tile_starts(width, tile)]
    return torch.tensor(places).view(-1, 3)


@dataclass(frozen=True)
class TileAugmentation:
    """What training does to square tiles of stained tissue, f(seed, epoch, index) for each.

    Attributes:
        seed: Seed of all draws.
        orientations: Whether to mirror and turn image and mask to one of the 8 orientations of a square, each as
            likely as the others.
        stain_jitter: s in `jitter_stains`: the concentration of each stain is multiplied by a number in [1 - s, 1 + s]
            and raised by one in [-s, s], drawn uniformly for each tile and stain.
    """

    seed: int
    orientations: bool = True
    stain_jitter: float = 0.0

    def __call__(self, images: Tensor, masks: Tensor, epoch: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """`images` uint8 (N, h, h, 3) and `masks` uint8 (N, h, h), changed; `index` int64 (N,) says which they are."""
        draws = torch.stack(
            [torch.rand(7, generator=generator_for("augment", self.seed, epoch, place)) for place in index.tolist()]
        )
        if self.orientations:
            orientation = (8 * draws[:, 0]).long()
            images, masks = _oriented(images, orientation), _oriented(masks, orientation)
        if self.stain_jitter:
            change = self.stain_jitter * (2 * draws[:, 1:] - 1)
            images = jitter_stains(images, 1 + change[:, :3], change[:, 3:])
        return images, masks


class TiledImages(SplitDataset):
    """Tiles, or whole images, as batches of dictionaries: see `SegmentationDataModule`.

    Draws by `(epoch, index)` are augmented; draws by `index` alone carry `file` and, where all images of the data set
    have them, `instances`. The file of a tile is that of its image with top and left: a/b.png becomes a/b_0_128.png.

    Args:
        images: The images that tiles lie in, uint8 RGB.
        places: int64 (T, 3) of image number, top and left, see `tile_places`; `index` is a position in it.
        members: int64 (M,), the places that belong to the data set.
        tile: Height and width of a tile; None: whole images, of which a batch can hold only one.
        grey: Turn images to grey, after augmentation.
        augmentation: What is done to tiles in training; None: nothing.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        places: Tensor,
        members: Tensor,
        tile: int | None,
        grey: bool = False,
        augmentation: TileAugmentation | None = None,
    ) -> None:
        self.images = images
        self.places = places
        self.members = members
        self.tile = tile
        self.grey = grey
        self.augmentation = augmentation
        self.native_size = tile is None
        self.has_instances = all(images[number].instances is not None for number in places[members, 0].tolist())

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """A whole batch; in training all keys are of one epoch."""
        drawn = torch.tensor(keys).view(len(keys), -1)
        index = self.members[drawn[:, -1]]
        tiles = [self._cut(place) for place in index.tolist()]
        images, masks = torch.stack([tile.image for tile in tiles]), torch.stack([tile.mask for tile in tiles])
        training = drawn.shape[1] == 2
        if training and self.augmentation is not None:
            images, masks = self.augmentation(images, masks, int(drawn[0, 0]), index)
        if self.grey:
            images = to_grey(images)
        batch = {"image": images.permute(0, 3, 1, 2), "mask": masks, "index": index}
        if training:
            return batch
        if self.has_instances:
            batch["instances"] = torch.stack([tile.instances for tile in tiles if tile.instances is not None])
        return {**batch, "file": [tile.file for tile in tiles]}

    def digest(self) -> str:
        digest = hashlib.blake2b(repr((self.tile, self.grey)).encode(), digest_size=16)
        for place in self.members.tolist():
            tile = self._cut(place)
            for pixels in (tile.image, tile.mask, tile.instances):
                if pixels is not None:
                    digest.update(repr(tuple(pixels.shape)).encode())
                    digest.update(pixels.contiguous().numpy().data)
        return digest.hexdigest()

    def groups(self) -> list[str]:
        """The groups (patients) of all members, sorted, each once."""
        return sorted({self.images[number].group for number in self.places[self.members, 0].tolist()})

    def _cut(self, place: int) -> AnnotatedImage:
        number, top, left = self.places[place].tolist()
        whole = self.images[number]
        if self.tile is None:
            return whole
        window = slice(top, top + self.tile), slice(left, left + self.tile)
        name = PurePosixPath(whole.file)
        return AnnotatedImage(
            file=str(name.with_name(f"{name.stem}_{top}_{left}{name.suffix}")),
            group=whole.group,
            image=whole.image[window],
            mask=whole.mask[window],
            instances=None if whole.instances is None else whole.instances[window],
        )


def to_grey(images: Tensor) -> Tensor:
    """RGB uint8 (..., 3) as grey uint8 (..., 1): 0.299 R + 0.587 G + 0.114 B, rounded as PIL rounds it."""
    red, green, blue = images.int().unbind(-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8).unsqueeze(-1)


def _oriented(tiles: Tensor, orientation: Tensor) -> Tensor:
    """Square tiles (N, h, h, ...), each mirrored (from 4 on) and turned by `orientation` mod 4 quarters."""
    result = torch.empty_like(tiles)
    for which in orientation.unique().tolist():
        chosen = orientation == which
        mirrored = tiles[chosen].flip(2) if which >= 4 else tiles[chosen]
        result[chosen] = mirrored.rot90(which % 4, dims=(1, 2))
    return result
