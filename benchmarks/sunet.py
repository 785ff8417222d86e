"""Stacked U-Nets beside timm's residual networks at equal output stride, and what precision and recomputing change.

    python -m benchmarks.sunet [--device cuda] [--threads 2] [--seconds 1] [--json results.json]

Networks of one output stride take turns with each other, and so do the output strides of a network. A training step is
a forward pass with the head for segmentation, cross-entropy with 21 classes, the backward pass, and an update by SGD.
`peak MiB` are the tensors that are alive at once beside weights and images (`models.memory`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.bench import PRECISIONS, Bench, Measure, Row, run
from benchmarks.memory import peak_mib
from models import create_model
from models.analysis import analyse

NETWORKS = ("sunet_64", "timm/resnet18", "sunet_128", "timm/resnet50", "sunet_7_128", "timm/resnet101")
"""In pairs: the residual network that a SUNet is the counterpart of (section 6.1) comes after it."""
OUTPUT_STRIDES = (32, 16, 8)
SIDE, BATCH = 128, 2
PAPER_SIDE = 512
NUM_CLASSES = 21  # of PASCAL VOC
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Segmenting:
    """A network with the head for segmentation, and images.

    Attributes:
        inference: A step: logits of the images.
        training: A step: forward, backward and the update, at learning rate 0, so that the numbers stay what they are.
    """

    def __init__(
        self,
        bench: Bench,
        name: str,
        output_stride: int,
        precision: str = "bfloat16",
        memory_format: str = "channels_last",
        size: tuple[int, int] = (BATCH, SIDE),
        **options: Any,
    ) -> None:
        self.size = batch, side = size
        network = create_model(name, num_classes=NUM_CLASSES, head="segment", output_stride=output_stride, **options)
        layout = MEMORY_FORMATS[memory_format]
        self.network = network.to(bench.device).to(memory_format=layout)
        self.images = torch.randn(batch, 3, side, side, device=bench.device).to(memory_format=layout)
        self.masks = torch.randint(NUM_CLASSES, (batch, side, side), device=bench.device)
        self.forward = bench.in_precision(precision, self.network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.95)

    def training(self) -> None:
        self.network.train()
        self.optimizer.zero_grad()
        F.cross_entropy(self.forward(self.images).float(), self.masks).backward()
        self.optimizer.step()

    @torch.inference_mode()
    def inference(self) -> None:
        self.network.eval()
        self.forward(self.images)

    @property
    def macs(self) -> int:
        """Multiply-adds of an image."""
        return analyse(self.network, (1, 3, self.size[1], self.size[1])).macs


def networks_beside_each_other(bench: Bench) -> Iterator[Row]:
    """All networks, by output stride; `ms / ResNet` is against the counterpart."""
    for output_stride in OUTPUT_STRIDES:
        networks = {name: Segmenting(bench, name, output_stride) for name in NETWORKS}
        training = bench.time({name: network.training for name, network in networks.items()})
        inference = bench.time({name: network.inference for name, network in networks.items()})
        for place, (name, network) in enumerate(networks.items()):
            counterpart = NETWORKS[place | 1]
            yield {
                "output stride": output_stride,
                "network": name,
                "million parameters": sum(p.numel() for p in network.network.parameters()) / 1e6,
                "GMACs": network.macs / 1e9,
                "step ms": training.median_ms(name),
                "/ ResNet": training.ratio(name, to=counterpart),
                "inference ms": inference.median_ms(name),
                "inference / ResNet": inference.ratio(name, to=counterpart),
                "peak MiB": peak_mib(network.training),
            }


def output_strides(bench: Bench) -> Iterator[Row]:
    """What finer features cost: the paper has output stride 16 twice, and 32 four times, as fast as 8."""
    for name in NETWORKS:
        steps = {str(stride): Segmenting(bench, name, stride) for stride in OUTPUT_STRIDES}
        training = bench.time({stride: step.training for stride, step in steps.items()})
        inference = bench.time({stride: step.inference for stride, step in steps.items()})
        yield {
            "network": name,
            "step, 8 / 16": training.ratio("8", to="16"),
            "step, 8 / 32": training.ratio("8", to="32"),
            "inference, 8 / 16": inference.ratio("8", to="16"),
            "inference, 8 / 32": inference.ratio("8", to="32"),
        }


def precisions(bench: Bench) -> Iterator[Row]:
    """The suite's default beside contiguous float32."""
    for name in NETWORKS:
        steps = {
            (precision, memory_format): Segmenting(bench, name, 16, precision, memory_format)
            for precision in PRECISIONS
            for memory_format in MEMORY_FORMATS
        }
        yield from _gains(bench, name, {", ".join(key): step for key, step in steps.items()})


def crops_of_the_paper(bench: Bench) -> Iterator[Row]:
    """One crop of 512 pixels, the smallest SUNet and its counterpart, beside contiguous float32."""
    for output_stride in OUTPUT_STRIDES:
        for name in NETWORKS[:2]:
            crop = partial(Segmenting, bench, name, output_stride, size=(1, PAPER_SIDE))
            fast, plain = crop(), crop("float32", "contiguous")
            timings = bench.time({"fast": fast.training, "plain": plain.training})
            yield {
                "output stride": output_stride,
                "network": name,
                "GMACs": fast.macs / 1e9,
                "step ms": timings.median_ms("fast"),
                "contiguous float32 ms": timings.median_ms("plain"),
                "times as fast": timings.ratio("plain", to="fast"),
                "peak MiB": peak_mib(fast.training),
            }


def _gains(bench: Bench, name: str, steps: Mapping[str, Segmenting]) -> Iterator[Row]:
    training = bench.time({kind: step.training for kind, step in steps.items()})
    inference = bench.time({kind: step.inference for kind, step in steps.items()})
    first = next(iter(steps))
    for kind in steps:
        yield {
            "network": name,
            "precision, memory": kind,
            "step ms": training.median_ms(kind),
            "times as fast": training.ratio(first, to=kind),
            "inference ms": inference.median_ms(kind),
            "inference, times as fast": inference.ratio(first, to=kind),
        }


def recomputing(bench: Bench) -> Iterator[Row]:
    """Activation checkpointing: what it saves, and what it takes."""
    for name in NETWORKS[::2]:
        kept, recomputed = (Segmenting(bench, name, 16, checkpointing=value) for value in (False, True))
        timings = bench.time({"kept": kept.training, "recomputed": recomputed.training})
        before, after = peak_mib(kept.training), peak_mib(recomputed.training)
        yield {
            "network": name,
            "peak MiB": before,
            "with checkpointing": after,
            "share": after / before,
            "step ms, with / without": timings.ratio("recomputed", to="kept"),
        }


TABLES: dict[str, Measure] = {
    f"Segmentation of {BATCH} images of {SIDE}x{SIDE}, bfloat16 and channels_last": networks_beside_each_other,
    "Times as long at output stride 8 as at 16 and 32": output_strides,
    "Precision and memory format, output stride 16": precisions,
    "Activation checkpointing, output stride 16": recomputing,
    f"Training on one crop of {PAPER_SIDE}x{PAPER_SIDE}, bfloat16 and channels_last": crops_of_the_paper,
}


if __name__ == "__main__":
    run("benchmarks.sunet", "Time Stacked U-Nets beside residual networks.", TABLES)
