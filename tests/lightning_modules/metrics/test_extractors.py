import sys
import types

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_modules.metrics.contrastive import ContrastiveExtractor, ContrastiveNetwork
from lightning_modules.metrics.extractors import load_inception, weights_sha256
from tests.helpers.tiny_images import blob_images

IMAGES = blob_images(5, channels=3)


@pytest.fixture
def extractor() -> ContrastiveExtractor:
    torch.manual_seed(0)
    return ContrastiveExtractor(ContrastiveNetwork(3))


def test_features_are_float32_and_frozen(extractor):
    features = extractor(IMAGES)
    assert features.shape == (5, 128)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())


def test_what_stands_around_changes_nothing(extractor):
    features = extractor(IMAGES)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        assert torch.equal(extractor(IMAGES), features)
    torch.testing.assert_close(extractor(IMAGES[3:]), features[3:], rtol=1e-5, atol=1e-5)


def test_a_task_that_holds_one_neither_saves_nor_trains_it(extractor):
    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.extractor = extractor

    task = Task()
    before = weights_sha256(extractor.network)
    task.train()
    extractor(IMAGES)
    assert not task.state_dict()
    assert not list(task.parameters())
    assert not any(module.training for module in extractor.network.modules())
    assert weights_sha256(extractor.network) == before == extractor.sha256


@pytest.mark.parametrize("images", [IMAGES / 255, IMAGES.int(), IMAGES.bool()])
def test_only_bytes_are_taken(extractor, images):
    with pytest.raises(TypeError, match="take uint8 images"):
        extractor(images)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES[:, :1], IMAGES.flatten(1)])
def test_other_shapes_are_refused(extractor, images):
    with pytest.raises(ValueError, match="extractor"):
        extractor(images)


def test_sha_changes_with_any_weight(extractor):
    network = ContrastiveNetwork(3)
    network.load_state_dict(extractor.network.state_dict())
    assert weights_sha256(network) == extractor.sha256
    with torch.no_grad():
        network.stages[2][1].running_mean[5] += 1e-6
    assert weights_sha256(network) != extractor.sha256


# Inception


class FakeInception(nn.Module):
    """Behaves as torch-fidelity's: takes uint8 RGB, loads its weights when it is made, returns a tuple."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.fc = nn.Linear(3, 2048)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        return (self.fc(images.float().mean((2, 3))),)


@pytest.fixture
def fake_fidelity(monkeypatch) -> None:
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception
    module.URL_INCEPTION_V3 = "https://example.invalid/weights-6726825d.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "inception.pth"
    torch.save(FakeInception("", ["2048"]).state_dict(), path)
    return path


def test_inception_without_the_extra_names_every_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install convsuite\[fid\].*extractor_weights.*'contrastive'"):
        load_inception()


@pytest.mark.usefixtures("fake_fidelity")
def test_inception_takes_grey_images_repeated(weights):
    extractor = load_inception(weights)
    grey = IMAGES[:, :1]
    assert extractor(grey).shape == (5, 2048)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="grey or RGB"):
        extractor(IMAGES[:, :2])


@pytest.mark.usefixtures("fake_fidelity")
def test_inception_weights_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"extractor_weights.*none\.pth"):
        load_inception(tmp_path / "none.pth")
    monkeypatch.setattr(
        "torch.hub.load_state_dict_from_url", lambda *_, **__: (_ for _ in ()).throw(OSError("no route"))
    )
    with pytest.raises(OSError, match=r"could not be downloaded.*no route.*extractor_weights"):
        load_inception()


@pytest.mark.usefixtures("fake_fidelity")
def test_inception_weights_that_are_none(weights, tmp_path):
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"inception\.pth is damaged"):
        load_inception(weights)
    torch.save(nn.Linear(2, 2).state_dict(), weights)
    with pytest.raises(ValueError, match=r"inception\.pth.*not torch-fidelity's weights"):
        load_inception(weights)


@pytest.mark.usefixtures("fake_fidelity")
def test_code_in_a_weights_file_is_not_run(weights):
    torch.save({"fc.weight": print}, weights)
    with pytest.raises(ValueError, match="more than weights"):
        load_inception(weights)


def test_the_real_inception(tmp_path, monkeypatch):
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = inception.FeatureExtractorInceptionV3
    path = tmp_path / "random.pth"
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(network, "load_state_dict", lambda *_: None)
        torch.save(network("inception", ["2048"]).state_dict(), path)
    extractor = load_inception(path)
    features = extractor(blob_images(2))
    assert features.shape == (2, 2048)
    assert features.isfinite().all()
