"""Checkpoints survive what happens to disks."""

from __future__ import annotations

import os
import resource
import tempfile

import pytest
import torch

from lightning_modules.checkpoint_io import AtomicCheckpointIO
from lightning_modules.cli import main
from lightning_modules.files import CheckpointError, read_checkpoint
from tests.helpers.commands import tiny

SMALL = {"state_dict": {"weight": torch.ones(10)}}
LARGE = {"state_dict": {"weight": torch.ones(100_000)}}


@pytest.fixture
def full_disk():
    """Files stop growing at 64 KiB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_round_trip_and_removal(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(10))
    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not os.listdir(path.parent)


def test_weights_come_back_from_processes_that_were_forked(tmp_path):
    """Lightning's launcher hands them over in a file of this name, without what else a checkpoint has."""
    AtomicCheckpointIO().save_checkpoint(SMALL["state_dict"], tmp_path / ".temp.ckpt")
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(tmp_path / ".temp.ckpt")["weight"], torch.ones(10))
    AtomicCheckpointIO().save_checkpoint(SMALL["state_dict"], tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="no 'state_dict'"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")


def test_on_a_full_disk_the_previous_checkpoint_survives(tmp_path, full_disk):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    with pytest.raises(CheckpointError, match=r"could not write .*last\.ckpt: .*make room"):
        AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert len(read_checkpoint(path)["state_dict"]["weight"]) == 10
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_temporary_folder_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    AtomicCheckpointIO().save_checkpoint(SMALL, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")


def test_a_disk_that_fills_up_ends_a_run_that_can_go_on(tmp_path, monkeypatch):
    """The second epoch's checkpoint does not fit; with room again the same command finishes."""
    written, save = [], AtomicCheckpointIO.save_checkpoint

    def save_once(self, checkpoint, path, storage_options=None):
        written.append(path)
        if len(written) > 1:
            monkeypatch.setattr(os, "fsync", _full)
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_once)
    command = ["fit", *tiny(tmp_path / "run", "--data.val_size=0")]
    with pytest.raises(CheckpointError, match="No space left"):
        main(command)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3
    monkeypatch.undo()
    main(command)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 6


def _full(*_):
    raise OSError(28, "No space left on device")
