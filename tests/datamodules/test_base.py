"""What every data module does: loaders, normalisation, what a checkpoint says of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

import datamodules
from datamodules import BaseDataModule, DigitsDataModule
from datamodules.sampling import EpochSampler, EvaluationSampler
from tests.helpers.data import write_image_folder
from tests.helpers.tiny_runs import tiny_data, tiny_task, tiny_trainer


class Probe(LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.batches: list[dict] = []
        self.samplers: list[object] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.layer(batch["image"].flatten(1)).mean()

    def validation_step(self, batch, batch_idx):
        self.batches.append(batch)

    def test_step(self, batch, batch_idx):
        self.batches.append(batch)

    def predict_step(self, batch, batch_idx):
        self.batches.append(batch)
        return batch["file"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet_trainer(folder: Path, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )


def test_public_names_resolve():
    for name in datamodules.__all__:
        assert getattr(datamodules, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'CIFARDataModule'"):
        _ = datamodules.CIFARDataModule


def test_importing_is_light():
    code = (
        "import sys, datamodules; assert not {'torch', 'lightning'} & set(sys.modules)\n"
        "import datamodules.fashion_mnist, datamodules.digits\n"
        "assert not {'sklearn', 'jsonargparse', 'wandb', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(datamodules.__file__).parents[1])


def test_the_base_itself_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        BaseDataModule()


def test_the_data_are_described_before_any_file_is_read():
    data = DigitsDataModule(root="/nowhere", image_size=16)
    assert (data.in_channels, data.num_classes, data.image_size) == (1, 10, 16)
    assert data.class_names == tuple("0123456789")
    assert len(data.mean) == len(data.std) == data.in_channels


def test_the_root_is_the_argument_else_the_variable_else_data(monkeypatch):
    monkeypatch.delenv("CONVSUITE_DATA", raising=False)
    assert DigitsDataModule().root == "data"
    monkeypatch.setenv("CONVSUITE_DATA", "/data/sets")
    assert DigitsDataModule().root == "/data/sets"
    assert DigitsDataModule(root="here").root == "here"
    assert DigitsDataModule(root="~/sets").root == str(Path.home() / "sets")


def test_the_seed_is_the_argument_else_that_of_seed_everything(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert DigitsDataModule().seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert DigitsDataModule().seed == 7
    assert DigitsDataModule(seed=0).seed == 0


def test_loaders_are_asked_for_after_setup():
    data = DigitsDataModule()
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader, data.predict_dataloader):
        with pytest.raises(RuntimeError, match="Call setup"):
            loader()


def test_setup_reads_once_and_only_what_the_stage_needs():
    data = DigitsDataModule()
    data.setup("fit")
    train = data.train_dataset
    assert data.test_dataset is None
    data.setup("validate")
    assert data.train_dataset is train


def test_without_validation_a_trainer_trains_and_validate_says_why_it_cannot(tmp_path):
    model = Probe()
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, DigitsDataModule(train_size=20, val_size=0))
    assert len(model.batches) == 1
    with pytest.raises(ValueError, match="val_size is 0: there is nothing to validate"):
        trainer.validate(model, DigitsDataModule(val_size=0))


def test_images_reach_the_task_normalised(tmp_path):
    model = Probe()
    data = DigitsDataModule(batch_size=1437, val_size=0)
    quiet_trainer(tmp_path).fit(model, data)
    images = model.batches[0]["image"]
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.mean().abs() < 1e-5
    assert (images.std(correction=0) - 1).abs() < 1e-5
    expected = data.train_dataset.images[model.batches[0]["index"]] / 255
    torch.testing.assert_close(data.denormalise(images), expected)
    assert data.denormalise(images + 9).max() == 1
    assert data.denormalise(images[0] - 9).min() == 0


def test_normalisation_leaves_the_loaded_batch_as_it_was():
    data = DigitsDataModule()
    batch = {"image": torch.full((2, 1, 8, 8), 255, dtype=torch.uint8), "file": ["a", "b"]}
    normalised = data.on_after_batch_transfer(batch, 0)
    assert batch["image"].dtype == torch.uint8
    assert normalised["file"] == ["a", "b"]
    torch.testing.assert_close(normalised["image"], torch.full((2, 1, 8, 8), (1 - data.mean[0]) / data.std[0]))


def test_colour_images_are_normalised_a_channel():
    data = DigitsDataModule()
    data.mean, data.std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normalised = data.on_after_batch_transfer({"image": image}, 0)["image"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    torch.testing.assert_close(normalised, (image / 255 - mean) / std)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_a_true_precision_gets_its_own_type(tmp_path):
    model = Probe()
    quiet_trainer(tmp_path, precision="64-true").fit(model, DigitsDataModule(train_size=20, val_size=0))
    assert model.batches[0]["image"].dtype == torch.float64


def test_every_stage_draws_with_our_samplers(tmp_path):
    data = DigitsDataModule(train_size=20, val_size=11)
    trainer = quiet_trainer(tmp_path)
    model = Probe()
    trainer.fit(model, data)
    assert isinstance(trainer.train_dataloader.sampler, EpochSampler)
    assert isinstance(trainer.val_dataloaders.sampler, EvaluationSampler)
    trainer.test(model, data, verbose=False)
    assert isinstance(trainer.test_dataloaders.sampler, EvaluationSampler)


def test_making_and_reading_a_loader_draws_nothing_from_the_global_generator():
    data = DigitsDataModule(train_size=50)
    for stage in ("fit", "test"):
        data.setup(stage)
    state = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_stay_between_epochs_and_memory_is_pinned_for_cuda_only():
    data = DigitsDataModule(num_workers=2)
    data.setup("fit")
    loader = data.train_dataloader()
    assert loader.persistent_workers
    assert loader.pin_memory == torch.cuda.is_available()
    data.num_workers = 0
    assert not data.train_dataloader().persistent_workers


def test_a_checkpoint_holds_the_settings_of_its_data(tmp_path):
    trainer = quiet_trainer(tmp_path)
    trainer.fit(Probe(), DigitsDataModule(train_size=20, image_size=8, seed=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    settings = checkpoint["datamodule_hyper_parameters"]
    assert settings["train_size"] == 20
    assert settings["seed"] == 4
    assert all(isinstance(value, int | str | None) for value in settings.values())
    assert (tmp_path / "last.ckpt").stat().st_size < 50_000


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_trainer_predicts_a_folder(tmp_path, workers):
    names = write_image_folder(tmp_path / "images")
    model = Probe()
    data = DigitsDataModule(predict_root=str(tmp_path / "images"), batch_size=2, num_workers=workers)
    predicted = quiet_trainer(tmp_path).predict(model, data)
    assert [name for batch in predicted for name in batch] == names
    assert model.batches[0]["image"].shape == (2, 1, 8, 8)
    assert model.batches[0]["image"].dtype == torch.float32


def test_a_trainer_predicts_the_test_set(tmp_path):
    predicted = quiet_trainer(tmp_path).predict(Probe(), DigitsDataModule(batch_size=100))
    names = [name for batch in predicted for name in batch]
    assert len(names) == len(set(names)) == 360


def test_a_batch_without_images_stays_as_it_is():
    batch = {"index": torch.arange(3)}
    assert DigitsDataModule().on_after_batch_transfer(batch, 0) is batch


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage_can_measure_on_every_split(stage):
    data = DigitsDataModule(batch_size=100, train_size=150, val_size=20)
    data.setup(stage)
    for split, size in (("train", 150), ("val", 20), ("test", 360)):
        loader = data.evaluation_loader(split)
        assert isinstance(loader.sampler, EvaluationSampler)
        batches = list(loader)
        assert batches[0]["image"].dtype == torch.uint8
        index = torch.cat([batch["index"] for batch in batches])
        assert index.tolist() == sorted(index.tolist())
        assert len(index) == size


def test_an_unknown_or_an_empty_split_is_an_error():
    data = DigitsDataModule(val_size=0)
    for ask in (data.evaluation_loader, data.fingerprint):
        with pytest.raises(ValueError, match="no split 'training': choose one of train, val, test"):
            ask("training")
        with pytest.raises(ValueError, match=r"val_size is 0: there is nothing to validate\. Set val_size"):
            ask("val")


def test_fingerprints_name_what_is_measured_on():
    def fingerprint(split: str = "train", **options) -> str:
        return DigitsDataModule(**{"seed": 0, **options}).fingerprint(split)

    same = {fingerprint(), fingerprint(), fingerprint(batch_size=7, drop_last=True, normalisation="symmetric")}
    assert len(same) == 1
    others = [
        fingerprint("val"),
        fingerprint("test"),
        fingerprint(image_size=16),
        fingerprint(train_size=100),
        fingerprint(train_size=100, seed=1),
    ]
    assert len(same | set(others)) == 6
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in others)


def test_a_data_set_of_another_class_has_another_fingerprint():
    class Others(DigitsDataModule):
        pass

    assert Others().fingerprint("test") != DigitsDataModule().fingerprint("test")


def test_the_last_batch_of_training_may_be_dropped():
    sizes = {}
    for drop_last in (False, True):
        data = DigitsDataModule(batch_size=8, train_size=20, drop_last=drop_last)
        data.setup("fit")
        sizes[drop_last] = [len(batch["index"]) for batch in data.train_dataloader()]
        assert sum(len(batch["index"]) for batch in data.val_dataloader()) == 200
    assert sizes == {False: [8, 8, 4], True: [8, 8]}


def test_dropping_everything_is_an_error():
    data = DigitsDataModule(batch_size=21, train_size=20, drop_last=True)
    data.setup("fit")
    with pytest.raises(ValueError, match="drop_last leaves nothing to train on: batch_size is 21, and there are 20"):
        data.train_dataloader()


@pytest.mark.parametrize("kind", ["DigitsDataModule", "FashionMNISTDataModule"])
def test_symmetric_normalisation_is_the_range_of_tanh(kind):
    data = getattr(datamodules, kind)(normalisation="symmetric")
    assert data.mean == data.std == (0.5,)
    size = data.image_size
    image = torch.arange(256, dtype=torch.uint8).repeat(size * size // 4 + 1)[: 4 * size * size].view(4, 1, size, size)
    symmetric = data.on_after_batch_transfer({"image": image}, 0)["image"]
    torch.testing.assert_close(symmetric, image.float() / 127.5 - 1)
    torch.testing.assert_close(data.denormalise(symmetric), image / 255)
    with pytest.raises(ValueError, match="normalisation must be one of standardised, symmetric, got tanh"):
        getattr(datamodules, kind)(normalisation="tanh")


def test_more_processes_than_evaluated_samples_are_refused(monkeypatch):
    data = DigitsDataModule(val_size=3)
    data.setup("fit")
    monkeypatch.setattr("datamodules.base.process_place", lambda: (4, 0))
    with pytest.raises(ValueError, match=r"3 samples cannot be dealt out to 4 processes.* 3 device\(s\) or fewer"):
        data.val_dataloader()


def test_a_checkpoint_is_not_evaluated_on_subsets_of_another_seed(tmp_path):
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(tiny_task(), datamodule=tiny_data(seed=1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = {"ckpt_path": tmp_path / "a.ckpt", "weights_only": True}
    tiny_trainer(tmp_path).validate(tiny_task(), datamodule=tiny_data(seed=1), verbose=False, **saved)
    for evaluate in ("validate", "test"):
        with pytest.raises(ValueError, match=r"subsets of data seed 1, .* has 2: .* Set --data\.seed 1\."):
            getattr(tiny_trainer(tmp_path), evaluate)(tiny_task(), datamodule=tiny_data(seed=2), verbose=False, **saved)
