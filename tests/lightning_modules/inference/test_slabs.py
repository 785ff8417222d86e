"""What is made of logits slab by slab is what is made of them at once, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_modules.inference import Inference
from lightning_modules.inference import slabs as slabs_module
from lightning_modules.inference.slabs import likeliest, loss_in_slabs, slabs, softmax_
from lightning_modules.losses.segmentation import SEGMENTATION_LOSSES, segmentation_loss
from models.memory import PeakMemory
from tests.helpers.tiny_masks import tiny_segmentation

IGNORED = 255
CLASSES = 5
WEIGHTS = [0.5, 1.0, 2.0, 3.0, 4.0]
REGION_LOSSES = ("dice", "focal_tversky", "generalized_dice")


@pytest.fixture
def thin(monkeypatch) -> None:
    """Slabs of two layers of the volume below."""
    monkeypatch.setattr(slabs_module, "SLAB_VALUES", 2 * CLASSES * 6 * 7 + 1)


def volume() -> tuple[Tensor, Tensor]:
    """Logits and a mask, partly ignored, without the last class."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, CLASSES, 9, 6, 7, generator=generator)
    mask = torch.randint(0, CLASSES - 1, (1, 9, 6, 7), generator=generator)
    mask[:, 3:6, 2] = IGNORED
    mask[:, 6:8] = IGNORED  # a whole slab
    return logits, mask


def test_slabs_are_views_across_the_first_axis(thin):
    logits, mask = volume()
    parts = slabs(logits, mask)
    assert [part.shape[2] for part, _ in parts] == [true.shape[1] for _, true in parts] == [2, 2, 2, 2, 1]
    assert torch.equal(torch.cat([part for part, _ in parts], 2), logits)
    assert parts[0][0].data_ptr() == logits.data_ptr()


def test_most_images_are_one_slab():
    assert len(slabs(torch.empty(1, 21, 512, 512, device="meta"))) == 1


def test_classes_and_probabilities(thin):
    logits, _ = volume()
    expected = logits.softmax(1)
    assert likeliest(logits).dtype == torch.uint8
    assert torch.equal(likeliest(logits).long(), logits.argmax(1))
    probabilities = softmax_(logits)
    assert probabilities is logits
    torch.testing.assert_close(probabilities, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ignored", [IGNORED, 0, 2])  # the last two are classes as well
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in SEGMENTATION_LOSSES),
        ("cross_entropy", {"class_weights": WEIGHTS, "label_smoothing": 0.1}),
        ("focal", {"alpha": WEIGHTS}),
        *((name, {"include_background": False}) for name in REGION_LOSSES),
    ],
)
def test_every_loss_is_that_of_the_whole(thin, name, options, ignored):
    logits, mask = volume()
    mask[mask == IGNORED] = ignored
    loss = segmentation_loss({name: 1.0, "cross_entropy": 0.5}, {name: options}, ignored)
    assert loss(logits, mask) > 0
    torch.testing.assert_close(loss_in_slabs(loss, logits, mask), loss(logits, mask), rtol=1e-6, atol=0)


def test_nothing_but_ignored_voxels(thin):
    logits, mask = volume()
    loss = segmentation_loss(dict.fromkeys(SEGMENTATION_LOSSES, 1.0), None, IGNORED)
    assert loss_in_slabs(loss, logits, torch.full_like(mask, IGNORED)) == 0


def test_evaluation_and_prediction_hold_one_copy_of_the_logits(monkeypatch):
    network = {"dimensions": 3, "widths": [2, 2], "kernel_size": 3, "norm": "none"}
    task = tiny_segmentation(
        model_options=network,
        in_channels=1,
        num_classes=6,
        loss={"cross_entropy": 1, "dice": 1},
        loss_options={"dice": {"per_image": True}},
        inference=Inference(tile_size=8, overlap=0, align=2, batch_size=1),
    ).eval()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(1, 1, 24, 24, 24, generator=generator),
        "mask": torch.randint(0, 6, (1, 24, 24, 24), generator=generator),
        "index": torch.tensor([0]),
        "file": ["a"],
    }
    with torch.no_grad():
        logits = task._infer(batch["image"])
        loss = task.loss(logits, batch["mask"])
        hits = (logits.argmax(1) == batch["mask"]).sum()
        monkeypatch.setattr(slabs_module, "SLAB_VALUES", 6 * 24 * 24)
        with PeakMemory() as evaluation:
            task._evaluate(batch, "val")
        with PeakMemory() as prediction:
            task.predict_step(batch, 0)
    one = 6 * 24**3 * 4
    assert evaluation.peak < 1.6 * one
    assert prediction.peak < 1.3 * one
    torch.testing.assert_close(task.val_metrics["loss"].compute(), loss, rtol=1e-6, atol=0)
    confusion = task.val_metrics["confusion"].compute()
    assert (confusion.sum(), confusion.trace()) == (24**3, hits)
