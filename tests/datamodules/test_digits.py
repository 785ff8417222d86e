"""The digits, and what every data module that holds its data in memory does with sizes and seeds."""

import pytest
import torch

from datamodules import DigitsDataModule


def opened(**options) -> DigitsDataModule:
    data = DigitsDataModule(**options)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    return data


def members(dataset) -> set[int]:
    return set(dataset.members.tolist())


def test_the_parts_share_no_scan_and_leave_none_out():
    data = opened(seed=1)
    parts = [members(dataset) for dataset in (data.train_dataset, data.val_dataset, data.test_dataset)]
    assert [len(part) for part in parts] == [1237, 200, 360]
    assert set.union(*parts) == set(range(1797))
    smaller = opened(train_size=100, val_size=50, seed=1)
    assert members(smaller.test_dataset) == parts[2]
    assert not members(smaller.train_dataset) & members(smaller.val_dataset)


def test_the_test_set_is_the_last_36_of_each_digit_whatever_the_seed():
    first, second = opened(seed=0), opened(seed=1)
    assert members(first.test_dataset) == members(second.test_dataset)
    assert members(first.train_dataset) != members(second.train_dataset)
    labels = first.test_dataset.labels
    for digit in range(10):
        assert torch.nonzero(labels == digit).flatten()[-36:].tolist() == [
            index for index in sorted(members(first.test_dataset)) if labels[index] == digit
        ]


def test_subsets_are_nested_and_stratified():
    parts = {size: opened(train_size=size, val_size=0, seed=5).train_dataset for size in (10, 95, 1000)}
    assert members(parts[10]) < members(parts[95]) < members(parts[1000])
    assert torch.bincount(parts[10].targets()).tolist() == [1] * 10
    share = torch.bincount(parts[1000].targets()) / 1000
    everything = torch.bincount(opened(val_size=0).train_dataset.targets()) / 1437
    assert (share - everything).abs().max() < 1.01 / 1000


def test_training_samples_do_not_depend_on_the_size_of_the_validation():
    assert members(opened(train_size=100, val_size=0).train_dataset) == members(
        opened(train_size=100, val_size=300).train_dataset
    )


@pytest.mark.parametrize("image_size", [8, 32])
def test_batches(image_size):
    data = opened(batch_size=16, image_size=image_size)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (16, 1, image_size, image_size)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert torch.equal(batch["label"], data.train_dataset.labels[batch["index"]])
    assert torch.equal(batch["image"], data.train_dataset.images[batch["index"]])
    tested = [index for batch in data.test_dataloader() for index in batch["index"].tolist()]
    assert tested == sorted(members(data.test_dataset))
    sample = data.test_dataset[0]
    assert sample["image"].shape == (1, image_size, image_size)
    assert sample["index"] == tested[0]


def test_grey_values_use_the_whole_range():
    from sklearn.datasets import load_digits

    images = opened().train_dataset.images
    assert (images.min(), images.max()) == (0, 255)
    assert (images.squeeze(1).double() - torch.from_numpy(load_digits().images) * 255 / 16).abs().max() <= 0.5


def test_prediction_names_the_test_samples():
    data = opened(batch_size=50)
    batches = list(data.predict_dataloader())
    assert set(batches[0]) == {"image", "file"}
    names = [name for batch in batches for name in batch["file"]]
    assert names == [f"test/{index:06d}" for index in sorted(members(data.test_dataset))]


def test_constants_describe_the_training_scans():
    images = opened(val_size=0).train_dataset
    values = images.images[images.members].double() / 255
    assert values.mean().item() == pytest.approx(DigitsDataModule.mean[0], abs=1e-6)
    assert values.std(correction=0).item() == pytest.approx(DigitsDataModule.std[0], abs=1e-6)
    assert len(images) == DigitsDataModule.train_samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size must be at least 1"),
        ({"train_size": -5}, "train_size must be at least 1"),
        ({"val_size": -1}, "val_size must be 0"),
        ({"train_size": 1438, "val_size": 0}, r"train_size \(1438\) and val_size \(0\).* at most 1437"),
        ({"train_size": 1400, "val_size": 100}, r"train_size \(1400\) and val_size \(100\).* at most 1337"),
        ({"val_size": 1437}, "at most 0"),
        ({"val_size": 2000}, "at most 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be 0"),
        ({"image_size": 4}, "image_size must be at least 8"),
    ],
)
def test_impossible_sizes_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**options)
