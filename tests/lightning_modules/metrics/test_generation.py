import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_modules.metrics import GenerationMetrics, Protocol
from lightning_modules.metrics.distances import frechet_distance
from lightning_modules.metrics.extractors import weights_sha256
from lightning_modules.metrics.statistics import evenly_spread
from tests.helpers.tiny_images import TinyReference, blob_images

REAL = blob_images(41)
GENERATED = blob_images(30, seed=1)
PROTOCOL = Protocol(num_generated=30)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _short_training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_modules.metrics.contrastive._LEAST_STEPS", 2)
        patch.setattr("lightning_modules.metrics.contrastive._EPOCHS", 2)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Trained once for all tests of this file."""
    return tmp_path_factory.mktemp("metrics")


def prepared(cache, data: TinyReference | None = None, protocol: Protocol = PROTOCOL) -> GenerationMetrics:
    metrics = GenerationMetrics(protocol, cache_root=cache)
    metrics.prepare(data or TinyReference(REAL), CPU)
    return metrics


def measure(metrics: GenerationMetrics, images: Tensor = GENERATED) -> dict[str, float]:
    metrics.reset()
    for batch in torch.arange(len(images)).split(8):
        metrics.update(images[batch], batch)
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.fixture
def no_training(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("lightning_modules.metrics.generation.train_contrastive", refuse)


def test_measures_have_the_protocol_in_their_names(cache):
    assert set(measure(prepared(cache))) == {
        "fid_contrastive_30",
        "kid_contrastive_30",
        "coverage_contrastive_30",
    }
    on_test = prepared(cache, protocol=Protocol(num_generated=30, split="test"))
    assert "fid_contrastive_30_test" in measure(on_test)


def test_frechet_distance_is_to_all_real_images(cache):
    metrics = prepared(cache)
    real, generated = (metrics._extractor(images).double() for images in (REAL, GENERATED))
    expected = frechet_distance(generated.mean(0), generated.T.cov(), real.mean(0), real.T.cov())
    assert measure(metrics)["fid_contrastive_30"] == pytest.approx(float(expected), rel=1e-6)
    assert metrics.num_real == 41


def test_real_images_measured_as_generated_ones(cache):
    measured = measure(prepared(cache, protocol=Protocol(num_generated=41)), REAL)
    assert measured["fid_contrastive_41"] == pytest.approx(0, abs=1e-6)
    assert measured["coverage_contrastive_41"] == 1
    assert measured["kid_contrastive_41"] < 0


def test_order_and_batches_do_not_matter(cache):
    metrics = prepared(cache)
    expected = measure(metrics)
    metrics.reset()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for batch in order.split(11):
        metrics.update(GENERATED[batch], batch)
    assert {name: float(value) for name, value in metrics.compute().items()} == pytest.approx(expected, rel=1e-5)


def test_epochs_do_not_add_up(cache):
    data = TinyReference(REAL)
    metrics = prepared(cache, data)
    first, reads = measure(metrics), data.reads
    for _ in range(2):
        metrics.prepare(data, CPU)
        assert measure(metrics) == first
    assert metrics.num_real == 41
    assert data.reads == reads


@pytest.mark.usefixtures("no_training")
def test_another_run_reads_the_cache(cache):
    data = TinyReference(REAL)
    assert measure(prepared(cache, data)) == measure(prepared(cache))
    assert data.reads == 0


def test_other_images_are_another_reference(cache):
    data = TinyReference(blob_images(41, seed=5))
    assert measure(prepared(cache, data)) != measure(prepared(cache))
    assert data.reads == 2  # trained, measured


@pytest.mark.usefixtures("no_training")
def test_another_number_of_images_keeps_the_extractor(cache):
    data = TinyReference(REAL)
    prepared(cache, data, Protocol(num_generated=12))
    assert data.reads == 1


def test_metrics_follow_data_that_change(cache):
    metrics = prepared(cache)
    before = measure(metrics)
    metrics.prepare(TinyReference(blob_images(41, seed=5)), CPU)
    assert measure(metrics) != before


@pytest.mark.parametrize("kind", ["extractor", "statistics"])
def test_damaged_files_are_made_anew(tmp_path, kind):
    expected = measure(prepared(tmp_path))
    (path,) = tmp_path.glob(f"{kind}-*.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert measure(prepared(tmp_path)) == expected
    assert path.read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_no_global_random_state_is_touched(tmp_path):
    def state():
        return torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002

    before = state()
    for _ in range(2):  # trained, then read
        measure(prepared(tmp_path))
    for was, now in zip(before, state(), strict=True):
        assert np.array_equal(was, now) if isinstance(was, np.ndarray) else _equal(was, now)


def _equal(was, now) -> bool:
    return torch.equal(was, now) if isinstance(was, Tensor) else was == now


def test_the_mode_of_evaluations_changes_nothing(cache, tmp_path):
    """Lightning evaluates in inference mode."""
    expected = measure(prepared(cache))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        metrics = prepared(tmp_path)
        assert measure(metrics) == pytest.approx(expected, rel=1e-6)
    assert measure(metrics) == pytest.approx(expected, rel=1e-6)


def test_training_does_not_depend_on_the_global_random_state(tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        prepared(tmp_path / str(seed))
    (one,), (two,) = (list((tmp_path / str(seed)).glob("extractor-*.pt")) for seed in (1, 2))
    assert one.read_bytes() == two.read_bytes()


def test_a_task_neither_saves_nor_trains_the_extractor(cache):
    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.metrics = prepared(cache)

    task = Task()
    network = task.metrics._extractor.network
    before = weights_sha256(network)
    task.train()
    measure(task.metrics)
    assert not task.state_dict()
    assert not list(task.parameters())
    assert weights_sha256(network) == before


@pytest.mark.parametrize("index", [torch.arange(29), torch.arange(30) % 29, torch.arange(1, 31), torch.arange(31)])
def test_every_image_is_wanted_once(cache, index):
    metrics = prepared(cache)
    metrics.update(GENERATED[index % 30], index)
    with pytest.raises(RuntimeError, match="fid_contrastive_30 wants each of the generated images 0 to 29 once"):
        metrics.compute()


@pytest.mark.parametrize("images", [blob_images(4, size=32), blob_images(4, channels=3)])
def test_images_unlike_the_real_ones(cache, images):
    with pytest.raises(ValueError, match=r"the real ones \(1, 16, 16\)"):
        prepared(cache).update(images, torch.arange(4))


def test_floats_are_refused(cache):
    with pytest.raises(TypeError, match="uint8"):
        prepared(cache).update(GENERATED / 255, torch.arange(30))


def test_nothing_is_measured_unprepared(cache):
    with pytest.raises(RuntimeError, match="call prepare"):
        GenerationMetrics(PROTOCOL, cache_root=cache).update(GENERATED, torch.arange(30))


def test_weights_are_for_inception(cache):
    with pytest.raises(ValueError, match="extractor_weights are for extractor 'inception'"):
        GenerationMetrics(PROTOCOL, weights="inception.pth", cache_root=cache)


def test_a_reference_of_one_image(tmp_path):
    with pytest.raises(ValueError, match="2 images or more"):
        prepared(tmp_path, TinyReference(REAL[:1]))


def test_more_generated_than_real_images(cache):
    values = measure(prepared(cache, protocol=Protocol(num_generated=60)), blob_images(60, seed=2))
    assert all(np.isfinite(value) for value in values.values())


@pytest.mark.parametrize(("count", "length"), [(3, 10), (10, 10), (20, 10), (1, 5)])
def test_evenly_spread(count, length):
    positions = evenly_spread(count, length).tolist()
    assert len(set(positions)) == min(count, length)
    assert positions == sorted(positions)
    assert positions[0] >= 0
    assert positions[-1] < length
