"""What Gaussian derivative layers cost beside `nn.Conv2d`, on the layers of the Fashion-MNIST network.

    python -m benchmarks.gaussian [--device cuda] [--threads 2] [--seconds 1] [--json results.json]

Every row is measured side by side: its contenders take turns, and ratios are medians over the turns. The layer types
are those of Table 1, read from configs/gaussian/layers; `Conv2d` has the kernel size of the layer beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.bench import PRECISIONS, Bench, Measure, Row, run
from benchmarks.timing import Step, Timings, take_turns
from models import create_model
from models.convs import SynthesisedConv2d, build_variant

LAYER_CONFIGS = Path(__file__).parents[1] / "configs" / "gaussian" / "layers"
BATCH_SIZES = (32, 64, 128)

Spec = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One convolution of `fashion_cnn`: channels in and out, and the side of its square maps."""

    in_channels: int
    out_channels: int
    side: int

    def __str__(self) -> str:
        return f"{self.in_channels} to {self.out_channels}, {self.side}x{self.side}"

    def layer(self, spec: Spec, device: torch.device) -> Any:
        """This convolution as the variant `spec`, 3x3 where the spec names no kernel size."""
        layer = build_variant(spec).conv(self.in_channels, self.out_channels, 3, padding=1)
        return layer.to(device).to(memory_format=torch.channels_last)

    def images(self, batch_size: int, device: torch.device) -> Tensor:
        """An input. Inner layers pass a gradient on to theirs, the first layer does not."""
        images = torch.randn(batch_size, self.in_channels, self.side, self.side, device=device)
        return images.to(memory_format=torch.channels_last).requires_grad_(self.in_channels > 1)


SHAPES = (Shape(1, 32, 28), Shape(32, 64, 14), Shape(64, 128, 7), Shape(128, 128, 7))


@cache
def read_specs() -> dict[str, Spec]:
    """The conv specs of Table 1's layer types, by the names of their overlays, and depthwise separable beside them."""
    specs = {}
    for path in sorted(LAYER_CONFIGS.glob("*.yaml")):
        conv = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]["conv"]
        specs[path.stem] = {"name": conv} if isinstance(conv, str) else conv
    return specs | {"depthwise_separable": {"name": "depthwise_separable"}}


def free_form(spec: Spec) -> Spec:
    """The spec of an `nn.Conv2d` with the kernel size of `spec`."""
    return {"name": "standard", **{key: value for key, value in spec.items() if key == "kernel_size"}}


def training_step(module: nn.Module, images: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Step:
    """Forward, backward and an SGD step of `module`; its learning rate is 0, so that the numbers stay what they are.

    `forward` stands in for the module's own.
    """
    forward = forward or module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
    gradient: Tensor | None = None

    def step() -> None:
        nonlocal gradient
        optimizer.zero_grad()
        images.grad = None
        output = forward(images)
        if gradient is None:
            gradient = torch.randn_like(output)
        output.backward(gradient)
        optimizer.step()

    return step


def compared(timings: Timings, baseline: str) -> Row:
    """Columns for one row: the median milliseconds of all contenders, then the others' ratios to the baseline."""
    others = [name for name in timings.samples if name != baseline]
    milliseconds = {f"{name} ms": timings.median_ms(name) for name in timings.samples}
    return milliseconds | {f"{name} / {baseline}": timings.ratio(name, to=baseline) for name in others}


def layer_training(bench: Bench) -> Iterator[Row]:
    """A Gaussian layer's training step."""
    spec = read_specs()["ours"]
    for precision in PRECISIONS:
        for shape in SHAPES:
            layers = {"Conv2d": shape.layer(free_form(spec), bench.device), "Gaussian": shape.layer(spec, bench.device)}
            for batch_size in BATCH_SIZES:
                images = shape.images(batch_size, bench.device)
                steps = {
                    name: training_step(layer, images, bench.in_precision(precision, layer))
                    for name, layer in layers.items()
                }
                timings = bench.time(steps)
                yield {"precision": precision, "layer": shape, "batch": batch_size, **compared(timings, "Conv2d")}


def evaluation_orders(bench: Bench) -> Iterator[Row]:
    """The separated form's training step in either order; `chosen` is the layer's own choice between them."""
    for shape in SHAPES:
        layer = shape.layer(read_specs()["ours_separated"], bench.device)
        orders = {"dense": dense_order(layer), "factorised": layer.forward_factorised, "chosen": layer}
        for batch_size in BATCH_SIZES:
            images = shape.images(batch_size, bench.device)
            timings = bench.time({name: training_step(layer, images, order) for name, order in orders.items()})
            yield {"layer": shape, "batch": batch_size, **compared(timings, "dense")}


def dense_order(layer: SynthesisedConv2d) -> Callable[[Tensor], Tensor]:
    """The layer's function through its dense weight."""
    return lambda x: layer.convolve(x, layer.dense_weight())


def kernel_synthesis(bench: Bench) -> Iterator[Row]:
    """The kernels and the dense weight by themselves, as a share of `nn.Conv2d`'s training step at batch 32."""
    for name in ("ours", "ours_separated"):
        for shape in SHAPES:
            layer = shape.layer(read_specs()[name], bench.device)
            conv = shape.layer(free_form(read_specs()[name]), bench.device)
            steps = {
                "step of Conv2d": training_step(conv, shape.images(32, bench.device)),
                "kernels": torch.no_grad()(layer.kernels),
                "kernels, backward": with_backward(layer, layer.kernels),
                "weight": torch.no_grad()(layer.dense_weight),
                "weight, backward": with_backward(layer, layer.dense_weight),
            }
            timings = bench.time(steps)
            milliseconds = {f"{step} ms": timings.median_ms(step) for step in steps}
            share = timings.ratio("weight, backward", to="step of Conv2d")
            yield {"type": name, "layer": shape, **milliseconds, "weight, backward / step": share}


def with_backward(layer: nn.Module, function: Callable[[], Tensor]) -> Step:
    """`function` of `layer`, then its gradient with respect to the layer's parameters."""
    parameters = list(layer.parameters())
    gradient = torch.randn_like(function())
    return lambda: torch.autograd.grad(function(), parameters, gradient, allow_unused=True)


def inference(bench: Bench) -> Iterator[Row]:
    """A Gaussian layer's inference with and without its weight kept."""
    spec = read_specs()["ours"]
    for shape in SHAPES:
        layers = {name: shape.layer(spec, bench.device).eval() for name in ("fused", "unfused")}
        layers["fused"].fuse()
        layers = {"Conv2d": shape.layer(free_form(spec), bench.device).eval(), **layers}
        for batch_size in (1, 32):
            images = shape.images(batch_size, bench.device)
            steps = {name: torch.inference_mode()(partial(layer, images)) for name, layer in layers.items()}
            yield {"layer": shape, "batch": batch_size, **compared(bench.time(steps), "Conv2d")}


def network_training(bench: Bench) -> Iterator[Row]:
    """The training step of the whole network, loss included, with every layer type in it."""
    images = torch.randn(32, 1, 28, 28, device=bench.device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (32,), device=bench.device)
    same_size = {"free_form, kernel size of ours": free_form(read_specs()["ours"])}
    networks = {}
    for name, spec in {**read_specs(), **same_size}.items():
        network = create_model("fashion_cnn", conv=spec, in_channels=1, num_classes=10)
        networks[name] = network.to(bench.device).to(memory_format=torch.channels_last)

    def loss(network: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: F.cross_entropy(network(x), labels)

    steps = {name: training_step(network, images, loss(network)) for name, network in networks.items()}
    timings = take_turns(steps, seconds=bench.seconds * len(steps), device=bench.device)
    for name, network in networks.items():
        yield {
            "type": name,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "step ms": timings.median_ms(name),
            "step / free_form": timings.ratio(name, to="free_form"),
        }


TABLES: dict[str, Measure] = {
    "Training step of a layer: Gaussian ('ours') beside nn.Conv2d": layer_training,
    "Training step of a separated layer, by order of evaluation (float32)": evaluation_orders,
    "Kernel synthesis alone, beside nn.Conv2d's training step at batch 32 (float32)": kernel_synthesis,
    "Inference of a layer: Gaussian ('ours'), fused and unfused, beside nn.Conv2d (float32)": inference,
    "Training step of fashion_cnn, batch 32 (float32)": network_training,
}


if __name__ == "__main__":
    run("benchmarks.gaussian", "Time Gaussian layers.", TABLES)
