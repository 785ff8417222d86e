"""Image classification."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_modules.base import BaseTask
from lightning_modules.labels import class_names
from lightning_modules.metrics.confusion import accuracy, recall
from lightning_modules.processes import mean_over_processes

Batch = dict[str, Any]

MAX_LISTED = 60
"""Up to this many classes, the accuracy of each is a metric of the test."""


class ClassificationTask(BaseTask):
    """Cross-entropy over single labels; see `BaseTask` for the arguments.

    Logs `<stage>/loss` and `<stage>/accuracy`, `<stage>/accuracy_top5` where there are more than five classes, and
    `test/accuracy_<class>` where there are no more than `MAX_LISTED`; `media/confusion_test.csv` holds those of any
    number. Accuracies are fractions of all samples; those of validation and test are equal for any number of processes.

    Attributes:
        confusion: Stage ("val", "test") to the confusion matrix of its last epoch, int64 (C, C), rows are the truth.
    """

    monitor = "val/accuracy"
    mode = "max"
    head = "classify"

    def configure_metrics(self) -> None:
        self.val_metrics = _metrics(self.hparams["num_classes"])
        self.test_metrics = _metrics(self.hparams["num_classes"])
        self.confusion: dict[str, Tensor] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch["image"])
        loss = F.cross_entropy(logits, batch["label"])
        self.watch(loss)
        self.log("train/loss", mean_over_processes(loss.detach()), prog_bar=True)
        correct = (logits.detach().argmax(1) == batch["label"]).float().mean()
        self.log("train/accuracy", correct, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(logits))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"file": batch["file"], "probabilities": self(batch["image"]).float().softmax(1)}

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        logits = self(batch["image"]).float()
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        metrics = getattr(self, f"{stage}_metrics")
        metrics["loss"].update(losses)
        metrics["confusion"].update(logits, batch["label"])
        if "accuracy_top5" in metrics:
            metrics["accuracy_top5"].update(logits, batch["label"])
        return {"probabilities": logits.softmax(1), "label": batch["label"], "index": batch["index"]}

    def _report(self, stage: str) -> None:
        metrics = getattr(self, f"{stage}_metrics")
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        confusion = self.confusion[stage] = values.pop("confusion").cpu()
        values["accuracy"] = accuracy(confusion)
        if stage == "test" and len(confusion) <= MAX_LISTED:
            of_classes = zip(class_names(self.trainer, len(confusion)), recall(confusion), strict=True)
            values |= {f"accuracy_{name}": value for name, value in of_classes if not value.isnan()}
        # Every process has computed the same values, so nothing is left to reduce.
        self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()})


def _metrics(num_classes: int) -> nn.ModuleDict:
    metrics = nn.ModuleDict({"loss": MeanMetric(), "confusion": MulticlassConfusionMatrix(num_classes)})
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return metrics
