"""`convsuite describe`: what a network costs and sees, layer by layer, before any training."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lightning_modules.terminal import terminal
from models.analysis import Analysis, Layer, Stride, analyse
from models.patch_sizes import output_sides
from models.voxelwise import VoxelwiseNetwork

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console
    from rich.table import Table

    from datamodules.volumes.patch_sampling import PatchCutter
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
_UNLIMITED = 10_000  # characters of a line
_LONGEST_CLASS = 24  # characters of a type's name, which stay together where its options wrap

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
    network: nn.Module,
    input_size: Sequence[int],
    console: Console | None = None,
    extras: Extras | None = None,
    cutter: PatchCutter | None = None,
) -> None:
    """Prints a network's parameters, MACs, receptive field and output stride, then its layers.

    Layers that have neither parameters nor MACs and leave shape and receptive field as they were (activations,
    dropout) are left out. One that runs several times has a row for each place where it changes something.

    Args:
        network: takes one tensor of images or latents.
        input_size: (N, C, H, W), (N, C, X, Y, Z), or (N, features). Where a valid network, whose output is smaller than
            its input, cannot take these sides, the nearest are described.
        console: where to print; the terminal by default.
        extras: what else is to be measured.
        cutter: how training patches are cut, where there are any: a valid network is described on the input that it
            needs for one, or for the nearest patch that it can give, whatever context the data have.

    Raises:
        ValueError: as `models.analysis.analyse`, or `extras` ask for something that the network has not.
    """
    console = console or terminal()
    extras = extras or Extras()
    size = _taken_size(network, input_size, cutter)
    analysis = _analyse(network, size)
    summary = _summary(network, analysis)
    if isinstance(network, VoxelwiseNetwork) and network.margin:
        summary.add_row("output patch", _needed_input(network, size[2:], cutter))
    if (margin := getattr(network, "margin", 0)) and cutter is not None and cutter.context != margin:
        summary.add_row("data.context", f"{cutter.context} is not the network's margin: set it to {margin}")
    if extras.effective_field:
        summary.add_row("effective field", _effective_field(network, size, extras.effective_field))
    console.print(summary)
    _print(console, _layer_table(analysis.layers))
    if extras.patch_sizes:
        _describe_patches(network, analysis, extras, console)


def _taken_size(network: nn.Module, size: Sequence[int], cutter: PatchCutter | None) -> Sequence[int]:
    """`size`, or what a valid network needs for a training patch; where it does not take these sides, the nearest."""
    lost = 2 * getattr(network, "margin", 0)
    if not lost:
        return size
    patch = [side - lost for side in size[2:]] if cutter is None else cutter.patch_size
    if isinstance(network, VoxelwiseNetwork):
        patch = [side if network.fits(side) else output_sides(network, side, 1)[0] for side in patch]
    return [*size[:2], *(side + lost for side in patch)]


def _analyse(network: nn.Module, size: Sequence[int]) -> Analysis:
    if len(size) < 5:
        return analyse(network, size)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):  # a pass over the values of a volume takes minutes
        return analyse(network, size)


def _needed_input(network: VoxelwiseNetwork, sides: Sequence[int], cutter: PatchCutter | None) -> str:
    margin = network.margin
    patch = [side - 2 * margin for side in sides]
    others = sorted({other for side in patch for other in output_sides(network, side, 5)} - set(patch))
    said = (
        f"{_sizes(patch)} needs an input of {_sizes(sides)}, {margin} more at each border; "
        f"near it fit {', '.join(map(str, others))}"
    )
    if cutter is None or [*cutter.patch_size] == patch:
        return said
    return f"{_sizes(cutter.patch_size)} (data.patch_size) does not fit its grid; {said}"


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

    _print(console, _pathway_table(network, analysis.layers))
    costs = list(patch_costs(network, analysis, extras.patch_sizes, extras.autocast))
    _print(console, _cost_table(costs, extras.autocast))
    if extras.patch_plot is not None:
        draw_patch_costs(extras.patch_plot, costs, type(network).__name__)
        console.print(f"drawn: {extras.patch_plot}")


def _pathway_table(network: VoxelwiseNetwork, layers: Sequence[Layer]) -> Table:
    names = {module: name for name, module in network.named_modules()}
    rows = []
    for path, module in network.pathways().items():
        within = [
            layer for layer in layers if f"{layer.name}.".startswith(f"{names[module]}.") and layer.receptive_field
        ]
        if within:
            last = within[-1]
            rows.append([path, last.name, _shapes(last), _stride(last.output_stride), _sizes(last.receptive_field)])
    return _table(
        "What a voxel of each path sees where it joins the others.",
        ("path", "last layer", "output", "stride", "receptive\nfield"),
        rows,
        left=2,
    )


def _cost_table(costs: Iterable[PatchCost], autocast: torch.dtype | None) -> Table:
    precision = "the type of the weights" if autocast is None else f"{autocast} autocast".removeprefix("torch.")
    headings = ["output\npatch", "input", "usable", "training\nMiB", "inference\nMiB"]
    headings += ["training, KiB\nan output voxel", "inference, KiB\nan output voxel"]
    rows = [
        [
            _sizes([cost.side] * cost.dimensions),
            _sizes([cost.input_side] * cost.dimensions),
            "-" if cost.usable is None else f"{100 * cost.usable:.1f} %",
            f"{cost.memory.training / 2**20:,.1f}",
            f"{cost.memory.inference / 2**20:,.1f}",
            f"{cost.training_per_voxel / 2**10:,.2f}",
            f"{cost.inference_per_voxel / 2**10:,.2f}",
        ]
        for cost in costs
    ]
    return _table(
        f"Memory of tensors in {precision}, one patch a batch, beside weights and optimiser. Usable: output voxels "
        "that no padding reached, as a share of the input's.",
        headings,
        rows,
        left=0,
    )


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
    return _table(
        "Layers that change nothing counted here are left out. Parameters are counted where a layer first runs.",
        ("layer", "type", "output", "parameters", "MACs", "receptive\nfield"),
        [
            [
                layer.name or "(network)",
                layer_type(layer.module).replace("(", " (", 1) + (f", {layer.calls} calls" if layer.calls > 1 else ""),
                _shapes(layer) or "does not run",
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                _sizes(layer.receptive_field),
            ]
            for layer in _telling(layers)
        ],
        left=2,
        wrapped=("type",),
    )


def _table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], left: int, wrapped: Collection[str] = ()
) -> Table:
    """A table of which the first `left` columns are text; all but those `wrapped` stay as wide as their cells."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption)
    for column, heading in enumerate(headings):
        wraps = heading in wrapped
        table.add_column(
            heading,
            justify="left" if column < left else "right",
            no_wrap=not wraps,
            overflow="fold",
            min_width=_LONGEST_CLASS if wraps else max((len(row[column]) for row in rows), default=1),
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print(console: Console, table: Table) -> None:
    """Prints a table, in a narrow terminal wider than that, which wraps lines: no number loses its digits."""
    from rich.measure import Measurement

    least = Measurement.get(console, console.options.update(max_width=_UNLIMITED), table).minimum
    if least > console.width:
        table.width = least
    console.print(table, crop=False)


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
