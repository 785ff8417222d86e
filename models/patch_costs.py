"""What a patch costs and gives: the memory that an output patch takes, and how much of its input was worth it.

Small patches waste the margin that a valid network loses around each of them, or that zeros reach in a padded one;
large ones take memory that could make the network deeper or wider.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from models.analysis import Analysis
from models.memory import Memory, measure_memory
from models.patch_sizes import input_side, output_sides
from models.voxelwise import VoxelwiseNetwork


@dataclass(frozen=True)
class PatchCost:
    """One output patch, of `side` voxels along each of `dimensions` axes, alone in its batch.

    Args:
        side: of the output.
        input_side: of the input that the network needs for it.
        dimensions: 2 or 3.
        memory: of one pass over that input.
        usable: the output voxels that nothing but the image reached, no padding, as a share of the input's voxels: the
            whole output of a valid network; of a padded one those whose receptive field lies within the patch. None
            where the receptive field is not known.
    """

    side: int
    input_side: int
    dimensions: int
    memory: Memory
    usable: float | None

    @property
    def voxels(self) -> int:
        """Of the output."""
        return self.side**self.dimensions

    @property
    def training_per_voxel(self) -> float:
        """Bytes a voxel of the output, beside the weights."""
        return self.memory.training / self.voxels

    @property
    def inference_per_voxel(self) -> float:
        """Bytes a voxel of the output, beside the weights."""
        return self.memory.inference / self.voxels


def patch_costs(
    network: VoxelwiseNetwork, analysis: Analysis, wanted: Iterable[int], autocast: torch.dtype | None = None
) -> Iterator[PatchCost]:
    """The cost of each output patch, in ascending order.

    Args:
        network: one of those that give patches.
        analysis: of the network, on an input with the channels that count.
        wanted: sides of patches; the nearest two stand in for one that the network cannot give.
        autocast: as in `measure_memory`.
    """
    channels, *axes = analysis.input_size[1:]
    for side in sorted(set().union(*(_nearest(network, side) for side in wanted))):
        larger = input_side(network, side)
        yield PatchCost(
            side=side,
            input_side=larger,
            dimensions=len(axes),
            memory=measure_memory(network, (1, channels, *[larger] * len(axes)), autocast),
            usable=_usable(side, larger, analysis.receptive_field),
        )


def _nearest(network: VoxelwiseNetwork, side: int) -> list[int]:
    nearest = output_sides(network, side, 2)
    return [side] if side in nearest else nearest


def _usable(side: int, larger: int, receptive_field: Sequence[int] | None) -> float | None:
    if receptive_field is None:
        return None
    if larger > side:
        return (side / larger) ** len(receptive_field)
    return math.prod(max(0, side - extent + 1) / side for extent in receptive_field)
