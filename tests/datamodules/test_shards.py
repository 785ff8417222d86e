"""Photos in shards are those of the folders, in the same order, augmented alike."""

from pathlib import Path

import pytest
import torch

from datamodules import shards
from datamodules.imagenet import ImageNetDataModule
from datamodules.images.image_folder import DamagedFileError
from tests.helpers.imagenet import write_tiny_imagenet

pytest.importorskip("litdata")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """Shards of a tiny copy in `tmp_path`, about two photos in each."""
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "CHUNK_BYTES", 4000)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200", train=4, val=2)
    shards.main([str(tmp_path / "shards"), "--root", str(tmp_path)])
    return tmp_path / "shards"


def opened(**options) -> ImageNetDataModule:
    data = ImageNetDataModule(num_classes=3, image_size=16, resize_size=16, batch_size=5, seed=0, **options)
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("scheme", ["", "local:"])  # litdata's stand-in for a bucket
def test_shards_give_what_the_folders_give(written, tmp_path, scheme, workers):
    folder = opened(root=str(tmp_path), val_size=3)
    streamed = opened(shards=f"{scheme}{written}", val_size=3, num_workers=workers)
    assert len(list((written / "train").glob("chunk-*.bin"))) > 2
    assert streamed.class_names == folder.class_names
    for name in ("train", "val", "test"):
        pairs = zip(getattr(folder, f"{name}_dataloader")(), getattr(streamed, f"{name}_dataloader")(), strict=True)
        for expected, batch in pairs:
            assert all(torch.equal(batch[key], values) for key, values in expected.items())
    assert any((tmp_path / "cache").rglob("*.bin")) == bool(scheme)  # a folder is read in place
    assert streamed.fingerprint("train") != streamed.fingerprint("test")


def test_predictions_keep_the_names_of_the_files(written):
    data = opened(shards=str(written))
    data.setup("predict")
    assert next(iter(data.predict_dataloader()))["file"][0] == "val/images/val_2.JPEG"


def test_shards_are_not_overwritten(written, tmp_path):
    with pytest.raises(FileExistsError, match="choose another place for the shards"):
        shards.main([str(written), "--root", str(tmp_path)])


def test_shards_are_written_whole_or_not_at_all(written, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CATALOGUE", "\0")  # the last thing that is written cannot be
    with pytest.raises(ValueError, match="null"):
        shards.main([str(tmp_path / "more"), "--root", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "tiny-imagenet-200"]


def test_no_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete shards at .*nowhere .*datamodules.shards. writes them"):
        opened(shards=str(tmp_path / "nowhere"))


def test_a_damaged_shard(written):
    chunk = min((written / "train").glob("chunk-*.bin"))
    content = bytearray(chunk.read_bytes())
    content[-10] ^= 255
    chunk.write_bytes(content)
    with pytest.raises(
        DamagedFileError, match=r"train/n01440764/images/.*JPEG in the shards .* is not what was written"
    ):
        list(opened(shards=str(written)).evaluation_loader("train"))
