"""CelebA in its official layout, and folders of images: splits, batches, memory maps, fingerprints, bad input."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import nn

from datamodules import CelebADataModule
from datamodules.celeba import read_partition
from datamodules.images.image_folder import DamagedFileError
from datamodules.images.memory_map import CacheError
from tests.helpers.data import write_celeba, write_image_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "celeba"


@pytest.fixture
def root(tmp_path) -> Path:
    write_celeba(tmp_path / "data")
    return tmp_path / "data"


def opened(root: Path, stage: str = "fit", **options) -> CelebADataModule:
    data = CelebADataModule(root=str(root), **{"image_size": 16, "batch_size": 4, "seed": 0, **options})
    data.prepare_data()
    data.setup(stage)
    return data


def epoch_of(data: CelebADataModule, epoch: int = 0) -> dict[int, torch.Tensor]:
    """Every image of a training epoch by its index."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    images = torch.cat([batch["image"] for batch in batches])
    return dict(zip(torch.cat([batch["index"] for batch in batches]).tolist(), images, strict=True))


def test_the_data_are_described_before_any_file_is_read():
    data = CelebADataModule(root="/nowhere", image_size=128)
    assert (data.in_channels, data.image_size, data.num_classes, data.class_names) == (3, 128, None, ())
    assert data.mean == data.std == (0.5, 0.5, 0.5)
    assert data.drop_last


def test_the_official_splits(root):
    data = opened(root)
    data.setup("test")
    parts = [dataset.members.tolist() for dataset in (data.train_dataset, data.val_dataset, data.test_dataset)]
    assert parts == [list(range(20)), list(range(20, 25)), list(range(25, 29))]
    assert [len(data.evaluation_loader(split).dataset) for split in ("train", "val", "test")] == [20, 5, 4]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batches_hold_the_cropped_images(root, workers, flip):
    data = opened(root, num_workers=workers, flip=flip)
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {"image", "index"}
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["index"].dtype == torch.int64
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    for batch in data.evaluation_loader("train"):
        for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            with Image.open(root / "celeba" / "img_align_celeba" / f"{index + 1:06d}.jpg") as file:
                expected = file.crop((0, 2, 22, 24)).resize((16, 16), Image.Resampling.BILINEAR)
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1


def test_images_reach_the_task_in_the_range_of_tanh(root):
    data = opened(root)
    batch = next(iter(data.train_dataloader()))
    images = data.on_after_batch_transfer(batch, 0)["image"]
    torch.testing.assert_close(images, batch["image"].float() / 127.5 - 1)
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(data.denormalise(images), batch["image"] / 255)


def test_a_single_sample(root):
    sample = opened(root).val_dataset[1]
    assert sample["image"].shape == (3, 16, 16)
    assert sample["index"] == 21


def test_the_last_batch_is_dropped_as_published_or_kept(root):
    sizes = {
        drop: [len(batch["index"]) for batch in opened(root, batch_size=6, drop_last=drop).train_dataloader()]
        for drop in (True, False)
    }
    assert sizes == {True: [6, 6, 6], False: [6, 6, 6, 2]}
    assert [len(batch["index"]) for batch in opened(root, batch_size=6).evaluation_loader("train")] == [6, 6, 6, 2]


def test_dropping_everything_is_an_error(root):
    with pytest.raises(ValueError, match="drop_last leaves nothing to train on: batch_size is 21, and there are 20"):
        opened(root, batch_size=21).train_dataloader()
    assert len(opened(root, batch_size=21, drop_last=False).train_dataloader()) == 1


def test_subsets_are_nested_disjoint_and_f_of_the_seed(root):
    def members(**options) -> tuple[set, set]:
        data = opened(root, **options)
        return set(data.train_dataset.members.tolist()), set(data.val_dataset.members.tolist())

    small, val = members(train_size=5, val_size=6)
    large, other_val = members(train_size=9, val_size=3)
    assert (len(small), len(val), len(large), len(other_val)) == (5, 6, 9, 3)
    assert small < large < set(range(20))
    assert other_val < val < set(range(20))
    assert not (small | large) & val
    assert members(train_size=5, val_size=6) == (small, val)
    assert members(train_size=5, val_size=6, seed=1) != (small, val)
    everything, val = members(val_size=6)
    assert everything | val == set(range(20))
    assert members(train_size=5)[1] == set(range(20, 25))  # val_size null: the official ones


def test_sizes_that_the_data_cannot_give(root):
    with pytest.raises(ValueError, match=r"share the 20 training samples.*train_size is at most 4"):
        opened(root, train_size=5, val_size=16)
    with pytest.raises(ValueError, match="val_size must be 0"):
        CelebADataModule(val_size=-1)


def test_without_validation_there_is_no_loader(root):
    data = opened(root, val_size=0)
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match=r"val_size is 0: there is nothing to validate\. Set val_size"):
        data.evaluation_loader("val")


def test_an_empty_split_is_an_error_only_where_it_is_asked_for(tmp_path):
    write_celeba(tmp_path, train=20, val=0, test=0)
    data = opened(tmp_path)
    for stage in ("validate", "test", "predict"):
        data.setup(stage)
    assert len(data.train_dataloader()) == len(data.evaluation_loader("train")) == 5
    no_val = r"list_eval_partition\.txt has no val images: set val_size to take some from the training images"
    no_test = r"list_eval_partition\.txt has no test images: .*train or val split .*val_size.* partition 2"
    for ask, message in (
        (data.val_dataloader, no_val),
        (lambda: data.evaluation_loader("val"), no_val),
        (lambda: data.fingerprint("val"), no_val),
        (data.test_dataloader, no_test),
        (lambda: data.evaluation_loader("test"), no_test),
        (data.predict_dataloader, no_test),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    carved = opened(tmp_path, val_size=4)
    assert len(carved.evaluation_loader("val").dataset) == 4


def test_a_layout_without_training_images_is_an_error(tmp_path):
    write_celeba(tmp_path, train=0)
    with pytest.raises(ValueError, match="has no train images: give some images the partition 0"):
        opened(tmp_path)


def test_every_stage_alone_can_measure_on_every_split(root):
    for stage in ("fit", "validate", "test", "predict"):
        data = CelebADataModule(root=str(root), image_size=16)  # setup prepares where nobody has
        data.setup(stage)
        assert sum(len(batch["index"]) for batch in data.evaluation_loader("train")) == 20
        assert sum(len(batch["index"]) for batch in data.evaluation_loader("test")) == 4


def test_a_generator_predicts_without_data(tmp_path):
    class FromNoise(LightningModule):
        def predict_dataloader(self):
            return [torch.zeros(1)]

        def predict_step(self, batch, batch_idx):
            return batch

        def setup(self, stage):
            source = type(self.trainer.predict_loop._data_source)
            self.trainer.predict_loop._data_source = source(self, "predict_dataloader")

    class OnlyTensors(CelebADataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    assert len(trainer.predict(FromNoise(), OnlyTensors(root=str(tmp_path / "nowhere")))) == 1


def test_prediction_of_the_test_images(root):
    data = opened(root, "predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["file"] == ["test/000025", "test/000026", "test/000027", "test/000028"]
    assert batch["image"].shape == (4, 3, 16, 16)


def test_mirroring_is_f_of_seed_epoch_and_index(root):
    plain = epoch_of(opened(root))
    first, again = epoch_of(opened(root, flip=True)), epoch_of(opened(root, flip=True, batch_size=5))
    mirrored = {index for index in plain if not torch.equal(first[index], plain[index])}
    assert 0 < len(mirrored) < 20
    for index, image in first.items():
        assert torch.equal(image, plain[index].flip(-1) if index in mirrored else plain[index])
        assert torch.equal(image, again[index])
    subset = epoch_of(opened(root, flip=True, train_size=8))
    assert all(torch.equal(image, first[index]) for index, image in subset.items())
    later, other = epoch_of(opened(root, flip=True), 1), epoch_of(opened(root, flip=True, seed=1))
    assert any(not torch.equal(later[index], first[index]) for index in first)
    assert any(not torch.equal(other[index], first[index]) for index in first)


def test_measuring_never_mirrors(root):
    plain, mirrored = (
        torch.cat([batch["image"] for batch in opened(root, flip=flip).evaluation_loader("train")])
        for flip in (False, True)
    )
    assert torch.equal(plain, mirrored)


def test_a_copy_for_another_process_carries_no_images(root):
    dataset = opened(root, image_size=16, flip=True).train_dataset
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5000
    copy = pickle.loads(pickled)
    for keys in ([3, 1], [(0, 3), (0, 1)]):
        assert torch.equal(copy.__getitems__(keys)["image"], dataset.__getitems__(keys)["image"])


def test_a_plain_folder(tmp_path):
    names = write_image_folder(tmp_path / "images")
    data = CelebADataModule(folder=str(tmp_path / "images"), image_size=16, batch_size=2)
    data.setup("fit")
    assert sum(len(batch["index"]) for batch in data.evaluation_loader("train")) == len(names)
    with pytest.raises(ValueError, match=r"The folder .*images has no val images: set val_size"):
        data.val_dataloader()
    with pytest.raises(ValueError, match=r"The folder .*images has no test images"):
        data.evaluation_loader("test")
    carved = CelebADataModule(folder=str(tmp_path / "images"), image_size=16, batch_size=2, val_size=2)
    carved.setup("validate")
    assert len(carved.train_dataset) == 3
    assert len(next(iter(carved.val_dataloader()))["index"]) == 2


# The memory map


def test_images_are_decoded_once(root, cache, monkeypatch):
    opened(root)
    monkeypatch.setattr("datamodules.images.crop.open_image", None)
    opened(root, val_size=3, batch_size=7, flip=True, seed=5)
    assert len(list(cache.glob("*.npy"))) == 1


@pytest.mark.parametrize("options", [{"crop": 0.9}, {"crop": "as_published"}, {"image_size": 8}])
def test_another_crop_or_size_is_another_map_and_fingerprint(root, cache, options):
    first, second = opened(root), opened(root, **options)
    assert len(list(cache.glob("*.npy"))) == 2
    assert first.fingerprint("train") != second.fingerprint("train")


def test_a_crop_of_1_is_1_0(root, cache):
    opened(root, crop=1)
    opened(root, crop=1.0)
    assert len(list(cache.glob("*.npy"))) == 1


def overwrite(folder: Path) -> None:
    shutil.copy(folder / "000002.jpg", folder / "000001.jpg")


def touch(folder: Path) -> None:
    os.utime(folder / "000001.jpg", ns=(1, 1))


def drop(folder: Path) -> None:
    listing = folder.parent / "list_eval_partition.txt"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize("change", [overwrite, touch, drop])
def test_a_stale_map_is_not_used(root, cache, change):
    opened(root)
    change(root / "celeba" / "img_align_celeba")
    opened(root)
    assert len(list(cache.glob("*.npy"))) == 2


def test_a_moved_data_set_keeps_its_map_and_another_partition_too(root, cache, tmp_path):
    opened(root)
    shutil.move(root, tmp_path / "elsewhere")
    listing = tmp_path / "elsewhere" / "celeba" / "list_eval_partition.txt"
    listing.write_text(listing.read_text().replace(" 1\n", " 0\n"))
    assert len(opened(tmp_path / "elsewhere").train_dataset) == 25
    assert len(list(cache.glob("*.npy"))) == 1


def test_a_damaged_map_is_made_again(root, cache):
    before = epoch_of(opened(root))
    (path,) = cache.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    after = epoch_of(opened(root))
    assert all(torch.equal(after[index], before[index]) for index in before)


def test_where_the_map_is_kept(root, tmp_path, monkeypatch):
    opened(root, cache_root=str(tmp_path / "mine"))
    assert list((tmp_path / "mine" / "celeba").glob("16px-*.npy"))
    monkeypatch.delenv("CONVSUITE_CACHE")
    assert CelebADataModule().cache_root == Path.home() / ".cache" / "convsuite"
    assert CelebADataModule(cache_root="~/maps").cache_root == Path.home() / "maps"


def test_in_a_distributed_job_other_processes_only_open(root, monkeypatch):
    monkeypatch.setattr("datamodules.images.mapped_images.process_place", lambda: (2, 1))
    data = CelebADataModule(root=str(root), image_size=16)
    with pytest.raises(CacheError, match=r"no complete .*\.npy: call prepare_data"):
        data.setup("fit")
    CelebADataModule(root=str(root), image_size=16).prepare_data()
    data.setup("fit")
    assert len(data.train_dataset) == 20


# Fingerprints


def test_fingerprints_name_what_is_measured_on(root):
    data = opened(root)
    splits = {data.fingerprint(split) for split in ("train", "val", "test")}
    assert len(splits) == 3
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) >= 0 for fingerprint in splits)
    assert opened(root, "test", batch_size=7, flip=True, drop_last=False).fingerprint("train") in splits
    assert opened(root, train_size=10).fingerprint("train") not in splits
    assert opened(root, val_size=5).fingerprint("val") not in splits


def test_fingerprints_depend_on_content_not_on_times(root):
    images = root / "celeba" / "img_align_celeba"
    before = opened(root).fingerprint("train")
    touch(images)
    assert opened(root).fingerprint("train") == before
    overwrite(images)
    assert opened(root).fingerprint("train") != before


def test_images_of_one_colour_have_a_fingerprint_a_crop(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "images" / "a.png")
    one, other = (
        CelebADataModule(folder=str(tmp_path / "images"), image_size=8, crop=crop).fingerprint("train")
        for crop in (1.0, 0.5)
    )
    assert one != other


# Bad input


def test_damaged_images_are_named_or_skipped(root):
    images = root / "celeba" / "img_align_celeba"
    (images / "000003.jpg").write_bytes((images / "000003.jpg").read_bytes()[:300])
    (images / "000021.jpg").write_text("no image")
    with pytest.raises(DamagedFileError, match=r"Cannot read the image .*000003\.jpg: .*skip_damaged: true"):
        opened(root)
    for _ in range(2):  # decoding them, and from the map
        with pytest.warns(UserWarning, match=r"Skipped 2 of 29 images: .*000003\.jpg: .*000021\.jpg: ") as warned:
            data = opened(root, skip_damaged=True)
        assert len(warned) == 1
        assert data.train_dataset.members.tolist() == [0, 1, *range(3, 20)]
        assert data.val_dataset.members.tolist() == list(range(21, 25))
    with pytest.raises(DamagedFileError, match=r"000003\.jpg: .*skip_damaged: true leaves such images \(2 here\) out"):
        opened(root)


def test_many_damaged_images_are_counted_and_all_are_an_error(root):
    images = root / "celeba" / "img_align_celeba"
    for number in range(2, 16):
        (images / f"{number:06d}.jpg").write_text("no image")
    with pytest.warns(UserWarning, match=r"Skipped 14 of 29 images: .*000011\.jpg.* and 4 more"):
        opened(root, skip_damaged=True)
    for path in images.iterdir():
        path.write_text("no image at all")
    with pytest.raises(DamagedFileError, match=r"None of the 29 images can be decoded\. The first: .*000001\.jpg"):
        opened(root, skip_damaged=True)


def test_images_smaller_than_the_crop_are_named(root, cache):
    message = r"000001\.jpg is too small: it has 22x27 pixels, and its crop of 22x22 .* 32x32.*enlarge: true"
    with pytest.raises(ValueError, match=message):
        opened(root, image_size=32)
    assert not list(cache.glob("*.npy"))
    assert opened(root, image_size=32, enlarge=True).train_dataset[0]["image"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match=message):  # the enlarged ones are not taken in their place
        opened(root, image_size=32)


def test_missing_files_say_what_is_expected_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*celeba/img_align_celeba\. Set root or CONVSUITE_DATA .*folder"):
        opened(tmp_path)
    folder = write_celeba(tmp_path)
    (folder / "000002.jpg").unlink()
    (folder / "000005.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of the 29 listed images, 000002\.jpg first"):
        opened(tmp_path)
    (folder.parent / "list_eval_partition.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*list_eval_partition\.txt\. Set root"):
        opened(tmp_path)


def test_an_empty_or_missing_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, message in (("images", "folder holds no image"), ("nowhere", "folder is not a folder")):
        with pytest.raises(FileNotFoundError, match=f"{message}.*{name}"):
            CelebADataModule(folder=str(tmp_path / name)).prepare_data()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("000001.jpg 0\n000002.jpg 3\n", r"line 2: expected a file name and its partition .*'000002\.jpg 3'"),
        ("000001.jpg\n", r"line 1: .*'000001\.jpg'"),
        ("image_id,partition\n", "line 1"),
        ("a.jpg 0\nb.jpg 1\n\na.jpg 2\n", r"names a\.jpg more than once"),
        ("\n", "names no image"),
        ("", "names no image"),
    ],
)
def test_a_partition_file_that_is_none(tmp_path, content, message):
    (tmp_path / "list_eval_partition.txt").write_text(content)
    with pytest.raises(DamagedFileError, match=rf"list_eval_partition\.txt.*{message}"):
        read_partition(tmp_path / "list_eval_partition.txt")


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="crop must be a fraction"):
        CelebADataModule(crop=108)
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        CelebADataModule(image_size=0)


# In a Trainer, and on the real faces


class Critic(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 1)
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["index"])
        assert batch["image"].abs().max() <= 1
        return self.layer(batch["image"].flatten(1)).mean()

    def validation_step(self, batch, batch_idx):
        assert set(batch["index"].tolist()) <= set(range(20, 25))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_prepares_trains_and_saves_the_settings(root, tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
    )
    model = Critic()
    trainer.fit(model, CelebADataModule(root=str(root), image_size=16, batch_size=6, crop=0.9))
    assert [len(index) for index in model.seen] == [6, 6, 6] * 2
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    settings = torch.load(tmp_path / "last.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert (settings["crop"], settings["image_size"], settings["val_size"]) == (0.9, 16, None)


@pytest.mark.real_data("celeba")
def test_the_real_faces():
    data = CelebADataModule(val_size=500, seed=0)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    assert (len(data.train_dataset), len(data.val_dataset)) == (4500, 500)
    assert len(data.train_dataloader()) == 70
    images = torch.cat([batch["image"] for batch in data.evaluation_loader("val")]).float()
    assert images.shape == (500, 3, 64, 64)
    red, green, blue = images.mean((0, 2, 3)).tolist()
    assert 90 < blue < green < red < 140  # skin and hair
    assert images.std() > 50
    mirrored = (images - images.flip(-1)).abs().mean()
    shuffled = (images - images.roll(1, 0)).abs().mean()
    assert mirrored < shuffled  # aligned faces are nearly symmetric
    with pytest.raises(ValueError, match="has no test images"):
        data.test_dataloader()
