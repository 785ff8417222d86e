"""Cityscapes: label ids become train ids, predictions label ids again; bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.cityscapes import CLASSES, CityscapesDataModule
from datamodules.images.image_folder import DamagedFileError
from tests.helpers.photos import write_cityscapes, write_grey


def opened(root: Path, stage: str = "fit", **options) -> CityscapesDataModule:
    data = CityscapesDataModule(str(root), **{"num_workers": 0, "seed": 0, "crop_size": 16, **options})
    data.setup(stage)
    return data


def test_the_19_classes_and_their_label_ids():
    assert CityscapesDataModule.num_classes == 19
    assert CityscapesDataModule.class_names[:2] == ("road", "sidewalk")
    assert list(CLASSES.values()) == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.mark.parametrize("folder", ["cityscapes", "."])
def test_label_ids_become_train_ids(tmp_path, folder):
    home = write_cityscapes(tmp_path, folder=folder)
    data = opened(tmp_path)
    batches = list(data.val_dataloader())
    assert [batch["file"] for batch in batches] == [
        [f"leftImg8bit/val/munster/munster_00000{number}_000019_leftImg8bit.png"] for number in (0, 1)
    ]
    for batch in batches:
        name = batch["file"][0].replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds")
        labels = np.asarray(Image.open(home / name))
        ids = list(CLASSES.values())
        expected = [[ids.index(label) if label in ids else 255 for label in row] for row in labels]
        assert batch["mask"][0].tolist() == expected
    ready = list(opened(tmp_path, annotation="train_ids").val_dataloader())
    assert all(torch.equal(one["mask"], other["mask"]) for one, other in zip(batches, ready, strict=True))


def test_cities_are_one_training_set(tmp_path):
    write_cityscapes(tmp_path)
    data = opened(tmp_path, batch_size=3)
    assert {Path(batch["file"][0]).parent.name for batch in data.evaluation_loader("train")} == {"aachen", "ulm"}
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (3, 3, 16, 16)
    assert batch["mask"].shape == (3, 16, 16)


@pytest.mark.parametrize(("test", "city"), [(2, "bonn"), (0, "munster")])
def test_predictions_are_named_and_coded_as_the_server_wants_them(tmp_path, test, city):
    write_cityscapes(tmp_path, test=test)
    data = opened(tmp_path, "predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch.keys() == {"image", "file"}
    submission = data.submission
    assert submission.path(batch["file"][0]) == f"results/cityscapes/{city}_000000_000019_pred_labelIds.png"
    assert submission.values[18] == 33
    assert opened(tmp_path, predict_root=str(tmp_path)).submission is None


@pytest.mark.parametrize(
    ("ending", "annotation", "value", "message"),
    [
        (
            "labelTrainIds",
            "train_ids",
            26,
            "seems to hold label ids in place of train ids: .*set annotation: label_ids",
        ),
        ("labelIds", "label_ids", 255, "seems to hold train ids in place of label ids: .*set annotation: train_ids"),
        ("labelIds", "label_ids", 34, "holds the value 34 at row 0, column 0, which is no class: .* 0 to 33"),
    ],
)
def test_ids_of_the_wrong_kind_are_refused(tmp_path, ending, annotation, value, message):
    home = write_cityscapes(tmp_path)
    path = home / "gtFine/val/munster" / f"munster_000001_000019_gtFine_{ending}.png"
    pixels = np.zeros((24, 48), np.uint8)
    pixels[0, 0] = value
    write_grey(path, pixels)
    with pytest.raises(DamagedFileError, match=rf"munster_000001_000019_gtFine_{ending}\.png {message}"):
        list(opened(tmp_path, annotation=annotation).val_dataloader())


def test_missing_data_say_what_is_expected_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"There is no Cityscapes in {tmp_path}\. Expected leftImg8bit/"):
        opened(tmp_path)
    home = write_cityscapes(tmp_path)
    next((home / "gtFine/train").rglob("*_labelTrainIds.png")).unlink()
    opened(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"lacks 1 of the 3 masks of leftImg8bit/train: gtFine/train/.*TrainIds"
    ):
        opened(tmp_path, annotation="train_ids")
    with pytest.raises(ValueError, match="annotation must be one of label_ids, train_ids, got 'ids'"):
        opened(tmp_path, annotation="ids")
