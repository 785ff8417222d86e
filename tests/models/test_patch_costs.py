import pytest

from models import create_model
from models.analysis import analyse
from models.memory import measure_memory
from models.patch_costs import patch_costs


def costs_of(wanted, **options):
    network = create_model(
        "unet", dimensions=3, widths=(2, 4), kernel_size=3, convs_per_level=1, in_channels=2, **options
    )
    analysis = analyse(network, (1, 2, *[8 + 2 * network.margin] * 3))
    return network, analysis, list(patch_costs(network, analysis, wanted))


def test_a_valid_network():
    network, _, costs = costs_of([8, 11], padding="valid")
    margin = network.margin
    assert margin > 0
    assert [cost.side for cost in costs] == [8, 10, 12], "11 is not on the grid"
    assert [cost.input_side for cost in costs] == [side + 2 * margin for side in (8, 10, 12)]
    assert costs[0].usable == pytest.approx((8 / (8 + 2 * margin)) ** 3)
    assert costs[0].memory == measure_memory(network, (1, 2, *[8 + 2 * margin] * 3))
    assert costs[0].training_per_voxel == costs[0].memory.training / 8**3
    assert costs[0].training_per_voxel > costs[-1].training_per_voxel


def test_a_padded_network():
    _, analysis, costs = costs_of([32, 4, 32], padding="same")
    assert [(cost.side, cost.input_side) for cost in costs] == [(4, 4), (32, 32)]
    assert costs[0].usable == 0, "the receptive field is larger than the patch"
    (field, *_) = analysis.receptive_field
    assert costs[1].usable == pytest.approx(((32 - field + 1) / 32) ** 3)
    assert costs[1].inference_per_voxel == costs[1].memory.inference / 32**3
