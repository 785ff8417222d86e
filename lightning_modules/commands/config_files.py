"""Configurations by path, or by their name among those that come with the suite; what each is for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Literal

import yaml

PACKAGED = Path(__file__).resolve().parents[2] / "configs"

EASIEST = "gaussian/digits.yaml"
"""An experiment that needs no data and no GPU, and takes seconds."""

Kind = Literal["experiment", "overlay", "trainer", "grid", "sweep"]
"""What a file is for: an experiment names a task, an overlay goes over some of these, one of the trainer over any."""


class UnknownConfigError(ValueError):
    """There is no such configuration; the message names the nearest."""


def packaged_configs() -> list[str]:
    """Sorted names of the configurations that come with the suite, relative to `configs/`."""
    return sorted(path.relative_to(PACKAGED).as_posix() for path in PACKAGED.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The file `name`, else the packaged configuration of that name (`configs/` before it may be there or not).

    Raises:
        UnknownConfigError: There is neither.
    """
    inside = name.removeprefix("./").removeprefix("configs/")
    for path in (Path(name), PACKAGED / inside):
        if path.is_file():
            return path
    known = packaged_configs()
    nearest = difflib.get_close_matches(inside, known, n=1, cutoff=0.3)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise UnknownConfigError(f"there is no config file {name!r}, neither here nor among the packaged ones.{hint}")


def config_name(config: Path) -> str:
    """What `--config` takes for the file: of a packaged one its name."""
    file = config.absolute()
    return file.relative_to(PACKAGED).as_posix() if file.is_relative_to(PACKAGED) else str(config)


def shown_path(config: Path) -> str:
    """Where the file is, from the working directory where it lies below it."""
    file, here = config.absolute(), Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def kind_of(config: Path) -> Kind:
    """What the file is for, by its content.

    Raises:
        ValueError: It is not YAML; the message names file and line.
    """
    try:
        content = yaml.safe_load(config.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{config_name(config)} is not YAML: {error}") from error
    if not isinstance(content, dict):
        return "overlay"
    if {"rows", "columns"} <= content.keys():
        return "grid"
    if {"program", "parameters"} & content.keys():
        return "sweep"
    model = content.get("model")
    if isinstance(model, str) or (isinstance(model, dict) and "class_path" in model):
        return "experiment"
    return "trainer" if content.keys() == {"trainer"} else "overlay"


def head(config: Path) -> list[str]:
    """The lines of the comment that a configuration begins with, without their #."""
    lines = takewhile(lambda line: line.startswith("#"), config.read_text().splitlines())
    return [line.removeprefix("#").removeprefix(" ") for line in lines]


def description(config: Path) -> str:
    """The first sentence of the head; empty where there is none."""
    paragraph = " ".join(takewhile(str.strip, head(config)))
    return re.split(r"(?<=\.)(?<!Fig\.)\s+(?=[A-Z0-9`])", paragraph, maxsplit=1)[0]


def configs_before(overlay: Path) -> list[str]:
    """Names of configurations that `overlay` can go over, a complete experiment first.

    Over any experiment goes an overlay of the trainer. Else they are those of a command in the head of a packaged
    configuration, or an experiment in the overlay's folder; else one in or below the nearest folder above that has any,
    rather one whose head speaks of the overlay's folder than another.
    """
    if kind_of(overlay) == "trainer":
        return [EASIEST]
    name = config_name(overlay)
    packaged = [PACKAGED / other for other in packaged_configs()]
    for command in (command for config in packaged for command in _commands(config)):
        configs = _option_values(command, "--config")
        if name in configs[1:]:
            return configs[: configs.index(name)]
    experiments = [path for path in packaged if kind_of(path) == "experiment"]
    for folder in overlay.absolute().parents:
        if near := [path for path in experiments if folder in path.parents and folder != PACKAGED]:
            return [config_name(min(near, key=lambda path: _distance(path, overlay)))]
    return [EASIEST]


def how_to_make(run_folder: str, configs: Sequence[Path]) -> str:
    """How the run in `run_folder` is made, which one of `configs` starts from: a command, or the head to read.

    Empty where neither is known.
    """
    for name in packaged_configs():
        for command in _commands(PACKAGED / name):
            if run_folder in _option_values(command, "--trainer.default_root_dir"):
                return f"This makes it: {command}"
    speaking = [config for config in configs if run_folder in "\n".join(head(config))]
    return f"See the head of {shown_path(speaking[-1])}" if speaking else ""


def _distance(experiment: Path, overlay: Path) -> tuple[bool, bool, int, Path]:
    """The smaller, the more likely it is that the experiment is what the overlay is for."""
    folder = overlay.absolute().parent
    is_named = re.compile(rf"(?<![\w/]){re.escape(folder.name)}/").search("\n".join(head(experiment)))
    return experiment.parent != folder, is_named is None, len(experiment.parts), experiment


def _commands(config: Path) -> Iterator[str]:
    """The commands of the suite in the head, each on one line."""
    for line in "\n".join(head(config)).replace("\\\n", " ").splitlines():
        if line.strip().startswith("convsuite "):
            yield " ".join(line.split())


def _option_values(command: str, option: str) -> list[str]:
    words = command.split()
    return [value for name, value in pairwise(words) if name == option]
