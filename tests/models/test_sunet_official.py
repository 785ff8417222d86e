"""The SUNet authors' weights: every tensor of their files finds its place, and gives their outputs."""

from __future__ import annotations

import hashlib

import pytest
import torch

from models import create_model
from models.sunet import load_official_state_dict
from tests.helpers.sunet_weights import COLUMNS, conv_shapes, fill, norm_shapes, normal, official_shapes

# SHA-256 of the sorted lines "name [shape]" of the classifiers' files.
FILES = {
    "sunet_64": "af78a94b71b3bb4ce49c92dbf3d68e7d20c85c0bdd3808d788b29ae2657910aa",
    "sunet_128": "802f5d70456558d5cb0becdc01d0cb45aca2cfc2667b7778f5e2cbbcb4e04be3",
    "sunet_7_128": "6b6e136232df5a0050008329be6dbb210c43384a8db145660a156f8122379376",
}
TINY = {"filters": 4, "block_depths": (1, 2, 1, 1), "block_widths": (8, 10, 12, 14), "num_classes": 5}

# What the authors' code gives: (size of the image, output stride) to the sum of all features and some, by flat index.
FEATURES = {
    (224, 32): (14627.951697, {1618: 0.68379, 4855: 1.213993, 21041: 0.318687, 27515: 1.301553, 48556: 0.697132}),
    (120, 32): (2646.842223, {767: 0.766152, 1535: 0.073636, 4223: 0.181549, 5375: 1.36727, 8831: 1.465096}),
    (120, 16): (14559.7259, {4181: 0.822023, 8362: 0.463702, 29268: 1.303986, 43903: 0.123088, 48084: 1.352717}),
    (120, 8): (72791.653744, {19199: 1.271131, 38399: 0.22896, 134399: 1.664519, 143999: 0.287465, 220799: 1.501256}),
}  # fmt: skip
LOGITS = [0.26232, 0.053766, 0.244732, -0.128889, -0.252735, 0.26067, -0.234795, -0.436988]  # of the first


@pytest.fixture(scope="module")
def weights():
    return fill(official_shapes(*COLUMNS["sunet_64"]))


def tiny(**options):
    return create_model("sunet_64", **{**TINY, **options})


def tiny_weights(num_classes: int = 5, **tensors):
    filters, depths, widths = TINY["filters"], TINY["block_depths"], TINY["block_widths"]
    return fill(official_shapes(filters, depths, widths, num_classes)) | tensors


def segmentation_weights(degridding: bool):
    head = conv_shapes("final.conv1", 14, 5, 1)
    if degridding:
        head = conv_shapes("final.conv1", 14, 512, 3) | conv_shapes("final.conv2", 512, 512, 3)
        head |= norm_shapes("final.bn1", 512) | norm_shapes("final.bn2", 512) | conv_shapes("final.conv3", 512, 5, 1)
    features = {name: value for name, value in tiny_weights().items() if name.startswith("features.")}
    return {f"module.{name}": value for name, value in {**features, **fill(head)}.items()}


# Names and numbers.


@pytest.mark.parametrize("name", COLUMNS)
def test_every_tensor_of_the_files_has_its_place(name):
    shapes = official_shapes(*COLUMNS[name])
    lines = sorted(f"{tensor} {list(shape)}" for tensor, shape in shapes.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == FILES[name]
    with torch.device("meta"):
        network = create_model(name)
        own = network.from_published({tensor: torch.empty(shape) for tensor, shape in shapes.items()})
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize(("size", "output_stride"), FEATURES)
def test_outputs_of_the_authors(weights, size, output_stride):
    network = create_model("sunet_64", output_stride=output_stride).eval()
    load_official_state_dict(network, weights)
    total, some = FEATURES[size, output_stride]
    with torch.no_grad():
        features = network.forward_features(normal(7, (1, 3, size, size))).flatten()
        logits = network.linear(features.unflatten(0, (1024, -1)).mean(1))
    torch.testing.assert_close(features[[*some]], torch.tensor([*some.values()]), rtol=0, atol=1e-5)
    assert features.double().sum().item() == pytest.approx(total, rel=1e-5)
    if size == 224:
        torch.testing.assert_close(logits[: len(LOGITS)], torch.tensor(LOGITS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("degridding", [False, True])
def test_segmentation_networks(degridding):
    network = tiny(head="segment", degridding=degridding, output_stride=16)
    weights = segmentation_weights(degridding)
    load_official_state_dict(network, weights)
    values = {value.data_ptr() for value in weights.values()}
    assert len(values) == len(network.state_dict())
    assert torch.equal(
        network.segmentation_head.conv.weight, weights[f"module.final.conv{3 if degridding else 1}.weight"]
    )
    if degridding:
        assert torch.equal(network.segmentation_head.conv1.weight, weights["module.final.conv1.weight"])
        assert torch.equal(network.segmentation_head.norm2.running_var, weights["module.final.bn2.running_var"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("is_nested", [False, True])
def test_as_files_hold_them(prefix, is_nested):
    weights = {
        f"{prefix}{name}": value for name, value in tiny_weights().items() if not name.endswith("num_batches_tracked")
    }
    network = tiny(multigrid=False, output_stride=8)
    load_official_state_dict(network, {"epoch": 3, "state_dict": weights} if is_nested else weights)
    decoder = network.blocks[1][1].decoders[0]
    assert torch.equal(decoder.deconv.weight, weights[f"{prefix}features.unet2_1.up.0.deconv0.weight"])
    assert torch.equal(decoder.conv.weight, weights[f"{prefix}features.unet2_1.up.0.deconv1.weight"])


def test_own_names_are_not_published_ones():
    network = tiny()
    assert network.from_published(network.state_dict()) is None
    assert network.from_published({}) is None


def test_features_alone_by_hand():
    weights, network = tiny_weights(), tiny(head="segment")
    missing, unexpected = network.load_state_dict(network.from_published(weights), strict=False)
    assert missing == ["segmentation_head.conv.weight", "segmentation_head.conv.bias"]
    assert unexpected == ["linear.weight", "linear.bias"]
    assert torch.equal(network.stem.weight, weights["features.conv1.weight"])


# What does not fit.


@pytest.mark.parametrize(
    ("options", "weights", "message"),
    [
        (
            {"head": "segment"},
            {},
            "Missing there: segmentation_head.conv.weight, .* Unexpected: linear.weight, .* init",
        ),
        ({"num_classes": 7}, {}, r"Of other shapes: linear.weight \(5, 14\) in place of \(7, 14\), linear.bias"),
        ({"filters": 8}, {}, "do not fit this SUNet64.* and .* more"),
        ({"stem": "small"}, {}, r"Of other shapes: stem.weight \(64, 3, 7, 7\) in place of \(64, 3, 3, 3\)\. "),
        ({"block_depths": (1, 1, 1, 1)}, {}, "Missing there: none. Unexpected: blocks.1.1."),
        ({"block_depths": (1, 3, 1, 1)}, {}, "Missing there: blocks.1.2.norm.weight.* Unexpected: none"),
        ({}, {"features.conv9.weight": torch.zeros(1)}, r"Unexpected: features.conv9.weight\. Of"),
        ({"conv": "octave"}, {}, "plain convolutions, but this network has OctaveConv2d, OctaveConvTranspose2d: build"),
        ({"conv": "depthwise_separable"}, {}, "this network has DepthwiseSeparableConv2d"),
    ],
)
def test_other_networks_are_refused(options, weights, message):
    network = tiny(**options)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_official_state_dict(network, tiny_weights(**weights))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_segmentation_file_with_another_head_is_refused():
    with pytest.raises(ValueError, match=r"Missing there: segmentation_head.conv1.weight.* Of other shapes: segm"):
        load_official_state_dict(tiny(head="segment", degridding=True), segmentation_weights(degridding=False))


def test_other_files_and_networks_are_named():
    with pytest.raises(ValueError, match=r"no weights of the SUNet authors.* Names here: conv1.weight"):
        load_official_state_dict(tiny(), {"conv1.weight": torch.zeros(1)})
    with pytest.raises(TypeError, match="for a SUNet, got a FashionCNN"):
        load_official_state_dict(create_model("fashion_cnn"), tiny_weights())
