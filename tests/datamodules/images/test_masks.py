"""Masks: values that are classes are kept, all else is refused by name."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.image_folder import DamagedFileError
from datamodules.images.masks import check_same_size, class_values, read_foreground, read_mask

VALUES = np.array([[0, 1, 2], [20, 255, 0]], dtype=np.uint8)


def save(values, path, mode="P"):
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if mode == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_palette_and_a_grey_mask_hold_the_numbers_of_classes(tmp_path, mode):
    mask = read_mask(save(VALUES, tmp_path / "mask.png", mode), class_values(21))
    assert mask.dtype == torch.uint8
    assert mask.tolist() == VALUES.tolist()


def test_values_are_gathered_by_a_mapping(tmp_path):
    path = save([[7, 8, 11], [0, 26, 7]], tmp_path / "labels.png", "L")
    assert read_mask(path, {0: 255, 7: 0, 8: 1, 11: 2, 26: 13}).tolist() == [[0, 1, 2], [255, 13, 0]]


def test_alpha_is_left_out_and_bilevel_is_0_and_255(tmp_path):
    grey = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    Image.merge("LA", [grey, Image.new("L", (2, 2), 7)]).save(tmp_path / "alpha.png")
    grey.convert("1").save(tmp_path / "bilevel.png")
    for name in ("alpha.png", "bilevel.png"):
        assert read_mask(tmp_path / name, {0: 0, 255: 1}).tolist() == [[0, 1], [1, 0]]


def test_a_value_that_is_no_class_is_named_with_its_file_and_place(tmp_path):
    path = save([[0, 1], [21, 99]], tmp_path / "2007_000033.png")
    with pytest.raises(DamagedFileError) as error:
        read_mask(path, class_values(21))
    assert str(error.value) == (
        f"The mask {path} holds the value 21 at row 1, column 0 (and 1 more such values), which is no class: the "
        "values are 0 to 20, 255. Repair the mask or fetch it again."
    )
    with pytest.raises(DamagedFileError, match=r"holds the value 21 .* the values are 0, 1, 99, 255"):
        read_mask(path, {0: 0, 1: 1, 99: 1, 255: 1})


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_mask_saved_in_colour_is_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(
        DamagedFileError, match=rf"mask\.png is a colour image \(mode {mode}\), not a palette or grey one"
    ):
        read_mask(tmp_path / "mask.png", class_values(2))


def test_masks_that_cannot_be_read_are_named(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DamagedFileError, match=r"deep\.png has more than 8 bits a pixel"):
        read_mask(tmp_path / "deep.png", class_values(2))
    path = save(np.random.default_rng(0).integers(0, 2, (64, 64)), tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DamagedFileError, match=r"Cannot read the mask .*cut\.png: .*Repair or remove it"):
        read_mask(path, class_values(2))


def test_a_mask_of_another_size_is_an_error_that_names_both(tmp_path):
    check_same_size(tmp_path / "a.jpg", (4, 6), tmp_path / "a.png", torch.Size((4, 6)))
    with pytest.raises(DamagedFileError, match=r"a\.jpg has 4x6 pixels \(height x width\), its mask .*a\.png 6x4"):
        check_same_size(tmp_path / "a.jpg", (4, 6), tmp_path / "a.png", (6, 4))


def test_values_in_the_alpha_channel_are_refused(tmp_path):
    alpha = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    Image.merge("LA", [Image.new("L", (2, 2), 255), alpha]).save(tmp_path / "mask.png")
    with pytest.raises(DamagedFileError, match=r"mask\.png has its values in the alpha channel"):
        read_mask(tmp_path / "mask.png", {0: 0, 255: 1})


def test_grey_values_of_4_bits_are_not_stretched_silently(tmp_path):
    # The smallest PNG of 4 bits: one row of the pixels 1 and 2.
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\x00\x12")), (b"IEND", b"")]
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    with pytest.raises(DamagedFileError, match="has 2 or 4 bits a pixel"):
        read_mask(tmp_path / "mask.png", class_values(21))


def test_a_palette_that_shows_the_background_brighter_is_refused(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "right.png")
    assert read_foreground(tmp_path / "right.png").tolist() == [[0, 1], [1, 0]]
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "wrong.png")
    with pytest.raises(DamagedFileError, match=r"wrong\.png is a palette image that shows 0, the background, brighter"):
        read_foreground(tmp_path / "wrong.png")
