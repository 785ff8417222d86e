"""Memory maps: written whole and verified, used only when intact, shared by processes that start at once."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import datamodules
from datamodules.images import memory_map
from datamodules.images.decoding import Decoded
from datamodules.images.memory_map import ROWS_A_BLOCK, CacheError, MemoryMap

COUNT = 2 * ROWS_A_BLOCK + 10
SHAPE = (COUNT, 4, 4, 3)


class Decoder:
    """Gives random images and counts how often it was asked."""

    def __init__(self, damaged: dict[int, str] | None = None, seed: int = 0) -> None:
        self.images = np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)
        self.damaged = damaged or {}
        self.calls = 0

    def __call__(self, block: int):
        self.calls += 1
        for start in range(0, COUNT, block):
            failed = {place: why for place, why in self.damaged.items() if start <= place < start + block}
            yield Decoded(self.images[start : start + block], failed)


@pytest.fixture
def written(tmp_path) -> MemoryMap:
    images = MemoryMap(tmp_path / "cache" / "a.npy", SHAPE)
    images.prepare(Decoder())
    return images


def files(memory_map: MemoryMap) -> set[str]:
    return {path.name for path in memory_map.path.parent.iterdir()}


def test_what_was_decoded_is_read_and_decoded_once(tmp_path):
    images, decoder = MemoryMap(tmp_path / "a.npy", SHAPE), Decoder(damaged={3: "no JPEG", 300: "empty"})
    record = images.prepare(decoder)
    assert MemoryMap(tmp_path / "a.npy", SHAPE).prepare(decoder) == record
    assert decoder.calls == 1
    assert record.damaged == {3: "no JPEG", 300: "empty"}
    mapped, opened = images.open()
    assert opened == record
    assert mapped.dtype == torch.uint8
    assert np.array_equal(mapped.numpy(), decoder.images)
    assert files(images) == {"a.npy", "a.json", "a.lock"}


def test_the_file_is_plain_numpy(written):
    assert np.array_equal(np.load(written.path), Decoder().images)


def test_writing_into_the_images_does_not_reach_the_file(written):
    images, _ = written.open()
    images.zero_()
    assert np.array_equal(written.open()[0].numpy(), Decoder().images)


def test_the_digest_names_the_content(tmp_path, written):
    same = MemoryMap(tmp_path / "same.npy", SHAPE).prepare(Decoder())
    other = MemoryMap(tmp_path / "other.npy", SHAPE).prepare(Decoder(seed=1))
    assert written.open()[1].digest == same.digest != other.digest


def flip_a_byte(path: Path) -> None:
    """In the middle, keeping the size and the time of the last change."""
    times = path.stat()
    with path.open("rb+") as file:
        file.seek(times.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def forget_damaged(path: Path) -> None:
    content = json.loads(path.read_text())
    content["record"]["damaged"] = {"1": "was not"}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [flip_a_byte, cut, lengthen, empty, Path.unlink])
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_damaged_map_is_written_again(written, damage, suffix):
    damage(written.path.with_suffix(suffix))
    decoder = Decoder()
    written.prepare(decoder)
    assert decoder.calls == 1
    assert np.array_equal(written.open()[0].numpy(), decoder.images)


def test_a_record_that_was_altered_is_not_believed(written):
    forget_damaged(written.path.with_suffix(".json"))
    assert written.prepare(Decoder()).damaged == {}


def test_a_map_of_another_shape_is_not_used(written):
    other = MemoryMap(written.path, (COUNT, 4, 3, 4))
    with pytest.raises(CacheError, match=r"no complete .*a\.npy: call prepare_data"):
        other.open()


@pytest.mark.parametrize("damage", [cut, lengthen, empty, Path.unlink])
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_opening_checks_what_costs_nothing(written, damage, suffix):
    damage(written.path.with_suffix(suffix))
    with pytest.raises(CacheError, match=r"no complete .*a\.npy: call prepare_data"):
        written.open()


def test_decoding_that_fails_leaves_nothing(tmp_path):
    images = MemoryMap(tmp_path / "a.npy", SHAPE)

    def fail(block):
        yield Decoded(Decoder().images[:block], {})
        raise ValueError("too small")

    with pytest.raises(ValueError, match="too small"):
        images.prepare(fail)
    assert files(images) == {"a.lock"}
    images.prepare(Decoder())


def test_a_disk_that_becomes_full_is_an_error_and_leaves_nothing(tmp_path):
    images = MemoryMap(tmp_path / "a.npy", SHAPE)

    def fill_disk(block):
        yield Decoded(Decoder().images[:block], {})
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match=r"disk is full: no room for .*a\.npy, which takes 0\.00 GB\. .*cache_root"):
        images.prepare(fill_disk)
    assert files(images) == {"a.lock"}


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_decoded(tmp_path):
    images, decoder = MemoryMap(tmp_path / "a.npy", (10**9, 64, 64, 3)), Decoder()
    with pytest.raises(CacheError, match=r"disk is full: .* 12288\.00 GB"):
        images.prepare(lambda block: decoder(block))
    assert files(images) == {"a.lock"}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"Cannot write .*a\.npy: .*cache_root \(or CONVSUITE_CACHE\)"):
        MemoryMap(tmp_path / "file" / "a.npy", SHAPE).prepare(Decoder())


def test_a_disk_that_keeps_something_else_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_map, "checksums", lambda images: (1, 2, 3))
    with pytest.raises(CacheError, match="does not hold what was written to it"):
        MemoryMap(tmp_path / "a.npy", SHAPE).prepare(Decoder())


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from datamodules.images.decoding import Decoded
from datamodules.images.memory_map import MemoryMap

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

def decode(block):
    with (folder / "calls").open("a") as file:
        file.write("decoded ")
    images = np.arange(600 * 12, dtype=np.uint8).reshape(600, 2, 2, 3)
    for start in range(0, 600, block):
        time.sleep(seconds)
        yield Decoded(images[start : start + block], {})

images = MemoryMap(folder / "a.npy", (600, 2, 2, 3))
images.prepare(decode)
print(int(images.open()[0].sum()))
"""


def start(folder: Path, seconds: float) -> subprocess.Popen:
    """A process that prepares a map in `folder` and waits so long in each block."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(seconds)],
        cwd=Path(datamodules.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_that_start_at_once_decode_once_and_a_killed_one_leaves_no_map(tmp_path):
    killed = start(tmp_path, 1000)
    wait_for(tmp_path / ".a.npy.partial")
    waiting = [start(tmp_path, 0.1), start(tmp_path, 0.1)]
    killed.kill()
    killed.communicate()
    expected = int(np.arange(600 * 12, dtype=np.uint8).astype(int).sum())
    assert [int(process.communicate(timeout=300)[0]) for process in waiting] == [expected, expected]
    assert (tmp_path / "calls").read_text() == "decoded decoded "  # the killed one, and one of the others
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.json", "a.lock", "calls"}
