"""The logger of every run, and where others write."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_modules.files import write_whole
from lightning_modules.metrics_file import MetricsFile
from lightning_modules.runs import Run


class MetricsCSVLogger(Logger):
    """Writes `metrics.csv` of a run folder, see `MetricsFile`; the folder appears with the first metric.

    Results of a test describe the run as a whole: they stand in its last row.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.file = MetricsFile(run.metrics_file)

    # An empty name and version make `<save_dir>/<name>/<version>/checkpoints` the run folder's own `checkpoints`.
    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.run.folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        texts = {name: str(value.item() if isinstance(value, Tensor) else value) for name, value in metrics.items()}
        try:
            if any(name.startswith("test/") for name in texts) and self.file.add_to_last_step(texts):
                return
            self.file.add(step or 0, texts)
        except OSError as error:
            raise OSError(
                f"could not write {self.file.path}: {error.strerror or error}. Checkpoints are untouched: make room, "
                "then run the same command again."
            ) from error

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Remove the rows of `step` and later ones, which a resumed run measures again."""
        self.file.drop_from(step)


def place_loggers(config: Any, run: Run) -> None:
    """Make the loggers of a parsed `trainer.logger` (None, a bool, one or a list) write into the run folder.

    W&B gets an id that is kept there, so that a resumed run goes on under it and any other run gets its own.
    """
    for logger in config if isinstance(config, list) else [config]:
        if not hasattr(logger, "class_path"):
            continue
        options = logger.init_args
        if "save_dir" in options:
            options.save_dir = str(run.folder)
        if logger.class_path.endswith(".WandbLogger") and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            options.id = _kept_wandb_id(run)
        if logger.class_path.endswith(".TensorBoardLogger") and options.name == "lightning_logs":
            options.name, options.version = "tensorboard", ""


def _kept_wandb_id(run: Run) -> str:
    file = run.folder / "wandb" / "run_id.txt"
    if not file.is_file():
        write_whole(file, secrets.token_hex(4).encode())
    return file.read_text()


@contextmanager
def finished_wandb() -> Iterator[None]:
    """End the W&B run that the block began: the next one would go on with it."""
    wandb = sys.modules.get("wandb")
    is_others = wandb is not None and wandb.run is not None
    try:
        yield
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None and not is_others:
            wandb.finish(exit_code=1 if sys.exc_info()[0] else 0)
