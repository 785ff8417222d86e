"""Files written whole, and checkpoints read safely."""

from __future__ import annotations

import io
import os
import pickle

import pytest
import torch

from lightning_modules.files import CheckpointError, read_checkpoint, write_whole, written_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "made" / "on" / "the" / "way.txt"
    write_whole(path, b"old")
    with written_whole(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["way.txt"]


def test_the_block_may_close_the_file(tmp_path):
    with written_whole(tmp_path / "a.txt") as file, io.TextIOWrapper(file) as text:
        text.write("text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.txt"
    write_whole(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_in_the_block_counts_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a.txt"):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("gone_off",)


def _bomb() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": Bomb()}, file)
    return file.getvalue()


def _whole() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(1000)}}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, damaged or no checkpoint"),
        (b"text", "truncated, damaged or no checkpoint"),
        (pickle.dumps([1], protocol=2), "checkpoint"),
        (_whole()[:1000], "truncated, damaged"),
        (_bomb(), "never loaded"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"last.ckpt.*{message}"):
        read_checkpoint(path)
    assert not (tmp_path / "gone_off").exists()


def test_a_file_of_torch_without_a_state_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no 'state_dict'"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nowhere\.ckpt"):
        read_checkpoint(tmp_path / "nowhere.ckpt")
