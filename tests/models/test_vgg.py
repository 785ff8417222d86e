"""vgg16: torchvision's names and numbers, pretrained weights, variants inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import create_model, vgg
from models.analysis import analyse
from models.convs import GaussianDerivativeConv2d, list_convs

SMALL_HEAD = {"head_width": 8, "pool_size": 1}
GAUSSIAN = {"name": "gaussian", "num_bases": 2, "order": 1}


def small(**options) -> vgg.VGG16:
    torch.manual_seed(0)
    return create_model("vgg16", **{"num_classes": 5, **SMALL_HEAD, **options})


def on_meta(**options) -> vgg.VGG16:
    """A network of shapes alone."""
    with torch.device("meta"):
        return create_model("vgg16", **options)


@pytest.fixture
def published(monkeypatch) -> dict[str, torch.Tensor]:
    """Weights that would be published for a network of five classes and a small head; a download gives them."""
    monkeypatch.setattr(vgg, "PUBLISHED_HEAD", SMALL_HEAD)
    monkeypatch.setattr(vgg, "PUBLISHED_CLASSES", 5)
    weights = small(batch_norm=True).state_dict()
    plain = small().state_dict()
    files = {
        "vgg16-397923af.pth": plain,
        # Files of before torch 0.4.1 lack these counts.
        "vgg16_bn-6c64b313.pth": {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")},
    }
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: files[url.rpartition("/")[2]])
    torch.manual_seed(1)
    return plain


def equal(network: nn.Module, weights: dict[str, torch.Tensor]) -> set[str]:
    """Names of the state dict that hold the given weights."""
    state = network.state_dict()
    return {name for name in state if name in weights and torch.equal(state[name], weights[name])}


def pretrained(**options) -> vgg.VGG16:
    return create_model("vgg16", **{"num_classes": 5, "pretrained": True, **SMALL_HEAD, **options})


@pytest.mark.parametrize(("batch_norm", "parameters"), [(False, 138_357_544), (True, 138_365_992)])
def test_names_and_shapes_are_torchvisions(batch_norm, parameters):
    import torchvision

    ours = on_meta(batch_norm=batch_norm)
    with torch.device("meta"):
        theirs = (torchvision.models.vgg16_bn if batch_norm else torchvision.models.vgg16)()
    assert sum(parameter.numel() for parameter in ours.parameters()) == parameters
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_parameters_that_the_docstring_gives():
    def count(**options):
        return sum(parameter.numel() for parameter in on_meta(num_classes=10, **options).parameters())

    assert round(count() / 1e6, 1) == 134.3
    assert round(count(head_width=512, pool_size=1) / 1e6, 1) == 15.2


def test_features_are_torchvisions():
    from torchvision.models.vgg import cfgs, make_layers

    ours, theirs = small(), make_layers(cfgs["D"])
    theirs.load_state_dict(ours.features.state_dict())
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(images), theirs(images))
    assert [type(layer) for layer in ours.features] == [type(layer) for layer in theirs]


def test_initial_weights_keep_the_variance_of_gradients():
    network = small()
    assert network.features[28].weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert all(layer.bias.count_nonzero() == 0 for layer in network.modules() if hasattr(layer, "bias"))


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_both_heads(size):
    images = torch.randn(2, 1, *size)
    assert small(in_channels=1)(images).shape == (2, 5)
    network = small(in_channels=1, head="segment")
    assert network(images).shape == (2, 5, *size)
    assert network.forward_features(images).shape == (2, network.num_features, 1, 1)
    assert not hasattr(network, "classifier")


def test_receptive_field_and_stride():
    analysis = analyse(small(), (1, 3, 64, 64))
    assert (analysis.receptive_field, analysis.output_stride) == ((212, 212), 32)


# Displaced aggregation units everywhere take twenty seconds: one layer of them, below, is enough.
@pytest.mark.parametrize("conv", [name for name in list_convs() if name != "dau"])
def test_takes_every_variant(conv):
    network = small(conv=conv, batch_norm=True)
    logits = network(torch.randn(2, 3, 40, 33))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("conv", list_convs())
def test_takes_every_variant_in_its_first_layer(conv):
    network = small(conv=conv, conv_layers="features.0")
    assert network.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    assert [name for name, _ in network.named_children()] == ["features", "avgpool", "classifier"]


def test_pretrained_weights(published):
    assert equal(pretrained(), published) == set(published)


def test_pretrained_weights_of_batch_norm_from_an_old_file(published):
    network, expected = pretrained(batch_norm=True), small(batch_norm=True).state_dict()
    assert equal(network, expected) == set(expected)


def test_other_classes_get_a_last_layer_of_their_own(published):
    assert set(published) - equal(pretrained(num_classes=2), published) == {"classifier.6.weight", "classifier.6.bias"}


@pytest.mark.parametrize("options", [{"head_width": 4}, {"pool_size": 2}, {"head": "segment"}])
def test_of_another_head_the_features_are_loaded(published, options):
    same = equal(pretrained(**options), published)
    of_features = {name for name in published if name.startswith("features.")}
    assert of_features <= same
    assert all(name.endswith("bias") for name in same - of_features)  # both zero


@pytest.mark.parametrize("conv", ["gaussian", "octave", {"name": "standard", "kernel_size": 5}])
def test_a_replaced_layer_keeps_the_variants_own_weights(published, conv):
    if conv == "gaussian":
        conv = GAUSSIAN
    network = pretrained(conv=conv, conv_layers="features.0")
    replaced = {"features.0.weight", "features.0.bias"}
    assert set(published) - replaced <= equal(network, published)
    assert "features.0.weight" not in equal(network, published)


def test_variants_everywhere_leave_the_head_to_be_loaded(published):
    network = pretrained(conv=GAUSSIAN)
    assert isinstance(network.features[0], GaussianDerivativeConv2d)
    assert {name for name in published if name.startswith("classifier.")} <= equal(network, published)
    assert network(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("invalid hash value")])
def test_weights_that_cannot_be_had(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(OSError, match=rf"{error}.*vgg16-397923af.pth elsewhere.*init_from.*set pretrained to false"):
        pretrained()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 1, "pretrained": True}, "pretrained weights are for 3 channels, not 1"),
        ({"head_width": 0}, r"head_width \(0\)"),
        ({"head": "segmentation"}, "Did you mean 'segment'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_images_that_are_too_small():
    with pytest.raises(ValueError, match="needs 32 pixels a side, got 31x64"):
        on_meta(**SMALL_HEAD)(torch.empty(1, 3, 31, 64, device="meta"))
