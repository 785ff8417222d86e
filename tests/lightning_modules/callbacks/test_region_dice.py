"""Dice in parts of the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_modules.callbacks.region_dice import RegionDice
from lightning_modules.metrics.confusion import PixelConfusion, dice
from tests.helpers.tiny_masks import IGNORED, DiscDataset, TinyMasks, tiny_segmentation
from tests.helpers.tiny_runs import tiny_trainer

LEFT, RIGHT, NEITHER = 0, 1, 255


class MarkedDiscs(DiscDataset):
    def __getitems__(self, keys: Any) -> dict[str, Any]:
        batch = super().__getitems__(keys)
        region = torch.full_like(batch["mask"], RIGHT)
        region[..., :5] = LEFT
        region[:, 4] = NEITHER
        return {**batch, "region": region}


class MarkedMasks(TinyMasks):
    """Every image has two regions; a row is in neither."""

    region_names = ("left", "right")

    def make_train_and_val(self) -> tuple[DiscDataset, DiscDataset]:
        train, _ = super().make_train_and_val()
        return train, MarkedDiscs(1000, self.evaluated, True, **self.options)

    def make_test(self) -> DiscDataset:
        return MarkedDiscs(2000, self.evaluated, True, **self.options)


class Kept(Callback):
    """Keeps what a test predicts."""

    def __init__(self) -> None:
        self.pixels: list[tuple[torch.Tensor, ...]] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.pixels.append((outputs["prediction"].long(), outputs["mask"], batch["region"]))


def test_dice_of_each_region(tmp_path):
    kept, data = Kept(), MarkedMasks(num_classes=3, ignored=True)
    trainer = tiny_trainer(tmp_path, [RegionDice(), kept], max_epochs=1)
    task = tiny_segmentation(num_classes=3)
    trainer.fit(task, datamodule=data)
    assert {"val/dice_disc_left", "val/dice_coin_right"} <= set(trainer.callback_metrics)
    (result,) = trainer.test(task, datamodule=data, verbose=False)
    prediction, mask, region = (torch.cat(parts) for parts in zip(*kept.pixels, strict=True))
    for number, name in ((LEFT, "left"), (RIGHT, "right")):
        confusion = PixelConfusion(3, IGNORED)
        confusion.update(prediction[region == number], mask[region == number])
        for kind, value in zip(("background", "disc", "coin"), dice(confusion.compute()), strict=True):
            logged = result.get(f"test/dice_{kind}_{name}")
            assert logged is None if kind == "background" else logged == pytest.approx(float(value))


def test_data_without_regions(tmp_path):
    trainer = tiny_trainer(tmp_path, [RegionDice()])
    with pytest.raises(ValueError, match="which TinyMasks does not: leave it out"):
        trainer.test(tiny_segmentation(), datamodule=TinyMasks(), verbose=False)
