"""Tiles: where they lie, what they are called, and how training changes them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.images.tiles import TileAugmentation, TiledImages, tile_places, tile_starts, to_grey
from datamodules.segmentation import AnnotatedImage


def annotated(height: int, width: int, name: str = "a/b.png", objects: bool = True) -> AnnotatedImage:
    """An image whose mask and objects can be told from its colours, pixel by pixel."""
    generator = torch.Generator().manual_seed(height)
    mask = torch.randint(0, 2, (height, width), generator=generator, dtype=torch.uint8)
    image = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    image[..., 2] = 100 * mask
    return AnnotatedImage(name, "patient", image, mask, 5 * mask.int() if objects else None)


def dataset(images: list[AnnotatedImage], tile: int | None = 4, **options) -> TiledImages:
    places = tile_places(images, tile)
    return TiledImages(images, places, torch.arange(len(places)), tile, **options)


def test_the_fewest_tiles_that_cover_are_evenly_spaced():
    assert tile_starts(512, 128) == [0, 128, 256, 384]
    thousand = tile_starts(1000, 128)
    assert len(thousand) == 8
    assert thousand[::7] == [0, 872]
    assert tile_starts(128, 128) == [0]
    assert tile_starts(129, 128) == [0, 1]


@pytest.mark.parametrize("length", range(7, 60))
@pytest.mark.parametrize("tile", [1, 2, 5, 7])
def test_every_pixel_is_covered(length, tile):
    starts = tile_starts(length, tile)
    assert {pixel for start in starts for pixel in range(start, start + tile)} == set(range(length))
    steps = np.diff(starts)
    assert len(starts) == -(-length // tile)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_places_run_row_by_row_and_image_by_image():
    places = tile_places([annotated(4, 8), annotated(8, 4)], 4)
    assert places.tolist() == [[0, 0, 0], [0, 0, 4], [1, 0, 0], [1, 4, 0]]
    assert tile_places([annotated(4, 8), annotated(8, 4)], None).tolist() == [[0, 0, 0], [1, 0, 0]]


def test_an_image_smaller_than_a_tile_is_named():
    with pytest.raises(ValueError, match=r"small\.png has 3x9 pixels \(height x width\), fewer than a tile of 4x4"):
        tile_places([annotated(8, 8), annotated(3, 9, "small.png")], 4)


def test_evaluation_gives_image_mask_objects_and_names():
    images = [annotated(4, 8), annotated(8, 8, "c.png")]
    batch = dataset(images).__getitems__([1, 5])
    assert {name: tuple(values.shape) for name, values in batch.items() if isinstance(values, Tensor)} == {
        "image": (2, 3, 4, 4),
        "mask": (2, 4, 4),
        "instances": (2, 4, 4),
        "index": (2,),
    }
    assert [batch[name].dtype for name in ("image", "mask", "instances")] == [torch.uint8, torch.uint8, torch.int32]
    assert batch["file"] == ["a/b_0_4.png", "c_4_4.png"]
    assert batch["index"].tolist() == [1, 5]
    assert torch.equal(batch["image"][1], images[1].image[4:, 4:].permute(2, 0, 1))
    assert torch.equal(batch["instances"][0], images[0].instances[:, 4:])
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)


def test_whole_images_have_their_own_size():
    batch = dataset([annotated(4, 8), annotated(8, 6, objects=False)], None).__getitems__([1])
    assert batch["image"].shape == (1, 3, 8, 6)
    assert batch["file"] == ["a/b.png"]
    assert "instances" not in batch  # one of the images has none


def test_training_has_neither_names_nor_objects_and_keeps_mask_and_image_together():
    data = dataset([annotated(16, 16)], augmentation=TileAugmentation(seed=0))
    batch = data.__getitems__([(0, index) for index in range(16)])
    assert batch.keys() == {"image", "mask", "index"}
    assert torch.equal(batch["image"][:, 2], 100 * batch["mask"])
    plain = data.__getitems__(list(range(16)))
    assert not torch.equal(batch["image"], plain["image"])
    assert torch.equal(batch["image"].sum((1, 2, 3)), plain["image"].sum((1, 2, 3)))


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    images = [annotated(16, 16)]
    options = {"orientations": True, "stain_jitter": 0.1}
    data = dataset(images, augmentation=TileAugmentation(0, **options))
    keys = [(3, index) for index in range(16)]
    together = data.__getitems__(keys)["image"]
    alone = torch.cat([data.__getitems__([key])["image"] for key in reversed(keys)]).flip(0)
    assert torch.equal(together, alone)
    for other in (
        data.__getitems__([(4, index) for index in range(16)]),
        dataset(images, augmentation=TileAugmentation(1, **options)).__getitems__(keys),
    ):
        assert not torch.equal(other["image"], together)


def test_equal_tiles_of_a_batch_are_augmented_differently():
    same = annotated(4, 4)
    tiled = AnnotatedImage("a.png", "p", same.image.repeat(4, 4, 1), same.mask.repeat(4, 4))
    for options in ({"orientations": True}, {"orientations": False, "stain_jitter": 0.2}):
        batch = dataset([tiled], augmentation=TileAugmentation(0, **options)).__getitems__([(0, i) for i in range(16)])
        assert len(batch["image"].flatten(1).unique(dim=0)) > 6


def test_all_eight_orientations_of_a_square_appear():
    corner = torch.zeros(200, 3, 3, 3, dtype=torch.uint8)
    corner[:, 0, 1] = 1
    corner[:, 0, 0] = 2
    index = torch.arange(200)
    turned, masks = TileAugmentation(0)(corner, corner[..., 0], 0, index)
    seen, counts = turned[..., 0].flatten(1).unique(dim=0, return_counts=True)
    assert len(seen) == 8
    assert counts.min() > 10
    assert torch.equal(masks, turned[..., 0])


def test_turning_on_jitter_does_not_change_orientations():
    data = [dataset([annotated(16, 16)], augmentation=TileAugmentation(0, stain_jitter=s)) for s in (0.0, 0.1)]
    masks = [each.__getitems__([(0, index) for index in range(16)])["mask"] for each in data]
    assert torch.equal(*masks)


def test_grey_is_pil_s_grey_and_comes_after_the_stains():
    image = annotated(8, 8)
    data = dataset([image], None, grey=True)
    expected = np.asarray(Image.fromarray(image.image.numpy()).convert("L"))
    assert data.__getitems__([0])["image"][0, 0].tolist() == expected.tolist()
    augmentation = TileAugmentation(0, orientations=False, stain_jitter=0.2)
    colour, grey = (
        dataset([image], 8, grey=grey, augmentation=augmentation).__getitems__([(0, 0)])["image"]
        for grey in (False, True)
    )
    assert torch.equal(grey, to_grey(colour.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_the_digest_names_pixels_masks_tiles_and_colour():
    image = annotated(8, 8)
    repainted = AnnotatedImage(image.file, image.group, image.image.flip(0), image.mask, image.instances)
    relabelled = AnnotatedImage(image.file, image.group, image.image, 1 - image.mask, image.instances)
    tiles = dataset([image])
    digests = [
        tiles.digest(),
        dataset([repainted]).digest(),
        dataset([relabelled]).digest(),
        dataset([image], None).digest(),
        dataset([image], grey=True).digest(),
        TiledImages([image], tiles.places, torch.tensor([0, 2]), 4).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert dataset([image], augmentation=TileAugmentation(0)).digest() == digests[0]
