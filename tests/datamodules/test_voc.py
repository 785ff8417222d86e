"""VOC 2012 and SBD: pairs, lists, the merged training set, batches, and bad input."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.image_folder import DamagedFileError
from datamodules.layouts.sbd import read_sbd_mask
from datamodules.voc import PascalVOCDataModule, read_voc_mask, voc_colour
from tests.helpers.data import write_image_folder
from tests.helpers.photos import (
    VOID,
    sbd_mask,
    voc_mask,
    voc_names,
    write_list,
    write_palette,
    write_sbd,
    write_voc,
)

REAL_DATA = os.environ.get("CONVSUITE_DATA", "")
LISTS = "ImageSets/Segmentation"


def voc(root: Path, **options) -> PascalVOCDataModule:
    return PascalVOCDataModule(str(root), **{"batch_size": 2, "num_workers": 0, "seed": 0, "crop_size": 24, **options})


def opened(root: Path, **options) -> PascalVOCDataModule:
    data = voc(root, **options)
    data.setup("fit")
    return data


def masks(data: PascalVOCDataModule, split: str) -> dict[str, np.ndarray]:
    """By the name of the photo."""
    return {Path(batch["file"][0]).stem: batch["mask"][0].numpy() for batch in data.evaluation_loader(split)}


def test_the_data_are_described_before_any_file_is_read():
    data = PascalVOCDataModule("/nowhere")
    assert (data.num_classes, data.class_names[0], data.class_names[20]) == (21, "background", "tvmonitor")
    assert (data.in_channels, data.image_size, data.batch_size) == (3, 512, 22)
    assert data.augmentation.mean_colour == (124, 116, 104)


def test_evaluation_gives_whole_photos_with_their_masks(tmp_path):
    write_voc(tmp_path)
    data = opened(tmp_path)
    batches = list(data.val_dataloader())
    assert [batch["file"] for batch in batches] == [[f"JPEGImages/{name}.jpg"] for name in voc_names("val", 3)]
    assert [batch["index"].tolist() for batch in batches] == [[0], [1], [2]]
    for batch, name in zip(batches, voc_names("val", 3), strict=True):
        assert batch["mask"][0].tolist() == voc_mask(name).tolist()
        assert batch["image"].shape == (1, 3, *voc_mask(name).shape)
        stored = Image.open(tmp_path / "VOCdevkit" / "VOC2012" / batch["file"][0])
        assert batch["image"][0].permute(1, 2, 0).tolist() == np.asarray(stored).tolist()
    assert batches[0]["image"].shape != batches[1]["image"].shape
    data.setup("test")
    assert [batch["file"] for batch in data.test_dataloader()] == [batch["file"] for batch in batches]


def test_training_gives_augmented_crops_whatever_the_number_of_workers(tmp_path):
    home = write_voc(tmp_path)
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):  # two equal samples
        first, second, *_ = (home / kind / f"{name}.{suffix}" for name in voc_names("train", 2))
        shutil.copy(first, second)
    epochs = []
    for workers in (0, 2):
        loader = opened(tmp_path, num_workers=workers).train_dataloader()
        loader.sampler.set_epoch(1)
        epochs.append(list(loader))
    for single, parallel in zip(*epochs, strict=True):
        assert all(torch.equal(single[name], parallel[name]) for name in single)
    batch = epochs[0][0]
    assert {name: (values.dtype, tuple(values.shape)) for name, values in batch.items()} == {
        "image": (torch.uint8, (2, 3, 24, 24)),
        "mask": (torch.uint8, (2, 24, 24)),
        "index": (torch.int64, (2,)),
    }
    twins = opened(tmp_path).train_dataset.__getitems__([(0, 0), (0, 1)])
    assert not torch.equal(twins["mask"][0], twins["mask"][1])
    later = opened(tmp_path).train_dataset.__getitems__([(1, 0)])
    assert not torch.equal(twins["mask"][0], later["mask"][0])


def test_training_options_reach_the_augmentation(tmp_path):
    write_voc(tmp_path)
    data = opened(tmp_path, scale=None, flip=False, rotation=0, crop_size=40)
    batch = data.train_dataset.__getitems__([(0, 0)])
    height, width = voc_mask(voc_names("train", 1)[0]).shape
    top, left = (40 - height) // 2, (40 - width) // 2
    inner = batch["mask"][0, top : top + height, left : left + width]
    assert inner.tolist() == voc_mask(voc_names("train", 1)[0]).tolist()
    assert (batch["mask"] == VOID).sum() == 1600 - height * width + width


@pytest.mark.parametrize("png", [False, True])
def test_trainaug_joins_voc_and_sbd(tmp_path, png):
    write_voc(tmp_path)
    write_sbd(tmp_path, png)
    data = opened(tmp_path, train_split="trainaug")
    found = masks(data, "train")
    assert list(found) == [*voc_names("train", 5), *voc_names("sbd", 4)]
    for name, mask in found.items():
        expected = sbd_mask(name) if name in voc_names("sbd", 4) else voc_mask(name)
        assert mask.tolist() == expected.tolist(), name
    assert list(masks(data, "val")) == voc_names("val", 3)


def test_trainaug_follows_its_list_and_finds_sbd_where_it_is_told(tmp_path, monkeypatch):
    home = write_voc(tmp_path)
    shutil.move(write_sbd(tmp_path).parent, tmp_path / "elsewhere")
    listed = [*voc_names("sbd", 2), voc_names("train", 1)[0]]
    write_list(home, "trainaug", [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in listed])
    monkeypatch.chdir(tmp_path.parent)
    data = opened(Path(tmp_path.name), train_split="trainaug", sbd="elsewhere")
    assert list(masks(data, "train")) == sorted(listed)
    write_list(home, "trainaug", [*listed, *voc_names("val", 2)])
    with pytest.raises(ValueError, match=r"trainaug\.txt lists 2 photos of val\.txt, 2008_000000 first"):
        opened(tmp_path, train_split="trainaug", sbd=str(tmp_path / "elsewhere"))


def test_a_whole_voc_with_a_part_of_sbd_is_reported(tmp_path, monkeypatch):
    write_voc(tmp_path)
    write_sbd(tmp_path)
    monkeypatch.setattr("datamodules.voc.TRAIN_SIZE", 5)
    monkeypatch.setattr("datamodules.voc.VAL_SIZE", 3)
    with pytest.warns(UserWarning, match="trainaug has 9 photos, where VOC 2012 and SBD make 10,582"):
        opened(tmp_path, train_split="trainaug")
    monkeypatch.setattr("datamodules.voc.TRAINAUG_SIZE", 9)
    opened(tmp_path, train_split="trainaug")


def test_trainval_trains_on_everything_and_leaves_nothing_to_measure(tmp_path):
    write_voc(tmp_path)
    with pytest.raises(ValueError, match="trainval holds the published validation photos: set val_size to 0"):
        voc(tmp_path, train_split="trainval")
    data = opened(tmp_path, train_split="trainval", val_size=0)
    assert len(data.train_dataset) == 8
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="trainval leaves no photos to test on"):
        data.setup("test")
    data = opened(tmp_path, train_split="trainval", val_size=2)
    train, val = masks(data, "train"), masks(data, "val")
    assert (len(train), len(val)) == (6, 2)
    assert {*train, *val} == {*voc_names("train", 5), *voc_names("val", 3)}


def test_subsets_are_nested(tmp_path):
    write_voc(tmp_path)
    small, large = (set(masks(opened(tmp_path, train_size=size), "train")) for size in (2, 4))
    assert small < large
    assert (len(small), len(large)) == (2, 4)


def test_resize_reduces_training_and_evaluation(tmp_path):
    write_voc(tmp_path)
    data = opened(tmp_path, resize=18, scale=None, crop_size=18, rotation=0)
    for name, mask in masks(data, "val").items():
        assert max(mask.shape) == 18
        assert set(np.unique(mask)) <= set(np.unique(voc_mask(name)))
    batch = data.train_dataset.__getitems__([(0, 1)])  # 31x24 pixels become 18x14, and are padded on both sides
    assert [(batch["mask"][0, :, column] == VOID).all().item() for column in (1, 2, 15, 16)] == [
        True,
        False,
        False,
        True,
    ]
    assert data.submission is None
    assert len({opened(tmp_path, resize=size).fingerprint("val") for size in (None, 18, 19)}) == 3


def test_predictions_are_of_the_test_set_where_it_is_there(tmp_path):
    home = write_voc(tmp_path, test=2)
    data = voc(tmp_path)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch["file"] for batch in batches] == [[f"JPEGImages/{name}.jpg"] for name in voc_names("test", 2)]
    assert batches[0].keys() == {"image", "file"}
    assert data.submission.values is None
    path = "results/VOC2012/Segmentation/comp6_test_cls/2009_000000.png"
    assert data.submission.path("JPEGImages/2009_000000.jpg") == path
    (home / LISTS / "test.txt").unlink()
    shutil.rmtree(home / "SegmentationClass")  # not needed for it
    data = voc(tmp_path)
    data.setup("predict")
    assert len(data.predict_dataloader()) == 3
    assert data.submission.path("a/2008_000001.jpg").endswith("/comp6_val_cls/2008_000001.png")


def test_folders_are_predicted_at_native_size(tmp_path):
    names = write_image_folder(tmp_path / "images")
    data = voc(tmp_path, predict_root=str(tmp_path / "images"), resize=10)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch["file"] for batch in batches] == [[name] for name in names]
    assert batches[0]["image"].shape == (1, 3, 30, 40)
    assert data.submission is None


def test_missing_data_say_what_is_expected_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"There is no VOC 2012 in {tmp_path}: expected VOCdevkit/VOC2012"):
        opened(tmp_path)
    write_sbd(tmp_path)
    shutil.rmtree(tmp_path / "VOCdevkit")
    with pytest.raises(FileNotFoundError, match=r"The masks of SBD in .*cls are for photos of VOC 2012 and need"):
        opened(tmp_path, train_split="trainaug")
    shutil.rmtree(tmp_path / "benchmark_RELEASE")
    home = write_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"trainaug needs the masks of SBD, and there is none in .*Unpack"):
        opened(tmp_path, train_split="trainaug")
    (home / LISTS / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"The list .*train\.txt names no photo"):
        opened(tmp_path)
    write_list(home, "train", voc_names("train", 5))
    (home / LISTS / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"The list .*val\.txt is missing"):
        opened(tmp_path)


def test_lists_that_name_missing_files_are_refused(tmp_path):
    home = write_voc(tmp_path, train=14)
    names = voc_names("train", 14)
    for name in names[1:13]:
        (home / "JPEGImages" / f"{name}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 12 of the 14 photos of train: JPEGImages/2007_000001") as error:
        opened(tmp_path)
    assert "2007_000010.jpg and 2 more" in str(error.value)
    write_voc(tmp_path, train=14)
    (home / "SegmentationClass" / f"{names[3]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 14 masks of train: SegmentationClass/2007_000003"):
        opened(tmp_path)
    folder = write_sbd(tmp_path)
    (folder / f"{voc_names('sbd', 1)[0]}.mat").unlink()
    write_list(home, "trainaug", [*names, *voc_names("sbd", 4)])
    with pytest.raises(
        FileNotFoundError, match=r"2 of the 18 photos of trainaug have no mask.*2007_000003, 2010_000000"
    ):
        opened(tmp_path, train_split="trainaug")


def damage_value(photo: Path, mask: Path) -> None:
    pixels = voc_mask(mask.stem)
    pixels[4, 5] = 21
    write_palette(mask, pixels)


def damage_mode(photo: Path, mask: Path) -> None:
    Image.open(mask).convert("RGB").save(mask)


def damage_palette(photo: Path, mask: Path) -> None:
    Image.open(mask).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(mask)


def damage_size(photo: Path, mask: Path) -> None:
    write_palette(mask, voc_mask(mask.stem)[1:])


def truncate_photo(photo: Path, mask: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_value, r"2008_000000\.png holds the value 21 at row 4, column 5, which is no class: .*0 to 20, 255"),
        (damage_mode, r"2008_000000\.png is a colour image \(mode RGB\)"),
        (damage_palette, r"2008_000000\.png shows the value \d+ in the colour .*, where VOC has .*Fetch the original"),
        (damage_size, r"2008_000000\.jpg has 30x36 pixels \(height x width\), its mask .*2008_000000\.png 29x36"),
        (truncate_photo, r"Cannot read the image .*2008_000000\.jpg"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    home = write_voc(tmp_path)
    damage(home / "JPEGImages" / "2008_000000.jpg", home / "SegmentationClass" / "2008_000000.png")
    with pytest.raises(DamagedFileError, match=message):
        list(opened(tmp_path).val_dataloader())


@pytest.mark.parametrize("void", [(0, 0, 0), (255, 255, 255)])
def test_what_is_ignored_may_have_any_colour(tmp_path, void):
    home = write_voc(tmp_path)
    path = home / "SegmentationClass" / "2008_000000.png"
    pixels = voc_mask("2008_000000")
    assert 255 in pixels
    image = Image.fromarray(pixels).convert("P")
    image.putpalette([*(channel for value in range(255) for channel in voc_colour(value)), *void])
    image.save(path)
    assert read_voc_mask(path).tolist() == pixels.tolist()


def test_masks_may_be_grey_in_any_mode(tmp_path):
    mask = voc_mask("2008_000000")
    grey = Image.fromarray(mask)
    for number, image in enumerate((grey, grey.convert("P"))):
        path = tmp_path / f"{number}.png"
        image.save(path)
        assert read_voc_mask(path).tolist() == mask.tolist()
    assert {value: voc_colour(value) for value in (0, 1, 4, 8, 20, 21, 255)} == {
        0: (0, 0, 0),
        1: (128, 0, 0),
        4: (0, 0, 128),
        8: (64, 0, 0),
        20: (0, 64, 128),
        21: (128, 64, 128),
        255: (224, 224, 192),
    }


def test_damaged_masks_of_sbd_are_named(tmp_path):
    from scipy.io import savemat

    path = tmp_path / "a.mat"
    path.write_bytes(b"not a file of MATLAB")
    with pytest.raises(DamagedFileError, match=r"Cannot read GTcls\.Segmentation in .*a\.mat"):
        read_sbd_mask(path, 21)
    savemat(path, {"GTinst": 1})
    with pytest.raises(DamagedFileError, match=r"Cannot read GTcls\.Segmentation in .*a\.mat \(KeyError"):
        read_sbd_mask(path, 21)
    savemat(path, {"GTcls": {"Segmentation": np.full((4, 4), 33, np.uint8)}})
    with pytest.raises(DamagedFileError, match=r"a\.mat holds the value 33, which is no class"):
        read_sbd_mask(path, 21)
    savemat(path, {"GTcls": {"Segmentation": np.zeros((4, 4))}})
    with pytest.raises(DamagedFileError, match=r"a\.mat is no mask of 8 bits: float64"):
        read_sbd_mask(path, 21)


def test_photos_have_the_orientation_in_which_masks_were_drawn(tmp_path):
    home = write_voc(tmp_path)
    photo = home / "JPEGImages" / "2008_000000.jpg"
    stored = Image.open(photo).convert("RGB")
    orientation = Image.Exif()
    orientation[274] = 6
    stored.save(photo, "PNG", exif=orientation)
    batch = next(iter(opened(tmp_path).val_dataloader()))
    assert batch["image"][0].permute(1, 2, 0).tolist() == np.asarray(stored).tolist()


def test_whole_photos_are_no_batch_of_several(tmp_path):
    write_voc(tmp_path)
    with pytest.raises(ValueError, match="2 photos of different sizes cannot be one batch"):
        opened(tmp_path).train_dataset.__getitems__([0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "aug"}, "train_split must be one of train, trainaug, trainval, got 'aug'"),
        ({"resize": 0}, "resize must be at least 1 pixel, or null"),
        ({"scale": (2.0, 1.0)}, "scale must be two factors"),
        ({"crop_size": 0}, "crop_size must be at least 1"),
    ],
)
def test_impossible_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        PascalVOCDataModule("/nowhere", **options)


@pytest.mark.real_data("VOCdevkit")
def test_real_photos():
    data = opened(Path(REAL_DATA), batch_size=4, crop_size=96, resize=160)
    assert (len(data.train_dataset), len(data.val_dataset)) == (88, 46)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 96, 96)
    native = opened(Path(REAL_DATA)).val_dataset
    labels = set()
    for key in range(46):
        sample = native.__getitems__([key])
        assert sample["image"].shape[2:] == sample["mask"].shape[1:]
        labels |= set(sample["mask"].unique().tolist())
    assert {0, 255} < labels <= {*range(21), 255}
