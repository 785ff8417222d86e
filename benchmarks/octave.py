"""What octave convolutions save beside `nn.Conv2d`: layers of DCGAN, its networks, and whole GAN steps.

    python -m benchmarks.octave [--device cuda] [--threads 2] [--seconds 1] [--json results.json]

With alpha 0.5 on both sides an octave convolution has 1 - 3/4 alpha (2 - alpha) of the multiply-adds of an `nn.Conv2d`
of the same channels: 2.29 times fewer. `of 2.29x` is how much of that the clock sees; `fewer MACs` is what whole
networks save, whose first and last convolutions are octave on one side only. Octave and standard, in every precision
and memory format, take turns with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench import PRECISIONS, Bench, Measure, Row, run
from benchmarks.timing import Step, Timings
from models import create_model
from models.convs import OctavePair, build_variant

ALPHA = 0.5
THEORY = 1 / (1 - 0.75 * ALPHA * (2 - ALPHA))
KINDS: dict[str, Any] = {"standard": "standard", "octave": {"name": "octave", "alpha": ALPHA}}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LATENT_DIM = 100


class Contender(NamedTuple):
    """One of those that take turns."""

    kind: str
    precision: str
    memory_format: str


CONTENDERS = [Contender(*names) for names in product(KINDS, PRECISIONS, MEMORY_FORMATS)]


@dataclass(frozen=True)
class Shape:
    """An inner 3x3 convolution of DCGAN at 128 pixels: channels in and out, the side of its input, and the stride."""

    in_channels: int
    out_channels: int
    side: int
    stride: int = 1

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.in_channels} to {self.out_channels}, {self.side}x{self.side}{stride}"

    def layer(self, contender: Contender, device: torch.device) -> nn.Module:
        layer = build_variant(KINDS[contender.kind]).conv(
            self.in_channels, self.out_channels, 3, stride=self.stride, padding=1, bias=False
        )
        return layer.to(device).to(memory_format=MEMORY_FORMATS[contender.memory_format])

    def maps(self, contender: Contender, batch_size: int, device: torch.device) -> Tensor | OctavePair:
        """Feature maps as the layer takes them: a tensor, or a pair of which half the channels have half the side."""
        memory_format = MEMORY_FORMATS[contender.memory_format]

        def draw(channels: int, side: int) -> Tensor:
            return torch.randn(batch_size, channels, side, side, device=device).to(memory_format=memory_format)

        if contender.kind == "standard":
            return draw(self.in_channels, self.side)
        low = int(ALPHA * self.in_channels)
        return OctavePair(draw(self.in_channels - low, self.side), draw(low, self.side // 2))


GENERATOR_SHAPES = (Shape(512, 256, 8), Shape(256, 128, 16), Shape(128, 64, 32), Shape(64, 32, 64))
DISCRIMINATOR_SHAPES = (Shape(32, 64, 64, 2), Shape(64, 128, 32, 2), Shape(128, 256, 16, 2), Shape(256, 512, 8, 2))


def members(maps: Tensor | OctavePair) -> Sequence[Tensor]:
    return maps.members if isinstance(maps, OctavePair) else [maps]


def training_pass(layer: nn.Module, maps: Tensor | OctavePair, forward: Callable[[Any], Any]) -> Step:
    """Forward, then the gradients of the layer's parameters and of its input."""
    for member in members(maps):
        member.requires_grad_()
    wanted = [*layer.parameters(), *members(maps)]
    gradients = [torch.randn_like(member) for member in members(forward(maps))]
    return lambda: torch.autograd.grad(members(forward(maps)), wanted, gradients)


def layer_passes(bench: Bench) -> Iterator[Row]:
    """Inference and training pass of single layers."""
    for shape in (*GENERATOR_SHAPES, *DISCRIMINATOR_SHAPES):
        inference: dict[Contender, Step] = {}
        training: dict[Contender, Step] = {}
        for contender in CONTENDERS:
            layer = shape.layer(contender, bench.device)
            maps = shape.maps(contender, 32, bench.device)
            forward = bench.in_precision(contender.precision, layer)
            inference[contender] = torch.inference_mode()(partial(forward, maps))
            training[contender] = training_pass(layer, maps, forward)
        for name, steps in (("inference", inference), ("training", training)):
            for row in octave_beside_standard(_time(bench, steps)):
                yield {"layer": str(shape), "pass": name, **row}


def _time(bench: Bench, steps: Mapping[Contender, Step]) -> Timings:
    return bench.time({str(contender): step for contender, step in steps.items()})


def octave_beside_standard(timings: Timings, fewer_macs: float | None = None) -> Iterator[Row]:
    """A row a precision and memory format; the speed-up is the time of standard divided by that of octave."""
    for precision, memory_format in product(PRECISIONS, MEMORY_FORMATS):
        standard, octave = (str(Contender(kind, precision, memory_format)) for kind in KINDS)
        ratio = timings.ratio(standard, to=octave)
        row = {
            "precision": precision,
            "memory": memory_format,
            "standard ms": timings.median_ms(standard),
            "octave ms": timings.median_ms(octave),
            "speed-up": ratio,
        }
        if fewer_macs is not None:
            row["fewer MACs"] = fewer_macs
        yield {**row, f"of {THEORY:.2f}x": ratio / THEORY}


class GANStep:
    """Generator and discriminator of DCGAN, and one update of each with its losses and Adam.

    What `lightning_modules.gan.GANTask` computes in a step, without what a Trainer adds. The learning rate is 0, so
    that the numbers stay what they are.

    Args:
        reuse_fakes: One generator pass for both updates, in place of two.
    """

    def __init__(
        self, contender: Contender, bench: Bench, image_size: int, batch_size: int, reuse_fakes: bool = False
    ) -> None:
        memory_format = MEMORY_FORMATS[contender.memory_format]
        options = {"conv": KINDS[contender.kind], "image_size": image_size}
        generator = create_model("dcgan_generator", latent_dim=LATENT_DIM, **options)
        discriminator = create_model("dcgan_discriminator", **options)
        self.generator, self.discriminator = (
            network.to(bench.device).to(memory_format=memory_format) for network in (generator, discriminator)
        )
        self.generator_optimizer, self.discriminator_optimizer = (
            torch.optim.Adam(network.parameters(), lr=0.0, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        )
        images = torch.rand(batch_size, 3, image_size, image_size, device=bench.device) * 2 - 1
        self.images = images.to(memory_format=memory_format)
        self.latents = torch.randn(batch_size, LATENT_DIM, device=bench.device)
        self.reuse_fakes = reuse_fakes
        self.generate = bench.in_precision(contender.precision, self.generator)
        self.discriminate = bench.in_precision(contender.precision, self.discriminator)

    def __call__(self) -> None:
        with torch.set_grad_enabled(self.reuse_fakes):
            fakes = self.generate(self.latents)
        self.discriminator_optimizer.zero_grad()
        real, fake = self.discriminate(self.images).float(), self.discriminate(fakes.detach()).float()
        (F.softplus(-real) + F.softplus(fake)).mean().backward()
        self.discriminator_optimizer.step()

        self.generator_optimizer.zero_grad()
        self.discriminator.requires_grad_(False)
        fakes = fakes if self.reuse_fakes else self.generate(self.latents)
        F.softplus(-self.discriminate(fakes).float()).mean().backward()
        self.discriminator.requires_grad_(True)
        self.generator_optimizer.step()

    @property
    def passes(self) -> dict[str, Step]:
        """What is timed of it, by name."""
        return {
            "generator, inference": torch.inference_mode()(lambda: self.generate(self.latents)),
            "discriminator, inference": torch.inference_mode()(lambda: self.discriminate(self.images)),
            "GAN step": self,
        }


def network_passes(bench: Bench) -> Iterator[Row]:
    """The networks' forward passes and the GAN step that trains them, at the size of the experiments."""
    steps = {contender: GANStep(contender, bench, image_size=64, batch_size=64) for contender in CONTENDERS}
    names = next(iter(steps.values())).passes
    for name in names:
        contenders = {contender: step.passes[name] for contender, step in steps.items()}
        standard, octave = (contenders[Contender(kind, "float32", "contiguous")] for kind in KINDS)
        fewer_macs = count_flops(standard) / count_flops(octave)
        for row in octave_beside_standard(_time(bench, contenders), fewer_macs):
            yield {"pass": name, **row}


def count_flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def fast_steps(bench: Bench) -> Iterator[Row]:
    """A GAN step at 128 pixels as the suite takes it, beside the same networks taken naively."""
    for kind in KINDS:
        naive = Contender(kind, "float32", "contiguous")
        fast = Contender(kind, "bfloat16", "channels_last")
        steps: dict[str, Step] = {
            "two passes": GANStep(naive, bench, image_size=128, batch_size=64),
            "one pass": GANStep(fast, bench, image_size=128, batch_size=64, reuse_fakes=True),
        }
        timings = bench.time(steps)
        yield {
            "networks": kind,
            "float32, contiguous, two passes ms": timings.median_ms("two passes"),
            "bfloat16, channels_last, one pass ms": timings.median_ms("one pass"),
            "two passes / one pass": timings.ratio("two passes", to="one pass"),
        }


TABLES: dict[str, Measure] = {
    "DCGAN's layers at 128 pixels, batch 32: octave (alpha 0.5) beside nn.Conv2d": layer_passes,
    "DCGAN at 64 pixels, batch 64: octave (alpha 0.5) beside standard": network_passes,
    "A GAN step at 128 pixels, batch 64, with one generator pass for both updates, beside the naive step": fast_steps,
}


if __name__ == "__main__":
    run("benchmarks.octave", "Time octave layers, networks and GAN steps.", TABLES)
