"""Patch sizes: every size that is offered is built, and every other one is refused with the nearest."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from models import create_model
from models.patch_sizes import check_output_side, input_side, output_sides

NETWORKS = [
    ("unet", {"widths": (1, 1, 1), "kernel_size": 3}),
    ("unet", {"widths": (1, 1, 1, 1, 1), "kernel_size": 3, "convs_per_level": 1}),
    ("unet", {"widths": (1, 1), "kernel_size": 1, "norm": "instance"}),
    ("fcn", {"widths": (1, 1, 1), "output_stride": 2}),
    ("fcn", {"widths": (1, 1, 1, 1, 1), "output_stride": 32, "dense_widths": (1,), "dense_kernel_size": 7}),
    ("deepmedic", {"widths": (1,) * 8, "norm": "instance"}),
    ("deepmedic", {"widths": (1, 1), "scales": (1, 3, 5), "residual": True}),
    ("deepmedic", {"widths": (1, 1), "scales": (1,), "kernel_size": 1}),
]
PADDINGS = ["same", "valid", "mirror"]
every_network = pytest.mark.parametrize(("name", "options"), NETWORKS)


def on_meta(name, padding="valid", **options):
    """A network of shapes alone."""
    with torch.device("meta"):
        return create_model(name, padding=padding, **options).eval()


def shape(network, side, dimensions=2):
    """Of what the network gives for an input of this side."""
    return tuple(network(torch.empty(1, 1, *[side] * dimensions, device="meta")).shape[2:])


@every_network
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_size_that_is_offered(name, options, dimensions):
    network = on_meta(name, dimensions=dimensions, **options)
    for near in (1, 50):
        for side in output_sides(network, near=near, count=5):
            assert shape(network, input_side(network, side), dimensions) == (side,) * dimensions


@every_network
def test_no_size_that_works_is_left_out(name, options):
    """Any other input has maps that do not halve, or windows that the border cuts."""
    network = on_meta(name, **options)
    offered = output_sides(network, near=network.smallest, count=3)
    assert offered == [side for side in range(network.smallest, offered[-1] + 1) if network.fits(side)]
    assert {later - side for side, later in pairwise(offered)} == {network.multiple}
    for side in range(offered[0] + 1, offered[1]):
        with pytest.raises(ValueError, match=rf"gives no output of {side} a side .*{offered[0]} .* or {offered[1]} "):
            shape(network, side + 2 * network.margin)


@pytest.mark.parametrize("padding", ["same", "mirror"])
def test_a_padded_network_gives_what_it_takes(padding):
    network = on_meta("unet", padding)
    assert output_sides(network, near=7, count=4) == [5, 6, 7, 8]
    assert output_sides(network, near=1, count=3) == [1, 2, 3]
    assert input_side(network, 7) == 7


def test_the_original_unet():
    network = on_meta("unet", widths=(1,) * 5, kernel_size=3)
    assert output_sides(network, near=388, count=3) == [372, 388, 404]
    assert input_side(network, 388) == 572
    message = (
        r"UNet loses 92 voxels at each border and gives no output of 380 a side \(input 564\): its grid takes "
        r"372 \(input 556\) or 388 \(input 572\)"
    )
    with pytest.raises(ValueError, match=message):
        input_side(network, 380)
    with pytest.raises(ValueError, match=r"takes 4 \(input 188\) or 20 \(input 204\)"):
        check_output_side(network, 0)


def test_the_original_deepmedic():
    """Kamnitsas et al., section 3.2: 9 voxels from 25 at full resolution and 19 at a third of it."""
    network = on_meta("deepmedic", dimensions=3)
    assert input_side(network, 9) == 57 == 19 * 3
    assert output_sides(network, near=9, count=3) == [6, 9, 12]
