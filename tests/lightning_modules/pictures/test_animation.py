"""Pictures in a row as one that moves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lightning_modules.pictures.animation import MAX_FRAMES, write_animation


def pictures(folder, count, size=(60, 40)):
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", size, (i * 255 // max(count - 1, 1),) * 3).save(path)
    return paths


def frames(path):
    with Image.open(path) as animation:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_picture_a_frame_in_their_order(tmp_path, count):
    write_animation(tmp_path / "a.webp", pictures(tmp_path, count), [f"epoch {i}" for i in range(count)])
    shown = frames(tmp_path / "a.webp")
    middles = [frame[-30, 40].mean() for frame in shown]
    assert middles == pytest.approx([i * 255 / max(count - 1, 1) for i in range(count)], abs=3)
    assert all((frame[:14] < 100).any() for frame in shown)  # the caption


def test_the_bar_grows(tmp_path):
    write_animation(tmp_path / "a.webp", pictures(tmp_path, 4), ["", "", "", ""])
    blue = [(frame[18:30, :, 0] < 100).any(0).sum() for frame in frames(tmp_path / "a.webp")]
    assert blue == pytest.approx([15, 30, 45, 60], abs=2)


def test_of_many_pictures_an_even_choice_is_shown(tmp_path):
    paths = pictures(tmp_path, 2 * MAX_FRAMES, size=(16, 16))
    write_animation(tmp_path / "a.webp", paths, [path.stem for path in paths])
    shown = frames(tmp_path / "a.webp")
    assert len(shown) == MAX_FRAMES
    assert (shown[0][-12, 16].mean(), shown[-1][-12, 16].mean()) == pytest.approx((0, 255), abs=3)


def test_pictures_of_two_sizes_leave_the_old_animation(tmp_path):
    (tmp_path / "a.webp").write_bytes(b"old")
    (other,) = pictures(tmp_path, 1, size=(10, 10))
    paths = [other.rename(tmp_path / "other.png"), *pictures(tmp_path, 2)]
    with pytest.raises(ValueError, match=r"0\.png is of \(60, 40\) pixels, the pictures before it of \(10, 10\)"):
        write_animation(tmp_path / "a.webp", paths, ["", "", ""])
    assert (tmp_path / "a.webp").read_bytes() == b"old"


def test_no_picture_is_no_animation(tmp_path):
    with pytest.raises(ValueError, match="at least one picture"):
        write_animation(tmp_path / "a.webp", [], [])
