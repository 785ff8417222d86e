"""The test images that a classifier gets most confidently wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.labels import class_names
from lightning_modules.pictures.saving import drawing, is_writing, save_picture
from lightning_modules.processes import gather_on_first

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Mistake:
    """One image that was taken for another class; `image` (C, H, W) is as the network saw it.

    `doubt` is 1 minus the probability of the prediction.
    """

    doubt: float
    index: int
    label: int
    prediction: int
    image: Tensor


class WorstMistakes(Callback):
    """Draws `worst_mistakes.png`: the mistakes of a test with the highest probability for the wrong class.

    Keeps no more than `count` images, on the device. They are ranked by the sum of the other classes' probabilities,
    because the highest ones all round to 1 in float32. Mistakes of equal rank come in the order of the data, so that
    any number of processes draws the same picture. Reads "probabilities", "label" and "index" from what `test_step`
    returns, and `denormalise` from the data module.

    Args:
        count: How many mistakes to draw.
    """

    def __init__(self, count: int = 24) -> None:
        if count < 1:
            raise ValueError(f"count must be 1 or more, got {count}")
        self.count = count
        self.worst: dict[str, Tensor] = {}
        self.num_classes = 0

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.worst = {}

    @torch.no_grad()
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        probabilities = outputs["probabilities"]
        self.num_classes = probabilities.shape[1]
        prediction = probabilities.argmax(1)
        wrong = prediction != outputs["label"]
        doubt = probabilities.scatter(1, prediction[:, None], 0.0).sum(1)
        # Right answers sink to the end. Dropping them would mean to wait for the device, for their number.
        candidates = {
            "doubt": doubt.where(wrong, torch.inf),
            "index": outputs["index"],
            "label": outputs["label"],
            "prediction": prediction,
            "image": batch["image"],
        }
        candidates = self._pick(candidates)
        if self.worst:
            candidates = self._pick({k: torch.cat([self.worst[k], v]) for k, v in candidates.items()})
        self.worst = candidates

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        held = {name: value.cpu() for name, value in self.worst.items()}
        self.worst = {}
        mistakes = [mistake for part in gather_on_first(_as_mistakes(held)) for mistake in part]
        mistakes.sort(key=lambda mistake: (mistake.doubt, mistake.index))
        if not mistakes or not is_writing(trainer):
            return
        with drawing("worst_mistakes"):
            mistakes = mistakes[: self.count]
            images = trainer.datamodule.denormalise(torch.stack([m.image for m in mistakes]))  # type: ignore[attr-defined]
            names = class_names(trainer, self.num_classes)
            save_picture(trainer, "worst_mistakes", draw_mistakes(images, mistakes, names))

    def _pick(self, candidates: dict[str, Tensor]) -> dict[str, Tensor]:
        order = candidates["doubt"].sort(stable=True).indices[: self.count]
        return {name: value[order] for name, value in candidates.items()}


def _as_mistakes(held: dict[str, Tensor]) -> list[Mistake]:
    if not held:
        return []
    numbers = {name: held[name].tolist() for name in ("doubt", "index", "label", "prediction")}
    return [
        # A clone, for a row of a batch would drag the whole batch along when it is pickled.
        Mistake(**{name: values[i] for name, values in numbers.items()}, image=held["image"][i].clone())
        for i in range(len(held["image"]))
        if numbers["doubt"][i] < math.inf
    ]


def draw_mistakes(images: Tensor, mistakes: Sequence[Mistake], names: Sequence[str], columns: int = 6) -> Figure:
    """A grid of `images` (N, C, H, W) in [0, 1], each with its true and its predicted class."""
    from matplotlib.figure import Figure

    columns = min(columns, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = Figure(figsize=(max(1.25 * columns, 4.8), 0.55 + 1.6 * rows))
    title = "Worst mistakes: true class → prediction, probability, sample"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    pixels = images.permute(0, 2, 3, 1).clamp(0, 1).float().numpy()
    for axes, image, mistake in zip(grid, pixels, mistakes, strict=False):
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        true, predicted = _shortened(names[mistake.label]), _shortened(names[mistake.prediction])
        axes.set_title(f"{true}\n→ {predicted}\n{_probability(mistake.doubt)}, #{mistake.index}", fontsize=6.5)
    return figure


def _probability(doubt: float) -> str:
    """1 - `doubt` in percent, or written out where that would read 100.00 %."""
    percent = f"{100 * (1 - doubt):.2f}"
    return f"1 − {doubt:.1e}" if percent == "100.00" else f"{percent} %"


def _shortened(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
