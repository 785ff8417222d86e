"""The run folder: everything that belongs to one run, found again by its settings.

<folder>/config.yaml         all settings, resolved
         metrics.csv         one row a step
         checkpoints/        last.ckpt and, where something is monitored, best.ckpt
         media/              pictures
         splits.csv          the subjects of training, validation and test, where the data name them
         environment.json    a session each time that the run was worked on: versions, hardware, command ...
         evaluations/<name>/ results of an evaluation with other settings, a folder like this one without checkpoints
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.files import read_checkpoint
from lightning_modules.metrics_file import last_values, read_metrics

if TYPE_CHECKING:
    from torch import nn

Config = dict[str, Any]

# Where a run runs, what it shows and how often it saves is no part of what it computes. Data may be moved: whether they
# are the same is asked of the data module (`check_training_set`).
NOT_COMPARED = {
    "trainer": {
        "accelerator",
        "strategy",
        "devices",
        "num_nodes",
        "default_root_dir",
        "logger",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_autolog_hparams",
        "model_registry",
        "profiler",
        "fast_dev_run",
    },
    "data": {"num_workers", "root", "predict_root", "cache_root"},
    "callbacks": {"LastCheckpoint", "RichProgressBar", "TQDMProgressBar"},
}
# Dotted keys of what no evaluation's result depends on. Which checkpoint was evaluated stands in its session.
NOT_OF_EVALUATIONS = ("ckpt_path", "data.init_args.batch_size")
# Dotted keys of what may be chosen after training.
CHOSEN_AFTER_TRAINING = ("model.init_args.inference", "model.init_args.subject_measures")
EVALUATIONS_FOLDER = "evaluations"
NAMED_OPTIONS = 3  # at most so many in the name of such a folder


class OtherSettingsError(ValueError):
    """A run folder holds a run with other settings; the message lists the difference."""


class MissingRunError(FileNotFoundError):
    """There is no such run, or it has no checkpoint yet."""


class Run:
    """A run folder, existing or to be; making a `Run` writes nothing."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.config_file = self.folder / "config.yaml"
        self.metrics_file = self.folder / "metrics.csv"
        self.environment_file = self.folder / "environment.json"
        self.checkpoints = self.folder / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.best_checkpoint = self.checkpoints / "best.ckpt"

    def __str__(self) -> str:
        """The folder, relative to the working directory where it lies below it."""
        here = Path.cwd()
        return str(self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder)

    @classmethod
    def of_checkpoint(cls, path: str | Path) -> Run | None:
        """The run whose checkpoint `path` is; None for a checkpoint that lies outside of a run folder."""
        run = cls(Path(path).absolute().parent.parent)
        return run if Path(path).absolute().parent == run.checkpoints and run.config_file.is_file() else None

    @property
    def config(self) -> Config:
        import yaml

        return yaml.safe_load(self.config_file.read_text())

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """What `environment.json` holds; an empty list before the first step."""
        return json.loads(self.environment_file.read_text())["sessions"] if self.environment_file.is_file() else []

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end."""
        return any(session["stage"] == "fit" and session["outcome"] == "finished" for session in self.sessions)

    def checkpoint(self, name: str = "best") -> Path:
        """The file of "best" (where there is none, of "last") or "last".

        Raises:
            MissingRunError: There is none.
        """
        found = self.find_checkpoint(name)
        if found is None:
            raise MissingRunError(f"{self} holds no checkpoint: train first, with `convsuite fit` and these settings")
        return found

    def find_checkpoint(self, name: str = "best") -> Path | None:
        """As `checkpoint`; None where there is none."""
        wanted = [self.best_checkpoint, self.last_checkpoint] if name == "best" else [self.last_checkpoint]
        return next((path for path in wanted if path.is_file()), None)

    def metrics(self) -> dict[str, float]:
        """For each metric of metrics.csv the value that was measured last."""
        return last_values(read_metrics(self.metrics_file)) if self.metrics_file.is_file() else {}

    def check_settings(self, config: Config) -> None:
        """Raise `OtherSettingsError` where the folder holds a run with other settings than `config`."""
        if not self.config_file.is_file():
            return
        different = differences(self.config, config)
        if different:
            raise OtherSettingsError(
                f"{self} holds a run with other settings: {'; '.join(different)}. Give this run a folder of its own "
                "(--trainer.default_root_dir), or delete that one."
            )

    def of_evaluation(self, config: Config) -> Run:
        """Where the results of an evaluation with `config` go: here, if the folder says the same or nothing.

        Else a sub-folder, named after the settings that differ, so that the same evaluation finds it again.
        """
        different = differences(self.config, config, NOT_OF_EVALUATIONS) if self.config_file.is_file() else []
        if not different:
            return self
        options = sorted({_option(line.partition(":")[0]) for line in different})
        name = "-".join([*options[:NAMED_OPTIONS], _digest(sorted(different))])
        return Run(self.folder / EVALUATIONS_FOLDER / name)


def compared_settings(config: Config) -> dict[str, Any]:
    """What makes a run this run and no other: dotted keys to values. None and empty are as good as absent."""
    kept: Config = {key: config.get(key) for key in ("seed_everything", "model", "ckpt_path")}
    trainer = config.get("trainer") or {}
    kept["trainer"] = {key: value for key, value in trainer.items() if key not in NOT_COMPARED["trainer"]}
    kept["trainer"]["callbacks"] = [callback for callback in trainer.get("callbacks") or [] if _is_compared(callback)]
    data = config.get("data") or {}
    init_args = data.get("init_args") or {}
    kept["data"] = {**data, "init_args": {k: v for k, v in init_args.items() if k not in NOT_COMPARED["data"]}}
    return dict(_flatten(kept))


def run_id(config: Config) -> str:
    """Ten characters that differ where `compared_settings` differ."""
    return _digest(compared_settings(config))


def differences(old: Config, new: Config, but: Collection[str] = ()) -> list[str]:
    """The compared settings that differ, each as `key: old -> new`, except the dotted keys `but` and those below."""
    before, after = compared_settings(old), compared_settings(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    keys = [key for key in keys if not any(f"{key}.".startswith(f"{left_out}.") for left_out in but)]
    return [f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}" for key in keys]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _option(key: str) -> str:
    """`inference` of `model.init_args.inference.init_args.scales`, `data` of `data.class_path`."""
    return [part for part in key.split(".") if part not in ("init_args", "class_path")][:2][-1]


def _is_compared(callback: Config) -> bool:
    return callback["class_path"].rpartition(".")[2] not in NOT_COMPARED["callbacks"]


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if value is None or value == [] or value == {}:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, inner in enumerate(value):
            yield from _flatten(inner, f"{key}.{index}")
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def load_run(folder: str | Path, checkpoint: str = "best") -> nn.Module:
    """The trained network of a run, in eval mode, on the CPU; of a GAN the generator that it samples from.

    Args:
        folder: The run folder.
        checkpoint: "best" (the last where there is no best), "last", or the path of a checkpoint file.

    Raises:
        MissingRunError: The folder has no checkpoint.
        CheckpointError: The checkpoint is damaged, or not one of this suite.
    """
    from lightning_modules.files import CheckpointError
    from models import create_model

    path = Run(folder).checkpoint(checkpoint) if checkpoint in ("best", "last") else Path(checkpoint)
    saved = read_checkpoint(path)
    if "network" not in saved:
        raise CheckpointError(
            f"{path} does not say how its network is built: it was not written by this suite, or by an early version, "
            "from whose configuration `convsuite test` and `predict` still read it"
        )
    network = create_model(**saved["network"])
    averaged = "ema_generator.module."
    prefix = averaged if any(key.startswith(averaged) for key in saved["state_dict"]) else "network."
    weights = {key.removeprefix(prefix): value for key, value in saved["state_dict"].items() if key.startswith(prefix)}
    network.load_state_dict(weights)
    return network.eval()
