"""`convsuite describe`: what a network costs and sees, layer by layer, before any training."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.analysis import Analysis, Layer, Stride, analyse
from models.patch_sizes import output_sides
from models.voxelwise import VoxelwiseNetwork

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console
    from rich.table import Table

    from models.patch_costs import PatchCost

# What `extra_repr` shows besides the options that tell one convolution, pooling or variant from another.
_LEFT_OUT = {
    "affine",
    "bias",
    "ceil_mode",
    "elementwise_affine",
    "eps",
    "in_features",
    "inplace",
    "momentum",
    "out_features",
    "padding",
    "track_running_stats",
}
_DEFAULTS = {"stride": 1, "dilation": 1, "groups": 1}


_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `convsuite describe` alone."""
    parser.add_argument(
        "--patch_sizes",
        type=int,
        nargs="+",
        default=[],
        metavar="SIDE",
        help="add a table of what output patches of these sides cost in memory, and how much of them is usable, and "
        "one of the receptive field of each path",
    )
    parser.add_argument("--patch_plot", type=str | None, metavar="FILE", help="draw that table into this PNG")
    parser.add_argument(
        "--effective_field",
        type=int,
        default=0,
        metavar="N",
        help="measure the effective receptive field, by the gradient over N random inputs (8 are plenty)",
    )


@dataclass(frozen=True)
class Extras:
    """What is measured besides, where it is asked for, since it takes longer.

    Args:
        patch_sizes: Sides of output patches, whose memory and usable share become a table; of a valid network the
            nearest that it can give.
        patch_plot: The PNG file that gets the same as a picture.
        effective_field: Random inputs over which the effective receptive field is measured; 0 for none.
        autocast: The lower precision of a training in mixed precision, in which memory is counted.
    """

    patch_sizes: Sequence[int] = ()
    patch_plot: Path | None = None
    effective_field: int = 0
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if min(self.patch_sizes, default=1) < 1:
            raise ValueError(f"patch_sizes must be positive, got {list(self.patch_sizes)}")
        if self.patch_plot is not None and len(self.patch_sizes) < 2:
            raise ValueError("patch_plot draws over patch sizes: give two or more, such as --patch_sizes 16 32 64")
        if self.effective_field < 0:
            raise ValueError(f"effective_field is a number of random inputs, got {self.effective_field}")

    @classmethod
    def of(cls, config: Namespace) -> Extras:
        """What the options of `add_arguments` ask for, in the precision of the configured training."""
        return cls(
            patch_sizes=config.patch_sizes,
            patch_plot=Path(config.patch_plot) if config.patch_plot else None,
            effective_field=config.effective_field,
            autocast=_AUTOCAST.get(config.trainer.precision),
        )


def describe(
    network: nn.Module, input_size: Sequence[int], console: Console | None = None, extras: Extras | None = None
) -> None:
    """Prints a network's parameters, MACs, receptive field and output stride, then its layers.

    Layers that have neither parameters nor MACs and leave shape and receptive field as they were (activations,
    dropout) are left out.

    Args:
        network: takes one tensor of images or latents.
        input_size: (N, C, H, W), (N, C, X, Y, Z), or (N, features). Sides that a valid network, whose output is smaller
            than its input, cannot take are those of the output patch that is wanted: what is described is the input
            that it needs for the nearest one.
        console: where to print; the terminal by default.
        extras: what else is to be measured.

    Raises:
        ValueError: as `models.analysis.analyse`, or `extras` ask for something that the network has not.
    """
    from rich.console import Console

    console = console or Console()
    extras = extras or Extras()
    size = _taken_size(network, input_size)
    analysis = _analyse(network, size)
    summary = _summary(network, analysis)
    if isinstance(network, VoxelwiseNetwork) and network.margin:
        summary.add_row("output patch", _needed_input(network, size[2:]))
    if extras.effective_field:
        summary.add_row("effective field", _effective_field(network, size, extras.effective_field))
    console.print(summary)
    console.print(_layer_table(analysis.layers))
    if extras.patch_sizes:
        _describe_patches(network, analysis, extras, console)


def _taken_size(network: nn.Module, size: Sequence[int]) -> Sequence[int]:
    """`size` where the network takes it, else the input for an output patch of these sides, or of the nearest."""
    if not isinstance(network, VoxelwiseNetwork) or not network.margin:
        return size
    lost = 2 * network.margin
    if all(network.fits(side - lost) for side in size[2:]):
        return size
    return [*size[:2], *(output_sides(network, side, 1)[0] + lost for side in size[2:])]


def _analyse(network: nn.Module, size: Sequence[int]) -> Analysis:
    if len(size) < 5:
        return analyse(network, size)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):  # a pass over the values of a volume takes minutes
        return analyse(network, size)


def _needed_input(network: VoxelwiseNetwork, sides: Sequence[int]) -> str:
    margin = network.margin
    patch = [side - 2 * margin for side in sides]
    others = sorted({other for side in patch for other in output_sides(network, side, 5)} - set(patch))
    return (
        f"{_sizes(patch)} needs an input of {_sizes(sides)}, {margin} more at each border; "
        f"near it fit {', '.join(map(str, others))}"
    )


def _effective_field(network: nn.Module, size: Sequence[int], samples: int) -> str:
    from models.effective_field import effective_field

    field = effective_field(network, size, samples)
    sigma = "×".join(f"{sigma:.1f}" for sigma in field.sigma)
    return f"{_sizes(field.extent())} hold 95 % of the gradient's energy along each axis, σ {sigma} ({samples} inputs)"


def _describe_patches(network: nn.Module, analysis: Analysis, extras: Extras, console: Console) -> None:
    if not isinstance(network, VoxelwiseNetwork):
        raise ValueError(
            f"patch_sizes are for networks that give patches (unet, fcn, deepmedic), not {type(network).__name__}"
        )
    from lightning_modules.commands.patch_plot import draw_patch_costs
    from models.patch_costs import patch_costs

    console.print(_pathway_table(network, analysis.layers))
    costs = list(patch_costs(network, analysis, extras.patch_sizes, extras.autocast))
    console.print(_cost_table(costs, extras.autocast))
    if extras.patch_plot is not None:
        draw_patch_costs(extras.patch_plot, costs, type(network).__name__)
        console.print(f"drawn: {extras.patch_plot}")


def _pathway_table(network: VoxelwiseNetwork, layers: Sequence[Layer]) -> Table:
    names = {module: name for name, module in network.named_modules()}
    table = _table("What a voxel of each path sees where it joins the others.")
    for heading in ("path", "last layer", "output", "stride", "receptive\nfield"):
        table.add_column(heading, justify="left" if heading in ("path", "last layer") else "right", overflow="fold")
    for path, module in network.pathways().items():
        within = [
            layer for layer in layers if f"{layer.name}.".startswith(f"{names[module]}.") and layer.receptive_field
        ]
        if within:
            last = within[-1]
            table.add_row(path, last.name, _shapes(last), _stride(last.output_stride), _sizes(last.receptive_field))
    return table


def _cost_table(costs: Iterable[PatchCost], autocast: torch.dtype | None) -> Table:
    precision = "the type of the weights" if autocast is None else f"{autocast} autocast".removeprefix("torch.")
    table = _table(
        f"Memory of tensors in {precision}, one patch a batch, beside weights and optimiser. Usable: output voxels "
        "that no padding reached, as a share of the input's."
    )
    for heading in ("output\npatch", "input", "usable", "training\nMiB", "inference\nMiB"):
        table.add_column(heading, justify="right")
    for heading in ("training, KiB\nan output voxel", "inference, KiB\nan output voxel"):
        table.add_column(heading, justify="right")
    for cost in costs:
        table.add_row(
            _sizes([cost.side] * cost.dimensions),
            _sizes([cost.input_side] * cost.dimensions),
            "-" if cost.usable is None else f"{100 * cost.usable:.1f} %",
            f"{cost.memory.training / 2**20:,.1f}",
            f"{cost.memory.inference / 2**20:,.1f}",
            f"{cost.training_per_voxel / 2**10:,.2f}",
            f"{cost.inference_per_voxel / 2**10:,.2f}",
        )
    return table


def _summary(network: nn.Module, analysis: Analysis) -> Table:
    from rich.table import Table

    frozen = analysis.parameters - analysis.trainable_parameters
    field = _sizes(analysis.receptive_field)
    summary = Table.grid(padding=(0, 2))
    summary.add_row("network", f"{type(network).__name__}, input {_sizes(analysis.input_size)}")
    summary.add_row("parameters", f"{analysis.parameters:,}" + (f" ({frozen:,} frozen)" if frozen else ""))
    summary.add_row("MACs", f"{analysis.macs:,} ({_short(analysis.macs)})")
    followed = analysis.receptive_field is not None and analysis.ended_by != "output"
    summary.add_row("receptive field", f"{field} before {analysis.ended_by}" if followed else field)
    summary.add_row("output stride", _stride(analysis.output_stride))
    return summary


def _layer_table(layers: Iterable[Layer]) -> Table:
    from rich.markup import escape

    table = _table("Layers that change nothing counted here are left out.")
    table.add_column("layer", overflow="fold")
    table.add_column("type", overflow="fold", min_width=24)  # the longest class name, also in a narrow terminal
    for heading in ("output", "parameters", "MACs", "receptive\nfield"):
        table.add_column(heading, justify="right", overflow="fold")
    for layer in _telling(layers):
        table.add_row(
            escape(layer.name or "(network)"),
            escape(layer_type(layer.module)).replace("(", " (", 1),  # where the line may break
            _shapes(layer) or "does not run",
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            _sizes(layer.receptive_field),
        )
    return table


def _table(caption: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption)


def _telling(layers: Iterable[Layer]) -> Iterator[Layer]:
    before: Layer | None = None
    for layer in layers:
        unchanged = before is not None and (layer.output_shapes, layer.receptive_field) == (
            before.output_shapes,
            before.receptive_field,
        )
        if layer.parameters or layer.macs or not unchanged:
            yield layer
        before = layer


def layer_type(module: nn.Module) -> str:
    """The layer's class with the options that tell it from its like: `Conv2d(kernel_size=3, stride=2)`.

    Channels are left out, since shapes show them, and so are values that are torch's defaults.
    """
    name = type(module).__name__
    try:
        call = ast.parse(f"options({module.extra_repr()})", mode="eval").body
    except SyntaxError:  # free text
        return name
    keywords = call.keywords if isinstance(call, ast.Call) else []
    options = {keyword.arg: _collapsed(keyword.value) for keyword in keywords if keyword.arg not in _LEFT_OUT}
    shown = [f"{key}={value}" for key, value in options.items() if value != str(_DEFAULTS.get(key or ""))]
    return f"{name}({', '.join(shown)})" if shown else name


def _collapsed(value: ast.expr) -> str:
    """An option as text, (3, 3) as 3."""
    if isinstance(value, ast.Tuple) and len({ast.unparse(element) for element in value.elts}) == 1:
        return ast.unparse(value.elts[0])
    return ast.unparse(value)


def _shapes(layer: Layer) -> str:
    return " + ".join(_sizes(shape[1:]) for shape in layer.output_shapes)


def _stride(stride: Stride | None) -> str:
    return _sizes(stride) if isinstance(stride, tuple) or stride is None else f"{stride}"


def _sizes(sizes: Sequence[float] | None) -> str:
    return "-" if sizes is None else "×".join(map(str, sizes))


def _short(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return str(count)
