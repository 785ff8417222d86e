"""Volumes that are read once: in memory, and in files that are mapped."""

import errno
import os
import pickle
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from datamodules.images.image_folder import DamagedFileError
from datamodules.images.memory_map import CacheError
from datamodules.volumes import reader as volume_reader
from datamodules.volumes import store as volume_store
from datamodules.volumes.files import SubjectFiles
from datamodules.volumes.reader import VolumeReader
from datamodules.volumes.store import GIB, MappedVolumes, StreamedVolumes, open_volumes
from datamodules.volumes.volume import InMemoryVolumes, Volume
from tests.helpers.volumes import labels, scan, write_nifti

READER = VolumeReader()


def subjects(folder: Path) -> list[SubjectFiles]:
    """Two with masks and one without."""
    found = []
    for name, site in (("b", "Rome"), ("a", None), ("c", "Bern")):
        images = {"t1": write_nifti(folder / name / "t1.nii.gz", scan(name))}
        mask = write_nifti(folder / name / "seg.nii.gz", labels(name)) if name != "c" else None
        found.append(SubjectFiles(name, name, site, images, mask, {0: 0, 1: 1, 2: 2, 4: 3}))
    return found


def equal(one: Volume, other: Volume) -> bool:
    masks = one.mask is None if other.mask is None else torch.equal(one.mask, other.mask)
    same = torch.equal(one.image, other.image) and torch.equal(one.affine, other.affine)
    return same and masks and (one.subject, one.site) == (other.subject, other.site)


@pytest.fixture
def no_reading(monkeypatch):
    def read(self, files, names_blank=True):
        raise AssertionError(f"{files.subject} is read again")

    return lambda: monkeypatch.setattr(VolumeReader, "read", read)


def test_what_fits_is_held_in_memory(tmp_path):
    files = subjects(tmp_path)
    limit = sum(map(READER.bytes_of, files)) / GIB
    store = open_volumes(files, READER, limit, tmp_path / "cache")
    assert isinstance(store, InMemoryVolumes)
    assert not (tmp_path / "cache").exists()
    assert isinstance(open_volumes(files, READER, 0.99 * limit, tmp_path / "cache"), MappedVolumes)
    assert isinstance(open_volumes(files, READER, limit, tmp_path / "cache", processes=2), MappedVolumes)
    assert isinstance(open_volumes(files, READER, limit, None), InMemoryVolumes)


def test_as_many_are_read_at_once_as_the_machine_has_memory_for(tmp_path, monkeypatch):
    asked, pool = [], volume_store.ThreadPoolExecutor
    monkeypatch.setattr(volume_store, "ThreadPoolExecutor", lambda threads: asked.append(threads) or pool(threads))
    monkeypatch.setattr(volume_store, "usable_cores", lambda: 16)
    files, voxels = subjects(tmp_path)[:1], 12 * 10 * 8
    monkeypatch.setattr(volume_store, "READING_LIMIT", 12 * voxels * (64 + 4 * 5))
    finer, coarser = (replace(READER, spacing=(step,) * 3) for step in (0.5, 2.0))
    for reader, processes in ((READER, 1), (READER, 4), (READER, 99), (finer, 1), (coarser, 1)):
        open_volumes(files, reader, 1, tmp_path / "cache", processes)
    assert asked == [12, 3, 1, 1, 12]


def test_mapped_volumes_are_those_in_memory(tmp_path):
    files = subjects(tmp_path)
    held, mapped = (open_volumes(files, READER, limit, tmp_path / "cache") for limit in (1, 0))
    assert list(mapped.subjects) == list(held.subjects) == ["b", "a", "c"]
    assert list(mapped.sites) == list(held.sites) == ["Rome", None, "Bern"]
    assert len(mapped) == 3
    assert all(equal(mapped[i], held[i]) for i in range(3))
    assert mapped[0] is mapped[0]
    assert mapped.digest() == held.digest()
    assert MappedVolumes(files[::-1], READER, tmp_path / "cache" / "volumes").digest() != held.digest()
    assert not list(tmp_path.rglob("*.partial"))


def test_subjects_are_read_once_for_the_same_files_and_settings(tmp_path, no_reading):
    files = subjects(tmp_path)
    MappedVolumes(files, READER, tmp_path / "cache")
    no_reading()
    MappedVolumes(files[1:], READER, tmp_path / "cache")
    for reader in (replace(READER, intensity="none"), replace(READER, spacing=(1.0, 1.0, 2.0))):
        with pytest.raises(AssertionError, match="b is read again"):
            MappedVolumes(files[:1], reader, tmp_path / "cache")
    os.utime(files[0].images["t1"], ns=(1, 1))
    with pytest.raises(AssertionError, match="b is read again"):
        MappedVolumes(files, READER, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["truncated", "deleted", "record", "type"])
def test_damaged_arrays_are_written_anew(tmp_path, damage):
    files = subjects(tmp_path)[:1]
    expected = READER.read(files[0])
    store = MappedVolumes(files, READER, tmp_path / "cache")
    image, record = (next((tmp_path / "cache").glob(pattern)) for pattern in ("*.image.npy", "*.json"))
    if damage == "truncated":
        image.write_bytes(image.read_bytes()[:-100])
    elif damage == "deleted":
        image.unlink()
    elif damage == "type":
        np.save(image, np.load(image).view(np.int32))
    else:
        record.write_text('{"subject"')
    with pytest.raises(CacheError, match="deleted or damaged: start again"):
        _ = store[0]
    assert equal(MappedVolumes(files, READER, tmp_path / "cache")[0], expected)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_maps_hold_no_file_open(tmp_path):
    store = MappedVolumes(subjects(tmp_path), READER, tmp_path / "cache")
    before = len(os.listdir("/proc/self/fd"))
    volumes = [store[i] for i in range(3)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(volume.image.any() for volume in volumes)


def test_few_subjects_stay_mapped_and_those_in_use_are_not_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(volume_store, "MAPPED_AT_ONCE", 2)
    files = subjects(tmp_path)
    store = MappedVolumes(files, READER, tmp_path / "cache")
    first, second = store[0], store[1]
    assert store[0] is first
    _ = store[2]
    assert store[0] is first  # it was used after the second
    assert store[1] is not second
    assert equal(second, READER.read(files[1]))
    assert equal(store[1], second)


@pytest.mark.parametrize(
    ("owner", "function", "error"),
    [
        (np, "load", OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
        (torch, "from_file", RuntimeError("unable to open file </a.npy> in read-only mode: Too many open files (24)")),
    ],
)
def test_too_many_open_files_are_no_damage(tmp_path, monkeypatch, owner, function, error):
    def refused(*args, **options):
        raise error

    store = MappedVolumes(subjects(tmp_path), READER, tmp_path / "cache")
    monkeypatch.setattr(owner, function, refused)
    with pytest.raises(
        OSError, match=r"Too many open files: raise the limit \(ulimit -n\).*b-.*\.image\.npy"
    ) as caught:
        _ = store[0]
    assert caught.value.errno == errno.EMFILE
    assert not isinstance(caught.value, CacheError)


def test_torch_says_that_a_file_cannot_be_opened_with_the_number_of_the_error(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        torch.from_file(str(tmp_path / "missing"), size=1)
    assert isinstance(volume_store._of_the_system(tmp_path, caught.value), FileNotFoundError)


def test_a_header_is_read_once(tmp_path, monkeypatch):
    files, reader = subjects(tmp_path), replace(READER, spacing=(1.0, 1.0, 2.0))
    open_volumes(files, reader, 0, tmp_path / "cache")
    read: list[Path] = []
    for module in (volume_store, volume_reader):
        original = module.read_header
        monkeypatch.setattr(module, "read_header", lambda path, original=original: read.append(path) or original(path))
    open_volumes(files, reader, 0, tmp_path / "cache")
    assert read == [one.images["t1"] for one in files]


def test_a_blank_scan_that_is_read_as_it_is_drawn_is_named_once(tmp_path):
    (files,) = subjects(tmp_path)[:1]
    files.images["t2"] = write_nifti(tmp_path / "b" / "t2.nii.gz", np.zeros_like(scan("b")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = StreamedVolumes([files], READER)[0]
    assert [str(one.message).split(":")[0] for one in caught] == [str(files.images["t2"])]


def test_processes_share_the_writing(tmp_path, no_reading):
    files, cache = subjects(tmp_path), tmp_path / "cache"
    MappedVolumes(files[:1], READER, cache)
    record = next(cache.glob("*.json"))
    content = record.read_bytes()
    record.unlink()
    with FileLock(record.with_suffix(".lock")):  # as if another process were at it
        opened: list[MappedVolumes] = []
        thread = threading.Thread(target=lambda: opened.append(MappedVolumes(files, READER, cache)))
        thread.start()
        until = time.monotonic() + 60
        while len(list(cache.glob("*.json"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(list(cache.glob("*.json"))) == 2  # the others did not wait
        assert not opened
        no_reading()
        record.write_bytes(content)
    thread.join(60)
    assert [opened[0][i].subject for i in range(3)] == ["b", "a", "c"]


def test_what_will_be_written_is_said_once(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(volume_store, "rank_zero_info", said.append)
    files = subjects(tmp_path)
    MappedVolumes(files[:1], READER, tmp_path / "cache")
    for _ in range(2):
        MappedVolumes(files, READER, tmp_path / "cache")
    assert [message.split(" to ")[0] for message in said] == ["Writing 1 subjects", "Writing 2 subjects"]
    assert "cache, 0.00 GB or less. What other data" in said[0]


def test_what_is_drawn_once_is_checked_first_and_kept_nowhere(tmp_path):
    files = subjects(tmp_path)
    held, streamed = open_volumes(files, READER, 1, None), open_volumes(files, READER, 0, None)
    assert isinstance(streamed, StreamedVolumes)
    assert len(streamed) == 3
    assert (list(streamed.subjects), list(streamed.sites)) == (list(held.subjects), list(held.sites))
    assert all(equal(streamed[i], held[i]) for i in range(3))
    assert not list(tmp_path.rglob("*.npy"))
    assert streamed.digest() != StreamedVolumes(files[::-1], READER).digest()
    files[1].images["t1"].write_bytes(b"no volume")
    with pytest.raises(DamagedFileError, match=r"a/t1\.nii\.gz is truncated"):
        open_volumes(files[:1] + files, READER, 0, None)


def test_processes_share_the_checking(tmp_path, monkeypatch, no_reading):
    files = subjects(tmp_path)
    monkeypatch.setattr(volume_store, "process_place", lambda: (2, 1))
    files[0].images["t1"].write_bytes(b"no volume, which the other process is to find")
    with pytest.raises(DamagedFileError):
        _ = StreamedVolumes(files, READER)[0]
    reader = replace(READER, crop_foreground=True)
    store, expected = StreamedVolumes(files, reader), [reader.read(one).affine for one in files[1:]]
    assert torch.equal(store.affine(2), expected[1])
    no_reading()
    assert torch.equal(store.affine(1), expected[0])


def test_writing_into_a_volume_does_not_reach_the_file(tmp_path):
    files = subjects(tmp_path)[:1]
    volume = MappedVolumes(files, READER, tmp_path / "cache")[0]
    volume.image.zero_()
    assert equal(MappedVolumes(files, READER, tmp_path / "cache")[0], READER.read(files[0]))


def test_a_copy_for_another_process_carries_no_voxels(tmp_path):
    store = MappedVolumes(subjects(tmp_path), READER, tmp_path / "cache")
    assert store[0].image.any()
    content = pickle.dumps(store)
    assert len(content) < 2000
    assert equal(pickle.loads(content)[0], store[0])


def test_a_damaged_subject_leaves_the_others_written(tmp_path, no_reading):
    files = subjects(tmp_path)
    whole = files[2].images["t1"].read_bytes()
    files[2].images["t1"].write_bytes(whole[:200])
    with pytest.raises(DamagedFileError, match=r"c/t1\.nii\.gz is truncated"):
        MappedVolumes(files, READER, tmp_path / "cache")
    no_reading()
    MappedVolumes(files[:2], READER, tmp_path / "cache")


def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    def full(file, array):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CacheError, match=r"Cannot write .*: No space left on device\. Set cache_root"):
        MappedVolumes(subjects(tmp_path), READER, tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheError, match=r"Cannot write .*cache/volumes.* or raise memory_limit"):
        open_volumes(subjects(tmp_path), READER, 0, tmp_path / "cache")
