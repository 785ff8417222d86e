from dataclasses import fields, replace

import pytest

from lightning_modules.metrics import Protocol
from lightning_modules.metrics.protocol import ExtractorKey, StatisticsKey

KEYS = {
    "extractor": ExtractorKey(recipe="r", fingerprint="f", split="train", image_shape=(3, 64, 64)),
    "statistics": StatisticsKey(
        fingerprint="f",
        split="train",
        image_shape=(3, 64, 64),
        extractor="contrastive",
        extractor_sha256="0",
        resize="none",
        num_compared=2000,
    ),
}
ANOTHER = {str: "another", int: 7, tuple: (1, 64, 64)}


def test_name_says_what_was_measured():
    assert Protocol().metric_name("fid") == "fid_contrastive_2000"
    assert Protocol("inception", 10000, "test").metric_name("kid") == "kid_inception_10000_test"


@pytest.mark.parametrize("count", [1, 0, -3])
def test_fewer_than_two_images_are_refused(count):
    with pytest.raises(ValueError, match="num_generated must be 2 or more"):
        Protocol(num_generated=count)


@pytest.mark.parametrize("option", [{"extractor": "resnet"}, {"split": "training"}])
def test_unknown_names_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be one of"):
        Protocol(**option)


@pytest.mark.parametrize(("kind", "field"), [(kind, field.name) for kind, key in KEYS.items() for field in fields(key)])
def test_any_change_is_another_file(kind, field):
    key = KEYS[kind]
    changed = replace(key, **{field: ANOTHER[type(getattr(key, field))]})
    assert changed.digest != key.digest
    assert replace(changed, **{field: getattr(key, field)}).digest == key.digest


def test_kinds_of_keys_differ():
    assert KEYS["extractor"].digest != KEYS["statistics"].digest
