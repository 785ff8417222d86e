"""Many files decoded in order, by threads, with bounded memory."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from datamodules.images import decoding
from datamodules.images.decoding import decode_in_blocks
from datamodules.images.image_folder import DamagedFileError

FILES = [Path(str(number)) for number in range(100)]


def image_of(path: Path) -> np.ndarray:
    return np.full((2, 2, 3), int(path.name), dtype=np.uint8)


def image_or_damage(path: Path) -> np.ndarray:
    if int(path.name) % 10 == 3:
        raise DamagedFileError(f"Cannot read {path}.")
    return image_of(path)


@pytest.fixture(params=[1, 4])
def _cores(request, monkeypatch):
    monkeypatch.setattr(decoding, "usable_cores", lambda: request.param)


@pytest.mark.usefixtures("_cores")
@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_images_come_in_order(block):
    blocks = list(decode_in_blocks(FILES, image_of, (2, 2, 3), False, block))
    assert {len(decoded.images) for decoded in blocks[:-1]} <= {block}
    images = np.concatenate([decoded.images for decoded in blocks])
    assert images[:, 0, 0, 0].tolist() == list(range(100))
    assert not any(decoded.damaged for decoded in blocks)


@pytest.mark.usefixtures("_cores")
def test_damaged_files_are_named_or_skipped():
    with pytest.raises(DamagedFileError, match=r"Cannot read 3\. skip_damaged: true leaves such images out"):
        list(decode_in_blocks(FILES, image_or_damage, (2, 2, 3), False, 8))
    blocks = list(decode_in_blocks(FILES, image_or_damage, (2, 2, 3), True, 8))
    damaged = {place: why for decoded in blocks for place, why in decoded.damaged.items()}
    assert damaged == {place: f"Cannot read {place}." for place in range(3, 100, 10)}
    images = np.concatenate([decoded.images for decoded in blocks])
    assert images[4].max() == 4
    assert images[3].max() == images[93].max() == 0


@pytest.mark.usefixtures("_cores")
def test_other_errors_are_never_skipped():
    def too_small(path: Path) -> np.ndarray:
        raise ValueError(f"{path} is too small")

    with pytest.raises(ValueError, match="0 is too small"):
        list(decode_in_blocks(FILES, too_small, (2, 2, 3), True, 8))


@pytest.mark.usefixtures("_cores")
def test_it_does_not_run_far_ahead_and_stops_when_nobody_takes_more():
    decoded = 0
    lock = threading.Lock()

    def count(path: Path) -> np.ndarray:
        nonlocal decoded
        with lock:
            decoded += 1
        return image_of(path)

    blocks = decode_in_blocks(FILES, count, (2, 2, 3), False, 1)
    next(blocks)
    blocks.close()
    assert decoded <= 2 * decoding.usable_cores() + 1


def test_progress_is_shown_on_a_terminal_for_many_images(monkeypatch, capsys):
    def shown(terminal: bool, threshold: int) -> bool:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        monkeypatch.setattr(decoding, "SHOW_PROGRESS_FROM", threshold)
        list(decode_in_blocks(FILES, image_of, (2, 2, 3), False, 8))
        captured = capsys.readouterr()
        assert captured.out == ""
        return "Decoding 100 images" in captured.err

    assert shown(True, 100)
    assert not shown(False, 100)
    assert not shown(True, 101)
