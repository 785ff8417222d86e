"""The command line's parser: what is wrong in a few lines, and what was probably meant."""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_modules.commands.config_files import EASIEST, config_name, configs_before, kind_of

UNION = "Does not validate against any of the Union subtypes"
# Every optional class adds these lines around the one that says something.
OTHER_CHOICE = "Expected a <class 'NoneType'>"
NOISE = re.compile(rf"\s*(- )?({UNION}|Subtypes: .*|Errors:|{OTHER_CHOICE}.*|Given value.*|)")
# Without a task: all keys are missing, or those of the class that stands for any task.
NO_TASK = re.compile(
    r"the following arguments are required: (\w+, )*model\b|.*class_path 'lightning_modules\.BaseTask'", re.DOTALL
)
# Of the trainer's options whose defaults here are not Lightning's.
TRAINER_HELP = {
    "logger": "Loggers besides that of metrics.csv, which every run has; none by default, nor with true or false. The "
    "overlays in logger/ set one.",
    "callbacks": "Callbacks besides those of every run; one of the same class takes the place of the suite's own.",
    "enable_checkpointing": "false: no checkpoints. Else checkpoints/last.ckpt, and best.ckpt where something is "
    "monitored.",
    "enable_progress_bar": "false: show nothing while it runs. Else a bar, or lines where the output is no terminal.",
    "enable_model_summary": "A table of the network at the start; `convsuite describe` says more.",
    "default_root_dir": "The run folder; by default runs/<name of the first config>/<id of the settings>.",
}


class CommandParser(LightningArgumentParser):
    """LightningCLI's parser with a short usage, messages without padding, and the nearest name for an unknown option.

    Options are not abbreviated: a mistyped one would be taken for another.

    Args:
        config_files: What stands behind `--config`; None in the parsers of classes, which jsonargparse makes.
    """

    def __init__(self, *args: Any, config_files: Sequence[Path] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        # Absolute, since jsonargparse changes into the folder of a file that it reads.
        self._configs = None if config_files is None else {config_name(f): f.absolute() for f in config_files}

    def add_lightning_class_args(self, lightning_class: Any, nested_key: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        added = super().add_lightning_class_args(lightning_class, nested_key, **kwargs)
        if nested_key == "trainer":
            for name, text in TRAINER_HELP.items():
                self._option_string_actions[f"--trainer.{name}"].help = text
        return added

    def print_usage(self, file: Any = None) -> None:
        print(
            f"usage: {self.prog} --config FILE [--config FILE ...] [--model.KEY VALUE] [--data.KEY VALUE] ...",
            file=file,
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        said = self._no_experiment(message) or "\n".join(_without_noise(message)) + self._nearest_option(message)
        super().error(said, ex)

    def _no_experiment(self, message: str) -> str:
        """What is wrong where no experiment is named, or what is none; empty where something else is wrong."""
        if self._configs is None:
            return ""
        kinds = {name: kind_of(file) for name, file in self._configs.items()}
        for name, kind in kinds.items():
            if kind == "grid":
                return f"{name} is a grid of experiments: convsuite reproduce {name}"
            if kind == "sweep":
                return f"{name} is a sweep of W&B: wandb sweep {self._configs[name]}"
        if "experiment" in kinds.values() or not NO_TASK.match(message):
            return ""
        if not self._configs:
            return f"{message}\nAn experiment has both: --config {EASIEST}, say. `convsuite list configs` shows all."
        are, them = ("is an overlay", "it") if len(self._configs) == 1 else ("are overlays", "them")
        before = " ".join(f"--config {name}" for name in configs_before(next(iter(self._configs.values()))))
        return f"{' and '.join(self._configs)} {are}: put a complete experiment before {them}, e.g. {before}"

    def _nearest_option(self, message: str) -> str:
        if unknown := re.search(r"unrecognized arguments: (--[\w.]+)", message, re.IGNORECASE):
            return _nearest(unknown[1], self._option_string_actions)
        unknown = re.search(r"(?:Option|Key) '(\w+)' is not (?:accepted|expected)", message)
        owners = re.findall(r"class_path(?: |=)'([\w.]+)'", message)
        if unknown is None or not owners:
            return ""
        return _nearest(unknown[1], inspect.signature(pydoc.locate(owners[-1])).parameters)  # type: ignore[arg-type]


def _nearest(name: str, valid: Any) -> str:
    nearest = difflib.get_close_matches(name, valid, n=1)
    return f"\nDid you mean {nearest[0]!r}?" if nearest else ""


def _without_noise(message: str) -> list[str]:
    return [line for line in message.splitlines() if not NOISE.fullmatch(line)]


def own_error(error: ValueError) -> Exception:
    """The error that a class raised at its construction, out of jsonargparse's account of all that it tried."""
    inner: Exception = error
    while str(inner).startswith(UNION) and isinstance(inner.__cause__, Exception):
        inner = inner.__cause__
    if str(inner).startswith(OTHER_CHOICE):  # older versions keep the error of the last thing that they tried
        return ValueError(" ".join(line.strip(" -") for line in _without_noise(str(error))))
    return inner
