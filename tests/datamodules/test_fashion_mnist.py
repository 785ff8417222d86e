"""Fashion-MNIST read from its archives, downloaded where they are missing, refused where they are damaged."""

import gzip
import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torchvision.datasets import FashionMNIST

from datamodules import FashionMNISTDataModule
from datamodules.images.image_folder import DamagedFileError
from tests.helpers.data import idx_bytes, trust_fashion_mnist, write_fashion_mnist, write_image_folder

NAMES = [name for name, _ in FashionMNIST.resources]
REAL_DATA = os.environ.get("CONVSUITE_DATA", "")


@pytest.fixture
def archives(tmp_path, monkeypatch) -> Path:
    """The folder of tiny archives that count as the published ones; `tmp_path / "data"` is their root."""
    folder = write_fashion_mnist(tmp_path / "data", train=203, test=51)
    trust_fashion_mnist(monkeypatch, folder)
    return folder


@pytest.fixture
def mirror(archives, tmp_path, monkeypatch) -> Iterator[str]:
    """Address of a server that has the archives; torchvision's only mirror."""
    handler = partial(QuietHandler, directory=str(shutil.copytree(archives, tmp_path / "mirror")))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(FashionMNIST, "mirrors", [address])
        yield address
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def opened(root: Path, **options) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(str(root), **{"val_size": 40, "seed": 0} | options)
    data.prepare_data()
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    return data


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def test_archives_are_read_and_nothing_is_written(archives, tmp_path):
    before = state_of(tmp_path / "data")
    data = opened(tmp_path / "data")
    assert state_of(tmp_path / "data") == before
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (163, 40, 51)
    expected = np.frombuffer(gzip.decompress((archives / NAMES[0]).read_bytes()), np.uint8, offset=16)
    assert torch.equal(data.train_dataset.images.flatten(), torch.from_numpy(expected.copy()))
    assert data.train_dataset.labels.tolist() == [index % 10 for index in range(203)]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (32, 1, 28, 28)
    assert batch["image"].dtype == torch.uint8
    assert torch.equal(batch["label"], batch["index"] % 10)


def test_unpacked_files_are_read_where_there_is_no_archive(archives, tmp_path):
    packed = opened(tmp_path / "data")
    unpacked_folder = write_fashion_mnist(tmp_path / "unpacked", train=203, test=51, unpacked=True)
    assert not list(unpacked_folder.glob("*.gz"))
    unpacked = opened(tmp_path / "unpacked")
    assert torch.equal(unpacked.train_dataset.images, packed.train_dataset.images)
    assert torch.equal(unpacked.test_dataset.labels, packed.test_dataset.labels)


def test_training_and_validation_share_no_image(archives, tmp_path):
    data = opened(tmp_path / "data", train_size=100, val_size=50)
    train, val = (set(dataset.members.tolist()) for dataset in (data.train_dataset, data.val_dataset))
    assert (len(train), len(val), len(train & val)) == (100, 50, 0)
    for dataset in (data.train_dataset, data.val_dataset):
        assert np.ptp(torch.bincount(dataset.targets()).numpy()) <= 1
    other_seed = opened(tmp_path / "data", train_size=100, val_size=50, seed=1)
    assert set(other_seed.train_dataset.members.tolist()) != train


def test_all_images_are_used_without_copying_them(archives, tmp_path, monkeypatch):
    data = FashionMNISTDataModule(str(tmp_path / "data"), val_size=0)
    read = data.read_train()
    monkeypatch.setattr(data, "read_train", lambda: read)
    data.setup("fit")
    assert data.train_dataset is read
    parts = FashionMNISTDataModule(str(tmp_path / "data"), train_size=20, val_size=10)
    parts.setup("fit")
    assert parts.train_dataset.images.data_ptr() == parts.val_dataset.images.data_ptr()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_size": 0}, "train_size must be at least 1"),
        ({"train_size": -1}, "train_size must be at least 1"),
        ({"train_size": 60_001, "val_size": 0}, r"train_size \(60001\).* at most 60000"),
        ({"train_size": 60_000}, r"val_size \(5000\).* at most 55000"),
        ({"val_size": 60_000}, "at most 0"),
    ],
)
def test_impossible_sizes_are_refused_before_any_file_is_read(sizes, message):
    with pytest.raises(ValueError, match=message):
        FashionMNISTDataModule("/nowhere", **sizes)


def test_sizes_are_checked_against_the_files_too(archives, tmp_path):
    with pytest.raises(ValueError, match=r"share the 203 training samples.* at most 163"):
        opened(tmp_path / "data", train_size=200)


def test_missing_archives_are_downloaded_from_the_first_mirror_that_answers(archives, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/", mirror])
    folder = tmp_path / "new" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / NAMES[1]).write_bytes((archives / NAMES[1]).read_bytes())
    kept = (folder / NAMES[1]).stat().st_mtime_ns
    data = opened(tmp_path / "new")
    assert len(data.test_dataset) == 51
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert (folder / NAMES[1]).stat().st_mtime_ns == kept


def test_a_download_with_another_checksum_leaves_nothing(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "resources", [(name, "0" * 32) for name in NAMES])
    with pytest.raises(FileNotFoundError, match="download failed: File not found or corrupted"):
        opened(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_a_network_one_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(FileNotFoundError) as error:
        opened(tmp_path)
    message = str(error.value)
    assert "download failed" in message
    assert str(tmp_path / "FashionMNIST" / "raw") in message
    assert "http://127.0.0.1:9/" in message
    assert "DigitsDataModule needs no network" in message
    assert all(name in message for name in NAMES)
    assert not list(tmp_path.iterdir())


def test_without_permission_to_download_missing_files_are_an_error(archives, tmp_path):
    (archives / NAMES[2]).unlink()
    data = FashionMNISTDataModule(str(tmp_path / "data"), download=False)
    with pytest.raises(FileNotFoundError, match=r"download is off.*Missing in .*raw: t10k-images-idx3-ubyte\.gz\."):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"Missing in .*raw: t10k-images-idx3-ubyte\.gz\."):
        data.setup("fit")


@pytest.mark.parametrize("damage", ["truncated", "altered"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_archive_is_reported_and_kept(archives, mirror, tmp_path, name, damage):
    path = archives / name
    content = path.read_bytes()
    damaged = content[:-20] if damage == "truncated" else content[:20] + bytes([content[20] ^ 1]) + content[21:]
    path.write_bytes(damaged)
    expected, found = hashlib.md5(content).hexdigest(), hashlib.md5(damaged).hexdigest()
    with pytest.raises(DamagedFileError, match=f"{name} is damaged or altered: MD5 expected {expected}, found {found}"):
        opened(tmp_path / "data")
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((203, 28, 28), int))[:-1]),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((203, 28, 27), int))),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((0, 28, 28), int))),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros(203 * 784, int))),
        ("train-labels-idx1-ubyte", b"\x00\x00\x0b\x01" + idx_bytes(np.zeros(203, int))[4:]),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(203, int)) + b"\x00"),
    ],
)
def test_an_incomplete_unpacked_file_is_reported(tmp_path, name, content):
    folder = write_fashion_mnist(tmp_path, train=203, unpacked=True)
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"{name} is no complete idx file"):
        opened(tmp_path)


def test_images_and_labels_must_belong_together(tmp_path):
    folder = write_fashion_mnist(tmp_path, train=203, unpacked=True)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(202, int)))
    with pytest.raises(DamagedFileError, match="203 train images and 202 labels"):
        opened(tmp_path)
    labels.write_bytes(idx_bytes(np.full(203, 10)))
    with pytest.raises(DamagedFileError, match=r"train-labels in .* hold the label 10"):
        opened(tmp_path)


class Names(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch["file"]


def test_predicting_a_folder_needs_no_archive(tmp_path):
    names = write_image_folder(tmp_path / "images")
    data = FashionMNISTDataModule(str(tmp_path / "nowhere"), predict_root=str(tmp_path / "images"), download=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    predicted = trainer.predict(Names(), data)
    assert [name for batch in predicted for name in batch] == names


def test_class_names_are_those_of_torchvision():
    assert list(FashionMNISTDataModule.class_names) == FashionMNIST.classes
    assert len(FashionMNISTDataModule.class_names) == FashionMNISTDataModule.num_classes


@pytest.mark.real_data("FashionMNIST")
def test_the_real_archives():
    folder = Path(REAL_DATA) / "FashionMNIST"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    data = opened(Path(REAL_DATA), val_size=0, download=False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(data.train_dataset) == FashionMNISTDataModule.train_samples
    assert len(data.test_dataset) == 10_000
    assert torch.bincount(data.train_dataset.labels).tolist() == [6000] * 10
    assert torch.bincount(data.test_dataset.labels).tolist() == [1000] * 10
    values = data.train_dataset.images.double() / 255
    assert values.mean().item() == pytest.approx(FashionMNISTDataModule.mean[0], abs=1e-7)
    assert values.std(correction=0).item() == pytest.approx(FashionMNISTDataModule.std[0], abs=1e-7)


@pytest.mark.real_data("FashionMNIST")
@pytest.mark.parametrize(("train_size", "val_size"), [(1000, 0), (1003, 5001), (None, 5000), (59_999, 1)])
def test_subsets_of_the_real_images(train_size, val_size):
    data = opened(Path(REAL_DATA), train_size=train_size, val_size=val_size, download=False)
    assert len(data.train_dataset) == (train_size or 60_000 - val_size)
    parts = [dataset for dataset in (data.train_dataset, data.val_dataset) if dataset is not None]
    for part in parts:
        assert np.ptp(torch.bincount(part.targets(), minlength=10).numpy()) <= 1
    members = torch.cat([part.members for part in parts])
    assert len(members.unique()) == len(members)
