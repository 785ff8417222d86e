"""`convsuite fit | validate | test | predict | fit_test | describe`: LightningCLI, around a run folder."""

from __future__ import annotations

import argparse
import inspect
import pkgutil
import shlex
import shutil
import sys
import tempfile
from contextlib import ExitStack, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

import datamodules
import lightning_modules
from datamodules import BaseDataModule
from lightning_modules.base import BaseTask
from lightning_modules.callbacks import default_callbacks, prediction_callbacks
from lightning_modules.callbacks.check_test import CheckTest
from lightning_modules.callbacks.checkpoints import with_checkpoints
from lightning_modules.callbacks.exact_resume import ExactResume
from lightning_modules.callbacks.graceful_stop import GracefulStop, Stopped
from lightning_modules.callbacks.progress import ProgressLines
from lightning_modules.callbacks.results import Results, show_results
from lightning_modules.callbacks.run_folder import RunFolder
from lightning_modules.checkpoint_io import AtomicCheckpointIO
from lightning_modules.cli import COMMANDS
from lightning_modules.commands import describe
from lightning_modules.commands.config_files import find_config, how_to_make, kind_of
from lightning_modules.commands.parser import CommandParser, own_error
from lightning_modules.commands.quiet import quiet
from lightning_modules.files import read_checkpoint
from lightning_modules.loggers import MetricsCSVLogger, finished_wandb, place_loggers
from lightning_modules.runs import (
    CHOSEN_AFTER_TRAINING,
    EVALUATIONS_FOLDER,
    Config,
    MissingRunError,
    Run,
    differences,
    run_id,
)
from lightning_modules.segmentation import SegmentationTask
from lightning_modules.sync_batch_norm import SyncBatchNormPlugin
from lightning_modules.weights import MissingStartError, StartingPoint
from models.names import matches

TRAININGS = ("fit", "fit_test")
EVALUATIONS = ("validate", "test", "predict")
# What a task takes from its data, where it has an argument of that name.
LINKED = ("num_classes", "in_channels", "image_size")


def run(command: str, args: list[str]) -> int:
    """Run `command`, one of those above; see `lightning_modules.cli.main`."""
    with quiet(), finished_wandb(), ExitStack() as cleanup:
        cli = ConvsuiteCLI(command, args, cleanup)
        try:
            getattr(cli, command)()
        except Stopped as stop:
            _say(f"\n{stop.how}, in {cli.run}. To go on:\n  {cli.command_line}")
            raise
        except SystemExit as leaving:
            if isinstance(leaving.__context__, KeyboardInterrupt):  # which a Trainer turns into exit code 1
                raise KeyboardInterrupt from None
            raise
    return 0


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


class ConvsuiteCLI(LightningCLI):
    """LightningCLI with one parser for all commands, so that a run's config.yaml serves every one of them.

    Task and data module are chosen by class name; what both know (`LINKED`) comes from the data. The configuration and
    the flags say everything: hyper-parameters in a checkpoint are not parsed.

    Args:
        command: A method of this class.
        args: What stands behind the command.
        cleanup: Gets what is to be undone in the end.
    """

    run: Run
    config_plain: Config
    checkpoint: str | None

    def __init__(self, command: str, args: list[str], cleanup: ExitStack) -> None:
        self.command = command
        self.command_line = shlex.join(["convsuite", command, *args])
        self.cleanup = cleanup
        _import_short_names()
        args, self.name = prepare_arguments(command, args)
        self.config_files = [Path(name) for name in _given(args).config]
        super().__init__(
            BaseTask,
            BaseDataModule,
            save_config_callback=None,
            trainer_defaults={"enable_model_summary": False, "enable_autolog_hparams": False},
            seed_everything_default=0,
            parser_class=CommandParser,
            parser_kwargs={
                "prog": f"convsuite {command}",
                "description": COMMANDS[command][0],
                "config_files": self.config_files,
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="validate, test, predict: a checkpoint, or 'best' or 'last' of the run with these settings (default: "
            "best, where there is none last, and without any the weights of init_from or pretrained). "
            "fit: a checkpoint that a new run goes on from, with the same training and validation subjects where it "
            "names them.",
        )
        if self.command == "describe":
            describe.add_arguments(parser)
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Lightning warns when `args` are given besides sys.argv; here they are made from it.
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Nothing: a checkpoint's hyper-parameters must not win over the command line, as they do in Lightning."""

    def before_instantiate_classes(self) -> None:
        self.config_plain = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self.config_plain["trainer"]["default_root_dir"] = None  # a run folder may be moved
        if self.command == "describe":
            return
        self.run, self.checkpoint = self._find_evaluated() if self.command in EVALUATIONS else self._find_trained()
        if self.checkpoint not in (None, "last") and not Path(self.checkpoint).is_file():
            raise _missing(Path(self.checkpoint))
        if self.config.trainer.fast_dev_run:
            self.run = Run(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        else:
            self.cleanup.callback(_discard_unused, self.run, self.run.folder.exists())
        self.config.trainer.default_root_dir = str(self.run.folder)
        place_loggers(self.config.trainer.logger, self.run)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            return
        except ValueError as error:
            own = own_error(error)
        raise own  # out here, so that the two do not become each other's context

    def after_instantiate_classes(self) -> None:
        """Refuse a value for what comes from the data: it would count for nothing; and weights that say nothing.

        And patches that the network cannot be trained on, before the images are read.
        """
        parameters = inspect.signature(type(self.model)).parameters
        for name in set(LINKED) - set(parameters):  # the checkpoint would hold arguments that the task does not take
            self.model.hparams.pop(name, None)
        for name in set(LINKED) & set(parameters):
            given, from_data = self.config.model.init_args.get(name), getattr(self.datamodule, name)
            if given is not None and given not in (parameters[name].default, from_data):
                data = type(self.datamodule).__name__
                raise ValueError(f"model.{name} is {given}, but {data} has {from_data}: leave it out, the data say it")
        if self.command in EVALUATIONS and self.checkpoint is None:
            self._check_initial_weights()
        if self.command in TRAININGS and isinstance(self.model, SegmentationTask):
            self.model.check_data(self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer | None:  # type: ignore[override]
        if self.command == "describe":
            return None
        given = self.config_init.trainer
        _check_accelerator(given.accelerator)
        plugins = _as_list(given.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        if given.sync_batchnorm:
            plugins.append(SyncBatchNormPlugin())
        loggers = [] if isinstance(given.logger, bool) else _as_list(given.logger)
        return super().instantiate_trainer(
            callbacks=self._callbacks(_as_list(given.callbacks)),
            logger=[MetricsCSVLogger(self.run), *loggers],
            plugins=plugins,
            **kwargs,
        )

    def fit(self) -> None:
        start = self.model.starting_point
        if start is not None and self.run.last_checkpoint.is_file():
            start.check_unchanged(self.run.last_checkpoint)
        elif start is not None and self.checkpoint is None:
            self._find(start)  # now, not after all images have been decoded
        with suppress(FileNotFoundError) if self.run.is_finished else nullcontext():  # its data may be gone
            self._check_training_set()
        if self.run.is_finished:
            _say(f"{self.run} is trained already: nothing is left to do.")
            rank_zero_only(show_results)("fit", self.run.metrics(), self.run)
            return
        if not self.config_init.trainer.fast_dev_run:
            _say(f"run folder: {self.run}")
        self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint)

    def validate(self) -> None:
        self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint, verbose=False)

    def test(self) -> None:
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint, verbose=False)

    def predict(self) -> None:
        self.trainer.predict(
            self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint, return_predictions=False
        )

    def fit_test(self) -> None:
        self.fit()
        given = self.config_init.trainer
        writes_checkpoints = not given.fast_dev_run and given.enable_checkpointing is not False
        self.checkpoint = str(self.run.checkpoint("best")) if writes_checkpoints else None
        self.test()

    def describe(self) -> None:
        size = self.datamodule.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        extras = describe.Extras.of(self.config)
        cutter = getattr(self.datamodule, "cutter", None)
        for network, input_size in self.model.networks((1, self.datamodule.in_channels, *sides)):
            describe.describe(network, input_size, extras=extras, cutter=cutter)

    def _find_trained(self) -> tuple[Run, str | None]:
        """The run folder of these settings, and where training starts: its last checkpoint, if it has one."""
        start = self.config.ckpt_path
        self.config_plain["ckpt_path"] = None
        run = self._run_of_settings()
        if start == "best":
            raise ValueError("fit goes on from the last checkpoint by itself; --ckpt_path names one to start from")
        if start not in (None, "last") and Path(start).absolute().parent != run.checkpoints:
            self.config_plain["ckpt_path"] = start
            run = self._run_of_settings()
        if self.config.trainer.fast_dev_run:
            return run, start
        run.check_settings(self.config_plain)
        return run, str(run.last_checkpoint) if run.last_checkpoint.is_file() else start

    def _find_evaluated(self) -> tuple[Run, str | None]:
        """The folder that results go to, and the checkpoint that is evaluated; None: what the task starts from."""
        path = self.config.ckpt_path
        self.config_plain["ckpt_path"] = None
        run = self._run_of_settings()
        if path in (None, "best", "last"):
            run = self._trained_alike(run) or run
            has_weights = path is None and _starts_from_weights(self.config_plain) and _holds_no_training(run)
            path = run.find_checkpoint() if has_weights else run.checkpoint(path or "best")
            if path is None:
                _say(f"{run} holds no checkpoint: what is evaluated are the weights that a training would start from")
        elif self.config.trainer.default_root_dir is None:
            run = Run.of_checkpoint(path) or Run(Path(path).parent)
        results = run.of_evaluation(self.config_plain)
        if results.folder != run.folder and not self.config.trainer.fast_dev_run:
            _say(f"{run} has other settings than this evaluation, whose results go to {results}")
        return results, None if path is None else str(path)

    def _check_initial_weights(self) -> None:
        """Raise an error now, not after all images have been decoded, where the task's own weights are no result."""
        start = self.model.starting_point
        if start is None:
            return
        self._find(start)
        random = [name for name in self.model.network.state_dict() if matches(name, start.skip)]
        if random and not start.fit:
            raise MissingRunError(
                f"{self.run} holds no checkpoint, and init_skip leaves layers at a random start ({random[0]} first): "
                "train first, with `convsuite fit` and these settings, or set init_skip to null if the file holds them"
            )

    def _find(self, start: StartingPoint) -> None:
        """Raise an error where what the task starts from is missing, with how it is made if a configuration says so."""
        try:
            start.find()
        except MissingStartError as error:
            how = how_to_make(str(start.file), self.config_files)
            raise MissingStartError(f"{error}. {how}" if how else str(error)) from error

    def _check_training_set(self) -> None:
        """Refuse to go on with, or to show as done, a training that was one on other data, before they are read."""
        data = type(self.datamodule)
        if data.check_training_set is BaseDataModule.check_training_set:
            return  # it does nothing, and checkpoints are large
        named = self.checkpoint not in (None, "last")
        checkpoint = self.checkpoint if named else self.run.find_checkpoint()
        if checkpoint is not None:
            kept = read_checkpoint(checkpoint).get(data.__qualname__)  # where Lightning puts it
            self.datamodule.check_training_set(kept or {})

    def _trained_alike(self, run: Run) -> Run | None:
        """The run beside `run`, which has no checkpoint, that differs only in what is chosen after training.

        Raises:
            MissingRunError: There are several.
        """
        if self.config.trainer.default_root_dir is not None or run.find_checkpoint() is not None:
            return None
        others = [Run(file.parent) for file in sorted(run.folder.parent.glob("*/config.yaml"))]
        alike = [
            other
            for other in others
            if other.find_checkpoint() and not differences(other.config, self.config_plain, CHOSEN_AFTER_TRAINING)
        ]
        if len(alike) > 1:
            raise MissingRunError(
                f"these settings are those of several runs, {', '.join(map(str, alike))}, which differ only in "
                f"{', '.join(CHOSEN_AFTER_TRAINING)}: name one with --trainer.default_root_dir"
            )
        return alike[0] if alike else None

    def _run_of_settings(self) -> Run:
        named = self.config.trainer.default_root_dir
        name = self.name or self.config_plain["model"]["init_args"]["model"].replace("/", "_")
        return Run(named or Path("runs") / name / run_id(self.config_plain))

    def _callbacks(self, given: list[Callback]) -> list[Callback]:
        callbacks = [RunFolder(self.run, self.config_plain, self.command_line), ExactResume(), *given]
        if self.command == "fit_test":
            callbacks.insert(0, CheckTest())
        if self.config_init.trainer.enable_progress_bar is not False and not _has(given, ProgressBar):
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else ProgressLines())
        callbacks += [callback for callback in default_callbacks(self.model) if not _has(given, type(callback))]
        if self.command == "predict":
            writers = prediction_callbacks(self.model, self.datamodule)
            callbacks += [callback for callback in writers if not _has(given, type(callback))]
        callbacks.append(Results())
        if self.config_init.trainer.enable_checkpointing is False:
            return callbacks
        monitor, mode = getattr(self.model, "monitor", None), getattr(self.model, "mode", "min")
        return [*with_checkpoints(callbacks, monitor, mode), GracefulStop()]


def prepare_arguments(command: str, args: list[str]) -> tuple[list[str], str | None]:
    """The arguments with config names found, and the name of the experiment: that of its first config file.

    An evaluation whose `--config` files name no task, if there are any, starts from the configuration of the run that
    its flags name.
    """
    given = _given(args)
    resolved = [_resolve_config(before, arg) for before, arg in zip(["", *args], args, strict=False)]
    configs = [find_config(name) for name in given.config]
    if command in EVALUATIONS and not any(kind_of(config) == "experiment" for config in configs):
        run = _named_run(given)
        if run is not None:
            # What the run itself started from is not what is to be evaluated.
            return ["--config", str(run.config_file), "--ckpt_path", "null", *resolved], None
    return resolved, _experiment_name(configs[0]) if configs else None


def _given(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    parser.add_argument("--trainer.default_root_dir", dest="folder")
    return parser.parse_known_args(args)[0]


def _resolve_config(before: str, arg: str) -> str:
    if before in ("-c", "--config"):
        return str(find_config(arg))
    if arg.startswith("--config="):
        return f"--config={find_config(arg.removeprefix('--config='))}"
    return arg


def _starts_from_weights(config: Config) -> bool:
    options = config["model"]["init_args"]
    return bool(options.get("init_from") or (options.get("model_options") or {}).get("pretrained"))


def _holds_no_training(run: Run) -> bool:
    """Whether nothing in the folder comes of a training, whose checkpoints may have been removed since."""
    return all(session.get("checkpoint", "of a fit") is None for session in run.sessions)


def _experiment_name(config: Path) -> str:
    is_of_a_run = config.name == "config.yaml" and (config.parent / "environment.json").is_file()
    return config.absolute().parent.parent.name if is_of_a_run else config.stem


def _named_run(given: argparse.Namespace) -> Run | None:
    """The run that `--ckpt_path` or `--trainer.default_root_dir` names.

    Raises:
        MissingRunError: It is not there.
    """
    if given.ckpt_path not in (None, "best", "last"):
        if not Path(given.ckpt_path).is_file():
            raise _missing(Path(given.ckpt_path))
        return Run.of_checkpoint(given.ckpt_path)
    if given.folder is None:
        return None
    run = Run(given.folder)
    if not run.config_file.is_file():
        raise MissingRunError(f"{run} holds no run: train it first, with `convsuite fit`, or give --config")
    return run


def _missing(checkpoint: Path) -> MissingRunError:
    beside = ", ".join(sorted(file.name for file in checkpoint.parent.glob("*.ckpt")))
    return MissingRunError(f"there is no checkpoint {checkpoint}{f'; beside it: {beside}' if beside else ''}")


def _import_short_names() -> None:
    """Classes are found by their short names once they are imported."""
    for package in (lightning_modules, datamodules):
        for name in package.__all__:
            getattr(package, name)
    import_module("lightning_modules.schedules")
    callbacks = import_module("lightning_modules.callbacks")
    for module in pkgutil.iter_modules(callbacks.__path__):
        import_module(f"{callbacks.__name__}.{module.name}")


def _check_accelerator(name: Any) -> None:
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if name in ("gpu", "cuda", "mps") and not has_gpu:
        raise ValueError(
            f"trainer.accelerator is {name}, but torch finds no GPU here: put --config trainer/cpu.yaml behind the "
            "other configs (`convsuite doctor` shows what torch finds)"
        )


def _discard_unused(run: Run, existed: bool) -> None:
    """Remove what a run that failed before its first step, or an evaluation that failed, has left."""
    if existed or run.config_file.is_file() or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return
    shutil.rmtree(run.folder, ignore_errors=True)
    default = Path("runs").absolute()
    with suppress(OSError):  # not empty, or not there
        for folder in run.folder.parents:
            if folder.is_relative_to(default) or folder.name == EVALUATIONS_FOLDER:
                folder.rmdir()


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
