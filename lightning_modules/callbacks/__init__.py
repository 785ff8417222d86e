"""Callbacks. Names resolve on first use, so that importing this is light."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from lightning_modules.base import BaseTask

_HOMES = {
    "ConfusionMatrix": "confusion_matrix",
    "KernelPictures": "kernel_pictures",
    "LearningCurves": "learning_curves",
    "PredictionWriter": "predictions",
    "WandbSummary": "wandb_summary",
    "WorstMistakes": "worst_mistakes",
}
__all__ = ["default_callbacks", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def default_callbacks(task: BaseTask) -> list[Callback]:
    """What draws and summarises a run of `task` where its configuration does not say otherwise."""
    from lightning.pytorch.callbacks import LearningRateMonitor

    from lightning_modules.callbacks.confusion_matrix import ConfusionMatrix
    from lightning_modules.callbacks.kernel_pictures import KernelPictures
    from lightning_modules.callbacks.learning_curves import LearningCurves
    from lightning_modules.callbacks.wandb_summary import WandbSummary
    from lightning_modules.callbacks.worst_mistakes import WorstMistakes
    from lightning_modules.classification import ClassificationTask

    rates = LearningRateMonitor(logging_interval="step")
    callbacks: list[Callback] = [rates, KernelPictures(), LearningCurves(), WandbSummary()]
    if isinstance(task, ClassificationTask):
        callbacks += [ConfusionMatrix(), WorstMistakes()]
    return callbacks
