"""Configurations by name, what each is for, and what their heads say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.commands import config_files
from lightning_modules.commands.config_files import (
    EASIEST,
    PACKAGED,
    UnknownConfigError,
    config_name,
    configs_before,
    description,
    find_config,
    head,
    how_to_make,
    kind_of,
    shown_path,
)


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


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("")
    assert [config_name(Path("own.yaml")), shown_path(Path("own.yaml"))] == ["own.yaml", "own.yaml"]
    assert config_name(find_config(EASIEST)) == EASIEST
    monkeypatch.chdir(PACKAGED.parent)
    assert config_name(Path("configs") / EASIEST) == EASIEST
    assert shown_path(PACKAGED / EASIEST) == f"configs/{EASIEST}"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("model: {class_path: ClassificationTask}", "experiment"),
        ("model: ClassificationTask", "experiment"),
        ("model: {init_args: {conv: octave}}", "overlay"),
        ("data: {class_path: DigitsDataModule}", "overlay"),
        ("trainer: {max_epochs: 1}\nmodel: {init_args: {conv: octave}}", "overlay"),
        ("trainer: {max_epochs: 1}", "trainer"),
        ("rows: {}\ncolumns: {}", "grid"),
        ("program: convsuite", "sweep"),
        ("", "overlay"),
    ],
)
def test_kinds(tmp_path, content, kind):
    (tmp_path / "config.yaml").write_text(content)
    assert kind_of(tmp_path / "config.yaml") == kind


def test_what_is_not_yaml_has_no_kind(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {")
    with pytest.raises(ValueError, match=r"config\.yaml is not YAML: while parsing"):
        kind_of(tmp_path / "config.yaml")


def test_the_folders_of_packaged_configs_are_of_a_kind():
    for folder, kind in (("grids", "grid"), ("sweeps", "sweep"), ("trainer", "trainer"), ("logger", "trainer")):
        assert {kind_of(file) for file in (PACKAGED / folder).iterdir()} == {kind}


def test_the_head_ends_where_the_settings_begin(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "# One sentence over\n# two lines (Fig. 7a). 83 % is another. And\n#\n#   a command\na: 1\n# not it\n"
    )
    assert head(file) == ["One sentence over", "two lines (Fig. 7a). 83 % is another. And", "", "  a command"]
    assert description(file) == "One sentence over two lines (Fig. 7a)."
    file.write_text("a: 1")
    assert description(file) == ""


@pytest.mark.parametrize(
    ("overlay", "before"),
    [
        ("gaussian/layers/ours.yaml", ["gaussian/fashion_mnist.yaml"]),  # in a command of another head
        ("sunet/imagenet/tiny.yaml", ["sunet/imagenet/sunet_64.yaml"]),  # in one of its own
        ("gaussian/strided.yaml", ["gaussian/fashion_mnist.yaml"]),
        ("medical/brats/two_cases/unet.yaml", ["medical/brats/unet.yaml", "medical/brats/two_cases.yaml"]),
        ("medical/brats/two_cases/fcn.yaml", ["medical/brats/fcn.yaml", "medical/brats/two_cases.yaml"]),
        ("gaussian/layers/dau.yaml", ["gaussian/fashion_mnist.yaml"]),  # whose head speaks of the folder
        ("ocgan/losses/hinge.yaml", ["ocgan/dcgan.yaml"]),  # the first of the folder above
        ("trainer/gpu.yaml", [EASIEST]),
    ],
)
def test_what_stands_before_an_overlay(overlay, before):
    assert configs_before(PACKAGED / overlay) == before


def test_an_experiment_beside_the_overlay_comes_before_one_that_speaks_of_their_folder(monkeypatch):
    """Which `cats_dogs/vgg16.yaml` does, that this is not for."""
    monkeypatch.setattr(config_files, "_commands", lambda config: iter(()))
    (experiment,) = configs_before(PACKAGED / "gaussian/strided.yaml")
    assert (PACKAGED / experiment).parent == PACKAGED / "gaussian"


def test_before_an_overlay_of_ones_own_stands_an_experiment(tmp_path):
    """What stands before the packaged ones is built in `tests/configs`."""
    (tmp_path / "own.yaml").write_text("model: {init_args: {conv: octave}}")
    assert configs_before(tmp_path / "own.yaml") == [EASIEST]


def test_how_a_run_is_made(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("# It starts from runs/own, which another suite makes.\nmodel: {init_args: {init_from: runs/own}}")
    assert how_to_make("runs/own", [own, PACKAGED / EASIEST]) == f"See the head of {own}"
    assert how_to_make("runs/other", [own]) == ""
    assert how_to_make("runs/sunet/imagenet/tiny", [own]) == (
        "This makes it: convsuite fit_test --config sunet/imagenet/sunet_64.yaml --config sunet/imagenet/tiny.yaml "
        "--trainer.default_root_dir runs/sunet/imagenet/tiny"
    )
