"""`convsuite list`."""

from __future__ import annotations

import pytest

from lightning_modules.cli import main
from lightning_modules.commands.config_files import UnknownConfigError, find_config, packaged_configs
from models import list_models
from models.convs import list_convs


def listed(capsys, what):
    assert main(["list", what]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) == 2 for line in lines), "every name has a description"
    return [name for name, _ in lines]


def test_models(capsys):
    assert listed(capsys, "models") == [*list_models(), "timm/<name>"]


def test_convs(capsys):
    assert listed(capsys, "convs") == list_convs()


def test_configs(capsys):
    names = listed(capsys, "configs")
    assert "gaussian/fashion_mnist.yaml" in names
    assert names == packaged_configs()


def test_anything_else_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["list", "kernels"])
    assert exit.value.code == 2


@pytest.mark.parametrize("prefix", ["", "./", "configs/"])
def test_packaged_configs_are_found_from_anywhere(tmp_path, monkeypatch, prefix):
    monkeypatch.chdir(tmp_path)
    assert find_config(f"{prefix}gaussian/digits.yaml").is_absolute()


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gaussian").mkdir()
    (tmp_path / "gaussian" / "digits.yaml").write_text("")
    assert not find_config("gaussian/digits.yaml").is_absolute()


def test_an_unknown_config_offers_the_nearest():
    with pytest.raises(UnknownConfigError, match=r"'gaussian/digit.yaml'.*Did you mean gaussian/digits.yaml"):
        find_config("gaussian/digit.yaml")
