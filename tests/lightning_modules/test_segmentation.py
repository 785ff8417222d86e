"""The segmentation task, trained by a plain Trainer on discs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.callbacks.exact_resume import ExactResume
from lightning_modules.callbacks.subject_table import SubjectTable
from lightning_modules.cli import main
from lightning_modules.inference import Inference
from lightning_modules.losses.segmentation import dice
from lightning_modules.metrics.confusion import segmentation_measures
from lightning_modules.metrics.instances import InstanceMetrics
from lightning_modules.metrics.subjects import SubjectMeasures
from lightning_modules.segmentation import SegmentationTask
from tests.helpers.patches import TinyPatches
from tests.helpers.tiny_masks import IGNORED, TinyMasks, tiny_segmentation
from tests.helpers.tiny_runs import SaveAfter, tiny_trainer

MEANS = {"loss", "miou", "dice", "pixel_accuracy", "class_accuracy"}
OBJECTS = {"aji", "pq", "sq", "rq", "ap", "ap_50", "ap_75"}


VALID_MARGIN = 4  # of `volume_task`


def volume_task(padding: str = "same", **options) -> SegmentationTask:
    network = {"dimensions": 3, "widths": [2, 4], "kernel_size": 3, "convs_per_level": 1, "norm": "none"}
    return tiny_segmentation(model_options={**network, "padding": padding}, in_channels=2, num_classes=3, **options)


def names(stage: str, *values: str) -> set[str]:
    return {f"{stage}/{value}" for value in values}


def result_of(folder, task, data) -> dict[str, float]:
    (result,) = tiny_trainer(folder).test(task, datamodule=data, verbose=False)
    return result


def evaluated(task, data) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits and masks of the test images, one after the other."""
    data.setup("test")
    dataset = data.test_dataset
    samples = [data.on_after_batch_transfer(dataset.__getitems__([i]), 0) for i in range(len(dataset))]
    with torch.no_grad():
        return [task.eval()(sample["image"]) for sample in samples], [sample["mask"] for sample in samples]


def test_learns_and_reports(tmp_path):
    task, data = tiny_segmentation(), TinyMasks(ignored=True)
    trainer = tiny_trainer(tmp_path, max_epochs=15)
    trainer.fit(task, datamodule=data)
    assert trainer.callback_metrics["val/miou"] > 0.8
    assert trainer.callback_metrics["train/pixel_accuracy"] > 0.9
    of_classes = ("iou_background", "iou_disc", "dice_background", "dice_disc")
    assert names("val", *MEANS, *of_classes) <= set(trainer.callback_metrics)
    (result,) = trainer.test(task, datamodule=data, verbose=False)
    assert set(result) == names("test", *MEANS, *of_classes)
    confusion = task.confusion["test"]
    assert confusion.sum() == 5 * 14 * 16  # two rows of each image are ignored
    expected, _ = segmentation_measures(confusion, IGNORED)
    assert result["test/miou"] == pytest.approx(expected["miou"].item())
    assert result["test/dice"] == pytest.approx((result["test/dice_background"] + result["test/dice_disc"]) / 2)


def test_confusion_is_that_of_the_predictions(tmp_path):
    task, data = tiny_segmentation(num_classes=3), TinyMasks(num_classes=3, native_size=True, ignored=True)
    result_of(tmp_path, task, data)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for logits, mask in zip(*evaluated(task, data), strict=True):
        for truth, prediction in zip(mask.flatten(), logits.argmax(1).flatten(), strict=True):
            if truth != IGNORED:
                expected[truth, prediction] += 1
    assert torch.equal(task.confusion["test"], expected)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_loss_is_the_mean_over_pixels(tmp_path, batch_size):
    task, data = tiny_segmentation(), TinyMasks(batch_size=batch_size, ignored=True)
    logits, masks = evaluated(task, data)
    expected = F.cross_entropy(torch.cat(logits), torch.cat(masks), ignore_index=IGNORED)
    assert result_of(tmp_path, task, data)["test/loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_loss_of_images_of_all_sizes(tmp_path):
    task = tiny_segmentation(loss={"dice": 1.0}, loss_options={"dice": {"squared": True}})
    data = TinyMasks(native_size=True)
    pairs = list(zip(*evaluated(task, data), strict=True))
    assert len({mask.shape for _, mask in pairs}) == 3
    total = sum(dice(logits, mask, IGNORED, squared=True).item() * mask.numel() for logits, mask in pairs)
    expected = total / sum(mask.numel() for _, mask in pairs)
    assert result_of(tmp_path, task, data)["test/loss"] == pytest.approx(expected, rel=1e-6)


def test_binary_is_two_classes_through_one_logit(tmp_path):
    seen = []

    def inference(network, images):
        seen.append(network(images).shape[1])
        return network(images)

    task, data = tiny_segmentation(binary=True, inference=inference), TinyMasks()
    logits, masks = evaluated(task, data)
    x = task.network(data.on_after_batch_transfer(data.test_dataset.__getitems__([0]), 0)["image"])
    assert x.shape == (1, 1, 16, 16)
    torch.testing.assert_close(logits[0].softmax(1)[:, 1], x[:, 0].sigmoid())
    result = result_of(tmp_path, task, data)
    x, truth = torch.cat(logits)[:, 1], torch.cat(masks)
    assert result["test/loss"] == pytest.approx(F.binary_cross_entropy_with_logits(x, truth.float()).item(), rel=1e-5)
    assert result["test/pixel_accuracy"] == pytest.approx(((x > 0) == truth).float().mean().item())
    assert set(seen) == {2}
    tiny_trainer(tmp_path, max_epochs=1).fit(tiny_segmentation(binary=True), datamodule=data)


def test_an_image_that_the_network_refuses_is_named(tmp_path):
    tiny = {"filters": 4, "block_depths": [1, 1, 1, 1], "block_widths": [8, 8, 8, 8]}
    task = SegmentationTask("sunet_64", model_options=tiny, num_classes=2)
    with pytest.raises(ValueError, match=r"images/2000\.png, .*: this network halves .* got 16x16"):
        tiny_trainer(tmp_path).test(task, datamodule=TinyMasks(), verbose=False)
    with pytest.raises(ValueError, match=r"^images/2000\.png: this network halves .* 29 pixels .* got 24x32"):
        tiny_trainer(tmp_path).predict(task, datamodule=TinyMasks(native_size=True))


def test_inference_serves_evaluation_and_not_training(tmp_path):
    calls = []

    def inference(network, images):
        """Everything is a disc."""
        calls.append(network(images).dtype)
        return torch.stack([torch.zeros_like(images[:, 0]), torch.ones_like(images[:, 0])], 1).half()

    task, data = tiny_segmentation(inference=inference), TinyMasks(native_size=True, train=4)
    trainer = tiny_trainer(tmp_path, max_epochs=1, precision="bf16-mixed", num_sanity_val_steps=0)
    trainer.fit(task, datamodule=data)
    assert len(calls) == 5
    trainer.test(task, datamodule=data, verbose=False)
    assert task.confusion["test"][:, 0].sum() == 0
    batches = trainer.predict(task, datamodule=data)
    assert [batch["file"] for batch in batches] == [[f"images/{index}.png"] for index in range(2000, 2005)]
    assert [batch["prediction"].shape for batch in batches][:2] == [(1, 24, 32), (1, 16, 16)]
    assert all(batch["prediction"].dtype == torch.uint8 and batch["prediction"].min() == 1 for batch in batches)
    assert set(calls) == {torch.bfloat16}
    assert torch.float32 == task._infer(torch.zeros(1, 3, 8, 8)).dtype


def test_steps_return_predictions(tmp_path):
    task = tiny_segmentation()
    batch = {**TinyMasks().make_test().__getitems__([0, 1, 2]), "image": torch.zeros(3, 3, 16, 16)}
    outputs = task.eval().validation_step({**batch, "mask": batch["mask"].long()}, 0)
    assert set(outputs) == {"prediction", "mask", "index"}
    assert outputs["prediction"].shape == outputs["mask"].shape == (3, 16, 16)
    assert outputs["index"].tolist() == [2000, 2001, 2002]


@pytest.mark.parametrize("objects", [True, False])
def test_objects(tmp_path, objects):
    task = tiny_segmentation(instances="watershed", inference=truth_of_discs)
    result = result_of(tmp_path, task, TinyMasks(objects=objects, native_size=True))
    found = OBJECTS if objects else {f"{name}_components" for name in OBJECTS}
    assert names("test", *found) == {name for name in result if "iou" not in name and "dice" not in name} - names(
        "test", *MEANS
    )


def truth_of_discs(network, images):
    """The second class where the image is bright: the discs, that is."""
    return torch.stack([torch.zeros_like(images[:, 0]), images[:, 0]], 1)


def test_objects_of_perfect_predictions(tmp_path):
    """Components found are the components of the mask; annotated discs that touch are not."""
    task = tiny_segmentation(instances="components", inference=truth_of_discs)
    result = result_of(tmp_path, task, TinyMasks(evaluated=9))
    assert result["test/miou"] == 1
    assert {result[f"test/{name}_components"] for name in OBJECTS} == {1}
    result = result_of(tmp_path, task, TinyMasks(evaluated=9, objects=True))
    assert 0 < result["test/aji"] < 1


@pytest.mark.parametrize("method", ["components", "watershed"])
def test_objects_are_made_as_asked_and_ignored_pixels_are_passed_on(tmp_path, monkeypatch, method):
    """Of the foreground and its probability; the metric gets what is ignored."""
    asked, measured = [], []

    def label(foreground, probability=None, method="components", min_size=0):
        asked.append((method, min_size, None if probability is None else float(probability.mean())))
        return foreground.astype("int32")

    monkeypatch.setattr("lightning_modules.segmentation.label_objects", label)
    update = InstanceMetrics.update
    monkeypatch.setattr(
        InstanceMetrics,
        "update",
        lambda self, found, truth, ignored: measured.append(ignored.sum()) or update(self, found, truth, ignored),
    )
    task = tiny_segmentation(instances=method, min_object_size=3, inference=truth_of_discs)
    result_of(tmp_path, task, TinyMasks(evaluated=1, ignored=True))
    truth, found = asked
    assert truth == ("components", 0, None)
    assert found[:2] == (method, 3)
    assert 0 < found[2] < 1
    assert measured == [2 * 16]


def test_the_training_loss_is_logged_as_it_is(tmp_path):
    seen = []

    class Watching(SegmentationTask):
        def watch(self, loss, step=None):
            seen.append(float(loss.detach()))

    task = Watching("unet", {"widths": [4, 8], "kernel_size": 3})
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, datamodule=TinyMasks())
    assert float(trainer.logged_metrics["train/loss"]) == pytest.approx(seen[-1])
    assert seen[-1] > 0


@pytest.mark.parametrize("ignored", [False, True])
def test_train_miou_is_that_of_the_predictions_of_an_epoch(tmp_path, ignored):
    confusion = torch.zeros(3, 3, dtype=torch.int64)

    class Counting(SegmentationTask):
        def forward(self, images):
            logits = super().forward(images)
            if self.training and self.current_epoch == 1:
                self.seen = logits.detach().argmax(1)
            return logits

        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)
            if self.current_epoch == 1:
                known = batch["mask"] != IGNORED
                confusion.index_put_((batch["mask"][known], self.seen[known]), torch.tensor(1), accumulate=True)

    task = Counting("unet", {"widths": [4, 8], "kernel_size": 3}, num_classes=3)
    trainer = tiny_trainer(tmp_path)
    trainer.fit(task, datamodule=TinyMasks(num_classes=3, ignored=ignored))
    assert confusion.sum() == 12 * (14 if ignored else 16) * 16
    right = confusion.diagonal()
    expected = (right / (confusion.sum(0) + confusion.sum(1) - right)).nanmean().item()
    assert trainer.callback_metrics["train/miou"].item() == pytest.approx(expected)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_train_miou_of_a_resumed_epoch_is_that_of_the_whole_one(tmp_path, step):
    """Saved within an epoch of three steps, and at its end."""
    found = []
    for callbacks, start in (([SaveAfter(step, tmp_path / "a.ckpt")], None), ([], tmp_path / "a.ckpt")):
        trainer = tiny_trainer(tmp_path, [ExactResume(), *callbacks])
        trainer.fit(tiny_segmentation(num_classes=3), datamodule=TinyMasks(num_classes=3), ckpt_path=start)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert trainer.global_step == 6
    assert found[0] == found[1]
    assert 0 < found[0]["train/miou"] < 1


def test_tiles_off_the_networks_grid_are_refused():
    assert tiny_segmentation(inference=Inference(tile_size=16, align=2)).inference.tiles.align == 2
    with pytest.raises(ValueError, match=r"inference\.align is 1, .* a multiple of 2: .* Set align: 2"):
        tiny_segmentation(inference=Inference(tile_size=16))
    with pytest.raises(ValueError, match="Set align: 4"):
        tiny_segmentation(inference=Inference(tile_size=16, align=2), conv="octave")


@pytest.mark.parametrize(
    ("padding", "options", "message"),
    [
        ("valid", {"tile_size": 7}, "no tile of tile_size 7 along an axis: the nearest are 6 or 8"),
        ("same", {"tile_size": [8, 8]}, "tile_size has 2 numbers and the images have 3 axes"),
        ("mirror", {"tile_size": [8, 8, 4]}, r"inference\.tile_size 8x8x4: this UNet .* mirrors 4 voxels"),
    ],
)
def test_tiles_that_the_network_cannot_give_are_refused(padding, options, message):
    with pytest.raises(ValueError, match=message):
        volume_task(padding, inference=Inference(align=2, **options))


def test_tiles_without_statistics_are_refused():
    network = {"dimensions": 3, "widths": [2, 4], "kernel_size": 3, "norm": "instance"}
    with pytest.raises(ValueError, match=r"inference\.tile_size 2x2x2: .* a side of 5 or more, since instance norm"):
        tiny_segmentation(model_options=network, inference=Inference(tile_size=2, overlap=0, align=2))


def test_flips_of_the_depth_of_images_are_refused():
    with pytest.raises(ValueError, match="'depth' is for volumes, and this network takes images"):
        tiny_segmentation(inference=Inference(flips=["horizontal", "horizontal+depth"]))
    assert volume_task(inference=Inference(flips=["depth"])).inference.tiles is None


def test_slices_are_patches_of_any_depth():
    network = {"widths": [2, 4], "kernel_size": 3, "convs_per_level": 1, "norm": "none", "padding": "valid"}
    options = {"network": "unet", "network_options": network}
    task = SegmentationTask("slice_wise", options, in_channels=2, num_classes=3)
    task.check_data(TinyPatches(patch_size=[6, 8, 5], context=4))
    with pytest.raises(ValueError, match=r"data\.patch_size 6x7x5: .* gives no output of 7 a side"):
        task.check_data(TinyPatches(patch_size=[6, 7, 5], context=4))
    with pytest.raises(ValueError, match=r"data\.patch_size has 2 axes, and model 'slice_wise' takes images of 3"):
        task.check_data(TinyPatches(sizes=[(12, 10)], context=4))


def test_many_classes(tmp_path):
    data = TinyMasks(num_classes=7, train=4)
    trainer, task = tiny_trainer(tmp_path, max_epochs=1), tiny_segmentation(num_classes=7)
    trainer.fit(task, datamodule=data)
    assert {name for name in trainer.callback_metrics if name.startswith("val/")} == names("val", *MEANS)
    (result,) = trainer.test(task, datamodule=data, verbose=False)
    assert names("test", "iou_coin", "dice_ring") <= set(result)


@pytest.mark.parametrize(("absent", "expected"), [("skip", 1.0), ("one", 1.0), ("zero", 2 / 4)])
def test_absent_classes(tmp_path, absent, expected):
    """Discs are of one class, and two more are nowhere."""

    class Named(TinyMasks):
        def make_test(self):
            self.options["num_classes"] = 2
            return super().make_test()

    def inference(network, images):
        return F.pad(truth_of_discs(network, images), (0, 0, 0, 0, 0, 2), value=-9.0)

    result = result_of(tmp_path, tiny_segmentation(num_classes=4, inference=inference, absent=absent), Named(4))
    assert result["test/miou"] == pytest.approx(expected)
    assert result["test/dice"] == pytest.approx(expected)
    assert "test/iou_coin" not in result


def test_nothing_but_ignored_pixels(tmp_path):
    class Ignored(TinyMasks):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            batch = super().on_after_batch_transfer(batch, dataloader_idx)
            return {**batch, "mask": torch.full_like(batch["mask"], IGNORED)}

    task, trainer = tiny_segmentation(instances="components"), tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, datamodule=Ignored())
    assert trainer.callback_metrics["train/loss"] == 0
    assert math.isnan(trainer.callback_metrics["val/miou"])
    assert math.isnan(trainer.callback_metrics["train/miou"])


def test_a_diverged_loss_is_seen_in_validation(tmp_path):
    def inference(network, images):
        return torch.full((len(images), 2, *images.shape[2:]), math.nan)

    assert math.isnan(result_of(tmp_path, tiny_segmentation(inference=inference), TinyMasks())["test/loss"])


def test_a_wrong_class_names_its_file(tmp_path):
    class Wrong(TinyMasks):
        def make_test(self):
            dataset = super().make_test()
            plain = dataset._sample

            def sample(index):
                made = plain(index)
                made["mask"][3, 4] = 7 if index == 2002 else 0
                return made

            dataset._sample = sample
            return dataset

    with pytest.raises(ValueError, match=r"the mask of images/2002\.png holds 7, which is neither a class \(0 to 1\)"):
        result_of(tmp_path, tiny_segmentation(), Wrong())
    result = result_of(tmp_path, tiny_segmentation(ignore_index=7), Wrong())
    assert math.isfinite(result["test/loss"])


def test_masks_that_do_not_fit_are_refused_before_the_step():
    batch = TinyMasks(train=2).make_train_and_val()[0].__getitems__([(0, 0), (0, 1)])
    batch = {**batch, "image": batch["image"].float(), "mask": batch["mask"].long()}
    with pytest.raises(ValueError, match=r"masks \(2, 16, 15\) do not fit images \(2, 3, 16, 16\)"):
        tiny_segmentation().training_step({**batch, "mask": batch["mask"][..., :15]}, 0)
    with pytest.raises(ValueError, match=r"the mask of sample 1 holds 9"):
        tiny_segmentation().training_step({**batch, "mask": batch["mask"].index_fill(0, torch.tensor(1), 9)}, 5)


def test_a_network_that_gives_no_logit_for_each_pixel():
    class WithoutHead(SegmentationTask):
        head = None

    task = WithoutHead("fashion_cnn", {"widths": [4, 4, 4, 4]})
    with pytest.raises(
        ValueError, match=r"'fashion_cnn' gives \(2, 2\) for images \(2, 3, 16, 16\).* \(2, 2, 16, 16\)"
    ):
        task(torch.zeros(2, 3, 16, 16))
    task = tiny_segmentation()
    task.network = torch.nn.Sequential(task.network, torch.nn.MaxPool2d(2))
    with pytest.raises(ValueError, match=r"'unet' gives \(2, 2, 8, 8\) for images \(2, 3, 16, 16\)"):
        task(torch.zeros(2, 3, 16, 16))


def test_a_backbone_with_its_head(tmp_path):
    task = SegmentationTask("fashion_cnn", {"widths": [4, 4, 4, 4]})
    assert 0 <= result_of(tmp_path, task, TinyMasks())["test/miou"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be 2 to 256"),
        ({"num_classes": 3, "binary": True}, r"binary \(True\) is for two classes, and there are 3"),
        ({"num_classes": 3, "instances": "components"}, r"instances \(components\) is for two classes"),
        ({"instances": "component"}, "unknown instances 'component'. Did you mean 'components'"),
        ({"min_object_size": 5}, r"min_object_size \(5\) must be 0 or more, and is for `instances`"),
        ({"ignore_index": -100}, "ignore_index must be 0 to 255"),
        ({"absent": "skipped"}, "unknown absent 'skipped'. Did you mean 'skip'"),
        ({"loss": "dicee"}, "unknown loss 'dicee'. Did you mean 'dice'"),
        ({"loss_options": {"cross_entropy": {"class_weights": [1.0]}}}, "class_weights must be 2 positive numbers"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_segmentation(**options)


@pytest.mark.parametrize(
    ("here", "theirs", "message"),
    [
        ({"binary": True}, {}, r"has two logits, and this task one .*: set model\.binary to false, or, .*init_skip"),
        ({}, {"binary": True}, r"has one logit \(binary: true\), and this task two: set model\.binary to true"),
        ({"num_classes": 3}, {"binary": True}, "is for 2 classes, and here there are 3"),
        ({"binary": True}, {"num_classes": 3}, "is for 3 classes, and here there are 2"),
        ({}, {"num_classes": 3}, "is for 3 classes, and here there are 2"),
    ],
)
def test_a_checkpoint_with_other_logits_says_so(here, theirs, message):
    with pytest.raises(ValueError, match=message):
        tiny_segmentation(**here).load_state_dict(tiny_segmentation(**theirs).state_dict())


def test_checkpoints_hold_plain_data(tmp_path):
    task = tiny_segmentation(binary=True, loss={"dice": 1.0, "focal": 2.0}, inference=truth_of_discs)
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, datamodule=TinyMasks())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["num_classes"] == 2
    assert "inference" not in checkpoint["hyper_parameters"]
    assert "inference" not in task.hparams_initial
    assert all(key.startswith("network.") for key in checkpoint["state_dict"])
    again = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt")
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(again.eval()(images), task.eval()(images))


@pytest.mark.parametrize(("padding", "context"), [("same", 0), ("same", 2), ("mirror", 0), ("valid", VALID_MARGIN)])
def test_patches_of_volumes_train_and_whole_volumes_are_measured(tmp_path, padding, context):
    task = volume_task(padding, loss={"generalized_dice": 1.0})
    data = TinyPatches(patch_size=6, patches_per_epoch=4, context=context)
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, datamodule=data)
    assert {*names("val", *MEANS, "dice_box", "iou_dot"), "train/miou"} <= set(trainer.callback_metrics)
    trainer.test(task, datamodule=data, verbose=False)
    assert task.confusion["test"].sum() == 2 * 12 * 10 * 9
    outputs = trainer.predict(task, datamodule=data)
    assert [batch["file"] for batch in outputs] == [["subject_102"], ["subject_103"]]
    assert all(batch["prediction"].shape == (1, 12, 10, 9) for batch in outputs)
    assert all(batch["prediction"].dtype == torch.uint8 for batch in outputs)
    assert all(torch.equal(batch["probabilities"].argmax(1), batch["prediction"].long()) for batch in outputs)
    torch.testing.assert_close(outputs[0]["probabilities"].sum(1), torch.ones(1, 12, 10, 9))


def test_padded_and_unpadded_networks_have_one_training_loss():
    """On the middle of an image, where no padding reaches and their blocks coincide."""
    padded, unpadded = volume_task("same"), volume_task("valid")
    unpadded.load_state_dict(padded.state_dict())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 2, 14, 14, 14, generator=generator)
    batch = {"mask": torch.randint(0, 3, (2, 4, 4, 4), generator=generator), "index": torch.arange(2)}
    losses = []
    for task, seen in ((padded, image), (unpadded, image[..., 1:-1, 1:-1, 1:-1])):
        task.log = lambda *_, **__: None
        losses.append(task.training_step({**batch, "image": seen}, 0))
    torch.testing.assert_close(*losses)
    assert task.margin == VALID_MARGIN


@pytest.mark.parametrize("context", [0, 3, 5])
def test_context_must_be_the_margin_of_a_network_that_does_not_pad(tmp_path, context):
    message = r"'unet' does not pad: .* by 4 pixels .* and {}\. Set data\.context to 4"
    data = TinyPatches(context=context)
    with pytest.raises(ValueError, match=message.format(f"data\\.context is {context}")):
        tiny_trainer(tmp_path).fit(volume_task("valid"), datamodule=data)
    batch = next(iter(data.train_dataloader()))
    with pytest.raises(ValueError, match=message.format(f"images .* show {context} beyond masks .*")):
        volume_task("valid").training_step(batch, 0)


@pytest.mark.parametrize(("padding", "side", "message"), [("valid", 5, "5 a side"), ("mirror", 4, "mirrors 4 voxels")])
def test_patches_that_the_network_cannot_take_are_refused(tmp_path, padding, side, message):
    data = TinyPatches(patch_size=side, context=VALID_MARGIN if padding == "valid" else 0)
    with pytest.raises(ValueError, match=rf"data\.patch_size {side}x{side}x{side}: this UNet .*{message}"):
        tiny_trainer(tmp_path).fit(volume_task(padding), datamodule=data)


def test_the_command_line_refuses_patches_before_it_looks_for_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = "{dimensions: 3, widths: [2, 4], kernel_size: 3, padding: valid}"
    options = ["--model.model_options", network, "--data.root", str(tmp_path / "none"), "--data.patch_size", "32"]
    with pytest.raises(ValueError, match=r"data\.context is 0\. Set data\.context to 8"):
        main(["fit", "--config", "medical/folder.yaml", *options])
    assert not list(tmp_path.iterdir())


def test_other_data_have_no_patches_to_be_checked():
    volume_task("valid").check_data(TinyMasks())
    volume_task("valid").check_data(None)


@pytest.mark.parametrize("mask", [(2, 8, 8, 6), (2, 9, 9, 9), (2, 7, 7, 7), (1, 8, 8, 8), (2, 8, 8)])
def test_masks_must_lie_in_the_middle_of_volumes(mask):
    batch = {"image": torch.zeros(2, 2, 8, 8, 8), "mask": torch.zeros(mask, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"masks .* do not fit images \(2, 2, 8, 8, 8\)"):
        volume_task().training_step(batch, 0)


def test_whole_volumes_have_no_context():
    batch = {"image": torch.zeros(1, 2, 8, 8, 8), "mask": torch.zeros(1, 6, 6, 6, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"masks \(1, 6, 6, 6\) do not fit .* without context"):
        volume_task().validation_step(batch, 0)


def test_inference_is_told_what_a_network_loses():
    told = []

    def inference(network, images, **options):
        told.append({name: option if name == "margin" else option(6) for name, option in options.items()})
        return images

    for padding in ("valid", "same"):
        volume_task(padding, inference=inference)._infer(torch.zeros(1, 2, 8, 8, 8))
    assert told == [{"margin": VALID_MARGIN, "fits": True}, {}]


def test_filters_of_volumes_are_channels_last():
    filters = [p for p in volume_task().network.parameters() if p.ndim == 5]
    assert filters
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in filters)


def boxes(network, images, **options):
    """The box of `tiny_volume`, moved by one voxel along the last axis, which is 3 mm, and nothing else."""
    logits = torch.zeros(len(images), 3, *images.shape[2:])
    logits[:, 0] = 0.5
    logits[:, 1, 2:5, 2:5, 3:6] = 1
    return logits


def test_subjects_are_measured(tmp_path):
    measures = SubjectMeasures({"lesion": [1, 2], "box": [1], "dot": [2]})
    task, data = volume_task(inference=boxes, subject_measures=measures), TinyPatches(patches_per_epoch=4)
    trainer = tiny_trainer(tmp_path, [SubjectTable()], max_epochs=1)
    trainer.fit(task, datamodule=data)
    found = trainer.callback_metrics
    assert found["val/subject_dice_box"] == pytest.approx(2 / 3)
    assert found["val/volume_difference_lesion"] == pytest.approx(0.006)
    assert found["val/subjects_dot"] == 2
    assert not {"val/hd95_box", "val/surface_dice_box", "val/subject_dice_background"} & set(found)
    assert (tmp_path / "subjects_val.csv").is_file()
    (result,) = trainer.test(task, datamodule=data, verbose=False)
    assert result["test/hd95_box"] == pytest.approx(3)
    assert result["test/hd95_dot"] == pytest.approx(math.hypot(12, 20, 27))
    assert result["test/subject_dice"] == pytest.approx((2 / 3 + 0 + 36 / 55) / 3)
    lines = (tmp_path / "subjects_test.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:3]] == [
        ["subject_102", "lesion", "0.654545"],
        ["subject_102", "box", "0.666667"],
    ]
    assert len(lines) == 1 + 2 * 3
    assert [subject.subject for subject in task.subjects["test"]] == ["subject_102", "subject_103"]


def test_images_are_subjects_too(tmp_path):
    task = tiny_segmentation(inference=truth_of_discs, subject_measures=SubjectMeasures())
    result = result_of(tmp_path, task, TinyMasks(native_size=True))
    assert result["test/subject_dice_disc"] == result["test/subject_dice"] == 1
    assert result["test/hd95_disc"] == 0
    assert task.subjects["test"][0].subject == "images/2000.png"


def test_subject_measures_are_no_part_of_a_checkpoint(tmp_path):
    task = volume_task(subject_measures=SubjectMeasures())
    assert "subject_measures" not in task.hparams
    with pytest.raises(ValueError, match="region 'core' holds class 3, and the last one is 2"):
        volume_task(subject_measures=SubjectMeasures({"core": [1, 3]}))
