"""What a network costs and sees before it is trained: parameters, MACs, receptive field, output stride, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.modes import in_mode
from models.receptive_field import Ended, FeatureMap, SpatialTracer
from models.receptive_field.feature_map import AxisMaps

Stride = int | float | tuple[int | float, ...]


@dataclass(frozen=True)
class Layer:
    """One layer of a network, as it ran. What is counted is the layer's own: layers sum up to the network.

    A module that is called several times is a layer for each kind of output: pooling that follows several convolutions
    is several layers, a network that takes slices in several passes has each of its layers once.

    Args:
        name: as in `named_modules()`.
        module: the layer itself.
        output_shapes: of every tensor that it returned; where there are several calls, in the first.
        parameters: those that no earlier layer has.
        macs: multiply-adds of all these calls.
        receptive_field: of its output; None where that is no feature map (behind the global pooling, in gates).
        output_stride: of its output; None as above.
        calls: of the module whose outputs are alike, but for the size of the batch; 0 where it did not run.
    """

    name: str
    module: nn.Module
    output_shapes: tuple[tuple[int, ...], ...]
    parameters: int
    macs: int
    receptive_field: tuple[int, ...] | None
    output_stride: Stride | None
    calls: int = 1


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found.

    Args:
        input_size: (N, C, H, W), (N, C, D, H, W) or (N, features) that was analysed.
        parameters: all parameters, shared ones once.
        trainable_parameters: those that require a gradient.
        macs: multiply-adds of one forward pass of `input_size` in eval mode, as `torch.utils.flop_counter` counts
            them (two of its operations to a multiply-add).
        receptive_field: theoretical receptive field of one value of the last feature map, (h, w) pixels, not clipped
            to the input; None where no feature map could be followed to the output (circular padding, which writes
            its result piece by piece, loses it).
        output_stride: input pixels between neighbours of the last feature map: a number where all axes agree, below 1
            where the network enlarges; None as above.
        ended_by: the operation behind the last feature map ("mean", "addmm", ...); "output" where the network returns
            the map itself.
        layers: in the order in which they first ran.
    """

    input_size: tuple[int, ...]
    parameters: int
    trainable_parameters: int
    macs: int
    receptive_field: tuple[int, ...] | None
    output_stride: Stride | None
    ended_by: str
    layers: tuple[Layer, ...] = field(repr=False)


def analyse(module: nn.Module, input_size: Sequence[int] = (1, 3, 224, 224)) -> Analysis:
    """Counts a network's parameters and multiply-adds and finds its receptive field, in one forward pass of zeros.

    The receptive field is exact, not a bound: the widest interval of input positions, over all values of the last
    feature map, that any of its values depends on through convolutions, pooling and interpolation, on an image without
    borders. The last feature map is the input of the global pooling (or of the first dense layer over positions), or
    the output where there is none. By convention gates computed from globally pooled values (squeeze-and-excitation)
    and normalisation statistics do not count, since through them every value sees the whole image; attention between
    positions ends the spatial part. Several outputs count with the largest of their receptive fields.

    The pass runs on the module's own device and dtype, in eval mode and without gradients; module and random state are
    left as they were.

    Args:
        module: network that takes one image tensor, or one of latents.
        input_size: (N, C, H, W), or (N, C, D, H, W) for volumes; receptive field and stride then have three entries.
            (N, features) for latents, which have neither.

    Raises:
        ValueError: `input_size` is no such size, or the network cannot take it (too small, other channels).
    """
    size = _check_size(input_size)
    counter, tracer = FlopCounterMode(display=False), SpatialTracer()
    recorder = _Recorder(counter, tracer)
    with _evaluating(module), _plain_operations(), recorder.recording(module), counter, tracer:
        images = _images(module, size)
        tracer.watch(images)
        views = [_view_behind(tracer, part) for part in _parts(_run(module, images))]
    last = max(views, key=lambda view: view.receptive_field or (), default=_NOTHING)
    return Analysis(
        input_size=size,
        parameters=sum(p.numel() for p in module.parameters()),
        trainable_parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        macs=counter.get_total_flops() // 2,
        receptive_field=last.receptive_field,
        output_stride=last.output_stride,
        ended_by=last.ended_by,
        layers=recorder.layers(),
    )


def latency(module: nn.Module, input_size: Sequence[int] = (1, 3, 224, 224), repeats: int = 20) -> float:
    """Median milliseconds of a forward pass of zeros, in eval mode, on the module's own device and dtype.

    Raises:
        ValueError: as in `analyse`, or `repeats` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    size = _check_size(input_size)
    with _evaluating(module):
        images = _images(module, size)
        for _ in range(3):  # memory is allocated and kernels are chosen in the first passes
            _run(module, images)
        return statistics.median(_milliseconds(module, images) for _ in range(repeats))


def _milliseconds(module: nn.Module, images: Tensor) -> float:
    on_accelerator = images.device.type != "cpu"
    if on_accelerator:
        torch.accelerator.synchronize(images.device)
    start = time.perf_counter()
    module(images)
    if on_accelerator:
        torch.accelerator.synchronize(images.device)
    return 1000 * (time.perf_counter() - start)


def _check_size(input_size: Sequence[int]) -> tuple[int, ...]:
    size = tuple(input_size) if isinstance(input_size, Sequence) else (input_size,)
    if len(size) not in (2, 4, 5) or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(
            f"input_size must be (batch, channels, height, width), (batch, channels, depth, height, width) for volumes "
            f"or (batch, features) for latents, all positive whole numbers; got {size}"
        )
    return size


def _images(module: nn.Module, size: tuple[int, ...]) -> Tensor:
    tensors = [*module.parameters(), *module.buffers()]
    model = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return torch.zeros(size, dtype=model.dtype, device=model.device)


def _run(module: nn.Module, images: Tensor) -> Any:
    try:
        return module(images)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise ValueError(
            f"{type(module).__name__} cannot take input_size {tuple(images.shape)} (batch, channels, then the image): "
            f"{error}"
        ) from error


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and everything as it was afterwards."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with in_mode(module, training=False), torch.no_grad(), torch.random.fork_rng(devices):
        yield


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Nothing compiled, nor fused into the attention of torch's own transformer layers: the counter sees neither."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@dataclass(frozen=True)
class _View:
    receptive_field: tuple[int, ...] | None = None
    output_stride: Stride | None = None
    ended_by: str = "unknown"


_NOTHING = _View()


def _view(maps: Iterable[AxisMaps], ended_by: Iterable[str] = ()) -> _View:
    axes = list(zip(*maps, strict=True))
    if not axes:
        return _NOTHING
    strides = [_number(min(abs(axis_map.stride) for axis_map in axis)) for axis in axes]
    return _View(
        receptive_field=tuple(max(axis_map.extent for axis_map in axis) for axis in axes),
        output_stride=strides[0] if len(set(strides)) == 1 else tuple(strides),
        ended_by=" and ".join(sorted(ended_by)),
    )


def _view_of(tracer: SpatialTracer, tensors: Iterable[Tensor]) -> _View:
    """What one value of a feature map sees; its members may have several resolutions."""
    notes = map(tracer.note, tensors)
    return _view(note.axis_maps for note in notes if isinstance(note, FeatureMap))


def _view_behind(tracer: SpatialTracer, part: Any) -> _View:
    """What one value of the last feature map in front of an output sees."""
    maps: set[AxisMaps] = set()
    ended_by: set[str] = set()
    for note in map(tracer.note, _tensors(part)):
        if note is None:
            continue
        maps |= note.last_maps
        if isinstance(note, Ended):
            ended_by |= note.by
        else:
            ended_by.add("avg_pool" if note.before_pooling else "output")
    return _view(maps, ended_by)


def _number(stride: Fraction) -> int | float:
    return int(stride) if stride.denominator == 1 else float(stride)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _parts(output: Any) -> list[Any]:
    """The outputs of a network: the members of plain containers; a pair that acts as one tensor stays whole."""
    if hasattr(output, "__torch_function__") or not isinstance(output, (dict, list, tuple)):
        return [output]
    members = output.values() if isinstance(output, dict) else output
    return [part for member in members for part in _parts(member)]


@dataclass
class _Call:
    """One call of a layer, and what was counted in it apart from other layers."""

    module: nn.Module
    flops: int = 0
    output_shapes: tuple[tuple[int, ...], ...] = ()
    view: _View = _NOTHING

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for calls of a layer whose outputs are alike, whatever the size of the batch."""
        return self.module, tuple(shape[1:] for shape in self.output_shapes), self.view


class _Recorder:
    """Watches the layers of a network while it runs."""

    def __init__(self, counter: FlopCounterMode, tracer: SpatialTracer) -> None:
        self._counter = counter
        self._tracer = tracer
        self._names: dict[nn.Module, str] = {}
        self._calls: list[_Call] = []
        self._running: list[_Call] = []
        self._counted = 0

    @contextmanager
    def recording(self, root: nn.Module) -> Iterator[None]:
        for name, module in _walk(root):
            self._names.setdefault(module, name)
        handles = [module.register_forward_pre_hook(self._enter) for module in self._names]
        handles += [module.register_forward_hook(self._leave) for module in self._names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layers(self) -> tuple[Layer, ...]:
        """Those that ran, in the order of their first call, then those that hold parameters and did not run."""
        calls: dict[Any, list[_Call]] = {}
        for call in self._calls:
            calls.setdefault(call.kind, []).append(call)
        ran = {call.module for call in self._calls}
        alike = [(same[0].module, same) for same in calls.values()]
        alike += [(module, []) for module in self._names if module not in ran]
        counted: set[nn.Parameter] = set()
        layers = []
        for module, same in alike:
            parameters = set(module.parameters(recurse=_is_convolution(module))) - counted
            counted |= parameters
            layer = self._layer(module, same, sum(p.numel() for p in parameters))
            is_leaf = next(module.children(), None) is None or _is_convolution(module)
            if layer.parameters or layer.macs or (is_leaf and same):
                layers.append(layer)
        return tuple(layers)

    def _layer(self, module: nn.Module, calls: Sequence[_Call], parameters: int) -> Layer:
        first = calls[0] if calls else _Call(module)
        return Layer(
            name=self._names[module],
            module=module,
            output_shapes=first.output_shapes,
            parameters=parameters,
            macs=sum(call.flops for call in calls) // 2,
            receptive_field=first.view.receptive_field,
            output_stride=first.view.output_stride,
            calls=len(calls),
        )

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._settle()
        self._calls.append(_Call(module))
        self._running.append(self._calls[-1])

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        self._settle()
        tensors = _tensors(output)
        call = self._running.pop()
        call.output_shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        call.view = _view_of(self._tracer, tensors)

    def _settle(self) -> None:
        """Books what was counted since the last call of a layer began or ended."""
        total = self._counter.get_total_flops()
        if self._running:
            self._running[-1].flops += total - self._counted
        self._counted = total


def _walk(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules by name; a convolution counts as one layer, whatever it is made of."""
    yield name, module
    if _is_convolution(module):
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name)


def _is_convolution(module: nn.Module) -> bool:
    return hasattr(module, "in_channels") and hasattr(module, "kernel_size")
