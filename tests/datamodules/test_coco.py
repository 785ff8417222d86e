"""COCO: outlines become masks of VOC's classes; which photos are left out; what is kept; bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.coco import COCODataModule
from datamodules.images.image_folder import DamagedFileError
from datamodules.images.memory_map import CacheError
from datamodules.layouts import coco_masks
from tests.helpers.photos import box, write_coco

pytest.importorskip("pycocotools")

AEROPLANE, DOG, PERSON, SOFA = 1, 12, 15, 18
RUNS = {"size": [40, 50], "counts": [0, 400, 1600]}  # the first ten columns
DOG_ON_COUCH = [
    {"category": "dog", "segmentation": box(10, 10, 20, 20)},
    {"category": "couch", "segmentation": box(0, 5, 30, 35)},
    {"category": "zebra", "segmentation": box(10, 10, 14, 14)},
]
PHOTOS = [
    DOG_ON_COUCH,
    [{"category": "airplane", "segmentation": box(0, 0, 3, 3)}],
    [
        {"category": "person", "segmentation": RUNS, "iscrowd": 1},
        {"category": "person", "segmentation": box(5, 0, 15, 40)},
    ],
    [{"category": "zebra", "segmentation": box(0, 0, 50, 40)}],
]


def opened(root: Path, **options) -> COCODataModule:
    defaults = {"num_workers": 0, "seed": 0, "crop_size": 16, "min_pixels": 0, "cache_root": str(root / "cache")}
    data = COCODataModule(str(root), **{**defaults, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def masks(data: COCODataModule) -> list[np.ndarray]:
    return [batch["mask"][0].numpy() for batch in data.val_dataloader()]


def test_objects_are_painted_as_classes_of_voc(tmp_path):
    write_coco(tmp_path, PHOTOS)
    assert COCODataModule.num_classes == 21
    couch, plane, crowd, zebra = masks(opened(tmp_path))
    expected = np.zeros((40, 50), np.uint8)
    expected[5:35, :30] = SOFA
    expected[10:20, 10:20] = DOG  # the smaller one is seen, though it is listed first
    assert couch.tolist() == expected.tolist()
    assert (plane == AEROPLANE).sum() == 9
    assert (crowd[:, :5] == 255).all()
    assert (crowd[:, 5:15] == PERSON).all()
    assert not crowd[:, 15:].any()
    assert not zebra.any()


def test_photos_with_few_labelled_pixels_are_left_out(tmp_path):
    write_coco(tmp_path, PHOTOS)
    files = {
        pixels: [batch["file"][0] for batch in opened(tmp_path, min_pixels=pixels).evaluation_loader("train")]
        for pixels in (1, 9, 10, 400, 401, 900)
    }
    names = [f"train2017/{number:012d}.jpg" for number in range(3)]
    assert files[1] == files[9] == names
    assert files[10] == files[400] == [names[0], names[2]]  # of the crowd only the person counts
    assert files[401] == files[900] == [names[0]]  # the dog lies on the couch: 30x30 pixels, not 1,000
    with pytest.raises(ValueError, match=r"No photo of .*instances_train2017\.json has min_pixels \(901\) pixels"):
        opened(tmp_path, min_pixels=901)


def test_objects_are_encoded_once(tmp_path, monkeypatch):
    home = write_coco(tmp_path, PHOTOS)
    first = masks(opened(tmp_path))
    kept = sorted((tmp_path / "cache" / "coco").glob("*.npz"))
    assert [path.name.rsplit("-", 1)[0] for path in kept] == ["instances_train2017", "instances_val2017"]
    encode = coco_masks.encode_objects
    monkeypatch.setattr(coco_masks, "encode_objects", lambda path: pytest.fail("was encoded again"))
    assert all(np.array_equal(one, other) for one, other in zip(first, masks(opened(tmp_path)), strict=True))
    monkeypatch.setattr(coco_masks, "encode_objects", encode)
    content = kept[1].read_bytes()
    kept[1].write_bytes(content[: len(content) // 2])
    assert all(np.array_equal(one, other) for one, other in zip(first, masks(opened(tmp_path)), strict=True))
    annotations = home / "annotations" / "instances_val2017.json"
    annotations.write_text(annotations.read_text() + " ")
    opened(tmp_path)
    assert len(list((tmp_path / "cache" / "coco").glob("*.npz"))) == 3


def test_compressed_run_lengths_are_read_too(tmp_path):
    from pycocotools import mask

    compressed = mask.frPyObjects(RUNS, 40, 50)
    compressed["counts"] = compressed["counts"].decode()
    write_coco(tmp_path, [[{"category": "dog", "segmentation": compressed}]])
    (found,) = masks(opened(tmp_path))
    assert (found[:, :10] == DOG).all()
    assert not found[:, 10:].any()


def test_training_and_prediction(tmp_path):
    write_coco(tmp_path, PHOTOS)
    data = opened(tmp_path, batch_size=4)
    (batch,) = data.train_dataloader()
    assert (batch["image"].shape, batch["mask"].shape) == ((4, 3, 16, 16), (4, 16, 16))
    data.setup("predict")
    predicted = list(data.predict_dataloader())
    assert [batch["file"][0] for batch in predicted] == [f"val2017/{number:012d}.jpg" for number in range(4)]
    assert data.submission is None
    samples = [opened(tmp_path, num_workers=workers).train_dataset.__getitems__([(1, 2)]) for workers in (0, 2)]
    assert torch.equal(samples[0]["mask"], samples[1]["mask"])


@pytest.mark.parametrize(
    ("stage", "options", "encoded"),
    [
        ("fit", {}, ["train2017", "val2017"]),
        ("validate", {}, ["train2017", "val2017"]),
        ("fit", {"val_size": 1}, ["train2017"]),
        ("test", {}, ["val2017"]),
        ("predict", {}, ["val2017"]),
        ("predict", {"predict_root": "photos"}, []),
        (None, {}, []),
    ],
)
def test_a_stage_encodes_what_it_reads(tmp_path, stage, options, encoded):
    home = write_coco(tmp_path, PHOTOS)
    data = COCODataModule(str(tmp_path), min_pixels=0, cache_root=str(tmp_path / "cache"), **options)
    if "train2017" not in encoded:
        (home / "annotations" / "instances_train2017.json").unlink()
    if stage is not None:
        data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        data.trainer.state.fn = TrainerFn(stage)
        data.trainer.predicting = stage == "predict"
    data.prepare_data()
    kept = sorted(path.name.split("_")[1].split("-")[0] for path in (tmp_path / "cache").rglob("*.npz"))
    assert kept == encoded
    if stage in ("test", "predict") and encoded:
        data.setup(stage)


def test_bad_annotations_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"There is no COCO in {tmp_path}\. Expected train2017/"):
        opened(tmp_path)
    home = write_coco(tmp_path, PHOTOS)
    (home / "val2017" / "000000000001.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks 1 of the 4 photos of instances_val2017\.json: val2017/0+1\.jpg"
    ):
        opened(tmp_path)
    path = home / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for broken, message in (
        (path.read_text()[:-50], "is no file of COCO's objects"),
        (json.dumps({"images": []}), r"is no file of COCO's objects \(KeyError"),
        (json.dumps({**content, "categories": content["categories"][1:]}), "is no file of COCO's objects"),
        (json.dumps({**content, "annotations": [], "categories": []}), ".*: it has no category airplane, bicycle"),
        (path.read_text().replace("[0, 400, 1600]", '["a"]'), r"has outlines in image 0+2\.jpg that cannot be read"),
    ):
        path.write_text(broken)
        with pytest.raises(DamagedFileError, match=rf"instances_val2017\.json {message}"):
            opened(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json is missing"):
        opened(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_coco(tmp_path, PHOTOS)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"Cannot write .*instances_train2017.*set cache_root"):
        opened(tmp_path, cache_root=str(tmp_path / "file"))
    with pytest.raises(ValueError, match="min_pixels must be 0"):
        opened(tmp_path, min_pixels=-1)
