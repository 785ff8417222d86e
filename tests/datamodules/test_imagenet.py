"""ImageNetDataModule: splits, batches, augmentation by the key, resuming, prediction, bad input."""

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.imagenet import ImageNetDataModule
from datamodules.images.image_folder import DamagedFileError, read_image
from datamodules.photos.augmentation import ResizedCentre
from tests.helpers.cats_dogs import write_photo
from tests.helpers.data import write_image_folder
from tests.helpers.imagenet import CLASSES, write_class_tree, write_official

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SMALL = {"num_classes": 3, "image_size": 16, "resize_size": 20, "batch_size": 5, "seed": 0}


@pytest.fixture
def root(tmp_path) -> Path:
    write_official(tmp_path / "data" / "ILSVRC2012", train=6, val=2)
    return tmp_path / "data"


def opened(root: Path, *stages: str, **options) -> ImageNetDataModule:
    data = ImageNetDataModule(root=str(root), **{**SMALL, **options})
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


def members(data: ImageNetDataModule, split: str) -> set[str]:
    dataset = getattr(data, f"{split}_dataset")
    return {dataset.part.photos.files[index] for index in dataset.members.tolist()}


def epoch(data: ImageNetDataModule, number: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def resumed(data: ImageNetDataModule, state: dict[str, int]) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.load_state_dict(state)
    return list(loader)


def equal(left: list, right: list) -> bool:
    return len(left) == len(right) and all(
        torch.equal(one[key], other[key]) for one, other in zip(left, right, strict=True) for key in one
    )


def test_the_data_are_described_before_any_file_is_read():
    data = ImageNetDataModule(root="/nowhere")
    assert (data.in_channels, data.image_size, data.num_classes, data.class_names) == (3, 224, 1000, ())
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.cut == ResizedCentre(224, 256)
    assert ImageNetDataModule(image_size=64, resize_size=None).cut == ResizedCentre(64, 64)
    assert data.state_dict() == {"seed": data.seed}


# Splits


def test_the_published_validation_images_validate_and_test(root):
    data = opened(root)
    assert members(data, "val") == members(data, "test")
    assert len(members(data, "val")) == 6
    assert len(members(data, "train")) == 18
    assert all(file.startswith("val/") for file in members(data, "val"))


def test_validation_images_can_be_taken_from_the_training_images(root):
    data = opened(root, val_size=6, train_size=9)
    train, val = members(data, "train"), members(data, "val")
    assert not train & val
    assert all(file.startswith("train/") for file in val)
    for dataset, count in ((data.train_dataset, 3), (data.val_dataset, 2)):
        assert torch.bincount(dataset.part.labels[dataset.members]).tolist() == [count] * 3
    assert members(opened(root, val_size=6, train_size=9, seed=1), "val") != val
    assert members(opened(root, val_size=6), "val") == val
    assert opened(root, val_size=0).val_dataset is None
    with pytest.raises(ValueError, match="share the 18 training samples"):
        opened(root, val_size=18)


def test_a_test_folder_is_the_test_set(tmp_path):
    write_class_tree(tmp_path / "fruit", ("apple", "pear"), train=3, val=1, test=2)
    data = opened(tmp_path, folder="fruit", num_classes=2)
    assert [len(members(data, split)) for split in ("train", "val", "test")] == [6, 2, 4]
    assert data.class_names == ("apple", "pear")


def test_without_published_validation_it_is_to_be_taken_from_training(tmp_path):
    folder = write_class_tree(tmp_path / "fruit", ("apple", "pear"), train=3)
    with pytest.raises(ValueError, match="has neither a test nor a val folder"):
        opened(tmp_path, "test", folder="fruit", num_classes=2)
    write_class_tree(folder, ("apple", "pear"), test=1)
    data = opened(tmp_path, folder="fruit", num_classes=2)
    with pytest.raises(ValueError, match=r"fruit has no val folder: set val_size to take some"):
        data.val_dataloader()
    assert len(opened(tmp_path, folder="fruit", num_classes=2, val_size=2).val_dataset) == 2


# Batches


def test_batches_of_evaluation(root):
    data = opened(root)
    batch = next(iter(data.test_dataloader()))
    assert batch.keys() == {"image", "label", "index"}
    assert batch["image"].shape == (5, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["label"].tolist() == [0, 0, 1, 1, 2]
    assert batch["index"].tolist() == [0, 1, 2, 3, 4]
    path = root / "ILSVRC2012" / "val" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG"
    assert torch.equal(batch["image"][1], ResizedCentre(16, 20)(read_image(path, "RGB")))
    normalised = data.on_after_batch_transfer(batch, 0)["image"]
    assert torch.allclose(255 * data.denormalise(normalised), batch["image"].float(), atol=1e-3)


def test_training_is_the_same_for_any_number_of_workers(root):
    alone, shared = opened(root), opened(root, num_workers=2)
    batches = epoch(alone)
    assert equal(batches, epoch(shared))
    assert batches[0]["image"].is_contiguous(memory_format=torch.channels_last)
    assert not equal(batches, epoch(alone, 1))
    assert equal(epoch(alone, 1), epoch(opened(root), 1))
    assert not equal(batches, epoch(opened(root, seed=1)))


def test_labels_follow_the_images(root):
    data = opened(root, train_size=9)
    files = data.train_dataset.part.photos.files
    for batch in epoch(data):
        assert [CLASSES[label] for label in batch["label"]] == [files[i].split("/")[1] for i in batch["index"].tolist()]


def test_equal_photos_of_a_batch_are_augmented_differently(tmp_path):
    folder = tmp_path / "fruit"
    for name in ("apple", "pear"):
        write_photo(folder / "train" / name / "photo.jpg", "cat", 0)
    batch = epoch(opened(tmp_path, "fit", folder="fruit", num_classes=2, val_size=0))[0]
    assert not torch.equal(batch["image"][0], batch["image"][1])
    evaluated = next(iter(opened(tmp_path, "fit", folder="fruit", num_classes=2).evaluation_loader("train")))["image"]
    assert torch.equal(evaluated[0], evaluated[1])


def test_an_interrupted_epoch_goes_on(root):
    data = opened(root)
    whole = epoch(data, 3)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    running = iter(loader)
    next(running), next(running)
    state = loader.state_dict()
    assert equal(resumed(opened(root, num_workers=2), state), whole[2:])


def test_fingerprints_tell_apart_what_differs(root):
    data = opened(root)
    prints = {data.fingerprint("train"), data.fingerprint("test"), opened(root, train_size=9).fingerprint("train")}
    prints |= {opened(root, resize_size=18).fingerprint("test"), opened(root, image_size=12).fingerprint("test")}
    assert len(prints) == 5
    assert opened(root).fingerprint("test") == data.fingerprint("test")
    write_photo(root / "ILSVRC2012" / "val" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG", "dog", 77)
    assert opened(root).fingerprint("test") not in prints


def test_a_copy_in_another_process_is_the_same(root):
    data = opened(root)
    copy = pickle.loads(pickle.dumps(data.train_dataset))
    assert torch.equal(copy[(1, 2)]["image"], data.train_dataset[(1, 2)]["image"])


# Prediction


def test_the_test_set_is_predicted_with_its_names(root):
    batch = next(iter(opened(root, "predict").predict_dataloader()))
    assert batch.keys() == {"image", "file"}
    assert batch["file"][0] == "val/n01440764/n01440764_0.JPEG"


def test_a_folder_is_cut_like_evaluation_and_needs_no_data(tmp_path):
    names = write_image_folder(tmp_path / "photos")
    data = opened(tmp_path / "nowhere", "predict", predict_root=str(tmp_path / "photos"))
    batch = next(iter(data.predict_dataloader()))
    assert batch["file"] == names
    assert torch.equal(batch["image"][1], ResizedCentre(16, 20)(read_image(tmp_path / "photos" / names[1], "RGB")))


def test_a_checkpoint_names_the_classes_of_predictions(root, tmp_path):
    (root / "ILSVRC2012" / "words.txt").write_text("n01440764\ttench, Tinca tinca\n")
    state = opened(root).state_dict()
    write_image_folder(tmp_path / "photos")
    data = opened(tmp_path / "nowhere", "predict", predict_root=str(tmp_path / "photos"))
    data.load_state_dict(state)
    assert data.class_names == ("tench", *CLASSES[1:])


def test_a_checkpoint_is_not_used_on_other_classes(root, tmp_path):
    state = opened(root).state_dict()
    opened(root).load_state_dict(state)
    write_class_tree(tmp_path / "fruit", ("apple", "pear", "plum"), train=1, val=1)
    data = opened(tmp_path, folder="fruit")
    with pytest.raises(ValueError, match=r"on other classes than those of .*fruit: label 0 is n01440764 and apple"):
        data.load_state_dict(state)


# Odd and bad files


def test_photos_of_any_mode_are_read(root):
    folder = root / "ILSVRC2012" / "val" / CLASSES[0]
    Image.new("CMYK", (30, 40), (10, 200, 30, 40)).save(folder / f"{CLASSES[0]}_0.JPEG", "JPEG")
    Image.new("RGBA", (30, 40), (10, 20, 30, 255)).save(folder / f"{CLASSES[0]}_1.JPEG", "PNG")
    metadata = Image.Exif()
    metadata[0x010E] = "a description of which the end is missing"
    broken = metadata.tobytes()[:30]
    Image.new("L", (30, 40), 100).save(root / f"ILSVRC2012/val/{CLASSES[1]}/{CLASSES[1]}_0.JPEG", "JPEG", exif=broken)
    images = next(iter(opened(root).test_dataloader()))["image"]
    assert images[1, :, 8, 8].tolist() == [10, 20, 30]
    assert images[2, :, 8, 8].tolist() == [100, 100, 100]


def test_a_damaged_photo_is_named(root):
    path = root / "ILSVRC2012" / "val" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DamagedFileError, match=rf"Cannot read the image .*{path.name}: .*Repair or remove it"):
        list(opened(root).test_dataloader())


def test_a_wrong_number_of_classes_names_the_right_one(root):
    with pytest.raises(
        ValueError, match=r"ILSVRC2012 has 3 classes, and num_classes is 1,000: set --data.num_classes 3"
    ):
        opened(root, num_classes=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"image_size": 64, "resize_size": 63}, r"resize_size \(63\) must be at least image_size \(64\)"),
        ({"colour_jitter": -1}, "colour_jitter must be"),
        ({"shards": "somewhere", "folder": "imagenet"}, "leave folder, layout and classes out"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ImageNetDataModule(**options)


# The real files


@pytest.mark.real_data("tiny-imagenet-200")
def test_the_real_tiny_imagenet():
    options = {"folder": "tiny-imagenet-200", "image_size": 64, "resize_size": None, "seed": 0}
    present = ImageNetDataModule(**options, classes="present")
    present.num_classes = len(list((Path(present.root) / "tiny-imagenet-200" / "train").iterdir()))
    present.setup("fit")
    present.setup("test")
    assert "goldfish" in present.class_names
    assert len(present.test_dataset) == len(present.val_dataset) >= 15 * present.num_classes
    batch = next(iter(present.train_dataloader()))
    assert batch["image"].shape == (256, 3, 64, 64)
    normalised = present.on_after_batch_transfer(batch, 0)["image"]
    assert abs(normalised.mean()) < 0.5
    assert 0.7 < normalised.std() < 1.5
