"""The picture of `convsuite describe`: memory and usable output over patch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.files import written_whole
from lightning_modules.pictures.saving import BLUE, GREEN, ORANGE, in_style
from models.patch_costs import PatchCost


def draw_patch_costs(path: Path, costs: Sequence[PatchCost], title: str) -> None:
    """Writes a PNG to `path`: memory of a patch, memory of one of its voxels, and the usable share, by patch size.

    Args:
        path: Missing folders are made; a file is replaced.
        costs: Of ascending patch sizes.
        title: What is described.
    """
    from matplotlib.figure import Figure

    with in_style():
        figure = Figure(figsize=(7.2, 2.4))
        figure.suptitle(title)
        whole, voxel, share = figure.subplots(1, 3)
        sides = [cost.side for cost in costs]
        for name, colour in (("training", ORANGE), ("inference", BLUE)):
            memory = [getattr(cost.memory, name) for cost in costs]
            style = {"color": colour, "markersize": 3, "label": name}
            whole.plot(sides, [size / 2**20 for size in memory], "o-", **style)
            voxel.plot(
                sides, [size / cost.voxels / 2**10 for size, cost in zip(memory, costs, strict=True)], "o-", **style
            )
        usable = [math.nan if cost.usable is None else 100 * cost.usable for cost in costs]
        share.plot(sides, usable, "o-", color=GREEN, markersize=3)
        whole.set(ylabel="MiB a patch, beside weights", yscale="log")
        voxel.set(ylabel="KiB a voxel of the output", ylim=(0, None))
        share.set(ylabel="usable share of the input, %", ylim=(0, 100))
        whole.legend()
        for axes in (whole, voxel, share):
            axes.set_xlabel("side of the output patch, voxels")
        with written_whole(path) as file:
            figure.savefig(file, format="png", dpi=figure.dpi)
