"""`convsuite describe`: what a network costs and sees, layer by layer, before any training."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from models.analysis import Analysis, Layer, analyse

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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


def describe(network: nn.Module, input_size: Sequence[int], console: Console | None = None) -> None:
    """Prints a network's parameters, MACs, receptive field and output stride, then its layers.

    Layers that have neither parameters nor MACs and leave shape and receptive field as they were (activations,
    dropout) are left out.

    Args:
        network: takes one tensor of images or latents.
        input_size: (N, C, H, W), (N, C, D, H, W), or (N, features).
        console: where to print; the terminal by default.

    Raises:
        ValueError: as `models.analysis.analyse`.
    """
    from rich.console import Console

    console = console or Console()
    analysis = analyse(network, input_size)
    console.print(_summary(network, analysis))
    console.print(_layer_table(analysis.layers))


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
    summary.add_row("output stride", _stride(analysis))
    return summary


def _layer_table(layers: Iterable[Layer]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    caption = "Layers that change nothing counted here are left out."
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption)
    table.add_column("layer", overflow="fold")
    table.add_column("type", overflow="fold", min_width=24)  # the longest class name, also in a narrow terminal
    for heading in ("output", "parameters", "MACs", "receptive\nfield"):
        table.add_column(heading, justify="right", overflow="fold")
    for layer in _telling(layers):
        table.add_row(
            escape(layer.name or "(network)"),
            escape(layer_type(layer.module)).replace("(", " (", 1),  # where the line may break
            " + ".join(_sizes(shape[1:]) for shape in layer.output_shapes) or "does not run",
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            _sizes(layer.receptive_field),
        )
    return table


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


def _stride(analysis: Analysis) -> str:
    stride = analysis.output_stride
    return _sizes(stride) if isinstance(stride, tuple) or stride is None else f"{stride}"


def _sizes(sizes: Sequence[float] | None) -> str:
    return "-" if sizes is None else "×".join(map(str, sizes))


def _short(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return str(count)
