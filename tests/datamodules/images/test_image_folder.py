"""Folders of images: found in order, decoded to what the network takes, or refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.images.image_folder import DamagedFileError, ImageFolder
from tests.helpers.data import write_image_folder


def test_images_are_found_recursively_and_sorted(tmp_path):
    names = write_image_folder(tmp_path / "images")
    folder = ImageFolder(tmp_path / "images", 3, 16)
    assert folder.files == names
    assert len(folder) == 5


@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_channels_and_the_size_asked_for(tmp_path, channels):
    names = write_image_folder(tmp_path / "images")
    batch = next(iter(DataLoader(ImageFolder(tmp_path / "images", channels, 16), batch_size=5)))
    assert batch["image"].shape == (5, channels, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["file"] == names


def test_pixels_are_kept_where_nothing_is_to_be_converted(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(ImageFolder(tmp_path, 3, 8)[0]["image"], torch.from_numpy(pixels).permute(2, 0, 1))


def test_photos_are_turned_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    orientation = Image.Exif()
    orientation[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=orientation, quality=100)
    image = ImageFolder(tmp_path, 1, 8)[0]["image"]
    assert image[:, :3].max() < 50
    assert image[:, 5:].min() > 200


@pytest.mark.parametrize("name", ["truncated.png", "truncated.jpg", "text.png", "empty.gif"])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, name):
    path = tmp_path / name
    if name.startswith("truncated"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.write_text("" if name.startswith("empty") else "not an image")
    with pytest.raises(DamagedFileError, match=f"Cannot read the image .*{name}: .*Repair or remove it"):
        _ = ImageFolder(tmp_path, 3, 16)[0]


def test_deep_images_are_not_cut_silently(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DamagedFileError, match=r"deep\.png has more than 8 bits"):
        _ = ImageFolder(tmp_path, 1, 8)[0]


def test_a_missing_folder_and_one_without_images_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"predict_root is not a folder: .*nowhere"):
        ImageFolder(tmp_path / "nowhere", 3, 16)
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(FileNotFoundError, match="predict_root holds no image"):
        ImageFolder(tmp_path, 3, 16)
    with pytest.raises(FileNotFoundError, match="predict_root is not a folder"):
        ImageFolder(tmp_path / "notes.txt", 3, 16)
