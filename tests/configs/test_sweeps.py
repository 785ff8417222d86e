"""Sweeps: the commands that W&B makes of them are commands of ours."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_modules.commands.config_files import PACKAGED
from lightning_modules.commands.training import ConvsuiteCLI

SWEEPS = sorted((PACKAGED / "sweeps").glob("*.yaml"), key=lambda path: path.name)


def choices(parameter: dict[str, Any]) -> list[Any]:
    """What W&B may choose for a parameter: its values, or the ends of its range and a number that prints as 5e-05."""
    if "values" in parameter:
        return parameter["values"]
    return [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"], 5e-05]


def samples(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples in which every choice of every parameter occurs."""
    table = {name: choices(parameter) for name, parameter in sweep["parameters"].items()}
    count = max(len(values) for values in table.values())
    return [{name: values[i % len(values)] for name, values in table.items()} for i in range(count)]


def rendered(sweep: dict[str, Any], sample: dict[str, Any]) -> list[str]:
    """The command that W&B's agent runs for a sample, without the words that start the program."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in sample.items()}})
    macros |= {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    command: list[str] = []
    for word in create_sweep_command(list(sweep["command"])):
        command += macros[word[2:-1]] if word.startswith("${") else [word]
    assert command[:2] == ["/usr/bin/env", "convsuite"]
    return command[2:]


def parsed(command: list[str]) -> dict[str, Any]:
    with ExitStack() as cleanup:
        return ConvsuiteCLI(command[0], command[1:], cleanup).config_plain


def lookup(config: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_choice_arrives(path: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = yaml.safe_load(path.read_text())
    for sample in samples(sweep):
        config = parsed(rendered(sweep, sample))
        assert {key: lookup(config, key) for key in sample} == sample
    assert config["data"]["init_args"]["val_size"] > 0, "nothing would be validated"
    assert sweep["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert not list(tmp_path.rglob("*.txt")), "parsing leaves nothing"


@pytest.mark.parametrize("conv", ["{name: rfnn, kernel_size: 7}", {"name": "dau", "kernel_size": 7}])
def test_a_whole_variant_is_a_value(conv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = yaml.safe_load(SWEEPS[0].read_text())
    # Without `init_args`, too: short keys are as good.
    config = parsed(rendered(sweep, {"model.conv": conv, "data.batch_size": 64}))
    assert config["model"]["init_args"]["conv"] == yaml.safe_load(str(conv))
    assert config["data"]["init_args"]["batch_size"] == 64
