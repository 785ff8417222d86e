"""The classification task, trained by a plain Trainer."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_modules import ClassificationTask
from lightning_modules.base import NonFiniteLossError
from lightning_modules.classification import MAX_LISTED
from lightning_modules.schedules import CosineDecay, StepDecay
from models.convs import geometry_parameters
from models.names import UnknownNameError

# These fits need no validation, and the images are too small to be loaded by workers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a .validation_step.", "ignore:The .*dataloader.* does not have many"
)

GAUSSIAN = {"name": "gaussian", "kernel_size": 5, "num_bases": 2, "order": 1}
SMALL = {"widths": [4, 4, 8, 8]}


class Blobs(Dataset):
    """Images (1, 8, 8) whose mean tells their class."""

    def __init__(self, count: int, classes: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % classes
        self.images = torch.randn(count, 1, 8, 8, generator=generator) + 3 * self.labels[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image": self.images[index], "label": self.labels[index], "index": index, "file": f"{index}.png"}


def task(**options) -> ClassificationTask:
    torch.manual_seed(0)
    options = {"model_options": SMALL, "in_channels": 1, "num_classes": 3, "conv": GAUSSIAN, **options}
    return ClassificationTask("fashion_cnn", **options)


def trainer(tmp_path, **options) -> L.Trainer:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    return L.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        **options,
    )


def loader(count: int = 24, **options) -> DataLoader:
    return DataLoader(Blobs(count, **options), batch_size=8)


def test_learns_and_reports(tmp_path):
    module = task(optimizer=partial(torch.optim.Adam, lr=0.01))
    fit = trainer(tmp_path, max_epochs=15)
    fit.fit(module, loader(), loader(21))
    assert fit.callback_metrics["val/accuracy"] > 0.9
    (result,) = fit.test(module, loader(21), verbose=False)
    assert {"test/loss", "test/accuracy", "test/accuracy_0", "test/accuracy_1", "test/accuracy_2"} == set(result)
    confusion = module.confusion["test"]
    assert confusion.shape == (3, 3)
    assert confusion.sum() == 21
    assert result["test/accuracy"] == pytest.approx(confusion.diagonal().sum().item() / 21)


def test_accuracy_weighs_samples_not_batches(tmp_path):
    module = task()
    (result,) = trainer(tmp_path).test(module, loader(9), verbose=False)  # batches of 8 and 1
    images, labels = Blobs(9).images, Blobs(9).labels
    expected = (module(images).argmax(1) == labels).float().mean().item()
    assert result["test/accuracy"] == pytest.approx(expected)


def test_top5_only_where_it_makes_sense(tmp_path):
    (few,) = trainer(tmp_path).test(task(num_classes=5), loader(classes=5), verbose=False)
    (many,) = trainer(tmp_path).test(task(num_classes=8), loader(classes=8), verbose=False)
    assert "test/accuracy_top5" not in few
    assert many["test/accuracy"] <= many["test/accuracy_top5"] <= 1


def test_each_class_is_a_metric_where_they_are_few(tmp_path):
    many = task(num_classes=MAX_LISTED + 1)
    (result,) = trainer(tmp_path).test(many, loader(classes=8), verbose=False)
    assert set(result) == {"test/loss", "test/accuracy", "test/accuracy_top5"}
    assert many.confusion["test"].shape == (61, 61)


def test_predict_gives_probabilities_by_file(tmp_path):
    (first, *_) = trainer(tmp_path).predict(task(), loader())
    assert list(first["file"]) == [f"{i}.png" for i in range(8)]
    torch.testing.assert_close(first["probabilities"].sum(1), torch.ones(8))


def test_optimiser_holds_every_trainable_parameter_once():
    module = task(optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1), geometry_lr_factor=3.0)
    module.network.fc.weight.requires_grad_(False)
    optimizer = module.configure_optimizers()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in held}) == len(held)
    assert {id(p) for p in held} == {id(p) for p in module.parameters() if p.requires_grad}
    weights, geometry = optimizer.param_groups
    assert {id(p) for p in geometry["params"]} == {id(p) for p in geometry_parameters(module)}
    assert (weights["lr"], weights["weight_decay"]) == (0.01, 0.1)
    assert (geometry["lr"], geometry["weight_decay"]) == (pytest.approx(0.03), 0.0)
    assert len(task(conv="standard").configure_optimizers().param_groups) == 1


def test_schedule_runs_per_step_to_the_end_of_the_fit(tmp_path):
    module = task(optimizer=partial(torch.optim.SGD, lr=1.0), lr_scheduler=partial(CosineDecay, alpha=0.1))
    fit = trainer(tmp_path, max_epochs=3)
    fit.fit(module, loader())
    scheduler = fit.lr_scheduler_configs[0].scheduler
    assert scheduler.total_steps == fit.global_step == 9
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 4}, 3),
        ({"max_epochs": 4, "accumulate_grad_batches": 2}, 2),  # the last batch of an epoch makes a step by itself
        ({"max_epochs": -1, "max_steps": 9}, 3),
        ({"max_epochs": 4, "limit_train_batches": 1}, 1),
    ],
)
def test_a_staircase_knows_the_epochs(tmp_path, options, steps):
    """A tenth every two epochs."""
    rates = []

    class Watching(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    schedule = partial(StepDecay, every_epochs=2)
    module = task(conv="standard", optimizer=partial(torch.optim.SGD, lr=1.0), lr_scheduler=schedule)
    trainer(tmp_path, callbacks=[Watching()], **options).fit(module, loader())
    assert rates == pytest.approx([0.1 ** (step // (2 * steps)) for step in range(len(rates))])
    assert len(rates) == (9 if "max_steps" in options else 4 * steps)


def test_a_non_finite_loss_names_its_step(tmp_path):
    class Poisoned(Blobs):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return {**sample, "image": sample["image"] * (float("nan") if index == 17 else 1)}

    with pytest.raises(NonFiniteLossError, match="the loss of step 2 is not finite"):
        trainer(tmp_path).fit(task(), DataLoader(Poisoned(24), batch_size=8))


def test_a_poisoned_state_is_never_saved(tmp_path):
    fit = trainer(tmp_path, enable_checkpointing=True)
    module = task()
    fit.fit(module, loader())
    with torch.no_grad():
        module.network.fc.bias[0] = float("inf")
    with pytest.raises(NonFiniteLossError, match=r"network\.fc\.bias"):
        fit.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_checkpoints_hold_plain_data_and_load_through_any_class(tmp_path):
    module = task(optimizer=partial(torch.optim.Adam, lr=0.02), lr_scheduler=CosineDecay)
    fit = trainer(tmp_path, enable_checkpointing=True)
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["conv"] == GAUSSIAN
    assert all(key.startswith("network.") for key in checkpoint["state_dict"])
    again = ClassificationTask.load_from_checkpoint(tmp_path / "a.ckpt")
    images = Blobs(4).images
    assert torch.equal(again(images), module(images))


def test_another_networks_checkpoint_is_named():
    with pytest.raises(ValueError, match="belongs to another network than model='fashion_cnn' with conv='standard'"):
        task(conv="standard").load_state_dict(task().state_dict())


def test_a_checkpoint_of_other_classes_says_so():
    message = r"is for 4 classes, and here there are 3; .* model\.init_from and init_skip: \[fc\.\*\]"
    with pytest.raises(ValueError, match=message):
        task(conv="standard").load_state_dict(task(conv="standard", num_classes=4).state_dict())
    wider = task(conv="standard", num_classes=4, model_options={"widths": [4, 4, 8, 9]})
    with pytest.raises(ValueError, match="belongs to another network"):
        task(conv="standard").load_state_dict(wider.state_dict())


def test_compiled_and_plain_checkpoints_interchange():
    compiled, plain = task(compile=True), task()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(compiled.state_dict())


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_noise_is_a_function_of_the_step(tmp_path, accumulated):
    class Noisy(ClassificationTask):
        def training_step(self, batch, batch_idx):
            self.draws = [*getattr(self, "draws", []), torch.rand(1).item()]
            return super().training_step(batch, batch_idx)

    def draws(disturbance: int) -> list[float]:
        torch.manual_seed(0)
        module = Noisy("fashion_cnn", model_options=SMALL, in_channels=1, num_classes=3)
        torch.manual_seed(disturbance)
        trainer(tmp_path, accumulate_grad_batches=accumulated).fit(module, loader())
        return module.draws

    assert draws(1) == draws(2)
    assert len(set(draws(1))) == 6


def test_the_last_weights_count_where_they_are_selected():
    assert task().monitor == "val/accuracy"
    assert task(select="last").monitor is None
    assert ClassificationTask.monitor == "val/accuracy"
    with pytest.raises(UnknownNameError, match="unknown select 'first'"):
        task(select="first")
