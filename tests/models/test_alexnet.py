"""AlexNet's receptive field, which the paper on medical segmentation quotes as 254x254."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn

from models.analysis import analyse

IMAGE, CROP = 256, 224
QUOTED = 254


@pytest.fixture(scope="module")
def fields():
    """By layer; the first dense layer is the 6x6 convolution that it is."""
    with torch.device("meta"):
        alexnet = torchvision.models.alexnet()
        network = nn.Sequential(OrderedDict(features=alexnet.features, fc6=nn.Conv2d(256, 4096, 6)))
    layers = analyse(network, (1, 3, CROP, CROP)).layers
    return {layer.name: layer for layer in layers}


def test_layer_by_layer(fields):
    sides = {"features.0": 11, "features.2": 19, "features.3": 51, "features.5": 67, "features.6": 99}
    sides |= {"features.8": 131, "features.10": 163, "features.12": 195, "fc6": 355}
    assert {name: fields[name].receptive_field for name in sides} == {name: (s, s) for name, s in sides.items()}
    assert fields["features.12"].output_stride == 32
    assert fields["fc6"].output_shapes == ((1, 4096, 1, 1),)


def test_none_of_its_layers_sees_what_is_quoted(fields):
    """The first sees 11 pixels, and all others add multiples of 8."""
    assert {layer.receptive_field[0] % 8 for layer in fields.values()} == {11 % 8}
    assert QUOTED % 8 != 11 % 8


def test_places_in_an_image(fields):
    """Nine, 3 x 3, is what a field of 254 has in an image of 256, pixel by pixel; AlexNet's own crops have 33 x 33."""

    def places(side):
        return max(0, IMAGE - side + 1)

    assert places(QUOTED) == 3
    assert places(fields["features.12"].receptive_field[0]) == 62
    assert places(fields["fc6"].receptive_field[0]) == 0
    assert places(CROP) == 33
