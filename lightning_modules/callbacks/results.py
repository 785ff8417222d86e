"""What came out, as a short table, and where it was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.callbacks.checkpoints import BestCheckpoint
from lightning_modules.runs import Run

if TYPE_CHECKING:
    from rich.table import Table

STAGES = {"fit": ("train/", "val/"), "validate": ("val/",), "test": ("test/",)}


class Results(Callback):
    """Prints the metrics of a finished fit, validate or test, and the files that hold the results."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            run = None if trainer.fast_dev_run else Run(trainer.default_root_dir)  # type: ignore[attr-defined]
            show_results(stage, metrics | _best(trainer), run)


def show_results(stage: str, metrics: Mapping[str, float], run: Run | None) -> None:
    """Print the metrics of `stage` ("fit", "validate", "test" or "predict") and what `run` holds."""
    from rich.console import Console

    console = Console()
    table = _table(stage, metrics)
    if table.row_count:
        console.print(table)
    if run is not None and run.folder.is_dir():
        written = sorted(path.name for path in run.folder.iterdir() if not path.name.startswith("."))
        console.print(f"Written to [bold]{run}[/bold]: {', '.join(written)}", soft_wrap=True, highlight=False)


def _table(stage: str, metrics: Mapping[str, float]) -> Table:
    from rich.table import Table

    table = Table("metric", "value")
    table.columns[1].justify = "right"
    for name, value in sorted(metrics.items()):
        if name.startswith(STAGES.get(stage, ())) and not name.endswith(("_step", "_epoch")):
            table.add_row(name, f"{value:.4g}")
    return table


def _best(trainer: Trainer) -> dict[str, float]:
    return {
        f"{callback.monitor} (best)": float(callback.best_model_score)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None and trainer.state.fn == "fit"
    }
