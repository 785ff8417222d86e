"""Figure 5's toy problem: nothing but its place among the others tells the labelled lesion apart."""

from __future__ import annotations

import pytest
import torch

from datamodules.toy_lesions import CUT, ELSEWHERE, INSIDE, LesionScenes, ToyLesionDataModule

PLAIN = {"dimensions": 2, "image_size": 64, "distance": 12, "jitter": 1, "radius": 2.5, "noise": 0.125}


def scenes(**options) -> LesionScenes:
    return LesionScenes(**{**PLAIN, **options})


def toy(**options) -> ToyLesionDataModule:
    return ToyLesionDataModule(**{"train_size": 3, "test_size": 4, "patches_per_epoch": 6, "batch_size": 2, **options})


@pytest.mark.parametrize(("dimensions", "size"), [(2, 64), (3, 40)])
def test_equal_lesions_of_which_the_top_right_one_is_labelled(dimensions, size):
    made = scenes(dimensions=dimensions, image_size=size, noise=0.0)
    for index in range(5):
        centres, volume = made.centres("test", index), made.volume("test", index)
        discs = made.discs(centres)
        assert discs.flatten(1).sum(1).unique().numel() == 1
        assert (volume.image[0] == discs.sum(0)).all()  # they do not touch, and nothing else is there
        assert volume.mask.equal(discs[0].byte())
        others = centres[1:].float().mean(0)
        assert centres[0, 0] < others[0]
        assert (centres[0, 1:] > others[1:]).all()
        assert volume.affine.equal(torch.eye(dimensions + 1, dtype=torch.float64))


def test_lesions_keep_their_distances():
    made = scenes()
    centres = torch.stack([made.centres("train", 0, index) for index in range(200)])
    corner, *others = centres.unbind(1)
    apart = torch.stack([(corner - other).abs() for other in others], 1)
    assert set(apart[..., 0].flatten().tolist()) | set(apart[..., 1].flatten().tolist()) == {0, 1, 2, *range(10, 15)}
    edges = torch.stack([centres.min(), 63 - centres.max()])
    assert edges.tolist() == [4 + 2, 4 + 2]  # the lesion reaches 2 pixels farther, up to the clearance


def test_all_lesions_have_the_dice_that_the_docstring_says():
    volume = scenes(noise=0.0).volume("test", 0)
    found, truth = volume.image[0] > 0.5, volume.mask > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) == pytest.approx(2 / 5)


def test_intensity_finds_all_lesions():
    made = scenes()
    volumes = [made.volume("test", index) for index in range(20)]
    found = torch.stack([volume.image[0] > 0.5 for volume in volumes])
    lesions = torch.stack([made.discs(made.centres("test", index)).any(0) for index in range(20)])
    assert (found != lesions).float().mean() < 2e-4


def test_scenes_are_functions_of_their_key():
    made = scenes()
    one, again, other = made.volume("train", 0, 1), made.volume("train", 0, 1), made.volume("train", 1, 0)
    assert one.image.equal(again.image)
    assert not one.image.equal(other.image)


def test_regions_say_which_tiles_hold_what_tells_lesions_apart():
    made = scenes(jitter=0, image_size=48)
    in_one_tile = torch.tensor([[18, 30], [18, 18], [30, 18], [30, 30]])
    lesions = made.discs(in_one_tile).any(0)
    regions = made.regions(in_one_tile, tile_size=16)
    assert (regions[lesions] == INSIDE).all()
    assert (regions[~lesions] == ELSEWHERE).all()

    # Row 22 has its neighbours' places, 10 and 34, in other tiles; row 34 has 46 in its own, where nothing is.
    partly = in_one_tile + torch.tensor([4, 0])
    above, below = made.discs(partly[:2]).any(0), made.discs(partly[2:]).any(0)
    regions = made.regions(partly, tile_size=16)
    assert (regions[above] == CUT).all()
    assert (regions[below] == INSIDE).all()

    assert set(made.regions(in_one_tile, tile_size=48).unique().tolist()) == {INSIDE, ELSEWHERE}


def test_the_test_is_the_same_for_every_seed():
    one, two = toy(seed=0), toy(seed=1)
    assert one.fingerprint("test") == two.fingerprint("test")
    assert one.fingerprint("train") != two.fingerprint("train")


def test_batches():
    data = toy(patch_size=16, context=4, val_size=2)
    data.setup("fit")
    data.setup("test")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 1, 24, 24)
    assert batch["mask"].shape == (2, 16, 16)
    for loader, count in ((data.val_dataloader(), 2), (data.test_dataloader(), 4)):
        batches = list(loader)
        assert sum(len(batch["index"]) for batch in batches) == count
        assert batches[0]["region"].shape == batches[0]["mask"].shape == (2, 64, 64)
    data.setup("predict")
    assert "mask" not in next(iter(data.predict_dataloader()))


def test_batches_of_volumes():
    data = toy(dimensions=3, image_size=27, patch_size=8, context=2)
    data.setup("fit")
    data.setup("test")
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 12, 12, 12)
    batch = next(iter(data.test_dataloader()))
    assert batch["region"].shape == batch["mask"].shape == (2, 27, 27, 27)


def test_regions_belong_to_their_images():
    data = toy()
    data.setup("test")
    for batch in data.test_dataloader():
        assert (batch["region"][batch["mask"] == 1] != ELSEWHERE).all()


def test_a_border_without_context_is_ignored():
    data = toy(patch_size=16, context=10, ignore_border=True)
    data.setup("test")
    masks = next(iter(data.test_dataloader()))["mask"]
    assert (masks[:, 10:-10, 10:-10] <= 1).all()
    masks[:, 10:-10, 10:-10] = 255
    assert (masks == 255).all()


def test_pictures_are_of_one_scale():
    images = torch.tensor([-1.0, 0.0, 1.0, 3.0])
    assert toy().denormalise(images).tolist() == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 4}, "dimensions must be 2"),
        ({"distance": 6}, "lesions would touch: distance 6 and jitter 1 leave 4 pixels"),
        ({"image_size": 20}, "image_size must be at least 27"),
        ({"noise": -1.0}, "noise must be 0 or more"),
        ({"test_size": -1}, "test_size must be 0"),
        ({"tile_size": 0}, "tile_size must be at least 1"),
        ({"context": 32, "ignore_border": True}, "leaves nothing of images of 64 pixels"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        toy(**options)
