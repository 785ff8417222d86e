"""Images beside their true and their predicted masks, in the run folder and in the loggers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_modules.callbacks.mask_writer import MaskWriter
from lightning_modules.callbacks.segmentation_overlays import SegmentationOverlays
from tests.helpers.tiny_masks import IGNORED, TinyMasks, tiny_segmentation
from tests.helpers.tiny_runs import tiny_trainer
from tests.helpers.wandb_files import isolate_wandb, offline_runs

ROOT = Path(__file__).parents[3]
NAMES = ("background", "nucleus")


@pytest.fixture
def drawn(monkeypatch):
    """What would be drawn: a list of (name of the picture, images, names of classes, ignore_index)."""
    module = "lightning_modules.callbacks.first_images"
    monkeypatch.setattr(f"{module}.draw_overlays", lambda images, names, ignored, titles: (images, names, ignored))
    calls = []
    monkeypatch.setattr(f"{module}.save_picture", lambda _, name, picture: calls.append((name, *picture)))
    return calls


def stream(callback, images, masks, predictions, files=None):
    """Hand a test over, an image a batch; the drawn images come back through `drawn`."""
    datamodule = SimpleNamespace(denormalise=lambda batch: batch, class_names=NAMES)
    trainer = SimpleNamespace(
        datamodule=datamodule, is_global_zero=True, fast_dev_run=False, sanity_checking=False, loggers=[]
    )
    task = SimpleNamespace(hparams={"ignore_index": IGNORED, "num_classes": 2})
    callback.on_test_epoch_start(trainer, task)
    for index, (image, mask, prediction) in enumerate(zip(images, masks, predictions, strict=True)):
        outputs = {"prediction": prediction[None], "mask": mask[None], "index": torch.tensor([index])}
        batch = {"image": image[None]} | ({"file": [files[index]]} if files else {})
        callback.on_test_batch_end(trainer, task, outputs, batch, index)
    callback.on_test_end(trainer, task)


def random_sample(height, width, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(channels, height, width, generator=generator)
    mask, prediction = torch.randint(0, 2, (2, height, width), generator=generator)
    return image, mask, prediction.byte()


def test_the_first_images_as_they_are(drawn):
    samples = [random_sample(300, 320 + i, seed=i) for i in range(4)]
    samples[0][1][:30] = IGNORED
    stream(SegmentationOverlays(count=2), *zip(*samples, strict=True), files=["a.png", "b/c.tif", "d", "e"])
    ((name, images, classes, ignored),) = drawn
    assert (name, classes, ignored) == ("overlays_test", list(NAMES), IGNORED)
    assert [(image.index, image.name) for image in images] == [(0, "a.png"), (1, "b/c.tif")]
    for shown, (image, mask, prediction) in zip(images, samples, strict=False):
        np.testing.assert_array_equal(shown.image, (255 * image.permute(1, 2, 0)).round().byte().numpy())
        np.testing.assert_array_equal(shown.truth, mask.numpy())
        np.testing.assert_array_equal(shown.prediction, prediction.numpy())
        known = mask != IGNORED
        assert shown.accuracy == pytest.approx((mask == prediction)[known].float().mean().item())


@pytest.mark.parametrize("channels", [1, 4])
def test_images_that_are_not_red_green_and_blue_are_shown_in_grey(drawn, channels):
    image, mask, prediction = random_sample(300, 300, channels)
    stream(SegmentationOverlays(), [image], [mask], [prediction])
    (shown,) = drawn[0][1]
    assert shown.name == "#0"
    expected = (255 * image[0]).round().byte().numpy()
    np.testing.assert_array_equal(shown.image, expected[..., None].repeat(3, 2))


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((400, 1000), {"max_side": 500}, (200, 500)),
        ((400, 1000), {"max_side": 500, "crop": 300}, (300, 300)),
        ((200, 1000), {"max_side": 150, "crop": 300}, (100, 150)),
        ((16, 24), {}, (160, 240)),
        ((16, 24), {"max_side": 50}, (32, 48)),
        ((130, 250), {}, (130, 250)),
        ((2, 2000), {}, (1, 512)),
    ],
)
def test_sizes(drawn, size, options, expected):
    image, mask, prediction = random_sample(*size)
    mask[0] = IGNORED
    stream(SegmentationOverlays(**options), [image], [mask], [prediction])
    (shown,) = drawn[0][1]
    assert shown.image.shape == (*expected, 3)
    assert shown.truth.shape == shown.prediction.shape == expected
    assert set(np.unique(shown.truth)) <= {0, 1, IGNORED}
    assert shown.accuracy == pytest.approx((mask == prediction)[1:].float().mean().item())


def test_a_crop_is_the_centre(drawn):
    image, mask, prediction = random_sample(500, 400)
    stream(SegmentationOverlays(crop=300), [image], [mask], [prediction])
    (shown,) = drawn[0][1]
    np.testing.assert_array_equal(shown.truth, mask[100:400, 50:350].numpy())


def test_a_fit_draws_every_so_many_epochs_and_its_last_validation(drawn, tmp_path):
    task, data = tiny_segmentation(), TinyMasks(train=4)
    at = []
    callback = SegmentationOverlays(every_n_epochs=2)
    trainer = tiny_trainer(tmp_path, [callback], max_epochs=5)
    drawn_at = callback._save
    callback._save = lambda trainer, *rest: (at.append(trainer.current_epoch), drawn_at(trainer, *rest))
    trainer.fit(task, datamodule=data)
    assert at == [1, 3, 5]  # Lightning counts the last epoch as done when a fit ends
    trainer.validate(task, datamodule=data, verbose=False)
    trainer.test(task, datamodule=data, verbose=False)
    assert [name for name, *_ in drawn] == ["overlays_val"] * 4 + ["overlays_test"]
    assert [image.index for image in drawn[0][1]] == [1000, 1001, 1002, 1003]
    assert callback.images == []


@pytest.mark.parametrize(("every", "times"), [(None, 1), (2, 1), (1, 2)])
def test_no_picture_is_drawn_twice(drawn, tmp_path, every, times):
    trainer = tiny_trainer(tmp_path, [SegmentationOverlays(every_n_epochs=every)])  # two epochs
    trainer.fit(tiny_segmentation(), datamodule=TinyMasks(train=4))
    assert len(drawn) == times


def test_data_that_cannot_be_denormalised_cost_the_picture_alone(drawn, tmp_path):
    data = TinyMasks()
    data.denormalise = None
    trainer = tiny_trainer(tmp_path, [SegmentationOverlays()])
    with pytest.warns(UserWarning, match="a picture of segmented images could not be made"):
        trainer.test(tiny_segmentation(), datamodule=data, verbose=False)
    assert trainer.state.finished
    assert not drawn


@pytest.mark.parametrize("option", ["count", "every_n_epochs", "max_side", "crop"])
def test_impossible_options(option):
    with pytest.raises(ValueError, match=f"{option} must be 1 or more, got 0"):
        SegmentationOverlays(**{option: 0})


@pytest.mark.parametrize("num_classes", [2, 3])
def test_wandb_gets_the_picture_and_the_masks(tmp_path, monkeypatch, num_classes):
    import wandb

    isolate_wandb(monkeypatch, tmp_path / "kept")
    monkeypatch.chdir(tmp_path)
    data = TinyMasks(num_classes=num_classes, train=4, ignored=True)
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer = tiny_trainer(tmp_path, [SegmentationOverlays(count=2, every_n_epochs=1)], logger=logger)
    trainer.fit(tiny_segmentation(num_classes=num_classes), datamodule=data)
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    for key, count in {"media/overlays_val": 1, "media/masks_val": 2}.items():
        assert run.points(f"{key}.count") == [(0, count), (1, count)]
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))
    labels = run.config["_wandb"]["mask/class_labels"]["media/masks_val_wandb_delimeter_ground_truth"]["value"]
    assert labels == {str(number): name for number, name in enumerate([*data.class_names, "ignored"])}
    data.setup("validate")
    truth = data.val_dataset.__getitems__([0])["mask"][0].numpy()
    truth[truth == IGNORED] = num_classes
    shown = [np.asarray(Image.open(path))[::16, ::16] for path in tmp_path.rglob("*.mask.png")]
    assert any(np.array_equal(mask, truth) for mask in shown)


def evaluate(folder: Path, **options) -> None:
    """Test and predict with the initial weights; seven images, of which processes have different numbers."""
    trainer = tiny_trainer(folder, [SegmentationOverlays(count=3), MaskWriter()], **options)
    task, data = tiny_segmentation(instances="watershed"), TinyMasks(evaluated=7, batch_size=2, objects=True)
    trainer.test(task, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        measured = {name: trainer.callback_metrics[f"test/{name}"].item() for name in ("aji", "pq", "sq", "rq", "ap")}
        (folder / "measured.json").write_text(json.dumps(measured))
    trainer.predict(task, datamodule=data, return_predictions=False)


def test_two_processes_write_what_one_writes(tmp_path):
    evaluate(tmp_path / "one")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    masks = {f"predictions/images/{2000 + i}.png" for i in range(7)}
    assert set(one) == masks | {"media/overlays_test.png", "measured.json"}
    assert two == one


if __name__ == "__main__":
    # Forked, which spares an import of everything, but not from pytest, whose threads would not survive it.
    evaluate(Path(sys.argv[1]), devices=2, strategy="ddp_fork")
