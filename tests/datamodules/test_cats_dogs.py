"""Cats and Dogs in its layouts: found, labelled, split, decoded once, predicted; bad input."""

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules.cats_dogs import CatsDogsDataModule
from datamodules.images.image_folder import DamagedFileError
from tests.helpers.cats_dogs import write_class_folders, write_kaggle, write_microsoft, write_photo
from tests.helpers.data import write_image_folder

WRITERS = {"class_folders": write_class_folders, "kaggle": write_kaggle, "microsoft": write_microsoft}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cats_dogs"


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def opened(root: Path, *stages: str, **options) -> CatsDogsDataModule:
    data = CatsDogsDataModule(root=str(root), **{"image_size": 16, "batch_size": 4, "seed": 0, **options})
    data.prepare_data()
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


def members(data: CatsDogsDataModule) -> dict[str, list[int]]:
    return {split: getattr(data, f"{split}_dataset").members.tolist() for split in ("train", "val", "test")}


def counts(data: CatsDogsDataModule, split: str) -> list[int]:
    """Images of each class."""
    dataset = getattr(data, f"{split}_dataset")
    return torch.bincount(dataset.labels[dataset.members], minlength=2).tolist()


def files_of(data: CatsDogsDataModule) -> list[str]:
    return data.list_images().listing.files


def test_the_data_are_described_before_any_file_is_read():
    data = CatsDogsDataModule(root="/nowhere")
    assert (data.in_channels, data.image_size, data.num_classes, data.class_names) == (3, 224, 2, ("cat", "dog"))
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# Layouts


@pytest.mark.parametrize("layout", ["auto", "same"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_is_found_and_labelled(root, name, layout):
    WRITERS[name](root)
    data = opened(root, layout=name if layout == "same" else layout)
    seen = {}
    for split in ("train", "val", "test"):
        for batch in data.evaluation_loader(split):
            assert batch.keys() == {"image", "index", "label"}
            assert batch["label"].dtype == batch["index"].dtype == torch.int64
            seen |= dict(zip(batch["index"].tolist(), batch["label"].tolist(), strict=True))
    files = files_of(data)
    assert seen.keys() == set(range(len(files)))
    assert all(("dog" in files[index].lower()) == bool(label) for index, label in seen.items())


def test_a_test_folder_is_the_test_set(root):
    write_class_folders(root, train=10, test=4)
    data = opened(root)
    assert members(data)["test"] == list(range(20, 28))
    assert files_of(data)[:2] == ["train/cat/cat.0.jpg", "train/cat/cat.1.jpg"]
    assert files_of(data)[20] == "test/cat/cat.10.jpg"
    assert [len(part) for part in members(data).values()] == [18, 2, 8]


@pytest.mark.parametrize("names", [("cats", "dogs"), ("Cat", "Dog")])
@pytest.mark.parametrize("folder", ["cats_dogs", "cats_and_dogs", "dogs-vs-cats", "dogs_vs_cats"])
def test_accepted_names_of_folders(root, folder, names):
    write_class_folders(root, 2, 1, folder, names)
    catalogue = CatsDogsDataModule(root=str(root)).list_images()
    assert catalogue.labels.tolist() == [0, 0, 1, 1, 0, 1]


def test_a_zip_within_the_zip_may_be_unpacked_into_a_folder_of_its_own(root):
    folder = write_kaggle(root, 2)
    shutil.move(folder / "train", folder / "inner")
    shutil.move(folder / "inner", folder / "train" / "train")
    assert files_of(CatsDogsDataModule(root=str(root), test_size=2))[0] == "train/train/cat.0.jpg"


def test_the_archive_may_lie_in_a_folder_of_its_own(root):
    write_microsoft(root / "kagglecatsanddogs_5340", 5)
    assert len(files_of(CatsDogsDataModule(root=str(root)))) == 10


def test_nothing_to_be_found_lists_what_was_looked_for(root):
    with pytest.raises(FileNotFoundError) as error:
        opened(root)
    for part in ("no cats and dogs in", str(root), "cats_dogs, cats_and_dogs, dogs-vs-cats", "PetImages/", "unpacked"):
        assert part in str(error.value)
    write_kaggle(root, 1)
    with pytest.raises(FileNotFoundError, match="no cats and dogs in the layout microsoft in"):
        opened(root, layout="microsoft")


def test_several_copies_need_a_choice(root):
    write_kaggle(root, 5)
    write_microsoft(root, 6)
    with pytest.raises(
        ValueError, match=r"several copies .*dogs-vs-cats \(kaggle\), .*\(microsoft\)\. Choose one with"
    ):
        opened(root)
    assert len(files_of(opened(root, layout="kaggle"))) == 10
    assert len(files_of(opened(root, layout="microsoft"))) == 12


def test_a_name_that_tells_no_class_is_an_error(root):
    folder = write_kaggle(root, 3)
    write_photo(folder / "train" / "cow.1.jpg", "cat", 0)
    write_photo(folder / "train" / "cat1.jpg", "cat", 0)
    with pytest.raises(DamagedFileError, match=r"train/cat1\.jpg belongs to no class \(2 such .* cat\.0\.jpg, dog"):
        opened(root)


def test_a_folder_that_is_no_class_is_an_error(root):
    folder = write_class_folders(root, 2, 1)
    write_photo(folder / "train" / "cow" / "1.jpg", "cat", 0)
    with pytest.raises(DamagedFileError, match=r"cow/1\.jpg belongs to no class \(1 such .* folders cat/ and dog/"):
        opened(root)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_or_empty_class_is_an_error(root, part, empty):
    folder = write_class_folders(root, 2, 1)
    shutil.rmtree(folder / part / "dog")
    if empty:
        (folder / part / "dog").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"no image of a dog: expected .* in .*{part} \(layout class_folders\)"
    ):
        opened(root)


def test_files_without_images_are_an_error(root):
    folder = write_kaggle(root, 1)
    for path in (folder / "train").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train holds no image .*dogs-vs-cats/train"):
        opened(root)


# The Microsoft archive


def test_known_corrupt_files_are_left_out_and_listed_once(root, caplog):
    write_microsoft(root, 5)
    with caplog.at_level(logging.INFO):
        data = opened(root)
        data.prepare_data()
    messages = [record.getMessage() for record in caplog.records if "orrupt" in record.getMessage()]
    assert len(messages) == 1
    assert "PetImages/Cat/666.jpg, PetImages/Dog/11702.jpg" in messages[0]
    assert files_of(data) == [f"PetImages/{kind}/{number}.jpg" for kind in ("Cat", "Dog") for number in range(5)]


def test_odd_files_are_decoded_by_their_content(root):
    write_microsoft(root, 5)
    data = opened(root, val_size=0, test_size=0)
    images = torch.cat([batch["image"] for batch in data.evaluation_loader("train")])
    means = images[1:5].float().mean((2, 3))
    red = torch.tensor([200.0, 90.0, 40.0])
    for position in (0, 1, 3):  # the GIF, the BMP and the broken metadata
        torch.testing.assert_close(means[position], red, atol=8, rtol=0)
    assert means[2].max() - means[2].min() < 1  # grey


# Splits


@pytest.mark.parametrize("writer", [write_kaggle, write_microsoft])
def test_without_a_test_folder_test_images_are_taken_from_the_others(root, writer):
    writer(root, 30)
    data = opened(root)
    assert [counts(data, split) for split in ("train", "val", "test")] == [[24, 24], [3, 3], [3, 3]]
    data = opened(root, test_size=12, val_size=8, train_size=10)
    assert [counts(data, split) for split in ("train", "val", "test")] == [[5, 5], [4, 4], [6, 6]]
    parts = list(members(data).values())
    assert len(set().union(*parts)) == sum(map(len, parts))


def test_subsets_are_nested_and_f_of_the_seed(root):
    write_kaggle(root, 30)
    small, large = (members(opened(root, train_size=size, val_size=8)) for size in (10, 20))
    assert set(small["train"]) < set(large["train"])
    assert (small["val"], small["test"]) == (large["val"], large["test"])
    assert members(opened(root, train_size=10, val_size=8)) == small
    other = members(opened(root, train_size=10, val_size=8, seed=1))
    assert all(other[split] != small[split] for split in other)


def test_sizes_that_the_data_cannot_give(root):
    write_kaggle(root, 5)
    with pytest.raises(ValueError, match=r"test_size \(10\) leaves no training images: there are 10"):
        opened(root, test_size=10)
    with pytest.raises(ValueError, match=r"share the 8 training samples.*train_size is at most 6"):
        opened(root, test_size=2, val_size=2, train_size=7)
    with pytest.raises(ValueError, match="test_size must be 0"):
        CatsDogsDataModule(test_size=-1)
    with pytest.raises(ValueError, match="layout must be one of auto, class_folders, kaggle, microsoft, got 'zip'"):
        CatsDogsDataModule(layout="zip")


def test_a_test_folder_and_a_size_of_the_test_set_are_an_error(root):
    write_class_folders(root, 3, 1)
    with pytest.raises(
        ValueError, match=r"test_size \(2\) is for layouts without a test folder: .*cats_dogs/test\. Leave"
    ):
        opened(root, test_size=2)


def test_no_test_set_and_no_validation(root):
    write_kaggle(root, 5)
    data = opened(root, test_size=0, val_size=0)
    assert len(data.train_dataset) == 10
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="test_size is 0: there is nothing to test"):
        data.test_dataloader()


# Batches


@pytest.mark.parametrize("crop", [1.0, "as_published"])
def test_batches_hold_the_cut_images(root, crop):
    folder = write_class_folders(root, 3, 1)
    data = opened(root, crop=crop, val_size=0)
    for batch in data.evaluation_loader("train"):
        assert batch["image"].shape[1:] == (3, 16, 16)
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            with Image.open(folder / files_of(data)[index]) as file:
                box = data.square.box(*file.size)
                expected = file.resize((16, 16), Image.Resampling.BILINEAR, box=box)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_small_images_are_enlarged_unless_that_is_refused(root):
    write_class_folders(root, 3, 1)
    assert opened(root, image_size=64).train_dataset[0]["image"].shape == (3, 64, 64)
    with pytest.raises(ValueError, match=r"cat\.\d\.jpg is too small"):
        opened(root, image_size=64, enlarge=False)


def test_training_images_are_mirrored_and_keep_their_labels(root):
    write_class_folders(root, 10, 1)
    data = opened(root, val_size=0)
    plain = torch.cat([batch["image"] for batch in data.evaluation_loader("train")])
    mirrored = 0
    for batch in data.train_dataloader():
        for image, index, label in zip(batch["image"], batch["index"].tolist(), batch["label"].tolist(), strict=True):
            assert label == index // 10
            if torch.equal(image, plain[index].flip(-1)):
                mirrored += 1
            else:
                assert torch.equal(image, plain[index])
    assert 0 < mirrored < 20


def test_a_copy_for_another_process_carries_no_images(root):
    write_class_folders(root, 5, 1)
    dataset = opened(root).train_dataset
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 6000
    assert all(torch.equal(copy[3][key], dataset[3][key]) for key in ("image", "label", "index"))


def test_images_are_decoded_once(root, cache, monkeypatch):
    write_class_folders(root)
    opened(root)
    monkeypatch.setattr("datamodules.images.crop.open_image", None)
    opened(root, val_size=3, batch_size=7, flip=False, seed=5)
    assert [path.name[:5] for path in cache.glob("*.npy")] == ["16px-"]


def test_fingerprints_name_images_labels_and_crop(root):
    write_class_folders(root, 5, 2)
    data = opened(root)
    prints = {data.fingerprint(split) for split in ("train", "val", "test")}
    assert len(prints) == 3
    assert opened(root, batch_size=7, flip=False).fingerprint("train") in prints
    assert opened(root, crop=0.5).fingerprint("train") not in prints
    swapped = opened(root)
    swapped.test_dataset.labels = 1 - swapped.test_dataset.labels
    assert swapped.fingerprint("test") not in prints


# Prediction


def test_prediction_of_the_test_set_names_the_files(root):
    write_class_folders(root, 3, 2)
    batches = list(opened(root, "predict").predict_dataloader())
    assert [name for batch in batches for name in batch["file"]] == [
        f"test/{kind}/{kind}.{number}.jpg" for kind in ("cat", "dog") for number in (3, 4)
    ]
    assert batches[0].keys() == {"image", "file"}
    assert batches[0]["image"].shape == (4, 3, 16, 16)


def test_prediction_of_images_without_labels_cuts_them_like_the_others(root):
    folder = write_kaggle(root, 10, unlabelled=3)
    data = opened(root, "predict", predict_root=str(folder / "test1"))
    (batch,) = data.predict_dataloader()
    assert batch["file"] == ["1.jpg", "2.jpg", "3.jpg"]
    # `write_photo` gives the same image for the same number.
    numbers = [files_of(data).index(f"train/cat.{number}.jpg") for number in (1, 2, 3)]
    data.setup("fit")
    assert torch.equal(batch["image"], data.train_dataset.images[numbers].permute(0, 3, 1, 2))


class Names(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch["file"]


def test_predicting_a_folder_needs_no_data_set(tmp_path):
    names = write_image_folder(tmp_path / "images")
    data = CatsDogsDataModule(str(tmp_path / "nowhere"), predict_root=str(tmp_path / "images"), image_size=16)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    predicted = trainer.predict(Names(), data)
    assert [name for batch in predicted for name in batch] == names


# Damaged files


def test_damaged_images_are_named_and_counted_or_skipped(root):
    folder = write_class_folders(root, 10, 2)
    truncated = folder / "train" / "cat" / "cat.3.jpg"
    truncated.write_bytes(truncated.read_bytes()[:300])
    (folder / "test" / "dog" / "dog.10.jpg").write_bytes(b"")
    for _ in range(2):  # decoding them, and from the map
        with pytest.raises(DamagedFileError, match=r"cat\.3\.jpg: .*skip_damaged: true .* \(2 here\) out"):
            opened(root)
    with pytest.warns(UserWarning, match=r"Skipped 2 of 24 images: .*cat\.3\.jpg: .*dog\.10\.jpg: "):
        data = opened(root, skip_damaged=True, val_size=0)
    assert [counts(data, split) for split in ("train", "test")] == [[9, 10], [2, 1]]
    assert 3 not in data.train_dataset.members.tolist()


# The real photos


@pytest.mark.real_data("cats_dogs")
def test_the_real_photos():
    data = CatsDogsDataModule(val_size=90, seed=0, image_size=64)
    data.prepare_data()
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    assert [counts(data, split) for split in ("train", "val", "test")] == [[405, 405], [45, 45], [150, 150]]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (32, 3, 64, 64)
    assert set(batch["label"].tolist()) == {0, 1}
    normalised = data.on_after_batch_transfer(batch, 0)["image"]
    assert abs(normalised.mean()) < 0.5
    assert 0.7 < normalised.std() < 1.5
    assert next(iter(data.predict_dataloader()))["file"][0] == "test/cat/cat.801.jpg"
