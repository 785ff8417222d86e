"""Training on patches, whatever workers and processes cut them; evaluation of whole volumes."""

import dataclasses
from itertools import islice

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from datamodules.sampling import EpochSampler, ResumableDataLoader
from datamodules.volumes.patches import PatchDataset
from datamodules.volumes.volume import InMemoryVolumes
from tests.helpers.patches import TinyPatches

# Python 3.12 and later warn about every worker that is forked while another thread runs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

AUGMENTED = {"flips": [0, 2], "rotation": 20.0, "intensity_change": 0.1, "noise": 0.1}


def opened(**options) -> TinyPatches:
    data = TinyPatches(**options)
    data.setup("fit")
    return data


def assert_equal_batches(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert torch.equal(values, other[name])


@pytest.mark.parametrize("size", [(12, 10, 9), (12, 10)])
def test_a_batch_of_patches_knows_where_they_are_from(size):
    axes = len(size)
    data = opened(
        sizes=[size] * 2, patch_size=[4, 3, 2][:axes], context=2, batch_size=5, patch_centres="class_balanced"
    )
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (5, 2, *[8, 7, 6][:axes])
    assert batch["mask"].shape == (5, *[4, 3, 2][:axes])
    assert [batch[name].dtype for name in ("image", "mask", "affine")] == [torch.float32, torch.uint8, torch.float64]
    assert data.image_size == batch["image"].shape[2:]
    for i, index in enumerate(batch["index"].tolist()):
        volume, start = data.volumes[index], batch["start"][i]
        assert tuple(batch["size"][i].tolist()) == volume.size
        window = tuple(slice(first, first + side) for first, side in zip(start.tolist(), [4, 3, 2], strict=False))
        assert torch.equal(batch["mask"][i], volume.mask[window])
        middle = batch["image"][i][:, *[slice(2, -2)] * axes]
        assert torch.equal(middle, volume.image[:, *window])
        voxel = torch.tensor([1, 2, 0][:axes], dtype=torch.float64)
        one = torch.ones(1, dtype=torch.float64)
        world = batch["affine"][i] @ torch.cat([voxel, one])
        torch.testing.assert_close(world, volume.affine @ torch.cat([voxel + start, one]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"patch_centres": "foreground", **AUGMENTED}])
def test_samples_depend_on_seed_epoch_and_index_alone(options):
    dataset = opened(**options).train_dataset
    torch.manual_seed(1)
    together = dataset.__getitems__([(e, i) for e in range(2) for i in range(12)])
    torch.manual_seed(2)
    alone = [dataset.__getitems__([(e, i)]) for e in (1, 0) for i in reversed(range(12))][::-1]
    for name, values in together.items():
        assert torch.equal(values, torch.cat([sample[name] for sample in alone]))
    other = opened(**options, seed=4).train_dataset.__getitems__([(0, i) for i in range(12)])
    assert not torch.equal(other["image"], together["image"][:12])
    assert not torch.equal(together["image"][:12], together["image"][12:])


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_gives_the_same_batches_from_the_middle_of_an_epoch_on(workers):
    expected, epoch = opened(context=1, batch_size=5, **AUGMENTED), 1
    loader = expected.train_dataloader()
    loader.sampler.set_epoch(epoch)
    complete = list(loader)
    assert [len(batch["image"]) for batch in complete] == [5, 5, 2]
    begun = opened(context=1, batch_size=5, num_workers=workers, **AUGMENTED).train_dataloader()
    begun.sampler.set_epoch(epoch)
    assert_equal_batches(list(islice(begun, 2)), complete[:2])
    resumed = opened(context=1, batch_size=5, num_workers=workers, **AUGMENTED).train_dataloader()
    resumed.load_state_dict(begun.state_dict() | {"batches": 1})
    assert_equal_batches(list(resumed), complete[1:])


def test_processes_share_the_batches_of_one():
    data = opened(batch_size=4)
    single = list(data.train_dataloader())
    dataset = data.train_dataset
    ranks = [
        list(
            ResumableDataLoader(
                dataset,
                2,
                sampler=EpochSampler(dataset, data.seed, num_replicas=2, rank=rank),
                collate_fn=lambda batch: batch,
            )
        )
        for rank in range(2)
    ]
    for rank, batches in enumerate(ranks):
        expected = [{name: values[rank::2] for name, values in batch.items()} for batch in single]
        assert_equal_batches(batches, expected)


def test_augmentation_moves_the_affine_with_the_mask():
    dataset = opened(flips=[0, 1, 2], context=1).train_dataset
    batch = dataset.__getitems__([(0, i) for i in range(12)])
    dataset.augmentation = None
    plain = dataset.__getitems__([(0, i) for i in range(12)])
    assert not torch.equal(batch["mask"], plain["mask"])
    for i, index in enumerate(batch["index"].tolist()):
        volume = dataset.store[index]
        back = torch.linalg.inv(volume.affine) @ batch["affine"][i]
        for place in [(0, 0, 0), (3, 1, 2)]:
            voxel = back @ torch.tensor([*place, 1.0], dtype=torch.float64)
            assert batch["mask"][i][place] == volume.mask[tuple(voxel[:3].round().int().tolist())]


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[str, dict]] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(("train", batch))
        return (batch["image"] * self.bias).mean()

    def validation_step(self, batch, batch_idx):
        self.batches.append(("val", batch))

    def test_step(self, batch, batch_idx):
        self.batches.append(("test", batch))

    def predict_step(self, batch, batch_idx):
        self.batches.append(("predict", batch))
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options) -> Trainer:
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    return Trainer(default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options)


@pytest.mark.parametrize("axes", [2, 3])
def test_a_trainer_gets_patches_to_train_on_and_whole_volumes_to_evaluate(tmp_path, axes):
    data, task = TinyPatches(sizes=[(9, 8, 7)[:axes]] * 2, batch_size=4), Recorder()
    running = trainer(tmp_path, num_sanity_val_steps=0)
    running.fit(task, data)
    running.test(task, data, verbose=False)
    running.predict(task, data, return_predictions=False)
    assert [stage for stage, _ in task.batches] == ["train"] * 3 + ["val"] * 2 + ["test"] * 2 + ["predict"] * 2
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[axes]
    for stage, batch in task.batches:
        assert batch["image"].is_contiguous(memory_format=layout)
        assert batch["image"].dtype == torch.float32
        assert batch["affine"].dtype == torch.float64
        if stage != "predict":
            assert batch["mask"].dtype == torch.int64
    for (_, batch), volume in zip(task.batches[5:7], data.others[2:], strict=True):
        assert batch["file"] == [volume.subject]
        assert torch.equal(batch["image"][0], volume.image)
        assert torch.equal(batch["mask"][0], volume.mask.long())
        assert torch.equal(batch["affine"][0], volume.affine)
    assert task.batches[-1][1].keys() == {"image", "index", "file", "affine"}


def test_double_precision_is_for_images_too(tmp_path):
    task = Recorder()
    trainer(tmp_path, precision="64-true").fit(task, TinyPatches(evaluated=0))
    assert {batch["image"].dtype for _, batch in task.batches} == {torch.float64}
    assert {stage for stage, _ in task.batches} == {"train"}  # without validation subjects there is no validation


def test_few_whole_volumes_wait_whatever_the_number_of_workers():
    loaders = [opened(evaluated=5, num_workers=workers).val_dataloader() for workers in (8, 1, 0)]
    assert [loader.num_workers for loader in loaders] == [2, 1, 0]
    assert [loader.prefetch_factor for loader in loaders] == [1, 1, None]
    ahead, _, alone = loaders
    found, expected = list(ahead), list(alone)
    assert [batch.pop("file") for batch in found] == [batch.pop("file") for batch in expected]
    assert_equal_batches(found, expected)
    assert opened(num_workers=2).train_dataloader().prefetch_factor == 2  # patches are small


def test_volumes_of_one_size_can_be_evaluated_together():
    data = opened(batch_evaluation=True, batch_size=2)
    (batch,) = data.val_dataloader()
    assert batch["image"].shape == (2, 2, 12, 10, 9)
    with pytest.raises(
        ValueError, match=r"different sizes \(\[12, 10, 9\] and \[9, 10, 12\]\).*batch_evaluation: false"
    ):
        next(iter(data.evaluation_loader("train")))


def test_training_subjects_are_measured_whole():
    data = opened()
    batches = list(data.evaluation_loader("train"))
    assert [batch["file"][0] for batch in batches] == list(data.training_subjects) == [f"subject_{i}" for i in range(3)]
    assert all(torch.equal(batch["image"][0], v.image) for batch, v in zip(batches, data.volumes, strict=True))
    assert data.fingerprint("train") != data.fingerprint("val")


def test_overfitting_on_a_few_batches_works(tmp_path):
    task = Recorder()
    with pytest.warns(UserWarning, match="turning off the train dataloader shuffling"):
        trainer(tmp_path, overfit_batches=2, max_epochs=2).fit(task, TinyPatches(evaluated=0))
    seen = [batch for stage, batch in task.batches if stage == "train"]
    assert_equal_batches(seen[2:], seen[:2])


def test_pictures_show_each_channel_in_its_own_range():
    data = TinyPatches()
    shown = data.denormalise(torch.stack([volume.image for volume in data.others]))
    assert torch.equal(shown.amin((2, 3, 4)), torch.zeros(4, 2))
    torch.testing.assert_close(shown.amax((2, 3, 4)), torch.ones(4, 2))
    assert torch.equal(data.denormalise(torch.full((1, 2, 3, 3, 3), 5.0)), torch.zeros(1, 2, 3, 3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": [4, 4]}, "patch_size must be one number of voxels, or one for each of 3 axes"),
        ({"patch_size": 0}, "at least 1, got 0"),
        ({"patches_per_epoch": 0}, "patches_per_epoch must be at least 1, got 0"),
        ({"patch_padding": "mirror"}, "patch_padding must be one of"),
        ({"flips": [3]}, "flips must be different axes"),
        ({"sizes": [(9, 9)], "flips": [2]}, r"flips must name axes below 2, got \[2\]"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TinyPatches(**options)


def test_subjects_that_are_never_drawn_may_lack_what_is_sampled():
    data = TinyPatches(patch_centres="foreground")
    data.volumes[1] = dataclasses.replace(data.volumes[1], mask=torch.zeros_like(data.volumes[1].mask))
    with pytest.raises(ValueError, match=r"no foreground.* in subject_1 "):
        data.setup("fit")
    without = TinyPatches(patch_centres="foreground", subject_weights={"subject_1": 0})
    without.volumes = data.volumes
    without.setup("fit")


def test_subjects_without_what_is_needed_are_named():
    data = opened()
    data.train_dataset.store = InMemoryVolumes([dataclasses.replace(v, mask=None) for v in data.volumes])
    with pytest.raises(ValueError, match=r"subject_\d has no mask"):
        next(iter(data.train_dataloader()))
    with pytest.raises(ValueError, match=r"larger than subject_0 \(5x9x9\), subject_2 \(7x9x9\)\."):
        opened(sizes=[(5, 9, 9), (8, 9, 9), (7, 9, 9)], patch_size=8)
    with pytest.raises(ValueError, match="TinyPatches has no test samples"):
        opened(evaluated=0).setup("test")
    assert isinstance(data.train_dataset, PatchDataset)
