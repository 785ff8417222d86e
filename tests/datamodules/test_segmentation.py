"""What data modules for segmentation share: masks on the device, images of native size one a batch."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules.images.image_folder import DamagedFileError, ImageFolder, open_image
from datamodules.nuclei import NucleiDataModule
from tests.helpers.data import write_image_folder
from tests.helpers.nuclei import write_dsb2018


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.batches = []

    def validation_step(self, batch, batch_idx):
        self.batches.append(batch)

    def predict_step(self, batch, batch_idx):
        self.batches.append(batch)
        return batch


def run(stage: str, data: NucleiDataModule, folder) -> list[dict]:
    recorder = Recorder()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    getattr(trainer, stage)(recorder, data, **({"verbose": False} if stage == "validate" else {}))
    return recorder.batches


def test_masks_reach_the_task_as_classes(tmp_path):
    write_dsb2018(tmp_path)
    data = NucleiDataModule(str(tmp_path), tile_size=16, batch_size=5, seed=0)
    batch = run("validate", data, tmp_path)[0]
    assert batch["mask"].dtype == torch.int64
    assert batch["instances"].dtype == torch.int32
    assert batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    plain = next(iter(data.evaluation_loader("val")))
    torch.testing.assert_close(data.denormalise(batch["image"]), plain["image"] / 255)
    assert isinstance(batch["file"][0], str)


def test_folders_are_predicted_at_native_size_without_the_published_data(tmp_path):
    names = write_image_folder(tmp_path / "images", (40, 30))
    Image.new("RGB", (12, 50)).save(tmp_path / "images" / "a.png")
    data = NucleiDataModule("/nowhere", predict_root=str(tmp_path / "images"), colour="grey")
    batches = run("predict", data, tmp_path)
    assert [batch["file"] for batch in batches] == [[name] for name in names]
    assert [tuple(batch["image"].shape) for batch in batches] == [(1, 1, 50, 12)] + 4 * [(1, 1, 30, 40)]
    assert batches[0].keys() == {"image", "file"}


def test_a_folder_s_images_keep_their_size(tmp_path):
    write_image_folder(tmp_path, (40, 30))
    folder = ImageFolder(tmp_path, 3, None)
    assert folder.native_size
    assert folder[0]["image"].shape == (3, 30, 40)


def test_transparent_pixels_are_refused_in_annotated_images(tmp_path):
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "opaque.tif")
    assert open_image(tmp_path / "opaque.tif", "RGB", annotated=True).getpixel((0, 0)) == (1, 2, 3)
    Image.new("RGBA", (4, 4), (1, 2, 3, 254)).save(tmp_path / "sheer.tif")
    assert open_image(tmp_path / "sheer.tif", "RGB").getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(DamagedFileError, match=r"sheer\.tif has an alpha channel with transparent pixels"):
        open_image(tmp_path / "sheer.tif", "RGB", annotated=True)


def test_images_that_are_to_be_turned_are_refused_where_annotations_are_not(tmp_path):
    image = Image.new("RGB", (4, 6))
    image.save(tmp_path / "turned.tif", tiffinfo={274: 3})
    assert open_image(tmp_path / "turned.tif", "RGB").size == (4, 6)
    with pytest.raises(DamagedFileError, match=r"turned\.tif is to be turned, as its orientation tag says"):
        open_image(tmp_path / "turned.tif", "RGB", annotated=True)


@pytest.mark.parametrize("name", ["deep.tif", "grey.tif", "deep.png"])
def test_colours_of_16_bits_are_not_cut_silently(tmp_path, name):
    imsave = pytest.importorskip("skimage.io").imsave
    pixels = np.full((8, 8) if name == "grey.tif" else (8, 8, 3), 40_000, dtype=np.uint16)
    if name.endswith(".png"):
        (tmp_path / name).write_bytes(png_of_16_bits(pixels))
    else:
        imsave(tmp_path / name, pixels, check_contrast=False)
    with pytest.raises(DamagedFileError, match=rf"{name} has more than 8 bits a channel"):
        open_image(tmp_path / name, "RGB")


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG file of RGB pixels uint16 (H, W, 3), which PIL cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
