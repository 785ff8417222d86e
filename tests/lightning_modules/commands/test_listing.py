"""`convsuite list`."""

from __future__ import annotations

import re

import pytest

from lightning_modules.cli import main
from lightning_modules.commands import listing
from lightning_modules.commands.config_files import packaged_configs
from models import list_models
from models.convs import list_convs


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """The same terminal wherever the tests run."""
    monkeypatch.setenv("COLUMNS", "120")


def listed(capsys, what):
    """Names and descriptions, whole again. Names stand at the left, where no line of a description goes on."""
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    entries = dict(re.findall(r"^ {0,2}([\w/.<>-]+)(?:  |\n) *(.+(?:\n {4,}.+)*)", out, re.MULTILINE))
    return {name: " ".join(text.split()) for name, text in entries.items()}


def test_models(capsys):
    models = listed(capsys, "models")
    assert list(models) == [*list_models(), "timm/<name>"]
    assert len(set(models.values())) == len(models), "no two have the same description"


def test_convs(capsys):
    assert list(listed(capsys, "convs")) == list_convs()


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_configs_by_kind(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    configs = listed(capsys, "configs")
    assert sorted(configs) == packaged_configs()
    assert all(text.endswith(".") for text in configs.values()), "whole sentences"
    main(["list", "configs"])
    groups = capsys.readouterr().out.split("\n\n")
    assert [group.split(maxsplit=1)[0].rstrip(",") for group in groups] == [
        "Experiments",
        "Overlays",
        "Overlays",
        "Grids",
        "Sweeps",
    ]
    places = ("gaussian/digits.yaml", "gaussian/layers/ours.yaml", "trainer/gpu.yaml", "grids/digits.yaml", "sweeps/")
    for group, name in zip(groups, places, strict=True):
        assert f"\n  {name}" in group


def test_what_can_be_listed(capsys):
    assert main(["list"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == list(listing.LISTS)


def test_a_narrow_terminal_has_long_names_on_lines_of_their_own(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    main(["list", "configs"])
    lines = capsys.readouterr().out.splitlines()
    assert "  gaussian/cats_dogs/vgg16_free_form.yaml" in lines
    assert any(re.match(r"  gaussian/digits\.yaml +The network", line) for line in lines)


def test_anything_else_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["list", "kernels"])
    assert exit.value.code == 2
