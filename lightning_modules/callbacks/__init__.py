"""Callbacks. Names resolve on first use, so that importing this is light."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule

    from lightning_modules.base import BaseTask

_HOMES = {
    "ClassTable": "class_table",
    "ConfusionMatrix": "confusion_matrix",
    "GANCurves": "gan_curves",
    "GeneratedSamples": "generated_samples",
    "KernelPictures": "kernel_pictures",
    "LatentInterpolation": "latent_interpolation",
    "LearningCurves": "learning_curves",
    "MaskWriter": "mask_writer",
    "OctaveContributions": "octave_contributions",
    "OrthogonalSlices": "orthogonal_slices",
    "PredictionWriter": "predictions",
    "RealAndGenerated": "real_and_generated",
    "RegionDice": "region_dice",
    "SampleWriter": "sample_writer",
    "SamplingReport": "sampling_report",
    "SegmentationOverlays": "segmentation_overlays",
    "SplitTable": "split_table",
    "SubjectTable": "subject_table",
    "VolumeWriter": "volume_writer",
    "WandbSummary": "wandb_summary",
    "WorstMistakes": "worst_mistakes",
}
__all__ = ["default_callbacks", "prediction_callbacks", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def default_callbacks(task: BaseTask) -> list[Callback]:
    """What draws and summarises a run of `task` where its configuration does not say otherwise."""
    from lightning.pytorch.callbacks import LearningRateMonitor

    from lightning_modules.callbacks.class_table import ClassTable
    from lightning_modules.callbacks.confusion_matrix import ConfusionMatrix
    from lightning_modules.callbacks.kernel_pictures import KernelPictures
    from lightning_modules.callbacks.learning_curves import LearningCurves
    from lightning_modules.callbacks.orthogonal_slices import OrthogonalSlices
    from lightning_modules.callbacks.sampling_report import SamplingReport
    from lightning_modules.callbacks.segmentation_overlays import SegmentationOverlays
    from lightning_modules.callbacks.split_table import SplitTable
    from lightning_modules.callbacks.subject_table import SubjectTable
    from lightning_modules.callbacks.wandb_summary import WandbSummary
    from lightning_modules.callbacks.worst_mistakes import WorstMistakes
    from lightning_modules.classification import ClassificationTask
    from lightning_modules.gan import GANTask
    from lightning_modules.segmentation import SegmentationTask

    rates = LearningRateMonitor(logging_interval="step")
    callbacks: list[Callback] = [rates, KernelPictures(), WandbSummary()]
    if isinstance(task, GANTask):
        return [*callbacks, *_gan_callbacks()]
    callbacks.append(LearningCurves())
    if isinstance(task, ClassificationTask):
        callbacks += [ConfusionMatrix(), WorstMistakes()]
    if isinstance(task, SegmentationTask):
        callbacks += [ConfusionMatrix(), ClassTable(), SplitTable(), SubjectTable()]
        callbacks += [SegmentationOverlays(), OrthogonalSlices(), SamplingReport()]
    return callbacks


def _gan_callbacks() -> list[Callback]:
    from lightning_modules.callbacks.gan_curves import GANCurves
    from lightning_modules.callbacks.generated_samples import GeneratedSamples
    from lightning_modules.callbacks.latent_interpolation import LatentInterpolation
    from lightning_modules.callbacks.octave_contributions import OctaveContributions
    from lightning_modules.callbacks.real_and_generated import RealAndGenerated

    return [GeneratedSamples(), GANCurves(), RealAndGenerated(), LatentInterpolation(), OctaveContributions()]


def prediction_callbacks(task: BaseTask, data: LightningDataModule | None = None) -> list[Callback]:
    """What writes the predictions of `task` to its run folder, in each subject's own space where `data` knows that."""
    from lightning_modules.callbacks.mask_writer import MaskWriter
    from lightning_modules.callbacks.predictions import PredictionWriter
    from lightning_modules.callbacks.sample_writer import SampleWriter
    from lightning_modules.callbacks.volume_writer import VolumeWriter
    from lightning_modules.gan import GANTask
    from lightning_modules.segmentation import SegmentationTask

    if isinstance(task, GANTask):
        return [SampleWriter()]
    if not isinstance(task, SegmentationTask):
        return [PredictionWriter()]
    return [VolumeWriter() if hasattr(data, "to_native") else MaskWriter()]
