"""Which patches a network can give, and the input that each of them needs."""

from __future__ import annotations

from itertools import count as count_up
from typing import Protocol


class SizedNetwork(Protocol):
    """What is asked of a network: every `models.voxelwise.VoxelwiseNetwork` answers."""

    margin: int
    smallest: int

    def fits(self, output_side: int) -> bool: ...


def input_side(network: SizedNetwork, output_side: int) -> int:
    """Voxels a side of the input from which `network` gives an output of `output_side`.

    Raises:
        ValueError: It can give none of that size; the message names the nearest.
    """
    check_output_side(network, output_side)
    return output_side + 2 * network.margin


def output_sides(network: SizedNetwork, near: int, count: int) -> list[int]:
    """The `count` sides of an output nearest to `near` that `network` can give, in increasing order.

    Sides of patches that are as long along every axis. Each axis counts for itself: any of these sides go together.
    """
    found: list[int] = []
    for distance in count_up():
        if len(found) >= count:
            break
        sides = {near - distance, near + distance}
        found += [side for side in sorted(sides) if side >= network.smallest and network.fits(side)]
    return sorted(found[:count])


def check_output_side(network: SizedNetwork, side: int) -> None:
    """Raise `ValueError` unless `network` can give an output of `side` voxels along an axis.

    The message names the nearest sizes that it can, with the inputs that they need.
    """
    if network.fits(side):
        return
    margin = network.margin
    offered = " or ".join(f"{near} (input {near + 2 * margin})" for near in output_sides(network, side, 2))
    raise ValueError(
        f"this {type(network).__name__} loses {margin} voxels at each border and gives no output of {side} a side "
        f"(input {side + 2 * margin}): its grid takes {offered}"
    )
