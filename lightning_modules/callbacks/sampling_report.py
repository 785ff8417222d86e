"""What training has sampled: how much of the volumes, which classes, and whether it looks like what is evaluated."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.files import write_whole
from lightning_modules.labels import class_names
from lightning_modules.metrics.coverage import Coverage
from lightning_modules.metrics.intensities import SampleStatistics, class_distance, grey_value_distance
from lightning_modules.pictures.saving import dispensable, is_writing, media_folder
from lightning_modules.processes import sum_over_processes

FILE = "sampling.csv"
STAGES = ("train", "val", "test")
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}

_UNREAD = 256  # batches whose places may wait on a GPU until they are fetched


class SamplingReport(Callback):
    """Logs what the composite sampling scheme gave, P_train(X, Y), and how it differs from what is evaluated.

    For data modules that train on patches and name their `training_subjects`; of others it says nothing. After every
    epoch of training, of all processes together:

    - `sampling/coverage`: the share of the training subjects' voxels that were in a patch, the mean over subjects;
      `sampling/coverage_so_far`: since training began. See `Coverage` for the resolution. Where a patch lay counts, not
      where augmentation moved it.
    - `sampling/subjects`: how many subjects patches came from.
    - `sampling/frequency_<class>`: the share of each class among the voxels that are not ignored.
    - `sampling/mean_<modality>`, `std_`, and quantiles, `q05_` to `q95_`: of the grey values as the network gets them,
      with context, padding and augmentation. See `SampleStatistics` for the resolution.
    - `sampling/val_distance_<modality>`: how far the grey values of the training patches are from those of the
      validation subjects (Wasserstein distance, in standard deviations of the latter), and
      `sampling/val_distance_classes`: the share of voxels whose class would have to change. Likewise, after testing,
      `sampling/test_distance_...`, of the last epoch that was trained, as the tested checkpoint or this process knows
      it.

    All of it for training, validation and test side by side is in `media/sampling.csv`, of the last epoch.

    An epoch that is interrupted and resumed is reported whole: what it has counted is in checkpoints.
    """

    def __init__(self) -> None:
        self._epoch = Coverage()
        self._so_far = Coverage()
        # What this process has counted since all of them last added up:
        self._places: list[Tensor] = []  # int64 (N, 1 + 3 * d) each: subject, start, patch, size
        self._counted: dict[str, SampleStatistics] = {}
        self._statistics: dict[str, SampleStatistics] = {}  # a stage, of all processes, on the CPU
        self._process = (1, 0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._process = (trainer.world_size, trainer.global_rank)

    def state_dict(self) -> dict[str, Any]:
        """Equal in all processes, each of which must call this."""
        self._add_up()
        return {
            "epoch": self._epoch.state(),
            "so_far": self._so_far.state(),
            "statistics": {stage: (found.num_classes, found.counts) for stage, found in self._statistics.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch.load(state_dict["epoch"])
        self._so_far.load(state_dict["so_far"])
        self._statistics = {stage: SampleStatistics(*saved) for stage, saved in state_dict["statistics"].items()}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does not come where a run is resumed within an epoch."""
        self._forget("train")
        self._epoch = Coverage()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget("val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget("test")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _training_subjects(trainer) is None:
            return
        self._count(trainer, "train", batch)
        start, mask = batch["start"], batch["mask"]
        # On the device, for which a copy from here would have to wait.
        patch = torch.stack([torch.full_like(start[:, 0], side) for side in mask.shape[1:]], 1)
        self._places.append(torch.cat([batch["index"][:, None], start, patch, batch["size"]], 1))
        if len(self._places) == _UNREAD:
            self._add_up()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._count(trainer, "val", batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(trainer, "test", batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes after the validation of the epoch, where there is one."""
        subjects = _training_subjects(trainer)
        if subjects is None:
            return
        self._add_up()
        rows = {
            "coverage": self._epoch.share(len(subjects)),
            "coverage_so_far": self._so_far.share(len(subjects)),
            "subjects": float(self._epoch.subjects()),
        } | self._described(trainer, "train")
        distances = self._distances(trainer, "val")
        values = rows | {f"val_{name}": value for name, value in distances.items()}
        pl_module.log_dict({f"sampling/{name}": value for name, value in values.items()})
        self._write(trainer, {"train": rows, "val": self._described(trainer, "val") | distances})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        """Of an evaluation alone; what training has sampled is what the checkpoint, or this process, knows of it."""
        if _training_subjects(trainer) is None:
            return
        self._add_up()
        distances = self._distances(trainer, stage)
        task.log_dict({f"sampling/{stage}_{name}": value for name, value in distances.items()})
        self._write(trainer, {stage: self._described(trainer, stage) | distances})

    def _count(self, trainer: Trainer, stage: str, batch: Any) -> None:
        if _training_subjects(trainer) is None:
            return
        classes = trainer.datamodule.num_classes  # type: ignore[attr-defined]
        self._counted.setdefault(stage, SampleStatistics(classes)).update(batch["image"], batch["mask"])

    def _forget(self, stage: str) -> None:
        self._add_up()
        self._statistics.pop(stage, None)

    def _add_up(self) -> None:
        """Read what all processes have counted since the last time. Each must call this at the same time."""
        for stage, found in sorted(self._counted.items()):
            assert found.counts is not None
            counts = sum_over_processes(found.counts).cpu()
            before = self._statistics.get(stage)
            counts = counts if before is None or before.counts is None else counts + before.counts
            self._statistics[stage] = SampleStatistics(found.num_classes, counts)
        self._counted = {}
        if self._places:
            for row in self._gathered(torch.cat(self._places)).tolist():
                subject, *place = row
                axes = len(place) // 3
                for coverage in (self._epoch, self._so_far):
                    coverage.add(subject, place[:axes], place[axes : 2 * axes], place[2 * axes :])
        self._places = []

    def _gathered(self, places: Tensor) -> Tensor:
        """The rows of all processes, which have equally many."""
        processes, rank = self._process
        rows = places.new_zeros(processes, *places.shape)
        rows[rank] = places
        return sum_over_processes(rows).flatten(0, 1).cpu()

    def _described(self, trainer: Trainer, stage: str) -> dict[str, float]:
        """Shares of classes, and the grey values of each modality."""
        found = self._statistics.get(stage)
        if found is None:
            return {}
        frequencies = found.frequencies().tolist()
        names = class_names(trainer, len(frequencies))
        values = {f"frequency_{name}": value for name, value in zip(names, frequencies, strict=True)}
        columns = {"mean": found.mean(), "std": found.std()}
        columns |= {name: found.quantile(level) for name, level in QUANTILES.items()}
        for column, of_channels in columns.items():
            modalities = _modalities(trainer, len(of_channels))
            pairs = zip(modalities, of_channels.tolist(), strict=True)
            values |= {f"{column}_{modality}": value for modality, value in pairs}
        return values

    def _distances(self, trainer: Trainer, stage: str) -> dict[str, float]:
        """From the training patches to what was evaluated; none where one of them is not known."""
        if not {"train", stage} <= self._statistics.keys():
            return {}
        train, other = self._statistics["train"], self._statistics[stage]
        of_channels = grey_value_distance(train, other).tolist()
        pairs = zip(_modalities(trainer, len(of_channels)), of_channels, strict=True)
        values = {f"distance_{modality}": value for modality, value in pairs}
        return values | {"distance_classes": float(class_distance(train, other))}

    def _write(self, trainer: Trainer, columns: dict[str, dict[str, float]]) -> None:
        """Write `media/sampling.csv`; columns that are not given stay as they are in the file."""
        if not is_writing(trainer):
            return
        with dispensable(f"table {FILE!r}"):
            path = media_folder(trainer) / FILE
            write_whole(path, as_csv(_read(path) | columns).encode())


def as_csv(columns: dict[str, dict[str, float]]) -> str:
    """A row for each statistic, a column for each stage, values with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["statistic", *STAGES])
    for name in dict.fromkeys(name for stage in STAGES for name in columns.get(stage, {})):
        values = [columns.get(stage, {}).get(name) for stage in STAGES]
        writer.writerow([name, *("" if value is None else f"{value:.6g}" for value in values)])
    return text.getvalue()


def _read(path: Path) -> dict[str, dict[str, float]]:
    """The columns of such a file; none where there is no file."""
    if not path.is_file():
        return {}
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return {stage: {row["statistic"]: float(row[stage]) for row in rows if row[stage]} for stage in STAGES}


def _training_subjects(trainer: Trainer) -> Sequence[str] | None:
    """Names of the subjects that patches for training come from; None where data are no patches of subjects."""
    return getattr(trainer.datamodule, "training_subjects", None)  # type: ignore[attr-defined]


def _modalities(trainer: Trainer, count: int) -> list[str]:
    """What the channels are called: their numbers, where the data do not say."""
    names = getattr(trainer.datamodule, "modalities", None) or ()  # type: ignore[attr-defined]
    return list(names) if len(names) == count else [str(channel) for channel in range(count)]
